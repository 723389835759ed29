"""Files by content: what is said to be held is on the disk, is what its name says, and stays while anybody wants it."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from concurrent.futures import wait

import pytest

from titan_fast.errors import BadMessage, DiskFull, NoSuchBlob, TooLarge
from titan_fast.master import artifacts
from titan_fast.master.artifacts import MAX_UNFINISHED, BlobStore

DATA = b"what a task made\n" * 100
LIMIT = 1 << 20
PATIENCE = 10


def address(data):
    return hashlib.sha256(data).hexdigest()


def bring(store, data, pieces=1, owner="me"):
    """Upload in pieces, each after the answer to the one before; returns the last answer."""
    step = max(1, -(-len(data) // pieces))
    for offset in range(0, max(1, len(data)), step):
        piece = data[offset : offset + step]
        held = store.put(owner, address(data), offset, len(data), piece).result(PATIENCE)
    return held


def parts(folder):
    return sorted(path.name for path in folder.glob("*.part"))


def settle(store):
    """Wait for the store's thread."""
    store._thread.submit(int).result(PATIENCE)


def swept(store, named, older_than):
    return store.sweep(named, older_than).result(PATIENCE)


def make_old(store, data, seconds):
    then = time.time() - seconds
    os.utime(store.path(address(data)), (then, then))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blobs"


@pytest.fixture
def store(folder):
    return BlobStore(folder, LIMIT)


class Gate:
    """Holds the thread of a store at its n-th sync from here on, until it is opened."""

    def __init__(self, monkeypatch, nth=0):
        self.reached, self.is_open = threading.Event(), threading.Event()
        real, left = os.fsync, iter(range(nth, -9, -1))

        def fsync(fd):
            if next(left) == 0:
                self.reached.set()
                assert self.is_open.wait(PATIENCE)
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)


# ---------------------------------------------------------------- bringing


