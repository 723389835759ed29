"""Machines without hardware: processes that are only a start and an end, and what an agent touches of its machine.

A `Host` outlives the agents on it, as its processes and files do, but those for functions (`lanes`); it plays the
keeper, too. Every start and end of a process, or of a function in one, is told to a `Ledger` that nobody who is tested
can reach.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from titan_fast.ids import Ending, epoch_of
from titan_fast.protocol.connection import Incoming
from titan_fast.testing.simulation.lanes import LaneProcess, SimulatedFunctions
from titan_fast.testing.simulation.world import Clock, Program, World
from titan_fast.worker.executors.base import Attempt, Clocks, Exit, Left, Observer, Outcome
from titan_fast.worker.executors.functions import Observer as FunctionObserver
from titan_fast.worker.journal import Journal
from titan_fast.worker.output import Emit

SPAWN = 0.001
"""Longest time that starting a process takes, seconds."""
SIGTERM, SIGKILL = 15, 9


class Plan(msgspec.Struct, frozen=True):
    """What a process will do when it is left alone."""

    seconds: float
    ending: Ending = Ending.EXIT
    """EXIT or SIGNAL."""
    code: int = 0
    stubborn: float = 0.0
    """Seconds it goes on after TERM."""
    is_poison: bool = False
    """It takes its machine with it."""
    is_exit: bool = False
    """Of a function: with EXIT it ends its process."""
    said: str = ""
    """Of a function that fails: what its exception says."""
    output: int = 0
    """Of a function: bytes that it writes."""


class Process(msgspec.Struct, eq=False):
    """A process as its machine knows it, or a function while it runs in one. Times are the world's."""

    host: str
    fence: int
    task: str
    pid: int
    started: float
    plan: Plan
    agent: str
    """The nonce of the agent that started it."""
    nonce: str
    """Of the epoch that its fence is of: who assigned it."""
    ended: float = -1.0
    ending: Ending = Ending.EXIT
    """EXIT or SIGNAL, by itself or because it was asked to end."""
    code: int = 0
    asked: Ending | None = None
    """Why it was asked to end, if it was."""
    is_power_cut: bool = False
    """It went with its machine; a function, with its agent."""
    is_reaped: bool = False
    is_function: bool = False
    payload: bytes = b""
    given: Sequence[list[bytes]] = ()
    """Results of others that it was given: of each task or array among its arguments."""
    said: str = ""
    """What its exception said."""
    is_hit: bool = False
    """Its agent ended it, and meant something else."""
    result: bytes = b""

    @property
    def is_running(self) -> bool:
        return self.ended < 0


class Ledger(Protocol):
    """Who writes down what processes do."""

    def started(self, process: Process) -> None: ...
    def asked_to_end(self, process: Process, why: Ending, grace: float) -> None: ...
    def ended(self, process: Process) -> None: ...

    def never_began(self, fence: int, why: str) -> None:
        """A function whose process ended before it came to it."""


class Host:
    """A machine: clocks, processes, a work directory, at most one agent."""

    def __init__(self, world: World, name: str, ledger: Ledger, plan: Callable[[Attempt], Plan]) -> None:
        self.world = world
        self.name = name
        self.ledger = ledger
        self.plan = plan
        self.rng = world.chance("host", name)
        self.clock = Clock(float(self.rng.randrange(1000, 1 << 17)), 1_700_000_000.0 + self.rng.random())
        self.worker_id = f"{self.rng.getrandbits(64):016x}"
        self.history = ""
        self.journal = Bytes()
        self.boots = 1
        self.agents = 0
        self.processes: dict[int, Process] = {}
        """By fence: what runs, and what has ended and no agent has reaped yet."""
        self.executor: SimulatedExecutor | None = None
        """That of the agent that lives."""
        self.lanes: list[LaneProcess] = []
        """Processes for functions that live."""
        self.functions: SimulatedFunctions | None = None
        """Those of the newest agent."""
        self.rng_of_lanes = world.chance("lanes", name)
        self.on_poison: Callable[[], None] = lambda: None

    def clocks(self) -> Clocks:
        now = self.world.now + self.clock.monotonic
        return Clocks(self.world.now + self.clock.wall, now, now)

    @property
    def load(self) -> int:
        """What runs here, or has just ended."""
        return len(self.processes) + sum(1 for lane in self.lanes if lane.process is not None)

    def lose_agent(self) -> None:
        """Its processes run on, but those for functions."""
        self.executor = None
        self._lose_lanes()

    def _lose_lanes(self) -> None:
        self.functions = None
        for lane in list(self.lanes):
            lane.vanish()

    def lose_power(self) -> None:
        """Everything on it is gone at once, and of its files the end that was not on the disk."""
        for process in self.processes.values():
            if process.is_running:
                process.is_power_cut = True
                process.ended = self.world.now
                self.ledger.ended(process)
        self.processes.clear()
        self.executor = None
        self._lose_lanes()
        self.boots += 1
        if self.rng.random() < 0.5:
            self.journal.forget_the_end(self.rng)

    def spawn(self, attempt: Attempt, agent: str, nonce: str) -> Process:
        pid = attempt.fence & 0x3FFFFF
        plan = self.plan(attempt)
        process = Process(self.name, attempt.fence, attempt.task, pid, self.world.now, plan, agent, nonce)
        self.processes[attempt.fence] = process
        self.ledger.started(process)
        self.world.after(process.plan.seconds, self._ends, process, process.plan.ending, process.plan.code)
        return process

    def call(
        self, attempt: Attempt, pid: int, agent: str, nonce: str, payload: bytes, given: list[list[bytes]]
    ) -> Process:
        """A function begins in one of the processes for them."""
        plan = self.plan(attempt)
        process = Process(self.name, attempt.fence, attempt.task, pid, self.world.now, plan, agent, nonce)
        process.is_function, process.payload, process.given = True, payload, given
        self.ledger.started(process)
        return process

    def signal(self, process: Process, number: int) -> None:
        if process.is_running:
            after = 0.0 if number == SIGKILL else process.plan.stubborn
            self.world.after(after, self._ends, process, Ending.SIGNAL, number)

    def _ends(self, process: Process, ending: Ending, code: int) -> None:
        if process.is_running:
            if process.plan.is_poison and process.asked is None:
                self.on_poison()
                return
            process.ended, process.ending, process.code = self.world.now, ending, code
            if process.asked is None and ending is Ending.EXIT and not code:
                process.result = result_of(process.fence)
            self.ledger.ended(process)
            if self.executor is not None:
                self.executor.child_ended(process)


def result_of(fence: int) -> bytes:
    """What a command that succeeds writes."""
    return b"" if fence % 5 else b"ok"


class Bytes:
    """A journal's bytes (`worker.journal.Storage`), which outlive their agent."""

    fd = -1

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self) -> bytes:
        return bytes(self.data)

    def append(self, data: bytes) -> None:
        self.data += data

    def replace(self, data: bytes) -> None:
        self.data = bytearray(data)

    def forget_the_end(self, rng: random.Random) -> None:
        del self.data[rng.randrange(len(self.data) + 1) :]

    def close(self) -> None:
        return


class SimulatedExecutor:
    """The executor (`worker.executors.base`) of one agent on a host."""

    def __init__(self, host: Host, program: Program, agent: str, observer: Observer, journal: Journal) -> None:
        self._host = host
        self._agent = agent
        self._program = program
        self._observer = observer
        self._journal = journal
        self._beginning: dict[int, Attempt] = {}
        """Attempts whose process is not there yet."""
        self._attempts: dict[int, Attempt] = {}
        host.executor = self

    def start(self, attempt: Attempt) -> None:
        if attempt.fence in self._host.processes or attempt.fence in self._beginning:
            raise AssertionError(f"{attempt.task} is started twice under one fence")
        self._beginning[attempt.fence] = attempt
        self._program.call_later(SPAWN * self._host.rng.random(), self._spawn, attempt)

    def _spawn(self, attempt: Attempt) -> None:
        if self._beginning.pop(attempt.fence, None) is None:
            self._tell(attempt.fence, Ending.KILLED, 0, self._host.clocks().wall, 0.0)
            return
        clocks = self._host.clocks()
        nonce = self._journal.epochs.get(epoch_of(attempt.fence), "")
        process = self._host.spawn(attempt, self._agent, nonce)
        self._journal.spawned(attempt.fence, process.pid, clocks.boot)
        self._watch(attempt, clocks.monotonic)
        self._observer.attempt_started(attempt.fence, process.pid, clocks.wall)

    def _watch(self, attempt: Attempt, began: float) -> None:
        self._attempts[attempt.fence] = attempt
        if attempt.timeout:
            self._program.call_at(began + attempt.timeout, self._stop, attempt.fence, Ending.TIMEOUT, attempt.grace)

    def adopt(self, left: Sequence[Left]) -> list[int]:
        gone = []
        for item in left:
            fence = item.attempt.fence
            process = self._host.processes.get(fence)
            if process is not None:
                self._watch(item.attempt, item.began.monotonic)
                if item.stopping is not None:
                    self._stop(fence, item.stopping, item.attempt.grace)
                if not process.is_running:
                    self.child_ended(process)
            elif item.exit is not None:
                ending = Ending.EXIT if item.exit.how == os.CLD_EXITED else Ending.SIGNAL
                ending, code = (ending, item.exit.code) if item.stopping is None else (item.stopping, 0)
                duration = item.exit.at - item.began.monotonic
                self._program.call_soon(self._tell, fence, ending, code, item.began.wall, duration)
            else:
                gone.append(fence)
        known = {item.attempt.fence for item in left}
        for fence, process in self._host.processes.items():
            if fence not in known:
                self._host.signal(process, SIGKILL)
        return gone

    def child_ended(self, process: Process) -> None:
        self._program.call_soon(self._reap, process)

    def _reap(self, process: Process) -> None:
        if process.is_reaped or self._host.executor is not self:
            return
        attempt = self._attempts.pop(process.fence, None)
        monotonic = process.ended + self._host.clock.monotonic
        if attempt is not None:
            how = os.CLD_EXITED if process.ending is Ending.EXIT else os.CLD_KILLED
            self._journal.exited([(process.fence, Exit(how, process.code, monotonic))])
        process.is_reaped = True
        del self._host.processes[process.fence]
        if attempt is not None:
            ending, code = (process.ending, process.code) if process.asked is None else (process.asked, 0)
            wall = process.started + self._host.clock.wall
            self._program.call_soon(self._tell, process.fence, ending, code, wall, process.ended - process.started)

    def _tell(self, fence: int, ending: Ending, code: int, wall: float, duration: float) -> None:
        result = result_of(fence) if ending is Ending.EXIT and not code else b""
        self._observer.attempt_ended(Outcome(fence, ending, code, max(wall, 0.0), max(duration, 0.0), 0, result))

    def kill(self, fence: int, grace: float) -> None:
        if self._beginning.pop(fence, None) is None:
            self._stop(fence, Ending.KILLED, grace)

    def _stop(self, fence: int, why: Ending, grace: float) -> None:
        """TERM now, KILL later; what comes after the end is too late."""
        process = self._host.processes.get(fence)
        if process is None or not process.is_running or self._host.executor is not self:
            return
        if process.asked is None:
            process.asked = why
            self._journal.stopping(fence, why)
            self._host.ledger.asked_to_end(process, why, grace)
        self._host.signal(process, SIGTERM)
        self._program.call_later(grace, self._host.signal, process, SIGKILL)

    async def close(self, grace: float) -> None:
        for fence in [*self._beginning, *self._host.processes]:
            self.kill(fence, grace)
        while self._host.processes:  # noqa: ASYNC110 - time is cheap here
            await asyncio.sleep(0.05)


