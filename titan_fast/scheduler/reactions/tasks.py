"""What happens to tasks: release, start, end, and what their end means for their children and their run.

Cascades (a failure that skips a million descendants, a chain a hundred thousand deep) are worklists, never recursion.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import sub

from titan_fast._layout import RESULT_PREFIX
from titan_fast.ids import Ending
from titan_fast.scheduler import placement
from titan_fast.scheduler.commands import ForgetRun
from titan_fast.scheduler.events import AttemptsFinished, AttemptsStarted
from titan_fast.scheduler.facts import ArtifactPublished, AttemptsEnded, AttemptsRunning, RunEnded, TasksSettled
from titan_fast.scheduler.lifecycle import PUBLIC, TaskState, move, public_counts
from titan_fast.scheduler.retry import backoff, is_retryable
from titan_fast.scheduler.sabotage import PARENTS_COUNTED_ONCE
from titan_fast.scheduler.state import (
    BAD,
    CANCELLED,
    DONE,
    OK,
    RECALLING,
    STARTED,
    UNWANTED,
    UPSTREAM,
    WAITING,
    Due,
    Lot,
    Outbox,
    Run,
    State,
    Worker,
)

S = TaskState

MAX_NOTE = 500
"""Characters of a worker's own words kept as a reason."""

ENDINGS = tuple(Ending)
"""By value: an index costs a tenth of a call of the enum."""

NOTED_AFTER = 1.0
"""Seconds an attempt runs before it is written down that it does."""

MAX_COPIES = 10_000
"""Finished runs whose working copies the workers keep at most."""

GIVEN_BACK = {Ending.RECALLED: "recalled", Ending.DROPPED: "recalled", Ending.KILLED: "killed"}
"""Endings that are not the task's own doing, and the reason of that attempt: the task goes on elsewhere."""

NEVER_BEGAN = (Ending.RECALLED, Ending.DROPPED)
"""Endings of what had not started: such an attempt has no number, and the next one of its task has the one it had."""

_DONE = bytes([DONE])

OUTCOME_BIT = {S.COMPLETED: OK, S.FAILED: BAD, S.DEAD: BAD, S.CANCELLED: CANCELLED}


# ---------------------------------------------------------------- release


def release(state: State, run: Run, spec: int, first: int, count: int) -> None:
    """Parents are done: wait out the delay, or become ready. A run that is held goes on later (`recovery.let_go`)."""
    if run.held:
        run.released_at.setdefault(spec, state.wall)
        return
    delay = run.options_of(spec).delay
    due = run.released_at.get(spec, state.wall) + delay if delay else 0.0
    stretches = [(first, count)]
    if run.returning:
        _go_on(state, run, spec, first, count, due)
        stretches = [(start, length) for of, start, length in run.stretches(first, count) if of is S.BLOCKED]
    seconds = left(state, due, delay)
    for start, length in stretches:
        if seconds > 0:
            wait(state, run, start, length, seconds)
        else:
            make_ready(state, run, spec, start, length)


def _go_on(state: State, run: Run, spec: int, first: int, count: int, due: float) -> None:
    """Those that were out during the hold, or opened again, wait out what is left of their own backoff or delay."""
    members = range(first, first + count)
    found = members if count < len(run.returning) else sorted(run.returning)
    for index in found:
        if index in members and index in run.returning:
            own, seconds = run.returning.pop(index)
            # A delay that began again has not begun before the last parent ended.
            come_back(state, run, spec, index, left(state, max(own, due), seconds))


def left(state: State, due: float, seconds: float) -> float:
    """What is left of a wait of so many seconds that is over at ``due`` (wall clock, which may have jumped)."""
    return min(seconds, max(0.0, due - state.wall))


def wait(state: State, run: Run, first: int, count: int, seconds: float) -> None:
    """DELAYED until a timer; nothing else is held meanwhile."""
    move(state, run, first, count, S.DELAYED)
    handle = state.timer(seconds, ("due", run.id, first, count))
    run.due[first] = Due(handle, state.now + seconds, count)


