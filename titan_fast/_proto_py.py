"""The frame codec in pure Python (contract: `_proto.pyi`, twin: `_proto.pyx`).

Sans-IO: bytes in, tuples out. Knows the shapes of `_layout` and nothing of what a message means. Cutting frames is
amortised O(bytes), packing and unpacking O(records). The `struct` module does the work; when it refuses a value, a
second, slow look finds the field and the record to blame.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from operator import index
from typing import NamedTuple, NoReturn

from titan_fast import _layout
from titan_fast.errors import BadFrame, BadRecords, FrameTooLarge, WrongVersion

_HEADER = struct.Struct(">BBBBI")
_OPENING = struct.Struct(">xBBxxxxxI")
"""What of a frame's first bytes is handed out: opcode, flags, request id."""
_FRAME = struct.Struct(">BBBBII")
_PROLOGUE = struct.Struct(">HHIQ")
_KINDS = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "i": "i32"}


class _Record(NamedTuple):
    number: int
    name: str
    fields: tuple[tuple[str, str], ...]
    row: struct.Struct


_RECORDS = {
    number: _Record(number, name, fields, struct.Struct(">" + "".join(code for _, code in fields)))
    for number, (name, fields) in _layout.LAYOUTS.items()
}


class Framer:
    """Cuts a byte stream into frames; see `_proto.pyi`.

    ``_held`` is the unfinished frame. ``_need`` is how many of its bytes allow the next step: a header at first, the
    whole frame once its header was accepted, so that a header is judged once, under the limit of that moment.
    """

    __slots__ = ("_error", "_held", "_max_body", "_need")

    def __init__(self, max_body: int = _layout.MAX_BODY) -> None:
        self.max_body = max_body
        self._error: BadFrame | None = None
        self._held = bytearray()
        self._need = _layout.HEADER_SIZE

    @property
    def max_body(self) -> int:
        return self._max_body

    @max_body.setter
    def max_body(self, value: int) -> None:
        self._max_body = _fit("max_body", value, "I")

    @property
    def error(self) -> BadFrame | None:
        return self._error

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, int, int, bytes]]:
        """Take bytes, return the frames they complete; see `_proto.pyi`."""
        view = memoryview(data).cast("B")
        if self._error is not None:
            return []
        if not self._held:
            frames, used = self._cut(view)
            if self._error is None:
                self._held += view[used:]
            return frames
        self._held += view
        if len(self._held) < self._need:
            return []
        with memoryview(self._held) as whole:
            frames, used = self._cut(whole)
        if self._error is None:
            del self._held[:used]
        return frames

    def pending(self) -> int:
        """Bytes held of an unfinished frame."""
        return len(self._held)

    def _cut(self, data: memoryview) -> tuple[list[tuple[int, int, int, bytes]], int]:
        """The whole frames at the front of ``data``, and how many bytes they take."""
        frames = []
        at, end, need = 0, len(data), self._need
        while end - at >= need:
            if need == _layout.HEADER_SIZE:
                version, _, flags, reserved, length = _HEADER.unpack_from(data, at)
                error = self._judge(version, flags, reserved, length)
                if error is not None:
                    self._error, self._held = error, bytearray()
                    break
                need += length
                continue
            opcode, flags, request = _OPENING.unpack_from(data, at)
            frames.append((opcode, flags, request, bytes(data[at + _FRAME.size : at + need])))
            at += need
            need = _layout.HEADER_SIZE
        self._need = need
        return frames, at

    def _judge(self, version: int, flags: int, reserved: int, length: int) -> BadFrame | None:
        if version != _layout.VERSION:
            return WrongVersion(version)
        if reserved:
            return BadFrame(f"the reserved byte of a frame header is {reserved}, it must be 0")
        if flags & ~_layout.KNOWN_FLAGS:
            return BadFrame(f"frame flags {flags:#04x} are not all known")
        if length < _layout.REQUEST_ID_SIZE:
            return BadFrame(f"frame body of {length} bytes, too short for its request id")
        if length > self._max_body:
            return FrameTooLarge(length, self._max_body)
        return None


