"""Finished runs leave memory when what ended them is durable, and come back for a retry; until they are forgotten."""

from __future__ import annotations

import pytest

from titan_fast.errors import NoSuchRun
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.facts import ArtifactPublished, RunsForgotten
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import SchedulerHarness, array, task


def finished(count: int, keep: int) -> SchedulerHarness:
    harness = SchedulerHarness(Tuning(keep_finished=keep))
    harness.worker("w", 4)
    for number in range(count):
        harness.submit([task(f"t{number}"), task("after", f"t{number}")])
        harness.end("w", harness.start("w"), code=number % 2)
        harness.finish("w")
    return harness


def forget(harness: SchedulerHarness, durable: int | None = None) -> list[int]:
    """The runs that are left."""
    harness.scheduler.forget_finished(len(harness.facts) if durable is None else durable)
    harness.do()
    return list(harness.scheduler.state.runs)


def test_the_oldest_finished_runs_leave_and_the_newest_stay() -> None:
    harness = finished(5, keep=2)
    assert forget(harness) == [4, 5]
    assert sum(harness.scheduler.state.totals) == 4


def test_a_run_stays_until_what_ended_it_is_durable() -> None:
    harness = finished(3, keep=0)
    ends = [at for at, fact in enumerate(harness.facts, 1) if type(fact).__name__ == "RunEnded"]
    assert forget(harness, ends[0] - 1) == [1, 2, 3]
    assert forget(harness, ends[0]) == [2, 3]
    assert forget(harness, ends[2]) == []


def test_unfinished_runs_stay_however_old() -> None:
    harness = SchedulerHarness(Tuning(keep_finished=0))
    old = harness.submit([task("waits", requires=("GPU",))])
    harness.worker("w")
    harness.submit([task("a")])
    harness.finish("w")
    assert forget(harness) == [old]


def test_a_run_that_was_retried_leaves_when_it_ends_again() -> None:
    harness = finished(2, keep=0)
    harness.retry(2)
    assert forget(harness) == [2]
    harness.run_to_end()
    assert forget(harness) == []


def test_a_forgotten_run_comes_back_as_it_was_and_can_be_retried() -> None:
    harness = finished(2, keep=0)
    before = harness.states(2)
    assert before == {"t1": "FAILED", "after": "SKIPPED"}
    forget(harness)
    harness.recall(2)
    assert harness.states(2) == before
    assert harness.scheduler.state.totals[TaskState.FAILED] == 1
    harness.retry(2)
    harness.run_to_end()
    assert harness.states(2) == {"t1": "COMPLETED", "after": "COMPLETED"}
    assert harness.scheduler.state.runs[2].generation == {0: 1, 1: 1}
    harness.check_replay()


def test_a_run_that_was_recalled_for_nothing_leaves_again() -> None:
    harness = finished(3, keep=1)
    assert forget(harness) == [3]
    harness.recall(1)
    assert forget(harness) == [1], "of two finished runs the one that was needed last"
    harness.recall(1)
    assert forget(harness) == [1], "recalled twice is there once"


def test_a_run_that_is_in_memory_is_not_recalled_over_itself() -> None:
    harness = finished(2, keep=5)
    harness.retry(2)
    harness.recall(2)
    assert harness.run_state(2) == "RUNNING"
    harness.run_to_end()
    assert harness.run_state(2) == "COMPLETED"


def test_what_a_worker_still_holds_of_a_forgotten_run_is_ended() -> None:
    harness = SchedulerHarness(Tuning(keep_finished=0))
    harness.worker("w", 2)
    harness.submit([array("a", 2)])
    held = harness.start("w")
    harness.commits_itself = False
    harness.end("w", held)
    forget(harness)
    harness.cut("w")
    harness.commits_itself = True
    verdict = harness.attach("w")
    assert len(verdict.kill) == 2, "they have ended, and that is known: the worker forgets them"
    assert not harness.workers["w"].unsent


