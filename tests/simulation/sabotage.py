"""Promises broken on purpose, by name: each must be noticed, or the simulation proves nothing.

The core and the master have switches for theirs; the rest replaces one function by a wrong one. `python replay.py
--catch-all` tells which hour notices which, and what other tests do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import msgspec

from titan_fast.master import sabotage as master_sabotage
from titan_fast.master.committer import ThreadCommitter
from titan_fast.master.effects import Effects
from titan_fast.master.intake import Intake
from titan_fast.master.queries import Queries
from titan_fast.master.server import Master
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import core
from titan_fast.scheduler import facts as fact
from titan_fast.scheduler import sabotage as scheduler_sabotage
from titan_fast.scheduler.commands import Assign
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.reactions import tasks
from titan_fast.testing.simulation.disk import SimulatedStore
from titan_fast.worker.agent import Agent
from titan_fast.worker.executors import _pool
from titan_fast.worker.executors.lane import Lane
from titan_fast.worker.function_attempts import FunctionAttempts
from titan_fast.worker.slots import Slots, Stretch

Sabotage = Callable[[], AbstractContextManager[object]]


def _at_once(*ops: Op) -> Sabotage:
    """Frames of these kinds do not wait for the facts they rest on."""
    send_after = Session.send_after

    def early(self: Session, position: int, frame: bytes, *, is_urgent: bool = True) -> None:
        send_after(self, 0 if frame[1] in ops else position, frame, is_urgent=is_urgent)

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


def _worker_record_late() -> AbstractContextManager[object]:
    """Who registered is on the disk with the commit after the one that says so; until then a crash forgets them."""
    commit, late = SimulatedStore.commit, dict[int, list[fact.Fact]]()

    def dawdling(self: SimulatedStore, epoch: int, facts: list[fact.Fact]) -> None:
        records = [item for item in facts if isinstance(item, fact.WorkerRegistered)]
        commit(
            self,
            epoch,
            [*late.pop(epoch, ()), *(item for item in facts if not isinstance(item, fact.WorkerRegistered))],
        )
        late[epoch] = records

    return mock.patch.object(SimulatedStore, "commit", dawdling)


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


def _strangers_kept() -> AbstractContextManager[object]:
    return mock.patch.object(Agent, "_disown", lambda self, epoch: False)


def _comparison_ignored() -> AbstractContextManager[object]:
    take = Intake._kv_set

    def blind(self: Intake, session: Session, incoming: Incoming, message: msg.KvSet) -> None:
        take(self, session, incoming, msgspec.structs.replace(message, expect=-1))

    return mock.patch.object(Intake, "_kv_set", blind)


def _revisions_begin_anew() -> AbstractContextManager[object]:
    restore = Scheduler.restore

    def forgetful(self: Scheduler, next_run: int, revision: int, *rest: Any) -> None:
        restore(self, next_run, 0, *rest)

    return mock.patch.object(Scheduler, "restore", forgetful)


def _values_never_end() -> AbstractContextManager[object]:
    return mock.patch.dict(core.ALARMS, kv_due=lambda *_: None)


def _taken_back_runs_on() -> AbstractContextManager[object]:
    """The agent gives away what it takes back, and its process is not told."""
    take = Lane.take_back

    def one_sided(self: Lane) -> list[Stretch]:
        taken = take(self)
        self.cells[_pool.TAKEN_TO] = 0
        return taken

    return mock.patch.object(Lane, "take_back", one_sided)


def _unrun_forgotten() -> AbstractContextManager[object]:
    return mock.patch.object(FunctionAttempts, "functions_unrun", lambda self, stretches: None)


def _arguments_mixed_up() -> AbstractContextManager[object]:
    find = Queries.results

    def askew(self: Queries, *of: Any) -> list[bytes]:
        return find(self, *of)[::-1]

    return mock.patch.object(Queries, "results", askew)


def _functions_before_retry() -> AbstractContextManager[object]:
    """Functions wait for nothing, so neither for the retry they are of."""
    wait = Effects._not_before

    def hasty(self: Effects, command: Assign) -> int:
        is_function = command.spec in self._master.scheduler.state.runs[command.run].functions
        return 0 if is_function else wait(self, command)

    return mock.patch.object(Effects, "_not_before", hasty)


PATCHES: dict[str, tuple[str, Sabotage]] = {
    "results_acknowledged_before_commit": ("Workers forget results that a crash may undo.", _at_once(Op.ACK)),
    "answers_before_commit": ("What is shown may be undone by a crash.", _at_once(Op.SHOWN)),
    "durable_when_made": ("A fact counts as safe as soon as it is on its way to the disk.", _durable_when_made),
    "half_a_commit": ("Now and then the end of a commit is lost, and everybody goes on.", _half_a_commit),
    "retry_not_kept": ("Retries never reach the disk.", _not_kept(fact.TasksReopened)),
    "cancel_not_kept": ("Cancels never reach the disk.", _not_kept(fact.CancelAsked)),
    "skips_not_kept": ("Ends without an attempt never reach the disk.", _not_kept(fact.TasksSettled)),
    "workers_not_kept": ("Registrations of workers never reach the disk.", _not_kept(fact.WorkerRegistered)),
    "worker_record_late": (
        "A worker gets its verdict and its work one commit before its registration is on the disk.",
        _worker_record_late,
    ),
    "keys_not_kept": ("Changes of keys never reach the disk.", _not_kept(fact.KvChanged)),
    "retries_without_end": ("A task that fails is tried again, whatever its retries.", _retries_without_end),
    "one_slot_more": ("A worker runs one attempt more than it has slots.", _one_slot_more),
    "kills_ignored": ("A worker lets run what it is told to end.", _kills_ignored),
    "strangers_kept": ("A worker keeps what another master of the same epoch assigned.", _strangers_kept),
    "comparison_ignored": ("A compare-and-set sets without comparing.", _comparison_ignored),
    "revisions_begin_anew": ("A restart counts revisions of keys from the beginning again.", _revisions_begin_anew),
    "taken_back_runs_on": (
        "What is taken back from a process for functions is given to others, and runs there all the same.",
        _taken_back_runs_on,
    ),
    "unrun_forgotten": (
        "What a process for functions had been given and did not begin when it ended is lost.",
        _unrun_forgotten,
    ),
    "arguments_mixed_up": ("A function is given the results of an array in another order.", _arguments_mixed_up),
    "functions_before_retry": ("A function starts again before its retry is durable.", _functions_before_retry),
    "values_never_end": ("A value outlives its time.", _values_never_end),
}
BUILT_IN = scheduler_sabotage.BREAKS | master_sabotage.BREAKS
BREAKS = dict(sorted({**BUILT_IN, **{name: breaks for name, (breaks, _) in PATCHES.items()}}.items()))
"""Name -> what is wrong then."""


@contextmanager
def sabotaged(name: str) -> Iterator[None]:
    """Every master and every agent made meanwhile breaks this promise; none when the name is empty."""
    if name in PATCHES:
        with PATCHES[name][1]():
            yield
        return
    begin = Master.__init__

    def begin_badly(self: Master, *given: Any, **named: Any) -> None:
        begin(self, *given, **{**named, "sabotage": frozenset({name})})

    with mock.patch.object(Master, "__init__", begin_badly if name else begin):
        yield
