"""The heartbeat table in pure Python (contract: `_heartbeat.pyi`, twin: `_heartbeat.pyx`).

Knows rows and times, not workers. A beat is O(1), a scan O(rows that were ever in use at once). Two rules that the
contract leaves open: `scan` tells what `scan` found, so a row that `suspect` made suspect is not in it; and `suspect`
ends a mute, because a closed connection has nothing left to read and a row that nobody judges is never lost.
"""

from __future__ import annotations

import math
from operator import index as to_index

_FREE, _FRESH, _SUSPECT, _LOST = range(4)


class HeartbeatTable:
    """When each worker was last heard; see `_heartbeat.pyi`."""

    __slots__ = ("_free", "_last", "_muted", "_state")

    def __init__(self) -> None:
        self._last: list[float] = []
        self._state: list[int] = []
        self._muted: list[bool] = []
        self._free: list[int] = []
        """Rows not in use; the one given back last goes out first."""

    def add(self, now: float) -> int:
        now = _finite(now)
        if self._free:
            row = self._free.pop()
            self._last[row], self._state[row], self._muted[row] = now, _FRESH, False
            return row
        self._last.append(now)
        self._state.append(_FRESH)
        self._muted.append(False)
        return len(self._last) - 1

    def remove(self, row: int) -> None:
        self._check(row)
        self._state[row] = _FREE
        self._free.append(to_index(row))

    def beat(self, row: int, now: float) -> bool:
        now = _finite(now)
        self._check(row)
        if now > self._last[row]:
            self._last[row] = now
        was_fresh = self._state[row] == _FRESH
        self._state[row] = _FRESH
        return not was_fresh

    def mute(self, row: int, muted: bool) -> None:
        muted = bool(muted)
        self._check(row)
        if self._muted[row] and not muted:
            self._state[row] = _FRESH
        self._muted[row] = muted

    def suspect(self, row: int) -> bool:
        self._check(row)
        self._muted[row] = False
        if self._state[row] != _FRESH:
            return False
        self._state[row] = _SUSPECT
        return True

    def last(self, row: int) -> float:
        self._check(row)
        return self._last[row]

    def scan(self, now: float, suspect_after: float, lost_after: float) -> tuple[list[int], list[int]]:
        now, suspect_after, lost_after = _number(now), _number(suspect_after), _number(lost_after)
        suspects, lost = [], []
        for row, (state, muted, last) in enumerate(zip(self._state, self._muted, self._last, strict=True)):
            if muted or not _FRESH <= state <= _SUSPECT:
                continue
            silence = now - last
            if silence >= lost_after:
                self._state[row] = _LOST
                lost.append(row)
            elif silence >= suspect_after and state == _FRESH:
                self._state[row] = _SUSPECT
                suspects.append(row)
        return suspects, lost

    def shift(self, seconds: float) -> None:
        seconds = _finite(seconds)
        if seconds < 0:
            raise ValueError(f"times are shifted forward, not by {seconds}")
        self._last = [last + seconds for last in self._last]

    def __len__(self) -> int:
        return len(self._last) - len(self._free)

    def _check(self, row: int) -> None:
        if not 0 <= to_index(row) < len(self._state) or self._state[row] == _FREE:
            raise KeyError(f"row {row} is not in use")


def _number(value: float) -> float:
    math.isnan(value)  # refuses what is no number, where float() would read text
    return float(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a time must be finite, not {value}")
    return float(value)
