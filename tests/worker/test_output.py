"""Outputs stay short on disk, say where they were cut, and are shipped from the beginning and from the end."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from titan_fast.worker import output
from titan_fast.worker.output import Gap, Shipper, bound, read_gap, read_output, read_part, total_size

LIMIT = 64 << 10
HALF = LIMIT // 2


@pytest.fixture(params=["punch", "no punching"])
def disk(request, monkeypatch):
    """With and without a file system that can punch holes."""
    if request.param == "no punching":
        monkeypatch.setattr(output, "_fallocate", lambda: None)
    return request.param


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    yield
    if names:
        assert len(os.listdir("/proc/self/fd")) == len(names)


def noise(size, seed=1):
    """Bytes that are different everywhere, and never zero."""
    return bytes(random.Random(seed).choices(range(1, 256), k=size))


def append(path, data):
    with open(path, "ab", buffering=0) as file:
        file.write(data)


def marker(count):
    return b"\n[titan-fast: %d bytes dropped here]\n" % count


# ---------------------------------------------------------------- cutting and reading back


def test_short_output_is_left_alone(disk, tmp_path):
    path = str(tmp_path / "output")
    append(path, noise(LIMIT))
    assert bound(path, LIMIT) is None
    assert os.listdir(tmp_path) == ["output"]
    assert read_output(path, 0, 1 << 20).data == noise(LIMIT)


@pytest.mark.parametrize("size", [LIMIT + 4096, LIMIT + 5000, 3 * LIMIT + 17, 40 * LIMIT])
def test_the_middle_goes(disk, tmp_path, size):
    path = str(tmp_path / "output")
    data = noise(size)
    append(path, data)
    gap = bound(path, LIMIT)
    assert gap is not None and gap.start == HALF and gap.end <= size - HALF
    assert gap.end > size - HALF - 4096, "no more is kept than the limit, up to a block"
    piece = read_output(path, 0, size)
    assert piece.data == data[:HALF] + marker(gap.end - gap.start) + data[gap.end :]
    assert (piece.offset, piece.next, piece.total) == (0, size, size)
    assert os.stat(path).st_blocks * 512 <= LIMIT + 2 * 4096
    with open(path, "rb") as file:
        assert total_size(file.fileno(), path) == size
    assert bound(path, LIMIT) == gap, "nothing more to drop"


def test_a_writer_goes_on_while_it_is_cut(disk, tmp_path):
    """Offsets stay those of everything ever written, over any number of cuts."""
    path = str(tmp_path / "output")
    written = b""
    with open(path, "ab", buffering=0) as writer:
        for step in range(30):
            part = noise(20_000, step)
            writer.write(part)
            written += part
            bound(path, LIMIT)
            piece = read_output(path, -100, 1000)
            assert (piece.data, piece.total) == (written[-100:], len(written))
    gap = read_gap(path)
    assert gap is not None
    assert read_output(path, 0, 1 << 20).data == written[:HALF] + marker(gap.end - gap.start) + written[gap.end :]
    assert os.stat(path).st_blocks * 512 <= LIMIT + 20_000 + 2 * 4096


def test_reading_in_pieces(disk, tmp_path):
    path = str(tmp_path / "output")
    data = noise(5 * LIMIT)
    append(path, data)
    gap = bound(path, LIMIT)
    offset, parts = 0, []
    while (piece := read_output(path, offset, 7777)).data:
        assert piece.offset == offset and piece.next > offset
        parts.append(piece.data)
        offset = piece.next
    assert b"".join(parts) == data[:HALF] + marker(gap.end - gap.start) + data[gap.end :]
    assert offset == len(data)


def test_reading_from_inside_the_gap(disk, tmp_path):
    path = str(tmp_path / "output")
    data = noise(5 * LIMIT)
    append(path, data)
    gap = bound(path, LIMIT)
    inside = gap.start + 1000
    piece = read_output(path, inside, 50)
    assert piece.data == marker(gap.end - inside) + data[gap.end : gap.end + 50]
    assert piece.next == gap.end + 50


def test_reading_at_the_edges(disk, tmp_path):
    path = str(tmp_path / "output")
    append(path, b"abc")
    assert read_output(path, 3, 10).data == b""
    assert read_output(path, 99, 10) == output.Piece(99, b"", 99, 3)
    assert read_output(path, -99, 10).data == b"abc"
    assert read_output(path, 0, 0).data == b""
    with pytest.raises(FileNotFoundError):
        read_output(str(tmp_path / "none"), 0, 10)


def test_a_cut_while_it_is_read_shows_no_zeros(tmp_path, monkeypatch):
    path = str(tmp_path / "output")
    append(path, noise(5 * LIMIT))
    real = output._read_piece

    def cut_first(*args):
        monkeypatch.setattr(output, "_read_piece", real)
        bound(path, LIMIT)
        return real(*args)

    monkeypatch.setattr(output, "_read_piece", cut_first)
    assert b"\0" not in read_output(path, HALF, 1000).data


def test_a_link_in_place_of_the_output_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "output").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        read_output(str(tmp_path / "output"), 0, 100)
    with pytest.raises(OSError):
        bound(str(tmp_path / "output"), 0)
    assert (tmp_path / "secret").read_text() == "secret"


# ---------------------------------------------------------------- shipping


class Sink:
    """Takes what is shipped, and puts it together again."""

    def __init__(self):
        self.chunks = []
        self.finals = {}
        self.shipper = None
        self.pause_after = None

    def __call__(self, fence, offset, data, final, total):
        assert fence not in self.finals, "something came after the end"
        self.chunks.append((fence, offset, data))
        if final:
            self.finals[fence] = total
        if self.pause_after is not None and len(self.chunks) >= self.pause_after:
            self.shipper.pause()

    def text(self, fence=1):
        """[(offset, bytes)] with neighbours joined: one entry when nothing was left out."""
        joined = []
        for number, offset, data in self.chunks:
            if number != fence or not data:
                continue
            if joined and joined[-1][0] + len(joined[-1][1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + data)
            else:
                joined.append((offset, data))
        return joined


def play(scene, **options):
    """A shipper whose timer is too slow to matter: the scene ticks itself."""
    sink = Sink()

    async def main():
        shipper = sink.shipper = Shipper(sink, **{"interval": 3600, **options})
        try:
            await scene(shipper)
        finally:
            shipper.close()

    asyncio.run(main())
    return sink


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "output")


def test_ships_what_is_new(path):
    async def scene(shipper):
        shipper.add(1, path)
        shipper.ship()
        append(path, b"one ")
        shipper.ship()
        shipper.ship()
        append(path, b"two ")
        shipper.ship()
        append(path, b"three")
        shipper.finish(1, 13)
        shipper.ship()

    sink = play(scene)
    assert sink.chunks == [(1, 0, b"one "), (1, 4, b"two "), (1, 8, b"three")]
    assert sink.finals == {1: 13}


def test_the_end_is_told_even_when_nothing_is_new(path):
    async def scene(shipper):
        shipper.add(1, path)
        append(path, b"all")
        shipper.ship()
        shipper.finish(1, 3)

    sink = play(scene)
    assert sink.chunks == [(1, 0, b"all"), (1, 3, b"")]
    assert sink.finals == {1: 3}


def test_an_attempt_without_output_is_not_heard_of(path):
    async def scene(shipper):
        append(path, b"")
        shipper.add(1, path)
        shipper.ship()
        shipper.finish(1, 0)
        shipper.finish(2, 5)  # never added
        shipper.ship()

    assert play(scene).chunks == []


def test_the_head_always_and_then_the_newest(path):
    data = noise(1_000_000)

    async def scene(shipper):
        shipper.add(1, path)
        append(path, data[:500_000])
        shipper.ship()
        append(path, data[500_000:])
        shipper.finish(1, len(data))

    sink = play(scene, head=100_000, tail=50_000)
    assert sink.text() == [
        (0, data[:100_000]),
        (450_000, data[450_000:500_000]),
        (950_000, data[950_000:]),
    ]
    assert sink.finals == {1: 1_000_000}


def test_the_head_is_shipped_in_full_however_fast_it_comes(path):
    data = noise(3 << 20)

    async def scene(shipper):
        append(path, data)
        shipper.add(1, path)
        shipper.finish(1, len(data))

    sink = play(scene)
    assert sink.text() == [(0, data[: 1 << 20]), (2 << 20, data[2 << 20 :])]
    assert max(len(chunk) for _, _, chunk in sink.chunks) <= 256 << 10, "memory is bounded by a chunk"


def test_ships_around_what_was_cut(disk, path):
    data = noise(10 * LIMIT)

    async def scene(shipper):
        shipper.add(1, path)
        append(path, data[: 5 * LIMIT])
        shipper.ship()
        append(path, data[5 * LIMIT :])
        shipper.finish(1, len(data))

    sink = play(scene, limit=LIMIT, head=LIMIT, tail=2 * LIMIT)
    for offset, part in sink.text():
        assert part == data[offset : offset + len(part)]
    assert sink.text()[0] == (0, data[:HALF])
    offset, part = sink.text()[-1]
    assert offset + len(part) == len(data) and len(part) >= HALF
    assert os.stat(path).st_blocks * 512 <= LIMIT + 2 * 4096
    assert read_output(path, 0, 1 << 20).total == len(data)


def test_what_an_earlier_agent_cut_is_shipped_with_the_right_offsets(disk, path):
    data = noise(10 * LIMIT)

    async def scene(shipper):
        append(path, data[: 5 * LIMIT])
        bound(path, LIMIT)
        append(path, data[5 * LIMIT : 5 * LIMIT + 100])
        shipper.add(1, path)
        shipper.finish(1, 5 * LIMIT + 100)

    sink = play(scene, limit=2 * LIMIT, head=LIMIT, tail=2 * LIMIT)
    for offset, part in sink.text():
        assert part == data[offset : offset + len(part)]
    offset, part = sink.text()[-1]
    assert offset + len(part) == 5 * LIMIT + 100
    assert sink.finals == {1: 5 * LIMIT + 100}


def test_a_running_output_is_cut_while_nothing_can_be_shipped(disk, path):
    async def scene(shipper):
        shipper.pause()
        shipper.add(1, path)
        for step in range(20):
            append(path, noise(LIMIT, step))
            shipper.ship()
            assert os.stat(path).st_blocks * 512 <= 2 * LIMIT + LIMIT // 16 + 2 * 4096

    assert play(scene, limit=LIMIT).chunks == []


def test_pause_keeps_the_rest_for_later(path):
    data = noise(2 << 20)

    async def scene(shipper):
        append(path, data)
        shipper.add(1, path)
        sink = shipper._emit
        sink.pause_after = 2
        shipper.finish(1, len(data))
        shipper.ship()
        assert len(sink.chunks) == 2
        assert shipper._sources[1].fd < 0, "a backlog holds no descriptors"
        sink.pause_after = None
        shipper.resume()
        shipper.ship()

    sink = play(scene)
    assert sink.text() == [(0, data)]
    assert sink.finals == {1: len(data)}


def test_rewind_ships_again_what_got_lost(path):
    async def scene(shipper):
        shipper.add(1, path)
        append(path, b"0123456789")
        shipper.ship()
        shipper.rewind(1, 4)
        shipper.rewind(2, 4)  # unknown
        shipper.ship()
        shipper.finish(1, 10)

    assert play(scene).chunks == [(1, 0, b"0123456789"), (1, 4, b"456789"), (1, 10, b"")]


def test_goes_on_where_an_earlier_one_stopped(path):
    async def scene(shipper):
        append(path, b"0123456789")
        shipper.add(1, path, sent=6)
        shipper.finish(1, 10)

    assert play(scene).chunks == [(1, 6, b"6789")]


def test_an_output_that_vanished_still_ends(path):
    async def scene(shipper):
        shipper.add(1, path)
        append(path, b"0123")
        shipper.ship()
        shipper.pause()
        append(path, b"4567")
        shipper.finish(1, 8)
        os.unlink(path)
        shipper.resume()
        shipper.ship()

    sink = play(scene)
    assert sink.finals == {1: 8}


def test_a_task_that_cuts_its_own_output_harms_nobody(path):
    async def scene(shipper):
        shipper.add(1, path)
        append(path, b"0123456789")
        shipper.ship()
        os.truncate(path, 2)
        shipper.ship()
        shipper.finish(1, 2)

    assert play(scene).finals == {1: 10}


def test_one_turn_is_bounded_and_everybody_has_one(tmp_path):
    data = noise(1 << 20)
    paths = [str(tmp_path / str(fence)) for fence in range(20)]

    async def scene(shipper):
        for fence, path in enumerate(paths):
            append(path, data)
            shipper.add(fence, path)
        sink = shipper._emit
        assert not shipper.ship()
        assert sum(len(chunk) for _, _, chunk in sink.chunks) <= 9 << 20
        first = {fence for fence, _, _ in sink.chunks}
        shipper.ship()
        second = {fence for fence, _, _ in sink.chunks} - first
        assert len(first) >= 8 and len(second) >= 7
        assert shipper.ship()

    sink = play(scene)
    assert all(sink.text(fence) == [(0, data)] for fence in range(20))


def test_the_timer_runs_while_there_are_attempts_and_only_then(path):
    async def scene(shipper):
        loop = asyncio.get_running_loop()
        assert shipper._timer is None
        append(path, b"hello")
        shipper.add(1, path)
        sink = shipper._emit
        deadline = loop.time() + 10
        while not sink.chunks:
            assert loop.time() < deadline
            await asyncio.sleep(0.001)
        shipper.finish(1, 5)
        while shipper._timer is not None:
            assert loop.time() < deadline
            await asyncio.sleep(0.001)

    assert play(scene, interval=0.001).finals == {1: 5}


def test_gap_of_a_file_that_never_had_one(path):
    append(path, b"")
    assert read_gap(path) is None
    assert Gap(1, 5).moved == 0 and Gap(1, 5, is_closed=True).moved == 4


# ---------------------------------------------------------------- parts of it


def test_a_part_begins_behind_what_was_dropped(disk, path):
    written = noise(200_000)
    append(path, written)
    assert read_part(path, 150_000, 100) == (150_000, written[150_000:150_100])
    assert read_part(path, 200_000, 100) == (200_000, b"")
    gap = bound(path, 65536)
    assert read_part(path, gap.start - 10, 100) == (gap.start - 10, written[gap.start - 10 : gap.start])
    assert read_part(path, gap.start, 100) == (gap.end, written[gap.end : gap.end + 100])
    assert read_part(path, gap.end - 1, 100) == (gap.end, written[gap.end : gap.end + 100])
    assert read_part(path, gap.end + 5, 100) == (gap.end + 5, written[gap.end + 5 : gap.end + 105])


def test_a_cut_while_a_part_is_read_shows_no_zeros(path, monkeypatch):
    append(path, noise(200_000))
    read = os.pread

    def cut_first(fd, size, offset):
        monkeypatch.setattr(os, "pread", read)
        bound(path, 65536)
        return read(fd, size, offset)

    monkeypatch.setattr(os, "pread", cut_first)
    start, data = read_part(path, 100_000, 100)
    gap = read_gap(path)
    assert start == gap.end > 100_000 and data == noise(200_000)[start : start + 100]