def test_late_timers_of_a_forgotten_run_harm_nobody() -> None:
    harness = finished(1, keep=0)
    forget(harness)
    harness.advance(harness.tuning.keep_copies + 1.0)
    forgotten = [command for command in harness.commands if type(command).__name__ == "ForgetRun"]
    assert [command.run for command in forgotten] == [1], "its working copies are given up all the same"
    harness.do(ev.AttemptsStarted("w", [1], [0], [0], [1], [1], [1]))


# ---------------------------------------------------------------- for good


def ends(harness: SchedulerHarness, *runs: int) -> tuple[tuple[int, float], ...]:
    """As the store tells them."""
    return tuple((number, harness.scheduler.state.runs[number].finished_at) for number in runs)


def told(harness: SchedulerHarness) -> list[tuple[int, ...]]:
    """What each fact forgot."""
    return [fact.runs for fact in harness.facts if isinstance(fact, RunsForgotten)]


def test_what_the_store_chose_is_gone_and_that_is_a_fact() -> None:
    harness = finished(4, keep=5)
    old = ends(harness, 1, 2, 3)
    harness.do(ev.ForgetRequested(old[:2]))
    assert list(harness.scheduler.state.runs) == [3, 4]
    assert sum(harness.scheduler.state.totals) == 4
    harness.do(ev.ForgetRequested(old))
    assert told(harness) == [(1, 2), (3,)], "nothing is forgotten twice"
    with pytest.raises(NoSuchRun):
        harness.retry(2)
    assert forget(harness) == [4]
    harness.check_replay()


def test_a_run_that_left_memory_is_forgotten_too() -> None:
    harness = finished(2, keep=5)
    old = ends(harness, 1, 2)
    harness.scheduler.forget_finished(len(harness.facts))
    harness.do(ev.ForgetRequested(old))
    assert told(harness) == [(1, 2)]


@pytest.mark.parametrize("ends_again", [False, True])
def test_a_run_that_was_retried_since_it_was_chosen_stays(ends_again: bool) -> None:
    harness = finished(2, keep=5)
    old = ends(harness, 1, 2)
    harness.advance(1.0)
    harness.retry(2)
    if ends_again:
        harness.run_to_end()
    harness.do(ev.ForgetRequested(old))
    assert told(harness) == [(1,)]
    assert list(harness.scheduler.state.runs) == [2]
    harness.run_to_end()
    assert harness.run_state(2) == "COMPLETED"
    harness.do(ev.ForgetRequested(ends(harness, 2)))
    assert told(harness) == [(1,), (2,)]


def test_an_unfinished_run_is_not_forgotten() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a")])
    harness.do(ev.ForgetRequested(((run, 0.0),)))
    assert told(harness) == []
    assert harness.run_state(run) == "PENDING"


def test_a_forgotten_run_does_not_come_back_from_a_store_that_still_shows_it() -> None:
    harness = finished(2, keep=5)
    before = len(harness.facts)
    harness.do(ev.ForgetRequested(ends(harness, 2)))
    for durable in (before, before + 1):
        harness.recall(2)
        with pytest.raises(NoSuchRun):
            harness.retry(2)
        assert 2 in harness.scheduler.state.forgotten
        forget(harness, durable)
    assert not harness.scheduler.state.forgotten, "the store knows it by now, and shows it no more"


def test_what_goes_with_a_run_says_so_and_what_somebody_published_does_not() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    (held,) = harness.start("w")
    harness.do(ev.ArtifactPublishRequested(harness.ticket(), f"{run}/mine", "ab" * 32, 7))
    address = f"artifact:{'cd' * 32}".encode()
    harness.do(ev.AttemptsFinished("w", [run], [0], [0], [0], [held.fence], [0], [1], [1], [address], {0: 7}))
    found = [fact for fact in harness.facts if isinstance(fact, ArtifactPublished)]
    assert [(fact.name, fact.run) for fact in found] == [(f"{run}/mine", 0), (f"{run}/a", run)]