def take_out(state: State, run: Run, spec: int, first: int, count: int) -> None:
    """Tasks of one spec in one state wait no more, whatever they waited for; the caller moves them."""
    waits = TaskState(run.state[first])
    if waits is S.READY:
        options = run.options_of(spec)
        state.queue.discard(options.cls, run.id, options.priority, first, count)
    elif waits is S.DELAYED:
        stop_waiting(state, run, spec, first, count)
    elif waits is S.PINNED:
        for index in range(first, first + count):
            placement.unpinned(state, run, index)


def stop_waiting(state: State, run: Run, spec: int, first: int, count: int) -> None:
    """Tasks of one spec wait for no timer any more; the rest of a stretch they waited in keeps its deadline.

    A timer that stayed would wake the next generation of a task before its time.
    """
    if run.count[spec] == 1:
        found = [first] if first in run.due else []
    else:
        found = [at for at, due in run.due.items() if at < first + count and first < at + due.members]
    for at in found:
        due = run.due.pop(at)
        state.timers.cancel(due.handle)
        for start, end in ((at, first), (first + count, at + due.members)):
            if start < end:
                handle = state.timers.add(due.at, ("due", run.id, start, end - start))
                run.due[start] = Due(handle, due.at, end - start)


def delay_is_over(state: State, out: Outbox, run_id: int, first: int, count: int) -> None:
    """A delay or backoff ended. Members cancelled meanwhile are passed over."""
    run = state.runs.get(run_id)
    if run is None:
        return
    run.due.pop(first, None)
    spec = run.spec_of(first)
    for task_state, start, length in run.stretches(first, count):
        if task_state is S.DELAYED and length == 1 and run.crashes.get(start, 0) >= 2:
            placement.pin_alone(state, run, start)
        elif task_state is S.DELAYED:
            make_ready(state, run, spec, start, length)


def make_ready(state: State, run: Run, spec: int, first: int, count: int) -> None:
    """Into the ready queue, or to the one worker that affinity names."""
    options = run.options_of(spec)
    state.needs_placement = True
    if options.affinity is not None:
        for index in range(first, first + count):
            placement.pin(state, run, spec, index)
        return
    move(state, run, first, count, S.READY)
    state.queue.push(options.cls, run.id, options.priority, spec, first, count)


def come_back(state: State, run: Run, spec: int, index: int, seconds: float = 0.0) -> None:
    """A task that was out is ready again after so many seconds, before its younger siblings; alone after its second
    crash. In a run that is held a later attempt may still turn up: it waits with the others."""
    state.needs_placement = True
    if run.held:
        move(state, run, index, 1, S.BLOCKED)
        run.returning[index] = (state.wall + seconds, seconds)
        return
    if seconds > 0:
        wait(state, run, index, 1, seconds)
        return
    if run.crashes.get(index, 0) >= 2:
        placement.pin_alone(state, run, index)
        return
    options = run.options_of(spec)
    if options.affinity is not None:
        placement.pin(state, run, spec, index)
        return
    move(state, run, index, 1, S.READY)
    state.queue.push_back(options.cls, run.id, options.priority, spec, index)


# ---------------------------------------------------------------- at the worker


def on_attempts_started(state: State, event: AttemptsStarted, out: Outbox) -> None:
    worker = state.workers.get(event.worker)
    if worker is None:
        return
    for run_id, index, fence, started in zip(event.run, event.index, event.fence, event.started, strict=True):
        lot = worker.find_lot(fence)
        if lot is None or lot.run != run_id or lot.first + fence - lot.fence != index:
            continue
        member = fence - lot.fence
        if lot.marks[member] in (WAITING, RECALLING):
            mark_started(state, worker, state.runs[run_id], lot, member, started, out)


def mark_started(state: State, worker: Worker, run: Run, lot: Lot, member: int, started: int, out: Outbox) -> None:
    """``started``: microseconds, the worker's wall clock."""
    if lot.marks[member] == RECALLING:
        state.recalling -= 1
    lot.marks[member] = STARTED
    lot.started[member] = started
    worker.running += 1
    if not state.unnoted:
        state.timer(NOTED_AFTER, ("note_running",))
    state.unnoted.append((state.now, lot, member))
    index = lot.first + member
    if run.state[index] == S.ASSIGNED:
        move(state, run, index, 1, S.RUNNING)
        out.changed(run.id)


