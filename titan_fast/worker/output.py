"""The output of attempts: kept short on disk, read back with the cut marked, shipped while it grows.

An attempt's output is one file that its processes append to. Offsets here are those of everything ever written:
when the middle is dropped they stay as they are. What was dropped stands in a small file beside it (``.gap``), so
whoever reads later knows. Knows nothing of sockets or of the master; one `Shipper` per worker owns the cutting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import Callable
from typing import Protocol

import msgspec

OUTPUT_NAME = "output"
"""In the directory of its attempt."""
OUTPUT_LIMIT = 64 << 20
"""Bytes of an attempt's output that stay on disk: the first half and the last half."""
SHIP_HEAD = 1 << 20
"""The beginning of an output is always shipped, up to here."""
SHIP_TAIL = 1 << 20
"""After that at most the newest so many bytes are, each time."""
SHIP_INTERVAL = 0.2

_BLOCK = 4096
_SMALLEST_LIMIT = 4 * _BLOCK
_CHUNK = 256 << 10
_TURN = 8 << 20
"""Bytes read in one turn of the loop; the rest waits for the next, so that nothing else is held up."""
_BACKLOG_PAUSE = 0.01
_GAP_SUFFIX = ".gap"
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Gap(msgspec.Struct, frozen=True, gc=False):
    """The bytes of an output that are no longer there: from ``start`` up to ``end``."""

    start: int
    end: int
    is_closed: bool = False
    """The file system cannot punch holes: what came after the gap stands directly behind what came before it."""

    @property
    def moved(self) -> int:
        """How much earlier in the file than its offset says the part after the gap stands."""
        return self.end - self.start if self.is_closed else 0


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Something read back from an output."""

    offset: int
    data: bytes
    """With a line that says so where bytes were dropped."""
    next: int
    """Where to go on reading."""
    total: int
    """Bytes written so far in all, dropped ones included."""


# ---------------------------------------------------------------- one file


def bound(path: str, limit: int = OUTPUT_LIMIT) -> Gap | None:
    """Drop the middle of an output that has grown past ``limit`` bytes; the writers do not notice.

    The first and the last half of the limit stay. Where no holes can be punched the last half is moved forward
    instead; what is written in that moment may be lost, which is still better than a full disk.

    Returns:
        What is missing from the file now; None: nothing.
    """
    half = max(limit, _SMALLEST_LIMIT) // 2 // _BLOCK * _BLOCK
    gap = read_gap(path)
    with _opened(path, os.O_RDWR | os.O_APPEND) as fd:
        before = gap if gap is not None else Gap(half, half)
        total = os.fstat(fd).st_size + before.moved
        end = (total - half) // _BLOCK * _BLOCK
        if total - (before.end - before.start) <= limit or end <= before.end:
            return gap
        if not before.is_closed:
            punched = Gap(before.start, end)
            # The note first: a reader must never take the zeros of a hole for output.
            _write_gap(path, punched)
            if _punch(fd, before.end, end - before.end):
                return punched
        closed = Gap(before.start, end, is_closed=True)
        tail = os.pread(fd, total - end, end - before.moved)
        os.ftruncate(fd, before.start)
        _write_gap(path, closed)
        os.write(fd, tail)
        return closed


def note(path: str, text: str) -> None:
    """A line of ours at the end of an attempt's output; a full disk is no reason to fail."""
    with contextlib.suppress(OSError), _opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, f"\n[titan-fast] {text}\n".encode("utf-8", "replace"))


def total_size(fd: int, path: str) -> int:
    """Bytes ever written to an open output, dropped ones included."""
    size = os.fstat(fd).st_size
    if size < _SMALLEST_LIMIT // 2:
        return size  # shorter than anything that was ever cut
    gap = read_gap(path)
    return size if gap is None else size + gap.moved


def read_output(path: str, offset: int, size: int) -> Piece:
    """Read an output back, with a line of text where bytes were dropped.

    Args:
        offset: where to begin; negative counts from the end.
        size: bytes wanted; the line about dropped bytes comes on top.

    Raises:
        FileNotFoundError: there is no such output (any more).
    """
    gap = read_gap(path)
    with _opened(path, os.O_RDONLY) as fd:
        while True:
            piece = _read_piece(fd, gap, offset, size)
            now = read_gap(path)
            if now == gap:
                return piece
            gap = now  # cut while we were reading: what we have may be zeros


