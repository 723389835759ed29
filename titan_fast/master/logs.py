"""The output of attempts as the master keeps it: the first and the last part of each, in files by run and fence.

The files are the truth, and what is in memory is a bounded copy of their sizes: a restarted master, an attempt that
fell out of the copy and a write that failed half-way are all found again the same way. Nothing here is fsynced: a
process that is killed loses no output, a power cut may lose the last seconds. Output is no promise; results are.

``<run>/<fence>.head`` holds bytes 0 … n. ``<run>/<fence>.tail`` begins with the offset (8 bytes) of what follows it,
so that keeping the end never moves the beginning. A tail always has a head beside it, if need be an empty one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import threading
from collections.abc import Container, Iterable
from pathlib import Path

import msgspec

READ_PIECE = 256 << 10
"""Bytes of output in one answer."""
KNOWN_LIMIT = 4096
"""Attempts whose sizes are kept in memory."""

_OFFSET = 8


class _Sizes(msgspec.Struct, gc=False):
    """What is kept of one attempt: bytes 0 … head, and tail … end."""

    head: int = 0
    tail: int = -1
    """Offset of the first byte in the tail file; -1: there is none."""
    end: int = 0
    """Everything before it was kept or is lost: the next piece is expected here."""


class LogStore:
    """The folder ``logs`` of the state directory. Used by one thread; nothing waits for a removal."""

    def __init__(self, folder: Path, head: int, tail: int, *, fresh: bool) -> None:
        """
        Args:
            head: bytes kept of an output's beginning.
            tail: bytes kept of its end, at least; up to twice as many before the older half goes.
            fresh: the store remembers no runs and numbers them from the start: remove what is there.
        """
        self._folder = folder
        self._head_limit = head
        self._tail_limit = tail
        self._known: dict[str, _Sizes] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._gone = f"gone-{secrets.token_hex(4)}-"
        self._removals = itertools.count()
        if fresh:
            self.sweep(())

    # ------------------------------------------------------------ writing

    def append(self, run: int, fence: int, offset: int, data: bytes) -> None:
        """One piece. What is here already (a repeat after a reconnect) is recognised by its offset and left out.

        Raises:
            OSError: a full disk, mostly. What was kept before can be read, and later pieces are taken.
        """
        if not data:
            return
        stem = self._stem(run, fence)
        # It is known again when all is written: after a failure the files say how far that got.
        sizes = self._known.pop(stem, None)
        if sizes is None:
            # Most attempts write once, and little. So this is taken for the first piece: one file, made and written.
            first = data[: self._head_limit] if offset == 0 else b""
            sizes = _Sizes(len(first), -1, len(first)) if _begin(stem, first) else _measure(stem)
        if offset < sizes.end:
            data = data[sizes.end - offset :]
            offset = sizes.end
        room = self._head_limit - sizes.head
        if data and sizes.tail < 0 and offset == sizes.end and room > 0:
            part = data[:room]
            _write(stem + ".head", part)
            sizes.head = sizes.end = offset = offset + len(part)
            data = data[room:]
        if data:
            self._append_tail(stem, sizes, offset, data)
        self._remember(stem, sizes)

    def _append_tail(self, stem: str, sizes: _Sizes, offset: int, data: bytes) -> None:
        if sizes.tail < 0 or offset != sizes.end:
            # The first piece, or one behind a gap: then what was kept of the end so far is the middle now.
            _replace_tail(stem, offset, data)
            sizes.tail = offset
        else:
            _write(stem + ".tail", data)
        sizes.end = offset + len(data)
        if sizes.end - sizes.tail > 2 * self._tail_limit:
            start = sizes.end - self._tail_limit
            _replace_tail(stem, start, _read(stem + ".tail", _OFFSET + start - sizes.tail, self._tail_limit))
            sizes.tail = start

    # ------------------------------------------------------------ reading

    def end(self, run: int, fence: int) -> int:
        """The offset behind the last byte that is here; 0 when nothing is."""
        return self._sizes(run, fence).end

    def read(self, run: int, fence: int, offset: int) -> tuple[int, bytes]:
        """(where it starts, bytes) of the next kept piece at or after ``offset``; no bytes when that is the end."""
        sizes = self._sizes(run, fence)
        if offset >= sizes.end:
            return offset, b""
        stem = self._stem(run, fence)
        if offset < sizes.head:
            return offset, _read(stem + ".head", offset, min(READ_PIECE, sizes.head - offset))
        offset = max(offset, sizes.tail)
        return offset, _read(stem + ".tail", _OFFSET + offset - sizes.tail, READ_PIECE)

    def last_lines(self, run: int, fence: int, lines: int) -> int:
        """The offset from which the last ``lines`` lines can be read; it never looks further back than `READ_PIECE`
        or across a hole."""
        sizes = self._sizes(run, fence)
        if lines == 0:
            return sizes.end
        start = max(sizes.tail if sizes.tail > sizes.head else 0, sizes.end - READ_PIECE)
        text = self._from(run, fence, start)
        cut = len(text) - text.endswith(b"\n")
        for _ in range(lines):
            cut = text.rfind(b"\n", 0, cut)
            if cut < 0:
                break
        return start + cut + 1

    def tail(self, run: int, fence: int, lines: int = 20, limit: int = 4000) -> str:
        """The last lines as text, for messages; at most ``limit`` bytes of them."""
        offset = max(self.last_lines(run, fence, lines), self.end(run, fence) - limit)
        return self._from(run, fence, offset).decode("utf-8", "replace")

    def _from(self, run: int, fence: int, offset: int) -> bytes:
        """Everything from ``offset`` on."""
        pieces: list[bytes] = []
        while True:
            offset, data = self.read(run, fence, offset)
            if not data:
                return b"".join(pieces)
            pieces.append(data)
            offset += len(data)

    # ------------------------------------------------------------ what is known

    def _stem(self, run: int, fence: int) -> str:
        return f"{self._folder}/{run}/{fence}"

    def _sizes(self, run: int, fence: int) -> _Sizes:
        stem = self._stem(run, fence)
        sizes = self._known.pop(stem, None) or _measure(stem)
        if sizes.end:
            self._remember(stem, sizes)
        return sizes

    def _remember(self, stem: str, sizes: _Sizes) -> None:
        """As the one used last; the one that was not used for longest is forgotten for it."""
        self._known[stem] = sizes
        if len(self._known) > KNOWN_LIMIT:
            del self._known[next(iter(self._known))]

    # ------------------------------------------------------------ removing

    def forget_runs(self, runs: Iterable[int]) -> threading.Thread | None:
        """Remove the output of runs: out of sight now, off the disk by a thread. Returns it; None: nothing to do."""
        return self._remove(map(str, runs))

    def sweep(self, known: Container[int]) -> threading.Thread | None:
        """At the start: remove the output of all runs but the ``known`` ones, and what a removal left over when the
        process ended. Returns as `forget_runs`."""
        names = [name for name in os.listdir(self._folder) if not name.startswith(self._gone)]
        return self._remove(name for name in names if not (name.isdecimal() and int(name) in known))

    def _remove(self, names: Iterable[str]) -> threading.Thread | None:
        # A name is free again at once, however long it takes to remove what it stood for. A new name and not another
        # folder: on a full disk there may be no room for one.
        moved = []
        for name in names:
            place = self._folder / f"{self._gone}{next(self._removals)}"
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).rename(place)
                moved.append(place)
        if not moved:
            return None
        self._known.clear()
        thread = threading.Thread(target=_remove_all, args=(moved,), name="logs-removal", daemon=True)
        thread.start()
        return thread


# ---------------------------------------------------------------- files


def _measure(stem: str) -> _Sizes:
    """What the files of an attempt hold."""
    try:
        head = os.stat(stem + ".head").st_size
    except FileNotFoundError:
        return _Sizes()
    try:
        fd = os.open(stem + ".tail", os.O_RDONLY)
    except FileNotFoundError:
        return _Sizes(head, -1, head)
    try:
        start, size = os.read(fd, _OFFSET), os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size < _OFFSET:
        return _Sizes(head, -1, head)  # a power cut came before its first bytes
    tail = int.from_bytes(start)
    return _Sizes(head, tail, tail + size - _OFFSET)


def _begin(stem: str, data: bytes) -> bool:
    """Make the head file of an attempt; False when there is one."""
    try:
        _write(stem + ".head", data, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        _write(stem + ".head", data, os.O_CREAT | os.O_EXCL)
    return True


def _write(path: str, data: bytes, flags: int = 0) -> None:
    """At the end of a file. It is not made unless the flags say so: what vanished must not begin in its middle."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | flags, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _replace_tail(stem: str, start: int, data: bytes) -> None:
    """In one step: whatever happens, the tail is the old one or the new one."""
    new = stem + ".new"
    try:
        _write(new, start.to_bytes(_OFFSET) + data, os.O_CREAT | os.O_TRUNC)
        os.replace(new, stem + ".tail")
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _read(path: str, position: int, size: int) -> bytes:
    """Of a file; nothing when somebody removed it."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(fd, size, position)
    finally:
        os.close(fd)


def _remove_all(places: list[Path]) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
