"""The whole of it: the real programs in cluster-hours full of faults, judged from outside.

A seed is an hour. ``python tests/simulation/replay.py --seed N --trace`` shows what happened in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hour import FAULTS, TASKS, WORKERS, ClusterHour, run_hour
from replay import failing_seeds
from sabotage import OUT_OF_REACH, SABOTAGE
from weather import CLIMATES

SIZE = 20
"""Hours of one test."""
REPLAY = Path(__file__).with_name("replay.py")


@pytest.mark.parametrize("seed", failing_seeds())
def test_what_failed_once_never_fails_again(seed: int) -> None:
    run_hour(seed)


@pytest.mark.parametrize("batch", range(10))
def test_cluster_hours_keep_every_promise(batch: int) -> None:
    for seed in range(batch * SIZE, (batch + 1) * SIZE):
        run_hour(seed)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(10, 1010))
def test_twenty_thousand_cluster_hours_keep_every_promise(batch: int) -> None:
    for seed in range(batch * SIZE, (batch + 1) * SIZE):
        run_hour(seed)


def test_an_hour_is_as_hard_as_it_says() -> None:
    assert len(WORKERS) >= 5
    for seed in range(len(CLIMATES)):
        hour = run_hour(seed)
        assert hour.tasks >= TASKS >= 1000
        assert hour.faults >= FAULTS >= 30


def test_every_fault_happens() -> None:
    seen: set[str] = set()
    for seed in range(0, 10 * len(CLIMATES), len(CLIMATES)):
        hour = ClusterHour(seed)
        hour.run()
        seen.update(hour.weather.counts)
    assert seen == set(CLIMATES[0].faults)


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


@pytest.mark.parametrize("name", [name for name in SABOTAGE if name not in OUT_OF_REACH])
def test_a_broken_promise_is_noticed(name: str) -> None:
    """Within some hours, that is; `SimulationFailed` and failed assertions of the core both count."""
    with pytest.raises(AssertionError):
        for seed in range(60):
            run_hour(seed, name)
