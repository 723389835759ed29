"""What an attempt wrote to TITAN_RESULT: a short text is told with its end, anything else goes to the master as a file.

Such a file is at the master, whole and safe, before an end is told that names it by its address. Knows nothing of
slots and processes, and of an attempt only its directory and how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from typing import IO

import msgspec

from titan_fast.errors import BadMessage, ConnectionLost, InternalError, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.worker.journal import Ended
from titan_fast.worker.output import OUTPUT_NAME, note, read_output
from titan_fast.worker.requests import Requests

log = logging.getLogger("titan_fast.worker")

RESULT_NAME = "result"
MAX_RESULT = 64 << 10
"""Bytes of a text that is told with the end of its attempt."""
RESULT_REFUSED = 65
"""The exit code reported for an attempt that succeeded but whose result cannot be taken (EX_DATAERR)."""

PIECE = 1 << 20
"""Bytes in one frame; heartbeats and other results wait no longer than one of these takes."""
PAUSE = 3.0
"""Seconds until a master that cannot take a file now is asked again."""
FIRST_DOWNLOAD = 1 << 30
FIRST_REQUEST = 1 << 31
"""Request ids below belong to others."""
_SAFELY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class Result(msgspec.Struct, frozen=True):
    """What is in a result file."""

    text: bytes = b""
    is_file: bool = False
    """It is no short text: it has to be brought to the master."""
    complaint: str = ""
    """Why it cannot be taken at all."""


def read_result(path: str) -> Result:
    """A file that is not there is an empty result."""
    try:
        with _opened(path) as fd:
            data = os.read(fd, MAX_RESULT + 1)
    except FileNotFoundError:
        return Result()
    except OSError as error:
        return Result(complaint=f"the result file cannot be read ({error.strerror})")
    return Result(data) if len(data) <= MAX_RESULT and _is_text(data) else Result(is_file=True)


class Uploads:
    """Brings result files to the master, one after the other: two with the same content would be one file there, and
    each would break off the other."""

    def __init__(self, send_frame: Callable[[bytes], None]) -> None:
        self._requests = Requests(send_frame, FIRST_REQUEST)
        self._turn = asyncio.Lock()

    def answered(self, incoming: Incoming) -> None:
        self._requests.answered(incoming)

    def ask_again(self) -> None:
        """There is a new connection. What was on its way starts over: the master has let go of it."""
        self._requests.ask_again()

    async def bring(self, place: str, ended: Ended) -> Ended:
        """However long the master is away or has no room.

        Args:
            place: the attempt's directory.
            ended: how it ended, with a result that is a file.

        Returns:
            What to tell of it: with the file's address; or, when it is not taken, as a failure that says so in the
            output.
        """
        async with self._turn:
            try:
                with _opened(f"{place}/{RESULT_NAME}") as fd:
                    return msgspec.structs.replace(ended, result=await self._bring(fd))
            except BadMessage as error:
                return _refused(place, ended, f"the result file changed while it was sent ({error})")
            except TitanError as error:
                reason = f"{error}; {error.hint}" if error.hint else str(error)
                return _refused(place, ended, f"the master does not take the result file: {reason}")
            except OSError as error:
                return _refused(place, ended, f"the result file cannot be read ({error.strerror})")

    async def _bring(self, fd: int) -> str:
        """Returns the address."""
        digest, size = await _address(fd)
        is_told = False
        while True:
            try:
                await self._send(fd, digest, size)
                return digest
            except ConnectionLost:
                continue
            except TitanError as error:
                # The attempt has succeeded: what the master may get over is no reason to fail it.
                if not error.retryable and not isinstance(error, InternalError):
                    raise
                if not is_told:
                    log.warning("a result of %d bytes has to wait: %s", size, error)
                is_told = True
            await asyncio.sleep(PAUSE)

    async def _send(self, fd: int, digest: str, size: int) -> None:
        held = (await self._requests.ask(msg.BlobAsk(digest))).message
        if isinstance(held, msg.BlobHeld) and held.size == size:
            return
        try:
            for offset in range(0, max(size, 1), PIECE):
                piece = os.pread(fd, PIECE, offset)
                if len(piece) < min(PIECE, size - offset):
                    raise OSError(errno.EIO, "it has become shorter")
                await self._requests.ask(msg.BlobPut(digest=digest, offset=offset, size=size), (piece,))
        except (asyncio.CancelledError, OSError):
            # The master holds on to an unfinished file as long as the connection lasts, and to so many only. A piece
            # that cannot be right ends it.
            self._requests.tell(msg.BlobPut(digest=digest))
            raise


class Downloads:
    """Brings files of the master here: results that are arguments."""

    def __init__(self, send_frame: Callable[[bytes], None]) -> None:
        self._requests = Requests(send_frame, FIRST_DOWNLOAD)

    def answered(self, incoming: Incoming) -> None:
        self._requests.answered(incoming)

    def ask_again(self) -> None:
        """There is a new connection: what was asked on the old one will not be answered."""
        self._requests.ask_again()

    async def bring(self, digest: str, path: str) -> str:
        """However long the master is away. Returns what went wrong, empty when nothing did."""
        try:
            with _new(path) as file:
                while True:
                    data, size = await self._piece(digest, file.tell())
                    file.write(data)
                    if not data or file.tell() >= size:
                        return ""
        except (TitanError, OSError) as error:
            return f"the result {digest[:12]}… cannot be brought here: {error}"

    async def _piece(self, digest: str, offset: int) -> tuple[bytes, int]:
        """(bytes at an offset, size of the whole file); asked again when the connection is cut meanwhile."""
        while True:
            with contextlib.suppress(ConnectionLost):
                piece = await self._requests.ask(msg.BlobGet(digest, offset))
                assert isinstance(piece.message, msg.BlobPiece)
                return piece.attachments[0] if piece.attachments else b"", piece.message.size


def _new(path: str) -> IO[bytes]:
    return open(path, "wb")


async def _address(fd: int) -> tuple[str, int]:
    """(SHA-256, bytes) of an open file."""
    found, size = hashlib.sha256(), 0
    while piece := os.pread(fd, PIECE, size):
        await asyncio.to_thread(found.update, piece)
        size += len(piece)
    return found.hexdigest(), size


def _refused(place: str, ended: Ended, reason: str) -> Ended:
    output = f"{place}/{OUTPUT_NAME}"
    note(output, reason)
    size = ended.output_size
    with contextlib.suppress(OSError):  # a task may have removed its output
        size = read_output(output, 0, 0).total
    return msgspec.structs.replace(ended, code=RESULT_REFUSED, output_size=size, is_file=False)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """Raises OSError: it is not there, or no regular file that we may read."""
    fd = os.open(path, _SAFELY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield fd
    finally:
        os.close(fd)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
