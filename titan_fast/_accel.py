"""Chooses the compiled modules or their pure-Python twins: all or none, never a mixture.

``TITAN_FAST_ACCEL``: ``auto`` (default) takes the compiled ones when all of them import, ``require`` refuses to
start without them, ``off`` takes the pure ones. This is the only importer of the twins.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from titan_fast.errors import NoCompiledModules

TWINS = ("_proto", "_heap", "_heartbeat", "_spawn")
VARIABLE = "TITAN_FAST_ACCEL"


def load(names: tuple[str, ...], compiled: bool) -> list[Any]:
    """Import the named twins, compiled or pure. Raises ImportError when a compiled one is missing."""
    suffix = "" if compiled else "_py"
    return [importlib.import_module(f"titan_fast.{name}{suffix}") for name in names]


def _choose() -> tuple[str, str, list[Any]]:
    wish = os.environ.get(VARIABLE, "auto")
    if wish not in ("auto", "require", "off"):
        raise NoCompiledModules(
            f"{VARIABLE}={wish!r} is not known", hint=f"set {VARIABLE} to auto, require or off, or unset it"
        )
    if wish == "off":
        return "pure", f"{VARIABLE}=off", load(TWINS, compiled=False)
    try:
        return "compiled", "", load(TWINS, compiled=True)
    except ImportError as error:
        if wish == "require":
            raise NoCompiledModules(
                f"{VARIABLE}=require, but the compiled modules are not all there ({error})",
                hint=f"install a C compiler and reinstall titan-fast, or set {VARIABLE}=auto",
            ) from error
        return "pure", str(error), load(TWINS, compiled=False)


if TYPE_CHECKING:
    from titan_fast import _heap, _heartbeat, _proto, _spawn

    accel: str
    why: str
else:
    accel, why, (_proto, _heap, _heartbeat, _spawn) = _choose()

Framer = _proto.Framer
frame = _proto.frame
pack = _proto.pack
unpack = _proto.unpack
ReadyQueue = _heap.ReadyQueue
Timers = _heap.Timers
HeartbeatTable = _heartbeat.HeartbeatTable
spawn = _spawn.spawn
