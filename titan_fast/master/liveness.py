"""Who was heard when: the heartbeat table with the rules that keep a busy master from blaming its workers.

A closed connection makes a worker suspect at once. Before anybody is called lost every socket is read once more, and
the time this process itself was late is nobody's silence. When more than half of three or more workers fall silent
with their connections open, the master suspects itself first, for a minute at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from titan_fast._accel import HeartbeatTable
from titan_fast.scheduler.events import WorkerLost, WorkerRecovered, WorkerSuspected

if TYPE_CHECKING:
    from titan_fast.config import SchedulerSettings
    from titan_fast.master.pump import Pump

SELF_DOUBT = 60.0
"""Seconds for which a master may believe that the silence is its own."""


class Liveness:
    def __init__(self, pump: Pump, settings: SchedulerSettings, on_lost: Callable[[str], None]) -> None:
        self._pump = pump
        self._on_lost = on_lost
        self._settings = settings
        self._table = HeartbeatTable()
        self._row_of: dict[str, int] = {}
        self._worker_of: dict[int, str] = {}
        self._connected: set[str] = set()
        self._silent: set[str] = set()
        self._seen_wall: dict[str, float] = {}
        self._doubt_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._interval = min(settings.heartbeat, settings.suspect_after, settings.lost_after) / 2
        self._expected = self._loop.time() + self._interval
        self._timer = self._loop.call_at(self._expected, self._tick)

    def attached(self, worker: str) -> None:
        now = self._loop.time()
        row = self._row_of.get(worker)
        if row is None:
            row = self._row_of[worker] = self._table.add(now)
            self._worker_of[row] = worker
        else:
            self._table.beat(row, now)
        self._silent.discard(worker)
        self._connected.add(worker)

    def expect(self, worker: str) -> None:
        """A worker that was alive when the last master ended: it has the usual time to attach."""
        row = self._row_of[worker] = self._table.add(self._loop.time())
        self._worker_of[row] = worker
        self._table.suspect(row)

    def beat(self, worker: str) -> None:
        row = self._row_of.get(worker)
        if row is not None and self._table.beat(row, self._loop.time()):
            self._silent.discard(worker)
            self._pump.happened(WorkerRecovered(worker))

    def closed(self, worker: str) -> None:
        """Its connection ended: suspect at once, lost after the usual time."""
        self._connected.discard(worker)
        row = self._row_of.get(worker)
        if row is not None:
            self._table.suspect(row)
            self._pump.happened(WorkerSuspected(worker))

    def forget(self, worker: str) -> None:
        row = self._row_of.pop(worker, None)
        if row is not None:
            self._table.remove(row)
            del self._worker_of[row]
        self._connected.discard(worker)
        self._silent.discard(worker)

    def silence(self, worker: str) -> float | None:
        """Seconds since it was last heard."""
        row = self._row_of.get(worker)
        return None if row is None else self._loop.time() - self._table.last(row)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        """Our own lateness moves the deadlines; then one pass of the loop reads every socket before `_judge`."""
        now = self._loop.time()
        late = now - self._expected
        if late > self._interval:
            self._table.shift(late)
        self._expected = now + self._interval
        self._timer = self._loop.call_at(self._expected, self._tick)
        self._loop.call_soon(self._loop.call_soon, self._judge)

    def _judge(self) -> None:
        now = self._loop.time()
        lost_after = self._settings.lost_after
        if self._doubts_itself(now):
            lost_after += SELF_DOUBT
        suspects, lost = self._table.scan(now, self._settings.suspect_after, lost_after)
        for row in suspects:
            worker = self._worker_of[row]
            self._silent.add(worker)
            self._pump.happened(WorkerSuspected(worker))
        for row in lost:
            worker = self._worker_of[row]
            self.forget(worker)
            self._on_lost(worker)
            self._pump.happened(WorkerLost(worker))

    def _doubts_itself(self, now: float) -> bool:
        silent = len(self._silent & self._connected)
        if len(self._connected) < 3 or silent * 2 <= len(self._connected):
            self._doubt_since = None
            return False
        if self._doubt_since is None:
            self._doubt_since = now
        return now - self._doubt_since < SELF_DOUBT