def note_running(state: State, out: Outbox) -> None:
    """What has been running for a moment is written down; most attempts have ended by then."""
    facts: dict[int, AttemptsRunning] = {}
    unnoted = state.unnoted
    while unnoted and unnoted[0][0] + NOTED_AFTER <= state.now:
        _, lot, member = unnoted.popleft()
        if lot.marks[member] != STARTED:
            continue
        fact = facts.get(lot.run)
        if fact is None:
            fact = facts[lot.run] = AttemptsRunning(state.wall, lot.run, [], [], [], [], [], [])
            out.fact(fact)
        fact.index.append(lot.first + member)
        fact.generation.append(lot.generation)
        fact.attempt.append(lot.attempt)
        fact.fence.append(lot.fence + member)
        fact.worker.append(lot.worker)
        fact.started.append(lot.started.get(member, 0))
    if unnoted:
        state.timers.add(unnoted[0][0] + NOTED_AFTER, ("note_running",))


def on_attempts_finished(state: State, event: AttemptsFinished, out: Outbox) -> None:
    """A frame of results. What does not match an open attempt is stale (fenced out) and changes nothing."""
    worker = state.workers.get(event.worker)
    if worker is None:
        return
    for row, count in _stretches(event):
        end = row + count
        while row < end:
            done = _completed(state, worker, event, row, end - row, out) if end - row > 1 else 0
            if not done:
                _finished(state, worker, event, row, out)
            row += done or 1
    state.needs_placement = True


def _stretches(event: AttemptsFinished) -> Iterator[tuple[int, int]]:
    """(row, count) of neighbours in one array that ended well, their results in this frame; of others one by one."""
    row = 0
    fences, indexes = map(sub, event.fence, itertools.count()), map(sub, event.index, itertools.count())
    for key, rows in groupby(zip(event.run, fences, indexes, event.ending, event.code, strict=True)):
        count = sum(1 for _ in rows)
        if key[3] or key[4] or event.references:
            for at in range(row, row + count):
                yield at, 1
        else:
            yield row, count
        row += count


def _completed(state: State, worker: Worker, event: AttemptsFinished, row: int, count: int, out: Outbox) -> int:
    """The plain case of many at once: members of one lot, side by side, succeed at the first try. How many of these
    rows that were; 0: the first one has something of its own to be looked at."""
    fence, index = event.fence[row], event.index[row]
    lot = worker.find_lot(fence)
    if lot is None or lot.run != event.run[row] or lot.attempt > 1 or worker.alone is not None:
        return 0
    member, spec, run = fence - lot.fence, lot.spec, state.runs[lot.run]
    count = min(count, lot.count - member)
    marks = lot.marks[member : member + count]
    states = run.state[index : index + count]
    if (
        lot.first + member != index
        or marks.count(WAITING) + marks.count(STARTED) != count
        or states.count(S.ASSIGNED) + states.count(S.RUNNING) != count
        or run.reasons
        or spec in run.wanted
    ):
        return 0
    close(state, worker, run, lot, member, count)
    placement.measured(state, run, spec, [duration / 1e6 for duration in event.duration[row : row + count]])
    if run.tracks_places:
        run.places.pop(spec, None)
        run.places[spec] = lot.worker
    for _, start, length in run.stretches(index, count):
        move(state, run, start, length, S.COMPLETED)
    run.best[spec] = max(run.best[spec], fence + count - 1)
    batch = out.ended(state.wall, run.id)
    if not lot.generation:
        batch.stretches.append((len(batch.index), count))
    batch.index.extend(range(index, index + count))
    batch.generation.extend([lot.generation] * count)
    batch.attempt.extend([lot.attempt] * count)
    batch.fence.extend(range(fence, fence + count))
    batch.worker.extend([worker.name] * count)
    batch.state.extend(["COMPLETED"] * count)
    batch.reason.extend(["exit:0"] * count)
    batch.code.extend([0] * count)
    batch.started.extend(event.started[row : row + count])
    batch.duration.extend(event.duration[row : row + count])
    batch.result.extend(event.results[row : row + count])
    member_is_final(state, run, spec, S.COMPLETED, count, out)
    out.changed(run.id)
    return count


