"""Cancel: what has not started ends now, what runs ends when its worker says so, and nothing starts afterwards."""

from __future__ import annotations

import pytest

from titan_fast.errors import NoSuchRun, NoSuchTask, NothingToDo
from titan_fast.ids import Ending
from titan_fast.model.spec import Affinity, Retry
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.testing.harness import SchedulerHarness, array, task


def running() -> tuple[SchedulerHarness, int]:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), task("b", "a"), task("side")])
    harness.start("w")
    return harness, run


def test_a_run_that_waits_is_cancelled_at_once() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a"), task("b", "a"), array("c", 10), task("d", delay=9.0)])
    harness.cancel(run)
    assert set(harness.states(run).values()) == {"CANCELLED"}
    assert harness.run_state(run) == "CANCELLED"
    harness.worker("w", 8)
    harness.advance(20.0)
    assert not harness.held_names("w")


def test_a_task_that_runs_is_cancelling_until_its_worker_confirms() -> None:
    harness, run = running()
    harness.cancel(run)
    assert harness.inner_state(run, "a") is TaskState.CANCELLING
    assert harness.state(run, "a") == "RUNNING", "shown as running until it is verified gone"
    assert harness.run_state(run) == "RUNNING"
    harness.advance(60.0)
    assert harness.inner_state(run, "a") is TaskState.CANCELLING
    harness.obey("w")
    assert set(harness.states(run).values()) == {"CANCELLED"}
    assert harness.run_state(run) == "CANCELLED"


def test_a_task_that_is_assigned_is_ended_at_its_worker_too() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    harness.cancel(run)
    assert harness.inner_state(run, "a") is TaskState.CANCELLING
    harness.obey("w")  # it had not started: dropped
    assert harness.state(run, "a") == "CANCELLED"


@pytest.mark.parametrize("ending", list(Ending))
def test_however_a_cancelled_attempt_ends_its_task_is_cancelled(ending: Ending) -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=9))])
    held = harness.start("w")
    harness.cancel(run)
    harness.end("w", held, ending, code=0)
    harness.advance(100.0)
    assert harness.state(run, "a") == "CANCELLED"
    assert not harness.held_names("w")


def test_each_kill_names_its_attempt_and_nothing_else() -> None:
    harness, run = running()
    fence = next(iter(harness.workers["w"].held))
    harness.commands.clear()
    harness.cancel(run, "a")
    assert [c for c in harness.commands if isinstance(c, cmd.Kill)] == [cmd.Kill("w", run, 0, fence)]


def test_cancelling_a_task_takes_its_children_along_and_leaves_the_rest() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([task("a"), task("b", "a"), task("c", "b", when="always"), task("side")])
    harness.start("w")
    harness.cancel(run, "a")
    harness.obey("w")
    harness.finish("w")
    assert harness.states(run) == {"a": "CANCELLED", "b": "CANCELLED", "c": "CANCELLED", "side": "COMPLETED"}
    assert harness.scheduler.state.runs[run].reason_of(1) == "upstream_cancelled"
    assert harness.run_state(run) == "CANCELLED"


def test_cancelling_a_task_that_waits_for_a_parent_leaves_the_parent() -> None:
    harness, run = running()
    harness.cancel(run, "b")
    assert harness.state(run, "b") == "CANCELLED"
    harness.run_to_end()
    assert harness.state(run, "a") == "COMPLETED"


def test_one_member_can_be_cancelled() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([array("a", 6), task("sum", "a")])
    harness.start("w")
    harness.cancel(run, "a", 4)
    harness.cancel(run, "a", 0)
    harness.obey("w")
    harness.run_to_end()
    states = harness.states(run)
    assert [states[f"a[{n}]"] for n in range(6)] == ["CANCELLED", *["COMPLETED"] * 3, "CANCELLED", "COMPLETED"]
    assert states["sum"] == "CANCELLED"


def test_a_task_in_backoff_is_cancelled_at_once() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=3))])
    harness.end("w", harness.start("w"), code=1)
    harness.cancel(run)
    assert harness.run_state(run) == "CANCELLED"
    harness.advance(100.0)
    assert not harness.held_names("w")


def test_a_task_that_waits_for_its_worker_is_cancelled_at_once() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), array("b", 3, "a", affinity=Affinity("parent", wait=50.0))])
    harness.finish("w")
    assert harness.inner_state(run, "b[2]") is TaskState.PINNED
    harness.cancel(run)
    harness.obey("w")
    assert harness.run_state(run) == "CANCELLED"
    harness.advance(60.0)
    assert not harness.held_names("w")


def test_losing_the_worker_finishes_a_cancel_unverified() -> None:
    harness, run = running()
    harness.cancel(run)
    harness.vanish("w")
    assert harness.state(run, "a") == "CANCELLED"
    assert harness.scheduler.state.runs[run].reason_of(0) == "unverified"
    assert harness.scheduler.state.runs[run].crashes == {}


def test_a_recall_that_crosses_a_cancel_does_not_bring_the_task_back() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    held = list(harness.workers["w"].held.values())
    harness.cancel(run)
    harness.end("w", held, Ending.RECALLED)
    assert harness.state(run, "a") == "CANCELLED"


def test_a_worker_that_attaches_with_what_was_cancelled_is_told_to_end_it() -> None:
    harness, run = running()
    harness.cut("w")
    harness.cancel(run)
    verdict = harness.attach("w")
    assert len(verdict.kill) == 1 and not verdict.keep
    assert harness.run_state(run) == "CANCELLED"


def test_what_is_finished_cannot_be_cancelled() -> None:
    harness, run = running()
    harness.run_to_end()
    for task_name in (None, "a"):
        with pytest.raises(NothingToDo):
            harness.cancel(run, task_name)
    assert harness.run_state(run) == "COMPLETED"


def test_what_is_not_there_cannot_be_cancelled() -> None:
    harness, run = running()
    with pytest.raises(NoSuchRun):
        harness.cancel(99)
    with pytest.raises(NoSuchTask):
        harness.cancel(run, "nobody")
    with pytest.raises(NoSuchTask):
        harness.cancel(run, "a", 0)


def test_cancelling_twice_says_the_kill_again() -> None:
    harness, run = running()
    harness.cancel(run)
    harness.workers["w"].asked.clear()  # the first one was lost on the way
    harness.cancel(run)
    harness.obey("w")
    assert harness.run_state(run) == "CANCELLED"


def test_only_what_waits_can_be_cancelled_and_the_rest_goes_on() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([array("a", 40), task("late", delay=9.0), task("side")])
    held = harness.held_names("w")
    assert 2 <= len(held) < 42
    harness.commands.clear()
    harness.cancel(run, only_waiting=True)
    assert not [c for c in harness.commands if isinstance(c, cmd.Kill)]
    states = harness.states(run)
    assert {name for name, state in states.items() if state != "CANCELLED"} == set(held)
    harness.run_to_end()
    assert {name for name, state in harness.states(run).items() if state == "COMPLETED"} == set(held)
    assert harness.run_state(run) == "CANCELLED"


def test_what_goes_on_is_not_cancelled_by_a_restart() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), task("side")])
    harness.start("w")
    harness.cancel(run, only_waiting=True)
    harness.restart()
    harness.attach("w")
    harness.run_to_end()
    assert sorted(harness.states(run).values()) == ["CANCELLED", "COMPLETED"]


def test_in_a_run_that_is_held_nothing_is_known_to_wait() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), task("side")])
    harness.start("w")
    harness.restart()
    harness.cancel(run, only_waiting=True)
    harness.attach("w")
    harness.run_to_end()
    assert set(harness.states(run).values()) == {"COMPLETED"}
