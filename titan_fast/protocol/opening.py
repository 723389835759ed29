"""Both sides of a handshake. No sockets.

Who dials (clients, workers, tasks):            Who is dialled (masters, and agents for their tasks):

    bytes to send = opening.hello()                 for each incoming: bytes to send = reception.take(incoming)
    for each incoming:                              until reception.is_proved, then WELCOME
        bytes to send = opening.take(incoming)
    until opening.welcome is set
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from titan_fast._layout import VERSION
from titan_fast._version import __version__
from titan_fast.errors import BadProof, Refused, TitanError, UnexpectedMessage, WrongVersion, from_wire
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.handshake import NONCE_BYTES, is_nonce, is_proof, proof
from titan_fast.protocol.opcodes import Role

REQUEST = 1
"""Request id of both frames; calls start above it."""


class Opening:
    """Proves a token to a master, and has it prove it first.

    Args:
        role: of the token.
        fence: speak for this attempt and for nobody else; the role is ``task`` then.
    """

    def __init__(
        self, connection: Connection, role: str, token: str, cluster: str = "", epoch: int = 0, fence: int = 0
    ) -> None:
        self.welcome: msg.Welcome | None = None
        self._connection = connection
        self._role = role
        self._token = token
        self._cluster = cluster
        self._epoch = epoch
        self._fence = fence
        self._nonce = secrets.token_hex(NONCE_BYTES)
        self._master_proved = False

    def hello(self) -> bytes:
        hello = msg.Hello(
            self._nonce,
            self._role,
            cluster=self._cluster,
            epoch=self._epoch,
            software=__version__,
            fence=self._fence,
        )
        return send(hello, request=REQUEST)

    def take(self, incoming: Incoming) -> bytes:
        """The next bytes to send, which may be none. One CHALLENGE, then one WELCOME; anything else ends it.

        Raises:
            TitanError: the master refused, could not prove that it knows the token, or says something else.
        """
        if incoming.error is not None:
            raise incoming.error
        message = incoming.message
        if isinstance(message, msg.Error):
            raise error_from(message)
        if incoming.is_reply and incoming.request == REQUEST and self.welcome is None:
            if isinstance(message, msg.Challenge) and not self._master_proved:
                return self._answer(message)
            # Without the proof it is not the master, whatever it says.
            if isinstance(message, msg.Welcome) and self._master_proved:
                self._enter(message)
                return b""
        raise UnexpectedMessage(f"{incoming.op.name} in the middle of the handshake")

    def _answer(self, challenge: msg.Challenge) -> bytes:
        if challenge.version != VERSION:
            raise WrongVersion(challenge.version)
        if not is_nonce(challenge.nonce) or not is_proof(
            challenge.proof, self._token, "master", self._nonce, challenge.nonce
        ):
            raise BadProof
        self._master_proved = True
        return send(msg.Proof(proof(self._token, "peer", self._nonce, challenge.nonce)), request=REQUEST)

    def _enter(self, welcome: msg.Welcome) -> None:
        role = Role.TASK if self._fence else self._role
        if welcome.role != role:
            raise UnexpectedMessage(f"WELCOME as a {welcome.role[:20]!r} for a {role}")
        if self._cluster and welcome.cluster != self._cluster:
            raise Refused("this master belongs to another cluster", hint="its state directory is not the one it was")
        self._connection.open(Role.MASTER)
        self.welcome = welcome


class Reception:
    """Proves the token that a HELLO names, and then has the peer prove it.

    Args:
        token_of: the token that a HELLO names, empty when there is none; may raise TitanError to refuse it.
    """

    def __init__(self, token_of: Callable[[msg.Hello], str]) -> None:
        self.hello: msg.Hello | None = None
        """Once it is answered."""
        self.is_proved = False
        self._token_of = token_of
        self._token = ""
        self._nonce = secrets.token_hex(NONCE_BYTES)

    def take(self, incoming: Incoming) -> bytes:
        """The next bytes to send, which may be none. One HELLO, then one PROOF; anything else ends it.

        Raises:
            TitanError: the peer is not who it says, or says something else; it is to be told.
        """
        if incoming.error is not None:
            raise incoming.error
        message = incoming.message
        if isinstance(message, msg.Hello) and self.hello is None:
            return self._challenge(message, incoming.request)
        if isinstance(message, msg.Proof) and self.hello is not None and not self.is_proved:
            if not is_proof(message.proof, self._token, "peer", self.hello.nonce, self._nonce):
                raise BadProof
            self.is_proved = True
            return b""
        raise UnexpectedMessage(f"{incoming.op.name} before the token is proved")

    def _challenge(self, hello: msg.Hello, request: int) -> bytes:
        if not hello.oldest <= VERSION <= hello.newest:
            raise WrongVersion(hello.newest)
        self._token = self._token_of(hello) if is_nonce(hello.nonce) else ""
        if not self._token:
            raise BadProof
        self.hello = hello
        challenge = msg.Challenge(self._nonce, proof(self._token, "master", hello.nonce, self._nonce))
        return send(challenge, request=request, is_reply=True)


def error_from(error: msg.Error) -> TitanError:
    return from_wire(error.code, error.message, error.hint, error.field)
