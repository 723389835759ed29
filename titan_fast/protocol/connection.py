"""The state machine between bytes and messages, for either end of a connection. No sockets, no clock.

`receive` turns bytes into what was said, judged by the sender's role; `send` turns a message into frames. A frame
that cannot be cut ends the connection (`broken`); a message that cannot be read or is not allowed is handed over as
an error for its request, and the connection goes on: one bad request is not everybody's problem. A stranger gets no
such patience.

``FLAG_MORE`` means that the message goes on in the next frame of the same opcode and request; streams of whole
messages (WATCH, LOGS) end with the one that says ``final``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from titan_fast import _layout as layout
from titan_fast._accel import Framer, frame, pack, unpack
from titan_fast.errors import BadFrame, BadMessage, BadRecords, TitanError, TooLarge, WrongRole
from titan_fast.protocol.messages import Error, Message, decode, encode
from titan_fast.protocol.opcodes import Op, Role, is_allowed

MAX_MESSAGE = 192 << 20
"""Longest reassembled message, bytes: a 64 MiB graph file with every default written out."""

HOT_LAYOUTS = {
    Op.ASSIGN: layout.LOT,
    Op.STARTED: layout.STARTED,
    Op.RESULT: layout.RESULT,
    Op.ACK: layout.RESULT,
    Op.RECALL: layout.SLICE,
    Op.KILL: layout.KILL,
    Op.HEARTBEAT: layout.PULSE,
}
"""Which records each hot opcode carries. ACK has none: its sequence says it all."""


class Incoming(msgspec.Struct, frozen=True):
    """Something that was said. ``error`` is set when it could not be read or was not allowed."""

    op: Op
    request: int
    is_reply: bool = False
    message: Message | None = None
    attachments: tuple[bytes, ...] = ()
    sequence: int = 0
    columns: tuple[list[int], ...] = ()
    tail: bytes = b""
    error: TitanError | None = None


class Connection:
    """One end. ``sender`` is the role of the other end, as far as it is proved."""

    def __init__(self, sender: Role, max_body: int = layout.MAX_BODY_BEFORE_HELLO) -> None:
        self.sender = sender
        self.max_message = MAX_MESSAGE
        self.broken: TitanError | None = None
        self._framer = Framer(max_body)
        self._parts: dict[tuple[int, int], list[bytes]] = {}
        self._parts_size = 0

    def open(self, sender: Role, max_body: int = layout.MAX_BODY) -> None:
        """The handshake is done: the other end is who it says, and may say more at once."""
        self.sender = sender
        self._framer.max_body = max_body

    def receive(self, data: bytes | bytearray | memoryview) -> list[Incoming]:
        """What these bytes complete, in order. After it, look at ``broken``."""
        said = []
        for opcode, flags, request, body in self._framer.feed(data):
            if self.broken is not None:
                break
            incoming = self._read(opcode, flags, request, body)
            if incoming is not None:
                said.append(incoming)
                if incoming.error is not None and self.sender is Role.STRANGER:
                    self.broken = incoming.error
        if self.broken is None and self._framer.error is not None:
            self.broken = self._framer.error
        return said

    def _read(self, opcode: int, flags: int, request: int, body: bytes) -> Incoming | None:
        try:
            op = Op(opcode)
        except ValueError:
            # A newer peer may know more; a request it cannot have answered is answered with an error.
            error = BadMessage(f"opcode {opcode:#04x} is not known")
            return Incoming(Op.ERROR, request, bool(flags & layout.FLAG_REPLY), error=error)
        is_reply = bool(flags & layout.FLAG_REPLY)
        if not is_allowed(op, self.sender):
            return Incoming(op, request, is_reply, error=WrongRole(str(self.sender), op.name))
        if flags & layout.FLAG_MORE or (opcode, request) in self._parts:
            whole = self._collect(opcode, flags, request, body)
            if whole is None:
                return None
            body = whole
        try:
            if op.hot:
                return self._read_hot(op, request, is_reply, body)
            message, attachments = decode(op, body, bool(flags & layout.FLAG_ATTACHMENTS))
        except (BadMessage, BadRecords) as error:
            return Incoming(op, request, is_reply, error=error)
        return Incoming(op, request, is_reply, message, attachments)

    def _collect(self, opcode: int, flags: int, request: int, body: bytes) -> bytes | None:
        """Parts of a message that came in several frames; None until the last one."""
        key = (opcode, request)
        self._parts_size += len(body)
        if self._parts_size > self.max_message or self.sender is Role.STRANGER:
            self.broken = TooLarge(
                f"a message of more than {self.max_message} bytes", hint="split the graph, or raise limits.max_message"
            )
            self._parts.clear()
            return None
        parts = self._parts.setdefault(key, [])
        parts.append(body)
        if flags & layout.FLAG_MORE:
            return None
        del self._parts[key]
        self._parts_size -= sum(map(len, parts))
        return b"".join(parts)

    def _read_hot(self, op: Op, request: int, is_reply: bool, body: bytes) -> Incoming:
        found, sequence, columns, tail = unpack(body)
        if found != HOT_LAYOUTS[op]:
            raise BadRecords(f"{op.name} with records of layout {found}")
        return Incoming(op, request, is_reply, sequence=sequence, columns=columns, tail=tail)  # type: ignore[arg-type]


def send(message: Message, attachments: tuple[bytes, ...] = (), request: int = 0, is_reply: bool = False) -> bytes:
    """A cold message as one frame, or as several when it is longer than a frame may be."""
    body, has_attachments = encode(message, attachments)
    flags = (layout.FLAG_REPLY if is_reply else 0) | (layout.FLAG_ATTACHMENTS if has_attachments else 0)
    room = layout.MAX_BODY - layout.REQUEST_ID_SIZE
    if len(body) <= room:
        return frame(message.op, flags, request, body)
    cuts = range(0, len(body), room)
    return b"".join(
        frame(message.op, flags | (layout.FLAG_MORE if at != cuts[-1] else 0), request, body[at : at + room])
        for at in cuts
    )


def send_hot(op: Op, sequence: int, columns: Sequence[Sequence[int | float]], tail: bytes = b"") -> bytes:
    """Packed records as one frame; the caller keeps batches under the frame limit."""
    return frame(op, 0, 0, pack(HOT_LAYOUTS[op], sequence, columns, tail))


def send_error(error: TitanError, request: int) -> bytes:
    return send(Error(error.code, error.message, error.hint, error.field), request=request, is_reply=True)


def old_version_error(error: BadFrame) -> bytes:
    """A version-1 error frame, so that a client of the original protocol can read why nothing works."""
    text = f"ERROR: {error.message}; this master speaks TITAN_PROTO 2".encode()
    return bytes((layout.OLD_VERSION, 0x00, 0, 0)) + len(text).to_bytes(4, "big") + text