class SimulatedMachine:
    """What an agent touches (`worker.machine.Machine`), for one start of an agent."""

    def __init__(self, host: Host, program: Program) -> None:
        host.agents += 1
        self.host = host
        self.program = program
        self.name = host.name
        self.nonce = f"{host.rng.getrandbits(64):016x}"
        self.random: random.Random = host.world.chance("agent", host.name, host.agents)
        self.environ: Mapping[str, str] = {}
        self.has_signals = False
        self.files = _Files(host)
        self.journal = Journal(host.journal, f"boot {host.boots}")

    def executor(self, observer: Observer) -> SimulatedExecutor:
        return SimulatedExecutor(self.host, self.program, self.nonce, observer, self.journal)

    def functions(self, observer: FunctionObserver, slots: int) -> SimulatedFunctions:
        functions = SimulatedFunctions(self.host, self.program, self.nonce, observer, self.journal, slots)
        self.host.functions = functions
        return functions

    def shipper(self, emit: Emit) -> _Silence:
        return _Silence()

    def copies(self, send: Callable[[bytes], None]) -> _NoCopies:
        return _NoCopies()

    def clocks(self) -> Clocks:
        return self.host.clocks()

    def pulse(self) -> tuple[float, int]:
        return 0.5, 1 << 30


class _Files:
    """A work directory in which nothing is ever written."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.worker_id = host.worker_id

    @property
    def history(self) -> str:
        return self._host.history

    @history.setter
    def history(self, name: str) -> None:
        self._host.history = name

    def remember_history(self, name: str) -> None:
        self._host.history = name

    def runs(self) -> list[int]:
        return []

    def place_of_run(self, run: int) -> str:
        return f"/runs/{run}"

    def working_copy(self, run: int) -> str:
        return self.place_of_run(run)

    def attempt_dir(self, fence: int, make: bool = True) -> str:
        return f"/attempts/{fence}"

    def remove_attempt(self, fence: int) -> None:
        return

    def keep_attempts(self, fences: Collection[int]) -> None:
        return

    def has_room(self) -> bool:
        return True

    def close(self) -> None:
        return


class _NoCopies:
    """No run brings files."""

    def is_ready(self, run: int) -> bool:
        return True

    async def prepare(self, run: int, project: str) -> str:
        return ""

    def answered(self, incoming: Incoming) -> None:
        return

    def ask_again(self) -> None:
        return

    def forget(self, run: int) -> None:
        return


class _Silence:
    """No process writes anything."""

    def add(self, fence: int, path: str, sent: int = 0) -> None:
        return

    def finish(self, fence: int, total: int) -> None:
        return

    def forget(self, fence: int) -> None:
        return

    def rewind(self, fence: int, offset: int) -> None:
        return

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return

    def close(self) -> None:
        return
