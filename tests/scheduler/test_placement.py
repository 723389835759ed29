"""Least loaded first; short tasks ahead of time; what waits at the wrong place comes back."""

from __future__ import annotations

import pytest

from titan_fast.ids import Ending
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts, placement
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.harness import SchedulerHarness, array, task


def measured(duration: float, slots: int = 1, members: int = 1000, **tuning: float) -> tuple[SchedulerHarness, int]:
    """One worker and an array whose members have been seen to last this long."""
    harness = SchedulerHarness(Tuning(**tuning))
    harness.worker("w1", slots)
    run = harness.submit([array("a", members)])
    harness.finish("w1", duration=duration)
    return harness, run


def recalls(harness: SchedulerHarness, worker: str) -> int:
    return sum(command.count for command in harness.workers[worker].asked if isinstance(command, cmd.Recall))


def test_tasks_go_to_the_least_loaded_worker() -> None:
    harness = SchedulerHarness()
    for name, slots in (("small", 2), ("large", 6)):
        harness.worker(name, slots)
    harness.submit([array("a", 4)])
    assert len(harness.held_names("large")) in (2, 3)
    assert len(harness.held_names("small")) in (1, 2)


def test_an_array_spreads_over_all_workers() -> None:
    harness = SchedulerHarness()
    for number in range(10):
        harness.worker(f"w{number}", 4)
    harness.submit([array("a", 20)])
    assert {len(worker.held) for worker in harness.workers.values()} == {2}


def test_a_lot_has_consecutive_tasks_and_fences() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 8)
    harness.submit([array("a", 8)])
    (lot,) = [command for command in harness.commands if isinstance(command, cmd.Assign)]
    assert (lot.first, lot.count) == (0, 8)
    assert [held.index for held in harness.workers["w"].held.values()] == list(range(8))


def test_an_unmeasured_task_is_not_prefetched() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 4)
    harness.submit([array("a", 100)])
    assert len(harness.held_names("w")) == 4


def test_short_tasks_are_prefetched_by_what_they_last() -> None:
    for duration, beyond in ((0.001, 20), (0.004, 5), (0.0199, 1), (0.03, 0), (10.0, 0)):
        harness, _ = measured(duration, prefetch=0.02)
        assert len(harness.held_names("w1")) == 1 + beyond, duration


def call(harness: SchedulerHarness, function: bytes = b"short", priority: int = 1) -> int:
    """One call by itself, a run of its own."""
    spec = TaskSpec("f", Work(function=0), payload=1, priority=priority)
    return harness.submit([spec], (function, bytes(4) + b"\0\0\0\1x"))


def test_how_long_a_function_takes_is_known_beyond_its_run() -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    for _ in range(4):
        call(harness, b"short")
    call(harness, b"other")
    assert len(harness.held_names("w1")) == 1
    harness.finish("w1", duration=0.0001)
    assert len(harness.held_names("w1")) == 3, "all that are known to be short, and nothing behind them"
    harness.run_to_end()


def test_a_run_goes_on_from_what_is_known_of_its_functions() -> None:
    """One slow call counts for the next runs as it does within one: a guess errs towards not hoarding."""
    harness = SchedulerHarness()
    harness.worker("w1")
    for duration in (5.0, 0.0001):
        call(harness, b"f")
        harness.finish("w1", duration=duration)
    for _ in range(3):
        call(harness, b"f")
    assert len(harness.held_names("w1")) == 1


def test_few_functions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "KINDS", 2)
    harness = SchedulerHarness()
    harness.worker("w1")
    for number in range(5):
        call(harness, b"function %d" % number)
        harness.finish("w1", duration=0.001)
    assert len(harness.scheduler.state.costs) == 2


def test_a_worker_is_not_told_to_forget_what_left_nothing_there() -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    done, failed = call(harness, b"f"), call(harness, b"g")
    harness.finish("w1", "f")
    harness.finish("w1", code=1)
    assert [harness.run_state(run) for run in (done, failed)] == ["COMPLETED", "FAILED"]
    one, work = bytes(4) + b"\0\0\0\1x", Work(function=0)
    copied = harness.submit(GraphSpec("g", (TaskSpec("f", work, payload=1),), project="0" * 64), (b"f", one))
    harness.finish("w1")
    array = harness.submit([TaskSpec("f", work, payload=1, array=True)], (b"f", one))
    harness.finish("w1")
    harness.advance(harness.tuning.keep_copies + 1.0)
    told = [command.run for command in harness.commands if isinstance(command, cmd.ForgetRun)]
    assert told == [failed, copied, array], "a failure may come again, a working copy and an array are still there"


