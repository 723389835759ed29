"""A delay begins when a task's parents are done, holds nothing, and ends exactly once."""

from __future__ import annotations

from titan_fast.model.spec import Retry
from titan_fast.testing.harness import SchedulerHarness, array, task


def test_a_task_waits_out_its_delay_after_its_parents() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 4)
    harness.submit([task("a"), task("b", "a", delay=5.0)])
    harness.advance(10.0)
    harness.finish("w")
    harness.advance(4.9)
    assert not harness.held_names("w")
    harness.advance(0.2)
    assert harness.held_names("w") == ["b"]


def test_a_delay_holds_no_slot() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.submit([task("slow", delay=100.0, priority=9), task("now")])
    assert harness.held_names("w") == ["now"]


def test_a_delayed_array_becomes_ready_whole_with_one_timer() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 64)
    harness.submit([array("a", 50, delay=3.0)])
    assert len(harness.scheduler.state.timers) == 1
    harness.advance(3.0)
    assert len(harness.held_names("w")) == 50


def test_the_core_says_when_it_wants_to_be_called() -> None:
    harness = SchedulerHarness()
    harness.submit([task("a", delay=7.0), task("b", delay=3.0)])
    assert harness.scheduler.next_deadline() == harness.clock.now + 3.0
    harness.advance(3.0)
    assert harness.scheduler.next_deadline() == harness.clock.now + 4.0


def test_a_clock_that_runs_backwards_does_not() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    harness.submit([task("a", delay=5.0)])
    harness.advance(4.0)
    harness.scheduler.advance(0.0, 0.0)
    assert harness.scheduler.state.now == harness.clock.now
    harness.advance(1.0)
    assert harness.held_names("w") == ["a"]


def test_a_cancelled_delay_leaves_no_timer() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a", delay=60.0), array("b", 5, delay=60.0)])
    harness.cancel(run)
    assert harness.run_state(run) == "CANCELLED"
    harness.advance(120.0)
    assert len(harness.scheduler.state.timers) == 0, "it never was at a worker, so there are no working copies either"


def test_a_retried_task_waits_its_own_delay_not_what_is_left_of_the_old_one() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 4)
    run = harness.submit([task("a", delay=10.0)])
    harness.advance(9.0)
    harness.cancel(run)
    harness.retry(run)
    harness.advance(9.9)
    assert not harness.held_names("w")
    harness.advance(0.2)
    assert harness.held_names("w") == ["a"]


def test_a_retried_member_waits_its_own_delay_and_its_siblings_theirs() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 8)
    run = harness.submit([array("a", 4, delay=10.0)])
    harness.advance(6.0)
    for member in (0, 2):
        harness.cancel(run, "a", member)
        harness.retry(run, "a", member)
    harness.advance(4.1)
    assert harness.held_names("w") == ["a[1]", "a[3]"]
    harness.advance(6.0)
    assert sorted(harness.held_names("w")) == ["a[0]", "a[1]", "a[2]", "a[3]"]


def test_a_retried_backoff_does_not_wake_early() -> None:
    """The backoff of generation 0 must not end the delay of generation 1."""
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", delay=30.0, retry=Retry(max=1, backoff=20.0))])
    harness.advance(30.0)
    harness.end("w", harness.start("w"), code=1)
    harness.cancel(run)
    harness.retry(run)
    harness.advance(29.0)
    assert not harness.held_names("w")
    harness.advance(1.1)
    assert harness.held_names("w") == ["a"]
