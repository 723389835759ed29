"""The one door to the scheduler: events in, facts and commands out.

scheduler.advance(now, wall)      the turn's clocks
scheduler.handle(event)           for each thing that happened
scheduler.place()                 once, for the whole batch
facts, commands = scheduler.take()
scheduler.next_deadline()         when to call again though nothing happened
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from titan_fast.scheduler import events as ev
from titan_fast.scheduler import placement, recovery
from titan_fast.scheduler.commands import Command
from titan_fast.scheduler.facts import Fact, KvChanged, RunRecord, WorkerRegistered
from titan_fast.scheduler.reactions import data, runs, tasks, workers
from titan_fast.scheduler.state import Outbox, State, Tuning

REACTIONS: dict[type[ev.Event], Callable[[State, Any, Outbox], None]] = {
    ev.RunSubmitted: runs.on_run_submitted,
    ev.CancelRequested: runs.on_cancel_requested,
    ev.RetryRequested: runs.on_retry_requested,
    ev.DropRequested: runs.on_drop_requested,
    ev.RunRecalled: runs.on_run_recalled,
    ev.ForgetRequested: runs.on_forget_requested,
    ev.KvSetRequested: data.on_kv_set_requested,
    ev.ArtifactPublishRequested: data.on_artifact_publish_requested,
    ev.WorkerAttached: workers.on_worker_attached,
    ev.WorkerSuspected: workers.on_worker_suspected,
    ev.WorkerRecovered: workers.on_worker_recovered,
    ev.WorkerLost: workers.on_worker_lost,
    ev.WorkerDraining: workers.on_worker_draining,
    ev.WorkerLeft: workers.on_worker_left,
    ev.AttemptsStarted: tasks.on_attempts_started,
    ev.AttemptsFinished: tasks.on_attempts_finished,
    ev.CommitsStuck: workers.on_commits_stuck,
    ev.CommitsFlowing: workers.on_commits_flowing,
    ev.StopRequested: workers.on_stop_requested,
}

REVISION_GAP = 10_000
"""Revisions of keys that a restart passes over."""

ALARMS: dict[str, Callable[..., None]] = {
    "due": tasks.delay_is_over,
    "unpin": placement.unpin,
    "forget_worker": workers.forget_worker,
    "balance": placement.balance_is_due,
    "copies": tasks.copies_are_due,
    "note_running": tasks.note_running,
    "recovery_over": recovery.grace_is_over,
    "kv_due": data.key_is_due,
}
"""What each kind of timer key does when it is due."""


class Scheduler:
    """The scheduler as a value. Deterministic: equal events at equal times with an equal seed give equal output."""

    def __init__(self, epoch: int = 1, seed: int = 0, tuning: Tuning | None = None) -> None:
        self.state = State(epoch, random.Random(seed), tuning or Tuning())
        self._out = Outbox()

    def advance(self, now: float, wall: float) -> None:
        """Set the clocks (seconds; ``now`` never runs backwards) and let what is due happen."""
        state = self.state
        state.now = max(state.now, now)
        state.wall = wall
        for key in state.timers.due(state.now):
            assert isinstance(key, tuple)
            ALARMS[key[0]](state, self._out, *key[1:])

    def handle(self, event: ev.Event) -> None:
        REACTIONS[type(event)](self.state, event, self._out)

    def place(self) -> None:
        """Assign what can be assigned; does nothing unless something since the last turn asks for it."""
        state = self.state
        if state.to_decide:
            workers.decide_undecided(state, self._out)
        if not state.needs_placement or state.stopping or state.is_stuck:
            return
        state.needs_placement = False
        if state.homeless:
            for run, index, reason in placement.adopt_homeless(state):
                tasks.give_up(state, run, index, reason, self._out)
        placement.place(state, self._out)

    def restore(
        self,
        next_run: int,
        revision: int,
        workers: Iterable[WorkerRegistered],
        keys: Iterable[KvChanged],
        runs: Iterable[RunRecord],
    ) -> None:
        """Go on from what a store knows; after `advance`, before anything else."""
        # Whoever was shown a revision that was lost with a crash must not meet it again under another value.
        self.state.next_run, self.state.revision = next_run, revision + REVISION_GAP if revision else 0
        recovery.restore(self.state, workers, keys, runs, self._out)

    def begin_epoch(self, epoch: int) -> None:
        """From now on all fences are above those of every earlier epoch."""
        self.state.epoch, self.state.sequence = epoch, 0

    def forget_finished(self, durable: int) -> None:
        """Finished runs leave memory, the oldest first, when the facts that ended them are durable: what is not in
        memory can be read from the store."""
        state = self.state
        finished = state.finished
        while len(finished) > state.tuning.keep_finished and finished[0][1] <= durable:
            number, _, ended_at = finished.popleft()
            run = state.runs.get(number)
            if run is not None and run.is_final and run.finished_at == ended_at:
                runs.leave(state, run)
        state.forgotten = {number: at for number, at in state.forgotten.items() if at > durable}

    def take(self) -> tuple[list[Fact], list[Command]]:
        """Facts and commands since the last call, each in order."""
        return self._out.take()

    @property
    def position(self) -> int:
        """How many facts were made so far, those that nobody took yet included."""
        return self._out.here()

    @property
    def untaken(self) -> list[Fact]:
        """Facts since the last `take`."""
        return self._out.facts

    def next_deadline(self) -> float | None:
        """When something becomes due by itself, on the clock of ``now``."""
        return self.state.timers.next()
