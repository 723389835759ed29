"""Which ready task goes to which worker: filter, rank, pick; once per turn for the whole batch.

Filter: a view's workers serve the classes linked to it, only READY workers are in its heap. Rank: views with fewer
capabilities first (so general tasks leave special workers free), in a view the least loaded worker. Pick: the ready
queue's best stretch, as much of it as evens out the load. The cost is per lot, not per worker or per task waiting.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from zlib import crc32

from titan_fast.scheduler.commands import Assign, Recall
from titan_fast.scheduler.events import HeldAttempt
from titan_fast.scheduler.lifecycle import S, move
from titan_fast.scheduler.state import (
    NO_SLOT_SOON,
    RECALLING,
    WAITING,
    Due,
    Lot,
    Outbox,
    Run,
    State,
    View,
    Worker,
)

UNKNOWN_COST = 1e9
"""Seconds a task is taken to last before anybody measured one like it: nothing unknown is prefetched."""
KINDS = 4096
"""Functions whose durations are remembered beyond the runs they were measured in."""
KIND_HEAD = 4096
"""Bytes of a function that are looked at to tell it from others."""


# ---------------------------------------------------------------- the books


def load_changed(state: State, worker: Worker) -> None:
    """A worker took or finished something, or became placeable: a new entry in its view's lazy heap."""
    if worker.held > worker.slots:
        state.overfull.add(worker.id)
    else:
        state.overfull.discard(worker.id)
    if not worker.is_placeable or worker.alone is not None:
        return
    view = state.view_rows[worker.view]
    heappush(view.heap, (worker.load, worker.attached_at, worker.id))
    if len(view.heap) > 64 + 4 * len(view.workers):
        view.heap = [
            (other.load, other.attached_at, other.id)
            for other in (state.workers[worker_id] for worker_id in view.workers)
            if other.is_placeable and other.alone is None
        ]
        heapify(view.heap)


def least_loaded(state: State, view: View) -> Worker | None:
    """The view's least loaded worker that may be given work; stale heap entries go on the way."""
    heap = view.heap
    while heap:
        load, _, worker_id = heap[0]
        worker = state.workers.get(worker_id)
        if (
            worker is not None
            and state.view_rows[worker.view] is view  # its next incarnation may have other capabilities
            and worker.is_placeable
            and worker.alone is None
            and worker.load == load
        ):
            return worker
        heappop(heap)
    return None


def measured(state: State, run: Run, spec: int, seconds: Sequence[float]) -> None:
    """Some more durations: the estimate follows slow tasks at once and fast ones slowly, so that a guess errs towards
    not hoarding."""
    key = run.cost_key(spec)
    cost = run.costs.get(key)
    if cost is None:
        cost = state.costs.get(_kind(run, spec), seconds[0])
    for each in seconds:
        smooth = 0.9 * cost + 0.1 * each
        cost = each if each > smooth else smooth
    run.costs[key] = cost
    if spec in run.functions:
        if len(state.costs) >= KINDS:
            del state.costs[next(iter(state.costs))]
        state.costs[_kind(run, spec)] = cost
    options = run.options_of(spec)
    state.queue.set_cost(options.cls, run.id, options.priority, max(cost, 1e-6))


def expected(state: State, run: Run, spec: int) -> float:
    """Seconds that another task of this spec will take, or of another run of the same function."""
    cost = run.costs.get(run.cost_key(spec))
    return state.costs.get(_kind(run, spec), UNKNOWN_COST) if cost is None else cost


def _kind(run: Run, spec: int) -> int:
    """Equal for equal functions, and nearly never for others: it is about a guess. 0: it is no function."""
    function = run.functions.get(spec)
    return 0 if function is None else len(function) << 32 | crc32(function[:KIND_HEAD])


# ---------------------------------------------------------------- the turn


def place(state: State, out: Outbox) -> None:
    """Give out what can be given out now, then see whether something badly placed should come back."""
    for worker_id in sorted(state.pinned):
        _place_pins(state, state.workers[worker_id], out)
    for row in state.view_order:
        _place_view(state, row, out)
    _balance(state, out)
    _make_way(state, out)