def _read_piece(fd: int, gap: Gap | None, offset: int, size: int) -> Piece:
    total = os.fstat(fd).st_size + (gap.moved if gap is not None else 0)
    position = offset = max(0, total + offset) if offset < 0 else offset
    parts: list[bytes] = []
    if gap is not None and position < gap.start:
        part = os.pread(fd, min(size, gap.start - position), position)
        parts.append(part)
        position += len(part)
        size -= len(part)
    if gap is not None and gap.start <= position < gap.end and size > 0:
        parts.append(b"\n[titan-fast: %d bytes dropped here]\n" % (gap.end - position))
        position = gap.end
    if size > 0 and position < total:
        part = os.pread(fd, size, position - (gap.moved if gap is not None and position >= gap.end else 0))
        parts.append(part)
        position += len(part)
    return Piece(offset, b"".join(parts), position, total)


def read_part(path: str, offset: int, size: int) -> tuple[int, bytes]:
    """(where it begins, bytes) of what is there at ``offset`` or behind it; no bytes when that is nothing.

    Raises:
        FileNotFoundError: there is no such output (any more).
    """
    gap = read_gap(path)
    with _opened(path, os.O_RDONLY) as fd:
        while True:
            start, wanted, moved = offset, size, 0
            if gap is not None:
                start = gap.end if gap.start <= offset < gap.end else offset
                if start < gap.start:
                    wanted = min(size, gap.start - start)
                else:
                    moved = gap.moved
            data = os.pread(fd, wanted, start - moved)
            now = read_gap(path)
            if now == gap:
                return start, data
            gap = now  # cut while we were reading


def read_gap(path: str) -> Gap | None:
    """What was dropped from an output; None when it is whole."""
    try:
        with _opened(path + _GAP_SUFFIX, os.O_RDONLY) as fd:
            start, end, closed = os.read(fd, 100).split()
    except FileNotFoundError:
        return None
    return Gap(int(start), int(end), closed == b"closed")


def _write_gap(path: str, gap: Gap) -> None:
    """Replaced in one step: a reader sees the old one or the new one."""
    new = path + _GAP_SUFFIX + ".new"
    with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        os.write(fd, b"%d %d %s\n" % (gap.start, gap.end, b"closed" if gap.is_closed else b"open"))
    os.replace(new, path + _GAP_SUFFIX)


