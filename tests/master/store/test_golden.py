"""A state written once, by the first program that kept one, means the same to every later one.

`tests/data/golden/state-1.tar.gz` was made by `make_state.py` beside it from the facts below and is never made again;
a later schema, or a later version of a fact, gets a file and a list of its own.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from samples import forget

from titan_fast.master.store.base import ArtifactRow, AttemptRow, Pruned, RunHead
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.model.spec import Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.scheduler.facts import (
    ArtifactPublished,
    AttemptsEnded,
    AttemptsRunning,
    CancelAsked,
    EndedHead,
    Fact,
    Key,
    KvChanged,
    RunAccepted,
    RunEnded,
    TasksDropped,
    TasksReopened,
    TasksSettled,
    WorkerGone,
    WorkerRegistered,
)

FILE = Path(__file__).parents[2] / "data" / "golden" / "state-1.tar.gz"

AT = 1_700_000_000.25
FENCE = (1 << 40) + 1
PROJECT, MODEL = "ab" * 32, "cd" * 32

FULL = GraphSpec(
    name="nightly",
    tasks=(
        TaskSpec(
            name="extract",
            work=Work(
                argv=("python", "extract.py"),
                args=("--all",),
                python="3.12",
                env={"MODE": "full"},
                timeout=60.0,
                grace=5.0,
            ),
            requires=("gpu",),
            priority=7,
            delay=1.5,
            retry=Retry(max=3, backoff=2.0, max_delay=30.0, on=(1, "timeout")),
            affinity=Affinity(kind="key", key="disk", mode="require", wait=9.0),
        ),
        TaskSpec(
            name="square", work=Work(shell="echo ${matrix.x}"), needs=("extract",), count=3, payload=0, array=True
        ),
        TaskSpec(name="report", work=Work(file="report.py"), needs=("square",), when="always"),
    ),
    env={"STAGE": "test"},
    project=PROJECT,
)
PAYLOADS = (bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]) + b"abc",)
LARGE = GraphSpec(
    name="large",
    tasks=tuple(TaskSpec(name=f"task-{n}", work=Work(shell="true # " + "x" * 90)) for n in range(3000)),
)

ACCEPTED = RunAccepted(AT, 1, FULL, PAYLOADS, FENCE - 1, key=Key("laptop", 1))
ENDED = AttemptsEnded(
    at=AT + 2,
    run=1,
    index=[0, 1, 2, 3],
    generation=[0, 0, 0, 0],
    attempt=[1, 1, 1, 1],
    fence=[FENCE, FENCE + 1, FENCE + 2, FENCE + 3],
    worker=["box", "box", "box", "den"],
    state=["COMPLETED", "COMPLETED", "PENDING", "COMPLETED"],
    reason=["", "", "exit:3", ""],
    code=[0, 0, 3, 0],
    started=[1_700_000_000_500_000, 1_700_000_001_000_000, 1_700_000_001_000_001, 1_700_000_001_000_002],
    duration=[250_000, 1000, 1001, 1002],
    result=[b"rows: 7", b"", b"no", b"nine"],
    due={2: (AT + 4, 2.0)},
)
AGAIN = AttemptsEnded(AT + 5, 1, [2], [0], [2], [FENCE + 4], ["den"], ["DEAD"], ["worker_lost"], [-1], [0], [0], [b""])
RUNNING = AttemptsRunning(AT + 1, 2, [5], [0], [1], [FENCE + 9], ["w-1"], [1_700_000_001_500_000])
SETTLED = TasksSettled(AT + 6, 1, 4, 1, "SKIPPED", "upstream_failed")
CANCELLED = CancelAsked(AT + 3, 2, 0, 3000, key=Key("laptop", 2))
COUNTS = {"COMPLETED": 3, "DEAD": 1, "SKIPPED": 1}
FINISHED = RunEnded(AT + 7, 1, "FAILED", "1 of 5 tasks is DEAD", AT + 0.5, COUNTS)
REOPENED = TasksReopened(AT + 8, 3, ((0, 1),), FENCE + 20, key=Key("laptop", 3))
DROPPED = TasksDropped(AT + 9, 3, ((0, 1),), key=Key("laptop", 4))
BOX = WorkerRegistered(AT, "w-1", "box", "5eed", ("gpu", "linux"), 8, True)
TOKEN = KvChanged(AT + 1, "token", b"\x00\xff", 2, AT + 3600, key=Key("w-1", 1))
PUBLISHED = ArtifactPublished(AT + 2, "models/best", MODEL, 1234, key=Key("w-1", 2))

GROUPS: list[list[Fact]] = [
    [BOX, WorkerRegistered(AT, "w-2", "den", "feed", (), 2, False), ACCEPTED],
    [RunAccepted(AT + 1, 2, LARGE, (), FENCE), KvChanged(AT, "gone", b"1", 1), TOKEN],
    [RUNNING, ENDED, PUBLISHED, CANCELLED, WorkerGone(AT + 3, "w-2", "lost")],
    [AGAIN, SETTLED, FINISHED, KvChanged(AT + 4, "gone", None, 3)],
    [RunAccepted(AT + 7, 3, FULL, PAYLOADS, FENCE + 9), RunEnded(AT + 8, 3, "CANCELLED", "asked", 0.0, {"DEAD": 1})],
    [REOPENED, DROPPED],
]


@pytest.fixture
def store(tmp_path: Path):
    with tarfile.open(FILE) as tar:
        tar.extractall(tmp_path / "state", filter="data")
    store = SqliteStore(tmp_path / "state")
    store.opened = store.open()
    yield store
    store.close()


def test_it_is_the_state_it_was(store: SqliteStore) -> None:
    assert store.history == "a5c0ffee00000001"
    assert store.opened.epoch == 3
    assert {epoch: nonce for epoch, nonce in store.opened.nonces.items() if epoch < 3} == {1: "nonce-1", 2: "nonce-2"}


def test_what_a_restart_reads_is_what_was_committed(store: SqliteStore) -> None:
    loaded = store.load()
    assert (loaded.next_run, loaded.revision) == (4, 3)
    assert loaded.workers == [BOX]
    assert loaded.keys == [TOKEN]
    second, third = loaded.runs
    assert second.accepted == RunAccepted(AT + 1, 2, LARGE, (), FENCE)
    assert second.happened == [RUNNING, CANCELLED]
    assert third.accepted == RunAccepted(AT + 7, 3, FULL, PAYLOADS, FENCE + 9)
    assert third.happened == [RunEnded(AT + 8, 3, "CANCELLED", "asked", 0.0, {"DEAD": 1}), REOPENED, DROPPED]


def test_the_finished_run_is_all_there(store: SqliteStore) -> None:
    head = EndedHead(
        AT + 2,
        1,
        ((0, 2, FENCE, "box"), (3, 1, FENCE + 3, "den")),
        ((2, 0, 1, FENCE + 2, "PENDING", "exit:3", AT + 4, 2.0, "box"),),
    )
    lost = EndedHead(AT + 5, 1, (), ((2, 0, 2, FENCE + 4, "DEAD", "worker_lost", 0.0, 0.0, "den"),))
    record = store.run(1)
    assert record is not None
    assert record.accepted == ACCEPTED
    assert record.happened == [head, lost, SETTLED, FINISHED]
    assert store.runs(99, 9) == [
        RunHead(1, "nightly", "FAILED", "1 of 5 tasks is DEAD", AT, AT + 0.5, AT + 7, COUNTS),
    ]
    assert [run.id for run in store.runs(99, 9, dead=True)] == [1]


def test_the_history_of_attempts_is_all_there(store: SqliteStore) -> None:
    first = AttemptRow(0, 1, FENCE + 2, "box", "PENDING", "exit:3", 3, 1_700_000_001_000_001, 1001)
    second = AttemptRow(0, 2, FENCE + 4, "den", "DEAD", "worker_lost", -1, 0, 0)
    assert store.attempts(1, 2) == [first, second]
    assert store.latest(1, 0, 10) == {
        0: AttemptRow(0, 1, FENCE, "box", "COMPLETED", "", 0, 1_700_000_000_500_000, 250_000),
        1: AttemptRow(0, 1, FENCE + 1, "box", "COMPLETED", "", 0, 1_700_000_001_000_000, 1000),
        2: second,
        3: AttemptRow(0, 1, FENCE + 3, "den", "COMPLETED", "", 0, 1_700_000_001_000_002, 1002),
    }
    assert [store.result(1, index) for index in range(5)] == [b"rows: 7", b"", b"", b"nine", b""]


def test_names_and_answers_are_all_there(store: SqliteStore) -> None:
    asked = [Key("laptop", 1), Key("laptop", 2), Key("laptop", 3), Key("laptop", 4), Key("w-1", 1), Key("w-1", 2)]
    assert [store.reply(key) for key in asked] == [1, 2, 3, 3, 2, 0]
    assert store.artifacts("", "", 9) == [ArtifactRow("models/best", MODEL, 1234, AT + 2)]
    assert store.digests() == {PROJECT, MODEL}


def test_it_can_be_gone_on_with(store: SqliteStore) -> None:
    store.commit(3, [RunEnded(AT + 20, 2, "CANCELLED", "", 0.0, {"CANCELLED": 3000})])
    assert [run.id for run in store.runs(99, 9)] == [2, 1]
    assert forget(store, epoch=3) == Pruned([1, 2], True)
    assert [record.accepted.run for record in store.load().runs] == [3]
