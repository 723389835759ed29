"""What a start costs, from opening the store to the first decision: it grows with what is pending, and nothing else.

The store and the core alone, in this process; times are the processor's. Run as a program it takes the sizes of the
promises: 100,000 against 1,000,000 pending, and 1,000,000 finished members with 1 KB results.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_core import WORK, Cluster, array, growth, named

from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.model.spec import TaskSpec
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.facts import Fact

ROUNDS = 3
GROWTH = 1.3
"""A pending task costs no more where there are ten times as many, and this is what a measurement is worth."""
FINISHED = {False: 1.5, True: 4.0}
"""Starts with nothing in the store that one with a million finished members takes at most, by whether their run is
still open: both are some milliseconds."""


class Recorded(Cluster):
    """Its facts are in a store."""

    def __init__(self, folder: Path, result: bytes = b"") -> None:
        self.result = result
        self.store = SqliteStore(folder, "os")
        self.epoch = self.store.open().epoch
        super().__init__(2, 500, 0.0)

    def keep(self, facts: list[Fact]) -> None:
        if facts:
            self.store.commit(self.epoch, facts)

    def close(self) -> None:
        """Nobody is left to wait for."""
        for name in self.names:
            self.core.handle(ev.WorkerLeft(name))
        self.turn()
        self.store.close()


@contextmanager
def recorded(runs: list[list[TaskSpec]], ends: int = 0, result: bytes = b"") -> Iterator[Path]:
    """The folder of a store in which these runs were accepted and at least so many of their tasks have ended."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "state")
        cluster = Recorded(folder, result)
        for tasks in runs:
            cluster.submit(tasks)
        cluster.turn()
        if ends:
            cluster.flow(ends)
        cluster.close()
        del cluster
        gc.collect()
        yield folder


def start(folder: Path) -> float:
    """Processor seconds from the closed store to a core that has decided what goes on."""
    began = time.process_time()
    store = SqliteStore(folder, "os")
    core = Scheduler(store.open().epoch)
    loaded = store.load()
    core.advance(0.0, time.time())
    core.restore(loaded.next_run, loaded.revision, loaded.workers, loaded.keys, loaded.runs)
    core.place()
    store.close()
    return time.process_time() - began


def pending_growth(small: list[list[TaskSpec]], large: list[list[TaskSpec]], rounds: int = ROUNDS) -> float:
    """How much more a pending task costs at a start when there are more of them."""
    with recorded(small) as few, recorded(large) as many:
        return growth(lambda: start(few) / members(small), lambda: start(many) / members(large), rounds)


def members(runs: list[list[TaskSpec]]) -> int:
    return sum(task.count for tasks in runs for task in tasks)


def finished_cost(ended: int, is_open: bool, rounds: int = ROUNDS) -> tuple[float, float]:
    """(seconds of a start, of one with nothing in the store): so many members gave 1 KB each, and if ``is_open`` the
    last task of their run is still pending."""
    last = [TaskSpec("last", WORK, needs=("a",), requires=("NOBODY",))] if is_open else []
    with recorded([]) as empty, recorded([[*array(ended), *last]], ended, bytes(1024)) as full:
        pairs = [(start(full), start(empty)) for _ in range(rounds)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def measure() -> dict[str, float]:
    gc.disable()  # as in the master
    try:
        finished, empty = finished_cost(50_000, is_open=False)
        unfinished, _ = finished_cost(50_000, is_open=True)
        return {
            "restart_growth_named_20k_to_200k": pending_growth([named(20_000)], [named(20_000)] * 10),
            "restart_growth_array_20k_to_200k": pending_growth([array(20_000)], [array(200_000)]),
            "restart_finished_50k_vs_empty": finished / empty,
            "restart_finished_50k_of_open_run_vs_empty": unfinished / empty,
        }
    finally:
        gc.enable()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from report import Report

    gc.disable()
    with Report("restart-growth", "python perf/bench_restart.py", is_long=True) as report:
        report.figures |= {
            "a named task, 100,000 to 1,000,000 pending, growth": pending_growth(
                [named(100_000)], [named(100_000)] * 10
            ),
            "an array member, 100,000 to 1,000,000 pending, growth": pending_growth(
                [array(100_000)], [array(1_000_000)]
            ),
        }
        grown = {text: value / GROWTH for text, value in report.figures.items()}
        slower = {}
        for text, is_open in (("the run finished", False), ("the run still open", True)):
            full, empty = finished_cost(1_000_000, is_open)
            report.figures[f"start with 1,000,000 members finished, 1 KB each, {text}, ms"] = full * 1e3
            report.figures[f"the same with an empty store ({text}), ms"] = empty * 1e3
            slower[text] = full / empty / FINISHED[is_open]
        for text, value in report.figures.items():
            print(f"{text:76} {value:8.3f}")
        for text, part in (grown | slower).items():
            assert part <= 1, f"{text}: {part:.2f} times what it may be"


if __name__ == "__main__":
    main()
