"""A project folder as one deterministic archive: the same files are the same bytes, and so the same address.

A plain tar (sorted, no times, no owners): what travels is unpacked by the worker, which trusts none of it. What
does not belong to a project, or must never leave the machine, is left out here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from titan_fast.errors import ProjectError
from titan_fast.model.ignore import IgnoreFile
from titan_fast.model.units import format_size

MAX_ARCHIVE = 256 << 20
MAX_ENTRIES = 100_000
"""Files and folders of one project; the worker counts them while it unpacks."""
PRIVATE_MARKER = ".titan-fast-private"
"""A folder with this file in it is titan-fast's own (state, work, tokens) and is in no project."""

_IGNORE = "remove it, or name it in .titanignore"
_BLOCK = 512


class Packed(NamedTuple):
    """An archive that was written."""

    sha256: str
    """Hex; its address."""
    size: int


def mark_private(folder: Path) -> None:
    """Marks a state or work folder, so that a project around it is packed without it."""
    (folder / PRIVATE_MARKER).write_text("titan-fast keeps its own files here; projects are packed without them.\n")


def pack_project(folder: str | os.PathLike[str], dest: BinaryIO | Path, files: Iterable[str] = ()) -> Packed:
    """Writes the archive of a project.

    Left out: `.git`, virtual environments, `__pycache__`, folders called `tokens`, what `.gitignore` and
    `.titanignore` files in the folder name (a `!name` in a `.titanignore` brings back anything of these but `.git`),
    and titan-fast's own folders. Links inside the folder are packed as what they lead to.

    Args:
        folder: the project.
        dest: where the archive goes; a path is written whole or not at all.
        files: these alone (`LoadedGraph.project_files`); empty: all.

    Raises:
        ProjectError: a file that cannot be shipped, or too many of them, with what to do about it.
    """
    root = Path(os.path.realpath(folder))
    if not root.is_dir():
        raise ProjectError(f"there is no project folder {os.fspath(folder)}")
    entries = _Listing(root).read(files)
    if not isinstance(dest, Path):
        return _write(entries, dest)
    partial = dest.with_name(dest.name + ".partial")
    try:
        with open(partial, "wb") as file:
            packed = _write(entries, file)
        os.replace(partial, dest)
    finally:
        partial.unlink(missing_ok=True)
    return packed


class _Entry(NamedTuple):
    """A file or folder of the archive."""

    name: str
    """With ``/``, relative to the project."""
    source: Path | None
    """None: a folder."""
    size: int


# ---------------------------------------------------------------- what belongs to it


class _Rules:
    """The ignore files of one kind, from the project's folder down to the one being read. The deepest word counts."""

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._files: list[tuple[int, IgnoreFile]] = []

    @contextlib.contextmanager
    def inside(self, folder: Path, name: str) -> Iterator[None]:
        """The rules while ``folder``, called ``name`` in the archive, is read."""
        file = self._read(folder / self._file_name)
        if file is not None:
            self._files.append((len(name) + 1 if name else 0, file))
        yield
        if file is not None:
            self._files.pop()

    def _read(self, path: Path) -> IgnoreFile | None:
        try:
            return IgnoreFile(path.read_text("utf-8-sig", "surrogateescape").split("\n"))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise ProjectError(f"{path} cannot be read: {error.strerror}", hint="mend its permissions") from error

    def verdict(self, name: str, is_folder: bool) -> bool | None:
        """True: left out; False: brought back (``!name``); None: nothing is said about it."""
        for start, file in reversed(self._files):
            said = file.verdict(name[start:], is_folder)
            if said is not None:
                return said
        return None


