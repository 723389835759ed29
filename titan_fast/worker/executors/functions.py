"""Functions in long-lived processes: a lane is one process with a socket and shared memory (`_pool`), and one slot.

A lane is given about a millisecond of work at a time, as the lots the master sent; what comes back are the records of
the wire, which nobody here looks into. A lane that dies takes exactly the member with it that it was busy with. A lane
that is ended by force, or dies, is over when everything is gone that its process started (`sweep`), and until then
nobody is told. What a member leaves behind when it returns is not touched before. Knows nothing of the master, of slots
but that a busy lane has one, and of what is unacknowledged.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import _pool, tree
from titan_fast.worker.executors.lane import BATCH, Cost, Ended, Function, Kind, Lane
from titan_fast.worker.executors.spawn import FILE_LIMIT
from titan_fast.worker.executors.sweep import Processes, Sweep
from titan_fast.worker.output import OUTPUT_NAME, total_size
from titan_fast.worker.slots import Start, Stretch, each

MAX_BATCH = 512
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

_LET_GO = 1.0
"""Seconds that a process has to go when nothing is asked of it any more."""
_CELLS = _pool.CELLS
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW


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


class Functions:
    """The lanes of a worker. It belongs to the event loop that runs when it is made."""

    def __init__(
        self,
        observer: Observer,
        slots: int,
        folder: str,
        attempts: str,
        *,
        file_limit: int = FILE_LIMIT,
        processes: Processes = tree,
    ) -> None:
        """
        Args:
            slots: lanes that may be busy at a time.
            folder: of its own, for the files of the processes; made when it is needed.
            attempts: where the directories of attempts are.
            processes: how those are found and signalled that lanes have started.
        """
        self._observer = observer
        self._slots = slots
        self._folder = folder
        self._attempts = attempts
        self._file_limit = file_limit
        self._loop = asyncio.get_running_loop()
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        """Newest last: those that are used stay warm, and the others go."""
        self._numbers = 0
        self._costs: dict[bytes, Cost] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._processes = processes
        self._sweep: Sweep[Lane] = Sweep(lambda lane: lane.is_dead, self._is_gone, processes)
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
        self._say(lane, *lane.give(function, cut(count)))
        self._look_soon()
        return has_slot

    def _busy_lane(self, function: Function) -> Lane | None:
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

    def _idle_lane(self, kind: Kind) -> Lane:
        for lane in reversed(self._idle):
            if lane.kind == kind and lane.ending is None:
                self._idle.remove(lane)
                return lane
        return self._open(kind)

    # ---------------------------------------------------------------- processes

    def _open(self, kind: Kind) -> Lane:
        """A new process; the oldest one that is idle goes when there are many. Raises OSError."""
        if len(self._lanes) >= self._slots + SPARE and self._idle:
            self._retire(self._idle[0])
        self._numbers += 1
        lane = Lane(kind, f"{self._folder}/{os.getpid()}-{self._numbers}.output")
        self._launch(lane)
        self._lanes.append(lane)
        return lane

    def _launch(self, lane: Lane) -> None:
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

    def _say(self, lane: Lane, *messages: tuple[bytes, bytes]) -> None:
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

    def _go_on(self, lane: Lane) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                del lane.unsent[: lane.link.send(lane.unsent)]
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                lane.unsent.clear()
        if not lane.unsent:
            self._loop.remove_writer(lane.link.fileno())

    def _heard(self, lane: Lane) -> None:
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

    def _fetch(self, lane: Lane, digest: str) -> None:
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

    def _harvest(self, lane: Lane) -> None:
        """Tell of what the process has written since."""
        read = lane.read_on()
        if read is None:
            return
        ended, unrun = read
        if unrun:
            self._observer.functions_unrun(unrun)
        if ended.records:
            self._observer.functions_ended(ended)
        if lane.book:
            self._observer.lane_has_room()
        else:
            self._is_idle(lane)

    def _is_idle(self, lane: Lane) -> None:
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
                unrun += lane.take_back()
            if took > STARTED_AFTER and lane.started != position:
                lane.started = position
                wall = int((time.time() - took) * 1e6)
                rows.append((stretch.run, stretch.first, stretch.generation, stretch.fence, lane.process.pid, wall))
                if (live := self._link_output(lane, position, stretch.fence)) is not None:
                    outputs.append((stretch.fence, live))
            if function.timeout and took > function.timeout and lane.ending is None:
                unrun += lane.take_back()
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

    def _link_output(self, lane: Lane, position: int, fence: int) -> str | None:
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

    def _retire(self, lane: Lane) -> None:
        """It has nothing to do: hang up, and it goes."""
        self._idle.remove(lane)
        lane.ending = (0, Ending.KILLED)
        lane.is_let_go = True
        lane.hang_up()
        self._begin_to_end(lane, _LET_GO, ask=False)

    # ---------------------------------------------------------------- taking back, ending

    def take_back(self, fence: int, count: int) -> list[Stretch]:
        """What the lanes that have some of these consecutive fences have not begun, of these and others."""
        unrun: list[Stretch] = []
        for lane in self._lanes:
            if lane.meets(fence, count):
                unrun += lane.take_back()
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
                if not entry.meets(fence, 1):
                    continue
                position = entry.position + fence - entry.stretch.fence
                is_ending = lane.ending is not None and lane.ending[0] == position
                if not is_ending and (lane.cells[_pool.CLAIMED] != position or not lane.cells[_pool.BEGAN]):
                    return False
                self._end(lane, position, Ending.KILLED, grace)
                return True
        return True

    def _end(self, lane: Lane, position: int, ending: Ending, grace: float) -> None:
        """For a member it is at, or for none (position 0). Also when it is being ended already: the earlier reason
        counts, and the shorter grace."""
        if lane.ending is not None:
            self._sweep.hasten(lane, grace)
        elif not lane.is_dead and lane.process.poll() is None:  # otherwise it is heard of in a moment
            lane.ending = (position, ending)
            lane.began = lane.cells[_pool.BEGAN]
            self._begin_to_end(lane, grace)

    def _begin_to_end(self, lane: Lane, grace: float, *, ask: bool = True) -> None:
        self._sweep.begin(lane, lane.tree(self._attempts), lane.pidfd, lane.output, grace, ask=ask)

    # ---------------------------------------------------------------- dying

    def _wait_for(self, lane: Lane) -> None:
        """Where there are no pidfds: it has hung up, so it ends in a moment."""
        if lane.process.poll() is None:
            self._loop.call_later(MOMENT, self._wait_for, lane)
        else:
            self._died(lane)

    def _died(self, lane: Lane) -> None:
        """What it had told counts, what it was at ends when all it started is gone, what it had not begun goes
        elsewhere."""
        if lane.process.poll() is None or lane.is_dead:
            return
        lane.is_dead = True
        lane.died = time.monotonic()
        is_orderly = lane.is_let_go and not lane.process.returncode
        if is_orderly:
            self._processes.send_group(lane.pidfd, lane.process.pid, signal.SIGKILL)
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
            self._sweep.forget(lane)
            self._is_gone(lane)
            return
        if lane.ending is None:
            self._begin_to_end(lane, 0.0)
        else:
            self._sweep.look_soon()
        if lane.cells[_pool.CLAIMED] and (unrun := lane.take_back()):
            self._observer.functions_unrun(unrun)

    def _is_gone(self, lane: Lane) -> None:
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

    def _blame(self, lane: Lane) -> Death | None:
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

    def _keep_output(self, lane: Lane, fence: int) -> int:
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
        if unrun := [stretch for lane in self._lanes for stretch in lane.take_back()]:
            self._observer.functions_unrun(unrun)
        for lane in list(self._lanes):
            position = lane.running()[0]
            self._end(lane, position, Ending.KILLED, grace if position else 0.0)
        while self._lanes:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)
        self._sweep.close()
        if self._timer is not None:
            self._timer.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)


def take_over_gap(place: str) -> None:
    """What is known to be missing from the live output of an attempt is missing from its output."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{place}/{LIVE_NAME}")
        os.rename(f"{place}/{LIVE_NAME}.gap", f"{place}/{OUTPUT_NAME}.gap")


def _shared(size: int) -> int:
    """A descriptor of memory that two processes can have."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("titan-fast-functions")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory
