"""The heartbeat table: one scan over 10,000 rows of which nothing is to be said, and compiled against pure.

Figures are medians; the two sides of the ratio run in turn.
"""

from __future__ import annotations

import statistics
import time
from types import ModuleType
from typing import Any

ROWS = 10_000
ROUNDS = 101


def measure() -> dict[str, float]:
    """``heartbeat_scan_10k_us``: microseconds, less is better; ``heartbeat_compiled_vs_pure``: more is better."""
    from titan_fast import _heartbeat, _heartbeat_py

    compiled, pure = filled(_heartbeat), filled(_heartbeat_py)
    seconds = [(scan(compiled), scan(pure)) for _ in range(ROUNDS)]
    return {
        "heartbeat_scan_10k_us": statistics.median(mine for mine, _ in seconds) * 1e6,
        "heartbeat_compiled_vs_pure": statistics.median(other / mine for mine, other in seconds),
    }


def filled(module: ModuleType) -> Any:
    table = module.HeartbeatTable()
    for row in range(ROWS):
        table.add(100 + row * 1e-4)
    return table


def scan(table: Any) -> float:
    began = time.process_time()
    table.scan(102.0, 5.0, 15.0)
    return time.process_time() - began


def main() -> None:
    for name, value in measure().items():
        print(f"{name:32} {value:8.2f}")


if __name__ == "__main__":
    main()