def knows_a_short_function() -> SchedulerHarness:
    """One worker, and a function that has been seen to last a moment."""
    harness = SchedulerHarness()
    harness.worker("w1")
    call(harness)
    harness.finish("w1", duration=0.0001)
    return harness


def test_nothing_waits_behind_what_is_not_known_to_be_short() -> None:
    harness = knows_a_short_function()
    harness.worker("w2")
    harness.submit([task("long")])
    harness.submit([array("low", 20)])
    (busy,) = [name for name in ("w1", "w2") if "long" in harness.held_names(name)]
    other = "w2" if busy == "w1" else "w1"
    call(harness, priority=9)
    assert harness.held_names(busy) == ["long"]
    harness.finish(other, duration=0.25)
    assert harness.held_names(other)[0] == "f", "the first slot that is free is its"
    assert harness.held_names(busy) == ["long"]


def test_a_worker_with_a_long_task_in_one_slot_is_given_work_ahead_for_the_other() -> None:
    harness = SchedulerHarness(Tuning(prefetch=0.02))
    harness.worker("w1", 2)
    harness.submit([task("long")])
    harness.submit([array("a", 1000)])
    harness.finish("w1", only="a[0]", duration=0.001)
    assert len(harness.held_names("w1")) == 2 + 20, "for one slot, not for two"


def test_a_worker_that_is_full_of_long_tasks_keeps_no_other_from_its_work() -> None:
    harness = knows_a_short_function()
    harness.submit([task("long")])
    harness.worker("w2")
    for _ in range(10):
        call(harness)
    assert harness.held_names("w1") == ["long"]
    assert len(harness.held_names("w2")) == 10


def test_a_short_task_that_does_not_end_is_noticed() -> None:
    harness = knows_a_short_function()
    harness.worker("w2")
    call(harness)
    harness.start("w1")
    harness.advance(0.1)
    for _ in range(5):
        call(harness)
    assert len(harness.held_names("w1")) == 1
    assert len(harness.held_names("w2")) == 5
    harness.finish("w1", duration=0.1)
    harness.run_to_end()


def test_an_urgent_task_is_not_given_out_behind_others_that_wait() -> None:
    harness = knows_a_short_function()
    low = harness.submit([array("low", 10)])
    harness.finish("w1", only="low[0]", duration=0.001)
    harness.start("w1")
    assert len(harness.held_names("w1")) == 9
    urgent = call(harness, priority=9)
    assert "f" not in harness.held_names("w1")
    harness.obey("w1")  # the others make way
    harness.finish("w1", duration=0.001)
    assert harness.held_names("w1")[0] == "f"
    harness.run_to_end()
    assert harness.run_state(low) == harness.run_state(urgent) == "COMPLETED"


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_worker_is_told_to_forget_what_it_was_described_and_never_started(is_cancelled: bool) -> None:
    harness = SchedulerHarness()
    harness.worker("w1")
    run = call(harness, b"f")
    held = list(harness.workers["w1"].held.values())
    if is_cancelled:
        harness.cancel(run)
    harness.end("w1", held, Ending.DROPPED if is_cancelled else Ending.RECALLED)
    harness.finish("w1")
    assert harness.run_state(run) == ("CANCELLED" if is_cancelled else "COMPLETED")
    harness.advance(harness.tuning.keep_copies + 1.0)
    assert [c.workers for c in harness.commands if isinstance(c, cmd.ForgetRun)] == [("w1",)]


def test_prefetch_has_a_limit() -> None:
    harness, _ = measured(1e-7, members=10_000, max_prefetch=50)
    assert len(harness.held_names("w1")) == 51


def test_one_slow_task_ends_the_prefetch_at_once() -> None:
    harness, _ = measured(0.001)
    held = harness.start("w1")
    harness.end("w1", held, duration=5.0)
    while len(harness.workers["w1"].held) > 1:
        harness.end("w1", harness.start("w1"), duration=0.001)
    harness.end("w1", harness.start("w1"), duration=0.001)
    assert len(harness.held_names("w1")) == 1


def test_an_idle_worker_is_given_what_waits_at_a_busy_one() -> None:
    harness, run = measured(0.001, members=12)
    assert len(harness.held_names("w1")) == 11
    harness.start("w1")
    harness.worker("w2", 4)
    assert not recalls(harness, "w1"), "not at once: it may start in a moment"
    harness.advance(0.03)
    assert recalls(harness, "w1") == 4
    harness.obey("w1")
    assert len(harness.held_names("w2")) == 4
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_recall_takes_the_end_of_the_line() -> None:
    harness, _ = measured(0.001, members=12)
    harness.start("w1")
    harness.worker("w2", 2)
    harness.advance(0.03)
    harness.obey("w1")
    assert harness.held_names("w2") == ["a[10]", "a[11]"]


