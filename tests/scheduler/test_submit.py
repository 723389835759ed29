"""A submit is all of a graph or none of it, and a refusal names what is wrong."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from titan_fast.errors import InvalidGraph, Stopping
from titan_fast.ids import make_fence
from titan_fast.model.spec import MAX_MEMBERS, MAX_NAMED_TASKS, Affinity
from titan_fast.scheduler import events as ev
from titan_fast.scheduler import facts
from titan_fast.scheduler import graph as admission
from titan_fast.testing.harness import SchedulerHarness, array, chain, task


def blob(*payloads: bytes) -> bytes:
    """Payloads as they travel: offsets, then the bytes they cut."""
    offsets = [0]
    for payload in payloads:
        offsets.append(offsets[-1] + len(payload))
    return struct.pack(f">{len(offsets)}I", *offsets) + b"".join(payloads)


def refused(tasks, *words: str, payloads: tuple[bytes, ...] = (), field: str | None = None) -> None:
    """The graph is refused with these words, and nothing of it is left in the core."""
    harness = SchedulerHarness()
    harness.worker("w", slots=8)
    with pytest.raises(InvalidGraph) as caught:
        harness.submit(tasks, payloads)
    for word in words:
        assert word in str(caught.value)
    if field is not None:
        assert caught.value.field == field
    state = harness.scheduler.state
    assert not state.runs and not len(state.queue) and not sum(state.totals)
    assert not any(isinstance(fact, facts.RunAccepted) for fact in harness.facts)
    assert not harness.workers["w"].held
    assert harness.submit([task("fine")]) == 1, "a refused graph uses up no number"


def test_runs_are_numbered_from_one() -> None:
    harness = SchedulerHarness()
    assert [harness.submit([task("a")]) for _ in range(3)] == [1, 2, 3]


def test_a_cycle_is_refused_with_its_members_named() -> None:
    tasks = [task("in"), task("a", "c", "in"), task("b", "a"), task("c", "b"), task("out", "c")]
    refused(tasks, "circle", "'a'", "'b'", "'c'")


def test_the_named_circle_holds_only_its_members() -> None:
    harness = SchedulerHarness()
    with pytest.raises(InvalidGraph) as caught:
        harness.submit([task("x", "b"), task("a", "b"), task("b", "a")])
    assert "'x'" not in str(caught.value)


def test_a_task_that_needs_itself_is_a_cycle() -> None:
    refused([task("a", "a")], "circle", "'a' needs 'a'")


def test_a_long_circle_is_found_without_recursion() -> None:
    names = [f"t{number}" for number in range(30_000)]
    tasks = chain(*names)
    tasks[0] = task("t0", names[-1])
    refused(tasks, "circle")


def test_an_unknown_parent_is_refused_by_name() -> None:
    refused([task("a"), task("b", "a", "nobody")], "'b'", "'nobody'", field="tasks[1].needs")


def test_a_name_used_twice_is_refused() -> None:
    refused([task("a"), task("b"), task("a")], "'a'", "twice", field="tasks[2].name")


def test_an_empty_graph_is_refused() -> None:
    refused([], "no tasks")


def test_a_count_without_an_array_is_refused() -> None:
    refused([task("a", count=3)], "count of 3")


def test_an_array_of_nothing_is_refused() -> None:
    refused([array("a", 0)], "count of 0")


def test_more_members_than_the_limit_are_refused() -> None:
    refused([array("a", MAX_MEMBERS), task("b")], str(MAX_MEMBERS))


def test_more_named_tasks_than_the_limit_are_refused() -> None:
    one = task("a")
    refused([one] * (MAX_NAMED_TASKS + 1), str(MAX_NAMED_TASKS))


def test_more_edges_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_EDGES", 3)
    refused([task("a"), task("b", "a"), task("c", "a", "b"), task("d", "a")], "edges")


def test_affinity_to_a_task_that_is_no_parent_is_refused() -> None:
    refused([task("a"), task("b"), task("c", "a", affinity=Affinity("parent", "b"))], "affinity", "'b'")


def test_affinity_to_a_parent_without_one_is_refused() -> None:
    refused([task("a", affinity=Affinity("parent"))], "affinity", "no parent")


@pytest.mark.parametrize(
    "payload",
    [
        blob(b"a", b"b"),
        blob(b"a", b"b", b"c", b"d"),
        blob(b"a", b"b", b"c") + b"x",
        blob(b"a", b"b", b"c")[:-1],
        struct.pack(">4I", 0, 2, 1, 3) + b"abc",
        struct.pack(">4I", 1, 1, 2, 3) + b"abc",
        b"",
        b"xyz",
    ],
)
def test_payloads_that_do_not_fit_are_refused(payload: bytes) -> None:
    refused([array("a", 3, payload=0)], "do not fit", payloads=(payload,), field="tasks[0].payload")


@pytest.mark.parametrize("end", [0, 2])
def test_a_payload_that_does_not_fit_its_only_member_is_refused(end: int) -> None:
    refused([array("a", 1, payload=0)], "do not fit", payloads=(struct.pack(">2I", 0, end) + b"x",))


def test_a_payload_of_one_member_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_PAYLOAD", 3)
    refused([array("a", 1, payload=0)], "more than 3 bytes", payloads=(blob(b"four"),))


def test_a_missing_attachment_is_refused() -> None:
    refused([array("a", 3, payload=1)], "attachment 1", payloads=(blob(b"a", b"b", b"c"),))


def test_members_get_their_own_payloads() -> None:
    harness = SchedulerHarness()
    run = harness.submit([array("a", 4, payload=0)], (blob(b"zero", b"", b"two", b"three"),))
    kept = harness.scheduler.state.runs[run]
    piece = kept.payload_slice(0, 1, 2)
    offsets = struct.unpack(">3I", piece[:12])
    assert [piece[12 + a - offsets[0] : 12 + b - offsets[0]] for a, b in pairwise(offsets)] == [
        b"",
        b"two",
    ]
    assert kept.payload_slice(0, 0, 4) == blob(b"zero", b"", b"two", b"three")


def test_an_accepted_graph_is_one_fact_with_its_floor() -> None:
    harness = SchedulerHarness()
    harness.worker("w", slots=2)
    harness.submit([array("a", 2)])
    run = harness.submit([task("b")])
    accepted = [fact for fact in harness.facts if isinstance(fact, facts.RunAccepted)]
    assert [fact.run for fact in accepted] == [1, run]
    assert accepted[0].floor == make_fence(1, 0)
    assert accepted[1].floor == make_fence(1, 2), "two fences were given out before"


def test_a_stopping_master_refuses_and_says_it_can_be_tried_again() -> None:
    harness = SchedulerHarness()
    harness.do(ev.StopRequested())
    with pytest.raises(Stopping) as caught:
        harness.submit([task("a")])
    assert caught.value.retryable
