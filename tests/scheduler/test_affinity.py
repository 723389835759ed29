"""Tasks near related work: prefer waits a while, require waits for good, and a lost worker is not waited for."""

from __future__ import annotations

from titan_fast.model.spec import Affinity
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.testing.harness import SchedulerHarness, array, task

PREFER = Affinity("parent")
REQUIRE = Affinity("parent", mode="require")


def two_workers() -> SchedulerHarness:
    harness = SchedulerHarness()
    harness.worker("w1", 2)
    harness.worker("w2", 2)
    return harness


def where(harness: SchedulerHarness, name: str) -> str:
    return next((worker for worker in harness.workers if name in harness.held_names(worker)), "")


def test_a_child_runs_where_its_parent_ran() -> None:
    for first in ("w1", "w2"):
        harness = two_workers()
        harness.submit([task("a"), task("b"), task("after_a", "a", affinity=PREFER)])
        place = where(harness, "a")
        harness.finish(place, only="a")
        assert where(harness, "after_a") == place, first


def test_a_child_runs_where_the_parent_that_finished_last_ran() -> None:
    harness = two_workers()
    harness.submit([task("a"), task("b"), task("c", "a", "b", affinity=PREFER)])
    place_a, place_b = where(harness, "a"), where(harness, "b")
    assert place_a != place_b
    harness.finish(place_b, only="b")
    harness.finish(place_a, only="a")
    assert where(harness, "c") == place_a


def test_a_child_may_name_the_parent_it_follows() -> None:
    harness = two_workers()
    harness.submit([task("a"), task("b"), task("c", "a", "b", affinity=Affinity("parent", "b"))])
    place_b = where(harness, "b")
    harness.finish(place_b, only="b")
    harness.finish(where(harness, "a"), only="a")
    assert where(harness, "c") == place_b


def test_a_child_follows_a_parent_that_failed_too() -> None:
    harness = two_workers()
    run = harness.submit([task("a"), task("b", "a", when="failure", affinity=REQUIRE)])
    place = where(harness, "a")
    harness.end(place, harness.start(place), code=1)
    assert where(harness, "b") == place
    harness.finish(place)
    assert harness.state(run, "b") == "COMPLETED"


def test_the_wait_for_a_full_worker_ends() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a"), array("b", 2, "a", affinity=Affinity("parent", wait=2.0))])
    harness.finish("w1")
    harness.worker("w2", 1)
    assert harness.held_names("w1") == ["b[0]"]
    harness.advance(1.9)
    assert harness.inner_state(run, "b[1]") is TaskState.PINNED and not harness.held_names("w2")
    harness.advance(0.2)
    assert harness.held_names("w2") == ["b[1]"]


def test_a_required_worker_is_waited_for_however_long() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a"), array("b", 2, "a", affinity=REQUIRE)])
    harness.finish("w1")
    harness.worker("w2", 1)
    harness.advance(3000.0)
    assert harness.inner_state(run, "b[1]") is TaskState.PINNED and not harness.held_names("w2")
    harness.finish("w1")
    assert harness.held_names("w1") == ["b[1]"]


def test_tasks_of_a_key_gather_on_one_worker() -> None:
    harness = two_workers()
    harness.worker("w3", 2)
    harness.submit([array("a", 2, affinity=Affinity("key", "cache")), array("other", 4)])
    place = where(harness, "a[0]")
    assert where(harness, "a[1]") == place
    harness.finish(place)
    later = harness.submit([task("later", affinity=Affinity("key", "cache"))])
    assert where(harness, "later") == place
    harness.run_to_end()
    assert harness.run_state(later) == "COMPLETED"


def test_a_key_moves_when_its_worker_is_lost() -> None:
    harness = two_workers()
    harness.submit([task("a", affinity=Affinity("key", "k"))])
    place = where(harness, "a")
    other = "w2" if place == "w1" else "w1"
    harness.vanish(place)
    assert where(harness, "a") == other
    harness.submit([task("b", affinity=Affinity("key", "k", mode="require"))])
    assert where(harness, "b") == other


def test_a_key_whose_worker_cannot_serve_a_task_moves_to_one_that_can() -> None:
    harness = SchedulerHarness()
    harness.worker("plain", 2)
    harness.submit([task("a", affinity=Affinity("key", "k", mode="require"))])
    harness.worker("gpu", 2, ["GPU"])
    harness.submit([task("b", requires=("GPU",), affinity=Affinity("key", "k", mode="require"))])
    assert harness.held_names("gpu") == ["b"]


def test_a_required_key_waits_for_a_worker_that_is_only_silent() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 2)
    run = harness.submit([task("a", affinity=Affinity("key", "k", mode="require"))])
    harness.worker("w2", 2)
    harness.finish("w1")
    harness.do(ev.WorkerSuspected("w1"))
    later = harness.submit([task("b", affinity=Affinity("key", "k", mode="require"))])
    assert not harness.held_names("w2")
    harness.do(ev.WorkerRecovered("w1"))
    assert harness.held_names("w1") == ["b"]
    assert (harness.run_state(run), harness.run_state(later)) == ("COMPLETED", "RUNNING")


def test_who_preferred_a_silent_worker_goes_elsewhere_at_once() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    harness.submit([task("a"), array("b", 2, "a", affinity=Affinity("parent", wait=60.0))])
    harness.finish("w1")
    harness.worker("w2", 1)
    assert not harness.held_names("w2")
    harness.do(ev.WorkerSuspected("w1"))
    assert harness.held_names("w2") == ["b[1]"]


def test_who_requires_the_worker_of_a_parent_fails_when_it_is_lost() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    harness.worker("w2", 1, ["SPARE"])
    run = harness.submit([task("a"), array("b", 2, "a", affinity=REQUIRE), task("c", "b")])
    harness.finish("w1")
    harness.vanish("w1")
    states = harness.states(run)
    assert states["b[1]"] == "FAILED"
    assert harness.scheduler.state.runs[run].reasons[harness.index(run, "b[1]")] == "affinity: its worker is gone"
    harness.run_to_end()
    assert harness.states(run)["c"] == "SKIPPED"
    assert harness.run_state(run) == "FAILED"


def test_who_requires_a_parents_worker_that_lacks_a_capability_fails_and_says_so() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a"), task("b", "a", requires=("GPU",), affinity=REQUIRE)])
    harness.worker("gpu", 1, ["GPU"])
    harness.finish("w1")
    assert harness.state(run, "b") == "FAILED"
    assert harness.scheduler.state.runs[run].reason_of(1) == "affinity: w1 lacks GPU"


def test_a_child_whose_parents_never_ran_has_nowhere_to_be_near() -> None:
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a", when="failure"), task("b", "a", when="always", affinity=REQUIRE)])
    harness.run_to_end()
    assert harness.states(run) == {"a": "SKIPPED", "b": "COMPLETED"}


def test_a_stopping_master_gives_nobody_up() -> None:
    """Its workers go, one after the other; what requires one of them is there after the restart."""
    harness = SchedulerHarness()
    harness.worker("w1", 1)
    run = harness.submit([task("a"), array("b", 2, "a", affinity=REQUIRE)])
    harness.finish("w1")
    harness.do(ev.StopRequested())
    harness.vanish("w1")
    assert harness.state(run, "b[1]") == "PENDING"
