"""The real master and the real agents in one simulated cluster, and what can be done to them.

Nothing of `titan_fast.master` or `titan_fast.worker` is imitated here but their surroundings: sockets, disk,
processes, clocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from titan_fast.config import MasterSettings, SchedulerSettings, Settings, WorkerSettings
from titan_fast.errors import Refused
from titan_fast.ids import make_fence
from titan_fast.master.committer import Listener
from titan_fast.master.server import Master
from titan_fast.scheduler.facts import Fact
from titan_fast.testing.simulation.disk import SimulatedCommitter, SimulatedStore
from titan_fast.testing.simulation.machines import Host, SimulatedMachine
from titan_fast.testing.simulation.network import Network
from titan_fast.testing.simulation.world import Clock, Program, World
from titan_fast.worker.agent import Agent

ADDRESS = ("127.0.0.1", 9090)
ADDRESS_OF_COPY = ("127.0.0.1", 9091)
MASTER, COPY = "master", "copy"
"""Machines."""
TOKEN = {"client": "the client token", "worker": "the worker token"}
TIMES = SchedulerSettings(heartbeat=3.0, suspect_after=8.0, lost_after=20.0, recovery_grace=8.0)
FOLDER = Path(tempfile.gettempdir()) / "titan-fast-simulation"
"""Exists and stays empty: a master makes the folders for its files in it."""


SOON = 3.0
"""Seconds until somebody starts an agent again that gave up."""


class Room:
    """A disk with room on it; what a full one does is the simulated store's to play."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def check(self, *_: object) -> None: ...
    def release(self) -> bool:
        return False

    def restore(self) -> bool:
        return True


class SimulatedMaster(Master):
    """A master whose state directory is nobody else's business."""

    def _lock_state(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)

    def _cluster_id(self) -> str:
        return "simulated"

    def _write_tokens(self) -> None:
        self.tokens.update(TOKEN)


class _Watched(SimulatedCommitter):
    def __init__(self, cluster: Cluster, epoch: Callable[[], int], pump: Listener, program: Program) -> None:
        super().__init__(cluster.store, epoch, pump, program)
        self._cluster = cluster

    def put(self, facts: list[Fact], position: int) -> None:
        for listen in self._cluster.on_facts_made:
            listen(facts)
        super().put(facts, position)


def _settings(address: tuple[str, int]) -> Settings:
    host, port = address
    return Settings(master=MasterSettings(host=host, port=port, state_dir=str(FOLDER)), scheduler=TIMES)


