"""Small Python scripts, each a process of its own, two in flight: warm, by a fresh interpreter, and by a bare fork.

The bare one is the least that a fork of an interpreter can cost: fork, a session and an output file, exec of code that
was compiled before, the end. It has the same modules loaded as a template. Warm and fresh are the whole executor of a
worker, from an attempt to its outcome. Runs alternate, so that a change of the machine's mood hits all; the figures
are medians of the ratios of neighbours.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNT = 300
FRESH_COUNT = 60
ROUNDS = 5
IN_FLIGHT = 2
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/"}
SCRIPT = "total = sum(range({0}))\nprint('script', {0}, total)\n"

BARE = """
import ctypes, gc, os, sys, time
root, count, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
codes = [compile(open(f"{root}/{n}.py").read(), f"{root}/{n}.py", "exec") for n in range(count)]
gc.collect()
gc.freeze()
started = ended = 0
began = time.perf_counter()
while ended < count:
    while started < count and started - ended < in_flight:
        if os.fork() == 0:
            try:
                os.setsid()
                output = os.open(f"{root}/{started}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(output, 1)
                os.dup2(output, 2)
                exec(codes[started], {"__name__": "__main__"})
                sys.stdout.flush()
            finally:
                os._exit(0)
        started += 1
    os.waitpid(-1, 0)
    ended += 1
print(count / (time.perf_counter() - began))
"""


def measure() -> dict[str, float]:
    """``warm_vs_bare_fork`` and ``warm_vs_fresh``: rates of processes over each other; more is better."""
    with tempfile.TemporaryDirectory() as root:
        rates = asyncio.run(run(root))
    return {
        "warm_vs_bare_fork": ratio(rates["warm"], rates["bare"]),
        "warm_vs_fresh": ratio(rates["warm"], rates["fresh"]),
    }


def ratio(mine: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


async def run(root: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Scripts per second in each round, by way."""
    bench = Bench(root)
    await bench.warm_up()
    rates: dict[str, list[float]] = {"bare": [], "warm": [], "fresh": []}
    for _ in range(rounds):
        rates["bare"].append(bare(root))
        rates["warm"].append(await bench.play(COUNT, is_warm=True))
        rates["fresh"].append(await bench.play(FRESH_COUNT, is_warm=False))
    await bench.executor.close(0)
    return rates


def bare(root: str) -> float:
    for number in range(COUNT):
        Path(root, f"{number}.out").unlink(missing_ok=True)
    command = [sys.executable, "-c", BARE, root, str(COUNT), str(IN_FLIGHT)]
    return float(subprocess.run(command, env=ENV, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Bench:
    """The executor, and a script after the other."""

    def __init__(self, root: str) -> None:
        from titan_fast.worker.executors.warm import WarmExecutor

        self.executor = WarmExecutor(self, env=ENV)
        self._root = root
        self._is_warm = True
        self._count = self._began = self._ended = 0
        self._done: asyncio.Future[None] | None = None
        for number in range(COUNT):
            os.mkdir(f"{root}/{number}")
            Path(root, f"{number}.py").write_text(SCRIPT.format(number))

    async def warm_up(self) -> None:
        """Until a template is up and has seen each script."""
        while not self.executor.is_warm():
            await self.play(1, is_warm=True)
        await self.play(COUNT, is_warm=True)

    async def play(self, count: int, is_warm: bool) -> float:
        for number in range(count):
            if os.access(output := f"{self._root}/{number}/output", os.F_OK):
                os.unlink(output)
        self._done = asyncio.get_running_loop().create_future()
        self._count, self._began, self._ended, self._is_warm = count, 0, 0, is_warm
        started = time.perf_counter()
        for _ in range(min(count, IN_FLIGHT)):
            self._begin()
        await self._done
        return count / (time.perf_counter() - started)

    def _begin(self) -> None:
        from titan_fast.worker.executors.base import Attempt

        number = self._began
        self._began += 1
        place = f"{self._root}/{number}"
        argv = (sys.executable, "-u", f"{self._root}/{number}.py")
        env = {**ENV, "PYTHONUNBUFFERED": "1", "TITAN_FENCE": f"1.{number}", "TITAN_ATTEMPT_DIR": place}
        preload = () if self._is_warm else None
        self.executor.start(Attempt(number, "1/t", argv, env, cwd="/", attempt_dir=place, timeout=60, preload=preload))

    def attempt_started(self, fence: int, pid: int, at: float) -> None:
        pass

    def attempt_ended(self, outcome: object) -> None:
        self._ended += 1
        if self._began < self._count:
            self._begin()
        elif self._ended == self._count and self._done is not None:
            self._done.set_result(None)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        rates = asyncio.run(run(root))
    for way, each in rates.items():
        print(f"{way:20} {statistics.median(each):6.0f} scripts per second")
    print(f"{'warm_vs_bare_fork':20} {ratio(rates['warm'], rates['bare']):.3f}")
    print(f"{'warm_vs_fresh':20} {ratio(rates['warm'], rates['fresh']):.3f}")


if __name__ == "__main__":
    main()