def _finished(state: State, worker: Worker, event: AttemptsFinished, row: int, out: Outbox) -> None:
    """One row, whatever it says."""
    fence, index = event.fence[row], event.index[row]
    lot = worker.find_lot(fence)
    member = fence - lot.fence if lot is not None else 0
    if lot is None or lot.marks[member] == DONE or lot.run != event.run[row] or lot.first + member != index:
        return
    ending = ENDINGS[event.ending[row]]
    run = state.runs[lot.run]
    close(state, worker, run, lot, member)
    if ending in GIVEN_BACK and run.state[index] != S.CANCELLING:
        began = ending not in NEVER_BEGAN
        _record(state, run, lot, index, fence, "PENDING", GIVEN_BACK[ending], 0, event.started[row], 0, b"", out, began)
        come_back(state, run, lot.spec, index)
    else:
        _judge(
            state,
            run,
            lot,
            index,
            fence,
            ending,
            event.code[row],
            event.started[row],
            event.duration[row],
            event.results[row],
            out,
            event.references.get(row),
        )
    out.changed(run.id)


def close(state: State, worker: Worker, run: Run, lot: Lot, member: int, count: int = 1) -> None:
    """Members of a lot are over, one way or another: the books of lot and worker."""
    marks = lot.marks[member : member + count]
    if started := marks.count(STARTED):
        worker.running -= started
        for at in range(member, member + count):
            lot.started.pop(at, None)
    state.recalling -= marks.count(RECALLING)
    lot.marks[member : member + count] = _DONE * count
    lot.open -= count
    placement.uncount(state, worker, lot, count)
    if not lot.open:
        at = bisect_left(worker.fences, lot.fence)
        del worker.fences[at], worker.lots[at]
        del run.lots[lot.fence]
    if worker.alone is not None and worker.alone == (run.id, lot.first + member):
        worker.alone = None
        placement.load_changed(state, worker)


def _judge(
    state: State,
    run: Run,
    lot: Lot,
    index: int,
    fence: int,
    ending: Ending,
    code: int,
    started: int,
    duration: int,
    result: bytes,
    out: Outbox,
    size: int | None = None,
) -> None:
    """What an attempt's end makes of its task. ``size``: of the file, where the result is the address of one."""
    spec = lot.spec
    if run.state[index] == S.CANCELLING:
        to, reason = S.CANCELLED, "cancelled"
    elif ending is Ending.EXIT and code == 0:
        to, reason = S.COMPLETED, "exit:0"
        placement.measured(state, run, spec, [duration / 1e6])
        if result and spec in run.wanted:
            run.results[index] = result
        if size is not None:
            digest = result.decode().removeprefix(RESULT_PREFIX)
            out.fact(ArtifactPublished(state.wall, f"{run.id}/{run.label(index)}", digest, size, run=run.id))
    else:
        reason = _reason(ending, code, result, spec in run.functions)
        failures = run.failures[index] = run.failures.get(index, 0) + 1
        options = run.options_of(spec)
        if is_retryable(options.retry, failures, ending, code):
            run.reasons[index] = f"backoff after {reason}"
            seconds = backoff(options.retry, failures, state.rng)
            batch = _record(state, run, lot, index, fence, "PENDING", reason, code, started, duration, b"", out)
            batch.due[len(batch.index) - 1] = (state.wall + seconds, seconds)
            come_back(state, run, spec, index, seconds)
            return
        to = S.FAILED
    if reason != "exit:0":
        run.reasons[index] = reason
    elif run.reasons:
        run.reasons.pop(index, None)
    if run.tracks_places:
        run.places.pop(spec, None)  # the last one finished stands last
        run.places[spec] = lot.worker
    move(state, run, index, 1, to)
    began = ending not in NEVER_BEGAN
    _record(state, run, lot, index, fence, PUBLIC[to], reason, code, started, duration, result, out, began)
    member_is_final(state, run, spec, to, 1, out)


def _reason(ending: Ending, code: int, note: bytes, is_function: bool) -> str:
    if ending is Ending.EXIT:
        # A function that raised says what; behind the NUL follows what only clients can read.
        said = note.partition(b"\0")[0] if is_function else b""
        return said.decode("utf-8", "replace")[:MAX_NOTE] if said else f"exit:{code}"
    if ending is Ending.SIGNAL:
        return f"signal:{code}"
    if ending is Ending.TIMEOUT:
        return "timeout"
    return f"not_started: {note.decode('utf-8', 'replace')[:MAX_NOTE]}"


