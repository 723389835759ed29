"""The ready queue and the timers in pure Python (contract: `_heap.pyi`, twin: `_heap.pyx`).

Knows classes, views and runs by number only. Heaps here are lazy (`heapq` cannot reorder): what changed is pushed
again and what is out of date is dropped when it comes up, or all at once when it is half of a heap. The twin keeps
places instead; the order is the same because every key is unique. Both do the same sums in the same order.

Virtual time is start-time fair queueing (Goyal, Vin, Cheng 1996), kept for each class and priority: classes advance
at the speed of their workers, so one clock for all would bury a new run of a slow class, or let one of a fast class
take everything. A priority of a class that wakes from having nothing catches up with the views that serve it, so
that it does not bury the other classes of those views either. An emptied run queue keeps its cost and its virtual
time until its run is forgotten; what is created anew starts at the clock, so no time runs backwards.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Hashable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count as counter
from operator import index as to_index

from titan_fast._layout import DEFAULT_COST, QUANTUM

_CHEAPEST = QUANTUM / 1000
"""Seconds that a task costs at least: something that cost nothing would never let another run pass."""
_LAST_INDEX = 2**32 - 1

_Single = tuple[int, int, int]
"""index, spec, epoch."""
_Key = tuple[int, float, int, int]
"""-priority, virtual time, run, class: the order of a view."""
_Entry = tuple[int, float, int, int, "_RunQueue"]
"""-priority, virtual time, run, serial number, run queue: the order of a class."""


_BOUNDS = {"run": ("Q", 0, 2**64 - 1), "priority": ("i", -(2**31), 2**31 - 1)}
_U32 = ("I", 0, 2**32 - 1)


class _Check:
    """Raises OverflowError for numbers that do not fit: a run u64, a priority i32, everything else u32."""

    __slots__ = ("_bounds", "_pack")

    def __init__(self, *names: str) -> None:
        self._bounds = [(name, *_BOUNDS.get(name, _U32)) for name in names]
        self._pack = struct.Struct("=" + "".join(code for _, code, _, _ in self._bounds)).pack

    def __call__(self, *numbers: int) -> None:
        try:
            self._pack(*numbers)
        except struct.error:
            for (name, _, least, most), number in zip(self._bounds, numbers, strict=True):
                if not least <= to_index(number) <= most:
                    raise OverflowError(f"{name} must be between {least} and {most}") from None
            raise


_check_push = _Check("run", "priority", "spec", "first", "count")
_check_push_back = _Check("run", "priority", "spec", "index")
_check_discard = _Check("run", "priority", "first", "count")
_check_queue = _Check("run", "priority")
_check_run = _Check("run")


def _check_end(first: int, count: int) -> None:
    if first + count - 1 > _LAST_INDEX:
        raise OverflowError(f"{count} tasks from {first} on go beyond the last index, {_LAST_INDEX}")


class _Range:
    __slots__ = ("epoch", "first", "last", "spec")

    def __init__(self, spec: int, first: int, last: int, epoch: int) -> None:
        self.spec, self.first, self.last, self.epoch = spec, first, last, epoch


class _Level:
    """What the run queues of one class and priority share."""

    __slots__ = ("clock", "queues", "waiting")

    def __init__(self) -> None:
        self.clock = 0.0
        """Virtual time of the last take when it began."""
        self.queues = 0
        self.waiting = 0
        """Run queues with something in them."""


class _Class:
    __slots__ = ("heap", "levels", "number", "ready", "stale", "views")

    def __init__(self, number: int) -> None:
        self.number = number
        self.heap: list[_Entry] = []
        self.stale = 0
        """Entries of the heap that no longer stand for their run queue."""
        self.levels: dict[int, _Level] = {}
        self.views: dict[int, _View] = {}
        self.ready = 0


class _View:
    """The heads of its classes. An entry may promise more than its class has now, never less."""

    __slots__ = ("clocks", "heap", "listed", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.heap: list[_Key] = []
        self.listed: dict[int, _Key] = {}
        """The valid entry of each class that has one."""
        self.clocks: dict[int, float] = {}
        """Priority: virtual time of this view's last take, when it began."""


