"""The agent: wires link, slots, workspace, executors and output together; starts, drains, stops.

Everything it knows it can tell in one inventory: what waits, what runs, and what has ended and is not acknowledged.
What the next agent needs, should this one be killed, is in the journal. Whatever touches the world is its machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from titan_fast._layout import RESULT_IS_FILE
from titan_fast.config import WorkerSettings, capabilities
from titan_fast.errors import ConnectionLost, TitanError
from titan_fast.ids import FENCE_SEQUENCE_BITS, Ending, TaskId, format_fence
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send, send_hot, send_packed
from titan_fast.protocol.opcodes import Op
from titan_fast.worker.command import build_environment, inherit, resolve_command, with_own_programs
from titan_fast.worker.door import Door, NoDoor
from titan_fast.worker.executors.base import Attempt, Left, Outcome
from titan_fast.worker.executors.functions import take_over_gap
from titan_fast.worker.executors.lane import Ended as EndedFunctions
from titan_fast.worker.executors.lane import Function
from titan_fast.worker.function_attempts import FunctionAttempts, each_of
from titan_fast.worker.journal import Begun, Ended, Past
from titan_fast.worker.kept import KeptOutputs
from titan_fast.worker.link import Link
from titan_fast.worker.machine import Machine, ThisMachine
from titan_fast.worker.output import OUTPUT_NAME, SHIP_HEAD, SHIP_TAIL, read_part
from titan_fast.worker.results import Uploads
from titan_fast.worker.slots import Slots, Start, Stretch, each
from titan_fast.worker.workspace import NO_ROOM

log = logging.getLogger("titan_fast.worker")

RESULTS_PER_FRAME = 1000
RESULT_BYTES_PER_FRAME = 4 << 20
RECORD_BYTES = 64
"""About what a result takes on the wire beside its bytes."""
ROOM_INTERVAL = 1.0
"""Seconds between looks whether a full disk has room again."""
FETCH_BYTES = 256 << 10
"""Of an output in one answer."""
LAST_WORDS = 2.0
"""Seconds that a stopping agent waits for the acknowledgement of its results."""
EVERYTHING = 1 << 63
STARTED_AFTER = 0.02
"""Seconds an attempt runs until its start is told; of a shorter one its end says all."""
HELD_FOR = 0.005
HELD_WHILE = 4
"""Seconds that a result may wait for others, while so many attempts for each slot wait here: enough that no slot is
empty until the master has answered. Were another worker idle, what waits here would be recalled for it."""


class _Unacknowledged(msgspec.Struct):
    """An attempt that is over; in every inventory until the master acknowledges it or has it forgotten."""

    start: Start
    ended: Ended
    result: bytes
    is_held: bool = False
    """The master has not decided yet: the result is kept back."""
    is_told: bool = False
    """In the inventory of this session the attempt has ended; not told, it ran then."""

    @property
    def size(self) -> int:
        return RECORD_BYTES + len(self.result)


class _Bringing(msgspec.Struct):
    """An attempt that has ended and whose result is on its way to the master as a file: to the master it still runs."""

    start: Start
    ended: Ended
    task: asyncio.Task[None]


class _Wrote(msgspec.Struct):
    """Whose output a file is, and how long it is once it is complete."""

    run: int
    index: int
    started: int
    """Microseconds of the wall clock."""
    total: int | None = None


class Agent:
    """One worker's agent. `run` returns when it has been told to stop and has nothing left."""

    def __init__(
        self,
        settings: WorkerSettings,
        addresses: list[tuple[str, int]],
        find_token: Callable[[], str],
        machine: Machine,
        on_attached: Callable[[], None] = lambda: None,
        door: Door | NoDoor | None = None,
    ) -> None:
        """It belongs to the event loop that runs now, and goes on with what an earlier agent left.

        Args:
            find_token: asked before each connection; raises NoToken.
            machine: where it lives, made for it.
            on_attached: called after each verdict.
            door: through which its attempts reach the master.
        """
        self._settings = settings
        self._machine = machine
        self._on_attached = on_attached
        self._door = door or NoDoor()
        self._files = self._machine.files
        self._journal = self._machine.journal
        self._slots = Slots(settings.slots or os.cpu_count() or 1)
        self._capabilities = capabilities(settings.caps)
        self._link = Link(addresses, find_token, self, self._machine.random)
        self._executor = self._machine.executor(self)
        self._shipper = self._machine.shipper(self._emit)
        self._kept = KeptOutputs(settings.keep_outputs, self._files.remove_attempt)
        self._copies = self._machine.copies(self._link.send)
        self._uploads = Uploads(self._link.send)
        self._inherited = with_own_programs(inherit(self._machine.environ, settings.environment))
        self._functions = FunctionAttempts(
            self, self._machine, self._slots, self._inherited, self._door, self._link.send
        )
        self._specs: dict[tuple[int, int], msg.Spec] = {}
        self._wrote: dict[int, _Wrote] = {}
        """Attempts whose output may still be on its way."""
        self._preparing: dict[int, asyncio.Task[None]] = {}
        """Attempts that have a slot and wait for the working copy of their run."""
        self._bringing: dict[int, _Bringing] = {}
        self._held: dict[int, None] = {}
        """Attempts whose results are kept back until the master has decided, ended or not."""
        self._disowned: dict[int, None] = {}
        """Attempts of another master that are being ended and that nobody is told of."""
        self._unacknowledged: dict[int, _Unacknowledged] = {}
        self._unacknowledged_size = 0
        """Bytes of those that are not held back."""
        self._started: list[tuple[int, ...]] = []
        self._to_send: list[_Unacknowledged] = []
        self._functions_to_send: list[EndedFunctions] = []
        self._sent: deque[tuple[int, list[int], list[EndedFunctions]]] = deque()
        """RESULT frames of this session: their sequence, and the fences in them, or the records."""
        self._sequence = 0
        self._flushing = self._is_hurrying = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._started_timer: asyncio.TimerHandle | None = None
        self._was_attached = False
        self._is_stopping = False
        self._is_full = False
        """The disk has no room for an attempt's directory."""
        self._idle = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._history = self._files.history
        """Of the master that welcomed us last; the files may still be those of another."""
        self._go_on()

    # ------------------------------------------------------------ start and stop

    def _go_on(self) -> None:
        """Take over what the journal tells: what runs, and what ended and was not acknowledged."""
        journaled = self._journal.past
        self._files.keep_attempts(journaled)
        left = []
        for fence, past in journaled.items():
            begun = past.begun
            start = Start(begun.run, begun.spec, begun.index, begun.generation, begun.attempt, fence, b"")
            self._wrote[fence] = _Wrote(begun.run, begun.index, int(begun.at.wall * 1e6))
            if past.ended is not None and past.ended.is_file and not past.ended.result:
                self._bring(start, past.ended)
            elif past.ended is not None:
                self._wrote[fence].total = past.ended.output_size
                self._unacknowledged[fence] = _Unacknowledged(start, past.ended, past.ended.result.encode())
                self._unacknowledged_size += self._unacknowledged[fence].size
            else:
                self._slots.adopt(start)
                left.append(self._left(past))
        gone = self._executor.adopt(left)
        for fence in gone:
            self._slots.ended(fence)
            self._files.remove_attempt(fence)
            del self._wrote[fence]
        self._journal.forgotten(gone)
        for fence in self._slots.running:
            self._door.admit(fence)
        for fence in (*self._slots.running, *self._bringing):
            self._shipper.add(fence, self._output_path(fence))
        if left or self._unacknowledged or self._bringing:
            log.warning(
                "an earlier agent left %d attempts that run on and %d results; of %d there is no trace",
                len(self._slots.running),
                len(self._unacknowledged) + len(self._bringing),
                len(gone),
            )

    def _left(self, past: Past) -> Left:
        begun = past.begun
        place = self._files.attempt_dir(begun.fence, make=False)
        marks = {"TITAN_FENCE": format_fence(begun.fence), "TITAN_ATTEMPT_DIR": place}
        return Left(
            Attempt(begun.fence, begun.task, (), marks, "", place, begun.timeout, begun.grace),
            begun.at,
            past.spawned.pid if past.spawned is not None else 0,
            past.spawned.at if past.spawned is not None else 0.0,
            past.stopping.ending if past.stopping is not None else None,
            past.exited.exit if past.exited is not None else None,
        )

    async def run(self) -> int:
        """The exit code. Raises TitanError when the worker cannot work: wrong token, say."""
        if self._machine.has_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
        await self._door.open()
        link = asyncio.create_task(self._link.run())
        stop = asyncio.create_task(self._idle.wait())
        done, _ = await asyncio.wait([link, stop], return_when=asyncio.FIRST_COMPLETED)
        try:
            if link in done:
                self._is_stopping = True  # what waits does not begin when what runs has been ended
                link.result()
            else:
                # First end what still runs and report it: a goodbye means that nothing does.
                if self._slots.used:
                    log.warning("ending %d attempts that still run", self._slots.used)
                await self._executor.close(0.5)
                await self._functions.close(0.5)
                await self._leave()
        finally:
            link.cancel()
            stop.cancel()
            await self._executor.close(0.5)
            await self._functions.close(0.5)
            for bringing in self._bringing.values():
                bringing.task.cancel()
            self._shipper.close()
            await self._door.close()
            await self._link.close()
            self._journal.close()
            self._files.close()
        return 0

    def stop(self) -> None:
        """First: take nothing new, let what runs finish for a while. Second: end it."""
        if self._is_stopping:
            self._idle.set()
            return
        self._is_stopping = True
        log.info(
            "draining: takes nothing new, %d attempts have %g s to finish",
            self._slots.used + len(self._bringing),
            self._settings.drain,
        )
        self._link.send(send(msg.Goodbye(empty=False)))
        self._give_back_waiting()
        self._check_idle()
        asyncio.get_running_loop().call_later(self._settings.drain, self._idle.set)

    def _give_back_waiting(self) -> None:
        self._functions.take_back(0, EVERYTHING)
        for start in self._slots.withdraw(0, EVERYTHING):
            self._give_back(start, Ending.RECALLED)

    def _check_idle(self) -> None:
        if self._is_stopping and self._slots.is_empty and not self._bringing:
            self._idle.set()

    async def _leave(self) -> None:
        """Say what is left to say, wait a moment for its acknowledgement, say goodbye. Unacknowledged there is no
        goodbye: the results are in the journal, and the next agent tells them."""
        self._flush()
        if self._link.is_attached and (self._unacknowledged or self._sent):
            self._acknowledged.clear()
            acknowledged = asyncio.create_task(self._acknowledged.wait())
            await asyncio.wait([acknowledged], timeout=LAST_WORDS)
            acknowledged.cancel()
        if not self._unacknowledged and not self._sent and not self._bringing:
            self._link.send(send(msg.Goodbye(empty=True)))

    # ------------------------------------------------------------ the link's side

    @property
    def epoch(self) -> int:
        return max(self._journal.epochs, default=0)

    def welcomed(self, welcome: msg.Welcome) -> None:
        """Raises ConnectionLost while there is something here of another master that counted the same epoch: fences
        are unique within one master's epochs, so the two must not meet."""
        known = self._journal.epochs.get(welcome.epoch, welcome.nonce)
        if known != welcome.nonce and self._disown(welcome.epoch):
            raise ConnectionLost("what another master of the same epoch assigned has to end first")
        self._journal.welcomed(welcome.epoch, welcome.nonce)
        # Which items are still wanted is the verdict's to say; it may know this history by another name.
        self._history = welcome.history

    def _disown(self, epoch: int) -> bool:
        """End and forget whatever was assigned in an epoch. Returns whether something has still to end."""
        first = epoch << FENCE_SEQUENCE_BITS
        self._functions.take_back(first, 1 << FENCE_SEQUENCE_BITS)
        for start in self._slots.withdraw(first, 1 << FENCE_SEQUENCE_BITS):
            self._disowned.pop(start.fence, None)  # its process has passed it over meanwhile
        for start, _ in list(self._functions.held()):
            if start.fence >> FENCE_SEQUENCE_BITS == epoch:
                self._disowned[start.fence] = None
                self._functions.kill(start.fence, 0.0)
        for fence in [fence for fence in self._bringing if fence >> FENCE_SEQUENCE_BITS == epoch]:
            self._stop_bringing(fence)
        self._drop([fence for fence in self._unacknowledged if fence >> FENCE_SEQUENCE_BITS == epoch])
        strangers = [fence for fence in self._slots.running if fence >> FENCE_SEQUENCE_BITS == epoch]
        for fence in strangers:
            if fence in self._preparing:
                self._preparing.pop(fence).cancel()
                self._slots.ended(fence)
            else:
                self._disowned[fence] = None
                self._executor.kill(fence, 0.0)
        return bool(self._disowned)

    def inventory(self, connection: int) -> msg.Attach:
        self._functions.harvest()
        held = [
            _item(start, 1, self._wrote[fence].started if fence in self._wrote else 0)
            for fence, start in self._slots.running.items()
        ]
        held += [_item(item.start, 1, item.ended.started) for item in self._bringing.values()]
        held += [_item(start, int(since > 0), since) for start, since in self._functions.held()]
        held += [_item(start, 0, 0) for start in self._slots.waiting()]
        for item in self._unacknowledged.values():
            item.is_told = True
            held.append(_item(item.start, 2, item.ended.started))
        self._started.clear()  # it is all in here
        epochs = dict.fromkeys(item.fence >> FENCE_SEQUENCE_BITS for item in held)
        return msg.Attach(
            worker=self._files.worker_id,
            name=self._machine.name,
            nonce=self._machine.nonce,
            connection=connection,
            slots=self._slots.slots,
            capabilities=self._capabilities,
            permanent=self._settings.permanent,
            inventory=tuple(held),
            copies=tuple(self._files.runs()[-msg.MAX_COPIES :]),
            fetches=True,
            nonces={str(epoch): self._journal.epochs.get(epoch, "") for epoch in epochs},
        )

    def attached(self, verdict: msg.VerdictMessage) -> None:
        """Carry the verdict out, then say again what was not acknowledged."""
        if self._was_attached:
            log.info("back at the master at %s", self._link.address)
        else:
            self._was_attached = True
            name, slots = self._machine.name, self._slots.slots
            log.info("attached to the master at %s as %s, %d slots", self._link.address, name, slots)
        self._held.clear()
        self._judged(verdict)
        if self._history != self._files.history:
            self._forget_other_runs(verdict)
        self._to_send = []
        for fence, item in self._unacknowledged.items():
            self._hold(item, fence in self._held)
            if not item.is_held:
                self._to_send.append(item)
        self._ship_again()
        self._flush()
        if self._is_stopping:
            self._link.send(send(msg.Goodbye(empty=False)))
        self._copies.ask_again()
        self._uploads.ask_again()
        self._functions.ask_again()
        self._on_attached()
        self._start_next()

    def _judged(self, verdict: msg.VerdictMessage) -> None:
        self._held.update(dict.fromkeys(verdict.wait))
        for fence in verdict.keep:
            self._decided(fence)
        for fence in verdict.kill:
            ended = self._unacknowledged.get(fence)
            if ended is None:
                self._held.pop(fence, None)
                self._kill(fence, 0.0)
            elif ended.is_told:
                self._drop([fence])
            else:  # the master was told that it runs, and may wait for its end
                self._decided(fence)

    def _decided(self, fence: int) -> None:
        """The master wants the result, when there is one."""
        self._held.pop(fence, None)
        item = self._unacknowledged.get(fence)
        if item is not None and item.is_held:
            self._hold(item, False)
            self._to_send.append(item)
            self._flush_soon()

    def _hold(self, item: _Unacknowledged, is_held: bool) -> None:
        """Keep a result back, or not any more. One that is kept back by the master is not the worker's backlog."""
        if item.is_held != is_held:
            item.is_held = is_held
            self._unacknowledged_size += -item.size if is_held else item.size

    def _forget_other_runs(self, verdict: msg.VerdictMessage) -> None:
        """Another history counts its runs anew: nothing here of a run means anything unless something of it is kept."""
        killed = dict.fromkeys(verdict.kill)
        held = [*self._slots.running.values(), *self._slots.waiting()]
        held += [item.start for item in self._bringing.values()]
        held += [item.start for item in self._unacknowledged.values()]
        held += [start for start, _ in self._functions.held()]
        kept = {start.run for start in held if start.fence not in killed}
        copies = [run for run in self._files.runs() if run not in kept]
        self._functions.forget({run for run, _ in self._specs if run not in kept}.union(copies))
        for run in copies:
            self._copies.forget(run)
        self._kept.clear()
        self._specs = {key: spec for key, spec in self._specs.items() if key[0] in kept}
        self._files.remember_history(self._history)

    def _ship_again(self) -> None:
        """What was on its way when the connection broke is lost, so every output that is not acknowledged goes again
        from its beginning; the master knows by the offsets what it has."""
        self._shipper.resume()
        for fence, wrote in self._wrote.items():
            if wrote.total is None:
                self._shipper.rewind(fence, 0)
            else:
                self._shipper.add(fence, self._output_path(fence))
                self._shipper.finish(fence, wrote.total)

    def detached(self) -> None:
        self._door.hang_up()
        self._shipper.pause()
        self._to_send = []
        told = [ended for _, _, functions in self._sent for ended in functions]
        told += self._functions_to_send
        self._functions_to_send = []
        self._sent.clear()
        for ended in told:  # nobody knows whether it was heard: the next inventory names them one by one
            self._unacknowledged_size -= _size(ended)
            for start, each_ended, result in each_of(ended):
                self._keep(_Unacknowledged(start, each_ended, result))

    def received(self, incoming: Incoming) -> None:
        """Raises TitanError for what has no place here; the link starts over then."""
        match incoming.op:
            case Op.SPEC:
                spec = incoming.message
                assert isinstance(spec, msg.Spec)
                self._specs[spec.run, spec.spec] = spec
                self._functions.describe(spec, incoming.attachments)
            case Op.ASSIGN:
                self._assign(incoming)
            case Op.RECALL:
                self._recall(incoming)
            case Op.KILL:
                for fence, grace in zip(incoming.columns[2], incoming.columns[3], strict=True):
                    self._decided(fence)
                    self._kill(fence, grace / 1000)
                self._start_next()
            case Op.ACK:
                self._acknowledge(incoming.sequence)
            case Op.VERDICT:
                assert isinstance(incoming.message, msg.VerdictMessage)
                self._judge_again(incoming.message)
            case Op.FORGET:
                assert isinstance(incoming.message, msg.Forget)
                self._forget(incoming.message.run)
            case Op.FETCH:
                assert isinstance(incoming.message, msg.Fetch)
                self._fetch(incoming.message)
            case Op.BLOB_PIECE | Op.BLOB_HELD | Op.ERROR:
                self._copies.answered(incoming)
                self._uploads.answered(incoming)
                self._functions.answered(incoming)

    def _judge_again(self, verdict: msg.VerdictMessage) -> None:
        """About what was to be held back; what has been sent meanwhile cannot be."""
        self._judged(verdict)
        self._start_next()

    def pulse(self) -> tuple[int, int, float, int]:
        return self._slots.used, self._slots.queued, *self._machine.pulse()

    # ------------------------------------------------------------ assignments

    def _assign(self, incoming: Incoming) -> None:
        at = 0
        for run, spec, first, count, generation, attempt, fence, size in zip(*incoming.columns, strict=True):
            payload = incoming.tail[at : at + size]
            at += size
            self._slots.assign(Stretch(run, spec, first, count, generation, attempt, fence, payload, count))
        if self._is_stopping:  # it crossed our goodbye
            self._give_back_waiting()
        self._start_next()

    def _start_next(self) -> None:
        """Fill the free slots, if there is room for what the attempts will leave behind."""
        while (
            not self._is_stopping
            and not self._is_full
            and self._unacknowledged_size < self._settings.unacknowledged
            and (head := self._slots.head) is not None
        ):
            function = self._functions.described(head.run, head.spec)
            if function is not None and (not function.kind.project or self._copies.is_ready(head.run)):
                if not self._feed(function):
                    return
                continue
            start = self._slots.next_start()
            if start is None:
                return
            spec = self._specs.get((start.run, start.spec))
            if spec is None:
                self._not_started(start, "the master sent no description of this task")
            elif spec.problem:
                self._not_started(start, spec.problem)
            elif self._copies.is_ready(spec.run):
                self._start(start, spec)
            else:
                self._preparing[start.fence] = asyncio.create_task(self._start_when_ready(start, spec))

    async def _start_when_ready(self, start: Start, spec: msg.Spec) -> None:
        """The run's working copy has to come first; the attempt has its slot meanwhile."""
        problem = await self._copies.prepare(spec.run, spec.project)
        del self._preparing[start.fence]
        if problem:
            self._not_started(start, problem, 0 if self._files.has_room() else errno.ENOSPC)
        elif spec.work.is_function:  # a lane takes it, as the others that waited for the copy
            self._slots.ended(start.fence)
            self._slots.put_back([_alone(start)])
            self._start_next()
        else:
            self._start(start, spec)

    # ------------------------------------------------------------ functions

    def _feed(self, function: Function) -> bool:
        """Give a lane what is next; False when none takes it now."""
        try:
            return self._functions.feed(function)
        except (TitanError, OSError) as error:
            (start,) = each(self._slots.cut(1))
            self._slots.running[start.fence] = start
            self._not_started(start, str(error), getattr(error, "errno", 0) or 0)
            return True

    def functions_started(self, rows: list[tuple[int, ...]], outputs: list[tuple[int, str]]) -> None:
        for run, index, _generation, fence, _pid, began in rows:
            self._wrote[fence] = _Wrote(run, index, began)
        for fence, path in outputs:
            self._shipper.add(fence, path)
        self._started += rows
        self._flush_started()

    def pass_on(self, ended: EndedFunctions) -> bool:
        if self._held or self._disowned or not self._link.is_attached:
            return False
        self._functions_to_send.append(ended)
        self._unacknowledged_size += _size(ended)
        self._flush_soon()
        return True

    def function_over(self, start: Start, ended: Ended, result: bytes) -> None:
        fence = start.fence
        self._door.dismiss(fence)
        if fence in self._wrote:  # its start was told, and what it wrote since then
            self._shipper.forget(fence)
            take_over_gap(self._files.attempt_dir(fence, make=False))
        if ended.output_size:
            self._wrote.setdefault(fence, _Wrote(start.run, start.index, ended.started))
            self._shipper.add(fence, self._output_path(fence))
        if ended.is_file:
            self._bring(start, ended)
        else:
            self._over(start, ended, result)

    def forget_spec(self, run: int, spec: int) -> None:
        del self._specs[run, spec]

    def functions_wait_again(self, killed: list[tuple[int, float]]) -> None:
        for fence, grace in killed:
            self._kill(fence, grace)
        if self._is_stopping:
            self._give_back_waiting()
        self._start_next()

    def lane_has_room(self) -> None:
        self._check_idle()
        self._start_next()

    # ------------------------------------------------------------ processes

    def _start(self, start: Start, spec: msg.Spec) -> None:
        member = start.index - spec.first
        task = str(TaskId(start.run, spec.name, member if spec.array else None))
        work = spec.work
        try:
            payload = msgspec.json.decode(start.payload, type=dict[str, Any]) if start.payload else None
            workdir = self._files.working_copy(start.run)
            attempt_dir = self._files.attempt_dir(start.fence)
            environment = build_environment(
                self._inherited,
                allow=None,
                graph_env=spec.env,
                work=work,
                payload=payload,
                results=spec.results,
                run=start.run,
                task=task,
                attempt=start.attempt,
                fence=start.fence,
                worker=self._machine.name,
                worker_id=self._files.worker_id,
                attempt_dir=attempt_dir,
            )
            argv = resolve_command(work, payload, workdir, spec.results)
            self._journal.begun(
                Begun(
                    start.run,
                    start.spec,
                    start.index,
                    start.generation,
                    start.attempt,
                    start.fence,
                    task,
                    work.timeout,
                    work.grace,
                    self._machine.clocks(),
                )
            )
        except (TitanError, OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else 0
            self._not_started(start, str(error), number or 0)
            return
        environment.update(self._door.admit(start.fence))
        preload = work.preload if work.file and work.isolation == "warm" else None
        self._executor.start(
            Attempt(start.fence, task, argv, environment, workdir, attempt_dir, work.timeout, work.grace, preload)
        )

    def _not_started(self, start: Start, reason: str, number: int = 0) -> None:
        """Told in the next turn, as an executor does it: its end starts the next one, which may end so, too."""
        wall = self._machine.clocks().wall
        outcome = Outcome(start.fence, Ending.NOT_STARTED, number, wall, 0.0, 0, reason.encode("utf-8", "replace"))
        asyncio.get_running_loop().call_soon(self.attempt_ended, outcome)

    def _recall(self, incoming: Incoming) -> None:
        for fence, count in zip(incoming.columns[3], incoming.columns[2], strict=True):
            self._functions.take_back(fence, count)
            for start in self._slots.withdraw(fence, count):
                self._give_back(start, Ending.RECALLED)
        self._start_next()

    def _kill(self, fence: int, grace: float) -> None:
        self._functions.take_back(fence, 1)
        unstarted = self._slots.withdraw(fence, 1)
        if fence in self._preparing:
            self._preparing.pop(fence).cancel()
            if (preparing := self._slots.ended(fence)) is not None:
                unstarted.append(preparing)
        for start in unstarted:
            self._give_back(start, Ending.DROPPED)
        if fence in self._bringing:
            self._stop_bringing(fence)
        elif not unstarted:
            self._executor.kill(fence, grace)
            self._functions.kill(fence, grace)

    def _give_back(self, start: Start, ending: Ending) -> None:
        if start.fence in self._disowned:
            del self._disowned[start.fence]
            return
        self._result(start, Ended(start.fence, ending, 0, 0, 0, 0, ""))

    def _forget(self, run: int) -> None:
        for key in [key for key in self._specs if key[0] == run]:
            del self._specs[key]
        self._functions.forget({run})
        self._copies.forget(run)
        self._kept.forget_run(run)

    # ------------------------------------------------------------ a full disk

    def _wait_for_room(self, reason: str) -> None:
        """Start nothing until something fits on the disk again. What waits stays, for the master to recall."""
        if not self._is_full:
            self._is_full = True
            self._kept.clear()
            log.warning("the disk of the work directory is full (%s): nothing is started until there is room", reason)
            asyncio.get_running_loop().call_later(ROOM_INTERVAL, self._look_for_room)

    def _look_for_room(self) -> None:
        if self._is_stopping:
            return
        if not self._files.has_room():
            asyncio.get_running_loop().call_later(ROOM_INTERVAL, self._look_for_room)
            return
        self._is_full = False
        log.warning("the disk of the work directory has room again")
        self._start_next()

    # ------------------------------------------------------------ the executor's side

    def attempt_started(self, fence: int, pid: int, started: float) -> None:
        start = self._slots.running.get(fence)
        if start is None:
            return
        began = int(started * 1e6)
        self._wrote[fence] = _Wrote(start.run, start.index, began)
        self._started.append((start.run, start.index, start.generation, fence, pid, began))
        self._shipper.add(fence, self._output_path(fence))
        if self._started_timer is None:
            self._started_timer = asyncio.get_running_loop().call_later(STARTED_AFTER, self._tell_started)

    def _output_path(self, fence: int) -> str:
        return f"{self._files.attempt_dir(fence, make=False)}/{OUTPUT_NAME}"

    def attempt_ended(self, outcome: Outcome) -> None:
        fence = outcome.fence
        start = self._slots.ended(fence)
        if start is None:
            return
        self._door.dismiss(fence)
        ended = Ended(
            fence,
            outcome.ending,
            outcome.code,
            int(outcome.started * 1e6),
            int(outcome.duration * 1e6),
            outcome.output_size,
            outcome.result.decode("utf-8", "replace"),
            outcome.is_file,
        )
        if outcome.ending is Ending.NOT_STARTED and outcome.code in NO_ROOM:
            # Nothing is wrong with the task: others may have room for it.
            self._wait_for_room(ended.result)
            ended = Ended(fence, Ending.RECALLED, 0, 0, 0, 0, "")
        if ended.is_file:
            self._journal.ended(ended)
            self._bring(start, ended)
        else:
            self._over(start, ended)
        self._start_next()

    def _over(self, start: Start, ended: Ended, result: bytes | None = None) -> None:
        """An attempt's output is complete, and its end can be told."""
        fence = start.fence
        if (wrote := self._wrote.get(fence)) is not None:
            wrote.total = ended.output_size
        self._result(start, ended, result)
        if fence in self._disowned:
            del self._disowned[fence]
            self._drop([fence])
        else:
            self._shipper.finish(fence, ended.output_size)
        self._check_idle()

    def _emit(self, fence: int, offset: int, data: bytes, final: bool, total: int) -> None:
        """A piece of output. The task it belongs to is known by its fence, running or just ended."""
        wrote = self._wrote[fence]
        output = msg.Output(run=wrote.run, index=wrote.index, fence=fence, offset=offset, final=final, total=total)
        self._link.send(send(output, (data,)))

    def _fetch(self, asked: msg.Fetch) -> None:
        """A part of an output, as far as it is here."""
        offset, data = asked.offset, b""
        wrote = self._wrote.get(asked.fence)
        is_here = wrote is not None and (wrote.run, wrote.index) == (asked.run, asked.index)
        if is_here or self._kept.has(asked.fence, asked.run, asked.index):
            with contextlib.suppress(OSError):
                offset, data = read_part(self._output_path(asked.fence), offset, min(asked.size, FETCH_BYTES))
        fetched = msg.Fetched(run=asked.run, index=asked.index, fence=asked.fence, asked=asked.offset, offset=offset)
        self._link.send(send(fetched, (data,) if data else ()))

    # ------------------------------------------------------------ results

    def _bring(self, start: Start, ended: Ended) -> None:
        """An end that can be told once the file it names is at the master; until then the attempt has no slot, but to
        the master it runs."""
        task = asyncio.create_task(self._bring_and_tell(start, ended))
        self._bringing[start.fence] = _Bringing(start, ended, task)

    async def _bring_and_tell(self, start: Start, ended: Ended) -> None:
        ended = await self._uploads.bring(self._files.attempt_dir(start.fence, make=False), ended)
        del self._bringing[start.fence]
        self._over(start, ended)

    def _stop_bringing(self, fence: int) -> None:
        """The master does not want it any more."""
        bringing = self._bringing.pop(fence)
        bringing.task.cancel()
        self._over(bringing.start, msgspec.structs.replace(bringing.ended, ending=Ending.KILLED, is_file=False))

    def _keep(self, item: _Unacknowledged) -> None:
        self._unacknowledged[item.start.fence] = item
        self._unacknowledged_size += item.size

    def _result(self, start: Start, ended: Ended, result: bytes | None = None) -> None:
        """``result``: what a function gave; what others wrote stands in ``ended``, which the journal keeps."""
        self._journal.ended(ended)
        item = _Unacknowledged(start, ended, ended.result.encode() if result is None else result)
        self._keep(item)
        if start.fence in self._held:
            self._hold(item, True)
        else:
            self._to_send.append(item)
            self._flush_in_time()

    def _flush_in_time(self) -> None:
        """At the end of this turn, when it is known what is started instead; see `HELD_FOR`."""
        if self._flush_timer is None and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_or_hold)

    def _flush_or_hold(self) -> None:
        if not self._flushing:
            return  # somebody was in a hurry
        self._flushing = False
        if self._slots.queued < HELD_WHILE * self._slots.slots or self._is_stopping:
            self._flush()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(HELD_FOR, self._flush)

    def _flush_soon(self) -> None:
        if not self._is_hurrying:
            self._is_hurrying = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _tell_started(self) -> None:
        self._started_timer = None
        self._flush_started()

    def _flush_started(self) -> None:
        if not self._link.is_attached:
            return
        rows = [row for row in self._started if self._is_running(row[3])]
        self._started.clear()
        if rows:
            self._link.send(send_hot(Op.STARTED, 0, list(zip(*rows, strict=True))))

    def _flush(self) -> None:
        """What ended in this turn, or was held back for a moment, in as few frames as it takes. Without a session it
        waits for one."""
        self._flushing = self._is_hurrying = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._link.is_attached:
            return
        items = [item for item in self._to_send if self._unacknowledged.get(item.start.fence) is item]
        self._to_send = []
        while items:
            count = _fitting(items)
            batch, items = items[:count], items[count:]
            self._sequence += 1
            columns = list(zip(*map(_row, batch), strict=True))
            frame = send_hot(Op.RESULT, self._sequence, columns, b"".join(item.result for item in batch))
            self._sent.append((self._sequence, [item.start.fence for item in batch], []))
            self._link.send(frame)
        self._flush_functions()

    def _flush_functions(self) -> None:
        ended, self._functions_to_send = self._functions_to_send, []
        while ended:
            count = _fitting_functions(ended)
            batch, ended = ended[:count], ended[count:]
            self._sequence += 1
            records = b"".join(of.records for of in batch)
            tail = b"".join(of.tail for of in batch)
            self._link.send(send_packed(Op.RESULT, self._sequence, sum(of.count for of in batch), records, tail))
            self._sent.append((self._sequence, [], batch))

    def _is_running(self, fence: int) -> bool:
        return fence in self._slots.running or fence in self._bringing or self._functions.is_running(fence)

    def _acknowledge(self, sequence: int) -> None:
        """Every frame up to this one has done its work."""
        done: list[int] = []
        while self._sent and self._sent[0][0] <= sequence:
            _, fences, functions = self._sent.popleft()
            done += fences
            self._unacknowledged_size -= sum(map(_size, functions))
        self._drop(done, keep=True)
        self._start_next()

    def _drop(self, fences: list[int], keep: bool = False) -> None:
        """Nobody needs these results any more, nor their outputs; ``keep``: but for those that are longer than what the
        master keeps of one."""
        for fence in fences:
            item = self._unacknowledged.pop(fence, None)
            if item is None:
                continue
            if not item.is_held:
                self._unacknowledged_size -= item.size
            self._held.pop(fence, None)
            self._wrote.pop(fence, None)
            self._shipper.forget(fence)
            if keep and item.ended.output_size > SHIP_HEAD + SHIP_TAIL:
                size = min(item.ended.output_size, self._settings.output_limit)
                self._kept.keep(fence, item.start.run, item.start.index, size)
            else:
                self._files.remove_attempt(fence)
        self._journal.forgotten(fences)
        if not self._unacknowledged and not self._sent:
            self._acknowledged.set()


