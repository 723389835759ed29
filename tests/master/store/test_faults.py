"""Disks that are full or fail: whatever a commit said, it is true afterwards."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import apsw
import pytest
from disks import FailingDisk
from report import Report
from samples import accepted, ended, kv
from test_sqlite import large_graph

from titan_fast.errors import DiskFull, StoreUnknown, TitanError
from titan_fast.master.store import bodies, sqlite
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.scheduler.facts import Fact

CHANGES = 200
"""Writes, truncations and syncs, each of which fails once."""
COMMITS = 16


@pytest.fixture(autouse=True)
def many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_NOW", 20)


def group(number: int) -> list[Fact]:
    return [accepted(number), ended(number, range(3), results=[b"x" * 9000] * 3), kv(f"k{number}", b"v", number)]


def promised(store: SqliteStore) -> tuple[int, int, bool]:
    """Commit after commit, as a master does it: (returned, tried, whether it had to end)."""
    done = 0
    try:
        epoch = store.open().epoch
    except TitanError:
        return 0, 0, True
    while done < COMMITS:
        try:
            store.commit(epoch, group(done + 1))
        except DiskFull:
            continue  # the same facts again
        except StoreUnknown:
            with pytest.raises(StoreUnknown):
                store.commit(epoch, group(done + 1))
            return done, done + 1, True
        done += 1
    return done, done, False


def found_after_a_crash(folder: Path) -> int:
    """Opened from a copy of its files, as after a kill: how many groups are there. Always a prefix, always whole."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.copytree(folder, copy)
    store = SqliteStore(copy, "os")
    epoch = store.open().epoch
    records = list(store.load().runs)
    count = len(records)
    assert [record.accepted for record in records] == [accepted(number) for number in range(1, count + 1)]
    assert all(len(record.happened) == 1 for record in records), "no fact is there twice"
    assert all(store.result(number, 2) == b"x" * 9000 for number in range(1, count + 1))
    assert store.load().revision == count
    store.commit(epoch, group(count + 1))
    store.close()
    shutil.rmtree(copy)
    return count


@pytest.mark.parametrize("is_torn", [True, pytest.param(False, marks=pytest.mark.long)])
def test_no_promise_is_broken_whichever_write_fails(tmp_path: Path, is_torn: bool) -> None:
    is_long = not is_torn
    with Report(
        "disk-full", f"pytest tests/master/store/test_faults.py{' --long' if is_long else ''}", is_long
    ) as report:
        full = fail_each(tmp_path / "full", apsw.FullError, is_torn)
        broken = fail_each(tmp_path / "broken", apsw.IOError, is_torn)
        report.figures |= {"writes that found no room": CHANGES, "for which the store had to end": full}
        report.figures |= {"writes that failed": CHANGES, "for which it had to": broken}
        assert broken > 0
        assert full < CHANGES // 2, "for lack of space alone a master goes on"


def fail_each(folder: Path, error: type[apsw.Error], is_torn: bool) -> int:
    """How often the store had to end."""
    ends = 0
    for at in range(1, CHANGES + 1):
        place = folder / str(at)
        disk = FailingDisk(error, at, is_torn=is_torn)
        store = SqliteStore(place, vfs=disk.vfs_name)
        returned, tried, has_ended = promised(store)
        assert disk.failed == 1, f"change {at} was never made"
        found = found_after_a_crash(place)
        assert returned <= found <= tried, f"change {at} failed: {returned} returned, {found} of {tried} are there"
        ends += has_ended
        store.close()
        shutil.rmtree(place)
    return ends


def test_a_disk_that_stays_full_for_a_while_loses_and_doubles_nothing(tmp_path: Path) -> None:
    disk = FailingDisk(apsw.FullError, 0)
    store = SqliteStore(tmp_path / "state", vfs=disk.vfs_name)
    epoch = store.open().epoch
    store.commit(epoch, group(1))
    disk.failing = range(disk.changes + 1, disk.changes + 30)
    refusals = 0
    for number in range(2, 6):
        while True:
            try:
                store.commit(epoch, group(number))
                break
            except DiskFull as refused:
                assert "no space is left on the disk of" in str(refused)
                refusals += 1
                assert store.load().next_run == number, "what was refused is not there, what was promised is"
    assert refusals > 5
    assert found_after_a_crash(tmp_path / "state") == 5
    store.close()


def test_an_epoch_that_could_not_be_raised_was_not(tmp_path: Path) -> None:
    disk = FailingDisk(apsw.FullError, 0)
    store = SqliteStore(tmp_path / "state", vfs=disk.vfs_name)
    store.open()
    disk.failing = range(disk.changes + 1, disk.changes + 2)
    with pytest.raises(DiskFull):
        store.raise_epoch(7)
    store.commit(1, group(1))
    assert store.raise_epoch(7).epoch == 7
    store.close()


def test_a_large_graph_that_cannot_be_written_was_never_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is written before the rows that name it."""
    store = SqliteStore(tmp_path / "state")
    store.open()

    def fails(number: int) -> None:
        def sync(fd: int) -> None:
            raise OSError(number, "the sync fails")

        monkeypatch.setattr(bodies, "sync", sync)

    fails(errno.ENOSPC)
    with pytest.raises(DiskFull):
        store.commit(1, [large_graph(1)])
    assert store.load().next_run == 1
    monkeypatch.undo()
    store.commit(1, [large_graph(1)])
    assert store.run(1).accepted == large_graph(1)
    fails(errno.EIO)
    with pytest.raises(StoreUnknown, match="the sync fails"):
        store.commit(1, [large_graph(2, "other")])
    monkeypatch.undo()
    with pytest.raises(StoreUnknown):
        store.commit(1, group(3))
    store.close()


def test_a_program_that_keeps_the_file_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titan_fast.master.store.schema.PATIENCE", 10)
    store = SqliteStore(tmp_path / "state")
    store.open()
    other = apsw.Connection(str(tmp_path / "state" / "state.sqlite"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnknown, match="locked"):
        store.commit(1, group(1))
    other.close()
    store.close()
