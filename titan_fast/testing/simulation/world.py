"""Virtual time: programs that each have an event loop of their own, run one callback at a time from one seed.

A `Program` is what the real thing calls a process: it can be killed or frozen between any two callbacks, and nothing
of a killed one ever runs again. The world knows nothing of masters, workers or networks.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import logging
import random
import time
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from heapq import heappop, heappush
from typing import Any, Protocol, TypeVar, TypeVarTuple
from unittest import mock

PATIENCE = 200_000
"""Callbacks at one instant from which on the programs are said to run in circles."""
RECENT = 400
"""Lines of the trace that a failure shows."""


T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Factory = Callable[[], asyncio.BaseProtocol]


class SimulationFailed(AssertionError):
    """Something that must never happen did."""


class World:
    """Time, chance and the trace. Everything that happens comes from ``seed``."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        self.now = 0.0
        self.callbacks = 0
        self.is_over = False
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=None if is_traced else RECENT)
        self.problem: BaseException | None = None
        self.entropy = self.chance("entropy")
        self._ready: deque[asyncio.Handle] = deque()
        self._later: list[tuple[float, int, asyncio.Handle]] = []
        self._order = 0
        self._digest = hashlib.blake2b(digest_size=8)
        self._programs: list[Program] = []
        self._now_running: Program | None = None
        self._outside = Program(self, "world", Clock())

    def chance(self, *name: object) -> random.Random:
        """A stream of random numbers of its own for whatever ``name`` says, so that one who draws more does not
        change what the others get."""
        return random.Random(f"{self.seed}/{name}")

    def program(self, name: str, clock: Clock | None = None, wires: Wires | None = None) -> Program:
        program = Program(self, name, clock or Clock(), wires)
        self._programs.append(program)
        return program

    # ------------------------------------------------------------ time

    def at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        """From outside of all programs, at a time of the world."""
        return self.post(self._outside, when, callback, *args)

    def after(self, seconds: float, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        return self.post(self._outside, self.now + seconds, callback, *args)

    def post(self, program: Program, when: float, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        """Run a callback in a program at a time of the world."""
        handle = asyncio.Handle(callback, args, program, program.context)
        self._push(when, handle)
        return handle

    def _push(self, when: float, handle: asyncio.Handle) -> None:
        self._order += 1
        heappush(self._later, (when, self._order, handle))

    def run(self, until: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass up to ``until``; stops early, and says True, when ``is_done`` does.

        Raises:
            SimulationFailed: a program failed, or runs in circles.
        """
        ready, later = self._ready, self._later
        at_this_instant = 0
        with self._as_the_only_world():
            while not is_done():
                if not ready:
                    if not later or later[0][0] > until:
                        self.now = until
                        return False
                    when, _, handle = heappop(later)
                    if when > self.now:
                        self.now = when
                        at_this_instant = 0
                    ready.append(handle)
                self._run_one(ready.popleft())
                at_this_instant += 1
                if at_this_instant > PATIENCE:
                    raise SimulationFailed(f"{at_this_instant} callbacks at {self.now:.6f} s: somebody runs in circles")
            return True

    def _run_one(self, handle: asyncio.Handle) -> None:
        program: Program = handle._loop  # type: ignore[attr-defined]
        if handle._cancelled or program.is_dead:
            return
        if program.is_frozen:
            program.backlog.append(handle)
            return
        self.callbacks += 1
        self._now_running = program
        events._set_running_loop(program)
        handle._run()
        events._set_running_loop(None)
        if program.fuse is not None:
            program.burn_fuse()
        if self.problem is not None:
            raise self.problem

    @contextlib.contextmanager
    def _as_the_only_world(self) -> Iterator[None]:
        """Clocks and chance of the machine we really run on are out of reach meanwhile."""
        state = random.getstate()
        random.seed(self.entropy.getrandbits(64))
        log = logging.getLogger("titan_fast")
        complaints = _Complaints(self)
        level, propagate, outer = log.level, log.propagate, events._get_running_loop()
        log.addHandler(complaints)
        log.setLevel(logging.ERROR)
        log.propagate = False
        events._set_running_loop(None)
        try:
            with (
                mock.patch.object(time, "time", self._wall),
                mock.patch.object(time, "monotonic", self._monotonic),
                mock.patch.object(random, "_urandom", self.entropy.randbytes),
            ):
                yield
        finally:
            events._set_running_loop(outer)
            log.setLevel(level)
            log.propagate = propagate
            log.removeHandler(complaints)
            random.setstate(state)

    def _wall(self) -> float:
        program = self._now_running
        return self.now if program is None else program.wall()

    def _monotonic(self) -> float:
        program = self._now_running
        return self.now if program is None else program.time()

    # ------------------------------------------------------------ what happened

    def note(self, *words: object) -> None:
        """A line of the trace. Two runs of one seed have the same lines, and so the same `fingerprint`."""
        self.trace.append((self.now, *words))
        self._digest.update(f"{self.now!r}{words}".encode())

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def story(self) -> str:
        return "\n".join(f"{when:12.6f}  {' '.join(map(str, words))}" for when, *words in self.trace)

    def fail(self, problem: BaseException) -> None:
        """Ends the run with this problem, the first one counts."""
        if self.problem is None:
            self.problem = problem

    def end(self) -> None:
        """Nothing runs any more. What coroutines would do in their last moment is nobody's business."""
        self.is_over = True
        self._ready.clear()
        self._later.clear()
        for program in (*self._programs, self._outside):
            program.bury()
        self._programs.clear()


class Clock:
    """A machine's clocks, as offsets from the world's time, seconds. The wall clock may jump."""

    def __init__(self, monotonic: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self.monotonic = monotonic
        self.wall = wall


class Wires(Protocol):
    """A network, as far as an event loop knows it."""

    async def connect(
        self, program: Program, factory: Factory, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Raises OSError."""

    def listen(self, program: Program, factory: Factory, host: str, port: int) -> asyncio.AbstractServer:
        """Raises OSError: the address is taken."""


class Program(asyncio.BaseEventLoop):
    """An event loop over the world's time that can be killed and frozen."""

    def __init__(self, world: World, name: str, clock: Clock, wires: Wires | None = None) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self.clock = clock
        self._wires = wires or _NoWires()
        self.context = contextvars.Context()
        self.is_dead = False
        self.is_frozen = False
        self.backlog: list[asyncio.Handle] = []
        self.fuse: tuple[int, Callable[[], None]] | None = None
        """Callbacks until something happens to this program between two of them."""
        self.on_death: list[Callable[[], None]] = []
        """What an operating system does for a process that is gone: its sockets, its locks."""
        self._relics: set[asyncio.Task[Any]] = set()
        """Tasks of a dead program: kept, for what they would do when they are collected must not happen."""

    def __repr__(self) -> str:
        return self.name

    # ------------------------------------------------------------ life and death

    def kill(self) -> None:
        """From the next callback on there is nothing of it."""
        if not self.is_dead:
            self.is_dead = True
            self._relics = asyncio.all_tasks(self)
            self.backlog.clear()
            for notice in self.on_death:
                notice()

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """What should have run meanwhile runs now, in its order."""
        self.is_frozen = False
        backlog, self.backlog = self.backlog, []
        self.world._ready.extend(backlog)

    def burn_fuse(self) -> None:
        assert self.fuse is not None
        left, callback = self.fuse
        self.fuse = (left - 1, callback) if left else None
        if not left:
            callback()

    def bury(self) -> None:
        """Close what its tasks left, unheard."""
        relics = self._relics or asyncio.all_tasks(self)
        self.is_dead = True
        for task in relics:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            for _ in range(3):  # a `finally` that awaits refuses to be closed once
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
                    break
        self._relics = set()
        self.on_death.clear()
        self.close()

    # ------------------------------------------------------------ the event loop's side

    def time(self) -> float:
        return self.world.now + self.clock.monotonic

    def wall(self) -> float:
        return self.world.now + self.clock.wall

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context or self.context)
        if not self.is_dead:
            self.world._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context or self.context)
        if not self.is_dead:
            at = when - self.clock.monotonic
            if at + self.clock.monotonic < when:
                at += 1e-9  # it was rounded down, and a timer that is early is set again and again
            self.world._push(at, handle)
        return handle

    def main(self, coro: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run what the program is there for; that it raises is a failure."""
        task = self.create_task(coro)
        task.add_done_callback(lambda done: done.cancelled() or done.result())
        return task

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """A thread is done in the next callback."""
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Nobody sends signals here; `kill` and `freeze` do what they would."""

    def remove_signal_handler(self, sig: int) -> bool:
        return False

    def remove_reader(self, fd: Any) -> bool:
        """There are no descriptors here; who has something to say calls."""
        return False

    def remove_writer(self, fd: Any) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What asyncio would log is a failure here."""
        if self.is_dead or self.world.is_over:
            return
        error = context.get("exception") or SimulationFailed(context["message"])
        error.add_note(f"in {self.name} at {self.world.now:.6f} s: {context['message']}")
        self.world.fail(error)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Factory, host: str, port: int, **_: object
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        return await self._wires.connect(self, protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Factory, host: str, port: int, **_: object
    ) -> asyncio.AbstractServer:
        return self._wires.listen(self, protocol_factory, host, port)


class _NoWires:
    async def connect(
        self, program: Program, factory: Factory, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        raise OSError("there is no network")

    def listen(self, program: Program, factory: Factory, host: str, port: int) -> asyncio.AbstractServer:
        raise OSError("there is no network")


class _Complaints(logging.Handler):
    """An exception that one of our programs logs is a failure."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            error.add_note(f"logged by {record.name} at {self._world.now:.6f} s: {record.getMessage()}")
            self._world.fail(error)
