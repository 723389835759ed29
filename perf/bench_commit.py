"""What a commit costs beside a loop that never rests: the store's thread against the interpreter lock.

Commits beside an idle loop and beside one whose turns follow each other without a pause, in turn. The latency is the
time from the moment somebody waits for a fact until it is on the disk, as the store's thread sees it; the loop hears of
it at the end of its turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

from titan_fast.errors import DiskFull
from titan_fast.master.committer import SWITCH_INTERVAL, ThreadCommitter
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler.facts import AttemptsEnded, Fact, RunAccepted

TURN = 0.002
"""Seconds of a turn of the busy loop."""
PAIRS = 100
LIMIT = 5.0
"""Times as long as beside an idle loop, at most."""
WORK = Work(argv=("true",))


class TimedStore(SqliteStore):
    """Notes when a commit was on the disk."""

    committed_at = 0.0

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        super().commit(epoch, facts)
        self.committed_at = time.perf_counter()


class Desk:
    """Puts facts, one commit at a time, and waits for each."""

    def __init__(self, store: TimedStore) -> None:
        self._store = store
        self._epoch = store.open().epoch
        self._done = asyncio.Event()
        self._position = 0
        self.committer = ThreadCommitter(store, lambda: self._epoch, self)

    def became_durable(self, position: int) -> None:
        self._done.set()

    def disk_is_full(self, error: DiskFull) -> None:
        raise error

    def store_failed(self, error: Exception) -> None:
        raise error

    async def commit(self, facts: list[Fact]) -> float:
        """Seconds until they were on the disk."""
        self._done.clear()
        self._position += 1
        began = time.perf_counter()
        self.committer.put(facts, self._position)
        self.committer.hurry()
        await self._done.wait()
        return self._store.committed_at - began


def accepted(run: int, members: int) -> RunAccepted:
    return RunAccepted(1.0, run, GraphSpec("bench", (TaskSpec("a", WORK, count=members, array=True),)), (), 0)


def ended(first: int, members: int) -> AttemptsEnded:
    """A turn's results of run 1."""
    index = list(range(first, first + members))
    ones, zeros = [1] * members, [0] * members
    return AttemptsEnded(
        1.0,
        1,
        index,
        zeros,
        ones,
        index,
        ["w"] * members,
        ["COMPLETED"] * members,
        ["exit:0"] * members,
        zeros,
        ones,
        ones,
        [b""] * members,
    )


async def measure_pairs(rows: int, pairs: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of commits beside an idle loop and beside a busy one, in turn: a slow moment of the disk hits both.

    ``rows``: results in each commit; 0: one submit.
    """
    loop = asyncio.get_running_loop()
    store = TimedStore(folder)
    desk = Desk(store)
    await desk.commit([accepted(1, max(1, 2 * rows * pairs))])
    is_busy = False

    def spin() -> None:
        until = time.perf_counter() + TURN
        while time.perf_counter() < until:
            pass
        if is_busy:
            loop.call_soon(spin)

    found: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * pairs):
        is_busy = bool(number % 2)
        if is_busy:
            spin()
        facts: list[Fact] = [ended(number * rows, rows) if rows else accepted(2 + number, 1)]
        found[is_busy].append(await desk.commit(facts))
        is_busy = False
        await asyncio.sleep(0)  # the last spin is over
    desk.committer.close()
    store.close()
    return found


def commits(rows: int, pairs: int = PAIRS) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure_pairs(rows, pairs, Path(folder, "state")))


def quick(found: list[float]) -> float:
    """The lower quartile: what it takes when the disk has nothing else to do, which is when the lock counts most."""
    return quantiles(found, n=4)[0]


def measure() -> dict[str, float]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.disable()  # as in the master
    try:
        figures = {}
        for name, rows in (("submit", 0), ("1k_results", 1000)):
            idle, busy = commits(rows)
            figures[f"commit_{name}_busy_vs_idle"] = quick(busy) / quick(idle)
        return figures
    finally:
        gc.enable()
        sys.setswitchinterval(before)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from report import Report

    with Report("commit", "python perf/bench_commit.py") as report:
        gc.disable()
        for interval in (0.005, 0.0005, SWITCH_INTERVAL):
            sys.setswitchinterval(interval)
            for name, rows in (("a submit", 0), ("1,000 results", 1000)):
                for mode, found in zip(("idle", "busy"), commits(rows, 2 * PAIRS), strict=True):
                    cuts = quantiles(found, n=100, method="inclusive")
                    for rank in (25, 50, 99):
                        text = f"{name}, switch interval {interval * 1e3:g} ms, {mode}, p{rank}, ms"
                        report.figures[text] = cuts[rank - 1] * 1e3
        for text, value in report.figures.items():
            print(f"{text:60} {value:8.3f}")
        for name in ("a submit", "1,000 results"):
            idle, busy = (
                report.figures[f"{name}, switch interval {SWITCH_INTERVAL * 1e3:g} ms, {mode}, p50, ms"]
                for mode in ("idle", "busy")
            )
            assert busy <= LIMIT * idle, f"{name}: {busy / idle:.1f} times as long beside a busy loop"


if __name__ == "__main__":
    main()
