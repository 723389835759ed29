"""Why a task is where it is, in a line, and what would help. Reads the state, changes nothing."""

from __future__ import annotations

import msgspec

from titan_fast.ids import TaskId
from titan_fast.scheduler.lifecycle import PUBLIC, TaskState
from titan_fast.scheduler.state import DONE, Lot, Options, Run, State

S = TaskState


class Explanation(msgspec.Struct, frozen=True):
    """``reason`` is the short word of listings, ``detail`` a sentence, ``fix`` what a person could do (or empty)."""

    state: str
    reason: str
    detail: str
    fix: str = ""


def reason_of(state: State, run: Run, index: int, lot: Lot | None = None) -> str:
    """The short reason every listing shows beside the state. ``lot``: of its open attempt, where that is known."""
    value = TaskState(run.state[index])
    if value is S.BLOCKED:
        if index in run.cancel_asked:
            return "cancelling"
        return "recovery" if run.held and not run.unmet[run.spec_of(index)] else "parents"
    if value is S.DELAYED:
        return "backoff" if index in run.failures else "delay"
    if value is S.READY:
        options = run.options_of(run.spec_of(index))
        return "capability" if options.requires and not can_serve(state, options) else "capacity"
    if value is S.PINNED:
        return "affinity"
    if value is S.ASSIGNED:
        lot = lot or lot_of(run, index)
        return f"queued:{state.workers[lot.worker].name}" if lot is not None else ""
    if value is S.RUNNING:
        return ""
    if value is S.CANCELLING:
        return "cancelling"
    return run.reason_of(index) or ("exit:0" if value is S.COMPLETED else "")


def lot_of(run: Run, index: int) -> Lot | None:
    """The lot that holds the task's open attempt, or None. A lot it was in before does not count."""
    for lot in run.lots.values():
        if lot.first <= index < lot.first + lot.count and lot.marks[index - lot.first] != DONE:
            return lot
    return None


def can_serve(state: State, options: Options) -> bool:
    """Some worker that is connected now has what the task requires."""
    return any(worker.state == "READY" and options.requires <= worker.capabilities for worker in state.workers.values())


def explain_run(state: State, run: Run) -> Explanation:
    """A run is explained by its oldest task that is not finished, or by what ended it."""
    if run.is_final:
        bad = next((i for i, value in enumerate(run.state) if value in (S.FAILED, S.DEAD)), None)
        if bad is None:
            return Explanation(run.status, "", f"the run is {run.status}")
        inner = explain_task(state, run, bad)
        return Explanation(run.status, f"{run.label(bad)} {inner.reason}", inner.detail, inner.fix)
    order = (S.RUNNING, S.ASSIGNED, S.CANCELLING, S.READY, S.PINNED, S.DELAYED)
    for wanted in order:
        index = run.state.find(wanted)
        if index >= 0:
            inner = explain_task(state, run, index)
            return Explanation(run.status, inner.reason, f"task '{run.label(index)}' {inner.detail}", inner.fix)
    return Explanation(run.status, "parents", "every unfinished task waits for its parents")


def explain_task(state: State, run: Run, index: int) -> Explanation:
    value = TaskState(run.state[index])
    reason = reason_of(state, run, index)
    detail, fix = _SENTENCES[value](state, run, index)
    return Explanation(PUBLIC[value], reason, detail, fix)


def _blocked(state: State, run: Run, index: int) -> tuple[str, str]:
    spec = run.spec_of(index)
    waiting = [parent for parent in run.parents_of(spec) if run.open[parent]]
    if run.held and (index in run.cancel_asked or not waiting):
        goes_on = "is cancelled" if index in run.cancel_asked else "goes on"
        silent = sorted(state.workers[worker].name for worker in state.awaited or ())
        others = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        return f"{goes_on} when {', '.join(silent[:5])}{others} attached again, or in a few seconds without", ""
    names = ", ".join(f"'{run.names[parent]}'" for parent in waiting[:5])
    more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
    first = TaskId(run.id, run.names[waiting[0]]) if waiting else run.id
    return f"waits for {names}{more} to finish", f"titan-fast explain {first}"


def _delayed(state: State, run: Run, index: int) -> tuple[str, str]:
    due = run.due.get(index)
    left = f" for another {max(0.0, due.at - state.now):.1f} s" if due else ""
    if index in run.failures:
        retry = run.options_of(run.spec_of(index)).retry
        failed = run.reasons.get(index, "").removeprefix("backoff after ")
        return f"failed ({failed}, {run.failures[index]} of {retry.max} retries used) and waits{left} to try again", ""
    return f"waits out its delay{left}", ""


