"""What the durable store promises of its file: whose it is, what is refused, what is on the disk when."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import apsw
import msgspec
import pytest
from samples import accepted, ended, forget, forgotten, kv, run_ended

from titan_fast.errors import StateLocked, StoreFailed, StoreFenced, StoreTooNew
from titan_fast.master.store import rows, schema, sqlite
from titan_fast.master.store.bodies import Bodies
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.model.spec import Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.scheduler.facts import RunAccepted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(folder: Path):
    store = SqliteStore(folder)
    store.open()
    yield store
    store.close()


def database(folder: Path) -> apsw.Connection:
    return apsw.Connection(str(folder / schema.FILE))


def large_graph(run: int, name: str = "large", tasks: int = 3000) -> RunAccepted:
    work = Work(argv=("echo", "x" * 100))
    return RunAccepted(10.0, run, GraphSpec(name, tuple(TaskSpec(f"t{n}", work) for n in range(tasks))), (b"p",), 7)


# ---------------------------------------------------------------- the file


def test_the_file_says_whose_it_is_and_how_it_is_written(store: SqliteStore, folder: Path) -> None:
    db = database(folder)
    told = {name: db.pragma(name) for name in ("application_id", "user_version", "journal_mode", "page_size")}
    assert told == {"application_id": 0x7A17FA57, "user_version": 1, "journal_mode": "wal", "page_size": 8192}
    assert db.pragma("auto_vacuum") == 2, "incremental"
    db.close()


def test_the_cache_of_the_file_stays_within_its_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CACHE", 1 << 20)
    store = SqliteStore(folder)
    store.open()
    for number in range(100):
        store.commit(1, [kv(f"{number}-{key}", b"x" * 8000, number + 1) for key in range(5)])
        store.tidy(1.0)
    used, _ = store._write.status(apsw.SQLITE_DBSTATUS_CACHE_USED)
    size = (folder / schema.FILE).stat().st_size
    store.close()
    assert used < 1.5 * sqlite.CACHE < size


@pytest.mark.parametrize(("durability", "synchronous"), [("disk", 2), ("os", 1)])
def test_what_a_commit_survives_is_what_was_asked_for(folder: Path, durability: str, synchronous: int) -> None:
    store = SqliteStore(folder, durability)
    store.open()
    assert store.durability == durability
    assert store._write.pragma("synchronous") == synchronous
    assert store._write.pragma("fullfsync") == store._write.pragma("checkpoint_fullfsync") == (durability == "disk")
    store.close()


def test_an_opened_store_has_nothing_left_in_its_log(store: SqliteStore, folder: Path, tmp_path: Path) -> None:
    """What was promised before is in the file itself, before anything new is promised."""
    store.commit(1, [accepted(1)])
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    assert committed_without_log(killed) is None
    opened = SqliteStore(killed)
    opened.open()
    assert committed_without_log(killed) == [(1,)]
    opened.close()


def committed_without_log(folder: Path) -> list[tuple[int]] | None:
    """Runs in the file alone; None when there are none."""
    flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READONLY
    db = apsw.Connection(f"file:{folder / schema.FILE}?immutable=1", flags=flags)
    try:
        return schema.fetch(db, "SELECT number FROM runs") or None
    except apsw.SQLError:
        return None
    finally:
        db.close()


def test_a_program_that_reads_the_file_keeps_a_master_from_starting(
    store: SqliteStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that could not be finished is no promise."""
    reader = database(folder)
    reader.execute("BEGIN")
    schema.fetch(reader, "SELECT * FROM runs")
    store.commit(1, [accepted(1)])
    monkeypatch.setattr(schema, "PATIENCE", 10)
    second = SqliteStore(folder)
    with pytest.raises(StateLocked, match=r"another program has .*state\.sqlite"):
        second.open()
    reader.close()
    assert second.open().epoch == 2
    second.close()


def test_two_copies_of_a_state_are_told_apart(store: SqliteStore, folder: Path, tmp_path: Path) -> None:
    store.commit(1, [accepted(1)])
    store.close()
    shutil.copytree(folder, tmp_path / "copy")
    original, copy = SqliteStore(folder), SqliteStore(tmp_path / "copy")
    first, second = original.open(), copy.open()
    assert first.epoch == second.epoch == 2
    assert first.nonce != second.nonce
    assert first.nonces[1] == second.nonces[1]
    original.close()
    copy.close()


def test_a_state_of_the_same_epoch_that_is_not_ours_is_not_written_to(store: SqliteStore, folder: Path) -> None:
    """Somebody put a copy in our file's place: the epoch may be the same, the nonce is not."""
    with closing(database(folder)) as db:
        db.execute("UPDATE meta SET nonce = 'of another'")
    with pytest.raises(StoreFenced):
        store.commit(1, [accepted(1)])
    with pytest.raises(StoreFenced):
        store.prune(1.0)
    with pytest.raises(StoreFenced):
        store.tidy(1.0)


# ---------------------------------------------------------------- what is refused


