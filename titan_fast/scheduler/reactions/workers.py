"""Workers come, fall silent, come back, leave and get lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

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
from titan_fast.scheduler.facts import WorkerGone, WorkerRegistered
from titan_fast.scheduler.lifecycle import FINAL, IN_FLIGHT, S
from titan_fast.scheduler.reactions import tasks
from titan_fast.scheduler.sabotage import (
    ABSENT_IS_CRASH,
    COPIED_STATE,
    FLOOR_IGNORED,
    FORGET_TO_REQUEUE,
    HIGHER_FENCE_IGNORED,
    OLD_NONCE_KEPT,
    PARENTS_FENCE_IGNORED,
    RETRY_NOT_FENCED,
)
from titan_fast.scheduler.state import DONE, RECALLING, WAITING, Lot, Outbox, Run, State, Worker


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
    if is_new or not worker.heard:
        worker.heard = True
        tasks.copies_found(state, worker, event.copies, out)
    _forget_undecided(state, worker)
    placement.forget_recalls(state, worker)  # they may have died with the old connection
    told = {item.fence for item in event.inventory if is_ours(state, item)}
    if ABSENT_IS_CRASH in state.tuning.sabotage:
        crashing = worker.slots
    for place, (lot, member) in enumerate(list(tasks.open_members(list(worker.lots)))):
        # Only the oldest can have been running. What the worker still has is no loss, but had its slot.
        if lot.fence + member not in told:
            tasks.attempt_lost(state, worker, state.runs[lot.run], lot, member, place < crashing, out)
    verdict: dict[str, list[int]] = {KEEP: [], KILL: [], WAIT: []}
    for _, item, what in _judge_all(state, [(worker, item) for item in event.inventory], out):
        verdict[what].append(item.fence)
    _leave_alone(state, worker)
    _recover(state, worker)
    out.command(Verdict(event.ticket, worker.id, tuple(verdict[KEEP]), tuple(verdict[KILL]), tuple(verdict[WAIT])))
    recovery.heard_of(state, worker.id, out)


def _begin_anew(state: State, worker: Worker, event: WorkerAttached, capabilities: frozenset[str]) -> None:
    """A new incarnation of a worker that we have not given up: what its agent ran may run on under the new one."""
    placement.unpin_all(state, worker)
    state.view_rows[worker.view].workers.discard(worker.id)
    worker.name = event.name
    if OLD_NONCE_KEPT not in state.tuning.sabotage:
        worker.nonce = event.nonce
    worker.capabilities, worker.slots = capabilities, event.slots
    worker.view = state.view_of(capabilities)
    worker.draining = False
    worker.state = "SUSPECT"


def _leave_alone(state: State, worker: Worker) -> None:
    """What it holds may be a task that must have a worker to itself."""
    if worker.held == 1 and worker.alone is None:
        ((lot, member),) = tasks.open_members(worker.lots)
        if state.runs[lot.run].crashes.get(lot.first + member, 0) >= 2:
            worker.alone = (lot.run, lot.first + member)
            state.pinned.add(worker.id)


# ---------------------------------------------------------------- verdicts

KEEP, KILL, WAIT = "keep", "kill", "wait"
NEVER = 1 << 64
"""Above every fence."""


class _Known:
    """What is known of one run while verdicts are given, made when first asked for."""

    def __init__(self, state: State, run: Run) -> None:
        self._state = state
        self._run = run
        self._parents: dict[int, tuple[int, list[int]]] = {}
        self._lots: dict[int, Lot] | None = None
        """Index -> the lot with its open attempt."""
        self._seen: set[int] = set()
        """Tasks with an open attempt, in our books or undecided."""
        self._count: Counter[int] = Counter()
        """Spec -> how many those are."""
        self._newest: Counter[int] = Counter()
        """Spec -> the highest fence of theirs."""
        self._bound: dict[int, int] = {}
        """Spec -> what a fence must be above, as far as the parents go that have not ended."""

    def parents(self, spec: int) -> tuple[int, list[int]]:
        """Their highest accepted fence, and those that have not ended."""
        found = self._parents.get(spec)
        if found is None:
            run, parents = self._run, self._run.parents_of(spec)
            highest = max((run.best[parent] for parent in parents), default=0)
            found = self._parents[spec] = highest, [parent for parent in parents if run.open[parent]]
        return found

    def lot_of(self, index: int) -> Lot:
        """Of a task that is in flight."""
        return self._books()[index]

    def parents_may_end_below(self, spec: int, fence: int) -> bool:
        """Everything of its parents that has not ended has an attempt that was given out before this fence was: they
        may have ended before it, and the word of it is on its way. A parent that waits for its own parents may end
        without an attempt (skipped) as soon as those do."""
        self._books()
        stack = [spec]
        while stack:
            above = self._unresolved_above(stack[-1])
            missing = [parent for parent in above if parent not in self._bound]
            if missing:
                stack += missing
            else:
                top = stack.pop()
                self._bound[top] = max((self._ends_above(parent) for parent in self.parents(top)[1]), default=0)
        return self._bound[spec] < fence

    def _unresolved_above(self, spec: int) -> list[int]:
        """Parents that have not ended, whose own parents decide when they may."""
        return [parent for parent in self.parents(spec)[1] if not self._is_held(parent) and self._run.unmet[parent]]

    def _is_held(self, spec: int) -> bool:
        """Everything of it that has not ended has an attempt somewhere."""
        return self._count[spec] >= self._run.open[spec]

    def _ends_above(self, spec: int) -> int:
        """The fence above which everything is that was given out after this spec's end, should it have ended."""
        if self._is_held(spec):
            return self._newest[spec]
        return max(self._newest[spec], self._bound[spec]) if self._run.unmet[spec] else NEVER

    def _books(self) -> dict[int, Lot]:
        if self._lots is None:
            run = self._run
            self._lots = {lot.first + member: lot for lot, member in tasks.open_members(run.lots.values())}
            for index, lot in self._lots.items():
                self._add(index, lot.fence + index - lot.first)
            for items in self._state.undecided.values():
                for item in items.values():
                    if item.run == run.id and run.state[item.index] not in FINAL:
                        self._add(item.index, item.fence)
        return self._lots

    def _add(self, index: int, fence: int) -> None:
        spec = self._run.spec_of(index)
        self._newest[spec] = max(self._newest[spec], fence)
        if index not in self._seen:
            self._seen.add(index)
            self._count[spec] += 1

    def learn(self, index: int, fence: int, lot: Lot | None) -> None:
        """One more open attempt; without a lot it is undecided."""
        if self._lots is not None:
            self._add(index, fence)
            if lot is not None:
                self._lots[index] = lot
            self._bound.clear()


