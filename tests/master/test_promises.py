"""The release rule with a master in this process and a store whose commits wait until they are let through."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
from contextlib import asynccontextmanager

import pytest

from titan_fast.config import load
from titan_fast.errors import Busy, DiskFull, StoreFailed
from titan_fast.master import queries, watch
from titan_fast.master.committer import ThreadCommitter
from titan_fast.master.server import Master
from titan_fast.master.session import Session
from titan_fast.master.store.memory import MemoryStore
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send, send_hot
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.protocol.opening import Opening

GRAPH = GraphSpec("g", (TaskSpec("t", Work(argv=("true",))),))


class GatedStore(MemoryStore):
    """Commits go through while the gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.failure = None

    def commit(self, epoch, facts):
        self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        super().commit(epoch, facts)


class Peer:
    """A connection of the given role, frame by frame."""

    def __init__(self, reader, writer, connection):
        self._reader, self._writer, self._connection = reader, writer, connection
        self._received = []
        self._request = 10

    @classmethod
    async def connect(cls, master, role, epoch=0):
        reader, writer = await asyncio.open_connection("127.0.0.1", master.port)
        connection = Connection(Role.MASTER)
        opening = Opening(connection, role, master.tokens[role], epoch=epoch)
        writer.write(opening.hello())
        while opening.welcome is None:
            for incoming in connection.receive(await reader.read(65536)):
                writer.write(opening.take(incoming))
        return cls(reader, writer, connection)

    def say(self, message, attachments=()):
        self._request += 1
        self._writer.write(send(message, attachments, self._request))
        return self._request

    def say_hot(self, op, sequence, columns, tail=b""):
        self._writer.write(send_hot(op, sequence, columns, tail))

    async def next(self, seconds=10.0):
        while not self._received:
            data = await asyncio.wait_for(self._reader.read(65536), seconds)
            if not data:
                raise ConnectionError("hung up")
            self._received.extend(self._connection.receive(data))
        return self._received.pop(0)

    def close(self):
        self._writer.close()

    async def hears_nothing(self):
        """Not for a moment that is long for this machine and short for a test."""
        with pytest.raises(TimeoutError):
            await self.next(0.15)

    async def attach(self, slots=1):
        self.say(msg.Attach(worker="a" * 32, name="w", nonce="n1", connection=1, slots=slots))


@asynccontextmanager
async def a_master(tmp_path, store):
    failures = []
    settings = load({"master": {"port": 0, "state_dir": str(tmp_path / "state")}}, {"TITAN_HOME": str(tmp_path)})
    master = Master(settings, store, committer=ThreadCommitter, on_failure=failures.append)
    master.failures = failures
    await master.start()
    try:
        yield master
    finally:
        store.gate.set()
        await master.stop(0.0)


def with_master(tmp_path, scenario, monkeypatch):
    monkeypatch.setenv("TITAN_HOME", str(tmp_path))

    async def main():
        store = GatedStore()
        async with a_master(tmp_path, store) as master:
            await scenario(master, store)

    asyncio.run(main())


def test_a_submit_is_answered_when_it_is_durable_and_not_before(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH))
        await client.hears_nothing()
        store.gate.set()
        assert (await client.next()).message.run == 1

    with_master(tmp_path, scenario, monkeypatch)


