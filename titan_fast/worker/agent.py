"""The agent: wires link, slots, workspace, executor and output together; starts, drains, stops.

Everything it knows it can tell in one inventory: what waits, what runs, and what has ended and is not acknowledged.
Its keeper is its parent and starts it again when it dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from titan_fast.config import WorkerSettings, capabilities
from titan_fast.errors import ConnectionLost, TitanError
from titan_fast.ids import Ending, TaskId
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.worker.command import build_environment, inherit, resolve_command
from titan_fast.worker.executors.base import Attempt, Outcome
from titan_fast.worker.executors.spawn import OUTPUT_NAME
from titan_fast.worker.link import Link
from titan_fast.worker.machine import Machine, ThisMachine
from titan_fast.worker.slots import Slots, Start, Stretch

log = logging.getLogger("titan_fast.worker")

RESULTS_PER_FRAME = 1000
RESULT_BYTES_PER_FRAME = 4 << 20
RESTART = 75
"""Exit code that asks the keeper for a fresh agent (EX_TEMPFAIL)."""


class _Unsent(msgspec.Struct):
    """A RESULT frame that is not acknowledged; its attempts stay in the inventory until it is."""

    sequence: int
    frame: bytes
    held: list[msg.Held]


class _Wrote(msgspec.Struct):
    """Whose output a file is, and how long it is once it is complete."""

    run: int
    index: int
    total: int | None = None


class Agent:
    """One worker's agent. `run` returns when it has been told to stop and has nothing left."""

    def __init__(
        self,
        settings: WorkerSettings,
        addresses: list[tuple[str, int]],
        find_token: Callable[[], str],
        machine: Machine | None = None,
    ) -> None:
        """It belongs to the event loop that runs now.

        Raises:
            StateLocked: another agent is using the work directory.
        """
        self._settings = settings
        self._machine = machine or ThisMachine(settings)
        self._files = self._machine.files
        self._name = self._machine.name
        self._slots = Slots(settings.slots or os.cpu_count() or 1)
        self._capabilities = capabilities(settings.caps)
        self._link = Link(addresses, find_token, self, self._machine.random)
        self._executor = self._machine.executor(self)
        self._shipper = self._machine.shipper(self._emit)
        self._projects = self._machine.copies(self._link.send)
        self._inherited = inherit(self._machine.environ, settings.environment)
        self._specs: dict[tuple[int, int], msg.Spec] = {}
        self._wrote: dict[int, _Wrote] = {}
        """Attempts whose output may still be on its way."""
        self._started: list[tuple[int, ...]] = []
        self._results: list[tuple[tuple[int, ...], bytes]] = []
        self._ended_now: list[msg.Held] = []
        self._unsent: deque[_Unsent] = deque()
        self._unsent_size = 0
        self._sequence = 0
        self._flushing = False
        self._preparing: dict[int, None] = {}
        self._stopping = False
        self._idle = asyncio.Event()
        self._is_foreign = False
        self._history = ""

    # ------------------------------------------------------------ start and stop

    async def run(self) -> int:
        """Raises TitanError when the worker cannot work: directory in use, wrong token."""
        loop = asyncio.get_running_loop()
        if self._machine.has_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
        link = asyncio.create_task(self._link.run())
        stop = asyncio.create_task(self._idle.wait())
        done, _ = await asyncio.wait({link, stop}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if link in done:
                link.result()
            else:
                # First end what still runs and report it: a goodbye means that nothing does.
                await self._executor.close(0.5)
                await self._leave()
        finally:
            link.cancel()
            await self._executor.close(0.5)
            self._shipper.close()
            self._link.close()
            self._files.close()
        return RESTART if self._is_foreign else 0

    def stop(self) -> None:
        """First: take nothing new, let what runs finish for a while. Second: end it."""
        if self._stopping:
            self._idle.set()
            return
        self._stopping = True
        self._link.send(send(msg.Goodbye(empty=False)))
        self._give_back_waiting()
        self._check_idle()
        asyncio.get_running_loop().call_later(self._settings.drain, self._idle.set)

    def _give_back_waiting(self) -> None:
        for start in self._slots.withdraw(0, 1 << 63):
            self._give_back(start, Ending.RECALLED)

    def _check_idle(self) -> None:
        if self._stopping and self._slots.is_empty:
            self._idle.set()

    async def _leave(self) -> None:
        """Say what is left to say, wait a moment for its acknowledgement, say goodbye."""
        self._flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._settled.wait()
        self._link.send(send(msg.Goodbye(empty=True)))

    # ------------------------------------------------------------ the link's side

    def welcomed(self, welcome: msg.Welcome) -> None:
        """Run numbers and fences mean nothing to a master with another history: forget, or start over."""
        if self._history not in ("", welcome.history) and not (self._slots.is_empty and not self._unsent):
            log.warning("the master has another history than the one this worker's attempts belong to: starting over")
            self._is_foreign = True
            self._idle.set()
            raise ConnectionLost("another history")
        if self._history != welcome.history:
            self._projects.clear()
            self._specs.clear()
            self._files.adopt_history(welcome.history)
            self._history = welcome.history

    def inventory(self, connection: int) -> msg.Attach:
        held = [_held(start, 1) for start in self._slots.running.values()]
        held += [_held(start, 0) for start in self._slots.waiting()]
        held += [item for unsent in self._unsent for item in unsent.held] + self._ended_now
        return msg.Attach(
            worker=self._files.worker_id,
            name=self._name,
            nonce=self._machine.nonce,
            connection=connection,
            slots=self._slots.slots,
            capabilities=self._capabilities,
            permanent=self._settings.permanent,
            inventory=tuple(held),
        )

    def attached(self, verdict: msg.VerdictMessage) -> None:
        """Carry the verdict out, then say again what was not acknowledged."""
        log.info("%s is attached", self._name)
        for fence in verdict.kill:
            self._kill(fence, 0.0)
        self._ship_again()
        for unsent in self._unsent:
            self._link.send(unsent.frame)
        if self._stopping:
            self._link.send(send(msg.Goodbye(empty=False)))
        self._projects.ask_again()

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
        self._shipper.pause()

    def received(self, incoming: Incoming) -> None:
        """Raises TitanError for what has no place here; the link starts over then."""
        match incoming.op:
            case Op.SPEC:
                spec = incoming.message
                assert isinstance(spec, msg.Spec)
                self._specs[spec.run, spec.spec] = spec
            case Op.ASSIGN:
                self._assign(incoming)
            case Op.RECALL:
                self._recall(incoming)
            case Op.KILL:
                for fence, grace in zip(incoming.columns[2], incoming.columns[3], strict=True):
                    self._kill(fence, grace / 1000)
            case Op.ACK:
                self._acknowledged(incoming.sequence)
            case Op.FORGET:
                assert isinstance(incoming.message, msg.Forget)
                self._forget(incoming.message.run)
            case Op.BLOB_PIECE | Op.ERROR:
                self._projects.answered(incoming)

    def pulse(self) -> tuple[int, int, float, int]:
        return len(self._slots.running), self._slots.queued, *self._machine.pulse()

    # ------------------------------------------------------------ assignments

    def _assign(self, incoming: Incoming) -> None:
        at = 0
        for run, spec, first, count, generation, attempt, fence, size in zip(*incoming.columns, strict=True):
            payload = incoming.tail[at : at + size]
            at += size
            self._slots.assign(Stretch(run, spec, first, count, generation, attempt, fence, payload, count))
        if self._stopping:  # it crossed our goodbye
            self._give_back_waiting()
        self._start_next()

    def _start_next(self) -> None:
        """Fill the free slots."""
        while not self._stopping and self._unsent_size < self._settings.unacknowledged:
            start = self._slots.next_start()
            if start is None:
                return
            spec = self._specs.get((start.run, start.spec))
            if spec is None:
                self._not_started(start, "the master sent no description of this task")
            elif self._projects.is_ready(spec.run):
                self._start(start, spec)
            else:
                self._preparing[start.fence] = None
                asyncio.get_running_loop().create_task(self._start_when_ready(start, spec))

    async def _start_when_ready(self, start: Start, spec: msg.Spec) -> None:
        """The run's working copy has to come first; the attempt has its slot meanwhile."""
        problem = await self._projects.prepare(spec.run, spec.project)
        if start.fence not in self._preparing:
            return  # killed meanwhile
        del self._preparing[start.fence]
        if problem:
            self._not_started(start, problem)
        else:
            self._start(start, spec)

    def _start(self, start: Start, spec: msg.Spec) -> None:
        member = start.index - spec.first
        task = TaskId(start.run, spec.name, member if spec.array else None)
        try:
            payload = msgspec.json.decode(start.payload, type=dict[str, Any]) if start.payload else None
            workdir = self._files.working_copy(start.run)
            attempt_dir = self._files.attempt_dir(start.fence)
            work = spec.work
            environment = build_environment(
                self._inherited,
                allow=self._settings.environment,
                graph_env=spec.env,
                work=work,
                payload=payload,
                run=start.run,
                task=str(task),
                attempt=start.attempt,
                fence=start.fence,
                worker=self._name,
                worker_id=self._files.worker_id,
                attempt_dir=attempt_dir,
            )
            argv = resolve_command(work, payload, workdir)
        except (TitanError, OSError, ValueError) as error:
            self._not_started(start, str(error))
            return
        self._executor.start(
            Attempt(start.fence, str(task), argv, environment, workdir, attempt_dir, work.timeout, work.grace)
        )

    def _not_started(self, start: Start, reason: str) -> None:
        self.attempt_ended(
            Outcome(start.fence, Ending.NOT_STARTED, 0, self._machine.wall(), 0.0, 0, reason.encode("utf-8", "replace"))
        )

    def _recall(self, incoming: Incoming) -> None:
        for fence, count in zip(incoming.columns[3], incoming.columns[2], strict=True):
            for start in self._slots.withdraw(fence, count):
                self._give_back(start, Ending.RECALLED)

    def _kill(self, fence: int, grace: float) -> None:
        unstarted = self._slots.withdraw(fence, 1)
        if fence in self._preparing:
            del self._preparing[fence]
            if (preparing := self._slots.ended(fence)) is not None:
                unstarted.append(preparing)
        for start in unstarted:
            self._give_back(start, Ending.DROPPED)
        if not unstarted:
            self._executor.kill(fence, grace)

    def _give_back(self, start: Start, ending: Ending) -> None:
        self._result(start, ending, 0, 0, 0, 0, b"")

    def _forget(self, run: int) -> None:
        for key in [key for key in self._specs if key[0] == run]:
            del self._specs[key]
        self._projects.forget(run)

    # ------------------------------------------------------------ the executor's side

    def attempt_started(self, fence: int, pid: int, started: float) -> None:
        start = self._slots.running.get(fence)
        if start is None:
            return
        self._wrote[fence] = _Wrote(start.run, start.index)
        self._started.append((start.run, start.index, start.generation, fence, pid, int(started * 1e6)))
        self._shipper.add(fence, self._output_path(fence))
        self._flush_soon()

    def _output_path(self, fence: int) -> str:
        return os.path.join(self._files.attempt_dir(fence, make=False), OUTPUT_NAME)

    def attempt_ended(self, outcome: Outcome) -> None:
        start = self._slots.ended(outcome.fence)
        if start is None:
            return
        if (wrote := self._wrote.get(outcome.fence)) is not None:
            wrote.total = outcome.output_size
        self._shipper.finish(outcome.fence, outcome.output_size)
        self._result(
            start,
            outcome.ending,
            outcome.code,
            int(outcome.started * 1e6),
            int(outcome.duration * 1e6),
            outcome.output_size,
            outcome.result,
        )
        self._start_next()
        self._check_idle()

    def _emit(self, fence: int, offset: int, data: bytes, final: bool, total: int) -> None:
        """A piece of output. The task it belongs to is known by its fence, running or just ended."""
        wrote = self._wrote[fence]
        output = msg.Output(run=wrote.run, index=wrote.index, fence=fence, offset=offset, final=final, total=total)
        self._link.send(send(output, (data,)))

    # ------------------------------------------------------------ results

    def _result(
        self, start: Start, ending: Ending, code: int, started: int, duration: int, output_size: int, result: bytes
    ) -> None:
        row = (
            start.run,
            start.index,
            start.generation,
            int(ending),
            0,
            start.fence,
            code,
            started,
            duration,
            output_size,
            len(result),
        )
        self._results.append((row, result))
        self._ended_now.append(_held(start, 2))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """What started and ended in this turn, in as few frames as it takes."""
        self._flushing = False
        if self._started:
            gone = {item.fence for item in self._ended_now}
            rows = [row for row in self._started if row[3] not in gone]
            self._started = []
            if rows:
                self._link.send(send_hot(Op.STARTED, 0, list(zip(*rows, strict=True))))
        while self._results:
            count = _fitting(self._results)
            batch, self._results = self._results[:count], self._results[count:]
            held, self._ended_now = self._ended_now[:count], self._ended_now[count:]
            self._sequence += 1
            columns = list(zip(*(row for row, _ in batch), strict=True))
            frame = send_hot(Op.RESULT, self._sequence, columns, b"".join(result for _, result in batch))
            self._unsent.append(_Unsent(self._sequence, frame, held))
            self._unsent_size += len(frame)
            self._link.send(frame)

    def _acknowledged(self, sequence: int) -> None:
        while self._unsent and self._unsent[0].sequence <= sequence:
            unsent = self._unsent.popleft()
            self._unsent_size -= len(unsent.frame)
            for item in unsent.held:
                self._wrote.pop(item.fence, None)
                self._shipper.forget(item.fence)
                self._files.remove_attempt(item.fence)
        self._start_next()


def _fitting(results: list[tuple[tuple[int, ...], bytes]]) -> int:
    """How many of these fit into one frame."""
    size = 0
    for count, (_, result) in enumerate(results[:RESULTS_PER_FRAME]):
        size += len(result)
        if size > RESULT_BYTES_PER_FRAME:
            return count
    return min(len(results), RESULTS_PER_FRAME)


def _held(start: Start, stage: int) -> msg.Held:
    return msg.Held(start.run, start.index, start.generation, start.fence, stage, start.attempt)


async def run_agent(settings: WorkerSettings, addresses: list[tuple[str, int]], find_token: Callable[[], str]) -> int:
    return await Agent(settings, addresses, find_token).run()
