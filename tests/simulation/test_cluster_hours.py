"""The whole of it: the real programs in cluster-hours full of faults, judged from outside.

A seed is an hour. ``python tests/simulation/replay.py --seed N --trace`` shows what happened in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hour import FAULTS, LOOK, TASKS, WORKERS, ClusterHour, run_hour
from replay import LONG, Sums, failing_seeds, many
from report import Report
from weather import CLIMATES

HOURS = 200
ALL_FAULTS = {*CLIMATES[0].faults, "kill_lane"}
SIZE = 50
"""Hours of one test."""
JOBS = min(2, os.cpu_count() or 1)
"""Processes that run them."""
REPLAY = Path(__file__).with_name("replay.py")


@pytest.fixture(scope="module")
def sums(request: pytest.FixtureRequest) -> Iterator[Sums]:
    """What the hours were like. All of them together are a report."""
    is_long = request.config.getoption("--long")
    report = Report("simulation", f"pytest tests/simulation{' --long' if is_long else ''}", is_long)
    sums = Sums()
    yield sums
    if sums.figures["cluster-hours"] >= (LONG if is_long else HOURS):
        with report:
            report.figures.update(sums.figures)
            assert not sums.figures["failures"]


def keep_every_promise(batch: int, sums: Sums) -> None:
    failed = []
    for seed, told in many(range(batch * SIZE, (batch + 1) * SIZE), JOBS):
        sums.add(told)
        if isinstance(told, str):
            failed.append(seed)
    for seed in failed:
        run_hour(seed)  # once more, for the end of its trace
    assert not failed, "it failed in a process of its own, and not here"


@pytest.mark.parametrize(("seed", "functions"), failing_seeds())
def test_what_failed_once_never_fails_again(seed: int, functions: int) -> None:
    run_hour(seed, functions=functions)


@pytest.mark.parametrize("batch", range(HOURS // SIZE))
def test_cluster_hours_keep_every_promise(batch: int, sums: Sums) -> None:
    keep_every_promise(batch, sums)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(HOURS // SIZE, LONG // SIZE))
def test_twenty_thousand_cluster_hours_keep_every_promise(batch: int, sums: Sums) -> None:
    keep_every_promise(batch, sums)


def test_an_hour_is_as_hard_as_it_says() -> None:
    assert len(WORKERS) >= 5
    for seed in range(len(CLIMATES)):
        hour = run_hour(seed)
        assert hour.tasks >= TASKS >= 1000
        assert hour.faults >= FAULTS >= 30


def test_the_books_of_the_master_are_looked_at_all_the_time() -> None:
    hour = ClusterHour(0)
    hour.run()
    assert hour.looks > hour.world.callbacks // LOOK // 2, "the rest of the time there was no master"

    def miscount() -> None:
        master = hour.cluster.master
        if master is None or not hasattr(master, "garden"):
            hour.world.after(1.0, miscount)
        else:
            master.scheduler.state.recalling += 1

    hour = ClusterHour(0)
    hour.world.at(100.0, miscount)
    with pytest.raises(AssertionError, match="recalls open, says"):
        hour.run()


def test_every_fault_happens() -> None:
    seen: set[str] = set()
    for seed in range(0, 20 * len(CLIMATES), len(CLIMATES)):
        hour = ClusterHour(seed)
        hour.run()
        seen.update(hour.weather.counts)
        if seen >= ALL_FAULTS:
            return
    raise AssertionError(f"never happened: {ALL_FAULTS - seen}")


@pytest.mark.parametrize("seed", [5, 341])
def test_an_hour_is_the_same_whatever_the_hash_seed(seed: int) -> None:
    told = {
        subprocess.run(
            [sys.executable, str(REPLAY), "--seed", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "3")
    }
    assert len(told) == 1, told
    assert str(run_hour(seed)) in told.pop()
