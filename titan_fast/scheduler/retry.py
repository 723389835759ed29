"""Whether a failed attempt is worth another one, and after how long."""

from __future__ import annotations

import random

from titan_fast.ids import Ending
from titan_fast.model.spec import Retry


def is_retryable(retry: Retry, failures: int, ending: Ending, code: int) -> bool:
    """``failures`` counts this one. With ``on`` set, only the named exit codes (or ``timeout``) qualify."""
    if failures > retry.max:
        return False
    if not retry.on:
        return True
    if ending is Ending.TIMEOUT:
        return "timeout" in retry.on
    return ending is Ending.EXIT and code in retry.on


def backoff(retry: Retry, failures: int, rng: random.Random) -> float:
    """Seconds until the next attempt: exponential and capped, the upper half of it random.

    Half jitter keeps a floor under the wait (a failing dependency gets its rest) and still spreads a thousand tasks
    that failed together. See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    full = min(retry.max_delay, retry.backoff * 2.0 ** min(failures - 1, 60))
    return full * (0.5 + rng.random() / 2)
