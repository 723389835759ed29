"""The state machine between bytes and messages, for either end of a connection. No sockets, no clock.

`receive` turns bytes into what was said, judged by the sender's role; `send` turns a message into frames. A frame
that cannot be cut ends the connection (`broken`); a message that cannot be read or is not allowed is handed over as
an error for its request, and the connection goes on: one bad request is not everybody's problem. Before the handshake
is done nobody gets such patience.

``FLAG_MORE`` means that the message goes on in the next frame of the same opcode and request; streams of whole
messages (WATCH, LOGS) end with the one that says ``final``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from titan_fast import _layout as layout
from titan_fast._accel import Framer, frame, pack, unpack
from titan_fast.errors import BadFrame, BadMessage, BadRecords, TitanError, TooLarge, WrongRole
from titan_fast.protocol.messages import Error, Message, decode, encode
from titan_fast.protocol.opcodes import BY_NUMBER, Op, Role, is_allowed

MAX_MESSAGE = 192 << 20
"""Longest reassembled message, bytes: a 64 MiB graph file with every default written out. All unfinished messages of
a connection share it."""

MAX_UNFINISHED = 16
"""Messages of one connection that may be under way in parts at a time."""

FAIR_SHARE = 1 << 20
"""Bytes a connection may always hold, whatever is left of the budget."""

MAX_ERROR_TEXT = 16 << 10
"""Characters of an error's text on the wire."""

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


_PROLOGUE = struct.Struct(">HHIQ")


class Incoming(msgspec.Struct, frozen=True):
    """Something that was said. ``error`` is set when it could not be read or was not allowed.

    A message of an opcode nobody here knows has ``op`` ERROR and ``error`` set.
    """

    op: Op
    request: int
    is_reply: bool = False
    message: Message | None = None
    attachments: tuple[bytes, ...] = ()
    sequence: int = 0
    columns: tuple[list[int], ...] = ()
    tail: bytes = b""
    error: TitanError | None = None


