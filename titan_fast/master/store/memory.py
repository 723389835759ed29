"""A store that forgets everything with its process: committed facts in order, and what is looked for in them.

Every fact is durable at once. `MemoryStore(of=other)` opens again what another one committed, which is how tests and
the simulation restart a master.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from titan_fast.errors import InvalidUsage, StoreFenced
from titan_fast.master.store.base import ArtifactRow, AttemptRow, Loaded, Opened, Pruned, RunHead
from titan_fast.master.store.retention import KEEP_AFTER_RUN, KEEP_EPOCHS, KEEP_REPLIES
from titan_fast.master.store.rows import Happened, answer_of, begun, columns_of, dropped, ended, run_head
from titan_fast.scheduler.facts import (
    ArtifactPublished,
    AttemptsEnded,
    AttemptsRunning,
    CancelAsked,
    Fact,
    Key,
    KvChanged,
    RunAccepted,
    RunEnded,
    RunRecord,
    RunsForgotten,
    TasksDropped,
    TasksReopened,
    TasksSettled,
    WorkerGone,
    WorkerRegistered,
    head_of,
)


class _Run:
    """One run. ``end`` is its last end, None while it is unfinished."""

    def __init__(self, accepted: RunAccepted) -> None:
        self.accepted = accepted
        self.happened: list[Happened] = []
        self.end: RunEnded | None = None
        self.attempts: dict[int, list[AttemptRow]] = {}
        self.results: dict[int, bytes] = {}
        self.left: dict[int, bytes] = {}
        """What FAILED attempts left."""

    def add(self, fact: AttemptsEnded) -> None:
        self.happened.append(head_of(fact))
        for index, *row, result in zip(*columns_of(fact), fact.result, strict=True):
            told = AttemptRow(*row)
            self.attempts.setdefault(index, []).append(told)
            if told.state == "COMPLETED":
                self.results[index] = result
            elif told.state == "FAILED":
                self.left[index] = result

    def head(self) -> RunHead | None:
        return run_head(self.accepted.run, begun(self.accepted), ended(self.end)) if self.end else None

    @property
    def has_dead(self) -> bool:
        return self.end is not None and self.end.counts.get("DEAD", 0) > dropped(self.happened)


class _Committed:
    """What a store would find on its disk."""

    def __init__(self) -> None:
        self.history = secrets.token_hex(8)
        self.epoch = 0
        self.nonces: dict[int, str] = {}
        self.last_run = 0
        self.revision = 0
        self.runs: dict[int, _Run] = {}
        self.workers: dict[str, WorkerRegistered] = {}
        self.keys: dict[str, KvChanged] = {}
        self.artifacts: dict[str, ArtifactPublished] = {}
        self.replies: dict[Key, tuple[int, int, float]] = {}
        """(number in the answer, run or 0, when)."""
        self.forgotten: dict[int, float] = {}
        """When runs had finished that are gone."""
        self.gone: list[int] = []
        """Those of them that nobody was told of."""

    def add(self, fact: Fact) -> None:
        match fact:
            case RunAccepted():
                self.runs[fact.run] = _Run(fact)
                self.last_run = max(self.last_run, fact.run)
            case AttemptsEnded():
                self.runs[fact.run].add(fact)
            case AttemptsRunning() | TasksSettled() | CancelAsked() | TasksDropped():
                self.runs[fact.run].happened.append(fact)
            case RunEnded() | TasksReopened():
                if fact.run in self.runs:
                    run = self.runs[fact.run]
                    run.happened.append(fact)
                    run.end = fact if isinstance(fact, RunEnded) else None
            case RunsForgotten():
                self._forget(fact)
            case WorkerRegistered():
                self.workers.pop(fact.worker, None)
                self.workers[fact.worker] = fact
            case WorkerGone():
                self.workers.pop(fact.worker, None)
            case KvChanged():
                self.revision = max(self.revision, fact.revision)
                self.keys.pop(fact.name, None)
                if fact.value is not None:
                    self.keys[fact.name] = fact
            case ArtifactPublished():
                self.artifacts[fact.name] = fact
        answer = answer_of(fact)
        if answer is not None:
            key, number, of_run = answer
            self.replies[key] = (number, of_run, fact.at)

    def _forget(self, fact: RunsForgotten) -> None:
        known = {number: run.end.at for number in fact.runs if (run := self.runs.get(number)) and run.end}
        self.runs = {number: run for number, run in self.runs.items() if number not in known}
        self.artifacts = {name: made for name, made in self.artifacts.items() if made.run not in known}
        self.forgotten |= known
        self.gone += known


class MemoryStore:
    """Everything in this process. ``commits`` and ``facts`` count what this one was given."""

    durability = "memory"

    def __init__(self, of: MemoryStore | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._kept: _Committed = of._kept if of is not None else _Committed()
        self._clock = clock
        self._epoch = 0
        self.commits = 0
        self.facts = 0

    @property
    def history(self) -> str:
        return self._kept.history

    def open(self) -> Opened:
        return self.raise_epoch(0)

    def raise_epoch(self, epoch: int) -> Opened:
        kept = self._kept
        self._epoch = kept.epoch = max(kept.epoch + 1, epoch)
        kept.nonces[kept.epoch] = secrets.token_hex(8)
        return Opened(kept.epoch, kept.nonces[kept.epoch], dict(kept.nonces))

    def load(self) -> Loaded:
        kept = self._kept
        return Loaded(
            kept.last_run + 1,
            kept.revision,
            list(kept.workers.values()),
            [kept.keys[name] for name in sorted(kept.keys)],
            (RunRecord(run.accepted, list(run.happened)) for _, run in sorted(kept.runs.items()) if run.end is None),
        )

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        if not epoch == self._epoch == self._kept.epoch:
            raise StoreFenced(f"another master has opened this memory after this one (epoch {epoch})")
        self.commits += 1
        self.facts += len(facts)
        for fact in facts:
            self._kept.add(fact)

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        known = self._kept.runs.get(run)
        return list(known.attempts.get(index, ())) if known else []

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        known = self._kept.runs.get(run)
        rows = known.attempts if known else {}
        return {index: rows[index][-1] for index in range(first, first + count) if index in rows}

    def result(self, run: int, index: int) -> bytes:
        known = self._kept.runs.get(run)
        return known.results.get(index, b"") if known else b""

    def results(self, run: int, first: int, count: int, state: str) -> dict[int, bytes]:
        known = self._kept.runs.get(run)
        if known is None:
            return {}
        found = known.results if state == "COMPLETED" else known.left
        return {index: found[index] for index in range(first, first + count) if index in found}

    def run(self, number: int) -> RunRecord | None:
        known = self._kept.runs.get(number)
        return RunRecord(known.accepted, list(known.happened)) if known else None

    def runs(self, before: int, limit: int, state: str = "", dead: bool = False) -> list[RunHead]:
        found: list[RunHead] = []
        for number in sorted(self._kept.runs, reverse=True):
            run = self._kept.runs[number]
            head = run.head()
            if head is None or number >= before or (state and head.state != state) or (dead and not run.has_dead):
                continue
            if len(found) == limit:
                break
            found.append(head)
        return found

    def reply(self, key: Key) -> int | None:
        known = self._kept.replies.get(key)
        return known[0] if known else None

    def artifact(self, name: str) -> ArtifactRow | None:
        fact = self._kept.artifacts.get(name)
        return ArtifactRow(fact.name, fact.digest, fact.size, fact.at) if fact else None

    def artifacts(self, prefix: str, after: str, limit: int) -> list[ArtifactRow]:
        names = sorted(name for name in self._kept.artifacts if name.startswith(prefix) and name > after)
        return [row for name in names[:limit] if (row := self.artifact(name))]

    def digests(self) -> set[str]:
        kept = self._kept
        projects = {run.accepted.graph.project for run in kept.runs.values()}
        return {fact.digest for fact in kept.artifacts.values()} | projects - {""}

    def outdated(self, keep_runs: int, older_than: float, after: int, limit: int) -> list[RunHead]:
        heads = [head for _, run in sorted(self._kept.runs.items()) if (head := run.head())]
        surplus = len(heads) - keep_runs
        old = [head for place, head in enumerate(heads) if place < surplus or head.finished_at < older_than]
        return [head for head in old if head.id > after][:limit]

    def numbers(self) -> set[int]:
        return set(self._kept.runs)

    def prune(self, seconds: float) -> Pruned:
        """All of it at once: nothing here takes long."""
        kept, now = self._kept, self._clock()
        gone, kept.gone = kept.gone, []
        kept.forgotten = {number: at for number, at in kept.forgotten.items() if at > now - KEEP_AFTER_RUN}
        kept.replies = {
            key: reply
            for key, reply in kept.replies.items()
            if reply[2] >= now - KEEP_REPLIES or self._is_fresh(reply[1])
        }
        for epoch in sorted(kept.nonces)[:-KEEP_EPOCHS]:
            del kept.nonces[epoch]
        return Pruned(gone, True)

    def _is_fresh(self, run: int) -> bool:
        """It is unfinished, or has ended a moment ago."""
        if run in self._kept.forgotten:
            return True
        known = self._kept.runs.get(run)
        return known is not None and (known.end is None or known.end.at > self._clock() - KEEP_AFTER_RUN)

    def tidy(self, seconds: float) -> bool:
        return False

    def backup(self, path: str) -> None:
        """Raises InvalidUsage: there is nothing that would be worth a copy."""
        raise InvalidUsage(
            "this master keeps its state in memory, which cannot be backed up",
            hint="start it with store.durability = disk",
        )

    def close(self) -> None:
        pass
