"""A store that forgets everything with its process. Every fact is durable at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from titan_fast.master.store.base import AttemptRow
from titan_fast.scheduler.facts import AttemptsEnded, Fact


class MemoryStore:
    durability = "memory"

    def __init__(self) -> None:
        self.history = secrets.token_hex(8)
        self.epoch = 0
        self.commits = 0
        self.facts = 0
        self._attempts: dict[int, dict[int, list[AttemptRow]]] = {}

    def open(self) -> int:
        self.epoch += 1
        return self.epoch

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        assert epoch == self.epoch, "two masters write to one memory"
        self.commits += 1
        self.facts += len(facts)
        for fact in facts:
            if isinstance(fact, AttemptsEnded):
                rows = self._attempts.setdefault(fact.run, {})
                for row in zip(
                    fact.index,
                    fact.generation,
                    fact.attempt,
                    fact.fence,
                    fact.worker,
                    fact.state,
                    fact.reason,
                    fact.code,
                    fact.started,
                    fact.duration,
                    strict=True,
                ):
                    rows.setdefault(row[0], []).append(AttemptRow(*row[1:]))

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        return list(self._attempts.get(run, {}).get(index, ()))

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        rows = self._attempts.get(run, {})
        if count == 1:
            return {first: rows[first][-1]} if first in rows else {}
        return {index: rows[index][-1] for index in range(first, first + count) if index in rows}

    def close(self) -> None:
        pass
