"""Attempts of functions, between the agent and their lanes: what was described, what a lane is given, what ended.

Results are mostly passed on as they are; one by one only when something has to be known of each. Knows nothing of the
frames they leave in, of the journal, and of what is held back or unacknowledged: that is their owner's, the agent.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from typing import Protocol, TypeVar

from titan_fast._layout import LAYOUTS, RESULT, RESULT_IS_FILE
from titan_fast.ids import Ending
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.worker.command import function_environment
from titan_fast.worker.door import Door, NoDoor
from titan_fast.worker.executors.functions import MOMENT, Death
from titan_fast.worker.executors.lane import Ended as EndedFunctions
from titan_fast.worker.executors.lane import Function, Kind
from titan_fast.worker.journal import Ended
from titan_fast.worker.machine import Machine
from titan_fast.worker.results import Downloads
from titan_fast.worker.slots import Slots, Start, Stretch

H = TypeVar("H", bound=Hashable)

MAX_SHARED = 256
"""Environments, and functions, of which further descriptions use the same object."""
ENDINGS = tuple(Ending)
_RECORD = struct.Struct(">" + "".join(code for _, code in LAYOUTS[RESULT][1]))


class Owner(Protocol):
    """Who is told (`agent.Agent`)."""

    def functions_started(self, rows: list[tuple[int, ...]], outputs: list[tuple[int, str]]) -> None:
        """As of `executors.functions.Observer`."""

    def pass_on(self, ended: EndedFunctions) -> bool:
        """Tell the master of them as they are. False: something has to be known of each, so `function_over` is told."""

    def function_over(self, start: Start, ended: Ended, result: bytes) -> None: ...
    def forget_spec(self, run: int, spec: int) -> None:
        """Its only attempt here is over; another one would come with another description."""

    def functions_wait_again(self, killed: list[tuple[int, float]]) -> None:
        """What a lane had not begun waits for a slot again, or a moment is over; these (fence, grace) were to be ended
        when they were about to begin."""

    def lane_has_room(self) -> None:
        """A slot is free, or a lane that has one takes more."""


class FunctionAttempts:
    """Those of one agent. It takes what waits from the slots, and puts back there what was not begun."""

    def __init__(
        self,
        owner: Owner,
        machine: Machine,
        slots: Slots,
        inherited: Mapping[str, str],
        door: Door | NoDoor,
        send_frame: Callable[[bytes], None],
    ) -> None:
        """
        Args:
            inherited: what their processes have of the agent's environment.
            send_frame: to the master, for files that are arguments.
        """
        self._owner = owner
        self._machine = machine
        self._slots = slots
        self._inherited = inherited
        self._door = door
        self._lanes = machine.functions(self, slots.slots)
        self._downloads = Downloads(send_frame)
        self._downloading: set[asyncio.Task[None]] = set()
        self._described: dict[tuple[int, int], Function] = {}
        self._kinds: dict[Kind, Kind] = {}
        self._pickles: dict[bytes, bytes] = {}
        """What many descriptions have the same of, once: they are kept for thousands of runs."""
        self._seen = 0
        self._long: set[int] = set()
        """Those whose start was told."""
        self._killing: dict[int, float] = {}
        """Fence -> grace of those that are to be ended, while their process is about to begin them or to pass them
        over."""

    # ------------------------------------------------------------ what they are

    def describe(self, spec: msg.Spec, parts: tuple[bytes, ...]) -> None:
        """A spec, which may be no function at all, or one that cannot be sent. Its processes are those of the same
        environment and project."""
        self._described.pop((spec.run, spec.spec), None)
        if not spec.work.is_function or spec.problem:
            return
        self._seen += 1
        files = self._machine.files
        environment = function_environment(
            self._inherited,
            graph_env=spec.env,
            work=spec.work,
            worker=self._machine.name,
            worker_id=files.worker_id,
        )
        project = files.place_of_run(spec.run) if spec.project else ""
        kind = _the_same(self._kinds, Kind(tuple(sorted(environment.items())), project))
        self._described[spec.run, spec.spec] = Function(
            self._seen,
            spec.run,
            spec.spec,
            spec.name,
            spec.first,
            spec.array,
            _the_same(self._pickles, parts[0]),
            parts[1:],
            spec.work.timeout,
            spec.work.grace,
            kind,
            spec.work.spread,
        )

    def described(self, run: int, spec: int) -> Function | None:
        return self._described.get((run, spec))

    def _forget_description(self, function: Function | None) -> None:
        """Of a task that is no array: another attempt comes with another one, and its arguments may be large."""
        if function is not None and not function.is_array:
            key = function.run, function.spec
            if self._described.get(key) is function:
                del self._described[key]
                self._owner.forget_spec(*key)

    def forget(self, runs: Set[int]) -> None:
        """These and their working copies are about to go, and with them the processes that live there."""
        self._described = {key: function for key, function in self._described.items() if key[0] not in runs}
        for run in runs:
            self._lanes.forget(self._machine.files.place_of_run(run))

    # ------------------------------------------------------------ giving, taking back, ending

    def feed(self, function: Function) -> bool:
        """Give a lane what is next, which is of this function; False when none takes it now.

        Raises:
            TitanError, OSError: there is no process for it; what is next still is.
        """
        slots = self._slots
        free = max(0, slots.slots - slots.used)
        most = -(-slots.queued // (free or slots.slots))
        taken = self._lanes.feed(function, free > 0, most, slots.cut)
        if taken:
            slots.lanes += 1
        return taken is not None

    def take_back(self, fence: int, count: int) -> None:
        """What the lanes that have some of these consecutive fences have not begun waits again, these and others."""
        self._slots.put_back(self._lanes.take_back(fence, count))

    def kill(self, fence: int, grace: float) -> None:
        """What is no function, or is over, is ignored. Should its process be on its way there, the owner is told in a
        moment, or as soon as it waits again."""
        if not self._lanes.kill(fence, grace):
            self._killing[fence] = grace
            asyncio.get_running_loop().call_later(MOMENT, self._kill_again, fence)

    def _kill_again(self, fence: int) -> None:
        """It was about to begin, or its process had passed it over: it runs now, or is over."""
        if fence in self._killing:
            self._owner.functions_wait_again([(fence, self._killing.pop(fence))])

    async def close(self, grace: float) -> None:
        """Kill everything, wait until it is gone."""
        await self._lanes.close(grace)
        for download in self._downloading:
            download.cancel()

    # ------------------------------------------------------------ what is here

    def held(self) -> Iterator[tuple[Start, int]]:
        """Those that lanes have, and since when they run (microseconds; 0: they do not)."""
        return self._lanes.held()

    def is_running(self, fence: int) -> bool:
        return self._lanes.is_running(fence)

    def harvest(self) -> None:
        """Tell of everything that has ended by now."""
        self._lanes.harvest()

    # ------------------------------------------------------------ the lanes' side

    def functions_started(self, rows: list[tuple[int, ...]], outputs: list[tuple[int, str]]) -> None:
        self._long.update(row[3] for row in rows)
        self._owner.functions_started(rows, outputs)

    def functions_ended(self, ended: EndedFunctions) -> None:
        for function in ended.alone:
            self._forget_description(function)
        if ended.is_special or self._long or not self._owner.pass_on(ended):
            for start, each_ended, result in each_of(ended):
                self._over(start, each_ended, result)

    def function_died(self, death: Death) -> None:
        start, took = death.start, int(death.duration * 1e6)
        self._forget_description(self.described(start.run, start.spec))
        ended = Ended(start.fence, death.ending, death.code, int(death.began * 1e6), took, death.output_size, "")
        self._over(start, ended, death.note.encode())

    def _over(self, start: Start, ended: Ended, result: bytes) -> None:
        self._long.discard(start.fence)
        self._owner.function_over(start, ended, result)

    def functions_unrun(self, stretches: list[Stretch]) -> None:
        self._slots.put_back(stretches)
        killed = [fence for fence in self._killing if any(0 <= fence - item.fence < item.count for item in stretches)]
        self._owner.functions_wait_again([(fence, self._killing.pop(fence)) for fence in killed])

    def lane_freed(self) -> None:
        self._slots.lanes -= 1
        self._owner.lane_has_room()

    def lane_has_room(self) -> None:
        self._owner.lane_has_room()

    def door_of(self, fence: int) -> dict[str, str]:
        return self._door.admit(fence)

    # ------------------------------------------------------------ files that are arguments

    def fetch_file(self, digest: str, path: str, done: Callable[[str], None]) -> None:
        async def bring() -> None:
            done(await self._downloads.bring(digest, path))

        task = asyncio.create_task(bring())
        self._downloading.add(task)
        task.add_done_callback(self._downloading.discard)

    def answered(self, incoming: Incoming) -> None:
        self._downloads.answered(incoming)

    def ask_again(self) -> None:
        """There is a new connection."""
        self._downloads.ask_again()


def _the_same(known: dict[H, H], value: H) -> H:
    """An equal one that is known already, if there is one."""
    if len(known) >= MAX_SHARED:
        known.clear()
    return known.setdefault(value, value)


def each_of(ended: EndedFunctions) -> Iterator[tuple[Start, Ended, bytes]]:
    """The attempts in these records, one by one."""
    numbers = [attempt for count, attempt in ended.attempts for _ in range(count)]
    at = 0
    for attempt, row in zip(numbers, _RECORD.iter_unpack(ended.records), strict=True):
        run, index, generation, ending, flags, fence, code, started, duration, output, size = row
        result = ended.tail[at : at + size]
        at += size
        start = Start(run, 0, index, generation, attempt, fence, b"")
        is_file = bool(flags & RESULT_IS_FILE)
        yield start, Ended(fence, ENDINGS[ending], code, started, duration, output, "", is_file), result
