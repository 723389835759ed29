"""Facts on their way to the disk: one thread, one commit at a time, the next one is everything that came meanwhile.

A commit is begun by a promise (`hurry`); a fact nobody waits for rides with the next one, a few milliseconds later.
The loop never waits for the disk, and the thread never looks at anything but the facts it was given.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

import msgspec

from titan_fast.errors import DiskFull
from titan_fast.master.store.base import Store
from titan_fast.scheduler.facts import AttemptsEnded, Fact, KvChanged, RunAccepted

PATIENCE = 0.005
"""Seconds a fact nobody waits for may wait for company."""
SWITCH_INTERVAL = 0.0002
"""For `sys.setswitchinterval`, seconds: so long a busy loop keeps the interpreter from the store's thread, each of the
two or three times that a commit needs it. Python's own 5 ms would be most of a commit."""
TRY_AGAIN = 0.25
"""Seconds between two tries to write to a full disk."""

log = logging.getLogger("titan_fast.store")


class Listener(Protocol):
    """Who is told. Called on the loop."""

    def became_durable(self, position: int) -> None:
        """Every fact up to this position is safe."""

    def disk_is_full(self, error: DiskFull) -> None:
        """Nothing was written; the same facts are tried again until they are."""

    def store_failed(self, error: Exception) -> None:
        """Nothing is known any more about what is on the disk."""


class Batch(msgspec.Struct):
    """The facts of some turns, in order."""

    facts: list[Fact]
    position: int
    """Of the last of them."""
    size: int
    """About how many bytes they are."""
    _ended: dict[int, list[AttemptsEnded]] | None = None

    def ended(self, run: int) -> Sequence[AttemptsEnded]:
        """Those of them about ended attempts of a run. Sorted out when somebody asks first: many ask in one turn."""
        if self._ended is None:
            self._ended = {}
            for fact in self.facts:
                if isinstance(fact, AttemptsEnded):
                    self._ended.setdefault(fact.run, []).append(fact)
        return self._ended.get(run, ())


class Committer(Protocol):
    """What the pump knows of the way to the disk."""

    pending: list[Batch]
    """Not durable yet, oldest first, by turn."""

    def put(self, facts: list[Fact], position: int) -> None: ...
    def hurry(self) -> None:
        """Somebody waits for a fact."""

    def stuck_for(self) -> float:
        """Seconds the oldest commit that has not come back has been under way."""

    def call(self, job: Callable[[], object], done: Callable[[object], None]) -> None:
        """Run something in the store's thread, between two commits."""

    def close(self) -> int:
        """Commit what there is, then end. The position up to which everything is durable: when the disk is full, or a
        commit fails, it is not the last one."""


class InlineCommitter:
    """For a store in memory: durable at once."""

    def __init__(self, store: Store, epoch: Callable[[], int], listener: Listener) -> None:
        self._store, self._epoch, self._listener = store, epoch, listener
        self.pending: list[Batch] = []
        self._durable = 0

    def put(self, facts: list[Fact], position: int) -> None:
        self._store.commit(self._epoch(), facts)
        self._durable = position
        self._listener.became_durable(position)

    def hurry(self) -> None:
        pass

    def stuck_for(self) -> float:
        return 0.0

    def call(self, job: Callable[[], object], done: Callable[[object], None]) -> None:
        done(job())

    def close(self) -> int:
        return self._durable


class ThreadCommitter:
    """The committer of a master with a disk."""

    def __init__(self, store: Store, epoch: Callable[[], int], listener: Listener) -> None:
        self._store, self._epoch, self._listener = store, epoch, listener
        self._loop = asyncio.get_running_loop()
        self.pending: list[Batch] = []
        self._durable = 0
        """Written by the thread, read when it has ended."""
        self._in_flight = 0
        """How many of ``pending``, from its front, are being written."""
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._has_failed = False
        """The thread's: something was not written, so nothing after it may be."""
        self._thread = threading.Thread(target=self._work, name="titan-store", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the loop's side

    def put(self, facts: list[Fact], position: int) -> None:
        self.pending.append(Batch(facts, position, sum(map(weight, facts))))
        self._begin_soon()

    def hurry(self) -> None:
        if not self._in_flight and self.pending:
            self._begin()

    def _begin_soon(self) -> None:
        if self._timer is None and not self._in_flight and self.pending:
            self._timer = self._loop.call_later(PATIENCE, self._begin)

    def stuck_for(self) -> float:
        return self._loop.time() - self._since if self._in_flight else 0.0

    def call(self, job: Callable[[], object], done: Callable[[object], None]) -> None:
        def run() -> None:
            try:
                result: object = job()
            except Exception as error:
                result = error
            self._loop.call_soon_threadsafe(done, result)

        self._jobs.put(run)

    def close(self) -> int:
        """Blocks until everything is on the disk, or cannot get there."""
        self._cancel_timer()
        if len(self.pending) > self._in_flight:
            facts = [fact for batch in self.pending[self._in_flight :] for fact in batch.facts]
            self._jobs.put(lambda: self._commit(facts, self.pending[-1].position))
        self._closing.set()
        self._jobs.put(None)
        self._thread.join()
        self.pending.clear()
        return self._durable

    def _begin(self) -> None:
        self._cancel_timer()
        if self._in_flight or not self.pending:
            return
        self._in_flight = len(self.pending)
        self._since = self._loop.time()
        position = self.pending[-1].position
        facts = [fact for batch in self.pending for fact in batch.facts]
        self._jobs.put(lambda: self._commit(facts, position))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _committed(self, position: int) -> None:
        if self._closing.is_set():
            return
        del self.pending[: self._in_flight]
        self._in_flight = 0
        self._listener.became_durable(position)  # who waits for what came meanwhile says so now
        self._begin_soon()

    # ------------------------------------------------------------ the thread's side

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or what it wrote would stay until the next one

    def _commit(self, facts: list[Fact], position: int) -> None:
        while not self._has_failed and not self._is_written(facts, position):
            if self._closing.wait(TRY_AGAIN):
                self._give_up(facts)

    def _is_written(self, facts: list[Fact], position: int) -> bool:
        """False: the disk is full, and another try makes sense."""
        try:
            self._store.commit(self._epoch(), facts)
        except DiskFull as error:
            self._tell(self._listener.disk_is_full, error)
            return False
        except Exception as error:
            self._has_failed = True
            self._tell(self._listener.store_failed, error)
        else:
            self._durable = position
            self._tell(self._committed, position)
        return True

    def _give_up(self, facts: list[Fact]) -> None:
        self._has_failed = True
        log.error("the disk is full: %d facts could not be written", len(facts))

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)


def weight(fact: Fact) -> int:
    """About how many bytes a fact takes in memory and on the disk."""
    match fact:
        case AttemptsEnded():
            return 100 * len(fact.index) + sum(map(len, fact.result))
        case RunAccepted():
            return 300 * len(fact.graph.tasks) + sum(map(len, fact.payloads))
        case KvChanged():
            return 200 + len(fact.value or b"")
    return 200