def _record(
    state: State,
    run: Run,
    lot: Lot,
    index: int,
    fence: int,
    public: str,
    reason: str,
    code: int,
    started: int,
    duration: int,
    result: bytes,
    out: Outbox,
    began: bool = True,
) -> AttemptsEnded:
    """``began``: False when it is known that it never started."""
    if began and (public != "COMPLETED" or lot.attempt > 1):
        run.attempts[index] = lot.attempt
    if public == "PENDING":
        run.floors[index] = max(fence, run.floor_of(index))
        ask_again(state, run, lot.spec)
    elif fence > run.best[lot.spec]:
        run.best[lot.spec] = fence
    batch = out.ended(state.wall, run.id)
    batch.index.append(index)
    batch.generation.append(lot.generation)
    batch.attempt.append(lot.attempt if began else 0)
    batch.fence.append(fence)
    batch.worker.append(state.workers[lot.worker].name)
    batch.state.append(public)
    batch.reason.append(reason)
    batch.code.append(code)
    batch.started.append(started)
    batch.duration.append(duration)
    batch.result.append(result)
    return batch


def attempt_lost(state: State, worker: Worker, run: Run, lot: Lot, member: int, crashed: bool, out: Outbox) -> None:
    """Its worker is gone, or never got it (``crashed`` False): run it elsewhere, unless it keeps killing workers."""
    index, fence = lot.first + member, lot.fence + member
    started = lot.started.get(member, 0)
    began = crashed or lot.marks[member] == STARTED
    close(state, worker, run, lot, member)
    out.changed(run.id)
    if run.state[index] == S.CANCELLING:
        run.reasons[index] = "unverified"
        move(state, run, index, 1, S.CANCELLED)
        _record(state, run, lot, index, fence, "CANCELLED", "unverified", 0, started, 0, b"", out, began)
        member_is_final(state, run, lot.spec, S.CANCELLED, 1, out)
        return
    if crashed:
        crashes = run.crashes[index] = run.crashes.get(index, 0) + 1
        if crashes >= state.tuning.crash_limit:
            run.reasons[index] = "worker_lost"
            move(state, run, index, 1, S.DEAD)
            _record(state, run, lot, index, fence, "DEAD", "worker_lost", 0, started, 0, b"", out)
            member_is_final(state, run, lot.spec, S.DEAD, 1, out)
            return
    reason = "worker_lost" if crashed else "absent"
    _record(state, run, lot, index, fence, "PENDING", reason, 0, started, 0, b"", out, began)
    come_back(state, run, lot.spec, index)


def replaced(state: State, worker: Worker, run: Run, lot: Lot, member: int, out: Outbox) -> None:
    """A later attempt of this task is kept elsewhere; the caller moves the task there."""
    index, fence = lot.first + member, lot.fence + member
    started, began = lot.started.get(member, 0), lot.marks[member] == STARTED
    _record(state, run, lot, index, fence, "PENDING", "replaced", 0, started, 0, b"", out, began)
    close(state, worker, run, lot, member)


# ---------------------------------------------------------------- what an end means


def member_is_final(state: State, run: Run, spec: int, to: TaskState, count: int, out: Outbox) -> None:
    """Members of a spec ended in one state; when they were its last, its children are judged."""
    run.outcome[spec] |= OUTCOME_BIT[to]
    run.open[spec] -= count
    if not run.open[spec]:
        settle(state, run, [spec], out)


def settle(state: State, run: Run, finished: list[int], out: Outbox) -> None:
    """Specs with no open member left: count them off their children, and so on down; then look at the run."""
    sabotaged = PARENTS_COUNTED_ONCE in state.tuning.sabotage
    for spec in finished:  # grows while we walk it
        if state.undecided:
            ask_again(state, run, spec)
        for child in run.children_of(spec):
            if not run.unmet[child] or not run.open[child]:
                continue
            if sabotaged and run.unmet[child] < len(run.parents_of(child)):
                continue
            run.unmet[child] -= 1
            if not run.unmet[child] and not decide(state, run, child, out):
                finished.append(child)
    if not run.unfinished:
        end_run(state, run, out)


