"""Everything that can go wrong with a cluster, drawn from a seed, and the good weather after it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec
from cluster import ADDRESS_OF_COPY, MASTER, Cluster

from titan_fast.scheduler.facts import Fact, TasksReopened, WorkerGone
from titan_fast.testing.simulation.machines import SIGKILL
from titan_fast.testing.simulation.network import Wire

FINDS_OUT = 13.0
"""Seconds after which an agent has noticed that it talks to nobody, and is back."""
BEARABLE = 15.0
"""Seconds without a word that nobody is given up for."""
ATTACH_IS_SENT = 5
"""Writes on a connection up to an agent's inventory: HELLO, CHALLENGE, PROOF, WELCOME, ATTACH."""
GIVEN_UP = 20.0
"""Seconds of silence after which a worker is lost."""
HELD = 8.0
"""Seconds that a new master waits for those who were alive."""
FOR_EVER = 1e9


class Climate(msgspec.Struct, frozen=True):
    """Which faults there are, and how often each, as weights by the name of the method of `Weather`."""

    name: str
    faults: dict[str, int]


MIXED = Climate(
    "mixed",
    {
        "kill_master": 5,
        "freeze_master": 2,
        "kill_agent": 5,
        "freeze_agent": 3,
        "power_cut": 2,
        "isolate": 3,
        "exile": 2,
        "come_back_late": 2,
        "cut": 6,
        "half_cut": 4,
        "silence": 4,
        "late_attach": 2,
        "late_goodbye": 2,
        "jump_clock": 2,
        "slow_disk": 2,
        "full_disk": 2,
        "break_disk": 1,
        "stop_master": 2,
        "stop_agent": 1,
        "disaster": 2,
        "lose_the_thread": 3,
        "copy_the_state": 2,
    },
)
MASTER_ONLY = Climate(
    "master", {"kill_master": 6, "stop_master": 2, "slow_disk": 1, "break_disk": 1, "cut": 3, "jump_clock": 1}
)
"""No worker loses anything, so no task may run twice."""
NETWORK_ONLY = Climate(
    "network", {"cut": 6, "half_cut": 5, "silence": 4, "isolate": 2, "exile": 2, "late_attach": 6, "late_goodbye": 2}
)
WORKERS_ONLY = Climate("workers", {"kill_agent": 6, "freeze_agent": 4, "power_cut": 3, "cut": 3, "stop_agent": 1})
STRANGE = Climate(
    "strange",
    {
        "kill_master": 4,
        "stop_master": 2,
        "exile": 4,
        "come_back_late": 5,
        "disaster": 3,
        "lose_the_thread": 7,
        "copy_the_state": 7,
        "late_attach": 4,
        "late_goodbye": 4,
        "slow_disk": 2,
    },
)
"""What is known in one place is forgotten in another."""
CLIMATES = (MIXED, MASTER_ONLY, NETWORK_ONLY, WORKERS_ONLY, STRANGE)


def climate_of(seed: int) -> Climate:
    """A seed is a whole hour, its weather included."""
    return CLIMATES[seed % len(CLIMATES)]


class Judge(Protocol):
    """Who has to know what the weather does to a host, to judge what comes of it."""

    strays: set[str]
    """Hosts that listen to another master."""

    def had_trouble(self, host: str, until: float) -> None: ...


