"""Files by content address: project archives that clients bring and workers fetch.

A file is written beside its place and moved there when its SHA-256 is what its name says. The master never opens
what is in it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from titan_fast.errors import BadMessage, NoSuchBlob, TooLarge

PIECE = 4 << 20
"""Bytes of a file in one frame."""
MAX_UNFINISHED = 16
"""Files that one connection may be bringing at a time."""


def is_digest(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


class BlobStore:
    """The folder ``blobs`` of the state directory."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._open: dict[tuple[object, str], tuple[BinaryIO, Path, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()

    def path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise BadMessage(f"'{digest[:80]}' is not a SHA-256 address", field="digest")
        return self._folder / digest[:2] / digest

    def size(self, digest: str) -> int:
        """-1 when it is not held."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return -1

    def put(self, owner: object, digest: str, offset: int, size: int, data: bytes) -> int:
        """One piece, in order. Returns the size held: that of the whole file with the last piece, else -1.

        Raises:
            BadMessage: out of order, or the content is not what the address says.
            TooLarge: over the project limit.
        """
        place = self.path(digest)
        if size > self._limit:
            raise TooLarge(
                f"a file of {size} bytes, at most {self._limit} are taken",
                hint="leave files out with .titanignore, or raise limits.project",
            )
        key = (owner, digest)
        if offset == 0:
            self.drop(owner, digest)
            if sum(1 for known, _ in self._open if known is owner) >= MAX_UNFINISHED:
                raise TooLarge(f"more than {MAX_UNFINISHED} unfinished files on one connection")
            part = self._folder / f"{digest}.{id(owner):x}.part"
            self._open[key] = (part.open("wb"), part, 0)
        if key not in self._open:
            raise BadMessage("a piece without a beginning", field="offset")
        file, part, at = self._open[key]
        if offset != at or at + len(data) > size or (not data and size):
            self.drop(owner, digest)
            raise BadMessage(f"a piece at {offset} of {size} bytes, {at} was next", field="offset")
        file.write(data)
        at += len(data)
        self._open[key] = (file, part, at)
        if at < size:
            return -1
        file.flush()
        os.fsync(file.fileno())
        file.close()
        del self._open[key]
        with part.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if found != digest:
            part.unlink()
            raise BadMessage(f"the content has the address {found}, not {digest}", field="digest")
        place.parent.mkdir(exist_ok=True)
        part.replace(place)
        return size

    def drop(self, owner: object, digest: str | None = None) -> None:
        """Forget unfinished files of an owner that went away."""
        for key in [key for key in self._open if key[0] is owner and digest in (None, key[1])]:
            file, part, _ = self._open.pop(key)
            file.close()
            part.unlink(missing_ok=True)

    def get(self, digest: str, offset: int) -> tuple[bytes, int]:
        """(piece, size of the whole file). Raises NoSuchBlob."""
        try:
            with self.path(digest).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if offset >= size:
                    return b"", size
                file.seek(offset)
                return file.read(PIECE), size
        except FileNotFoundError:
            raise NoSuchBlob(digest) from None
