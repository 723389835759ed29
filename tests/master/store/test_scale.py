"""What is finished costs a start nothing, and what is not costs its heads."""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import msgspec
import pytest
from samples import accepted, ended, run_ended

from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler.facts import RunAccepted, TasksReopened

SIZES = [30_000, pytest.param(1_000_000, marks=pytest.mark.long)]


def pages_of_a_start(folder: Path) -> tuple[SqliteStore, int]:
    """(a store that was opened and loaded, pages of its file that were read for that)."""
    store = SqliteStore(folder, "os")
    store.open()
    began = time.perf_counter()
    list(store.load().runs)
    assert time.perf_counter() - began < 5.0
    read, _ = store._read.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)
    return store, read


@pytest.mark.parametrize("members", SIZES)
def test_a_start_reads_no_results(tmp_path: Path, members: int) -> None:
    """An array with a KiB of result for each member, first finished, then opened again."""
    store = SqliteStore(tmp_path, "os")
    store.open()
    store.commit(1, [accepted(1, tasks=members)])
    for first in range(0, members, 1000):
        store.commit(1, [ended(1, range(first, first + 1000), results=[b"x" * 1024] * 1000)])
    store.commit(1, [msgspec.structs.replace(run_ended(1), counts={"COMPLETED": members + 1})])
    store.close()
    size = (tmp_path / "state.sqlite").stat().st_size // 8192
    assert size > members // 8, "pages"

    store, finished = pages_of_a_start(tmp_path)
    assert finished < 20
    assert len(store.latest(1, members // 2, 10_000)) == 10_000
    store.commit(2, [TasksReopened(20.0, 1, ((0, 1),))])
    store.close()

    store, unfinished = pages_of_a_start(tmp_path)
    assert unfinished < 20 + size // 200
    (record,) = store.load().runs
    assert len(record.happened) == members // 1000 + 2
    store.close()


@pytest.mark.parametrize("tasks", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_graph_of_many_named_tasks_comes_back(tmp_path: Path, tasks: int) -> None:
    specs = (TaskSpec(f"task-{n}", Work(argv=("echo", str(n))), (f"task-{n - 1}",) if n else ()) for n in range(tasks))
    fact = RunAccepted(10.0, 1, GraphSpec("chain", tuple(specs)), (), 0)
    store = SqliteStore(tmp_path, "os")
    store.open()
    store.commit(1, [fact])
    store.close()
    store, pages = pages_of_a_start(tmp_path)
    assert pages < 20, "it is a file of its own"
    assert [record.accepted for record in store.load().runs] == [fact]
    store.close()
