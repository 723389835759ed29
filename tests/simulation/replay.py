"""Cluster-hours by hand: one seed again, with its trace, or many of them at once.

python tests/simulation/replay.py --seed 7 --trace
python tests/simulation/replay.py --hours 20000 --from 1000 --jobs 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hour import ClusterHour, Hour, run_hour
from sabotage import SABOTAGE

FAILING = Path(__file__).with_name("failing_seeds.txt")
"""Seeds that failed once, a line each, and why; tests run them first, for ever."""


def failing_seeds() -> list[int]:
    return [int(line.split()[0]) for line in FAILING.read_text("utf-8").splitlines() if line[:1].isdigit()]


def keep(seed: int, why: str) -> None:
    if seed not in failing_seeds():
        with FAILING.open("a", encoding="utf-8") as file:
            file.write(f"{seed} {why}\n")


def why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _try(task: tuple[int, str]) -> tuple[int, Hour | str]:
    seed, sabotage = task
    try:
        return seed, run_hour(seed, sabotage)
    except Exception as error:
        return seed, why(error)


def many(first: int, hours: int, jobs: int, sabotage: str = "") -> Iterator[tuple[int, Hour | str]]:
    """(seed, what the hour was like or what went wrong), in no order."""
    tasks = [(seed, sabotage) for seed in range(first, first + hours)]
    if jobs == 1:
        yield from map(_try, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_try, tasks, chunksize=8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="one hour again")
    parser.add_argument("--trace", action="store_true", help="print everything that happened in it")
    parser.add_argument("--hours", type=int, default=200, help="how many hours")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--sabotage", default="", choices=["", *SABOTAGE], help="a promise to break")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, options.sabotage, options.trace)
    return _many(options.first, options.hours, options.jobs, options.sabotage)


def _one(seed: int, sabotage: str, is_traced: bool) -> int:
    hour = ClusterHour(seed, sabotage=sabotage, is_traced=is_traced)
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


def _many(first: int, hours: int, jobs: int, sabotage: str) -> int:
    began = time.perf_counter()
    failed = tasks = starts = faults = masters = 0
    for seed, told in many(first, hours, jobs, sabotage):
        if isinstance(told, str):
            failed += 1
            print(f"seed {seed}: {told}", flush=True)
            if not sabotage:
                keep(seed, told)
            continue
        tasks, starts = tasks + told.tasks, starts + told.starts
        faults, masters = faults + told.faults, masters + told.masters
    seconds = time.perf_counter() - began
    print(
        f"{hours} cluster-hours in {seconds:.0f} s: {failed} failed; {tasks} tasks, {starts} processes, "
        f"{faults} faults, {masters} masters"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
