"""Who waits for what: watchers of runs and tasks, followers of output, collectors of results.

Watchers are told every change they asked for, at most ten times a second, and the end always. Followers pull: they
keep an offset, and what is not kept here is asked of the worker. Collectors are told what functions gave in the turn in
which it came, out of its facts. A peer that does not drain, or whose words wait for the disk, is told nothing new until
that has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from titan_fast.errors import BadMessage, InternalError, TitanError, TooLarge
from titan_fast.master.logs import READ_PIECE
from titan_fast.master.queries import BYTES_PER_PAGE, Watched
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import send
from titan_fast.scheduler.facts import AttemptsEnded, Fact, TasksSettled
from titan_fast.scheduler.lifecycle import FINAL

if TYPE_CHECKING:
    from titan_fast.master.server import Master

MAX_WATCHES = 10_000
"""Open watches of one connection; and as many outputs that it follows."""
PROGRESS_INTERVAL = 0.1
"""Seconds between two updates of progress."""
FETCHES = 16
"""Parts of outputs that workers are asked for at a time: each is `READ_PIECE` bytes of memory when it comes."""
FULL = 1 / 4
"""So much of `limits.undrained` may wait for the disk before watchers and followers of a connection pause."""
ONLY_FUNCTIONS = "results are told as they come of whole runs of functions alone"


class _Waiter(msgspec.Struct, eq=False):
    session: Session
    request: int
    run: int
    index: int
    """The task, or the first of several."""


W = TypeVar("W", bound=_Waiter)


class _Waiters(Generic[W]):
    """By what they wait for and by whom to tell: what changes, or hangs up, costs what waits for it and no more."""

    def __init__(self) -> None:
        self._by_run: dict[int, dict[int, dict[W, None]]] = {}
        self._by_session: dict[Session, dict[W, None]] = {}

    def add(self, waiter: W) -> None:
        """Raises TooLarge."""
        own = self._by_session.setdefault(waiter.session, {})
        if len(own) >= MAX_WATCHES:
            raise TooLarge(f"{len(own)} watches on one connection are too many", hint="use another one")
        own[waiter] = None
        self._by_run.setdefault(waiter.run, {}).setdefault(waiter.index, {})[waiter] = None

    def remove(self, waiter: W) -> None:
        own, of_run = self._by_session[waiter.session], self._by_run[waiter.run]
        of_task = of_run[waiter.index]
        del own[waiter], of_task[waiter]
        if not own:
            del self._by_session[waiter.session]
        if not of_task:
            del of_run[waiter.index]
        if not of_run:
            del self._by_run[waiter.run]

    def of_run(self, run: int) -> list[W]:
        return [waiter for of_task in self._by_run.get(run, {}).values() for waiter in of_task]

    def of_task(self, run: int, index: int) -> list[W]:
        return list(self._by_run.get(run, {}).get(index, ()))

    def of_session(self, session: Session) -> list[W]:
        return list(self._by_session.get(session, ()))

    def session_closed(self, session: Session) -> None:
        for waiter in self.of_session(session):
            self.remove(waiter)


class _Watcher(_Waiter, eq=False):
    watched: Watched
    progress: bool
    is_behind: bool = False
    """There was no room for its last update."""


class Watchers:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._waiters: _Waiters[_Watcher] = _Waiters()
        self._dirty: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, session: Session, request: int, watch: msg.Watch) -> None:
        """Answers when it is final; with progress also at once with how it is, and whenever that changes.

        Raises:
            NoSuchRun, NoSuchTask, TooLarge
        """
        if watch.results:
            self._master.collectors.start(session, request, watch)
            return
        queries, pump = self._master.queries, self._master.pump
        watched = queries.watched(watch)
        if not queries.is_final(watched):
            self._waiters.add(_Watcher(session, request, watched.run, watched.first, watched, watch.progress))
            if not watch.progress:
                return
        update = queries.update(watched)
        if watch.progress and (not update.final or pump.position > pump.durable):
            # How it looks may be told while the disk is stuck, and says so; that it has ended is a promise.
            queries.reply(session, msgspec.structs.replace(update, final=False), request)
        if update.final:
            queries.tell(session, watched, request)

    def run_changed(self, run: int) -> None:
        has_progress = False
        for watcher in self._waiters.of_run(run):
            if self._master.queries.is_final(watcher.watched):
                self._waiters.remove(watcher)
                self._master.queries.tell(watcher.session, watcher.watched, watcher.request)
            elif watcher.progress:
                has_progress = True
        if has_progress:
            self._dirty.add(run)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(PROGRESS_INTERVAL, self._tell_dirty)

    def _tell_dirty(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for run in dirty:
            self._tell(self._waiters.of_run(run))

    def _tell(self, watchers: Iterable[_Watcher]) -> None:
        for watcher in watchers:
            if watcher.progress:
                watcher.is_behind = not _has_room(watcher.session)
                if not watcher.is_behind:
                    watcher.session.reply(self._master.queries.update(watcher.watched), watcher.request)
        self._master.pump.wake()

    def session_drained(self, session: Session) -> None:
        self._tell(watcher for watcher in self._waiters.of_session(session) if watcher.is_behind)

    def session_closed(self, session: Session) -> None:
        self._waiters.session_closed(session)


class _Follower(_Waiter, eq=False):
    fence: int
    offset: int
    follow: bool
    fixed: bool
    """Asked for one attempt by its number; otherwise goes on with the next attempt."""
    asked: Session | None = None
    """The worker that was asked for what is at ``offset`` and not here."""
    lost: int = 0
    """Nobody has anything between ``offset`` and here."""


class Followers:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._waiters: _Waiters[_Follower] = _Waiters()
        self._asking: dict[_Follower, None] = {}
        """Those for whom a worker was asked; others that want to are `_queued`."""
        self._queued: dict[_Follower, None] = {}

    def start(self, session: Session, request: int, asked: msg.Logs) -> None:
        """Send what is kept; with follow go on until the task is final.

        Raises:
            NoSuchRun, NoSuchTask, TooLarge
        """
        queries = self._master.queries
        run, index = queries.one_task(asked.run, asked.task, asked.member)
        fence = queries.fence_of_attempt(run, index, asked.attempt)
        offset = self._master.logs.last_lines(run.id, fence, asked.tail) if asked.tail >= 0 else 0
        if asked.fence:
            fence, offset = asked.fence, asked.offset
        follower = _Follower(session, request, run.id, index, fence, offset, asked.follow, asked.attempt > 0)
        if not self._pull(follower):
            self._waiters.add(follower)

    def output_grew(self, run: int, index: int) -> None:
        self._pull_all(self._waiters.of_task(run, index))

    def run_changed(self, run: int) -> None:
        self._pull_all(self._waiters.of_run(run))

    def session_drained(self, session: Session) -> None:
        self._pull_all(self._waiters.of_session(session))
        self._master.pump.wake()

    def session_closed(self, session: Session) -> None:
        for follower in self._waiters.of_session(session):
            self._asking.pop(follower, None)
            self._queued.pop(follower, None)
        self._waiters.session_closed(session)
        unanswered = [follower for follower in self._asking if follower.asked is session]
        for follower in unanswered:
            follower.asked = None
            del self._asking[follower]
        self._pull_all(unanswered)
        self._ask_next()

    def fetched(self, session: Session, message: msg.Fetched, data: bytes) -> None:
        """What a worker has of an output that is not here. It goes on to whoever asked for it, and is not kept."""
        pump = self._master.pump
        heard = []
        for follower in self._waiters.of_task(message.run, message.index):
            if follower.asked is not session or (follower.fence, follower.offset) != (message.fence, message.asked):
                continue
            heard.append(follower)
            follower.asked = None
            del self._asking[follower]
            end, _ = self._master.logs.read(follower.run, follower.fence, follower.offset)
            part = data[: max(0, end - message.offset)] if message.offset >= follower.offset else b""
            if not part:
                follower.lost = end
                continue
            logged = msg.Logged(offset=message.offset, dropped=message.offset - follower.offset, fence=follower.fence)
            follower.offset = message.offset + len(part)
            follower.session.reply(logged, follower.request, (part,))
            if pump.position <= pump.durable:
                follower.session.flush(pump.durable)
        self._pull_all(heard)
        self._ask_next()

    def _ask(self, follower: _Follower, end: int) -> bool:
        """Ask its worker for what is missing before ``end``, now or in turn; False when there is none to ask."""
        if follower.lost >= end:
            return False
        for session in self._master.queries.sessions_with(follower.run, follower.index, follower.fence):
            if len(self._asking) >= FETCHES:
                self._queued[follower] = None
                return True
            size = min(READ_PIECE, end - follower.offset)
            session.send_work(0, send(msg.Fetch(follower.run, follower.index, follower.fence, follower.offset, size)))
            follower.asked = session
            self._asking[follower] = None
            self._master.pump.wake()
            return True
        return False

    def _ask_next(self) -> None:
        while self._queued and len(self._asking) < FETCHES:
            follower = next(iter(self._queued))
            del self._queued[follower]
            self._pull_all([follower])

    def _pull_all(self, followers: list[_Follower]) -> None:
        for follower in followers:
            try:
                is_done = self._pull(follower)
            except TitanError as error:
                follower.session.refuse_request(error, follower.request)
                is_done = True
            except OSError as error:
                problem = InternalError(f"the output cannot be read: {error}")
                follower.session.refuse_request(problem, follower.request)
                is_done = True
            if is_done:
                self._queued.pop(follower, None)
                self._waiters.remove(follower)

    def _pull(self, follower: _Follower) -> bool:
        """Send what is new as far as there is room; True when the follower is done."""
        logs, session, pump = self._master.logs, follower.session, self._master.pump
        while not session.closed:
            if follower.asked is not None:
                return False
            while _has_room(session):
                start, data = logs.read(follower.run, follower.fence, follower.offset)
                if not data:
                    break
                if start > follower.offset and self._ask(follower, start):
                    return False
                dropped = start - follower.offset
                follower.offset = start + len(data)
                logged = msg.Logged(offset=start, dropped=dropped, fence=follower.fence)
                session.reply(logged, follower.request, (data,))
                if pump.position <= pump.durable:
                    session.flush(pump.durable)
            if not _has_room(session):
                return False
            run = self._master.queries.run(follower.run)
            newest = self._master.queries.fence_of_attempt(run, follower.index, 0)
            # After a restart the newest one known may be an older one, until its worker is back.
            if not follower.fixed and newest > follower.fence and follower.follow:
                follower.fence, follower.offset = newest, 0
                continue
            if follower.follow and not self._master.queries.is_settled(run, follower.index):
                return False
            state, attempt = self._master.queries.state_of_attempt(run, follower.index, follower.fence)
            session.reply(
                msg.Logged(offset=follower.offset, final=True, state=state, attempt=attempt, fence=follower.fence),
                follower.request,
            )
            return True
        return True


class _Collector(_Waiter, eq=False):
    watched: Watched
    untold: deque[tuple[int, int]]
    """Stretches of tasks that are final, and that there was no room to tell of."""


class Collectors:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._waiters: _Waiters[_Collector] = _Waiters()

    def start(self, session: Session, request: int, watch: msg.Watch) -> None:
        """Tell what there is of a run's results, the others as they come, and the end behind them.

        Raises:
            NoSuchRun, TooLarge, BadMessage
        """
        run = self._master.queries.run(watch.run)
        if watch.task or len(run.functions) < len(run.names):
            raise BadMessage(ONLY_FUNCTIONS, field="results")
        count = len(run.state)
        untold = deque((first, length) for state, first, length in run.stretches(0, count) if state in FINAL)
        collector = _Collector(session, request, run.id, 0, Watched(run.id, 0, count, True), untold)
        self._waiters.add(collector)
        self._tell(collector)

    def happened(self, facts: Iterable[Fact]) -> None:
        """Before `run_changed` of the same turn."""
        for fact in facts:
            if isinstance(fact, AttemptsEnded):
                for collector in self._waiters.of_run(fact.run):
                    self._ended(collector, fact)
            elif isinstance(fact, TasksSettled):
                for collector in self._waiters.of_run(fact.run):
                    collector.untold.append((fact.first, fact.count))

    def _ended(self, collector: _Collector, fact: AttemptsEnded) -> None:
        queries, session = self._master.queries, collector.session
        told = queries.given_by(queries.run(fact.run), fact)
        if told is None:
            return
        given, parts = told
        if collector.untold or not _has_room(session) or sum(map(len, parts)) > BYTES_PER_PAGE:
            collector.untold.extend(given.stretches)
        else:
            session.reply(given, collector.request, parts)

    def run_changed(self, run: int) -> None:
        for collector in self._waiters.of_run(run):
            self._tell(collector)

    def session_drained(self, session: Session) -> None:
        for collector in self._waiters.of_session(session):
            self._tell(collector)
        self._master.pump.wake()

    def session_closed(self, session: Session) -> None:
        self._waiters.session_closed(session)

    def _tell(self, collector: _Collector) -> None:
        """What was not told, as far as there is room; behind everything the end."""
        try:
            is_over = self._tell_untold(collector)
        except TitanError as error:
            collector.session.refuse_request(error, collector.request)
            is_over = True
        if is_over:
            self._waiters.remove(collector)

    def _tell_untold(self, collector: _Collector) -> bool:
        queries, session, untold = self._master.queries, collector.session, collector.untold
        while untold and not session.closed:
            if not _has_room(session):
                return False
            first, count = untold.popleft()
            told, given, parts = queries.given_in(queries.run(collector.run), first, count)
            if told < count:
                untold.appendleft((first + told, count - told))
            session.reply(given, collector.request, parts)
        if not session.closed and not queries.is_final(collector.watched):
            return False
        if not session.closed:
            session.reply(queries.update(collector.watched), collector.request)
        return True


def _has_room(session: Session) -> bool:
    """It reads what it is sent, and not too much that was said to it waits for the disk."""
    room = FULL * session.master.settings.limits.undrained
    return not (session.closed or session.choked or session.waiting_bytes > room)
