"""A master that says what a test tells it to, on a real socket, and a machine whose processes end when a test says so.

The worker's own code (agent, link, slots, journal, workspace) is the real one.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
from pathlib import Path

import psutil
import pytest

from titan_fast.config import WorkerSettings
from titan_fast.ids import Ending, format_fence
from titan_fast.model.spec import Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send, send_hot
from titan_fast.protocol.handshake import proof
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.worker.agent import Agent
from titan_fast.worker.executors.base import Outcome
from titan_fast.worker.machine import ThisMachine

sys.path.insert(0, str(Path(__file__).parent))  # functions and their trees have one stage

DEADLINE = 20.0
TOKEN = "worker-token"


class Session(asyncio.Protocol):
    """One connection of a worker, as the master sees it."""

    def __init__(self, master):
        self.master = master
        self.connection = Connection(Role.STRANGER)
        self.transport = None
        self.hello = None
        self.said = []
        self.attach = None
        self.is_lost = False

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        self.is_lost = True
        self.master.news.set()

    def data_received(self, data):
        for incoming in self.connection.receive(data):
            assert incoming.error is None, incoming.error
            message = incoming.message
            if isinstance(message, msg.Hello):
                self.hello = message
                nonce = secrets.token_hex(32)
                answer = msg.Challenge(nonce, proof(TOKEN, "master", message.nonce, nonce))
                self.transport.write(send(answer, request=incoming.request, is_reply=True))
            elif isinstance(message, msg.Proof):
                self.connection.open(Role.WORKER)
                master = self.master
                known = (master.epoch, "0", 1 << 24, 1 << 24, master.history, 1.0, master.nonce)
                welcome = msg.Welcome("worker", "c", *known)
                self.transport.write(send(welcome, request=incoming.request, is_reply=True))
            elif isinstance(message, msg.Attach):
                self.attach, self.attach_request = message, incoming.request
            else:
                self.said.append(incoming)
        self.master.news.set()

    @property
    def inventory(self):
        """fence -> stage"""
        return {item.fence: item.stage for item in self.attach.inventory}

    def verdict(self, keep=(), kill=(), wait=(), later=False):
        message = msg.VerdictMessage(keep=tuple(keep), kill=tuple(kill), wait=tuple(wait))
        self.transport.write(send(message, request=0 if later else self.attach_request, is_reply=not later))

    def keep_all(self):
        self.verdict(keep=list(self.inventory))

    def assign(self, fence, count=1, run=1, spec=0, first=0, **fields):
        work = fields.pop("work", Work(argv=("true",)))
        payload, parts = fields.pop("payload", b""), fields.pop("parts", ())
        described = msg.Spec(run=run, spec=spec, name="t", first=0, array=True, work=work, **fields)
        self.transport.write(send(described, parts))
        row = (run, spec, first, count, 0, 1, fence, len(payload))
        self.transport.write(send_hot(Op.ASSIGN, 0, [[value] for value in row], payload))

    def kill(self, fence, grace=0):
        self.transport.write(send_hot(Op.KILL, 0, [[1], [0], [fence], [grace]]))

    def recall(self, fence, count=1):
        self.transport.write(send_hot(Op.RECALL, 0, [[1], [0], [count], [fence]]))

    def ack(self, sequence):
        self.transport.write(send_hot(Op.ACK, sequence, [[] for _ in range(11)]))

    def results(self):
        """(fence, Ending, code) of every RESULT record so far."""
        found = []
        for incoming in self.said:
            if incoming.op is Op.RESULT:
                endings, fences, codes = incoming.columns[3], incoming.columns[5], incoming.columns[6]
                found += zip(fences, map(Ending, endings), codes, strict=True)
        return found

    def texts(self):
        """The bytes of the results so far."""
        return [incoming.tail for incoming in self.said if incoming.op is Op.RESULT]

    def frames(self, op):
        return [incoming for incoming in self.said if incoming.op is op]

    def cut(self):
        self.transport.abort()


class ScriptedMaster:
    def __init__(self, epoch=1, nonce="n1", history="h1"):
        self.epoch, self.nonce, self.history = epoch, nonce, history
        self.sessions = []
        self.news = asyncio.Event()
        self.server = None
        self.address = ()

    async def open(self):
        self.server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()

    def _accept(self):
        self.sessions.append(Session(self))
        return self.sessions[-1]

    async def until(self, condition, what=""):
        """Wait for news from the worker until ``condition``; gives what that gave."""
        async with asyncio.timeout(DEADLINE):
            while not (value := condition()):
                self.news.clear()
                await self.news.wait()
            return value

    async def attached(self, number=1):
        """The ``number``th session that has sent its ATTACH."""
        await self.until(lambda: len([each for each in self.sessions if each.attach]) >= number)
        return [each for each in self.sessions if each.attach][number - 1]

    async def close(self):
        self.server.close()
        for session in self.sessions:
            session.transport.abort()
        await self.until(lambda: all(session.is_lost for session in self.sessions))


class ScriptedExecutor:
    """Attempts run until a test ends them. It survives its agents, as processes do."""

    def __init__(self):
        self.observer = None
        self.journal = None
        self.running = {}
        self.started = []
        self.told = set()
        """Whose start the agent has heard of."""
        self.killed = []
        self.full_disk = False
        self.is_deaf = False
        """What is killed goes on."""
        self._has_started = asyncio.Event()

    async def until_running(self, fence):
        while fence not in self.told:
            self._has_started.clear()
            await self._has_started.wait()

    def start(self, attempt):
        loop = asyncio.get_running_loop()
        if self.full_disk:
            loop.call_soon(self._refuse, attempt.fence)
            return
        self.running[attempt.fence] = attempt
        self.started.append(attempt.fence)
        self.journal.spawned(attempt.fence, 7, 1.0)
        loop.call_soon(self._begun, attempt.fence)

    def _begun(self, fence):
        self.observer.attempt_started(fence, 7, 1000.0)
        self.told.add(fence)
        self._has_started.set()

    def _refuse(self, fence):
        self.observer.attempt_ended(Outcome(fence, Ending.NOT_STARTED, 28, 1000.0, 0.0, 0, b"No space left on device"))

    def adopt(self, left):
        fences = [each.attempt.fence for each in left]
        for fence in list(self.running):
            if fence not in fences:
                del self.running[fence]
        return [fence for fence in fences if fence not in self.running]

    def kill(self, fence, grace):
        self.killed.append(fence)
        if fence in self.running and not self.is_deaf:
            asyncio.get_running_loop().call_soon(self.end, fence, -9, Ending.KILLED)

    def end(self, fence, code=0, ending=Ending.EXIT, result=b"", is_file=False, output_size=0):
        if self.running.pop(fence, None) is not None:
            self.observer.attempt_ended(Outcome(fence, ending, code, 1000.0, 1.5, output_size, result, is_file))

    async def close(self, grace):
        for fence in list(self.running):
            self.end(fence, -9, Ending.KILLED)


class ScriptedMachine(ThisMachine):
    def __init__(self, settings, executor):
        super().__init__(settings)
        self.random = random.Random(1)
        self.environ = {"PATH": os.environ["PATH"]}
        self.has_signals = False
        self._scripted = executor
        self.files.has_room = lambda: not executor.full_disk

    def executor(self, observer):
        self._scripted.observer = observer
        self._scripted.journal = self.journal
        return self._scripted


class Stage:
    """A master and a worker's agents, one after the other, in one loop."""

    def __init__(self, folder, **settings):
        self.settings = WorkerSettings(**{"name": "w1", "work_dir": str(folder), "slots": 2, **settings})
        self.executor = ScriptedExecutor()
        self.master = None
        self.agent = None
        self.running = None

    def play(self, scene):
        async def main():
            self.master = ScriptedMaster()
            await self.master.open()
            try:
                self.start()
                await scene(self.master)
            finally:
                await self.kill()
                await self.master.close()

        asyncio.run(main())

    def start(self):
        machine = ScriptedMachine(self.settings, self.executor)
        self.agent = Agent(self.settings, [self.master.address[:2]], lambda: TOKEN, machine)
        self.running = asyncio.create_task(self.agent.run())

    async def kill(self):
        """As SIGKILL does: nothing more is written down, said or ended; the connection is cut."""
        agent, self.agent = self.agent, None
        if agent is None:
            return
        agent._journal._storage = Void()
        agent._executor = ScriptedExecutor()
        for session in self.master.sessions:
            session.cut()
        self.running.cancel()
        await asyncio.wait([self.running])

    async def until(self, condition):
        """Wait for something inside the worker, of which the master hears nothing."""
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def has_folder(self, fence):
        """Whether the attempt's output is still here."""
        return os.path.isdir(f"{self.settings.work_dir}/attempts/{format_fence(fence)}")

    def journal_size(self):
        return os.stat(f"{self.settings.work_dir}/attempts.journal").st_size

    async def restart(self):
        await self.kill()
        self.start()


class Void:
    def append(self, data):
        pass

    def replace(self, data):
        pass

    def close(self):
        pass


@pytest.fixture
def make_master():
    return ScriptedMaster


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path / "work")


@pytest.fixture
def make_stage(tmp_path):
    def make(**settings):
        return Stage(tmp_path / "work", **settings)

    return make


@pytest.fixture(autouse=True)
def lanes_end_with_their_agent():
    """The processes of functions go when their agent's process does. Here agents end and the process goes on."""
    yield
    for child in psutil.Process().children():
        try:
            is_over = child.status() == psutil.STATUS_ZOMBIE
            if is_over or any(part.endswith("/executors/_pool.py") for part in child.cmdline()):
                child.kill()
                os.waitpid(child.pid, 0)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
