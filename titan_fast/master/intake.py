"""Message -> event: the only way in. What changes something becomes an event; what asks is kept until the turn's
facts are known (`answer_questions`), so that an answer never shows what is not on its way to the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from titan_fast._layout import RESULT_IS_FILE, RESULT_PREFIX
from titan_fast.errors import (
    BadMessage,
    BadRecords,
    InternalError,
    NoSuchBlob,
    NothingToDo,
    Refused,
    TitanError,
    TooLarge,
    UnexpectedMessage,
)
from titan_fast.ids import Ending, epoch_of
from titan_fast.master.artifacts import is_digest
from titan_fast.master.session import Session
from titan_fast.master.watch import ONLY_FUNCTIONS
from titan_fast.model.names import check_capability, check_worker_name
from titan_fast.model.spec import MAX_NAME
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send_error, send_hot
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler import events as ev
from titan_fast.scheduler.facts import NO_KEY, Key

if TYPE_CHECKING:
    from titan_fast.master.server import Master

OVERTAKEN = 100_000
"""Repeated requests that are remembered."""

log = logging.getLogger("titan_fast.intake")


class Ticket(msgspec.Struct, frozen=True):
    """Whom to answer."""

    session: Session
    request: int
    op: Op
    watch: bool = False
    key: Key | None = None
    results: bool = False
    """Who watches wants the results, too."""


class Intake:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._next_ticket = 1
        self.tickets: dict[int, Ticket] = {}
        self._overtaken: dict[Key, None] = {}
        """Requests that came as repeats; what comes under such a key for the first time comes too late."""
        self._questions: list[tuple[Session, Incoming]] = []
        self._takers: dict[Op, Callable[[Session, Incoming, Any], None]] = {
            Op.SUBMIT: self._submit,
            Op.CANCEL: self._cancel,
            Op.RETRY: self._retry,
            Op.DROP: self._drop,
            Op.KV_SET: self._kv_set,
            Op.ARTIFACT_PUBLISH: self._artifact_publish,
            Op.BLOB_PUT: self._blob_put,
            Op.PRUNE: self._prune,
            Op.BACKUP: self._backup,
            Op.ATTACH: self._attach,
            Op.STARTED: self._started,
            Op.RESULT: self._result,
            Op.HEARTBEAT: self._heartbeat,
            Op.OUTPUT: self._output,
            Op.GOODBYE: self._goodbye,
            Op.FETCHED: self._fetched,
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
                # Its traceback holds this frame, and the frame the message: a cycle that would stay.
                error = refused.with_traceback(None)
            except Exception:
                # Our bug: its sender is told, and the others of this turn are served all the same.
                log.exception("%s: %s", session.describe(), incoming.op.name)
                error = _our_fault(incoming)
        if error is not None:
            log.info("%s: %s refused: %s", session.describe(), incoming.op.name, error)
            if incoming.op.hot:
                # Records that cannot be read mean that the two sides no longer agree: start over.
                session.flush(self._master.pump.durable)
                session.refuse(error)  # whatever still waits for the disk
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

    def _ticket(self, session: Session, incoming: Incoming, watch: bool = False, results: bool = False) -> int:
        number = self._next_ticket
        self._next_ticket += 1
        once = getattr(incoming.message, "once", None)
        key = _key(once) if once else None
        self.tickets[number] = Ticket(session, incoming.request, incoming.op, watch, key, results)
        return number

    def _handle(self, event: ev.Event) -> None:
        self._master.scheduler.handle(event)

    # ------------------------------------------------------------ clients

    def _repeated(self, session: Session, incoming: Incoming, once: msg.Once | None) -> int | None:
        """A request that was carried out when it came first is answered as then; its number. None: carry it out."""
        if once is None:
            return None
        key = Key(once.client, once.counter)
        if not once.repeat and key not in self._overtaken:
            return None
        number = self._master.history.reply(key)
        if number is None and not once.repeat:
            raise Refused("this request has come again over a newer connection, and been answered there")
        if once.repeat:
            # The first one may still be on its way over a connection that its client has given up.
            self._overtaken[key] = None
            if len(self._overtaken) > OVERTAKEN:
                del self._overtaken[next(iter(self._overtaken))]
        if number is not None:
            done = msg.KvDone(number) if incoming.op is Op.KV_SET else msg.Accepted(number)
            session.reply(done, incoming.request)
        return number

    def _submit(self, session: Session, incoming: Incoming, message: msg.Submit) -> None:
        number = self._repeated(session, incoming, message.once)
        if number is not None:
            if message.watch:
                try:
                    watch = msg.Watch(number, results=message.results)
                    self._master.watchers.watch(session, incoming.request, watch)
                except TitanError as error:
                    # Behind the answer: it is accepted all the same.
                    session.send_when_durable(send_error(error.with_traceback(None), incoming.request))
            return
        self._master.check_space()
        project = message.graph.project
        if project and self._master.blobs.size(project) < 0:
            raise BadMessage(
                f"the project archive {project[:12]}… is not here", hint="upload it first", field="graph.project"
            )
        if message.results and not all(task.work.is_function for task in message.graph.tasks):
            raise BadMessage(ONLY_FUNCTIONS, field="results")
        ticket = self._ticket(session, incoming, message.watch, message.results)
        self._handle(ev.RunSubmitted(ticket, message.graph, incoming.attachments, _key(message.once)))

    def _cancel(self, session: Session, incoming: Incoming, message: msg.Cancel) -> None:
        if self._repeated(session, incoming, message.once) is not None:
            return
        run = self._in_memory(message.run)
        ticket = self._ticket(session, incoming)
        target = run, message.task or None, _member(message.member)
        self._handle(ev.CancelRequested(ticket, *target, _key(message.once), message.only_waiting))

    def _retry(self, session: Session, incoming: Incoming, message: msg.Retry) -> None:
        if self._repeated(session, incoming, message.once) is not None:
            return
        run = self._in_memory(message.run)
        known = self._master.scheduler.state.runs.get(run)
        if known is not None and known.project and self._master.blobs.size(known.project) < 0:
            raise NothingToDo(f"the project of run {run} is not kept any more", hint="submit it again")
        ticket = self._ticket(session, incoming)
        target = run, message.task or None, _member(message.member)
        self._handle(ev.RetryRequested(ticket, *target, key=_key(message.once)))

    def _drop(self, session: Session, incoming: Incoming, message: msg.Drop) -> None:
        if self._repeated(session, incoming, message.once) is not None:
            return
        run = self._in_memory(message.run)
        ticket = self._ticket(session, incoming)
        target = run, message.task or None, _member(message.member)
        self._handle(ev.DropRequested(ticket, *target, key=_key(message.once)))

    def _in_memory(self, number: int) -> int:
        """The number of a run that is about to be changed: a finished one that left memory comes back first."""
        number = self._master.queries.run_number(number)
        if number not in self._master.scheduler.state.runs:
            record = self._master.store.run(number)
            if record is not None:
                self._handle(ev.RunRecalled(record))
                self._master.history.changed(number)
        return number

    def _kv_set(self, session: Session, incoming: Incoming, message: msg.KvSet) -> None:
        if self._repeated(session, incoming, message.once) is not None:
            return
        value = incoming.attachments[0] if incoming.attachments else None
        limit = self._master.settings.limits.kv_value
        if value is not None:
            self._master.check_space()
            if len(value) > limit:
                raise TooLarge(f"a value of {len(value)} bytes, {limit} are allowed", hint="publish it as an artifact")
        ticket = self._ticket(session, incoming)
        self._handle(ev.KvSetRequested(ticket, message.name, value, message.expect, message.ttl, _key(message.once)))

    def _artifact_publish(self, session: Session, incoming: Incoming, message: msg.ArtifactPublish) -> None:
        if self._repeated(session, incoming, message.once) is not None:
            return
        size = self._master.blobs.size(message.digest)
        if size < 0:
            raise NoSuchBlob(message.digest)
        ticket = self._ticket(session, incoming)
        self._handle(ev.ArtifactPublishRequested(ticket, message.name, message.digest, size, _key(message.once)))

    def _blob_put(self, session: Session, incoming: Incoming, message: msg.BlobPut) -> None:
        self._master.check_space(message.size - message.offset)
        data = incoming.attachments[0] if incoming.attachments else b""
        written = self._master.blobs.put(session, message.digest, message.offset, message.size, data)
        loop = asyncio.get_running_loop()

        digest, request = message.digest, incoming.request

        def answer(written: Future[int]) -> None:
            error = written.exception()
            if error is None:
                session.reply(msg.BlobHeld(digest, written.result()), request)
            elif isinstance(error, TitanError):
                session.refuse_request(error.with_traceback(None), request)
            else:
                session.refuse_request(InternalError(f"the file could not be kept: {error}"), request)
            self._master.pump.wake()

        # The callback must not hold what holds it, nor the piece: there is no collector to find them.
        written.add_done_callback(lambda written: loop.call_soon_threadsafe(answer, written))

    def _prune(self, session: Session, incoming: Incoming, message: msg.Prune) -> None:
        self._master.garden.prune(
            message.keep_runs, message.older_than, lambda runs: session.reply(msg.Pruned(runs), incoming.request)
        )

    def _backup(self, session: Session, incoming: Incoming, message: msg.Backup) -> None:
        def answer(found: tuple[str, int] | TitanError) -> None:
            if isinstance(found, TitanError):
                session.refuse_request(found, incoming.request)
            else:
                session.reply(msg.BackedUp(*found), incoming.request)
            self._master.pump.wake()

        self._master.garden.backup(answer)

    # ------------------------------------------------------------ workers

    def _attach(self, session: Session, incoming: Incoming, message: msg.Attach) -> None:
        if not 0 < message.slots <= 65_536:
            raise BadMessage(f"{message.slots} slots; 1 to 65536 are possible", field="slots")
        for text, what in ((message.worker, "worker"), (message.nonce, "nonce")):
            if not text or len(text) > MAX_NAME or not text.isprintable():
                raise BadMessage(f"'{text[:40]}' is not a {what}", field=what)
        try:
            check_worker_name(message.name)
            for tag in message.capabilities:
                check_capability(tag)
        except ValueError as error:
            raise BadMessage(f"this worker cannot be told from others: {error}") from None
        self._master.attach(session, message)
        ticket = self._ticket(session, incoming)
        nonces = self._master.nonces
        inventory = tuple(
            ev.HeldAttempt(
                item.run,
                item.index,
                item.generation,
                item.fence,
                item.stage,
                item.attempt,
                item.started,
                _is_known(nonces.get(epoch_of(item.fence)), message.nonces.get(str(epoch_of(item.fence)))),
            )
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
                message.copies,
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
        run, index, generation, ending, flags, fence, code, started, duration, _output, sizes = incoming.columns
        if ending and max(ending) > max(Ending):
            raise BadRecords(f"RESULT: {max(ending)} is no way to end")
        if sum(sizes) != len(incoming.tail):
            raise BadRecords(f"RESULT: results of {sum(sizes)} bytes in a tail of {len(incoming.tail)}")
        results, at = [], 0
        for size in sizes:
            results.append(incoming.tail[at : at + size])
            at += size
        references = self._references(flags, results) if any(flags) else {}
        self._handle(
            ev.AttemptsFinished(
                worker, run, index, generation, ending, fence, code, started, duration, results, references
            )
        )
        session.acknowledge = max(session.acknowledge, incoming.sequence)
        self._master.effects.acknowledge(session)

    def _references(self, flags: Sequence[int], results: list[bytes]) -> dict[int, int]:
        """Row -> size of the file, for results that are files; their bytes become the text that stands for them."""
        found = {}
        for row in [row for row, flag in enumerate(flags) if flag & RESULT_IS_FILE]:
            digest = results[row].decode("ascii", "replace")
            if not is_digest(digest):
                raise BadRecords(f"RESULT: {digest[:80]!r} is not the address of a file")
            size = self._master.blobs.size(digest)
            if size < 0:
                log.warning("a result is the file %s, which is not here: was an older state restored?", digest)
            found[row] = max(size, 0)
            results[row] = RESULT_PREFIX.encode() + results[row]
        return found

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
            self._master.logs.append(message.run, message.fence, message.offset, data)
        except OSError as error:
            # A full disk: the output has a gap here. It is no reason to send the worker away.
            log.warning("output of run %d is not kept: %s", message.run, error)
        self._master.followers.output_grew(message.run, message.index)

    def _fetched(self, session: Session, incoming: Incoming, message: msg.Fetched) -> None:
        self._worker_of(session, incoming.op)
        self._master.followers.fetched(session, message, incoming.attachments[0] if incoming.attachments else b"")

    def _goodbye(self, session: Session, incoming: Incoming, message: msg.Goodbye) -> None:
        worker = self._worker_of(session, incoming.op)
        if message.empty:
            self._master.worker_left(session)
            self._handle(ev.WorkerLeft(worker))
        else:
            self._handle(ev.WorkerDraining(worker))


def _our_fault(incoming: Incoming) -> InternalError:
    return InternalError(f"{incoming.op.name} failed inside the master; its log has the details")


def _is_known(ours: str | None, theirs: str | None) -> bool:
    """Assigned by a master of this state."""
    return ours is not None and ours == theirs


def _key(once: msg.Once | None) -> Key:
    return NO_KEY if once is None else Key(once.client, once.counter)


def _member(value: int) -> int | None:
    return None if value < 0 else value