def test_a_newer_schema_is_refused_and_not_touched(store: SqliteStore, folder: Path) -> None:
    store.close()
    with closing(database(folder)) as db:
        db.pragma("user_version", schema.VERSION + 1)
    before = (folder / schema.FILE).read_bytes()
    with pytest.raises(StoreTooNew, match="has version 2 of the state, and this program knows version 1") as refused:
        SqliteStore(folder).open()
    assert "newer" in refused.value.hint
    assert (folder / schema.FILE).read_bytes() == before


@pytest.mark.parametrize(("column", "value"), [("version", 2), ("kind", "run_paused")])
def test_a_fact_of_a_newer_program_is_refused(store: SqliteStore, folder: Path, column: str, value: object) -> None:
    """Never skipped: what it means for the run is not known."""
    store.commit(1, [accepted(1), ended(1, [0])])
    with closing(database(folder)) as db:
        db.execute(f"UPDATE journal SET {column} = ? WHERE kind = 'attempts_ended'", (value,))
    with pytest.raises(StoreTooNew, match=r"the state holds '(attempts_ended' in version 2|run_paused' in version 1)"):
        list(store.load().runs)


def test_a_file_of_another_program_is_refused(folder: Path) -> None:
    folder.mkdir()
    with closing(database(folder)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreFailed, match="belongs to another program"):
        SqliteStore(folder).open()


def test_a_file_that_is_no_database_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / schema.FILE).write_bytes(b"something else entirely" * 1000)
    with pytest.raises(StoreFailed, match="is damaged or no state"):
        SqliteStore(folder).open()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreFailed, match=r"file/state/state\.sqlite cannot be used"):
        SqliteStore(tmp_path / "file" / "state").open()


@pytest.mark.parametrize("leave", ["nothing", "an empty file"])
def test_a_state_whose_file_is_gone_is_not_begun_anew(folder: Path, leave: str) -> None:
    store = SqliteStore(folder)
    store.open()
    store.close()
    (folder / schema.FILE).unlink()
    if leave == "an empty file":
        (folder / schema.FILE).touch()
    with pytest.raises(StoreFailed, match=r"had a state, and state\.sqlite is not there any more"):
        SqliteStore(folder).open()


def test_a_creation_that_was_cut_short_is_begun_again(folder: Path) -> None:
    folder.mkdir()
    (folder / schema.FILE).touch()
    store = SqliteStore(folder)
    assert store.open().epoch == 1
    store.close()


# ---------------------------------------------------------------- large graphs


def test_a_large_graph_is_a_file_beside_the_database_until_nobody_names_it(store: SqliteStore, folder: Path) -> None:
    large = large_graph(1)
    again = msgspec.structs.replace(large, run=2, floor=9)
    store.commit(1, [large, accepted(3)])
    store.commit(1, [again])
    (body,) = (folder / "bodies").iterdir()
    assert body.stat().st_size > rows.LARGE
    assert [record.accepted for record in store.load().runs] == [large, again, accepted(3)], "one file for both runs"
    store.commit(1, [run_ended(1)])
    forget(store)
    assert store.run(2).accepted == again
    store.commit(1, [run_ended(2)])
    forget(store)
    assert list((folder / "bodies").iterdir()) == []


def test_a_large_graph_that_is_damaged_is_told(store: SqliteStore, folder: Path) -> None:
    store.commit(1, [large_graph(1)])
    (body,) = (folder / "bodies").iterdir()
    body.write_bytes(body.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreFailed, match=f"{body.name} is damaged"):
        store.run(1)
    body.unlink()
    with pytest.raises(StoreFailed, match=f"{body.name} cannot be read"):
        store.run(1)


def test_files_that_a_killed_master_left_are_removed(store: SqliteStore, folder: Path) -> None:
    store.commit(1, [large_graph(1)])
    (named,) = (folder / "bodies").iterdir()
    (folder / "bodies" / ("0" * 64)).write_bytes(b"never named")
    (folder / "bodies" / f"{named.name}.part").write_bytes(b"never finished")
    store.prune(10.0)
    assert list((folder / "bodies").iterdir()) == [named]


# ---------------------------------------------------------------- two threads


