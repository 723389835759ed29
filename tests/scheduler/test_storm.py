"""Random graphs, random events, every invariant at every step; then quiet, and everything must end.

The seed is in the test's name: a failure is repeated with it.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storm import Storm

from titan_fast.scheduler import sabotage
from titan_fast.scheduler.commands import Verdict
from titan_fast.scheduler.facts import AttemptsEnded

BATCHES = 8
SEEDS = 20
STEPS = 300


@pytest.mark.parametrize("batch", range(BATCHES))
def test_everything_ends_after_a_storm(batch: int) -> None:
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        ride(seed, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(100, 140))
def test_everything_ends_after_a_long_storm(batch: int) -> None:
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        ride(seed, 4 * STEPS, runs=20)


def ride(seed: int, steps: int, runs: int = 6) -> Storm:
    storm = Storm(seed, runs)
    try:
        storm.rage(steps)
        storm.calm()
    except BaseException as error:
        error.add_note(f"Storm({seed}, {runs}).rage({steps})")
        raise
    return storm


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(1, 100))
def test_hypothesis_finds_no_sequence_that_breaks_anything(rng: random.Random, steps: int) -> None:
    """As above, but every choice is hypothesis's own: it looks for trouble, and makes what it finds short."""
    storm = Storm(0, 4, rng)
    storm.rage(steps)
    storm.calm()


def test_equal_seeds_give_equal_storms() -> None:
    one, two = ride(5, 150), ride(5, 150)
    assert one.h.facts == two.h.facts
    assert [*map(repr, one.h.commands)] == [*map(repr, two.h.commands)]


def test_the_storms_do_everything_there_is() -> None:
    """Or what they do not break means little."""
    wanted = {"Recall", "Kill", "CancelAsked", "TasksReopened", "TasksSettled", "WorkerGone", "AttemptsRunning"}
    wanted |= {"replaced", "worker_lost", "absent", "recalled", "unverified", "cancelled", "timeout"}
    wanted |= {"wait", "kept later", "killed later"}
    acts: set[str] = set()
    done: set[str] = set()
    for seed in range(300, 400):
        storm = ride(seed, 400)
        acts.update(act.__name__ for _, act in storm.acts)
        done.update(storm.counts)
        for item in (*storm.h.facts, *storm.h.commands):
            done.add(type(item).__name__)
            if isinstance(item, AttemptsEnded):
                done.update(item.reason)
            elif isinstance(item, Verdict):
                late = not item.ticket
                done.update(
                    word
                    for word, is_so in (
                        ("wait", item.wait),
                        ("kept later", late and item.keep),
                        ("killed later", late and item.kill),
                    )
                    if is_so
                )
        if wanted | acts <= done:
            return
    raise AssertionError(f"no storm did {sorted((wanted | acts) - done)}")


RARE = {sabotage.PARENTS_FENCE_IGNORED}
"""It takes hundreds of storms, and has a test of its own."""


@pytest.mark.parametrize("fault", sorted(sabotage.SABOTAGE - RARE))
def test_the_storm_finds_a_fault_that_is_built_in(fault: str) -> None:
    with pytest.raises(AssertionError):
        for seed in range(50):
            storm = Storm(seed, sabotage=[fault])
            storm.rage(STEPS)
            storm.calm()
