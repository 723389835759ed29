"""The door of the tasks: who gets in, what passes, what ends a passage. The master behind it follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading

import pytest

from titan_fast import Client
from titan_fast.config import Door as Key
from titan_fast.errors import BadProof, InvalidUsage, NoMaster, NoToken, Refused
from titan_fast.ids import format_fence, make_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import MAX_MESSAGE, Connection, send, send_error
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening, Reception
from titan_fast.sdk.wire import Wire
from titan_fast.testing.cluster import until
from titan_fast.testing.scripted_master import ScriptedMaster
from titan_fast.worker import door as door_module
from titan_fast.worker.door import Door

A, B = make_fence(1, 5), make_fence(1, 6)
WORKER = "0123456789abcdef0123456789abcdef"


class TaskMaster(ScriptedMaster):
    """A `ScriptedMaster` whose peers are workers that speak for attempts."""

    def __init__(self):
        super().__init__()
        self.hellos = []
        self.closed = set()
        """Attempts that are not open here."""

    def _prove(self, connection, incoming, receptions):
        if not receptions:
            receptions.append(Reception(lambda hello: self.token if hello.token == Role.WORKER else ""))
        (reception,) = receptions
        answer = reception.take(incoming)
        if not reception.is_proved:
            return answer
        self.hellos.append(reception.hello)
        if reception.hello.fence in self.closed:
            return send_error(Refused("attempt 1.5 is not open at this master"), incoming.request)
        connection.open(Role.TASK)
        self.connections += 1
        welcome = msg.Welcome("task", "scripted", 1, "test", 1 << 24, MAX_MESSAGE, self.history)
        return send(welcome, request=incoming.request, is_reply=True)


class Agent:
    """A door in a loop of its own, as an agent has it."""

    def __init__(self, folder, master):
        self.folder = folder
        self.master = master
        self.token = master.token
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        host, _, port = master.address.rpartition(":")
        self.addresses = [(host, int(port))]
        self.door = None
        self.open()

    def open(self):
        async def make():
            self.door = Door(self.folder, WORKER, self.addresses, self.find_token)
            await self.door.open()

        self.do(make())

    def find_token(self):
        if not self.token:
            raise NoToken("no worker token")
        return self.token

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def call(self, function, *arguments):
        async def call():
            return function(*arguments)

        return self.do(call())

    def admit(self, fence):
        """What a task needs."""
        environ = self.call(self.door.admit, fence)
        return Key(environ["TITAN_AGENT"], fence, environ["TITAN_AGENT_TOKEN"])

    @property
    def visits(self):
        return len(self.door._visits)

    def close(self):
        self.do(self.door.close())

    def stop(self):
        with contextlib.suppress(OSError):
            self.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def master():
    with TaskMaster() as master:
        master.on(msg.KvSet, msg.KvDone(5))
        master.on(msg.KvGet, (msg.KvValue(name="k", revision=5), b"v"))
        yield master


@pytest.fixture
def agent(master, tmp_path):
    agent = Agent(tmp_path / "work", master)
    yield agent
    agent.stop()


@pytest.fixture
def inside(monkeypatch):
    """Clients in the environment of an attempt."""
    with contextlib.ExitStack() as clients:

        def make(key, **options):
            monkeypatch.setenv("TITAN_AGENT", key.path)
            monkeypatch.setenv("TITAN_AGENT_TOKEN", key.token)
            monkeypatch.setenv("TITAN_FENCE", format_fence(key.fence))
            monkeypatch.delenv("TITAN_ADDR", raising=False)
            return clients.enter_context(Client(tell=lambda text: None, **options))

        yield make


def through(key):
    return Wire.through(key, 5.0)


# ---------------------------------------------------------------- who gets in


def test_a_task_reaches_the_master_and_the_master_hears_for_whom(agent, master, inside):
    client = inside(agent.admit(A))
    assert client.kv.set("k", "v") == 5
    assert client.kv.get("k") == b"v"
    (hello,) = master.hellos
    assert (hello.token, hello.fence) == ("worker", A)


def test_what_the_task_knows_is_not_the_workers_token(agent, master):
    key = agent.admit(A)
    assert key.token not in (master.token, agent.admit(B).token)


@pytest.mark.parametrize("fence", [B, 0])
def test_an_attempt_that_does_not_run_here_is_refused(agent, master, fence):
    key = agent.admit(A)
    with pytest.raises(BadProof, match="does not run at this worker"):
        through(Key(key.path, fence, key.token))
    assert master.hellos == []


def test_an_attempt_that_has_ended_is_refused_and_told_so_at_once(agent, master, inside):
    key = agent.admit(A)
    agent.call(agent.door.dismiss, A)
    with pytest.raises(BadProof, match=r"attempt 1\.5 does not run at this worker \(any more\)"):
        inside(key).kv.get("k")
    assert master.hellos == []


@pytest.mark.parametrize("secret", ["guess", "foreign"])
def test_the_secret_of_another_attempt_proves_nothing(agent, master, secret):
    key, other = agent.admit(A), agent.admit(B)
    token = other.token if secret == "foreign" else "0" * 64
    link = socket.socket(socket.AF_UNIX)
    link.connect(key.path)
    opening = Opening(Connection(Role.MASTER), "task", token, fence=A)
    link.sendall(opening.hello() + send(msg.Proof("0" * 64), request=1))
    assert b"bad_proof" in everything(link)
    with pytest.raises(BadProof):
        through(Key(key.path, A, token))
    assert master.hellos == []


def everything(link):
    data = b""
    link.settimeout(20)
    with contextlib.suppress(ConnectionError):
        while piece := link.recv(1 << 16):
            data += piece
    link.close()
    return data


def test_a_client_of_the_cluster_is_no_task(agent, master):
    key = agent.admit(A)
    link = socket.socket(socket.AF_UNIX)
    link.connect(key.path)
    link.sendall(Opening(Connection(Role.MASTER), "client", master.token, fence=A).hello())
    assert b"bad_proof" in everything(link)


def test_a_stranger_that_says_nothing_is_dropped(agent, monkeypatch):
    monkeypatch.setattr(door_module, "PROOF_TIMEOUT", 0.05)
    link = socket.socket(socket.AF_UNIX)
    link.connect(agent.door.path)
    assert everything(link) == b""
    until(lambda: not agent.visits, "it is forgotten")


def test_strangers_are_limited_and_those_who_are_let_in_do_not_notice(agent, monkeypatch):
    monkeypatch.setattr(door_module, "STRANGERS", 2)
    wire = through(agent.admit(A))
    silent = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for link in silent:
        link.connect(agent.door.path)
    assert everything(silent[2]) == b""
    assert wire.ask(msg.KvGet(name="k")).attachments == (b"v",)
    for link in silent:
        link.close()


def test_a_master_that_does_not_know_the_attempt_is_heard(agent, master):
    master.closed.add(A)
    with pytest.raises(Refused, match="not open at this master"):
        through(agent.admit(A))


def test_connections_of_an_attempt_are_limited_and_of_others_there_is_room(agent, monkeypatch):
    monkeypatch.setattr(door_module, "PER_ATTEMPT", 3)
    a, b = agent.admit(A), agent.admit(B)
    wires = [through(a) for _ in range(3)]
    with pytest.raises(Refused, match="3 connections of this task"):
        through(a)
    wires.append(through(b))
    wires.pop(0).close()
    until(lambda: agent.visits == 3, "its place is free")
    wires.append(through(a))


def test_connections_of_all_attempts_together_are_limited(agent, monkeypatch):
    monkeypatch.setattr(door_module, "IN_ALL", 2)
    wires = [through(agent.admit(A)), through(agent.admit(B))]
    with pytest.raises(Refused, match="2 connections of tasks"):
        through(agent.admit(A))
    until(lambda: agent.visits == len(wires), "only those who are let in are there")


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize("step", range(3))
def test_a_change_is_carried_out_once_wherever_the_connection_breaks(agent, master, inside, step):
    master.break_at(step)
    assert inside(agent.admit(A)).kv.set("k", "v", expect=4) == 5
    assert len(master.carried_out) == 1
    assert [asked.once.repeat for asked in master.asked] == [False, True]


def test_large_values_pass_whole(agent, master, inside):
    value = os.urandom(3 << 20)
    master.script(msg.KvSet, lambda asked, data: [msg.KvDone(len(data) if data == value else 0)])
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=5), value))
    client = inside(agent.admit(A))
    assert client.kv.set("k", value) == len(value)
    assert client.kv.get("k") == value


def test_who_does_not_read_is_dropped_and_nobody_keeps_it_for_him(agent, master, monkeypatch):
    monkeypatch.setattr(door_module, "UNDRAINED", 0.2)
    said = []

    def flood(asked):
        for number in range(64):
            said.append(number)
            yield (msg.KvValue(name="k", revision=5), bytes(1 << 20))

    master.script(msg.KvGet, flood)
    wire = through(agent.admit(A))
    wire.write(wire.enter(msg.KvGet(name="k"))[1])
    until(lambda: not agent.visits, "it is dropped")
    assert len(said) < 48, "the master could have said it all: somebody keeps it"


# ---------------------------------------------------------------- what ends a passage


def ends(wire):
    """The other side hangs up, and not because of anything this one says."""
    wire._socket.settimeout(20)
    return wire._socket.recv(1) == b""


def test_connections_end_with_their_attempt_and_those_of_others_go_on(agent):
    a, b = agent.admit(A), agent.admit(B)
    ended, stays = through(a), through(b)
    agent.call(agent.door.dismiss, A)
    assert ends(ended)
    assert stays.ask(msg.KvGet(name="k")).attachments == (b"v",)


def test_an_attempt_that_ends_while_its_task_shakes_hands_does_not_get_in(agent, master):
    key = agent.admit(A)
    link = socket.socket(socket.AF_UNIX)
    link.connect(key.path)
    connection = Connection(Role.MASTER)
    opening = Opening(connection, "task", key.token, fence=A)
    link.sendall(opening.hello())
    (challenge,) = connection.receive(link.recv(1 << 16))
    agent.call(agent.door.dismiss, A)
    link.sendall(opening.take(challenge))
    assert b"does not run at this worker" in everything(link)
    assert master.hellos == []


def test_a_task_that_hangs_up_leaves_nothing_behind(agent, master):
    wire = through(agent.admit(A))
    assert agent.visits == 1
    wire.close()
    until(lambda: not agent.visits and not master._links, "both sides are closed")


def test_when_the_agent_gives_its_master_up_everybody_asks_again(agent, master, inside):
    client = inside(agent.admit(A))
    client.kv.get("k")
    agent.call(agent.door.hang_up)
    until(lambda: not agent.visits, "nobody waits for the old one")
    assert client.kv.get("k") == b"v"
    assert master.connections == 2


# ---------------------------------------------------------------- a master that is away


def test_a_task_that_starts_while_the_master_is_away_waits_for_it(agent, master, inside):
    key = agent.admit(A)
    master.stop()
    told = []
    client = inside(key, reconnect_timeout=20)
    client.line._party.tell = lambda text: (told.append(text), len(told) == 1 and master.start())
    assert client.kv.set("k", "v") == 5
    assert told == ["the master is away; waiting for it", "the master is back"]


@pytest.mark.parametrize("missing", ["master", "token"])
def test_without_a_master_a_task_hears_who_is_missing(agent, master, missing):
    if missing == "master":
        master.stop()
    else:
        agent.token = ""  # a master that stops takes its token file along
    with pytest.raises(NoMaster, match=rf"the agent of this task reaches no master \({master.address}: "):
        through(agent.admit(A))


def test_without_an_agent_a_task_hears_that(agent):
    key = agent.admit(A)
    agent.close()
    with pytest.raises(NoMaster, match=r"no agent answers at .*/agent"):
        through(key)


def test_a_master_that_does_not_answer_is_not_waited_for(agent, monkeypatch):
    monkeypatch.setattr(door_module, "PROOF_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        agent.addresses[:] = [silent.getsockname()[:2]]
        with pytest.raises(NoMaster, match="no answer"):
            through(agent.admit(A))


def test_every_address_of_the_master_is_tried(agent, master):
    agent.addresses.insert(0, ("127.0.0.1", 1))
    assert through(agent.admit(A)).welcome.role == "task"


# ---------------------------------------------------------------- the socket


def test_only_its_owner_may_connect(agent, tmp_path):
    assert agent.door.path == str(tmp_path / "work" / "agent")
    for path in (agent.door.path, tmp_path / "work" / "door.key"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "work").st_mode) == 0o700


def test_the_next_agent_goes_on_with_the_same_path_and_secrets(agent, inside):
    """The first one is killed: its socket stays where it is."""
    key = agent.admit(A)
    client = inside(key, reconnect_timeout=20)
    client.kv.get("k")
    first = agent.door
    agent.call(first.hang_up)
    agent.call(first._server.close)
    agent.open()
    with pytest.raises(BadProof):
        through(key)
    assert agent.admit(A) == key
    assert client.kv.get("k") == b"v"


def test_a_closed_door_leaves_no_socket(agent):
    wire = through(agent.admit(A))
    agent.close()
    assert ends(wire)
    assert not os.path.exists(agent.door.path)


@pytest.mark.parametrize("why", ["too deep", "open to others"])
def test_where_no_socket_can_be_it_is_in_a_private_folder(master, tmp_path, inside, why):
    folder = tmp_path / ("deep" * 30 if why == "too deep" else "open")
    folder.mkdir()
    folder.chmod(0o700 if why == "too deep" else 0o777)
    agent = Agent(folder, master)
    place = os.path.dirname(agent.door.path)
    try:
        assert agent.door.path == f"/tmp/titan-fast-{WORKER}/agent"
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
        assert inside(agent.admit(A)).kv.get("k") == b"v"
    finally:
        agent.stop()
    assert not os.path.exists(place)


def test_a_folder_that_somebody_else_prepared_is_not_used(master, tmp_path):
    planted = tmp_path / "planted"
    planted.mkdir()
    (tmp_path / "link").symlink_to(planted)
    for folder in (planted, tmp_path / "link"):
        planted.chmod(0o777 if folder is planted else 0o700)
        with pytest.raises(InvalidUsage, match="others may write there"):
            door_module._listen(folder / "agent")
