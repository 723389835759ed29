"""Facts as a master makes them, for the tests of the stores. Times are small whole numbers, so that they read well."""

from __future__ import annotations

from collections.abc import Sequence

from titan_fast.ids import make_fence
from titan_fast.master.store.base import Pruned, Store
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler.facts import (
    NO_KEY,
    ArtifactPublished,
    AttemptsEnded,
    Key,
    KvChanged,
    RunAccepted,
    RunEnded,
    RunsForgotten,
    WorkerRegistered,
)

PROJECT = "ab" * 32
ARTIFACT = "cd" * 32


def accepted(run: int, *, tasks: int = 3, at: float = 10.0, key: Key = NO_KEY, project: str = "") -> RunAccepted:
    spec = TaskSpec("square", Work(argv=("sq", "${matrix.x}")), count=tasks, payload=0, array=True)
    graph = GraphSpec(f"graph-{run}", (TaskSpec("first", Work(shell="true")), spec), {"A": "b"}, project)
    return RunAccepted(at, run, graph, (b"\0\0\0\0payload",), make_fence(1, run), key=key)


def ended(
    run: int,
    index: Sequence[int],
    *,
    at: float = 11.0,
    attempt: int = 1,
    generation: int = 0,
    state: str = "COMPLETED",
    reason: str = "",
    results: Sequence[bytes] = (),
    due: dict[int, tuple[float, float]] | None = None,
) -> AttemptsEnded:
    rows = list(index)
    count = len(rows)
    return AttemptsEnded(
        at,
        run,
        rows,
        [generation] * count,
        [attempt] * count,
        [make_fence(1, 1000 * attempt + task) for task in rows],
        [f"worker-{task // 1000 % 2}" for task in rows],
        [state] * count,
        [reason] * count,
        [0 if state == "COMPLETED" else 3] * count,
        [1_700_000_000_000_000 + task for task in rows],
        [1500 + task for task in rows],
        list(results) or [f"result {task}".encode() for task in rows],
        due or {},
    )


def run_ended(run: int, *, at: float = 12.0, state: str = "COMPLETED", dead: int = 0) -> RunEnded:
    return RunEnded(at, run, state, "", 10.5, {"COMPLETED": 4 - dead} | ({"DEAD": dead} if dead else {}))


def registered(worker: str, nonce: str = "n1") -> WorkerRegistered:
    return WorkerRegistered(9.0, worker, f"name of {worker}", nonce, ("gpu", "linux"), 4, True)


def kv(name: str, value: bytes | None, revision: int, *, key: Key = NO_KEY, expires_at: float = 0.0) -> KvChanged:
    return KvChanged(13.0 + revision, name, value, revision, expires_at, key=key)


def published(
    name: str, digest: str = ARTIFACT, *, at: float = 14.0, key: Key = NO_KEY, run: int = 0
) -> ArtifactPublished:
    return ArtifactPublished(at, name, digest, len(name), key=key, run=run)


def forgotten(*runs: int) -> RunsForgotten:
    return RunsForgotten(15.0, runs)


def forget(store: Store, keep_runs: int = 0, older_than: float = 0.0, epoch: int = 1) -> Pruned:
    """As a master does it whose core lets everything go that the store calls old."""
    old = store.outdated(keep_runs, older_than, 0, 1000)
    store.commit(epoch, [forgotten(*(head.id for head in old))])
    return store.prune(10.0)
