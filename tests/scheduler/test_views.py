"""What clients see: counts that add up, pages, workers with what they run and hold."""

from __future__ import annotations

from titan_fast.model.spec import Retry
from titan_fast.scheduler.lifecycle import PUBLIC_STATES
from titan_fast.scheduler.views import view_run, view_tasks, view_workers
from titan_fast.testing.harness import SchedulerHarness, array, task


def test_counts_add_up_at_every_step() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 3)
    run = harness.submit([array("a", 10), task("b", "a")])
    kept = harness.scheduler.state.runs[run]
    while not kept.is_final:
        view = view_run(kept)
        assert tuple(view.counts) == PUBLIC_STATES
        assert sum(view.counts.values()) == 11
        harness.finish("w")
    view = view_run(kept)
    assert (view.state, view.counts["COMPLETED"]) == ("COMPLETED", 11)
    assert view.submitted_at <= view.started_at <= view.finished_at


def test_a_failed_run_says_how_many() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 9)
    run = harness.submit([array("a", 5)])
    harness.end("w", harness.start("w")[:2], code=1)
    harness.run_to_end()
    assert view_run(harness.scheduler.state.runs[run]).reason == "2 of 5 tasks failed"


def test_tasks_come_in_pages() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("first"), array("a", 10), task("last")])
    state = harness.scheduler.state
    pages = [list(view_tasks(state, state.runs[run], at, 5)) for at in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    names = [view.name for page in pages for view in page]
    assert names == ["first", *(f"a[{n}]" for n in range(10)), "last"]
    assert [view.index for page in pages for view in page] == list(range(12))


def test_a_task_shows_where_it_is_and_which_attempt_that_is() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 1)
    run = harness.submit([task("a", retry=Retry(max=1)), task("b")])
    state = harness.scheduler.state

    def show(index: int) -> tuple[str, str, int, str]:
        (view,) = view_tasks(state, state.runs[run], index, 1)
        return view.state, view.reason, view.attempt, view.worker

    assert show(0) == ("PENDING", "queued:w", 1, "w")
    assert show(1) == ("PENDING", "capacity", 0, "")
    harness.start("w")
    assert show(0) == ("RUNNING", "", 1, "w")
    harness.end("w", list(harness.workers["w"].held.values()), code=1)
    assert show(0) == ("PENDING", "backoff", 1, "")
    harness.run_to_end()
    assert show(0) == ("COMPLETED", "exit:0", 2, ""), "the second attempt succeeded"
    assert show(1) == ("COMPLETED", "exit:0", 1, "")


def test_workers_show_what_they_run_and_hold() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2, ["GPU", "DISK"])
    harness.submit([array("a", 30)])
    harness.finish("w", duration=0.001)
    harness.start("w")
    (view,) = view_workers(harness.scheduler.state)
    assert (view.name, view.state, view.capabilities, view.slots, view.running) == ("w", "READY", ("DISK", "GPU"), 2, 2)
    assert view.queued == len(harness.workers["w"].held) - 2 > 0
