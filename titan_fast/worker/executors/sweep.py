"""Ending trees of processes by force: TERM, a grace, KILL, and looking until nothing is left of them.

One look at the processes of this machine serves all trees that are being ended. The first one comes before the first
signal: who is known as a child alone is found while its parent lives, and who was found once stays known. In its grace
a tree is left alone until its first process has ended; then it is looked at more and more seldom. Knows nothing of
what trees are for: whoever ends one says when its first process has ended, and is told when nothing is left.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from titan_fast.worker.executors import tree
from titan_fast.worker.executors.tree import Member, Tree
from titan_fast.worker.output import note

_FIRST = 0.002
_SLOWEST = 0.1
"""Seconds between looks at what is left of trees whose first process has ended."""
GIVE_UP = 30.0
"""Seconds after KILL when the first process's companions that will not go (a stuck disk) are no longer waited for."""

T = TypeVar("T")


class Processes(Protocol):
    """How processes are found and signalled, as `tree` does it."""

    def scan(self, trees: Sequence[Tree]) -> list[list[Member]]: ...
    def ask_to_end(self, leader: int, pidfd: int, members: Iterable[Member], spare: set[Member]) -> None: ...
    def stop_and_kill(self, trees: Sequence[Tree], spare: set[Member]) -> list[list[Member]]: ...
    def send_all(self, members: Iterable[Member], number: int, spare: set[Member]) -> None: ...
    def send_group(self, pidfd: int, leader: int, number: int) -> bool: ...


class _End(Generic[T]):
    """One tree that is being ended."""

    __slots__ = ("deadline", "is_headless", "is_termed", "killed", "of", "output", "pidfd", "spare", "tree")

    def __init__(self, of: T, tree: Tree, pidfd: int, output: str, deadline: float, is_termed: bool) -> None:
        self.of = of
        self.tree = tree
        self.pidfd = pidfd
        self.output = output
        self.deadline = deadline
        """When the grace is over (monotonic)."""
        self.is_termed = is_termed
        """All of it have had TERM, or will have none."""
        self.is_headless = False
        """Its first process has ended."""
        self.killed = 0.0
        """When KILL was sent first (monotonic); 0: not yet."""
        self.spare: set[Member] = set()
        """Those of it that we may not signal: they run as somebody else."""

    def know(self, members: Collection[Member]) -> None:
        if not self.tree.known.issuperset(members):
            self.tree = msgspec.structs.replace(self.tree, known=self.tree.known.union(members))


class Sweep(Generic[T]):
    """The trees that one executor is ending. It belongs to the event loop that runs when it is made."""

    def __init__(
        self, has_ended: Callable[[T], bool], is_gone: Callable[[T], None], processes: Processes = tree
    ) -> None:
        """
        Args:
            has_ended: whether the first process of one has, so that its number may be another's.
            is_gone: nothing is left of one. Called once for each, never from inside a call.
        """
        self._has_ended = has_ended
        self._is_gone = is_gone
        self._processes = processes
        self._loop = asyncio.get_running_loop()
        self._ends: dict[T, _End[T]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0
        """When it is due. It cannot always be asked: of what is due at once uvloop makes no timer."""
        self._pause = _FIRST

    def begin(self, of: T, tree: Tree, pidfd: int, output: str, grace: float, *, ask: bool = True) -> None:
        """End a tree. Nothing is sent here: a cancelled run ends many at once.

        Args:
            pidfd: of the first process; -1: there are none here.
            output: the file in which is noted who could not be ended.
            grace: seconds until KILL.
            ask: with TERM, when there is a grace.
        """
        end = _End(of, tree, pidfd, output, time.monotonic() + grace, is_termed=not ask or grace <= 0)
        self._ends[of] = end
        self._pause = _FIRST
        self._look_in(grace if end.is_termed and not self._has_ended(of) else 0.0)

    def hasten(self, of: T, grace: float) -> None:
        """The grace of one that is being ended is over in so many seconds, if it is not over before."""
        end = self._ends[of]
        end.deadline = min(end.deadline, time.monotonic() + grace)
        self.look_soon()

    def forget(self, of: T) -> None:
        """It has ended in another way; ignored when it is not being ended."""
        self._ends.pop(of, None)

    def look_soon(self) -> None:
        """The first process of one has ended. All that ask in this turn are served by one look."""
        self._pause = _FIRST
        self._look_in(0.0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        """Or earlier, if that was asked for."""
        when = self._loop.time() + seconds
        if self._timer is not None:
            if self._next <= when:
                return
            self._timer.cancel()
        self._next = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """One step for every tree."""
        self._timer = None
        now = time.monotonic()
        for end in self._ends.values():
            end.is_headless = end.is_headless or self._has_ended(end.of)
        overdue = [end for end in self._ends.values() if not end.killed and now >= end.deadline]
        left = dict(zip(overdue, self._kill(overdue, now), strict=True)) if overdue else {}
        others = [end for end in self._ends.values() if end not in left and (end.is_headless or not end.is_termed)]
        if others:
            left.update(zip(others, self._processes.scan([end.tree for end in others]), strict=True))
        try:
            for end, members in left.items():
                end.know(members)
                if not end.is_termed:
                    end.is_termed = True
                    leader = 0 if end.is_headless else end.tree.leader
                    self._processes.ask_to_end(leader, end.pidfd, members, end.spare)
                if end.is_headless:
                    self._look_at_rest(end, [member for member in members if member not in end.spare], now)
        finally:
            if self._ends:
                self._look_in(self._until_next_look(now))
                self._pause = min(_SLOWEST, self._pause * 1.5)

    def _kill(self, ends: Sequence[_End[T]], now: float) -> list[list[Member]]:
        """KILL all of them; who was hit, and may not be gone yet."""
        spare: set[Member] = set()
        found = self._processes.stop_and_kill([end.tree for end in ends], spare)
        for end in ends:
            if not end.is_headless:
                # Whatever the scan was able to see; its number is its own.
                self._processes.send_group(end.pidfd, end.tree.leader, signal.SIGKILL)
            end.killed = now
            end.is_termed = True
            end.spare |= spare
        return found

    def _look_at_rest(self, end: _End[T], rest: list[Member], now: float) -> None:
        """The first process has ended: tell, or see to the others (in their grace they are left alone)."""
        if end.killed and now - end.killed > GIVE_UP:
            for member in rest:
                note(end.output, f"process {member.pid} could not be ended")
            rest = []
        if not rest:
            del self._ends[end.of]
            self._is_gone(end.of)
        elif end.killed:
            self._processes.send_all(rest, signal.SIGKILL, end.spare)

    def _until_next_look(self, now: float) -> float:
        """A first process in its grace wakes us by ending; the others must be looked for."""
        wait = min((end.deadline - now for end in self._ends.values() if not end.killed), default=_SLOWEST)
        if any(end.is_headless or end.killed for end in self._ends.values()):
            wait = min(wait, self._pause)
        return max(0.0, wait)
