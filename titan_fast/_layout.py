"""The numbers of TITAN_PROTO 2 that both twins of the codec read. Imports nothing of the house.

Everything on the wire is big-endian. A frame is the 8-byte header, a u32 request id and a message. A hot
message is a prologue (layout id u16, record size u16, record count u32, sequence u64), ``count`` packed records
of one layout, and a tail of raw bytes whose meaning belongs to the layout. A reader takes the fields it knows
from the front of each record and skips the rest of it, so layouts grow at their end only.
"""

from __future__ import annotations

VERSION = 2
OLD_VERSION = 1
HEADER_SIZE = 8
"""version u8, opcode u8, flags u8, reserved u8 (0), body length u32."""
REQUEST_ID_SIZE = 4
PROLOGUE_SIZE = 16
"""layout u16, record size u16, record count u32, sequence u64."""

FLAG_REPLY = 1
FLAG_ATTACHMENTS = 2
FLAG_MORE = 4
KNOWN_FLAGS = FLAG_REPLY | FLAG_ATTACHMENTS | FLAG_MORE

MAX_BODY = 16 << 20
"""Longest body of one frame, bytes; longer messages travel as several frames."""
MAX_BODY_BEFORE_HELLO = 4 << 10

# Field types, as in the struct module: Q u64, I u32, H u16, B u8, i i32, d f64. Times are microseconds of the
# wall clock of the machine that wrote them, durations microseconds.
LAYOUTS: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    1: (
        "lot",
        (
            ("run", "Q"),
            ("spec", "I"),
            ("first", "I"),
            ("count", "I"),
            ("generation", "H"),
            ("attempt", "H"),
            ("fence", "Q"),
            ("payload_size", "I"),
        ),
    ),
    2: (
        "started",
        (
            ("run", "Q"),
            ("index", "I"),
            ("generation", "H"),
            ("fence", "Q"),
            ("pid", "I"),
            ("started", "Q"),
        ),
    ),
    3: (
        "result",
        (
            ("run", "Q"),
            ("index", "I"),
            ("generation", "H"),
            ("ending", "B"),
            ("flags", "B"),
            ("fence", "Q"),
            ("code", "i"),
            ("started", "Q"),
            ("duration", "Q"),
            ("output_size", "Q"),
            ("result_size", "I"),
        ),
    ),
    4: ("slice", (("run", "Q"), ("first", "I"), ("count", "I"), ("fence", "Q"))),
    5: ("kill", (("run", "Q"), ("index", "I"), ("fence", "Q"), ("grace", "I"))),
    6: ("pulse", (("running", "I"), ("queued", "I"), ("load", "d"), ("memory", "Q"))),
}
"""Hot record layouts: id -> (name, fields).

* lot: ``count`` consecutive tasks of one spec, whose fences are ``fence``, ``fence + 1``, …; the tail holds, lot
  after lot, ``payload_size`` bytes: (count + 1) u32 offsets and the payloads they cut, or nothing.
* started, result: one attempt each; the tail of results holds ``result_size`` bytes for each record in order. Bit 0
  of ``flags``: these bytes are the address (SHA-256, 64 hex digits) of a file that was brought to the master before.
* slice: consecutive attempts to give back. kill: one attempt to end; ``grace`` in milliseconds.
* pulse: what a heartbeat tells; ``memory`` is the machine's available bytes.
"""

LOT, STARTED, RESULT, SLICE, KILL, PULSE = 1, 2, 3, 4, 5, 6

RESULT_IS_FILE = 1
"""In ``flags`` of a result."""
RESULT_PREFIX = "artifact:"
"""What stands before the address of a result that is a file, wherever its text is shown or passed on."""

# Starting a process.
MAX_NOTE = 200
"""Bytes of what a new process writes down about itself (the buffer in `_spawn.pyx` has room for it)."""

# The ready queue.
QUANTUM = 0.001
"""Seconds of expected work one run may take from a class before another run of equal priority has its turn."""
DEFAULT_COST = 0.001
"""Expected seconds of a task nobody has measured yet."""
