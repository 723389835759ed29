"""A network without sockets: in order within a connection, late and in pieces, cut, half open, silent or refused.

It carries bytes between programs and knows nothing of what they mean.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, cast

from titan_fast.testing.simulation.world import Factory, Program, World

KERNEL = 256 << 10
"""Bytes that leave a program's own buffer though the other end has not read them."""
CONNECT_TIMEOUT = 3.0


class Pace:
    """How fast a network is: what a byte's way takes, seconds, and how often a write arrives in pieces."""

    def __init__(self, least: float = 0.0002, usual: float = 0.002, rare: float = 0.3, split: float = 0.05) -> None:
        self.least = least
        self.usual = usual
        self.rare = rare
        self.split = split

    def delay(self, rng: random.Random) -> float:
        luck = rng.random()
        if luck > 0.99:
            return self.rare * rng.random()
        return self.least + self.usual * luck * luck


class End(asyncio.Transport):
    """One end of a connection, as its program sees it."""

    def __init__(self, wire: Wire, program: Program, machine: str, rng: random.Random) -> None:
        super().__init__()
        self.wire = wire
        self.program = program
        self.machine = machine
        self.peer: End = self
        self.protocol = cast(asyncio.Protocol, None)
        self.is_lost = False
        """Its program was told, or cannot be told, that the connection is over."""
        self._rng = rng
        self._closing = False
        self._reading = True
        self._unread: list[bytes | None] = []
        """What has arrived while the program did not read; None is the end."""
        self.arrives = 0.0
        self._buffered = 0
        self._high, self._low = 64 << 10, 16 << 10
        self._choked = False

    def __repr__(self) -> str:
        return f"{self.program}→{self.peer.program}#{self.wire.number}"

    # ------------------------------------------------------------ the program's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self.is_lost or not data:
            return
        data = bytes(data)
        self._buffered += len(data)
        if len(data) > 1 and self._rng.random() < self.wire.network.pace.split:
            cut = self._rng.randrange(1, len(data))
            self._send(data[:cut])
            data = data[cut:]
        self._send(data)
        if not self._choked and self.get_write_buffer_size() > self._high:
            self._choked = True
            self.program.call_soon(self.protocol.pause_writing)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return max(0, self._buffered - KERNEL)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 << 10 if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.program.call_soon(self._read_on)

    def is_closing(self) -> bool:
        return self._closing or self.is_lost

    def close(self) -> None:
        """What is written still arrives, then the end."""
        if not self._closing and not self.is_lost:
            self._closing = True
            self._send(None)
            self.program.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self.is_lost:
            if not self._closing:
                self._closing = True
                self._send(None)
            self.program.call_soon(self._lose, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.peer.machine, self.wire.number) if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    # ------------------------------------------------------------ the network's side

    def _send(self, data: bytes | None) -> None:
        world = self.wire.network.world
        self.arrives = max(self.arrives, world.now + self.wire.network.pace.delay(self._rng))
        self.wire.carry(self, data, self.arrives)

    def arrived(self, data: bytes | None) -> None:
        """In the program, as one of its callbacks."""
        if self.is_lost or self._closing:
            if data is not None:
                self.peer.reset()
            return
        if not self._reading:
            self._unread.append(data)
            return
        self._take(data)

    def _take(self, data: bytes | None) -> None:
        if data is None:
            self._closing = True
            self.protocol.eof_received()
            self.program.call_soon(self._lose, None)
            return
        self.wire.network.world.note(self, len(data))
        self.peer.drained(len(data))
        self.protocol.data_received(data)

    def _read_on(self) -> None:
        while self._reading and self._unread and not self.is_lost and not self._closing:
            self._take(self._unread.pop(0))

    def drained(self, size: int) -> None:
        """The other end has read so much."""
        self._buffered -= size
        if self._choked and self.get_write_buffer_size() <= self._low and not self.is_lost:
            self._choked = False
            self.program.call_soon(self._write_on)

    def _write_on(self) -> None:
        if not self.is_lost:
            self.protocol.resume_writing()

    def reset(self, delay: float | None = None) -> None:
        """Its program is told, a little later, that the connection broke."""
        network = self.wire.network
        delay = network.pace.delay(self._rng) if delay is None else delay
        network.world.post(self.program, network.world.now + delay, self._lose, ConnectionResetError("reset"))

    def _lose(self, error: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._closing = True
            self._unread.clear()
            self.wire.end_lost()
            self.wire.network.world.note(self, "lost")
            if self.protocol is not None:
                self.protocol.connection_lost(error)


class Wire:
    """A connection: two ends, and what happens to bytes between them."""

    def __init__(self, network: Network, number: int, near: tuple[Program, str], far: tuple[Program, str]) -> None:
        self.network = network
        self.number = number
        self.near = End(self, *near, network.world.chance("wire", number, "near"))
        self.far = End(self, *far, network.world.chance("wire", number, "far"))
        self.near.peer, self.far.peer = self.far, self.near
        self.is_cut = False
        self.is_silent = False
        self.trap: Callable[[], None] | None = None
        """What happens to it with the next thing that is said; that is the first to be lost."""
        self._held: list[tuple[End, bytes | None]] = []

    @property
    def machines(self) -> tuple[str, str]:
        return self.near.machine, self.far.machine

    @property
    def is_open(self) -> bool:
        return not (self.is_cut or self.near.is_lost or self.far.is_lost)

    def carry(self, sender: End, data: bytes | None, when: float) -> None:
        if self.trap is not None:
            trap, self.trap = self.trap, None
            trap()
        if self.is_cut:
            return
        if self.is_silent:
            self._held.append((sender, data))
            return
        self.network.world.post(sender.peer.program, when, self._deliver, sender, data)

    def _deliver(self, sender: End, data: bytes | None) -> None:
        if self.is_cut:
            return
        if self.is_silent:
            self._held.append((sender, data))
        else:
            sender.peer.arrived(data)

    def cut(self) -> None:
        """Both ends notice, each in its time; what was on its way is lost."""
        self.is_cut = True
        for end in (self.near, self.far):
            if not end.program.is_dead:
                end.reset()

    def half_cut(self, end: End) -> None:
        """One end notices. The other one goes on talking to nobody."""
        self.is_cut = True
        if not end.program.is_dead:
            end.reset()

    def silence(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self.is_silent = True

    def heal(self) -> None:
        """What was said into the silence arrives after all, in order."""
        self.is_silent = False
        held, self._held = self._held, []
        for sender, data in held:
            sender._send(data)

    def end_lost(self) -> None:
        if self.near.is_lost and self.far.is_lost:
            self.network.wires.pop(self.number, None)


class Listener(asyncio.AbstractServer):
    """What `create_server` gives."""

    def __init__(self, network: Network, program: Program, factory: Factory, address: tuple[str, int]) -> None:
        self.network = network
        self.program = program
        self.factory = factory
        self.address = address

    @property
    def sockets(self) -> tuple[Listener]:
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def close(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]

    async def wait_closed(self) -> None:
        return None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.program

    def is_serving(self) -> bool:
        return self.network.listeners.get(self.address) is self

    async def start_serving(self) -> None:
        return None

    async def serve_forever(self) -> None:
        raise NotImplementedError("a listener listens from its beginning to its end")


class Network:
    """All wires and listeners. ``machine_of`` tells which machine a program runs on, for what happens to machines."""

    def __init__(self, world: World, machine_of: Callable[[Program], str], pace: Pace | None = None) -> None:
        self.world = world
        self.pace = pace or Pace()
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.wires: dict[int, Wire] = {}
        self.isolated: set[str] = set()
        self.traps: dict[str, Callable[[Wire], None]] = {}
        """Machine -> what happens to the next connection it makes."""
        self.detours: dict[str, tuple[str, int]] = {}
        """Machine -> where it ends up, whatever it dials."""
        self._machine_of = machine_of
        self._numbers = 0
        self._rng = world.chance("network")

    def listen(self, program: Program, factory: Factory, host: str, port: int) -> Listener:
        address = (host, port)
        if address in self.listeners:
            raise OSError(98, "address in use")
        listener = self.listeners[address] = Listener(self, program, factory, address)
        program.on_death.append(listener.close)
        return listener

    async def connect(
        self, program: Program, factory: Factory, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        self._numbers += 1
        number = self._numbers
        rng = self.world.chance("connect", number)
        await asyncio.sleep(self.pace.delay(rng))
        machine = self._machine_of(program)
        listener = self.listeners.get(self.detours.get(machine, (host, port)))
        if machine in self.isolated or (listener is not None and self._machine_of(listener.program) in self.isolated):
            await asyncio.sleep(CONNECT_TIMEOUT * rng.random())
            raise TimeoutError("timed out")
        if listener is None:
            raise ConnectionRefusedError(111, "refused")
        there = self._machine_of(listener.program)
        wire = self.wires[number] = Wire(self, number, (program, machine), (listener.program, there))
        self.world.note(program, "connects", number)
        if (trap := self.traps.pop(machine, None)) is not None:
            trap(wire)
        wire.near.arrives = self.world.now + self.pace.delay(rng)  # nothing overtakes the connection itself
        self.world.post(listener.program, wire.near.arrives, self._accept, wire, listener)
        protocol = factory()
        wire.near.set_protocol(protocol)
        protocol.connection_made(wire.near)
        return wire.near, protocol

    def _accept(self, wire: Wire, listener: Listener) -> None:
        if wire.is_cut or wire.far.is_lost:
            wire.far.is_lost = True
            wire.end_lost()
            return
        wire.far.set_protocol(listener.factory())
        wire.far.protocol.connection_made(wire.far)

    # ------------------------------------------------------------ faults

    def hang_up(self, program: Program, *, silently: bool = False) -> None:
        """A program is gone and its sockets with it; ``silently`` is a machine without power."""
        for wire in list(self.wires.values()):
            for end in (wire.near, wire.far):
                if end.program is program and not end.is_lost:
                    end.is_lost = True
                    wire.is_cut = True
                    if not silently and not wire.is_silent and not end.peer.program.is_dead:
                        end.peer.reset()
                    wire.end_lost()

    def isolate(self, machine: str) -> None:
        """No byte gets to this machine or leaves it."""
        self.isolated.add(machine)
        for wire in self.wires.values():
            if machine in wire.machines:
                wire.silence()

    def rejoin(self, machine: str) -> None:
        self.isolated.discard(machine)
        for wire in list(self.wires.values()):
            if machine in wire.machines and not self.isolated.intersection(wire.machines):
                wire.heal()

    def open_wires(self, machine: str = "") -> list[Wire]:
        """All of them, or those of one machine."""
        return [wire for wire in self.wires.values() if wire.is_open and (not machine or machine in wire.machines)]
