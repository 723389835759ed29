"""A lane: one process for functions, what it was given, and what it has written of that.

The book holds the members in the order in which the process runs them. They are struck off as their records are read
out of the shared memory (`_pool`), and what the process has not begun can be taken back. Knows no event loop, no other
lane, and nobody who is told: `functions` starts and ends the processes, and passes on what is read here.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import socket
import struct
import subprocess
import time
from collections import deque

import msgspec

from titan_fast import _layout as layout
from titan_fast._accel import pack
from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import _pool, tree
from titan_fast.worker.executors.spawn import encode
from titan_fast.worker.slots import Stretch, payloads

BATCH = 0.001
"""Seconds of work that a lane is given at a time, by what such work has taken so far."""
MAX_KNOWN = 256
"""Specs that a process is told of until it forgets them all."""
DRAIN = 0.00002
"""Seconds, more than any processor keeps what it has written to itself: a claim that was made before our range could be
seen is seen after them. So the processes need no barrier of their own for each member."""
_RECORD = _pool.RESULT.size
_SIZE = struct.Struct(f">{_RECORD - 4}xI")
_ENDING_AT = 8 + 4 + 2
_BEGAN_AT = 8 + 4 + 2 + 1 + 1 + 8 + 4
"""Where a record says how it ended (its flags follow), and when it began (its duration follows)."""


class Kind(msgspec.Struct, frozen=True):
    """What processes differ in."""

    env: tuple[tuple[str, str], ...]
    """All of the environment."""
    project: str
    """The working copy where they run; empty: nowhere in particular."""


class Cost:
    """What members of a function take."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None
        """None: nobody knows yet."""


class Function:
    """One spec of a run, as the master described it last."""

    __slots__ = (
        "arguments",
        "cost",
        "first",
        "grace",
        "is_array",
        "kind",
        "name",
        "number",
        "pickled",
        "run",
        "spec",
        "spread",
        "timeout",
    )

    def __init__(
        self,
        number: int,
        run: int,
        spec: int,
        name: str,
        first: int,
        is_array: bool,
        pickled: bytes,
        arguments: tuple[bytes, ...],
        timeout: float,
        grace: float,
        kind: Kind,
        spread: bool = False,
    ) -> None:
        """``number`` is given once in the life of an agent: a run's may mean another one to the next master."""
        self.number = number
        self.run = run
        self.spec = spec
        self.name = name
        self.first = first
        self.is_array = is_array
        self.spread = spread or not is_array
        """What a member is given are (args, kwargs)."""
        self.pickled = pickled
        self.arguments = arguments
        self.timeout = timeout
        self.grace = grace
        self.kind = kind
        self.cost = Cost()
        """Shared with other specs that call the same function."""

    def described(self) -> bytes:
        arguments = list(self.arguments)
        return marshal.dumps(
            (self.number, self.run, self.name, self.first, self.is_array, self.spread, self.pickled, arguments)
        )


class Ended(msgspec.Struct, gc=False):
    """Records and bytes of results, as a RESULT frame has them."""

    records: bytes
    tail: bytes
    attempts: list[tuple[int, int]]
    """(how many, number of the attempt) of consecutive ones."""
    alone: list[Function]
    """Those that are no arrays: nothing is left to do of them."""
    is_special: bool = False
    """Some have more to be told of: output, a file, a door that was opened."""

    @property
    def count(self) -> int:
        return len(self.records) // _RECORD


class Entry:
    """Consecutive members that a lane was given."""

    __slots__ = ("function", "is_taken", "position", "stretch")

    def __init__(self, function: Function, stretch: Stretch, position: int, is_taken: bool = False) -> None:
        self.function = function
        self.stretch = stretch
        self.position = position
        self.is_taken = is_taken
        """They were taken back; the process passes them over, and says so when it comes to them."""

    def split(self, at: int) -> Entry:
        """Cut off and return everything from the member ``at`` on."""
        return Entry(self.function, self.stretch.split(at), self.position + at, self.is_taken)

    def meets(self, fence: int, count: int) -> bool:
        """Whether some of these consecutive fences are among them, and were not taken back."""
        stretch = self.stretch
        return not self.is_taken and stretch.fence < fence + count and fence < stretch.fence + stretch.count


