"""One agent and its functions, moment by moment: what is told to it between two steps of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from graphs import payload_of

from titan_fast.config import WorkerSettings
from titan_fast.ids import Ending, make_fence
from titan_fast.model.spec import Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.opcodes import Op
from titan_fast.testing.simulation import lanes
from titan_fast.testing.simulation.lanes import LaneProcess
from titan_fast.testing.simulation.machines import Host, Plan, Process, SimulatedMachine
from titan_fast.testing.simulation.world import World
from titan_fast.worker.agent import Agent
from titan_fast.worker.executors import _pool
from titan_fast.worker.executors.base import Attempt
from titan_fast.worker.executors.lane import Cost

A = make_fence(1, 1)
SOON = 5.0


class Bench:
    """An agent that no master listens to. Writes down what runs on its host (`Ledger`)."""

    def __init__(self, seed: int = 1, slots: int = 1) -> None:
        self.seconds = 0.5
        """What a function takes."""
        self.stubborn = 0.0
        self.slots = slots
        self.world = World(seed)
        self.processes: dict[int, Process] = {}
        """By member, in the order in which they ran."""
        self.host = Host(self.world, "w0", self, self.plan)
        self.program = self.world.program("agent", self.host.clock)
        self.program.call_soon(self._begin)
        self.world.run(0.0)

    def _begin(self) -> None:
        settings = WorkerSettings(slots=self.slots)
        self.agent = Agent(settings, [("", 1)], lambda: "", SimulatedMachine(self.host, self.program))

    def plan(self, attempt: Attempt) -> Plan:
        return Plan(self.seconds, stubborn=self.stubborn)

    def do(self, what: Callable[..., object], *given: object) -> None:
        """In the agent, now."""
        self.program.call_soon(what, *given)
        self.world.run(self.world.now)

    def hear(self, op: Op, *columns: list[int], message: msg.Message | None = None, **more: object) -> None:
        self.do(self.agent.received, Incoming(op, 0, message=message, columns=columns, **more))  # type: ignore[arg-type]

    def describe(self, cost: float, timeout: float = 0.0) -> None:
        """A function of which everybody knows what it takes."""
        work = Work(function=0, timeout=timeout, grace=1.0)
        spec = msg.Spec(run=1, spec=0, name="f", first=0, array=True, work=work, env={})
        self.hear(Op.SPEC, message=spec, attachments=(b"call",))
        known = self.agent._functions._lanes._costs[b"call"] = Cost()  # type: ignore[attr-defined]
        known.seconds = cost

    def assign(self, first: int, count: int) -> None:
        items = [payload_of(first + at) for at in range(count)]
        ends = [sum(map(len, items[:at])) for at in range(count + 1)]
        blob = b"".join((*(end.to_bytes(4, "big") for end in ends), *items))
        self.hear(Op.ASSIGN, *([n] for n in (1, 0, first, count, 0, 1, A + first, len(blob))), tail=blob)

    def recall(self, first: int, count: int) -> None:
        self.hear(Op.RECALL, [1], [first], [count], [A + first])

    def kill(self, *indexes: int) -> None:
        fences = [A + index for index in indexes]
        self.hear(Op.KILL, [1] * len(fences), list(indexes), fences, [1000] * len(fences))

    def until(self, is_so: Callable[[], object]) -> None:
        assert self.world.run(self.world.now + 60.0, lambda: bool(is_so())), "it never comes to that"

    def later(self, seconds: float = SOON) -> None:
        self.world.run(self.world.now + seconds)

    def close(self) -> None:
        """What becomes of the agent is that it ends."""
        assert self.host.functions is not None
        self.do(self.program.main, self.host.functions.close(0.5))

    def disown(self) -> bool:
        """Whether something of the first epoch has still to end."""
        told: list[bool] = []
        self.do(lambda: told.append(self.agent._disown(1)))
        return told[0]

    @property
    def is_busy(self) -> bool:
        assert self.host.functions is not None
        return bool(self.host.functions.busy or self.agent._slots.used or self.agent._slots.queued)

    @property
    def lane(self) -> LaneProcess:
        (lane,) = self.host.lanes
        return lane

    @property
    def claimed(self) -> int:
        return int(self.lane._cells[_pool.CLAIMED])

    @property
    def endings(self) -> dict[int, Ending]:
        return {fence - A: item.ended.ending for fence, item in self.agent._unacknowledged.items()}

    # what happens on the host (`Ledger`)

    def started(self, process: Process) -> None:
        assert process.fence - A not in self.processes
        self.processes[process.fence - A] = process

    def asked_to_end(self, process: Process, why: Ending, grace: float) -> None: ...
    def ended(self, process: Process) -> None: ...
    def never_began(self, fence: int, why: str) -> None: ...


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in ("SELDOM", "STILLBORN", "NO_ROOM"):
        monkeypatch.setattr(lanes, name, 0.0)
    bench = Bench()
    yield bench
    bench.world.end()


def passing_over(bench: Bench) -> None:
    """The process is in the midst of what was taken back, and two members wait behind that."""
    bench.seconds = 5e-4
    bench.describe(cost=1e-6)
    bench.assign(0, 6)
    bench.until(lambda: bench.lane.process)
    bench.recall(1, 5)
    bench.until(lambda: bench.claimed == 2)
    bench.assign(6, 2)
    bench.until(lambda: bench.claimed == 3)


def test_what_is_killed_while_the_process_passes_it_over_does_not_run_afterwards(bench: Bench) -> None:
    passing_over(bench)
    bench.describe(cost=1.0)  # so it will be one after the other
    bench.seconds = 1e6
    bench.kill(6, 7)
    bench.later()
    assert not bench.is_busy
    assert bench.endings.keys() == set(range(8))
    assert {bench.endings[6], bench.endings[7]} <= {Ending.KILLED, Ending.DROPPED}


def test_nothing_begins_in_an_agent_that_ends(bench: Bench) -> None:
    bench.describe(cost=1e-6)
    bench.assign(0, 6)
    bench.until(lambda: bench.lane.process)
    bench.close()
    bench.later()
    assert [*bench.processes] == [0]


def test_what_another_master_assigned_is_over_when_it_has_been_passed_over(bench: Bench) -> None:
    passing_over(bench)
    bench.describe(cost=1.0)
    assert bench.disown()
    bench.later(0.1)
    bench.disown()  # as with every try to attach
    bench.later()
    assert not bench.disown()
    assert not bench.is_busy
    assert not bench.endings


def test_a_slot_is_free_again_when_a_process_ends_at_its_start_and_what_it_was_given_was_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "STILLBORN", 1.0)
    bench.describe(cost=1e-6)
    bench.assign(0, 1)
    bench.recall(0, 1)
    bench.later()
    assert bench.endings == {0: Ending.RECALLED}
    assert not bench.is_busy


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_at_whatever_moment_each_ends_once_and_for_its_own_reason(seed: int) -> None:
    """Recalls, kills, timeouts and deaths, close to each other, of many members that take no time."""
    bench = Bench(seed, slots=2)
    rng = bench.world.chance("what happens")
    bench.describe(cost=1e-6, timeout=rng.choice((0.0, 0.05)))
    killed: dict[int, float] = {}
    given = 0
    for _ in range(120):
        bench.seconds = rng.choice((0.0, 0.0, 1e-5, 1e-3, 0.2))
        bench.stubborn = rng.choice((0.0, 0.0, 0.1, 60.0))
        match rng.choice(("assign", "assign", "recall", "kill", "kill", "die", "wait")):
            case "assign":
                count = rng.randrange(1, 30)
                bench.assign(given, count)
                given += count
            case "recall" if given:
                first = rng.randrange(given)
                bench.recall(first, rng.randrange(1, given - first + 1))
            case "kill" if given:
                first = max(0, given - rng.randrange(1, 40))
                members = rng.sample(range(first, given), rng.randrange(1, min(6, given - first) + 1))
                bench.kill(*members)
                for member in members:
                    killed.setdefault(member, bench.world.now)
            case "die" if bench.host.lanes:
                rng.choice(bench.host.lanes).end(-9)
        bench.later(rng.choice((0.0, 1e-6, 5e-6, 3e-5, 1e-3, 0.03)) * rng.expovariate(1.0))
    bench.later(120.0)
    assert not bench.is_busy
    assert bench.endings.keys() == set(range(given))
    for member, process in bench.processes.items():
        assert not process.is_hit, f"{member} was ended in the place of another one"
        assert process.started < killed.get(member, 1e9) + 0.5, f"{member} was killed and began all the same"
