"""A cluster-hour: five workers or more, a thousand tasks or more, thirty faults or more, then good weather and rest.

`run_hour(seed)` is the whole of it. What goes wrong is an exception whose notes are the end of the trace.
"""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable
from unittest import mock

import graphs
import msgspec
from cluster import ADDRESS, TOKEN, Cluster, Room
from crowd import Client
from oracle import Broken, Oracle
from sabotage import sabotaged
from weather import Climate, Weather, climate_of

from titan_fast.config import WorkerSettings
from titan_fast.master import server
from titan_fast.master.server import Master
from titan_fast.scheduler import invariants, recovery
from titan_fast.scheduler.lifecycle import FINAL, TaskState
from titan_fast.scheduler.state import Run, State, Tuning
from titan_fast.testing.simulation.disk import SimulatedStore
from titan_fast.testing.simulation.machines import Host
from titan_fast.testing.simulation.world import Clock, World

STORM = 400.0
"""Virtual seconds with faults."""
QUIET = 1500.0
"""Virtual seconds in which everything must end without them."""
WORKERS = (("GPU,BIG", 4), ("GPU", 4), ("", 4), ("GPU,BIG", 2), ("LAB", 8), ("", 3))
CLIENTS = 3
RUNS = 12
FUNCTIONS = 4
"""Graphs with functions, beside those."""
LOOK = 400
"""Callbacks between two looks at all the books of the master: so many that an hour takes a tenth longer at most. What
is seen from outside is judged at each step."""
LANES = 12
"""Processes for functions that the system ends, at most."""
TASKS = 1000
FAULTS = 30


class Hour(msgspec.Struct, frozen=True):
    """What an hour was like."""

    seed: int
    fingerprint: str
    tasks: int
    starts: int
    faults: int
    masters: int
    killed: int
    """Masters."""
    agents: int
    callbacks: int
    seconds: float
    """Virtual."""