class _RunQueue:
    """The tasks of one class, run and priority: a heap of singles, then ranges.

    A discard gives its indices a tombstone with a new epoch; it kills what was pushed before, so an index can come
    back while its dead copy is still here. ``held`` counts what is here, ``dead`` the part of it that is not alive.
    """

    __slots__ = (
        *("cls", "cost", "entry", "level", "priority", "run", "vtime"),
        *("dead", "epoch", "held", "ranges", "singles", "tombs"),
    )

    def __init__(self, cls: _Class, run: int, priority: int, level: _Level) -> None:
        self.cls, self.run, self.priority, self.level = cls, run, priority, level
        self.vtime, self.cost = 0.0, DEFAULT_COST
        self.entry: _Entry | None = None
        """Its valid entry in the heap of the class; None while it is empty."""
        self.singles: list[_Single] = []
        self.ranges: deque[_Range] = deque()
        self.held = self.dead = self.epoch = 0
        self.tombs: dict[int, int] = {}

    def append(self, spec: int, first: int, last: int) -> None:
        ranges = self.ranges
        if ranges and ranges[-1].last + 1 == first and ranges[-1].spec == spec and ranges[-1].epoch == self.epoch:
            ranges[-1].last = last
        else:
            ranges.append(_Range(spec, first, last, self.epoch))

    def front(self) -> tuple[int, int]:
        """(spec, index) of the first living task."""
        self._drop_dead_singles()
        if self.singles:
            return self.singles[0][1], self.singles[0][0]
        self._drop_dead_of_ranges()
        return self.ranges[0].spec, self.ranges[0].first

    def take(self, most: int) -> tuple[int, int, int]:
        """Remove the longest stretch of one spec at the front, ``most`` tasks at most: (spec, first, count)."""
        spec, first = self.front()
        count = 0
        while self.singles and count < most and self.singles[0][0] == first + count and self.singles[0][1] == spec:
            heappop(self.singles)
            self.held -= 1
            count += 1
            self._drop_dead_singles()
        while not self.singles and count < most and self.held > self.dead:
            self._drop_dead_of_ranges()
            front = self.ranges[0]
            if front.first != first + count or front.spec != spec:
                break
            last = min(front.last, front.first + most - count - 1)
            if self.dead:
                last = self._last_alive(front, last)
            count += last - front.first + 1
            self.held -= last - front.first + 1
            front.first = last + 1
            if front.first > front.last:
                self.ranges.popleft()
        return spec, first, count

    def bury(self, first: int, count: int) -> None:
        """A tombstone for each index."""
        self.epoch += 1
        self.tombs.update(dict.fromkeys(range(first, first + count), self.epoch))
        self.dead += count

    def clear(self) -> None:
        self.singles.clear()
        self.ranges.clear()
        self.tombs.clear()
        self.held = self.dead = 0

    def compact(self) -> None:
        """Remove the dead for good. Counts what is left, so a tombstone that met nothing is forgiven too."""
        tombs = self.tombs
        self.singles = [single for single in self.singles if tombs.get(single[0], 0) <= single[2]]
        heapify(self.singles)
        self.held = len(self.singles)
        old, self.ranges = self.ranges, deque()
        for part in old:
            start = part.first
            for index in range(part.first, part.last + 2):
                if index > part.last or tombs.get(index, 0) > part.epoch:
                    if start < index:
                        self.ranges.append(_Range(part.spec, start, index - 1, part.epoch))
                        self.held += index - start
                    start = index + 1
        self.tombs = {}
        self.dead = 0

    def _drop_dead_singles(self) -> None:
        while self.dead and self.singles and self.tombs.get(self.singles[0][0], 0) > self.singles[0][2]:
            heappop(self.singles)
            self._dropped()

    def _drop_dead_of_ranges(self) -> None:
        while self.dead:
            front = self.ranges[0]
            if self.tombs.get(front.first, 0) <= front.epoch:
                return
            front.first += 1
            if front.first > front.last:
                self.ranges.popleft()
            self._dropped()

    def _dropped(self) -> None:
        self.held -= 1
        self.dead -= 1
        if not self.dead:
            self.tombs.clear()

    def _last_alive(self, part: _Range, last: int) -> int:
        """The end of the living stretch at the front of ``part``, ``last`` at most."""
        for index in range(part.first + 1, last + 1):
            if self.tombs.get(index, 0) > part.epoch:
                return index - 1
        return last