class Weather:
    """Faults at random times until `clear`."""

    def __init__(self, cluster: Cluster, rng: random.Random, climate: Climate, judge: Judge) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.rng = rng
        self.climate = climate
        self.counts: Counter[str] = Counter()
        self.is_clear = False
        self.has_jumped = False
        """A wall clock did, so due times mean less."""
        self._judge = judge
        self._lies_in_wait = False
        self._leaving: dict[str, Wire] = {}
        """Host -> the connection over which its agent is about to say goodbye."""
        self._off: set[str] = set()
        self._master_died = -BEARABLE
        self._strain: dict[str, list[tuple[float, float]]] = {}

    def brew(self, faults: int, first: float, last: float) -> None:
        """So many faults between two times of the world, seconds."""
        names = sorted(self.climate.faults)
        weights = [self.climate.faults[name] for name in names]
        for _ in range(faults):
            when = first + (last - first) * self.rng.random()
            self.world.at(when, self._strike, self.rng.choices(names, weights)[0])

    def brew_for_functions(self, rng: random.Random, faults: int, first: float, last: float) -> None:
        """So many more, of which only functions notice anything, by other dice."""
        for _ in range(faults):
            self.world.at(first + (last - first) * rng.random(), self._strike, "kill_lane", rng)

    def _strike(self, name: str, *given: object) -> None:
        if not self.is_clear:
            self.counts[name] += 1
            self.world.note("fault", name)
            getattr(self, name)(*given)

    def somebody_asks(self) -> None:
        """A good moment for the master to die: before it has kept what it is asked for, or before that is done."""
        if self.is_clear or "kill_master" not in self.climate.faults or self.rng.random() > 0.1:
            return
        if self.rng.random() < 0.3:
            self.cluster.store.pace = 2.0
            self.world.after(1.0, self._disk_is_well)
        self.world.after(self.rng.choice((0.01, 1.0)) * self.rng.random(), self._strike, "kill_master")

    def something_is_decided(self, facts: Sequence[Fact]) -> None:
        """Facts are on their way to the disk, and what follows from them is done already: a good moment, too."""
        if self.is_clear or "kill_master" not in self.climate.faults:
            return
        if any(isinstance(item, TasksReopened | WorkerGone) for item in facts) and self.rng.random() < 0.5:
            self.cluster.store.pace = 2.0
            self.world.after(0.1 * self.rng.random(), self._strike, "kill_master")
            self.world.after(1.0, self._disk_is_well)

    def _trouble(self, host: str, seconds: float = 0.0) -> None:
        """What a worker holds may be given to others from now on."""
        self._judge.had_trouble(host, self.world.now + seconds)

    def _strained(self, host: str, seconds: float) -> None:
        """For so many seconds the two may not hear each other. Once that is no reason to lose anything; when it
        comes together with more of the kind, or with a restart of the master, the worker may be given up."""
        now = self.world.now
        recent = [(when, lost) for when, lost in self._strain.get(host, ()) if now - when < 60.0]
        self._strain[host] = [*recent, (now, seconds)]
        if sum(lost for _, lost in self._strain[host]) > BEARABLE or now - self._master_died < BEARABLE:
            self._trouble(host, seconds + 45.0)

    def a_while(self, mean: float) -> float:
        return mean * self.rng.expovariate(1.0)

    # ------------------------------------------------------------ the master

    def kill_master(self) -> None:
        """Between any two callbacks, at once or after some more of them."""
        program = self.cluster.master_program
        if program is not None and not program.is_dead and program.fuse is None:
            program.fuse = (self.rng.randrange(40), lambda: self.cluster.kill_master(self.a_while(1.5)))

    def master_died(self) -> None:
        """Who was hard of hearing at that time may come too late."""
        self._master_died = self.world.now
        for host, strains in self._strain.items():
            if any(self.world.now < when + lost + FINDS_OUT for when, lost in strains):
                self._trouble(host, 45.0)

    def stop_master(self) -> None:
        """In order, and another one begins."""
        self.cluster.stop_master(self.a_while(1.5))

    def copy_the_state(self) -> None:
        """Somebody starts another master on a copy of the state, and for a while some workers find that one. Ours
        may have to begin the same epoch meanwhile."""
        if self.cluster.copy_program is not None:
            return
        self.cluster.start_copy()
        if self.rng.random() < 0.5:
            self.world.after(self.rng.random(), self._strike, "kill_master")
        for name in self.rng.sample(list(self.cluster.hosts), self.rng.randrange(1, 4)):
            self.cluster.network.detours[name] = ADDRESS_OF_COPY
            self._judge.strays.add(name)
            self._trouble(name)
            for wire in self.cluster.network.open_wires(name):
                wire.cut()
        self.world.after(10.0 + self.a_while(10.0), self._copy_ends)

    def _copy_ends(self) -> None:
        if self.cluster.copy_program is None:
            return
        self.cluster.end_copy()
        if self.rng.random() < 0.5:
            self._strike("kill_master")
        for name in self.cluster.network.detours:
            self._trouble(name, FINDS_OUT)
        self._judge.strays.clear()
        self.cluster.network.detours.clear()

    def freeze_master(self) -> None:
        program = self.cluster.master_program
        if program is not None and not program.is_dead:
            program.freeze()
            seconds = self.a_while(4.0)
            self.world.after(seconds, program.thaw)
            for host in self.cluster.hosts:
                self._strained(host, seconds + FINDS_OUT)

    # ------------------------------------------------------------ workers

    def a_host(self) -> str:
        return self.rng.choice(list(self.cluster.hosts))

    def kill_agent(self) -> None:
        name = self.a_host()
        if name not in self._off:
            program = self.cluster.agents[name]
            if not program.is_dead and program.fuse is None:
                self._trouble(name, 5.0)
                program.fuse = (self.rng.randrange(20), lambda: self._agent_dies(name))

    def _agent_dies(self, name: str) -> None:
        self._trouble(name)
        self.cluster.kill_agent(name)
        self.world.after(0.2 + self.a_while(1.0), self._agent_returns, name)

    def _agent_returns(self, name: str) -> None:
        if name not in self._off and self.cluster.agents[name].is_dead:
            self.cluster.start_agent(name)

    def kill_lane(self, rng: random.Random) -> None:
        """The system needs its memory: one of the processes for functions, rather one that is busy."""
        lanes = [lane for host in self.cluster.hosts.values() for lane in host.lanes]
        busy = [lane for lane in lanes if lane.process is not None]
        if lanes:
            rng.choice(busy if busy and rng.random() < 0.8 else lanes).end(-SIGKILL)

    def freeze_agent(self) -> None:
        name = self.a_host()
        program = self.cluster.agents[name]
        seconds = self.a_while(12.0)
        self._trouble(name, seconds)
        program.freeze()
        self.world.after(seconds, program.thaw)

    def stop_agent(self) -> None:
        """Asked to go: it gives back what has not started, ends what runs after a while, and comes back later."""
        name = self.a_host()
        if name not in self._off and not self.cluster.agents[name].is_dead:
            self._trouble(name)
            self.cluster.stop_agent(name)
            self.world.after(20.0 + self.a_while(20.0), self._agent_returns, name)

    def late_goodbye(self) -> None:
        """As `stop_agent`, but its last words are on the way for so long that its next agent is there before them."""
        name = self.a_host()
        wires = self.cluster.network.open_wires(name)
        if wires and name not in self._off and not self.cluster.agents[name].is_dead:
            self._trouble(name)
            self._leaving[name] = wires[0]
            self.cluster.stop_agent(name)

    def agent_ended(self, name: str) -> None:
        """By itself: it was stopped, or refused."""
        self._trouble(name)
        wire = self._leaving.pop(name, None)
        if wire is not None:
            wire.silence()
            self.world.after(1.0 + self.a_while(5.0), self._agent_returns, name)
            self.world.after(FINDS_OUT + self.a_while(4.0), wire.heal)

    def power_cut(self, name: str = "") -> None:
        name = name or self.a_host()
        if name in self._off:
            return
        self._off.add(name)
        self.cluster.power_cut(name)
        if self.rng.random() < 0.9 or not self.cluster.can_do_without(name, self._off):
            away = self.a_while(15.0)
            self._trouble(name, away)
            self.world.after(away, self._power_returns, name)
        else:
            self._trouble(name, FOR_EVER)

    def _power_returns(self, name: str) -> None:
        self._off.discard(name)
        self._agent_returns(name)

    def disaster(self) -> None:
        """The disk is slow, the master dies with what it has not kept, one of those who knew it dies, too, and another
        one comes late."""
        self.cluster.store.pace = 5.0
        self.world.after(3.0, self._strike, "kill_master")
        self.world.after(3.0 + self.rng.random(), self._strike, "power_cut")
        self.world.after(3.0, self._strike, "freeze_agent")
        self.world.after(4.0, self._disk_is_well)

    def lose_the_thread(self) -> None:
        """The next task that starts before the end of one above it is on the disk goes out of sight for a while; with
        the master goes the knowledge of that end, and with its worker the result."""
        self._lies_in_wait = True
        self.cluster.store.pace = 5.0
        self.world.after(4.0, self._disk_is_well)

    def somebody_runs_ahead(self, host: str, parents: set[str]) -> None:
        if self._lies_in_wait and not self.is_clear and host not in parents:
            self._lies_in_wait = False
            self.world.after(0.0, self._lose_the_thread, host, parents)

    def _lose_the_thread(self, host: str, parents: set[str]) -> None:
        self.world.note("fault", "the thread is lost", host, sorted(parents))
        self.exile(host)
        for parent in sorted(parents):
            self.power_cut(parent)
        self.cluster.kill_master(0.1)
        self._disk_is_well()

    # ------------------------------------------------------------ the network

    def come_back_late(self) -> None:
        """The busiest worker is away when the master dies, and back when others have just begun what it holds."""
        hosts = self.cluster.hosts
        self.exile(max(hosts, key=lambda name: hosts[name].load), 3.0 + HELD + 4.0 * self.rng.random())
        self.world.after(1.0, self._strike, "kill_master")

    def exile(self, name: str = "", seconds: float = 0.0) -> None:
        """A worker is away for longer than anybody waits for it, and comes back with all it had."""
        name = name or self.a_host()
        seconds = seconds or GIVEN_UP * (0.5 + 2.0 * self.rng.random())
        self._trouble(name, seconds + FINDS_OUT)
        self.cluster.network.isolate(name)
        self.world.after(seconds, self.cluster.network.rejoin, name)

    def isolate(self) -> None:
        name = MASTER if self.rng.random() < 0.2 else self.a_host()
        seconds = self.a_while(8.0)
        for host in self.cluster.hosts if name == MASTER else (name,):
            self._strained(host, seconds + FINDS_OUT)
        self.cluster.network.isolate(name)
        self.world.after(seconds, self.cluster.network.rejoin, name)

    def a_wire(self) -> Wire | None:
        wires = self.cluster.network.open_wires()
        return self.rng.choice(wires) if wires else None

    def cut(self) -> None:
        """Now, or with the next thing that is said."""
        if (wire := self.a_wire()) is not None:
            if self.rng.random() < 0.3:
                wire.cut()
            else:
                wire.trap = wire.cut

    def half_cut(self) -> None:
        """Only one side notices; the other finds out by silence."""
        if (wire := self.a_wire()) is not None:
            self._strained(wire.near.machine, FINDS_OUT)
            wire.half_cut(self.rng.choice((wire.near, wire.far)))

    def silence(self) -> None:
        """Nothing arrives for a while, or never again."""
        if (wire := self.a_wire()) is not None:
            seconds = self.a_while(8.0)
            self._strained(wire.near.machine, FINDS_OUT)
            wire.silence()
            if self.rng.random() < 0.7:
                self.world.after(seconds, wire.heal)

    def late_attach(self) -> None:
        """An agent connects anew and its inventory is on the way for so long that it tries again: the old inventory
        arrives behind the new one."""
        name = self.a_host()
        wires = [wire for wire in self.cluster.network.open_wires() if wire.near.machine == name]
        if wires:
            self._strained(name, FINDS_OUT)
            self.cluster.network.traps[name] = lambda wire: self._hold_back(wire, ATTACH_IS_SENT)
            wires[0].cut()

    def _hold_back(self, wire: Wire, after: int) -> None:
        if after:
            wire.trap = lambda: self._hold_back(wire, after - 1)
        else:
            wire.silence()
            self.world.after(FINDS_OUT + self.a_while(4.0), wire.heal)

    # ------------------------------------------------------------ clocks and disk

    def jump_clock(self) -> None:
        self.has_jumped = True
        clocks = [self.cluster.master_clock, *(host.clock for host in self.cluster.hosts.values())]
        self.rng.choice(clocks).wall += self.rng.choice((-3600.0, -5.0, 5.0, 3600.0))

    def slow_disk(self) -> None:
        self.cluster.store.pace = 3.0
        self.world.after(self.a_while(10.0), self._disk_is_well)

    def full_disk(self) -> None:
        self.cluster.store.is_full = True
        self.world.after(self.a_while(5.0), self._disk_is_well)

    def break_disk(self) -> None:
        self.cluster.store.is_broken = True

    def _disk_is_well(self) -> None:
        self.cluster.store.pace = 0.002
        self.cluster.store.is_full = False

    # ------------------------------------------------------------ the end

    def clear(self) -> None:
        """No fault any more, and what was broken is mended. Machines that were lost for good stay lost."""
        self.is_clear = True
        self.world.note("the weather clears")
        self._disk_is_well()
        self.cluster.store.is_broken = False
        self._copy_ends()
        for name in sorted(self.cluster.network.isolated):
            self.cluster.network.rejoin(name)
        for wire in list(self.cluster.network.wires.values()):
            wire.heal()
        for program in (self.cluster.master_program, *self.cluster.agents.values()):
            if program is not None:
                program.fuse = None
                program.thaw()
        if self.cluster.master_program is None or self.cluster.master_program.is_dead:
            self.cluster.start_master()
        for name in self.cluster.hosts:
            self._agent_returns(name)
