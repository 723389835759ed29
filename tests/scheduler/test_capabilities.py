"""A task runs only where all it requires is; what cannot run now stands in nobody's way."""

from __future__ import annotations

from titan_fast.testing.harness import SchedulerHarness, array, task


def test_a_task_runs_only_where_all_it_requires_is() -> None:
    harness = SchedulerHarness()
    harness.worker("plain", 4)
    harness.worker("gpu", 4, ["GPU"])
    harness.worker("mem", 4, ["HIGH_MEM"])
    harness.submit([task("both", requires=("GPU", "HIGH_MEM")), task("gpu", requires=("GPU",))])
    assert harness.held_names("gpu") == ["gpu"]
    assert not harness.held_names("plain") and not harness.held_names("mem")
    harness.worker("all", 4, ["GPU", "HIGH_MEM", "DISK"])
    assert harness.held_names("all") == ["both"]


def test_an_array_is_routed_whole() -> None:
    harness = SchedulerHarness()
    harness.worker("plain", 8)
    harness.submit([array("a", 20, requires=("GPU",))])
    assert not harness.held_names("plain")
    harness.worker("gpu", 32, ["GPU"])
    assert len(harness.held_names("gpu")) == 20


def test_a_blocked_class_never_blocks_another() -> None:
    """An urgent task nobody can serve, in front of everything, in the same run and in others."""
    harness = SchedulerHarness()
    harness.worker("plain", 2)
    run = harness.submit([array("gpu", 1000, requires=("GPU",), priority=100), task("plain")])
    other = harness.submit([task("other")])
    harness.finish("plain")
    assert harness.state(run, "plain") == "COMPLETED"
    assert harness.run_state(other) == "COMPLETED"
    assert harness.state(run, "gpu[0]") == "PENDING"


def test_a_full_class_never_blocks_another() -> None:
    harness = SchedulerHarness()
    harness.worker("gpu", 1, ["GPU"])
    harness.worker("plain", 1)
    harness.submit([array("gpu", 10, requires=("GPU",), priority=5), array("plain", 3)])
    assert harness.held_names("gpu") == ["gpu[0]"]
    assert harness.held_names("plain") == ["plain[0]"]


def test_general_tasks_leave_special_workers_free() -> None:
    harness = SchedulerHarness()
    harness.worker("gpu", 2, ["GPU"])
    harness.worker("plain", 2)
    harness.submit([array("general", 2)])
    assert len(harness.held_names("plain")) == 2
    assert not harness.held_names("gpu")
    harness.submit([array("more", 1)])
    assert harness.held_names("gpu") == ["more[0]"], "but they do not stand idle"


def test_a_worker_that_comes_back_without_a_capability_is_given_nothing_of_it() -> None:
    """Its next incarnation has lost its GPU: the old entry in the books of GPU workers counts no more."""
    harness = SchedulerHarness()
    harness.worker("w", 4, ["GPU"])
    harness.vanish("w")
    harness.worker("w", 4)
    harness.submit([task("gpu", requires=("GPU",)), task("plain")])
    assert harness.held_names("w") == ["plain"]


def test_a_capability_that_comes_late_takes_what_waits() -> None:
    harness = SchedulerHarness()
    harness.worker("w", 4)
    run = harness.submit([task("gpu", requires=("GPU",))])
    harness.vanish("w")
    harness.worker("w", 4, ["GPU"])
    harness.run_to_end()
    assert harness.run_state(run) == "COMPLETED"


def test_thousands_of_classes_are_each_served_by_who_can() -> None:
    harness = SchedulerHarness(check=False)
    run = harness.submit([task(f"t{number}", requires=(f"C{number}",)) for number in range(2000)])
    harness.worker("w", 4, [f"C{number}" for number in (3, 700, 1999)])
    assert sorted(harness.held_names("w")) == ["t1999", "t3", "t700"]
    harness.run_to_end()
    assert list(harness.states(run).values()).count("COMPLETED") == 3
