"""A cluster of one's own, from nothing to its first result, and what it occupies when it is idle; and a workflow of
real processes against a schedule without any overhead.

Start and memory are W7 of `peers/`. The workflow is the small instance of the tests, replayed by `titan-fast bench
replay` in a little more than two seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTANCE = ROOT / "tests" / "data" / "diamond.wfformat.json"
SCALE = 0.45
"""Of its 5.5 seconds."""
ROUNDS = 3


def measure() -> dict[str, float]:
    each = [start() for _ in range(ROUNDS)]
    started = {figure: statistics.median(found[figure] for found in each) for figure in each[0]}
    return {
        "start_seconds": started["seconds"],
        "idle_master_mib": started["scheduler"],
        "idle_worker_mib": started["worker"],
        "replay_efficiency": replay(),
    }


def start() -> dict[str, float]:
    """As the comparison measures it, in a process of its own: the client's imports are no part of it."""
    argv = [sys.executable, str(ROOT / "perf" / "peers" / "ours.py"), "--work", "W7"]
    figures: dict[str, float] = json.loads(run(argv))["figures"]
    return figures


def replay() -> float:
    """What part of the wall time a schedule without overhead would have needed."""
    options = ["--local", "--slots", "16", "--scale", str(SCALE), "--json"]
    efficiency: float = json.loads(
        run([sys.executable, "-P", "-m", "titan_fast", "bench", "replay", str(INSTANCE), *options])
    )["efficiency"]
    return efficiency


def run(argv: list[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="start-") as home:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TITAN_HOME": home}
        return subprocess.run(argv, env=environ, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


def main() -> None:
    for name, value in measure().items():
        print(f"{name:26} {value:7.3f}")


if __name__ == "__main__":
    main()
