"""Cluster-hours by hand: one seed again, with its trace, many of them at once, or with promises broken on purpose.

python tests/simulation/replay.py --seed 7 --trace
python tests/simulation/replay.py --seed 350 --functions 0
python tests/simulation/replay.py --more --minutes 60 --jobs 2
python tests/simulation/replay.py --catch-all --within 1000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from hour import FUNCTIONS, ClusterHour, Hour, run_hour
from report import REPORTS, Report
from sabotage import BREAKS

FAILING = Path(__file__).with_name("failing_seeds.txt")
"""Seeds that failed once, a line each, and why; tests run them first, for ever."""
_FAILED = re.compile(r"^(\d+) with (\d+) functions: ", re.MULTILINE)
LONG = 20_000
"""Hours of the long size."""
FRESH = 1_100_000
"""The first seed of a long report that does not know which were counted: nobody has come so far."""


def failing_seeds() -> list[tuple[int, int]]:
    """(seed, graphs with functions): with more or fewer of them it would be another hour."""
    return [(int(seed), int(functions)) for seed, functions in _FAILED.findall(FAILING.read_text("utf-8"))]


def keep(seed: int, why: str) -> None:
    if (seed, FUNCTIONS) not in failing_seeds():
        with FAILING.open("a", encoding="utf-8") as file:
            file.write(f"{seed} with {FUNCTIONS} functions: {why}\n")


def why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _try(task: tuple[int, str]) -> tuple[int, Hour | str]:
    seed, sabotage = task
    try:
        return seed, run_hour(seed, sabotage)
    except Exception as error:
        return seed, why(error)


def many(seeds: Iterable[int], jobs: int, sabotage: str = "") -> Iterator[tuple[int, Hour | str]]:
    """(seed, what the hour was like or what went wrong), in no order."""
    tasks = [(seed, sabotage) for seed in seeds]
    if jobs == 1:
        yield from map(_try, tasks)
        return
    # Forked: the other ways leave a process of their own with ours, which tests of children would take for theirs.
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_try, tasks, chunksize=8)


class Sums:
    """What many hours were like, as the figures of a report."""

    def __init__(self) -> None:
        self.newest = -1
        """Highest seed."""
        self.figures: Counter[str] = Counter()
        self.figures.update(dict.fromkeys(("cluster-hours", "tasks", "processes", "faults"), 0))
        self.figures.update(dict.fromkeys(("masters killed", "agents", "failures"), 0))

    def add(self, told: Hour | str) -> None:
        self.figures["cluster-hours"] += 1
        if isinstance(told, str):
            self.figures["failures"] += 1
            return
        self.figures["tasks"] += told.tasks
        self.figures["processes"] += told.starts
        self.figures["faults"] += told.faults
        self.figures["masters killed"] += told.killed
        self.figures["agents"] += told.agents


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="one hour again")
    parser.add_argument("--functions", type=int, default=FUNCTIONS, help="graphs with functions in that hour")
    parser.add_argument("--trace", action="store_true", help="print everything that happened in it")
    parser.add_argument("--hours", type=int, default=200, help="how many hours")
    parser.add_argument("--from", type=int, dest="first", help="the first seed; else 0, or with --more the next one")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--more", action="store_true", help="as many as are asked for, beside those of the long report")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, and count what was done")
    parser.add_argument("--sabotage", default="", choices=["", *BREAKS], help="a promise to break")
    parser.add_argument("--catch-all", action="store_true", help="break each promise, and say who notices")
    parser.add_argument("--within", type=int, default=1000, help="hours in which each has to be noticed")
    options = parser.parse_args()
    if options.catch_all:
        from catch import catch_all  # brings the tests of others along

        return catch_all(options.within)
    if options.seed is not None:
        return _one(options.seed, options.sabotage, options.trace, options.functions)
    deadline = time.monotonic() + 60 * options.minutes
    if options.more:
        return _more(options.first, options.jobs, deadline)
    first = options.first or 0
    seeds = range(first, first + options.hours)
    return _many(seeds, options.jobs, options.sabotage, Sums(), deadline)


def _more(first: int | None, jobs: int, deadline: float) -> int:
    """Long runs accumulate: their report has the sum, until somebody removes it and begins anew, and the seed that the
    next go begins with, so that none counts twice. Hours that failed do not count; once they are mended every run of
    the tests has them."""
    sums = Sums()
    so_far = {}
    with contextlib.suppress(FileNotFoundError):
        so_far = json.loads((REPORTS / "simulation-long.json").read_text())
        sums.figures.update(so_far["figures"])
    known = so_far.get("next", FRESH if first is None else 0)
    first = known if first is None else first
    sums.figures["cluster-hours"] -= sums.figures["failures"]
    sums.figures["failures"] = 0
    with Report("simulation", "python tests/simulation/replay.py --more", is_long=True) as report:
        try:
            failed = _many(range(first, first + LONG - sums.figures["cluster-hours"]), jobs, "", sums, deadline)
        finally:  # whoever is tired of it keeps what was counted
            report.figures.update(sums.figures)
            report.beside["next"] = max(known, sums.newest + 1)
        if failed:
            raise SystemExit(failed)
    return 0


def _one(seed: int, sabotage: str, is_traced: bool, functions: int) -> int:
    hour = ClusterHour(seed, sabotage=sabotage, is_traced=is_traced, functions=functions)
    try:
        told = hour.run()
    except Exception as error:
        if is_traced:
            print(hour.world.story())
        raise error.with_traceback(error.__traceback__) from None
    if is_traced:
        print(hour.world.story())
    print(told)
    return 0


def _many(seeds: range, jobs: int, sabotage: str, sums: Sums, deadline: float) -> int:
    """Says how far it is now and then."""
    began = time.perf_counter()

    def say() -> None:
        seconds = time.perf_counter() - began
        print(", ".join(f"{text} {n:,}" for text, n in sums.figures.items()), f"in {seconds:.0f} s", flush=True)

    for seed, told in many(seeds, jobs, sabotage):
        sums.add(told)
        sums.newest = max(sums.newest, seed)
        if isinstance(told, str):
            print(f"seed {seed}: {told}", flush=True)
            if not sabotage:
                keep(seed, told)
        if time.monotonic() > deadline:
            break
        if not sums.figures["cluster-hours"] % 1000:
            say()
    say()
    return 1 if sums.figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
