"""A client's line to its master for asyncio: one connection at a time, shared by any number of calls.

What is sent again, under which key and for how long is `line.Errand`'s to say; here is how one waits. A call that is
cancelled forgets its request, and the connection goes on.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import cast

from titan_fast import config
from titan_fast.errors import BadMessage, BadProof, ConnectionLost, InvalidUsage, NoMaster, Refused, TitanError
from titan_fast.errors import WaitTimedOut as TimedOut
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import REQUEST, Opening, error_from
from titan_fast.sdk.line import CONNECT_TIMEOUT, Begun, Errand, Exchange, Lines, Resume
from titan_fast.sdk.wire import keep_alive, unwrap


class _Inbox:
    """Answers to one request, and who waits for the next of them."""

    __slots__ = ("said", "waiter")

    def __init__(self) -> None:
        self.said: deque[Incoming] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class AsyncWire(asyncio.Protocol):
    """One connection. What is written in one turn of the loop leaves in one write."""

    def __init__(self) -> None:
        self.welcome: msg.Welcome
        self._connection = Connection(Role.MASTER)
        self._transport: asyncio.Transport | None = None
        self._next = REQUEST + 1
        self._inboxes: dict[int, _Inbox] = {}
        self._opening: Opening | None = None
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._broken: TitanError | None = None
        self._out: list[bytes] = []
        self._drained = asyncio.Event()
        self._drained.set()

    # ------------------------------------------------------------ opening

    @classmethod
    async def connect(
        cls, addresses: list[tuple[str, int]], find_token: Callable[[], str], timeout: float
    ) -> AsyncWire:
        """The first of the addresses that lets us in; each is tried once. Raises as `wire.Wire.connect`."""
        reason = ""
        refusal: Refused | None = None
        loop = asyncio.get_running_loop()
        for host, port in addresses:
            try:
                return await cls._open(
                    loop.create_connection(cls, host, port),
                    lambda wire: Opening(wire._connection, Role.CLIENT, find_token()),
                    timeout,
                )
            except (ConnectionLost, OSError) as error:
                reason = f"{host}:{port}: {_why(error)}"
            except Refused as error:
                if isinstance(error, BadProof):
                    raise
                refusal = error
        if refusal is not None:
            raise refusal
        raise NoMaster.at(addresses, reason)

    @classmethod
    async def through(cls, door: config.Door, timeout: float) -> AsyncWire:
        """Inside of a task: by way of its agent. Raises as `wire.Wire.through`."""
        loop = asyncio.get_running_loop()
        try:
            return await cls._open(
                loop.create_unix_connection(cls, door.path),
                lambda wire: Opening(wire._connection, Role.TASK, door.token, fence=door.fence),
                timeout,
            )
        except (ConnectionLost, OSError) as error:
            raise NoMaster.behind(door.path, _why(error)) from None

    @classmethod
    async def _open(
        cls,
        connecting: Awaitable[tuple[asyncio.BaseTransport, AsyncWire]],
        make_opening: Callable[[AsyncWire], Opening],
        timeout: float,
    ) -> AsyncWire:
        wire = None
        try:
            async with asyncio.timeout(timeout):
                _, wire = await connecting
                wire._opening = make_opening(wire)
                wire._write(wire._opening.hello())
                await wire._opened
            return wire
        except BaseException:
            if wire is not None:
                wire.close()
            raise

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        link = transport.get_extra_info("socket")
        if link is not None and link.family != getattr(socket, "AF_UNIX", None):
            keep_alive(link)

    def data_received(self, data: bytes) -> None:
        try:
            for incoming in self._connection.receive(data):
                if not self._opened.done():
                    self._prove(incoming)
                else:
                    self._hand_over(incoming)
        except TitanError as error:
            self._break(error)
        if self._connection.broken is not None:
            self._break(self._connection.broken)

    def _prove(self, incoming: Incoming) -> None:
        assert self._opening is not None
        self._write(self._opening.take(incoming))
        if self._opening.welcome is not None:
            self.welcome = self._opening.welcome
            self._opened.set_result(None)

    def _hand_over(self, incoming: Incoming) -> None:
        inbox = self._inboxes.get(incoming.request)
        if inbox is not None:
            inbox.said.append(incoming)
            inbox.wake()
        elif incoming.request == 0 and isinstance(incoming.message, msg.Error):
            self._break(error_from(incoming.message))

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self._break(ConnectionLost("the master closed the connection", hint="titan-fast doctor"))
        else:
            self._break(ConnectionLost(f"the connection to the master broke ({_why(error)})"))

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def _break(self, error: TitanError) -> None:
        if self._broken is not None:
            return
        self._broken = error
        self._drained.set()
        if not self._opened.done():
            self._opened.set_exception(error)
        for inbox in self._inboxes.values():
            inbox.wake()
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()
        if not self._opened.done():
            self._opened.cancel()

    @property
    def is_broken(self) -> bool:
        """Or of a loop that is over."""
        return self._broken is not None or self._loop is not asyncio.get_running_loop()

    # ------------------------------------------------------------ requests

    def enter(self, message: Message, attachments: tuple[bytes, ...] = ()) -> tuple[int, bytes]:
        """A request's number for `answer`, and its frames for `write`. Raises ConnectionLost, InvalidUsage."""
        if self._broken is not None:
            raise self._broken
        number = self._next
        self._next += 1
        try:
            frames = send(message, attachments, number)
        except BadMessage as error:
            raise InvalidUsage(error.message.partition(": ")[2], hint=error.hint) from None  # not the master's mistake
        self._inboxes[number] = _Inbox()
        return number, frames

    def write(self, frames: bytes) -> None:
        """Leaves with the others of this turn. Raises ConnectionLost."""
        if self._broken is not None:
            raise self._broken
        self._write(frames)

    def _write(self, frames: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frames)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing() and out:
            self._transport.write(b"".join(out))

    async def drained(self) -> None:
        """The master takes what it is sent."""
        await self._drained.wait()

    async def answer(self, number: int, deadline: float | None = None) -> Incoming:
        """The next answer to a request. Raises as `wire.Wire.answer`."""
        inbox = self._inboxes[number]
        while not inbox.said:
            if self._broken is not None:
                raise self._broken
            inbox.waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await inbox.waiter
            except TimeoutError:
                raise TimedOut("no answer in time") from None
            finally:
                inbox.waiter = None
        return unwrap(inbox.said.popleft())

    def newest(self, number: int) -> Incoming | None:
        """Of the answers to a request that are here and not read."""
        inbox = self._inboxes.get(number)
        return inbox.said[-1] if inbox is not None and inbox.said else None

    def forget(self, number: int) -> None:
        """No more answers to this request are wanted."""
        self._inboxes.pop(number, None)

    async def ask(self, message: Message, attachments: tuple[bytes, ...] = ()) -> Incoming:
        """The one answer to a request over this connection and no other."""
        number, frames = self.enter(message, attachments)
        try:
            self.write(frames)
            await self.drained()
            return await self.answer(number)
        finally:
            self.forget(number)


