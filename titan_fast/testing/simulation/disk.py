"""A disk that forgets: what was not committed when the power went is gone, commits take their time, and sometimes fail.

`SimulatedStore` survives its masters, `SimulatedCommitter` dies with one. Both are the real ones with another thread:
what a commit means, and when it is begun, is the production code's.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from unittest import mock

from titan_fast.errors import DiskFull, StoreUnknown
from titan_fast.master.committer import TRY_AGAIN, Listener, ThreadCommitter
from titan_fast.master.store.base import Opened
from titan_fast.master.store.memory import MemoryStore
from titan_fast.scheduler.facts import Fact
from titan_fast.testing.simulation.world import Program, World


class SimulatedStore(MemoryStore):
    """Everything committed, in memory, beyond the life of any master."""

    durability = "disk"

    def __init__(
        self,
        world: World,
        on_commit: Callable[[Sequence[Fact]], None] = lambda facts: None,
        on_open: Callable[[Opened], None] = lambda opened: None,
    ) -> None:
        super().__init__(clock=lambda: world.now + 1_700_000_000.0)
        self.world = world
        self.on_commit = on_commit
        self.on_open = on_open
        self.rng = world.chance("disk")
        self.pace = 0.002
        """Seconds a commit takes at most, usually."""
        self.is_full = False
        self.is_broken = False
        """The next commit fails, and nobody can say whether it is on the disk."""

    @property
    def newest_epoch(self) -> int:
        return self._kept.epoch

    def duplicate(self) -> SimulatedStore:
        """Another disk with what is on this one now."""
        other = SimulatedStore(self.world)
        other._kept = copy.deepcopy(self._kept)
        return other

    def raise_epoch(self, epoch: int) -> Opened:
        opened = super().raise_epoch(epoch)
        self.on_open(opened)
        return opened

    def delay(self) -> float:
        return self.pace * self.rng.random()

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        if self.is_full:
            raise DiskFull("the simulated disk is full")
        is_broken, self.is_broken = self.is_broken, False
        if not is_broken or self.rng.random() < 0.5:
            super().commit(epoch, facts)
            self.world.note("commit", len(facts))
            self.on_commit(facts)
        if is_broken:
            raise StoreUnknown("the simulated disk failed")

    def close(self) -> None:
        """The disk outlives its masters."""


class SimulatedCommitter(ThreadCommitter):
    """The committer, with a thread that takes virtual time and dies with the master's program."""

    def __init__(self, store: SimulatedStore, epoch: Callable[[], int], listener: Listener, program: Program) -> None:
        with mock.patch.object(threading, "Thread"):
            super().__init__(store, epoch, listener)
        self._jobs = self._thread = _Thread(program, store)  # type: ignore[assignment]
        self._waiting: list[Fact] = []
        """What the disk has no room for."""

    def _commit(self, facts: list[Fact], position: int) -> None:
        """As the real one, but for how it waits before the next try."""
        if self._waiting and not self._has_failed:
            self._give_up(self._waiting)  # a closing committer waits no longer
        self._try(facts, position)

    def _try(self, facts: list[Fact], position: int) -> None:
        self._waiting = []
        if not self._has_failed and not self._is_written(facts, position):
            self._waiting = facts
            self._loop.call_later(TRY_AGAIN, self._try, facts, position)


class _Thread:
    """One job after the other, each after its time. Is the queue and the thread of a committer in one."""

    def __init__(self, program: Program, store: SimulatedStore) -> None:
        self._program = program
        self._store = store
        self._done_at = 0.0
        self._jobs: deque[Callable[[], None]] = deque()

    def put(self, job: Callable[[], None] | None) -> None:
        if job is not None:
            self._jobs.append(job)
            self._done_at = max(self._program.time(), self._done_at) + self._store.delay()
            self._program.call_at(self._done_at, self._next)

    def _next(self) -> None:
        if self._jobs:
            self._jobs.popleft()()

    def join(self) -> None:
        """Somebody blocks until everything is done."""
        while self._jobs:
            self._next()
