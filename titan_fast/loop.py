"""Runs a coroutine on uvloop where it is asked for and installed, else on asyncio. The only import of uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


def run(main: Coroutine[Any, Any, int], use_uvloop: bool = True) -> int:
    """Run to the end and return what ``main`` returns."""
    if use_uvloop and has_uvloop():
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)
