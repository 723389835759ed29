"""Who goes first: the higher priority, and among equals everybody gets a share at once."""

from __future__ import annotations

from titan_fast.testing.harness import SchedulerHarness, array, task


def test_a_higher_priority_goes_first() -> None:
    harness = SchedulerHarness()
    harness.submit([task("low", priority=0), task("plain"), task("high", priority=10)])
    harness.worker("w")
    order = [held.name for _ in range(3) for held in harness.finish("w")]
    assert order == ["high", "plain", "low"]


def test_priority_counts_across_runs() -> None:
    harness = SchedulerHarness()
    harness.submit([array("old", 100)])
    harness.submit([task("urgent", priority=2)])
    harness.worker("w")
    assert harness.held_names("w") == ["urgent"]


def test_equal_tasks_of_a_run_go_in_their_order() -> None:
    harness = SchedulerHarness()
    harness.submit([task(f"t{number}") for number in range(5)])
    harness.worker("w")
    assert [held.name for _ in range(5) for held in harness.finish("w")] == [f"t{number}" for number in range(5)]


def test_ten_tasks_behind_a_hundred_thousand_get_their_share_at_once() -> None:
    """The big run has the workers; the small run of equal priority takes its half from the next free slot on."""
    harness = SchedulerHarness(check=False)
    harness.worker("w", slots=4)
    big = harness.submit([array("big", 100_000)])
    for _ in range(20):
        harness.finish("w", duration=1.0)
    small = harness.submit([array("small", 10)])
    finished = 0
    while harness.run_state(small) != "COMPLETED":
        finished += len(harness.finish("w", duration=1.0))
        assert finished <= 30, "ten tasks should be through after about twenty of both"
    assert harness.run_state(big) == "RUNNING"


def test_runs_of_equal_priority_alternate() -> None:
    harness = SchedulerHarness()
    a, b = harness.submit([array("a", 40)]), harness.submit([array("b", 40)])
    harness.worker("w", slots=2)
    done = {a: 0, b: 0}
    for _ in range(20):
        for held in harness.finish("w", duration=1.0):
            done[held.run] += 1
        assert abs(done[a] - done[b]) <= 4
    assert sum(done.values()) == 40


def test_a_run_that_waited_long_does_not_own_the_queue_afterwards() -> None:
    """What wakes starts at the current virtual time: it is owed nothing for the time it had no task."""
    harness = SchedulerHarness()
    harness.worker("w")
    late = harness.submit([task("wait", delay=100.0), array("late", 30, "wait")])
    busy = harness.submit([array("busy", 200)])
    for _ in range(60):
        harness.finish("w", duration=1.0)
    harness.advance(100.0)
    done = {late: 0, busy: 0}
    for _ in range(40):
        for held in harness.finish("w", duration=1.0):
            done[held.run] += 1
    assert done[busy] >= 15, "the run that was there is not shut out"
    assert done[late] >= 15
