"""Files on their way to the master and back, by content. What a file is for is not known here."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from titan_fast.errors import ConnectionLost, InvalidUsage, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.line import may_pass

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client

PIECE = 4 << 20
"""Bytes of a file in one message."""
UPLOADS = 5
"""How often an upload is begun anew before its connection is believed not to last."""


def upload(client: Client, file: IO[bytes], digest: str, size: int) -> None:
    """Bring a file to the master, unless it is there already.

    The master forgets a file whose connection ends before it is whole, so its pieces all go over one connection.
    """
    for is_last in (*[False] * (UPLOADS - 1), True):
        if client.call(calls.blob_size(digest)) == size:
            return
        try:
            wire = client.line.wire()
            file.seek(0)
            for offset in range(0, max(size, 1), PIECE):
                wire.ask(msg.BlobPut(digest=digest, offset=offset, size=size), (file.read(PIECE),))
            return
        except TitanError as error:
            if is_last or not may_pass(error, connecting=False):
                raise


def read(client: Client, digest: str, size: int) -> Iterator[bytes]:
    """The pieces of a file, checked when the last one is there.

    Raises:
        NoSuchBlob; ConnectionLost: what came is not what the address says.
    """
    found = hashlib.sha256()
    at = 0
    while at < size:
        piece = client.call(calls.blob_get(digest, at))
        if not piece:
            break
        found.update(piece)
        at += len(piece)
        yield piece
    if at != size or found.hexdigest() != digest:
        raise ConnectionLost(f"the file {digest[:12]}… did not arrive whole: {at} of {size} bytes", hint="try it again")


def download(client: Client, digest: str, size: int, file: IO[bytes]) -> None:
    """Write what has an address into ``file``. Raises what `read` does."""
    for piece in read(client, digest, size):
        file.write(piece)


@contextmanager
def writing(target: Path, *, replace: bool, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file that is ``target`` when the block ends: there whole and durable, or not at all.

    Links are followed. What is there and no regular file (a device, a pipe) is written into, and never replaced.

    Raises:
        InvalidUsage: it cannot be written, or is there already and ``replace`` is false.
    """
    if not replace and target.exists():
        raise InvalidUsage(
            f"{target} is there already", hint="choose another name, or say that it may be replaced (--force)"
        )
    place = Path(os.path.realpath(target))
    # The name that a link in /proc leads to need not be one: what was opened by it has to be what is written.
    is_special = target.exists() and not place.is_file()
    try:
        with _into(target) if is_special else _in_place_of(place, mode) as file:
            yield file
    except OSError as error:
        raise InvalidUsage(f"{target} cannot be written: {error.strerror or error}") from None


def _into(target: Path) -> IO[bytes]:
    return open(os.open(target, os.O_WRONLY), "wb")


@contextmanager
def _in_place_of(place: Path, mode: int) -> Iterator[IO[bytes]]:
    part = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
        _sync_folder(place.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """The name is durable, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
