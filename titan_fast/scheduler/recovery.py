"""After a restart: a run from what the store knows of it, and the hold until the workers that were alive are back.

Nobody wrote down what was assigned, and nobody has to: fences, floors and the workers' complete inventories decide
(`reactions.workers`). What the store knows gives the final states, the counters and the floors; everything else waits,
BLOCKED, until `let_go`, so that nothing that still runs somewhere is started again.
"""

from __future__ import annotations

from collections.abc import Iterable

from titan_fast.scheduler import facts as fact
from titan_fast.scheduler import placement
from titan_fast.scheduler.events import RUNS, WAITS, HeldAttempt
from titan_fast.scheduler.facts import EndedHead, KvChanged, RunRecord, WorkerRegistered
from titan_fast.scheduler.graph import admit
from titan_fast.scheduler.lifecycle import FINAL, TaskState, move
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.sabotage import BACKOFF_FORGOTTEN, CANCEL_FORGOTTEN, CRASHES_FORGOTTEN, HOLD_SKIPPED
from titan_fast.scheduler.state import CANCELLED, Entry, Lot, Outbox, Run, State, Worker

S = TaskState

UNCOUNTED = frozenset({"recalled", "killed", "absent", "replaced"})
"""Reasons of attempts that ended without any fault of their task."""
_FINAL_BY_NAME = {state.name: state for state in FINAL}


# ---------------------------------------------------------------- a run from its record


def rebuild(state: State, record: RunRecord) -> Run:
    """The run as its facts tell it, for a look. Unfinished tasks are BLOCKED; the state is not changed (but for the
    classes of what its tasks require)."""
    return _replayed(state, record).run


def recall(state: State, record: RunRecord) -> Run:
    """A finished run as it was, for a retry."""
    replay = _replayed(state, record)
    _restore_places(replay, _ids_by_name(state))
    return replay.run


def _replayed(state: State, record: RunRecord) -> _Replay:
    accepted = record.accepted
    run = admit(state, accepted.graph, accepted.payloads, accepted.run, accepted.at, accepted.floor)
    replay = _Replay(run, accepted.at)
    for happened in record.happened:
        replay.take(happened)
    replay.finish()
    return replay


