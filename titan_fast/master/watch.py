"""Who waits for what: watchers of runs and tasks, followers of output.

Watchers are told every change they asked for, at most ten times a second, and the end always. Followers pull: they
keep an offset, and a peer that does not drain is not written to until it does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from titan_fast.errors import InternalError, TooLarge
from titan_fast.master.session import Session
from titan_fast.protocol import messages as msg

if TYPE_CHECKING:
    from titan_fast.master.server import Master

MAX_WATCHES = 10_000
"""Open watches of one connection."""
PROGRESS_INTERVAL = 0.1
"""Seconds between two updates of progress."""


class _Watcher(msgspec.Struct, eq=False):
    session: Session
    request: int
    watch: msg.Watch


class Watchers:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._by_run: dict[int, list[_Watcher]] = {}
        self._dirty: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, session: Session, request: int, watch: msg.Watch) -> None:
        """Answers at once with how it is; more follow unless that is final.

        Raises:
            NoSuchRun, NoSuchTask, TooLarge
        """
        update = self._master.queries.update(watch)
        if not update.final and session.watches >= MAX_WATCHES:
            raise TooLarge(f"{session.watches} watches on one connection are too many", hint="use another one")
        if watch.progress or update.final:
            session.reply(update, request)
        if not update.final:
            session.watches += 1
            self._by_run.setdefault(update.run, []).append(
                _Watcher(session, request, msgspec.structs.replace(watch, run=update.run))
            )

    def run_changed(self, run: int) -> None:
        watchers = self._by_run.get(run)
        if watchers is None:
            return
        remaining = []
        for watcher in watchers:
            if watcher.session.closed:
                continue
            if self._master.queries.is_final(watcher.watch):
                watcher.session.reply(self._master.queries.update(watcher.watch), watcher.request)
                watcher.session.watches -= 1
                continue
            remaining.append(watcher)
        if remaining:
            self._by_run[run] = remaining
            if any(watcher.watch.progress for watcher in remaining):
                self._dirty.add(run)
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(PROGRESS_INTERVAL, self._tell)
        else:
            del self._by_run[run]

    def _tell(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for run in dirty:
            for watcher in self._by_run.get(run, ()):
                if watcher.watch.progress and not watcher.session.choked and not watcher.session.closed:
                    watcher.session.reply(self._master.queries.update(watcher.watch), watcher.request)
        self._master.pump.wake()

    def session_closed(self, session: Session) -> None:
        for run in list(self._by_run):
            kept = [watcher for watcher in self._by_run[run] if watcher.session is not session]
            if kept:
                self._by_run[run] = kept
            else:
                del self._by_run[run]


class _Follower(msgspec.Struct, eq=False):
    session: Session
    request: int
    run: int
    index: int
    fence: int
    offset: int
    follow: bool
    fixed: bool
    """Asked for one attempt by its number; otherwise goes on with the next attempt."""


class Followers:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._by_task: dict[tuple[int, int], list[_Follower]] = {}

    def start(self, session: Session, request: int, asked: msg.Logs) -> None:
        """Send what is kept; with follow go on until the task is final.

        Raises:
            NoSuchRun, NoSuchTask
        """
        queries = self._master.queries
        run, index = queries.one_task(asked.run, asked.task, asked.member)
        fence = queries.fence_of_attempt(run, index, asked.attempt)
        offset = self._master.logs.last_lines(run.id, fence, asked.tail) if asked.tail >= 0 else 0
        if asked.fence:
            fence, offset = asked.fence, asked.offset
        follower = _Follower(session, request, run.id, index, fence, offset, asked.follow, asked.attempt > 0)
        if not self._pull(follower):
            self._by_task.setdefault((run.id, index), []).append(follower)

    def output_grew(self, run: int, index: int) -> None:
        if (run, index) in self._by_task:
            self._pull_all((run, index))

    def run_changed(self, run: int) -> None:
        if self._by_task:
            for key in [key for key in self._by_task if key[0] == run]:
                self._pull_all(key)

    def session_drained(self, session: Session) -> None:
        for key, followers in list(self._by_task.items()):
            if any(follower.session is session for follower in followers):
                self._pull_all(key)
        self._master.pump.wake()

    def session_closed(self, session: Session) -> None:
        for key in list(self._by_task):
            self._by_task[key] = [follower for follower in self._by_task[key] if follower.session is not session]
            if not self._by_task[key]:
                del self._by_task[key]

    def _pull_all(self, key: tuple[int, int]) -> None:
        followers = self._by_task.pop(key)
        remaining = []
        for follower in followers:
            try:
                if not self._pull(follower):
                    remaining.append(follower)
            except OSError as error:
                problem = InternalError(f"the output cannot be read: {error}")
                follower.session.refuse_request(problem, follower.request)
        if remaining:
            self._by_task[key] = remaining

    def _pull(self, follower: _Follower) -> bool:
        """Send what is new as far as the peer drains; True when the follower is done."""
        logs, session = self._master.logs, follower.session
        while not session.closed:
            while not session.choked:
                start, data = logs.read(follower.run, follower.fence, follower.offset)
                if not data:
                    break
                dropped = start - follower.offset
                follower.offset = start + len(data)
                logged = msg.Logged(offset=start, dropped=dropped, fence=follower.fence)
                session.reply(logged, follower.request, (data,))
                session.flush(self._master.pump.durable)
            if session.choked:
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
