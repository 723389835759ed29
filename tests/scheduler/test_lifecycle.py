"""The table of task states: every step that is not in it raises with the task's story."""

from __future__ import annotations

import random
from itertools import product

import pytest

from titan_fast.errors import ImpossibleTransition
from titan_fast.scheduler.lifecycle import (
    FINAL,
    IN_FLIGHT,
    N_STATES,
    PUBLIC,
    PUBLIC_STATES,
    TRANSITIONS,
    TaskState,
    move,
)
from titan_fast.scheduler.state import Run, State, Tuning
from titan_fast.testing.harness import SchedulerHarness, array, task


def one_run(value: TaskState, count: int = 1) -> tuple[State, Run]:
    harness = SchedulerHarness()
    run = harness.scheduler.state.runs[harness.submit([task("first"), array("a", count, "first")])]
    state = harness.scheduler.state
    for index in range(1, 1 + count):
        run.counts[run.state[index]] -= 1
        state.totals[run.state[index]] -= 1
        run.state[index] = value
        run.counts[value] += 1
        state.totals[value] += 1
    return state, run


@pytest.mark.parametrize(("before", "after"), list(product(TaskState, TaskState)))
def test_a_step_is_in_the_table_or_raises(before: TaskState, after: TaskState) -> None:
    state, run = one_run(before)
    if after in TRANSITIONS[before]:
        move(state, run, 1, 1, after)
        assert run.state[1] == after
        assert run.counts[after] and state.totals[after]
    else:
        with pytest.raises(ImpossibleTransition):
            move(state, run, 1, 1, after)
        assert run.state[1] == before, "a step that is refused changes nothing"


def test_the_error_tells_the_tasks_story() -> None:
    state, run = one_run(TaskState.COMPLETED)
    run.attempts[1], run.failures[1], run.crashes[1], run.generation[1] = 4, 2, 1, 3
    with pytest.raises(ImpossibleTransition) as caught:
        move(state, run, 1, 1, TaskState.READY)
    for word in ("run 1", "a[0]", "COMPLETED to READY", "generation 3", "attempts 4", "failures 2", "crashes 1"):
        assert word in str(caught.value)


def test_final_states_are_final_within_a_generation() -> None:
    """COMPLETED for good; the others go to BLOCKED, which for them only a retry does, and nowhere else."""
    for value in FINAL:
        assert TRANSITIONS[value] <= {TaskState.BLOCKED}
    assert not TRANSITIONS[TaskState.COMPLETED]
    back = {value for value in TaskState if value not in FINAL and TaskState.BLOCKED in TRANSITIONS[value]}
    assert back == {TaskState.ASSIGNED, TaskState.RUNNING}, "while a run is held after a restart"


def test_every_state_has_its_row_and_its_public_name() -> None:
    assert set(TRANSITIONS) == set(PUBLIC) == set(TaskState)
    assert set(PUBLIC.values()) == set(PUBLIC_STATES)
    assert len(TaskState) == N_STATES
    assert not FINAL & IN_FLIGHT


def test_every_state_is_reached_and_every_other_one_leads_to_an_end() -> None:
    reached = {TaskState.BLOCKED}
    for _ in TaskState:
        reached |= {to for value in reached for to in TRANSITIONS[value]}
    assert reached == set(TaskState)
    assert all(TRANSITIONS[value] for value in TaskState if value not in FINAL)


def test_a_stretch_moves_as_one_and_only_when_it_is_uniform() -> None:
    state, run = one_run(TaskState.READY, 100)
    move(state, run, 1, 60, TaskState.ASSIGNED)
    assert run.counts[TaskState.ASSIGNED] == 60 and run.counts[TaskState.READY] == 41  # with the first task
    with pytest.raises(ImpossibleTransition):
        move(state, run, 50, 30, TaskState.ASSIGNED)
    assert run.counts[TaskState.ASSIGNED] == 60


def test_a_new_state_holds_nothing() -> None:
    state = State(1, random.Random(0), Tuning())
    assert state.totals == [0] * N_STATES
