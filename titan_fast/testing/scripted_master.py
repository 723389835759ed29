"""A master of a few lines, for tests of clients: it says what its script says, and breaks off where it is told.

It speaks the real protocol over a real socket and keeps the one promise clients build on, that a request is carried
out once for each key. It knows nothing of runs or tasks.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from titan_fast._layout import MAX_BODY
from titan_fast.errors import BadMessage, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import MAX_MESSAGE, Connection, Incoming, send, send_error
from titan_fast.protocol.handshake import NONCE_BYTES, proof
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Role

Reply = Message | TitanError | tuple[Message, bytes]
"""A message, an error, or a message with its attachment."""
Script = Callable[..., Iterable[Reply]]
"""(request, \\*attachments) -> what is answered, one after the other; it may take its time between two."""


class _BreakOff(Exception):
    """The connection ends here."""


class ScriptedMaster:
    """
    with ScriptedMaster() as master:
        master.on(msg.Submit, msg.Accepted(7))
        master.break_at(1)
        Client(master.address, token=master.token).submit(graph)
        assert len(master.carried_out) == 1

    Args:
        history: names its state, as in WELCOME.
    """

    def __init__(self, history: str = "first") -> None:
        self.history = history
        self.token = secrets.token_hex(8)
        self.asked: list[Any] = []
        """Every request, repeats included."""
        self.carried_out: list[Any] = []
        """Those among them that were not repeats of one that was carried out."""
        self.connections = 0
        """That were let in."""
        self.steps = 0
        """A request came in, it was carried out, a reply left: each is a step."""
        self._port = 0
        self._scripts: dict[type[Message], Script] = {}
        self._kept: dict[tuple[str, int], list[Reply]] = {}
        self._breaks: dict[int, int] = {}
        self._turned_away = 0
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._links: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------ the script

    def on(self, cls: type[Message], *replies: Reply) -> None:
        """Answer every request of a kind so."""
        self._scripts[cls] = lambda request, *attachments: replies

    def script(self, cls: type[Message], script: Script) -> None:
        """Answer every request of a kind with what ``script`` makes of it."""
        self._scripts[cls] = script

    def break_at(self, *steps: int, away: int = 0) -> None:
        """End the connection instead of taking these steps; the first one is 0.

        Args:
            away: so many connections are turned away after that.
        """
        self._breaks.update(dict.fromkeys(steps, away))

    def turn_away(self, connections: int) -> None:
        """Hang up on the next so many at once, as if nobody were there."""
        self._turned_away = connections

    # ------------------------------------------------------------ coming and going

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> ScriptedMaster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Be gone, with every connection."""
        if self._listener is not None:
            _hang_up(self._listener)
            self._listener = None
        with self._lock:
            links = list(self._links)
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads.clear()

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            if self._turned_away:
                self._turned_away -= 1
                _hang_up(link)
                continue
            self._run(self._serve, link)

    # ------------------------------------------------------------ one connection

    def _serve(self, link: socket.socket) -> None:
        with self._lock:
            self._links.add(link)
        connection = Connection(Role.STRANGER)
        nonces: list[str] = []
        try:
            while data := link.recv(1 << 16):
                for incoming in connection.receive(data):
                    if connection.sender is Role.STRANGER:
                        link.sendall(self._prove(connection, incoming, nonces))
                    else:
                        self._answer(link, incoming)
        except (_BreakOff, OSError):
            pass
        finally:
            with self._lock:
                self._links.discard(link)
            _hang_up(link)

    def _prove(self, connection: Connection, incoming: Incoming, nonces: list[str]) -> bytes:
        message: Message
        if isinstance(incoming.message, msg.Hello):
            nonces[:] = [incoming.message.nonce, secrets.token_hex(NONCE_BYTES)]
            message = msg.Challenge(nonces[1], proof(self.token, "master", *nonces))
        elif isinstance(incoming.message, msg.Proof) and incoming.message.proof == proof(self.token, "peer", *nonces):
            connection.open(Role.CLIENT)
            self.connections += 1
            message = msg.Welcome("client", "scripted", 1, "test", MAX_BODY, MAX_MESSAGE, self.history)
        else:
            raise _BreakOff
        return send(message, request=incoming.request, is_reply=True)

    def _answer(self, link: socket.socket, incoming: Incoming) -> None:
        if incoming.error is not None:
            raise _BreakOff
        self.asked.append(incoming.message)
        self._step()
        replies = self._replies(incoming)
        self._step()
        for reply in replies:
            if isinstance(reply, TitanError):
                frames = send_error(reply, incoming.request)
            elif isinstance(reply, tuple):
                frames = send(reply[0], reply[1:], incoming.request, is_reply=True)
            else:
                frames = send(reply, (), incoming.request, is_reply=True)
            self._step()
            link.sendall(frames)

    def _replies(self, incoming: Incoming) -> Iterable[Reply]:
        message = incoming.message
        assert message is not None
        script = self._scripts.get(type(message))
        if script is None:
            return [BadMessage(f"the script has no answer to {incoming.op.name}")]
        once: msg.Once | None = getattr(message, "once", None)
        if once is None:
            self.carried_out.append(message)
            return script(message, *incoming.attachments)
        with self._lock:
            key = (once.client, once.counter)
            if key not in self._kept:
                self.carried_out.append(message)
                replies = list(script(message, *incoming.attachments))
                if any(isinstance(reply, TitanError) for reply in replies):
                    return replies  # Refused is not carried out: a repeat is judged anew.
                self._kept[key] = replies
            return self._kept[key]

    def _step(self) -> None:
        with self._lock:
            away = self._breaks.pop(self.steps, None)
            self.steps += 1
            if away is not None:
                self._turned_away = away
                raise _BreakOff


def _hang_up(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
