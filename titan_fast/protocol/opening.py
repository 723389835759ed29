"""The peer's side of a handshake, for clients and workers. No sockets.

    bytes to send = opening.hello()
    for each incoming: bytes to send = opening.take(incoming)
    until opening.welcome is set
"""

from __future__ import annotations

import secrets

from titan_fast._version import __version__
from titan_fast.errors import BadProof, TitanError, UnexpectedMessage, from_wire
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.handshake import NONCE_BYTES, is_proof, proof
from titan_fast.protocol.opcodes import Role

REQUEST = 1
"""Request id of both frames; calls start above it."""


class Opening:
    """Proves a token to a master, and has it prove it first."""

    def __init__(self, connection: Connection, role: str, token: str, cluster: str = "", epoch: int = 0) -> None:
        self.welcome: msg.Welcome | None = None
        self._connection = connection
        self._role = role
        self._token = token
        self._cluster = cluster
        self._epoch = epoch
        self._nonce = secrets.token_hex(NONCE_BYTES)

    def hello(self) -> bytes:
        return send(
            msg.Hello(self._nonce, self._role, cluster=self._cluster, epoch=self._epoch, software=__version__),
            request=REQUEST,
        )

    def take(self, incoming: Incoming) -> bytes:
        """The next bytes to send, which may be none.

        Raises:
            TitanError: the master refused, or could not prove that it knows the token.
        """
        if incoming.error is not None:
            raise incoming.error
        match incoming.message:
            case msg.Error() as error:
                raise error_from(error)
            case msg.Challenge() as challenge:
                if not is_proof(challenge.proof, self._token, "master", self._nonce, challenge.nonce):
                    raise BadProof
                return send(msg.Proof(proof(self._token, "peer", self._nonce, challenge.nonce)), request=REQUEST)
            case msg.Welcome() as welcome:
                self.welcome = welcome
                self._connection.open(Role.MASTER, welcome.max_body)
                return b""
        raise UnexpectedMessage(f"{incoming.op.name} in the middle of the handshake")


def error_from(error: msg.Error) -> TitanError:
    return from_wire(error.code, error.message, error.hint, error.field)
