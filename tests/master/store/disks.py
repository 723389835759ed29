"""Disks that fail: SQLite reaches its files through one of these, in the tests alone."""

from __future__ import annotations

import itertools

import apsw

_names = itertools.count()


class FailingDisk(apsw.VFS):
    """The system's own files, until the ``at``-th change (write, truncation or sync, from 1) fails.

    Nothing is really synced: no test cuts the power, and it takes its time.

    Args:
        error: what SQLite is told: ``apsw.FullError`` or ``apsw.IOError``.
        at: which change fails; 0: none.
        lasts: how many changes in a row fail.
        is_torn: half of a write that fails is on the disk all the same.
    """

    def __init__(self, error: type[apsw.Error], at: int, lasts: int = 1, is_torn: bool = False) -> None:
        self.vfs_name = f"failing-{next(_names)}"
        super().__init__(self.vfs_name, "")
        self.error = error
        self.failing = range(at, at + lasts)
        self.is_torn = is_torn
        self.changes = 0
        self.failed = 0

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> FailingFile:
        return FailingFile(self, name, flags)

    def change(self) -> bool:
        """One more change; True when it is to fail."""
        self.changes += 1
        is_failing = self.changes in self.failing
        self.failed += is_failing
        return is_failing


class FailingFile(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: apsw.URIFilename | str | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self.disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.disk.change():
            if self.disk.is_torn:
                super().xWrite(data[: len(data) // 2], offset)
            raise self.disk.error("the write fails")
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        if self.disk.change():
            raise self.disk.error("the truncation fails")
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if self.disk.change():
            # There is no such thing as a sync for which there is no room.
            raise apsw.IOError("the sync fails")
