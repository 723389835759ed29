"""What runs, what waits, what to start or kill: the worker's own small scheduler. Pure: no I/O, no clock.

Assignments wait in the order they came, as stretches; the only decision is "a slot is free, start the next one".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec


class Stretch(msgspec.Struct):
    """Waiting attempts ``first … first + count - 1`` of a lot; payloads are cut from the lot's blob by member."""

    run: int
    spec: int
    first: int
    count: int
    generation: int
    attempt: int
    fence: int
    payload: bytes
    members: int
    """Members of the whole lot, for reading the payload's offsets."""
    skipped: int = 0
    """Members of the lot before ``first``."""

    def split(self, at: int) -> Stretch:
        """Cut off and return everything from member ``at`` (counted in this stretch)."""
        rest = msgspec.structs.replace(
            self,
            first=self.first + at,
            fence=self.fence + at,
            count=self.count - at,
            skipped=self.skipped + at,
        )
        self.count = at
        return rest


class Start(msgspec.Struct, frozen=True):
    """One attempt to start now."""

    run: int
    spec: int
    index: int
    generation: int
    attempt: int
    fence: int
    payload: bytes


class Slots:
    """``slots`` attempts run at a time; the rest waits here."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running: dict[int, Start] = {}
        self.lanes = 0
        """Slots of pool processes that have something to do."""
        self._waiting: deque[Stretch] = deque()
        self.queued = 0

    @property
    def used(self) -> int:
        return len(self.running) + self.lanes

    @property
    def is_empty(self) -> bool:
        return not self.running and not self.lanes and not self._waiting

    @property
    def head(self) -> Stretch | None:
        """What is next."""
        return self._waiting[0] if self._waiting else None

    def assign(self, stretch: Stretch) -> None:
        self._waiting.append(stretch)
        self.queued += stretch.count

    def cut(self, count: int) -> Stretch:
        """The first members, at most so many, of what is next, without a slot: whoever asks has one."""
        head = self._waiting[0]
        if head.count <= count:
            self._waiting.popleft()
        else:
            self._waiting[0] = head.split(count)
        self.queued -= head.count
        return head

    def put_back(self, stretches: list[Stretch]) -> None:
        """They were cut and have not been run: they are next."""
        for stretch in reversed(stretches):
            self._waiting.appendleft(stretch)
            self.queued += stretch.count

    def next_start(self) -> Start | None:
        """The next attempt, when a slot is free; it counts as running from now on."""
        if self.used >= self.slots or not self._waiting:
            return None
        head = self._waiting[0]
        self.queued -= 1
        start = Start(
            head.run, head.spec, head.first, head.generation, head.attempt, head.fence, member_payload(head, 0)
        )
        if head.count == 1:
            self._waiting.popleft()
        else:
            self._waiting[0] = head.split(1)
        self.running[start.fence] = start
        return start

    def adopt(self, start: Start) -> None:
        """An attempt of an earlier agent runs on, in a slot of its own (there may be fewer than it had)."""
        self.running[start.fence] = start

    def ended(self, fence: int) -> Start | None:
        """An attempt is over and its slot free. None when it did not run."""
        return self.running.pop(fence, None)

    def withdraw(self, fence: int, count: int) -> list[Start]:
        """Take back what waits of these consecutive fences; what runs is not touched."""
        taken: list[Start] = []
        kept: deque[Stretch] = deque()
        for stretch in self._waiting:
            start = max(0, fence - stretch.fence)
            end = min(stretch.count, fence + count - stretch.fence)
            if start >= end:
                kept.append(stretch)
                continue
            rest = stretch.split(end) if end < stretch.count else None
            cut = stretch.split(start) if start else stretch
            if start:
                kept.append(stretch)
            if rest is not None:
                kept.append(rest)
            taken.extend(each(cut))
        self._waiting = kept
        self.queued -= len(taken)
        return taken

    def waiting(self) -> Iterator[Start]:
        for stretch in self._waiting:
            yield from each(stretch)


def each(stretch: Stretch) -> Iterator[Start]:
    """Its attempts one by one, without their payloads."""
    for at in range(stretch.count):
        yield Start(
            stretch.run,
            stretch.spec,
            stretch.first + at,
            stretch.generation,
            stretch.attempt,
            stretch.fence + at,
            b"",
        )


def member_payload(stretch: Stretch, at: int) -> bytes:
    """The payload of a member: (members + 1) offsets, counted from the first one, then the bytes they cut."""
    if not stretch.payload:
        return b""
    blob = stretch.payload
    base = 4 * (stretch.members + 1)
    zero = int.from_bytes(blob[:4], "big")
    member = stretch.skipped + at
    start = int.from_bytes(blob[4 * member : 4 * member + 4], "big") - zero
    end = int.from_bytes(blob[4 * member + 4 : 4 * member + 8], "big") - zero
    return blob[base + start : base + end]


def payloads(stretch: Stretch) -> bytes:
    """Those of a stretch, as a lot has them: (count + 1) offsets as stored, then the bytes they cut."""
    blob = stretch.payload
    if stretch.count == stretch.members or not blob:
        return blob
    base = 4 * (stretch.members + 1)
    zero = int.from_bytes(blob[:4], "big")
    offsets = blob[4 * stretch.skipped : 4 * (stretch.skipped + stretch.count + 1)]
    start = int.from_bytes(offsets[:4], "big") - zero
    end = int.from_bytes(offsets[-4:], "big") - zero
    return offsets + blob[base + start : base + end]