def test_a_process_starts_when_its_submit_is_durable_and_the_next_ones_do_not_wait(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        assert isinstance((await worker.next()).message, msg.VerdictMessage)
        client = await Peer.connect(master, "client")
        store.gate.clear()
        two = GraphSpec("g", (TaskSpec("a", Work(argv=("true",))), TaskSpec("b", Work(argv=("true",)), needs=("a",))))
        client.say(msg.Submit(graph=two))
        await worker.hears_nothing()
        store.gate.set()
        assert (await worker.next()).op is Op.SPEC
        first = await worker.next()
        assert first.op is Op.ASSIGN
        store.gate.clear()
        run, fence = first.columns[0][0], first.columns[6][0]
        worker.say_hot(Op.RESULT, 1, ([run], [0], [0], [0], [0], [fence], [0], [1], [1], [0], [0]))
        assert (await worker.next()).op is Op.SPEC
        assert (await worker.next()).op is Op.ASSIGN, "work does not wait for the disk"
        await worker.hears_nothing()
        store.gate.set()
        assert (await worker.next()).op is Op.ACK, "the acknowledgement does"

    with_master(tmp_path, scenario, monkeypatch)


FUNCTION = GraphSpec("g", (TaskSpec("t", Work(function=1), payload=0),))


def test_a_function_starts_at_once_and_its_end_is_promised_when_its_submit_is(tmp_path, monkeypatch):
    async def scenario(master, store):
        client, worker = await Peer.connect(master, "client"), await Peer.connect(master, "worker")
        await worker.attach()
        assert (await worker.next()).op is Op.VERDICT
        store.gate.clear()
        client.say(msg.Submit(graph=FUNCTION), (bytes(8), b"the function"))
        spec = await worker.next()
        assert (spec.op, spec.attachments) == (Op.SPEC, (b"the function",))
        assign = await worker.next()
        assert assign.op is Op.ASSIGN
        row = [[1], [0], [0], [0], [0], assign.columns[6], [0], [5], [5], [0], [3]]
        worker.say_hot(Op.RESULT, 1, row, b"one")
        await client.hears_nothing()
        store.gate.set()
        assert (await client.next()).op is Op.ACCEPTED
        assert (await worker.next()).op is Op.ACK
        client.say(msg.Results(run=1, task="t"))
        assert (await client.next()).attachments == (b"one",)

    with_master(tmp_path, scenario, monkeypatch)


def test_a_function_starts_again_when_the_retry_is_durable(tmp_path, monkeypatch):
    async def scenario(master, store):
        client, worker = await Peer.connect(master, "client"), await Peer.connect(master, "worker")
        await worker.attach()
        assert (await worker.next()).op is Op.VERDICT
        client.say(msg.Submit(graph=FUNCTION), (bytes(8), b"the function"))
        assert (await worker.next()).op is Op.SPEC
        fence = (await worker.next()).columns[6]
        worker.say_hot(Op.RESULT, 1, [[1], [0], [0], [0], [0], fence, [1], [5], [5], [0], [4]], b"E: x")
        assert (await worker.next()).op is Op.ACK
        store.gate.clear()
        client.say(msg.Retry(run=1))
        await worker.hears_nothing()
        store.gate.set()
        assert [(await worker.next()).op for _ in range(2)] == [Op.SPEC, Op.ASSIGN]

    with_master(tmp_path, scenario, monkeypatch)


def test_a_process_starts_again_when_the_retry_is_durable(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        client = await Peer.connect(master, "client")
        client.say(msg.Submit(graph=GRAPH))
        assert [(await worker.next()).op for _ in range(2)] == [Op.VERDICT, Op.SPEC]
        first = await worker.next()
        run, fence = first.columns[0][0], first.columns[6][0]
        worker.say_hot(Op.RESULT, 1, ([run], [0], [0], [0], [0], [fence], [1], [1], [1], [0], [0]))
        assert (await worker.next()).op is Op.ACK
        store.gate.clear()
        client.say(msg.Retry(run=run))
        await worker.hears_nothing()
        store.gate.set()
        assert (await worker.next()).op is Op.SPEC
        assert (await worker.next()).op is Op.ASSIGN

    with_master(tmp_path, scenario, monkeypatch)


def test_a_verdict_waits_for_the_registration_and_assignments_wait_for_the_verdict(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        client.say(msg.Submit(graph=GRAPH))
        await client.next()
        store.gate.clear()
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        await worker.hears_nothing()
        store.gate.set()
        assert [(await worker.next()).op for _ in range(3)] == [Op.VERDICT, Op.SPEC, Op.ASSIGN]

    with_master(tmp_path, scenario, monkeypatch)


def test_who_is_hung_up_on_hears_why_while_a_verdict_waits_for_the_disk(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        store.gate.clear()
        await worker.attach()
        worker.say_hot(Op.RESULT, 1, [[1], [0], [0], [200], [0], [1], [0], [0], [0], [0], [0]])
        told = await worker.next()
        assert isinstance(told.message, msg.Error) and told.message.code == "bad_records"
        with pytest.raises(ConnectionError):
            await worker.next()

    with_master(tmp_path, scenario, monkeypatch)


def test_a_kill_waits_for_the_cancel_it_rests_on(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        client = await Peer.connect(master, "client")
        client.say(msg.Submit(graph=GRAPH))
        await client.next()
        assert [(await worker.next()).op for _ in range(3)] == [Op.VERDICT, Op.SPEC, Op.ASSIGN]
        store.gate.clear()
        client.say(msg.Cancel(1))
        await worker.hears_nothing()
        await client.hears_nothing()
        store.gate.set()
        assert (await worker.next()).op is Op.KILL

    with_master(tmp_path, scenario, monkeypatch)


def test_refusals_and_heartbeats_do_not_wait(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        await worker.next()
        client = await Peer.connect(master, "client")
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH))
        client.say(msg.Cancel(77))
        assert (await client.next()).message.code == "no_such_run"
        worker.say_hot(Op.HEARTBEAT, 5, ([0], [0], [0.0], [0]))
        while (await worker.next()).op is not Op.HEARTBEAT:
            pass

    with_master(tmp_path, scenario, monkeypatch)


def test_while_the_store_is_stuck_questions_are_answered_and_say_so(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH))
        answers = []
        while not answers or answers[-1].durable:
            client.say(msg.List("runs"))
            try:
                answers.append((await client.next(1.1)).message)
            except TimeoutError:
                continue
        assert [row.id for row in answers[-1].runs] == [1]
        store.gate.set()

    with_master(tmp_path, scenario, monkeypatch)


def test_nothing_new_is_assigned_or_accepted_while_the_disk_does_not_keep_up(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach(slots=2)
        client = await Peer.connect(master, "client")
        for number in (1, 2, 3):
            client.say(msg.Submit(graph=GRAPH))
            assert (await client.next()).message.run == number
        assert [(await worker.next()).op for _ in range(5)].count(Op.ASSIGN) == 2
        store.gate.clear()
        client.say(msg.Cancel(2))
        while not master.pump.is_stuck:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        client.say(msg.Submit(graph=GRAPH))
        assert (await client.next()).message.code == "disk_full"
        worker.say_hot(Op.RESULT, 1, ([1], [0], [0], [0], [0], [(1 << 40) + 1], [0], [1], [1], [0], [0]))
        await worker.hears_nothing()
        store.gate.set()
        seen = []
        while Op.ASSIGN not in seen:
            seen.append((await worker.next()).op)

    with_master(tmp_path, scenario, monkeypatch)


def test_after_a_failed_commit_nobody_is_told_anything(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.failure = StoreFailed("the disk is gone")
        client.say(msg.Submit(graph=GRAPH))
        await client.hears_nothing()
        assert [str(error) for error in master.failures] == ["the disk is gone"]
        store.failure = None

    with_master(tmp_path, scenario, monkeypatch)


def test_a_repeated_request_is_answered_as_it_was_and_carried_out_once(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        once = msg.Once("client-1", 7)
        client.say(msg.Submit(graph=GRAPH, once=once))
        assert (await client.next()).message.run == 1
        again = await Peer.connect(master, "client")
        again.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 7, repeat=True)))
        assert (await again.next()).message.run == 1
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 8)))
        await client.hears_nothing()
        again.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 8, repeat=True)))
        await again.hears_nothing()
        store.gate.set()
        assert (await again.next()).message.run == 2, "on its way to the disk counts, too"
        client.say(msg.List("runs"))
        await client.next()
        assert len((await client.next()).message.runs) == 2

    with_master(tmp_path, scenario, monkeypatch)


