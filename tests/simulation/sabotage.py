"""Promises broken on purpose, by name: each must be noticed, or the simulation proves nothing.

What is in the core is switched by its `Tuning`; the rest replaces one function of the shells by a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import msgspec

from titan_fast.master import server
from titan_fast.master.committer import ThreadCommitter
from titan_fast.master.effects import Effects
from titan_fast.master.intake import Intake
from titan_fast.master.server import Master
from titan_fast.master.session import Session
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import facts as fact
from titan_fast.scheduler import sabotage as core
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.state import Tuning
from titan_fast.testing.simulation.disk import SimulatedStore
from titan_fast.worker.agent import Agent
from titan_fast.worker.slots import Slots

Sabotage = Callable[[], AbstractContextManager[object]]


def _in_the_core(name: str) -> Sabotage:
    def tuning(**options: Any) -> Tuning:
        return Tuning(**options, sabotage=frozenset({name}))

    return lambda: mock.patch.object(server, "Tuning", tuning)


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


def _registration_late() -> AbstractContextManager[object]:
    """Assignments leave before it is known that the worker's registration is durable."""
    send = Session.send

    def early(self: Session, frame: bytes) -> None:
        self.attached_at = 0
        send(self, frame)

    return mock.patch.object(Session, "send", early)


def _submit_not_awaited() -> AbstractContextManager[object]:
    return mock.patch.object(Effects, "_send", staticmethod(lambda session, frame, after: session.send(frame)))


def _keys_ignored() -> AbstractContextManager[object]:
    return mock.patch.object(Intake, "_repeated", lambda self, session, incoming, once: None)


def _old_attach_accepted() -> AbstractContextManager[object]:
    attach = Master.attach

    def forgiving(self: Master, session: Session, message: Any) -> None:
        attach(self, session, msgspec.structs.replace(message, connection=1 << 40))

    return mock.patch.object(Master, "attach", forgiving)


def _epoch_not_raised() -> AbstractContextManager[object]:
    opened = SimulatedStore.open

    def again(self: SimulatedStore) -> Any:
        first = self._kept.epoch or 1
        self._kept.epoch = first - 1
        return opened(self)

    return mock.patch.object(SimulatedStore, "open", again)


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


def _no_hold() -> AbstractContextManager[object]:
    """A restarted master waits for nobody."""
    restore = Scheduler.restore

    def hasty(self: Scheduler, next_run: int, revision: int, workers: Any, keys: Any, runs: Any) -> None:
        restore(self, next_run, revision, [], keys, runs)

    return mock.patch.object(Scheduler, "restore", hasty)


CORE = [value for name, value in sorted(vars(core).items()) if name.isupper() and isinstance(value, str)]
SABOTAGE: dict[str, Sabotage] = {
    **{name: _in_the_core(name) for name in CORE},
    "acknowledge_before_commit": _at_once(Op.ACCEPTED, Op.UPDATE),
    "verdict_before_commit": _at_once(Op.VERDICT),
    "kill_before_commit": _at_once(Op.KILL),
    "results_acknowledged_before_commit": _at_once(Op.ACK),
    "answers_before_commit": _at_once(Op.SHOWN),
    "durable_when_made": _durable_when_made,
    "registration_late": _registration_late,
    "submit_not_awaited": _submit_not_awaited,
    "keys_ignored": _keys_ignored,
    "old_attach_accepted": _old_attach_accepted,
    "epoch_not_raised": _epoch_not_raised,
    "half_a_commit": _half_a_commit,
    "retry_not_kept": _not_kept(fact.TasksReopened),
    "cancel_not_kept": _not_kept(fact.CancelAsked),
    "skips_not_kept": _not_kept(fact.TasksSettled),
    "workers_not_kept": _not_kept(fact.WorkerRegistered),
    "retries_without_end": _retries_without_end,
    "one_slot_more": _one_slot_more,
    "kills_ignored": _kills_ignored,
    "no_hold": _no_hold,
}
