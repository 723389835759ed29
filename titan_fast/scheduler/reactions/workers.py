"""Workers come, fall silent, come back, leave and get lost."""

from __future__ import annotations

from titan_fast.errors import Stopping
from titan_fast.scheduler import placement, recovery
from titan_fast.scheduler.commands import Kill, Refuse, Verdict
from titan_fast.scheduler.events import (
    ENDED,
    CommitsFlowing,
    CommitsStuck,
    HeldAttempt,
    StopRequested,
    WorkerAttached,
    WorkerDraining,
    WorkerLeft,
    WorkerLost,
    WorkerRecovered,
    WorkerSuspected,
)
from titan_fast.scheduler.explain import lot_of
from titan_fast.scheduler.facts import WorkerGone, WorkerRegistered
from titan_fast.scheduler.lifecycle import FINAL, IN_FLIGHT, S, move
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.sabotage import (
    ABSENT_IS_CRASH,
    COPIED_STATE,
    FLOOR_IGNORED,
    FORGET_TO_REQUEUE,
    PARENTS_FENCE_IGNORED,
)
from titan_fast.scheduler.state import DONE, STARTED, Lot, Outbox, Run, State, Worker


def on_worker_attached(state: State, event: WorkerAttached, out: Outbox) -> None:
    """A complete inventory against our books: what both know is kept, what only we know was never received (same
    incarnation) or is lost (a new one), what only the worker knows is judged by its fence."""
    if state.stopping:
        out.command(Refuse(event.ticket, Stopping()))
        return
    worker = state.workers.get(event.worker)
    capabilities = frozenset(event.capabilities)
    is_new = worker is None or worker.nonce != event.nonce or worker.state in ("LOST", "LEFT")
    crashing = 0
    if worker is None or worker.state in ("LOST", "LEFT"):
        worker = Worker(event.worker, event.name, event.nonce, capabilities, event.slots)
        worker.view = state.view_of(capabilities)
        state.workers[worker.id] = worker
    elif is_new:
        crashing = worker.slots
        _begin_anew(state, worker, event, capabilities)
    if is_new:
        worker.permanent = event.permanent
        worker.attached_at = state.now
        state.view_rows[worker.view].workers.add(worker.id)
        out.fact(
            WorkerRegistered(
                state.wall, worker.id, worker.name, worker.nonce, event.capabilities, event.slots, event.permanent
            )
        )
    state.undecided.pop(worker.id, None)
    placement.forget_recalls(state, worker)  # they may have died with the old connection
    told = {item.fence for item in event.inventory}
    if ABSENT_IS_CRASH in state.tuning.sabotage:
        crashing = worker.slots
    for place, (lot, member) in enumerate(list(tasks.open_members(list(worker.lots)))):
        # Only the oldest can have been running. What the worker still has is no loss, but had its slot.
        if lot.fence + member not in told:
            tasks.attempt_lost(state, worker, state.runs[lot.run], lot, member, place < crashing, out)
    verdict: dict[str, list[int]] = {KEEP: [], KILL: [], WAIT: []}
    for item in sorted(event.inventory, key=lambda item: item.fence):
        verdict[_judge(state, worker, item, out)].append(item.fence)
    _recover(state, worker)
    out.command(Verdict(event.ticket, worker.id, tuple(verdict[KEEP]), tuple(verdict[KILL]), tuple(verdict[WAIT])))
    recovery.heard_of(state, worker.id, out)


def _begin_anew(state: State, worker: Worker, event: WorkerAttached, capabilities: frozenset[str]) -> None:
    """A new incarnation of a worker that we have not given up: what its agent ran may run on under the new one."""
    placement.unpin_all(state, worker)
    state.view_rows[worker.view].workers.discard(worker.id)
    worker.name, worker.nonce = event.name, event.nonce
    worker.capabilities, worker.slots = capabilities, event.slots
    worker.view = state.view_of(capabilities)
    worker.draining = False
    worker.state = "SUSPECT"


# ---------------------------------------------------------------- verdicts

KEEP, KILL, WAIT = "keep", "kill", "wait"


def _judge(state: State, worker: Worker, item: HeldAttempt, out: Outbox) -> str:
    """What becomes of one attempt that a worker holds.

    By its fence alone, as no assignment is ever written down: it counts when it is above the task's floor and above
    the accepted fence of every parent, and no higher fence of that task is known.
    """
    run = state.runs.get(item.run)
    if run is None or item.index >= len(run.state):
        return KILL
    lot = worker.find_lot(item.fence)
    if lot is not None:
        return _known(state, worker, run, lot, item, out)
    if not item.is_ours and COPIED_STATE not in state.tuning.sabotage:
        return KILL
    index = item.index
    if run.state[index] in FINAL or item.generation != run.generation.get(index, 0):
        return KILL
    if item.fence <= run.floor_of(index) and FLOOR_IGNORED not in state.tuning.sabotage:
        return KILL
    other = lot_of(run, index) if run.state[index] in IN_FLIGHT else None
    if other is not None and other.fence + index - other.first > item.fence:
        return KILL
    spec = run.spec_of(index)
    unresolved = [parent for parent in run.parents_of(spec) if run.open[parent]]
    if any(not _may_still_count(state, run, parent, item.fence) for parent in unresolved):
        return KILL
    if unresolved:
        state.undecided.setdefault(worker.id, {})[item.fence] = item
        return WAIT
    if (
        any(run.best[parent] >= item.fence for parent in run.parents_of(spec))
        and PARENTS_FENCE_IGNORED not in state.tuning.sabotage
    ):
        return KILL
    if other is not None:
        _replace(state, run, other, index, out)
    started = max(item.started, 1) if item.stage else 0
    recovery.put_at(state, worker, run, index, item.fence, item.generation, item.attempt, started, out)
    return KILL if run.state[index] == S.CANCELLING and item.stage != ENDED else KEEP


