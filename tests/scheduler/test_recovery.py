"""A master is killed; the next one goes on from what was committed: nothing finished runs again, nothing that still
runs somewhere is started twice, and nothing that waited waits longer than it must."""

from __future__ import annotations

import pytest

from titan_fast.errors import NoSuchRun
from titan_fast.ids import Ending, make_fence
from titan_fast.model.spec import Affinity, Retry
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import facts
from titan_fast.scheduler.explain import explain_task
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import Held, SchedulerHarness, array, chain, task


def with_workers(*names: str, slots: int = 1, tuning: Tuning | None = None, check: bool = True) -> SchedulerHarness:
    harness = SchedulerHarness(tuning, check=check)
    for name in names:
        harness.worker(name, slots)
    return harness


def fences(held: list[Held]) -> tuple[int, ...]:
    return tuple(item.fence for item in held)


# ---------------------------------------------------------------- what is there again


def test_what_waited_runs_after_the_restart() -> None:
    harness = SchedulerHarness()
    run = harness.submit([*chain("a", "b"), array("c", 3, "b"), task("gpu", requires=("GPU",))])
    harness.restart()
    harness.worker("w", 2, ["GPU"])
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"
    assert harness.scheduler.state.next_run == run + 1


def test_finished_parents_stay_finished_and_their_children_run() -> None:
    harness = with_workers("w")
    run = harness.submit([*chain("a", "b"), task("failed"), task("after", "failed")])
    harness.finish("w", only="a")
    harness.end("w", harness.start("w"), code=3)
    before = harness.states(run)
    harness.restart()
    assert harness.states(run) == before
    assert before == {"a": "COMPLETED", "b": "PENDING", "failed": "FAILED", "after": "SKIPPED"}
    harness.attach("w")
    harness.run_to_end()
    assert harness.states(run) == before | {"b": "COMPLETED"}
    attempts = [row for fact in harness.facts if isinstance(fact, facts.AttemptsEnded) for row in fact.index]
    assert sorted(attempts) == sorted(set(attempts)), "nothing ran twice"


def test_a_finished_array_is_a_line_and_only_the_rest_runs() -> None:
    harness = with_workers("w", slots=50)
    run = harness.submit([array("a", 100), task("sum", "a")])
    harness.finish("w")
    heads = [facts.head_of(fact) for fact in harness.facts if isinstance(fact, facts.AttemptsEnded)]
    assert [(head.clean, head.rest) for head in heads] == [(((0, 50, make_fence(1, 1), "w"),), ())]
    harness.workers["w"].held.clear()
    harness.restart()
    harness.attach("w")
    assert sorted(held.index for held in harness.workers["w"].held.values()) == list(range(50, 100))
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_what_ended_for_other_reasons_is_as_it_was() -> None:
    harness = SchedulerHarness(Tuning(crash_limit=1))
    harness.worker("w", 4)
    run = harness.submit(
        [
            task("dead"),
            task("below", "dead"),
            task("unwanted", when="failure"),
            task("stopped"),
            task("under", "stopped"),
        ]
    )
    harness.start("w")
    harness.cancel(run, "stopped")
    harness.obey("w")
    harness.vanish("w")
    harness.drop(run, "dead")
    before = harness.states(run)
    assert before == {
        "dead": "DEAD",
        "below": "SKIPPED",
        "unwanted": "SKIPPED",
        "stopped": "CANCELLED",
        "under": "CANCELLED",
    }
    reasons = [harness.scheduler.state.runs[run].reason_of(index) for index in range(5)]
    harness.restart()
    with pytest.raises(KeyError):
        harness.run_state(run)  # it is finished, so it is the store's
    harness.recall(run)
    assert harness.states(run) == before
    recalled = harness.scheduler.state.runs[run]
    assert [recalled.reason_of(index) for index in range(5)] == reasons
    assert recalled.dropped == {0}
    harness.check_replay()


