"""The worker's directory: who it is, its projects, its working copies, the folders of its attempts.

    lock  id                  one agent at a time; who this worker is, made once
    history  keeper           whose runs these are; whose agent an unnamed worker's is
    attempts.journal          what the next agent must know of the attempts (`journal.py`)
    projects/<sha256>/        unpacked projects, by the address of their archive
    runs/<run>/               a run's working copy, shared by its tasks on this worker
    attempts/<fence>/         scratch, output and result of one attempt
    spare/  trash/            emptied attempt directories for the next ones; what a thread is deleting

Knows nothing of the master, slots or processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from titan_fast.errors import InvalidUsage, ProjectError, StateLocked, UserError
from titan_fast.ids import format_fence
from titan_fast.worker.executors.tree import is_alone
from titan_fast.worker.unpacking import MAX_PROJECT_BYTES, MAX_PROJECT_ENTRIES, Unpacking

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORKER_ID = re.compile(r"[0-9a-f]{32}")
_FILES_OF_OURS = {"output", "output.gap", "result"}
_MAX_SPARE = 256
_LARGE = 16 << 20
"""Bytes of a result that a thread had better delete; outputs are kept short."""
_PIECE = 1 << 20
_ROOM = 1 << 20
"""Bytes that must fit on the disk before attempts are started again."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workspace:
    """One worker's directory. Everything but `add_project` and the first `working_copy` of a run is quick."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        max_project_bytes: int = MAX_PROJECT_BYTES,
        max_project_entries: int = MAX_PROJECT_ENTRIES,
    ) -> None:
        self.root = Path(os.path.abspath(root))
        self.worker_id = ""
        self.history = ""
        """Runs are counted by a master's history: under another one the same number is another run."""
        self._max_bytes = max_project_bytes
        self._max_entries = max_project_entries
        self._lock = -1
        self._projects = f"{self.root}/projects"
        self._runs = f"{self.root}/runs"
        self._attempts = f"{self.root}/attempts"
        self._spare_folder = f"{self.root}/spare"
        self._trash = f"{self.root}/trash"
        self._spare: list[str] = []
        self._copies: set[int] = set()
        # Names in trash/ and spare/ are not used twice, restarts included.
        self._numbers = itertools.count(secrets.randbits(62))
        self._cleaner: ThreadPoolExecutor | None = None

    # ---------------------------------------------------------------- opening

    def open(self) -> None:
        """Take the directory into use; attempts of an earlier agent stay until `keep_attempts`.

        Raises:
            StateLocked: another agent is using it.
            InvalidUsage: it is no directory, or one we may not write to.
            UserError: there is no room on its disk, which may pass.
        """
        try:
            self._open()
        except OSError as error:
            self.close()
            reason = "not a directory" if isinstance(error, FileExistsError) else error.strerror or str(error)
            problem = f"the work directory {self.root} cannot be used ({error.filename or self.root}: {reason})"
            if error.errno in NO_ROOM:
                raise UserError(problem, hint="make room on its disk") from None
            raise InvalidUsage(
                problem, hint="make it a directory that this user may write to, or name another one with --work-dir"
            ) from None

    def _open(self) -> None:
        for folder in (str(self.root), self._projects, self._runs, self._attempts, self._spare_folder, self._trash):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        self._take_lock()
        self._mark_private()
        self.worker_id = self._read_id()
        self._distrust_projects_after_reboot()
        with contextlib.suppress(FileNotFoundError):
            self.history = (self.root / "history").read_text("utf-8", "replace")
        for folder in (self._projects, self._runs):
            for name in os.listdir(folder):
                if name.startswith(".new-"):
                    self._throw_away(f"{folder}/{name}")
        self._copies = {int(name) for name in os.listdir(self._runs) if name.isdigit()}
        self._spare = [f"{self._spare_folder}/{name}" for name in os.listdir(self._spare_folder)]
        for name in os.listdir(self._trash):
            self._delete(f"{self._trash}/{name}")

    def close(self) -> None:
        """Finish deleting and let the directory go."""
        if self._cleaner is not None:
            self._cleaner.shutdown(wait=True)
            self._cleaner = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        """The lock ends with this process, however that ends, and no child inherits it."""
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = -1
            raise StateLocked(
                f"the work directory {self.root} is in use by another worker (process {holder})",
                hint="stop that one, or give this one another --name or --work-dir",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _mark_private(self) -> None:
        """A project around this folder is packed without it."""
        from titan_fast.model.archive import mark_private  # brings a library that an attempt never needs

        mark_private(self.root)

    def _read_id(self) -> str:
        path = self.root / "id"
        try:
            text = path.read_text("ascii", "replace").strip()
        except FileNotFoundError:
            text = ""
        if _WORKER_ID.fullmatch(text):
            return text
        text = secrets.token_hex(16)
        _write_durably(path, text + "\n")
        return text

    def _distrust_projects_after_reboot(self) -> None:
        """Unpacked projects are not fsynced, so those from before a power cut may be half written."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return
        path = Path(self._projects) / ".boot"
        if not path.exists() or path.read_text() != boot:
            for name in os.listdir(self._projects):
                self._throw_away(f"{self._projects}/{name}")
            path.write_text(boot)

    # ---------------------------------------------------------------- projects

    def has_project(self, digest: str) -> bool:
        return os.path.isdir(self._project(digest))

    def project_part(self, digest: str) -> Path:
        """Where to collect the bytes of an archive until it is complete."""
        return Path(f"{self._projects}/.new-{_checked(digest)}.tar")

    def add_project(self, digest: str, archive: Path) -> None:
        """Unpack the archive of a project, unless it is there already. May take long; any thread.

        Raises:
            ProjectError: the bytes are not those of the address, or hold what must not be unpacked, or too much.
        """
        place = self._project(digest)
        if os.path.isdir(place):
            return
        new = f"{self._projects}/.new-{secrets.token_hex(8)}"
        try:
            with archive.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ProjectError(f"the project archive is not the one with the address {digest}")
                file.seek(0)
                Unpacking(new, self._max_bytes, self._max_entries).run(file)
            self._put_in_place(new, place)
        except OSError as error:
            raise ProjectError(f"the project could not be unpacked: {error}") from error
        finally:
            self._throw_away(new)

    def forget_project(self, digest: str) -> None:
        self._throw_away(self._project(digest))

    def _project(self, digest: str) -> str:
        return f"{self._projects}/{_checked(digest)}"

    @staticmethod
    def _put_in_place(new: str, place: str) -> None:
        """Whole or not at all. When somebody else was first, theirs is as good."""
        try:
            os.rename(new, place)
        except OSError:
            if not os.path.isdir(place):
                raise

    # ---------------------------------------------------------------- runs

    def has_working_copy(self, run: int) -> bool:
        return run in self._copies

    def place_of_run(self, run: int) -> str:
        """Where its working copy is, once it is there."""
        return f"{self._runs}/{run:d}"

    def working_copy(self, run: int, project: str = "") -> str:
        """Where the tasks of a run work; made at first use, which may take long (any thread).

        Raises:
            ProjectError: the project is not here.
            OSError: it cannot be copied.
        """
        place = self.place_of_run(run)
        if run in self._copies:
            return place
        new = f"{self._runs}/.new-{run:d}-{secrets.token_hex(4)}"
        try:
            if not project:
                os.mkdir(new, 0o700)
            elif self.has_project(project):
                _copy_tree(self._project(project), new)
            else:
                raise ProjectError(f"the project {project} is not on this worker")
            self._put_in_place(new, place)
        finally:
            self._throw_away(new)
        self._copies.add(run)
        return place

    def remember_history(self, name: str) -> None:
        """All runs that are here are of that history."""
        self.history = name
        _write_durably(self.root / "history", name)

    def runs(self) -> list[int]:
        """Runs that have a working copy here."""
        return sorted(self._copies)

    def forget_run(self, run: int) -> None:
        """Its working copy is no longer needed."""
        self._copies.discard(run)
        self._throw_away(f"{self._runs}/{run:d}")

    # ---------------------------------------------------------------- attempts

    def attempt_dir(self, fence: int, make: bool = True) -> str:
        """The directory of an attempt; made unless ``make`` is false.

        A used one is renamed when there is one, with its output, emptied: on ext4 the first file in a new directory
        can cost more than starting a process, and so can a file where thousands have been deleted in the last seconds.
        """
        place = f"{self._attempts}/{format_fence(fence)}"
        if not make:
            return place
        while self._spare:
            try:
                os.rename(self._spare.pop(), place)
                return place
            except FileNotFoundError:
                continue
        os.mkdir(place, 0o700)
        return place

    def keep_attempts(self, fences: Collection[int]) -> None:
        """Throw away what an earlier agent left, except these."""
        kept = {format_fence(fence) for fence in fences}
        for name in os.listdir(self._attempts):
            if name not in kept:
                self._throw_away(f"{self._attempts}/{name}")

    def has_room(self) -> bool:
        """Whether something can be written here. Asked of the disk: a quota is in no figure of free space."""
        path = self.root / "room"
        try:
            path.write_bytes(bytes(_ROOM))
            return True
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def drop_scratch(self, fence: int) -> None:
        """Throw away what an attempt left in its directory, except its output."""
        place = self.attempt_dir(fence, make=False)
        try:
            names = os.listdir(place)
        except FileNotFoundError:
            return
        for name in names:
            if name not in _FILES_OF_OURS:
                self._throw_away(f"{place}/{name}")

    def remove_attempt(self, fence: int) -> None:
        """Its output is no longer needed either. Quick: what is large is deleted by a thread."""
        place = self.attempt_dir(fence, make=False)
        try:
            folder = os.open(place, _FOLDER)
        except FileNotFoundError:
            return
        except OSError:  # the task put something else there
            self._throw_away(place)
            return
        try:
            names = os.listdir(folder)
            if len(self._spare) < _MAX_SPARE and _is_quick_to_empty(folder, names):
                for name in names:
                    if name != "output" or not _is_emptied(folder, name):
                        os.unlink(name, dir_fd=folder)
                if os.fstat(folder).st_mode & 0o7777 != 0o700:
                    os.fchmod(folder, 0o700)
                spare = f"{self._spare_folder}/{next(self._numbers)}"
                os.rename(place, spare)
                self._spare.append(spare)
                return
        except OSError:
            pass  # a folder called output, say
        finally:
            os.close(folder)
        self._throw_away(place)

    # ---------------------------------------------------------------- throwing away

    def _throw_away(self, path: str) -> None:
        """Out of the way at once; deleted later."""
        trash = f"{self._trash}/{next(self._numbers)}"
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            return
        self._delete(trash)

    def _delete(self, path: str) -> None:
        if self._cleaner is None:
            self._cleaner = ThreadPoolExecutor(1, "titan-cleaner")
        self._cleaner.submit(_delete_tree, path)


def _checked(digest: str) -> str:
    """An address that is to become part of a path."""
    if not _DIGEST.fullmatch(digest):
        raise ProjectError(f"{digest[:80]!r} is not the address of a project")
    return digest


def _is_quick_to_empty(folder: int, names: list[str]) -> bool:
    """Nothing but files of ours is in it, and no large result."""
    if not _FILES_OF_OURS.issuperset(names):
        return False
    return "result" not in names or os.stat("result", dir_fd=folder, follow_symlinks=False).st_size <= _LARGE


def _is_emptied(folder: int, name: str) -> bool:
    """Empty an output to be used again. Not when it is in the way of the next one: another process has it open, it has
    other names, it is no file."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_mode & 0o7777 != 0o600:
            return False
        if status.st_size:
            os.ftruncate(fd, 0)
        return is_alone(fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def _write_durably(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _copy_tree(source: str, target: str) -> None:
    """As shutil.copytree does it for what `unpacking` writes, files and folders alone, in half the time: for a
    project of small files the system calls are what counts."""
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _copy_tree(entry.path, f"{target}/{entry.name}")
            else:
                _copy_file(entry.path, f"{target}/{entry.name}")
    shutil.copystat(source, target)


def _copy_file(source: str, target: str) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(reading)
        mode = stat.S_IMODE(status.st_mode)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while data := os.read(reading, min(max(status.st_size, 1) + 1, _PIECE)):
                while data:
                    data = data[os.write(writing, data) :]
            os.fchmod(writing, mode)
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _delete_tree(path: str) -> None:
    """Delete whatever it is, folders that were made unreadable included; never follows a link."""
    if not os.path.isdir(path) or os.path.islink(path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        return
    shutil.rmtree(path, ignore_errors=True)
    if os.path.isdir(path):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
        for folder, names, _ in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):
                    if not os.path.islink(f"{folder}/{name}"):
                        os.chmod(f"{folder}/{name}", 0o700)
        shutil.rmtree(path, ignore_errors=True)
