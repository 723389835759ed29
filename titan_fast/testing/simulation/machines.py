"""Machines without hardware: processes that are only a start and an end, and what an agent touches of its machine.

A `Host` outlives the agents on it, as its processes do: it plays the keeper. Every start and end of a process is
written to a `Ledger` that nobody who is tested can reach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from titan_fast.ids import Ending
from titan_fast.protocol.connection import Incoming
from titan_fast.testing.simulation.world import Clock, Program, World
from titan_fast.worker.executors.base import Attempt, Observer, Outcome
from titan_fast.worker.output import Emit

SPAWN = 0.0005
"""Longest time that starting a process takes, seconds."""


class Plan(msgspec.Struct, frozen=True):
    """What a process will do when it is left alone."""

    seconds: float
    ending: Ending = Ending.EXIT
    code: int = 0
    stubborn: float = 0.0
    """Seconds it goes on after TERM; KILL ends it anyhow."""
    result: bytes = b""


class Process(msgspec.Struct, eq=False):
    """A process as its machine knows it."""

    host: str
    fence: int
    task: str
    attempt: int
    started: float
    """World time."""
    plan: Plan
    ended: float = -1.0
    ending: Ending = Ending.EXIT
    code: int = 0
    killed: bool = False
    """Somebody wants it dead: it ends as KILLED."""
    is_power_cut: bool = False
    wall: float = 0.0

    @property
    def is_running(self) -> bool:
        return self.ended < 0


class Ledger(Protocol):
    """Who writes down what processes do."""

    def started(self, process: Process) -> None: ...
    def ended(self, process: Process) -> None: ...


class Host:
    """A machine: clocks, a keeper, processes, at most one agent."""

    def __init__(
        self,
        world: World,
        name: str,
        ledger: Ledger,
        plan: Callable[[Attempt], Plan],
    ) -> None:
        self.world = world
        self.name = name
        self.ledger = ledger
        self.plan = plan
        self.rng = world.chance("host", name)
        self.clock = Clock(float(self.rng.randrange(1000, 1 << 17)), 1_700_000_000.0 + self.rng.random())
        self.worker_id = f"{self.rng.getrandbits(64):016x}"
        self.processes: dict[int, Process] = {}
        """By fence: what runs, and what has ended and no agent was told yet."""
        self.executor: SimulatedExecutor | None = None
        """That of the agent that lives; it is told of ends."""
        self.agents = 0

    def lose_power(self) -> None:
        """Everything on it is gone at once."""
        for process in list(self.processes.values()):
            if process.is_running:
                process.is_power_cut = True
                process.ended = self.world.now
                self.ledger.ended(process)
        self.processes.clear()
        self.executor = None

    def spawn(self, attempt: Attempt) -> Process:
        plan = self.plan(attempt)
        number = int(attempt.env.get("TITAN_ATTEMPT", "1"))
        process = Process(self.name, attempt.fence, attempt.task, number, self.world.now, plan)
        process.wall = self.world.now + self.clock.wall
        self.processes[attempt.fence] = process
        self.ledger.started(process)
        seconds, ending, code = plan.seconds, plan.ending, plan.code
        if attempt.timeout and attempt.timeout < seconds:
            seconds, ending, code = attempt.timeout + min(plan.stubborn, attempt.grace), Ending.TIMEOUT, 0
        self.world.after(seconds, self._ends, process, ending, code)
        return process

    def term(self, process: Process, grace: float) -> None:
        if process.is_running and not process.killed:
            process.killed = True
            self.world.after(min(process.plan.stubborn, grace), self._ends, process, Ending.KILLED, 0)

    def _ends(self, process: Process, ending: Ending, code: int) -> None:
        if not process.is_running:
            return
        process.ended = self.world.now
        process.ending = Ending.KILLED if process.killed else ending
        process.code = 0 if process.killed else code
        self.ledger.ended(process)
        if self.executor is not None:
            self.executor.reap_soon(process)


class SimulatedExecutor:
    """The executor (`worker.executors.base`) of one agent on a host."""

    def __init__(self, host: Host, program: Program, observer: Observer) -> None:
        self._host = host
        self._program = program
        self._observer = observer
        host.executor = self

    def start(self, attempt: Attempt) -> None:
        if attempt.fence in self._host.processes:
            raise AssertionError(f"{attempt.task} is started twice under one fence")
        self._program.call_later(SPAWN * self._host.rng.random(), self._started, self._host.spawn(attempt))

    def _started(self, process: Process) -> None:
        self._observer.attempt_started(process.fence, process.fence & 0x3FFFFF, process.wall)
        if not process.is_running:
            self._reap(process)

    def reap_soon(self, process: Process) -> None:
        if self._program.world.now > process.started:
            self._program.call_soon(self._reap, process)

    def _reap(self, process: Process) -> None:
        if self._host.processes.pop(process.fence, None) is None:
            return
        duration = process.ended - process.started
        result = process.plan.result if process.ending is Ending.EXIT and not process.code else b""
        self._observer.attempt_ended(
            Outcome(process.fence, process.ending, process.code, process.wall, duration, 0, result)
        )

    def kill(self, fence: int, grace: float) -> None:
        process = self._host.processes.get(fence)
        if process is not None:
            self._host.term(process, grace)

    async def close(self, grace: float) -> None:
        for process in list(self._host.processes.values()):
            self._host.term(process, 0.0)


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

    def executor(self, observer: Observer) -> SimulatedExecutor:
        return SimulatedExecutor(self.host, self.program, observer)

    def shipper(self, emit: Emit) -> _Silence:
        return _Silence()

    def copies(self, send: Callable[[bytes], None]) -> _Copies:
        return _Copies()

    def wall(self) -> float:
        return self.host.world.now + self.host.clock.wall

    def pulse(self) -> tuple[float, int]:
        return 0.5, 1 << 30


class _Files:
    """A work directory in which nothing is ever written."""

    def __init__(self, host: Host) -> None:
        self.worker_id = host.worker_id

    def adopt_history(self, name: str) -> None:
        return

    def working_copy(self, run: int) -> str:
        return f"/runs/{run}"

    def attempt_dir(self, fence: int, make: bool = True) -> str:
        return f"/attempts/{fence}"

    def remove_attempt(self, fence: int) -> None:
        return

    def close(self) -> None:
        return


class _Copies:
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

    def clear(self) -> None:
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
