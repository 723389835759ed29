"""Failed attempts are repeated as often as asked, after a growing wait, for the reasons asked."""

from __future__ import annotations

import random

import pytest

from titan_fast.ids import Ending
from titan_fast.model.spec import Retry
from titan_fast.scheduler import facts
from titan_fast.scheduler.events import WorkerDraining, WorkerLeft
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.retry import backoff, is_retryable
from titan_fast.scheduler.views import view_tasks
from titan_fast.testing.harness import SchedulerHarness, array, task


def failing(retry: Retry, ending: Ending = Ending.EXIT, code: int = 1) -> tuple[SchedulerHarness, int, int]:
    """A task that always ends this way, tried until it is final: (harness, run, attempts)."""
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=retry)])
    attempts = 0
    while harness.run_state(run) in ("PENDING", "RUNNING"):
        harness.end("w", harness.start("w"), ending, code)
        attempts += 1
        harness.advance(100.0)
    return harness, run, attempts


def test_by_default_a_failure_is_final() -> None:
    harness, run, attempts = failing(Retry())
    assert attempts == 1
    assert harness.state(run, "a") == "FAILED"


@pytest.mark.parametrize("retries", [1, 3, 7])
def test_a_task_is_tried_once_and_then_as_often_as_its_retries(retries: int) -> None:
    harness, run, attempts = failing(Retry(max=retries))
    assert attempts == retries + 1
    assert harness.run_state(run) == "FAILED"
    ended = [row for fact in harness.facts if isinstance(fact, facts.AttemptsEnded) for row in fact.attempt]
    assert ended == list(range(1, retries + 2))


def test_a_success_ends_the_retries() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=5))])
    harness.end("w", harness.start("w"), code=1)
    assert harness.inner_state(run, "a") is TaskState.DELAYED
    harness.advance(2.0)
    assert harness.workers["w"].to_start()[0].attempt == 2
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


@pytest.mark.parametrize(
    ("on", "ending", "code", "again"),
    [
        ((), Ending.EXIT, 1, True),
        ((), Ending.SIGNAL, 9, True),
        ((), Ending.TIMEOUT, 0, True),
        ((), Ending.NOT_STARTED, 0, True),
        ((7, 75), Ending.EXIT, 75, True),
        ((7, 75), Ending.EXIT, 1, False),
        ((7, 75), Ending.SIGNAL, 7, False),
        ((7, 75), Ending.TIMEOUT, 7, False),
        (("timeout",), Ending.TIMEOUT, 0, True),
        (("timeout",), Ending.EXIT, 1, False),
        ((7, "timeout"), Ending.NOT_STARTED, 7, False),
    ],
)
def test_only_the_named_reasons_are_tried_again(on: tuple, ending: Ending, code: int, again: bool) -> None:
    retry = Retry(max=1, on=on)
    assert is_retryable(retry, 1, ending, code) is again
    _, _, attempts = failing(retry, ending, code)
    assert attempts == (2 if again else 1)


def test_a_backoff_doubles_up_to_its_limit_and_its_upper_half_is_random() -> None:
    rng = random.Random(1)
    retry = Retry(max=100, backoff=1.0, max_delay=30.0)
    for failures, full in ((1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (90, 30.0), (5000, 30.0)):
        waits = [backoff(retry, failures, rng) for _ in range(500)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert max(waits) - min(waits) > full / 4, "no two of a thousand failed tasks come back together"


def test_a_task_waits_out_its_backoff_and_others_run_meanwhile() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=1, backoff=8.0)), task("b")])
    harness.end("w", harness.start("w"), code=1)
    assert harness.held_names("w") == ["b"]
    harness.advance(3.9)
    assert harness.inner_state(run, "a") is TaskState.DELAYED
    harness.finish("w")
    harness.advance(4.2)
    assert harness.held_names("w") == ["a"]


def test_an_attempt_that_could_not_start_says_why() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    harness.end("w", harness.start("w"), Ending.NOT_STARTED, result=b"there is no program 'xyz'")
    assert harness.scheduler.state.runs[run].reason_of(0) == "not_started: there is no program 'xyz'"


@pytest.mark.parametrize(
    ("ending", "code", "reason"),
    [(Ending.EXIT, 3, "exit:3"), (Ending.SIGNAL, 11, "signal:11"), (Ending.TIMEOUT, 0, "timeout")],
)
def test_a_failure_has_a_reason(ending: Ending, code: int, reason: str) -> None:
    harness, run, _ = failing(Retry(), ending, code)
    assert harness.scheduler.state.runs[run].reason_of(0) == reason


