"""Full disks: nothing new is promised, what was accepted is finished, and it is over by itself when there is room."""

from __future__ import annotations

import errno
import functools
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import titan_fast
from titan_fast.errors import DiskFull
from titan_fast.master.space import LOOK_INTERVAL, RETRY_INTERVAL, Space
from titan_fast.testing.harness import ManualClock

MIB = 1 << 20
BLOCK = 4096


class Disk:
    """A file system that has as much room as we say, less what the ballast takes."""

    def __init__(self, folder, free):
        self.folder, self.room, self.looks = folder, free, 0

    def statvfs(self, path):
        assert path == self.folder
        self.looks += 1
        ballast = self.folder / "ballast"
        taken = ballast.stat().st_size if ballast.exists() else 0
        return SimpleNamespace(f_bavail=(self.room - taken) // BLOCK, f_frsize=BLOCK)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path, 1000 * MIB)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def space(disk, clock):
    return Space(disk.folder, 256 * MIB, 8 * MIB, clock=lambda: clock.now, statvfs=disk.statvfs)


def is_open(space, clock, queued=0, upload=0):
    """Whether something is accepted now, after another look at the disk."""
    clock.advance(LOOK_INTERVAL)
    try:
        space.check(queued, upload)
    except DiskFull:
        return False
    return True


# ---------------------------------------------------------------- what is refused


def test_work_is_refused_while_less_than_the_reserve_is_free(space, disk, clock):
    for free, accepted in ((256, True), (255, False), (0, False), (256, True), (9000, True)):
        disk.room = free * MIB
        assert is_open(space, clock) is accepted


def test_four_times_what_is_queued_must_be_free(space, disk, clock):
    disk.room = 400 * MIB
    assert is_open(space, clock, queued=100 * MIB)
    assert not is_open(space, clock, queued=101 * MIB)


def test_a_file_needs_its_room_on_top(space, disk, clock):
    disk.room = 300 * MIB
    assert is_open(space, clock, upload=44 * MIB)
    assert not is_open(space, clock, upload=45 * MIB)


def test_the_refusal_says_where_how_much_and_what_to_do(space, disk):
    disk.room = 3 * MIB
    with pytest.raises(DiskFull) as refused:
        space.check(100 * MIB)
    assert str(refused.value) == f"3 MiB are free in {disk.folder}, 400 MiB are needed to accept this"
    assert "free some space" in refused.value.hint
    assert "store.free_space" in refused.value.hint
    assert refused.value.retryable


def test_the_disk_is_looked_at_a_few_times_a_second_however_much_is_asked(space, disk, clock):
    for _ in range(100):
        space.check(0)
    assert disk.looks == 1
    disk.room = 0
    clock.advance(LOOK_INTERVAL)
    with pytest.raises(DiskFull):
        space.check(0)
    assert disk.looks == 2


def test_the_operator_hears_of_it_twice(space, disk, clock, caplog):
    caplog.set_level(logging.WARNING, "titan_fast.space")
    for free in (500, 100, 90, 80, 500, 600):
        disk.room = free * MIB
        is_open(space, clock)
    is_open(space, clock, queued=1000 * MIB)
    is_open(space, clock)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "nothing new is accepted until more is",
        "work is accepted again",
    ]


# ---------------------------------------------------------------- the ballast


def allocated(path):
    return path.stat().st_blocks * 512


def test_the_ballast_is_made_of_blocks(space, disk):
    assert space.restore()
    assert (disk.folder / "ballast").stat().st_size == 8 * MIB
    assert allocated(disk.folder / "ballast") >= 8 * MIB


@pytest.mark.parametrize("error", [OSError(errno.EOPNOTSUPP, "not supported"), AttributeError("posix_fallocate")])
def test_where_blocks_cannot_be_asked_for_they_are_written(space, disk, monkeypatch, error):
    def posix_fallocate(*_):
        raise error

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    assert space.restore()
    assert (disk.folder / "ballast").stat().st_size == 8 * MIB
    with (disk.folder / "ballast").open("rb") as file:
        assert any(file.read(BLOCK))


def test_the_ballast_is_given_up_once_and_comes_back_when_there_is_room_for_it_twice(space, disk, clock):
    assert space.restore()
    assert space.release()
    assert not (disk.folder / "ballast").exists()
    assert not space.release()
    for room, is_back in ((8, False), (15, False), (16, True)):
        disk.room = room * MIB
        clock.advance(LOOK_INTERVAL)
        assert space.restore() is is_back
        assert (disk.folder / "ballast").exists() is is_back
    assert space.release()


def test_what_the_ballast_left_behind_is_not_for_new_work(disk, clock):
    space = Space(disk.folder, 0, 8 * MIB, clock=lambda: clock.now, statvfs=disk.statvfs)
    space.restore()
    disk.room = 8 * MIB
    assert is_open(space, clock)
    space.release()
    assert space.free == 8 * MIB, "looked at again at once"
    assert not is_open(space, clock)
    disk.room = 16 * MIB
    assert is_open(space, clock)
    assert space.restore()
    disk.room = 8 * MIB
    assert is_open(space, clock), "no reserve is what was asked for"


def test_no_room_for_the_ballast_is_said_once_and_harms_nothing(space, disk, clock, caplog):
    disk.room = 15 * MIB
    for _ in range(3):
        clock.advance(LOOK_INTERVAL)
        assert not space.restore()
    assert [record.getMessage() for record in caplog.records] == [
        f"no room for {disk.folder / 'ballast'} (8 MiB): going on without"
    ]
    assert not space.release()
    disk.room = 16 * MIB
    clock.advance(LOOK_INTERVAL)
    assert space.restore()


