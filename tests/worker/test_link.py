"""The link: one complete exchange per connection, and nothing of an old one is ever taken for the new one's."""

from __future__ import annotations

import asyncio
import random

import pytest

from titan_fast.errors import NoToken, Refused
from titan_fast.ids import make_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import send, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.worker import link as link_module
from titan_fast.worker.link import Link, _Session

A, B = make_fence(1, 1), make_fence(1, 2)


class Behind:
    """Who is behind the link; writes down what it is told."""

    epoch = 7

    def __init__(self):
        self.told = []

    def welcomed(self, welcome):
        self.told.append("welcomed")

    def inventory(self, connection):
        self.told.append(f"inventory {connection}")
        return msg.Attach(worker="w", name="w", nonce="n", connection=connection, slots=1)

    def attached(self, verdict):
        self.told.append("attached")

    def detached(self):
        self.told.append("detached")

    def received(self, incoming):
        self.told.append(incoming.op.name)

    def pulse(self):
        return 0, 0, 0.0, 0


class Wire(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written = []
        self.is_aborted = False

    def write(self, data):
        self.written.append(data)

    def abort(self):
        self.is_aborted = True

    close = abort


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(_Session, "_now", staticmethod(lambda: Clock.now))
    return Clock


def in_loop(scene):
    asyncio.run(scene())


def opened():
    """A session that is past its handshake and has sent its ATTACH."""
    behind, wire = Behind(), Wire()
    session = _Session(3, behind, "token", "c")
    session.connection_made(wire)
    session._opening = None
    session._connection.open(link_module.Role.MASTER)
    return session, behind, wire


VERDICT = send(msg.VerdictMessage(keep=(A,)), request=link_module.ATTACH_REQUEST, is_reply=True)
LATER = send(msg.VerdictMessage(keep=(A,)))
KILL = send_hot(Op.KILL, 0, [[1], [0], [A], [0]])


def test_nothing_is_taken_before_the_verdict_on_this_inventory(clock):
    async def scene():
        session, behind, _ = opened()
        session.data_received(LATER + KILL)
        assert behind.told == [], "they were said to an earlier session"
        session.data_received(VERDICT + LATER + KILL)
        assert behind.told == ["attached", "VERDICT", "KILL"]
        session.connection_lost(None)
        assert behind.told[3:] == ["detached"]

    in_loop(scene)


def test_nothing_is_taken_after_the_end(clock):
    async def scene():
        session, behind, wire = opened()
        session.data_received(VERDICT)
        session._give_up(link_module.ConnectionLost("enough"))
        assert wire.is_aborted and not session.is_attached
        session.data_received(VERDICT + KILL)
        session.connection_lost(None)
        session.data_received(VERDICT + KILL)
        assert behind.told == ["attached", "detached"]
        assert str(await session.ended) == "enough"

    in_loop(scene)


def test_what_lay_unread_while_the_worker_stood_still_is_not_taken(clock):
    """The master has given it up by then; in the socket may be work that runs elsewhere now."""

    async def scene():
        session, behind, wire = opened()
        session.data_received(VERDICT)
        clock.now += link_module.SILENCE - 1
        session.data_received(KILL)
        assert behind.told == ["attached", "KILL"], "a short stop is none"
        session._beat()
        clock.now += link_module.SILENCE + 5
        session.data_received(KILL)
        assert behind.told == ["attached", "KILL", "detached"]
        assert wire.is_aborted
        session.connection_lost(None)
        assert str(await session.ended) == "this worker stood still for 15 s"

    in_loop(scene)


def test_a_silent_master_is_left(clock):
    async def scene():
        session, _, wire = opened()
        session.data_received(VERDICT)
        for _ in range(int(link_module.SILENCE)):
            clock.now += 1.0
            session._beats.cancel()
            session._beat()
            assert not wire.is_aborted
        clock.now += 1.0
        session._beat()
        assert wire.is_aborted
        session.connection_lost(None)
        assert "no byte from the master" in str(await session.ended)

    in_loop(scene)


def test_what_is_said_leaves_with_the_turn_and_only_when_attached():
    async def scene():
        behind = Behind()
        link = Link([], lambda: "token", behind, random.Random(1))
        link.send(b"lost")
        session, _, wire = opened()
        link._session = session
        link.send(b"lost too")
        session.data_received(VERDICT)
        before = len(wire.written)
        for part in (b"one", b"two"):
            link.send(part)
        assert len(wire.written) == before
        await asyncio.sleep(0)
        assert wire.written[before:] == [b"onetwo"]
        session._end()

    in_loop(scene)


def test_it_says_the_highest_epoch_it_knows_and_counts_its_connections(stage):
    async def scene(master):
        master.epoch = 5
        first = await master.attached()
        assert (first.hello.epoch, first.attach.connection) == (0, 1)
        first.keep_all()
        first.cut()
        second = await master.attached(2)
        assert (second.hello.epoch, second.attach.connection) == (5, 2)
        assert second.hello.cluster == "c"

    stage.play(scene)


def test_pauses_between_two_tries_are_given_by_chance(monkeypatch):
    """Two workers with the same chance try at the same moments: a simulation can be played again."""
    pauses = []

    async def scene():
        async def sleep(seconds):
            pauses.append(seconds)
            if len(pauses) % 5 == 0:
                raise asyncio.CancelledError

        loop = asyncio.get_running_loop()

        async def nobody(*_):
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(loop, "create_connection", nobody)
        for _ in range(2):
            link = Link([("h", 1)], lambda: "token", Behind(), random.Random(4))
            with pytest.raises(asyncio.CancelledError):
                await link.run()

    in_loop(scene)
    assert pauses[:5] == pauses[5:]
    assert len(set(pauses)) == 5 and all(0 <= pause <= link_module.RECONNECT_CAP for pause in pauses)


def test_a_master_that_is_away_is_a_line_for_each_problem_however_they_alternate(monkeypatch, caplog):
    """While a master restarts its token file is gone, its port is closed, and neither for the first time."""
    tries = []

    async def scene():
        async def sleep(_seconds):
            if len(tries) == 12:
                raise asyncio.CancelledError

        def find_token():
            tries.append(None)
            if len(tries) % 3 == 0:
                raise NoToken("no worker token")
            return "token"

        async def nobody(*_):
            raise ConnectionRefusedError("refused")

        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", nobody)
        with pytest.raises(asyncio.CancelledError):
            await Link([("h", 1), ("i", 2)], find_token, Behind(), random.Random(4)).run()

    in_loop(scene)
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(lines) == [
        "no master at h:1 (no worker token); trying on",
        "no master at h:1 (refused); trying on",
        "no master at i:2 (no worker token); trying on",
        "no master at i:2 (refused); trying on",
    ]


def test_a_loss_is_told_again_after_the_worker_was_attached(stage, caplog):
    async def scene(master):
        for number in (1, 2, 3):
            session = await master.attached(number)
            if number != 2:
                session.keep_all()
                await stage.until(lambda: stage.agent._link.is_attached)
            session.cut()
        await master.attached(4)

    stage.play(scene)
    lost = [record for record in caplog.records if record.getMessage().startswith("lost the master")]
    assert len(lost) == 2, "the second one was no loss: there was no verdict yet"


def test_who_is_refused_tries_for_a_while_ever_more_slowly_and_ends_with_what_the_master_said(monkeypatch, caplog):
    pauses = []

    class Turned:
        cluster = ""
        was_attached = False

        def __init__(self):
            self.ended = asyncio.get_running_loop().create_future()
            self.ended.set_result(Refused("the id of this worker is that of w1", hint="use another --work-dir"))

    async def scene():
        async def sleep(seconds):
            pauses.append(seconds)

        async def connect(*_):
            return Turned()

        link = Link([("h", 1)], lambda: "token", Behind(), random.Random(4))
        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(link, "_connect", connect)
        with pytest.raises(Refused) as refused:
            await link.run()
        assert refused.value.exit_code == 5

    in_loop(scene)
    assert len(pauses) == link_module.REFUSALS - 1
    assert sum(pauses) > 6, "longer than a master takes to see that the agent before this one is dead"
    assert pauses[-1] > pauses[-2] > pauses[-3] > link_module.RECONNECT_CAP * 0.9
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "the master refuses this worker: the id of this worker is that of w1; use another --work-dir"
