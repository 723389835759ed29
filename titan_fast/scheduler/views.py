"""Frozen snapshots of the state for status, listings and stats. What a client sees of the core, it sees here."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from titan_fast.scheduler.explain import reason_of
from titan_fast.scheduler.lifecycle import PUBLIC, TaskState, public_counts
from titan_fast.scheduler.state import DONE, Run, State


class RunView(msgspec.Struct, frozen=True):
    """Times are wall-clock seconds, 0 when it has not happened."""

    id: int
    name: str
    state: str
    reason: str
    submitted_at: float
    started_at: float
    finished_at: float
    counts: dict[str, int]


class TaskView(msgspec.Struct, frozen=True):
    """A task as the core knows it now; what its last attempt did is history (the store's)."""

    index: int
    name: str
    state: str
    reason: str
    generation: int
    attempt: int
    worker: str
    started: int
    """Microseconds, the worker's wall clock; 0 when its open attempt has not started."""


class WorkerView(msgspec.Struct, frozen=True):
    id: str
    name: str
    state: str
    capabilities: tuple[str, ...]
    slots: int
    running: int
    queued: int
    permanent: bool


def view_run(run: Run) -> RunView:
    reason = ""
    if run.status == "FAILED":
        reason = f"{run.counts[TaskState.FAILED] + run.counts[TaskState.DEAD]} of {len(run.state)} tasks failed"
    return RunView(
        run.id,
        run.name,
        run.status,
        reason,
        run.submitted_at,
        run.started_at,
        run.finished_at,
        public_counts(run.counts),
    )


def view_tasks(state: State, run: Run, first: int, count: int) -> Iterator[TaskView]:
    """Tasks first … first + count - 1, as far as they exist."""
    last = min(first + count, len(run.state))
    open_attempts = {
        lot.first + member: (lot, member)
        for lot in run.lots.values()
        for member in range(max(0, first - lot.first), min(lot.count, last - lot.first))
        if lot.marks[member] != DONE
    }
    for index in range(first, last):
        lot, member = open_attempts.get(index, (None, 0))
        yield TaskView(
            index,
            run.label(index),
            PUBLIC[TaskState(run.state[index])],
            reason_of(state, run, index, lot),
            run.generation.get(index, 0),
            lot.attempt if lot is not None else run.attempts.get(index, int(run.state[index] == TaskState.COMPLETED)),
            state.workers[lot.worker].name if lot is not None else "",
            lot.started.get(member, 0) if lot is not None else 0,
        )


def view_workers(state: State) -> list[WorkerView]:
    return [
        WorkerView(
            worker.id,
            worker.name,
            worker.state,
            tuple(sorted(worker.capabilities)),
            worker.slots,
            worker.running,
            worker.held - worker.running,
            worker.permanent,
        )
        for worker in state.workers.values()
    ]