def test_a_refused_request_does_not_use_up_its_key(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        bad = GraphSpec("g", (TaskSpec("t", Work(argv=("true",)), needs=("nobody",)),))
        client.say(msg.Submit(graph=bad, once=msg.Once("client-1", 7)))
        assert (await client.next()).message.code == "invalid_graph"
        client.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 7, repeat=True)))
        assert (await client.next()).message.run == 1

    with_master(tmp_path, scenario, monkeypatch)


def test_a_request_that_its_own_repeat_has_overtaken_is_not_carried_out(tmp_path, monkeypatch):
    """The client gave the first connection up, but the master still reads from it."""

    async def scenario(master, store):
        slow = await Peer.connect(master, "client")
        quick = await Peer.connect(master, "client")
        quick.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 7, repeat=True)))
        assert (await quick.next()).message.run == 1
        slow.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 7)))
        assert (await slow.next()).message.run == 1
        quick.say(msg.List("runs"))
        assert len((await quick.next()).message.runs) == 1

    with_master(tmp_path, scenario, monkeypatch)


def test_a_stop_on_a_full_disk_tells_nobody_what_is_not_written(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.failure = DiskFull("no space")
        client.say(msg.Submit(graph=GRAPH))
        await client.hears_nothing()
        await master.stop(0.0)
        with pytest.raises(ConnectionError):
            await client.next()
        assert not list(store.load().runs)

    with_master(tmp_path, scenario, monkeypatch)


def test_a_state_older_than_its_workers_takes_a_new_epoch_and_tells_nobody_what_is_not_written(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH))
        await client.hears_nothing()
        with pytest.raises(Busy):
            await Peer.connect(master, "worker", epoch=9)
        await client.hears_nothing()
        store.gate.set()
        assert (await client.next()).message.run == 1
        while master.epoch == 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        worker = await Peer.connect(master, "worker", epoch=9)
        await worker.attach()
        frames = [await worker.next() for _ in range(3)]
        assert frames[2].op is Op.ASSIGN
        assert frames[2].columns[6][0] >> 40 == 10, "its fences are above everything the worker has seen"

    with_master(tmp_path, scenario, monkeypatch)


