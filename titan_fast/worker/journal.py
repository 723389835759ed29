"""What the next agent must know to go on where this one is killed: attempts begun, their processes, how they ended.

Append-only, one short write for each event, no fsync: it survives a killed agent, not a power cut. A record is
written before what it tells of can be lost: the beginning before the process, an exit before its number is given
back. A line that is torn or unknown is skipped. Attempts of another boot are gone; the epochs seen are not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from titan_fast.ids import FENCE_SEQUENCE_BITS, Ending
from titan_fast.worker.executors.base import Clocks, Exit

GROWN = 1 << 20
"""Bytes from which on the journal is written anew when most of it is of no use any more."""


class _Record(msgspec.Struct, frozen=True, array_like=True, tag_field="record"):
    """On disk a JSON array: the name of the record, then its fields in this order."""


class Boot(_Record, frozen=True, tag="boot"):
    """The first line: during which run of the system this was written."""

    boot: str


class Epoch(_Record, frozen=True, tag="epoch"):
    """A master told who it is: what it assigns has fences of this epoch."""

    epoch: int
    nonce: str


class Begun(_Record, frozen=True, tag="begun"):
    """An attempt is about to be started."""

    run: int
    spec: int
    index: int
    generation: int
    attempt: int
    fence: int
    task: str
    timeout: float
    grace: float
    at: Clocks


class Spawned(_Record, frozen=True, tag="spawned"):
    """It has a process."""

    fence: int
    pid: int
    at: float
    """Seconds since boot."""


class Stopping(_Record, frozen=True, tag="stopping"):
    """It is being ended, and why."""

    fence: int
    ending: Ending


class Exited(_Record, frozen=True, tag="exited"):
    """Its first process has ended."""

    fence: int
    exit: Exit


class Ended(_Record, frozen=True, tag="ended"):
    """It is over: everything the master is to be told. Times are microseconds, as on the wire."""

    fence: int
    ending: Ending
    code: int
    started: int
    duration: int
    output_size: int
    result: str
    is_file: bool = False
    """``result`` is the address of a file that the master holds; empty: it has to be brought there first."""


class Forgotten(_Record, frozen=True, tag="forgotten"):
    """Acknowledged, or not wanted."""

    fences: tuple[int, ...]


_Any = Boot | Epoch | Begun | Spawned | Stopping | Exited | Ended | Forgotten
_decode = msgspec.json.Decoder(_Any).decode
_encode = msgspec.json.encode


class Past(msgspec.Struct):
    """One attempt as the journal tells it."""

    begun: Begun
    spawned: Spawned | None = None
    stopping: Stopping | None = None
    exited: Exited | None = None
    ended: Ended | None = None


class Storage(Protocol):
    """The bytes of a journal. `append` and `replace` raise OSError and may then have written a part."""

    fd: int
    """Where others may append, too; -1: nobody can."""

    def read(self) -> bytes: ...
    def append(self, data: bytes) -> None: ...
    def replace(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Journal:
    """One per agent. It is a `Recorder` for its executor."""

    def __init__(self, storage: Storage, boot: str) -> None:
        """Reads what is there and writes it anew without what is of no use.

        Args:
            storage: this journal's alone.
            boot: names this run of the system: no process is older.
        """
        self._storage = storage
        self._boot = boot
        self._lines: dict[int, list[bytes]] = {}
        """What the file must hold of each attempt that is not forgotten."""
        self._useful = 0
        """Bytes of those lines."""
        self._size = 0
        self._is_torn = False
        """Something could not be written, so the file says less than `_lines`."""
        self.epochs: dict[int, str] = {}
        """epoch -> nonce: the newest master, and those that assigned what is not forgotten."""
        self.past: dict[int, Past] = {}
        """What an earlier agent left, by fence."""
        self._read()
        with contextlib.suppress(OSError):  # a full disk: the next record tries again
            self._write_anew()

    # ---------------------------------------------------------------- reading

    def _read(self) -> None:
        is_this_boot = False
        for line in self._storage.read().split(b"\n"):
            try:
                record = _decode(line)
            except msgspec.DecodeError:
                continue  # the last line of a killed agent; the empty one at the end
            match record:
                case Boot():
                    is_this_boot = record.boot == self._boot != ""
                case Epoch():
                    self.epochs[record.epoch] = record.nonce
                case Forgotten():
                    for fence in record.fences:
                        self.past.pop(fence, None)
                        self._lines.pop(fence, None)
                case _ if is_this_boot:
                    self._take(record, line)

    def _take(self, record: Begun | Spawned | Stopping | Exited | Ended, line: bytes) -> None:
        if isinstance(record, Begun):
            self.past[record.fence] = Past(record)
            self._lines[record.fence] = []
        past = self.past.get(record.fence)
        if past is None:
            return
        match record:
            case Spawned():
                past.spawned = record
            case Stopping():
                past.stopping = record
            case Exited():
                past.exited = record
            case Ended():
                past.ended = record
        self._lines[record.fence].append(line + b"\n")

    # ---------------------------------------------------------------- what happens

    def welcomed(self, epoch: int, nonce: str) -> None:
        """A master said who it is."""
        if self.epochs.get(epoch) != nonce:
            self.epochs[epoch] = nonce
            with contextlib.suppress(OSError):
                self._append(_encode(Epoch(epoch, nonce)) + b"\n")

    def begun(self, record: Begun) -> None:
        """Before the attempt is started.

        Raises:
            OSError: it cannot be written down (a full disk), so the attempt must not start.
        """
        line = _encode(record) + b"\n"
        self._append(line)
        self._lines[record.fence] = [line]
        self._useful += len(line)

    def spawn_note(self, fence: int) -> tuple[int, bytes] | None:
        """What the new process is to write itself (a `Spawned`, up to its pid) before it runs anything: between its
        start and our own record of it we may be killed."""
        return None if self._storage.fd < 0 else (self._storage.fd, b'["spawned",%d,' % fence)

    def spawned(self, fence: int, pid: int, at: float) -> None:
        self._note([Spawned(fence, pid, at)])

    def stopping(self, fence: int, ending: Ending) -> None:
        self._note([Stopping(fence, ending)])

    def exited(self, exits: Sequence[tuple[int, Exit]]) -> None:
        self._note([Exited(fence, how) for fence, how in exits])

    def ended(self, record: Ended) -> None:
        self._note([record])

    def forgotten(self, fences: Iterable[int]) -> None:
        known = tuple(fence for fence in fences if fence in self._lines)
        if not known:
            return
        for fence in known:
            self._useful -= sum(map(len, self._lines.pop(fence)))
        with contextlib.suppress(OSError):
            if self._size > GROWN and self._useful < self._size // 4:
                self._write_anew()
            else:
                self._append(_encode(Forgotten(known)) + b"\n")

    def close(self) -> None:
        self._storage.close()

    # ---------------------------------------------------------------- writing

    def _note(self, records: Sequence[Spawned | Stopping | Exited | Ended]) -> None:
        """More about attempts that have begun, in one write. A full disk is no reason to stop what runs."""
        lines = []
        for record in records:
            if record.fence in self._lines:
                line = _encode(record) + b"\n"
                self._lines[record.fence].append(line)
                self._useful += len(line)
                lines.append(line)
        if lines:
            with contextlib.suppress(OSError):
                self._append(b"".join(lines))

    def _append(self, data: bytes) -> None:
        if self._is_torn:
            self._write_anew()  # it holds `data` already if that is about an attempt that has begun; twice does no harm
        try:
            self._storage.append(data)
        except OSError:
            self._is_torn = True
            raise
        self._size += len(data)

    def _write_anew(self) -> None:
        used = {fence >> FENCE_SEQUENCE_BITS for fence in self._lines}
        newest = max(self.epochs, default=0)
        self.epochs = {epoch: nonce for epoch, nonce in self.epochs.items() if epoch == newest or epoch in used}
        head = [_encode(Boot(self._boot)), *(_encode(Epoch(*item)) for item in self.epochs.items()), b""]
        lines = b"".join(line for lines in self._lines.values() for line in lines)
        data = b"\n".join(head) + lines
        try:
            self._storage.replace(data)
        except OSError:
            self._is_torn = True
            raise
        self._is_torn = False
        self._useful, self._size = len(lines), len(data)


class JournalFile:
    """A journal's bytes in a file (the contract is `Storage`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = -1

    def read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def append(self, data: bytes) -> None:
        if os.write(self.fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def replace(self, data: bytes) -> None:
        new = self._path.with_name(self._path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.replace(new, self._path)
        except OSError:
            os.close(fd)
            raise
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def boot_id() -> str:
    """Names this run of the system; empty where it has no name, and then no attempt survives a restart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
