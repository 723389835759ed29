"""What clients, tasks and faults write down: one file for a round, one line of JSON for an event.

Everybody appends to the same file, each line with one write: the order of the lines is the order in which things
happened, and a killed process leaves whole lines. Times are seconds since the machine started; a task has hundredths
of them. Nothing here comes from a master or a worker.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec


class Event(msgspec.Struct, frozen=True, tag=str.lower, tag_field="event"):
    """The root of all events."""

    at: float


class Shape(msgspec.Struct, frozen=True):
    """A task as the client described it. ``count``: members of an array; 0 is a single task."""

    count: int = 0
    needs: tuple[str, ...] = ()

    def members(self, name: str) -> list[str]:
        return [f"{name}[{member}]" for member in range(self.count)] if self.count else [name]


# ---------------------------------------------------------------- clients


class Asked(Event, frozen=True):
    """A client is about to submit a graph; ``key`` is its name, and nobody else's."""

    key: str
    tasks: dict[str, Shape]


class Acknowledged(Event, frozen=True):
    key: str
    run: int


class Waited(Event, frozen=True):
    """A wait was answered."""

    run: int
    state: str


class Cancelled(Event, frozen=True):
    """A cancel was acknowledged."""

    run: int


class RetryAsked(Event, frozen=True):
    """A client is about to open what failed again."""

    run: int


class Seen(Event, frozen=True):
    """A task as a client was shown it."""

    run: int
    task: str
    generation: int
    state: str
    attempt: int
    worker: str
    exit_code: int | None
    finished_at: float


class Listed(Event, frozen=True):
    """A run of the last listing, when everything is over."""

    run: int
    key: str
    state: str


class SeenLost(Event, frozen=True):
    """A client was told that a worker is lost."""

    worker: str


class Refused(Event, frozen=True):
    """A client's call ended with an error."""

    call: str
    code: str
    message: str


# ---------------------------------------------------------------- tasks


class Began(Event, frozen=True):
    """The first thing an attempt does."""

    key: str
    task: str
    """``12/extract``."""
    attempt: int
    fence: str
    worker: str
    pid: int


class Ended(Event, frozen=True):
    """The last thing an attempt does; it will exit with ``code``."""

    key: str
    task: str
    attempt: int
    fence: str
    worker: str
    pid: int
    code: int


# ---------------------------------------------------------------- faults


class Worked(Event, frozen=True):
    """A worker was started with so many slots."""

    worker: str
    slots: int


class Fault(Event, frozen=True):
    """Something was broken from ``since`` to ``at``."""

    kind: str
    since: float
    worker: str = ""
    """Empty: the master."""


AnyEvent = (
    Asked
    | Acknowledged
    | Waited
    | Cancelled
    | RetryAsked
    | Seen
    | Listed
    | SeenLost
    | Refused
    | Began
    | Ended
    | Worked
    | Fault
)


def now() -> float:
    """Seconds since the machine started: what a shell reads in /proc/uptime."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


NOTE = (
    "note() { read at rest </proc/uptime; printf "
    """'{"event":"%s","at":%s,"key":"%s","task":"%s","attempt":%s,"fence":"%s","worker":"%s","pid":%s,"code":%s}\\n' """
    '$1 $at "$KEY" "$TITAN_TASK" $TITAN_ATTEMPT $TITAN_FENCE $TITAN_WORKER $$ $2 >>"$HISTORY"; }; '
)
"""Shell text that makes ``note began 0`` and ``note ended CODE`` for a task: no process is started, and a line is one
write. Wants HISTORY and KEY in the environment."""


class History:
    """The file of a round, for appending and for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, event: Event) -> None:
        os.write(self._file, msgspec.json.encode(event) + b"\n")

    @property
    def size(self) -> int:
        """Bytes: grows while anything happens."""
        return os.fstat(self._file).st_size

    def read(self) -> list[Event]:
        return read(self.path.read_bytes())

    def close(self) -> None:
        os.close(self._file)


def read(lines: bytes) -> list[Event]:
    """Raises ValueError for a line that is none."""
    decode = msgspec.json.Decoder(AnyEvent).decode
    events: list[Event] = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            events.append(decode(line))
        except msgspec.DecodeError as error:
            raise ValueError(f"line {number} of the history is no event ({error}): {line!r}") from None
    return events