def test_who_was_welcomed_by_the_epoch_before_comes_again_before_it_attaches(tmp_path, monkeypatch):
    """Else it would not know by whom the new epoch's attempts were assigned, and each later inventory would call them
    strangers."""

    async def scenario(master, store):
        early = await Peer.connect(master, "worker")
        with pytest.raises(Busy):
            await Peer.connect(master, "worker", epoch=9)
        while master.epoch == 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await early.attach()
            await early.next()

    with_master(tmp_path, scenario, monkeypatch)


def test_a_request_and_its_repeat_in_one_turn_are_one_request(tmp_path, monkeypatch):
    async def scenario(master, store):
        first, second = await Peer.connect(master, "client"), await Peer.connect(master, "client")
        for session, repeat in zip(list(master.sessions), (False, True), strict=True):
            once = msg.Once("client-1", 1, repeat)
            session.data_received(send(msg.Submit(graph=GRAPH, once=once), (), 20))
        assert [(await peer.next()).message.run for peer in (first, second)] == [1, 1]

    with_master(tmp_path, scenario, monkeypatch)


def test_what_is_said_in_a_turn_waits_for_the_facts_of_that_turn(tmp_path, monkeypatch):
    """A result and a repeated submit that watches arrive together: the outcome is not durable yet."""

    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        await worker.next()
        client = await Peer.connect(master, "client")
        client.say(msg.Submit(graph=GRAPH, once=msg.Once("client-1", 1)))
        await client.next()
        frames = [await worker.next() for _ in range(2)]
        fence = frames[1].columns[6][0]
        sessions = {session.role: session for session in master.sessions}
        store.gate.clear()
        result = ([1], [0], [0], [0], [0], [fence], [0], [1], [1], [0], [0])
        sessions["worker"].data_received(send_hot(Op.RESULT, 1, result))
        again = msg.Submit(graph=GRAPH, watch=True, once=msg.Once("client-1", 1, repeat=True))
        sessions["client"].data_received(send(again, (), 30))
        await client.hears_nothing()
        store.gate.set()
        assert [(await client.next()).op for _ in range(2)] == [Op.ACCEPTED, Op.UPDATE]

    with_master(tmp_path, scenario, monkeypatch)