def decide(state: State, run: Run, spec: int, out: Outbox) -> bool:
    """All parents of a spec are final: release what of it is BLOCKED, or skip or cancel it. False when that ended it.

    A parent that was skipped because nobody wanted it (its own ``when`` did not hold) counts for nothing; one that
    was skipped because of a failure above passes the failure's shadow on.
    """
    bits = 0
    for parent in run.parents_of(spec):
        bits |= judged(run.outcome[parent])
    when = run.options_of(spec).when
    blocked = [
        (first, count) for of, first, count in run.stretches(run.first[spec], run.count[spec]) if of is S.BLOCKED
    ]
    has_parents = run.parents_at[spec] != run.parents_at[spec + 1]
    if bits & CANCELLED:
        to, reason, bit = S.CANCELLED, "upstream_cancelled", CANCELLED
    elif when == "success" and bits & (BAD | UPSTREAM):
        to, reason, bit = S.SKIPPED, "upstream_failed", UPSTREAM
    elif (
        when == "always" or (when == "failure" and bits & BAD) or (when == "success" and (bits & OK or not has_parents))
    ):
        for first, count in blocked:
            release(state, run, spec, first, count)
        ask_again(state, run, spec)  # it needs an attempt: it did not end before what its children did
        return True
    else:
        to, reason, bit = S.SKIPPED, "when", UNWANTED
    # As old as the ends it follows from: decided again after a crash, it outdates no attempt that came after those.
    floor = max((run.best[parent] for parent in run.parents_of(spec)), default=run.floor)
    for first, count in blocked:
        for is_asked, start, length in _asked_to_end(run, first, count):
            if is_asked:  # of a run that was held then: it goes as its client was told
                settle_members(state, run, spec, start, length, S.CANCELLED, "cancelled", CANCELLED, floor, out)
            else:
                settle_members(state, run, spec, start, length, to, reason, bit, floor, out)
    return not blocked or bool(run.open[spec])


def _asked_to_end(run: Run, first: int, count: int) -> list[tuple[bool, int, int]]:
    """(whether a cancel waits for them, first, count) of a stretch."""
    if not run.cancel_asked:
        return [(False, first, count)]
    found = []
    for is_asked, members in groupby(range(first, first + count), run.cancel_asked.__contains__):
        of = list(members)
        found.append((is_asked, of[0], len(of)))
    run.cancel_asked.difference_update(range(first, first + count))
    return found


def judged(outcome: int) -> int:
    """A spec's one verdict for its children, from the bits of its members: the worst of them."""
    for bit in (BAD, CANCELLED, UPSTREAM, OK):
        if outcome & bit:
            return bit
    return UNWANTED


def settle_members(
    state: State,
    run: Run,
    spec: int,
    first: int,
    count: int,
    to: TaskState,
    reason: str,
    bit: int,
    floor: int,
    out: Outbox,
) -> None:
    """BLOCKED members end without an attempt. See `settled` for the floor."""
    move(state, run, first, count, to)
    note(run, first, count, reason)
    run.outcome[spec] |= bit
    run.open[spec] -= count
    settled(state, run, spec, first, count, to, reason, floor, out)
    out.changed(run.id)


def settled(
    state: State, run: Run, spec: int, first: int, count: int, to: TaskState, reason: str, floor: int, out: Outbox
) -> None:
    """Members ended without an attempt: what a child did under a fence up to ``floor``, it did because of another end
    of them."""
    run.best[spec] = max(run.best[spec], floor)
    out.fact(TasksSettled(state.wall, run.id, first, count, PUBLIC[to], reason, floor))


def ask_again(state: State, run: Run, spec: int) -> None:
    """What has to wait for a verdict because of this spec, or is of it, may have one now."""
    if state.undecided:
        keys = {(run.id, spec), *((run.id, child) for child in run.children_of(spec))}
        state.to_decide |= keys & state.questions.keys()


def count_members(run: Run, spec: int) -> None:
    """A spec's open members and its outcome, from their states."""
    first, count = run.first[spec], run.count[spec]
    run.open[spec] = run.outcome[spec] = 0
    for value, start, length in run.stretches(first, count):
        if value is S.SKIPPED:
            # Within one generation all have one reason.
            of = range(start, start + length) if run.generation else (start,)
            for index in of:
                run.outcome[spec] |= UPSTREAM if run.reason_of(index) == "upstream_failed" else UNWANTED
        elif value in OUTCOME_BIT:
            run.outcome[spec] |= OUTCOME_BIT[value]
        else:
            run.open[spec] += length


