"""A master's state as one file, and a state from such a file. Knows the layout of a state directory, and no network.

A backup is a tar whose first member lists the others with their sizes and SHA-256: the database copy, the large graphs
beside it, the files it names, and who the master is (``cluster``, ``tokens``). Outputs of attempts are not in it. A
restored state is another history: its epoch is far above, so that nothing assigned since the backup is believed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import logging
import os
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import apsw
import msgspec

from titan_fast._version import __version__
from titan_fast.errors import BadBackup, DiskFull, InvalidUsage, StateLocked, StoreTooNew
from titan_fast.master.store import schema
from titan_fast.master.store.base import Store
from titan_fast.master.store.bodies import sync, sync_file, sync_folder

FORMAT = 1
LIST = "backup.json"
"""The first member."""
EPOCHS_AHEAD = 1000
"""How far the epoch of a restored state is above the copy's: the lost one was started less often since."""

_HOLDS = (schema.FILE, schema.BODIES, "blobs", "cluster", "tokens")
"""What of a state directory is in a backup; the database is put in place last."""
_NAME = re.compile(r"state\.sqlite|cluster|tokens/(?:client|worker)|(?:bodies|blobs)/(?P<digest>[0-9a-f]{64})")
_MAX_LIST = 256 << 20
_CHUNK = 1 << 20

log = logging.getLogger("titan_fast.store")


class Item(msgspec.Struct, frozen=True):
    """One file in a backup; ``digest`` is its SHA-256."""

    name: str
    size: int
    digest: str


class Contents(msgspec.Struct, frozen=True):
    """What a backup holds beside this list."""

    format: int
    made_at: float
    made_by: str
    files: tuple[Item, ...]


# ---------------------------------------------------------------- making one


def pack(state_dir: Path, store: Store, path: Path) -> None:
    """Write a backup to ``path``, in place of what is there; it is on the disk when this returns. Any thread.

    Raises:
        InvalidUsage: the store is in memory only. DiskFull, StoreFailed: as `Store.backup`.
    """
    copy, part = path.with_name(path.name + ".copy"), path.with_name(path.name + ".part")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        store.backup(str(copy))
        files = _files(state_dir, copy)
        with _room_for(path):
            items = tuple(_item(name, place) for name, place in files.items())
            contents = Contents(FORMAT, time.time(), __version__, items)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                _write(file, contents, files)
            sync_file(part)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(copy, ignore_errors=True)


def _files(state_dir: Path, copy: Path) -> dict[str, Path]:
    """Name in the backup -> where it is now."""
    files = {schema.FILE: copy / schema.FILE}
    with schema.verified(copy / schema.FILE) as database:
        for digest in schema.bodies_of(database):
            files[f"{schema.BODIES}/{digest}"] = copy / schema.BODIES / digest
        for digest in schema.digests_of(database):
            files[f"blobs/{digest}"] = state_dir / "blobs" / digest[:2] / digest
    for name in ("cluster", "tokens/client", "tokens/worker"):
        files[name] = state_dir / name
    missing = [name for name, place in files.items() if not place.exists()]
    if missing:
        log.warning("the backup is made without %s, which %s does not hold", ", ".join(missing), state_dir)
    return {name: place for name, place in files.items() if name not in missing}


