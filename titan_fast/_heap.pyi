"""The contract of the ready queue and the timer heap: `_heap.pyx` (compiled) and `_heap_py.py` (pure)."""

from collections.abc import Hashable

class ReadyQueue:
    """Tasks that could start now, by class, priority and fair share.

    A *class* is what a task needs (its capabilities and shape), a *view* what one kind of worker has; `link` says
    which views serve a class. Both are small integers handed out in order. The tasks of one (class, run,
    priority) form a *run queue*: singles that came back (lowest index first), then ranges in arrival order. A view is
    served by highest priority, then lowest virtual time, then lowest run, then lowest class. Taking n tasks advances
    the virtual time of their run queue by n x its expected cost, so runs of equal priority share.

    Each (class, priority) has a clock: the virtual time of the run queue that was served last. A run queue that
    becomes non-empty starts at the clock of its level, if its own time is lower; a level that wakes empty first catches
    up with the clocks of the views that serve it. (One clock for all would bury new runs of a slow class, or let a
    fast one take everything.) An emptied run queue keeps its cost and time until `forget_run`.

    Every call with a class or view that was not handed out raises KeyError.

    Cost: push and take O(log run queues + log classes of the view), whatever the number of tasks; a class no
    view serves costs nobody anything. Order is exact and equal in both twins.
    """

    def add_class(self) -> int: ...
    def add_view(self) -> int: ...
    def link(self, view: int, cls: int) -> None:
        """The workers of ``view`` may take tasks of ``cls``. Linking twice does nothing."""

    def push(self, cls: int, run: int, priority: int, spec: int, first: int, count: int) -> None:
        """Append tasks first … first + count - 1 of one spec to their run queue."""

    def push_back(self, cls: int, run: int, priority: int, spec: int, index: int) -> None:
        """One task that was out and came back (retry, recall, lost worker): before the ranges, by index."""

    def take(self, view: int, limit: int) -> tuple[int, int, int, int, int, int] | None:
        """Remove up to ``limit`` consecutive tasks of one spec from the best run queue the view may serve; neighbours
        are joined, whether they came back singly or stand in ranges.

        Returns (class, run, priority, spec, first, count), or None when there is nothing for this view. When
        another run queue of the same class and priority waits, at most max(1, floor(QUANTUM / cost)) are taken.
        Raises ValueError for a limit below 1.
        """

    def peek(self, view: int) -> tuple[int, int, int, int, int] | None:
        """(class, run, priority, spec, index) that `take` would start with, or None; takes nothing."""

    def discard(self, cls: int, run: int, priority: int, first: int, count: int) -> None:
        """Remove tasks that are in their run queue (cancelled). A tombstone each; compacted at half dead.

        Raises KeyError when there is no such run queue, ValueError for more tasks than it holds. Indices are unique
        in a run; the caller names only tasks that are queued. A task may be pushed again after it was discarded.
        """

    def set_cost(self, cls: int, run: int, priority: int, seconds: float) -> None:
        """The expected duration of this run queue's tasks from now on. An unknown run queue is ignored.

        Raises ValueError for a negative cost or one that is not finite; 0 counts as a thousandth of QUANTUM.
        """

    def forget_run(self, run: int) -> None:
        """Drop every run queue of a run, with what is in it."""

    def ready(self, cls: int) -> int:
        """Exact number of tasks queued in a class."""

    def __len__(self) -> int:
        """Exact number of tasks queued."""

class Timers:
    """Deadlines with keys: one binary heap, lazy cancellation, compacted at half dead."""

    def add(self, when: float, key: Hashable) -> int:
        """Returns a handle, larger than every handle before it."""

    def cancel(self, handle: int) -> bool:
        """False when it is already due, cancelled or unknown."""

    def next(self) -> float | None:
        """The earliest deadline, or None."""

    def due(self, now: float) -> list[Hashable]:
        """Remove and return the keys whose deadline is at or before ``now``, by (deadline, handle)."""

    def __len__(self) -> int: ...
