"""After a restart: a run from what the store knows of it, and the hold until the workers that were alive are back.

Nobody wrote down what was assigned, and nobody has to: fences, floors and the workers' complete inventories decide
(`reactions.workers`). What the store knows gives the final states, the counters and the floors; everything else waits,
BLOCKED, until `let_go`, so that nothing that still runs somewhere is started again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from titan_fast.scheduler import facts as fact
from titan_fast.scheduler import placement
from titan_fast.scheduler.facts import EndedHead, KvChanged, RunRecord, WorkerRegistered
from titan_fast.scheduler.graph import admit
from titan_fast.scheduler.lifecycle import FINAL, TaskState, move
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.state import (
    CANCELLED,
    STARTED,
    UNWANTED,
    UPSTREAM,
    Entry,
    Lot,
    Outbox,
    Run,
    State,
    Worker,
)

S = TaskState

UNCOUNTED = frozenset({"recalled", "killed", "absent", "replaced"})
"""Reasons of attempts that ended without any fault of their task."""
_FINAL_BY_NAME = {state.name: state for state in FINAL}
_SETTLED_BIT = {"upstream_failed": UPSTREAM, "when": UNWANTED}


# ---------------------------------------------------------------- a run from its record


def rebuild(state: State, record: RunRecord) -> Run:
    """The run as its facts tell it, for a look or to go on with. Unfinished tasks are BLOCKED; the state is not
    changed (but for the classes of what its tasks require)."""
    return _replayed(state, record).run


def _replayed(state: State, record: RunRecord) -> _Replay:
    accepted = record.accepted
    run = admit(state, accepted.graph, accepted.payloads, accepted.run, accepted.at, accepted.floor)
    replay = _Replay(run, accepted.at)
    for happened in record.happened:
        replay.take(happened)
    replay.finish()
    return replay


class _Seen(NamedTuple):
    """An attempt that was running when it was last seen."""

    fence: int
    generation: int
    attempt: int
    worker: str
    started: int


class _Replay:
    """Facts of one run, in order, into its columns."""

    def __init__(self, run: Run, at: float) -> None:
        self.run = run
        self.settled_at = [at] * len(run.names)
        """Spec -> when something of it was last settled."""
        self.running: dict[int, _Seen] = {}
        self.cancels: list[tuple[int, int]] = []
        self.accepted_at = at
        self.places: dict[int, str] = {}
        """Spec -> name of the worker where the last of it ended, in the order of their ends."""

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
                run.started_at = run.started_at or item.at
                run.status = "RUNNING"
                seen = zip(item.fence, item.generation, item.attempt, item.worker, item.started, strict=True)
                self.running.update(zip(item.index, map(_Seen._make, seen), strict=True))
            case fact.TasksSettled():
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

    def _ended(self, row: tuple[int, int, int, int, str, str, float, float, str], at: float) -> None:
        run = self.run
        index, _generation, attempt, fence, state, reason, due, seconds, worker = row
        run.attempts[index] = attempt
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
        self._ended_at(run.spec_of(index), worker)
        if state == "COMPLETED":
            spec = run.spec_of(index)
            run.best[spec] = max(run.best[spec], fence)
            run.reasons.pop(index, None)
        else:
            run.reasons[index] = reason
            if state == "FAILED":
                run.failures[index] = run.failures.get(index, 0) + 1
            elif state == "DEAD":
                run.crashes[index] = run.crashes.get(index, 0) + 1
        self._settled(index, 1, at)

    def _ended_at(self, spec: int, worker: str) -> None:
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
                run.floors[index] = max(item.floor, run.floor_of(index))
                for column in (run.failures, run.crashes, run.reasons, run.returning, self.running):
                    column.pop(index, None)
                run.dropped.discard(index)
        # Only what had ended can be opened again, so a cancel from before has nothing left to end.
        self.cancels.clear()

    def finish(self) -> None:
        """Counters and outcomes from the states; what is final waits for nothing."""
        run = self.run
        for value in TaskState:
            run.counts[value] = run.state.count(value)
        for spec in range(len(run.names)):
            first, count = run.first[spec], run.count[spec]
            bits = left_open = 0
            for value, start, length in run.stretches(first, count):
                if value not in FINAL:
                    left_open += length
                elif value in (S.SKIPPED, S.CANCELLED):
                    bits |= CANCELLED if value is S.CANCELLED else _SETTLED_BIT.get(run.reason_of(start), UNWANTED)
                else:
                    bits |= tasks.OUTCOME_BIT[value]
            run.open[spec], run.outcome[spec] = left_open, bits
        for spec in range(len(run.names)):
            parents = run.parents_of(spec)
            run.unmet[spec] = sum(1 for parent in parents if run.open[parent])
            if run.open[spec] and not run.unmet[spec]:
                run.released_at[spec] = max((self.settled_at[parent] for parent in parents), default=self.accepted_at)
        for first, count in self.cancels:
            for value, start, length in run.stretches(first, count):
                if value is S.BLOCKED:
                    run.cancel_asked.update(range(start, start + length))
        run.returning = {index: due for index, due in run.returning.items() if run.state[index] == S.BLOCKED}
        self.running = {
            index: seen
            for index, seen in self.running.items()
            if run.state[index] == S.BLOCKED and seen.fence > run.floor_of(index)
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
            state.timer(max(0.0, key.expires_at - state.wall), ("kv_due", key.name, key.revision))
    for record in runs:
        replay = _replayed(state, record)
        run = replay.run
        run.held = True
        state.runs[run.id] = run
        for value, n in enumerate(run.counts):
            state.totals[value] += n
        _restore_places(state, run, replay.places)
        for index, seen in replay.running.items():
            worker = state.workers.get(seen.worker)
            if worker is not None:
                put_at(state, worker, run, index, seen.fence, seen.generation, seen.attempt, seen.started, out)
    state.awaited = set(state.workers)
    if state.awaited:
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


def _restore_places(state: State, run: Run, places: dict[int, str]) -> None:
    """Where affinity wants what comes next. A name that no living worker has stays: its place is gone."""
    ids = {worker.name: worker.id for worker in state.workers.values()}
    for spec, name in places.items():
        place = ids.get(name, name)
        affinity = run.options_of(spec).affinity
        if affinity is not None and affinity.kind == "key":
            state.keys[affinity.key] = place
        if run.tracks_places:
            run.places[spec] = place


def put_at(
    state: State,
    worker: Worker,
    run: Run,
    index: int,
    fence: int,
    generation: int,
    attempt: int,
    started: int,
    out: Outbox,
) -> None:
    """An attempt that is at a worker though nobody here assigned it (or remembers that he did).

    ``started`` is 0 for one that waits for a slot. A task that was asked to be cancelled is being cancelled there.
    """
    spec = run.spec_of(index)
    tasks.take_out(state, run, spec, index, 1)
    if run.state[index] != S.ASSIGNED:
        move(state, run, index, 1, S.ASSIGNED)
    if run.status == "PENDING":
        run.status, run.started_at = "RUNNING", state.wall
    run.visited.add(worker.id)
    run.returning.pop(index, None)
    priority = run.options_of(spec).priority
    lot = Lot(run.id, spec, index, 1, fence, worker.id, generation, attempt, priority, state.now)
    placement.book(state, worker, run, lot)
    worker.held += 1
    if started:
        lot.marks[0] = STARTED
        lot.started[0] = started
        worker.running += 1
        move(state, run, index, 1, S.RUNNING)
    if index in run.cancel_asked:
        move(state, run, index, 1, S.CANCELLING)
    placement.load_changed(state, worker)
    out.changed(run.id)


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
    state.parents_ended = True
    for run in [run for run in state.runs.values() if run.held]:
        run.held = False
        finished = _cancel_what_nobody_holds(state, run, out)
        _go_on(state, run)
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
        tasks.settle_members(state, run, spec, first, end - at, S.CANCELLED, "cancelled", CANCELLED, out)
        if not run.open[spec]:
            ended.append(spec)
        at = end
    return ended


def _go_on(state: State, run: Run) -> None:
    """Tasks that had attempts already: they wait out their backoff, or are ready again."""
    returning, run.returning = run.returning, {}
    for index, (due, seconds) in sorted(returning.items()):
        spec = run.spec_of(index)
        if run.state[index] != S.BLOCKED or run.unmet[spec]:
            continue
        rest = tasks.left(state, due, seconds)
        if rest > 0:
            tasks.wait(state, run, index, 1, rest)
        else:
            tasks.come_back(state, run, spec, index)
