"""The turn: everything that arrived, one decision for the whole batch, everything that leaves. The only clock.

Output commit: every frame to the outside is stamped with the last fact that existed when it was made and leaves when
that fact is durable; only specs, assignments, echoes and refusals leave at once (`session.send`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from titan_fast.errors import DiskFull
from titan_fast.master.committer import Committer
from titan_fast.master.session import Session
from titan_fast.protocol.connection import Incoming
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.events import CommitsFlowing, CommitsStuck, Event

if TYPE_CHECKING:
    from titan_fast.master.effects import Effects
    from titan_fast.master.intake import Intake

INBOX_LIMIT = 10_000
"""Messages of one turn from which on sessions stop reading until it is done."""
STUCK = 2.0
"""Seconds a commit may take before nothing new is assigned."""

log = logging.getLogger("titan_fast.pump")


class Pump:
    """``position`` counts the facts made, this turn's included; ``durable`` those that are safe."""

    intake: Intake
    effects: Effects
    committer: Committer

    def __init__(
        self,
        scheduler: Scheduler,
        on_failure: Callable[[Exception], None],
        on_full: Callable[[DiskFull], None],
        max_uncommitted: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.wall = wall
        self.durable = 0
        self.commits = 0
        self.inbox: list[tuple[Session, Incoming]] = []
        self.events: list[Event] = []
        self.touched: dict[Session, None] = {}
        self.waiting: dict[Session, None] = {}
        """Sessions with frames that wait for the disk."""
        self._promised = 0
        """The newest fact that somebody waits to be told of."""
        self.resting: list[Session] = []
        self.slowest_turn = 0.0
        self.is_stuck = False
        self._max_uncommitted = max_uncommitted
        self._on_failure = on_failure
        self._on_full = on_full
        self._loop = asyncio.get_running_loop()
        self._woken = False
        self._alarm: asyncio.TimerHandle | None = None
        self._stopped = False

    def arrived(self, session: Session, incoming: Incoming) -> None:
        """A session decoded something. Past the limit it rests until the turn has caught up."""
        self.inbox.append((session, incoming))
        if len(self.inbox) > INBOX_LIMIT and session.rest():
            self.resting.append(session)
        self.wake()

    def happened(self, event: Event) -> None:
        """Something that is no message: silence, a closed connection, a stop."""
        self.events.append(event)
        self.wake()

    def wake(self) -> None:
        if not self._woken and not self._stopped:
            self._woken = True
            self._loop.call_soon(self.turn)

    @property
    def position(self) -> int:
        return self.scheduler.position

    def turn(self) -> None:
        """One turn. A bug of ours in it means that nothing is known about the state in memory: what is on the disk is
        true, and the next master goes on from there."""
        self._woken = False
        try:
            self._turn()
        except Exception as error:
            log.exception("a turn failed")
            self._on_failure(error)
            raise

    def _turn(self) -> None:
        began = self.clock()
        self.scheduler.advance(began, self.wall())
        inbox, self.inbox = self.inbox, []
        events, self.events = self.events, []
        for event in events:
            self.scheduler.handle(event)
        for session, incoming in inbox:
            self.intake.take(session, incoming)
        self._look_at_the_disk()
        self.scheduler.place()
        facts, commands = self.scheduler.take()
        self.effects.assign(commands, facts)
        if facts:
            self.committer.put(facts, self.position)
            self.effects.tell_results(facts)
        self.effects.carry_out(commands)
        self.intake.answer_questions()
        self._flush(self.touched)
        while self.resting:
            self.resting.pop().resume()
        self.slowest_turn = max(self.slowest_turn, self.clock() - began)
        self._rearm()

    def _flush(self, sessions: dict[Session, None]) -> None:
        """One write for each; a promise that still waits for the disk is the reason for the next commit."""
        for session in list(sessions):
            if session.flush(self.durable):
                self.waiting[session] = None
                self._promised = max(self._promised, session.promised)
        sessions.clear()
        if self._promised > self.durable:
            self.committer.hurry()

    def hurry(self) -> None:
        """Somebody waits for all that was decided so far to be on the disk."""
        self._promised = self.position
        self.committer.hurry()

    def _rearm(self) -> None:
        """Sleep until the scheduler's next deadline; nothing polls."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        deadline = self.scheduler.next_deadline()
        if self.committer.pending:
            look_again = self.clock() + STUCK / 2
            deadline = look_again if deadline is None else min(deadline, look_again)
        if deadline is not None and not self._stopped:
            self._alarm = self._loop.call_later(max(0.0, deadline - self.clock()), self.wake)

    # ------------------------------------------------------------ the disk

    def became_durable(self, position: int) -> None:
        """The committer has written everything up to there: what waited for it leaves."""
        self.durable = max(self.durable, position)
        self.commits += 1
        waiting, self.waiting = self.waiting, {}
        self._flush(waiting)
        self.scheduler.forget_finished(position)
        if self.is_stuck:
            self.wake()

    def disk_is_full(self, error: DiskFull) -> None:
        self._on_full(error)
        self.wake()

    def store_failed(self, error: Exception) -> None:
        self._on_failure(error)

    def _look_at_the_disk(self) -> None:
        """Too much, or too old, that nobody may be told of: nothing new is assigned until the disk has caught up."""
        pending = self.committer.pending
        is_stuck = bool(pending) and (
            self.committer.stuck_for() > STUCK or sum(batch.size for batch in pending) > self._max_uncommitted
        )
        if is_stuck != self.is_stuck:
            self.is_stuck = is_stuck
            log.warning("the disk %s", "does not keep up: nothing new is assigned" if is_stuck else "has caught up")
            self.scheduler.handle(CommitsStuck() if is_stuck else CommitsFlowing())

    def stop(self) -> None:
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
