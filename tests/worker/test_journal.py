"""The journal: whatever moment an agent is killed at, the next one reads what was true then."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_fast.ids import Ending, make_fence
from titan_fast.worker.executors.base import Clocks, Exit
from titan_fast.worker.journal import GROWN, Begun, Ended, Journal, JournalFile, boot_id

FENCE = make_fence(3, 17)


class Memory:
    """A journal's bytes; ``room`` are those that still fit, and what does not fit is torn."""

    def __init__(self, data=b"", room=None):
        self.data = data
        self.room = room

    def read(self):
        return self.data

    def append(self, data):
        fits = data if self.room is None else data[: max(0, self.room)]
        self.data += fits
        if self.room is not None:
            self.room -= len(fits)
        if len(fits) < len(data):
            raise OSError(errno.ENOSPC, "no room")

    def replace(self, data):
        if self.room is not None and len(data) > len(self.data) + self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.data = data

    def close(self):
        pass


def begun(fence=FENCE, **fields):
    at = Clocks(1.7e9, 1000.25, 2000.5)
    given = {"run": 12, "spec": 0, "index": 4, "generation": 1, "attempt": 2, "timeout": 60.0, "grace": 10.0}
    return Begun(**{**given, **fields}, fence=fence, task="12/extract", at=at)


def ended(fence=FENCE, result=""):
    return Ended(fence, Ending.EXIT, 3, 1_700_000_000_000_000, 1500, 6, result)


def again(storage, boot="b1"):
    return Journal(Memory(storage.data), boot)


def test_an_attempt_is_read_back_as_far_as_it_got():
    storage = Memory()
    journal = Journal(storage, "b1")
    journal.welcomed(3, "nonce")
    journal.begun(begun())
    assert again(storage).past[FENCE].begun == begun()
    assert again(storage).past[FENCE].spawned is None
    journal.spawned(FENCE, 4711, 2000.75)
    past = again(storage).past[FENCE]
    assert (past.spawned.pid, past.spawned.at) == (4711, 2000.75)
    journal.stopping(FENCE, Ending.TIMEOUT)
    journal.exited([(FENCE, Exit(os.CLD_KILLED, 15, 1003.5))])
    past = again(storage).past[FENCE]
    assert (past.stopping.ending, past.exited.exit) == (Ending.TIMEOUT, Exit(os.CLD_KILLED, 15, 1003.5))
    assert past.ended is None
    journal.ended(ended(result="é\n\0"))
    assert again(storage).past[FENCE].ended == ended(result="é\n\0")
    assert again(storage).epochs == {3: "nonce"}
    journal.forgotten([FENCE])
    assert again(storage).past == {}


def test_what_never_began_is_not_in_it():
    storage = Memory()
    journal = Journal(storage, "b1")
    before = storage.data
    journal.ended(ended())
    journal.forgotten([FENCE])
    assert storage.data == before


def test_after_a_restart_of_the_system_no_attempt_is_left_but_the_epochs_are():
    storage = Memory()
    journal = Journal(storage, "b1")
    journal.welcomed(3, "nonce")
    journal.begun(begun())
    rebooted = Journal(storage, "b2")
    assert (rebooted.past, rebooted.epochs) == ({}, {3: "nonce"})
    assert again(storage, "b1").past == {}, "not even in the boot before the last"


def test_a_system_that_does_not_name_its_boots_keeps_nothing():
    storage = Memory()
    Journal(storage, "").begun(begun())
    assert Journal(storage, "").past == {}


@given(st.data())
def test_cut_at_any_byte_it_reads_as_a_prefix(data):
    storage = Memory()
    journal = Journal(storage, "b1")
    states = []
    for fence in (FENCE, FENCE + 1):
        journal.begun(begun(fence))
        states.append((len(storage.data), list(again(storage).past.values())))
        journal.spawned(fence, 7, 1.0)
        states.append((len(storage.data), list(again(storage).past.values())))
    journal.forgotten([FENCE])
    states.append((len(storage.data), list(again(storage).past.values())))
    head = states[0][0] - len(storage.data.split(b"\n")[1]) - 1
    cut = data.draw(st.integers(head, len(storage.data)))
    # A last line that lacks only its end is whole.
    expected = [past for size, past in states if size - 1 <= cut]
    assert list(Journal(Memory(storage.data[:cut]), "b1").past.values()) == (expected[-1] if expected else [])


def test_a_line_that_is_torn_or_unknown_costs_itself_alone():
    storage = Memory()
    journal = Journal(storage, "b1")
    journal.begun(begun())
    storage.data += b'["spawned",1\n["of a later version",{}]\n\xff\n'
    journal.ended(ended())
    assert again(storage).past[FENCE].ended == ended()


def test_a_full_disk_refuses_what_would_begin_and_nothing_else():
    storage = Memory(room=250)
    journal = Journal(storage, "b1")
    with pytest.raises(OSError, match="no room") as caught:
        for fence in range(FENCE, FENCE + 10):
            journal.begun(begun(fence))
    assert caught.value.errno == errno.ENOSPC
    whole = set(again(storage).past)
    storage.room = 0
    journal.ended(ended(FENCE))  # is not told, for what has ended has ended
    storage.room = None
    journal.spawned(FENCE, 7, 1.0)
    past = again(storage).past
    assert set(past) == whole
    assert (past[FENCE].ended, past[FENCE].spawned.pid) == (ended(), 7), "written down once there was room"


def test_it_stays_small_however_long_the_worker_lives():
    storage = Memory()
    journal = Journal(storage, "b1")
    journal.begun(begun(make_fence(3, 1)))
    for sequence in range(2, 20_000):
        fence = make_fence(4, sequence)
        journal.begun(begun(fence))
        journal.ended(ended(fence, "x" * 50))
        journal.forgotten([fence])
        assert len(storage.data) < 2 * GROWN
    assert list(again(storage).past) == [make_fence(3, 1)]


def test_old_epochs_go_when_nothing_of_them_is_left():
    storage = Memory()
    journal = Journal(storage, "b1")
    for epoch in range(1, 6):
        journal.welcomed(epoch, f"n{epoch}")
    journal.begun(begun(make_fence(2, 1)))
    assert again(storage).epochs == {2: "n2", 5: "n5"}


def test_in_a_file(tmp_path):
    path = tmp_path / "attempts.journal"
    journal = Journal(JournalFile(path), "b1")
    journal.begun(begun())
    journal.spawned(FENCE, 7, 1.0)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    path.write_bytes(before[:-5])
    second = Journal(JournalFile(path), "b1")
    assert list(second.past) == [FENCE] and second.past[FENCE].spawned is None
    second.spawned(FENCE, 8, 1.0)
    assert Journal(JournalFile(path), "b1").past[FENCE].spawned.pid == 8
    assert [name for name in os.listdir(tmp_path) if name != path.name] == []
    journal.close()
    second.close()


def test_this_system_names_its_boots():
    assert boot_id() == boot_id()