class _Replay:
    """Facts of one run, in order, into its columns."""

    def __init__(self, run: Run, at: float) -> None:
        self.run = run
        self.settled_at = [at] * len(run.names)
        """Spec -> when something of it was last settled."""
        self.running: dict[int, tuple[str, HeldAttempt]] = {}
        """Index -> (worker id, its attempt) that was running when it was last seen."""
        self.cancels: list[tuple[int, int]] = []
        self.reopened: dict[int, int] = {}
        """Index -> how many of the cancels are older than its generation."""
        self.accepted_at = at
        self.places: dict[int, str] = {}
        """Spec -> name of the worker where the last of it ended, in the order of their ends."""
        self.visited: set[str] = set()
        """Names of workers."""

    def take(self, item: object) -> None:
        run = self.run
        match item:
            case EndedHead():
                run.started_at = run.started_at or item.at
                run.status = "RUNNING"
                for first, count, fence, worker in item.clean:
                    self._completed(first, count, fence, worker, item.at)
                for row in item.rest:
                    self._ended(row, item.at)
            case fact.AttemptsRunning():
                began = min((started / 1e6 for started in item.started if started), default=item.at)
                run.started_at = run.started_at or min(item.at, max(began, self.accepted_at))
                run.status = "RUNNING"
                rows = zip(item.index, item.generation, item.fence, item.attempt, item.started, strict=True)
                for worker, (index, generation, fence, attempt, started) in zip(item.worker, rows, strict=True):
                    held = HeldAttempt(run.id, index, generation, fence, RUNS, attempt, started)
                    self.running[index] = worker, held
            case fact.TasksSettled():
                spec = run.spec_of(item.first)
                run.best[spec] = max(run.best[spec], item.floor)
                run.state[item.first : item.first + item.count] = bytes([_FINAL_BY_NAME[item.state]]) * item.count
                if item.state == "FAILED":
                    run.reasons[item.first] = item.reason
                else:
                    tasks.note(run, item.first, item.count, item.reason)
                self._settled(item.first, item.count, item.at)
            case fact.CancelAsked():
                run.cancelled |= item.count == len(run.state)
                self.cancels.append((item.first, item.count))
            case fact.TasksReopened():
                self._reopened(item)
            case fact.TasksDropped():
                for first, count in item.stretches:
                    run.dropped.update(range(first, first + count))
            case fact.RunEnded():
                run.status, run.finished_at = item.state, item.at
                run.started_at = item.started_at
            case _:
                raise TypeError(f"{type(item).__name__} is no fact of a run")

    def _settled(self, first: int, count: int, at: float) -> None:
        run = self.run
        spec = run.spec_of(first)
        while spec < len(run.names) and run.first[spec] < first + count:
            self.settled_at[spec] = at
            spec += 1

    def _completed(self, first: int, count: int, fence: int, worker: str, at: float) -> None:
        """Members that succeeded at once, with consecutive fences."""
        run = self.run
        run.state[first : first + count] = bytes([S.COMPLETED]) * count
        spec = run.spec_of(first)
        while spec < len(run.names) and run.first[spec] < first + count:
            last = min(first + count, run.first[spec] + run.count[spec]) - 1
            run.best[spec] = max(run.best[spec], fence + last - first)
            self.settled_at[spec] = at
            self._ended_at(spec, worker)
            spec += 1
        if run.reasons:
            for index in range(first, first + count):
                run.reasons.pop(index, None)

    def _ended(self, row: tuple[int, int, int, int, str, str, float, float, str], at: float) -> None:
        run = self.run
        index, _generation, attempt, fence, state, reason, due, seconds, worker = row
        if attempt:
            run.attempts[index] = attempt
        self.visited.add(worker)
        if state == "PENDING":
            run.floors[index] = max(fence, run.floor_of(index))
            run.returning[index] = (due, seconds)
            if reason == "worker_lost":
                run.crashes[index] = run.crashes.get(index, 0) + 1
            elif reason not in UNCOUNTED:
                run.failures[index] = run.failures.get(index, 0) + 1
                run.reasons[index] = f"backoff after {reason}"
            return
        run.state[index] = _FINAL_BY_NAME[state]
        spec = run.spec_of(index)
        run.best[spec] = max(run.best[spec], fence)
        if state == "COMPLETED":
            self._ended_at(spec, worker)
            run.reasons.pop(index, None)
        else:
            run.reasons[index] = reason
            if state == "FAILED":
                self._ended_at(spec, worker)
                run.failures[index] = run.failures.get(index, 0) + 1
            elif state == "DEAD":
                run.crashes[index] = run.crashes.get(index, 0) + 1
        self._settled(index, 1, at)

    def _ended_at(self, spec: int, worker: str) -> None:
        self.visited.add(worker)
        if self.run.options_of(spec).affinity is not None or self.run.tracks_places:
            self.places.pop(spec, None)  # the last one finished stands last
            self.places[spec] = worker

    def _reopened(self, item: fact.TasksReopened) -> None:
        run = self.run
        run.status, run.finished_at, run.cancelled = "RUNNING" if run.started_at else "PENDING", 0.0, False
        for first, count in item.stretches:
            run.state[first : first + count] = bytes([S.BLOCKED]) * count
            for index in range(first, first + count):
                run.generation[index] = run.generation.get(index, 0) + 1
                run.floors[index] = item.floor
                for column in (run.failures, run.crashes, run.reasons, self.running):
                    column.pop(index, None)
                run.dropped.discard(index)
                # Only what had ended is opened again, so that a cancel from before has nothing left to end of it.
                self.reopened[index] = len(self.cancels)
                delay = run.options_of(run.spec_of(index)).delay
                run.returning[index] = (item.at + delay, delay)

    def finish(self) -> None:
        """Counters and outcomes from the states; what is final waits for nothing."""
        run = self.run
        for value in TaskState:
            run.counts[value] = run.state.count(value)
        for spec in range(len(run.names)):
            tasks.count_members(run, spec)
        for spec in range(len(run.names)):
            parents = run.parents_of(spec)
            run.unmet[spec] = sum(1 for parent in parents if run.open[parent])
            if run.open[spec] and not run.unmet[spec]:
                run.released_at[spec] = max((self.settled_at[parent] for parent in parents), default=self.accepted_at)
        for number, (first, count) in enumerate(self.cancels):
            for value, start, length in run.stretches(first, count):
                if value is S.BLOCKED:
                    asked = range(start, start + length)
                    run.cancel_asked.update(index for index in asked if self.reopened.get(index, 0) <= number)
        run.returning = {index: due for index, due in run.returning.items() if run.state[index] == S.BLOCKED}
        self.running = {
            index: (worker, held)
            for index, (worker, held) in self.running.items()
            if run.state[index] == S.BLOCKED and held.fence > run.floor_of(index)
        }


# ---------------------------------------------------------------- a whole state


