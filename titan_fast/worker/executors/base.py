"""The contract of an executor: it starts attempts, ends them when asked, and says how each one ended.

An executor knows nothing of the master, the protocol or other attempts' order; `worker.slots` decides what to
start and when. One suite (tests/worker/test_executors.py) runs over every executor.
"""

from __future__ import annotations

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
    """What it wrote to TITAN_RESULT (at most 64 KiB); for NOT_STARTED the reason as text."""


class Observer(Protocol):
    """Who is told. Called on the event loop, never from inside `start` or `kill`."""

    def attempt_started(self, fence: int, pid: int, started: float) -> None: ...
    def attempt_ended(self, outcome: Outcome) -> None: ...


class Executor(Protocol):
    def start(self, attempt: Attempt) -> None:
        """Begin. Never raises for what the attempt is: what cannot start ends with NOT_STARTED."""

    def kill(self, fence: int, grace: float) -> None:
        """TERM to the tree, ``grace`` seconds later KILL; ends as KILLED. Unknown or ended fences are ignored."""

    async def close(self, grace: float) -> None:
        """Kill everything, wait until it is gone."""
