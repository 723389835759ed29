"""Workers come, fall silent, come back, drain, leave and get lost; no task is lost or run twice because of it."""

from __future__ import annotations

import pytest

from titan_fast.errors import Stopping
from titan_fast.ids import Ending
from titan_fast.model.spec import Retry
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import Ended, SchedulerHarness, array, task


def check_lost_worker(tuning: Tuning | None = None) -> None:
    """What a lost worker held, started or not, runs elsewhere, and the run completes."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w1", 4)
    run = harness.submit([array("a", 6), task("end", "a")])
    harness.workers["w1"].slots = 2
    harness.start("w1")
    harness.vanish("w1")
    harness.worker("w2", 4)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED", harness.states(run)


def test_what_a_lost_worker_held_runs_elsewhere() -> None:
    check_lost_worker()


def test_only_what_can_have_been_running_counts_as_a_crash() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 2)
    run = harness.submit([array("a", 30)])
    harness.finish("w1", duration=0.001)
    assert len(harness.held_names("w1")) > 10, "the rest is prefetched"
    harness.vanish("w1")
    assert sum(harness.scheduler.state.runs[run].crashes.values()) == 2


def test_a_task_that_keeps_losing_workers_is_dead() -> None:
    harness = SchedulerHarness(Tuning(crash_limit=5))
    run = harness.submit([task("killer"), task("after", "killer")])
    for number in range(5):
        assert harness.state(run, "killer") == "PENDING"
        harness.worker(f"w{number}")
        harness.start(f"w{number}")
        harness.vanish(f"w{number}")
    assert harness.states(run) == {"killer": "DEAD", "after": "SKIPPED"}
    assert harness.run_state(run) == "FAILED"
    harness.retry(run)
    harness.worker("w")
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED", "a retry begins with a clean record"


def test_after_the_second_crash_a_task_has_a_worker_to_itself() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("killer", priority=9)])
    for name in ("w1", "w2"):
        harness.worker(name, 1)
        harness.start(name)
        harness.vanish(name)
    assert harness.inner_state(run, "killer") is TaskState.PINNED
    harness.submit([array("other", 20)])
    harness.worker("w3", 4)
    assert len(harness.held_names("w3")) == 1 and harness.held_names("w3") == ["killer"]
    harness.advance(5.0)
    assert harness.held_names("w3") == ["killer"], "nothing beside it"
    harness.finish("w3")
    assert harness.state(run, "killer") == "COMPLETED"
    assert len(harness.held_names("w3")) == 4


def test_a_task_that_must_be_alone_is_alone_after_a_backoff_too() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("killer", retry=Retry(max=3, backoff=1.0))])
    for name in ("w1", "w2"):
        harness.worker(name)
        harness.start(name)
        harness.vanish(name)
    harness.worker("w3", 4)
    harness.end("w3", harness.start("w3"), code=1)
    harness.advance(1.1)
    assert harness.held_names("w3") == ["killer"]
    harness.submit([array("other", 9)])
    assert harness.held_names("w3") == ["killer"], "nothing beside it"
    harness.finish("w3")
    assert harness.state(run, "killer") == "COMPLETED"


def test_alone_waits_until_its_worker_is_empty_and_holds_new_work_back() -> None:
    """The only worker that may have it is busy with long tasks: they end, none follows, then it runs alone."""
    harness = SchedulerHarness()
    run = harness.submit([task("killer", requires=("GPU",))])
    harness.worker("first", 1, ["GPU"])
    harness.start("first")
    harness.vanish("first")
    harness.worker("second", 1, ["GPU"])
    harness.worker("busy", 2, ["GPU", "DISK"])
    harness.submit([array("long", 5, requires=("DISK",))])
    harness.start("second")
    harness.vanish("second")
    assert harness.scheduler.state.runs[run].crashes == {0: 2}
    assert harness.held_names("busy") == ["long[0]", "long[1]"]
    harness.finish("busy", only="long[0]")
    assert harness.held_names("busy") == ["long[1]"], "nothing new before it"
    harness.finish("busy")
    assert harness.held_names("busy") == ["killer"]
    harness.finish("busy")
    assert harness.held_names("busy")[:2] == ["long[2]", "long[3]"]


def test_a_goodbye_counts_no_crash() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 2)
    run = harness.submit([array("a", 2)])
    harness.start("w1")
    harness.workers["w1"].held.clear()
    harness.do(ev.WorkerLeft("w1"))
    assert not harness.scheduler.state.runs[run].crashes
    harness.worker("w2", 2)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


# ---------------------------------------------------------------- attach


def test_an_attach_with_all_it_held_keeps_all() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([array("a", 2)])
    harness.start("w")
    harness.cut("w")
    verdict = harness.attach("w")
    assert len(verdict.keep) == 2 and not verdict.kill
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"
    assert len([fact for fact in harness.facts if isinstance(fact, facts.WorkerRegistered)]) == 1


def check_absent(tuning: Tuning | None = None) -> None:
    """An assignment that never arrived is given out again and counts nothing."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w", 2)
    run = harness.submit([array("a", 2)])
    harness.workers["w"].held.popitem()
    harness.cut("w")
    verdict = harness.attach("w")
    assert len(verdict.keep) == 1 and not verdict.kill
    assert not harness.scheduler.state.runs[run].crashes
    assert not harness.scheduler.state.runs[run].failures
    assert len(harness.held_names("w")) == 2
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def test_an_assignment_that_never_arrived_is_given_out_again_and_counts_nothing() -> None:
    check_absent()


