"""What identifies a thing, and how it is written.

A **run** is a number (u64). A **task** is (run, index): every task of a run, array members included, has one
index counted through the run. It is written ``12/extract`` or ``12/square[417]``. A **fence** is (epoch,
sequence) in one u64; it is given to each attempt and only ever grows; JSON shows it as ``epoch.sequence``.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple, NewType

RunId = NewType("RunId", int)
WorkerId = NewType("WorkerId", str)
Fence = NewType("Fence", int)

FENCE_SEQUENCE_BITS = 40
"""The low bits of a fence: 10**12 attempts for each start of a master, 16 million starts."""

_TASK_ID = re.compile(r"(?P<run>\d{1,19}|last)(?:/(?P<task>[^\[\]]+)(?:\[(?P<member>\d{1,10})\])?)?")


class Ending(IntEnum):
    """How an attempt ended, as the worker saw it (one byte of a RESULT record)."""

    EXIT = 0
    """The process exited by itself; ``code`` is its exit code."""
    SIGNAL = 1
    """A signal ended it that we did not send; ``code`` is the signal's number."""
    TIMEOUT = 2
    """It ran longer than its ``timeout`` and was ended."""
    KILLED = 3
    """The master asked for it (cancel, or an attempt that another one replaced)."""
    RECALLED = 4
    """It had not started and was given back to the master."""
    NOT_STARTED = 5
    """It could not be started; the result bytes say why (missing program, unreadable project, …)."""
    DROPPED = 6
    """It was asked to end before it had started."""


class TaskId(NamedTuple):
    """A task, array or run as a user names it; ``run`` is None for ``last``, the newest run."""

    run: int | None
    task: str | None = None
    member: int | None = None

    def __str__(self) -> str:
        text = "last" if self.run is None else str(self.run)
        if self.task is not None:
            text += f"/{self.task}"
        if self.member is not None:
            text += f"[{self.member}]"
        return text


def parse_task_id(text: str) -> TaskId | None:
    """``12``, ``12/extract``, ``12/square[417]`` or ``last…`` as a TaskId; None when it is none of them."""
    match = _TASK_ID.fullmatch(text.strip())
    if match is None:
        return None
    run, task, member = match["run"], match["task"], match["member"]
    return TaskId(None if run == "last" else int(run), task, None if member is None else int(member))


def make_fence(epoch: int, sequence: int) -> int:
    return epoch << FENCE_SEQUENCE_BITS | sequence


def epoch_of(fence: int) -> int:
    return fence >> FENCE_SEQUENCE_BITS


def format_fence(fence: int) -> str:
    """``epoch.sequence``: JSON readers lose bits of a u64."""
    return f"{fence >> FENCE_SEQUENCE_BITS}.{fence & ((1 << FENCE_SEQUENCE_BITS) - 1)}"