def test_what_nobody_was_told_of_is_forgotten_whole() -> None:
    """The submit was not committed. Its tasks may have started; the next run has its number and not its attempts."""
    harness = with_workers("w", slots=3)
    harness.commits_itself = False
    assert harness.submit([task("ghost"), task("second")]) == 0, "no answer before the commit"
    harness.start("w")
    harness.restart()
    harness.commits_itself = True
    with pytest.raises(NoSuchRun):
        harness.cancel(1)
    run = harness.submit([task("a")])
    assert run == 1
    verdict = harness.attach("w")
    assert len(verdict.kill) == 2 and not verdict.keep
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED"}


def test_fences_only_grow_over_a_restart() -> None:
    harness = with_workers("w")
    run = harness.submit([*chain("a", "b")])
    harness.finish("w")
    old = max(harness.workers["w"].held)
    harness.workers["w"].held.clear()
    harness.restart()
    harness.attach("w")
    assert min(harness.workers["w"].held) > old
    assert harness.scheduler.state.runs[run].floor < old


# ---------------------------------------------------------------- what still runs


def check_adopted(tuning: Tuning | None = None) -> None:
    """A running task is adopted with its fence, whoever attaches first, and not started again."""
    harness = with_workers("w1", "w2", tuning=tuning, check=tuning is None)
    run = harness.submit([task("a")])
    (held,) = harness.start("w1")
    harness.restart()
    harness.attach("w2")
    assert not harness.held_names("w2"), "w1 may come back with it"
    verdict = harness.attach("w1")
    assert verdict.keep == (held.fence,)
    assert harness.state(run, "a") == "RUNNING"
    assert not harness.held_names("w2")
    harness.finish("w1")
    assert harness.run_state(run) == "COMPLETED"


def test_a_running_task_is_adopted_and_not_started_again() -> None:
    check_adopted()


def test_a_result_that_was_not_acknowledged_is_told_again_and_counts() -> None:
    harness = with_workers("w")
    run = harness.submit(chain("a", "b"))
    harness.commits_itself = False
    harness.end("w", harness.start("w"), result=b"42")
    harness.restart()
    harness.commits_itself = True
    assert harness.state(run, "a") == "PENDING"
    harness.attach("w")
    assert harness.state(run, "a") == "COMPLETED"
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_result_that_another_task_asks_for_is_in_memory_when_it_comes_after_the_restart() -> None:
    harness = with_workers("w")
    run = harness.submit([task("only")])
    held = harness.start("w")
    harness.restart()
    harness.attach("w")
    harness.end("w", held, result=b"42")
    assert harness.scheduler.state.runs[run].results == {0: b"42"}


def test_a_task_that_had_not_started_is_adopted_too() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a")])
    fence = next(iter(harness.workers["w"].held))
    harness.restart()
    assert harness.attach("w").keep == (fence,)
    assert harness.inner_state(run, "a") is TaskState.ASSIGNED
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


def test_an_agent_that_was_killed_with_the_master_brings_its_children_along() -> None:
    harness = with_workers("w", slots=2)
    run = harness.submit([task("a"), task("b")])
    held = harness.start("w")
    harness.restart()
    assert harness.reincarnate("w").keep == fences(held)
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"
    assert not harness.scheduler.state.runs[run].crashes


def test_the_working_copies_of_before_are_forgotten_in_the_end() -> None:
    harness = with_workers("w1")
    run = harness.submit([task("a"), task("b", "a", delay=5.0)])
    harness.finish("w1")
    harness.restart()
    harness.attach("w1")
    harness.lose("w1")
    harness.worker("w2")
    harness.run_to_end()
    harness.advance(3601.0)
    assert [c.workers for c in harness.commands if isinstance(c, cmd.ForgetRun)] == [("w1", "w2")]
    assert harness.run_state(run) == "COMPLETED"


# ---------------------------------------------------------------- the hold