def frame(opcode: int, flags: int, request_id: int, message: bytes) -> bytes:
    """One whole frame; see `_proto.pyi`."""
    _require_bytes("message", message)
    opcode, flags = _fit("opcode", opcode, "B"), _fit("flags", flags, "B")
    request_id = _fit("request id", request_id, "I")
    length = _layout.REQUEST_ID_SIZE + len(message)
    if length > _layout.MAX_BODY:
        raise FrameTooLarge(length, _layout.MAX_BODY)
    return _FRAME.pack(_layout.VERSION, opcode, flags, 0, length, request_id) + message


def pack(layout: int, sequence: int, columns: Sequence[Sequence[int | float]], tail: bytes = b"") -> bytes:
    """A hot message of columns; see `_proto.pyi`."""
    record = _RECORDS.get(layout)
    if record is None:
        raise ValueError(f"there is no record layout {layout!r}")
    _require_bytes("tail", tail)
    sequence = _fit("sequence", sequence, "Q")
    rows = [column if type(column) in (list, tuple) else list(column) for column in columns]
    if len(rows) != len(record.fields):
        raise ValueError(f"{record.name} records take {len(record.fields)} columns, not {len(rows)}")
    count = len(rows[0])
    for (field, _), column in zip(record.fields, rows, strict=True):
        if len(column) != count:
            raise ValueError(f"{record.name}.{field} has {len(column)} rows, the column before it {count}")
    _fit("number of records", count, "I")
    prologue = _PROLOGUE.pack(record.number, record.row.size, count, sequence)
    try:
        message = b"".join((prologue, *map(record.row.pack, *rows), tail))
    except struct.error:
        _blame(record, rows)
    if len(message) != _layout.PROLOGUE_SIZE + count * record.row.size + len(tail):
        raise ValueError("a column changed its length while it was packed")
    return message


def unpack(message: bytes) -> tuple[int, int, tuple[list[int | float], ...], bytes]:
    """The columns of a hot message; see `_proto.pyi`."""
    _require_bytes("message", message)
    if len(message) < _layout.PROLOGUE_SIZE:
        raise BadRecords(f"a hot message of {len(message)} bytes, its prologue takes {_layout.PROLOGUE_SIZE}")
    layout, size, count, sequence = _PROLOGUE.unpack_from(message)
    record = _RECORDS.get(layout)
    if record is None:
        raise BadRecords(f"there is no record layout {layout}")
    if size < record.row.size:
        raise BadRecords(f"{record.name} records of {size} bytes, their fields take {record.row.size}")
    end = _layout.PROLOGUE_SIZE + count * size
    if end > len(message):
        raise BadRecords(f"{count} {record.name} records of {size} bytes in a message of {len(message)} bytes")
    if size == record.row.size:
        rows = record.row.iter_unpack(memoryview(message)[_layout.PROLOGUE_SIZE : end])
    else:
        rows = map(record.row.unpack_from, [message] * count, range(_layout.PROLOGUE_SIZE, end, size))
    columns = tuple(map(list, zip(*rows, strict=True))) if count else tuple([] for _ in record.fields)
    return layout, sequence, columns, message[end:]


def _require_bytes(name: str, value: bytes) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}")


def _fit(name: str, value: int, code: str) -> int:
    """The value as a plain int, if it is one and the field can hold it."""
    number = int(index(value))
    try:
        struct.pack(">" + code, number)
    except struct.error:
        raise OverflowError(f"{name} does not fit {_KINDS[code]}") from None
    return number


def _blame(record: _Record, rows: list[Sequence[int | float]]) -> NoReturn:
    """Raise for the first value that its field cannot hold, looking field by field."""
    for (field, code), column in zip(record.fields, rows, strict=True):
        for row, value in enumerate(column):
            name = f"{record.name}.{field} of record {row}"
            if code != "d":
                _fit(name, value, code)  # type: ignore[arg-type]
                continue
            try:
                math.isfinite(value)  # says what struct hides: no number, or too large a one
            except OverflowError:
                raise OverflowError(f"{name} does not fit f64") from None
    raise AssertionError("struct refused a record, and every value of it fits")