def note(run: Run, first: int, count: int, reason: str) -> None:
    """Why these tasks ended without an attempt: one entry for a stretch, however long."""
    run.stretch_reasons.append((first, count, reason))


def give_up(state: State, run_id: int, index: int, reason: str, out: Outbox) -> None:
    """A pinned task whose worker cannot come back fails with that reason."""
    run = state.runs[run_id]
    spec = run.spec_of(index)
    move(state, run, index, 1, S.FAILED)
    run.reasons[index] = reason
    settled(state, run, spec, index, 1, S.FAILED, reason, state.last_fence(), out)
    out.changed(run.id)
    member_is_final(state, run, spec, S.FAILED, 1, out)


def end_run(state: State, run: Run, out: Outbox) -> None:
    counts = run.counts
    if counts[S.FAILED] or counts[S.DEAD]:
        run.status = "FAILED"
    elif run.cancelled or counts[S.CANCELLED]:
        run.status = "CANCELLED"
    else:
        run.status = "COMPLETED"
    run.finished_at = state.wall
    state.queue.forget_run(run.id)
    out.fact(RunEnded(state.wall, run.id, run.status, run_reason(run), run.started_at, public_counts(counts)))
    out.changed(run.id)
    finished(state, run, out)
    if run.functions:
        run.results.clear()  # each may be a MiB; the store has them, and nobody waits for them any more
    if run.visited and _leaves_something(run):
        _keep_copies(state, run.id, run.finished_at, tuple(sorted(run.visited)), out)


def _leaves_something(run: Run) -> bool:
    """Its workers have more of it than its ends: a working copy, or a description that no attempt used up."""
    unused = run.attempts or run.floors or run.counts[S.CANCELLED]
    return bool(run.project or run.arrays or unused) or len(run.functions) < len(run.names)


def finished(state: State, run: Run, out: Outbox) -> None:
    """From now on it may leave memory (`Scheduler.forget_finished`)."""
    state.finished.append((run.id, out.here(), run.finished_at))


def copies_found(state: State, worker: Worker, runs: Iterable[int], out: Outbox) -> None:
    """A worker has working copies from before this master's time: what is over is forgotten in time, as ever."""
    for number in runs:
        run = state.runs.get(number)
        if run is not None:
            run.visited.add(worker.id)
        if run is None or run.is_final:
            _keep_copies(state, number, run.finished_at if run is not None else 0.0, (worker.id,), out)


def _keep_copies(state: State, run: int, finished_at: float, workers: tuple[str, ...], out: Outbox) -> None:
    keep = state.tuning.keep_copies
    state.copies.append((state.now + keep, run, finished_at, workers))
    if len(state.copies) == 1:
        state.timer(keep, ("copies",))
    else:
        _forget_copies(state, out)


def copies_are_due(state: State, out: Outbox) -> None:
    _forget_copies(state, out)
    if state.copies:
        state.timers.add(state.copies[0][0], ("copies",))


def _forget_copies(state: State, out: Outbox) -> None:
    """Runs that ended long ago and that nobody retried, and those beyond the limit: their working copies may go."""
    copies = state.copies
    while copies and (copies[0][0] <= state.now or len(copies) > MAX_COPIES):
        _, run_id, finished_at, workers = copies.popleft()
        run = state.runs.get(run_id)
        if run is None or (run.is_final and run.finished_at == finished_at):
            out.command(ForgetRun(run_id, workers))
        # Else it was retried; it ends again, or has.


def run_reason(run: Run) -> str:
    """One word on why a finished run is what it is."""
    if run.status == "FAILED":
        bad = run.counts[S.FAILED] + run.counts[S.DEAD]
        return f"{bad} of {len(run.state)} tasks failed"
    if run.status == "CANCELLED":
        return "cancelled"
    return ""


def open_members(lots: Iterable[Lot]) -> Iterable[tuple[Lot, int]]:
    """(lot, member) of everything unfinished in these lots, oldest fence first."""
    for lot in lots:
        for member, mark in enumerate(bytes(lot.marks)):
            if mark != DONE:
                yield lot, member
