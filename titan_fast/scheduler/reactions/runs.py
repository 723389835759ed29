"""What users ask for: submit, cancel, retry, forget."""

from __future__ import annotations

from titan_fast.errors import InvalidGraph, NoSuchRun, NoSuchTask, NothingToDo, Stopping, TitanError
from titan_fast.ids import TaskId
from titan_fast.scheduler import recovery
from titan_fast.scheduler.commands import Answer, Kill, Refuse
from titan_fast.scheduler.events import (
    CancelRequested,
    DropRequested,
    ForgetRequested,
    RetryRequested,
    RunRecalled,
    RunSubmitted,
)
from titan_fast.scheduler.facts import CancelAsked, RunAccepted, RunsForgotten, TasksDropped, TasksReopened
from titan_fast.scheduler.graph import admit
from titan_fast.scheduler.lifecycle import FINAL, S, move
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.sabotage import RETRY_NOT_FENCED
from titan_fast.scheduler.state import CANCELLED, UNWANTED, UPSTREAM, Outbox, Run, State


def on_run_submitted(state: State, event: RunSubmitted, out: Outbox) -> None:
    """All of the graph or none of it."""
    try:
        if state.stopping:
            raise Stopping
        run = admit(state, event.graph, event.payloads, state.next_run, state.wall, state.last_fence())
    except (InvalidGraph, Stopping) as error:
        out.command(Refuse(event.ticket, error))
        return
    state.next_run += 1
    state.runs[run.id] = run
    state.totals[S.BLOCKED] += len(run.state)
    out.fact(RunAccepted(state.wall, run.id, event.graph, event.payloads, run.floor, key=event.key))
    out.command(Answer(event.ticket, run.id))
    out.changed(run.id)
    # Roots are judged too: one with `when: failure` and no parent has nothing to wait for; of others it is known.
    skipped = []
    for spec in range(len(run.names)):
        if run.unmet[spec]:
            continue
        if run.options_of(spec).when != "failure":
            tasks.release(state, run, spec, run.first[spec], run.count[spec])
        elif not tasks.decide(state, run, spec, out):
            skipped.append(spec)
    if skipped:
        tasks.settle(state, run, skipped, out)


def _target(state: State, run_id: int, task: str | None, member: int | None) -> tuple[Run, int, int]:
    """The run and the stretch of tasks a user named.

    Raises:
        NoSuchRun, NoSuchTask: it is not there.
    """
    run = state.runs.get(run_id)
    if run is None:
        raise NoSuchRun(run_id)
    if task is None:
        return run, 0, len(run.state)
    spec = run.find(task)
    if spec is None:
        raise NoSuchTask(TaskId(run_id, task, member))
    first, count = run.first[spec], run.count[spec]
    if member is None:
        return run, first, count
    if spec not in run.arrays or member >= count:
        raise NoSuchTask(TaskId(run_id, task, member))
    return run, first + member, 1


def on_cancel_requested(state: State, event: CancelRequested, out: Outbox) -> None:
    """What has not started ends now; what is at a worker ends when the worker confirms, or goes on. Children follow."""
    try:
        run, first, count = _target(state, event.run, event.task, event.member)
        if all(task_state in FINAL for task_state, _, _ in run.stretches(first, count)):
            raise NothingToDo(f"{TaskId(event.run, event.task, event.member)} is finished already")
    except TitanError as error:
        out.command(Refuse(event.ticket, error))
        return
    # What may go on is asked of nobody; what may not is final at once, and a fact of its own.
    asked = 0 if event.only_waiting else count
    out.fact(CancelAsked(state.wall, run.id, first, asked, key=event.key))
    run.cancelled |= asked == len(run.state)
    finished: list[int] = []
    for lot, member in tasks.open_members(list(run.lots.values())):
        index = lot.first + member
        if first <= index < first + asked:
            out.command(Kill(lot.worker, run.id, index, lot.fence + member))
    at, end = first, first + count
    while at < end:
        spec = run.spec_of(at)
        stop = min(end, run.first[spec] + run.count[spec])
        if _cancel_members(state, run, spec, at, stop - at, event.only_waiting, out):
            finished.append(spec)
        at = stop
    out.command(Answer(event.ticket, run.id))
    out.changed(run.id)
    state.needs_placement = True
    tasks.settle(state, run, finished, out)


def _cancel_members(state: State, run: Run, spec: int, first: int, count: int, only_waiting: bool, out: Outbox) -> bool:
    """Cancel a stretch within one spec; True when it ended the spec."""
    ended = 0
    for task_state, start, length in run.stretches(first, count):
        if task_state in FINAL or task_state is S.CANCELLING:
            continue
        if only_waiting and (task_state in (S.ASSIGNED, S.RUNNING) or run.held):
            continue  # in a run that is held a worker that is not back yet may have it
        if task_state in (S.ASSIGNED, S.RUNNING):
            move(state, run, start, length, S.CANCELLING)
            continue
        if run.held:
            # A worker that is not back yet may hold it: cancelled when it says so, or when the hold is over.
            run.cancel_asked.update(range(start, start + length))
            continue
        tasks.take_out(state, run, spec, start, length)
        move(state, run, start, length, S.CANCELLED)
        tasks.note(run, start, length, "cancelled")
        tasks.settled(state, run, spec, start, length, S.CANCELLED, "cancelled", state.last_fence(), out)
        ended += length
    tasks.ask_again(state, run, spec)
    if not ended:
        return False
    run.outcome[spec] |= CANCELLED
    run.open[spec] -= ended
    return not run.open[spec]


