"""A blocking connection to a master: requests in, answers out, from any number of threads.

Whichever thread waits for an answer reads for all of them; the others sleep until theirs is there.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from titan_fast.errors import ConnectionLost, NoMaster, NoToken, TitanError, WaitTimedOut
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import REQUEST, Opening, error_from

RETRY_INTERVAL = 0.1


class Wire:
    """Open one with `connect`. Not inherited by forks: a child makes its own."""

    def __init__(self, link: socket.socket, role: str) -> None:
        self.welcome: msg.Welcome
        self._socket = link
        self._connection = Connection(Role.MASTER)
        self._role = role
        self._next = REQUEST + 1
        self._inboxes: dict[int, deque[Incoming]] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._reading = False
        self._broken: TitanError | None = None

    @classmethod
    def connect(
        cls, addresses: list[tuple[str, int]], role: str, find_token: Callable[[], str], timeout: float
    ) -> Wire:
        """Try the addresses in turn until one answers or ``timeout`` seconds are over.

        The token is looked for when somebody listens: a master that is just starting writes its token file last.

        Raises:
            NoMaster: nobody answered. NoToken: somebody did, but we have no token. BadProof, Refused: it said no.
        """
        deadline = time.monotonic() + timeout
        last = "no attempt was made"
        no_token: NoToken | None = None
        while True:
            for host, port in addresses:
                left = max(0.5, deadline - time.monotonic())
                try:
                    link = socket.create_connection((host, port), timeout=min(left, 5.0))
                except OSError as error:
                    last = f"{host}:{port}: {error.strerror or error}"
                    continue
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire = cls(link, role)
                try:
                    wire._prove(find_token())
                    return wire
                except NoToken as error:
                    no_token = error
                    wire.close()
                except (ConnectionLost, OSError) as error:
                    last = f"{host}:{port}: {error}"
                    wire.close()
                except TitanError:
                    wire.close()
                    raise
            if time.monotonic() + RETRY_INTERVAL > deadline:
                if no_token is not None:
                    raise no_token
                where = ", ".join(f"{host}:{port}" for host, port in addresses)
                raise NoMaster(
                    f"no master answers at {where} ({last})",
                    hint="start one with: titan-fast up, or name another with --master host:port",
                )
            time.sleep(RETRY_INTERVAL)

    def _prove(self, token: str) -> None:
        opening = Opening(self._connection, self._role, token)
        self._socket.settimeout(5.0)
        self._socket.sendall(opening.hello())
        while opening.welcome is None:
            for incoming in self._read():
                self._socket.sendall(opening.take(incoming))
        self.welcome = opening.welcome
        # From here on the socket blocks: one thread may write while another waits for its turn to read.
        self._socket.settimeout(None)

    def _read(self) -> list[Incoming]:
        """What the next bytes from the master complete. Raises ConnectionLost, TimeoutError."""
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise
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

    # ------------------------------------------------------------ requests

    def request(self, message: Message, attachments: tuple[bytes, ...] = ()) -> int:
        """Send; returns the request's number for `answers`."""
        with self._changed:
            if self._broken is not None:
                raise self._broken
            number = self._next
            self._next += 1
            self._inboxes[number] = deque()
        try:
            with self._sending:
                self._socket.sendall(send(message, attachments, number))
        except OSError as error:
            broken = ConnectionLost(f"the connection to the master broke ({error.strerror or error})")
            with self._changed:
                self._broken = self._broken or broken
                self._changed.notify_all()
            raise broken from None
        return number

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
                    return _unwrap(self._inboxes[number].popleft())
                if self._broken is not None:
                    raise self._broken
                self._reading = True
            self._read_for_all(deadline)

    def _read_for_all(self, deadline: float | None) -> None:
        said: list[Incoming] = []
        broken: TitanError | None = None
        timed_out = False
        try:
            if not _is_readable(self._socket, _left(deadline)):
                raise TimeoutError
            said = self._read()
        except TimeoutError:
            timed_out = True
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
        if timed_out:
            raise WaitTimedOut("no answer in time")

    def forget(self, number: int) -> None:
        """No more answers to this request are wanted."""
        with self._changed:
            self._inboxes.pop(number, None)

    def ask(self, message: Message, attachments: tuple[bytes, ...] = (), deadline: float | None = None) -> Incoming:
        number = self.request(message, attachments)
        try:
            return self.answer(number, deadline)
        finally:
            self.forget(number)

    def stream(self, message: Message, timeout: float | None = None) -> Iterator[Incoming]:
        """Every answer to a request, for at most ``timeout`` seconds; the caller stops at the last one."""
        deadline = None if timeout is None else time.monotonic() + timeout
        number = self.request(message)
        try:
            while True:
                yield self.answer(number, deadline)
        finally:
            self.forget(number)


def _left(deadline: float | None) -> float | None:
    """Seconds to a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _is_readable(link: socket.socket, seconds: float | None) -> bool:
    """Something has come, or the other side is gone, within the time."""
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _unwrap(incoming: Incoming) -> Incoming:
    if incoming.error is not None:
        raise incoming.error
    if isinstance(incoming.message, msg.Error):
        raise error_from(incoming.message)
    return incoming
