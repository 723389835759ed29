"""One blocking connection to a master, straight or through an agent: requests in, answers out, from any number of
threads.

Whichever thread waits for an answer reads for all of them; the others sleep until theirs is there. What happens when
the connection breaks is `line`'s to decide.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from titan_fast.config import Door
from titan_fast.errors import (
    BadMessage,
    BadProof,
    ConnectionLost,
    InvalidUsage,
    NoMaster,
    Refused,
    TitanError,
    WaitTimedOut,
)
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import REQUEST, Opening, error_from


class Wire:
    """Open one with `connect`. Not inherited by forks: a child makes its own."""

    def __init__(self, link: socket.socket) -> None:
        self.welcome: msg.Welcome
        self._socket = link
        self._connection = Connection(Role.MASTER)
        self._next = REQUEST + 1
        self._inboxes: dict[int, deque[Incoming]] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._reading = False
        self._broken: TitanError | None = None

    @classmethod
    def connect(cls, addresses: list[tuple[str, int]], find_token: Callable[[], str], timeout: float) -> Wire:
        """The first of the addresses that lets us in; each is tried once, for at most ``timeout`` seconds.

        The token is looked for when somebody listens: a master that is just starting writes its token file last.

        Raises:
            NoMaster: nobody answered. NoToken: somebody did, but we have no token. BadProof: it is not the right one.
            Refused: nobody lets us in now.
        """
        reason = ""
        refusal: Refused | None = None
        for host, port in addresses:
            try:
                link = socket.create_connection((host, port), timeout)
            except OSError as error:
                reason = f"{host}:{port}: {error.strerror or error}"
                continue
            keep_alive(link)
            wire = cls(link)
            try:
                wire._prove(Opening(wire._connection, Role.CLIENT, find_token()), timeout)
                return wire
            except (ConnectionLost, OSError) as error:
                reason = f"{host}:{port}: {error}"
            except Refused as error:
                if isinstance(error, BadProof):
                    raise
                refusal = error
        if refusal is not None:
            raise refusal
        raise NoMaster.at(addresses, reason)

    @classmethod
    def through(cls, door: Door, timeout: float) -> Wire:
        """Inside of a task: by way of its agent.

        Raises:
            NoMaster: there is no agent, or it has no master. BadProof: the attempt is over. Refused: not now.
        """
        link = socket.socket(socket.AF_UNIX)
        wire = cls(link)
        try:
            link.settimeout(timeout)
            link.connect(door.path)
            wire._prove(Opening(wire._connection, Role.TASK, door.token, fence=door.fence), timeout)
        except (ConnectionLost, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise NoMaster.behind(door.path, reason) from None
        return wire

    def _prove(self, opening: Opening, timeout: float) -> None:
        self._socket.settimeout(timeout)
        self._socket.sendall(opening.hello())
        while opening.welcome is None:
            for incoming in self._read():
                self._socket.sendall(opening.take(incoming))
        self.welcome = opening.welcome
        # From here on the socket blocks: one thread may write while another waits for its turn to read.
        self._socket.settimeout(None)

    def _read(self) -> list[Incoming]:
        """What the next bytes from the master complete. Raises ConnectionLost."""
        try:
            data = self._socket.recv(1 << 18)
        except OSError as error:
            raise ConnectionLost(f"the connection to the master broke ({error.strerror or error})") from None
        if not data:
            raise ConnectionLost("the master closed the connection", hint="is it still running? titan-fast doctor")
        said = self._connection.receive(data)
        if self._connection.broken is not None and not said:
            raise self._connection.broken
        return said

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        # A broken wire is let go by whoever still waits on it, and by nobody else: a file descriptor that is closed
        # under a thread that reads it may be another connection's by the time it looks.
        self._socket.close()

    @property
    def is_broken(self) -> bool:
        return self._broken is not None

    # ------------------------------------------------------------ requests

    def enter(self, message: Message, attachments: tuple[bytes, ...] = ()) -> tuple[int, bytes]:
        """A request's number for `answer`, and its frames for `write`. Raises ConnectionLost, InvalidUsage."""
        with self._changed:
            if self._broken is not None:
                raise self._broken
            number = self._next
            self._next += 1
        try:
            frames = send(message, attachments, number)
        except BadMessage as error:
            raise InvalidUsage(error.message.partition(": ")[2], hint=error.hint) from None  # not the master's mistake
        with self._changed:
            self._inboxes[number] = deque()
        return number, frames

    def write(self, frames: bytes) -> None:
        """Raises ConnectionLost."""
        try:
            with self._sending:
                self._socket.sendall(frames)
        except OSError as error:
            broken = ConnectionLost(f"the connection to the master broke ({error.strerror or error})")
            with self._changed:
                self._broken = self._broken or broken
                self._changed.notify_all()
            raise broken from None

    def answer(self, number: int, deadline: float | None = None) -> Incoming:
        """The next answer to a request.

        Raises:
            TitanError: what the master answered, when that is an error; ConnectionLost; WaitTimedOut.
        """
        while True:
            with self._changed:
                while not self._inboxes[number] and self._broken is None and self._reading:
                    if not self._changed.wait(_left(deadline)):
                        raise WaitTimedOut("no answer in time")
                if self._inboxes[number]:
                    return unwrap(self._inboxes[number].popleft())
                if self._broken is not None:
                    raise self._broken
                self._reading = True
            self._read_for_all(deadline)

    def _read_for_all(self, deadline: float | None) -> None:
        said: list[Incoming] = []
        broken: TitanError | None = None
        has_come = False
        try:
            has_come = _is_readable(self._socket, _left(deadline))
            if has_come:
                said = self._read()
        except TitanError as error:
            broken = error
        finally:
            with self._changed:
                self._reading = False
                self._broken = self._broken or broken
                for incoming in said:
                    inbox = self._inboxes.get(incoming.request)
                    if inbox is not None:
                        inbox.append(incoming)
                    elif incoming.request == 0 and isinstance(incoming.message, msg.Error):
                        self._broken = error_from(incoming.message)
                self._changed.notify_all()
        if not has_come:
            raise WaitTimedOut("no answer in time")

    def newest(self, number: int) -> Incoming | None:
        """Of the answers to a request that are here and not read."""
        with self._changed:
            inbox = self._inboxes.get(number)
            return inbox[-1] if inbox else None

    def forget(self, number: int) -> None:
        """No more answers to this request are wanted."""
        with self._changed:
            self._inboxes.pop(number, None)

    def ask(self, message: Message, attachments: tuple[bytes, ...] = ()) -> Incoming:
        """The one answer to a request over this connection and no other."""
        number, frames = self.enter(message, attachments)
        try:
            self.write(frames)
            return self.answer(number)
        finally:
            self.forget(number)


def keep_alive(link: socket.socket) -> None:
    """Small frames leave at once, and a master whose machine has vanished is noticed within half a minute."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _left(deadline: float | None) -> float | None:
    """Seconds to a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _is_readable(link: socket.socket, seconds: float | None) -> bool:
    """Something has come, or the other side is gone, within the time; without one, reading waits by itself."""
    if seconds is None:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def unwrap(incoming: Incoming) -> Incoming:
    """Raises what it says, when that is an error."""
    if incoming.error is not None:
        raise incoming.error
    if isinstance(incoming.message, msg.Error):
        raise error_from(incoming.message)
    return incoming