def is_ours(state: State, item: HeldAttempt) -> bool:
    return item.is_ours or COPIED_STATE in state.tuning.sabotage


def _judge_all(
    state: State, told: Sequence[tuple[Worker, HeldAttempt]], out: Outbox
) -> Iterator[tuple[Worker, HeldAttempt, str]]:
    """The verdict for each attempt. Parents come before their children, as fences only grow; of several attempts
    of one task only the newest has a chance."""
    ours = [(worker, item) for worker, item in told if is_ours(state, item)]
    yield from ((worker, item, KILL) for worker, item in told if not is_ours(state, item))
    ours.sort(key=lambda pair: pair[1].fence)
    newest = {(item.run, item.index, item.generation): item.fence for _, item in ours}
    known: dict[int, _Known] = {}
    for worker, item in ours:
        is_newest = newest[item.run, item.index, item.generation] == item.fence
        if is_newest or HIGHER_FENCE_IGNORED in state.tuning.sabotage:
            yield worker, item, _judge(state, worker, item, known, out)
        else:
            yield worker, item, KILL


def _judge(state: State, worker: Worker, item: HeldAttempt, about: dict[int, _Known], out: Outbox) -> str:
    """What becomes of one attempt that a worker holds: by its fence alone, as no assignment is ever written down."""
    run, index, fence = state.runs.get(item.run), item.index, item.fence
    if run is None or index >= len(run.state):
        return KILL
    lot = worker.find_lot(fence)
    if lot is not None:
        return _confirm(state, worker, run, lot, item, out)
    if run.id not in about:
        about[run.id] = _Known(state, run)
    known = about[run.id]
    if not _counts(state, run, item, known):
        return KILL
    spec = run.spec_of(index)
    _, unresolved = known.parents(spec)
    if unresolved:
        # While the run is held, the worker that has the parent's result may still come.
        if index in run.cancel_asked or not (run.held or known.parents_may_end_below(spec, fence)):
            return KILL
        _leave_undecided(state, worker, run, item)
        known.learn(index, fence, None)
        return WAIT
    if run.state[index] in IN_FLIGHT:
        _replace(state, run, known.lot_of(index), index, out)
    known.learn(index, fence, recovery.put_at(state, worker, run, item, out))
    return KILL if run.state[index] == S.CANCELLING and item.stage != ENDED else KEEP


