"""`when`: success (of all parents that had work), failure (of any), always. A skipped parent is neither."""

from __future__ import annotations

import pytest

from titan_fast.testing.harness import SchedulerHarness, array, task


def ended(parent: str, when: str) -> tuple[str, str]:
    """(state of a child with this `when`, state of the run) after its parent ended this way."""
    harness = SchedulerHarness()
    harness.worker("w")
    run = harness.submit([task("parent"), task("child", "parent", when=when)])
    if parent == "CANCELLED":
        harness.cancel(run, "parent")
        harness.obey("w")
    elif parent == "DEAD":
        while harness.state(run, "parent") != "DEAD":
            harness.start("w")
            harness.vanish("w")
            harness.worker("w")
    else:
        harness.end("w", harness.start("w"), code=int(parent == "FAILED"))
    harness.run_to_end()
    assert harness.state(run, "parent") == parent
    return harness.state(run, "child"), harness.run_state(run)


@pytest.mark.parametrize(
    ("parent", "when", "child", "run"),
    [
        ("COMPLETED", "success", "COMPLETED", "COMPLETED"),
        ("COMPLETED", "failure", "SKIPPED", "COMPLETED"),
        ("COMPLETED", "always", "COMPLETED", "COMPLETED"),
        ("FAILED", "success", "SKIPPED", "FAILED"),
        ("FAILED", "failure", "COMPLETED", "FAILED"),
        ("FAILED", "always", "COMPLETED", "FAILED"),
        ("DEAD", "success", "SKIPPED", "FAILED"),
        ("DEAD", "failure", "COMPLETED", "FAILED"),
        ("DEAD", "always", "COMPLETED", "FAILED"),
        ("CANCELLED", "success", "CANCELLED", "CANCELLED"),
        ("CANCELLED", "failure", "CANCELLED", "CANCELLED"),
        ("CANCELLED", "always", "CANCELLED", "CANCELLED"),
    ],
)
def test_a_child_does_what_its_when_says(parent: str, when: str, child: str, run: str) -> None:
    assert ended(parent, when) == (child, run)


def outcome(*tasks, failing: tuple[str, ...] = ()) -> tuple[SchedulerHarness, int]:
    harness = SchedulerHarness()
    harness.worker("w", 8)
    run = harness.submit(tasks)
    while harness.run_state(run) in ("PENDING", "RUNNING"):
        held = harness.start("w")
        harness.end("w", [item for item in held if item.name in failing], code=1)
        harness.end("w", [item for item in held if item.name not in failing])
    return harness, run


def test_one_failed_parent_is_enough_for_failure() -> None:
    harness, run = outcome(task("good"), task("bad"), task("alarm", "good", "bad", when="failure"), failing=("bad",))
    assert harness.state(run, "alarm") == "COMPLETED"
    assert harness.run_state(run) == "FAILED", "also when somebody dealt with it"


def test_a_failures_shadow_reaches_the_whole_branch() -> None:
    harness, run = outcome(task("a"), task("b", "a"), task("c", "b"), task("d", "c", when="always"), failing=("a",))
    assert harness.states(run) == {"a": "FAILED", "b": "SKIPPED", "c": "SKIPPED", "d": "COMPLETED"}
    reasons = harness.scheduler.state.runs[run]
    assert reasons.reason_of(1) == reasons.reason_of(2) == "upstream_failed"


def test_a_skipped_parent_is_no_failure() -> None:
    """b is skipped because a failed; c waits for a failure of b, and b did not fail."""
    harness, run = outcome(task("a"), task("b", "a"), task("c", "b", when="failure"), failing=("a",))
    assert harness.state(run, "c") == "SKIPPED"
    assert harness.scheduler.state.runs[run].reason_of(2) == "when"


def test_a_branch_nobody_wanted_harms_nothing() -> None:
    harness, run = outcome(task("a"), task("alarm", "a", when="failure"), task("end", "a", "alarm"))
    assert harness.states(run) == {"a": "COMPLETED", "alarm": "SKIPPED", "end": "COMPLETED"}
    assert harness.run_state(run) == "COMPLETED"


def test_after_a_branch_nobody_wanted_nothing_was_successful() -> None:
    harness, run = outcome(task("a"), task("alarm", "a", when="failure"), task("after", "alarm"))
    assert harness.state(run, "after") == "SKIPPED"
    assert harness.run_state(run) == "COMPLETED"


def test_one_failed_member_makes_an_array_a_failed_parent() -> None:
    harness, run = outcome(
        array("part", 5), task("sum", "part"), task("alarm", "part", when="failure"), failing=("part[3]",)
    )
    assert harness.state(run, "sum") == "SKIPPED"
    assert harness.state(run, "alarm") == "COMPLETED"


def test_an_array_is_skipped_whole_with_one_fact_each() -> None:
    harness, run = outcome(task("a"), array("b", 1000, "a"), task("c", "b"), failing=("a",))
    assert harness.states(run)["b[999]"] == harness.state(run, "c") == "SKIPPED"
    settled = [fact for fact in harness.facts if type(fact).__name__ == "TasksSettled"]
    assert [fact.count for fact in settled] == [1000, 1]


def test_roots_are_judged_too() -> None:
    harness, run = outcome(task("a", when="always"), task("b", when="failure"), task("c"))
    assert harness.states(run) == {"a": "COMPLETED", "b": "SKIPPED", "c": "COMPLETED"}
