"""What is done when nobody waits: forget old runs, give space back, collect garbage, make backups.

Everything is done in slices of a few milliseconds in the store's thread, between two commits, so that no promise
waits for it. Which runs are old the store tells, whether they go the core decides.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from titan_fast.errors import StoreFailed, TitanError
from titan_fast.master.store.base import Pruned
from titan_fast.scheduler.events import ForgetRequested

if TYPE_CHECKING:
    from titan_fast.master.server import Master

SLICE = 0.005
"""Seconds of one piece of work in the store's thread."""
EVERY = 5.0
"""Seconds between two looks."""
PAUSE = 0.05
"""Seconds after a slice of tidying that left something to do until the next one, if nothing happened meanwhile."""
SWEEP_EVERY = 300.0
"""Seconds between two looks at all files."""
DAY = 86400.0
PAGE = 256
"""Runs that the core is asked to forget at a time."""
GARBAGE = 10_000
"""Objects made and not gone since the last collection that are worth the next one,"""
COLLECT_EVERY = 3600.0
"""which comes after this many seconds in any case."""
BACKUP = ".backup."
"""How the names of backups begin while they are being made."""
UNNAMED = 3600.0
"""Seconds a file that nothing names is kept: who uploads it names it later, and a backup is being fetched."""

log = logging.getLogger("titan_fast.garden")


