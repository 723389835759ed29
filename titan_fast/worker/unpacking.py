"""Unpacking a project's archive. It comes from a client, so nothing in it is trusted.

No absolute paths, no ``..``, no links, no devices; entries and bytes are counted while writing, and whatever the
archive says, nothing is written outside the target folder.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from titan_fast.errors import ProjectError

if TYPE_CHECKING:
    import tarfile

MAX_PROJECT_BYTES = 1 << 30
"""Bytes of one project, unpacked."""
MAX_PROJECT_ENTRIES = 100_000
"""Files and folders of one project."""
_READ = 1 << 20
_MAX_RECORD = 1 << 20
_CONTIGUOUS = b"7"
"""A type of entry that nobody writes any more."""


class _Forward:
    """An archive as tarfile may see it: read once from front to end, no record longer than memory should hold."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_RECORD:
            raise ProjectError("the project archive has a header that is too long")
        data = self._file.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> None:
        if place < self._at:
            raise ProjectError("the project archive leads back into itself")
        self._at = place
        self._file.seek(place)


class Unpacking:
    """Writes the entries of one archive into a new folder, and stops at the first that is not plain."""

    def __init__(self, target: str, max_bytes: int, max_entries: int) -> None:
        self._target = target
        self._bytes_left = max_bytes
        self._entries_left = max_entries
        self._limits = f"{max_bytes:,} bytes and {max_entries:,} entries are allowed"
        self._folders = {""}

    def run(self, archive: BinaryIO) -> None:
        import tarfile  # with all it brings: most agents never unpack anything

        os.mkdir(self._target, 0o700)
        source = _Forward(archive)
        try:
            tar = tarfile.TarFile(fileobj=source, mode="r")  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
                self._add(member, source)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise ProjectError(f"the project archive cannot be read: {error}") from error

    def _add(self, member: tarfile.TarInfo, source: _Forward) -> None:
        parts = self._parts_of(member.name)
        if member.isdir():
            self._make_folders(parts)
        elif member.isreg() and not member.issparse() and member.type != _CONTIGUOUS:
            if not parts:
                raise ProjectError("the project archive has a file without a name")
            self._make_folders(parts[:-1])
            self._count(1)
            source.seek(member.offset_data)
            self._write(member, "/".join(parts), source)
        else:
            raise ProjectError(f"the project archive has an entry that is no file or folder: {member.name!r}")

    @staticmethod
    def _parts_of(name: str) -> list[str]:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise ProjectError(f"the project archive has an entry that leads outside of it: {name!r}")
        return [part for part in parts if part not in ("", ".")]

    def _count(self, entries: int, size: int = 0) -> None:
        self._entries_left -= entries
        self._bytes_left -= size
        if self._entries_left < 0 or self._bytes_left < 0:
            raise ProjectError(f"the project is too large to be unpacked: {self._limits}")

    def _make_folders(self, parts: list[str]) -> None:
        name = ""
        for part in parts:
            name = f"{name}/{part}" if name else part
            if name not in self._folders:
                self._count(1)
                try:
                    os.mkdir(f"{self._target}/{name}", 0o755)
                except FileExistsError:
                    raise ProjectError(f"the project archive has {name!r} as a file and as a folder") from None
                self._folders.add(name)

    def _write(self, member: tarfile.TarInfo, name: str, source: _Forward) -> None:
        if member.size < 0:
            raise ProjectError(f"the project archive has an entry of negative size: {name!r}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(f"{self._target}/{name}", flags, 0o755 if member.mode & 0o111 else 0o644)
        except FileExistsError:
            raise ProjectError(f"the project archive has {name!r} twice") from None
        with open(fd, "wb", buffering=0) as file:
            left = member.size
            while left:
                data = source.read(min(left, _READ))
                if not data:
                    raise ProjectError(f"the project archive ends in the middle of {name!r}")
                self._count(0, len(data))
                left -= len(data)
                while data:
                    data = data[file.write(data) :]