class _opened(contextlib.AbstractContextManager[int]):
    """A descriptor for the time of a ``with``; never follows a link that a task put in place of the file."""

    def __init__(self, path: str, flags: int) -> None:
        self._fd = os.open(path, flags | _SAFELY, 0o600)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _punch(fd: int, offset: int, length: int) -> bool:
    """Give the blocks of a range back, the size staying as it is; False where that cannot be done."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while True:
        number = fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)
        if number != errno.EINTR:
            return number == 0


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """fallocate(2), which Python lacks, as a function that returns 0 or an errno; looked up when first needed."""
    import ctypes

    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        return ctypes.get_errno() if function(fd, mode, offset, length) < 0 else 0

    return call


# ---------------------------------------------------------------- shipping


class Emit(Protocol):
    """Takes one chunk; ``offset`` jumps where something was left out. Must not block."""

    def __call__(self, fence: int, offset: int, data: bytes, final: bool, total: int) -> None: ...


class _Source:
    """The output of one attempt and how far it has been shipped."""

    __slots__ = ("ended", "fd", "fence", "gap", "path", "sent", "told", "total")

    def __init__(self, fence: int, path: str, sent: int) -> None:
        self.fence = fence
        self.path = path
        self.fd = -1
        self.sent = sent
        self.gap: Gap | None = None
        self.ended = False
        self.total = 0
        """Bytes written in all, once it has ended."""
        self.told = sent > 0
        """Something was emitted, so the end must be, too."""

    def size(self) -> int:
        """Bytes written so far; opens the file when there is something in it."""
        if self.fd < 0:
            try:
                if not self.ended and os.stat(self.path, follow_symlinks=False).st_size == 0:
                    return 0
                self.fd = os.open(self.path, os.O_RDONLY | _SAFELY)
            except OSError:
                return 0
            if os.fstat(self.fd).st_size >= _SMALLEST_LIMIT // 2:
                self.gap = read_gap(self.path)  # cut before: by an earlier agent, or in an earlier session
        return os.fstat(self.fd).st_size + (self.gap.moved if self.gap is not None else 0)

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Up to ``size`` bytes at ``offset``, or behind the gap when that is in it: (offset, bytes)."""
        moved = 0
        if self.gap is not None:
            if self.gap.start <= offset < self.gap.end:
                offset = self.gap.end
            if offset < self.gap.start:
                size = min(size, self.gap.start - offset)
            else:
                moved = self.gap.moved
        return offset, os.pread(self.fd, size, offset - moved)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Shipper:
    """Reads what running attempts write and hands it on in chunks; cuts outputs that grow too long.

    A timer ticks while there are attempts to look at, and only then. Memory is bounded by one chunk: what cannot be
    handed on (`pause`) stays in the files. An attempt that wrote nothing is never heard of.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        limit: int = OUTPUT_LIMIT,
        interval: float = SHIP_INTERVAL,
        head: int = SHIP_HEAD,
        tail: int = SHIP_TAIL,
    ) -> None:
        """It belongs to the event loop that runs when the first attempt is added.

        Args:
            emit: who takes the chunks; it may call `pause`.
            limit: bytes of each output to keep on disk.
            interval: seconds between looks.
            head: bytes from the beginning that are always shipped.
            tail: bytes behind that, the newest, that are shipped in one look.
        """
        self._emit = emit
        self._limit = limit
        self._interval = interval
        self._head = head
        self._tail = tail
        self._sources: dict[int, _Source] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._turn = 0

    def add(self, fence: int, path: str, sent: int = 0) -> None:
        """An attempt runs and writes to ``path``; ``sent`` bytes of it were shipped already."""
        self._sources[fence] = _Source(fence, path, sent)
        if self._timer is None:
            self._schedule(self._interval)

    def finish(self, fence: int, total: int) -> None:
        """The attempt has ended after ``total`` bytes: ship the rest, now or as soon as it can be."""
        source = self._sources.get(fence)
        if source is None:
            return
        if total == 0 and not source.told:
            self.forget(fence)
            return
        source.ended = True
        source.total = total
        self._turn = _TURN
        self._look_at(source)

    def forget(self, fence: int) -> None:
        """Ship nothing more of it."""
        source = self._sources.pop(fence, None)
        if source is not None:
            source.close()

    def rewind(self, fence: int, offset: int) -> None:
        """What was handed on after ``offset`` got lost on the way: ship it again."""
        source = self._sources.get(fence)
        if source is not None:
            source.sent = min(source.sent, offset)

    def pause(self) -> None:
        """Hand on nothing for now (outputs are still kept short)."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on after `pause`, in the next turn of the loop."""
        self._is_paused = False
        if self._sources:
            self._schedule(0)

    def close(self) -> None:
        """Forget all attempts and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def ship(self) -> bool:
        """Look at every attempt once, as the timer does; False when there is more to ship than fits in one turn."""
        self._turn = _TURN
        sources = list(self._sources.values())
        for index, source in enumerate(sources):
            self._look_at(source)
            if self._turn <= 0:
                # Those that had no turn are first next time.
                rest = sources[index + 1 :] + sources[: index + 1]
                self._sources = {item.fence: item for item in rest if item.fence in self._sources}
                return False
        return True

    def _schedule(self, pause: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _tick(self) -> None:
        self._timer = None
        done = False
        try:
            done = self.ship()
        finally:
            if self._timer is None and any(not item.ended or not self._is_paused for item in self._sources.values()):
                self._schedule(self._interval if done else _BACKLOG_PAUSE)

    def _look_at(self, source: _Source) -> None:
        size = source.size()
        if source.fd < 0 and not source.ended:
            return
        kept = size - (source.gap.end - source.gap.start if source.gap is not None else 0)
        # A running attempt has some leeway, or a slow writer at the limit would have its file cut at every look.
        if kept > self._limit + (0 if source.ended else self._limit // 16):
            with contextlib.suppress(OSError):
                source.gap = bound(source.path, self._limit)
                size = source.size()
        self._hand_on(source, size)
        if source.ended:
            source.close()  # a long backlog must not hold a descriptor for each attempt in it

    def _hand_on(self, source: _Source, size: int) -> None:
        while not self._is_paused and source.sent < size and source.fd >= 0 and self._turn > 0:
            offset, end = source.sent, size
            if offset < self._head:
                end = min(size, self._head)
            elif size - offset > self._tail:
                offset = size - self._tail
            offset, data = source.read(offset, min(_CHUNK, end - offset))
            if not data:
                break  # the task cut its own output
            source.sent = offset + len(data)
            source.told = True
            self._turn -= len(data)
            final = source.ended and source.sent >= size
            if final:
                self.forget(source.fence)
            self._emit(source.fence, offset, data, final, size)
            if final:
                return
        if source.ended and not self._is_paused and self._turn > 0:
            self.forget(source.fence)
            if source.told:
                size = max(size, source.sent, source.total)
                self._emit(source.fence, size, b"", True, size)