def _fitting_functions(ended: list[EndedFunctions]) -> int:
    """How many of these fit into one frame; at least one."""
    size = 0
    for count, of in enumerate(ended):
        size += _size(of)
        if size > RESULT_BYTES_PER_FRAME and count:
            return count
    return len(ended)


def _size(ended: EndedFunctions) -> int:
    return len(ended.records) + len(ended.tail)


def _alone(start: Start) -> Stretch:
    """An attempt as it waits."""
    offsets = bytes(4) + len(start.payload).to_bytes(4, "big")
    payload = offsets + start.payload
    return Stretch(start.run, start.spec, start.index, 1, start.generation, start.attempt, start.fence, payload, 1)


def _fitting(items: list[_Unacknowledged]) -> int:
    """How many of these fit into one frame; at least one."""
    size = 0
    for count, item in enumerate(items[:RESULTS_PER_FRAME]):
        size += len(item.result)
        if size > RESULT_BYTES_PER_FRAME and count:
            return count
    return min(len(items), RESULTS_PER_FRAME)


def _row(item: _Unacknowledged) -> tuple[int, ...]:
    start, ended = item.start, item.ended
    return (
        start.run,
        start.index,
        start.generation,
        int(ended.ending),
        RESULT_IS_FILE if ended.is_file else 0,
        start.fence,
        ended.code,
        ended.started,
        ended.duration,
        ended.output_size,
        len(item.result),
    )


def _item(start: Start, stage: int, started: int) -> msg.Held:
    return msg.Held(start.run, start.index, start.generation, start.fence, stage, start.attempt, started)


async def run_agent(settings: WorkerSettings, addresses: list[tuple[str, int]], find_token: Callable[[], str]) -> int:
    """An agent on this machine; its exit code.

    Raises:
        TitanError: the work directory is in use or cannot be used, the token is wrong.
    """
    machine = ThisMachine(settings)
    door = machine.door(addresses, find_token)
    return await Agent(settings, addresses, find_token, machine, machine.attached, door).run()