class ReadyQueue:
    """Tasks that could start now, by class, priority and fair share; see `_heap.pyi`."""

    __slots__ = ("_classes", "_priorities", "_queues", "_runs", "_serial", "_size", "_views")

    def __init__(self) -> None:
        self._classes: list[_Class] = []
        self._views: list[_View] = []
        self._queues: dict[tuple[int, int, int], _RunQueue] = {}
        self._runs: dict[int, list[_RunQueue]] = {}
        self._priorities: dict[int, int] = {}
        """How many run queues each priority has: the clocks of one that is gone are dropped."""
        self._serial = counter()
        self._size = 0

    def add_class(self) -> int:
        self._classes.append(_Class(len(self._classes)))
        return len(self._classes) - 1

    def add_view(self) -> int:
        self._views.append(_View(len(self._views)))
        return len(self._views) - 1

    def link(self, view: int, cls: int) -> None:
        viewed, served = self._view(view), self._class(cls)
        served.views[viewed.number] = viewed
        if served.ready:
            self._promise(viewed, served)

    def push(self, cls: int, run: int, priority: int, spec: int, first: int, count: int) -> None:
        _check_push(run, priority, spec, first, count)
        served = self._class(cls)
        _check_end(first, count)
        if not count:
            return
        queue = self._queue(served, run, priority)
        queue.append(spec, first, first + count - 1)
        self._grown(queue, count)

    def push_back(self, cls: int, run: int, priority: int, spec: int, index: int) -> None:
        _check_push_back(run, priority, spec, index)
        queue = self._queue(self._class(cls), run, priority)
        heappush(queue.singles, (index, spec, queue.epoch))
        self._grown(queue, 1)

    def take(self, view: int, limit: int) -> tuple[int, int, int, int, int, int] | None:
        viewed, most = self._view(view), to_index(limit)
        if most < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        queue = self._best(viewed)
        if queue is None:
            return None
        cls, level = queue.cls, queue.level
        if level.waiting > 1:
            most = min(most, max(1, int(QUANTUM / queue.cost)))
        spec, first, count = queue.take(min(most, _LAST_INDEX))
        viewed.clocks[queue.priority] = level.clock = queue.vtime
        queue.vtime += count * queue.cost
        cls.ready -= count
        self._size -= count
        self._tidy(queue)
        if queue.held:
            queue.entry = self._entry(queue)
            heapreplace(cls.heap, queue.entry)
        else:
            heappop(cls.heap)
            queue.entry = None
            level.waiting -= 1
        return cls.number, queue.run, queue.priority, spec, first, count

    def peek(self, view: int) -> tuple[int, int, int, int, int] | None:
        queue = self._best(self._view(view))
        if queue is None:
            return None
        return queue.cls.number, queue.run, queue.priority, *queue.front()

    def discard(self, cls: int, run: int, priority: int, first: int, count: int) -> None:
        _check_discard(run, priority, first, count)
        queue = self._queues.get((to_index(cls), run, priority))
        if queue is None:
            raise KeyError(f"class {cls} has no run queue of run {run} and priority {priority}")
        _check_end(first, count)
        alive = queue.held - queue.dead
        if count > alive:
            raise ValueError(f"{count} tasks to discard, {alive} are queued")
        if not count:
            return
        queue.cls.ready -= count
        self._size -= count
        if count == alive:
            queue.clear()
        else:
            queue.bury(first, count)
            self._tidy(queue)
        if not queue.held:
            self._unlist(queue)

    def set_cost(self, cls: int, run: int, priority: int, seconds: float) -> None:
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"a cost is a finite number of seconds from 0 on, not {float(seconds)}")
        _check_queue(run, priority)
        queue = self._queues.get((to_index(cls), run, priority))
        if queue is not None:
            queue.cost = max(float(seconds), _CHEAPEST)

    def forget_run(self, run: int) -> None:
        _check_run(run)
        for queue in self._runs.pop(run, ()):
            cls, level, priority = queue.cls, queue.level, queue.priority
            del self._queues[cls.number, run, priority]
            alive = queue.held - queue.dead
            cls.ready -= alive
            self._size -= alive
            if queue.entry is not None:
                self._unlist(queue)
            level.queues -= 1
            if not level.queues:
                del cls.levels[priority]
            self._priorities[priority] -= 1
            if not self._priorities[priority]:
                del self._priorities[priority]
                for view in self._views:
                    view.clocks.pop(priority, None)

    def ready(self, cls: int) -> int:
        return self._class(cls).ready

    def __len__(self) -> int:
        return self._size

    def _class(self, cls: int) -> _Class:
        if not 0 <= to_index(cls) < len(self._classes):
            raise KeyError(f"there is no class {cls}")
        return self._classes[cls]

    def _view(self, view: int) -> _View:
        if not 0 <= to_index(view) < len(self._views):
            raise KeyError(f"there is no view {view}")
        return self._views[view]

    def _queue(self, cls: _Class, run: int, priority: int) -> _RunQueue:
        """The run queue, made if there is none."""
        queue = self._queues.get((cls.number, run, priority))
        if queue is None:
            level = cls.levels.setdefault(priority, _Level())
            level.queues += 1
            self._priorities[priority] = self._priorities.get(priority, 0) + 1
            queue = self._queues[cls.number, run, priority] = _RunQueue(cls, run, priority, level)
            self._runs.setdefault(run, []).append(queue)
        return queue

    def _grown(self, queue: _RunQueue, count: int) -> None:
        queue.held += count
        queue.cls.ready += count
        self._size += count
        if queue.entry is None:
            self._wake(queue)

    def _wake(self, queue: _RunQueue) -> None:
        cls, level, priority = queue.cls, queue.level, queue.priority
        if not level.waiting:
            level.clock = max(level.clock, *(view.clocks.get(priority, 0.0) for view in cls.views.values()), 0.0)
        level.waiting += 1
        queue.vtime = max(queue.vtime, level.clock)
        queue.entry = self._entry(queue)
        heappush(cls.heap, queue.entry)
        if self._head(cls) is queue:
            for view in cls.views.values():
                self._promise(view, cls)

    def _unlist(self, queue: _RunQueue) -> None:
        """The queue is empty, or gone; its entry stays behind, stale."""
        cls = queue.cls
        queue.entry = None
        queue.level.waiting -= 1
        cls.stale += 1
        if 2 * cls.stale > len(cls.heap):
            cls.heap = [entry for entry in cls.heap if entry[4].entry is entry]
            heapify(cls.heap)
            cls.stale = 0

    def _tidy(self, queue: _RunQueue) -> None:
        """Compact a queue that is half dead."""
        if 2 * queue.dead > queue.held:
            before = queue.held - queue.dead
            queue.compact()
            queue.cls.ready += queue.held - before
            self._size += queue.held - before

    def _entry(self, queue: _RunQueue) -> _Entry:
        return -queue.priority, queue.vtime, queue.run, next(self._serial), queue

    def _head(self, cls: _Class) -> _RunQueue | None:
        """The run queue whose turn it is."""
        heap = cls.heap
        while heap:
            queue = heap[0][4]
            if queue.entry is heap[0]:
                return queue
            heappop(heap)
            cls.stale -= 1
        return None

    def _promise(self, view: _View, cls: _Class) -> None:
        """List the head of a class in a view, unless an entry there already promises as much."""
        head = self._head(cls)
        assert head is not None and head.entry is not None
        key = (*head.entry[:3], cls.number)
        listed = view.listed.get(cls.number)
        if listed is None or key < listed:
            view.listed[cls.number] = key
            heappush(view.heap, key)
            if len(view.heap) > 2 * len(view.listed):
                view.heap = sorted(view.listed.values())

    def _best(self, view: _View) -> _RunQueue | None:
        """The run queue that this view would serve next; entries that promised too much are put right on the way."""
        heap, listed = view.heap, view.listed
        while heap:
            key = heap[0]
            cls = self._classes[key[3]]
            if listed.get(cls.number) is not key:
                heappop(heap)
                continue
            head = self._head(cls)
            if head is None:
                heappop(heap)
                del listed[cls.number]
                continue
            assert head.entry is not None
            if head.entry[:3] == key[:3]:
                return head
            listed[cls.number] = key = (*head.entry[:3], cls.number)
            heapreplace(heap, key)
        return None