class _Listing:
    """Finds what belongs to the archive of a project."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: list[_Entry] = []
        self._git = _Rules(".gitignore")
        self._titan = _Rules(".titanignore")
        self._open: list[Path] = []
        """The real folders being read, outermost first: a link to one of them would never end."""

    def read(self, files: Iterable[str]) -> list[_Entry]:
        if _has(self._root, PRIVATE_MARKER):
            raise ProjectError(f"{self._root} is a folder titan-fast keeps its own files in, not a project")
        files = list(files)
        if files:
            self._add_named(files)
        else:
            self._add_folder(self._root, "")
        size = sum(_archived(entry) for entry in self._entries)
        if size > MAX_ARCHIVE:
            what = (
                f"the project {self._root} has {format_size(size)}, at most {format_size(MAX_ARCHIVE)} can be shipped"
            )
            raise ProjectError(what, hint=f"name what its tasks do not need in .titanignore: {self._largest()}")
        # In the order of the bytes of the names, whatever the language of the machine.
        return sorted(self._entries, key=lambda entry: os.fsencode(entry.name))

    def _largest(self) -> str:
        sizes: Counter[str] = Counter()
        for entry in self._entries:
            top, slash, _ = entry.name.partition("/")
            sizes[top + slash] += entry.size
        return ", ".join(f"{name} has {format_size(size)}" for name, size in sizes.most_common(3) if size)

    def _add(self, entry: _Entry) -> None:
        if len(self._entries) == MAX_ENTRIES:
            what = f"the project {self._root} has more than {MAX_ENTRIES:,} files and folders"
            tops = Counter(each.name.partition("/")[0] for each in self._entries)
            most = ", ".join(f"{name}/ has {count:,}" for name, count in tops.most_common(3) if count > 1)
            raise ProjectError(what, hint=f"name what its tasks do not need in .titanignore: {most}")
        self._entries.append(entry)

    def _add_named(self, files: list[str]) -> None:
        folders = {os.fspath(parent) for name in files for parent in Path(name).parents if parent.name}
        for folder in folders:
            self._add(_Entry(folder, None, 0))
        for name in dict.fromkeys(files):
            path = self._root / name
            status = self._status(path, name)
            end = Path(os.path.realpath(path))
            if not self._is_inside(end):
                raise ProjectError(f"'{name}' leads outside the project")
            if end != path:
                self._refuse_private(end, name)
            if not stat.S_ISREG(status.st_mode):
                raise ProjectError(f"'{name}' in the project is not a file")
            self._add(_Entry(name, path, status.st_size))

    def _add_folder(self, folder: Path, name: str) -> None:
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            raise ProjectError(f"'{name or folder}' cannot be read: {error.strerror}", hint=_IGNORE) from error
        self._open.append(folder)
        with self._git.inside(folder, name), self._titan.inside(folder, name):
            for each in found:
                self._add_found(each, f"{name}/{each.name}" if name else each.name)
        self._open.pop()

    def _add_found(self, found: os.DirEntry[str], name: str) -> None:
        path = Path(found.path)
        is_folder = found.is_dir(follow_symlinks=False)
        if self._is_left_out(path, name, is_folder):
            return
        if found.is_symlink():
            path = self._end_of_link(path, name)
        status = self._status(path, name)
        if stat.S_ISDIR(status.st_mode):
            self._add(_Entry(name, None, 0))
            self._add_folder(path, name)
        elif stat.S_ISREG(status.st_mode):
            self._add(_Entry(name, path, status.st_size))
        else:
            kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "no file")
            raise ProjectError(f"'{name}' in the project is {kind}, which cannot be shipped", hint=_IGNORE)

    def _is_left_out(self, path: Path, name: str, is_folder: bool) -> bool:
        if path.name == ".git" or (is_folder and _has(path, PRIVATE_MARKER)):
            return True
        said = self._titan.verdict(name, is_folder)
        if said is None and is_folder and (path.name in ("__pycache__", "tokens") or _has(path, "pyvenv.cfg")):
            return True
        if said is None:
            said = self._git.verdict(name, is_folder)
        return bool(said)

    def _end_of_link(self, link: Path, name: str) -> Path:
        end = Path(os.path.realpath(link))
        if not self._is_inside(end):
            raise ProjectError(f"'{name}' is a link that leads outside the project, to {end}", hint=_IGNORE)
        if not os.path.exists(end):
            raise ProjectError(f"'{name}' is a link that leads nowhere, to {os.readlink(link)}", hint=_IGNORE)
        if end in self._open:
            raise ProjectError(f"'{name}' is a link that leads to a folder around it", hint=_IGNORE)
        self._refuse_private(end, name)
        return end

    def _refuse_private(self, end: Path, name: str) -> None:
        """What must never leave the machine does not leave it under another name."""
        for folder in [end, *end.parents]:
            if folder == self._root:
                return
            if folder.name in (".git", "tokens") or _has(folder, PRIVATE_MARKER):
                what = f"'{name}' is a link into {folder.relative_to(self._root)}/, which is left out of projects"
                raise ProjectError(what, hint=_IGNORE)

    def _is_inside(self, path: str | Path) -> bool:
        return Path(path).is_relative_to(self._root)

    def _status(self, path: Path, name: str) -> os.stat_result:
        try:
            return path.stat()
        except OSError as error:
            raise ProjectError(f"'{name}' in the project cannot be read: {error.strerror}", hint=_IGNORE) from error


def _has(folder: Path, name: str) -> bool:
    """Unlike `Path.exists`, False for a folder nobody may look into: that is told when it is read."""
    return os.path.lexists(folder / name)


_KINDS = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def _archived(entry: _Entry) -> int:
    """The bytes of an entry in the archive, long names aside."""
    return _BLOCK + (entry.size + _BLOCK - 1) // _BLOCK * _BLOCK


# ---------------------------------------------------------------- the bytes


class _Hashing:
    """Passes on what is written, and hashes it: the archive is read by nobody before it is sent."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _write(entries: list[_Entry], file: BinaryIO) -> Packed:
    out = _Hashing(file)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            if entry.source is None:
                info.type = tarfile.DIRTYPE
                info.mode = 0o755
                archive.addfile(info)
                continue
            try:
                with open(entry.source, "rb") as source:
                    status = os.fstat(source.fileno())
                    info.size = status.st_size
                    info.mode = 0o755 if status.st_mode & 0o111 else 0o644
                    archive.addfile(info, source)
            except OSError as error:
                why = error.strerror or "it changed while it was read"
                raise ProjectError(f"'{entry.name}' in the project cannot be read: {why}", hint=_IGNORE) from error
    if out.size > MAX_ARCHIVE + (1 << 20):
        # The padding at the end and the records of long names are within the megabyte; more has grown meanwhile.
        raise ProjectError("the project grew beyond what can be shipped while it was packed", hint="pack it again")
    return Packed(out.digest.hexdigest(), out.size)
