"""The turn: everything that arrived, one decision for the whole batch, everything that leaves. The only clock.

Output commit: every frame to the outside is stamped with the last fact that existed when it was made and leaves when
that fact is durable; only specs, assignments, echoes and refusals leave at once (`session.send`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from titan_fast.master.session import Session
from titan_fast.master.store.base import Store
from titan_fast.protocol.connection import Incoming
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.events import Event

if TYPE_CHECKING:
    from titan_fast.master.effects import Effects
    from titan_fast.master.intake import Intake

INBOX_LIMIT = 10_000
"""Messages of one turn from which on sessions stop reading until it is done."""


class Pump:
    """``position`` counts the facts made, ``durable`` those that are safe."""

    intake: Intake
    effects: Effects

    def __init__(self, scheduler: Scheduler, store: Store, epoch: int) -> None:
        self.scheduler = scheduler
        self.store = store
        self.epoch = epoch
        self.position = 0
        self.durable = 0
        self.commits = 0
        self.inbox: list[tuple[Session, Incoming]] = []
        self.events: list[Event] = []
        self.touched: set[Session] = set()
        self.resting: list[Session] = []
        self.slowest_turn = 0.0
        self._loop = asyncio.get_running_loop()
        self._woken = False
        self._alarm: asyncio.TimerHandle | None = None

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
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self.turn)

    def turn(self) -> None:
        self._woken = False
        began = time.monotonic()
        self.scheduler.advance(began, time.time())
        inbox, self.inbox = self.inbox, []
        events, self.events = self.events, []
        for event in events:
            self.scheduler.handle(event)
        for session, incoming in inbox:
            self.intake.take(session, incoming)
        self.scheduler.place()
        facts, commands = self.scheduler.take()
        self.effects.assign(commands, facts)
        if facts:
            self.position += len(facts)
            self.store.commit(self.epoch, facts)
            self.durable = self.position
            self.commits += 1
        self.effects.carry_out(commands)
        self.intake.answer_questions()
        for session in self.touched:
            session.flush(self.durable)
        self.touched.clear()
        while self.resting:
            self.resting.pop().resume()
        self.slowest_turn = max(self.slowest_turn, time.monotonic() - began)
        self._rearm()

    def _rearm(self) -> None:
        """Sleep until the scheduler's next deadline; nothing polls."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        deadline = self.scheduler.next_deadline()
        if deadline is not None:
            self._alarm = self._loop.call_later(max(0.0, deadline - time.monotonic()), self.wake)
