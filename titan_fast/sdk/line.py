"""A client's line to its master, over as many connections as it takes. `async_line` has its like for asyncio.

A request that was not answered is sent again over the next connection under the same key, so that it is carried out
once; a stream goes on where it stopped. What the requests are about is not known here.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import msgspec

from titan_fast import config
from titan_fast.errors import BadProof, DiskFull, InvalidUsage, NoMaster, NoSuchRun, Refused, TitanError, WaitTimedOut
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Op
from titan_fast.sdk.wire import Wire

FIRST_PAUSE = 0.05
MAX_PAUSE = 1.0
"""Seconds before the next try, at most: thousands of clients come back within a few of them, and not at once."""
CONNECT_TIMEOUT = 5.0
"""Seconds for one address to answer."""

AWAY = "the master is away; waiting for it"
BACK = "the master is back"

LOOK_AGAIN = 1024
"""Requests that are begun before it is looked again which of the others have all their answers."""

Resume = Callable[[Message, Incoming], Message]
"""(request, an answer to it) -> the request that asks for what follows that answer."""
MadeOf = tuple[config.ClientSettings, Callable[[str], None], config.Door | None]
"""Arguments of `Party`."""


class Begun(Protocol):
    """What is needed of a `calls.Call` or `calls.Stream` here."""

    @property
    def message(self) -> Message: ...
    @property
    def attachments(self) -> tuple[bytes, ...]: ...
    @property
    def resume(self) -> Resume | None: ...
    @property
    def then(self) -> str: ...
    def ends_with(self, incoming: Incoming) -> bool: ...


class Absence:
    """The time in which a request gets no answer."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self._tries = 0

    def pause(self, deadline: float | None) -> float:
        """Seconds to the next try: full jitter, longer each time, never beyond the end."""
        longest = min(MAX_PAUSE, FIRST_PAUSE * 2 ** min(self._tries, 10))
        self._tries += 1
        ends = self.until if deadline is None else min(self.until, deadline)
        return max(0.0, min(random.uniform(0, longest), ends - time.monotonic()))


class Party:
    """What a client is to its master, over all connections: its name, the keys of its requests, the history it knows.

    Args:
        settings: addresses, token, and how long to go on trying.
        tell: is given a sentence when the master is away, and when it is back.
        door: the way to the master, in place of addresses and token.
    """

    def __init__(
        self, settings: config.ClientSettings, tell: Callable[[str], None], door: config.Door | None = None
    ) -> None:
        self.history = ""
        """Of the master that was connected last."""
        self.settings = settings
        self.door = door
        self.addresses = config.parse_addresses(settings.master)
        self.tell = tell
        self.renew()

    def renew(self) -> None:
        self.name = secrets.token_hex(16)
        self._counter = itertools.count(1)
        # A task had a master that started it: if there is none now, it is away.
        self.was_open = self.door is not None
        self._is_away = False

    def find_token(self) -> str:
        return config.find_token(self.settings, self.addresses, "client")

    def next_key(self) -> msg.Once:
        return msg.Once(self.name, next(self._counter))

    def connected(self, welcome: msg.Welcome) -> None:
        self.was_open = True
        self.history = welcome.history
        if self._is_away:
            self._is_away = False
            self.tell(BACK)

    def not_connected(self) -> None:
        if self.was_open and not self._is_away:
            self._is_away = True
            self.tell(AWAY)