def test_the_hold_ends_early_when_everybody_is_back() -> None:
    harness = with_workers("w1", "w2")
    run = harness.submit([array("a", 4)])
    harness.finish("w2")
    harness.workers["w1"].held.clear()  # it never arrived
    harness.restart(grace=10.0)
    harness.attach("w1")
    assert not harness.held_names("w1")
    harness.attach("w2")
    assert len(harness.held_names("w1")) == 1, "at once, not after ten seconds"
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_worker_that_is_lost_is_not_waited_for() -> None:
    harness = with_workers("w1", "w2")
    run = harness.submit([task("a")])
    harness.restart(grace=100.0)
    harness.attach("w2")
    harness.lose("w1")
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_without_workers_there_is_no_hold() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a")])
    harness.restart()
    assert harness.inner_state(run, "a") is TaskState.READY


def test_what_is_submitted_meanwhile_runs_at_once() -> None:
    harness = with_workers("w1", "w2")
    old = harness.submit([task("old")])
    harness.start("w1")
    harness.restart(grace=10.0)
    harness.attach("w2")
    new = harness.submit([task("new")])
    harness.finish("w2")
    assert harness.run_state(new) == "COMPLETED"
    assert harness.state(old, "old") == "PENDING"
    assert explain_task(harness.scheduler.state, harness.scheduler.state.runs[old], 0).reason == "recovery"


def test_nothing_of_a_held_run_is_given_out_even_if_it_comes_back_from_a_worker() -> None:
    """w1 fails its attempt while w2, which is not back yet, has a later one of the same task."""
    harness = with_workers("w1")
    run = harness.submit([task("a", retry=Retry(max=3, backoff=1.0))])
    (early,) = harness.start("w1")
    harness.worker("w2")
    harness.commits_itself = False
    harness.lose("w1")  # which lives; the task is given to w2
    (late,) = harness.start("w2")
    harness.restart(grace=10.0)
    harness.commits_itself = True
    harness.attach("w1")
    harness.end("w1", [early], code=1)
    harness.advance(5.0)
    assert harness.state(run, "a") == "PENDING" and not harness.held_names("w1")
    assert harness.attach("w2").keep == (late.fence,)
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_a_worker_that_never_returns_has_taken_what_was_seen_running() -> None:
    harness = with_workers("w1", "w2", slots=2)
    run = harness.submit([task("a"), task("b"), task("c"), task("d")])
    harness.start("w1")
    harness.advance(1.5)  # long enough to be written down
    lost = {held.index for held in harness.workers["w1"].held.values()}
    harness.start("w2")  # not long enough
    harness.restart(grace=10.0)
    harness.worker("w3", 4)
    harness.advance(9.0)
    assert not harness.held_names("w3")
    harness.advance(2.0)
    assert {held.index for held in harness.workers["w3"].held.values()} == {0, 1, 2, 3} - lost
    assert not harness.scheduler.state.runs[run].crashes
    harness.lose("w1")
    assert harness.scheduler.state.runs[run].crashes == dict.fromkeys(lost, 1)
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_an_adopted_task_is_written_down_as_running_again() -> None:
    """The master is killed twice, and the worker with it the second time: that is a crash."""
    harness = with_workers("w1")
    run = harness.submit([task("a")])
    harness.start("w1")
    harness.restart()
    harness.attach("w1")
    harness.advance(1.5)
    harness.restart(grace=1.0)
    harness.lose("w1")
    assert harness.scheduler.state.runs[run].crashes == {0: 1}


def check_crashes(tuning: Tuning | None = None) -> None:
    """A task that takes its workers with it is DEAD after as many as allowed, whoever counts them."""
    harness = SchedulerHarness(tuning, check=tuning is None)
    run = harness.submit([task("killer")])
    for number in range(5):
        harness.worker(f"w{number}")
        harness.start(f"w{number}")
        assert harness.state(run, "killer") == "RUNNING", f"after {number} crashes"
        harness.vanish(f"w{number}")
        if number < 4:
            harness.restart()
    assert harness.state(run, "killer") == "DEAD"


