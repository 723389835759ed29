"""Room on the disk of the state: when it gets short nothing new is promised, and what was accepted is finished.

Two reserves. Work is refused while less than ``free_space`` (or four times what waits for its commit) is free. And
should the disk be full all the same, because others write there, too, a ballast file is given up: its room is what
the store needs to commit what was accepted. Knows file systems and numbers, nothing of runs or messages.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from titan_fast.errors import DiskFull
from titan_fast.model.units import format_size

BALLAST = 64 << 20
"""Bytes."""
LOOK_INTERVAL = 0.25
"""Seconds for which a look at the free space is good."""
RETRY_INTERVAL = 10.0
"""Seconds until the ballast is tried again when making it failed although there seemed to be room."""

_FACTOR = 4
"""Bytes a queued byte may take: in the log of the store, in its tables, and in what they need to grow."""
_BLOCK = 1 << 20
_NEVER = float("-inf")

log = logging.getLogger("titan_fast.space")


class FileSystem(Protocol):
    """What is read of ``os.statvfs``."""

    @property
    def f_bavail(self) -> int: ...
    @property
    def f_frsize(self) -> int: ...


class Space:
    """The file system of the state directory. `check` is for the loop; `release` and `restore` for the committer."""

    def __init__(
        self,
        folder: Path,
        reserve: int,
        ballast: int = BALLAST,
        *,
        clock: Callable[[], float] = time.monotonic,
        statvfs: Callable[[Path], FileSystem] = os.statvfs,
    ) -> None:
        """Makes nothing yet: call `restore` at the start.

        Args:
            folder: the state directory; it exists.
            reserve: bytes that must be free to accept anything (the setting ``store.free_space``).
            ballast: bytes to hold back for a full disk; 0: none.
            clock, statvfs: what time it is and what is free, for tests.
        """
        self._folder = folder
        self._reserve = reserve
        self._ballast_size = ballast
        self._ballast = folder / "ballast"
        self._clock = clock
        self._statvfs = statvfs
        self._looked_at = _NEVER
        self._free = 0
        self._has_ballast = False
        self._is_given_up = False
        self._is_short = False
        self._is_told = False
        self._try_again_at = _NEVER

    @property
    def free(self) -> int:
        """Bytes that are free for us, as of at most `LOOK_INTERVAL` ago."""
        now = self._clock()
        if now - self._looked_at >= LOOK_INTERVAL:
            found = self._statvfs(self._folder)
            self._free, self._looked_at = found.f_bavail * found.f_frsize, now
        return self._free

    # ------------------------------------------------------------ the loop's

    def check(self, queued: int, upload: int = 0) -> None:
        """Before anything new is accepted: a submit, a key, a piece of a file.

        Args:
            queued: bytes that were accepted and wait for their commit.
            upload: bytes of a file that are still to come; they are needed on top.

        Raises:
            DiskFull: there is too little room; it is accepted again once there is enough.
        """
        # What the ballast left behind is for what was accepted before, not for more.
        reserve = max(self._reserve, 2 * self._ballast_size if self._is_given_up else 0)
        free = self.free
        self._tell(free, reserve)
        needed = max(reserve, _FACTOR * queued) + upload
        if free < needed:
            raise DiskFull(
                f"{format_size(free)} are free in {self._folder}, {format_size(needed)} are needed to accept this",
                hint="free some space there and try again; what was accepted goes on meanwhile. How much stays free is "
                "the setting store.free_space",
            )

    def _tell(self, free: int, reserve: int) -> None:
        """The operator hears of it twice: when it gets short and when it is over."""
        if (free < reserve) != self._is_short:
            self._is_short = not self._is_short
            what = "nothing new is accepted until more is" if self._is_short else "work is accepted again"
            log.warning("%s are free in %s: %s", format_size(free), self._folder, what)

    # ------------------------------------------------------------ the committer's

    def release(self) -> bool:
        """The disk is full: give the ballast up. False: there is none to give."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        self._has_ballast = False
        self._is_given_up = True
        self._looked_at = _NEVER
        log.warning("%s is full: gave up %s to finish what was accepted", self._folder, self._ballast)
        return True

    def restore(self) -> bool:
        """Make the ballast, at the start or after it was given up, once there is room for it twice. Cheap to call after
        every commit. Returns whether it is there."""
        if self._has_ballast or not self._ballast_size or self._clock() < self._try_again_at:
            return self._has_ballast
        self._has_ballast = self._find() or (self.free >= 2 * self._ballast_size and self._make())
        if self._has_ballast:
            self._is_given_up = False
        elif not (self._is_given_up or self._is_told):
            self._is_told = True
            log.warning("no room for %s (%s): going on without", self._ballast, format_size(self._ballast_size))
        return self._has_ballast

    def _find(self) -> bool:
        """The ballast of the last start. What is no whole one goes."""
        try:
            found = self._ballast.stat()
        except FileNotFoundError:
            return False
        if found.st_size == self._ballast_size and found.st_blocks * 512 >= self._ballast_size:
            return True
        self._ballast.unlink()
        self._looked_at = _NEVER
        return False

    def _make(self) -> bool:
        self._looked_at = _NEVER
        try:
            with self._ballast.open("wb", buffering=0) as file:
                _allocate(file.fileno(), self._ballast_size)
        except OSError:
            self._ballast.unlink(missing_ok=True)
            self._try_again_at = self._clock() + RETRY_INTERVAL
            return False
        return True


def _allocate(fd: int, size: int) -> None:
    """Blocks, not a promise of them: where they cannot be asked for they are written."""
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        block = os.urandom(min(size, _BLOCK))  # zeros might be stored as a hole
        while size > 0:
            size -= os.write(fd, block[:size])
