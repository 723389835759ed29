"""What the keeper tells its agent: which processes that lost their parent have ended, and how.

The keeper holds each exit until it is taken, over any number of agents, so none is lost and nothing is kept in files.
Line by line ``pid start status at place``: its number, the clock tick since boot it was started at, exit code or minus
signal, monotonic seconds, TITAN_ATTEMPT_DIR in hex or ``-``. Knows nothing of attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

import msgspec

from titan_fast.worker.executors.base import Exit
from titan_fast.worker.keeper import KEEPER_EXITS, SYNC, TAKEN, UP

PATIENCE = 5.0
"""Seconds a keeper may take to answer; one that does not is gone, and so will we be."""


class Told(msgspec.Struct, frozen=True):
    """The end of a process whose parent was an earlier agent, or whose parent ended first."""

    pid: int
    start: int
    exit: Exit
    place: bytes = b""
    """The attempt it was the first process of, by its directory; empty: not known, or of none."""


class Exits:
    """One per agent. First `backlog`, then `listen`; what has been dealt with is `taken`."""

    def __init__(self, line: socket.socket, parent: int) -> None:
        """``parent`` is the keeper: whoever loses its parent becomes its child."""
        self.parent = parent
        self._line = line
        self._held = b""
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of_keeper(cls, environ: Mapping[str, str]) -> Exits | None:
        """The one this process was started with; None without a keeper."""
        number = environ.get(KEEPER_EXITS, "")
        if not number.isdigit():
            return None
        try:
            os.set_inheritable(int(number), False)
            return cls(socket.socket(fileno=int(number)), os.getppid())
        except OSError:
            return None  # a variable that somebody else's environment kept

    def backlog(self) -> list[Told]:
        """Every exit up to now that was not taken. What had been waited for when this was called is among them."""
        self._line.settimeout(PATIENCE)
        told: list[Told] = []
        try:
            self._line.sendall(SYNC)
            while data := self._line.recv(1 << 16):
                self._held += data
                told += self._cut()
                if self._held.startswith(b"\n"):
                    self._held = self._held[1:]
                    break
        except OSError:
            pass
        self._line.setblocking(False)
        return told

    def listen(self, told: Callable[[list[Told]], None]) -> None:
        """Call ``told`` with what ends from now on."""
        self._loop = asyncio.get_running_loop()
        if self._held:  # it came right behind the backlog
            self._loop.call_soon(self._hand_on, told)
        self._loop.add_reader(self._line.fileno(), self._ready, told)

    def taken(self, count: int) -> None:
        """The oldest ``count`` that were told have been dealt with."""
        with contextlib.suppress(OSError):  # told again to the next agent, which knows them by its journal
            self._line.send(TAKEN * count)

    def up(self) -> None:
        """The master knows this agent: what runs here is in good hands."""
        with contextlib.suppress(OSError):
            self._line.send(UP)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._line.fileno())
        self._line.close()

    def _ready(self, told: Callable[[list[Told]], None]) -> None:
        try:
            data = self._line.recv(1 << 16)
        except OSError:
            return
        if not data and self._loop is not None:
            self._loop.remove_reader(self._line.fileno())
            return
        self._held += data
        self._hand_on(told)

    def _hand_on(self, told: Callable[[list[Told]], None]) -> None:
        if news := self._cut():
            told(news)

    def _cut(self) -> list[Told]:
        """The whole lines held, up to an empty one."""
        told = []
        while not self._held.startswith(b"\n"):
            line, end, rest = self._held.partition(b"\n")
            if not end:
                break
            self._held = rest
            pid, start, status, at, place = line.split()
            code = int(status)
            how = os.CLD_EXITED if code >= 0 else os.CLD_KILLED
            found = b"" if place == b"-" else bytes.fromhex(place.decode())
            told.append(Told(int(pid), int(start), Exit(how, abs(code), float(at)), found))
        return told