def test_crashes_are_counted_over_a_restart() -> None:
    check_crashes()


def test_a_task_that_must_be_alone_is_alone_where_it_is_found() -> None:
    harness = SchedulerHarness()
    harness.submit([task("killer", priority=9)])
    for name in ("w1", "w2"):
        harness.worker(name)
        harness.start(name)
        harness.vanish(name)
    harness.worker("w3", 4)
    harness.start("w3")
    harness.restart()
    harness.attach("w3")
    harness.submit([array("other", 9)])
    assert harness.held_names("w3") == ["killer"]
    harness.finish("w3")
    assert len(harness.held_names("w3")) == 4


def test_a_worker_that_is_emptied_for_a_task_found_elsewhere_works_on() -> None:
    harness = SchedulerHarness()
    harness.submit([task("killer", priority=9)])
    for name in ("w1", "w2"):
        harness.worker(name)
        harness.start(name)
        harness.vanish(name)
    harness.worker("w3")
    harness.start("w3")
    harness.worker("w4", 2)
    harness.submit([array("other", 9)])
    harness.start("w4")
    harness.restart(grace=1.0)
    harness.attach("w4")
    harness.advance(1.1)
    assert harness.scheduler.state.workers["w4"].alone, "it is to run there as soon as nothing else does"
    harness.attach("w3")
    assert harness.held_names("w3") == ["killer"]
    harness.finish("w4", only="other[0]")
    assert harness.held_names("w4")[:2] == ["other[1]", "other[2]"]


# ---------------------------------------------------------------- waits


def test_a_delay_goes_on_with_what_is_left() -> None:
    harness = with_workers("w")
    harness.submit([task("a", delay=10.0)])
    harness.advance(4.0)
    harness.restart()
    harness.attach("w")
    harness.advance(5.9)
    assert not harness.held_names("w")
    harness.advance(0.2)
    assert harness.held_names("w") == ["a"]


@pytest.mark.parametrize(("jump", "left"), [(-1000.0, 10.0), (+1000.0, 0.0), (+3.0, 3.0)])
def test_what_is_left_of_a_wait_is_within_its_length_however_the_wall_clock_jumps(jump: float, left: float) -> None:
    harness = with_workers("w")
    harness.submit([task("a", delay=10.0)])
    harness.advance(4.0)
    harness.clock.ahead = jump
    harness.restart()
    harness.attach("w")
    if left:
        harness.advance(left - 0.1)
        assert not harness.held_names("w")
        harness.advance(0.2)
    assert harness.held_names("w") == ["a"]


def test_a_delay_that_begins_during_the_hold_does_not_begin_again_when_it_ends() -> None:
    harness = with_workers("w1", "w2")
    harness.submit([task("a"), task("b", "a", delay=8.0)])
    held = harness.start("w1")
    harness.restart(grace=6.0)
    harness.attach("w1")
    harness.end("w1", held)
    harness.advance(7.9)
    assert not harness.held_names("w1")
    harness.advance(0.2)
    assert harness.held_names("w1") == ["b"]


def check_backoff(tuning: Tuning | None = None) -> None:
    """A failed task waits out what is left of its backoff."""
    harness = with_workers("w", tuning=tuning, check=tuning is None)
    run = harness.submit([task("a", retry=Retry(max=1, backoff=20.0))])
    harness.end("w", harness.start("w"), code=1)
    harness.advance(5.0)
    harness.restart()
    harness.attach("w")
    harness.advance(4.0)  # half of it is certain, half is chance
    assert not harness.held_names("w")
    assert harness.scheduler.state.runs[run].failures == {0: 1}
    harness.advance(11.1)
    assert harness.held_names("w") == ["a"]
    harness.end("w", harness.start("w"), code=1)
    assert harness.state(run, "a") == "FAILED", "the retry before the restart counts"


