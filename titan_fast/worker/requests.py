"""What the agent asks the master for, and the answers, over the link; what was asked is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from titan_fast.errors import ConnectionLost
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send
from titan_fast.protocol.opening import error_from


class Requests:
    """Questions of one kind. Whoever asks has numbers of its own, so that all of them can be shown every answer."""

    def __init__(self, send_frame: Callable[[bytes], None], first: int) -> None:
        """``first``: the first request id; those below are others'."""
        self._send = send_frame
        self._next = first
        self._answers: dict[int, asyncio.Future[Incoming]] = {}

    async def ask(self, message: msg.Message, attachments: tuple[bytes, ...] = ()) -> Incoming:
        """The master's answer.

        Raises:
            ConnectionLost: there will be none, as the connection was cut; raised when there is a new one.
            TitanError: what the master says instead.
        """
        request = self._say(message, attachments)
        answer = self._answers[request] = asyncio.get_running_loop().create_future()
        try:
            incoming: Incoming = await answer
        finally:
            del self._answers[request]
        if isinstance(incoming.message, msg.Error):
            raise error_from(incoming.message)
        return incoming

    def tell(self, message: msg.Message) -> None:
        """Whatever the master answers, nobody listens."""
        self._say(message, ())

    def _say(self, message: msg.Message, attachments: tuple[bytes, ...]) -> int:
        request = self._next
        self._next += 1
        self._send(send(message, attachments, request))
        return request

    def answered(self, incoming: Incoming) -> None:
        answer = self._answers.get(incoming.request)
        if answer is not None and not answer.done():
            answer.set_result(incoming)

    def ask_again(self) -> None:
        """There is a new connection: what was asked on the old one, or in between, will not be answered."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionLost("the connection to the master broke"))