class AsyncExchange(Exchange[AsyncWire]):
    def __init__(self, line: AsyncLine, errand: Errand) -> None:
        super().__init__(line, errand)
        self._line = line

    async def next(self, deadline: float | None) -> Incoming:
        """As `line.BlockingExchange.next`."""
        while True:
            wire, number = self._wire, self._number
            is_connecting = False
            try:
                if wire is None:
                    is_connecting = True
                    wire = await self._line.wire(self._errand.patience(deadline))
                    is_connecting = False
                    self._line.say(wire, self)
                    number = self._number
                    await wire.drained()
                incoming = await wire.answer(number, deadline)
                self._errand.answered(incoming)
                return incoming
            except TimedOut:
                raise
            except TitanError as error:
                seconds = self._failed(error, wire, is_connecting, deadline)
            await asyncio.sleep(seconds)


class AsyncLine(Lines[AsyncWire, AsyncExchange]):
    """Any number of tasks of one loop may use it."""

    def _start_over(self) -> None:
        super()._start_over()
        self._wire: AsyncWire | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
            await asyncio.sleep(0)

    async def wire(self, timeout: float = CONNECT_TIMEOUT) -> AsyncWire:
        """The open connection, or a new one: one walk over the addresses. Raises what `AsyncWire.connect` does."""
        async with self._connecting:
            if self._wire is not None and not self._wire.is_broken:
                return self._wire
            try:
                self._wire = await self._connected(timeout)
            except NoMaster:
                self._party.not_connected()
                raise
            self._party.connected(self._wire.welcome)
            return self._wire

    async def _connected(self, timeout: float) -> AsyncWire:
        if self._party.door is not None:
            return await AsyncWire.through(self._party.door, timeout)
        return await AsyncWire.connect(self._party.addresses, self._party.find_token, timeout)

    async def ask(
        self, message: Message, attachments: tuple[bytes, ...] = (), then: str = "", history: str = ""
    ) -> Incoming:
        """The one answer to a request; arguments and errors as of `line.Line.stream`."""
        async with aclosing(self.stream(message, attachments, then=then, history=history)) as answers:
            return await anext(answers)

    async def stream(
        self,
        message: Message,
        attachments: tuple[bytes, ...] = (),
        *,
        timeout: float | None = None,
        resume: Resume | None = None,
        then: str = "",
        history: str = "",
    ) -> AsyncGenerator[Incoming]:
        """Every answer to a request; the caller stops at the last one. Arguments and errors: `line.Line.stream`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        exchange = AsyncExchange(self, Errand(self._party, message, attachments, resume, then, history))
        try:
            while True:
                yield await exchange.next(deadline)
        finally:
            exchange.close()

    async def begin(self, requests: Iterable[Begun], history: str = "") -> list[AsyncExchange]:
        """Written at once and not waited for: their `next` does that. What cannot be written now, it writes."""
        exchanges = self._note([AsyncExchange(self, self._errand(request, history)) for request in requests])
        with suppress(TitanError):
            wire = await self.wire()
            self._write(wire, exchanges)
            await wire.drained()
        return exchanges


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (isinstance(error, OSError) and error.strerror) or str(error)