def test_a_backoff_goes_on_with_what_is_left() -> None:
    check_backoff()


def test_a_backoff_is_not_cut_short_by_a_parent_that_is_retried_and_ends_meanwhile() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a"), task("b", "a", when="failure", retry=Retry(max=1, backoff=20.0))])
    harness.end("w", harness.start("w"), code=1)
    harness.end("w", harness.start("w"), code=1)
    harness.retry(run, "a")
    harness.restart()
    harness.attach("w")
    harness.end("w", harness.start("w"), code=1)
    harness.advance(9.9)  # half of it is certain, half is chance
    assert not harness.held_names("w")
    harness.advance(10.2)
    assert harness.held_names("w") == ["b"]


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_retried_task_waits_its_delay_again(when: str) -> None:
    harness = with_workers("w")
    run = harness.submit([task("a", delay=10.0), task("b")])
    harness.start("w")
    harness.advance(9.0)
    harness.cancel(run, "a")
    if when == "before":
        harness.retry(run, "a")
    harness.restart(grace=10.0)
    if when == "during":
        harness.retry(run, "a")
    harness.advance(4.0)
    harness.attach("w")
    harness.finish("w")
    harness.advance(5.9)
    assert not harness.held_names("w")
    harness.advance(0.2)
    assert harness.held_names("w") == ["a"]


def test_a_member_retried_during_the_hold_waits_its_own_delay_and_its_siblings_theirs() -> None:
    harness = with_workers("w", slots=4)
    run = harness.submit([array("a", 3, delay=10.0)])
    harness.advance(6.0)
    harness.cancel(run, "a", 1)
    harness.restart(grace=10.0)
    harness.retry(run, "a", 1)
    harness.attach("w")
    harness.advance(4.1)
    assert harness.held_names("w") == ["a[0]", "a[2]"]
    harness.advance(6.0)
    assert sorted(harness.held_names("w")) == ["a[0]", "a[1]", "a[2]"]


def test_the_delay_of_a_retried_child_begins_when_its_parent_has_ended() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a"), task("b", "a", delay=10.0)])
    harness.end("w", harness.start("w"), code=1)
    harness.retry(run)
    harness.advance(8.0)
    harness.finish("w")
    harness.restart()
    harness.attach("w")
    harness.advance(9.9)
    assert not harness.held_names("w")
    harness.advance(0.2)
    assert harness.held_names("w") == ["b"]


# ---------------------------------------------------------------- cancel


def check_cancel(tuning: Tuning | None = None) -> None:
    """What was cancelled and not verified is ended where it runs, and CANCELLED when its worker says so."""
    harness = with_workers("w", tuning=tuning, check=tuning is None)
    run = harness.submit([task("a"), task("b", "a")])
    (held,) = harness.start("w")
    harness.cancel(run)
    harness.restart()
    verdict = harness.attach("w")
    assert verdict.kill == (held.fence,)
    assert harness.states(run) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert not harness.held_names("w")


def test_a_cancel_from_before_is_carried_out() -> None:
    check_cancel()


def test_what_was_cancelled_is_shown_as_being_ended_until_its_worker_confirms() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a")])
    harness.start("w")
    harness.cancel(run)
    harness.restart()
    harness.commits_itself = False
    harness.attach("w")
    assert harness.inner_state(run, "a") is TaskState.CANCELLING
    harness.commit()
    assert harness.run_state(run) == "CANCELLED"


def test_what_was_cancelled_and_nobody_holds_is_cancelled_when_the_hold_is_over() -> None:
    harness = with_workers("w1", "w2", slots=4)
    run = harness.submit([array("a", 6), task("b", "a")])
    harness.start("w1")
    harness.start("w2")
    harness.cancel(run)
    harness.restart(grace=10.0)
    harness.attach("w2")
    assert harness.run_state(run) == "RUNNING"
    harness.advance(10.1)
    assert harness.run_state(run) == "CANCELLED"
    assert set(harness.states(run).values()) == {"CANCELLED"}