class ClusterHour:
    """The parts of an hour, for tests that look at them."""

    def __init__(
        self,
        seed: int,
        climate: Climate | None = None,
        sabotage: str = "",
        *,
        is_traced: bool = False,
        functions: int = FUNCTIONS,
    ) -> None:
        """
        Args:
            functions: graphs with functions; with none of them an hour is what it was before they took part.
        """
        self.seed = seed
        self.functions = functions
        climate = climate or climate_of(seed)
        self.world = World(seed, is_traced=is_traced)
        self.rng = self.world.chance("hour")
        self.oracle = Oracle(self.world, crash_limit=5)
        self.store = SimulatedStore(self.world, self.oracle.on_commit, self.oracle.on_open)
        self.cluster = Cluster(self.world, self.store)
        self.oracle.newest_known_fence = self.cluster.newest_fence  # type: ignore[method-assign]
        self.weather = Weather(self.cluster, self.world.chance("weather"), climate, self.oracle)
        self.cluster.on_facts_made = [self.oracle.on_facts_made, self.weather.something_is_decided]
        self.cluster.on_master = self.oracle.a_master_starts
        self.cluster.on_master_death = self.weather.master_died
        self.cluster.on_agent_end = self.weather.agent_ended
        self.oracle.runs_ahead = self.weather.somebody_runs_ahead  # type: ignore[method-assign]
        self.oracle.asks = self.weather.somebody_asks  # type: ignore[method-assign]
        self.oracle.has_jumped = lambda: self.weather.has_jumped  # type: ignore[method-assign]
        self.clients: list[Client] = []
        self.replays = 0
        self.looks = 0
        self._next_look = LOOK
        self._sabotage = sabotage

    def run(self) -> Hour:
        """Raises SimulationFailed, or whatever a program raised."""
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            with mock.patch.object(server, "Space", Room), sabotaged(self._sabotage):
                return self._run()
        except BaseException as error:
            error.add_note(f"seed {self.seed}, {self.weather.climate.name} weather; the end of the trace:")
            error.add_note(self.world.story())
            raise
        finally:
            self.world.end()
            if was_collecting:
                gc.enable()

    def _run(self) -> Hour:
        self.cluster.start_master()
        for number, (caps, slots) in enumerate(WORKERS):
            name = f"w{number}"
            self.oracle.slots[name] = slots
            host = Host(self.world, name, self.oracle, lambda attempt: graphs.plan(self.seed, attempt))
            host.on_poison = functools.partial(self.weather.power_cut, name)
            self.cluster.add_host(host, WorkerSettings(name=name, slots=slots, caps=caps, drain=5.0))
        shapes = self._draw()
        lives = []
        for number in range(CLIENTS):
            name = f"c{number}"
            program = self.cluster.program(name, name, Clock())
            client = Client(program, ADDRESS, TOKEN["client"], self.oracle, self.world.chance("client", number))
            self.clients.append(client)
            lives.append(program.main(client.live(shapes[number::CLIENTS], STORM)))
        self._replay_now_and_then()
        self.weather.brew(FAULTS + self.rng.randrange(15), 5.0, STORM)
        if self.functions:
            self.weather.brew_for_functions(self.world.chance("weather for functions"), LANES, 5.0, STORM)
        self._run_until(STORM)
        self.weather.clear()
        if not self._run_until(STORM + QUIET, lambda: all(life.done() for life in lives)):
            self.oracle.at_rest()
            raise Broken(f"clients still wait: {[client.name for client in self.clients if client.pending]}")
        self._run_until(self.world.now + 90.0)
        self._replay_now_and_then()
        self._at_rest()
        return Hour(
            self.seed,
            self.world.fingerprint,
            sum(len(book.tasks) for book in self.oracle.books.values()),
            self.oracle.starts,
            sum(self.weather.counts.values()),
            self.cluster.masters,
            self.cluster.kills,
            sum(host.agents for host in self.cluster.hosts.values()),
            self.world.callbacks,
            self.world.now,
        )

    def _run_until(self, when: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """The world's `run`; the master's books are looked at now and then, between two callbacks."""

        def is_enough() -> bool:
            if self.world.callbacks >= self._next_look:
                self._look()
            return is_done()

        return self.world.run(when, is_enough)

    def _look(self) -> None:
        self._next_look = self.world.callbacks + LOOK
        master = self.cluster.master
        if master is not None and hasattr(master, "garden"):
            self.looks += 1
            invariants.check(master.scheduler.state)

    def _draw(self) -> list[graphs.Shape]:
        """What will be submitted."""
        shapes: list[graphs.Shape] = []
        while len(shapes) < RUNS or sum(shape.tasks for shape in shapes) < TASKS:
            shapes.append(graphs.draw(self.rng, f"graph-{len(shapes)}"))
        if self.functions:
            rng = self.world.chance("functions")
            shapes += [graphs.draw_functions(rng, f"functions-{number}") for number in range(self.functions)]
            rng.shuffle(shapes)
        return shapes

    def _replay_now_and_then(self) -> None:
        """What the store knows, replayed, is what the master has in memory, whenever nothing is on its way."""
        if not self.weather.is_clear:
            self.world.after(40.0 * self.rng.random(), self._replay_now_and_then)
        self._count_slots()
        master = self.cluster.master
        if master is None or not hasattr(master, "garden") or master.pump.position != master.pump.durable:
            return
        self.replays += 1
        self._replay_keys(master)
        aside = State(0, random.Random(0), Tuning())
        for number, run in master.scheduler.state.runs.items():
            record = self.store.run(number)
            self.oracle.must(record is not None, "run", number, "is in memory and not on the disk")
            assert record is not None
            replayed, known = _remembered(recovery.rebuild(aside, record)), _remembered(run)
            for what, value in known.items():
                self.oracle.must(
                    replayed[what] == value, "run", number, what, ": memory has", value, "the disk", replayed[what]
                )

    def _count_slots(self) -> None:
        """Lanes that have something to do have a slot each."""
        for name, agent in self.cluster.agent_of.items():
            functions = self.cluster.hosts[name].functions
            assert functions is not None
            lanes, busy = agent._slots.lanes, functions.busy
            self.oracle.must(lanes == busy, name, "has", lanes, "slots in use for lanes, and busy are", busy)

    def _replay_keys(self, master: Master) -> None:
        known = {name: (entry.value, entry.revision) for name, entry in master.scheduler.state.kv.items()}
        kept = {item.name: (item.value, item.revision) for item in self.store.load().keys}
        self.oracle.must(known == kept, "keys: memory has", known, "the disk", kept)

    def _at_rest(self) -> None:
        """Nothing is left over: no process, no lot, no result that nobody acknowledged, no worker that gets nothing."""
        self.oracle.at_rest()
        master = self.cluster.master
        assert master is not None
        invariants.check_rest(master.scheduler.state)
        for name, agent in self.cluster.agent_of.items():
            held = agent.inventory(0).inventory
            if held:
                raise Broken(f"{name} still holds {held}")
            left = (
                agent._slots.used,
                agent._unacknowledged_size,
                agent._functions._long,
                agent._disowned,
                agent._wrote,
            )
            if any((*left, agent._held, agent._functions_to_send, agent._sent)):
                raise Broken(f"{name} has nothing and still counts something: {left}")
            worker = master.scheduler.state.workers[self.cluster.hosts[name].worker_id]
            if worker.state != "READY":
                raise Broken(f"{name} is well, and {worker.state} for the master")
        for host in self.cluster.hosts.values():
            if host.processes:
                raise Broken(f"{host.name} has processes that nobody has reaped: {list(host.processes.values())}")


def _remembered(run: Run) -> dict[str, object]:
    """What a restart must not change about a run."""
    final = [index for index, value in enumerate(run.state) if TaskState(value) in FINAL]
    unhappy = [index for index, value in enumerate(run.state) if value != TaskState.COMPLETED]
    return {
        "states": {index: TaskState(run.state[index]).name for index in final},
        "generations": {index: number for index, number in run.generation.items() if number},
        "failures": {index: run.failures[index] for index in unhappy if run.failures.get(index)},
        "crashes": {index: run.crashes[index] for index in unhappy if run.crashes.get(index)},
        "fences": list(run.best),
        "floors": {index: run.floor_of(index) for index in unhappy if index not in final},
        "status": run.status if run.is_final else "",
    }


def run_hour(seed: int, sabotage: str = "", *, functions: int = FUNCTIONS) -> Hour:
    return ClusterHour(seed, sabotage=sabotage, functions=functions).run()
