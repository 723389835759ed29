"""A client's line to its master, over as many connections as it takes.

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
from collections.abc import Callable, Generator
from contextlib import closing

import msgspec

from titan_fast import config
from titan_fast.errors import BadProof, DiskFull, NoMaster, NoSuchRun, Refused, TitanError, WaitTimedOut
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.messages import Message
from titan_fast.sdk.wire import Wire

FIRST_PAUSE = 0.05
MAX_PAUSE = 1.0
"""Seconds before the next try, at most: thousands of clients come back within a few of them, and not at once."""
CONNECT_TIMEOUT = 5.0
"""Seconds for one address to answer."""

AWAY = "the master is away; waiting for it"
BACK = "the master is back"

Resume = Callable[[Message, Incoming], Message]
"""(request, an answer to it) -> the request that asks for what follows that answer."""


class _Absence:
    """The time in which a request gets no answer."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self._tries = 0

    def pause(self, deadline: float | None) -> None:
        """Sleep until the next try: full jitter, longer each time, never beyond the end."""
        longest = min(MAX_PAUSE, FIRST_PAUSE * 2 ** min(self._tries, 10))
        self._tries += 1
        ends = self.until if deadline is None else min(self.until, deadline)
        time.sleep(max(0.0, min(random.uniform(0, longest), ends - time.monotonic())))


class Line:
    """Any number of threads may use it; a forked child gets a line of its own.

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
        self._settings = settings
        self._addresses = config.parse_addresses(settings.master)
        self._tell = tell
        self._door = door
        self._lock = threading.Lock()
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._name = secrets.token_hex(16)
        self._counter = itertools.count(1)
        self._wire: Wire | None = None
        # A task had a master that started it: if there is none now, it is away.
        self._was_open = self._door is not None
        self._is_away = False

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
                if self._was_open and not self._is_away:
                    self._is_away = True
                    self._tell(AWAY)
                raise
            self._was_open = True
            self.history = self._wire.welcome.history
            if self._is_away:
                self._is_away = False
                self._tell(BACK)
            return self._wire

    def _connected(self, timeout: float) -> Wire:
        if self._door is not None:
            return Wire.through(self._door, timeout)
        return Wire.connect(self._addresses, self._find_token, timeout)

    def _find_token(self) -> str:
        return config.find_token(self._settings, self._addresses, "client")

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
            resume: None when the same request can be sent again after any number of answers.
            then: the command that goes on where we had to give up.
            history: what the run number in the request belongs to; empty: to the history of the master as it is now.

        Raises:
            NoMaster: it went away and did not come back in time. WaitTimedOut. NoSuchRun: it came back with another
                history. TitanError: what it answered.
        """
        if os.getpid() != self._pid:
            # The same key for two requests would lose one of them, and two readers of one socket lose both.
            self._lock = threading.Lock()
            self._renew()
        deadline = None if timeout is None else time.monotonic() + timeout
        if "once" in message.__struct_fields__:
            message = msgspec.structs.replace(message, once=msg.Once(self._name, next(self._counter)))
        opening = None if self._was_open else _Absence(self._settings.connect_timeout)
        absence = opening
        while True:
            wire: Wire | None = None
            try:
                wire = self.wire(_patience(absence, deadline))
                absence = None if absence is opening else absence
                history = _check_history(message, history, wire)
                with closing(wire.stream(message, attachments, deadline)) as answers:
                    for incoming in answers:
                        absence = None
                        yield incoming
                        message = message if resume is None else resume(message, incoming)
            except TitanError as error:
                if not may_pass(error, wire is None):
                    raise
                absence = absence or _Absence(self._settings.reconnect_timeout)
                self._judge(error, absence, deadline, then)
                absence.pause(deadline)
                if wire is not None:
                    message = _repeated(message)

    def _judge(self, error: TitanError, absence: _Absence, deadline: float | None, then: str) -> None:
        """Raises when it is time to give up."""
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise WaitTimedOut("no answer in time")
        if now < absence.until:
            return
        if not self._was_open:
            raise error
        seconds = self._settings.reconnect_timeout
        raise NoMaster(
            f"the master went away and did not come back within {seconds:g} s ({error})",
            hint=f"when it is back: {then}" if then else "titan-fast doctor says what it can find out",
        )


def may_pass(error: TitanError, connecting: bool) -> bool:
    """Another try, with nobody doing anything about it, is likely to help. For a full disk somebody has to."""
    if connecting:
        return isinstance(error, NoMaster | Refused) and not isinstance(error, BadProof)
    return error.retryable and not isinstance(error, DiskFull | WaitTimedOut)


def _patience(absence: _Absence | None, deadline: float | None) -> float:
    """Seconds for one address to answer."""
    ends = [CONNECT_TIMEOUT + time.monotonic()]
    if absence is not None:
        ends.append(absence.until)
    if deadline is not None:
        ends.append(deadline)
    return max(0.5, min(ends) - time.monotonic())


def _check_history(message: Message, history: str, wire: Wire) -> str:
    """The history a request belongs to. In another one its run number means another run, or none."""
    run = getattr(message, "run", 0)
    if run and history and wire.welcome.history != history:
        error = NoSuchRun(f"{run} any more")
        error.hint = "the master has another state than the one this run belonged to: titan-fast ls lists what it has"
        raise error
    return history or wire.welcome.history


def _repeated(message: Message) -> Message:
    """The request as it is sent for the second time."""
    once: msg.Once | None = getattr(message, "once", None)
    if once is None or once.repeat:
        return message
    return msgspec.structs.replace(message, once=msgspec.structs.replace(once, repeat=True))