class Cluster:
    """One master and some hosts with an agent each."""

    def __init__(self, world: World, store: SimulatedStore) -> None:
        self.world = world
        self.store = store
        self.network = Network(world, self.machine_of)
        self.hosts: dict[str, Host] = {}
        self.agents: dict[str, Program] = {}
        self.agent_of: dict[str, Agent] = {}
        self.settings: dict[str, WorkerSettings] = {}
        self.master: SimulatedMaster | None = None
        self.master_program: Program | None = None
        self.master_clock = Clock(5000.0)
        self.copy_program: Program | None = None
        """A master that somebody started on a copy of the state."""
        self.masters = 0
        self.kills = 0
        """Of masters."""
        self.on_facts_made: list[Callable[[Sequence[Fact]], None]] = []
        self.on_master: Callable[[], None] = lambda: None
        self.on_master_death: Callable[[], None] = lambda: None
        self.on_agent_end: Callable[[str], None] = lambda host: None
        self._places: dict[str, str] = {}

    def machine_of(self, program: Program) -> str:
        return self._places[program.name]

    def program(self, name: str, machine: str, clock: Clock) -> Program:
        self._places[name] = machine
        return self.world.program(name, clock, self.network)

    # ------------------------------------------------------------ the master

    def newest_fence(self) -> int:
        """The last one that the living master gave out; what a dead one gave out is below the next one's first."""
        if self.master is None or not hasattr(self.master, "scheduler"):
            return make_fence(self.store.newest_epoch + 1, 0)
        return self.master.scheduler.state.last_fence()

    def start_master(self) -> None:
        self.masters += 1
        self.on_master()
        program = self.master_program = self.program(f"master.{self.masters}", MASTER, self.master_clock)
        self.world.note(program, "starts")
        program.call_soon(self._run_master, program)

    def kill_master(self, away: float) -> None:
        """It is gone this very moment; another one begins after ``away`` seconds."""
        self.kills += 1
        self._end_master(away)

    def stop_master(self, away: float) -> None:
        """As a signal would, without waiting for what runs; another one begins ``away`` seconds after its end."""
        program, master = self.master_program, self.master
        if program is not None and master is not None and hasattr(master, "garden"):
            self.world.note(program, "is stopped")
            program.main(self._stop(program, master, away))

    async def _stop(self, program: Program, master: SimulatedMaster, away: float) -> None:
        await master.stop(0.0)
        self.world.after(0.0, self._master_has_stopped, program, away)

    def _master_has_stopped(self, program: Program, away: float) -> None:
        if self.master_program is program:
            self._end_master(away)

    def _end_master(self, away: float) -> None:
        program, self.master_program, self.master = self.master_program, None, None
        if program is not None:
            self.world.note(program, "is gone")
            self.on_master_death()
            program.kill()
            self.network.hang_up(program)
            self.world.after(away, self._master_returns)

    def _master_returns(self) -> None:
        if self.master_program is None:
            self.start_master()

    def _run_master(self, program: Program) -> None:
        self.master = SimulatedMaster(
            _settings(ADDRESS),
            self.store,
            committer=lambda store, epoch, pump: _Watched(self, epoch, pump, program),
            clock=program.time,
            wall=program.wall,
            seed=self.world.entropy.getrandbits(64),
            on_failure=lambda _: self.kill_master(1.0),
        )
        program.main(self.master.start())

    def start_copy(self) -> None:
        """Another master, on a copy of what is on the disk now. Whoever makes a detour finds that one."""
        program = self.copy_program = self.program(f"copy.{self.masters}", COPY, Clock(7000.0))
        self.world.note(program, "starts")
        program.call_soon(self._run_copy, program, self.store.duplicate())

    def _run_copy(self, program: Program, store: SimulatedStore) -> None:
        master = SimulatedMaster(
            _settings(ADDRESS_OF_COPY),
            store,
            committer=lambda store, epoch, pump: SimulatedCommitter(store, epoch, pump, program),  # type: ignore[arg-type]
            clock=program.time,
            wall=program.wall,
            seed=self.world.entropy.getrandbits(64),
        )
        program.main(master.start())

    def end_copy(self) -> None:
        program, self.copy_program = self.copy_program, None
        if program is not None:
            self.world.note(program, "is gone")
            program.kill()
            self.network.hang_up(program)

    # ------------------------------------------------------------ workers

    def add_host(self, host: Host, settings: WorkerSettings) -> None:
        self.hosts[host.name] = host
        self.settings[host.name] = settings
        self.start_agent(host.name)

    def start_agent(self, name: str) -> None:
        host = self.hosts[name]
        program = self.agents[name] = self.program(f"{name}.{host.agents + 1}", name, host.clock)
        self.world.note(program, "starts")
        program.call_soon(self._run_agent, host, program)

    def _run_agent(self, host: Host, program: Program) -> None:
        machine = SimulatedMachine(host, program)
        agent = Agent(self.settings[host.name], [ADDRESS], lambda: TOKEN["worker"], machine)
        self.agent_of[host.name] = agent
        program.main(self._live(agent, program))

    async def _live(self, agent: Agent, program: Program) -> None:
        """An agent from its start to its end. One that the master will not have is started again, as people do."""
        host = self.hosts[self.machine_of(program)]
        try:
            await agent.run()
        except Refused:
            self.world.note(program, "is refused for good")
            self.world.after(SOON, self._start_again, host.name, program)
        self.world.after(0.0, self._agent_ended, host.name, program)

    def _start_again(self, name: str, program: Program) -> None:
        if self.agents[name] is program:
            self.start_agent(name)

    def kill_agent(self, name: str) -> None:
        """Its processes run on."""
        self._end_agent(name, silently=False)

    def _end_agent(self, name: str, *, silently: bool) -> None:
        program = self.agents[name]
        self.world.note(program, "is killed")
        program.kill()
        self.network.hang_up(program, silently=silently)
        self.hosts[name].lose_agent()
        self.agent_of.pop(name, None)

    def stop_agent(self, name: str) -> None:
        """As a signal would."""
        program = self.agents[name]
        if (agent := self.agent_of.get(name)) is not None:
            self.world.post(program, self.world.now, agent.stop)

    def _agent_ended(self, name: str, program: Program) -> None:
        if self.agents[name] is program and not program.is_dead:
            self.on_agent_end(name)
            self._end_agent(name, silently=False)

    def power_cut(self, name: str) -> None:
        if not self.agents[name].is_dead:
            self._end_agent(name, silently=self.hosts[name].rng.random() < 0.5)
        self.hosts[name].lose_power()

    def can_do_without(self, name: str, off: set[str]) -> bool:
        """Somebody else has everything this worker can."""
        capabilities = set(self.settings[name].caps.split(","))
        return any(
            capabilities <= {*self.settings[other].caps.split(","), ""}
            for other in self.hosts
            if other != name and other not in off
        )