def test_a_new_incarnation_has_lost_what_the_old_one_held() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a")])
    harness.start("w")
    harness.worker("w", 1)
    assert harness.scheduler.state.runs[run].crashes == {0: 1}
    assert harness.workers["w"].to_start()[0].attempt == 2
    registered = [fact.nonce for fact in harness.facts if isinstance(fact, facts.WorkerRegistered)]
    assert len(set(registered)) == 2
    assert not [fact for fact in harness.facts if isinstance(fact, facts.WorkerGone)], "the worker itself is here"


def test_a_new_incarnation_keeps_what_it_adopted() -> None:
    """Its agent died; of two children that ran, the next agent found one."""
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([task("stays"), task("goes")])
    stays, goes = harness.start("w")
    del harness.workers["w"].held[goes.fence]
    verdict = harness.reincarnate("w")
    assert verdict.keep == (stays.fence,)
    assert harness.state(run, "stays") == "RUNNING"
    assert harness.scheduler.state.runs[run].crashes == {1: 1}
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"
    assert 0 not in harness.scheduler.state.runs[run].attempts, "its first attempt was enough"


def test_what_is_adopted_in_a_row_is_one_lot() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 50)
    run = harness.submit([array("a", 50)])
    harness.start("w")
    harness.restart()
    harness.attach("w")
    (lot,) = harness.scheduler.state.workers["w"].lots
    assert lot.count == lot.open == 50
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def test_what_is_adopted_side_by_side_and_is_not_a_row_is_lots_of_its_own() -> None:
    """Members that were given out again have fences in a row, and places that are not."""
    harness = SchedulerHarness()
    harness.worker("w", 4)
    run = harness.submit([array("a", 4)])
    held = harness.start("w")
    harness.end("w", [held[0], held[2]], Ending.KILLED)
    assert [item.index for item in harness.start("w")] == [0, 2]
    harness.restart()
    harness.attach("w")
    assert sorted((lot.first, lot.count) for lot in harness.scheduler.state.workers["w"].lots) == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def check_old_nonce(tuning: Tuning | None = None) -> None:
    """What never reached the new incarnation of a worker was not lost by it."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    harness.worker("w", 1)
    harness.worker("w", 1)
    run = harness.submit([task("a")])
    harness.workers["w"].held.clear()
    harness.cut("w")
    harness.attach("w")
    assert not harness.scheduler.state.runs[run].crashes
    assert harness.held_names("w") == ["a"]


def test_a_new_incarnation_is_known_by_its_own_nonce() -> None:
    check_old_nonce()


def test_a_worker_is_called_lost_once() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.vanish("w")
    harness.worker("w", 1)
    assert len([fact for fact in harness.facts if isinstance(fact, facts.WorkerGone)]) == 1


def test_what_a_worker_holds_of_others_is_killed() -> None:
    """It was silent for too long, its tasks run elsewhere; now it is back with all of them."""
    harness = SchedulerHarness()
    harness.worker("w1", 2)
    run = harness.submit([array("a", 2)])
    harness.start("w1")
    harness.do(ev.WorkerSuspected("w1"), ev.WorkerLost("w1"))
    harness.worker("w2", 2)
    harness.start("w2")
    verdict = harness.attach("w1")
    assert len(verdict.kill) == 2 and not verdict.keep
    assert not harness.workers["w1"].held
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_results_from_the_time_it_was_cut_off_are_taken_after_the_attach() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a"), task("b", "a")])
    (held,) = harness.start("w")
    harness.cut("w")
    del harness.workers["w"].held[held.fence]
    harness.workers["w"].unsent.append(Ended(held))
    harness.attach("w")
    assert harness.state(run, "a") == "COMPLETED"
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_start_nobody_told_of_is_learned_from_the_inventory() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a")])
    harness.cut("w")
    harness.workers["w"].to_start()[0].started = True
    harness.attach("w")
    assert harness.state(run, "a") == "RUNNING"


# ---------------------------------------------------------------- draining and stopping


def test_a_draining_worker_finishes_what_it_runs_and_gets_nothing_new() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([array("a", 3)])
    harness.start("w")
    harness.do(ev.WorkerDraining("w"))
    harness.finish("w")
    assert harness.states(run) == {"a[0]": "COMPLETED", "a[1]": "PENDING", "a[2]": "PENDING"}
    assert not harness.held_names("w")
    harness.do(ev.WorkerLeft("w"))
    harness.worker("w2", 2)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


@pytest.mark.parametrize("back", ["recovered", "attached"])
def test_a_draining_worker_that_fell_silent_goes_on_draining(back: str) -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.do(ev.WorkerDraining("w"))
    harness.do(ev.WorkerSuspected("w"))
    if back == "recovered":
        harness.do(ev.WorkerRecovered("w"))
    else:
        harness.attach("w")
    harness.submit([task("a")])
    assert harness.scheduler.state.workers["w"].state == "DRAINING"
    assert not harness.held_names("w")


def test_a_silent_worker_that_wants_to_go_stays_suspect_until_it_is_heard() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.do(ev.WorkerSuspected("w"), ev.WorkerDraining("w"))
    assert harness.scheduler.state.workers["w"].state == "SUSPECT"
    harness.do(ev.WorkerRecovered("w"))
    assert harness.scheduler.state.workers["w"].state == "DRAINING"


def test_after_a_stop_nothing_is_placed_and_results_still_count() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a"), task("b", "a")])
    harness.start("w")
    harness.do(ev.StopRequested())
    harness.finish("w")
    assert harness.states(run) == {"a": "COMPLETED", "b": "PENDING"}
    assert not harness.held_names("w")
    with pytest.raises(Stopping):
        harness.attach("w")


# ---------------------------------------------------------------- what came late, twice, or from a stranger


def test_a_late_result_of_a_lost_worker_changes_nothing() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a"), task("b", "a")])
    late = harness.start("w1")
    harness.do(ev.WorkerSuspected("w1"), ev.WorkerLost("w1"))
    harness.worker("w2", 1)
    harness.end("w1", late)
    assert harness.states(run) == {"a": "PENDING", "b": "PENDING"}
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_result_that_comes_twice_counts_once() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([array("a", 4)])
    held = harness.start("w")
    harness.end("w", held)
    harness.end("w", held, code=1)
    harness.end("w", held)
    assert list(harness.states(run).values()).count("COMPLETED") == 2
    ended = [fence for fact in harness.facts if isinstance(fact, facts.AttemptsEnded) for fence in fact.fence]
    assert len(ended) == len(set(ended)) == 2


@pytest.mark.parametrize("wrong", ["fence", "run", "index", "worker"])
def test_a_result_that_fits_no_open_attempt_changes_nothing(wrong: str) -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.worker("other", 1, ["X"])
    run = harness.submit([array("a", 3)])
    (held,) = harness.start("w")
    event = ev.AttemptsFinished(
        "other" if wrong == "worker" else "w",
        [held.run + 1 if wrong == "run" else held.run],
        [held.index + 1 if wrong == "index" else held.index],
        [0],
        [0],
        [held.fence + 1000 if wrong == "fence" else held.fence],
        [0],
        [0],
        [0],
        [b""],
    )
    before = harness.states(run)
    harness.do(event)
    assert harness.states(run) == before


def test_a_start_told_after_the_end_changes_nothing() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a")])
    (held,) = list(harness.workers["w"].held.values())
    harness.end("w", [held])
    harness.do(ev.AttemptsStarted("w", [run], [0], [0], [held.fence], [1], [1]))
    assert harness.run_state(run) == "COMPLETED"
    assert harness.scheduler.state.workers["w"].running == 0


def test_events_about_workers_nobody_knows_change_nothing() -> None:
    harness = SchedulerHarness()
    for event in (ev.WorkerSuspected, ev.WorkerRecovered, ev.WorkerLost, ev.WorkerDraining, ev.WorkerLeft):
        harness.do(event("nobody"))
    harness.do(ev.AttemptsStarted("nobody", [1], [0], [0], [1], [1], [1]))
    assert not harness.facts


def test_a_worker_that_is_gone_is_listed_for_an_hour() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.vanish("w")
    harness.advance(3599.0)
    assert "w" in harness.scheduler.state.workers
    harness.advance(2.0)
    assert "w" not in harness.scheduler.state.workers


def test_the_hour_of_an_old_incarnation_does_not_end_the_new_one() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.vanish("w")
    harness.advance(1800.0)
    harness.worker("w", 1)
    harness.advance(3601.0)
    assert harness.scheduler.state.workers["w"].state == "READY"