def test_a_ballast_that_cannot_be_made_is_not_tried_all_the_time(space, disk, clock, monkeypatch):
    tries = []

    def posix_fallocate(*_):
        tries.append(clock.now)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as quota:
        quota.setattr(os, "posix_fallocate", posix_fallocate)
        for _ in range(100):
            assert not space.restore()
            clock.advance(RETRY_INTERVAL / 50)
    assert len(tries) == 2
    assert not (disk.folder / "ballast").exists()
    clock.advance(RETRY_INTERVAL)
    assert space.restore()


def test_the_ballast_of_the_last_start_is_taken_over(space, disk, clock):
    space.restore()
    before = (disk.folder / "ballast").stat()
    again = Space(disk.folder, 0, 8 * MIB, clock=lambda: clock.now, statvfs=disk.statvfs)
    disk.room = 8 * MIB
    assert again.restore()
    assert (disk.folder / "ballast").stat().st_ino == before.st_ino
    assert again.release()


@pytest.mark.parametrize(("kind", "written"), [("half", 4), ("hole", 4), ("of another size", 9)])
def test_a_ballast_that_is_none_is_made_anew(space, disk, kind, written):
    with (disk.folder / "ballast").open("wb") as file:
        file.write(b"x" * written * MIB)
        if kind == "hole":
            file.truncate(8 * MIB)
    assert space.restore()
    assert allocated(disk.folder / "ballast") >= 8 * MIB
    assert (disk.folder / "ballast").stat().st_size == 8 * MIB


def test_no_ballast_may_be_wanted(disk):
    space = Space(disk.folder, 0, 0)
    assert not space.restore()
    assert not space.release()
    assert list(disk.folder.iterdir()) == []
    space.check(0)


# ---------------------------------------------------------------- a disk that is really full

SMALL_DISK = 40 * MIB

PRELUDE = """
import hashlib, os, sys
from pathlib import Path
from titan_fast.errors import DiskFull
from titan_fast.master.artifacts import BlobStore
from titan_fast.master.logs import LogStore
from titan_fast.master.space import Space

MIB = 1 << 20
disk = Path(sys.argv[1])

def fill():
    "Take every byte there is."
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

def refused(function, *arguments):
    try:
        function(*arguments)
    except (OSError, DiskFull) as error:
        return error
    raise AssertionError("it was accepted")
"""


@functools.cache
def why_no_small_disk():
    """Empty where a test may mount a file system of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, timeout=20
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or "unshare failed"


def on_a_small_disk(tmp_path, code):
    """Run the code where ``disk`` is a file system of 40 MiB; it goes away with the process."""
    if why_no_small_disk():
        pytest.skip(f"no file system can be mounted here: {why_no_small_disk()}")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(code))
    mount = f'mount -t tmpfs -o size={SMALL_DISK} none "$1" && exec "$2" "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", disk, sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(Path(titan_fast.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_on_a_full_disk_the_ballast_is_room_to_finish_and_room_brings_everything_back(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
        now = 0.0
        space = Space(disk, 10 * MIB, 8 * MIB, clock=lambda: now)
        assert space.restore()
        space.check(0)
        fill()
        now += 1
        assert "0 B are free" in str(refused(space.check, 0))

        # The store meets the full disk, and finishes what was accepted.
        committed = disk / "store"
        assert isinstance(refused(committed.write_bytes, bytes(4 * MIB)), OSError)
        assert space.release()
        committed.write_bytes(bytes(4 * MIB))
        assert "are needed" in str(refused(space.check, 0))
        assert not space.restore()

        (disk / "filler").unlink()
        now += 1
        space.check(0)
        assert space.restore()
        assert (disk / "ballast").stat().st_blocks * 512 >= 8 * MIB
        """,
    )


def test_on_a_full_disk_kept_output_can_be_read_and_goes_on_when_there_is_room(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
        logs = LogStore(disk / "logs", MIB, MIB, fresh=False)
        logs.append(1, 1, 0, b"before")
        logs.append(2, 2, 0, b"to be forgotten")
        fill()
        for _ in ("running", "restarted"):
            assert isinstance(refused(logs.append, 1, 1, 6, b"x" * 100_000), OSError)
            assert isinstance(refused(logs.append, 3, 3, 0, b"x" * 100_000), OSError)
            assert logs.read(1, 1, 0)[1].startswith(b"before")
            logs = LogStore(disk / "logs", MIB, MIB, fresh=False)
        logs.forget_runs([2]).join()
        (disk / "filler").unlink()
        logs.append(1, 1, 6, b"x" * 100_000)
        logs.append(3, 3, 0, b"x" * 100_000)
        assert logs.read(1, 1, 0)[1] == b"before" + b"x" * 100_000
        assert logs.read(3, 3, 0)[1] == b"x" * 100_000
        """,
    )


def test_on_a_full_disk_a_file_is_refused_and_leaves_no_part_of_it(tmp_path):
    on_a_small_disk(
        tmp_path,
        """
        blobs = BlobStore(disk / "blobs", 256 * MIB)
        data = os.urandom(2 * MIB)
        digest = hashlib.sha256(data).hexdigest()
        bring = lambda: blobs.put("me", digest, 0, len(data), data).result(30)
        fill()
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - MIB)
        assert isinstance(refused(bring), DiskFull)
        assert blobs.size(digest) == -1
        assert not list((disk / "blobs").glob("*.part"))
        (disk / "filler").unlink()
        assert bring() == len(data)
        assert blobs.get(digest, 0) == (data, len(data))
        """,
    )
