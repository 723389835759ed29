"""The worker's connection to the master: HELLO, ATTACH, heartbeats, reconnect. It knows nothing of attempts.

One complete exchange per connection: everything held is told in ATTACH, the verdict is carried out, and only then do
assignments come. Results wait in the agent until they are acknowledged, so a cut connection costs nothing but time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol, cast

from titan_fast.errors import BadProof, NoToken, Refused, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send, send_hot
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.protocol.opening import REQUEST, Opening, error_from

log = logging.getLogger("titan_fast.worker")

ATTACH_REQUEST = REQUEST + 1
SILENCE = 10.0
"""Seconds without a byte from the master until we try another connection."""
RECONNECT_CAP = 1.0
"""Longest pause between two tries, seconds; the pause is random up to it, so that a thousand workers spread."""
REFUSALS = 20
"""Times in a row a master may refuse us before we give up: a dead agent's connection may take a moment to go."""


class Receiver(Protocol):
    """Who is behind the link."""

    def welcomed(self, welcome: msg.Welcome) -> None: ...
    def inventory(self, connection: int) -> msg.Attach: ...
    def attached(self, verdict: msg.VerdictMessage) -> None: ...
    def received(self, incoming: Incoming) -> None: ...
    def detached(self) -> None: ...
    def pulse(self) -> tuple[int, int, float, int]:
        """(running, queued, load, available memory) for a heartbeat."""


class Link(asyncio.Protocol):
    """Keeps one connection to one of the addresses, for ever, until `close`."""

    def __init__(self, addresses: list[tuple[str, int]], find_token: Callable[[], str], receiver: Receiver) -> None:
        self._addresses = addresses
        self._find_token = find_token
        self._receiver = receiver
        self._connection = Connection(Role.MASTER)
        self._opening: Opening | None = None
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._cluster = ""
        self._epoch = 0
        self._out: list[bytes] = []
        self._flushing = False
        self._ended = asyncio.Event()
        self._problem: TitanError | None = None
        self._beats: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._closing = False
        self.is_attached = False

    # ------------------------------------------------------------ staying connected

    async def run(self) -> None:
        """Connect again and again. Raises BadProof or Refused when there is no point in trying on."""
        loop = asyncio.get_running_loop()
        refusals = 0
        said = ""
        while not self._closing:
            for host, port in self._addresses:
                self._problem = None
                try:
                    token = self._find_token()
                    self._begin(token)
                    await loop.create_connection(lambda: self, host, port)
                except (OSError, NoToken) as error:
                    problem = f"no master at {host}:{port} ({error})"
                    if problem != said:
                        log.warning("%s; trying on", problem)
                        said = problem
                    continue
                await self._ended.wait()
                if self._closing:
                    return
                if isinstance(self._problem, BadProof | Refused):
                    refusals += 1
                    if isinstance(self._problem, BadProof) or refusals >= REFUSALS:
                        raise self._problem
                elif self._problem is None:
                    refusals, said = 0, ""
                log.warning("lost the master%s; connecting again", f" ({self._problem})" if self._problem else "")
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            await asyncio.sleep(random.random() * RECONNECT_CAP)

    def _begin(self, token: str) -> None:
        self._ended.clear()
        self._connection = Connection(Role.MASTER)
        self._opening = Opening(self._connection, "worker", token, self._cluster, self._epoch)
        self._out.clear()

    def close(self) -> None:
        """Flush, hang up, connect no more."""
        self._closing = True
        if self._transport is not None:
            self._flush()
            self._transport.close()
        else:
            self._ended.set()

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._heard = asyncio.get_running_loop().time()
        assert self._opening is not None
        self._transport.write(self._opening.hello())
        self._beat()

    def data_received(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        for incoming in self._connection.receive(data):
            try:
                self._take(incoming)
            except TitanError as error:
                self._give_up(error)
                return
        if self._connection.broken is not None:
            self._give_up(self._connection.broken)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._beats is not None:
            self._beats.cancel()
        if self.is_attached:
            self.is_attached = False
            self._receiver.detached()
        self._ended.set()

    def _give_up(self, error: TitanError) -> None:
        self._problem = error
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ what is said

    def _take(self, incoming: Incoming) -> None:
        if self._opening is not None:
            answer = self._opening.take(incoming)
            if answer and self._transport is not None:
                self._transport.write(answer)
            if (welcome := self._opening.welcome) is not None:
                self._opening = None
                self._receiver.welcomed(welcome)
                self._cluster, self._epoch = welcome.cluster, welcome.epoch
                self._interval = welcome.heartbeat
                self._number += 1
                self._say(send(self._receiver.inventory(self._number), request=ATTACH_REQUEST))
            return
        if incoming.error is not None:
            raise incoming.error
        if isinstance(incoming.message, msg.Error) and incoming.request <= ATTACH_REQUEST:
            raise error_from(incoming.message)
        if isinstance(incoming.message, msg.VerdictMessage):
            self.is_attached = True
            self._receiver.attached(incoming.message)
        elif incoming.op is not Op.HEARTBEAT:
            self._receiver.received(incoming)

    _interval = 1.0

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard > SILENCE:
            log.warning("no byte from the master for %d s", SILENCE)
            if self._transport is not None:
                self._transport.abort()
            return
        if self.is_attached:
            self.send(send_hot(Op.HEARTBEAT, 0, [[value] for value in self._receiver.pulse()]))
        self._beats = loop.call_later(self._interval, self._beat)

    def send(self, frame: bytes) -> None:
        """Leaves at the end of this turn of the loop, with everything else said in it. Dropped while there is no
        attached connection: whatever matters is in the next inventory, or sent again after it."""
        if self.is_attached:
            self._say(frame)

    def _say(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()
