"""What a graph is when it reaches the master: every default resolved, every name checked by type.

The SDK's builder and the YAML loader both make these; the wire carries them as they are. Edges, cycles and
duplicates are the scheduler's to judge (`scheduler.graph`), for one graph as for a hundred thousand tasks.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_NAME = 200
MAX_NAMED_TASKS = 100_000
MAX_MEMBERS = 10_000_000
MAX_PARTS = 2 * MAX_NAMED_TASKS
"""Attachments of one graph: a payload and a function for each named task."""
MAX_SECONDS = 10 * 365 * 86400.0
"""No delay, timeout or wait is longer than ten years."""
MAX_RETRIES = 60_000
"""An attempt's number is 16 bits on the wire."""
MAX_PAYLOAD = 4 << 20
"""Bytes of one member's payload."""
DEFAULT_GRACE = 10.0
DEFAULT_BACKOFF = 1.0
DEFAULT_MAX_DELAY = 60.0
DEFAULT_AFFINITY_WAIT = 2.0


Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
Priority = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class Retry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """When a failed attempt is tried again. Delay n is ``min(max_delay, backoff * 2**(n-1))``, half of it jitter."""

    max: Annotated[int, Meta(ge=0, le=MAX_RETRIES)] = 0
    backoff: Seconds = DEFAULT_BACKOFF
    max_delay: Seconds = DEFAULT_MAX_DELAY
    on: tuple[int | Literal["timeout"], ...] = ()
    """Exit codes, or ``timeout``, that are worth another attempt; empty means every failure."""


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Where a task would rather run. ``parent``: the worker of the parent that finished last (or of ``key`` when it
    names a parent); ``key``: the worker where tasks of that key gather."""

    kind: Literal["parent", "key"]
    key: str = ""
    mode: Literal["prefer", "require"] = "prefer"
    wait: Seconds = DEFAULT_AFFINITY_WAIT


class Work(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What the worker does; the master stores it and looks only for the results it takes.

    Exactly one of ``argv``, ``shell``, ``file`` and ``function`` is set. In an array, ``${matrix.x}`` in any text is
    replaced by the worker from the member's payload, a JSON object ``{"x": value}``. So is ``${tasks.NAME.result}`` in
    any text but ``file`` and ``python``, from what the task NAME wrote (`results.references` tells whose results those
    are).
    """

    argv: tuple[str, ...] = ()
    shell: str = ""
    file: str = ""
    """A path relative to the project."""
    args: tuple[str, ...] = ()
    python: str = ""
    isolation: Literal["warm", "fresh"] = "warm"
    """Whether a Python script may begin as a fork of a process that has the interpreter up."""
    preload: tuple[str, ...] = ()
    """Modules which that process has loaded."""
    env: dict[str, str] = {}
    timeout: Seconds = 0.0
    """Seconds; 0 means none."""
    grace: Seconds = DEFAULT_GRACE
    function: Annotated[int, Meta(ge=-1, le=MAX_PARTS)] = -1
    """Which attachment holds the pickled function; -1: none. Then the members' payloads are pickles: an item, or in a
    task that is no array (args, kwargs). Only workers and clients unpickle."""
    spread: bool = False
    """Of a function's array: the members' payloads are (args, kwargs), too."""
    arguments: tuple[Name, ...] = ()
    """Tasks whose results are arguments of the function: the pickles name them by their place here."""

    @property
    def is_function(self) -> bool:
        return self.function >= 0


class TaskSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A named task, or an array of ``count`` tasks with one description."""

    name: Name
    work: Work
    needs: tuple[str, ...] = ()
    requires: tuple[Name, ...] = ()
    priority: Priority = 1
    delay: Seconds = 0.0
    retry: Retry = Retry()
    when: Literal["success", "failure", "always"] = "success"
    affinity: Affinity | None = None
    count: Annotated[int, Meta(ge=1, le=MAX_MEMBERS)] = 1
    payload: Annotated[int, Meta(ge=-1, le=MAX_PARTS)] = -1
    """Which attachment holds the members' payloads: (count + 1) big-endian u32 offsets, then the bytes; -1: none."""
    array: bool = False
    """True for an array even of one member: its members are addressed ``name[i]``."""


class GraphSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A whole graph."""

    name: Name
    tasks: tuple[TaskSpec, ...]
    env: dict[str, str] = {}
    project: str = ""
    """SHA-256 (hex) of the project archive, which the master holds; empty: none."""
