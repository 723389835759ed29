"""The contract of the frame codec: `_proto.pyx` (compiled) and `_proto_py.py` (pure) both keep it.

Sans-IO: bytes in, tuples out. Layouts and limits come from `_layout`. Both twins raise the same exception with
the same text for the same input.
"""

from collections.abc import Sequence

from titan_fast.errors import BadFrame

class Framer:
    """Cuts a byte stream into frames. Amortised O(bytes); holds at most one unfinished frame."""

    max_body: int
    """Longest body accepted, bytes; may be raised (after HELLO) or lowered at any time."""
    error: BadFrame | None
    """Set once, by the first bad header. From then on nothing is cut and further input is dropped."""

    def __init__(self, max_body: int = ...) -> None: ...
    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, int, int, bytes]]:
        """Take bytes, return the frames they complete: (opcode, flags, request id, message).

        The length is checked against ``max_body`` as soon as the header is there, before anything is allocated.
        A bad header ends the stream: frames before it are returned and ``error`` is set. It is bad when the
        version is not 2 (`WrongVersion`), the reserved byte is not 0, unknown flags are set, the body is shorter
        than the request id, or longer than ``max_body`` (`FrameTooLarge`).
        """

    def pending(self) -> int:
        """Bytes held of an unfinished frame."""

def frame(opcode: int, flags: int, request_id: int, message: bytes) -> bytes:
    """One whole frame. Raises FrameTooLarge over `_layout.MAX_BODY`, OverflowError for numbers out of range."""

def pack(layout: int, sequence: int, columns: Sequence[Sequence[int | float]], tail: bytes = b"") -> bytes:
    """A hot message: prologue, one record per row of the columns (one column per field), tail.

    Raises ValueError for an unknown layout, a wrong number of columns or columns of unequal length, OverflowError
    for a value that does not fit its field.
    """

def unpack(message: bytes) -> tuple[int, int, tuple[list[int | float], ...], bytes]:
    """A hot message as (layout, sequence, one list per field, tail).

    Raises BadRecords when the prologue is cut short, the layout unknown, the record size smaller than the layout's
    fields, or the records longer than the message. Records longer than the layout are read by their front.
    """