class Errand:
    """A request until its last answer: what to say on the next connection, and when to give up. It neither connects
    nor waits.

    Args:
        resume: None when the same request can be sent again after any number of answers.
        then: the command that goes on where we had to give up.
        history: what the run number in the request belongs to; empty: to the history of the master as it is now.
        ends_with: nothing follows this answer.
    """

    def __init__(
        self,
        party: Party,
        message: Message,
        attachments: tuple[bytes, ...] = (),
        resume: Resume | None = None,
        then: str = "",
        history: str = "",
        ends_with: Callable[[Incoming], bool] | None = None,
    ) -> None:
        if "once" in message.__struct_fields__:
            message = msgspec.structs.replace(message, once=party.next_key())
        self.history = history
        self.ends_with = ends_with
        self._party = party
        self._message = message
        self._attachments = attachments
        self._resume = resume
        self._then = then
        self._was_said = False
        self._opening = None if party.was_open else Absence(party.settings.connect_timeout)
        self._absence = self._opening

    def patience(self, deadline: float | None) -> float:
        """Seconds for one address to answer."""
        ends = [CONNECT_TIMEOUT + time.monotonic()]
        if self._absence is not None:
            ends.append(self._absence.until)
        if deadline is not None:
            ends.append(deadline)
        return max(0.5, min(ends) - time.monotonic())

    def to_say(self, welcome: msg.Welcome) -> tuple[Message, tuple[bytes, ...]]:
        """What goes over a new connection. Raises NoSuchRun: it leads to another history."""
        if self._absence is self._opening:
            self._absence = None
        self.history = _check_history(self._message, self.history, welcome)
        if self._was_said:
            self._message = _repeated(self._message)
        self._was_said = True
        return self._message, self._attachments

    def answered(self, incoming: Incoming) -> None:
        self._absence = None
        if self._resume is not None:
            resumed = self._resume(self._message, incoming)
            if type(resumed) is not type(self._message):
                self._attachments = ()
            self._message = resumed

    def failed(self, error: TitanError, connecting: bool, deadline: float | None) -> float:
        """Seconds to wait before the next try.

        Raises:
            NoMaster: it went away and did not come back in time. WaitTimedOut. TitanError: ``error``.
        """
        if not may_pass(error, connecting):
            raise error
        absence = self._absence = self._absence or Absence(self._party.settings.reconnect_timeout)
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise WaitTimedOut("no answer in time")
        if now >= absence.until:
            self._absence = None  # whoever asks once more is patient once more
            self._give_up(error)
        return absence.pause(deadline)

    def _give_up(self, error: TitanError) -> NoReturn:
        if not self._party.was_open:
            raise error
        seconds = self._party.settings.reconnect_timeout
        raise NoMaster(
            f"the master went away and did not come back within {seconds:g} s ({error})",
            hint=f"when it is back: {self._then}" if self._then else "titan-fast doctor says what it can find out",
        )


class Anyhow(Protocol):
    """A connection, blocking or not, as far as it is written to."""

    welcome: msg.Welcome

    def enter(self, message: Message, attachments: tuple[bytes, ...] = ()) -> tuple[int, bytes]: ...
    def write(self, frames: bytes) -> None: ...
    def newest(self, number: int) -> Incoming | None: ...
    def forget(self, number: int) -> None: ...


W = TypeVar("W", bound=Anyhow)
E = TypeVar("E", bound="Exchange[Any]")


class Lines(Generic[W, E]):
    """What blocking and async lines share: which request is on which connection. Arguments as of `Party`."""

    def __init__(
        self, settings: config.ClientSettings, tell: Callable[[str], None], door: config.Door | None = None
    ) -> None:
        self._party = Party(settings, tell, door)
        self._start_over()

    def _start_over(self) -> None:
        self.order = threading.RLock()
        """Held while a request changes its connection."""
        self._begun: weakref.WeakValueDictionary[int, E] = weakref.WeakValueDictionary()
        """Requests that nobody may be waiting for: whoever connects anew takes them along."""
        self._serials = itertools.count()
        self._taken_along: W | None = None
        """The connection they were taken to last."""
        self._last_look = 0

    @property
    def history(self) -> str:
        """Of the master that was connected last."""
        return self._party.history

    @property
    def made_of(self) -> MadeOf:
        """Of which another line to the same master can be made."""
        return self._party.settings, self._party.tell, self._party.door

    @property
    def where(self) -> str:
        """The addresses, as people write them; inside of a task the agent's."""
        if self._party.door is not None:
            return self._party.door.path
        return ",".join(f"{host}:{port}" for host, port in self._party.addresses)

    def has_room(self, more: int, most: int) -> bool:
        """With so many more, at most ``most`` requests that were begun have answers to come."""
        begun = self._begun
        if len(begun) + more > most:
            with self.order:
                newest = next(self._serials)
                if newest - self._last_look >= LOOK_AGAIN:
                    self._last_look = newest
                    for exchange in list(begun.values()):
                        if exchange.is_answered:
                            self.is_over(exchange)
        return len(begun) + more <= most

    def is_over(self, exchange: Exchange[Any]) -> None:
        self._begun.pop(exchange.serial, None)

    def _errand(self, request: Begun, history: str) -> Errand:
        return Errand(
            self._party,
            request.message,
            request.attachments,
            request.resume,
            request.then,
            history,
            request.ends_with,
        )

    def _write(self, wire: W, exchanges: list[E]) -> None:
        """Those that can be, in one write; why another one cannot it says itself."""
        frames = []
        for exchange in exchanges:
            with suppress(TitanError):
                frames.append(exchange.enter(wire))
        with suppress(TitanError):
            wire.write(b"".join(frames))

    def _note(self, exchanges: list[E]) -> list[E]:
        for exchange in exchanges:
            exchange.serial = next(self._serials)
            self._begun[exchange.serial] = exchange
        return exchanges

    def say(self, wire: W, own: E) -> None:
        """Put a request on this connection; and, when that is a new one, what was begun on the one before.

        Raises:
            TitanError: why that of ``own`` cannot be; another one hears it when it is waited for.
        """
        frames = [own.enter(wire)]
        with self.order:
            if self._taken_along is not wire:
                self._taken_along = wire
                for exchange in list(self._begun.values()):
                    with suppress(TitanError):
                        frames.append(exchange.enter(wire))
        wire.write(b"".join(frames))