class Garden:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(EVERY, self._first_look)
        self._seen = -1
        self._collects = False
        self._collect_at = 0.0
        self._is_backing_up = False
        self._is_closed = False
        self._sweep_at = self._loop.time() + SWEEP_EVERY
        self._next_slice: asyncio.TimerHandle | None = None
        """Of tidying, while there is more to do."""
        self._pruning: deque[_Pruning] = deque()
        """The first is under way, the others wait for it."""
        # Nobody else has this directory, and we have not made any yet.
        _remove(master.state_dir.glob(BACKUP + "*"))

    def collect_when_idle(self) -> None:
        """The core's tables hold no cycles, and a collection over a million rows stops the loop for a quarter of a
        second: so the collector is off, and runs only after a pause without a new fact."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._collects = True
        self._collect_at = self._loop.time() + COLLECT_EVERY

    def close(self) -> None:
        self._is_closed = True
        self._timer.cancel()
        self._tidy_no_more()

    def _first_look(self) -> None:
        self._master.pump.committer.call(self._master.store.numbers, self._sweep_logs)
        self._look()

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY, self._look)
        position = self._master.pump.position
        if self._collects and position == self._seen:
            self._collect()
        self._seen = position
        self._master.pump.committer.call(self._master.space.restore, lambda _: None)
        if not self._pruning:
            # Whether a run went or not: a busy master at the limit of what it keeps forgets some in every look.
            self.prune(-1, -1.0, lambda _: self._tidy())

    def _collect(self) -> None:
        """Connections that come and go leave cycles too, and no fact: what counts are objects, and the time."""
        now = self._loop.time()
        if gc.get_count()[0] > GARBAGE or now >= self._collect_at:
            gc.collect()
            _give_back_memory()
            self._collect_at = now + COLLECT_EVERY

    def _sweep_logs(self, numbers: object) -> None:
        """A run may have been forgotten, and the process have ended before its output was removed."""
        if not isinstance(numbers, set):
            log.error("left over output could not be looked for: %s", numbers)
            return
        # What was accepted since they were read has not left memory yet.
        self._master.logs.sweep(numbers.union(self._master.scheduler.state.runs))

    # ------------------------------------------------------------ old runs

    def prune(self, keep_runs: int, older_than: float, done: Callable[[int], None]) -> None:
        """Forget old runs; then say how many. Negative values: as the settings say."""
        settings = self._master.settings.store
        keep = settings.keep_runs if keep_runs < 0 else keep_runs
        age = settings.keep_days * DAY if older_than < 0 else older_than

        def finished(runs: int) -> None:
            self._pruning.popleft()
            if self._pruning:
                self._pruning[0].begin()
            done(runs)

        self._pruning.append(_Pruning(self._master, keep, self._master.pump.wall() - age, finished))
        if len(self._pruning) == 1:
            self._pruning[0].begin()

    def _tidy(self) -> None:
        """Space back to the disk, and files that nothing names any more."""
        self._tidy_a_slice()
        now = self._loop.time()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY
        named = self._master.store.digests()
        named.update(run.project for run in self._master.scheduler.state.runs.values() if run.project)
        self._master.blobs.sweep(named, UNNAMED)

    def _tidy_a_slice(self) -> None:
        self._tidy_no_more()
        self._master.pump.committer.call(lambda: self._master.store.tidy(SLICE), self._tidied)

    def _tidied(self, has_more: object) -> None:
        if isinstance(has_more, Exception):
            log.error("the store could not be tidied: %s", has_more)
        elif has_more and not self._is_closed:
            self._tidy_soon()

    def _tidy_soon(self) -> None:
        self._tidy_no_more()
        self._next_slice = self._loop.call_later(PAUSE, self._tidy_if_idle, self._master.pump.position)

    def _tidy_if_idle(self, position: int) -> None:
        """A promise that comes in the middle of a slice waits for its rest: where facts are made they go on coming,
        and a slice in each look has to do."""
        pump = self._master.pump
        if pump.position == position and not pump.committer.pending:
            self._tidy_a_slice()
        else:
            self._tidy_soon()

    def _tidy_no_more(self) -> None:
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None

    # ------------------------------------------------------------ backup

    def backup(self, done: Callable[[tuple[str, int] | TitanError], None]) -> None:
        """A copy of everything as one file among the blobs; ``done`` is told its address and size, on the loop."""
        if self._is_backing_up:
            done(StoreFailed("a backup is being made already", hint="try again when it is finished"))
            return
        self._is_backing_up = True
        master = self._master
        path = master.state_dir / (BACKUP + secrets.token_hex(4))

        def work() -> None:
            from titan_fast.master.store import backup

            found: tuple[str, int] | TitanError
            try:
                backup.pack(master.state_dir, master.store, path)
                digest = master.blobs.adopt(path)
                found = digest, master.blobs.size(digest)
            except TitanError as error:
                found = error.with_traceback(None)  # which holds this frame, and so itself
            except Exception as error:
                log.exception("backup")
                found = StoreFailed(f"the backup failed: {error}")
            finally:
                path.unlink(missing_ok=True)
            self._loop.call_soon_threadsafe(finished, found)

        def finished(found: tuple[str, int] | TitanError) -> None:
            self._is_backing_up = False
            done(found)

        threading.Thread(target=work, name="titan-backup", daemon=True).start()


class _Pruning:
    """Page by page the core is asked to forget what is old, and slice by slice it is removed. No closures that name
    each other: they would stay, with the collector off."""

    def __init__(self, master: Master, keep_runs: int, before: float, done: Callable[[int], None]) -> None:
        """``before``: wall clock; what ended earlier goes."""
        self._master = master
        self._keep_runs, self._before = keep_runs, before
        self._done = done
        self._after = 0
        """Up to this run the core was asked."""
        self._gone = 0

    def begin(self) -> None:
        store = self._master.store
        self._master.pump.committer.call(
            lambda: store.outdated(self._keep_runs, self._before, self._after, PAGE), self._chosen
        )

    def _chosen(self, heads: object) -> None:
        if not isinstance(heads, list):
            self._failed(heads)
        elif heads:
            self._after = heads[-1].id
            self._master.pump.happened(ForgetRequested(tuple((head.id, head.finished_at) for head in heads)))
            asyncio.get_running_loop().call_soon(self._asked)  # behind the turn
        else:
            self._remove()

    def _asked(self) -> None:
        # The first slice is behind the commit of this: begun now, or when the one under way ends, which the next page
        # is behind.
        self._master.pump.hurry()
        self.begin()

    def _remove(self) -> None:
        self._master.pump.committer.call(lambda: self._master.store.prune(SLICE), self._removed)

    def _removed(self, slice: object) -> None:
        if not isinstance(slice, Pruned):
            self._failed(slice)
            return
        self._gone += len(slice.runs)
        for run in slice.runs:
            self._master.history.changed(run)
        try:
            self._master.logs.forget_runs(slice.runs)
        except OSError as error:
            log.warning("output of forgotten runs stays until the next start: %s", error)
        if slice.is_done:
            self._end()
        else:
            self._remove()

    def _failed(self, error: object) -> None:
        log.error("old runs could not be forgotten: %s", error)
        self._end()

    def _end(self) -> None:
        self._done(self._gone)
        self._master.pump.wake()


def _remove(places: Iterable[Path]) -> None:
    """Files and folders, however large: nobody waits."""
    found = list(places)
    if found:
        threading.Thread(target=_remove_all, args=(found,), name="garden-removal", daemon=True).start()


def _remove_all(places: list[Path]) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def _give_back_memory() -> None:
    """What large messages took while they were read lies free in the allocator: to the system with it, where the C
    library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
