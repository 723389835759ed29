"""What happened, for the loop: the store's records, and in front of them the facts that are still on their way there.

Answers never show less than what the core knows; they leave when what they show is durable (`session`).
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator

from titan_fast.master.committer import Committer
from titan_fast.master.sabotage import REPLIES_NOT_STORED
from titan_fast.master.store.base import AttemptRow, RunHead, Store
from titan_fast.scheduler import recovery
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.facts import KEYED, ArtifactPublished, AttemptsEnded, Fact, Key, KvChanged
from titan_fast.scheduler.state import Run, State

REBUILT = 8
"""Runs that are kept in memory for people who look at them."""


class History:
    def __init__(self, store: Store, committer: Committer, scheduler: Scheduler) -> None:
        tuning = scheduler.state.tuning
        self._scheduler = scheduler
        self._store = store
        self._committer = committer
        # Rebuilt runs are for looking: the classes of their tasks must not get into the live queue.
        self._aside = State(0, random.Random(0), tuning)
        self._sabotage = tuning.sabotage
        self.consumed: set[Key] = set()
        """For `KEYS_CONSUMED_BY_FAILURES` alone."""
        self._rebuilt: OrderedDict[int, Run] = OrderedDict()

    # ------------------------------------------------------------ attempts

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        """The ended attempts of a task, oldest first."""
        rows = {row.fence: row for row in self._store.attempts(run, index)}
        # A commit can be read a moment before the loop hears that it is durable.
        rows.update((row.fence, row) for _, row, _ in self._on_the_way(run, index, 1))
        return list(rows.values())

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        """The newest ended attempt of each task in a range that has one."""
        found = self._store.latest(run, first, count)
        found.update((index, row) for index, row, _ in self._on_the_way(run, first, count))
        return found

    def newest(self, run: int, index: int) -> AttemptRow | None:
        """The newest ended attempt of a task. One that is still on its way is found without the store."""
        newer = [row for _, row, _ in self._on_the_way(run, index, 1)]
        return newer[-1] if newer else self._store.latest(run, index, 1).get(index)

    def result(self, run: int, index: int) -> bytes:
        """What the newest COMPLETED attempt of a task gave."""
        newer = [result for _, row, result in self._on_the_way(run, index, 1) if row.state == "COMPLETED"]
        return newer[-1] if newer else self._store.result(run, index)

    def results(self, run: int, first: int, count: int) -> dict[int, bytes]:
        """What the newest COMPLETED attempt of each task in a range gave."""
        found = self._store.results(run, first, count, "COMPLETED")
        found.update(self._left_on_the_way(run, first, count, "COMPLETED"))
        return found

    def left_behind(self, run: int, first: int, count: int) -> dict[int, bytes]:
        """What the newest FAILED attempt of each task in a range left instead of a result."""
        found = self._store.results(run, first, count, "FAILED")
        found.update(self._left_on_the_way(run, first, count, "FAILED"))
        return found

    def _left_on_the_way(self, run: int, first: int, count: int, state: str) -> Iterator[tuple[int, bytes]]:
        end = first + count
        for fact in self._ended(run):
            for index, became, result in zip(fact.index, fact.state, fact.result, strict=True):
                if first <= index < end and became == state:
                    yield index, result

    def _on_the_way(self, run: int, first: int, count: int) -> Iterator[tuple[int, AttemptRow, bytes]]:
        for fact in self._ended(run):
            for row, index in enumerate(fact.index):
                if first <= index < first + count:
                    yield (
                        index,
                        AttemptRow(
                            fact.generation[row],
                            fact.attempt[row],
                            fact.fence[row],
                            fact.worker[row],
                            fact.state[row],
                            fact.reason[row],
                            fact.code[row],
                            fact.started[row],
                            fact.duration[row],
                        ),
                        fact.result[row],
                    )

    def _ended(self, run: int) -> Iterator[AttemptsEnded]:
        for batch in self._committer.pending:
            yield from batch.ended(run)
        for fact in self._scheduler.untaken:
            if isinstance(fact, AttemptsEnded) and fact.run == run:
                yield fact

    def _pending(self) -> Iterator[Fact]:
        for batch in self._committer.pending:
            yield from batch.facts
        yield from self._scheduler.untaken

    # ------------------------------------------------------------ requests

    def reply(self, key: Key) -> int | None:
        """What a request was answered that is repeated now; None when it never succeeded."""
        if REPLIES_NOT_STORED in self._sabotage:
            return None
        if key in self.consumed:
            return 0
        for fact in self._pending():
            if isinstance(fact, KEYED) and fact.key == key:
                return number_of(fact)
        return self._store.reply(key)

    # ------------------------------------------------------------ runs that left memory

    def run(self, number: int) -> Run | None:
        """A finished run that is not in the core's memory, rebuilt; None when nobody knows it (any more)."""
        run = self._rebuilt.get(number)
        if run is None:
            record = self._store.run(number)
            if record is None:
                return None
            run = self._rebuilt[number] = recovery.rebuild(self._aside, record)
            if len(self._rebuilt) > REBUILT:
                self._rebuilt.popitem(last=False)
        self._rebuilt.move_to_end(number)
        return run

    def changed(self, number: int) -> None:
        """A run is in the core again, or gone: what was rebuilt of it is old."""
        self._rebuilt.pop(number, None)

    def runs(self, before: int, limit: int, state: str = "", dead: bool = False) -> list[RunHead]:
        return self._store.runs(before, limit, state, dead)


def number_of(fact: Fact) -> int:
    """What the request behind a fact was answered: a run or a revision."""
    if isinstance(fact, KvChanged):
        return fact.revision
    return 0 if isinstance(fact, ArtifactPublished) else fact.run  # type: ignore[attr-defined]
