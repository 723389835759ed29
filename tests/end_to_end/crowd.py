"""Runs as a process of its own: thousands of peers of one master, who do what they are told on standard input.

    python crowd.py HOST:PORT CLIENT_TOKEN_FILE WORKER_TOKEN_FILE

A line is a command with numbers behind it, its answer one number (`Crowd.COMMANDS`). All of them vanish with it,
without a goodbye.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from titan_fast.errors import Refused, TitanError
from titan_fast.loop import run as run_loop
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening
from titan_fast.sdk.client import Client
from titan_fast.testing.paper_worker import PaperWorker

AT_A_TIME = 32
"""Peers of a crowd that are in the middle of their handshake: half of what a master takes from one address."""
SLOWNESS = 1.0
"""Seconds between two bytes of a slow sender."""
KEY = "large"
"""Name of a key with a large value, which somebody has set."""


class Peer(asyncio.Protocol):
    """A client that proves its token and keeps quiet."""

    def __init__(self, token: str) -> None:
        self.proved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_lost = False
        self.transport: asyncio.Transport
        self._connection = Connection(Role.MASTER)
        self._opening = Opening(self._connection, "client", token)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._opening.hello())

    def data_received(self, data: bytes) -> None:
        if self.proved.done():
            return
        try:
            for incoming in self._connection.receive(data):
                self.transport.write(self._opening.take(incoming))
            if self._opening.welcome is not None:
                self.proved.set_result(None)
        except TitanError as error:
            self.proved.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        if not self.proved.done():
            self.proved.set_exception(ConnectionError("cut off without a word"))


class Crowd:
    def __init__(self, address: str, client_token: Path, worker_token: Path) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._client_token, self._worker_token = client_token, worker_token
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._peers: list[Peer] = []
        self._workers: list[PaperWorker] = []
        self._relayed: set[asyncio.Transport] = set()
        self._returned: list[int] = []
        self._kept: list[object] = []
        """Tasks of the loop, which would go if nobody held them."""

    # ------------------------------------------------------------ commands

    async def idle(self, count: int) -> int:
        """Connect so many clients that keep quiet; how many are connected."""
        self._peers += await asyncio.gather(*(self._proved() for _ in range(count)))
        return len(self._peers)

    async def rush(self, count: int) -> int:
        """As `idle`, but all dial at once, once; how many were refused in words. The others are connected."""
        found = await asyncio.gather(*(self._dial() for _ in range(count)), return_exceptions=True)
        self._peers += [peer for peer in found if isinstance(peer, Peer)]
        refused = [error for error in found if isinstance(error, Refused)]
        assert all("too many connections" in str(error) for error in refused), refused
        speechless = [error for error in found if not isinstance(error, Peer | Refused)]
        assert not speechless, speechless
        return len(refused)

    async def slow(self, count: int) -> int:
        """Connect so many clients that say their requests a byte at a time."""
        peers = await asyncio.gather(*(self._proved() for _ in range(count)))
        self._kept += [asyncio.create_task(self._trickle(peer)) for peer in peers]
        self._peers += peers
        return len(peers)

    async def deaf(self, count: int, questions: int) -> int:
        """Connect so many clients that ask so many questions with a large answer, and read none."""
        for peer in await asyncio.gather(*(self._proved() for _ in range(count))):
            peer.transport.pause_reading()
            peer.transport.write(b"".join(send(msg.KvGet(name=KEY), request=2 + n) for n in range(questions)))
            self._kept.append(peer)
        return count

    async def lost(self) -> int:
        """How many connections of clients have ended."""
        return sum(peer.is_lost for peer in self._peers)

    async def workers(self, count: int) -> int:
        """Start so many workers on paper."""
        self._workers = [PaperWorker(f"paper{number}", slots=1) for number in range(count)]
        token = self._worker_token.read_text().strip()
        lives = [worker.run([self._address], lambda: token) for worker in self._workers]
        self._kept += [asyncio.create_task(life) for life in lives]
        return count

    async def attached(self) -> int:
        """How many of the workers are attached."""
        return sum(worker.attached_at > 0 for worker in self._workers)

    async def waiters(self, count: int, run: int) -> int:
        """Start so many clients of the SDK that wait for a run."""
        threading.stack_size(1 << 18)
        for _ in range(count):
            threading.Thread(target=self._wait_for, args=(run,), daemon=True).start()
        return count

    async def returned(self) -> int:
        """How many of them have seen it COMPLETED."""
        return len(self._returned)

    async def relay(self) -> int:
        """Pass on the connections of others; on which port."""

        def accept() -> asyncio.Protocol:
            return Relayed(self._address, self._relayed)

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, backlog=4096)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def relayed(self) -> int:
        """How many are passed on now."""
        return len(self._relayed) // 2

    async def cut(self) -> int:
        """Cut all that are passed on now; how many."""
        ends = list(self._relayed)
        for end in ends:
            end.abort()
        return len(ends) // 2

    COMMANDS: dict[str, Callable[..., Awaitable[int]]] = {
        command.__name__: command
        for command in (idle, rush, slow, deaf, lost, workers, attached, waiters, returned, relay, relayed, cut)
    }

    # ------------------------------------------------------------ what they do

    async def _dial(self) -> Peer:
        make = functools.partial(Peer, self._client_token.read_text().strip())
        _, peer = await asyncio.get_running_loop().create_connection(make, *self._address)
        await peer.proved
        return peer

    async def _proved(self) -> Peer:
        async with self._room:
            while True:
                try:
                    return await self._dial()
                except Refused:
                    await asyncio.sleep(0.05)

    async def _trickle(self, peer: Peer) -> None:
        for byte in itertools.cycle(send(msg.Stats(), request=2)):
            peer.transport.write(bytes([byte]))
            await asyncio.sleep(SLOWNESS)

    def _wait_for(self, run: int) -> None:
        host, port = self._address
        with Client(f"{host}:{port}", token_file=str(self._client_token), tell=lambda _: None, timeout=60) as client:
            client.run(run).wait(300)
            self._returned.append(run)


class Relayed(asyncio.Protocol):
    """One end of a connection that is passed on; when it ends, so does the other."""

    def __init__(self, target: tuple[str, int] | None, ends: set[asyncio.Transport], other: Relayed | None = None):
        self.transport: asyncio.Transport | None = None
        self._target, self._ends, self._other = target, ends, other
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ends.add(self.transport)
        if self._target is not None:
            self._dialling = asyncio.create_task(self._dial(self._target))

    async def _dial(self, target: tuple[str, int]) -> None:
        self._other = Relayed(None, self._ends, self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._other, *target)
        except OSError:
            self._hang_up()
            return
        assert self._other.transport is not None
        self._other.transport.write(b"".join(self._early))
        if self.transport is None:
            self._other.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._other is None or self._other.transport is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:
            self._ends.discard(self.transport)
            self.transport = None
        if self._other is not None:
            self._other._hang_up()

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.close()


async def main(address: str, client_token: str, worker_token: str) -> int:
    crowd = Crowd(address, Path(client_token), Path(worker_token))
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        word, *numbers = line.decode().split()
        print(await crowd.COMMANDS[word](crowd, *map(int, numbers)), flush=True)
    return 0


if __name__ == "__main__":
    logging.disable()  # a thousand of them would say that they lost the master
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run_loop(main(*sys.argv[1:]))
