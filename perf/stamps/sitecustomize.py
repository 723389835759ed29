"""Stamps the time at which the processes of a cluster pass certain points; an interpreter imports it by its name.

Only where TITAN_FAST_STAMPS names a folder: there each process leaves ``<pid>`` when it ends, a line for each stamp,
``<monotonic nanoseconds> <point>``. The points are the beginnings (and ends) of functions of the product, which knows
nothing of this.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import time
from typing import Any

FOLDER = os.environ.get("TITAN_FAST_STAMPS", "")
POINTS = {
    "master": (
        ("master.session", "Session", "data_received", "master read", ""),
        ("master.session", "Session", "_write", "master writes to {0.role.name}", "master wrote to {0.role.name}"),
        ("master.pump", "Pump", "_turn", "turn begins", "turn ends"),
        ("master.effects", "Effects", "assign", "decided", ""),
        ("master.store.sqlite", "SqliteStore", "commit", "commit begins", "commit ends"),
        ("master.pump", "Pump", "became_durable", "loop hears of commit", ""),
    ),
    "agent": (
        ("worker.link", "_Session", "data_received", "agent read", ""),
        ("worker.executors.functions", "Functions", "_say", "agent hands on", "agent handed on"),
        ("worker.executors.functions", "Functions", "_heard", "agent hears", ""),
        ("worker.link", "_Session", "_flush", "agent writes", "agent wrote"),
    ),
    "client": (
        ("sdk.wire", "Wire", "write", "client writes", "client wrote"),
        ("sdk.wire", "Wire", "_read", "", "client read"),
    ),
}
"""Role -> (module, class, function, point at its beginning, point at its end); both may name an argument."""

_stamps: list[tuple[int, str]] = []


def stamp(point: str) -> None:
    _stamps.append((time.monotonic_ns(), point))


def watch(role: str) -> None:
    for module, cls, name, before, after in POINTS[role]:
        owner = getattr(importlib.import_module(f"titan_fast.{module}"), cls)
        setattr(owner, name, _stamped(getattr(owner, name), before, after))


def _stamped(function: Any, before: str, after: str) -> Any:
    @functools.wraps(function)
    def stamped(*arguments: Any, **options: Any) -> Any:
        if before:
            stamp(before.format(*arguments).lower())
        try:
            return function(*arguments, **options)
        finally:
            if after:
                stamp(after.format(*arguments).lower())

    return stamped


def leave() -> None:
    with open(os.path.join(FOLDER, str(os.getpid())), "w") as file:
        file.writelines(f"{at} {point}\n" for at, point in _stamps)


def _role() -> str:
    with open("/proc/self/cmdline") as file:
        words = file.read().split("\0")
    return next((role for role in ("master", "agent") if "titan_fast" in words and role in words), "")


if FOLDER and (role := _role()):
    watch(role)
    atexit.register(leave)
