"""`retry` opens the next generation of what went wrong and of what was skipped because of it; what succeeded stays."""

from __future__ import annotations

import pytest

from titan_fast.errors import NoSuchRun, NoSuchTask, NothingToDo, Stopping
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts
from titan_fast.testing.harness import SchedulerHarness, array, task


def after(*tasks, failing: tuple[str, ...], slots: int = 8) -> tuple[SchedulerHarness, int]:
    """A run that ended, with these tasks failing."""
    harness = SchedulerHarness()
    harness.worker("w", slots)
    run = harness.submit(tasks)
    while harness.run_state(run) in ("PENDING", "RUNNING"):
        held = harness.start("w")
        harness.end("w", [item for item in held if item.name in failing], code=1)
        harness.end("w", [item for item in held if item.name not in failing])
    return harness, run


def test_a_failed_task_and_what_it_held_up_run_again() -> None:
    harness, run = after(task("a"), task("b", "a"), task("c", "b"), task("d", "c"), failing=("b",))
    assert harness.run_state(run) == "FAILED"
    harness.retry(run)
    assert harness.run_state(run) == "RUNNING"
    assert harness.held_names("w") == ["b"]
    harness.run_to_end()
    assert set(harness.states(run).values()) == {"COMPLETED"}
    assert harness.run_state(run) == "COMPLETED"
    generations = harness.scheduler.state.runs[run].generation
    assert generations == {1: 1, 2: 1, 3: 1}, "what had succeeded stays in its generation"


def test_a_retried_task_has_all_its_retries_again() -> None:
    harness, run = after(task("a"), failing=("a",))
    for generation in (1, 2, 3):
        harness.retry(run, "a")
        assert harness.scheduler.state.runs[run].generation[0] == generation
        harness.end("w", harness.start("w"), code=1)
        assert harness.run_state(run) == "FAILED"
    reopened = [fact for fact in harness.facts if isinstance(fact, facts.TasksReopened)]
    assert len(reopened) == 3


def test_one_task_can_be_retried_alone() -> None:
    harness, run = after(task("a"), task("b"), task("after_a", "a"), failing=("a", "b"))
    harness.retry(run, "a")
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "b": "FAILED", "after_a": "COMPLETED"}
    assert harness.run_state(run) == "FAILED"


def test_one_member_can_be_retried_and_the_children_wait_for_it() -> None:
    harness, run = after(array("part", 6), task("sum", "part"), failing=("part[1]", "part[4]"))
    harness.retry(run, "part", 4)
    assert harness.held_names("w") == ["part[4]"]
    harness.run_to_end()
    states = harness.states(run)
    assert (states["part[1]"], states["part[4]"], states["sum"]) == ("FAILED", "COMPLETED", "SKIPPED")
    harness.retry(run, "part")
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_retried_task_may_fail_again_and_its_children_are_skipped_again() -> None:
    harness, run = after(task("a"), task("b", "a"), failing=("a",))
    harness.retry(run)
    harness.end("w", harness.start("w"), code=1)
    assert harness.states(run) == {"a": "FAILED", "b": "SKIPPED"}


def test_a_child_that_still_waits_for_another_parent_waits_for_this_one_again() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([task("a"), task("slow"), task("both", "a", "slow", when="always")])
    held = {item.name: item for item in harness.start("w")}
    harness.end("w", [held["a"]], code=1)
    harness.retry(run, "a")
    harness.end("w", [held["slow"]])
    assert harness.state(run, "both") == "PENDING" and "both" not in harness.held_names("w")
    harness.finish("w", only="a")
    assert harness.held_names("w") == ["both"]
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_child_that_runs_because_of_the_failure_goes_on() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([task("a"), task("clean_up", "a", when="failure")])
    harness.end("w", harness.start("w"), code=1)
    harness.start("w")
    harness.retry(run, "a")
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "clean_up": "COMPLETED"}


def test_what_was_skipped_below_a_skipped_task_is_judged_again() -> None:
    """c wants a failure of b. The first time b was skipped; the second time it runs, and fails."""
    harness, run = after(task("a"), task("b", "a"), task("c", "b", when="failure"), failing=("a",))
    assert harness.states(run) == {"a": "FAILED", "b": "SKIPPED", "c": "SKIPPED"}
    harness.retry(run)
    harness.finish("w")
    harness.end("w", harness.start("w"), code=1)
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "b": "FAILED", "c": "COMPLETED"}


def test_a_cancelled_run_can_be_retried() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([task("a"), array("b", 5, "a"), task("c", "b")])
    harness.finish("w")
    harness.start("w")
    harness.cancel(run)
    harness.obey("w")
    assert harness.run_state(run) == "CANCELLED"
    harness.retry(run)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"
    assert harness.scheduler.state.runs[run].generation.get(0, 0) == 0


def test_a_cancelled_run_retried_while_a_task_is_still_being_ended() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), task("b")])
    harness.start("w")
    harness.cancel(run)
    harness.retry(run)
    harness.obey("w")
    harness.run_to_end()
    assert harness.states(run) == {"a": "CANCELLED", "b": "COMPLETED"}
    harness.retry(run)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_late_results_of_the_generation_before_are_fenced_out() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    first = harness.start("w")
    harness.end("w", first, code=1)
    harness.retry(run)
    harness.end("w", first, code=0)
    assert harness.state(run, "a") == "PENDING"
    harness.run_to_end()
    assert harness.scheduler.state.runs[run].generation[0] == 1


def test_what_did_not_go_wrong_cannot_be_retried() -> None:
    harness, run = after(task("good"), task("bad"), failing=("bad",))
    with pytest.raises(NothingToDo):
        harness.retry(run, "good")
    with pytest.raises(NoSuchTask):
        harness.retry(run, "nobody")
    with pytest.raises(NoSuchTask):
        harness.retry(run, "bad", 0)
    with pytest.raises(NoSuchRun):
        harness.retry(77)
    harness.do(ev.StopRequested())
    with pytest.raises(Stopping):
        harness.retry(run)
    assert harness.run_state(run) == "FAILED"


def test_copies_of_a_finished_run_are_kept_for_a_retry_and_then_forgotten() -> None:
    harness, run = after(task("a"), failing=("a",))
    harness.advance(3000.0)
    harness.retry(run)
    harness.advance(1000.0)
    harness.run_to_end()
    assert not [c for c in harness.commands if type(c).__name__ == "ForgetRun"], "the first end does not count"
    harness.advance(3601.0)
    forgotten = [c for c in harness.commands if type(c).__name__ == "ForgetRun"]
    assert [(c.run, c.workers) for c in forgotten] == [(run, ("w",))]
