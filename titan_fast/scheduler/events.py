"""What may happen: everything that goes into the core. A frame of many results is one event of columns.

``ticket`` is the shell's name for whoever asked; the core hands it back in `commands.Answer` or `commands.Refuse`.
"""

from __future__ import annotations

import msgspec

from titan_fast.model.spec import GraphSpec
from titan_fast.scheduler.facts import NO_KEY, Key, RunRecord


class Event(msgspec.Struct, frozen=True, gc=False):
    """The root of all events."""


class RunSubmitted(Event, frozen=True):
    ticket: int
    graph: GraphSpec
    payloads: tuple[bytes, ...] = ()
    key: Key = NO_KEY


class CancelRequested(Event, frozen=True):
    """Cancel a run, a spec of it, or one member (index counted in the spec)."""

    ticket: int
    run: int
    task: str | None = None
    member: int | None = None
    key: Key = NO_KEY
    only_waiting: bool = False
    """What a worker has goes on."""


class RetryRequested(Event, frozen=True):
    ticket: int
    run: int
    task: str | None = None
    member: int | None = None
    key: Key = NO_KEY


class DropRequested(Event, frozen=True):
    """List these DEAD tasks as dead no more."""

    ticket: int
    run: int
    task: str | None = None
    member: int | None = None
    key: Key = NO_KEY


class RunRecalled(Event, frozen=True):
    """A finished run that was no longer in memory is needed again: somebody wants to retry it."""

    record: RunRecord


class ForgetRequested(Event, frozen=True):
    """The store chose finished runs that ought to go, each with the time when it had finished."""

    runs: tuple[tuple[int, float], ...]


class KvSetRequested(Event, frozen=True):
    """``value`` None takes the key away; ``expect`` is the revision it must have (0: no such key, -1: any)."""

    ticket: int
    name: str
    value: bytes | None
    expect: int = -1
    ttl: float = 0.0
    key: Key = NO_KEY


class ArtifactPublishRequested(Event, frozen=True):
    ticket: int
    name: str
    digest: str
    size: int
    key: Key = NO_KEY


WAITS, RUNS, ENDED = 0, 1, 2
"""Stages of an attempt at a worker: not started; started; over, and the result not acknowledged."""


class HeldAttempt(msgspec.Struct, frozen=True):
    """One line of a worker's inventory."""

    run: int
    index: int
    generation: int
    fence: int
    stage: int
    attempt: int = 1
    started: int = 0
    is_ours: bool = True
    """It was assigned by a master whose store this one continues (epoch and nonce are known)."""


class WorkerAttached(Event, frozen=True):
    """A worker connected and told everything it holds. ``nonce`` is new at each start of its agent."""

    ticket: int
    worker: str
    name: str
    nonce: str
    capabilities: tuple[str, ...]
    slots: int
    permanent: bool
    inventory: tuple[HeldAttempt, ...] = ()
    copies: tuple[int, ...] = ()
    """Runs whose working copies it keeps."""


class WorkerSuspected(Event, frozen=True):
    """Silent, or its connection closed: it keeps what it has and gets nothing new."""

    worker: str


class WorkerRecovered(Event, frozen=True):
    """A suspect was heard again on the same connection."""

    worker: str


class WorkerLost(Event, frozen=True):
    """Silent for too long: what it held runs elsewhere."""

    worker: str


class WorkerDraining(Event, frozen=True):
    """It wants to go: nothing new for it, what it holds may finish."""

    worker: str


class WorkerLeft(Event, frozen=True):
    """It said goodbye and holds nothing any more."""

    worker: str


class AttemptsStarted(Event, frozen=True):
    worker: str
    run: list[int]
    index: list[int]
    generation: list[int]
    fence: list[int]
    pid: list[int]
    started: list[int]


class AttemptsFinished(Event, frozen=True):
    """Columns of a RESULT frame, in the order of its layout; ``results`` are the results as texts."""

    worker: str
    run: list[int]
    index: list[int]
    generation: list[int]
    ending: list[int]
    fence: list[int]
    code: list[int]
    started: list[int]
    duration: list[int]
    results: list[bytes]
    references: dict[int, int] = {}
    """Row -> bytes, where the result names a file by its address and is to be published as an artifact."""


class CommitsStuck(Event, frozen=True):
    """Too much waits for the disk: nothing new is assigned until it has caught up."""


class CommitsFlowing(Event, frozen=True):
    """The disk has caught up."""


class StopRequested(Event, frozen=True):
    """The master is going down: place nothing more."""


EVENTS = (
    RunSubmitted,
    CancelRequested,
    RetryRequested,
    DropRequested,
    RunRecalled,
    ForgetRequested,
    KvSetRequested,
    ArtifactPublishRequested,
    WorkerAttached,
    WorkerSuspected,
    WorkerRecovered,
    WorkerLost,
    WorkerDraining,
    WorkerLeft,
    AttemptsStarted,
    AttemptsFinished,
    CommitsStuck,
    CommitsFlowing,
    StopRequested,
)
