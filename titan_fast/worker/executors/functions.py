"""Functions in long-lived processes: a lane is one process with a socket and shared memory (`_pool`), and one slot.

A lane is given about a millisecond of work at a time, as the lots the master sent; what comes back are the records of
the wire, which nobody here looks into. A lane that dies takes exactly the member with it that it was busy with. A lane
that is ended by force, or dies, is over when everything is gone that its process started (`tree`): one sweep looks for
that, for all such lanes at once, and until then nobody is told. What a member leaves behind when it returns is not
touched before. Knows nothing of the master, of slots but that a busy lane has one, and of what is unacknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import marshal
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from titan_fast import _layout as layout
from titan_fast._accel import pack
from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import _pool, tree
from titan_fast.worker.executors.spawn import FILE_LIMIT, GIVE_UP, encode
from titan_fast.worker.output import OUTPUT_NAME, note, total_size
from titan_fast.worker.slots import Start, Stretch, each, payloads

BATCH = 0.001
"""Seconds of work that a lane is given at a time, by what such work has taken so far."""
MAX_BATCH = 512
MAX_BATCH_BYTES = 1 << 20
"""Of payloads, from which on a batch takes no more lots."""
MOMENT = 0.002
"""Seconds after which a process has come to what it was about to do."""
LOOK = 0.025
"""Seconds between looks at the lanes that are busy."""
STUCK = 0.02
"""Seconds that one member may take until those behind it go elsewhere."""
STARTED_AFTER = 0.1
"""Seconds after which a member is said to have started."""
LIVE_NAME = "live"
"""Of an output in the directory of its attempt, as long as that runs."""
IDLE = 60.0
"""Seconds without work until a process ends."""
SPARE = 4
"""Idle processes beyond the slots, of other environments or projects."""
MAX_COSTS = 1000
"""Functions whose cost is remembered."""
MAX_KNOWN = 256
"""Specs that a process is told of until it forgets them all."""

_SWEEP_FIRST = MOMENT
_SWEEP_SLOWEST = 0.1
"""Seconds between looks at what is left of lanes that are being ended."""
_LET_GO = 1.0
"""Seconds that a process has to go when nothing is asked of it any more."""
_DRAIN = 0.00002
"""Seconds, more than any processor keeps what it has written to itself: a claim that was made before our range could be
seen is seen after them. So the processes need no barrier of their own for each member."""
_CELLS = _pool.CELLS
_RECORD = _pool.RESULT.size
_SIZE = struct.Struct(f">{_RECORD - 4}xI")
_ENDING_AT = 8 + 4 + 2
_BEGAN_AT = 8 + 4 + 2 + 1 + 1 + 8 + 4
"""Where a record says how it ended (its flags follow), and when it began (its duration follows)."""
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW


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


class Death(msgspec.Struct, frozen=True):
    """A member whose process ended with it."""

    start: Start
    ending: Ending
    code: int
    began: float
    """Wall clock, seconds."""
    duration: float
    note: str
    output_size: int


class Observer(Protocol):
    """Who is told. Never called from inside `feed`, `take_back` or `kill`."""

    def functions_started(self, rows: list[tuple[int, ...]], outputs: list[tuple[int, str]]) -> None:
        """Columns of STARTED, a row for each; and (fence, file) of what they write meanwhile."""

    def functions_ended(self, ended: Ended) -> None: ...
    def function_died(self, death: Death) -> None: ...
    def functions_unrun(self, stretches: list[Stretch]) -> None:
        """They were given to a lane, which has not begun them."""

    def lane_freed(self) -> None:
        """One lane has nothing to do, so its slot is free."""

    def lane_has_room(self) -> None:
        """One may be given a second batch."""

    def door_of(self, fence: int) -> dict[str, str]:
        """What the environment of an attempt says of its door, which is open from now on."""

    def fetch_file(self, digest: str, path: str, done: Callable[[str], None]) -> None:
        """Bring a file of the master; ``done`` is told what went wrong, or nothing."""


class Runner(Protocol):
    """What an agent asks of it; see `Functions`."""

    def feed(self, function: Function, has_slot: bool, most: int, cut: Callable[[int], Stretch]) -> bool | None: ...
    def take_back(self, fence: int, count: int) -> list[Stretch]: ...
    def kill(self, fence: int, grace: float) -> bool: ...
    def held(self) -> Iterator[tuple[Start, int]]: ...
    def is_running(self, fence: int) -> bool: ...
    def harvest(self) -> None: ...
    def forget(self, project: str) -> None: ...
    async def close(self, grace: float) -> None: ...


class _Entry:
    """Consecutive members that a lane was given."""

    __slots__ = ("function", "is_taken", "position", "stretch")

    def __init__(self, function: Function, stretch: Stretch, position: int, is_taken: bool = False) -> None:
        self.function = function
        self.stretch = stretch
        self.position = position
        self.is_taken = is_taken
        """They were taken back; the process passes them over, and says so when it comes to them."""

    def split(self, at: int) -> _Entry:
        """Cut off and return everything from the member ``at`` on."""
        return _Entry(self.function, self.stretch.split(at), self.position + at, self.is_taken)


class _Lane:
    """One process, and what it was given and has not told the end of."""

    def __init__(self, kind: Kind, output: str) -> None:
        self.kind = kind
        self.output = output
        self.process: subprocess.Popen[bytes]
        self.link: socket.socket
        self.memory: mmap.mmap
        self.cells: memoryview
        self.pidfd = -1
        self.unsent = bytearray()
        self.question = b""
        """The beginning of something it asked."""
        self.known: set[int] = set()
        self.book: deque[_Entry] = deque()
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
        self.is_termed = False
        """All that it started has had TERM, or will have none."""
        self.kill_at = 0.0
        """When the grace is over (monotonic)."""
        self.killed = 0.0
        """When KILL was sent first (monotonic); 0: not yet."""
        self.died = 0.0
        """When its process was seen to have ended (monotonic)."""
        self.file = (0, 0)
        """Device and inode of its output when it began to end."""
        self.found: set[tree.Member] = set()
        """What was ever found of what it started."""
        self.spare: set[tree.Member] = set()
        """Those of them that we may not signal: they run as somebody else."""
        self.is_stuck = self.is_old = False
        """Old: its working copy is about to go, so it gets nothing more."""
        self.is_let_go = self.is_dead = self.is_gone = False
        """Let go: it had nothing to do, and was hung up on. Dead: its process has ended. Gone: and all it started."""
        self.idle_since = 0.0
        self.files = 0

    def members(self) -> int:
        return sum(entry.stretch.count for entry in self.book if not entry.is_taken)

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

    def note_output(self) -> None:
        """Before it goes on to another file."""
        with contextlib.suppress(OSError):
            status = os.stat(self.output)
            self.file = (status.st_dev, status.st_ino)

    def tree(self, attempts: str) -> tree.Tree:
        """How to tell what it started. ``attempts``: where the directories of attempts are."""
        fence = format_fence(self.book[0].stretch.fence) if self.running()[0] else ""
        return tree.Tree(
            leader=self.process.pid,
            born=self.born,
            fence=encode(fence),
            place=encode(f"{attempts}/{fence}"),
            output=self.file,
            start=self.start,
            process=encode(self.output),
            known=frozenset(self.found),
        )


class Functions:
    """The lanes of a worker. It belongs to the event loop that runs when it is made."""

    def __init__(
        self, observer: Observer, slots: int, folder: str, attempts: str, *, file_limit: int = FILE_LIMIT
    ) -> None:
        """
        Args:
            slots: lanes that may be busy at a time.
            folder: of its own, for the files of the processes; made when it is needed.
            attempts: where the directories of attempts are.
        """
        self._observer = observer
        self._slots = slots
        self._folder = folder
        self._attempts = attempts
        self._file_limit = file_limit
        self._loop = asyncio.get_running_loop()
        self._lanes: list[_Lane] = []
        self._idle: list[_Lane] = []
        """Newest last: those that are used stay warm, and the others go."""
        self._numbers = 0
        self._costs: dict[bytes, Cost] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._sweep_pause = _SWEEP_FIRST
        self._empty: asyncio.Future[None] | None = None
        self._is_closed = False
        shutil.rmtree(folder, ignore_errors=True)  # what the processes of a killed agent left

    # ---------------------------------------------------------------- giving

    def feed(self, function: Function, has_slot: bool, most: int, cut: Callable[[int], Stretch]) -> bool | None:
        """Give a lane what is next of a function.

        Args:
            has_slot: a lane that is idle may be used.
            most: members that this lane should take when others are free as well.
            cut: takes so many members, or fewer, off what waits.

        Returns:
            Whether that needs one more slot; None: nothing was taken.

        Raises:
            OSError: there is no process for it; nothing was taken.
        """
        if self._is_closed:
            return None
        lane = self._idle_lane(function.kind) if has_slot else self._busy_lane(function)
        if lane is None:
            return None
        function.cost = self._costs.setdefault(function.pickled, function.cost)
        if len(self._costs) > MAX_COSTS:
            self._costs.clear()
        cost = function.cost.seconds
        count = 1 if cost is None else max(1, min(most, MAX_BATCH, int(BATCH / max(cost, 1e-9))))
        self._hand(lane, function, cut(count))
        self._look_soon()
        return has_slot

    def _busy_lane(self, function: Function) -> _Lane | None:
        """One that may have a second batch on its way; the one with the least to do."""
        cost = self._costs.get(function.pickled, function.cost).seconds
        if cost is None or cost > BATCH:
            return None
        best = None
        for lane in self._lanes:
            if (
                lane.kind == function.kind
                and lane.book
                and not lane.is_old
                and (len(lane.batches) < 2 or lane.ahead + cost < 2 * BATCH)
                and not lane.is_stuck
                and lane.ending is None
                and not lane.is_dead
                and (lane.book[0].function.cost.seconds or 1.0) <= BATCH
                and (best is None or lane.ahead < best.ahead)
            ):
                best = lane
        return best

    def _idle_lane(self, kind: Kind) -> _Lane:
        for lane in reversed(self._idle):
            if lane.kind == kind and lane.ending is None:
                self._idle.remove(lane)
                return lane
        return self._open(kind)

    def _hand(self, lane: _Lane, function: Function, stretch: Stretch) -> None:
        messages: list[tuple[bytes, bytes]] = []
        if function.number not in lane.known:
            if len(lane.known) == MAX_KNOWN:
                messages.append((b"F", b""))
                lane.known.clear()
            if function.is_array:  # of the others it forgets the description itself
                lane.known.add(function.number)
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
        messages.append((b"L", pack(layout.LOT, lane.next, row, blob)))
        self._say(lane, *messages)
        lane.book.append(_Entry(function, stretch, lane.next))
        lane.next += stretch.count
        seconds = stretch.count * (function.cost.seconds or BATCH)
        lane.batches.append((lane.next - 1, seconds))
        lane.ahead += seconds

    # ---------------------------------------------------------------- processes

    def _open(self, kind: Kind) -> _Lane:
        """A new process; the oldest one that is idle goes when there are many. Raises OSError."""
        if len(self._lanes) >= self._slots + SPARE and self._idle:
            self._retire(self._idle[0])
        self._numbers += 1
        lane = _Lane(kind, f"{self._folder}/{os.getpid()}-{self._numbers}.output")
        self._launch(lane)
        self._lanes.append(lane)
        return lane

    def _launch(self, lane: _Lane) -> None:
        """Start its process, and listen to it. Raises OSError."""
        kind = lane.kind
        os.makedirs(self._folder, 0o700, exist_ok=True)
        ours, theirs = socket.socketpair()
        memory = _shared(_pool.SIZE)
        output = os.open(lane.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _SAFELY, 0o600)
        lane.born = tree.boot_time()
        try:
            lane.memory = mmap.mmap(memory, _pool.SIZE)
            lane.process = subprocess.Popen(
                [
                    *(sys.executable, "-u", "-P", _pool.__file__),
                    *map(str, (theirs.fileno(), memory, os.getpid(), self._file_limit)),
                    *(self._attempts, lane.output, kind.project),
                ],
                env=dict(kind.env) | {"TITAN_PROCESS": lane.output},  # whatever it starts inherits it
                cwd=kind.project or self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(), memory),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
            os.close(output)
        lane.start = tree.start_of(lane.process.pid)
        ours.setblocking(False)
        lane.link = ours
        lane.cells = memoryview(lane.memory)[: 8 * _CELLS].cast("Q")
        self._loop.add_reader(ours.fileno(), self._heard, lane)
        if hasattr(os, "pidfd_open"):
            lane.pidfd = os.pidfd_open(lane.process.pid)
            self._loop.add_reader(lane.pidfd, self._died, lane)

    def _say(self, lane: _Lane, *messages: tuple[bytes, bytes]) -> None:
        """Each is its kind and what it says; one write for all."""
        data = b"".join(_pool.HEADER.pack(kind, len(body)) + body for kind, body in messages)
        if not lane.unsent:
            try:
                data = data[lane.link.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # it has died, which is noticed elsewhere
            if not data:
                return
            self._loop.add_writer(lane.link.fileno(), self._go_on, lane)
        lane.unsent += data

    def _go_on(self, lane: _Lane) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                del lane.unsent[: lane.link.send(lane.unsent)]
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                lane.unsent.clear()
        if not lane.unsent:
            self._loop.remove_writer(lane.link.fileno())

    def _heard(self, lane: _Lane) -> None:
        try:
            data = lane.link.recv(1 << 12)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(lane.link.fileno())
            if lane.pidfd < 0:
                self._loop.call_soon(self._wait_for, lane)
            return
        self._harvest(lane)
        lane.question += data
        while lane.question:
            kind = lane.question[:1]
            size = {b".": 1, b"W": 1, b"T": 9, b"G": 65}[kind]
            if len(lane.question) < size:
                break
            asked, lane.question = lane.question[1:size], lane.question[size:]
            if kind == b"W":
                self._say(lane, (b"A", marshal.dumps(None)))
            elif kind == b"T":
                self._say(lane, (b"A", marshal.dumps(self._observer.door_of(int.from_bytes(asked, "big")))))
            elif kind == b"G":
                self._fetch(lane, asked.decode("ascii", "replace"))

    def _fetch(self, lane: _Lane, digest: str) -> None:
        lane.files += 1
        path = f"{lane.output}.{lane.files}"

        def done(problem: str) -> None:
            if lane in self._lanes:
                self._say(lane, (b"A", marshal.dumps((path, problem))))
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)

        self._observer.fetch_file(digest, path, done)

    # ---------------------------------------------------------------- taking

    def _harvest(self, lane: _Lane) -> None:
        """What the process has written since: whole records, in the order of their positions."""
        cells = lane.cells
        rows = cells[_pool.ROWS]
        count = rows - lane.read
        if lane.ending is not None and not lane.is_gone and lane.book:
            before = lane.ending[0] - lane.book[0].position
            if 0 <= before < count:
                # It has come to its own end while it was ended: that is told when what it started is gone.
                count = before
                if not lane.is_dead:
                    lane.hang_up()
        if not count:
            return
        if cells[_pool.TURN] != lane.turn:
            lane.turn = cells[_pool.TURN]
            lane.row = lane.at = 0
        start = _pool.ROWS_AT + lane.row * _RECORD
        records = lane.memory[start : start + count * _RECORD]
        size = sum(size for (size,) in _SIZE.iter_unpack(records))
        start = _pool.BYTES_AT + lane.at
        tail = lane.memory[start : start + size]
        lane.row += count
        lane.at += size
        lane.read += count
        cells[_pool.READ] = lane.read
        lane.is_stuck = False
        ended = Ended(records, tail, [], [], is_special=any(records[_ENDING_AT + 1 :: _RECORD]))
        unrun: list[Stretch] = []
        if any(records[_ENDING_AT::_RECORD]):
            ended.records = self._strike_passed_over(lane, ended, unrun)
        else:
            self._strike(lane, count, ended)
        while lane.batches and (not lane.book or lane.batches[0][0] < lane.book[0].position):
            lane.ahead -= lane.batches.popleft()[1]
        if not lane.batches:
            lane.ahead = 0.0
        if unrun:
            self._observer.functions_unrun(unrun)
        if ended.records:
            self._observer.functions_ended(ended)
        if lane.book:
            self._observer.lane_has_room()
        else:
            self._is_idle(lane)

    def _strike(self, lane: _Lane, count: int, ended: Ended) -> None:
        """So many from the front of the book are over."""
        at = 0
        while count:
            entry = lane.book[0]
            part = min(count, entry.stretch.count)
            ended.attempts.append((part, entry.stretch.attempt))
            self._measure(entry.function, ended.records, at, part)
            if not entry.function.is_array:
                ended.alone.append(entry.function)
            if part == entry.stretch.count:
                lane.book.popleft()
            else:
                lane.book[0] = entry.split(part)
            count -= part
            at += part

    def _strike_passed_over(self, lane: _Lane, ended: Ended, unrun: list[Stretch]) -> bytes:
        """The same when some were passed over. Returns the records of those that were not."""
        records = ended.records
        kept = []
        for at, ending in enumerate(records[_ENDING_AT::_RECORD]):
            entry = lane.book[0]
            if entry.stretch.count == 1:
                lane.book.popleft()
            else:
                lane.book[0] = entry.split(1)
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

    def _is_idle(self, lane: _Lane) -> None:
        if lane.ending is None and not lane.is_dead and not self._is_closed:
            lane.idle_since = self._loop.time()
            self._idle.append(lane)
            if lane.is_old:
                self._retire(lane)
            else:
                self._look_soon(IDLE)
        self._observer.lane_freed()

    # ---------------------------------------------------------------- looking

    def _look_soon(self, after: float = LOOK) -> None:
        when = self._loop.time() + after
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        rows: list[tuple[int, ...]] = []
        outputs: list[tuple[int, str]] = []
        unrun: list[Stretch] = []
        for lane in list(self._lanes):
            self._harvest(lane)
            position, began = lane.running()
            if not position or lane.is_dead or not lane.cells[_pool.BEGAN]:
                continue
            took = now - began / 1e9
            entry = lane.book[0]
            function, stretch = entry.function, entry.stretch
            if took > STUCK and lane.members() > 1:
                lane.is_stuck = True
                unrun += self._take_all_back(lane)
            if took > STARTED_AFTER and lane.started != position:
                lane.started = position
                wall = int((time.time() - took) * 1e6)
                rows.append((stretch.run, stretch.first, stretch.generation, stretch.fence, lane.process.pid, wall))
                if (live := self._link_output(lane, position, stretch.fence)) is not None:
                    outputs.append((stretch.fence, live))
            if function.timeout and took > function.timeout and lane.ending is None:
                unrun += self._take_all_back(lane)
                if lane.running()[0] == position:
                    self._end(lane, position, Ending.TIMEOUT, function.grace)
        if rows:
            self._observer.functions_started(rows, outputs)
        if unrun:
            self._observer.functions_unrun(unrun)
        self._let_idle_go()
        if any(lane.book and not lane.is_dead for lane in self._lanes):
            self._look_soon()
        elif self._idle:
            self._look_soon(IDLE)

    def _link_output(self, lane: _Lane, position: int, fence: int) -> str | None:
        """A name for what a member writes that stays its own when the process goes on to the next one; None when it
        has already, or when there is no room."""
        place = f"{self._attempts}/{format_fence(fence)}"
        try:
            os.makedirs(place, 0o700, exist_ok=True)
            os.link(lane.output, f"{place}/{LIVE_NAME}")
        except OSError:
            return None
        return f"{place}/{LIVE_NAME}" if lane.running()[0] == position else None

    def _let_idle_go(self) -> None:
        """What has had nothing to do for long."""
        now = self._loop.time()
        for lane in [lane for lane in self._idle if now - lane.idle_since >= IDLE]:
            self._retire(lane)

    def _retire(self, lane: _Lane) -> None:
        """It has nothing to do: hang up, and it goes."""
        self._idle.remove(lane)
        lane.ending = (0, Ending.KILLED)
        lane.is_let_go = lane.is_termed = True
        lane.kill_at = time.monotonic() + _LET_GO
        lane.hang_up()
        self._sweep_soon(_LET_GO)

    # ---------------------------------------------------------------- taking back, ending

    def take_back(self, fence: int, count: int) -> list[Stretch]:
        """What the lanes that have some of these consecutive fences have not begun, of these and others."""
        unrun: list[Stretch] = []
        for lane in self._lanes:
            if any(_meets(entry, fence, count) for entry in lane.book):
                unrun += self._take_all_back(lane)
        return unrun

    def kill(self, fence: int, grace: float) -> bool:
        """TERM to its process and what that started, ``grace`` seconds later KILL (at once without any); ends as
        KILLED, or as it ended by itself meanwhile, when all of that is gone. What nobody is at any more is ignored.
        What is behind it in its lane has been taken back before.

        Returns:
            Whether that is all; False: its process is about to begin it or to pass it over, or is behind it, and what
            became of it was not read yet. In a `MOMENT` it can be killed or taken back, or is over.
        """
        for lane in self._lanes:
            for entry in lane.book:
                if not _meets(entry, fence, 1):
                    continue
                position = entry.position + fence - entry.stretch.fence
                is_ending = lane.ending is not None and lane.ending[0] == position
                if not is_ending and (lane.cells[_pool.CLAIMED] != position or not lane.cells[_pool.BEGAN]):
                    return False
                self._end(lane, position, Ending.KILLED, grace)
                return True
        return True

    def _take_all_back(self, lane: _Lane) -> list[Stretch]:
        """What the process has not claimed: from now on it passes it over. Should it be on its way there in this very
        moment, nothing is taken at once: it says itself what it passed over."""
        cells = lane.cells
        claimed = cells[_pool.CLAIMED]
        if claimed >= cells[_pool.TAKEN_TO]:
            cells[_pool.TAKEN_TO] = 0
            cells[_pool.TAKEN_FROM] = claimed + 1
            cells[_pool.TAKEN_TO] = lane.next
        elif claimed < cells[_pool.TAKEN_FROM]:
            cells[_pool.TAKEN_TO] = lane.next
            cells[_pool.TAKEN_FROM] = claimed + 1
        else:
            cells[_pool.TAKEN_TO] = lane.next
            return []
        self._let_it_be_seen(lane)
        if cells[_pool.CLAIMED] != claimed:
            return []
        taken: list[Stretch] = []
        book: deque[_Entry] = deque()
        for entry in lane.book:
            if not entry.is_taken and entry.position + entry.stretch.count > claimed + 1:
                rest = entry
                if entry.position <= claimed:
                    rest = entry.split(claimed + 1 - entry.position)
                    book.append(entry)
                taken.append(rest.stretch)
                # The copy in the book is struck off as the process passes it over; the other one goes elsewhere.
                entry = _Entry(rest.function, msgspec.structs.replace(rest.stretch), rest.position, is_taken=True)
            book.append(entry)
        lane.book = book
        return taken

    def _end(self, lane: _Lane, position: int, ending: Ending, grace: float) -> None:
        """For a member it is at, or for none (position 0). Nothing is sent here: a cancelled run ends many lanes at
        once. Also when it is being ended already: the earlier reason counts, and the shorter grace."""
        kill_at = time.monotonic() + grace
        if lane.ending is not None:
            lane.kill_at = min(lane.kill_at, kill_at)
        elif lane.is_dead or lane.process.poll() is not None:
            return  # it has ended by itself, which is heard of in a moment
        else:
            lane.ending = (position, ending)
            lane.began = lane.cells[_pool.BEGAN]
            lane.is_termed = grace <= 0
            lane.kill_at = kill_at
            lane.note_output()
        self._sweep_soon()

    def _let_it_be_seen(self, lane: _Lane) -> None:
        """Wait until the process sees what we wrote, and we what it wrote before that."""
        time.sleep(_DRAIN)

    # ---------------------------------------------------------------- sweeping

    def _sweep_soon(self, after: float = 0.0) -> None:
        """All that ask in this turn are served by one look at the processes of this machine."""
        self._sweep_pause = _SWEEP_FIRST
        when = self._loop.time() + after
        if self._sweep_timer is not None:
            if self._sweep_at <= when:
                return
            self._sweep_timer.cancel()
        self._sweep_at = when
        self._sweep_timer = self._loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """One step for every lane that is being ended or has died."""
        self._sweep_timer = None
        now = time.monotonic()
        lanes = [lane for lane in self._lanes if lane.is_dead or lane.ending is not None]
        overdue = [lane for lane in lanes if not lane.killed and now >= lane.kill_at]
        left = dict(zip(overdue, self._kill(overdue), strict=True))
        for lane in overdue:
            lane.killed = now
            lane.is_termed = True
        others = [lane for lane in lanes if lane not in left and (lane.is_dead or not lane.is_termed)]
        left.update(zip(others, self._scan(others), strict=True))
        for lane, members in left.items():
            lane.found.update(members)
            if not lane.is_termed:
                lane.is_termed = True
                for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process takes TERM when it goes on
                    self._send(lane, members, number)
            if lane.is_dead:
                self._look_at_rest(lane, [member for member in members if member not in lane.spare], now)
        if any(lane.is_dead or lane.ending is not None for lane in self._lanes):
            pause = self._sweep_pause
            self._sweep_soon(self._until_next_sweep(now))
            self._sweep_pause = min(_SWEEP_SLOWEST, pause * 1.5)

    def _look_at_rest(self, lane: _Lane, rest: list[tree.Member], now: float) -> None:
        """Its process has ended: tell, or see to the others (in their grace they are left alone)."""
        if lane.killed and now - lane.killed > GIVE_UP:
            for member in rest:
                note(lane.output, f"process {member.pid} could not be ended")
            rest = []
        if not rest:
            self._is_gone(lane)
        elif lane.killed:
            self._send(lane, rest, signal.SIGKILL)

    def _until_next_sweep(self, now: float) -> float:
        """A process in its grace wakes us by ending; what it has left must be looked for."""
        lanes = [lane for lane in self._lanes if lane.is_dead or lane.ending is not None]
        wait = min((lane.kill_at - now for lane in lanes if not lane.killed), default=_SWEEP_SLOWEST)
        if any(lane.is_dead for lane in lanes):
            wait = min(wait, self._sweep_pause)
        return max(0.0, wait)

    def _scan(self, lanes: Sequence[_Lane]) -> list[list[tree.Member]]:
        """What lives of each, and of what it started."""
        return tree.scan([lane.tree(self._attempts) for lane in lanes])

    def _kill(self, lanes: Sequence[_Lane]) -> list[list[tree.Member]]:
        """KILL all of that; who was hit, and may not be gone yet."""
        spare: set[tree.Member] = set()
        found = tree.stop_and_kill([lane.tree(self._attempts) for lane in lanes], spare)
        for lane in lanes:
            lane.spare |= spare
            if lane.process.returncode is None:
                tree.send_group(lane.pidfd, lane.process.pid, signal.SIGKILL)  # whatever the scan was able to see
        return found

    def _send(self, lane: _Lane, members: Sequence[tree.Member], number: int) -> None:
        tree.send_all(members, number, lane.spare)

    def _end_group(self, lane: _Lane) -> None:
        """Of a process that has just been waited for."""
        tree.send_group(lane.pidfd, lane.process.pid, signal.SIGKILL)

    # ---------------------------------------------------------------- dying

    def _wait_for(self, lane: _Lane) -> None:
        """Where there are no pidfds: it has hung up, so it ends in a moment."""
        if lane.process.poll() is None:
            self._loop.call_later(MOMENT, self._wait_for, lane)
        else:
            self._died(lane)

    def _died(self, lane: _Lane) -> None:
        """What it had told counts, what it was at ends when all it started is gone, what it had not begun goes
        elsewhere."""
        if lane.process.poll() is None or lane.is_dead:
            return
        lane.is_dead = True
        lane.died = time.monotonic()
        is_orderly = lane.is_let_go and not lane.killed and not lane.process.returncode
        if is_orderly:
            self._end_group(lane)
        if lane.pidfd >= 0:
            self._loop.remove_reader(lane.pidfd)
            os.close(lane.pidfd)
        if lane in self._idle:
            self._idle.remove(lane)
        self._loop.remove_reader(lane.link.fileno())
        self._loop.remove_writer(lane.link.fileno())
        lane.link.close()
        self._harvest(lane)
        if is_orderly:
            self._is_gone(lane)
            return
        if lane.ending is None:
            lane.is_termed = True
            lane.kill_at = lane.died
            lane.note_output()
        self._sweep_soon()
        if lane.cells[_pool.CLAIMED] and (unrun := self._take_all_back(lane)):
            self._observer.functions_unrun(unrun)

    def _is_gone(self, lane: _Lane) -> None:
        """Nothing is left of it: tell of what it was at."""
        lane.is_gone = True
        self._lanes.remove(lane)
        self._harvest(lane)
        was_busy = bool(lane.book)
        death = self._blame(lane)
        unrun = [entry.stretch for entry in lane.book if not entry.is_taken]
        lane.book.clear()
        lane.cells.release()
        lane.memory.close()
        for path in (lane.output, *(f"{lane.output}.{n + 1}" for n in range(lane.files))):
            with contextlib.suppress(OSError):
                os.unlink(path)
        if death is not None:
            self._observer.function_died(death)
        if unrun:
            self._observer.functions_unrun(unrun)
        if was_busy:
            self._observer.lane_freed()
        if not self._lanes and self._empty is not None:
            self._empty.set_result(None)
            self._empty = None

    def _blame(self, lane: _Lane) -> Death | None:
        """The member that it was at, out of the book."""
        position, began = lane.running()
        code = lane.process.returncode
        is_first = bool(lane.book) and not lane.cells[_pool.CLAIMED] and lane.ending is None and not self._is_closed
        if not position and not is_first:
            return None
        entry = lane.book.popleft()
        if entry.stretch.count > 1:
            lane.book.appendleft(entry.split(1))
        if entry.is_taken:
            return None
        (start,) = each(entry.stretch)
        since = began / 1e9 if began else lane.died
        took = max(0.0, lane.died - since)
        size = self._keep_output(lane, start.fence)
        said = ""
        if is_first:
            ending = Ending.NOT_STARTED
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            said = f"the process for functions ended at its start ({how})"
            code = errno.ECHILD
        elif lane.ending is not None and lane.ending[0] in (0, position):
            ending = lane.ending[1]
        elif code < 0:
            ending, code = Ending.SIGNAL, -code
        else:
            ending = Ending.EXIT
            said = "" if code else "SystemExit: the function ended its process, with exit code 0"
            code = code or 1
        return Death(start, ending, code, time.time() - (time.monotonic() - since), took, said, size)

    def _keep_output(self, lane: _Lane, fence: int) -> int:
        """What the process wrote last is its member's; returns how much."""
        try:
            if not os.stat(lane.output).st_size:
                return 0
            place = f"{self._attempts}/{format_fence(fence)}"
            os.makedirs(place, 0o700, exist_ok=True)
            take_over_gap(place)
            os.rename(lane.output, f"{place}/{OUTPUT_NAME}")
            fd = os.open(f"{place}/{OUTPUT_NAME}", os.O_RDONLY | _SAFELY)
            try:
                return total_size(fd, f"{place}/{OUTPUT_NAME}")
            finally:
                os.close(fd)
        except OSError:
            return 0

    # ---------------------------------------------------------------- looking at all of it

    def held(self) -> Iterator[tuple[Start, int]]:
        """Every attempt here that was not told the end of, and since when it runs (microseconds; 0: it does not)."""
        for lane in self._lanes:
            position, began = lane.running()
            since = int((time.time() - (time.monotonic() - began / 1e9)) * 1e6)
            for entry in lane.book:
                if not entry.is_taken:
                    for place, start in enumerate(each(entry.stretch), entry.position):
                        yield start, since if place == position else 0

    def is_running(self, fence: int) -> bool:
        """Whether a lane is at this one. A lane runs the first of its book."""
        return any(lane.running()[0] and lane.book[0].stretch.fence == fence for lane in self._lanes)

    def harvest(self) -> None:
        """Tell of everything that has ended by now."""
        for lane in list(self._lanes):
            self._harvest(lane)

    def forget(self, project: str) -> None:
        """The processes of a working copy that is about to go end with what they have."""
        for lane in [lane for lane in self._lanes if lane.kind.project == project]:
            lane.is_old = True
            if lane in self._idle:
                self._retire(lane)

    async def close(self, grace: float) -> None:
        """Kill everything, wait until it is gone."""
        self._is_closed = True
        if unrun := [stretch for lane in self._lanes for stretch in self._take_all_back(lane)]:
            self._observer.functions_unrun(unrun)
        for lane in list(self._lanes):
            position = lane.running()[0]
            self._end(lane, position, Ending.KILLED, grace if position else 0.0)
        while self._lanes:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)


def take_over_gap(place: str) -> None:
    """What is known to be missing from the live output of an attempt is missing from its output."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{place}/{LIVE_NAME}")
        os.rename(f"{place}/{LIVE_NAME}.gap", f"{place}/{OUTPUT_NAME}.gap")


def _meets(entry: _Entry, fence: int, count: int) -> bool:
    stretch = entry.stretch
    return not entry.is_taken and stretch.fence < fence + count and fence < stretch.fence + stretch.count


def _shared(size: int) -> int:
    """A descriptor of memory that two processes can have."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("titan-fast-functions")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory
