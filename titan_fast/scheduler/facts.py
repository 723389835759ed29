"""What must survive a crash: the durable facts, in the order the core made them.

``kind`` and ``version`` are part of the store's format and independent of the class names; a field is only ever
added, with a default. Array outcomes travel as columns, one fact per (run, turn). A fact that a request caused
carries the request's key (client, counter), so that its repeat is answered and not carried out again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from titan_fast.model.spec import GraphSpec


class Fact(msgspec.Struct, frozen=True, gc=False, tag_field="kind"):
    """The root of all facts; ``at`` is the master's wall clock, seconds."""

    at: float


class Key(msgspec.Struct, frozen=True, gc=False):
    """Which request of which client; the same one twice is one request that was repeated."""

    client: str = ""
    counter: int = 0


NO_KEY = Key()


class RunAccepted(Fact, frozen=True, tag="run_accepted"):
    """A graph was admitted, whole."""

    run: int
    graph: GraphSpec
    payloads: tuple[bytes, ...]
    floor: int
    """The last fence when it was admitted: no fence at or below it can belong to this run."""
    version: int = 1
    key: Key = NO_KEY


class AttemptsEnded(Fact, frozen=True, tag="attempts_ended"):
    """Attempts of one run that ended and what their tasks became, one row each (columns of equal length).

    ``state`` is the public task state after it; PENDING means the task goes on (retry, recall, lost worker).
    """

    run: int
    index: list[int]
    generation: list[int]
    attempt: list[int]
    """Its number; 0 when it never started: it has none."""
    fence: list[int]
    worker: list[str]
    """Names."""
    state: list[str]
    reason: list[str]
    code: list[int]
    started: list[int]
    """Microseconds, the worker's wall clock; 0 when it never started."""
    duration: list[int]
    """Microseconds."""
    result: list[bytes]
    due: dict[int, tuple[float, float]] = {}
    """Row -> (wall clock when its backoff is over, seconds of it) of tasks that wait before they go on."""
    stretches: list[tuple[int, int]] = []
    """(row, count) of neighbours known to be plain: consecutive tasks under consecutive fences at one worker, COMPLETED
    by the first attempt of their first generation. What they say need not be looked at row by row."""
    version: int = 1

    def rows_beside(self) -> Sequence[int]:
        """Rows outside of ``stretches``."""
        rows = range(len(self.index))
        if not self.stretches:
            return rows
        if sum(count for _, count in self.stretches) == len(rows):
            return ()
        is_beside = bytearray(b"\1" * len(rows))
        for row, count in self.stretches:
            is_beside[row : row + count] = bytes(count)
        return list(itertools.compress(rows, is_beside))


class AttemptsRunning(Fact, frozen=True, tag="attempts_running"):
    """Attempts that have been running for more than a moment, and where: what a lost worker takes with it is known
    after a restart of the master too. Columns."""

    run: int
    index: list[int]
    generation: list[int]
    attempt: list[int]
    fence: list[int]
    worker: list[str]
    """Ids."""
    started: list[int]
    """Microseconds, the worker's wall clock."""
    version: int = 1


class TasksSettled(Fact, frozen=True, tag="tasks_settled"):
    """Tasks that became final without an attempt: SKIPPED, CANCELLED or FAILED, a stretch of one spec."""

    run: int
    first: int
    count: int
    state: str
    reason: str
    floor: int = 0
    """The last fence at that time: no attempt of a child at or below it can have been given because of this end."""
    version: int = 1


class CancelAsked(Fact, frozen=True, tag="cancel_asked"):
    run: int
    first: int
    count: int
    version: int = 1
    key: Key = NO_KEY


class TasksReopened(Fact, frozen=True, tag="tasks_reopened"):
    """A retry: these tasks begin their next generation. Stretches as (first, count) pairs."""

    run: int
    stretches: tuple[tuple[int, int], ...]
    floor: int = 0
    """The last fence when it was asked for: no fence at or below it can belong to the new generation."""
    version: int = 1
    key: Key = NO_KEY


class TasksDropped(Fact, frozen=True, tag="tasks_dropped"):
    """Somebody saw these DEAD tasks and wants them listed as such no more."""

    run: int
    stretches: tuple[tuple[int, int], ...]
    version: int = 1
    key: Key = NO_KEY


class RunEnded(Fact, frozen=True, tag="run_ended"):
    run: int
    state: str
    reason: str
    started_at: float = 0.0
    counts: dict[str, int] = {}
    """Tasks by public state."""
    version: int = 1