class Exchange(Generic[W]):
    """One request and its answers, over as many connections as it takes. How one waits is left to who waits."""

    def __init__(self, line: Lines[W, Any], errand: Errand) -> None:
        self._lines = line
        self._errand = errand
        self._wire: W | None = None
        self._number = 0
        self._is_over = False
        self.serial = -1
        """Names it among those that were begun."""

    @property
    def history(self) -> str:
        """What the run number of its answer belongs to."""
        return self._errand.history

    @property
    def is_answered(self) -> bool:
        """Its last answer is here, read or not."""
        wire, ends_with = self._wire, self._errand.ends_with
        if wire is None or ends_with is None:
            return self._is_over
        newest = wire.newest(self._number)
        return newest is not None and (newest.op is Op.ERROR or newest.error is not None or ends_with(newest))

    def enter(self, wire: W) -> bytes:
        """The frames that put it on a connection; none when it is there. Raises InvalidUsage, NoSuchRun."""
        with self._lines.order:
            if self._wire is wire or self._is_over:
                return b""
            number, frames = wire.enter(*self._errand.to_say(wire.welcome))
            self._wire, self._number = wire, number
            return frames

    def _failed(self, error: TitanError, wire: W | None, is_connecting: bool, deadline: float | None) -> float:
        """Seconds to wait before the next try. Raises as `Errand.failed`."""
        with self._lines.order:
            if self._wire is not None and self._wire is not wire:
                return 0.0  # somebody took it along to a newer connection
            self._leave()
            return self._errand.failed(error, is_connecting, deadline)

    def _leave(self) -> None:
        if self._wire is not None:
            self._wire.forget(self._number)
            self._wire = None

    def close(self) -> None:
        """No more answers are wanted."""
        if not self._is_over:
            self._is_over = True
            self._lines.is_over(self)
            self._leave()

    def __del__(self) -> None:
        self.close()


class BlockingExchange(Exchange[Wire]):
    def __init__(self, line: Line, errand: Errand) -> None:
        super().__init__(line, errand)
        self._line = line
        self._pid = os.getpid()

    def next(self, deadline: float | None) -> Incoming:
        """The next answer, until ``deadline`` (monotonic seconds); it may be asked for again after WaitTimedOut.

        Raises as `Line.stream`.
        """
        if os.getpid() != self._pid:
            # Its answers come to the process that asked; what is read here would be missing there.
            raise InvalidUsage(
                "this request was made before a fork", hint="take the run's id along: client.run(id) finds it"
            )
        while True:
            wire, number = self._wire, self._number
            is_connecting = False
            try:
                if wire is None:
                    is_connecting = True
                    wire = self._line.wire(self._errand.patience(deadline))
                    is_connecting = False
                    self._line.say(wire, self)
                    number = self._number
                incoming = wire.answer(number, deadline)
                self._errand.answered(incoming)
                return incoming
            except WaitTimedOut:
                raise
            except TitanError as error:
                seconds = self._failed(error, wire, is_connecting, deadline)
            time.sleep(seconds)


