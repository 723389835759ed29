"""A task runs when all its parents are done, whatever the order in which they end and however many they are."""

from __future__ import annotations

import random

import pytest

from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import SchedulerHarness, array, chain, task


def check_fan_in(tuning: Tuning | None = None) -> None:
    """700 parents end in a random order, some together; the child starts after the last and not before."""
    harness = SchedulerHarness(tuning, check=False)
    harness.worker("w", slots=64)
    parents = [f"p{number}" for number in range(700)]
    run = harness.submit([*map(task, parents), task("sum", *parents)])
    rng = random.Random(7)
    left = set(parents)
    while left:
        assert harness.state(run, "sum") == "PENDING"
        assert "sum" not in harness.held_names("w"), f"sum was placed with {len(left)} parents to go"
        harness.start("w")
        held = list(harness.workers["w"].held.values())
        ended = rng.sample(held, rng.randint(1, len(held)))
        harness.end("w", ended)
        left.difference_update(item.name for item in ended)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"
    assert harness.state(run, "sum") == "COMPLETED"


def test_a_child_of_700_parents_starts_after_the_last() -> None:
    check_fan_in()


def test_parents_that_end_during_admission_are_counted() -> None:
    """Roots whose `when` cannot hold are SKIPPED while the graph is admitted; their children do not wait for ever."""
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit(
        [
            task("never", when="failure"),
            task("also_never", when="failure"),
            task("real"),
            task("after_both", "never", "also_never", when="always"),
            task("after_never", "never", "also_never"),
            task("mixed", "never", "real"),
        ]
    )
    assert harness.state(run, "never") == "SKIPPED"
    assert harness.state(run, "after_never") == "SKIPPED", "no parent succeeded"
    harness.run_to_end()
    assert harness.state(run, "after_both") == "COMPLETED"
    assert harness.state(run, "mixed") == "COMPLETED", "a parent nobody wanted counts for nothing"
    assert harness.run_state(run) == "COMPLETED"


def test_a_graph_that_is_skipped_whole_ends_at_admission() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a", when="failure"), task("b", "a"), task("c", "b")])
    assert harness.run_state(run) == "COMPLETED"
    assert set(harness.states(run).values()) == {"SKIPPED"}


def test_a_chain_of_20_000_runs_in_order_without_recursion() -> None:
    harness = SchedulerHarness(check=False)
    harness.worker("w")
    names = [f"t{number}" for number in range(20_000)]
    run = harness.submit(chain(*names))
    for name in names[:50]:
        assert [held.name for held in harness.finish("w")] == [name]
    harness.end("w", harness.start("w"), code=1)  # and a failure goes down 19,949 steps at once
    states = harness.states(run)
    assert states["t50"] == "FAILED"
    assert set(list(states.values())[51:]) == {"SKIPPED"}
    assert harness.run_state(run) == "FAILED"


def test_a_chain_of_20_000_is_cancelled_and_retried_without_recursion() -> None:
    harness = SchedulerHarness(check=False)
    names = [f"t{number}" for number in range(20_000)]
    run = harness.submit(chain(*names))
    harness.cancel(run, "t0")
    assert harness.run_state(run) == "CANCELLED"
    harness.retry(run, "t0")
    assert set(harness.states(run).values()) == {"PENDING"}
    harness.worker("w")
    assert harness.held_names("w") == ["t0"]


def test_an_edge_to_an_array_waits_for_all_its_members() -> None:
    harness = SchedulerHarness()
    harness.worker("w", slots=3)
    run = harness.submit([array("part", 10), task("sum", "part")])
    while len(harness.workers["w"].held) > 1 or harness.scheduler.state.queue.ready(0):
        harness.start("w")
        harness.end("w", list(harness.workers["w"].held.values())[:1])
        assert harness.state(run, "sum") == "PENDING"
    harness.run_to_end()
    assert harness.state(run, "sum") == "COMPLETED"


def test_an_array_waits_for_its_parent_and_runs_whole() -> None:
    harness = SchedulerHarness()
    harness.worker("w", slots=100)
    run = harness.submit([task("split"), array("part", 50, "split")])
    assert harness.held_names("w") == ["split"]
    harness.finish("w")
    assert len(harness.held_names("w")) == 50
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_parent_named_twice_is_one_edge() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), task("b", "a", "a")])
    harness.run_to_end()
    assert harness.state(run, "b") == "COMPLETED"


def test_a_child_is_never_placed_in_the_turn_before_its_parents_end() -> None:
    """A diamond: both middle tasks end in one frame, and the last task comes once."""
    harness = SchedulerHarness()
    harness.worker("w", slots=4)
    run = harness.submit([task("top"), task("left", "top"), task("right", "top"), task("end", "left", "right")])
    harness.finish("w")
    assert sorted(harness.held_names("w")) == ["left", "right"]
    harness.finish("w")
    assert harness.held_names("w") == ["end"]
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


@pytest.mark.parametrize("order", range(6))
def test_tasks_may_be_listed_in_any_order(order: int) -> None:
    tasks = chain("a", "b", "c", "d")
    random.Random(order).shuffle(tasks)
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit(tasks)
    ended = [held.name for _ in range(4) for held in harness.finish("w")]
    assert ended == ["a", "b", "c", "d"]
    assert harness.run_state(run) == "COMPLETED"
