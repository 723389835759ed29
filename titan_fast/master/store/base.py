"""The contract of a store: facts go in, in order; what survives a crash is always a prefix of them.

`commit` blocks and is called by one thread at a time (the committer's); everything that reads may be called from
another one meanwhile and sees what is committed. StoreFenced and StoreUnknown end the process: after either nothing
is known about what the file holds. Files by content (`titan_fast.master.artifacts`) are a second, smaller contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from titan_fast.scheduler.facts import Fact, Key, KvChanged, RunRecord, WorkerRegistered


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


class RunHead(msgspec.Struct, frozen=True):
    """A finished run as listings show it. Times are the wall clock, seconds."""

    id: int
    name: str
    state: str
    reason: str
    submitted_at: float
    started_at: float
    finished_at: float
    counts: dict[str, int]
    """Tasks by public state."""


class ArtifactRow(msgspec.Struct, frozen=True):
    name: str
    digest: str
    size: int
    published_at: float


class Opened(msgspec.Struct, frozen=True):
    """A store that belongs to this process now."""

    epoch: int
    """Above every epoch before; durable."""
    nonce: str
    """Random, made with the epoch: a copy of the store that is opened elsewhere has the number but not the nonce."""
    nonces: dict[int, str]
    """Every epoch of this store, this one too, and its nonce; of very many the newest."""


class Loaded(msgspec.Struct, frozen=True):
    """What a master needs to go on."""

    next_run: int
    revision: int
    """The highest revision any key ever had."""
    workers: Sequence[WorkerRegistered]
    """Registered, and neither left nor lost; in the order they registered."""
    keys: Sequence[KvChanged]
    """Those that have a value, whether they have expired or not; by name."""
    runs: Iterator[RunRecord]
    """Unfinished runs, oldest first; read while it is walked."""


class Pruned(msgspec.Struct, frozen=True):
    """One slice of forgetting old runs."""

    runs: Sequence[int]
    """Gone for good with this slice: their logs may go too."""
    is_done: bool
    """Nothing is left of what was forgotten."""


class Store(Protocol):
    @property
    def durability(self) -> str:
        """What a commit survives, in a word: ``memory``, ``os``, ``disk``."""

    @property
    def history(self) -> str:
        """A random name of everything this store knows: run numbers and fences mean something only within it. A
        restored backup has a new one."""

    def open(self) -> Opened:
        """Take the store for this process.

        Raises:
            StoreTooNew: a newer program wrote it. StoreFailed: it cannot be read. StateLocked: in use.
        """

    def raise_epoch(self, epoch: int) -> Opened:
        """A worker has seen a later epoch than ours (an old copy of the state was put in place): open again, at least
        at ``epoch``."""

    def load(self) -> Loaded: ...

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        """Returns when the facts are durable, all of them, after everything committed before.

        Raises:
            StoreFenced, StoreUnknown: see there. DiskFull: nothing was written; the same facts may be committed again.
        """

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        """The ended attempts of a task, oldest first."""

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        """The newest ended attempt of each task in a range that has one."""

    def result(self, run: int, index: int) -> bytes:
        """What the newest COMPLETED attempt of a task gave; empty when there is none."""

    def results(self, run: int, first: int, count: int, state: str) -> dict[int, bytes]:
        """What the newest attempt with that outcome (COMPLETED or FAILED) left, of each task in a range that has
        one."""

    def run(self, number: int) -> RunRecord | None:
        """Any run, finished or not; None when it is not known (any more)."""

    def runs(self, before: int, limit: int, state: str = "", dead: bool = False) -> list[RunHead]:
        """Finished runs with numbers below ``before``, newest first; ``dead``: only those with DEAD tasks."""

    def reply(self, key: Key) -> int | None:
        """What the request with this key was answered: the number in the answer (a run, a revision); None when it
        never succeeded, or too long ago."""

    def artifact(self, name: str) -> ArtifactRow | None: ...

    def artifacts(self, prefix: str, after: str, limit: int) -> list[ArtifactRow]:
        """By name, those that begin with ``prefix`` and come after ``after``."""

    def digests(self) -> set[str]:
        """Addresses of all files that something in the store names (projects, artifacts): the others may go."""

    # The rest is care; all but `backup` by the committer's thread.

    def outdated(self, keep_runs: int, older_than: float, after: int, limit: int) -> list[RunHead]:
        """Finished runs beyond the newest ``keep_runs`` or finished before ``older_than`` (wall clock) with numbers
        above ``after``, oldest first. Whether they go is the core's to say: that is a fact like any other, and so
        comes before or after a retry and never between its halves."""

    def numbers(self) -> set[int]:
        """Of all runs, finished or not."""

    def prune(self, seconds: float) -> Pruned:
        """Remove what forgotten runs left behind, and replies and epochs nobody needs any more, for about
        ``seconds``."""

    def tidy(self, seconds: float) -> bool:
        """Give space back, fold small rows, checkpoint, for about ``seconds``; True when there is more to do."""

    def backup(self, path: str) -> None:
        """Make the folder ``path`` with a consistent copy while commits go on; fsynced and verified. Any thread.

        Raises:
            InvalidUsage: the folder is there already, or the store has nothing to copy. DiskFull, StoreFailed.
        """

    def close(self) -> None: ...