@pytest.mark.parametrize("pieces", [1, 3, 1700])
def test_a_file_brought_in_pieces_is_held_with_the_last_of_them(store, folder, pieces):
    digest = address(DATA)
    step = -(-len(DATA) // pieces)
    for offset in range(0, len(DATA), step):
        assert store.size(digest) == -1
        held = store.put("me", digest, offset, len(DATA), DATA[offset : offset + step]).result(PATIENCE)
        assert held == (len(DATA) if offset + step >= len(DATA) else -1)
    assert store.size(digest) == len(DATA)
    assert store.get(digest, 0) == (DATA, len(DATA))
    assert store.get(digest, 5) == (DATA[5:], len(DATA))
    assert store.get(digest, len(DATA)) == (b"", len(DATA))
    assert parts(folder) == []


def test_an_empty_file_is_a_file(store):
    assert bring(store, b"") == 0
    assert store.size(address(b"")) == 0
    assert store.get(address(b""), 0) == (b"", 0)


def test_a_large_file_is_given_out_in_pieces(store, monkeypatch):
    monkeypatch.setattr(artifacts, "PIECE", 1000)
    bring(store, DATA)
    assert store.get(address(DATA), 600) == (DATA[600:1600], len(DATA))


def test_what_is_not_here_is_said_to_be_not_here(store):
    assert store.size(address(DATA)) == -1
    with pytest.raises(NoSuchBlob):
        store.get(address(DATA), 0)


@pytest.mark.parametrize("digest", ["", "ab", "../" * 20 + "etc/passwd", "A" * 64, "0" * 63 + "\n"])
def test_a_name_that_is_no_address_is_refused(store, digest):
    for ask in (store.size, store.path):
        with pytest.raises(BadMessage, match="is not a SHA-256 address"):
            ask(digest)
    with pytest.raises(BadMessage):
        store.put("me", digest, 0, 1, b"x")


def test_content_that_is_not_what_its_name_says_is_refused_and_leaves_nothing(store, folder):
    with pytest.raises(BadMessage, match="the content has the address"):
        store.put("me", address(DATA), 0, 3, b"xyz").result(PATIENCE)
    assert store.size(address(DATA)) == -1
    assert parts(folder) == []
    assert bring(store, DATA) == len(DATA)


@pytest.mark.parametrize(
    ("offset", "size", "data"),
    [(4, 9, b"x"), (2, 9, b"x"), (3, 9, b"0123456"), (3, 9, b""), (3, 8, b"x")],
    ids=["a gap", "a repeat", "too much", "nothing", "another size"],
)
def test_pieces_out_of_order_end_the_upload(store, folder, offset, size, data):
    store.put("me", address(DATA), 0, 9, b"abc").result(PATIENCE)
    with pytest.raises(BadMessage, match="3 was next"):
        store.put("me", address(DATA), offset, size, data)
    with pytest.raises(BadMessage, match="without a beginning"):
        store.put("me", address(DATA), 3, 9, b"x")
    settle(store)
    assert parts(folder) == []


def test_a_piece_waits_for_the_answer_to_the_one_before(store, monkeypatch):
    """So that a peer cannot fill the memory with pieces that wait for the disk."""
    busy = threading.Event()
    store._thread.submit(busy.wait, PATIENCE)
    first = store.put("me", address(DATA), 0, len(DATA), DATA[:9])
    with pytest.raises(BadMessage, match="before the answer"):
        store.put("me", address(DATA), 9, len(DATA), DATA[9:])
    busy.set()
    assert first.result(PATIENCE) == -1
    assert store.put("me", address(DATA), 9, len(DATA), DATA[9:]).result(PATIENCE) == len(DATA)


def test_a_file_over_the_limit_is_refused_before_a_byte_is_written(store, folder):
    with pytest.raises(TooLarge, match=f"at most {LIMIT}") as refused:
        store.put("me", address(DATA), 0, LIMIT + 1, b"x")
    assert "limits.project" in refused.value.hint
    assert list(folder.iterdir()) == []


def test_one_connection_may_bring_a_few_files_at_a_time(store, folder):
    for i in range(MAX_UNFINISHED):
        store.put("me", address(b"%d" % i), 0, 9, b"x").result(PATIENCE)
    with pytest.raises(TooLarge, match="unfinished files"):
        store.put("me", address(DATA), 0, 9, b"x")
    assert bring(store, DATA, owner="another") == len(DATA)
    store.drop("me")
    settle(store)
    assert parts(folder) == []
    assert bring(store, DATA + DATA) == 2 * len(DATA)


def test_two_who_bring_the_same_file_are_not_in_each_others_way(store, folder):
    half = len(DATA) // 2
    for owner in ("me", "you"):
        store.put(owner, address(DATA), 0, len(DATA), DATA[:half]).result(PATIENCE)
    store.drop("me")
    assert store.put("you", address(DATA), half, len(DATA), DATA[half:]).result(PATIENCE) == len(DATA)
    assert store.get(address(DATA), 0)[0] == DATA
    assert parts(folder) == []


def test_an_upload_may_begin_anew_while_the_last_piece_is_on_its_way(store, monkeypatch):
    gate = Gate(monkeypatch)
    first = store.put("me", address(DATA), 0, len(DATA), DATA)
    assert gate.reached.wait(PATIENCE)
    again = store.put("me", address(DATA), 0, len(DATA), DATA[:9])
    gate.is_open.set()
    assert first.result(PATIENCE) == len(DATA)
    assert again.result(PATIENCE) == -1
    assert store.get(address(DATA), 0)[0] == DATA


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(store, folder):
    written = store.put("me", address(DATA), 0, len(DATA), DATA[:9])
    store.drop("me")
    wait([written], PATIENCE)
    settle(store)
    assert parts(folder) == []


# ---------------------------------------------------------------- held means on the disk


def inode(path):
    return path.stat().st_ino


def record_syncs(monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or real(fd))
    return synced


def test_a_file_is_held_when_it_and_the_way_to_it_are_on_the_disk(store, folder, monkeypatch):
    """In this order: the content, the name, the folders. And only then the answer."""
    happened, replace = record_syncs(monkeypatch), os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: happened.append("named") or replace(a, b))
    held = store.put("me", address(DATA), 0, len(DATA), DATA)
    held.add_done_callback(lambda _: happened.append("answered"))
    settle(store)
    place = store.path(address(DATA))
    assert happened == [inode(place), "named", inode(place.parent), inode(folder), "answered"]