def test_a_cancel_during_the_hold_waits_for_whoever_may_hold_it() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a"), task("b")])
    harness.start("w")
    harness.restart(grace=10.0)
    harness.cancel(run)
    assert harness.states(run) == {"a": "PENDING", "b": "PENDING"}
    assert explain_task(harness.scheduler.state, harness.scheduler.state.runs[run], 0).reason == "cancelling"
    harness.attach("w")
    assert harness.states(run) == {"a": "CANCELLED", "b": "CANCELLED"}


def test_what_was_cancelled_during_the_hold_is_not_skipped_when_its_parent_fails_meanwhile() -> None:
    harness = with_workers("w1", "w2")
    run = harness.submit([task("a"), array("b", 4, "a")])
    held = harness.start("w1")
    harness.restart(grace=10.0)
    harness.cancel(run, "b", 1)
    harness.cancel(run, "b", 2)
    harness.attach("w1")
    harness.end("w1", held, code=1)
    assert list(harness.states(run).values()) == ["FAILED", "SKIPPED", "CANCELLED", "CANCELLED", "SKIPPED"]
    harness.attach("w2")
    assert harness.run_state(run) == "FAILED"


def test_a_result_from_before_a_cancel_cannot_undo_it() -> None:
    harness = with_workers("w")
    run = harness.submit(chain("a", "b"))
    harness.commits_itself = False
    held = harness.start("w")
    harness.cancel(run)
    harness.commit()
    harness.end("w", held)
    harness.restart()
    harness.commits_itself = True
    assert harness.attach("w").keep == fences(held), "it has ended, so there is nothing to kill"
    assert harness.states(run) == {"a": "CANCELLED", "b": "CANCELLED"}


def test_a_cancel_that_is_still_under_way_is_not_forgotten_over_a_retry_of_something_else() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a"), task("b")])
    harness.start("w")
    harness.cancel(run)
    harness.retry(run)  # b; a is still being ended
    harness.restart()
    harness.attach("w")
    harness.run_to_end()
    assert harness.states(run) == {"a": "CANCELLED", "b": "COMPLETED"}


def test_a_retry_after_a_cancel_is_not_cancelled() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a"), task("b", delay=5.0)])
    harness.start("w")
    harness.cancel(run)
    harness.obey("w")
    harness.retry(run)
    harness.workers["w"].held.clear()
    harness.restart()
    harness.attach("w")
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "b": "COMPLETED"}


def test_a_retry_of_what_ended_unverified_is_not_cancelled_by_the_cancel_from_before() -> None:
    """It was seen running, its worker is lost during the hold, which ends its cancel; then somebody wants it again."""
    harness = with_workers("w1", "w2")
    run = harness.submit([task("a")])
    harness.start("w1")
    harness.advance(1.5)
    harness.cancel(run)
    harness.submit([task("other")])
    harness.restart(grace=10.0)
    harness.lose("w1")
    assert harness.scheduler.state.runs[run].reason_of(0) == "unverified"
    harness.retry(run)
    harness.advance(10.1)
    harness.attach("w2")
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_of_a_cancelled_task_the_later_attempt_is_ended_too() -> None:
    harness = with_workers("w1")
    run = harness.submit([task("a")])
    harness.start("w1")
    harness.worker("w2")
    harness.commits_itself = False
    harness.lose("w1")
    harness.start("w2")
    harness.restart()
    harness.cancel(run)
    harness.attach("w1")
    harness.attach("w2")
    harness.commits_itself = True
    harness.commit()
    assert harness.run_state(run) == "CANCELLED"
    assert not harness.held_names("w1") and not harness.held_names("w2")


# ---------------------------------------------------------------- retry


