"""The output of attempts as the master keeps it: the first and the last part of each, in files by fence.

Workers ship pieces with their offsets, in order; a jump is a part nobody kept. Head and tail are two files, so that
keeping the end never moves the beginning. Nothing is made for an attempt that wrote nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

READ_PIECE = 256 << 10
"""Bytes of output in one answer."""


class _Log(msgspec.Struct):
    """What is kept of one attempt: bytes 0 … head, and tail_start … end."""

    run: int
    index: int
    head: int = 0
    tail_start: int = 0
    tail_file_start: int = 0
    end: int = 0


class LogStore:
    def __init__(self, folder: Path, history: str, head: int, tail: int) -> None:
        """Fences mean something within one history only: what other histories left in ``folder`` is removed."""
        self._folder = folder / history
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other.name != history:
                shutil.rmtree(other, ignore_errors=True)
        self._head_limit = head
        self._tail_limit = tail
        self._logs: dict[int, _Log] = {}

    def append(self, run: int, index: int, fence: int, offset: int, data: bytes) -> None:
        """One piece. A repeat (after a reconnect) is recognised by its offset and ignored."""
        if not data:
            return
        log = self._logs.get(fence)
        if log is None:
            log = self._logs[fence] = _Log(run, index)
            self._path(log, fence, "head").parent.mkdir(parents=True, exist_ok=True)
        if offset < log.end:
            data = data[log.end - offset :]
            offset = log.end
            if not data:
                return
        if offset == log.head and log.head < self._head_limit:
            part = data[: self._head_limit - log.head]
            with self._path(log, fence, "head").open("ab") as file:
                file.write(part)
            log.head += len(part)
            data, offset = data[len(part) :], offset + len(part)
            log.end = offset
        if data:
            self._append_tail(log, fence, offset, data)

    def _append_tail(self, log: _Log, fence: int, offset: int, data: bytes) -> None:
        path = self._path(log, fence, "tail")
        if offset != log.end or log.tail_start == 0:
            # A gap: what was kept of the end so far is the middle now.
            path.unlink(missing_ok=True)
            log.tail_start = log.tail_file_start = offset
        with path.open("ab") as file:
            file.write(data)
        log.end = offset + len(data)
        if log.end - log.tail_file_start > 2 * self._tail_limit:
            keep = path.read_bytes()[-self._tail_limit :]
            path.write_bytes(keep)
            log.tail_file_start = log.end - len(keep)
        log.tail_start = max(log.tail_start, log.end - self._tail_limit, log.tail_file_start)

    def _path(self, log: _Log, fence: int, part: str) -> Path:
        return self._folder / str(log.run) / f"{fence}.{part}"

    def end(self, fence: int) -> int:
        log = self._logs.get(fence)
        return 0 if log is None else log.end

    def read(self, fence: int, offset: int) -> tuple[int, bytes]:
        """(where it starts, bytes) of the next kept piece at or after ``offset``; no bytes when that is the end."""
        log = self._logs.get(fence)
        if log is None or offset >= log.end:
            return offset, b""
        if offset < log.head:
            with self._path(log, fence, "head").open("rb") as file:
                file.seek(offset)
                return offset, file.read(min(READ_PIECE, log.head - offset))
        offset = max(offset, log.tail_start)
        with self._path(log, fence, "tail").open("rb") as file:
            file.seek(offset - log.tail_file_start)
            return offset, file.read(READ_PIECE)

    def last_lines(self, fence: int, lines: int) -> tuple[int, int]:
        """(offset, bytes dropped before it) from which the last ``lines`` lines can be read."""
        log = self._logs.get(fence)
        if log is None:
            return 0, 0
        start = log.tail_start if log.end > log.head else 0
        at, data = self.read(fence, max(start, log.end - READ_PIECE))
        if lines == 0:
            return log.end, 0
        body = data[:-1] if data.endswith(b"\n") else data
        for _ in range(lines):
            cut = body.rfind(b"\n")
            if cut < 0:
                return at, 0
            body = body[:cut]
        return at + len(body) + 1, 0

    def tail(self, fence: int, lines: int = 20, limit: int = 4000) -> str:
        """The last lines as text, for messages."""
        offset, _ = self.last_lines(fence, lines)
        return self.read(fence, max(offset, self.end(fence) - limit))[1].decode("utf-8", "replace")
