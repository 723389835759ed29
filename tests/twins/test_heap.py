"""The ready queue and the timers: order, shares, exact counts, and both twins equal at every step."""

from __future__ import annotations

import gc
import random
import weakref
from itertools import pairwise

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from titan_fast._layout import DEFAULT_COST, QUANTUM

TWIN = "_heap"
LAST = 2**32 - 1


def outcome(call, *arguments):
    """What a call gave: its value, or its error's type and text."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error), str(error)


def one_class(twin, views=1):
    """A queue with one class that every view serves."""
    queue = twin.ReadyQueue()
    queue.add_class()
    for _ in range(views):
        queue.link(queue.add_view(), 0)
    return queue


def drain(queue, view=0, limit=1):
    """Everything a view can get, as (class, run, priority, spec, first, count)."""
    taken = []
    while (found := queue.take(view, limit)) is not None:
        taken.append(found)
    return taken


def runs_of(queue, takes, view=0, limit=1):
    """Whose turn it is, take by take."""
    return [queue.take(view, limit)[1] for _ in range(takes)]


# ---------------------------------------------------------------- what a run queue gives


def test_an_empty_queue_has_nothing_to_give(twin):
    queue = one_class(twin)
    assert queue.take(0, 1) is None and queue.peek(0) is None
    assert len(queue) == queue.ready(0) == 0


def test_classes_and_views_are_numbered_in_order(twin):
    queue = twin.ReadyQueue()
    assert [queue.add_class() for _ in range(3)] == [queue.add_view() for _ in range(3)] == [0, 1, 2]


def test_a_range_is_taken_from_its_front_up_to_the_limit(twin):
    queue = one_class(twin)
    queue.push(0, 7, -3, 2, 10, 5)
    assert queue.take(0, 3) == (0, 7, -3, 2, 10, 3)
    assert queue.take(0, 3) == (0, 7, -3, 2, 13, 2)
    assert queue.take(0, 3) is None


def test_peek_tells_what_take_would_start_with_and_takes_nothing(twin):
    queue = one_class(twin)
    queue.push(0, 7, 1, 2, 10, 5)
    assert queue.peek(0) == queue.peek(0) == (0, 7, 1, 2, 10)
    assert len(queue) == 5
    assert queue.take(0, 9)[:5] == (0, 7, 1, 2, 10)


def test_ranges_go_in_arrival_order(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 5, 50, 2)
    queue.push(0, 1, 0, 5, 10, 2)
    assert drain(queue, limit=9) == [(0, 1, 0, 5, 50, 2), (0, 1, 0, 5, 10, 2)]


def test_neighbours_of_one_spec_are_taken_together_however_they_came(twin):
    queue = one_class(twin)
    for index in (3, 1, 2):
        queue.push_back(0, 1, 0, 5, index)
    for index in range(4, 8):
        queue.push(0, 1, 0, 5, index, 1)
    queue.push(0, 1, 0, 6, 8, 1)
    assert drain(queue, limit=100) == [(0, 1, 0, 5, 1, 7), (0, 1, 0, 6, 8, 1)]


def test_what_came_back_goes_before_the_ranges_lowest_index_first(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 5, 100, 2)
    for index in (40, 7, 23):
        queue.push_back(0, 1, 0, 5, index)
    assert [found[4] for found in drain(queue)] == [7, 23, 40, 100, 101]


def test_the_limit_may_be_larger_than_any_number_of_tasks(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 5, 0, LAST)
    queue.push(0, 1, 0, 5, LAST, 1)
    assert len(queue) == 2**32
    assert queue.take(0, 10**40) == (0, 1, 0, 5, 0, LAST)
    assert queue.take(0, 2**63) == (0, 1, 0, 5, LAST, 1)


@pytest.mark.parametrize("limit", [0, -1, -(10**40)])
def test_a_limit_below_one_makes_no_sense(twin, limit):
    with pytest.raises(ValueError, match=f"limit must be at least 1, not {limit}"):
        one_class(twin).take(0, limit)


def test_pushing_no_tasks_does_nothing(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 5, 3, 0)
    assert len(queue) == 0 and queue.take(0, 1) is None
    with pytest.raises(KeyError):
        queue.discard(0, 1, 0, 3, 0)


# ---------------------------------------------------------------- order and shares


def test_a_higher_priority_goes_first_and_a_negative_one_last(twin):
    queue = one_class(twin)
    for run, priority in ((1, 0), (2, -(2**31)), (3, 2**31 - 1), (4, -1), (5, 7)):
        queue.push(0, run, priority, 0, 0, 2)
    assert [found[1] for found in drain(queue)] == [3, 3, 5, 5, 1, 1, 4, 4, 2, 2]


def test_equal_runs_go_by_their_number_up_to_the_highest(twin):
    queue = one_class(twin)
    for run in (2**64 - 1, 5, 0, 2**63):
        queue.push(0, run, 0, 0, 0, 1)
    assert [found[1] for found in drain(queue)] == [0, 5, 2**63, 2**64 - 1]


def test_a_small_run_is_not_buried_by_a_large_one(twin):
    """10 tasks arrive behind 100,000 of equal priority and get every second turn."""
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 100_000)
    for _ in range(1000):
        queue.take(0, 3)
    queue.push(0, 2, 0, 0, 0, 10)
    assert runs_of(queue, 22).count(2) == 10


def test_shares_are_of_time_not_of_tasks(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 10_000)
    queue.push(0, 2, 0, 0, 0, 10_000)
    queue.set_cost(0, 1, 0, 0.010)
    queue.set_cost(0, 2, 0, 0.002)
    turns = runs_of(queue, 600)
    assert turns.count(1) == pytest.approx(100, abs=2) and turns.count(2) == pytest.approx(500, abs=2)


def test_many_runs_share_equally(twin):
    queue = one_class(twin)
    for run in range(50):
        queue.push(0, run, 0, 0, 0, 1000)
    turns = runs_of(queue, 5000)
    assert {turns.count(run) for run in range(50)} == {100}


def test_a_run_alone_is_taken_by_the_limit_and_with_company_by_the_quantum(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 1000)
    queue.set_cost(0, 1, 0, QUANTUM / 8)
    assert queue.take(0, 100)[5] == 100
    queue.push(0, 2, 0, 0, 0, 1000)
    takes = [queue.take(0, 100) for _ in range(30)]
    assert {found[5] for found in takes if found[1] == 1} == {8}
    assert {found[5] for found in takes if found[1] == 2} == {int(QUANTUM / DEFAULT_COST)}
    queue.set_cost(0, 1, 0, 60.0)
    assert {queue.take(0, 100)[5] for _ in range(10)} == {1}


def test_every_task_of_a_take_counts(twin):
    """100 tasks in one take use as much of the share as 100 takes."""
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 1000)
    assert queue.take(0, 100)[5] == 100
    queue.push(0, 2, 0, 0, 0, 1000)
    assert runs_of(queue, 150).count(1) == pytest.approx(25, abs=1)


def test_company_of_another_priority_or_class_is_none(twin):
    queue = one_class(twin)
    queue.link(0, queue.add_class())
    queue.push(0, 1, 5, 0, 0, 50)
    queue.push(0, 2, 0, 0, 0, 50)
    queue.push(1, 3, 5, 0, 0, 50)
    assert queue.take(0, 50)[5] == 50


def test_a_cost_of_nothing_still_lets_others_pass(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 100_000)
    queue.push(0, 2, 0, 0, 0, 10)
    queue.set_cost(0, 1, 0, 0.0)
    takes = [queue.take(0, 100_000) for _ in range(3)]
    assert [found[1] for found in takes] == [1, 2, 1]
    assert takes[0][5] == pytest.approx(1000, abs=1), "a thousandth of the quantum each"


def test_a_run_queue_that_wakes_starts_at_the_time_of_the_last_take(twin):
    """It is not owed the time it was not there; from then on it shares."""
    queue = one_class(twin)
    queue.push(0, 2, 0, 0, 0, 1000)
    runs_of(queue, 500)
    queue.push(0, 1, 0, 0, 0, 1000)
    assert runs_of(queue, 100).count(1) == pytest.approx(50, abs=1)


def test_an_emptied_run_queue_keeps_its_cost_and_its_time(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 1)
    queue.set_cost(0, 1, 0, 0.1)
    queue.take(0, 1)
    queue.push(0, 2, 0, 0, 0, 1000)
    queue.push_back(0, 1, 0, 0, 0)
    assert runs_of(queue, 102).index(1) == pytest.approx(100, abs=1), "100 ms were used, the others catch up first"
    queue.push(0, 1, 0, 0, 0, 1000)
    assert runs_of(queue, 303).count(1) == pytest.approx(2, abs=1), "its tasks still cost 100 ms"


def test_a_forgotten_run_starts_anew_at_the_clock(twin):
    queue = one_class(twin)
    for run in (1, 2):
        queue.push(0, run, 0, 0, 0, 1000)
    runs_of(queue, 500)
    queue.forget_run(1)
    queue.push(0, 1, 0, 0, 0, 1000)
    assert runs_of(queue, 100).count(1) == pytest.approx(50, abs=1)


def test_each_priority_has_its_own_time(twin):
    """Urgent work that used hours does not make the clock of ordinary work jump, nor the other way round."""
    queue = one_class(twin)
    queue.push(0, 1, 9, 0, 0, 100)
    queue.set_cost(0, 1, 9, 3600.0)
    queue.push(0, 2, 0, 0, 0, 1000)
    runs_of(queue, 50)
    queue.push(0, 3, 9, 0, 0, 10)
    assert runs_of(queue, 3).count(3) >= 2
    queue.forget_run(1)
    queue.forget_run(3)
    runs_of(queue, 10)
    queue.push(0, 4, 0, 0, 0, 1000)
    assert runs_of(queue, 100).count(4) == pytest.approx(50, abs=1)


def test_a_fast_class_does_not_move_the_clock_of_a_slow_one(twin):
    """Two classes with workers of their own: a new run of either shares with the old run of its class at once."""
    queue = twin.ReadyQueue()
    for number in range(2):
        queue.add_class()
        queue.link(queue.add_view(), number)
        queue.push(number, 1, 0, 0, 0, 100_000)
    queue.set_cost(0, 1, 0, 1.0)
    queue.set_cost(1, 1, 0, 1.0)
    for _ in range(5):
        runs_of(queue, 100, view=0)
        queue.take(1, 1)
    for number in range(2):
        queue.push(number, 2, 0, 0, 0, 100_000)
        queue.set_cost(number, 2, 0, 1.0)
        assert runs_of(queue, 100, view=number).count(2) == pytest.approx(50, abs=1)


def test_a_class_that_wakes_does_not_bury_the_others_of_its_view(twin):
    queue = one_class(twin)
    queue.link(0, queue.add_class())
    queue.push(0, 1, 0, 0, 0, 100_000)
    runs_of(queue, 10_000)
    queue.push(1, 2, 0, 0, 0, 100_000)
    assert runs_of(queue, 100).count(2) == pytest.approx(50, abs=1)


# ---------------------------------------------------------------- classes and views


def test_a_blocked_class_never_blocks_another(twin):
    queue = one_class(twin)
    blocked = queue.add_class()
    queue.push(blocked, 1, 99, 0, 0, 1000)
    queue.push(0, 2, 0, 0, 0, 3)
    assert drain(queue, limit=9) == [(0, 2, 0, 0, 0, 3)]
    assert queue.ready(blocked) == len(queue) == 1000


def test_a_view_gets_only_what_it_serves_and_a_better_one_first(twin):
    queue = one_class(twin)
    gpu, workers = queue.add_class(), queue.add_view()
    queue.link(workers, gpu)
    queue.link(workers, 0)
    queue.push(gpu, 1, 5, 0, 0, 1)
    queue.push(0, 2, 0, 0, 0, 1)
    assert queue.peek(0) == (0, 2, 0, 0, 0)
    assert [found[0] for found in drain(queue, workers)] == [gpu, 0]


def test_equal_heads_of_two_classes_go_by_class(twin):
    queue = one_class(twin)
    queue.link(0, queue.add_class())
    queue.push(1, 1, 0, 0, 0, 1)
    queue.push(0, 1, 0, 0, 1, 1)
    assert [found[0] for found in drain(queue)] == [0, 1]


def test_a_head_that_improves_is_seen_by_every_view(twin):
    queue = one_class(twin, views=3)
    other = queue.add_class()
    for view in range(3):
        queue.link(view, other)
    queue.push(0, 1, 0, 0, 0, 5)
    queue.push(other, 1, 1, 0, 5, 5)
    assert {queue.peek(view) for view in range(3)} == {(other, 1, 1, 0, 5)}
    queue.push(0, 2, 2, 0, 0, 1)
    assert {queue.peek(view) for view in range(3)} == {(0, 2, 2, 0, 0)}


def test_what_one_view_takes_is_gone_for_all(twin):
    queue = one_class(twin, views=2)
    queue.push(0, 1, 0, 0, 0, 2)
    assert [queue.take(view, 1)[4] for view in (0, 1)] == [0, 1]
    assert queue.take(0, 1) is queue.take(1, 1) is None


def test_a_class_may_be_linked_when_it_is_filled_and_twice(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 2)
    view = queue.add_view()
    for _ in range(3):
        queue.link(view, 0)
    assert drain(queue, view) == [(0, 1, 0, 0, 0, 1), (0, 1, 0, 0, 1, 1)]


# ---------------------------------------------------------------- discards


def test_parts_of_ranges_and_singles_are_discarded(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 10, 10)
    for index in (1, 2, 3):
        queue.push_back(0, 1, 0, 0, index)
    queue.discard(0, 1, 0, 2, 1)
    queue.discard(0, 1, 0, 10, 2)
    queue.discard(0, 1, 0, 15, 1)
    assert queue.ready(0) == len(queue) == 9
    assert [found[4:] for found in drain(queue, limit=99)] == [(1, 1), (3, 1), (12, 3), (16, 4)]


def test_discarding_everything_empties_the_run_queue(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 100_000)
    queue.push(0, 2, 0, 0, 0, 1)
    queue.discard(0, 1, 0, 0, 100_000)
    assert len(queue) == 1
    assert drain(queue) == [(0, 2, 0, 0, 0, 1)]
    queue.push(0, 1, 0, 0, 7, 1)
    assert drain(queue) == [(0, 1, 0, 0, 7, 1)]


def test_the_last_living_task_may_be_discarded_after_others_were(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 10)
    for index in (3, 1, 2, 9, 0, 4, 5, 6, 8, 7):
        queue.discard(0, 1, 0, index, 1)
    assert len(queue) == 0 and queue.take(0, 1) is None


@pytest.mark.parametrize("back", [False, True])
def test_a_discarded_task_may_be_pushed_again_even_as_another_spec(twin, back):
    """Its dead copy is still in the queue; only the new one counts, and it stands where a new one belongs."""
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 6)
    queue.push_back(0, 1, 0, 0, 9)
    for _ in range(3):
        queue.discard(0, 1, 0, 4, 1)
        if back:
            queue.push_back(0, 1, 0, 8, 4)
        else:
            queue.push(0, 1, 0, 8, 4, 1)
        assert len(queue) == 7
    found = [(spec, first, count) for _, _, _, spec, first, count in drain(queue, limit=99)]
    rest = [(0, 0, 4), (0, 5, 1)]
    assert found == ([(8, 4, 1), (0, 9, 1), *rest] if back else [(0, 9, 1), *rest, (8, 4, 1)])


def test_a_task_that_is_pushed_again_does_not_die_with_a_neighbour_it_joins(twin):
    """Task 5 follows the last range in number, but that range is older than the discard of the first task 5."""
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 5, 5)
    queue.push(0, 1, 0, 0, 0, 5)
    queue.discard(0, 1, 0, 5, 1)
    queue.push(0, 1, 0, 0, 5, 1)
    queue.push(0, 1, 0, 0, 20, 3)
    queue.discard(0, 1, 0, 21, 1)
    assert [found[4:] for found in drain(queue, limit=99)] == [(6, 4), (0, 6), (20, 1), (22, 1)]


def test_a_run_queue_that_is_not_there_cannot_be_discarded_from(twin):
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 1)
    for cls, run, priority in ((0, 2, 0), (0, 1, 1), (7, 1, 0), (-1, 1, 0), (10**30, 1, 0)):
        with pytest.raises(KeyError, match=f"class {cls} has no run queue of run {run} and priority {priority}"):
            queue.discard(cls, run, priority, 0, 1)
    queue.take(0, 1)
    with pytest.raises(ValueError, match="1 tasks to discard, 0 are queued"):
        queue.discard(0, 1, 0, 0, 1)
    queue.discard(0, 1, 0, 0, 0)


def test_a_forgotten_run_is_gone_from_every_class_and_priority(twin):
    queue = one_class(twin)
    queue.link(0, queue.add_class())
    for cls in (0, 1):
        for priority in (-1, 4):
            queue.push(cls, 1, priority, 0, 10 * cls, 3)
            queue.push(cls, 2, priority, 0, 0, 1)
    queue.forget_run(1)
    queue.forget_run(1)
    queue.forget_run(99)
    assert len(queue) == 4 and queue.ready(0) == queue.ready(1) == 2
    assert {found[1] for found in drain(queue)} == {2}
    with pytest.raises(KeyError):
        queue.discard(0, 1, 4, 0, 1)


def test_the_cost_of_an_unknown_run_queue_is_ignored(twin):
    queue = one_class(twin)
    for cls, run in ((0, 5), (9, 5), (-1, 5), (10**30, 5)):
        queue.set_cost(cls, run, 0, 1.0)
    assert len(queue) == 0


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        ("push", (0, -1, 0, 0, 0, 1), "run"),
        ("push", (0, 2**64, 0, 0, 0, 1), "run"),
        ("push", (0, 1, 2**31, 0, 0, 1), "priority"),
        ("push", (0, 1, -(2**31) - 1, 0, 0, 1), "priority"),
        ("push", (0, 1, 10**30, 0, 0, 1), "priority"),
        ("push", (0, 1, 0, 2**32, 0, 1), "spec"),
        ("push", (0, 1, 0, -1, 0, 1), "spec"),
        ("push", (0, 1, 0, 0, 2**32, 1), "first"),
        ("push", (0, 1, 0, 0, -1, 1), "first"),
        ("push", (0, 1, 0, 0, 0, -1), "count"),
        ("push", (0, 1, 0, 0, 0, 2**32), "count"),
        ("push_back", (0, 2**64, 0, 0, 0), "run"),
        ("push_back", (0, 1, 0, 0, -1), "index"),
        ("push_back", (0, 1, 0, 0, 2**32), "index"),
        ("discard", (0, 1, 0, -1, 1), "first"),
        ("discard", (0, 1, 0, 0, 2**40), "count"),
        ("set_cost", (0, 2**64, 0, 1.0), "run"),
        ("forget_run", (-1,), "run"),
        ("forget_run", (2**64,), "run"),
    ],
)
def test_numbers_out_of_range_overflow_and_say_which(twin, call, arguments, name):
    queue = one_class(twin)
    with pytest.raises(OverflowError, match=f"^{name} must be between "):
        getattr(queue, call)(*arguments)
    assert len(queue) == 0


def test_tasks_beyond_the_last_index_overflow(twin):
    queue = one_class(twin)
    for first, count in ((LAST, 2), (2, LAST), (LAST, LAST)):
        with pytest.raises(OverflowError, match=f"{count} tasks from {first} on go beyond the last index, {LAST}"):
            queue.push(0, 1, 0, 0, first, count)
    queue.push(0, 1, 0, 0, LAST, 1)
    with pytest.raises(OverflowError, match="go beyond the last index"):
        queue.discard(0, 1, 0, LAST, 2)
    assert drain(queue) == [(0, 1, 0, 0, LAST, 1)]


@pytest.mark.parametrize("number", [1, -1, 2**70, -(2**70)])
def test_unknown_classes_and_views_are_told(twin, number):
    queue = one_class(twin)
    for call in (queue.ready, lambda cls: queue.push(cls, 1, 0, 0, 0, 1), lambda cls: queue.link(0, cls)):
        with pytest.raises(KeyError, match=f"there is no class {number}"):
            call(number)
    for call in (queue.peek, lambda view: queue.take(view, 1), lambda view: queue.link(view, 0)):
        with pytest.raises(KeyError, match=f"there is no view {number}"):
            call(number)


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf"), -1])
def test_a_cost_is_a_finite_number_of_seconds(twin, seconds):
    with pytest.raises(ValueError, match="a cost is a finite number of seconds from 0 on, not "):
        one_class(twin).set_cost(0, 1, 0, seconds)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("push", ("0", 1, 0, 0, 0, 1)),
        ("push", (0, 1.0, 0, 0, 0, 1)),
        ("push", (0, 1, None, 0, 0, 1)),
        ("push", (0, 2**64, "x", 0, 0, 1)),
        ("push", (9, 1, 0, 0, 0, "1")),
        ("push", (9, 1, 0, 0, LAST, 2)),
        ("push", (False, True, False, True, False, True)),
        ("push_back", (0, 1, 0, 0, 1.5)),
        ("take", (0, 1.0)),
        ("take", ("x", 0)),
        ("take", (9, 0)),
        ("peek", (None,)),
        ("link", (0, 0.0)),
        ("discard", ("x", 1, 0, 0, 1)),
        ("discard", (9, -1, 0, 0, 1)),
        ("set_cost", (0, "1", 0, 1.0)),
        ("set_cost", (0, 1, 0, "1")),
        ("set_cost", (0, -1, 0, -1)),
        ("set_cost", (0, 1, 0, 10**400)),
        ("set_cost", ("x", 1, 0, 1)),
        ("forget_run", ("1",)),
        ("ready", ("0",)),
    ],
)
def test_odd_arguments_are_met_the_same_way(both, call, arguments):
    compiled, pure = (outcome(getattr(one_class(module), call), *arguments) for module in both)
    assert compiled == pure


# ---------------------------------------------------------------- against a model that keeps it simple


class Model:
    """The contract and the theory in `_heap_py`, with lists and min() over everything."""

    def __init__(self):
        self.classes, self.views = 0, []
        self.queues, self.clocks, self.view_clocks = {}, {}, {}

    def add_class(self):
        self.classes += 1
        return self.classes - 1

    def add_view(self):
        self.views.append(set())
        return len(self.views) - 1

    def link(self, view, cls):
        self.views[view].add(cls)

    def waiting(self, cls, priority):
        return [
            queue
            for (c, _, p), queue in self.queues.items()
            if (c, p) == (cls, priority) and (queue["singles"] or queue["others"])
        ]

    def queue(self, cls, run, priority):
        """The run queue, about to be pushed to."""
        new = {"singles": [], "others": [], "vtime": 0.0, "cost": DEFAULT_COST, "order": (cls, run, priority)}
        queue = self.queues.setdefault((cls, run, priority), new)
        if not queue["singles"] and not queue["others"]:
            if not self.waiting(cls, priority):
                served = [view for view, classes in enumerate(self.views) if cls in classes]
                times = [self.view_clocks.get((view, priority), 0.0) for view in served]
                self.clocks[cls, priority] = max([self.clocks.get((cls, priority), 0.0), *times])
            queue["vtime"] = max(queue["vtime"], self.clocks[cls, priority])
        return queue

    def push(self, cls, run, priority, spec, first, count):
        self.queue(cls, run, priority)["others"] += [(index, spec) for index in range(first, first + count)]

    def push_back(self, cls, run, priority, spec, index):
        queue = self.queue(cls, run, priority)
        queue["singles"] = sorted([*queue["singles"], (index, spec)])

    def best(self, view):
        keys = [
            (-p, queue["vtime"], run, cls)
            for (cls, run, p), queue in self.queues.items()
            if cls in self.views[view] and (queue["singles"] or queue["others"])
        ]
        if not keys:
            return None
        priority, _, run, cls = min(keys)
        return self.queues[cls, run, -priority]

    def peek(self, view):
        queue = self.best(view)
        if queue is None:
            return None
        index, spec = (queue["singles"] + queue["others"])[0]
        return *queue["order"], spec, index

    def take(self, view, limit):
        queue = self.best(view)
        if queue is None:
            return None
        cls, run, priority = queue["order"]
        if len(self.waiting(cls, priority)) > 1:
            limit = min(limit, max(1, int(QUANTUM / queue["cost"])))
        first, spec = (queue["singles"] + queue["others"])[0]
        count = 0
        while count < limit:
            rest = queue["singles"] or queue["others"]
            if not rest or rest[0] != (first + count, spec):
                break
            rest.pop(0)
            count += 1
        self.clocks[cls, priority] = self.view_clocks[view, priority] = queue["vtime"]
        queue["vtime"] += count * queue["cost"]
        return cls, run, priority, spec, first, count

    def discard(self, cls, run, priority, first, count):
        queue = self.queues[cls, run, priority]
        for part in ("singles", "others"):
            queue[part] = [task for task in queue[part] if not first <= task[0] < first + count]

    def set_cost(self, cls, run, priority, seconds):
        if (cls, run, priority) in self.queues:
            self.queues[cls, run, priority]["cost"] = max(seconds, QUANTUM / 1000)

    def forget_run(self, run):
        for key in [key for key in self.queues if key[1] == run]:
            del self.queues[key]
        levels = {(cls, priority) for cls, _, priority in self.queues}
        priorities = {priority for _, priority in levels}
        self.clocks = {level: time for level, time in self.clocks.items() if level in levels}
        self.view_clocks = {key: time for key, time in self.view_clocks.items() if key[1] in priorities}

    def ready(self, cls):
        return sum(len(q["singles"]) + len(q["others"]) for (c, _, _), q in self.queues.items() if c == cls)

    def __len__(self):
        return sum(map(self.ready, range(self.classes)))

    def indices(self, cls, run, priority):
        queue = self.queues.get((cls, run, priority), {"singles": [], "others": []})
        return sorted(index for index, _ in queue["singles"] + queue["others"])


RUNS = (1, 2, 3, 2**64 - 1)
PRIORITIES = (0, 0, 0, 5, -(2**31))
COSTS = (0.0, 1e-5, 0.0003, DEFAULT_COST, 1 / 3, 7.0)


class Machine(RuleBasedStateMachine):
    """Every queue under test and the model do the same; every answer must be the same."""

    out = Bundle("out")

    def __init__(self, modules):
        super().__init__()
        self.queues = [module.ReadyQueue() for module in modules]
        self.model = Model()
        self.next = dict.fromkeys(RUNS, 0)
        for queue in (*self.queues, self.model):
            assert [queue.add_class() for _ in range(3)] == [queue.add_view() for _ in range(3)] == [0, 1, 2]

    def do(self, call, *arguments):
        expected = getattr(self.model, call)(*arguments)
        for queue in self.queues:
            assert getattr(queue, call)(*arguments) == expected
        return expected

    @rule(view=st.integers(0, 2), cls=st.integers(0, 2))
    def link(self, view, cls):
        self.do("link", view, cls)

    @rule(
        cls=st.integers(0, 2), run=st.sampled_from(RUNS), priority=st.sampled_from(PRIORITIES),
        spec=st.integers(0, 1), gap=st.integers(0, 1), count=st.integers(1, 12),
    )  # fmt: skip
    def push(self, cls, run, priority, spec, gap, count):
        self.do("push", cls, run, priority, spec, self.next[run] + gap, count)
        self.next[run] += gap + count

    @rule(view=st.integers(0, 2), limit=st.sampled_from((1, 2, 5, 2**64)), target=out)
    def take(self, view, limit):
        return self.do("take", view, limit)

    @rule(taken=consumes(out), spec=st.integers(0, 1))
    def push_back(self, taken, spec):
        """What was taken or discarded comes back, unless its run was forgotten in between."""
        if taken is None:
            return
        cls, run, priority, _, first, count = taken
        for index in reversed(range(first, first + count)):
            self.do("push_back", cls, run, priority, spec, index)

    @rule(data=st.data(), target=out)
    def discard(self, data):
        keys = [key for key in self.model.queues if self.model.indices(*key)]
        if not keys:
            return None
        key = data.draw(st.sampled_from(keys))
        indices = self.model.indices(*key)
        first = data.draw(st.sampled_from(indices))
        longest = next((i - first for i in range(first, first + 40) if i not in indices), 1)
        count = data.draw(st.integers(1, longest))
        self.do("discard", *key, first, count)
        return (*key, 0, first, count)

    @rule(
        cls=st.integers(0, 2), run=st.sampled_from(RUNS), priority=st.sampled_from(PRIORITIES),
        seconds=st.sampled_from(COSTS),
    )  # fmt: skip
    def set_cost(self, cls, run, priority, seconds):
        self.do("set_cost", cls, run, priority, seconds)

    @rule(run=st.sampled_from(RUNS))
    def forget_run(self, run):
        self.do("forget_run", run)

    @invariant()
    def agree(self):
        assert {len(queue) for queue in self.queues} == {len(self.model)}
        for number in range(3):
            self.do("ready", number)
            self.do("peek", number)


def machine_settings(examples, steps):
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_the_queue_does_what_the_model_does(twin):
    run_state_machine_as_test(lambda: Machine([twin]), settings=machine_settings(60, 40))


class Session:
    """A long random life of queues, well-behaved or not; all of them must tell the same about every step of it."""

    def __init__(self, queues, seed, behaved):
        self.rng, self.seed, self.behaved, self.queues = random.Random(seed), seed, behaved, queues
        self.next, self.queued, self.out = dict.fromkeys(RUNS, 0), {}, []
        self.classes, self.views = self.rng.randint(1, 5), self.rng.randint(1, 4)
        for _ in range(self.classes):
            self.do("add_class")
        for _ in range(self.views):
            self.do("add_view")
        for view in range(self.views):
            for cls in range(self.classes):
                if self.rng.random() < 0.6:
                    self.do("link", view, cls)

    def do(self, call, *arguments):
        first, *others = (outcome(getattr(queue, call), *arguments) for queue in self.queues)
        assert all(other == first for other in others), (self.seed, call, arguments, first, others)
        return first

    def live(self, steps):
        kinds = (self.push, self.take, self.push_back, self.discard, self.cost, self.forget, self.look)
        for kind in self.rng.choices(kinds, (25, 25, 12, 18, 5, 2, 13), k=steps):
            kind(self.rng.randrange(self.classes), self.rng.choice(RUNS), self.rng.choice(PRIORITIES))
            ready = [self.do("ready", cls) for cls in range(self.classes)]
            assert self.do("__len__") == sum(ready)
            if self.behaved:
                assert sum(ready) == sum(map(len, self.queued.values())), self.seed

    def push(self, *key):
        first = self.next[key[1]] + self.rng.choice((0, 0, 0, 1))
        if not self.behaved and self.rng.random() < 0.3:
            first = self.rng.randrange(first + 1)
        count = self.rng.choice((1, 1, 2, 5, 30))
        self.do("push", *key, self.rng.randrange(2), first, count)
        self.next[key[1]] = max(self.next[key[1]], first + count)
        self.queued.setdefault(key, set()).update(range(first, first + count))

    def take(self, *_):
        taken = self.do("take", self.rng.randrange(self.views), self.rng.choice((1, 1, 3, 10, 10**30)))
        if taken is not None:
            key, tasks = taken[:3], set(range(taken[4], taken[4] + taken[5]))
            assert not self.behaved or tasks <= self.queued[key], self.seed
            self.queued[key] -= tasks
            self.out += [(key, index) for index in tasks]

    def push_back(self, *_):
        for _ in range(min(len(self.out), self.rng.randint(1, 5))):
            key, index = self.out.pop(self.rng.randrange(len(self.out)))
            if self.rng.random() < 0.7:
                self.do("push_back", *key, self.rng.randrange(2), index)
            else:
                self.do("push", *key, self.rng.randrange(2), index, 1)
            self.queued.setdefault(key, set()).add(index)

    def discard(self, *_):
        keys = [key for key, tasks in self.queued.items() if tasks]
        if not keys:
            return
        key = self.rng.choice(keys)
        tasks = self.queued[key]
        first, count = self.rng.choice(sorted(tasks)), 1
        while first + count in tasks and self.rng.random() < 0.8:
            count += 1
        if not self.behaved and self.rng.random() < 0.4:
            first, count = self.rng.randrange(50), self.rng.randrange(9)
        if self.do("discard", *key, first, count) is None:
            gone = set(range(first, first + count))
            tasks -= gone
            self.out += [(key, index) for index in gone]

    def cost(self, *key):
        self.do("set_cost", *key, self.rng.choice(COSTS))

    def forget(self, _, run, __):
        self.do("forget_run", run)
        self.queued = {key: tasks for key, tasks in self.queued.items() if key[1] != run}
        self.out = [(key, index) for key, index in self.out if key[1] != run]

    def look(self, cls, *_):
        view = self.rng.randrange(self.views)
        self.do("peek", view)
        if self.rng.random() < 0.1:
            self.do("link", view, cls)


@pytest.mark.parametrize("sessions", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_the_queue_lives_the_life_of_the_model(twin, sessions):
    for seed in range(sessions):
        Session([twin.ReadyQueue(), Model()], seed, behaved=True).live(300)


@pytest.mark.parametrize("sessions", [200, pytest.param(5000, marks=pytest.mark.long)])
def test_both_twins_live_the_same_life(both, sessions):
    for seed in range(sessions):
        Session([module.ReadyQueue() for module in both], seed, behaved=True).live(300)


@pytest.mark.parametrize("sessions", [150, pytest.param(5000, marks=pytest.mark.long)])
def test_both_twins_bear_a_caller_who_breaks_the_contract(both, sessions):
    """Tasks pushed twice, discarded though never queued: the answers are equal, and counts and memory stay sane."""
    for seed in range(sessions):
        Session([module.ReadyQueue() for module in both], seed, behaved=False).live(300)


# ---------------------------------------------------------------- memory


def growth(work):
    """Resident bytes that the second half of some work left behind."""
    work()
    gc.collect()
    before = psutil.Process().memory_info().rss
    work()
    gc.collect()
    return psutil.Process().memory_info().rss - before


def test_heaps_do_not_grow_with_what_passes_through(twin):
    """Queues that wake and empty under the eyes of a view that never looks leave nothing in its heap."""
    queue = one_class(twin, views=3)
    queue.push(0, 9, 9, 0, 0, 1)

    def work():
        for number in range(20_000):
            queue.push(0, number % 7, number % 5, 0, number, 1)
            queue.discard(0, number % 7, number % 5, number, 1)
            queue.push(0, 99, 10, 0, number, 2)
            queue.take(0, 1)
            queue.discard(0, 99, 10, number + 1, 1)
            if number % 10 == 0:
                queue.forget_run(99)

    assert growth(work) < 1 << 20
    assert len(queue) == 1


def test_a_view_that_never_looks_keeps_one_promise_of_a_class(twin):
    """Every run is better than all before it, so every one is promised anew."""
    queue = one_class(twin)
    runs = iter(range(2**40, 0, -1))

    def work():
        for _ in range(30_000):
            run = next(runs)
            queue.push(0, run, 0, 0, 0, 1)
            queue.forget_run(run)

    assert growth(work) < 1 << 20
    assert queue.peek(0) is None


def test_tombstones_go_with_the_dead(twin):
    """Tasks that are discarded and pushed again for ever, behind one that nobody takes."""
    queue = one_class(twin)
    queue.push(0, 1, 0, 0, 0, 100)

    def work():
        for number in range(30_000):
            index = number % 90 + 5
            queue.discard(0, 1, 0, index, 1)
            if number % 2:
                queue.push(0, 1, 0, 0, index, 1)
            else:
                queue.push_back(0, 1, 0, 0, index)

    assert growth(work) < 1 << 20
    assert len(queue) == 100
    assert sorted(found[4] for found in drain(queue)) == list(range(100))


def test_a_queue_gives_its_memory_back(twin):
    def work():
        for _ in range(10):
            queue = one_class(twin)
            for run in range(300):
                queue.push(0, run, run % 3, 0, 0, 100)
                queue.push_back(0, run, run % 3, 0, 200)
                queue.discard(0, run, run % 3, 50, 5)
                queue.take(0, 10)
            for run in range(0, 300, 2):
                queue.forget_run(run)

    assert growth(work) < 1 << 20


def test_an_array_of_tasks_costs_next_to_nothing(twin):
    queue = one_class(twin)
    gc.collect()
    before = psutil.Process().memory_info().rss
    queue.push(0, 1, 0, 0, 0, 10_000_000)
    assert psutil.Process().memory_info().rss - before < 1 << 20
    assert queue.take(0, 5_000_000)[5] == 5_000_000


# ---------------------------------------------------------------- timers


def test_timers_are_due_by_deadline_then_by_handle(twin):
    timers = twin.Timers()
    for when, key in ((3.0, "c"), (1, "a"), (2.0, "b1"), (2.0, "b2"), (-1.5, "before"), (float("-inf"), "first")):
        timers.add(when, key)
    assert timers.next() == float("-inf")
    assert timers.due(1.999) == ["first", "before", "a"]
    assert timers.next() == 2.0 and len(timers) == 3
    assert timers.due(2.0) == ["b1", "b2"]
    assert timers.due(2.0) == []
    assert timers.due(float("inf")) == ["c"]
    assert timers.next() is None and len(timers) == 0


def test_handles_only_grow(twin):
    timers = twin.Timers()
    handles = []
    for number in range(100):
        handles.append(timers.add(number % 3, number))
        timers.due(1.0)
    assert all(a < b for a, b in pairwise(handles))


def test_a_timer_is_cancelled_once_and_not_after_it_was_due(twin):
    timers = twin.Timers()
    first, second = timers.add(1.0, "a"), timers.add(2.0, "b")
    assert timers.cancel(first) is True and timers.cancel(first) is False
    assert timers.next() == 2.0 and len(timers) == 1
    assert timers.due(2.0) == ["b"]
    assert timers.cancel(second) is False and timers.cancel(999) is False and timers.cancel(-1) is False


def test_a_deadline_may_be_never_but_not_nan(twin):
    timers = twin.Timers()
    timers.add(float("inf"), "never")
    with pytest.raises(ValueError, match="a deadline is a time, not nan"):
        timers.add(float("nan"), "x")
    assert timers.next() == float("inf")
    assert timers.due(1e308) == [] and timers.due(float("nan")) == []


def test_both_zeros_are_the_same_time(twin):
    timers = twin.Timers()
    timers.add(0.0, 1)
    timers.add(-0.0, 2)
    assert timers.due(-0.0) == [1, 2]


def test_the_key_of_a_cancelled_timer_is_let_go(twin):
    class Key:
        pass

    timers, key = twin.Timers(), Key()
    seen = weakref.ref(key)
    handle = timers.add(1.0, key)
    timers.add(2.0, "other")
    del key
    assert seen() is not None
    timers.cancel(handle)
    assert seen() is None


def test_cancelled_timers_leave_nothing_behind(twin):
    timers = twin.Timers()
    timers.add(0.0, "stays in front")

    def work():
        for number in range(50_000):
            timers.cancel(timers.add(1e9 + number, number))

    assert growth(work) < 1 << 20
    assert len(timers) == 1 and timers.due(1e12) == ["stays in front"]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [("add", ("1", 0)), ("add", (None, 0)), ("add", (10**400, 0)), ("due", ("x",)), ("cancel", ("x",)),
     ("cancel", ([],)), ("cancel", (1.0,))],
)  # fmt: skip
def test_odd_arguments_of_timers_are_met_the_same_way(both, call, arguments):
    results = []
    for module in both:
        timers = module.Timers()
        timers.add(1, "a")
        results.append((outcome(getattr(timers, call), *arguments), len(timers)))
    assert results[0] == results[1]


@pytest.mark.parametrize("seed", range(20))
def test_both_twins_keep_the_same_time(both, seed):
    rng = random.Random(seed)
    compiled, pure = (module.Timers() for module in both)
    now, handles = 0.0, [0]
    for number in range(1500):
        kind = rng.random()
        if kind < 0.5:
            when = now + rng.choice((-1.0, 0.0, rng.random(), rng.random() * 50, 7.0))
            handles.append(compiled.add(when, number))
            assert handles[-1] == pure.add(when, number)
        elif kind < 0.85:
            handle = rng.choice(handles)
            assert compiled.cancel(handle) is pure.cancel(handle)
        else:
            now += rng.random() * 3
            assert compiled.due(now) == pure.due(now)
        assert compiled.next() == pure.next() and len(compiled) == len(pure)