@pytest.mark.parametrize("nth", range(3), ids=["content", "folder", "folder of folders"])
def test_before_all_of_it_is_on_the_disk_nobody_is_told(store, monkeypatch, nth):
    gate = Gate(monkeypatch, nth)
    held = store.put("me", address(DATA), 0, len(DATA), DATA)
    assert gate.reached.wait(PATIENCE)
    assert store.size(address(DATA)) == -1
    assert not held.done()
    gate.is_open.set()
    assert held.result(PATIENCE) == len(DATA)
    assert store.size(address(DATA)) == len(DATA)


def test_a_file_that_is_held_stays_so_while_it_is_brought_again(store, monkeypatch):
    bring(store, DATA)
    gate = Gate(monkeypatch, 1)
    again = store.put("you", address(DATA), 0, len(DATA), DATA)
    assert gate.reached.wait(PATIENCE)
    assert store.size(address(DATA)) == len(DATA)
    gate.is_open.set()
    assert again.result(PATIENCE) == len(DATA)


def test_a_start_brings_to_the_disk_what_the_last_process_left_on_its_way(store, folder, monkeypatch):
    bring(store, DATA)
    synced = record_syncs(monkeypatch)
    BlobStore(folder, LIMIT)
    assert set(synced) == {inode(folder.parent), inode(folder), inode(store.path(address(DATA)).parent)}


@pytest.mark.parametrize("nth", range(3), ids=["content", "folder", "folder of folders"])
def test_a_file_that_cannot_be_synced_is_not_held(store, folder, monkeypatch, nth):
    real, left = os.fsync, iter(range(nth, -9, -1))

    def fsync(fd):
        if next(left) == 0:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output"):
            store.put("me", address(DATA), 0, len(DATA), DATA).result(PATIENCE)
    assert store.size(address(DATA)) == -1
    assert parts(folder) == []
    assert bring(store, DATA) == len(DATA)
    assert store.size(address(DATA)) == len(DATA)


def test_files_survive_a_restart_and_unfinished_ones_do_not(store, folder):
    bring(store, DATA, pieces=3)
    store.put("me", address(b"xy"), 0, 2, b"x").result(PATIENCE)
    assert len(parts(folder)) == 1
    again = BlobStore(folder, LIMIT)
    assert parts(folder) == []
    assert again.get(address(DATA), 0) == (DATA, len(DATA))
    assert again.size(address(b"xy")) == -1


@pytest.mark.parametrize("nth", range(3))
def test_a_full_disk_is_told_as_such_and_the_file_is_taken_later(store, folder, monkeypatch, nth):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "write", FailingWrite(nth, full))
    with pytest.raises(DiskFull, match="no room in") as refused:
        bring(store, DATA, pieces=3)
    assert str(folder) in str(refused.value)
    assert refused.value.retryable
    assert parts(folder) == []
    assert store.size(address(DATA)) == -1
    with pytest.raises(BadMessage, match="without a beginning"):
        store.put("me", address(DATA), 600 * (nth + 1), len(DATA), b"more")
    assert bring(store, DATA, pieces=3) == len(DATA)


