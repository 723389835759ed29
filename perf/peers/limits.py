"""What the machine itself does with the same works, in the same run: no system under test can be much faster.

- W2, W5: an echo of a 72-byte frame between two processes on uvloop.
- W3: a bare `os.posix_spawn` of the command with two in flight, each with an output file of its own.
- W4: a fork of a small interpreter that executes the compiled script, two in flight, with the same files.
- W1: function tasks through the processes that any such system has (client, master, agent, two pool processes) in plain
  Python: pickled arguments and results, lots of 256, one FULL commit per lot.
- W8: the schedule of somebody whom nothing costs anything, which is computed.
"""

from __future__ import annotations

import os
import pickle
import platform
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import contract
import instances

FRAME = bytes(72)
LOT = 256


def noop(item: int) -> int:
    return item


class Limits(contract.Contender):
    """Measures the machine."""

    name = "limit"
    package = "uvloop"

    _echo: Echo | None = None
    _pipeline: Pipeline | None = None
    _forker: subprocess.Popen[str] | None = None

    @classmethod
    def version(cls) -> str:
        return f"{platform.system()} {platform.release()}, Python {platform.python_version()}"

    def start(self, workers: bool = True) -> None:
        """Each work starts what it needs: a process that is forked should be small."""

    def stop(self) -> None:
        for part in (self._echo, self._pipeline):
            if part is not None:
                part.stop()
        if self._forker is not None:
            self._forker.communicate()

    def first(self) -> None:
        raise contract.Missing("a machine that runs has no start")

    def call(self, item: int) -> object:
        if self._echo is None:
            self._echo = Echo()
        return item if self._echo.trip(FRAME) == FRAME else None

    def chain(self, count: int) -> object:
        for _ in range(count):
            self.call(0)
        return 0

    def map(self, count: int) -> Sequence[object]:
        if self._pipeline is None:
            self._pipeline = Pipeline(self.folder / "outcomes.sqlite")
        return self._pipeline.map(count)

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        """A few output files are used again, as a worker's folders are: a new folder can cost more than a process."""
        environ = {"PATH": "/usr/bin:/bin"}
        places = [self.folder / f"output-{number}" for number in range(4 * contract.SLOTS)]
        for place in places:
            place.touch(0o600)
        codes = []
        running = 0
        for number, argv in enumerate(commands):
            if running == contract.SLOTS:
                codes.append(reap())
                running -= 1
            place = places[number % len(places)]
            place.unlink()
            output = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
            os.posix_spawn(argv[0], argv, environ, file_actions=actions, setsid=True)
            os.close(output)
            running += 1
        return codes + [reap() for _ in range(running)]

    def scripts(self, folder: Path, names: Sequence[str]) -> Sequence[object]:
        if self._forker is None:
            argv = [contract.SCRIPT_PYTHON, "-I", "-S", contract.HERE / "limit_fork.py", self.folder]
            self._forker = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(*(folder / name for name in names), file=self._forker.stdin, flush=True)
        return [int(code) for code in self._forker.stdout.readline().split()]

    def replay(self, instance: instances.Instance, factor: float) -> float:
        return instance.greedy(contract.REPLAY_SLOTS) * factor


def reap() -> int:
    return os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])


class Echo:
    """A process that sends back what it gets, and a connection to it, both on uvloop."""

    def __init__(self) -> None:
        import uvloop

        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._pid = os.fork()
            if not self._pid:
                uvloop.new_event_loop().run_until_complete(_serve(listening))
                os._exit(0)
            self._loop = uvloop.new_event_loop()
            where = listening.getsockname()
            self._transport, self._line = self._loop.run_until_complete(self._loop.create_connection(_line, *where))

    def trip(self, frame: bytes) -> bytes:
        return self._loop.run_until_complete(self._line.trip(frame))

    def stop(self) -> None:
        self._transport.close()
        self._loop.run_until_complete(self._line.gone)
        os.waitpid(self._pid, 0)