def restore(
    state: State,
    workers: Iterable[WorkerRegistered],
    keys: Iterable[KvChanged],
    runs: Iterable[RunRecord],
    out: Outbox,
) -> None:
    """Everything a store knows into a fresh state, which then waits for the workers that were alive."""
    for registered in workers:
        _restore_worker(state, registered)
    for key in keys:
        assert key.value is not None
        state.kv[key.name] = Entry(key.value, key.revision, key.expires_at)
        state.kv_size += len(key.name) + len(key.value)
        if key.expires_at:
            state.timer(tasks.left(state, key.expires_at, key.ttl), ("kv_due", key.name, key.revision))
    ids = _ids_by_name(state)
    sabotage = state.tuning.sabotage
    for record in runs:
        replay = _replayed(state, record)
        run = replay.run
        run.held = True
        state.runs[run.id] = run
        for value, n in enumerate(run.counts):
            state.totals[value] += n
        if CANCEL_FORGOTTEN in sabotage:
            run.cancel_asked.clear()
        if BACKOFF_FORGOTTEN in sabotage:
            run.returning = dict.fromkeys(run.returning, (0.0, 0.0))
        if CRASHES_FORGOTTEN in sabotage:
            run.crashes.clear()
        _restore_places(replay, ids)
        for spec, place in replay.places.items():
            affinity = run.options_of(spec).affinity
            if affinity is not None and affinity.kind == "key":
                state.keys[affinity.key] = ids.get(place, place)
        for worker_id, held in replay.running.values():
            worker = state.workers.get(worker_id)
            if worker is not None:
                put_at(state, worker, run, held, out)
    state.awaited = set(state.workers)
    if state.awaited and HOLD_SKIPPED not in sabotage:
        state.timer(state.tuning.recovery_grace, ("recovery_over",))
    else:
        let_go(state, out)


def _restore_worker(state: State, registered: WorkerRegistered) -> None:
    capabilities = frozenset(registered.capabilities)
    worker = Worker(registered.worker, registered.name, registered.nonce, capabilities, registered.slots)
    worker.permanent = registered.permanent
    worker.view = state.view_of(capabilities)
    worker.attached_at = state.now
    worker.state = "SUSPECT"
    state.workers[worker.id] = worker
    state.view_rows[worker.view].workers.add(worker.id)


def _ids_by_name(state: State) -> dict[str, str]:
    return {worker.name: worker.id for worker in state.workers.values()}


def _restore_places(replay: _Replay, ids: dict[str, str]) -> None:
    """Where affinity wants what comes next, and who has a working copy. A name that no living worker has stays a
    name: that place is gone."""
    run = replay.run
    run.visited.update(ids[name] for name in replay.visited if name in ids)
    if run.tracks_places:
        run.places.update((spec, ids.get(name, name)) for spec, name in replay.places.items())


def put_at(state: State, worker: Worker, run: Run, item: HeldAttempt, out: Outbox) -> Lot:
    """An attempt that is at a worker though nobody here assigned it (or remembers that he did). A task that was asked
    to be cancelled is being cancelled there."""
    index = item.index
    spec = run.spec_of(index)
    if run.state[index] != S.CANCELLING:
        tasks.take_out(state, run, spec, index, 1)
        if run.state[index] != S.ASSIGNED:
            move(state, run, index, 1, S.ASSIGNED)
    if run.status == "PENDING":
        run.status, run.started_at = "RUNNING", state.wall
    run.returning.pop(index, None)
    lot = placement.adopt(state, worker, run, spec, item)
    if item.stage != WAITS:
        tasks.mark_started(state, worker, run, lot, item.fence - lot.fence, item.started, out)
    if index in run.cancel_asked and run.state[index] != S.CANCELLING:
        move(state, run, index, 1, S.CANCELLING)
    out.changed(run.id)
    return lot


# ---------------------------------------------------------------- the hold


def heard_of(state: State, worker: str, out: Outbox) -> None:
    """A worker that was alive has attached, or is known to be gone: the last one ends the hold."""
    if state.awaited is not None:
        state.awaited.discard(worker)
        if not state.awaited:
            let_go(state, out)


def grace_is_over(state: State, out: Outbox) -> None:
    if state.awaited is not None:
        let_go(state, out)


def let_go(state: State, out: Outbox) -> None:
    """Runs of earlier epochs go on: what no worker holds is released, and what was cancelled there is cancelled."""
    state.awaited = None
    state.to_decide.update(state.questions)
    for run in [run for run in state.runs.values() if run.held]:
        run.held = False
        finished = _cancel_what_nobody_holds(state, run, out)
        for spec in range(len(run.names)):
            first, end = run.first[spec], run.first[spec] + run.count[spec]
            is_due = run.open[spec] and not run.unmet[spec] and run.state.find(S.BLOCKED, first, end) >= 0
            if is_due and not tasks.decide(state, run, spec, out):
                finished.append(spec)
        run.released_at.clear()
        out.changed(run.id)
        if not run.is_final:
            tasks.settle(state, run, finished, out)
    state.needs_placement = True


def _cancel_what_nobody_holds(state: State, run: Run, out: Outbox) -> list[int]:
    """Specs that ended by it."""
    ended = []
    nowhere = sorted(index for index in run.cancel_asked if run.state[index] == S.BLOCKED)
    run.cancel_asked.difference_update(nowhere)
    at = 0
    while at < len(nowhere):
        first = nowhere[at]
        spec = run.spec_of(first)
        end = at + 1
        while end < len(nowhere) and nowhere[end] == first + end - at < run.first[spec] + run.count[spec]:
            end += 1
        tasks.settle_members(
            state, run, spec, first, end - at, S.CANCELLED, "cancelled", CANCELLED, state.last_fence(), out
        )
        if not run.open[spec]:
            ended.append(spec)
        at = end
    return ended
