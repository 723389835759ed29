"""The contract of an executor: it starts attempts, ends them when asked, and says how each one ended.

An executor knows nothing of the master, the protocol or other attempts' order; `worker.slots` decides what to
start and when. One suite (tests/worker/executors) runs over every executor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from titan_fast.ids import Ending


class Attempt(msgspec.Struct, frozen=True):
    """One try of one task, ready to start: everything resolved, nothing left to look up."""

    fence: int
    task: str
    """``12/extract`` or ``12/square[417]``, for messages."""
    argv: tuple[str, ...]
    """argv[0] is a path with a slash, or a name to look up on the PATH of ``env``."""
    env: dict[str, str]
    """The whole environment, nothing is added."""
    cwd: str
    attempt_dir: str
    """Exists; ``output`` in it becomes the output file, TITAN_RESULT points to ``result`` in it."""
    timeout: float = 0.0
    """Seconds; 0: none."""
    grace: float = 10.0
    """Seconds between TERM and KILL."""
    preload: tuple[str, ...] | None = None
    """It is a Python script (interpreter, ``-u``, path, arguments) that may begin as a fork of a process with these
    modules loaded; None: it may not."""


class Clocks(msgspec.Struct, frozen=True):
    """One moment, in seconds of the clocks that matter for an attempt; they go on over restarts of the agent."""

    wall: float
    monotonic: float
    boot: float
    """Since boot, sleep included: what start times of processes are told in."""


def now() -> Clocks:
    """The clocks of this machine."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
    return Clocks(time.time(), time.monotonic(), boot)


class Exit(msgspec.Struct, frozen=True):
    """How a process ended."""

    how: int
    """os.CLD_EXITED, CLD_KILLED or CLD_DUMPED."""
    code: int
    """Exit code, or the signal's number."""
    at: float
    """Monotonic clock, seconds."""


class Left(msgspec.Struct, frozen=True):
    """What is written down of an attempt that an earlier agent began and did not report."""

    attempt: Attempt
    """Without command: only what its processes can be told by matters."""
    began: Clocks
    pid: int = 0
    """Its first process; 0: that agent died before it could write it down."""
    spawned: float = 0.0
    """Seconds since boot when the process was there."""
    stopping: Ending | None = None
    """Why it was being ended."""
    exit: Exit | None = None
    """How its first process ended; None: it had not, as far as that agent knew."""


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended."""

    fence: int
    ending: Ending
    code: int
    """Exit code, signal number or errno, as ``ending`` says."""
    started: float
    """Wall clock, seconds."""
    duration: float
    """Seconds, by the monotonic clock."""
    output_size: int
    """Bytes the attempt wrote to its output in all, dropped ones included."""
    result: bytes
    """What it wrote to TITAN_RESULT, if that is text of at most 64 KiB; for NOT_STARTED the reason as text."""
    is_file: bool = False
    """It succeeded, and what it wrote to TITAN_RESULT is something else: it stays in the attempt's directory."""


class Observer(Protocol):
    """Who is told. Called on the event loop, never from inside `start`, `adopt` or `kill`."""

    def attempt_started(self, fence: int, pid: int, started: float) -> None: ...
    def attempt_ended(self, outcome: Outcome) -> None: ...


class Recorder(Protocol):
    """Who writes down what the next agent needs. Called at once, from wherever it happens; never raises."""

    def spawn_note(self, fence: int) -> tuple[int, bytes] | None:
        """For `_spawn.spawn`: what the process writes down itself."""

    def spawned(self, fence: int, pid: int, at: float) -> None:
        """``at``: seconds since boot."""

    def stopping(self, fence: int, ending: Ending) -> None: ...

    def exited(self, exits: Sequence[tuple[int, Exit]]) -> None:
        """(fence, how its first process ended), before their numbers are given back."""


class Executor(Protocol):
    def start(self, attempt: Attempt) -> None:
        """Begin. Never raises for what the attempt is: what cannot start ends with NOT_STARTED."""

    def adopt(self, left: Sequence[Left]) -> list[int]:
        """Go on with what an earlier agent left; called once, before anything else. The attempts are told as usual
        when they have ended, their start is not told again. Everything that agent left which belongs to none of
        them is ended.

        Returns:
            The fences that cannot be gone on with: nothing of them runs any more and nobody knows how they ended.
        """

    def kill(self, fence: int, grace: float) -> None:
        """TERM to the tree, ``grace`` seconds later KILL; ends as KILLED. Unknown or ended fences are ignored."""

    async def close(self, grace: float) -> None:
        """Kill everything, wait until it is gone."""
