"""The worker's directory, and what an attempt is given: where it runs, its environment, its command.

    lock  id                  one agent at a time; who this worker is, made once
    projects/<sha256>/        unpacked projects, by the address of their archive
    runs/<run>/               a run's working copy, shared by its tasks on this worker
    attempts/<fence>/         scratch, output and result of one attempt
    spare/  trash/            emptied attempt directories for the next ones; what a thread is deleting

An archive comes from a client, so nothing in it is trusted. Knows nothing of the master, slots or processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from titan_fast.errors import InvalidGraph, ProjectError, StateLocked
from titan_fast.ids import format_fence
from titan_fast.model.expand import fill
from titan_fast.model.spec import Work

MAX_PROJECT_BYTES = 1 << 30
"""Bytes of one project, unpacked."""
MAX_PROJECT_ENTRIES = 100_000
"""Files and folders of one project."""
ALLOWED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
)
"""What attempts inherit of the worker's environment; ``*`` at the end stands for any rest."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORKER_ID = re.compile(r"[0-9a-f]{32}")
_FILES_OF_OURS = {"output", "output.gap", "result"}
_MAX_SPARE = 256
_READ = 1 << 20
_MAX_RECORD = 1 << 20
"""Longest header record of an archive (a long name and its kin) that is read into memory."""
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
        """Take the directory into use; attempts of an earlier agent are thrown away.

        Raises:
            StateLocked: another agent is using it.
        """
        for folder in ("", self._projects, self._runs, self._attempts, self._spare_folder, self._trash):
            os.makedirs(folder or self.root, mode=0o700, exist_ok=True)
        self._take_lock()
        self._mark_private()
        self.worker_id = self._read_id()
        self._distrust_projects_after_reboot()
        for name in os.listdir(self._attempts):
            self._throw_away(f"{self._attempts}/{name}")
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
                _Unpacking(new, self._max_bytes, self._max_entries).run(file)
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

    def working_copy(self, run: int, project: str = "") -> str:
        """Where the tasks of a run work; made at first use, which may take long (any thread).

        Raises:
            ProjectError: the project is not here.
            OSError: it cannot be copied.
        """
        place = f"{self._runs}/{run:d}"
        if run in self._copies:
            return place
        new = f"{self._runs}/.new-{run:d}-{secrets.token_hex(4)}"
        try:
            if not project:
                os.mkdir(new, 0o700)
            elif self.has_project(project):
                shutil.copytree(self._project(project), new)
            else:
                raise ProjectError(f"the project {project} is not on this worker")
            self._put_in_place(new, place)
        finally:
            self._throw_away(new)
        self._copies.add(run)
        return place

    def adopt_history(self, name: str) -> None:
        """Runs are counted by a master's history: under another one the same number is another run."""
        path = self.root / "history"
        if not path.exists() or path.read_text("utf-8", "replace") != name:
            for run in self.runs():
                self.forget_run(run)
            _write_durably(path, name)

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

        A used one is renamed when there is one: on ext4 the first file in a new directory can cost more than
        starting a process.
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
            if len(self._spare) < _MAX_SPARE and _FILES_OF_OURS.issuperset(names):
                for name in names:
                    os.unlink(name, dir_fd=folder)
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


