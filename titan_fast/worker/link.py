"""The worker's connection to the master: HELLO, ATTACH, heartbeats, reconnect. It knows nothing of attempts.

One complete exchange per connection: everything held is told in ATTACH, the verdict is carried out, and only then do
assignments come. Results wait in the agent until they are acknowledged, so a cut connection costs nothing but time.
Timers and connections are the running event loop's, chance is given: a simulation runs this very code.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol, cast

from titan_fast.errors import BadProof, ConnectionLost, NoToken, Refused, TitanError
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
REFUSALS = 8
"""Times in a row a master may refuse us before we give up: a dead agent's connection may take a moment to go."""
EAGER = 4
"""Refusals after which that moment should be over, and each pause is twice the one before."""
LAST_WRITE = 1.0
"""Seconds that the last words may take to leave."""


class Receiver(Protocol):
    """Who is behind the link."""

    @property
    def epoch(self) -> int:
        """The highest epoch seen, in this life or an earlier one."""

    def welcomed(self, welcome: msg.Welcome) -> None:
        """Raises TitanError to start over."""

    def inventory(self, connection: int) -> msg.Attach: ...
    def attached(self, verdict: msg.VerdictMessage) -> None: ...
    def received(self, incoming: Incoming) -> None:
        """Anything after that; raises TitanError to start over."""

    def detached(self) -> None: ...
    def pulse(self) -> tuple[int, int, float, int]:
        """(running, queued, load, available memory) for a heartbeat."""


