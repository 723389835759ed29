"""Why a task is where it is, in a sentence, and what would help."""

from __future__ import annotations

from titan_fast.model.spec import Affinity, Retry
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.explain import Explanation, explain_run, explain_task
from titan_fast.testing.harness import SchedulerHarness, array, task


def why(harness: SchedulerHarness, run: int, label: str) -> Explanation:
    state = harness.scheduler.state
    return explain_task(state, state.runs[run], harness.index(run, label))


def why_run(harness: SchedulerHarness, run: int) -> Explanation:
    return explain_run(harness.scheduler.state, harness.scheduler.state.runs[run])


def test_a_task_that_waits_for_parents_names_them() -> None:
    harness = SchedulerHarness()
    names = [f"p{number}" for number in range(8)]
    run = harness.submit([*map(task, names), task("sum", *names)])
    told = why(harness, run, "sum")
    assert (told.state, told.reason) == ("PENDING", "parents")
    assert told.detail == "waits for 'p0', 'p1', 'p2', 'p3', 'p4' and 3 more to finish"
    assert told.fix == "titan-fast explain 1/p0"


def test_no_worker_at_all() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a")])
    told = why(harness, run, "a")
    assert told.reason == "capacity"
    assert told.detail == "waits for a worker; none is connected"
    assert told.fix == "start one with: titan-fast worker"


def test_no_worker_with_what_it_requires() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", requires=("GPU", "HIGH_MEM"))])
    told = why(harness, run, "a")
    assert told.detail == "waits for a worker with GPU and HIGH_MEM; none is connected"
    assert told.fix == "start one with: titan-fast worker --caps GPU,HIGH_MEM"


def test_the_only_worker_with_it_is_silent() -> None:
    harness = SchedulerHarness()
    harness.worker("gpu", 1, ["GPU"])
    harness.do(ev.WorkerSuspected("gpu"))
    run = harness.submit([task("a", requires=("GPU",))])
    assert why(harness, run, "a").detail == "waits for a worker with GPU; gpu has it but is silent"


def test_all_slots_are_taken() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 2)
    run = harness.submit([array("a", 5)])
    told = why(harness, run, "a[4]")
    assert told.reason == "capacity"
    assert told.detail.startswith("waits for a free slot: 2 of 2 slots on 1 fitting workers are taken, 2 other tasks")


def test_a_task_that_is_assigned_runs_or_is_being_ended() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a")])
    assert why(harness, run, "a").reason == "queued:w"
    assert why(harness, run, "a").detail == "is at w and starts when a slot there is free"
    harness.start("w")
    harness.advance(2.5)
    assert why(harness, run, "a") == Explanation("RUNNING", "", "runs on w for 2.5 s")
    harness.do(ev.WorkerSuspected("w"))
    assert "silent; it runs elsewhere if that lasts" in why(harness, run, "a").detail
    harness.cancel(run)
    assert why(harness, run, "a").reason == "cancelling"
    assert "was told to stop on w" in why(harness, run, "a").detail


def test_a_task_that_was_recalled_is_where_it_is_now_and_not_where_it_was() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([array("a", 12)])
    harness.finish("w1", duration=0.001)
    harness.start("w1")
    harness.worker("w2", 1)
    harness.advance(0.03)
    harness.obey("w1")
    assert harness.held_names("w2") == ["a[11]"]
    assert why(harness, run, "a[11]").reason == "queued:w2"


def test_delay_and_backoff() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a", retry=Retry(max=3, backoff=8.0)), task("later", delay=60.0)])
    harness.end("w", harness.start("w"), code=3)
    told = why(harness, run, "a")
    assert told.reason == "backoff"
    assert told.detail.startswith("failed (exit:3, 1 of 3 retries used) and waits for another ")
    assert why(harness, run, "later").detail == "waits out its delay for another 60.0 s"
    assert why(harness, run, "later").reason == "delay"


def test_affinity() -> None:
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("a"), array("b", 2, "a", affinity=Affinity("parent", mode="require"))])
    harness.finish("w")
    assert why(harness, run, "b[1]").detail == "waits for a slot on w, which its affinity names"
    harness.do(ev.WorkerSuspected("w"))
    told = why(harness, run, "b[1]")
    assert told.reason == "affinity"
    assert told.detail == "waits for the worker its affinity requires; it is not connected"


def test_a_task_that_crashed_twice() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a")])
    for name in ("w1", "w2"):
        harness.worker(name)
        harness.vanish(name)
    assert why(harness, run, "a").detail == "lost its worker 2 times and waits for a worker it can have alone"


def test_how_it_ended() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 8)
    run = harness.submit(
        [
            task("good"),
            task("bad"),
            task("after", "bad"),
            task("alarm", "good", when="failure"),
            task("gone", delay=9.0),
        ]
    )
    harness.cancel(run, "gone")
    held = harness.start("w")
    harness.end("w", [item for item in held if item.name == "bad"], code=3)
    harness.run_to_end()
    assert why(harness, run, "good").detail == "completed"
    assert why(harness, run, "good").reason == "exit:0"
    assert why(harness, run, "bad") == Explanation("FAILED", "exit:3", "failed: exit:3", f"titan-fast logs {run}/bad")
    assert why(harness, run, "after").detail == "was skipped because a task above it failed"
    assert why(harness, run, "alarm").detail == "was skipped: its condition 'when: failure' does not hold"
    assert why(harness, run, "gone").detail == "was cancelled (cancelled)"
    told = why_run(harness, run)
    assert (told.state, told.reason, told.detail) == ("FAILED", "bad exit:3", "failed: exit:3")


def test_a_run_is_explained_by_what_it_waits_for() -> None:
    harness = SchedulerHarness()
    run = harness.submit([task("a", requires=("GPU",)), task("b", "a")])
    assert why_run(harness, run).detail == "task 'a' waits for a worker with GPU; none is connected"
    harness.worker("gpu", 1, ["GPU"])
    harness.run_to_end()
    assert why_run(harness, run).detail == "the run is COMPLETED"
