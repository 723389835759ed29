"""Message -> event: the only way in. What changes something becomes an event; what asks is kept until the turn's
facts are known (`answer_questions`), so that an answer never shows what is not on its way to the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from titan_fast.errors import BadMessage, BadRecords, InternalError, NothingToDo, TitanError, UnexpectedMessage
from titan_fast.ids import Ending
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import events as ev

if TYPE_CHECKING:
    from titan_fast.master.server import Master

log = logging.getLogger("titan_fast.intake")


class Ticket(msgspec.Struct, frozen=True):
    """Whom to answer."""

    session: Session
    request: int
    op: Op
    watch: bool = False


class Intake:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._next_ticket = 1
        self.tickets: dict[int, Ticket] = {}
        self._questions: list[tuple[Session, Incoming]] = []
        self._takers: dict[Op, Callable[[Session, Incoming, Any], None]] = {
            Op.SUBMIT: self._submit,
            Op.CANCEL: self._cancel,
            Op.RETRY: self._retry,
            Op.BLOB_PUT: self._blob_put,
            Op.ATTACH: self._attach,
            Op.STARTED: self._started,
            Op.RESULT: self._result,
            Op.HEARTBEAT: self._heartbeat,
            Op.OUTPUT: self._output,
            Op.GOODBYE: self._goodbye,
        }

    def take(self, session: Session, incoming: Incoming) -> None:
        """One message. Whatever is wrong with it is answered to its sender; nobody else notices."""
        error = incoming.error
        if error is None:
            taker = self._takers.get(incoming.op)
            if taker is None:
                if not incoming.is_reply and incoming.op is not Op.ERROR:
                    self._questions.append((session, incoming))
                return
            try:
                taker(session, incoming, incoming.message)
            except TitanError as refused:
                error = refused
            except Exception:
                # Our bug: its sender is told, and the others of this turn are served all the same.
                log.exception("%s: %s", session.describe(), incoming.op.name)
                error = _our_fault(incoming)
        if error is not None:
            log.info("%s: %s refused: %s", session.describe(), incoming.op.name, error)
            if incoming.op.hot:
                # Records that cannot be read mean that the two sides no longer agree: start over.
                session.refuse_request(error, 0)
                session.flush(self._master.pump.durable)
                session.close()
            elif not incoming.is_reply:
                session.refuse_request(error, incoming.request)

    def answer_questions(self) -> None:
        """After the turn's facts: what was asked is answered from the state they made."""
        questions, self._questions = self._questions, []
        for session, incoming in questions:
            if session.closed:
                continue
            try:
                self._master.queries.answer(session, incoming)
            except TitanError as error:
                session.refuse_request(error, incoming.request)
            except Exception:
                log.exception("%s: %s", session.describe(), incoming.op.name)
                session.refuse_request(_our_fault(incoming), incoming.request)

    def _ticket(self, session: Session, incoming: Incoming, watch: bool = False) -> int:
        number = self._next_ticket
        self._next_ticket += 1
        self.tickets[number] = Ticket(session, incoming.request, incoming.op, watch)
        return number

    def _handle(self, event: ev.Event) -> None:
        self._master.scheduler.handle(event)

    # ------------------------------------------------------------ clients

    def _submit(self, session: Session, incoming: Incoming, message: msg.Submit) -> None:
        project = message.graph.project
        if project and self._master.blobs.size(project) < 0:
            raise BadMessage(
                f"the project archive {project[:12]}… is not here", hint="upload it first", field="graph.project"
            )
        ticket = self._ticket(session, incoming, message.watch)
        self._handle(ev.RunSubmitted(ticket, message.graph, incoming.attachments))

    def _cancel(self, session: Session, incoming: Incoming, message: msg.Cancel) -> None:
        run = self._master.queries.run_number(message.run)
        ticket = self._ticket(session, incoming)
        self._handle(ev.CancelRequested(ticket, run, message.task or None, _member(message.member)))

    def _retry(self, session: Session, incoming: Incoming, message: msg.Retry) -> None:
        run = self._master.queries.run_number(message.run)
        known = self._master.scheduler.state.runs.get(run)
        if known is not None and known.project and self._master.blobs.size(known.project) < 0:
            raise NothingToDo(f"the project of run {run} is not kept any more", hint="submit it again")
        ticket = self._ticket(session, incoming)
        self._handle(ev.RetryRequested(ticket, run, message.task or None, _member(message.member)))

    def _blob_put(self, session: Session, incoming: Incoming, message: msg.BlobPut) -> None:
        data = incoming.attachments[0] if incoming.attachments else b""
        held = self._master.blobs.put(session, message.digest, message.offset, message.size, data)
        session.reply(msg.BlobHeld(message.digest, held), incoming.request)

    # ------------------------------------------------------------ workers

    def _attach(self, session: Session, incoming: Incoming, message: msg.Attach) -> None:
        if not 0 < message.slots <= 65_536:
            raise BadMessage(f"{message.slots} slots; 1 to 65536 are possible", field="slots")
        for text, what in ((message.worker, "worker"), (message.name, "name"), (message.nonce, "nonce")):
            if not text or len(text) > 200 or not text.isprintable():
                raise BadMessage(f"'{text[:40]}' is not a {what}", field=what)
        self._master.attach(session, message)
        ticket = self._ticket(session, incoming)
        inventory = tuple(
            ev.HeldAttempt(item.run, item.index, item.generation, item.fence, item.stage, item.attempt, item.started)
            for item in message.inventory
        )
        self._handle(
            ev.WorkerAttached(
                ticket,
                message.worker,
                message.name,
                message.nonce,
                message.capabilities,
                message.slots,
                message.permanent,
                inventory,
            )
        )

    def _worker_of(self, session: Session, op: Op) -> str:
        if not session.worker:
            raise UnexpectedMessage(f"{op.name} before ATTACH")
        return session.worker

    def _started(self, session: Session, incoming: Incoming, _: None) -> None:
        self._handle(ev.AttemptsStarted(self._worker_of(session, incoming.op), *incoming.columns))

    def _result(self, session: Session, incoming: Incoming, _: None) -> None:
        worker = self._worker_of(session, incoming.op)
        run, index, generation, ending, _flags, fence, code, started, duration, _output, sizes = incoming.columns
        if ending and max(ending) > max(Ending):
            raise BadRecords(f"RESULT: {max(ending)} is no way to end")
        if sum(sizes) != len(incoming.tail):
            raise BadRecords(f"RESULT: results of {sum(sizes)} bytes in a tail of {len(incoming.tail)}")
        results, at = [], 0
        for size in sizes:
            results.append(incoming.tail[at : at + size])
            at += size
        self._handle(
            ev.AttemptsFinished(worker, run, index, generation, ending, fence, code, started, duration, results)
        )
        session.acknowledge = max(session.acknowledge, incoming.sequence)
        self._master.effects.acknowledge(session)

    def _heartbeat(self, session: Session, incoming: Incoming, _: None) -> None:
        self._worker_of(session, incoming.op)
        session.send(send_hot(Op.HEARTBEAT, incoming.sequence, ([], [], [], [])))

    def _output(self, session: Session, incoming: Incoming, message: msg.Output) -> None:
        if not self._master.queries.is_attempt_of(
            self._worker_of(session, incoming.op), message.run, message.index, message.fence
        ):
            return  # a worker may write to nothing but what it was given
        data = incoming.attachments[0] if incoming.attachments else b""
        try:
            self._master.logs.append(message.run, message.index, message.fence, message.offset, data)
        except OSError as error:
            # A full disk: the output has a gap here. It is no reason to send the worker away.
            log.warning("output of run %d is not kept: %s", message.run, error)
        self._master.followers.output_grew(message.run, message.index)

    def _goodbye(self, session: Session, incoming: Incoming, message: msg.Goodbye) -> None:
        worker = self._worker_of(session, incoming.op)
        if message.empty:
            self._master.worker_left(session)
            self._handle(ev.WorkerLeft(worker))
        else:
            self._handle(ev.WorkerDraining(worker))


def _our_fault(incoming: Incoming) -> InternalError:
    return InternalError(f"{incoming.op.name} failed inside the master; its log has the details")


def _member(value: int) -> int | None:
    return None if value < 0 else value
