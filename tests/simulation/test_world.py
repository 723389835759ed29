"""The simulation itself: virtual time, programs that die and freeze, connections that break, machines that go on."""

from __future__ import annotations

import asyncio
import random
import secrets
import time

import pytest

from titan_fast.testing.simulation.network import Network
from titan_fast.testing.simulation.world import Clock, Program, SimulationFailed, World


class Ear(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard = b""
        self.transport: asyncio.Transport | None = None
        self.ended: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.append(error)


class Pair:
    """Two programs and one connection between them."""

    def __init__(self) -> None:
        self.world = World(1)
        self.network = Network(self.world, lambda program: program.name)
        self.near, self.far = Ear(), Ear()
        self.client = self.world.program("client", Clock(), self.network)
        self.server = self.world.program("server", Clock(), self.network)
        self.server.main(self.server.create_server(lambda: self.far, "here", 1))
        self.world.run(0.1)
        self.client.main(self.client.create_connection(lambda: self.near, "here", 1))
        self.world.run(1.0)
        assert self.near.transport is not None and self.far.transport is not None

    def say(self, data: bytes) -> None:
        assert self.near.transport is not None
        self.near.transport.write(data)

    def later(self, seconds: float = 5.0) -> None:
        self.world.run(self.world.now + seconds)


def test_time_passes_only_in_the_world() -> None:
    world = World(1)
    program = world.program("p", Clock(monotonic=500.0, wall=10_000.0))
    seen = []

    async def main() -> None:
        await asyncio.sleep(3600)
        seen.extend((time.monotonic(), time.time(), asyncio.get_running_loop().time()))

    program.main(main())
    began = time.perf_counter()
    world.run(4000.0)
    assert seen == [pytest.approx(4100.0), pytest.approx(13_600.0), pytest.approx(4100.0)]
    assert time.perf_counter() - began < 1.0


def test_chance_is_the_seeds() -> None:
    def draw(seed: int) -> list[object]:
        world, drawn = World(seed), []
        world.at(1.0, lambda: drawn.extend((random.random(), secrets.token_hex(8))))
        world.run(2.0)
        return drawn

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_real_clock_is_back_afterwards() -> None:
    before = time.time()
    World(1).run(1e6)
    assert abs(time.time() - before) < 60


def test_nothing_of_a_killed_program_ever_runs_again() -> None:
    world = World(1)
    program = world.program("p")
    ran = []

    async def main() -> None:
        try:
            await asyncio.sleep(10)
            ran.append("main")
        finally:
            ran.append("finally")

    program.main(main())
    program.call_later(10, ran.append, "timer")
    world.run(5.0)
    program.kill()
    program.call_soon(ran.append, "late")
    world.run(100.0)
    assert ran == []
    world.end()


def test_a_program_dies_between_any_two_callbacks() -> None:
    world = World(1)
    program = world.program("p")
    ran: list[int] = []
    for number in range(10):
        program.call_soon(ran.append, number)
    program.fuse = (3, program.kill)
    world.run(1.0)
    assert ran == [0, 1, 2, 3]


def test_a_frozen_program_catches_up_in_order() -> None:
    world = World(1)
    program = world.program("p")
    ran: list[tuple[int, float]] = []
    for number in range(3):
        program.call_later(number + 1, lambda number=number: ran.append((number, world.now)))
    program.freeze()
    world.run(10.0)
    assert ran == []
    program.thaw()
    world.run(11.0)
    assert ran == [(0, 10.0), (1, 10.0), (2, 10.0)]


def test_what_a_program_raises_ends_the_run() -> None:
    world = World(1)
    world.program("p").call_soon(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        world.run(1.0)


def test_a_program_that_runs_in_circles_is_noticed() -> None:
    world = World(1)
    program = world.program("p")

    def again() -> None:
        program.call_soon(again)

    again()
    with pytest.raises(SimulationFailed, match="circles"):
        world.run(1.0)


def test_bytes_arrive_whole_and_in_order() -> None:
    pair = Pair()
    said = b""
    for number in range(500):
        said += b"%d," % number
        pair.say(b"%d," % number)
    pair.later()
    assert pair.far.heard == said


def test_a_close_arrives_behind_what_was_said() -> None:
    pair = Pair()
    pair.say(b"last words")
    pair.near.transport.close()
    pair.later()
    assert pair.far.heard == b"last words"
    assert pair.near.ended == pair.far.ended == [None]
    assert not pair.network.wires


def test_both_ends_notice_a_cut() -> None:
    pair = Pair()
    next(iter(pair.network.wires.values())).cut()
    pair.say(b"nobody hears this")
    pair.later()
    assert pair.far.heard == b""
    assert [type(error) for error in pair.near.ended + pair.far.ended] == [ConnectionResetError] * 2


def test_one_end_of_a_half_open_connection_knows_nothing() -> None:
    pair = Pair()
    wire = next(iter(pair.network.wires.values()))
    wire.half_cut(wire.far)
    pair.say(b"nobody hears this")
    pair.later()
    assert pair.far.ended and not pair.near.ended
    assert pair.far.heard == b""


def test_what_is_said_into_a_silence_arrives_when_it_is_over() -> None:
    pair = Pair()
    wire = next(iter(pair.network.wires.values()))
    wire.silence()
    pair.say(b"one")
    pair.say(b"two")
    pair.later()
    assert pair.far.heard == b"" and not pair.near.ended
    wire.heal()
    pair.later()
    assert pair.far.heard == b"onetwo"


def test_a_killed_program_hangs_up_and_refuses() -> None:
    pair = Pair()
    pair.server.kill()
    pair.network.hang_up(pair.server)
    pair.later()
    assert [type(error) for error in pair.near.ended] == [ConnectionResetError]
    assert not pair.network.listeners
    refused = []

    async def again() -> None:
        try:
            await pair.client.create_connection(Ear, "here", 1)
        except ConnectionRefusedError as error:
            refused.append(error)

    pair.client.main(again())
    pair.later()
    assert refused


def test_who_makes_a_detour_ends_up_elsewhere_whatever_he_dials() -> None:
    pair = Pair()
    other = Ear()
    elsewhere = pair.world.program("elsewhere", Clock(), pair.network)
    elsewhere.main(elsewhere.create_server(lambda: other, "there", 2))
    pair.network.detours["client"] = ("there", 2)
    pair.client.main(pair.client.create_connection(lambda: pair.near, "here", 1))
    pair.later()
    pair.say(b"hello")
    pair.later()
    assert (other.heard, pair.far.heard) == (b"hello", b"")
    assert {wire.far.machine for wire in pair.network.open_wires("elsewhere")} == {"elsewhere"}


def test_a_peer_without_power_says_nothing() -> None:
    pair = Pair()
    pair.server.kill()
    pair.network.hang_up(pair.server, silently=True)
    pair.say(b"hello?")
    pair.later(60.0)
    assert not pair.near.ended


def test_a_reader_that_rests_chokes_the_writer() -> None:
    pair = Pair()
    choked: list[Program] = []
    pair.near.pause_writing = lambda: choked.append(pair.client)  # type: ignore[method-assign]
    pair.near.resume_writing = lambda: choked.clear()  # type: ignore[method-assign]
    pair.far.transport.pause_reading()
    pair.say(b"x" * 1_000_000)
    pair.later()
    assert choked and pair.far.heard == b""
    pair.far.transport.resume_reading()
    pair.later()
    assert not choked and len(pair.far.heard) == 1_000_000