def test_a_result_is_the_right_one_while_its_rows_are_folded(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer's thread folds between the look for the row and the look into it."""
    store.commit(1, [accepted(1, tasks=100)])
    for index in range(100):
        store.commit(1, [ended(1, [99 - index])])
    store.commit(1, [msgspec.structs.replace(run_ended(1), counts={"COMPLETED": 101})])
    find = rows.place_of_result

    def fold_first(detail: bytes, index: int) -> tuple[int, int] | None:
        while store.tidy(1.0):
            pass
        return find(detail, index)

    monkeypatch.setattr(rows, "place_of_result", fold_first)
    assert store.result(1, 0) == b"result 0"
    assert schema.fetch(store._read, "SELECT count(*) FROM outcomes") == [(1,)]


@pytest.mark.parametrize("moment", ["SELECT kind", "SELECT 1"])
def test_a_run_that_is_forgotten_while_it_is_read_is_whole_or_gone(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fact = large_graph(1)
    store.commit(1, [fact, ended(1, range(4)), run_ended(1)])
    fetch, read = schema.fetch, Bodies.read

    def forget_it() -> None:
        assert forget(store).is_done

    def fetched(connection: apsw.Connection, sql: str, *values: object) -> list[tuple[object, ...]]:
        if sql.startswith(moment) and connection is store._read:
            forget_it()
        return fetch(connection, sql, *values)

    def body(bodies: Bodies, digest: str) -> bytes:
        if moment == "SELECT 1":
            forget_it()
        return read(bodies, digest)

    monkeypatch.setattr(sqlite, "fetch", fetched)
    monkeypatch.setattr(Bodies, "read", body)
    assert store.run(1) is None, "its file is gone"
    monkeypatch.undo()
    assert store.run(1) is None


# ---------------------------------------------------------------- room


def test_small_rows_of_a_finished_array_become_few(store: SqliteStore) -> None:
    store.commit(1, [accepted(1, tasks=3000)])
    for first in range(0, 3000, 3):
        store.commit(1, [ended(1, range(first, first + 3))])
    store.commit(1, [msgspec.structs.replace(run_ended(1), counts={"COMPLETED": 3001})])
    while store.tidy(0.005):
        pass
    assert schema.fetch(store._read, "SELECT block, count(*) FROM outcomes GROUP BY block") == [(0, 1), (1, 1), (2, 1)]
    indexes = (0, 1023, 1024, 2999)
    assert [store.result(1, index) for index in indexes] == [f"result {index}".encode() for index in indexes]


def test_a_result_is_never_far_into_a_row(store: SqliteStore) -> None:
    """To get at one, what is before it in its row is read."""
    store.commit(1, [accepted(1, tasks=3000), ended(1, range(100), results=[b"x" * 100_000] * 100)])
    assert schema.fetch(store._read, "SELECT max(length(body)) <= ?, count(*) > 9 FROM outcomes", rows.PIECE) == [
        (1, 1)
    ]


def test_space_of_forgotten_runs_goes_back_to_the_disk(store: SqliteStore, folder: Path) -> None:
    store.commit(1, [accepted(1, tasks=9), ended(1, range(9), results=[b"x" * 1_000_000] * 9), run_ended(1)])
    store.tidy(0.001)
    grown = (folder / schema.FILE).stat().st_size
    assert grown > 9_000_000
    store.commit(1, [forgotten(1)])
    while not store.prune(0.001).is_done:
        pass
    while store.tidy(0.001):
        pass
    store.close()
    assert (folder / schema.FILE).stat().st_size < grown // 10


def test_the_log_does_not_grow_without_end_when_nobody_tidies(store: SqliteStore, folder: Path) -> None:
    store.commit(1, [accepted(1, tasks=1000)])
    for index in range(100):
        store.commit(1, [ended(1, [index], results=[b"x" * 1_000_000])])
    assert (folder / "state.sqlite-wal").stat().st_size < 20 << 20


# ---------------------------------------------------------------- the format


def test_defaults_are_part_of_what_version_1_means() -> None:
    """Fields that hold their default are not written. So a default that changes would change the meaning of runs that
    are stored already: it takes a new version of `RunAccepted`, and a decoder of version 1 with the values below."""
    told = {
        cls.__name__: {
            field.name: field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            for field in msgspec.structs.fields(cls)
            if not field.required
        }
        for cls in (GraphSpec, TaskSpec, Work, Retry, Affinity)
    }
    assert told == {
        "GraphSpec": {"env": {}, "project": ""},
        "TaskSpec": {
            "needs": (),
            "requires": (),
            "priority": 1,
            "delay": 0.0,
            "retry": Retry(0, 1.0, 60.0, ()),
            "when": "success",
            "affinity": None,
            "count": 1,
            "payload": -1,
            "array": False,
        },
        "Work": {
            "argv": (),
            "shell": "",
            "file": "",
            "args": (),
            "python": "",
            "isolation": "warm",
            "preload": (),
            "env": {},
            "timeout": 0.0,
            "grace": 10.0,
            "function": -1,
            "spread": False,
            "arguments": (),
        },
        "Retry": {"max": 0, "backoff": 1.0, "max_delay": 60.0, "on": ()},
        "Affinity": {"key": "", "mode": "prefer", "wait": 2.0},
    }
    assert dict.fromkeys(KINDS, 1) == rows.NEWEST


KINDS = (
    "artifact_published",
    "attempts_ended",
    "attempts_running",
    "cancel_asked",
    "kv_changed",
    "run_accepted",
    "run_ended",
    "runs_forgotten",
    "tasks_dropped",
    "tasks_reopened",
    "tasks_settled",
    "worker_gone",
    "worker_registered",
)
"""As they stand in stored rows, whatever the classes are called."""


def test_a_commit_of_any_facts_is_one_statement(store: SqliteStore) -> None:
    """Each one more is a fight with the loop for the interpreter."""
    statements: list[str] = []
    store._write.trace_v2(apsw.SQLITE_TRACE_PROFILE, lambda event: statements.append(event["sql"]))
    facts = [accepted(1, tasks=9000), kv("k", b"v", 1), *(ended(1, range(n, n + 2000, 7)) for n in range(100))]
    store.commit(1, [*facts, run_ended(1)])
    assert statements == ["INSERT INTO door VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"]
