"""What is done when nobody waits: forget old runs, give space back, collect garbage, make backups.

Everything is done in slices of a few milliseconds in the store's thread, between two commits, so that no promise
waits for it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from titan_fast.errors import StoreFailed, TitanError
from titan_fast.master.store.base import Pruned

if TYPE_CHECKING:
    from titan_fast.master.server import Master

SLICE = 0.005
"""Seconds of one piece of work in the store's thread."""
EVERY = 5.0
"""Seconds between two looks."""
SWEEP_EVERY = 300.0
"""Seconds between two looks at all files."""
DAY = 86400.0
UNNAMED = 3600.0
"""Seconds a file that nothing names is kept: who uploads it names it later, and a backup is being fetched."""

log = logging.getLogger("titan_fast.garden")


class Garden:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(EVERY, self._look)
        self._seen, self._collected = -1, 0
        self._is_backing_up = False
        self._collects = False
        self._sweep_at = self._loop.time() + SWEEP_EVERY

    def collect_when_idle(self) -> None:
        """The core's tables hold no cycles, and a collection over a million rows stops the loop for a quarter of a
        second: so the collector is off, and runs only after a pause without a new fact."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._collects = True

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY, self._look)
        position = self._master.pump.position
        if self._collects and position == self._seen and position - self._collected > 1000:
            gc.collect()
            self._collected = position
        self._seen = position
        self._master.pump.committer.call(self._master.space.restore, lambda _: None)
        self.prune(-1, -1.0, lambda runs: self._tidy() if not runs else None)

    # ------------------------------------------------------------ old runs

    def prune(self, keep_runs: int, older_than: float, done: Callable[[int], None]) -> None:
        """Forget old runs, slice after slice; then say how many. Negative values: as the settings say."""
        settings = self._master.settings.store
        keep = settings.keep_runs if keep_runs < 0 else keep_runs
        age = settings.keep_days * DAY if older_than < 0 else older_than
        before = self._master.pump.wall() - age
        total = 0

        def sliced(result: object) -> None:
            nonlocal total
            if not isinstance(result, Pruned):
                log.error("old runs could not be forgotten: %s", result)
                done(total)
                return
            total += len(result.runs)
            for run in result.runs:
                self._master.history.changed(run)
            if result.runs:
                self._master.logs.forget_runs(result.runs)
            if result.is_done:
                done(total)
                self._master.pump.wake()
            else:
                again()

        def again() -> None:
            self._master.pump.committer.call(lambda: self._master.store.prune(keep, before, SLICE), sliced)

        again()

    def _tidy(self) -> None:
        """Space back to the disk, and files that nothing names any more."""

        def tidied(result: object) -> None:
            if isinstance(result, Exception):
                log.error("the store could not be tidied: %s", result)

        self._master.pump.committer.call(lambda: self._master.store.tidy(SLICE), tidied)
        now = self._loop.time()
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY
        named = self._master.store.digests()
        named.update(run.project for run in self._master.scheduler.state.runs.values() if run.project)
        self._master.blobs.sweep(named, UNNAMED)

    # ------------------------------------------------------------ backup

    def backup(self, done: Callable[[tuple[str, int] | TitanError], None]) -> None:
        """A copy of everything as one file among the blobs; ``done`` is told its address and size, on the loop."""
        if self._is_backing_up:
            done(StoreFailed("a backup is being made already", hint="try again when it is finished"))
            return
        self._is_backing_up = True
        master = self._master
        path = master.state_dir / f".backup.{os.getpid()}"

        def work() -> None:
            from titan_fast.master.store import backup

            found: tuple[str, int] | TitanError
            try:
                backup.pack(master.state_dir, master.store, path)
                digest = master.blobs.adopt(path)
                found = digest, master.blobs.size(digest)
            except TitanError as error:
                found = error
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
