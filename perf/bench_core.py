"""What the scheduler core costs for each task, and that it does not grow with what waits, with classes or workers.

The core alone: events in, commands out, no sockets and no disk. Times are the processor's, the best of a few rounds;
growth figures are ratios of neighbours in time, so that they mean something on any machine.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice

from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.facts import Fact

WORK = Work(argv=("true",))
FLOW = 6_000
"""Tasks that go through the core in a round, whatever number waits."""
ROUNDS = 5


class Cluster:
    """A core and workers that finish all they hold, a few of them in each turn."""

    result = b""
    """Of every task."""

    def __init__(self, workers: int, slots: int, duration: float, capabilities: tuple[str, ...] = ()) -> None:
        self.core = Scheduler()
        self.held: dict[str, list[cmd.Assign]] = {}
        self.duration = int(duration * 1e6)
        self.now = 0.0
        self.names = [f"w{number}" for number in range(workers)]
        for ticket, name in enumerate(self.names):
            self.held[name] = []
            self.core.handle(ev.WorkerAttached(ticket, name, name, "n", capabilities, slots, True))
        self.turn()

    def turn(self) -> None:
        core = self.core
        core.advance(self.now, self.now)
        core.place()
        facts, commands = core.take()
        self.keep(facts)
        for command in commands:
            if isinstance(command, cmd.Assign):
                self.held[command.worker].append(command)

    def keep(self, facts: list[Fact]) -> None:
        """Nobody does, here; a benchmark of the store has one."""

    def submit(self, tasks: Iterable[TaskSpec]) -> None:
        self.core.handle(ev.RunSubmitted(0, GraphSpec("bench", tuple(tasks))))

    def flow(self, tasks: int, workers_per_turn: int = 2) -> int:
        """At least this many tasks end; how many did."""
        ended = 0
        names = cycle(self.names)
        while ended < tasks:
            before = ended
            for name in islice(names, min(workers_per_turn, len(self.names))):
                lots, self.held[name] = self.held[name], []
                if lots:
                    ended += self.finish(name, lots)
            self.now += 0.001
            self.turn()
            if ended == before and not any(self.held.values()):
                raise RuntimeError(f"only {ended} of {tasks} tasks ended")
        return ended

    def finish(self, name: str, lots: list[cmd.Assign]) -> int:
        run = [lot.run for lot in lots for _ in range(lot.count)]
        index = [lot.first + member for lot in lots for member in range(lot.count)]
        fence = [lot.fence + member for lot in lots for member in range(lot.count)]
        n = len(run)
        zero = [0] * n
        event = ev.AttemptsFinished(
            name, run, index, zero, zero, fence, zero, zero, [self.duration] * n, [self.result] * n
        )
        self.core.handle(event)
        return n


def array(count: int) -> list[TaskSpec]:
    return [TaskSpec("a", WORK, count=count, array=True)]


def named(count: int, classes: int = 1, requires: bool = False) -> list[TaskSpec]:
    return [
        TaskSpec(f"t{number}", WORK, requires=(f"C{number % classes}",) if requires else ()) for number in range(count)
    ]


def seconds(job: Callable[[], int]) -> float:
    """Processor seconds for each task of a job that says how many it did."""
    began = time.process_time()
    tasks = job()
    return (time.process_time() - began) / tasks


def flow_cost(tasks: list[TaskSpec], workers: int = 2, slots: int = 8, capabilities: tuple[str, ...] = ()) -> float:
    """Seconds for each task that goes through a core in which all of these wait; the workers are full before."""
    cluster = Cluster(workers, slots, 0.02, capabilities)
    cluster.submit(tasks)
    cluster.turn()
    cluster.flow(FLOW // 10)
    return seconds(lambda: cluster.flow(FLOW))


def admission_cost(tasks: list[TaskSpec]) -> float:
    cluster = Cluster(0, 1, 0.02)
    graph = ev.RunSubmitted(0, GraphSpec("bench", tuple(tasks)))

    def admit() -> int:
        cluster.core.handle(graph)
        return len(tasks)

    return seconds(admit)


def growth(small: Callable[[], float], large: Callable[[], float], rounds: int = ROUNDS) -> float:
    """The best large round over the best small one; they take turns, so that a slow moment hits both."""
    pairs = [(small(), large()) for _ in range(rounds)]
    return min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)


def calls_per_task(count: int = 20_000) -> float:
    """Python functions called for each task of an array, from its placement to its result; our own driver, a few calls
    for each frame, included."""
    calls = 0

    def count_call(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    cluster = Cluster(2, 16, 0.001)
    cluster.submit(array(count))
    cluster.turn()
    sys.setprofile(count_call)
    try:
        ended = cluster.flow(count)
    finally:
        sys.setprofile(None)
    return calls / ended


def measure() -> dict[str, float]:
    gc.collect()
    gc.disable()  # as in the master
    try:
        few, many = named(10_000), named(100_000)
        one, all_different = named(10_000, 1, requires=True), named(10_000, 10_000, requires=True)
        everything = tuple(f"C{number}" for number in range(10_000))
        blocked = [*all_different, *array(20_000)]
        figures = {
            "core_growth_array_10k_to_1m": growth(
                lambda: flow_cost(array(10_000)), lambda: flow_cost(array(1_000_000))
            ),
            "core_growth_named_10k_to_100k": growth(lambda: flow_cost(few), lambda: flow_cost(many), 3),
            "core_growth_admission_10k_to_100k": growth(lambda: admission_cost(few), lambda: admission_cost(many), 3),
            "core_growth_classes_1_to_10k": growth(
                lambda: flow_cost(one, capabilities=everything),
                lambda: flow_cost(all_different, capabilities=everything),
            ),
            "core_growth_blocked_classes_0_to_10k": growth(
                lambda: flow_cost(array(20_000)), lambda: flow_cost(blocked), 3
            ),
            "core_growth_workers_2_to_1000": growth(
                lambda: flow_cost(array(100_000)), lambda: flow_cost(array(100_000), workers=1000)
            ),
            "core_calls_per_task": calls_per_task(),
            "core_us_per_array_task": 1e6 * min(flow_cost(array(100_000)) for _ in range(3)),
        }
    finally:
        gc.enable()
    return figures


def main() -> None:
    for name, value in measure().items():
        print(f"{name:42} {value:8.3f}")


if __name__ == "__main__":
    main()
