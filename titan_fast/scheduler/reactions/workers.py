"""Workers come, fall silent, come back, leave and get lost."""

from __future__ import annotations

from titan_fast.errors import Stopping
from titan_fast.scheduler import placement
from titan_fast.scheduler.commands import Refuse, Verdict
from titan_fast.scheduler.events import (
    HeldAttempt,
    StopRequested,
    WorkerAttached,
    WorkerDraining,
    WorkerLeft,
    WorkerLost,
    WorkerRecovered,
    WorkerSuspected,
)
from titan_fast.scheduler.facts import WorkerGone, WorkerRegistered
from titan_fast.scheduler.lifecycle import S, move
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.sabotage import FORGET_TO_REQUEUE
from titan_fast.scheduler.state import DONE, STARTED, Outbox, State, Worker


def on_worker_attached(state: State, event: WorkerAttached, out: Outbox) -> None:
    """A complete inventory against our books: what both know is kept, what only we know was never received (same
    incarnation) or is lost (a new one), what only the worker knows is killed."""
    if state.stopping:
        out.command(Refuse(event.ticket, Stopping()))
        return
    worker = state.workers.get(event.worker)
    if worker is not None and worker.nonce != event.nonce:
        if worker.state not in ("LOST", "LEFT"):
            lose(state, worker, "lost", out)
        worker = None
    capabilities = frozenset(event.capabilities)
    if worker is None or worker.state in ("LOST", "LEFT"):
        worker = Worker(event.worker, event.name, event.nonce, capabilities, event.slots)
        worker.permanent = event.permanent
        worker.view = state.view_of(capabilities)
        worker.attached_at = state.now
        state.workers[worker.id] = worker
        state.view_rows[worker.view].workers.add(worker.id)
        out.fact(
            WorkerRegistered(
                state.wall, worker.id, worker.name, worker.nonce, event.capabilities, event.slots, event.permanent
            )
        )
    placement.forget_recalls(state, worker)  # they may have died with the old connection
    keep, kill = _reconcile(state, worker, event.inventory, out)
    _recover(state, worker)
    out.command(Verdict(event.ticket, worker.id, tuple(keep), tuple(kill)))


def _reconcile(
    state: State, worker: Worker, inventory: tuple[HeldAttempt, ...], out: Outbox
) -> tuple[list[int], list[int]]:
    keep: list[int] = []
    kill: list[int] = []
    told = {}
    for item in inventory:
        lot = worker.find_lot(item.fence)
        member = item.fence - lot.fence if lot is not None else 0
        if lot is None or lot.marks[member] == DONE or lot.run != item.run or lot.first + member != item.index:
            kill.append(item.fence)
            continue
        told[item.fence] = item
        run = state.runs[lot.run]
        if run.state[item.index] == S.CANCELLING:
            kill.append(item.fence)
            continue
        keep.append(item.fence)
        if item.stage and lot.marks[member] != STARTED:
            lot.marks[member] = STARTED
            worker.running += 1
            if run.state[item.index] == S.ASSIGNED:
                move(state, run, item.index, 1, S.RUNNING)
                out.changed(run.id)
    for lot, member in list(tasks.open_members(list(worker.lots))):
        if lot.fence + member not in told:
            tasks.attempt_lost(state, worker, state.runs[lot.run], lot, member, False, out)
    return keep, kill


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


GONE_LISTED = 3600.0
"""Seconds a worker that left or was lost stays in the listing."""


def forget_worker(state: State, out: Outbox, worker_id: str, nonce: str) -> None:
    worker = state.workers.get(worker_id)
    if worker is not None and worker.nonce == nonce and worker.state in ("LOST", "LEFT"):
        del state.workers[worker_id]


def on_stop_requested(state: State, event: StopRequested, out: Outbox) -> None:
    state.stopping = True
