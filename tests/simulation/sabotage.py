"""Promises broken on purpose, by name: each must be noticed, or the simulation proves nothing.

The core and the master have switches for theirs; the rest replaces one function by a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

from titan_fast.master import sabotage as master_sabotage
from titan_fast.master.committer import ThreadCommitter
from titan_fast.master.session import Session
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import facts as fact
from titan_fast.scheduler import sabotage as scheduler_sabotage
from titan_fast.scheduler.reactions import tasks
from titan_fast.testing.simulation.disk import SimulatedStore
from titan_fast.worker.agent import Agent
from titan_fast.worker.slots import Slots

Sabotage = Callable[[], AbstractContextManager[object]]


def _at_once(*ops: Op) -> Sabotage:
    """Frames of these kinds do not wait for the facts they rest on."""
    send_after = Session.send_after

    def early(self: Session, position: int, frame: bytes) -> None:
        send_after(self, 0 if frame[1] in ops else position, frame)

    return lambda: mock.patch.object(Session, "send_after", early)


def _not_kept(*kinds: type[fact.Fact]) -> Sabotage:
    """Facts of these kinds never reach the disk."""
    commit = SimulatedStore.commit

    def forgetful(self: SimulatedStore, epoch: int, facts: list[fact.Fact]) -> None:
        commit(self, epoch, [item for item in facts if not isinstance(item, kinds)])

    return lambda: mock.patch.object(SimulatedStore, "commit", forgetful)


def _half_a_commit() -> AbstractContextManager[object]:
    """Now and then the end of a commit is lost, and everybody goes on."""
    commit = SimulatedStore.commit

    def torn(self: SimulatedStore, epoch: int, facts: list[fact.Fact]) -> None:
        commit(self, epoch, facts[:-1] if len(facts) > 1 and self.rng.random() < 0.2 else facts)

    return mock.patch.object(SimulatedStore, "commit", torn)


def _durable_when_made() -> AbstractContextManager[object]:
    """The master believes a fact to be safe as soon as it is on its way."""
    put = ThreadCommitter.put

    def hasty(self: ThreadCommitter, facts: list[fact.Fact], position: int) -> None:
        put(self, facts, position)
        self._listener.became_durable(position)

    return mock.patch.object(ThreadCommitter, "put", hasty)


def _retries_without_end() -> AbstractContextManager[object]:
    return mock.patch.object(tasks, "is_retryable", lambda *_: True)


def _one_slot_more() -> AbstractContextManager[object]:
    begin = Slots.__init__

    def generous(self: Slots, slots: int) -> None:
        begin(self, slots)
        self.slots += 1

    return mock.patch.object(Slots, "__init__", generous)


def _kills_ignored() -> AbstractContextManager[object]:
    return mock.patch.object(Agent, "_kill", lambda self, fence, grace: None)


PATCHES: dict[str, Sabotage] = {
    "results_acknowledged_before_commit": _at_once(Op.ACK),
    "answers_before_commit": _at_once(Op.SHOWN),
    "durable_when_made": _durable_when_made,
    "half_a_commit": _half_a_commit,
    "retry_not_kept": _not_kept(fact.TasksReopened),
    "cancel_not_kept": _not_kept(fact.CancelAsked),
    "skips_not_kept": _not_kept(fact.TasksSettled),
    "workers_not_kept": _not_kept(fact.WorkerRegistered),
    "retries_without_end": _retries_without_end,
    "one_slot_more": _one_slot_more,
    "kills_ignored": _kills_ignored,
}
BUILT_IN = scheduler_sabotage.SABOTAGE | master_sabotage.SABOTAGE
OUT_OF_REACH = {
    "copied_state": "no hour puts an old copy of the state back",
    "generation_ignored": "the floor that a retry raises refuses the same attempts",
    "old_attach_accepted": "the old connection ends right behind its inventory, and the next inventory mends it",
    "parents_fence_ignored": "the hold ends before a parent has run again, and then the child is refused for that",
    "retry_floor_kept": "the generation refuses the same attempts",
    "stale_session_accepted": "what comes late over an old connection has been said over the new one, too",
}
"""What 40 hours did not show, and why; tests of the core and the master have to."""
SABOTAGE = sorted(BUILT_IN | PATCHES.keys())
