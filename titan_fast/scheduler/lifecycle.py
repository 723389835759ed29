"""The states of a task and of a run, and the table of every step between them. The only writer of ``.state``.

Users see seven task states; inside, PENDING and RUNNING are cut into what the core must tell apart. `move` works
on a stretch of tasks at once, so that an array costs no more than a named task.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from titan_fast.errors import ImpossibleTransition

if TYPE_CHECKING:
    from titan_fast.scheduler.state import Run, State


class TaskState(IntEnum):
    BLOCKED = 0
    """Waits for parents."""
    DELAYED = 1
    """Waits for its delay or backoff."""
    READY = 2
    """In the ready queue."""
    PINNED = 3
    """Waits for one worker (affinity, or alone after crashes)."""
    ASSIGNED = 4
    """At a worker, not started."""
    RUNNING = 5
    CANCELLING = 6
    """The worker was told to end it and has not confirmed."""
    COMPLETED = 7
    FAILED = 8
    SKIPPED = 9
    CANCELLED = 10
    DEAD = 11


S = TaskState
N_STATES = len(TaskState)

PUBLIC = {
    S.BLOCKED: "PENDING",
    S.DELAYED: "PENDING",
    S.READY: "PENDING",
    S.PINNED: "PENDING",
    S.ASSIGNED: "PENDING",
    S.RUNNING: "RUNNING",
    S.CANCELLING: "RUNNING",
    S.COMPLETED: "COMPLETED",
    S.FAILED: "FAILED",
    S.SKIPPED: "SKIPPED",
    S.CANCELLED: "CANCELLED",
    S.DEAD: "DEAD",
}
"""What everyone outside calls each state."""

PUBLIC_STATES = tuple(dict.fromkeys(PUBLIC.values()))
_PUBLIC_OF_VALUE = tuple(PUBLIC[state] for state in TaskState)
_NO_COUNTS = dict.fromkeys(PUBLIC_STATES, 0)


def public_counts(counts: list[int]) -> dict[str, int]:
    """Tasks by public state, from tasks by inner state."""
    result = _NO_COUNTS.copy()
    for state, n in enumerate(counts):
        if n:
            result[_PUBLIC_OF_VALUE[state]] += n
    return result


FINAL = frozenset({S.COMPLETED, S.FAILED, S.SKIPPED, S.CANCELLED, S.DEAD})
IN_FLIGHT = frozenset({S.ASSIGNED, S.RUNNING, S.CANCELLING})

_BACK = (S.READY, S.PINNED, S.DELAYED, S.BLOCKED)

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    # READY and PINNED are where a released task waits; DELAYED comes first when it has a delay.
    # After a restart a task may be found at a worker, whatever it waits for here (ASSIGNED: adopted), and while its run
    # is held, what comes back from a worker waits with the rest (BLOCKED).
    S.BLOCKED: frozenset({S.DELAYED, S.READY, S.PINNED, S.ASSIGNED, S.SKIPPED, S.CANCELLED}),
    S.DELAYED: frozenset({S.READY, S.PINNED, S.ASSIGNED, S.CANCELLED}),
    S.READY: frozenset({S.ASSIGNED, S.CANCELLED}),
    # FAILED: the worker it must run on is gone for good.
    S.PINNED: frozenset({S.READY, S.ASSIGNED, S.CANCELLED, S.FAILED}),
    # A result may overtake the notice that the attempt started, so ASSIGNED has the endings of RUNNING.
    S.ASSIGNED: frozenset({S.RUNNING, *_BACK, S.CANCELLING, S.COMPLETED, S.FAILED, S.DEAD}),
    # RUNNING to ASSIGNED: a later attempt of it turned up.
    S.RUNNING: frozenset({S.ASSIGNED, *_BACK, S.CANCELLING, S.COMPLETED, S.FAILED, S.DEAD}),
    S.CANCELLING: frozenset({S.CANCELLED}),
    # Final within a generation; retry opens the next one.
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset({S.BLOCKED}),
    S.SKIPPED: frozenset({S.BLOCKED}),
    S.CANCELLED: frozenset({S.BLOCKED}),
    S.DEAD: frozenset({S.BLOCKED}),
}

_STATES = tuple(TaskState)
"""By value: an index costs a tenth of a call of the enum."""
_FILL = [bytes([state]) for state in TaskState]


def move(state: State, run: Run, first: int, count: int, to: TaskState) -> None:
    """Take tasks first … first + count - 1, all in one state, one step along the table.

    Raises:
        ImpossibleTransition: the step is not in the table, or the tasks are not all in one state.
    """
    column = run.state
    before = _STATES[column[first]]
    if to not in TRANSITIONS[before] or (count > 1 and column.count(before, first, first + count) != count):
        raise ImpossibleTransition(_story(run, first, count, to))
    if count == 1:
        column[first] = to
    else:
        column[first : first + count] = _FILL[to] * count
    run.counts[before] -= count
    run.counts[to] += count
    state.totals[before] -= count
    state.totals[to] += count
    if to in FINAL:
        state.ended += count


def _story(run: Run, first: int, count: int, to: TaskState) -> str:
    states = sorted({TaskState(value).name for value in run.state[first : first + count]})
    return (
        f"run {run.id} ({run.name}), tasks {first}..{first + count - 1} ({run.label(first)}): {'/'.join(states)} to "
        f"{to.name}; generation {run.generation.get(first, 0)}, attempts {run.attempts.get(first, 0)}, "
        f"failures {run.failures.get(first, 0)}, crashes {run.crashes.get(first, 0)}, run is {run.status}"
    )
