"""A backup is the whole state at one moment, made while others write, and never half of one."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from samples import accepted, ended, forget, kv, published, run_ended
from test_sqlite import large_graph

from titan_fast.errors import BadBackup, InvalidUsage, StateLocked, StoreFailed, StoreTooNew, TitanError
from titan_fast.master.store import backup, schema
from titan_fast.master.store.bodies import Bodies
from titan_fast.master.store.memory import MemoryStore
from titan_fast.master.store.sqlite import SqliteStore

PROJECT, ARTIFACT = b"a project", b"an artifact"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory as a master has it."""
    state = tmp_path / "state"
    for name, content in (
        ("cluster", b"0123456789abcdef"),
        ("tokens/client", b"client-token\n"),
        ("tokens/worker", b"worker-token\n"),
        (f"blobs/{digest(PROJECT)[:2]}/{digest(PROJECT)}", PROJECT),
        (f"blobs/{digest(ARTIFACT)[:2]}/{digest(ARTIFACT)}", ARTIFACT),
        ("blobs/00/" + "0" * 64, b"nobody names me"),
        ("logs/1/1.2.log", b"output"),
    ):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(content)
    return state


@pytest.fixture
def store(state: Path):
    store = SqliteStore(state)
    store.open()
    store.commit(
        1,
        [
            accepted(1, project=digest(PROJECT)),
            large_graph(2),
            ended(1, range(4)),
            run_ended(1),
            kv("k", b"v", 3),
            published("a", digest(ARTIFACT)),
        ],
    )
    yield store
    store.close()


@pytest.fixture
def file(store: SqliteStore, state: Path, tmp_path: Path) -> Path:
    file = tmp_path / "backup.tar"
    backup.pack(state, store, file)
    return file


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(place.relative_to(folder)): place.read_bytes() for place in sorted(folder.rglob("*")) if place.is_file()
    }


def left_behind(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir()) if folder.exists() else []


# ---------------------------------------------------------------- there and back


def test_a_restored_state_is_the_one_that_was_backed_up(file: Path, store: SqliteStore, tmp_path: Path) -> None:
    store.commit(1, [accepted(3)])
    target = tmp_path / "restored"
    assert backup.restore(file, target) == 1001
    assert left_behind(target) == ["blobs", "bodies", "cluster", "lock", "state.sqlite", "tokens"]
    again = SqliteStore(target)
    opened = again.open()
    assert [record.accepted for record in again.load().runs] == [large_graph(2)], "run 3 came after it"
    assert again.runs(9, 9) == store.runs(9, 9)
    assert again.latest(1, 0, 9) == store.latest(1, 0, 9)
    assert again.result(1, 3) == b"result 3"
    assert again.load().keys == [kv("k", b"v", 3)]
    found = everything(target)
    assert (found["cluster"], found["tokens/client"]) == (b"0123456789abcdef", b"client-token\n")
    assert {name for name in found if name.startswith("blobs/")} == {
        f"blobs/{digest(content)[:2]}/{digest(content)}" for content in (PROJECT, ARTIFACT)
    }
    assert all(place.stat().st_mode & 0o077 == 0 for place in (target, target / "tokens/client", file))
    assert opened.epoch == 1002
    again.close()


def test_a_restored_state_is_a_history_of_its_own(file: Path, store: SqliteStore, tmp_path: Path) -> None:
    """What was assigned after the backup has the lost state's epochs; nothing of it may be believed."""
    backup.restore(file, tmp_path / "first")
    backup.restore(file, tmp_path / "second")
    first, second = SqliteStore(tmp_path / "first"), SqliteStore(tmp_path / "second")
    one, two = first.open(), second.open()
    assert one.epoch > 1000 < two.epoch
    assert one.nonce != two.nonce
    assert one.nonces[1001] != two.nonces[1001]
    assert one.nonces[1] == two.nonces[1], "attempts from before the backup are known"
    assert len({store.history, first.history, second.history}) == 3
    first.close()
    second.close()


def test_a_backup_is_one_moment_while_commits_go_on(store: SqliteStore, state: Path, tmp_path: Path) -> None:
    """Run n and key n are committed together: a backup has both or neither, and everything before."""
    stop, enough = threading.Event(), threading.Event()

    def work() -> None:
        number = 10
        while not stop.is_set():
            store.commit(1, [accepted(number), ended(number, range(3), results=[b"x" * 10_000] * 3)])
            store.commit(1, [large_graph(number + 1, f"g{number}", 900), kv(f"k{number}", b"v", number)])
            number += 2
            if number > 60:
                enough.set()

    committer = threading.Thread(target=work)
    committer.start()
    try:
        assert enough.wait(60)
        for turn in range(3):
            backup.pack(state, store, tmp_path / f"{turn}.tar")
    finally:
        stop.set()
        committer.join()
    for turn in range(3):
        backup.restore(tmp_path / f"{turn}.tar", tmp_path / f"state-{turn}")
        again = SqliteStore(tmp_path / f"state-{turn}")
        again.open()
        runs = [record.accepted.run for record in again.load().runs]
        keys = [int(key.name[1:]) for key in again.load().keys if key.name != "k"]
        assert runs == [2, *range(10, runs[-1] + 1)], "a prefix of what was committed"
        assert sorted(keys) == [number - 1 for number in runs if number > 10 and number % 2]
        again.close()