def _counts(state: State, run: Run, item: HeldAttempt, known: _Known) -> bool:
    """It is above the task's floor and above the accepted fence of every parent, and no higher fence of that task is
    known; a task that is final, or in another generation, is not waiting for it."""
    sabotage, index, fence = state.tuning.sabotage, item.index, item.fence
    if run.state[index] in FINAL:
        return False
    if item.generation != run.generation.get(index, 0) and RETRY_NOT_FENCED not in sabotage:
        return False
    if fence <= run.floor_of(index) and FLOOR_IGNORED not in sabotage:
        return False
    highest, _ = known.parents(run.spec_of(index))
    if fence <= highest and PARENTS_FENCE_IGNORED not in sabotage:
        return False
    if run.state[index] not in IN_FLIGHT or HIGHER_FENCE_IGNORED in sabotage:
        return True
    lot = known.lot_of(index)
    return lot.fence + index - lot.first < fence


def _confirm(state: State, worker: Worker, run: Run, lot: Lot, item: HeldAttempt, out: Outbox) -> str:
    """An attempt with a fence that is in our books, if it is what the worker says it is."""
    member = item.fence - lot.fence
    if lot.marks[member] == DONE or lot.run != item.run or lot.first + member != item.index:
        return KILL
    if run.state[item.index] == S.CANCELLING:
        return KEEP if item.stage == ENDED else KILL
    if item.stage and lot.marks[member] in (WAITING, RECALLING):
        tasks.mark_started(state, worker, run, lot, member, item.started, out)
    return KEEP


def _leave_undecided(state: State, worker: Worker, run: Run, item: HeldAttempt) -> None:
    state.undecided.setdefault(worker.id, {})[item.fence] = item
    state.questions.setdefault((run.id, run.spec_of(item.index)), []).append((worker.id, item.fence))


def _forget_undecided(state: State, worker: Worker) -> None:
    for item in state.undecided.pop(worker.id, {}).values():
        _ask_children(state, item)


def _ask_children(state: State, item: HeldAttempt) -> None:
    """An attempt that was waited for does not count: neither does what its task's children did because of it."""
    run = state.runs.get(item.run)
    if run is not None:
        tasks.ask_again(state, run, run.spec_of(item.index))


def _replace(state: State, run: Run, lot: Lot, index: int, out: Outbox) -> None:
    """An older attempt of a task, of which a later one has turned up, is ended wherever it is."""
    member = index - lot.first
    out.command(Kill(lot.worker, run.id, index, lot.fence + member))
    tasks.replaced(state, state.workers[lot.worker], run, lot, member, out)


def decide_undecided(state: State, out: Outbox) -> None:
    """What had to wait, once more: a parent has ended since, or what was kept of it, or the hold is over."""
    verdicts: dict[str, dict[str, list[int]]] = {}
    while state.to_decide:
        keys, state.to_decide = sorted(state.to_decide), set()
        asked: list[tuple[Worker, HeldAttempt]] = []
        for key in keys:
            for worker_id, fence in state.questions.pop(key, ()):
                item = state.undecided.get(worker_id, {}).pop(fence, None)
                if item is not None:
                    asked.append((state.workers[worker_id], item))
        for worker, item, what in _judge_all(state, asked, out):
            verdicts.setdefault(worker.id, {KEEP: [], KILL: [], WAIT: []})[what].append(item.fence)
            if what == KILL:
                _ask_children(state, item)
    state.undecided = {worker_id: items for worker_id, items in state.undecided.items() if items}
    for worker_id, verdict in verdicts.items():
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
    _forget_undecided(state, worker)
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