class Line(Lines[Wire, BlockingExchange]):
    """Any number of threads may use it; a forked child gets a line of its own."""

    def _start_over(self) -> None:
        super()._start_over()
        self._pid = os.getpid()
        self._wire: Wire | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def wire(self, timeout: float = CONNECT_TIMEOUT) -> Wire:
        """The open connection, or a new one: one walk over the addresses. Raises what `Wire.connect` does."""
        with self._lock:
            if self._wire is not None and not self._wire.is_broken:
                return self._wire
            try:
                self._wire = self._connected(timeout)
            except NoMaster:
                self._party.not_connected()
                raise
            self._party.connected(self._wire.welcome)
            return self._wire

    def _connected(self, timeout: float) -> Wire:
        if self._party.door is not None:
            return Wire.through(self._party.door, timeout)
        return Wire.connect(self._party.addresses, self._find_token, timeout)

    def _find_token(self) -> str:
        return self._party.find_token()

    # ------------------------------------------------------------ requests

    def ask(self, message: Message, attachments: tuple[bytes, ...] = (), then: str = "", history: str = "") -> Incoming:
        """The one answer to a request; arguments and errors as of `stream`."""
        with closing(self.stream(message, attachments, then=then, history=history)) as answers:
            return next(answers)

    def stream(
        self,
        message: Message,
        attachments: tuple[bytes, ...] = (),
        *,
        timeout: float | None = None,
        resume: Resume | None = None,
        then: str = "",
        history: str = "",
    ) -> Generator[Incoming]:
        """Every answer to a request; the caller stops at the last one.

        Args:
            timeout: seconds from now.
            resume, then, history: as of `Errand`.

        Raises:
            NoMaster: it went away and did not come back in time. WaitTimedOut. NoSuchRun: it came back with another
                history. TitanError: what it answered.
        """
        self._look_for_a_fork()
        deadline = None if timeout is None else time.monotonic() + timeout
        errand = Errand(self._party, message, attachments, resume, then, history)
        with closing(BlockingExchange(self, errand)) as exchange:
            while True:
                yield exchange.next(deadline)

    def begin(self, requests: Iterable[Begun], history: str = "") -> list[BlockingExchange]:
        """Written at once and not waited for: their `next` does that. What cannot be written now, it writes."""
        self._look_for_a_fork()
        exchanges = [BlockingExchange(self, self._errand(request, history)) for request in requests]
        with suppress(TitanError):
            self._write(self.wire(), exchanges)
        return self._note(exchanges)

    def _look_for_a_fork(self) -> None:
        if os.getpid() != self._pid:
            # The same key for two requests would lose one of them, and two readers of one socket lose both.
            self._party.renew()
            self._start_over()


def may_pass(error: TitanError, connecting: bool) -> bool:
    """Another try, with nobody doing anything about it, is likely to help. For a full disk somebody has to."""
    if connecting:
        return isinstance(error, NoMaster | Refused) and not isinstance(error, BadProof)
    return error.retryable and not isinstance(error, DiskFull | WaitTimedOut)


def _check_history(message: Message, history: str, welcome: msg.Welcome) -> str:
    """The history a request belongs to: a run number to its own, in another one it means another run, or none; anything
    else to that of whoever takes it."""
    run = getattr(message, "run", 0)
    if run and history and welcome.history != history:
        error = NoSuchRun(f"{run} any more")
        error.hint = "the master has another state than the one this run belonged to: titan-fast ls lists what it has"
        raise error
    return welcome.history


def _repeated(message: Message) -> Message:
    """The request as it is sent for the second time."""
    once: msg.Once | None = getattr(message, "once", None)
    if once is None or once.repeat:
        return message
    return msgspec.structs.replace(message, once=msgspec.structs.replace(once, repeat=True))