def test_a_retried_task_goes_on_in_its_generation_with_a_clean_record() -> None:
    harness = with_workers("w")
    run = harness.submit([task("a", retry=Retry(max=1, backoff=0.1)), task("b", "a")])
    for _ in range(2):
        harness.end("w", harness.start("w"), code=1)
        harness.advance(1.0)
    assert harness.run_state(run) == "FAILED"
    harness.retry(run)
    harness.workers["w"].held.clear()
    harness.restart()
    harness.attach("w")
    (held,) = harness.start("w")
    assert (held.generation, held.attempt) == (1, 3), "of the one that never arrived nobody knows"
    harness.end("w", [held], code=1)
    harness.advance(1.0)
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "b": "COMPLETED"}


def test_a_parent_that_is_retried_during_the_hold_is_waited_for_again() -> None:
    """`clean_up` was about to run because `a` had failed; now `a` is tried again, so nobody knows."""
    harness = with_workers("w1", "w2")
    run = harness.submit([task("a"), task("clean_up", "a", when="failure", delay=3.0)])
    harness.end("w1", harness.start("w1") or harness.start("w2"), code=1)
    harness.restart(grace=10.0)
    harness.retry(run, "a")
    harness.attach("w1")
    harness.attach("w2")
    harness.run_to_end()
    assert harness.states(run) == {"a": "COMPLETED", "clean_up": "SKIPPED"}


# ---------------------------------------------------------------- places


def test_affinity_leads_to_where_the_parent_ran_before_the_restart() -> None:
    harness = with_workers("w2")
    run = harness.submit([task("a"), task("b", "a", delay=2.0, affinity=Affinity("parent", mode="require"))])
    harness.worker("w1")
    harness.finish("w2")
    harness.restart()
    harness.attach("w1")
    harness.attach("w2")
    harness.advance(2.1)
    assert harness.held_names("w2") == ["b"]
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_tasks_of_a_key_gather_where_they_did_before_the_restart() -> None:
    harness = with_workers("w2")
    key = Affinity("key", "cache", "require")
    harness.submit([task("a", affinity=key), task("b", "a", affinity=key, delay=2.0)])
    harness.worker("w1")
    harness.finish("w2")
    harness.restart()
    harness.attach("w1")
    harness.attach("w2")
    harness.advance(2.1)
    assert harness.held_names("w2") == ["b"]


def test_a_required_place_that_is_gone_fails_its_task_after_a_restart_too() -> None:
    harness = with_workers("w1")
    run = harness.submit([task("a"), task("b", "a", delay=5.0, affinity=Affinity("parent", mode="require"))])
    harness.finish("w1")
    harness.vanish("w1")
    harness.restart()
    harness.worker("w2")
    harness.advance(5.1)
    assert harness.states(run) == {"a": "COMPLETED", "b": "FAILED"}


def test_a_run_recalled_for_a_retry_knows_its_places() -> None:
    harness = with_workers("w2")
    run = harness.submit([task("a"), task("b", "a", affinity=Affinity("parent", mode="require"))])
    harness.worker("w1")
    harness.finish("w2")
    harness.end("w2", harness.start("w2"), Ending.EXIT, 1)
    harness.restart()
    harness.attach("w1")
    harness.attach("w2")
    harness.recall(run)
    harness.retry(run)
    assert harness.held_names("w2") == ["b"]
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_working_copies_from_before_a_restart_are_forgotten_in_time_and_those_of_living_runs_are_not():
    harness = SchedulerHarness(Tuning(keep_copies=60.0))
    harness.worker("w1", slots=2)
    done = harness.submit([task("a")])
    harness.finish("w1")
    going = harness.submit([task("b"), task("c", "b")])
    harness.finish("w1", only="b")
    harness.restart(grace=1.0)
    harness.workers["w1"].copies = (done, going)
    harness.attach("w1")
    told = harness.advance(61.0)
    assert [command for command in told if isinstance(command, cmd.ForgetRun)] == [cmd.ForgetRun(done, ("w1",))]
