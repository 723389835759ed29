"""Which attempt is open, and where: what a session that speaks for one is held to. It knows nothing of sessions."""

from __future__ import annotations

from titan_fast.scheduler.state import DONE, State


def holder_of(state: State, fence: int) -> str:
    """Id of the worker where this attempt is open; empty when it is open nowhere."""
    return next((worker for worker in state.workers if is_open(state, worker, fence)), "")


def is_open(state: State, worker_id: str, fence: int) -> bool:
    """The worker holds this attempt, and it has neither ended nor been given up."""
    worker = state.workers.get(worker_id)
    lot = None if worker is None else worker.find_lot(fence)
    return lot is not None and lot.marks[fence - lot.fence] != DONE
