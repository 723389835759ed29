"""Output at the master: what was kept is found again from the files alone, whatever happened in between."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_fast.master import logs
from titan_fast.master.logs import LogStore

RUN, FENCE = 7, 1 << 40 | 3
HEAD, TAIL = 10, 8


def open_store(folder, head=HEAD, tail=TAIL, fresh=False):
    return LogStore(folder, head, tail, fresh=fresh)


def output(start, end):
    """Bytes that say where they stand, so that a byte in the wrong place is seen."""
    return bytes((i * 37 + i // 251) % 256 for i in range(start, end))


def append(store, start, end, fence=FENCE):
    store.append(RUN, fence, start, output(start, end))


def kept(store, run=RUN, fence=FENCE):
    """The kept stretches, as (start, bytes)."""
    stretches, offset = [], 0
    while True:
        start, data = store.read(run, fence, offset)
        if not data:
            return stretches
        if stretches and start == offset:
            stretches[-1] = (stretches[-1][0], stretches[-1][1] + data)
        else:
            stretches.append((start, data))
        offset = start + len(data)


def assert_true(stretches):
    for start, data in stretches:
        assert data == output(start, start + len(data))


def files_of(folder, run=RUN):
    return sorted(path.name for path in (folder / str(run)).glob("*"))


# ---------------------------------------------------------------- what is kept


def test_what_was_written_is_read_back(tmp_path):
    store = open_store(tmp_path)
    store.append(RUN, FENCE, 0, b"hello")
    store.append(RUN, FENCE, 5, b" you")
    assert kept(store) == [(0, b"hello you")]
    assert store.end(RUN, FENCE) == 9
    assert store.read(RUN, FENCE, 6) == (6, b"you")


def test_an_attempt_without_output_costs_nothing(tmp_path):
    store = open_store(tmp_path)
    store.append(RUN, FENCE, 0, b"")
    assert not (tmp_path / str(RUN)).exists()
    assert kept(store) == []
    assert store.end(RUN, FENCE) == 0


def test_a_small_output_is_one_file_opened_written_and_closed_once(tmp_path, monkeypatch):
    store = open_store(tmp_path, head=100)
    append(store, 0, 20)
    calls = []
    for name in ("open", "write", "close", "stat", "fstat", "replace", "mkdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    append(store, 0, 20, fence=FENCE + 1)
    assert calls == ["open", "write", "close"]


def test_the_first_and_the_last_part_of_a_long_output_are_kept(tmp_path):
    store = open_store(tmp_path)
    for start in range(0, 1000, 3):
        append(store, start, start + 3)
    (first, head), (last, tail) = kept(store)
    assert (first, len(head)) == (0, HEAD)
    assert last + len(tail) == store.end(RUN, FENCE) == 1002
    assert TAIL <= len(tail) <= 2 * TAIL
    assert_true(kept(store))
    assert files_of(tmp_path) == [f"{FENCE}.head", f"{FENCE}.tail"]
    assert sum(path.stat().st_size for path in (tmp_path / str(RUN)).iterdir()) <= HEAD + 2 * TAIL + 8


def test_a_piece_longer_than_everything_that_is_kept_is_cut_like_any_other(tmp_path):
    store = open_store(tmp_path)
    append(store, 0, 500)
    assert kept(store) == [(0, output(0, HEAD)), (500 - TAIL, output(500 - TAIL, 500))]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_repeated_piece_changes_nothing(tmp_path, is_restarted):
    store = open_store(tmp_path)
    append(store, 0, 13)
    before = kept(store)
    if is_restarted:
        store = open_store(tmp_path)
    append(store, 0, 13)
    append(store, 4, 9)
    assert kept(store) == before
    append(store, 11, 16)
    assert kept(store) == [(0, output(0, 16))]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_behind_a_gap_the_beginning_stays_and_the_end_begins_anew(tmp_path, is_restarted):
    store = open_store(tmp_path)
    append(store, 0, 4)
    append(store, 50, 55)
    if is_restarted:
        store = open_store(tmp_path)
    append(store, 55, 57)
    assert kept(store) == [(0, output(0, 4)), (50, output(50, 57))]
    append(store, 80, 81)
    assert kept(store) == [(0, output(0, 4)), (80, output(80, 81))]
    append(store, 20, 30)
    assert kept(store) == [(0, output(0, 4)), (80, output(80, 81))], "the middle is not kept"


def test_an_output_whose_beginning_never_came_is_kept_from_where_it_starts(tmp_path):
    append(open_store(tmp_path), 40, 45)
    store = open_store(tmp_path)
    assert kept(store) == [(40, output(40, 45))]
    append(store, 0, 12)
    append(store, 45, 46)
    assert kept(store) == [(40, output(40, 46))]


@pytest.mark.parametrize(("head", "tail"), [(0, TAIL), (HEAD, 0), (0, 0)])
def test_no_head_or_no_tail_may_be_wanted(tmp_path, head, tail):
    store = open_store(tmp_path, head, tail)
    for start in range(0, 100, 5):
        append(store, start, start + 5)
        assert store.end(RUN, FENCE) == start + 5
    assert_true(kept(store))
    assert sum(len(data) for _, data in kept(store)) in range(head + tail, head + 2 * tail + 1)


# ---------------------------------------------------------------- restarts

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.booleans()), max_size=12)


@given(pieces=PIECES, head=st.integers(0, 20), tail=st.integers(0, 20))
def test_a_restart_at_any_point_changes_nothing(tmp_path_factory, pieces, head, tail):
    folder = tmp_path_factory.mktemp("logs")
    lasting = open_store(folder / "lasting", head, tail)
    restarted = open_store(folder / "restarted", head, tail)
    for start, length, restart in pieces:
        append(lasting, start, start + length)
        append(restarted, start, start + length)
        if restart:
            restarted = open_store(folder / "restarted", head, tail)
        assert kept(restarted) == kept(lasting)
        assert restarted.end(RUN, FENCE) == lasting.end(RUN, FENCE)
        assert_true(kept(restarted))


def test_other_limits_after_a_restart_make_nothing_wrong(tmp_path):
    append(open_store(tmp_path), 0, 15)
    for head, tail in ((4, 4), (100, 100), (0, 0)):
        store = open_store(tmp_path, head, tail)
        append(store, store.end(RUN, FENCE), store.end(RUN, FENCE) + 3)
        assert_true(kept(store))
        assert kept(store)[0][0] == 0


def test_memory_is_flat_however_many_attempts_write(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "KNOWN_LIMIT", 3)
    store = open_store(tmp_path)
    for start in range(0, 40, 4):
        for fence in range(10):
            append(store, start, start + 4, fence)
    assert len(store._known) == 3
    one = open_store(tmp_path / "one")
    for start in range(0, 40, 4):
        append(one, start, start + 4)
    for fence in range(10):
        assert kept(store, fence=fence) == kept(one)


# ---------------------------------------------------------------- writes that fail, files that are torn


def interrupt(monkeypatch, nth):
    """The n-th write from here on writes half of it and fails, as on a full disk; from then on all is well again."""
    real, left = os.write, [nth]

    def write(fd, data):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: len(data) // 2] if left[0] == 0 else data)

    monkeypatch.setattr(os, "write", write)
    return left


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_write_that_fails_half_way_loses_nothing_that_was_there(tmp_path, monkeypatch, nth, is_restarted):
    store = open_store(tmp_path)
    left = interrupt(monkeypatch, nth)
    script = [(0, 3), (3, 7), (7, 14), (14, 20), (20, 40), (90, 95), (95, 99), (99, 120), (120, 124)]
    for start, end in script:
        before = kept(store)
        try:
            append(store, start, end)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            if is_restarted:
                store = open_store(tmp_path)
            after = kept(store)
            assert_true(after)
            for (began, data), (begins, is_now) in zip(before, after, strict=False):
                assert began == begins
                assert is_now.startswith(data)
            assert len(after) >= len(before)
            assert not [name for name in files_of(tmp_path) if name.endswith(".new")]
            append(store, start, end)
        assert_true(kept(store))
        assert kept(store)[-1][1].endswith(output(max(start, end - TAIL), end))
        assert store.end(RUN, FENCE) == end
    assert left[0] < 0, "the fault was never met"


def test_while_nothing_can_be_written_everything_can_be_read(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    append(store, 0, 25)
    before = kept(store)

    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        for start, end, fence in ((25, 30, FENCE), (70, 80, FENCE), (0, 5, FENCE + 1)):
            with pytest.raises(OSError, match="No space"):
                append(store, start, end, fence)
            assert kept(store) == before
    append(store, 25, 30)
    append(store, 0, 5, FENCE + 1)
    assert kept(store)[-1][1].endswith(output(25, 30))
    assert kept(store, fence=FENCE + 1) == [(0, output(0, 5))]


@pytest.mark.parametrize("name", ["head", "tail"])
def test_a_file_cut_short_by_a_power_cut_makes_later_pieces_no_wrong(tmp_path, name):
    for size in range(20):
        folder = tmp_path / str(size)
        append(open_store(folder), 0, 6)
        append(open_store(folder), 40, 50)
        path = folder / str(RUN) / f"{FENCE}.{name}"
        os.truncate(path, min(size, path.stat().st_size))
        store = open_store(folder)
        assert_true(kept(store))
        assert name == "head" or kept(store)[0] == (0, output(0, 6))
        append(store, 50, 52)
        assert_true(kept(store))
        assert kept(store)[-1][1].endswith(output(50, 52))
        assert store.end(RUN, FENCE) == 52


def test_files_that_somebody_removed_are_no_output_and_begin_anew(tmp_path):
    store = open_store(tmp_path)
    append(store, 0, 5)
    (tmp_path / str(RUN) / f"{FENCE}.head").unlink()
    assert kept(store) == []
    with pytest.raises(FileNotFoundError):
        append(store, 5, 8)
    append(store, 5, 8)
    assert kept(store) == [(5, output(5, 8))]


# ---------------------------------------------------------------- last lines


def test_the_last_lines_begin_at_a_line(tmp_path):
    store = open_store(tmp_path, head=100)
    store.append(RUN, FENCE, 0, b"one\ntwo\nthree\nfour")
    assert store.last_lines(RUN, FENCE, 2) == len(b"one\ntwo\n")
    assert store.last_lines(RUN, FENCE, 0) == 18
    assert store.last_lines(RUN, FENCE, 50) == 0
    assert store.tail(RUN, FENCE, 2) == "three\nfour"
    assert store.last_lines(RUN, FENCE + 1, 5) == 0
    assert store.tail(RUN, FENCE + 1) == ""


def test_the_last_lines_are_found_across_head_and_tail_but_not_across_a_hole(tmp_path):
    store = open_store(tmp_path, head=6, tail=100)
    store.append(RUN, FENCE, 0, b"one\ntwo\nthree\n")
    assert store.tail(RUN, FENCE, 2) == "two\nthree\n"
    assert store.tail(RUN, FENCE, 9) == "one\ntwo\nthree\n"
    store.append(RUN, FENCE, 50, b"four\n")
    assert store.last_lines(RUN, FENCE, 9) == 50


def test_of_a_very_long_line_the_end_is_given(tmp_path):
    store = open_store(tmp_path, head=100)
    store.append(RUN, FENCE, 0, "é".encode() * 40)
    assert store.tail(RUN, FENCE, limit=10) == "é" * 5
    assert store.tail(RUN, FENCE, limit=9).endswith("é" * 4)


# ---------------------------------------------------------------- removing


def test_a_forgotten_run_is_out_of_sight_at_once_and_off_the_disk_soon(tmp_path):
    store = open_store(tmp_path)
    append(store, 0, 5)
    store.append(8, FENCE, 0, b"stays")
    removal = store.forget_runs([RUN, 99])
    assert not (tmp_path / str(RUN)).exists()
    assert kept(store) == []
    removal.join()
    assert not list(tmp_path.glob("gone-*"))
    assert kept(store, run=8) == [(0, b"stays")]
    assert store.forget_runs([RUN, 99]) is None, "nothing to do is no thread"


def test_output_that_comes_while_its_run_is_removed_is_not_in_the_way(tmp_path):
    store = open_store(tmp_path)
    for _ in range(3):
        append(store, 0, 5)
        removal = store.forget_runs([RUN])
        append(store, 0, 5)
        removal.join()
        assert kept(store) == [(0, output(0, 5))]


def test_a_sweep_removes_what_the_store_does_not_know_and_what_removals_left_over(tmp_path):
    store = open_store(tmp_path)
    for run in (1, 2, 3):
        store.append(run, run, 0, b"x")
    (tmp_path / "gone-before" / "nested").mkdir(parents=True)
    (tmp_path / "0123abcd").mkdir()
    (tmp_path / "stray").touch()
    store = open_store(tmp_path)
    store.sweep({2, 9}).join()
    assert kept(store, 2, 2) == [(0, b"x")]
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_a_store_that_remembers_nothing_starts_without_output(tmp_path):
    append(open_store(tmp_path), 0, 5)
    store = open_store(tmp_path, fresh=True)
    assert kept(store) == []
    append(store, 0, 3)
    assert kept(store) == [(0, output(0, 3))]