def record_hurry(master, monkeypatch):
    hurried = []
    hurry = master.pump.committer.hurry
    monkeypatch.setattr(master.pump.committer, "hurry", lambda: (hurried.append(master.pump.position), hurry()))
    return hurried


def test_who_waits_for_the_outcome_is_no_reason_for_a_commit_and_hears_the_number_after_it(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        hurried = record_hurry(master, monkeypatch)
        store.gate.clear()
        client.say(msg.Submit(graph=GRAPH, watch=True))
        await client.hears_nothing()
        assert hurried == []
        store.gate.set()
        assert (await client.next()).op is Op.ACCEPTED
        client.say(msg.Submit(graph=GRAPH))
        assert (await client.next()).op is Op.ACCEPTED
        assert hurried, "an answer that is waited for is one"

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize(
    ("work", "gave", "told"),
    [
        (Work(function=1), b"a pickle", b"a pickle"),
        (Work(function=1), bytes(queries.MAX_GIFT), bytes(queries.MAX_GIFT)),
        (Work(function=1), bytes(queries.MAX_GIFT + 1), None),
        (Work(function=1), b"artifact:1/t", None),
        (Work(argv=("true",)), b"a text", None),
    ],
    ids=["function", "as-large-as-may-be", "too-large", "file", "process"],
)
def test_the_end_of_a_run_tells_what_its_last_function_returned(tmp_path, monkeypatch, work, gave, told):
    async def scenario(master, store):
        client, worker = await Peer.connect(master, "client"), await Peer.connect(master, "worker")
        await worker.attach()
        assert (await worker.next()).op is Op.VERDICT
        client.say(msg.Submit(graph=GraphSpec("g", (TaskSpec("t", work, payload=0),)), watch=True), (bytes(8), b"f"))
        assert (await worker.next()).op is Op.SPEC
        fence = (await worker.next()).columns[6]
        worker.say_hot(Op.RESULT, 1, [[1], [0], [0], [0], [0], fence, [0], [5], [5], [0], [len(gave)]], gave)
        while not ((end := await client.next()).op is Op.UPDATE and end.message.final):
            pass
        assert end.message.exit_code == 0
        assert (end.message.gave, tuple(end.attachments)) == (("", ()) if told is None else ("t", (told,)))

    with_master(tmp_path, scenario, monkeypatch)


def test_an_acknowledgement_of_results_is_no_reason_for_a_commit(tmp_path, monkeypatch):
    async def scenario(master, store):
        client, worker = await Peer.connect(master, "client"), await Peer.connect(master, "worker")
        await worker.attach()
        assert (await worker.next()).op is Op.VERDICT
        client.say(msg.Submit(graph=FUNCTION), (bytes(8), b"f"))
        assert (await client.next()).op is Op.ACCEPTED
        assert (await worker.next()).op is Op.SPEC
        fence = (await worker.next()).columns[6]
        hurried = record_hurry(master, monkeypatch)
        worker.say_hot(Op.RESULT, 1, [[1], [0], [0], [0], [0], fence, [0], [5], [5], [0], [1]], b"x")
        assert (await worker.next()).op is Op.ACK
        assert hurried == []

    with_master(tmp_path, scenario, monkeypatch)


def test_an_outcome_that_is_there_before_the_number_has_left_is_the_only_answer(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        await worker.next()
        client = await Peer.connect(master, "client")
        sessions = {session.role: session for session in master.sessions}
        store.gate.clear()
        request = client.say(msg.Submit(graph=GRAPH, watch=True))
        await client.hears_nothing()
        fence = next(iter(master.scheduler.state.workers.values())).fences[0]
        result = ([1], [0], [0], [0], [0], [fence], [0], [1], [1], [0], [0])
        sessions["worker"].data_received(send_hot(Op.RESULT, 1, result))
        await client.hears_nothing()
        store.gate.set()
        answer = await client.next()
        assert (answer.op, answer.request, answer.message.run) == (Op.UPDATE, request, 1)
        await client.hears_nothing()
        assert sessions["client"].waiting_bytes == 0

    with_master(tmp_path, scenario, monkeypatch)


def test_a_graph_that_ends_as_it_begins_has_one_answer(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        skipped = GraphSpec("g", (TaskSpec("t", Work(argv=("true",)), when="failure"),))
        client.say(msg.Submit(graph=skipped, watch=True))
        assert (await client.next()).message.final
        await client.hears_nothing()

    with_master(tmp_path, scenario, monkeypatch)


def test_a_submit_whose_watch_cannot_be_kept_is_accepted_first(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "MAX_WATCHES", 1)

    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        first = client.say(msg.Submit(graph=GRAPH, watch=True))
        second = client.say(msg.Submit(graph=GRAPH, watch=True))
        said = [await client.next() for _ in range(3)]
        assert [(item.op, item.request) for item in said if item.request == first] == [(Op.ACCEPTED, first)]
        assert [item.op for item in said if item.request == second] == [Op.ACCEPTED, Op.ERROR]

    with_master(tmp_path, scenario, monkeypatch)


def test_a_kill_never_overtakes_its_assignment(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        store.gate.clear()
        client.say(msg.KvSet(name="x"), (b"1",))
        await client.hears_nothing()
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        await worker.hears_nothing()
        client.say(msg.Submit(graph=GRAPH))
        await worker.hears_nothing()
        client.say(msg.Cancel(1))
        await worker.hears_nothing()
        store.gate.set()
        assert [(await worker.next()).op for _ in range(4)] == [Op.VERDICT, Op.SPEC, Op.ASSIGN, Op.KILL]

    with_master(tmp_path, scenario, monkeypatch)


def test_requests_and_connections_leave_nothing_for_the_collector(tmp_path, monkeypatch):
    """It is off in a master: what only it could free stays until the master is idle."""

    async def scenario(master, store):
        content = b"x" * 100_000
        digest = hashlib.sha256(content).hexdigest()

        async def each_kind():
            client = await Peer.connect(master, "client")
            client.say(msg.KvSet(name="x", expect=77), (content,))
            assert (await client.next()).message.code == "conflict"
            client.say(msg.Submit(graph=GraphSpec("g", (TaskSpec("t", Work(argv=("true",)), needs=("u",)),))))
            assert (await client.next()).message.code == "invalid_graph"
            client.say(msg.BlobPut(digest=digest, offset=0, size=len(content)), (content,))
            assert (await client.next()).message.size == len(content)
            client.say(msg.BlobPut(digest=digest, offset=7, size=len(content)), (content,))
            assert (await client.next()).message.code == "bad_message"
            client.say(msg.Submit(graph=GRAPH))
            await client.next()
            client.close()

        await each_kind()
        while len(master.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await each_kind()
            while len(master.sessions):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [item for item in gc.garbage if isinstance(item, Session | Incoming | msg.Message)]
            assert not found, found[:5]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    with_master(tmp_path, scenario, monkeypatch)
