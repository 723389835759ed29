"""What is asked and changes nothing: listings, status, explanations. Live state from the core's views, what ended
attempts did from the store's history.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter, sub
from typing import TYPE_CHECKING

import msgspec
import psutil

from titan_fast import _accel
from titan_fast._layout import RESULT_PREFIX
from titan_fast._version import __version__
from titan_fast.errors import BadMessage, NoSuchRun, NoSuchTask
from titan_fast.ids import TaskId
from titan_fast.master.history import History
from titan_fast.master.session import Session
from titan_fast.master.store.base import AttemptRow, RunHead
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming, send
from titan_fast.scheduler.explain import explain_run, explain_task, lot_of
from titan_fast.scheduler.facts import AttemptsEnded
from titan_fast.scheduler.lifecycle import FINAL, PUBLIC, PUBLIC_STATES, TaskState, public_counts
from titan_fast.scheduler.state import Run, State
from titan_fast.scheduler.views import TaskView, view_run, view_tasks, view_workers

if TYPE_CHECKING:
    from titan_fast.master.server import Master

RUNS_PER_PAGE = 10_000
TASKS_PER_PAGE = 1_000
"""A page of them is a few milliseconds of the loop that everybody shares."""
STRETCHES_PER_PAGE = 50
MEMBERS_PER_PAGE = 1_000_000
"""A page of specs ends behind the one with which it has counted so many."""
RESULTS_PER_PAGE = 10_000
RESULTS_PER_LOOK = 64
BYTES_PER_PAGE = 4 << 20
"""A page may be one look longer than that: what is in the next results is not known before they are read."""
FAILED_SHOWN = 10
RUNNING_SHOWN = 8
MAX_GIFT = 64 << 10
"""Bytes of a function's result that are told with the end of its run."""
PATIENCE = 1.0
"""Seconds an answer waits for the disk until it leaves without its blessing."""

_IN_STATE = {
    public: re.compile(b"[%s]+" % re.escape(bytes(state for state, name in PUBLIC.items() if name == public)))
    for public in PUBLIC_STATES
}
"""What finds the next tasks in a state, as everybody calls it, among ten million in the blink of an eye."""

Answer = (
    msg.Listed
    | msg.Shown
    | msg.Given
    | msg.Explained
    | msg.Stated
    | msg.Update
    | msg.KvValue
    | msg.KvListed
    | msg.ArtifactListed
)
"""What can say that it is not durable."""


UNSEEN = ("worker_lost", "absent", "unverified", "replaced")
"""Reasons of attempts that ended where nobody saw it: how long they took is not known."""
_RAISED = re.compile(r"[A-Za-z_][\w.]*(: |\(\))").match
"""How the reason of a function begins that raised an exception."""


class Watched(msgspec.Struct, frozen=True):
    """The tasks that a watch is about, found once: a run's columns never change."""

    run: int
    first: int
    count: int
    is_run: bool
    """The run as a whole; otherwise the watch ends with these tasks."""


class _Held(msgspec.Struct, frozen=True):
    """An answer that waits for the disk in its session, and until when (the loop's clock)."""

    deadline: float
    position: int
    session: Session
    frame: bytes
    answer: Answer
    request: int
    attachments: tuple[bytes, ...]