def test_recalled_members_are_still_at_their_first_attempt() -> None:
    harness, run = measured(0.001, members=12)
    harness.start("w1")
    harness.worker("w2", 4)
    harness.advance(0.03)
    harness.obey("w1")
    given = [command for command in harness.commands if isinstance(command, cmd.Assign) and command.worker == "w2"]
    assert {command.attempt for command in given} == {1}
    harness.run_to_end()
    ended = [fact for fact in harness.facts if isinstance(fact, facts.AttemptsEnded)]
    assert {number for fact in ended for number in fact.attempt} == {0, 1}, "what had not started has no number"
    assert not harness.scheduler.state.runs[run].attempts
    harness.check_replay()


def test_a_recall_that_comes_too_late_changes_nothing() -> None:
    """The worker had started the task: its STARTED crosses the recall, and it is not asked for again."""
    harness, run = measured(0.001, members=3)
    harness.start("w1")
    harness.worker("w2", 1)
    harness.advance(0.03)
    assert recalls(harness, "w1") == 1
    harness.end("w1", list(harness.workers["w1"].held.values())[:1])
    harness.start("w1")
    harness.obey("w1")
    assert harness.scheduler.state.recalling == 0
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_recall_that_was_lost_with_a_connection_is_asked_again() -> None:
    harness, run = measured(0.001, members=12)
    harness.start("w1")
    harness.worker("w2", 1)
    harness.advance(0.03)
    assert recalls(harness, "w1") == 1
    harness.cut("w1")
    assert harness.scheduler.state.recalling == 0
    harness.attach("w1")
    harness.advance(0.03)
    assert recalls(harness, "w1") == 1
    harness.obey("w1")
    assert len(harness.held_names("w2")) == 1
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_nothing_is_asked_back_from_a_worker_that_is_silent() -> None:
    harness, _ = measured(0.001, members=12)
    harness.start("w1")
    harness.do(ev.WorkerSuspected("w1"))
    harness.worker("w2", 4)
    harness.submit([task("urgent", priority=9)])
    harness.advance(0.1)
    assert not recalls(harness, "w1")


def test_a_recalled_gpu_task_does_not_go_to_a_worker_without_one() -> None:
    harness = SchedulerHarness()
    harness.worker("gpu", 1, ["GPU"])
    harness.submit([array("a", 12, requires=("GPU",))])
    harness.finish("gpu", duration=0.001)
    assert len(harness.held_names("gpu")) == 11
    harness.worker("plain", 4)
    harness.advance(1.0)
    assert not recalls(harness, "gpu")


def test_less_urgent_work_that_has_not_started_makes_way() -> None:
    harness, run = measured(0.001, members=50)
    harness.start("w1")
    urgent = harness.submit([task("urgent", priority=9)])
    assert recalls(harness, "w1") == 20, "all that waits there: a worker starts its tasks in order"
    harness.obey("w1")
    assert harness.finish("w1")
    assert harness.held_names("w1")[0] == "urgent", "the next free slot is its"
    harness.run_to_end()
    assert harness.run_state(urgent) == harness.run_state(run) == "COMPLETED"


def test_one_worker_makes_way_for_one_urgent_task() -> None:
    harness, _ = measured(0.001, members=1000)
    for name in ("w2", "w3"):
        harness.worker(name, 1)
    assert {len(worker.held) for worker in harness.workers.values()} == {21}
    for name in harness.workers:
        harness.start(name)
    harness.submit([task("urgent", priority=9)])
    assert sorted(recalls(harness, name) for name in harness.workers) == [0, 0, 20]
    (donor,) = [name for name in harness.workers if recalls(harness, name)]
    harness.obey(donor)
    harness.do()
    assert not any(recalls(harness, name) for name in harness.workers), "and no other one after it"


def test_a_task_that_crashed_is_not_prefetched() -> None:
    harness, run = measured(0.001, members=50)
    harness.start("w1")
    harness.vanish("w1")
    assert harness.scheduler.state.runs[run].crashes == {1: 1}
    harness.submit([task("first", priority=5)])
    harness.worker("w2", 1)
    assert harness.held_names("w2") == ["first"]
    harness.finish("w2")
    assert harness.held_names("w2")[0] == "a[1]"
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_a_suspect_worker_is_given_nothing() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 4)
    harness.do(ev.WorkerSuspected("w1"))
    harness.submit([task("a")])
    assert not harness.held_names("w1")
    harness.do(ev.WorkerRecovered("w1"))
    assert harness.held_names("w1") == ["a"]


def test_a_turn_in_which_nothing_happened_places_nothing() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    harness.submit([array("a", 5)])
    assert harness.do() == []