def on_retry_requested(state: State, event: RetryRequested, out: Outbox) -> None:
    """Open the next generation of what failed, died or was cancelled, and of what was skipped because of it."""
    try:
        if state.stopping:
            raise Stopping
        run, first, count = _target(state, event.run, event.task, event.member)
        chosen = [
            (start, length)
            for task_state, start, length in run.stretches(first, count)
            if task_state in (S.FAILED, S.DEAD, S.CANCELLED)
        ]
        if not chosen:
            raise NothingToDo(
                f"nothing of {TaskId(event.run, event.task, event.member)} is FAILED, DEAD or CANCELLED",
                hint=f"titan-fast show {event.run} tells the state of each task",
            )
    except TitanError as error:
        out.command(Refuse(event.ticket, error))
        return
    reopened = _with_descendants(run, chosen)
    floor = run.floor if RETRY_NOT_FENCED in state.tuning.sabotage else state.last_fence()
    out.fact(TasksReopened(state.wall, run.id, tuple(reopened), floor, key=event.key))
    run.status, run.finished_at, run.cancelled = "RUNNING" if run.started_at else "PENDING", 0.0, False
    specs = reopen(state, run, reopened, floor)
    out.command(Answer(event.ticket, run.id))
    out.changed(run.id)
    finished = [spec for spec in specs if not run.unmet[spec] and not tasks.decide(state, run, spec, out)]
    tasks.settle(state, run, finished, out)


def _with_descendants(run: Run, chosen: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The chosen stretches, and below them every spec that ended without an attempt because of them."""
    specs = list(dict.fromkeys(spec for start, length in chosen for spec in _specs_of(run, start, length)))
    seen = set(specs)
    stretches = list(chosen)
    for spec in specs:  # grows while we walk it
        for child in run.children_of(spec):
            if child in seen or not run.outcome[child] & (UPSTREAM | CANCELLED | UNWANTED) or run.open[child]:
                continue
            seen.add(child)
            specs.append(child)
            stretches.extend(
                (start, length)
                for task_state, start, length in run.stretches(run.first[child], run.count[child])
                if task_state in (S.SKIPPED, S.CANCELLED)
            )
    # A stretch named by the user and reached as a descendant too is one stretch.
    return sorted(set(stretches))


def _specs_of(run: Run, first: int, count: int) -> list[int]:
    return list(range(run.spec_of(first), run.spec_of(first + count - 1) + 1))


def reopen(state: State, run: Run, stretches: list[tuple[int, int]], floor: int) -> list[int]:
    """Back to BLOCKED in the next generation, counters set again; returns the specs touched, in order."""
    touched: dict[int, None] = {}
    for start, length in stretches:
        move(state, run, start, length, S.BLOCKED)
        for index in range(start, start + length):
            run.generation[index] = run.generation.get(index, 0) + 1
            run.floors[index] = floor
            for column in (run.failures, run.crashes, run.reasons, run.results, run.returning):
                column.pop(index, None)
            run.dropped.discard(index)
            run.cancel_asked.discard(index)
            spec = run.spec_of(index)
            if run.held:
                delay = run.options_of(spec).delay
                run.returning[index] = (state.wall + delay, delay)
            touched[spec] = None
    for spec in touched:
        tasks.count_members(run, spec)
    # A child that still waits, for another parent or because its run is held, had counted this one off already.
    waiting = {child for spec in touched for child in run.children_of(spec) if run.held or run.unmet[child]}
    for spec in waiting.union(touched):
        run.unmet[spec] = sum(1 for parent in run.parents_of(spec) if run.open[parent])
    return sorted(touched)


def on_drop_requested(state: State, event: DropRequested, out: Outbox) -> None:
    """Somebody looked at these DEAD tasks: they are listed as such no more."""
    try:
        run, first, count = _target(state, event.run, event.task, event.member)
        dead = [(start, length) for task_state, start, length in run.stretches(first, count) if task_state is S.DEAD]
        if not dead:
            raise NothingToDo(f"nothing of {TaskId(event.run, event.task, event.member)} is DEAD")
    except TitanError as error:
        out.command(Refuse(event.ticket, error))
        return
    out.fact(TasksDropped(state.wall, run.id, tuple(dead), key=event.key))
    for start, length in dead:
        run.dropped.update(range(start, start + length))
    out.command(Answer(event.ticket, run.id))


def on_run_recalled(state: State, event: RunRecalled, out: Outbox) -> None:
    """A finished run comes back into memory, as it was."""
    number = event.record.accepted.run
    if number not in state.runs and number not in state.forgotten:
        run = recovery.recall(state, event.record)
        state.runs[number] = run
        for value, n in enumerate(run.counts):
            state.totals[value] += n
        tasks.finished(state, run, out)


def on_forget_requested(state: State, event: ForgetRequested, out: Outbox) -> None:
    """Finished runs go for good. One that was opened again since the store chose it stays, whether it has ended or
    not: whoever did that wants to see what it came to."""
    gone = []
    for number, finished_at in event.runs:
        run = state.runs.get(number)
        if number in state.forgotten or (run is not None and not (run.is_final and run.finished_at == finished_at)):
            continue
        if run is not None:
            leave(state, run)
        gone.append(number)
    if gone:
        out.fact(RunsForgotten(state.wall, tuple(gone)))
        state.forgotten.update(dict.fromkeys(gone, out.here()))


def leave(state: State, run: Run) -> None:
    """A finished run leaves memory."""
    del state.runs[run.id]
    for value, n in enumerate(run.counts):
        if n:
            state.totals[value] -= n
