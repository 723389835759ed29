"""Files by content address: project archives, artifacts, backups. The master never opens what is in them.

A file is written beside its place, hashed as it comes, and moved there when its SHA-256 is what its name says. Nobody
is told that it is held before the file and the folders that lead to it are on the disk. A file's time of change is
when somebody last showed interest in it: wrote it, read it, asked for it. That, and a name in the store, keep it.

The loop only checks; a thread of the store's own writes, in the order of the calls.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Container
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from titan_fast.errors import BadMessage, DiskFull, NoSuchBlob, TooLarge
from titan_fast.model.units import format_size

PIECE = 4 << 20
"""Bytes of a file in one frame."""
MAX_UNFINISHED = 16
"""Files that one connection may be bringing at a time."""


def is_digest(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


class _Upload:
    """A file that is being brought."""

    def __init__(self, part: Path, digest: str, size: int) -> None:
        self.part = part
        self.digest = digest
        self.size = size
        self.at = 0
        """Bytes that were taken."""
        self.written: Future[int] | None = None
        """The newest piece."""
        # From here on the thread's, and `is_broken` its word to the loop.
        self.file: BinaryIO | None = None
        self.hash = hashlib.sha256()
        self.is_broken = False


class BlobStore:
    """The folder ``blobs`` of the state directory."""

    def __init__(self, folder: Path, limit: int) -> None:
        """``limit``: bytes of one file that is brought."""
        self._folder = folder
        self._limit = limit
        self._open: dict[tuple[object, str], _Upload] = {}
        self._thread = ThreadPoolExecutor(1, "blobs")
        self._parts = itertools.count()
        self._moving = threading.Lock()
        """Held while a file comes to its place, goes from it, or is asked for: none of these half."""
        self._arriving: set[str] = set()
        """In their places, and the way there is not on the disk yet."""
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        # The last process may have been killed while files were arriving.
        for known in (folder.parent, folder, *filter(Path.is_dir, folder.iterdir())):
            _sync_folder(known)

    def path(self, digest: str) -> Path:
        """Where a file is, if it is held. Raises BadMessage for what is no address."""
        if not is_digest(digest):
            raise BadMessage(f"'{digest[:80]}' is not a SHA-256 address", field="digest")
        return self._folder / digest[:2] / digest

    # ------------------------------------------------------------ asking

    def size(self, digest: str) -> int:
        """Bytes; -1 when it is not held. Who asks is about to name it: it will not be swept meanwhile."""
        try:
            size = self._touch(digest)
        except FileNotFoundError:
            return -1
        return -1 if digest in self._arriving else size

    def get(self, digest: str, offset: int) -> tuple[bytes, int]:
        """(piece, size of the whole file); no bytes when that is the end. Raises NoSuchBlob."""
        try:
            size = self._touch(digest)
            if offset >= size:
                return b"", size
            with self.path(digest).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), PIECE, offset), size
        except FileNotFoundError:
            raise NoSuchBlob(digest) from None

    def _touch(self, digest: str) -> int:
        path = self.path(digest)
        with self._moving:
            os.utime(path)
        return path.stat().st_size

    # ------------------------------------------------------------ bringing

    def put(self, owner: object, digest: str, offset: int, size: int, data: bytes) -> Future[int]:
        """One piece; each follows the answer to the one before it.

        Args:
            owner: whose upload it is; see `drop`.
            size: bytes of the whole file.

        Returns:
            What to answer once it is done: the size held, which is that of the whole file with the last piece (it is
            safe then) and -1 before. Or BadMessage: the content is not what the address says. DiskFull.

        Raises:
            BadMessage: out of order. TooLarge: over the limit.
        """
        self.path(digest)
        if size > self._limit:
            raise TooLarge(
                f"a file of {size} bytes, at most {self._limit} are taken",
                hint="raise limits.project at the master; what a project does not need can stand in its .titanignore",
            )
        if offset == 0:
            self._begin(owner, digest, size)
        upload = self._open.get((owner, digest))
        if upload is None or upload.is_broken or (upload.written is not None and not upload.written.done()):
            raise BadMessage("a piece without a beginning, or before the answer to the one before it", field="offset")
        if offset != upload.at or upload.at + len(data) > size or size != upload.size or (not data and size):
            self.drop(owner, digest)
            raise BadMessage(f"a piece at {offset} of {size} bytes, {upload.at} was next", field="offset")
        upload.at += len(data)
        if upload.at == size:
            del self._open[owner, digest]
        upload.written = self._thread.submit(self._write, upload, data, upload.at == size)
        return upload.written

    def _begin(self, owner: object, digest: str, size: int) -> None:
        self.drop(owner, digest)
        self._open = {key: upload for key, upload in self._open.items() if not upload.is_broken}
        if sum(1 for known, _ in self._open if known is owner) >= MAX_UNFINISHED:
            raise TooLarge(f"more than {MAX_UNFINISHED} unfinished files on one connection")
        # A number of its own: others may bring the same file.
        part = self._folder / f"{digest}.{next(self._parts)}.part"
        self._open[owner, digest] = _Upload(part, digest, size)

    def drop(self, owner: object, digest: str | None = None) -> None:
        """Forget unfinished files of an owner that went away."""
        for key in [key for key in self._open if key[0] is owner and digest in (None, key[1])]:
            self._thread.submit(_discard, self._open.pop(key))

    def _write(self, upload: _Upload, data: bytes, is_last: bool) -> int:
        try:
            if upload.file is None:
                upload.file = upload.part.open("xb", buffering=0)
            upload.hash.update(data)
            while data:
                data = data[os.write(upload.file.fileno(), data) :]
            if not is_last:
                return -1
            found = upload.hash.hexdigest()
            if found != upload.digest:
                raise BadMessage(f"the content has the address {found}, not {upload.digest}", field="digest")
            _sync(upload.file.fileno())
            upload.file.close()
            self._move_in(upload.part, upload.digest)
            return upload.size
        except (OSError, BadMessage) as error:
            upload.is_broken = True
            _discard(upload)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"no room in {self._folder} for a file of {format_size(upload.size)}",
                    hint="free some space on that disk of the master, then send it again",
                ) from None
            raise

    def adopt(self, path: Path) -> str:
        """Move a file of the same file system in, whatever its size. Returns its address when it is safe there. Takes
        as long as reading it does: not for the loop."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _sync(file.fileno())
        self._move_in(path, digest)
        return digest

    def _move_in(self, path: Path, digest: str) -> None:
        place = self.path(digest)
        place.parent.mkdir(exist_ok=True)
        os.utime(path)
        with self._moving:
            if not place.exists():
                self._arriving.add(digest)
            path.replace(place)
        _sync_folder(place.parent)
        _sync_folder(self._folder)
        self._arriving.discard(digest)

    # ------------------------------------------------------------ forgetting

    def sweep(self, named: Container[str], older_than: float) -> Future[int]:
        """Remove files that nothing names and nobody was interested in for ``older_than`` seconds: how many, once it is
        done. An upload comes before the request that names it, so ``older_than`` must be longer than a client takes
        for that, and than it takes until the store knows."""
        return self._thread.submit(self._sweep, named, older_than)

    def _sweep(self, named: Container[str], older_than: float) -> int:
        before = time.time() - older_than
        removed = 0
        for folder in self._folder.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.name not in named and self._move_out(path, before):
                    removed += 1
        return removed

    def _move_out(self, path: Path, before: float) -> bool:
        part = self._folder / f"{path.name}.{next(self._parts)}.part"
        try:
            with self._moving:
                if path.stat().st_mtime >= before:
                    return False
                path.rename(part)
        except FileNotFoundError:
            return False
        part.unlink()  # a large file takes a while, and nobody may wait for it
        return True


def _discard(upload: _Upload) -> None:
    if upload.file is not None:
        upload.file.close()
        upload.part.unlink(missing_ok=True)


def _sync(fd: int) -> None:
    """Onto the disk itself. Where fsync ends at the drive's own memory (macOS) there is another call for that."""
    full: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