def _place_view(state: State, row: int, out: Outbox) -> None:
    view, queue = state.view_rows[row], state.queue
    while (best := queue.peek(row)) is not None:
        worker = least_loaded(state, view)
        if worker is None:
            return
        cls, run_id, priority, spec, index = best
        run = state.runs[run_id]
        room = worker.slots - worker.held
        if room > 0:
            room = max(1, min(room, queue.ready(cls) // len(view.workers)))
        else:
            if worker.load >= NO_SLOT_SOON:
                return  # nor has any other one
            if state.now - worker.ended_at > state.tuning.prefetch:
                worker.is_stuck = True
                load_changed(state, worker)
                continue
            soon = worker.slots - worker.long
            cost = expected(state, run, spec)
            depth = min(int(soon * state.tuning.prefetch / max(cost, 1e-9)), state.tuning.max_prefetch)
            room += depth
            if room <= 0 or run.crashes.get(index) or _has_less_urgent(state, worker, priority):
                return
            if run.crashes:
                room = 1  # its neighbours in the queue may be among those that crashed
        taken = queue.take(row, room)
        if taken is None:
            return
        _, run_id, _, spec, first, count = taken
        assign(state, worker, state.runs[run_id], spec, first, count, out)


def _has_less_urgent(state: State, worker: Worker, priority: int) -> bool:
    """Whether a task would wait there behind less urgent ones that have not started."""
    if min(state.in_flight) >= priority:
        return False
    return sum(count for other, count in worker.priorities.items() if other < priority) > worker.long


def assign(state: State, worker: Worker, run: Run, spec: int, first: int, count: int, out: Outbox) -> None:
    """A stretch of tasks becomes lots at a worker: cut where generation or attempt number differ."""
    move(state, run, first, count, S.ASSIGNED)
    if run.status == "PENDING":
        run.status, run.started_at = "RUNNING", state.wall
    out.changed(run.id)
    run.visited.add(worker.id)
    if worker.held < worker.slots:
        worker.ended_at = state.now
    at, end = first, first + count
    if run.generation or run.attempts:
        for index in range(first, end):
            if index in run.generation or index in run.attempts:
                if index > at:
                    _make_lot(state, worker, run, spec, at, index - at, 0, 1, out)
                attempt = run.attempts.get(index, 0) + 1
                _make_lot(state, worker, run, spec, index, 1, run.generation.get(index, 0), attempt, out)
                at = index + 1
    if at < end:
        _make_lot(state, worker, run, spec, at, end - at, 0, 1, out)
    worker.held += count
    load_changed(state, worker)


def _make_lot(
    state: State,
    worker: Worker,
    run: Run,
    spec: int,
    first: int,
    count: int,
    generation: int,
    attempt: int,
    out: Outbox,
) -> None:
    fence = state.next_fence(count)
    priority = run.options_of(spec).priority
    lot = Lot(run.id, spec, first, count, fence, worker.id, generation, attempt, priority, state.now)
    book(state, worker, run, lot)
    out.command(Assign(worker.id, run.id, spec, first, count, generation, attempt, fence))


def book(state: State, worker: Worker, run: Run, lot: Lot) -> None:
    """A lot into the books, in the order of its fence: a new one is the last, one that was found may be older."""
    lot.is_long = expected(state, run, lot.spec) > state.tuning.prefetch
    _count(state, worker, lot, lot.count)
    fences = worker.fences
    at = len(fences) if not fences or fences[-1] < lot.fence else bisect_left(fences, lot.fence)
    fences.insert(at, lot.fence)
    worker.lots.insert(at, lot)
    run.lots[lot.fence] = lot


def adopt(state: State, worker: Worker, run: Run, spec: int, item: HeldAttempt) -> Lot:
    """An attempt that is at a worker already, into the books: the next member of the lot before it, if it is that."""
    at = bisect_right(worker.fences, item.fence) - 1
    lot = worker.lots[at] if at >= 0 else None
    if (
        lot is not None
        and (lot.run, lot.spec, lot.generation, lot.attempt) == (run.id, spec, item.generation, item.attempt)
        and (lot.first + lot.count, lot.fence + lot.count) == (item.index, item.fence)
    ):
        lot.count += 1
        lot.open += 1
        lot.marks.append(WAITING)
        _count(state, worker, lot, 1)
    else:
        priority = run.options_of(spec).priority
        lot = Lot(
            run.id, spec, item.index, 1, item.fence, worker.id, item.generation, item.attempt, priority, state.now
        )
        book(state, worker, run, lot)
    run.visited.add(worker.id)
    worker.held += 1
    load_changed(state, worker)
    if run.crashes.get(item.index, 0) >= 2:
        _keep_no_other(state, worker, (run.id, item.index))
    return lot


def _keep_no_other(state: State, worker: Worker, task: tuple[int, int]) -> None:
    """A task that must have a worker to itself is found at this one: another may have been emptied for it."""
    for other in [state.workers[worker_id] for worker_id in state.pinned]:
        if other.alone == task and other is not worker:
            other.alone = None
            load_changed(state, other)


def _count(state: State, worker: Worker, lot: Lot, count: int) -> None:
    state.in_flight[lot.priority] = state.in_flight.get(lot.priority, 0) + count
    worker.priorities[lot.priority] = worker.priorities.get(lot.priority, 0) + count
    if lot.is_long:
        worker.long += count


def uncount(state: State, worker: Worker, lot: Lot, count: int) -> None:
    """Members of a lot are over: what is counted of all there are."""
    for books in (state.in_flight, worker.priorities):
        left = books[lot.priority] - count
        if left:
            books[lot.priority] = left
        else:
            del books[lot.priority]
    if lot.is_long:
        worker.long -= count
    worker.held -= count
    worker.ended_at, worker.is_stuck = state.now, False
    load_changed(state, worker)


# ---------------------------------------------------------------- recall


def _balance(state: State, out: Outbox) -> None:
    """Idle workers beside workers that hold what they have not started: fetch some of it back."""
    if not state.overfull:
        return
    soonest: float | None = None
    for row in state.view_order:
        view = state.view_rows[row]
        idle = least_loaded(state, view)
        if idle is None or idle.held >= idle.slots:
            continue
        wanted = idle.slots - idle.held - state.recalling
        for worker_id in sorted(state.overfull):
            donor = state.workers[worker_id]
            if wanted <= 0:
                break
            if donor.state == "SUSPECT":
                continue
            for lot in reversed(donor.lots):
                spare = min(wanted, donor.held - donor.slots)
                if spare <= 0:
                    break
                if not state.runs[lot.run].options_of(lot.spec).requires <= view.capabilities:
                    continue
                ripe = lot.assigned_at + state.tuning.recall_after
                if ripe > state.now:
                    soonest = ripe if soonest is None else min(soonest, ripe)
                    continue
                wanted -= _recall(state, donor, lot, spare, out)
    if soonest is not None and (state.balance_timer is None or state.balance_timer[1] > soonest):
        if state.balance_timer is not None:
            state.timers.cancel(state.balance_timer[0])
        state.balance_timer = (state.timers.add(soonest, ("balance",)), soonest)


def _make_way(state: State, out: Outbox) -> None:
    """A more urgent task waits while workers hold less urgent ones they have not started: those come back.

    A worker starts its tasks in order, so one that makes way gives back all of them; and for one urgent task one
    worker does it, unless another one will have a slot soon anyway.
    """
    if not state.overfull:
        return
    for row in state.view_order:
        best = state.queue.peek(row)
        if best is None or best[2] <= min(state.in_flight):
            continue
        workers = state.view_rows[row].workers
        donors = state.overfull & workers
        urgent = min(state.queue.ready(best[0]), state.runs[best[1]].counts[S.READY])
        wanted = urgent - (len(workers) - len(donors))
        for worker_id in sorted(donors):
            if wanted <= 0:
                break
            donor = state.workers[worker_id]
            if donor.state == "SUSPECT":
                continue
            less_urgent = [lot for lot in donor.lots if lot.priority < best[2]]
            for lot in less_urgent:
                _recall(state, donor, lot, lot.count, out)
            if less_urgent:
                wanted -= donor.slots


def _recall(state: State, donor: Worker, lot: Lot, limit: int, out: Outbox) -> int:
    """Ask for up to ``limit`` unstarted members from the end of a lot; how many were asked for."""
    end = lot.marks.rfind(WAITING) + 1
    start = end
    while start and end - start < limit and lot.marks[start - 1] == WAITING:
        start -= 1
    if start == end:
        return 0
    for member in range(start, end):
        lot.marks[member] = RECALLING
    state.recalling += end - start
    out.command(Recall(donor.id, lot.run, lot.first + start, end - start, lot.fence + start))
    return end - start


def forget_recalls(state: State, worker: Worker) -> None:
    """What was asked back from a worker may never have reached it: ask again when it is heard. A late answer still
    counts."""
    for lot in worker.lots:
        asked = lot.marks.count(RECALLING)
        if asked:
            state.recalling -= asked
            lot.marks = lot.marks.replace(bytes([RECALLING]), bytes([WAITING]))


# ---------------------------------------------------------------- one worker in particular


def pin(state: State, run: Run, spec: int, index: int) -> None:
    """A released task with an affinity: to the worker it names, to that worker's queue, or to everybody's."""
    options = run.options_of(spec)
    affinity = options.affinity
    assert affinity is not None
    worker = _wanted_worker(state, run, spec)
    nowhere = affinity.kind == "parent" and not _parent_place(run, spec)
    if worker is None and (affinity.mode == "prefer" or nowhere):
        move(state, run, index, 1, S.READY)
        state.queue.push_back(options.cls, run.id, options.priority, spec, index)
        return
    move(state, run, index, 1, S.PINNED)
    if worker is None:
        state.homeless.append((run.id, index))
        return
    _pin_to(state, worker, run, index)
    if affinity.mode == "prefer":
        handle = state.timer(affinity.wait, ("unpin", run.id, index))
        run.due[index] = Due(handle, state.now + affinity.wait, 1)


def _pin_to(state: State, worker: Worker, run: Run, index: int) -> None:
    worker.pins.append((run.id, index))
    run.pins[index] = worker.id
    state.pinned.add(worker.id)


def unpinned(state: State, run: Run, index: int) -> None:
    """A PINNED task waits for nobody in particular any more: forget the worker and the timer."""
    run.pins.pop(index, None)
    due = run.due.pop(index, None)
    if due is not None:
        state.timers.cancel(due.handle)


def _wanted_worker(state: State, run: Run, spec: int) -> Worker | None:
    """The READY worker an affinity points to. A key whose place is gone, or lacks what the task requires, gets a new
    one: the least loaded worker that may serve the task."""
    options = run.options_of(spec)
    affinity = options.affinity
    assert affinity is not None
    if affinity.kind == "parent":
        worker = state.workers.get(_parent_place(run, spec))
    else:
        worker = state.workers.get(state.keys.get(affinity.key, ""))
        fits = worker is not None and options.requires <= worker.capabilities
        if worker is not None and fits and worker.state == "SUSPECT" and affinity.mode == "require":
            return None  # what gathered there is there still: wait for its return or its loss
        if worker is None or not fits or not worker.is_placeable:
            candidates = [
                found
                for view in state.view_rows
                if options.requires <= view.capabilities and (found := least_loaded(state, view)) is not None
            ]
            worker = min(candidates, key=lambda found: found.load, default=None)
            if worker is not None:
                state.keys[affinity.key] = worker.id
    if worker is None or not worker.is_placeable or not options.requires <= worker.capabilities:
        return None
    return worker


def pin_alone(state: State, run: Run, index: int) -> None:
    """A task that crashed twice: the next attempt has a worker to itself, so that it takes nobody with it."""
    move(state, run, index, 1, S.PINNED)
    state.homeless.append((run.id, index))
    state.needs_placement = True


def adopt_homeless(state: State) -> list[tuple[int, int, str]]:
    """Pinned tasks without a worker, against the workers there are now. Returns those that can never have theirs,
    with the reason: they require the worker of their parent, and it is gone or lacks what they require."""
    waiting, state.homeless = list(dict.fromkeys(state.homeless)), []
    hopeless: list[tuple[int, int, str]] = []
    for run_id, index in waiting:
        run = state.runs.get(run_id)
        if run is None or run.state[index] != S.PINNED:
            continue
        spec = run.spec_of(index)
        options = run.options_of(spec)
        if run.crashes.get(index, 0) >= 2:
            free = [
                worker
                for worker in state.workers.values()
                if worker.is_placeable and worker.alone is None and options.requires <= worker.capabilities
            ]
            if free:
                worker = min(free, key=lambda found: found.load)
                worker.alone = (run_id, index)
                state.pinned.add(worker.id)
                continue
        elif (wanted := _wanted_worker(state, run, spec)) is not None:
            _pin_to(state, wanted, run, index)
            continue
        elif reason := _why_hopeless(state, run, spec):
            hopeless.append((run_id, index, reason))
            continue
        state.homeless.append((run_id, index))
    return hopeless


def _why_hopeless(state: State, run: Run, spec: int) -> str:
    options = run.options_of(spec)
    if options.affinity is None or options.affinity.kind != "parent":
        return ""
    worker = state.workers.get(_parent_place(run, spec))
    if worker is None or worker.draining or worker.state in ("LOST", "LEFT"):
        return "affinity: its worker is gone"
    if not options.requires <= worker.capabilities:
        return f"affinity: {worker.name} lacks {', '.join(sorted(options.requires - worker.capabilities))}"
    return ""


def _parent_place(run: Run, spec: int) -> str:
    """The worker id of the parent (or the named one) that finished last; empty when no parent ran."""
    affinity = run.options_of(spec).affinity
    assert affinity is not None
    parents = [run.find(affinity.key)] if affinity.key else list(run.parents_of(spec))
    return next((run.places[place] for place in reversed(run.places) if place in parents), "")


def _place_pins(state: State, worker: Worker, out: Outbox) -> None:
    """What waits for this worker alone, as far as it has room."""
    if worker.alone is not None:
        lonely = state.runs.get(worker.alone[0])
        index = worker.alone[1]
        if lonely is not None and lonely.state[index] == S.PINNED and not worker.held:
            assign(state, worker, lonely, lonely.spec_of(index), index, 1, out)
        elif lonely is None or lonely.state[index] not in (S.PINNED, S.ASSIGNED, S.RUNNING, S.CANCELLING):
            worker.alone = None
            load_changed(state, worker)
    while worker.pins and worker.alone is None and worker.is_placeable and worker.held < worker.slots:
        run_id, index = worker.pins.popleft()
        run = _waits_for(state, worker, run_id, index)
        if run is None:
            continue
        unpinned(state, run, index)
        assign(state, worker, run, run.spec_of(index), index, 1, out)
    if not worker.pins and worker.alone is None:
        state.pinned.discard(worker.id)


def _waits_for(state: State, worker: Worker, run_id: int, index: int) -> Run | None:
    """The run of a task that still waits for this worker; None when it does so no more."""
    run = state.runs.get(run_id)
    return run if run is not None and run.pins.get(index) == worker.id else None


def unpin(state: State, out: Outbox | None, run_id: int, index: int) -> None:
    """The wait for the preferred worker is over: anybody may have it."""
    run = state.runs.get(run_id)
    if run is None or run.state[index] != S.PINNED:
        return
    unpinned(state, run, index)
    spec = run.spec_of(index)
    options = run.options_of(spec)
    move(state, run, index, 1, S.READY)
    state.queue.push_back(options.cls, run.id, options.priority, spec, index)
    state.needs_placement = True


def unpin_all(state: State, worker: Worker) -> None:
    """The worker takes nothing more: who preferred it goes to everybody, who requires it waits for its return."""
    if worker.alone is not None:
        lonely = state.runs.get(worker.alone[0])
        if lonely is None or lonely.state[worker.alone[1]] == S.PINNED:
            state.homeless.append(worker.alone)
            worker.alone = None
    pins, worker.pins = list(worker.pins), type(worker.pins)()
    state.pinned.discard(worker.id)
    for run_id, index in pins:
        run = _waits_for(state, worker, run_id, index)
        if run is None:
            continue
        affinity = run.options_of(run.spec_of(index)).affinity
        if affinity is not None and affinity.mode == "require":
            del run.pins[index]
            state.homeless.append((run_id, index))
        else:
            unpin(state, None, run_id, index)
    state.needs_placement = True


def balance_is_due(state: State, out: Outbox) -> None:
    state.balance_timer = None
    state.needs_placement = True