class Budget:
    """Bytes of incomplete frames and messages that many connections may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class _Unfinished:
    """The parts of a message so far. One buffer: a list would cost more memory than tiny parts pay for."""

    __slots__ = ("body", "flags")

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.body = bytearray()


class Connection:
    """One end. ``sender`` is the role of the other end, as far as it is proved."""

    def __init__(self, sender: Role, max_body: int = layout.MAX_BODY_BEFORE_HELLO) -> None:
        self.sender = sender
        self.max_message = MAX_MESSAGE
        self.broken: TitanError | None = None
        self._is_open = False
        self._framer = Framer(max_body)
        self._unfinished: dict[tuple[int, int], _Unfinished] = {}
        self._unfinished_size = 0
        self._budget: Budget | None = None
        self._charged = 0

    def open(
        self,
        sender: Role,
        max_body: int = layout.MAX_BODY,
        max_message: int = MAX_MESSAGE,
        budget: Budget | None = None,
    ) -> None:
        """The handshake is done: the other end is who it says, and may say more at once.

        With a ``budget`` the owner calls `close` when the connection has ended.
        """
        self.sender = sender
        self.max_message = max_message
        self._is_open = True
        self._framer.max_body = min(max_body, layout.MAX_BODY)
        self._budget = budget

    def close(self) -> None:
        """Nothing more will come: what is incomplete is dropped and paid back to the budget."""
        self._unfinished.clear()
        self._unfinished_size = 0
        if self._budget is not None:
            self._budget.held -= self._charged
        self._charged = 0
        self._budget = None

    @property
    def held(self) -> int:
        """Bytes kept of what is not complete yet."""
        return self._framer.pending() + self._unfinished_size

    def receive(self, data: bytes | bytearray | memoryview) -> list[Incoming]:
        """What these bytes complete, in order. After it, look at ``broken``; once broken, nothing is read."""
        said: list[Incoming] = []
        if self.broken is not None:
            return said
        for opcode, flags, request, body in self._framer.feed(data):
            incoming = self._read(opcode, flags, request, body)
            if incoming is not None:
                said.append(incoming)
                if incoming.error is not None and not self._is_open:
                    self.broken = incoming.error
            if self.broken is not None:
                break
        if self.broken is None:
            self.broken = self._framer.error
        self._charge()
        if self.broken is not None:
            self.close()
        return said

    def _charge(self) -> None:
        if self._budget is None:
            return
        held, before = self.held, self._charged
        self._budget.held += held - before
        self._charged = held
        # When others have used it up, whoever holds little still may finish a frame.
        if self._budget.held > self._budget.limit and held > max(before, FAIR_SHARE) and self.broken is None:
            self.broken = TooLarge(
                f"unfinished messages of more than {self._budget.limit} bytes on all connections",
                hint="try again in a moment",
            )

    def _read(self, opcode: int, flags: int, request: int, body: bytes) -> Incoming | None:
        more = bool(flags & layout.FLAG_MORE)
        is_reply = bool(flags & layout.FLAG_REPLY)
        if more and not self._is_open:
            self.broken = BadFrame("a message in several frames before the handshake is done")
            return None
        op = BY_NUMBER.get(opcode)
        if op is None:
            # A newer peer may know more; a request it cannot have answered is answered with an error, once.
            error = BadMessage(f"opcode {opcode:#04x} is not known")
            return None if more else Incoming(Op.ERROR, request, is_reply, error=error)
        if not is_allowed(op, self.sender):
            return None if more else Incoming(op, request, is_reply, error=WrongRole(str(self.sender), op.name))
        if op.hot:
            return self._read_hot(op, flags, request, body)
        if more or (opcode, request) in self._unfinished:
            whole = self._collect(opcode, flags, request, body)
            if whole is None:
                return None
            body = whole
        if is_reply and op is not Op.ERROR and Role.MASTER not in op.roles:
            # Not handed over as a reply: nobody waits for one, and its sender should hear what is wrong.
            return Incoming(op, request, error=BadMessage(f"{op.name} is a request and cannot be a reply"))
        try:
            message, attachments = decode(op, body, bool(flags & layout.FLAG_ATTACHMENTS))
        except BadMessage as error:
            return Incoming(op, request, is_reply, error=_bare(error))
        return Incoming(op, request, is_reply, message, attachments)

    def _collect(self, opcode: int, flags: int, request: int, body: bytes) -> bytes | None:
        """Parts of a message that came in several frames; None until the last one, or when they break a rule."""
        key = (opcode, request)
        more = bool(flags & layout.FLAG_MORE)
        flags &= ~layout.FLAG_MORE
        unfinished = self._unfinished.get(key)
        if unfinished is None:
            if len(self._unfinished) == MAX_UNFINISHED:
                self.broken = TooLarge(f"more than {MAX_UNFINISHED} unfinished messages")
                return None
            unfinished = self._unfinished[key] = _Unfinished(flags)
        if flags != unfinished.flags:
            self.broken = BadFrame("the flags of a message change between its frames")
            return None
        if more and not body:
            self.broken = BadFrame("an empty part of a message")
            return None
        self._unfinished_size += len(body)
        if self._unfinished_size > self.max_message:
            self.broken = too_large(self.max_message)
            return None
        unfinished.body += body
        if more:
            return None
        del self._unfinished[key]
        self._unfinished_size -= len(unfinished.body)
        return bytes(unfinished.body)

    def _read_hot(self, op: Op, flags: int, request: int, body: bytes) -> Incoming:
        is_reply = bool(flags & layout.FLAG_REPLY)
        try:
            if flags & ~layout.FLAG_REPLY:
                raise BadRecords(f"{op.name} records come in one frame and without attachments")
            found, sequence, columns, tail = unpack(body)
            if found != HOT_LAYOUTS[op]:
                raise BadRecords(f"{op.name} with records of layout {found}")
        except BadRecords as error:
            return Incoming(op, request, is_reply, error=_bare(error))
        return Incoming(op, request, is_reply, sequence=sequence, columns=columns, tail=tail)  # type: ignore[arg-type]


def _bare(error: TitanError) -> TitanError:
    """Without where it came from: frames that hold what we return would hold themselves, connection and all."""
    error.__context__ = None
    return error.with_traceback(None)


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"a message of more than {limit} bytes", hint="split the graph, or raise limits.max_message")


def send(
    message: Message,
    attachments: tuple[bytes, ...] = (),
    request: int = 0,
    is_reply: bool = False,
    max_message: int = MAX_MESSAGE,
) -> bytes:
    """A cold message as one frame, or as several when it is longer than a frame may be.

    Raises:
        TooLarge: longer than ``max_message``; the other end would hang up over it.
        BadMessage: a text in it is not Unicode.
    """
    body, has_attachments = encode(message, attachments)
    if len(body) > max_message:
        raise too_large(max_message)
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


def send_packed(op: Op, sequence: int, count: int, records: bytes, tail: bytes) -> bytes:
    """The same of records that somebody has packed already."""
    size = len(records) // count
    prologue = _PROLOGUE.pack(HOT_LAYOUTS[op], size, count, sequence)
    return frame(op, 0, 0, b"".join((prologue, records, tail)))


def send_error(error: TitanError, request: int) -> bytes:
    """A typed error. It always leaves: text that is not Unicode is escaped, and very long text is cut."""
    texts = (_sendable(text) for text in (error.code, error.message, error.hint, error.field))
    return send(Error(*texts), request=request, is_reply=True)


def _sendable(text: str) -> str:
    if len(text) > MAX_ERROR_TEXT:
        text = text[:MAX_ERROR_TEXT] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def old_version_error(error: BadFrame) -> bytes:
    """A version-1 error frame, so that a client of the original protocol can read why nothing works."""
    text = f"ERROR: {error.message}; this master speaks TITAN_PROTO 2".encode()
    return bytes((layout.OLD_VERSION, 0x00, 0, 0)) + len(text).to_bytes(4, "big") + text
