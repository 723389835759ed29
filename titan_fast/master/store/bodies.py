"""Large graphs as files by content, beside the database. A file is whole, and on the disk, before a row names it.

Knows bytes and addresses; which of them are still named is the store's to say.
"""

from __future__ import annotations

import fcntl
import os
from hashlib import sha256
from pathlib import Path
from threading import Lock

from titan_fast.errors import StoreFailed


class Bodies:
    """A folder of files whose names are the SHA-256 of what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stay = Lock()
        """Held while somebody copies files: none may go meanwhile."""
        self.has_strays = True
        """There may be files nobody names: unknown at the start, and after runs are forgotten."""

    def make(self) -> None:
        """The folder itself: that it is there says that there was a state beside it."""
        self.folder.mkdir(exist_ok=True, mode=0o700)

    def keep(self, digest: str, body: bytes) -> None:
        """Returns when the file is safe. Raises OSError."""
        place = self.folder / digest
        if place.exists():
            return
        write_safely(place, body)

    def read(self, digest: str) -> bytes:
        """Raises StoreFailed: it is not there, or damaged."""
        place = self.folder / digest
        try:
            body = place.read_bytes()
        except OSError as error:
            raise StoreFailed(f"{place} cannot be read: {error.strerror}", hint="restore a backup") from None
        if sha256(body).hexdigest() != digest:
            raise StoreFailed(f"{place} is damaged", hint="restore a backup")
        return body

    def sweep(self, named: set[str]) -> None:
        """Remove what nobody names. Not while somebody is copying: then ``has_strays`` stays, for the next time."""
        if not self.stay.acquire(blocking=False):
            return
        try:
            for place in self.folder.iterdir() if self.folder.exists() else ():
                if place.name not in named:
                    place.unlink()
        finally:
            self.stay.release()
        self.has_strays = False


def write_safely(place: Path, content: bytes) -> None:
    """All of the content under this name, on the disk, or nothing. Raises OSError."""
    part = place.with_name(place.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    part.replace(place)
    sync_folder(place.parent)


def sync(fd: int) -> None:
    """What was written is on the disk, where the system allows it also out of the disk's own cache."""
    full: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def sync_file(place: Path) -> None:
    with place.open("rb") as file:
        sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """What was created, renamed or removed in a folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