class Link:
    """Keeps one session at one of the addresses, for ever, until `close`."""

    def __init__(
        self,
        addresses: list[tuple[str, int]],
        find_token: Callable[[], str],
        receiver: Receiver,
        chance: random.Random,
    ) -> None:
        self._addresses = addresses
        self._find_token = find_token
        self._receiver = receiver
        self._chance = chance
        self._session: _Session | None = None
        self._sessions = 0
        self._cluster = ""
        self._said: set[str] = set()
        """Problems logged since we were attached last, each once: a master may be away for days."""
        self.address = ""
        """Of the master we talk to, or last tried to."""
        self._closing = False

    @property
    def is_attached(self) -> bool:
        return self._session is not None and self._session.is_attached

    def send(self, frame: bytes) -> None:
        """Leaves at the end of this turn of the loop, with everything else said in it. Dropped while there is no
        attached session: whatever matters is in the next inventory, or sent again after it."""
        if self._session is not None and self._session.is_attached:
            self._session.say(frame)

    async def run(self) -> None:
        """Connect again and again. Raises BadProof or Refused when there is no point in trying on."""
        refusals = 0
        while not self._closing:
            for host, port in self._addresses:
                session = await self._connect(host, port)
                if session is None:
                    continue
                problem = await session.ended
                self._cluster = session.cluster
                if self._closing:
                    return
                if session.was_attached:
                    self._said.clear()
                if isinstance(problem, Refused) and not problem.retryable:
                    refusals += 1
                    if isinstance(problem, BadProof) or refusals >= REFUSALS:
                        raise problem
                    self._say_once(f"the master refuses this worker: {problem}; {problem.hint or 'trying on'}")
                    continue
                refusals = 0
                self._say_once(f"lost the master{f' ({problem})' if problem else ''}; connecting again")
            await asyncio.sleep(self._pause(refusals))

    def _pause(self, refusals: int) -> float:
        """Seconds until the next try."""
        if refusals:
            # At least half of it: all of them together must be longer than a dead agent's connection stays.
            return (0.5 + 0.5 * self._chance.random()) * RECONNECT_CAP * (1 << max(0, refusals - EAGER))
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        return self._chance.random() * RECONNECT_CAP

    async def _connect(self, host: str, port: int) -> _Session | None:
        """A session that has begun, or None when nobody is there."""
        try:
            self._sessions += 1
            self.address = f"{host}:{port}"
            session = _Session(self._sessions, self._receiver, self._find_token(), self._cluster)
            self._session = session
            async with asyncio.timeout(SILENCE):
                await asyncio.get_running_loop().create_connection(lambda: session, host, port)
            return session
        except (OSError, NoToken) as error:
            self._say_once(f"no master at {host}:{port} ({str(error) or 'no answer'}); trying on")
            return None

    def _say_once(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            log.warning("%s", problem)

    async def close(self) -> None:
        """Say what is left to say, hang up, connect no more."""
        self._closing = True
        if self._session is not None and self._session.hang_up():
            await asyncio.wait([self._session.ended], timeout=LAST_WRITE)


class _Session(asyncio.Protocol):
    """One connection, from HELLO to its end. What arrives after its end, or lay unread for so long that the master
    must have given us up, is looked at by nobody: the next inventory does not know of it."""

    def __init__(self, number: int, receiver: Receiver, token: str, cluster: str) -> None:
        self.is_attached = False
        self.was_attached = False
        self.cluster = cluster
        self.ended: asyncio.Future[TitanError | None] = asyncio.get_running_loop().create_future()
        self._number = number
        self._receiver = receiver
        self._connection = Connection(Role.MASTER)
        self._opening: Opening | None = Opening(self._connection, "worker", token, cluster, receiver.epoch)
        self._transport: asyncio.Transport | None = None
        self._problem: TitanError | None = None
        self._out: list[bytes] = []
        self._flushing = False
        self._interval = 1.0
        self._beats: asyncio.TimerHandle | None = None
        self._beaten = 0.0
        """When we were awake last, as far as our own timer knows."""
        self._heard = 0.0

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._heard = self._now()
        assert self._opening is not None
        self._transport.write(self._opening.hello())
        self._beat()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._problem is not None:
            return
        now = self._now()
        if now - self._beaten > self._patience:
            self._give_up(ConnectionLost(f"this worker stood still for {now - self._beaten:.0f} s"))
            return
        self._heard = now
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
        self._end()
        if not self.ended.done():
            self.ended.set_result(self._problem)

    def _give_up(self, error: TitanError) -> None:
        if self._problem is None:
            self._problem = error
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def _end(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
        if self.is_attached:
            self.is_attached = False
            self._receiver.detached()

    def hang_up(self) -> bool:
        """Send what was said and close. False when there is no connection."""
        if self._transport is None:
            return False
        self._flush()
        self._transport.close()
        return True

    # ------------------------------------------------------------ what is said

    def _take(self, incoming: Incoming) -> None:
        if self._opening is not None:
            self._open(self._opening, incoming)
            return
        if incoming.error is not None:
            raise incoming.error
        if isinstance(incoming.message, msg.Error) and incoming.request <= ATTACH_REQUEST:
            raise error_from(incoming.message)
        if self.is_attached:
            if incoming.op is not Op.HEARTBEAT:
                self._receiver.received(incoming)
        elif isinstance(incoming.message, msg.VerdictMessage) and incoming.request == ATTACH_REQUEST:
            self.is_attached = self.was_attached = True
            self._receiver.attached(incoming.message)
        # Anything else before our verdict was said to an earlier session.

    def _open(self, opening: Opening, incoming: Incoming) -> None:
        answer = opening.take(incoming)
        if answer and self._transport is not None:
            self._transport.write(answer)
        welcome = opening.welcome
        if welcome is not None:
            self._opening = None
            self._receiver.welcomed(welcome)
            self.cluster = welcome.cluster
            self._interval = welcome.heartbeat
            self.say(send(self._receiver.inventory(self._number), request=ATTACH_REQUEST))

    def say(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # ------------------------------------------------------------ being alive

    @property
    def _patience(self) -> float:
        return max(SILENCE, 3 * self._interval)

    def _beat(self) -> None:
        now = self._beaten = self._now()
        if now - self._heard > self._patience:
            self._give_up(ConnectionLost(f"no byte from the master for {now - self._heard:.0f} s"))
            return
        if self.is_attached:
            self.say(send_hot(Op.HEARTBEAT, 0, [[value] for value in self._receiver.pulse()]))
        self._beats = asyncio.get_running_loop().call_later(self._interval, self._beat)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