class Queries:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._process = psutil.Process(os.getpid())
        self._held: deque[_Held] = deque()
        """Oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _history(self) -> History:
        return self._master.history

    @property
    def _state(self) -> State:
        return self._master.scheduler.state

    def answer(self, session: Session, incoming: Incoming) -> None:
        """Raises TitanError for what is not there."""
        message, request = incoming.message, incoming.request
        match message:
            case msg.KvGet() | msg.KvList() | msg.ArtifactList():
                self._master.data.answer(session, request, message)
            case msg.Watch():
                self._master.watchers.watch(session, request, message)
            case msg.Logs():
                self._master.followers.start(session, request, message)
            case msg.List():
                self.reply(session, self._list(message), request)
            case msg.Show():
                self.reply(session, self._show(message), request)
            case msg.Explain():
                self.reply(session, self._explain(message), request)
            case msg.Results():
                self._give(session, message, request)
            case msg.Stats():
                self.reply(session, self._stats(), request)
            case msg.BlobAsk():
                session.reply(msg.BlobHeld(message.digest, self._master.blobs.size(message.digest)), request)
            case msg.BlobGet():
                data, size = self._master.blobs.get(message.digest, message.offset)
                session.reply(msg.BlobPiece(message.digest, message.offset, size), request, (data,))
            case _:
                raise BadMessage(f"{incoming.op.name} is not expected here")

    def reply(self, session: Session, answer: Answer, request: int, attachments: tuple[bytes, ...] = ()) -> None:
        """Leaves when what it shows is durable; when that takes longer than ``PATIENCE`` without, and it says so."""
        pump = self._master.pump
        if pump.committer.stuck_for() > PATIENCE:
            _reply_unblessed(session, answer, request, attachments)
            return
        frame = send(answer, attachments, request, is_reply=True)
        session.send_when_durable(frame)
        if pump.position > pump.durable:
            self._forget_durable()
            loop = asyncio.get_running_loop()
            held = _Held(loop.time() + PATIENCE, pump.position, session, frame, answer, request, attachments)
            self._held.append(held)
            if self._timer is None:
                self._timer = loop.call_at(held.deadline, self._lose_patience)

    def _forget_durable(self) -> None:
        while self._held and self._held[0].position <= self._master.pump.durable:
            self._held.popleft()

    def _lose_patience(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        self._forget_durable()
        while self._held and self._held[0].deadline <= loop.time():
            late = self._held.popleft()
            if late.session.withdraw(late.position, late.frame):
                _reply_unblessed(late.session, late.answer, late.request, late.attachments)
        if self._held:
            self._timer = loop.call_at(self._held[0].deadline, self._lose_patience)
        self._master.pump.wake()

    # ------------------------------------------------------------ finding

    def run_number(self, number: int) -> int:
        """0 means the newest run. Raises NoSuchRun when there is none."""
        if not number and self._state.next_run == 1:
            raise NoSuchRun("last")
        return number or self._state.next_run - 1

    def run(self, number: int) -> Run:
        number = self.run_number(number)
        run = self._state.runs.get(number) or self._history.run(number)
        if run is None:
            raise NoSuchRun(number)
        return run

    def stretch(self, run: Run, task: str, member: int) -> tuple[int, int]:
        """(first, count) of what a user named in a run."""
        if not task:
            return 0, len(run.state)
        spec = run.find(task)
        if spec is None:
            raise NoSuchTask(TaskId(run.id, task))
        if member < 0:
            return run.first[spec], run.count[spec]
        if spec not in run.arrays or member >= run.count[spec]:
            raise NoSuchTask(TaskId(run.id, task, member))
        return run.first[spec] + member, 1

    def one_task(self, number: int, task: str, member: int) -> tuple[Run, int]:
        run = self.run(number)
        first, count = self.stretch(run, task, member)
        if count != 1:
            names = ", ".join(run.label(first + i) for i in range(min(count, 5)))
            raise NoSuchTask(
                TaskId(run.id, task or None),
                hint=f"that is {count} tasks; name one of them, for example {run.id}/{names.split(', ')[0]}",
            )
        return run, first

    # ------------------------------------------------------------ attempts

    def attempts(self, run: Run, index: int) -> list[AttemptRow]:
        return self._history.attempts(run.id, index)

    def fence_of_attempt(self, run: Run, index: int, attempt: int) -> int:
        """The fence of an attempt by its number; 0 is the newest. Fence 0 when there is none yet."""
        lot = lot_of(run, index)
        if lot is not None and attempt in (0, lot.attempt):
            return int(lot.fence + index - lot.first)
        rows = [row for row in self.attempts(run, index) if row.attempt]
        if attempt == 0:
            return rows[-1].fence if rows else 0
        for row in rows:
            if row.attempt == attempt:
                return row.fence
        raise NoSuchTask(
            f"{run.id}/{run.label(index)} attempt {attempt}", hint=f"there are {len(rows) + (lot is not None)} attempts"
        )

    def is_attempt_of(self, worker_id: str, run: int, index: int, fence: int) -> bool:
        """This worker has, or had, the attempt with this fence of this task."""
        worker = self._state.workers.get(worker_id)
        if worker is None:
            return False
        lot = worker.find_lot(fence)
        if lot is not None:
            return lot.run == run and lot.first + fence - lot.fence == index
        return any(row.fence == fence and row.worker == worker.name for row in self._history.attempts(run, index))

    def sessions_with(self, run: int, index: int, fence: int) -> Iterator[Session]:
        """Of the worker that has, or had, this attempt, if it is here and may be asked for outputs."""
        names = {row.worker for row in self._history.attempts(run, index) if row.fence == fence}
        for worker in self._state.workers.values():
            session = self._master.worker_sessions.get(worker.id)
            if session is None or session.closed or not session.fetches:
                continue
            if worker.name in names or worker.find_lot(fence) is not None:
                yield session

    def is_settled(self, run: Run, index: int) -> bool:
        """Nothing will be added to the output of its last attempt, and no other attempt follows."""
        return TaskState(run.state[index]) in FINAL

    def state_of_attempt(self, run: Run, index: int, fence: int) -> tuple[str, int]:
        for row in self.attempts(run, index):
            if row.fence == fence:
                return row.state, row.attempt
        lot = lot_of(run, index)
        return PUBLIC[TaskState(run.state[index])], lot.attempt if lot is not None else 0

    # ------------------------------------------------------------ answers

    def watched(self, watch: msg.Watch) -> Watched:
        """Raises NoSuchRun, NoSuchTask."""
        run = self.run(watch.run)
        first, count = self.stretch(run, watch.task, watch.member)
        return Watched(run.id, first, count, not watch.task)

    def is_final(self, watched: Watched) -> bool:
        run = self.run(watched.run)
        if run.is_final or watched.is_run:
            return run.is_final
        # Asked for every watch in every turn: mostly the first task says it all.
        return run.state[watched.first] in FINAL and _states(run, watched) <= FINAL

    def tell(self, session: Session, watched: Watched, request: int) -> None:
        """How it is, as a promise; a run that has ended tells what its last function returned along."""
        update, gift = self.update(watched), b""
        if update.final and watched.is_run:
            run = self.run(watched.run)
            if run.last in run.functions:
                gift = self.result(run, run.first[run.last])
        if gift and len(gift) <= MAX_GIFT and not gift.startswith(RESULT_PREFIX.encode()):
            session.reply(msgspec.structs.replace(update, gave=run.names[run.last]), request, (gift,))
        else:
            session.reply(update, request)

    def update(self, watched: Watched) -> msg.Update:
        run = self.run(watched.run)
        first, count = watched.first, watched.count
        view = view_run(run)
        final = self.is_final(watched)
        end = run.finished_at or self._state.wall
        task_state, exit_code = "", None
        if not watched.is_run or len(run.state) == 1:
            states = _states(run, watched)
            task_state = PUBLIC[max(states, key=lambda state: (state not in FINAL, state != 7, state))]
            if count == 1 and run.state[first] == TaskState.COMPLETED:
                exit_code = 0
            elif count == 1 and (row := self._history.newest(run.id, first)) is not None:
                exit_code = _exit_code(row)
        return msg.Update(
            run.id,
            run.name,
            view.state,
            view.counts,
            reason=view.reason,
            final=final,
            task_state=task_state,
            exit_code=exit_code,
            elapsed=max(0.0, end - run.submitted_at),
            result=self._result(run) if final else "",
            running=() if final else self._running(run),
            failed=self._failed(run, first, count) if final else (),
        )

    def _result(self, run: Run) -> str:
        """What the only sink of the graph wrote to TITAN_RESULT: the result of the run, where it has one. What a
        function returned is no text, and asked for with RESULTS."""
        if run.last < 0 or run.last in run.functions:
            return ""
        return self.result(run, run.first[run.last]).decode("utf-8", "replace").strip()

    def result(self, run: Run, index: int) -> bytes:
        """What a task wrote to TITAN_RESULT; empty when it has not succeeded or wrote nothing."""
        if run.state[index] != TaskState.COMPLETED:
            return b""
        return run.results.get(index) or self._history.result(run.id, index)

    def results(self, run: Run, first: int, count: int) -> list[bytes]:
        """What consecutive tasks gave, one for each; empty for those that did not succeed."""
        known = run.results
        found = [known.get(index, b"") for index in range(first, first + count)]
        # Memory has those that others wait for, since this master's start; the rest is the history's.
        lacking = [place for place, result in enumerate(found) if not result]
        if lacking:
            older = self._history.results(run.id, first, count)
            for place in lacking:
                if run.state[first + place] == TaskState.COMPLETED:
                    found[place] = older.get(first + place, b"")
        return found

    def _give(self, session: Session, asked: msg.Results, request: int) -> None:
        """A page of results, as many as fit into a frame; of what failed, what it left behind."""
        run = self.run(asked.run)
        first, count = self.stretch(run, asked.task, asked.member)
        end = first + count
        at, found, missing = self._page(run, max(first, int(asked.cursor or 0)), end)
        pickled = run.spec_of(first) in run.functions
        given = msg.Given(pickled=pickled, missing=tuple(missing), next=str(at) if at < end else "")
        self.reply(session, given, request, tuple(found))

    def given_in(self, run: Run, first: int, count: int) -> tuple[int, msg.Given, tuple[bytes, ...]]:
        """(how many, what to tell) of consecutive functions that are final: as many as fit into a frame."""
        at, found, missing = self._page(run, first, first + count)
        told = at - first
        given = msg.Given(pickled=True, missing=tuple(missing), run=run.id, stretches=((first, told),))
        return told, given, tuple(found)

    def given_by(self, run: Run, fact: AttemptsEnded) -> tuple[msg.Given, tuple[bytes, ...]] | None:
        """What to tell of attempts of functions that have just ended; None: no task of theirs is over."""
        index, results = fact.index, fact.result
        missing: list[msg.NoResult] = []
        if fact.state.count("COMPLETED") < len(index):
            rows = [row for row, state in enumerate(fact.state) if state != "PENDING"]
            index, results = [index[row] for row in rows], [results[row] for row in rows]
            for place, row in enumerate(rows):
                if (state := fact.state[row]) != "COMPLETED":
                    if state != "FAILED":
                        results[place] = b""
                    name, reason = run.label(index[place]), run.reason_of(index[place])
                    missing.append(msg.NoResult(place, name, state, reason))
        if not index:
            return None
        stretches = tuple(_stretches(index))
        return msg.Given(pickled=True, missing=tuple(missing), run=run.id, stretches=stretches), tuple(results)

    def _page(self, run: Run, at: int, end: int) -> tuple[int, list[bytes], list[msg.NoResult]]:
        """(where the next page begins, results, those that have none)."""
        found: list[bytes] = []
        missing: list[msg.NoResult] = []
        size, step = 0, RESULTS_PER_LOOK
        while at < end and len(found) < RESULTS_PER_PAGE and size < BYTES_PER_PAGE:
            step = min(step, end - at)
            looked = self._left(run, at, step, len(found), missing)
            found += looked
            at += step
            size += sum(map(len, looked))
            if size < BYTES_PER_PAGE // 16:
                step *= 2
        return at, found, missing

    def _left(self, run: Run, first: int, count: int, place: int, missing: list[msg.NoResult]) -> list[bytes]:
        """What consecutive tasks gave or, having failed, left; those that gave nothing are added to ``missing``."""
        found = self.results(run, first, count)
        for state, start, length in run.stretches(first, count):
            if state is TaskState.COMPLETED:
                continue
            left = self._history.left_behind(run.id, start, length) if state is TaskState.FAILED else {}
            for index in range(start, start + length):
                found[index - first] = left.get(index, b"")
                of = place + index - first
                missing.append(msg.NoResult(of, run.label(index), PUBLIC[state], run.reason_of(index)))
        return found

    def _running(self, run: Run) -> tuple[str, ...]:
        names = []
        for lot in run.lots.values():
            for member in lot.started:
                names.append(run.label(lot.first + member))
                if len(names) == RUNNING_SHOWN:
                    return tuple(names)
        return tuple(names)

    def _failed(self, run: Run, first: int, count: int) -> tuple[msg.FailedTask, ...]:
        failed = []
        for state, start, length in run.stretches(first, count):
            if state not in (TaskState.FAILED, TaskState.DEAD):
                continue
            for index in range(start, start + length):
                row = self._history.newest(run.id, index)
                tail = self._master.logs.tail(run.id, row.fence) if row is not None else ""
                failed.append(msg.FailedTask(run.label(index), PUBLIC[state], run.reason_of(index), tail))
                if len(failed) == FAILED_SHOWN:
                    return tuple(failed)
        return tuple(failed)

    def _list(self, asked: msg.List) -> msg.Listed:
        limit = min(asked.limit, RUNS_PER_PAGE if asked.what == "runs" else TASKS_PER_PAGE)
        if asked.what == "workers":
            return msg.Listed(workers=tuple(self._workers()))
        if asked.what == "runs":
            before = int(asked.cursor) if asked.cursor else 1 << 63
            rows, more = self._runs(before, limit, asked.state)
            return msg.Listed(runs=rows, next=more)
        if asked.what == "dead":
            dead, more = self._dead(int(asked.cursor) if asked.cursor else 1 << 63, limit)
            return msg.Listed(tasks=dead, next=more)
        if asked.what == "tasks":
            if asked.state and asked.state not in _IN_STATE:
                raise BadMessage(f"no task is ever '{asked.state}'", field="state")
            run, cursor = self.run(asked.run), asked.cursor
            if asked.task and not cursor:
                cursor = str(sum(self.stretch(run, asked.task, asked.member)))
            tasks, more = self._tasks(run, 0, len(run.state), cursor, limit, asked.state)
            return msg.Listed(tasks=tasks, next=more)
        if asked.what == "specs":
            specs, more = self._specs(self.run(asked.run), int(asked.cursor or 0), limit)
            return msg.Listed(specs=specs, next=more)
        raise BadMessage(f"there is no listing of '{asked.what}'", field="what")

    def _runs(self, before: int, limit: int, state: str) -> tuple[tuple[msg.RunRow, ...], str]:
        """A page of runs, newest first: those in memory as they are now, the others as they ended."""
        live = self._state.runs
        numbers = [number for number, run in live.items() if number < before and (not state or run.status == state)]
        found: list[RunHead] = []
        at = before
        while True:
            # The store has records of live runs too: what is read beyond them is a page or two, and no more.
            heads = self._history.runs(at, limit + 1, state)
            found += [head for head in heads if head.id not in live]
            if len(heads) <= limit:
                break
            at = heads[-1].id
            if len(found) + sum(number >= at for number in numbers) > limit:
                break
        heads_by_id = {head.id: head for head in found}
        newest = heapq.nlargest(limit + 1, [*numbers, *heads_by_id])
        rows = tuple(
            _head_row(heads_by_id[number]) if number in heads_by_id else _run_row(live[number])
            for number in newest[:limit]
        )
        return rows, str(newest[limit - 1]) if len(newest) > limit else ""

    def _dead(self, before: int, limit: int) -> tuple[tuple[msg.TaskRow, ...], str]:
        """The DEAD tasks nobody dropped, of whole runs, newest first, until the page is full."""
        live = self._state.runs
        numbers = {number for number, run in live.items() if number < before and run.counts[TaskState.DEAD]}
        numbers.update(head.id for head in self._history.runs(before, limit + 1, dead=True))
        rows: list[msg.TaskRow] = []
        for number in sorted(numbers, reverse=True):
            if len(rows) >= limit:
                return tuple(rows), str(number + 1)
            run = self.run(number)
            for value, first, count in run.stretches(0, len(run.state)):
                if value is TaskState.DEAD:
                    latest = self._history.latest(run.id, first, count)
                    rows.extend(
                        self._task_row(run, view, latest.get(view.index))
                        for view in view_tasks(self._state, run, first, count)
                        if view.index not in run.dropped
                    )
        return tuple(rows), ""

    def _show(self, asked: msg.Show) -> msg.Shown:
        run = self.run(asked.run)
        first, count = self.stretch(run, asked.task, asked.member)
        rows, more = self._tasks(run, first, count, asked.cursor, min(asked.limit, TASKS_PER_PAGE))
        return msg.Shown(_run_row(run), rows, more)

    def _tasks(
        self, run: Run, first: int, count: int, cursor: str, limit: int, state: str = ""
    ) -> tuple[tuple[msg.TaskRow, ...], str]:
        """A page of tasks; one of tasks in a state also ends after so many stretches: each is looked up by itself."""
        at = max(first, int(cursor)) if cursor.isdigit() else first
        end = first + count
        rows: list[msg.TaskRow] = []
        looks = 0
        while at < end and len(rows) < limit and looks < STRETCHES_PER_PAGE:
            stop = end
            if state:
                found = _IN_STATE[state].search(run.state, at, end)
                at, stop = found.span() if found is not None else (end, end)
            step = min(stop - at, limit - len(rows))
            latest = self._history.latest(run.id, at, step)
            for view in view_tasks(self._state, run, at, step):
                rows.append(self._task_row(run, view, latest.get(view.index)))
            at += step
            looks += 1
        return tuple(rows), str(at) if at < end else ""

    def _specs(self, run: Run, at: int, limit: int) -> tuple[tuple[msg.SpecRow, ...], str]:
        """A page of what the graph describes; after a very large array it ends, for the loop that everybody shares."""
        rows: list[msg.SpecRow] = []
        # The states of the run, the one that most tasks are in last: how many are in that one needs no count.
        states = [state for state, n in sorted(enumerate(run.counts), key=itemgetter(1)) if n]
        looked = 0
        while at < len(run.names) and len(rows) < limit and looked < MEMBERS_PER_PAGE:
            first, count = run.first[at], run.count[at]
            column, counts, left = run.state[first : first + count], dict[str, int](), count
            for state in states:
                found = left if state == states[-1] else column.count(state)
                if found:
                    public = PUBLIC[TaskState(state)]
                    counts[public] = counts.get(public, 0) + found
                    left -= found
                if not left:
                    break
            needs = tuple(run.names[parent] for parent in run.parents_of(at))
            rows.append(msg.SpecRow(run.names[at], count if at in run.arrays else -1, counts, needs))
            looked += count
            at += 1
        return tuple(rows), str(at) if at < len(run.names) else ""

    def _task_row(self, run: Run, view: TaskView, row: AttemptRow | None) -> msg.TaskRow:
        task_id = str(TaskId(run.id, view.name))
        spec = run.spec_of(view.index)
        needs = tuple(run.names[parent] for parent in run.parents_of(spec))
        if view.worker or row is None or row.generation != view.generation:
            return msg.TaskRow(
                task_id,
                view.name,
                view.state,
                view.reason,
                view.generation,
                view.attempt,
                view.worker,
                None,
                view.started / 1e6,
                0.0,
                None,
                needs,
            )
        final = view.state not in ("PENDING", "RUNNING")
        is_measured = bool(row.started) and not (row.duration == 0 and row.reason in UNSEEN)
        return msg.TaskRow(
            task_id,
            view.name,
            view.state,
            view.reason,
            view.generation,
            view.attempt,
            row.worker,
            _exit_code(row),
            row.started / 1e6,
            (row.started + row.duration) / 1e6 if is_measured and final else 0.0,
            row.duration / 1e6 if is_measured else None,
            needs,
        )

    def _workers(self) -> list[msg.WorkerRow]:
        now = time.time()
        rows = []
        for view in view_workers(self._state):
            silence = self._master.liveness.silence(view.id)
            rows.append(
                msg.WorkerRow(
                    view.id,
                    view.name,
                    view.state,
                    view.capabilities,
                    view.slots,
                    view.running,
                    view.queued,
                    "permanent" if view.permanent else "ephemeral",
                    now - silence if silence is not None else 0.0,
                )
            )
        return rows

    def _explain(self, asked: msg.Explain) -> msg.Explained:
        run = self.run(asked.run)
        if asked.task:
            run, index = self.one_task(asked.run, asked.task, asked.member)
            found = explain_task(self._state, run, index)
            name = str(TaskId(run.id, run.label(index)))
        else:
            found = explain_run(self._state, run)
            name = str(run.id)
        return msg.Explained(name, found.state, found.reason, found.detail, found.fix)

    def _stats(self) -> msg.Stated:
        master, pump = self._master, self._master.pump
        slowest, pump.slowest_turn = pump.slowest_turn, 0.0
        return msg.Stated(
            _accel.accel,
            master.loop_name,
            __version__,
            master.epoch,
            master.cluster,
            master.started_at,
            sum(1 for worker in self._state.workers.values() if worker.state not in ("LOST", "LEFT")),
            len(self._state.runs),
            public_counts(self._state.totals),
            pump.commits,
            pump.position,
            pump.position / pump.commits if pump.commits else 0.0,
            master.store.durability,
            master.connections,
            slowest,
            self._process.memory_info().rss,
            master.space.free,
            master.refusing(),
            ended=self._state.ended,
        )


def _reply_unblessed(session: Session, answer: Answer, request: int, attachments: tuple[bytes, ...]) -> None:
    session.send(send(msgspec.structs.replace(answer, durable=False), attachments, request, is_reply=True))


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours that follow one another, as (first, count)."""
    at = 0
    for _, group in itertools.groupby(map(sub, numbers, itertools.count())):
        count = sum(1 for _ in group)
        yield numbers[at], count
        at += count


def _states(run: Run, watched: Watched) -> set[TaskState]:
    """The states that some of the tasks are in."""
    first, end = watched.first, watched.first + watched.count
    if watched.count == 1:
        return {TaskState(run.state[first])}
    return {state for state in TaskState if run.state.find(state, first, end) >= 0}


def _run_row(run: Run) -> msg.RunRow:
    view = view_run(run)
    return msg.RunRow(
        view.id,
        view.name,
        view.state,
        view.reason,
        view.submitted_at,
        view.started_at,
        view.finished_at,
        view.counts,
    )


def _head_row(head: RunHead) -> msg.RunRow:
    return msg.RunRow(
        head.id,
        head.name,
        head.state,
        head.reason,
        head.submitted_at,
        head.started_at,
        head.finished_at,
        head.counts,
    )


def _exit_code(row: AttemptRow) -> int | None:
    """As a shell would give it: 128 + n for a signal; None where there is none (a timeout, a lost worker)."""
    if row.reason.startswith("signal:"):
        return 128 + row.code
    if row.reason.startswith("not_started"):
        return None
    if row.reason.startswith("exit:") or (row.code and _RAISED(row.reason)):
        return row.code
    return None