def _ready(state: State, run: Run, index: int) -> tuple[str, str]:
    options = run.options_of(run.spec_of(index))
    placeable = [w for w in state.workers.values() if w.state == "READY"]
    if can_serve(state, options):
        able = [w for w in placeable if options.requires <= w.capabilities]
        slots = sum(w.slots for w in able)
        held = sum(min(w.held, w.slots) for w in able)
        ahead = state.queue.ready(options.cls) - 1
        return (
            f"waits for a free slot: {held} of {slots} slots on {len(able)} fitting workers are taken, "
            f"{ahead} other tasks of its kind wait too",
            _start_worker(options, "start another worker with"),
        )
    if not options.requires:
        return "waits for a worker; none is connected", _start_worker(options, "start one with")
    wanted = " and ".join(sorted(options.requires))
    silent = [w.name for w in state.workers.values() if options.requires <= w.capabilities and w.state == "SUSPECT"]
    if silent:
        return f"waits for a worker with {wanted}; {', '.join(silent[:3])} has it but is silent", ""
    return f"waits for a worker with {wanted}; none is connected", _start_worker(options, "start one with")


def _start_worker(options: Options, words: str) -> str:
    caps = f" --caps {','.join(sorted(options.requires))}" if options.requires else ""
    return f"{words}: titan-fast worker{caps}"


def _pinned(state: State, run: Run, index: int) -> tuple[str, str]:
    if run.crashes.get(index, 0) >= 2:
        return f"lost its worker {run.crashes[index]} times and waits for a worker it can have alone", ""
    worker = state.workers.get(run.pins.get(index, ""))
    if worker is not None:
        return f"waits for a slot on {worker.name}, which its affinity names", ""
    return "waits for the worker its affinity requires; it is not connected", "start that worker again, or cancel"


def _assigned(state: State, run: Run, index: int) -> tuple[str, str]:
    lot = lot_of(run, index)
    where = state.workers[lot.worker].name if lot is not None else "a worker"
    return f"is at {where} and starts when a slot there is free", ""


def _running(state: State, run: Run, index: int) -> tuple[str, str]:
    lot = lot_of(run, index)
    if lot is None:
        return "runs", ""
    worker = state.workers[lot.worker]
    began = lot.started.get(index - lot.first)
    since = f" for {max(0.0, state.wall - began / 1e6):.1f} s" if began else ""
    if worker.state == "SUSPECT":
        return f"runs on {worker.name}{since}, which is silent; it runs elsewhere if that lasts", ""
    return f"runs on {worker.name}{since}", ""


def _cancelling(state: State, run: Run, index: int) -> tuple[str, str]:
    lot = lot_of(run, index)
    where = f" on {state.workers[lot.worker].name}" if lot is not None else ""
    return f"was told to stop{where}; it has its grace time to do so", ""


def _ended(state: State, run: Run, index: int) -> tuple[str, str]:
    value = TaskState(run.state[index])
    reason = run.reason_of(index)
    task = TaskId(run.id, run.label(index))
    if value is S.COMPLETED:
        return "completed", ""
    if value is S.SKIPPED and reason == "upstream_failed":
        return "was skipped because a task above it failed", f"titan-fast retry {run.id}"
    if value is S.SKIPPED:
        when = run.options_of(run.spec_of(index)).when
        return f"was skipped: its condition 'when: {when}' does not hold", ""
    if value is S.CANCELLED:
        return f"was cancelled ({reason})", f"titan-fast retry {task}"
    if value is S.DEAD:
        return (
            f"took {run.crashes.get(index, 0)} workers with it and is not tried again",
            f"titan-fast dlq retry {task}",
        )
    return f"failed: {reason}", f"titan-fast logs {task}"


_SENTENCES = {
    S.BLOCKED: _blocked,
    S.DELAYED: _delayed,
    S.READY: _ready,
    S.PINNED: _pinned,
    S.ASSIGNED: _assigned,
    S.RUNNING: _running,
    S.CANCELLING: _cancelling,
    S.COMPLETED: _ended,
    S.FAILED: _ended,
    S.SKIPPED: _ended,
    S.CANCELLED: _ended,
    S.DEAD: _ended,
}
