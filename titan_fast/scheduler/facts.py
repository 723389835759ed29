"""What must survive a crash: the durable facts, in the order the core made them.

``kind`` and ``version`` are part of the store's format and independent of the class names; a field is only ever
added, with a default. Array outcomes travel as columns, one fact per (run, turn).
"""

from __future__ import annotations

import msgspec

from titan_fast.model.spec import GraphSpec


class Fact(msgspec.Struct, frozen=True, gc=False, tag_field="kind"):
    """The root of all facts; ``at`` is the master's wall clock, seconds."""

    at: float


class RunAccepted(Fact, frozen=True, tag="run_accepted"):
    """A graph was admitted, whole."""

    run: int
    graph: GraphSpec
    payloads: tuple[bytes, ...]
    floor: int
    """No fence at or below it can belong to this run."""
    version: int = 1


class AttemptsEnded(Fact, frozen=True, tag="attempts_ended"):
    """Attempts of one run that ended and what their tasks became, one row each (columns of equal length).

    ``state`` is the public task state after it; PENDING means the task goes on (retry, recall, lost worker).
    """

    run: int
    index: list[int]
    generation: list[int]
    attempt: list[int]
    fence: list[int]
    worker: list[str]
    state: list[str]
    reason: list[str]
    code: list[int]
    started: list[int]
    """Microseconds, the worker's wall clock; 0 when it never started."""
    duration: list[int]
    """Microseconds."""
    result: list[bytes]
    version: int = 1


class TasksSettled(Fact, frozen=True, tag="tasks_settled"):
    """Tasks that became final without an attempt: SKIPPED or CANCELLED, a stretch of one spec."""

    run: int
    first: int
    count: int
    state: str
    reason: str
    version: int = 1


class CancelAsked(Fact, frozen=True, tag="cancel_asked"):
    run: int
    first: int
    count: int
    version: int = 1


class TasksReopened(Fact, frozen=True, tag="tasks_reopened"):
    """A retry: these tasks begin their next generation. Stretches as (first, count) pairs."""

    run: int
    stretches: tuple[tuple[int, int], ...]
    version: int = 1


class RunEnded(Fact, frozen=True, tag="run_ended"):
    run: int
    state: str
    reason: str
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


FACTS = (
    RunAccepted,
    AttemptsEnded,
    TasksSettled,
    CancelAsked,
    TasksReopened,
    RunEnded,
    WorkerRegistered,
    WorkerGone,
)
