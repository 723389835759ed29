"""Processes for functions that are only a sequence of moments.

The agent's side is the real one (`executors.functions`), and so are the messages, the cells and the records; what is
imitated is `executors._pool`, step by step.

A process may be put aside between any two of its steps, as the system does it. It dies with its agent and its machine,
and may leave something behind when it is ended, which goes by itself after a while, or when it is killed.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import marshal
import mmap
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from titan_fast.ids import Ending, epoch_of, format_fence
from titan_fast.testing.simulation.world import Program
from titan_fast.worker.executors import _pool
from titan_fast.worker.executors.base import Attempt
from titan_fast.worker.executors.functions import Death, Functions, Observer
from titan_fast.worker.executors.lane import Lane
from titan_fast.worker.executors.tree import Member, Tree
from titan_fast.worker.journal import Journal

if TYPE_CHECKING:
    from titan_fast.testing.simulation.machines import Host, Process

NOWHERE = os.devnull
"""A directory in which nothing can be made, so nothing of the real machine is touched."""
STARTUP = 0.03
"""Longest time until a new process reads what it was told, seconds."""
STEP = 1e-6
"""Seconds between two steps of a process that runs."""
PUT_ASIDE = 0.05
"""Longest time that it is put aside, seconds; `SELDOM` tells how often."""
SELDOM = 0.03
DELIVERY = 2e-4
"""Longest time until a signal has arrived, seconds."""
LEFT_BEHIND = 0.2
"""How often something is left of a process that was ended or has died."""
STILLBORN = 0.01
"""How often a new process ends before it reads anything."""
NO_ROOM = 0.01
"""How often there is no room on the disk for a new process."""


class _Spec(msgspec.Struct):
    """A function, as its process was told of it."""

    run: int
    name: str
    first: int
    is_array: bool
    spread: bool
    pickled: bytes
    arguments: list[bytes]


class _Member(msgspec.Struct):
    """What is next for a process: a member of a lot."""

    position: int
    spec: _Spec
    index: int
    generation: int
    fence: int
    payload: bytes
    is_last: bool
    """Of its batch."""

    @property
    def task(self) -> str:
        spec = self.spec
        name = f"{spec.run}/{spec.name}"
        return f"{name}[{self.index - spec.first}]" if spec.is_array else name


def parts(blob: bytes) -> list[bytes]:
    """What is behind its length and its offsets, as arguments have it."""
    count = int.from_bytes(blob[:4], "big")
    ends = [int.from_bytes(blob[at : at + 4], "big") for at in range(4, 4 * (count + 2), 4)]
    base = 4 * (count + 2)
    return [blob[base + start : base + end] for start, end in itertools.pairwise(ends)]


def returned(task: str, fence: int, payload: bytes, given: Sequence[list[bytes]]) -> bytes:
    """What a function gives: nobody else would."""
    digest = hashlib.blake2b(b"%r%r" % (payload, list(given)), digest_size=8).hexdigest()
    return f"{task} {format_fence(fence)} {digest}".encode()


class LaneProcess:
    """One process; to the agent it is `subprocess.Popen` and the socket in one."""

    def __init__(self, host: Host, agent: str, memory: mmap.mmap, nonce_of: Callable[[int], str]) -> None:
        """
        Args:
            agent: the nonce of the agent that started it.
            nonce_of: of an epoch, as that agent knows it.
        """
        self.pid = host.rng_of_lanes.randrange(1 << 22)
        self.returncode: int | None = None
        """As the agent knows it."""
        self.member: _Member | None = None
        """What it is at."""
        self.process: Process | None = None
        """The same, when it has begun."""
        self.is_alive = True
        self.left_until = 0.0
        """When what it has left behind goes by itself."""
        self.on_readable: Callable[[], object] = lambda: None
        self.on_end: Callable[[], object] = lambda: None
        self._host = host
        self._rng = host.rng_of_lanes
        self._agent = agent
        self._nonce_of = nonce_of
        self._memory = memory
        self._cells = memoryview(memory)[: 8 * _pool.CELLS].cast("Q")
        self._code = 0
        self._received = bytearray()
        self._specs: dict[int, _Spec] = {}
        self._members: deque[_Member] = deque()
        self._is_hung_up = False
        self._is_waiting = False
        """For the agent to say something."""
        self._row = self._at = self._rows = 0
        self._rung = 0.0
        self._said = b""
        """What the agent has not read."""
        host.lanes.append(self)
        is_stillborn = self._rng.random() < STILLBORN
        self._soon(self._cannot_begin if is_stillborn else self._next, STARTUP * self._rng.random())

    def __repr__(self) -> str:
        return f"lane {self.pid} of {self._host.name}"

    # ------------------------------------------------------------ the agent's end of it

    def poll(self) -> int | None:
        if not self.is_alive:
            self.returncode = self._code
        return self.returncode

    def send(self, data: bytes) -> int:
        if not self.is_alive:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._received += data
        self._is_heard()
        return len(data)

    def recv(self, _: int) -> bytes:
        said, self._said = self._said, b""
        if not said and self.is_alive:
            raise BlockingIOError
        return said

    def shutdown(self, _: int) -> None:
        self._is_hung_up = True
        self._is_heard()

    def _is_heard(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._soon(self._next)

    def setblocking(self, _: bool) -> None:
        return

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """The agent's end of the connection, after the process."""
        self.on_readable = lambda: None

    # ------------------------------------------------------------ the system's

    def signal(self, number: int) -> None:
        self._host.world.after(DELIVERY * self._rng.random(), self._hit, number)

    def _hit(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.left_until = 0.0
        process = self.process
        if number == signal.SIGKILL or process is None or not process.plan.stubborn:
            self._ended_by_agent(number)
        else:
            self._host.world.after(process.plan.stubborn, self._gives_in, process, number)

    def _gives_in(self, process: Process, number: int) -> None:
        if self.process is process:
            self._ended_by_agent(number)

    def _ended_by_agent(self, number: int) -> None:
        if self.process is not None:
            self.process.is_hit = self.process.asked is None
        self.end(-number)

    def end(self, code: int) -> None:
        """It is over, and so is what it was at."""
        if not self.is_alive:
            return
        self._vanish()
        self._code = code
        if self._rng.random() < LEFT_BEHIND:
            self.left_until = self._host.world.now + self._rng.expovariate(1.0)
        process, self.process = self.process, None
        if process is not None:
            process.ended = self._host.world.now
            process.ending, process.code = (Ending.SIGNAL, -code) if code < 0 else (Ending.EXIT, code or 1)
            if not code:
                process.said = "SystemExit: the function ended its process, with exit code 0"
            self._host.ledger.ended(process)
        self._host.world.after(DELIVERY * self._rng.random(), self.on_end)

    def vanish(self) -> None:
        """With its agent, or its machine."""
        if not self.is_alive:
            return
        self._vanish()
        process, self.process = self.process, None
        if process is not None:
            process.is_power_cut = True
            process.ended = self._host.world.now
            self._host.ledger.ended(process)

    def _vanish(self) -> None:
        self.is_alive = False
        self._host.lanes.remove(self)
        self._cells.release()

    # ------------------------------------------------------------ its steps

    def _soon(self, step: Callable[[], None], seconds: float = STEP) -> None:
        """The next step: in a moment, or when it has been put aside for a while."""
        if self._rng.random() < SELDOM:
            seconds += PUT_ASIDE * self._rng.random()
        self._host.world.after(seconds, self._go_on, step)

    def _go_on(self, step: Callable[[], None]) -> None:
        if self.is_alive:
            step()

    def _cannot_begin(self) -> None:
        self.end(self._rng.choice((1, -signal.SIGKILL)))

    def _next(self) -> None:
        """The next member, or the next message."""
        if self._members:
            self._claim()
            return
        held, header = self._received, _pool.HEADER
        if not held:
            self._is_waiting = True
            if self._is_hung_up:
                self.end(0)
            return
        kind, length = header.unpack_from(held)
        body = bytes(held[header.size : header.size + length])
        assert len(body) == length
        del held[: header.size + length]
        if kind == b"S":
            number, *described = marshal.loads(body)
            self._specs[number] = _Spec(*described)
        elif kind == b"F":
            self._specs.clear()
        elif kind == b"L":
            self._members.extend(self._batch(body))
            self._rung = self._now()
        self._soon(self._next)

    def _batch(self, body: bytes) -> Iterator[_Member]:
        _, size, count, position = _pool.PROLOGUE.unpack_from(body)
        at = _pool.PROLOGUE.size + count * size
        for lot in _pool.LOT.iter_unpack(body[_pool.PROLOGUE.size : at]):
            run, number, first, members, generation, _, fence, length = lot
            spec = self._specs[number]
            assert spec.run == run
            if not spec.is_array:
                del self._specs[number]
            payloads = parts(members.to_bytes(4, "big") + _from_zero(body[at : at + length], members))
            for member, payload in enumerate(payloads):
                is_last = member == members - 1
                yield _Member(position, spec, first + member, generation, fence + member, payload, is_last)
                position += 1
            at += length

    def _claim(self) -> None:
        self.member = self._members.popleft()
        self._cells[_pool.CLAIMED] = self.member.position
        self._soon(self._look_whether_it_was_taken)

    def _look_whether_it_was_taken(self) -> None:
        assert self.member is not None
        cells, position = self._cells, self.member.position
        if cells[_pool.TAKEN_FROM] <= position < cells[_pool.TAKEN_TO]:
            self._write(self.member, _pool.RECALLED)
            self._pass_on()
        else:
            self._soon(self._begin)

    def _begin(self) -> None:
        member, host = self.member, self._host
        assert member is not None
        self._cells[_pool.BEGAN] = max(1, int(self._now() * 1e9))
        argv = tuple(member.spec.pickled.decode().split())
        attempt = Attempt(member.fence, member.task, argv, {}, "", "")
        nonce = self._nonce_of(epoch_of(member.fence))
        given = [parts(blob) for blob in member.spec.arguments]
        process = self.process = host.call(attempt, self.pid, self._agent, nonce, member.payload, given)
        host.world.after(process.plan.seconds, self._end_of, process)

    def _end_of(self, process: Process) -> None:
        """It comes to its end by itself."""
        if self.process is not process:
            return
        member, plan, world = self.member, process.plan, self._host.world
        assert member is not None
        if plan.ending is Ending.SIGNAL:
            self.end(-plan.code)
            return
        if plan.is_exit:
            self.end(plan.code)
            return
        self.process = None
        process.ended, process.ending, process.code, process.asked = world.now, plan.ending, plan.code, None
        if plan.code:
            process.said = plan.said
            data = plan.said.encode() + _pool.SAID_WITH + b"what only clients can read" if plan.said else b""
        else:
            data = process.result = returned(member.task, member.fence, member.payload, process.given)
        flags = _pool.HAS_MORE if plan.output else 0
        began = int((process.started + self._host.clock.wall) * 1e6)
        took = int((world.now - process.started) * 1e6)
        self._write(member, _pool.EXIT, flags, plan.code, began, took, plan.output, data)
        self._host.ledger.ended(process)
        self._soon(self._is_over)

    def _is_over(self) -> None:
        self._cells[_pool.BEGAN] = 0
        if self._now() - self._rung > _pool.RING_AFTER / 1e9:
            self._ring()
        self._pass_on()

    def _pass_on(self) -> None:
        member, self.member = self.member, None
        assert member is not None
        if not self._members or member.is_last:
            self._ring()
        self._soon(self._next)

    def _write(
        self,
        member: _Member,
        ending: int,
        flags: int = 0,
        code: int = 0,
        began: int = 0,
        took: int = 0,
        output: int = 0,
        data: bytes = b"",
    ) -> None:
        cells = self._cells
        if self._row == _pool.MAX_ROWS or self._at + len(data) > _pool.MAX_BYTES or cells[_pool.READ] == self._rows:
            assert cells[_pool.READ] == self._rows, "a lane is never given so much that it has to wait for its agent"
            self._row = self._at = 0
            cells[_pool.TURN] += 1
        place = _pool.ROWS_AT + self._row * _pool.RESULT.size
        where = (member.spec.run, member.index, member.generation)
        row = (*where, ending, flags, member.fence, code, began, took, output, len(data))
        _pool.RESULT.pack_into(self._memory, place, *row)
        place = _pool.BYTES_AT + self._at
        self._memory[place : place + len(data)] = data
        self._row += 1
        self._at += len(data)
        self._rows += 1
        cells[_pool.ROWS] = self._rows

    def _ring(self) -> None:
        self._rung = self._now()
        if not self._said:
            self._host.world.after(0.0, self.on_readable)
        self._said += b"."

    def _now(self) -> float:
        return self._host.world.now + self._host.clock.monotonic


def _from_zero(blob: bytes, members: int) -> bytes:
    """Offsets are told as they were stored: they may begin anywhere."""
    offsets = [int.from_bytes(blob[at : at + 4], "big") for at in range(0, 4 * (members + 1), 4)]
    assert offsets[-1] - offsets[0] == len(blob) - 4 * (members + 1)
    return b"".join((of - offsets[0]).to_bytes(4, "big") for of in offsets) + blob[4 * (members + 1) :]


class _System:
    """What is left of lanes, as one of them: how its agent finds and signals that (`sweep.Processes`)."""

    def __init__(self, host: Host) -> None:
        self.members: dict[Member, LaneProcess] = {}
        self._host = host

    def scan(self, trees: Sequence[Tree]) -> list[list[Member]]:
        now, members = self._host.world.now, [Member(tree.leader, tree.start) for tree in trees]
        processes = [self.members[member] for member in members]
        return [
            [member] if of.is_alive or now < of.left_until else []
            for member, of in zip(members, processes, strict=True)
        ]

    def ask_to_end(self, leader: int, pidfd: int, members: Iterable[Member], spare: set[Member]) -> None:
        self.send_all(members, signal.SIGTERM, spare)

    def stop_and_kill(self, trees: Sequence[Tree], spare: set[Member]) -> list[list[Member]]:
        self.send_all((Member(tree.leader, tree.start) for tree in trees), signal.SIGKILL, spare)
        return self.scan(trees)

    def send_all(self, members: Iterable[Member], number: int, spare: set[Member]) -> None:
        for member in members:
            self.members[member].signal(number)

    def send_group(self, pidfd: int, leader: int, number: int) -> bool:
        """As long as it lives it is found as well; what it has left is not always looked for."""
        for member, of in self.members.items():
            if member.pid == leader and not of.is_alive:
                of.left_until = 0.0
        return True


class SimulatedFunctions(Functions):
    """The functions of one agent on a host: the real thing, but for the processes."""

    def __init__(
        self, host: Host, program: Program, agent: str, observer: Observer, journal: Journal, slots: int
    ) -> None:
        self._system = _System(host)
        super().__init__(observer, slots, f"{NOWHERE}/functions", f"{NOWHERE}/attempts", processes=self._system)
        self._host = host
        self._program = program
        self._agent = agent
        self._journal = journal

    @property
    def busy(self) -> int:
        """Lanes that have something to do."""
        return sum(1 for lane in self._lanes if lane.book)

    def _launch(self, lane: Lane) -> None:
        if self._host.rng_of_lanes.random() < NO_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lane.memory = mmap.mmap(-1, _pool.SIZE)
        lane.cells = memoryview(lane.memory)[: 8 * _pool.CELLS].cast("Q")
        process = LaneProcess(self._host, self._agent, lane.memory, lambda epoch: self._journal.epochs.get(epoch, ""))
        process.on_readable = lambda: self._program.call_soon(self._is_readable, lane)
        process.on_end = lambda: self._program.call_soon(self._died, lane)
        lane.drain = 0.0  # nothing moves while the agent does
        lane.start = self._numbers
        self._system.members[Member(process.pid, lane.start)] = process
        lane.process = process  # type: ignore[assignment]
        lane.link = process  # type: ignore[assignment]

    def _is_readable(self, lane: Lane) -> None:
        if not lane.is_dead and lane.process.returncode is None:
            self._heard(lane)

    def _process_of(self, lane: Lane) -> LaneProcess:
        assert isinstance(lane.process, LaneProcess)
        return lane.process

    def _is_gone(self, lane: Lane) -> None:
        of = self._process_of(lane)
        assert not of.is_alive and self._host.world.now >= of.left_until, "it is told of before all of it is gone"
        del self._system.members[Member(of.pid, lane.start)]
        super()._is_gone(lane)

    def _end(self, lane: Lane, position: int, ending: Ending, grace: float) -> None:
        of = self._process_of(lane)
        process = of.process if of.member is not None and of.member.position == position else None
        if process is not None and process.asked is None:
            process.asked = ending
            self._host.ledger.asked_to_end(process, ending, grace)
        super()._end(lane, position, ending, grace)

    def _blame(self, lane: Lane) -> Death | None:
        death = super()._blame(lane)
        if death is not None and death.ending is Ending.NOT_STARTED:
            self._host.ledger.never_began(death.start.fence, death.note)
        return death
