"""The door of the tasks: a unix socket through which code inside an attempt reaches the master, as a task and no more.

Every attempt has a secret of its own. Who proves it is given a connection to the master, proved with the worker's token
for that attempt; from then on bytes pass both ways, and nobody here reads them. When the master is away the task is
told so; its requests have keys, so it asks again. Knows nothing of slots and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from titan_fast.errors import (
    BadProof,
    ConnectionLost,
    InvalidUsage,
    NoMaster,
    NoToken,
    Refused,
    TitanError,
    UnexpectedMessage,
)
from titan_fast.ids import format_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send, send_error
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening, Reception

log = logging.getLogger("titan_fast.worker")

PER_ATTEMPT = 64
IN_ALL = 256
"""Connections at a time."""
STRANGERS = 64
"""Those that have not proved anything yet."""
PIECE = 1 << 16
"""Bytes that are passed on at once; a few of them may be on their way before nothing more is taken in."""
PROOF_TIMEOUT = 5.0
"""Seconds for a handshake, on either side."""
UNDRAINED = 30.0
"""Seconds that a reader may leave a piece unread until it is dropped."""
LAST_WRITE = 1.0
"""Seconds that the last words may take to leave."""
LONGEST_PATH = 100
"""Bytes of a path that a socket of every system can have (Linux 107, macOS 103)."""
KEY_BYTES = 32

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""One connection: where to read and where to write."""


class Door:
    """Listens from `open` to `close`, and lets an attempt in from `admit` to `dismiss`."""

    def __init__(
        self, folder: Path, worker_id: str, addresses: list[tuple[str, int]], find_token: Callable[[], str]
    ) -> None:
        """The socket is ``agent`` in the worker's folder. Where that path is too long for a socket, its file system
        has none, or others may write there, it is in a private folder below /tmp that is named after the worker. Either
        way the worker's next agent finds the same path, for the attempts that it goes on with.

        Raises:
            InvalidUsage: neither place can be used.
        """
        self._listener, self.path = _listen(folder / "agent", Path("/tmp", f"titan-fast-{worker_id}", "agent"))
        self._key = _read_key(folder / "door.key")
        self._addresses = addresses
        self._find_token = find_token
        self._admitted: set[int] = set()
        self._visits: dict[_Visit, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._visited, sock=self._listener, limit=PIECE)

    def admit(self, fence: int) -> dict[str, str]:
        """Let an attempt in from now on. Returns what its environment has to say for that."""
        self._admitted.add(fence)
        return {"TITAN_AGENT": self.path, "TITAN_AGENT_TOKEN": self._secret(fence)}

    def dismiss(self, fence: int) -> None:
        """The attempt is over: its connections end, and it gets no new ones."""
        self._admitted.discard(fence)
        self._end(visit for visit in self._visits if visit.fence == fence)

    def hang_up(self) -> None:
        """The master is silent: who waits for an answer of it has to ask again."""
        self._end(self._visits)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._listener.close()
        visits = list(self._visits.values())
        self._end(self._visits)
        await asyncio.gather(*visits, return_exceptions=True)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.rmdir(os.path.dirname(self.path))  # the worker's own folder is not empty, and stays

    def _end(self, visits: Iterable[_Visit]) -> None:
        for visit in visits:
            self._visits[visit].cancel()

    def _secret(self, fence: int) -> str:
        """It follows from the fence: the next agent knows it as well."""
        return hmac.new(self._key, format_fence(fence).encode(), "sha256").hexdigest()

    # ------------------------------------------------------------ who comes

    def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if sum(not visit.fence for visit in self._visits) >= STRANGERS:
            writer.transport.abort()
            return
        visit = _Visit(self, reader, writer)
        task = self._visits[visit] = asyncio.get_running_loop().create_task(visit.run())
        task.add_done_callback(lambda _: self._left(visit, writer))

    def _left(self, visit: _Visit, writer: asyncio.StreamWriter) -> None:
        del self._visits[visit]
        writer.transport.abort()

    def token_of(self, hello: msg.Hello) -> str:
        """The secret of who says hello. Raises BadProof, Refused."""
        self.check(hello.fence)
        return self._secret(hello.fence) if hello.token == Role.TASK else ""

    def check(self, fence: int) -> None:
        """One more connection of an attempt.

        Raises:
            BadProof: it does not run here. Refused: there are too many.
        """
        if fence not in self._admitted:
            error = BadProof()
            error.message = f"attempt {format_fence(fence)} does not run at this worker (any more)"
            error.hint = "TITAN_AGENT is for the task that was given it, as long as it runs"
            raise error
        fences = [visit.fence for visit in self._visits if visit.fence]
        if len(fences) >= IN_ALL:
            raise Refused(f"{IN_ALL} connections of tasks at this worker already", hint="try again in a moment")
        if fences.count(fence) >= PER_ATTEMPT:
            raise Refused(f"{PER_ATTEMPT} connections of this task already", hint="share one client in each process")

    # ------------------------------------------------------------ where they want to go

    async def dial(self, fence: int) -> tuple[Ends, msg.Welcome]:
        """A connection to the master that speaks for the attempt, and the master's welcome.

        Raises:
            NoMaster: no address answers. TitanError: what the master says instead.
        """
        reason = ""
        for host, port in self._addresses:
            try:
                async with asyncio.timeout(PROOF_TIMEOUT):
                    master = await asyncio.open_connection(host, port, limit=PIECE)
                    try:
                        return master, await _introduce(master, fence, self._find_token())
                    except BaseException:
                        master[1].transport.abort()
                        raise
            except (ConnectionLost, NoToken, OSError) as error:
                reason = f"{host}:{port}: {str(error) or 'no answer'}"
        raise NoMaster(f"the agent of this task reaches no master ({reason})", hint="is the master running?")


class NoDoor:
    """For attempts that have nothing to say to a master: a simulation's."""

    async def open(self) -> None:
        return

    def admit(self, fence: int) -> dict[str, str]:
        return {}

    def dismiss(self, fence: int) -> None:
        return

    def hang_up(self) -> None:
        return

    async def close(self) -> None:
        return


class _Visit:
    """One connection of a task, from HELLO to its end."""

    def __init__(self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.fence = 0
        """The attempt that it speaks for; 0 before that is proved."""
        self._door = door
        self._ends = reader, writer
        self._request = 0

    async def run(self) -> None:
        """To its end; whoever made it then breaks off what is left of the connection."""
        _, writer = self._ends
        try:
            async with asyncio.timeout(PROOF_TIMEOUT):
                fence = await self._be_proved()
            self._door.check(fence)  # which may have ended meanwhile
            self.fence = fence
            master, welcome = await self._door.dial(fence)
            try:
                writer.write(send(welcome, request=self._request, is_reply=True))
                await _pass_both_ways(self._ends, master)
            finally:
                master[1].transport.abort()
        except (ConnectionLost, OSError) as error:
            log.debug("a task hung up: %s", error)
        except TitanError as error:
            log.debug("a task is not let through: %s", error)
            writer.write(send_error(error, self._request))
        await _say_last_words(writer)

    async def _be_proved(self) -> int:
        """The attempt that speaks. Raises TitanError, OSError."""
        reader, writer = self._ends
        connection = Connection(Role.STRANGER)
        reception = Reception(self._door.token_of)
        while reception.hello is None or not reception.is_proved:
            for incoming in await _hear(reader, connection):
                self._request = incoming.request
                writer.write(reception.take(incoming))
        if connection.held:
            raise UnexpectedMessage("more than a proof before WELCOME")
        return reception.hello.fence


# ---------------------------------------------------------------- both ends


async def _introduce(master: Ends, fence: int, token: str) -> msg.Welcome:
    reader, writer = master
    connection = Connection(Role.MASTER)
    opening = Opening(connection, Role.WORKER, token, fence=fence)
    writer.write(opening.hello())
    while opening.welcome is None:
        for incoming in await _hear(reader, connection):
            writer.write(opening.take(incoming))
    if connection.held:
        raise ConnectionLost("the master says more than WELCOME")
    return opening.welcome


async def _hear(reader: asyncio.StreamReader, connection: Connection) -> list[Incoming]:
    """What the next bytes complete. Raises ConnectionLost, OSError, or what is wrong with them."""
    data = await reader.read(PIECE)
    if not data:
        raise ConnectionLost("hung up in the middle of the handshake")
    said = connection.receive(data)
    if connection.broken is not None and not said:
        raise connection.broken
    return said


async def _pass_both_ways(task: Ends, master: Ends) -> None:
    """Until one of them hangs up, or does not read."""
    ways = [asyncio.create_task(_pass(task[0], master[1])), asyncio.create_task(_pass(master[0], task[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What one side says, to the other, no faster than that one reads."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            async with asyncio.timeout(UNDRAINED):
                await writer.drain()


async def _say_last_words(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(LAST_WRITE):
            await writer.wait_closed()


# ---------------------------------------------------------------- what lies in the worker's folder


def _listen(*places: Path) -> tuple[socket.socket, str]:
    """A socket in the first of these places that can have one. Only its owner may connect, from the first moment."""
    problems = []
    for place in places:
        listener = socket.socket(socket.AF_UNIX)
        try:
            if len(os.fsencode(place)) > LONGEST_PATH:
                raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket")
            _make_private(place.parent)
            place.unlink(missing_ok=True)  # that of an agent that was killed
            listener.bind(os.fspath(place))
            place.chmod(0o600)
            listener.setblocking(False)
            return listener, os.fspath(place)
        except OSError as error:
            listener.close()
            problems.append(f"{place}: {error.strerror or error}")
    raise InvalidUsage(
        f"there is no place for the agent's socket ({'; '.join(problems)})", hint="choose another --work-dir"
    )


def _make_private(folder: Path) -> None:
    """Raises OSError when somebody else could get at what is in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write there")


def _read_key(path: Path) -> bytes:
    """What the secrets of this worker's attempts are made from; made once."""
    with contextlib.suppress(FileNotFoundError):
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    key = secrets.token_bytes(KEY_BYTES)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    part.replace(path)
    return key