def test_uploads_that_failed_do_not_count_as_unfinished(store, monkeypatch):
    for i in range(2 * MAX_UNFINISHED):
        monkeypatch.setattr(os, "write", FailingWrite(0, OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(DiskFull):
            store.put("me", address(b"%d" % i), 0, 9, b"x").result(PATIENCE)
    assert len(store._open) <= 1


class FailingWrite:
    """``os.write`` whose n-th call fails half-way."""

    def __init__(self, nth, error):
        self._left, self._error, self._write = nth, error, REAL_WRITE

    def __call__(self, fd, data):
        self._left -= 1
        if self._left == -1:
            self._write(fd, data[: len(data) // 2])
            raise self._error
        return self._write(fd, data)


REAL_WRITE = os.write


# ---------------------------------------------------------------- moving in


def test_a_file_is_moved_in_whatever_its_size(store, tmp_path):
    backup = tmp_path / "backup"
    backup.write_bytes(b"x" * (LIMIT + 1))
    os.utime(backup, (0, 0))
    digest = store.adopt(backup)
    assert digest == address(b"x" * (LIMIT + 1))
    assert store.size(digest) == LIMIT + 1
    assert not backup.exists()


def test_what_is_moved_in_is_young(store, tmp_path):
    backup = tmp_path / "backup"
    backup.write_bytes(DATA)
    os.utime(backup, (0, 0))
    store.adopt(backup)
    assert swept(store, (), 60) == 0


def test_a_file_that_is_moved_in_is_on_the_disk(store, folder, tmp_path, monkeypatch):
    backup = tmp_path / "backup"
    backup.write_bytes(DATA)
    synced = record_syncs(monkeypatch)
    digest = store.adopt(backup)
    assert synced == [inode(store.path(digest)), inode(store.path(digest).parent), inode(folder)]


# ---------------------------------------------------------------- sweeping


def test_files_that_nothing_names_go_when_they_are_old(store, folder):
    for data in (b"named", b"young", b"old"):
        bring(store, data)
    make_old(store, b"named", 1000)
    make_old(store, b"old", 1000)
    assert swept(store, {address(b"named")}, 500) == 1
    assert [store.size(address(data)) for data in (b"named", b"young", b"old")] == [5, 5, -1]
    assert parts(folder) == []
    assert swept(store, {address(b"named")}, 500) == 0


@pytest.mark.parametrize("interest", ["size", "get", "put"])
def test_a_file_that_somebody_is_interested_in_stays(store, interest):
    bring(store, DATA)
    make_old(store, DATA, 1000)
    if interest == "size":
        store.size(address(DATA))
    elif interest == "get":
        store.get(address(DATA), 5)
    else:
        bring(store, DATA)
    assert swept(store, (), 500) == 0
    assert store.size(address(DATA)) == len(DATA)


def test_a_file_that_is_being_brought_is_not_swept(store):
    store.put("me", address(DATA), 0, len(DATA), DATA[:9]).result(PATIENCE)
    assert swept(store, (), -1000) == 0
    assert store.put("me", address(DATA), 9, len(DATA), DATA[9:]).result(PATIENCE) == len(DATA)


def test_who_was_told_that_a_file_is_held_finds_it_whatever_is_swept_meanwhile(store, monkeypatch):
    """An answer that falls between a sweep's look at the age and its removal waits for it."""
    bring(store, DATA)
    make_old(store, DATA, 1000)
    real, answers = type(store.path(address(DATA))).rename, []
    asking = threading.Thread(target=lambda: answers.append(store.size(address(DATA))))

    def rename(path, target):
        asking.start()
        asking.join(0.05)
        return real(path, target)

    monkeypatch.setattr(type(store.path(address(DATA))), "rename", rename)
    assert swept(store, (), 500) == 1
    asking.join(PATIENCE)
    assert answers == [-1]


def test_a_file_that_somebody_removed_is_not_here_any_more(store):
    bring(store, DATA)
    store.path(address(DATA)).unlink()
    assert store.size(address(DATA)) == -1
    with pytest.raises(NoSuchBlob):
        store.get(address(DATA), 0)