class Timers:
    """Deadlines with keys; see `_heap.pyi`."""

    __slots__ = ("_handle", "_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._keys: dict[int, Hashable] = {}
        """Handle: key, of what is neither due nor cancelled."""
        self._handle = 0

    def add(self, when: float, key: Hashable) -> int:
        if math.isnan(when):
            raise ValueError("a deadline is a time, not nan")
        self._handle += 1
        self._keys[self._handle] = key
        heappush(self._heap, (float(when), self._handle))
        return self._handle

    def cancel(self, handle: int) -> bool:
        if handle not in self._keys:
            return False
        del self._keys[handle]
        if len(self._heap) > 2 * len(self._keys):
            self._heap = [entry for entry in self._heap if entry[1] in self._keys]
            heapify(self._heap)
        return True

    def next(self) -> float | None:
        while self._heap:
            when, handle = self._heap[0]
            if handle in self._keys:
                return when
            heappop(self._heap)
        return None

    def due(self, now: float) -> list[Hashable]:
        heap, due = self._heap, []
        if math.isnan(now):
            return []
        while heap and heap[0][0] <= now:
            handle = heappop(heap)[1]
            if handle in self._keys:
                due.append(self._keys.pop(handle))
        return due

    def __len__(self) -> int:
        return len(self._keys)