def test_losing_its_worker_uses_up_no_retry() -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("a", retry=Retry(max=1))])
    harness.start("w1")
    harness.vanish("w1")
    harness.worker("w2")
    harness.end("w2", harness.start("w2"), code=1)
    harness.advance(2.0)
    harness.finish("w2")
    assert harness.run_state(run) == "COMPLETED"


def test_an_attempt_that_was_killed_by_us_is_no_failure_of_its_task() -> None:
    """A worker that is stopped for good kills what runs: the task goes on elsewhere, its retries untouched."""
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("a")])
    harness.end("w1", harness.start("w1"), Ending.KILLED)
    assert harness.state(run, "a") == "PENDING"
    harness.finish("w1")
    assert harness.run_state(run) == "COMPLETED"


def test_members_fail_and_are_retried_each_on_its_own() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 16)
    run = harness.submit([array("a", 10, retry=Retry(max=1)), task("after", "a")])
    held = harness.start("w")
    harness.end("w", held[:4], code=1)
    harness.end("w", held[4:])
    assert harness.state(run, "after") == "PENDING"
    harness.advance(2.0)
    again = harness.start("w")
    assert sorted(item.index for item in again) == [0, 1, 2, 3]
    harness.end("w", again)
    harness.finish("w")
    assert harness.run_state(run) == "COMPLETED"


# ---------------------------------------------------------------- what never started is no attempt


def number_of_what_is_held(harness: SchedulerHarness, worker: str) -> int:
    (held,) = harness.workers[worker].held.values()
    return held.attempt


def given_back(harness: SchedulerHarness, way: str) -> str:
    """The one task that waits at w1 comes away from there without having started; the worker that has it then."""
    waiting = list(harness.workers["w1"].held.values())
    if way == "left":
        harness.worker("w2")
        harness.do(WorkerDraining("w1"), WorkerLeft("w1"))
        return "w2"
    if way == "absent":
        harness.workers["w1"].held.clear()
        harness.cut("w1")
        harness.attach("w1")
    else:
        harness.end("w1", waiting, Ending[way.upper()])
    return "w1"


@pytest.mark.parametrize("way", ["recalled", "dropped", "absent", "left"])
@pytest.mark.parametrize("failures", [0, 2])
def test_what_was_given_back_unstarted_has_no_number(way: str, failures: int) -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("a", retry=Retry(max=5))])
    for _ in range(failures):
        harness.end("w1", harness.start("w1"), code=1)
        harness.advance(100.0)
    assert number_of_what_is_held(harness, "w1") == failures + 1
    floor = harness.scheduler.state.runs[run].floor_of(0)
    worker = given_back(harness, way)
    assert number_of_what_is_held(harness, worker) == failures + 1, "it is the same try, once more"
    assert harness.scheduler.state.runs[run].floor_of(0) > floor, "and under a later fence"
    harness.check_replay()
    harness.finish(worker)
    (view,) = view_tasks(harness.scheduler.state, harness.scheduler.state.runs[run], 0, 1)
    assert (view.state, view.attempt) == ("COMPLETED", failures + 1)
    ended = [row for fact in harness.facts if isinstance(fact, facts.AttemptsEnded) for row in fact.attempt]
    assert ended == [*range(1, failures + 1), 0, failures + 1]
    harness.check_replay()


@pytest.mark.parametrize("way", ["recalled", "absent"])
def test_nor_has_it_one_after_a_restart(way: str) -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    harness.submit([task("a", retry=Retry(max=5))])
    harness.end("w1", harness.start("w1"), code=1)
    harness.advance(100.0)
    given_back(harness, way)
    harness.workers["w1"].held.clear()
    harness.restart()
    harness.attach("w1")
    assert number_of_what_is_held(harness, "w1") == 2


def test_an_attempt_that_had_started_counts_however_it_ended() -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    harness.submit([task("a")])
    harness.end("w1", harness.start("w1"), Ending.KILLED)
    assert number_of_what_is_held(harness, "w1") == 2
    harness.start("w1")
    harness.worker("w2")
    harness.do(WorkerDraining("w1"), WorkerLeft("w1"))
    assert number_of_what_is_held(harness, "w2") == 3


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_task_that_was_cancelled_before_it_started_had_no_attempt(is_lost: bool) -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    run = harness.submit([task("a")])
    harness.cancel(run)
    if is_lost:
        harness.do(WorkerDraining("w1"), WorkerLeft("w1"))
    else:
        harness.obey("w1")
    (view,) = view_tasks(harness.scheduler.state, harness.scheduler.state.runs[run], 0, 1)
    assert (view.state, view.attempt) == ("CANCELLED", 0)
    harness.check_replay()