def _known(state: State, worker: Worker, run: Run, lot: Lot, item: HeldAttempt, out: Outbox) -> str:
    """An attempt in our books, if it is what the worker says it is."""
    member = item.fence - lot.fence
    if lot.marks[member] == DONE or lot.run != item.run or lot.first + member != item.index:
        return KILL
    if run.state[item.index] == S.CANCELLING:
        return KEEP if item.stage == ENDED else KILL
    if item.stage and lot.marks[member] != STARTED:
        lot.marks[member] = STARTED
        lot.started[member] = item.started
        worker.running += 1
        if run.state[item.index] == S.ASSIGNED:
            move(state, run, item.index, 1, S.RUNNING)
            out.changed(run.id)
    return KEEP


def _may_still_count(state: State, run: Run, spec: int, fence: int) -> bool:
    """A parent that has not ended: could it have, before this attempt of its child was given its fence?

    While the run is held its worker may still come and say so. Later only if an attempt with a lower fence is being
    kept somewhere, whose result is on its way.
    """
    if run.held:
        return True
    first, count = run.first[spec], run.count[spec]
    waiting = [
        item
        for items in state.undecided.values()
        for item in items.values()
        if item.run == run.id and first <= item.index < first + count and item.fence < fence
    ]
    held = {item.index for item in waiting}
    for value, start, length in run.stretches(first, count):
        if value in FINAL:
            continue
        for index in range(start, start + length):
            lot = lot_of(run, index)
            if index not in held and (lot is None or lot.fence + index - lot.first >= fence):
                return False
    return True


def _replace(state: State, run: Run, lot: Lot, index: int, out: Outbox) -> None:
    """An older attempt of a task, of which a later one has turned up, is ended wherever it is."""
    member = index - lot.first
    out.command(Kill(lot.worker, run.id, index, lot.fence + member))
    tasks.replaced(state, state.workers[lot.worker], run, lot, member, out)


def decide_undecided(state: State, out: Outbox) -> None:
    """What had to wait, once more: parents have ended since, or the hold is over."""
    state.parents_ended = False
    for worker_id, items in list(state.undecided.items()):
        worker = state.workers[worker_id]
        verdict: dict[str, list[int]] = {KEEP: [], KILL: [], WAIT: []}
        for fence in sorted(items):
            item = items.pop(fence)
            verdict[_judge(state, worker, item, out)].append(fence)
        if not items:
            state.undecided.pop(worker_id, None)
        if verdict[KEEP] or verdict[KILL]:
            out.command(Verdict(0, worker_id, tuple(verdict[KEEP]), tuple(verdict[KILL])))


def on_worker_suspected(state: State, event: WorkerSuspected, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is not None and worker.state in ("READY", "DRAINING"):
        worker.state = "SUSPECT"
        placement.forget_recalls(state, worker)
        placement.unpin_all(state, worker)


def on_worker_recovered(state: State, event: WorkerRecovered, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is not None:
        _recover(state, worker)


def _recover(state: State, worker: Worker) -> None:
    """Heard again: what it was before it fell silent."""
    if worker.state == "SUSPECT":
        worker.state = "DRAINING" if worker.draining else "READY"
    placement.load_changed(state, worker)
    state.needs_placement = True


def on_worker_lost(state: State, event: WorkerLost, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is not None and worker.state not in ("LOST", "LEFT"):
        lose(state, worker, "lost", out)


def on_worker_draining(state: State, event: WorkerDraining, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is None or worker.state in ("LOST", "LEFT"):
        return
    worker.draining = True
    if worker.state == "READY":
        worker.state = "DRAINING"
    placement.unpin_all(state, worker)


def on_worker_left(state: State, event: WorkerLeft, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is not None and worker.state not in ("LOST", "LEFT"):
        lose(state, worker, "left", out)


def lose(state: State, worker: Worker, how: str, out: Outbox) -> None:
    """The worker is gone: all it held goes on elsewhere. Only the oldest ``slots`` attempts can have been running,
    so only they count as crashes; a goodbye counts none."""
    out.fact(WorkerGone(state.wall, worker.id, how))
    state.undecided.pop(worker.id, None)
    worker.state = how.upper()
    worker.gone_at = state.now
    placement.unpin_all(state, worker)
    crashing = worker.slots if how == "lost" else 0
    forget = FORGET_TO_REQUEUE in state.tuning.sabotage
    for place, (lot, member) in enumerate(list(tasks.open_members(list(worker.lots)))):
        run = state.runs[lot.run]
        if forget:
            tasks.close(state, worker, run, lot, member)
            continue
        tasks.attempt_lost(state, worker, run, lot, member, place < crashing, out)
    state.view_rows[worker.view].workers.discard(worker.id)
    state.overfull.discard(worker.id)
    state.needs_placement = True
    state.timer(GONE_LISTED, ("forget_worker", worker.id, worker.nonce))
    recovery.heard_of(state, worker.id, out)


GONE_LISTED = 3600.0
"""Seconds a worker that left or was lost stays in the listing."""


def forget_worker(state: State, out: Outbox, worker_id: str, nonce: str) -> None:
    worker = state.workers.get(worker_id)
    if worker is not None and worker.nonce == nonce and worker.state in ("LOST", "LEFT"):
        del state.workers[worker_id]


def on_stop_requested(state: State, event: StopRequested, out: Outbox) -> None:
    state.stopping = True


def on_commits_stuck(state: State, event: CommitsStuck, out: Outbox) -> None:
    state.is_stuck = True


def on_commits_flowing(state: State, event: CommitsFlowing, out: Outbox) -> None:
    state.is_stuck = False
    state.needs_placement = True