def _line():
    import asyncio

    class Line(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            self._transport = transport
            self.gone = asyncio.get_running_loop().create_future()

        def connection_lost(self, error) -> None:
            self.gone.set_result(None)

        async def trip(self, frame: bytes) -> bytes:
            self._answer = asyncio.get_running_loop().create_future()
            self._parts = b""
            self._transport.write(frame)
            return await self._answer

        def data_received(self, data: bytes) -> None:
            self._parts += data
            if len(self._parts) == len(FRAME):
                self._answer.set_result(self._parts)

    return Line()


async def _serve(listening: socket.socket) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    gone = loop.create_future()

    class Mirror(asyncio.Protocol):
        def connection_made(self, transport) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._transport.write(data)

        def connection_lost(self, error) -> None:
            gone.set_result(None)

    async with await loop.create_server(Mirror, sock=listening):
        await gone


class Pipeline:
    """client → master → agent → two pool processes, and back; each is a process, each arrow a pair of sockets."""

    def __init__(self, store: Path) -> None:
        self._pids: list[int] = []
        self._line = self._beside(lambda line: _master(line, self._beside(_agent), store))

    def _beside(self, body) -> Connection:
        """A process that runs the body with its end of a line; the other end is ours."""
        ours, theirs = Pipe()
        pid = os.fork()
        if pid:
            theirs.close()
            self._pids.append(pid)
            return ours
        ours.close()
        self._pids = []
        try:
            body(theirs)
        except EOFError:
            os._exit(0)
        finally:
            os._exit(1)

    def map(self, count: int) -> list[object]:
        blobs = [pickle.dumps(item, 5) for item in range(count)]
        lots = [blobs[first : first + LOT] for first in range(0, count, LOT)]
        sender = threading.Thread(target=lambda: [self._line.send((at, lot)) for at, lot in enumerate(lots)])
        sender.start()
        found: list[list[bytes]] = [[]] * len(lots)
        for _ in lots:
            at, results = self._line.recv()
            found[at] = results
        sender.join()
        return [pickle.loads(blob) for lot in found for blob in lot]

    def stop(self) -> None:
        """The end of a line ends who reads it, and so on down."""
        self._line.close()
        for pid in self._pids:
            os.waitpid(pid, 0)


def _master(client: Connection, agent: Connection, store: Path) -> None:
    """Forwards lots; what comes back is committed before anybody is told."""
    database = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE outcome (lot INTEGER, body BLOB)")

    def back() -> None:
        while True:
            raw = agent.recv_bytes()
            database.execute("INSERT INTO outcome VALUES (?, ?)", (0, raw))
            client.send_bytes(raw)

    threading.Thread(target=back, daemon=True).start()
    while True:
        agent.send_bytes(client.recv_bytes())


def _agent(master: Connection) -> None:
    """Gives lots to the pool processes, two each, so that none waits for us."""
    told = threading.Lock()
    room = threading.Semaphore(0)
    free: list[Connection] = []

    def back(pool: Connection) -> None:
        while True:
            raw = pool.recv_bytes()
            free.append(pool)
            room.release()
            with told:
                master.send_bytes(raw)

    pools = [_pool_process() for _ in range(contract.SLOTS)]
    for pool in pools:
        free.extend([pool, pool])
        room.release(2)
    for pool in pools:
        threading.Thread(target=back, args=(pool,), daemon=True).start()
    while True:
        raw = master.recv_bytes()
        room.acquire()
        free.pop(0).send_bytes(raw)


def _pool_process() -> Connection:
    ours, theirs = Pipe()
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    try:
        while True:
            at, lot = theirs.recv()
            theirs.send((at, [pickle.dumps(noop(pickle.loads(blob)), 5) for blob in lot]))
    finally:
        os._exit(0)


if __name__ == "__main__":
    contract.main(Limits)
