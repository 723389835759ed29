"""What must hold after every event, whatever happened. Tests call `check` at each step; production never does.

Cost is linear in everything the state holds.
"""

from __future__ import annotations

from titan_fast.scheduler.lifecycle import FINAL, IN_FLIGHT, N_STATES, TaskState
from titan_fast.scheduler.state import DONE, RECALLING, STARTED, Run, State

S = TaskState


def check(state: State) -> None:
    """Raises AssertionError with what is broken."""
    totals = [0] * N_STATES
    ready = 0
    recalling = 0
    for run in state.runs.values():
        _check_run(state, run)
        totals = [a + b for a, b in zip(totals, run.counts, strict=True)]
        ready += run.counts[S.READY]
    assert totals == state.totals, f"state counts {state.totals} are not the runs' sum {totals}"
    assert len(state.queue) == ready, f"{len(state.queue)} tasks queued, {ready} READY"
    fences: set[int] = set()
    for worker in state.workers.values():
        held = running = 0
        assert worker.fences == [lot.fence for lot in worker.lots], f"{worker.name}: fences and lots differ"
        assert worker.fences == sorted(worker.fences), f"{worker.name}: fences out of order"
        for lot in worker.lots:
            open_members = 0
            run = state.runs[lot.run]
            assert run.lots.get(lot.fence) is lot, f"run {run.id} does not know lot {lot.fence} of {worker.name}"
            for member, mark in enumerate(lot.marks):
                if mark == DONE:
                    continue
                open_members += 1
                recalling += mark == RECALLING
                running += mark == STARTED
                fence, index = lot.fence + member, lot.first + member
                assert fence not in fences, f"fence {fence} is open twice"
                fences.add(fence)
                value = TaskState(run.state[index])
                assert value in IN_FLIGHT, f"{run.id}/{run.label(index)} is {value.name} but at {worker.name}"
            assert open_members == lot.open > 0, f"lot {lot.fence}: {open_members} open members, says {lot.open}"
            held += lot.open
        assert held == worker.held, f"{worker.name} holds {held}, says {worker.held}"
        assert running == worker.running, f"{worker.name} runs {running}, says {worker.running}"
        assert running <= worker.slots or worker.slots == 0, f"{worker.name} runs {running} on {worker.slots} slots"
        if worker.state in ("LOST", "LEFT"):
            assert not held, f"{worker.name} is {worker.state} and holds {held}"
        if worker.alone is not None and worker.held:
            run = state.runs[worker.alone[0]]
            if run.state[worker.alone[1]] in IN_FLIGHT:
                assert worker.held == 1, f"{worker.name} should run one task alone, holds {worker.held}"
    assert recalling == state.recalling, f"{recalling} recalls open, says {state.recalling}"
    in_flight = sum(totals[value] for value in IN_FLIGHT)
    assert len(fences) == in_flight, f"{len(fences)} open attempts, {in_flight} tasks in flight"


def _check_run(state: State, run: Run) -> None:
    counts = [run.state.count(value) for value in TaskState]
    assert counts == run.counts, f"run {run.id}: counts {run.counts}, states {counts}"
    for spec in range(len(run.names)):
        first, count = run.first[spec], run.count[spec]
        column = run.state[first : first + count]
        still_open = sum(1 for value in column if value not in FINAL)
        assert still_open == run.open[spec], f"{run.id}/{run.names[spec]}: {still_open} open, says {run.open[spec]}"
        if S.BLOCKED in column:
            unmet = sum(1 for parent in run.parents_of(spec) if run.open[parent])
            assert unmet == run.unmet[spec], f"{run.id}/{run.names[spec]}: {unmet} unmet, says {run.unmet[spec]}"
            assert unmet, f"{run.id}/{run.names[spec]} is BLOCKED by nobody"
        elif any(value in IN_FLIGHT or value in (S.READY, S.DELAYED, S.PINNED) for value in column):
            waiting = [run.names[parent] for parent in run.parents_of(spec) if run.open[parent]]
            assert not waiting, f"{run.id}/{run.names[spec]} was released before {waiting}"
        for index in range(first, first + count):
            assert run.crashes.get(index, 0) <= state.tuning.crash_limit, f"{run.id}/{index}: crash limit"
            retry = run.options_of(spec).retry
            assert run.failures.get(index, 0) <= retry.max + 1, f"{run.id}/{index}: retries"
    assert run.is_final == (run.unfinished == 0), f"run {run.id} is {run.status} with {run.unfinished} unfinished"