def test_a_backup_replaces_the_one_before_and_leaves_nothing_beside_it(
    file: Path, store: SqliteStore, state: Path, tmp_path: Path
) -> None:
    old = file.read_bytes()
    store.commit(1, [accepted(3)])
    backup.pack(state, store, file)
    assert file.read_bytes() != old
    assert left_behind(tmp_path) == ["backup.tar", "state"]


def test_a_state_in_memory_cannot_be_backed_up(state: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidUsage, match="in memory"):
        backup.pack(state, MemoryStore(), tmp_path / "backup.tar")
    assert left_behind(tmp_path) == ["state"]


def test_a_named_file_that_is_not_there_does_not_keep_the_rest_from_being_saved(
    store: SqliteStore, state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = digest(PROJECT)
    (state / "blobs" / missing[:2] / missing).unlink()
    backup.pack(state, store, tmp_path / "backup.tar")
    assert f"without blobs/{missing}" in caplog.text
    assert backup.restore(tmp_path / "backup.tar", tmp_path / "restored") == 1001


def test_a_copy_is_a_folder_that_was_not_there(store: SqliteStore, tmp_path: Path) -> None:
    store.backup(str(tmp_path / "copy"))
    copy = SqliteStore(tmp_path / "copy")
    copy.open()
    assert copy.run(2).accepted == large_graph(2)
    copy.close()
    with pytest.raises(InvalidUsage, match="cannot make the folder"):
        store.backup(str(tmp_path / "copy"))


def test_a_graph_stays_until_it_is_copied(store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is forgotten between the copy of the database and that of the file it names."""
    (graph,) = (store.folder / "bodies").iterdir()
    store.commit(1, [run_ended(2)])
    read, pruned = Bodies.read, []

    def forget_first(bodies: Bodies, digest: str) -> bytes:
        if bodies.folder == graph.parent:
            pruned.append(forget(store))
        return read(bodies, digest)

    monkeypatch.setattr(Bodies, "read", forget_first)
    store.backup(str(tmp_path / "copy"))
    monkeypatch.undo()
    assert [(sorted(slice.runs), slice.is_done) for slice in pruned] == [([1, 2], True)]
    assert (tmp_path / "copy" / "bodies" / graph.name).read_bytes() == graph.read_bytes()
    assert graph.exists(), "who copies is not hurried, and nobody waits for him"
    store.prune(10.0)
    assert not graph.exists()


# ---------------------------------------------------------------- where it may go


@pytest.mark.parametrize("name", ["state.sqlite", "bodies", "blobs", "cluster", "tokens"])
def test_a_state_is_never_overwritten(file: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_text("mine")
    with pytest.raises(InvalidUsage, match="holds a state already") as refused:
        backup.restore(file, target)
    assert "--state-dir" in refused.value.hint
    assert everything(target)[name] == b"mine"


def test_a_state_that_a_master_uses_is_left_alone(file: Path, tmp_path: Path) -> None:
    """Locks of one process do not exclude each other: another one holds it."""
    target = tmp_path / "target"
    target.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(target / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StateLocked, match="a master uses the state directory"):
        backup.restore(file, target)
    holder.communicate("\n")
    assert left_behind(target) == ["lock"]
    assert backup.restore(file, target) == 1001


def test_a_restore_that_was_killed_is_neither_started_from_nor_in_the_way(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    backup.restore(file, target)
    whole = left_behind(target)
    (target / schema.UNFINISHED).mkdir()
    (target / schema.UNFINISHED / "half").write_text("")
    with pytest.raises(StoreFailed, match="was not restored to its end") as refused:
        SqliteStore(target).open()
    assert "restore again" in refused.value.hint
    (target / schema.FILE).unlink()
    assert backup.restore(file, target) == 1001
    assert left_behind(target) == whole


# ---------------------------------------------------------------- what is no backup


def rewritten(file: Path, change: Callable[[str, bytes], tuple[tarfile.TarInfo | str, bytes] | None]) -> Path:
    """The backup with each member as ``change`` gives it; None leaves it out."""
    changed = file.with_name("changed.tar")
    with tarfile.open(file) as old, tarfile.open(changed, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            given = change(member.name, content.read())
            if given is not None:
                name, data = given
                info = tarfile.TarInfo(name) if isinstance(name, str) else name
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return changed


def refuse(file: Path, target: Path, match: str, error: type[TitanError] = BadBackup) -> None:
    with pytest.raises(error, match=match):
        backup.restore(file, target)
    assert not target.exists(), "nothing is left behind"


def test_a_folder_that_was_there_is_as_empty_as_before_when_a_restore_fails(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(file.read_bytes()[:-20_000])
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(BadBackup):
        backup.restore(tmp_path / "cut.tar", target)
    assert left_behind(target) == ["lock"]
    assert backup.restore(file, target) == 1001


def test_a_backup_that_was_cut_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    end = max(n for n in range(0, len(whole), 512) if whole[n : n + 512].strip(b"\0"))
    for cut in (0, 1, 511, 512, 700, 5000, len(whole) // 2, end, end + 10):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        refuse(tmp_path / "cut.tar", tmp_path / "target", "no backup|damaged|missing")


def test_a_backup_with_any_wrong_byte_of_content_is_refused(file: Path, tmp_path: Path) -> None:
    with tarfile.open(file) as tar:
        names = [member.name for member in tar if member.name != backup.LIST]
    assert len(names) == 7
    for name in names:
        changed = rewritten(file, lambda n, d, name=name: (n, d[:-1] + b"?" if n == name else d))
        refuse(changed, tmp_path / "target", f"the content of '{name}' is not what its list says")


def test_a_backup_that_lacks_something_is_refused(file: Path, tmp_path: Path) -> None:
    for name in ("state.sqlite", "cluster", f"blobs/{digest(PROJECT)}"):
        changed = rewritten(file, lambda n, d, name=name: None if n == name else (n, d))
        refuse(changed, tmp_path / "target", f"{name} is missing")


@pytest.mark.parametrize("name", ["../evil", "/evil", "tokens/../../evil", "logs/1", "blobs/short", "tokens/other"])
def test_names_from_a_backup_are_never_paths(file: Path, tmp_path: Path, name: str) -> None:
    smuggled = rewritten(file, lambda n, d: (name, d) if n == "cluster" else (n, d))
    refuse(smuggled, tmp_path / "target", "is not what its list says")

    def list_too(n: str, data: bytes) -> tuple[str, bytes]:
        if n == backup.LIST:
            return n, data.replace(b'"cluster"', msgspec.json.encode(name))
        return (name, data) if n == "cluster" else (n, data)

    refuse(rewritten(file, list_too), tmp_path / "target", "its list names")
    assert left_behind(tmp_path) == ["backup.tar", "changed.tar", "state"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_nothing_but_files_is_taken_from_a_backup(file: Path, tmp_path: Path, kind: bytes) -> None:
    def linked(name: str, data: bytes) -> tuple[tarfile.TarInfo | str, bytes]:
        if name != "cluster":
            return name, data
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/hostname"
        return info, b""

    refuse(rewritten(file, linked), tmp_path / "target", "is damaged|no backup")


def test_a_backup_whose_database_is_not_good_is_refused(file: Path, tmp_path: Path) -> None:
    """The digests are right: whoever made it copied a bad file well."""

    def with_database(database: bytes) -> Path:
        def change(name: str, data: bytes) -> tuple[str, bytes]:
            if name == schema.FILE:
                return name, database
            if name != backup.LIST:
                return name, data
            contents = msgspec.json.decode(data, type=backup.Contents)
            item = backup.Item(schema.FILE, len(database), digest(database))
            files = tuple(item if old.name == schema.FILE else old for old in contents.files)
            return name, msgspec.json.encode(msgspec.structs.replace(contents, files=files))

        return rewritten(file, change)

    with tarfile.open(file) as tar:
        content = tar.extractfile(schema.FILE)
        assert content is not None
        good = content.read()
    bad = bytearray(good)
    for page in range(2, len(good) // schema.PAGE):
        bad[page * schema.PAGE : page * schema.PAGE + 100] = b"\xff" * 100
    refuse(with_database(bytes(bad)), tmp_path / "target", "is damaged")
    refuse(with_database(b"SQLite format 3\0"), tmp_path / "target", "is damaged|no state")
    newer = bytearray(good)
    newer[60:64] = (schema.VERSION + 1).to_bytes(4, "big")
    refuse(with_database(bytes(newer)), tmp_path / "target", "has version 2 of the state", StoreTooNew)


def test_a_backup_of_a_later_format_is_refused(file: Path, tmp_path: Path) -> None:
    changed = rewritten(file, lambda n, d: (n, d.replace(b'"format":1', b'"format":2') if n == backup.LIST else d))
    refuse(changed, tmp_path / "target", "in a later format", StoreTooNew)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "text", "text")
    refuse(tmp_path / "text", tmp_path / "target", "is no backup")
    refuse(tmp_path / "other.tar", tmp_path / "target", "is no backup of titan-fast")
    refuse(tmp_path / "nothing", tmp_path / "target", "cannot be read: No such file")
