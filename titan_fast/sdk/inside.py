"""For code that runs as a task: the keys and artifacts of the cluster, and which task it is.

from titan_fast import inside

inside.kv.set("best", "0.93")
inside.artifacts.put("model.bin")
print(inside.task().name)

Outside of a task, keys and artifacts are those of an ordinary `Client`, so that a script can be tried by hand.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import msgspec

from titan_fast.errors import InvalidUsage
from titan_fast.sdk.client import Client
from titan_fast.sdk.data import Artifacts, Keys

kv: Keys
"""The cluster's key-value space."""
artifacts: Artifacts
"""Files under names of their own."""


class ThisTask(msgspec.Struct, frozen=True):
    """The attempt that this process is part of."""

    run: int
    name: str
    """As users write it: ``12/extract``, ``12/square[417]``."""
    attempt: int
    """Counts starts within the generation, from 1."""
    fence: str
    """``epoch.sequence``: only ever grows from one attempt to the next."""
    worker: str
    """The worker's name."""


def task() -> ThisTask:
    """Raises InvalidUsage outside of tasks."""
    try:
        return ThisTask(
            run=int(os.environ["TITAN_RUN_ID"]),
            name=os.environ["TITAN_TASK"],
            attempt=int(os.environ["TITAN_ATTEMPT"]),
            fence=os.environ["TITAN_FENCE"],
            worker=os.environ["TITAN_WORKER"],
        )
    except KeyError as error:
        raise InvalidUsage(f"this process is not part of a task: {error.args[0]} is not set") from None
    except ValueError as error:
        raise InvalidUsage(f"TITAN_RUN_ID and TITAN_ATTEMPT are numbers ({error})") from None


@functools.lru_cache(1)
def _client(fence: str) -> Client:
    """One for each attempt: a process may run the functions of many, one after the other."""
    return Client()


def __getattr__(name: str) -> Any:
    """`kv` and `artifacts` on first use: importing this connects to nothing and reads no settings."""
    if name in ("kv", "artifacts"):
        return getattr(_client(os.environ.get("TITAN_FENCE", "")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
