"""What the core asks the shell to do. `master.effects` is the only reader."""

from __future__ import annotations

import msgspec

from titan_fast.errors import TitanError


class Command(msgspec.Struct, frozen=True):
    """The root of all commands."""


class Answer(Command, frozen=True):
    """The request with this ticket succeeded; ``number`` is the run or the revision it was about (0: neither)."""

    ticket: int
    number: int = 0


class Refuse(Command, frozen=True):
    ticket: int
    error: TitanError


class Verdict(Command, frozen=True):
    """The answer to an attach: which fences of the inventory to keep, which to kill, and for which to wait, because
    whether they count depends on a parent nobody has told us of yet. Ticket 0: what a wait came to."""

    ticket: int
    worker: str
    keep: tuple[int, ...]
    kill: tuple[int, ...]
    wait: tuple[int, ...] = ()


class Assign(Command, frozen=True):
    """A lot for a worker. Leaves at once: no assignment waits for the disk."""

    worker: str
    run: int
    spec: int
    first: int
    count: int
    generation: int
    attempt: int
    fence: int


class Recall(Command, frozen=True):
    """Give back what has not started of these consecutive attempts."""

    worker: str
    run: int
    first: int
    count: int
    fence: int


class Kill(Command, frozen=True):
    worker: str
    run: int
    index: int
    fence: int


class RunChanged(Command, frozen=True):
    """Something of this run is different; at most one for each run and turn."""

    run: int


class ForgetRun(Command, frozen=True):
    """The run is over and these workers hold copies of its project."""

    run: int
    workers: tuple[str, ...]


COMMANDS = (Answer, Refuse, Verdict, Assign, Recall, Kill, RunChanged, ForgetRun)