def _write_durably(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


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


# ---------------------------------------------------------------- unpacking


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


class _Unpacking:
    """Writes the entries of one archive into a new folder, and stops at the first that is not plain."""

    def __init__(self, target: str, max_bytes: int, max_entries: int) -> None:
        self._target = target
        self._bytes_left = max_bytes
        self._entries_left = max_entries
        self._limits = f"{max_bytes:,} bytes and {max_entries:,} entries are allowed"
        self._folders = {""}

    def run(self, archive: BinaryIO) -> None:
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
        elif member.isreg() and not member.issparse() and member.type != tarfile.CONTTYPE:
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


# ---------------------------------------------------------------- what an attempt is given


def inherit(base: Mapping[str, str], allow: str = "") -> dict[str, str]:
    """The part of an environment that attempts inherit.

    Args:
        base: all of it.
        allow: names beyond `ALLOWED`, separated by commas; ``NAME*`` stands for all that begin so.
    """
    allowed = _allowed(allow)
    return {key: value for key, value in base.items() if allowed(key)}


@functools.lru_cache(64)
def _allowed(allow: str) -> Callable[[str], object]:
    names = [*ALLOWED, *(name.strip() for name in allow.split(","))]
    patterns = (re.escape(name[:-1]) + ".*" if name.endswith("*") else re.escape(name) for name in names if name)
    return re.compile("|".join(patterns), re.DOTALL).fullmatch


def build_environment(
    base: Mapping[str, str],
    *,
    allow: str = "",
    graph_env: Mapping[str, str],
    work: Work,
    payload: Mapping[str, Any] | None,
    run: int,
    task: str,
    attempt: int,
    fence: int,
    worker: str,
    worker_id: str,
    attempt_dir: str,
) -> dict[str, str]:
    """The whole environment of an attempt: what is inherited, the graph's, the task's, and what it is told.

    Args:
        base: the worker's environment, or what `inherit` left of it, which is cheaper for the second attempt on.
        allow: see `inherit`.
        payload: the member's, in an array.
        task: ``12/extract``.

    Raises:
        InvalidGraph: a text names a matrix value that the payload lacks.
    """
    env = inherit(base, allow)
    env.update(graph_env)
    if work.env:
        values = _texts(payload)
        for key, text in work.env.items():
            env[key] = _filled(text, values)
    if work.file.endswith(".py"):
        env.setdefault("PYTHONUNBUFFERED", "1")
    env["TITAN_RUN_ID"] = str(run)
    env["TITAN_TASK"] = task
    env["TITAN_ATTEMPT"] = str(attempt)
    env["TITAN_FENCE"] = format_fence(fence)
    env["TITAN_WORKER"] = worker
    env["TITAN_WORKER_ID"] = worker_id
    env["TITAN_ATTEMPT_DIR"] = attempt_dir
    env["TITAN_RESULT"] = f"{attempt_dir}/result"
    return env


def resolve_command(work: Work, payload: Mapping[str, Any] | None, workdir: str) -> tuple[str, ...]:
    """What to execute: the arguments as given, a shell for shell text, or what runs the file.

    A ``.py`` file is run unbuffered by the worker's own Python or the one the task names; any other by itself when
    it is executable, else by what its first line (``#!``) names.

    Raises:
        InvalidGraph: there is no such file, it leads out of the working copy, nobody can run it, or a text names a
            matrix value that the payload lacks.
    """
    values = _texts(payload)
    args = [_filled(text, values) for text in work.args]
    if work.shell:
        return ("/bin/sh", "-c", _filled(work.shell, values), *(["sh", *args] if args else ()))
    if work.file:
        return (*_runner(_filled(work.file, values), _filled(work.python, values), workdir), *args)
    return (*(_filled(text, values) for text in work.argv), *args)


def _runner(file: str, python: str, workdir: str) -> tuple[str, ...]:
    """How to run a file of the project, up to its own arguments."""
    if file.startswith("/") or ".." in file.split("/") or "\0" in file:
        raise InvalidGraph(
            f"file {file!r} leads out of the project", hint="name it relative to the project's folder", field="file"
        )
    path = os.path.normpath(f"{workdir}/{file}")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InvalidGraph(f"file {file!r} is not in the project ({error.strerror})", field="file") from None
    if not stat.S_ISREG(mode):
        raise InvalidGraph(f"{file!r} in the project is not a file", field="file")
    if file.endswith(".py"):
        return python or sys.executable, "-u", path
    if mode & 0o111:
        return (path,)
    with open(path, "rb") as script:
        first = script.readline(4096)
    words = os.fsdecode(first[2:]).strip().split(None, 1) if first.startswith(b"#!") else []
    if not words:
        raise InvalidGraph(
            f"file {file!r} cannot be run: it does not end in .py, is not executable and has no first line (#!)",
            hint=f"chmod +x {file}, or begin it with a line such as #!/bin/sh",
            field="file",
        )
    return *words, path


def _texts(payload: Mapping[str, Any] | None) -> dict[str, str] | None:
    """A member's values as the texts that stand for them; None outside of arrays."""
    if payload is None:
        return None
    return {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in payload.items()
    }


def _filled(text: str, values: Mapping[str, str] | None) -> str:
    if values is None or "${matrix." not in text:
        return text
    try:
        return fill(text, values)
    except KeyError as error:
        there = ", ".join(sorted(values)) or "none"
        raise InvalidGraph(f"'${{matrix.{error.args[0]}}}' has no value; there are: {there}") from None
