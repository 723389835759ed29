"""Who waits for what: watchers of runs and tasks, followers of output.

Watchers are told every change they asked for, at most ten times a second, and the end always. Followers pull: they
keep an offset. A peer that does not drain, or whose words wait for the disk, is told nothing new until that has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from titan_fast.errors import InternalError, TitanError, TooLarge
from titan_fast.master.queries import Watched
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg

if TYPE_CHECKING:
    from titan_fast.master.server import Master

MAX_WATCHES = 10_000
"""Open watches of one connection; and as many outputs that it follows."""
PROGRESS_INTERVAL = 0.1
"""Seconds between two updates of progress."""
FULL = 1 / 4
"""So much of `limits.undrained` may wait for the disk before watchers and followers of a connection pause."""


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


class Followers:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._waiters: _Waiters[_Follower] = _Waiters()

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
        self._waiters.session_closed(session)

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
                self._waiters.remove(follower)

    def _pull(self, follower: _Follower) -> bool:
        """Send what is new as far as there is room; True when the follower is done."""
        logs, session, pump = self._master.logs, follower.session, self._master.pump
        while not session.closed:
            while _has_room(session):
                start, data = logs.read(follower.run, follower.fence, follower.offset)
                if not data:
                    break
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


def _has_room(session: Session) -> bool:
    """It reads what it is sent, and not too much that was said to it waits for the disk."""
    room = FULL * session.master.settings.limits.undrained
    return not (session.closed or session.choked or session.waiting_bytes > room)