class Lane:
    """One process, and what it was given and has not told the end of. Whoever starts it fills in what is of it."""

    def __init__(self, kind: Kind, output: str) -> None:
        """``output``: the file it writes to, which names it."""
        self.kind = kind
        self.output = output
        self.process: subprocess.Popen[bytes]
        self.link: socket.socket
        self.memory: mmap.mmap
        self.cells: memoryview
        self.drain = DRAIN
        """Seconds until what either side has written is seen by the other."""
        self.pidfd = -1
        self.unsent = bytearray()
        self.question = b""
        """The beginning of something it asked."""
        self.known: set[int] = set()
        self.book: deque[Entry] = deque()
        """In the order it runs them, consecutive positions."""
        self.next = 1
        """Position of the next member it is given."""
        self.batches: deque[tuple[int, float]] = deque()
        """The batches it was given: last position, and the seconds that is expected to take."""
        self.ahead = 0.0
        """Seconds of all of them."""
        self.read = 0
        """Rows taken out of the shared memory; since the last time it began at the front: rows and bytes."""
        self.turn = 0
        self.row = self.at = 0
        self.started = 0
        """Position that was said to have started."""
        self.born = 0.0
        self.start = 0
        """As `tree.Tree` has them."""
        self.ending: tuple[int, Ending] | None = None
        """(position, how) of the member it is being ended for; 0: for none, whatever it is at."""
        self.began = 0
        """Since when that one runs, also when it has returned meanwhile: it is not over before all is gone."""
        self.died = 0.0
        """When its process was seen to have ended (monotonic)."""
        self.is_stuck = self.is_old = False
        """Old: its working copy is about to go, so it gets nothing more."""
        self.is_let_go = self.is_dead = self.is_gone = False
        """Let go: it had nothing to do, and was hung up on. Dead: its process has ended. Gone: and all it started."""
        self.idle_since = 0.0
        self.files = 0

    def members(self) -> int:
        return sum(entry.stretch.count for entry in self.book if not entry.is_taken)

    def meets(self, fence: int, count: int) -> bool:
        """Whether it was given some of these consecutive fences, and not all of those were taken back."""
        return any(entry.meets(fence, count) for entry in self.book)

    def running(self) -> tuple[int, int]:
        """(position, since when in nanoseconds) of what it is at, after all it has written was read; position 0: it is
        at nothing."""
        if self.ending is not None and self.book and self.ending[0] == self.book[0].position:
            return self.ending[0], self.began
        began, position = self.cells[_pool.BEGAN], self.cells[_pool.CLAIMED]
        return (position, began) if began and self.book and position == self.book[0].position else (0, 0)

    def hang_up(self) -> None:
        """It ends when it has come to the end of what it was told."""
        with contextlib.suppress(OSError):  # it has ended already
            self.link.shutdown(socket.SHUT_WR)

    def tree(self, attempts: str) -> tree.Tree:
        """How to tell what it started, before it goes on to another output. ``attempts``: where the directories of
        attempts are."""
        fence = format_fence(self.book[0].stretch.fence) if self.running()[0] else ""
        output = (0, 0)
        with contextlib.suppress(OSError):
            status = os.stat(self.output)
            output = (status.st_dev, status.st_ino)
        return tree.Tree(
            leader=self.process.pid,
            born=self.born,
            fence=encode(fence),
            place=encode(f"{attempts}/{fence}"),
            output=output,
            start=self.start,
            process=encode(self.output),
        )

    # ---------------------------------------------------------------- giving

    def give(self, function: Function, stretch: Stretch) -> list[tuple[bytes, bytes]]:
        """Put members into the book. Returns what its process is to be told of them: each is its kind and what it
        says."""
        messages: list[tuple[bytes, bytes]] = []
        if function.number not in self.known:
            if len(self.known) == MAX_KNOWN:
                messages.append((b"F", b""))
                self.known.clear()
            if function.is_array:  # of the others it forgets the description itself
                self.known.add(function.number)
            messages.append((b"S", function.described()))
        blob = payloads(stretch)
        row = (
            [stretch.run],
            [function.number],
            [stretch.first],
            [stretch.count],
            [stretch.generation],
            [stretch.attempt],
            [stretch.fence],
            [len(blob)],
        )
        messages.append((b"L", pack(layout.LOT, self.next, row, blob)))
        self.book.append(Entry(function, stretch, self.next))
        self.next += stretch.count
        seconds = stretch.count * (function.cost.seconds or BATCH)
        self.batches.append((self.next - 1, seconds))
        self.ahead += seconds
        return messages

    # ---------------------------------------------------------------- reading

    def read_on(self) -> tuple[Ended, list[Stretch]] | None:
        """What the process has written since: whole records, in the order of their positions, and which members it
        has passed over that were not taken back. None: nothing."""
        cells = self.cells
        rows = cells[_pool.ROWS]
        count = rows - self.read
        if self.ending is not None and not self.is_gone and self.book:
            before = self.ending[0] - self.book[0].position
            if 0 <= before < count:
                # It has come to its own end while it was ended: that is told when what it started is gone.
                count = before
                if not self.is_dead:
                    self.hang_up()
        if not count:
            return None
        if cells[_pool.TURN] != self.turn:
            self.turn = cells[_pool.TURN]
            self.row = self.at = 0
        start = _pool.ROWS_AT + self.row * _RECORD
        records = self.memory[start : start + count * _RECORD]
        size = sum(size for (size,) in _SIZE.iter_unpack(records))
        start = _pool.BYTES_AT + self.at
        tail = self.memory[start : start + size]
        self.row += count
        self.at += size
        self.read += count
        cells[_pool.READ] = self.read
        self.is_stuck = False
        ended = Ended(records, tail, [], [], is_special=any(records[_ENDING_AT + 1 :: _RECORD]))
        unrun: list[Stretch] = []
        if any(records[_ENDING_AT::_RECORD]):
            ended.records = self._strike_passed_over(ended, unrun)
        else:
            self._strike(count, ended)
        while self.batches and (not self.book or self.batches[0][0] < self.book[0].position):
            self.ahead -= self.batches.popleft()[1]
        if not self.batches:
            self.ahead = 0.0
        return ended, unrun

    def _strike(self, count: int, ended: Ended) -> None:
        """So many from the front of the book are over."""
        at = 0
        while count:
            entry = self.book[0]
            part = min(count, entry.stretch.count)
            ended.attempts.append((part, entry.stretch.attempt))
            self._measure(entry.function, ended.records, at, part)
            if not entry.function.is_array:
                ended.alone.append(entry.function)
            if part == entry.stretch.count:
                self.book.popleft()
            else:
                self.book[0] = entry.split(part)
            count -= part
            at += part

    def _strike_passed_over(self, ended: Ended, unrun: list[Stretch]) -> bytes:
        """The same when some were passed over. Returns the records of those that were not."""
        records = ended.records
        kept = []
        for at, ending in enumerate(records[_ENDING_AT::_RECORD]):
            entry = self.book[0]
            if entry.stretch.count == 1:
                self.book.popleft()
            else:
                self.book[0] = entry.split(1)
            if not ending:
                kept.append(records[at * _RECORD : (at + 1) * _RECORD])
                ended.attempts.append((1, entry.stretch.attempt))
                if not entry.function.is_array:
                    ended.alone.append(entry.function)
            elif not entry.is_taken:
                unrun.append(entry.stretch)
        return b"".join(kept)

    @staticmethod
    def _measure(function: Function, records: bytes, first: int, count: int) -> None:
        """What a member takes, from when the first of these began to when the last one ended."""
        began = int.from_bytes(records[first * _RECORD + _BEGAN_AT :][:8], "big")
        last = (first + count - 1) * _RECORD
        ended = int.from_bytes(records[last + _BEGAN_AT :][:8], "big")
        ended += int.from_bytes(records[last + _BEGAN_AT + 8 :][:8], "big")
        seconds = max(1, ended - began) / count / 1e6
        known = function.cost.seconds
        function.cost.seconds = seconds if known is None else 0.5 * known + 0.5 * seconds

    # ---------------------------------------------------------------- taking back

    def take_back(self) -> list[Stretch]:
        """What the process has not claimed: from now on it passes it over. Should it be on its way there in this very
        moment, nothing is taken at once: it says itself what it passed over."""
        cells = self.cells
        claimed = cells[_pool.CLAIMED]
        if claimed >= cells[_pool.TAKEN_TO]:
            cells[_pool.TAKEN_TO] = 0
            cells[_pool.TAKEN_FROM] = claimed + 1
            cells[_pool.TAKEN_TO] = self.next
        elif claimed < cells[_pool.TAKEN_FROM]:
            cells[_pool.TAKEN_TO] = self.next
            cells[_pool.TAKEN_FROM] = claimed + 1
        else:
            cells[_pool.TAKEN_TO] = self.next
            return []
        time.sleep(self.drain)
        if cells[_pool.CLAIMED] != claimed:
            return []
        taken: list[Stretch] = []
        book: deque[Entry] = deque()
        for entry in self.book:
            if not entry.is_taken and entry.position + entry.stretch.count > claimed + 1:
                rest = entry
                if entry.position <= claimed:
                    rest = entry.split(claimed + 1 - entry.position)
                    book.append(entry)
                taken.append(rest.stretch)
                # The copy in the book is struck off as the process passes it over; the other one goes elsewhere.
                entry = Entry(rest.function, msgspec.structs.replace(rest.stretch), rest.position, is_taken=True)
            book.append(entry)
        self.book = book
        return taken
