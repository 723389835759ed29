"""Command -> action: the only way out of the core. Assignments leave at once; everything else waits for its facts."""

from __future__ import annotations

import logging
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from titan_fast.errors import InternalError, TitanError
from titan_fast.master.sabotage import ASSIGN_BEFORE_ADMISSION, KEYS_CONSUMED_BY_FAILURES, KILL_BEFORE_COMMIT
from titan_fast.master.session import Session
from titan_fast.model.results import references
from titan_fast.model.spec import Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import send, send_error, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import commands as cmd
from titan_fast.scheduler.facts import Fact, RunAccepted, TasksReopened
from titan_fast.scheduler.state import Run

if TYPE_CHECKING:
    from titan_fast.master.server import Master

log = logging.getLogger("titan_fast.effects")

_decode_work = msgspec.json.Decoder(Work).decode

LOTS_PER_FRAME = 512
TAIL_PER_FRAME = 8 << 20
MAX_DESCRIPTION = 128 << 20
"""Bytes of a function with all its arguments; results of more than 1 MiB are files and count as their addresses."""


class _Batch:
    """The lots of one worker in this turn."""

    __slots__ = ("rows", "size", "tail")

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.tail: list[bytes] = []
        self.size = 0


class Effects:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._acknowledge: dict[Session, None] = {}
        self._accepted: dict[int, int] = {}
        """Runs whose admission, or last retry, is not durable yet, and the position of that fact."""
        self._reopened: dict[int, int] = {}
        """Of these, the retries."""

    def acknowledge(self, session: Session) -> None:
        """This session's results are in this turn's facts."""
        self._acknowledge[session] = None

    def assign(self, commands: Iterable[cmd.Command], facts: Sequence[Fact]) -> None:
        """The turn's assignments: one frame per worker, specs first where the worker has not seen them.

        They leave at once. Only those of a run whose retry is not durable yet wait for it, and processes for their
        admission, too: what has started cannot be taken back, and it might never have been asked for.
        """
        pump = self._master.pump
        for waiting in (self._accepted, self._reopened):
            for run in [run for run, position in waiting.items() if position <= pump.durable]:
                del waiting[run]
        for position, fact in enumerate(facts, pump.position - len(facts) + 1):
            if isinstance(fact, RunAccepted | TasksReopened):
                self._accepted[fact.run] = position
            if isinstance(fact, TasksReopened):
                self._reopened[fact.run] = position
                for other in self._master.worker_sessions.values():
                    other.known_specs.pop(fact.run, None)  # they name results that may be others soon
        batches: dict[tuple[str, int], _Batch] = {}
        for command in commands:
            if not isinstance(command, cmd.Assign):
                continue
            session = self._master.worker_sessions.get(command.worker)
            if session is None:
                continue  # its inventory will not name them, so they go elsewhere
            after = self._not_before(command)
            if ASSIGN_BEFORE_ADMISSION in self._master.sabotage:
                after = 0
            try:
                if command.spec not in session.known_specs.get(command.run, ()):
                    self._send_spec(session, command, after)
                self._add_lot(batches.setdefault((command.worker, after), _Batch()), session, command, after)
            except Exception:
                # Our bug. The worker starts over: its next inventory will not name what it was not sent.
                log.exception("assigning %s", command)
                session.abort()
        for (worker, after), batch in batches.items():
            if batch.rows:
                self._send_lots(self._master.worker_sessions[worker], batch, after)

    def _not_before(self, command: cmd.Assign) -> int:
        """The position of the fact an assignment waits for; mostly 0."""
        if not self._accepted:
            return 0
        is_function = command.spec in self._master.scheduler.state.runs[command.run].functions
        return (self._reopened if is_function else self._accepted).get(command.run, 0)

    def _add_lot(self, batch: _Batch, session: Session, command: cmd.Assign, after: int) -> None:
        """A lot's record, and its slice of the payloads; halved until each slice has room in a frame."""
        run = self._master.scheduler.state.runs[command.run]
        stretches = [(command.first, command.count)]
        while stretches:
            first, count = stretches.pop()
            payload = run.payload_slice(command.spec, first - run.first[command.spec], count)
            if len(payload) > TAIL_PER_FRAME and count > 1:
                stretches += [(first + count // 2, count - count // 2), (first, count // 2)]
                continue
            if batch.rows and (len(batch.rows) >= LOTS_PER_FRAME or batch.size + len(payload) > TAIL_PER_FRAME):
                self._send_lots(session, batch, after)
                batch.rows, batch.tail, batch.size = [], [], 0
            fence = command.fence + first - command.first
            batch.rows.append(
                (command.run, command.spec, first, count, command.generation, command.attempt, fence, len(payload))
            )
            batch.tail.append(payload)
            batch.size += len(payload)

    def _send_spec(self, session: Session, command: cmd.Assign, after: int) -> None:
        run = self._master.scheduler.state.runs[command.run]
        spec = command.spec
        if spec in run.arrays or spec not in run.functions:
            # A single function comes with every attempt, so that workers need not keep its arguments.
            session.known_specs.setdefault(run.id, set()).add(spec)
        work = _decode_work(run.works[spec])
        described = msg.Spec(
            run=run.id,
            spec=spec,
            name=run.names[spec],
            first=run.first[spec],
            array=spec in run.arrays,
            work=work,
            env=run.env,
            project=run.project,
            results=self._results(run, work),
        )
        attachments: tuple[bytes, ...] = ()
        if spec in run.functions:
            attachments = (run.functions[spec], *(self._arguments(run, name) for name in work.arguments))
            size = sum(map(len, attachments))
            if size > MAX_DESCRIPTION:
                problem = f"its function and arguments take {size:,} bytes, at most {MAX_DESCRIPTION:,} fit"
                described, attachments = msgspec.structs.replace(described, problem=problem), ()
        session.send_work(after, send(described, attachments))

    def _arguments(self, run: Run, name: str) -> bytes:
        """What all members of a parent gave: how many, offsets, bytes. Nothing is looked into."""
        spec = run.find(name)
        assert spec is not None
        results = self._master.queries.results(run, run.first[spec], run.count[spec])
        offsets = array("I", (len(results), *accumulate(map(len, results), initial=0)))
        if sys.byteorder == "little":
            offsets.byteswap()
        return b"".join((offsets.tobytes(), *results))

    def _results(self, run: Run, work: Work) -> dict[str, str]:
        """What the tasks wrote whose results stand in this one's texts."""
        results = {}
        for name in references(work):
            spec = run.find(name)
            if spec is not None and run.count[spec] == 1:
                results[name] = self._master.queries.result(run, run.first[spec]).decode("utf-8", "replace").strip()
        return results

    def _send_lots(self, session: Session, batch: _Batch, after: int) -> None:
        frame = send_hot(Op.ASSIGN, 0, list(zip(*batch.rows, strict=True)), b"".join(batch.tail))
        session.send_work(after, frame)

    def tell_results(self, facts: Iterable[Fact]) -> None:
        """To those who want them as they come; like every other word they wait for their facts."""
        self._master.collectors.happened(facts)

    def carry_out(self, commands: Iterable[cmd.Command]) -> None:
        """Everything that waits for the turn's facts."""
        for command in commands:
            if isinstance(command, cmd.Assign):
                continue
            try:
                getattr(self, f"_{type(command).__name__.lower()}")(command)
            except Exception:
                # Our bug: whoever asked is told, and the rest of the turn is carried out all the same.
                log.exception("carrying out %s", command)
                ticket = self._master.intake.tickets.pop(getattr(command, "ticket", 0), None)
                if ticket is not None:
                    ticket.session.refuse_request(
                        InternalError("the master failed; its log has the details"), ticket.request
                    )
        for session in self._acknowledge:
            empty: list[list[int]] = [[] for _ in range(11)]
            # The worker keeps its results a little longer; a commit for each of them would keep everybody waiting.
            session.send_when_durable(send_hot(Op.ACK, session.acknowledge, empty), is_urgent=False)
        self._acknowledge.clear()

    def _answer(self, command: cmd.Answer) -> None:
        ticket = self._master.intake.tickets.pop(command.ticket)
        done = msg.KvDone(command.number) if ticket.op is Op.KV_SET else msg.Accepted(command.number)
        if not ticket.watch:
            ticket.session.reply(done, ticket.request)
        else:
            # The outcome is what is waited for: it may come first, and its commit do for both.
            ticket.session.reply_early(done, ticket.request)
            try:
                watch = msg.Watch(command.number, results=ticket.results)
                self._master.watchers.watch(ticket.session, ticket.request, watch)
            except TitanError as error:
                # It is accepted all the same, and hears that first.
                ticket.session.reply(done, ticket.request)
                ticket.session.send_when_durable(send_error(error.with_traceback(None), ticket.request))

    def _refuse(self, command: cmd.Refuse) -> None:
        ticket = self._master.intake.tickets.pop(command.ticket)
        if ticket.op is Op.ATTACH:
            ticket.session.attaching = False
        if KEYS_CONSUMED_BY_FAILURES in self._master.sabotage and ticket.key is not None:
            self._master.history.consumed.add(ticket.key)
        # Its traceback holds the whole turn, which would stay while the collector is off.
        ticket.session.refuse_request(command.error.with_traceback(None), ticket.request)

    def _verdict(self, command: cmd.Verdict) -> None:
        verdict = msg.VerdictMessage(command.keep, command.kill, command.wait)
        if command.ticket:
            ticket = self._master.intake.tickets.pop(command.ticket)
            ticket.session.attach(verdict, ticket.request)
        elif (session := self._master.worker_sessions.get(command.worker)) is not None:
            session.send_when_durable(send(verdict))

    def _recall(self, command: cmd.Recall) -> None:
        session = self._master.worker_sessions.get(command.worker)
        if session is not None:
            columns = ([command.run], [command.first], [command.count], [command.fence])
            session.send_when_durable(send_hot(Op.RECALL, 0, columns))

    def _kill(self, command: cmd.Kill) -> None:
        session = self._master.worker_sessions.get(command.worker)
        if session is not None:
            run = self._master.scheduler.state.runs[command.run]
            work = _decode_work(run.works[run.spec_of(command.index)])
            grace = min(int(1000 * work.grace), 0xFFFFFFFF)
            columns = ([command.run], [command.index], [command.fence], [grace])
            frame = send_hot(Op.KILL, 0, columns)
            if KILL_BEFORE_COMMIT in self._master.sabotage:
                session.send(frame)
            else:
                session.send_when_durable(frame)

    def _runchanged(self, command: cmd.RunChanged) -> None:
        self._master.collectors.run_changed(command.run)
        self._master.watchers.run_changed(command.run)
        self._master.followers.run_changed(command.run)

    def _forgetrun(self, command: cmd.ForgetRun) -> None:
        for worker in command.workers:
            session = self._master.worker_sessions.get(worker)
            if session is not None:
                session.known_specs.pop(command.run, None)
                session.send_work(0, send(msg.Forget(command.run)))
