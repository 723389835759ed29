"""What code inside a task finds: the door when it is there, an ordinary client otherwise, and who it is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

import titan_fast
from titan_fast import Client, config
from titan_fast.errors import BadProof, InvalidUsage, NoMaster
from titan_fast.ids import make_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import MAX_MESSAGE, Connection, send, send_error
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Reception
from titan_fast.sdk import inside

ATTEMPT = {
    "TITAN_RUN_ID": "12",
    "TITAN_TASK": "12/square[3]",
    "TITAN_ATTEMPT": "2",
    "TITAN_FENCE": "1.5",
    "TITAN_WORKER": "w1",
    "TITAN_AGENT_TOKEN": "secret",
}


class Agent:
    """Answers KV_GET at a unix socket, for attempt 1.5."""

    def __init__(self, path):
        self.path = str(path)
        self.hellos = []
        self.refusal = None
        self._link = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                self._link, _ = self._listener.accept()
            except OSError:
                return
            with self._link:
                self._answer(self._link)

    def _answer(self, link):
        connection = Connection(Role.STRANGER)
        reception = Reception(lambda hello: "secret")
        while data := link.recv(1 << 16):
            for incoming in connection.receive(data):
                if reception.is_proved:
                    answer = send(msg.KvValue(name="k", revision=5), (b"inside",), incoming.request, is_reply=True)
                else:
                    answer = reception.take(incoming)
                    if reception.is_proved:
                        self.hellos.append(reception.hello)
                        connection.open(Role.TASK)
                        welcome = msg.Welcome("task", "c", 1, "test", 1 << 24, MAX_MESSAGE)
                        answer = send(welcome, request=incoming.request, is_reply=True)
                        if self.refusal is not None:
                            answer = send_error(self.refusal, incoming.request)
                link.sendall(answer)

    def close(self):
        for link in filter(None, (self._listener, self._link)):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def outside(monkeypatch, tmp_path):
    """No variable of a task or a cluster is set."""
    for name in (*ATTEMPT, "TITAN_AGENT", "TITAN_ADDR", "TITAN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TITAN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    inside._client.cache_clear()
    yield
    inside._client.cache_clear()


@pytest.fixture
def agent(outside, monkeypatch, tmp_path):
    agent = Agent(tmp_path / "agent")
    for name, value in {**ATTEMPT, "TITAN_AGENT": agent.path}.items():
        monkeypatch.setenv(name, value)
    yield agent
    agent.close()


# ---------------------------------------------------------------- which way


def test_inside_of_a_task_a_client_needs_nothing(agent):
    with Client() as client:
        assert client.kv.get("k") == b"inside"
    (hello,) = agent.hellos
    assert (hello.token, hello.fence) == ("task", make_fence(1, 5))


@pytest.mark.parametrize("how", ["argument", "TITAN_ADDR", "TITAN_CLIENT_MASTER"])
def test_who_names_a_master_gets_that_one(agent, master, monkeypatch, how):
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=1), b"outside"))
    monkeypatch.setenv("TITAN_TOKEN", master.token)
    if how != "argument":
        monkeypatch.setenv(how, master.address)
    with Client(*([master.address] if how == "argument" else [])) as client:
        assert client.kv.get("k") == b"outside"
    assert agent.hellos == []


def test_an_address_in_a_file_of_the_project_is_not_the_tasks_choice(agent, tmp_path):
    (tmp_path / "titan.toml").write_text('[client]\nmaster = "127.0.0.1:1"\n')
    with Client() as client:
        assert client.kv.get("k") == b"inside"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TITAN_FENCE", ""),
        ("TITAN_FENCE", "5"),
        ("TITAN_FENCE", "1.5.6"),
        ("TITAN_FENCE", "1.-5"),
        ("TITAN_FENCE", "1.٥"),
        ("TITAN_FENCE", "1." + "9" * 5000),
        ("TITAN_AGENT_TOKEN", ""),
    ],
)
def test_variables_that_no_task_is_given_are_named(agent, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidUsage, match="TITAN_FENCE and TITAN_AGENT_TOKEN are not what a task is given"):
        Client()


def test_every_fence_arrives_as_the_number_it_is():
    environ = {"TITAN_AGENT": "/a", "TITAN_AGENT_TOKEN": "t", "TITAN_FENCE": f"{(1 << 23) - 1}.{(1 << 40) - 1}"}
    assert config.find_door(environ) == config.Door("/a", (1 << 63) - 1, "t")


def test_a_task_that_has_outlived_its_attempt_is_told_at_once(agent):
    agent.refusal = BadProof()
    with Client() as client, pytest.raises(BadProof):
        client.kv.get("k")


def test_without_an_agent_the_wait_has_an_end_and_says_for_whom(agent, monkeypatch):
    monkeypatch.setenv("TITAN_AGENT", "/nowhere/agent")
    told = []
    with (
        Client(reconnect_timeout=0.2, tell=told.append) as client,
        pytest.raises(NoMaster, match=r"no agent answers at /nowhere/agent \(No such file or directory\)"),
    ):
        client.kv.get("k")
    assert told == ["the master is away; waiting for it"]


# ---------------------------------------------------------------- titan_fast.inside


def test_keys_are_those_behind_the_door(agent):
    assert titan_fast.inside.kv.get("k") == b"inside"
    assert inside.kv is titan_fast.inside.kv
    assert inside.artifacts is titan_fast.inside.artifacts
    assert len(agent.hellos) == 1


def test_outside_of_a_task_they_are_an_ordinary_clients(outside, master, monkeypatch):
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=1), b"outside"))
    monkeypatch.setenv("TITAN_ADDR", master.address)
    monkeypatch.setenv("TITAN_TOKEN", master.token)
    assert inside.kv.get("k") == b"outside"


def test_a_task_knows_which_one_it_is(agent):
    assert inside.task() == inside.ThisTask(12, "12/square[3]", 2, "1.5", "w1")


def test_what_is_no_task_is_told_so(outside, monkeypatch):
    with pytest.raises(InvalidUsage, match="not part of a task: TITAN_RUN_ID is not set"):
        inside.task()
    for name, value in {**ATTEMPT, "TITAN_ATTEMPT": "two"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidUsage, match="TITAN_RUN_ID and TITAN_ATTEMPT are numbers"):
        inside.task()


def test_importing_it_needs_no_task_no_settings_and_no_master(outside, tmp_path):
    (tmp_path / "titan.toml").write_text("nonsense")
    done = subprocess.run([sys.executable, "-c", "from titan_fast import inside"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'submit'"):
        inside.submit  # noqa: B018