class RunsForgotten(Fact, frozen=True, tag="runs_forgotten"):
    """Nobody wants these finished runs any more: nothing is ever said about them again."""

    runs: tuple[int, ...]
    version: int = 1


class WorkerRegistered(Fact, frozen=True, tag="worker_registered"):
    worker: str
    name: str
    nonce: str
    capabilities: tuple[str, ...]
    slots: int
    permanent: bool
    version: int = 1


class WorkerGone(Fact, frozen=True, tag="worker_gone"):
    """``how``: left (it said goodbye) or lost (it fell silent)."""

    worker: str
    how: str
    version: int = 1


class KvChanged(Fact, frozen=True, tag="kv_changed"):
    """A key got a value, or lost it (None)."""

    name: str
    value: bytes | None
    revision: int
    """Grows with every change of any key."""
    expires_at: float = 0.0
    """Wall clock; 0: never."""
    ttl: float = 0.0
    """Seconds it was given to live; with ``expires_at`` this bounds what is left when the wall clock jumped."""
    version: int = 1
    key: Key = NO_KEY


class ArtifactPublished(Fact, frozen=True, tag="artifact_published"):
    """A name for a file that the master holds by its content; a name published again names the newer file."""

    name: str
    digest: str
    size: int
    version: int = 1
    key: Key = NO_KEY
    run: int = 0
    """Whose result it is, named RUN/TASK, and goes with it. 0: somebody's, whatever its name: it stays."""


FACTS = (
    RunAccepted,
    AttemptsEnded,
    AttemptsRunning,
    TasksSettled,
    CancelAsked,
    TasksReopened,
    TasksDropped,
    RunEnded,
    RunsForgotten,
    WorkerRegistered,
    WorkerGone,
    KvChanged,
    ArtifactPublished,
)

KEYED = (RunAccepted, CancelAsked, TasksReopened, TasksDropped, KvChanged, ArtifactPublished)
"""Facts that answer a request: where its key is set, the reply is stored with the fact."""


class EndedHead(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What recovery needs of an `AttemptsEnded`: a thousand members that simply succeeded are one line.

    ``clean`` are stretches of tasks COMPLETED by the first attempt of their first generation with consecutive fences,
    at one worker, as (first index, count, first fence, worker). ``rest`` are all other rows: (index, generation,
    attempt, fence, state, reason, due, wait, worker). Workers by name.
    """

    at: float
    run: int
    clean: tuple[tuple[int, int, int, str], ...]
    rest: tuple[tuple[int, int, int, int, str, str, float, float, str], ...]


def head_of(fact: AttemptsEnded) -> EndedHead:
    """The part of a fact that a restart reads. Rows keep their order within a task."""
    if len(fact.index) == 1 and fact.state[0] == "COMPLETED" and fact.attempt[0] == 1 and not fact.generation[0]:
        return EndedHead(fact.at, fact.run, ((fact.index[0], 1, fact.fence[0], fact.worker[0]),), ())
    clean: list[tuple[int, int, int, str]] = []
    rest = []
    rows = fact.rows_beside()
    plain = [
        row for row in rows if fact.state[row] == "COMPLETED" and fact.attempt[row] == 1 and not fact.generation[row]
    ]
    found = [(fact.index[row], count, fact.fence[row], fact.worker[row]) for row, count in fact.stretches]
    found += [(fact.index[row], 1, fact.fence[row], fact.worker[row]) for row in plain]
    for first, count, fence, worker in sorted(found):
        if clean:
            before, length, its_fence, its_worker = clean[-1]
            if (first, fence, worker) == (before + length, its_fence + length, its_worker):
                clean[-1] = (before, length + count, its_fence, worker)
                continue
        clean.append((first, count, fence, worker))
    if len(plain) < len(rows):
        simple = set(plain)
        for row in rows:
            if row not in simple:
                due, wait = fact.due.get(row, (0.0, 0.0))
                rest.append(
                    (
                        fact.index[row],
                        fact.generation[row],
                        fact.attempt[row],
                        fact.fence[row],
                        fact.state[row],
                        fact.reason[row],
                        due,
                        wait,
                        fact.worker[row],
                    )
                )
    return EndedHead(fact.at, fact.run, tuple(clean), tuple(rest))


class RunRecord(msgspec.Struct, frozen=True):
    """One run as a store gives it back: how it was accepted, then everything that happened to it, in order."""

    accepted: RunAccepted
    happened: Sequence[
        EndedHead | AttemptsRunning | TasksSettled | CancelAsked | TasksReopened | TasksDropped | RunEnded
    ]
