"""Workers on paper: they speak the real protocol over the worker's own link and end every assignment at once, without
a process. For measuring and breaking a master; what a task is they do not know.

They forget nothing that is not acknowledged: after a reconnect it is in the inventory, as it is with a real worker.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import msgspec

from titan_fast.config import token_path
from titan_fast.ids import Ending
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.sdk.local import LocalCluster
from titan_fast.worker.link import Link

RESULTS_PER_FRAME = 1000
RESULT_BYTES_PER_FRAME = 4 << 20


class _Stretch(msgspec.Struct, frozen=True, gc=False):
    """Consecutive members of an array, with consecutive fences."""

    run: int
    first: int
    count: int
    generation: int
    attempt: int
    fence: int

    def cut(self, at: int, count: int) -> _Stretch:
        return _Stretch(self.run, self.first + at, count, self.generation, self.attempt, self.fence + at)

    def each(self) -> Iterator[_Stretch]:
        return (self.cut(at, 1) for at in range(self.count))


class PaperWorker:
    """One of them. Its figures may be read from any thread.

    Args:
        slots: how many attempts it says it can run at a time.
        result: what every attempt gives, bytes.
        seconds: how long every attempt says it took. 0 makes the master send as much ahead as it ever does.
        holds: it ends nothing until `PaperWorkers.let_go`.
    """

    def __init__(
        self, name: str, slots: int = 64, *, result: bytes = b"", seconds: float = 0.0, holds: bool = False
    ) -> None:
        self.name = name
        self.slots = slots
        self.holds = holds
        self.attached_at = 0.0
        """When the newest session's verdict came, on the monotonic clock; 0: there is no session."""
        self.assigned_at = 0.0
        """When the newest session's first assignment came; 0: there was none."""
        self.assigned = 0
        """Attempts it was ever given."""
        self.reported = 0
        """Attempts it ever said the end of, repeats included."""
        self._id, self._nonce = secrets.token_hex(8), secrets.token_hex(8)
        self._result = result
        self._duration = int(seconds * 1e6)
        self._nonces: dict[str, str] = {}
        self._held: dict[int, _Stretch] = {}
        """By fence, one attempt each: what it has not said the end of, or nobody knows whether that was heard."""
        self._undecided: set[int] = set()
        """Fences whose results the master wants kept back until its next verdict."""
        self._told: deque[tuple[int, list[_Stretch]]] = deque()
        """RESULT frames of this session without an acknowledgement: sequence and what is in them."""
        self._sequence = 0

    async def run(self, addresses: list[tuple[str, int]], find_token: Callable[[], str]) -> None:
        self.link = Link(addresses, find_token, self, random.Random(self.name))
        await self.link.run()

    # ------------------------------------------------------------ the link's side

    @property
    def epoch(self) -> int:
        return max(map(int, self._nonces), default=0)

    def welcomed(self, welcome: msg.Welcome) -> None:
        self._nonces[str(welcome.epoch)] = welcome.nonce

    def inventory(self, connection: int) -> msg.Attach:
        held = tuple(
            msg.Held(item.run, item.first, item.generation, item.fence, 0, item.attempt) for item in self._held.values()
        )
        return msg.Attach(
            self._id, self.name, self._nonce, connection, self.slots, inventory=held, nonces=dict(self._nonces)
        )

    def attached(self, verdict: msg.VerdictMessage) -> None:
        self.attached_at = time.monotonic()
        self._undecided.clear()
        self._judged(verdict)

    def detached(self) -> None:
        """What was not acknowledged may be lost."""
        self.attached_at = self.assigned_at = 0.0
        self._hold(stretch for _, stretches in self._told for stretch in stretches)
        self._told.clear()

    def received(self, incoming: Incoming) -> None:
        match incoming.op:
            case Op.ASSIGN:
                self.assigned_at = self.assigned_at or time.monotonic()
                run, _spec, first, count, generation, attempt, fence, _size = incoming.columns
                columns = zip(run, first, count, generation, attempt, fence, strict=True)
                self._assigned([_Stretch(*row) for row in columns])
            case Op.ACK:
                while self._told and self._told[0][0] <= incoming.sequence:
                    self._told.popleft()
            case Op.RECALL:
                for first_fence, members in zip(incoming.columns[3], incoming.columns[2], strict=True):
                    self._report(self._taken(range(first_fence, first_fence + members)), Ending.RECALLED)
            case Op.KILL:
                self._report(self._taken(incoming.columns[2]), Ending.KILLED)
            case Op.VERDICT:
                assert isinstance(incoming.message, msg.VerdictMessage)
                self._judged(incoming.message)

    def pulse(self) -> tuple[int, int, float, int]:
        return 0, len(self._held), 0.0, 0

    # ------------------------------------------------------------ attempts

    def _assigned(self, stretches: list[_Stretch]) -> None:
        self.assigned += sum(stretch.count for stretch in stretches)
        if self.holds:
            self._hold(stretches)
        else:
            self._report(stretches)

    def _hold(self, stretches: Iterable[_Stretch]) -> None:
        self._held.update((item.fence, item) for stretch in stretches for item in stretch.each())

    def _taken(self, fences: Iterable[int]) -> list[_Stretch]:
        return [item for fence in fences if (item := self._held.pop(fence, None)) is not None]

    def _judged(self, verdict: msg.VerdictMessage) -> None:
        self._undecided.difference_update(verdict.keep, verdict.kill)
        self._undecided.update(verdict.wait)
        self._taken(verdict.kill)
        if not self.holds:
            self._report(self._taken(verdict.keep))

    def let_go(self) -> None:
        self.holds = False
        if self.link.is_attached:
            self._report(self._taken([fence for fence in self._held if fence not in self._undecided]))

    def forget(self) -> None:
        """Everything it was given, as if it had never arrived."""
        self._held.clear()

    def _report(self, stretches: Iterable[_Stretch], ending: Ending = Ending.EXIT) -> None:
        result = self._result if ending is Ending.EXIT else b""
        fit = min(RESULTS_PER_FRAME, RESULT_BYTES_PER_FRAME // max(1, len(result)))
        for frame in _frames(stretches, fit):
            columns = self._columns(frame, ending, len(result))
            count = len(columns[0])
            self._sequence += 1
            self._told.append((self._sequence, frame))
            self.reported += count
            self.link.send(send_hot(Op.RESULT, self._sequence, columns, result * count))

    def _columns(self, frame: list[_Stretch], ending: Ending, result_size: int) -> list[list[int]]:
        """Those of `_layout.LAYOUTS`, a row for each attempt."""
        run: list[int] = []
        index: list[int] = []
        generation: list[int] = []
        fence: list[int] = []
        for stretch in frame:
            run += [stretch.run] * stretch.count
            index += range(stretch.first, stretch.first + stretch.count)
            generation += [stretch.generation] * stretch.count
            fence += range(stretch.fence, stretch.fence + stretch.count)

        def same(value: int) -> list[int]:
            return [value] * len(run)

        started, nothing = int(time.time() * 1e6), same(0)
        return [
            run,
            index,
            generation,
            same(ending),
            nothing,
            fence,
            nothing,
            same(started),
            same(self._duration),
            nothing,
            same(result_size),
        ]


def _frames(stretches: Iterable[_Stretch], fit: int) -> Iterator[list[_Stretch]]:
    """The stretches in order, ``fit`` attempts at a time."""
    frame: list[_Stretch] = []
    room = fit
    for stretch in stretches:
        at = 0
        while at < stretch.count:
            count = min(room, stretch.count - at)
            frame.append(stretch.cut(at, count))
            at, room = at + count, room - count
            if not room:
                yield frame
                frame, room = [], fit
    if frame:
        yield frame


class PaperWorkers:
    """A thread in which paper workers live.

    with PaperWorkers.of(cluster, PaperWorker("p1"), PaperWorker("p2")) as workers:
        until(lambda: workers.are_attached, "the paper workers are attached")

    Args:
        address: of the master, ``host:port``.
        find_token: gives the worker token; asked for every connection.
    """

    def __init__(self, address: str, find_token: Callable[[], str], workers: list[PaperWorker]) -> None:
        host, _, port = address.rpartition(":")
        self.workers = workers
        self._addresses = [(host, int(port))]
        self._find_token = find_token
        self._loop = asyncio.new_event_loop()
        self._lives: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._live, name="paper-workers", daemon=True)

    def __enter__(self) -> PaperWorkers:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """They vanish, without a goodbye."""
        self._each(self._end)
        self._thread.join()

    @classmethod
    def of(cls, cluster: LocalCluster, *workers: PaperWorker) -> PaperWorkers:
        """Workers for the master of a cluster on this machine, also when it starts again on its port."""
        host, _, port = cluster.address.rpartition(":")
        path = token_path(host, int(port), "worker", cluster.environ)
        return cls(cluster.address, lambda: path.read_text("ascii").strip(), list(workers))

    @property
    def are_attached(self) -> bool:
        return all(worker.attached_at for worker in self.workers)

    @property
    def are_away(self) -> bool:
        return not any(worker.attached_at for worker in self.workers)

    def let_go(self) -> None:
        """They hold nothing back any more: it ends now."""
        self._each(PaperWorker.let_go)

    def forget(self) -> None:
        """They lose what they hold, as if it had never arrived."""
        self._each(PaperWorker.forget)

    def vanish(self, worker: PaperWorker) -> None:
        """One is gone, without a goodbye."""
        self._each(self._end, worker)

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._lives = [self._loop.create_task(worker.run(self._addresses, self._find_token)) for worker in self.workers]
        self._loop.run_until_complete(asyncio.gather(*self._lives, return_exceptions=True))
        self._loop.close()

    def _end(self, worker: PaperWorker) -> None:
        self._loop.create_task(worker.link.close())
        self._lives[self.workers.index(worker)].cancel()

    def _each(self, do: Callable[[PaperWorker], None], *workers: PaperWorker) -> None:
        """In their thread, for all of them or for these; returns when it is done."""
        done = threading.Event()

        def work() -> None:
            for worker in workers or self.workers:
                do(worker)
            done.set()

        self._loop.call_soon_threadsafe(work)
        done.wait()