def _item(name: str, place: Path) -> Item:
    with place.open("rb") as file:
        return Item(name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _write(file: IO[bytes], contents: Contents, files: dict[str, Path]) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        data = msgspec.json.encode(contents)
        _add(tar, LIST, len(data), io.BytesIO(data))
        for item in contents.files:
            with files[item.name].open("rb") as source:
                _add(tar, item.name, item.size, source)


def _add(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, source)


# ---------------------------------------------------------------- using one


def restore(file: Path, state_dir: Path) -> int:
    """Make a backup the state of a master that does not run. Nothing is left behind when it fails.

    Returns:
        The epoch of the restored state.

    Raises:
        BadBackup: damaged, or no backup. StoreTooNew: of a newer program. InvalidUsage: ``state_dir`` holds a state.
        StateLocked: a master uses it. DiskFull: no room in it.
    """
    try:
        source = file.open("rb")
    except OSError as error:
        raise BadBackup(f"{file} cannot be read: {error.strerror}") from None
    with source, _locked(state_dir), _room_for(state_dir):
        aside = state_dir / schema.UNFINISHED
        if aside.exists():
            _remove(state_dir)
        for name in _HOLDS:
            if (state_dir / name).exists():
                raise InvalidUsage(
                    f"{state_dir} holds a state already ({name})",
                    hint="move it away, or restore into another folder with --state-dir",
                )
        try:
            aside.mkdir()
            sync_folder(state_dir)
            _unpack(file, source, aside)
            epoch = _renew(file, aside)
            _put_in_place(aside, state_dir)
        except BaseException:
            _remove(state_dir)
            raise
    return epoch


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """The lock of a master. A folder that was made for it goes again when nothing came into it."""
    is_new = not state_dir.exists()
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("a+")
    except OSError as error:
        raise InvalidUsage(f"cannot use the state directory {state_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateLocked(
                f"a master uses the state directory {state_dir}",
                hint="stop it, or restore into another folder with --state-dir",
            ) from None
        yield
    except BaseException:
        if is_new:
            shutil.rmtree(state_dir, ignore_errors=True)
        raise
    finally:
        lock.close()


def _remove(state_dir: Path) -> None:
    """What a restore put there that did not come to its end; its mark goes last."""
    for name in (*_HOLDS, schema.UNFINISHED):
        place = state_dir / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _unpack(file: Path, source: IO[bytes], aside: Path) -> None:
    """Everything that is listed, nothing else, under names of our own, each what its digest says."""
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            members = iter(tar)
            wanted = _read_list(file, tar, next(members, None))
            for member in members:
                item = wanted.pop(member.name, None)
                if item is None or member.type != tarfile.REGTYPE or member.size != item.size:
                    raise BadBackup(f"{file} is damaged: '{member.name[:100]}' is not what its list says")
                _unpack_one(file, tar, member, item, aside / item.name)
    except tarfile.TarError as error:
        raise BadBackup(f"{file} is no backup, or damaged: {error}") from None
    if wanted:
        raise BadBackup(f"{file} is damaged: {', '.join(sorted(wanted)[:5])} is missing")


def _read_list(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Item]:
    if member is None or member.name != LIST or member.type != tarfile.REGTYPE or member.size > _MAX_LIST:
        raise BadBackup(f"{file} is no backup of titan-fast")
    data = tar.extractfile(member)
    assert data is not None, "a regular member has content"
    try:
        contents = msgspec.json.decode(data.read(), type=Contents)
    except msgspec.MsgspecError as error:
        raise BadBackup(f"{file} is damaged: its list cannot be read ({error})") from None
    if contents.format > FORMAT:
        raise StoreTooNew(
            f"{file} was made by titan-fast {contents.made_by} in a later format",
            hint="install that version, or a newer one",
        )
    for item in contents.files:
        match = _NAME.fullmatch(item.name)
        if match is None or match["digest"] not in (None, item.digest):
            raise BadBackup(f"{file} is damaged: its list names '{item.name[:100]}'")
    return {item.name: item for item in contents.files}


def _unpack_one(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, item: Item, place: Path) -> None:
    place.parent.mkdir(exist_ok=True, mode=0o700)
    content = tar.extractfile(member)
    assert content is not None, "a regular member has content"
    found = hashlib.sha256()
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while chunk := content.read(_CHUNK):
            found.update(chunk)
            out.write(chunk)
        out.flush()
        sync(out.fileno())
    if found.hexdigest() != item.digest:
        raise BadBackup(f"{file} is damaged: the content of '{item.name}' is not what its list says")


def _renew(file: Path, aside: Path) -> int:
    """Another history, far ahead of whatever was assigned after the backup was made."""
    if not (aside / schema.FILE).exists():
        raise BadBackup(f"{file} is damaged: there is no {schema.FILE} in it")
    with schema.verified(aside / schema.FILE) as database:
        missing = [name for name in schema.bodies_of(database) if not (aside / schema.BODIES / name).exists()]
        if missing:
            raise BadBackup(f"{file} is damaged: the graph {missing[0]} is missing")
        nonce = secrets.token_hex(8)
        with database:
            ((epoch,),) = schema.fetch(
                database,
                "UPDATE meta SET epoch = epoch + ?, nonce = ?, history = ? RETURNING epoch",
                EPOCHS_AHEAD,
                nonce,
                secrets.token_hex(8),
            )
            database.execute("INSERT INTO epochs VALUES (?, ?)", (epoch, nonce))
    sync_file(aside / schema.FILE)
    return int(epoch)


def _put_in_place(aside: Path, state_dir: Path) -> None:
    """One rename for each part, the database last: it alone makes a folder a state."""
    blobs = aside / "blobs"
    for place in list(blobs.iterdir()) if blobs.exists() else ():
        folder = blobs / place.name[:2]
        folder.mkdir(exist_ok=True)
        place.rename(folder / place.name)
        sync_folder(folder)
    for folder in (place for place in aside.iterdir() if place.is_dir()):
        sync_folder(folder)
    for name in reversed(_HOLDS):
        if (aside / name).exists():
            (aside / name).rename(state_dir / name)
    sync_folder(state_dir)
    shutil.rmtree(aside)
    sync_folder(state_dir)


@contextmanager
def _room_for(place: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.FullError, OSError) as error:
        if isinstance(error, apsw.FullError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space is left for {place}", hint="make room and try again") from None
        raise
