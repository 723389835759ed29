"""The contract of a store: facts go in, in order; what survives a crash is always a prefix of them.

Blobs (project archives) are a second, smaller contract: `titan_fast.master.artifacts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from titan_fast.scheduler.facts import Fact


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """How one attempt of a task ended. Times are microseconds of the worker's clock."""

    generation: int
    attempt: int
    fence: int
    worker: str
    state: str
    reason: str
    code: int
    started: int
    duration: int


class Store(Protocol):
    durability: str
    """What a commit survives, in a word: ``memory``, ``os``, ``disk``."""

    history: str
    """A random name of everything this store knows: run numbers and fences mean something only within it."""

    def open(self) -> int:
        """Take the store for this process and return the new epoch, one above every epoch before."""

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        """Returns when the facts are durable, all of them, after everything committed before."""

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        """The ended attempts of a task, oldest first."""

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        """The newest ended attempt of each task in a range that has one."""

    def close(self) -> None: ...
