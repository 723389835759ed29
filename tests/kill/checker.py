"""Judges a round by what clients and tasks wrote down, and by what was broken when. Pure; knows no master, no worker,
no store: whatever those believe, this is what their users saw.

A rule is a function that yields a sentence for each thing that must not be. `check` runs them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeVar

import msgspec
from history import (
    Acknowledged,
    Asked,
    Began,
    Cancelled,
    Ended,
    Event,
    Fault,
    Listed,
    Refused,
    RetryAsked,
    Seen,
    SeenLost,
    Shape,
    Waited,
    Worked,
)

E = TypeVar("E", bound=Event)

FINAL = {"COMPLETED", "FAILED", "SKIPPED", "CANCELLED", "DEAD"}
RETURN = 1.5
"""Seconds a worker takes to come back once it can: its pause between two tries is at most 1 s."""
SETTLE = 2.0
"""Seconds for what was said to a worker to be done by it, on a machine that is busy."""
AWAY = {"agent frozen", "worker frozen", "cut", "stalled", "half open"}
"""Faults that keep a worker from being heard; they excuse a second run when they last as long as a loss."""
DEADLY = {"worker killed", "keeper killed"}
"""Faults after which a worker is lost, however short they are."""


class Try(msgspec.Struct):
    """One attempt, as its process told it."""

    began: Began
    place: int
    """Line of the history."""
    ended: Ended | None = None
    ended_place: int = 0

    @property
    def fence(self) -> tuple[int, int]:
        epoch, _, sequence = self.began.fence.partition(".")
        return int(epoch), int(sequence)


class Account:
    """A history, ordered by what the rules ask.

    Args:
        events: in the order of their lines.
        lost_after: seconds of silence after which a worker is lost.
    """

    def __init__(self, events: list[Event], lost_after: float) -> None:
        self.events = events
        self.lost_after = lost_after
        self.excuses: Counter[str] = Counter()
        """Why something happened that needs a reason -> how often."""
        self.asked = {event.key: (place, event) for place, event in self.each(Asked)}
        self.run_of = {event.key: event.run for _, event in self.each(Acknowledged)}
        self.key_of = {event.run: event.key for _, event in self.each(Listed)} | {
            run: key for key, run in self.run_of.items()
        }
        self.faults = [event for _, event in self.each(Fault)]
        self.tries: dict[str, list[Try]] = {}
        """Fence -> every process that said it was this attempt."""
        self.strays: list[Ended] = []
        """Ends of nothing that began."""
        for place, event in enumerate(events):
            if isinstance(event, Began):
                self.tries.setdefault(event.fence, []).append(Try(event, place))
            elif isinstance(event, Ended):
                self._end(event, place)
        self.by_task: dict[tuple[str, str], list[Try]] = defaultdict(list)
        """(key, task as written in it) -> its attempts in the order of their fences."""
        for tries in self.tries.values():
            for attempt in tries:
                self.by_task[attempt.began.key, _in_run(attempt.began.task)].append(attempt)
        for tries in self.by_task.values():
            tries.sort(key=lambda attempt: attempt.fence)

    def _end(self, event: Ended, place: int) -> None:
        for attempt in self.tries.get(event.fence, ()):
            if attempt.began.pid == event.pid and attempt.ended is None:
                attempt.ended, attempt.ended_place = event, place
                return
        self.strays.append(event)

    def each(self, kind: type[E]) -> Iterator[tuple[int, E]]:
        return ((place, event) for place, event in enumerate(self.events) if isinstance(event, kind))

    def shape(self, key: str, task: str) -> Shape | None:
        """``task`` may be a member: ``square[417]``."""
        asked = self.asked.get(key)
        return asked[1].tasks.get(_spec(task)) if asked else None

    def losses(self, worker: str) -> Iterator[tuple[str, float, float]]:
        """(why, from, to): when this worker was, or may have been taken for, lost."""
        for fault in self.faults:
            if fault.worker != worker:
                continue
            if fault.kind in DEADLY:
                yield fault.kind, fault.since, fault.at
            elif fault.kind in AWAY and fault.at - fault.since + RETURN >= self.lost_after:
                yield f"{fault.kind} for long", fault.since, fault.at + SETTLE
        for _, seen in self.each(SeenLost):
            if seen.worker == worker:
                yield "seen lost", seen.at - self.lost_after - RETURN, seen.at + SETTLE


def _in_run(task: str) -> str:
    """``12/square[417]`` -> ``square[417]``."""
    return task.partition("/")[2]


def _spec(task: str) -> str:
    return task.partition("[")[0]


# ---------------------------------------------------------------- the rules


def acknowledged_submits_exist(account: Account) -> Iterator[str]:
    """What was acknowledged is there at the end, once, under its number."""
    listed: dict[str, list[int]] = defaultdict(list)
    for _, event in account.each(Listed):
        listed[event.key].append(event.run)
        if event.key not in account.asked:
            yield f"run {event.run} is {event.key}, which nobody asked for"
    for key, run in account.run_of.items():
        if run not in listed[key]:
            yield f"run {run} of {key} was acknowledged and is gone"
    for key, runs in listed.items():
        if len(runs) > 1:
            yield f"{key} was submitted once and runs as {', '.join(map(str, sorted(runs)))}"
    keys: dict[int, set[str]] = defaultdict(set)
    for _, event in account.each(Acknowledged):
        keys[event.run].add(event.key)
    for _, event in account.each(Began):
        keys[int(event.task.partition("/")[0])].add(event.key)
    for run, names in keys.items():
        if len(names) > 1:
            yield f"run number {run} was given to {' and to '.join(sorted(names))}"


def everything_finishes(account: Account) -> Iterator[str]:
    """When it is quiet every run, and every task of it, is final."""
    last: dict[tuple[int, str], Seen] = {}
    for _, event in account.each(Seen):
        last[event.run, event.task] = event
    for _, event in account.each(Listed):
        if event.state not in FINAL:
            yield f"run {event.run} is {event.state} at the end"
    for key, run in account.run_of.items():
        for name, shape in account.asked[key][1].tasks.items():
            for task in shape.members(name):
                seen = last.get((run, task))
                if seen is None or seen.state not in FINAL:
                    yield f"{run}/{task} is {seen.state if seen else 'not there'} at the end"


def outcomes_never_change(account: Account) -> Iterator[str]:
    """A final task is shown alike for ever, within its generation; so is what a wait was told of a run."""
    first: dict[tuple[int, str, int], Seen] = {}
    for _, event in account.each(Seen):
        if event.state not in FINAL:
            continue
        before = first.setdefault((event.run, event.task, event.generation), event)
        if _outcome(before) != _outcome(event):
            yield (
                f"{event.run}/{event.task} of generation {event.generation} was shown as {_outcome(before)}, "
                f"then as {_outcome(event)}"
            )
    told: dict[int, str] = {}
    for event in account.events:
        if isinstance(event, RetryAsked):
            told.pop(event.run, None)
        elif isinstance(event, Waited | Listed) and told.setdefault(event.run, event.state) != event.state:
            yield f"run {event.run} was {told[event.run]}, then {event.state}"


def _outcome(seen: Seen) -> tuple[str, int, str, int | None, float]:
    return seen.state, seen.attempt, seen.worker, seen.exit_code, seen.finished_at


def outcomes_were_earned(account: Account) -> Iterator[str]:
    """What is COMPLETED or FAILED has a process that ran to its end and said so, on that worker."""
    said = set()
    for (key, task), tries in account.by_task.items():
        for attempt in tries:
            if attempt.ended is not None:
                said.add((key, task, attempt.ended.worker, attempt.ended.code))
    for _, event in account.each(Seen):
        if event.state in ("COMPLETED", "FAILED"):
            key = account.key_of.get(event.run, "")
            if (key, event.task, event.worker, event.exit_code) not in said:
                yield (
                    f"{event.run}/{event.task} is {event.state} with exit code {event.exit_code} on {event.worker}, "
                    "where no process of it ended so"
                )


def children_wait_for_their_parents(account: Account) -> Iterator[str]:
    """A task starts when every parent, every member of it, has ended well."""
    ended_well: dict[tuple[str, str], int] = {}
    for (key, task), tries in account.by_task.items():
        places = [attempt.ended_place for attempt in tries if attempt.ended is not None and attempt.ended.code == 0]
        if places:
            ended_well[key, task] = min(places)
    never = len(account.events)
    ready: dict[tuple[str, str], tuple[int, str]] = {}
    for (key, task), tries in account.by_task.items():
        shape = account.shape(key, task)
        if shape is None:
            yield f"{task} of {key} ran, and nobody asked for it"
            continue
        for name in shape.needs:
            if (key, name) not in ready:
                members = account.asked[key][1].tasks[name].members(name)
                ready[key, name] = max((ended_well.get((key, member), never), member) for member in members)
            place, parent = ready[key, name]
            for attempt in tries:
                if attempt.place < place:
                    yield f"{attempt.began.task} of {key} began before its parent {parent} had ended well"


def no_task_runs_twice(account: Account) -> Iterator[str]:
    """A second attempt needs a reason: the worker of the first was lost, or somebody asked for a retry."""
    retries: dict[int, list[int]] = defaultdict(list)
    for place, event in account.each(RetryAsked):
        retries[event.run].append(place)
    for (key, _), tries in account.by_task.items():
        for low, high in pairwise(tries):
            run = int(high.began.task.partition("/")[0])
            if any(low.place < place < high.place for place in retries[run]):
                continue
            if key not in account.run_of:
                account.excuses["submit never acknowledged"] += 1
                continue
            reasons = [
                why
                for why, since, until in account.losses(low.began.worker)
                if since <= high.began.at and until >= low.began.at
            ]
            if reasons:
                account.excuses[f"run again: {reasons[0]}"] += 1
            else:
                yield (
                    f"{high.began.task} ran twice: {_said(low)} and {_said(high)}, and {low.began.worker} was not lost"
                )


def _said(attempt: Try) -> str:
    end = "without an end" if attempt.ended is None else f"to {attempt.ended.at:.2f}"
    return f"{attempt.began.fence} on {attempt.began.worker} from {attempt.began.at:.2f} {end}"


def nothing_starts_after_a_cancel(account: Account) -> Iterator[str]:
    """After an acknowledged cancel nothing of the run is assigned, and a worker that can be told starts nothing."""
    tries_of: dict[str, list[Try]] = defaultdict(list)
    for (key, _), tries in account.by_task.items():
        tries_of[key].extend(tries)
    for place, event in account.each(Cancelled):
        key = account.key_of.get(event.run, "")
        # What was asked for after the cancel was assigned after it: so was whatever has a higher fence.
        later = [
            attempt.fence
            for other, tries in tries_of.items()
            if other in account.asked and account.asked[other][0] > place
            for attempt in tries
        ]
        assigned_later = min(later, default=None)
        for attempt in tries_of[key]:
            if assigned_later is not None and attempt.fence > assigned_later:
                yield f"{attempt.began.task} was assigned ({attempt.began.fence}) after its cancel was acknowledged"
            elif attempt.place > place and attempt.began.at > event.at + SETTLE:
                if _could_not_be_told(account, attempt.began.worker, event.at, attempt.began.at):
                    account.excuses["started after a cancel: could not be told"] += 1
                else:
                    late = attempt.began.at - event.at
                    yield f"{attempt.began.task} began {late:.1f} s after its cancel was acknowledged"


def _could_not_be_told(account: Account, worker: str, since: float, until: float) -> bool:
    return any(
        fault.worker in ("", worker) and fault.since <= until and fault.at + SETTLE >= since for fault in account.faults
    )


def an_attempt_is_one_process(account: Account) -> Iterator[str]:
    """A fence is given once, started once, and the process that began is the one that ends, whoever its agent is."""
    for fence, tries in account.tries.items():
        if len(tries) > 1:
            who = " and ".join(f"{t.began.task} (process {t.began.pid} on {t.began.worker})" for t in tries)
            yield f"attempt {fence} was started {len(tries)} times: {who}"
    for stray in account.strays:
        yield f"process {stray.pid} ended {stray.task} as attempt {stray.fence}, which it never began"


def slots_hold(account: Account) -> Iterator[str]:
    """A worker never runs more at a time than it has slots. An attempt that tells no end counts until its worker was
    killed, if nothing else can have ended it, and else for no time at all."""
    slots = {event.worker: event.slots for _, event in account.each(Worked)}
    cancelled = {account.key_of.get(event.run) for _, event in account.each(Cancelled)}
    steps: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for tries in account.tries.values():
        for attempt in tries:
            began = attempt.began
            end = began.at
            if attempt.ended is not None:
                end = attempt.ended.at
            elif began.key not in cancelled:
                after = (fault for fault in account.faults if fault.worker == began.worker and fault.at > began.at)
                first = next(after, None)
                if first is not None and first.kind in DEADLY:
                    end = first.since
            steps[began.worker] += [(began.at, 1), (max(end, began.at), -1)]
    for worker, changes in steps.items():
        running = most = 0
        for _, change in sorted(changes):  # at the same hundredth ends come first
            running += change
            most = max(most, running)
        if worker not in slots:
            yield f"{worker} ran {most} attempts at a time, and nobody started such a worker"
        elif most > slots[worker]:
            yield f"{worker} ran {most} attempts at a time in {slots[worker]} slots"


def clients_are_never_refused(account: Account) -> Iterator[str]:
    """A call to a cluster that comes back is answered; and nobody is told that something known is unknown."""
    for _, event in account.each(Refused):
        yield f"{event.call}: {event.code}: {event.message}"


RULES: tuple[Callable[[Account], Iterator[str]], ...] = (
    acknowledged_submits_exist,
    everything_finishes,
    outcomes_never_change,
    outcomes_were_earned,
    children_wait_for_their_parents,
    no_task_runs_twice,
    nothing_starts_after_a_cancel,
    an_attempt_is_one_process,
    slots_hold,
    clients_are_never_refused,
)


# ---------------------------------------------------------------- the verdict


class Verdict(msgspec.Struct):
    """``broken``: rule -> what it found. ``excuses``: what needed a reason and had one. ``counts``: what there was."""

    broken: dict[str, list[str]]
    excuses: dict[str, int]
    counts: dict[str, int]

    def story(self, limit: int = 10) -> str:
        """For people: each broken rule with the first of its sentences."""
        lines = []
        for rule, said in self.broken.items():
            lines.append(f"{rule.replace('_', ' ')}: broken {len(said)} times")
            lines.extend(f"  {sentence}" for sentence in said[:limit])
        return "\n".join(lines)


def check(events: list[Event], lost_after: float) -> Verdict:
    """Every rule over a history. ``lost_after``: seconds of silence after which a worker is lost."""
    account = Account(events, lost_after)
    found = {rule.__name__: list(rule(account)) for rule in RULES}
    return Verdict({rule: said for rule, said in found.items() if said}, dict(account.excuses), _counts(account))


def _counts(account: Account) -> dict[str, int]:
    tries = [attempt for tries in account.tries.values() for attempt in tries]
    adopted = late = 0
    for attempt in tries:
        if attempt.ended is not None:
            adopted += any(
                fault.kind == "agent killed"
                and fault.worker == attempt.began.worker
                and attempt.began.at < fault.since
                and fault.at < attempt.ended.at
                for fault in account.faults
            )
    for (_, _), same in account.by_task.items():
        late += max(0, sum(attempt.ended is not None and attempt.ended.code == 0 for attempt in same) - 1)
    faults = Counter(fault.kind for fault in account.faults)
    return {
        "submits": len(account.asked),
        "acknowledged submits": len(account.run_of),
        "tasks": sum(
            len(shape.members(name)) for key in account.run_of for name, shape in account.asked[key][1].tasks.items()
        ),
        "attempts": len(tries),
        "cancels": sum(1 for _ in account.each(Cancelled)),
        "retries": sum(1 for _ in account.each(RetryAsked)),
        "adopted by a new agent": adopted,
        "ended well and not counted": late,
        **dict(sorted(faults.items())),
    }
