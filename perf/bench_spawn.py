"""Starting and reaping `/bin/true`: our starter against a bare `os.posix_spawn` loop, both with two in flight.

Both make a new output file for each child, in folders that are used again as the worker's are (a new folder can cost
more than a process on ext4), and give it a session of its own (with autogroups a busy machine schedules sessions, not
processes, which alone halves the rate there). Runs alternate, so that a change of the machine's mood hits both; the
figure is the median of the ratios of neighbours. Run as a program it prints more.
"""

from __future__ import annotations

import os
import select
import statistics
import tempfile
import time
from collections.abc import Callable

COUNT = 500
ROUNDS = 9
IN_FLIGHT = 2


def measure() -> dict[str, float]:
    """``spawn_vs_posix_spawn``: our rate over the bare one; more is better."""
    bare(COUNT // 4)
    ours(COUNT // 4)
    return {"spawn_vs_posix_spawn": compare(lambda: ours(COUNT), lambda: bare(COUNT))}


def compare(mine: Callable[[], float], other: Callable[[], float], rounds: int = ROUNDS) -> float:
    """The median of mine / other; who goes first alternates."""
    ratios = []
    for number in range(rounds):
        if number % 2:
            a = mine()
            b = other()
        else:
            b = other()
            a = mine()
        ratios.append(a / b)
    return statistics.median(ratios)


class Folders:
    """A few attempt directories, taken in turn and emptied before each use."""

    def __init__(self, root: str) -> None:
        self._places = [f"{root}/{number}" for number in range(4 * IN_FLIGHT)]
        for place in self._places:
            os.mkdir(place, 0o700)
            os.close(self._create(place))

    def next(self, number: int) -> str:
        place = self._places[number % len(self._places)]
        os.unlink(f"{place}/output")
        return place

    def open_output(self, number: int) -> int:
        return self._create(self.next(number))

    def new_output(self, number: int) -> bytes:
        place = self.next(number)
        os.close(self._create(place))
        return os.fsencode(f"{place}/output")

    @staticmethod
    def _create(place: str) -> int:
        return os.open(f"{place}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def bare(count: int) -> float:
    """A loop of os.posix_spawn and waitpid; children per second."""
    environ = {"PATH": "/usr/bin:/bin"}
    with tempfile.TemporaryDirectory() as root:
        folders = Folders(root)
        started = ended = 0
        began = time.perf_counter()
        while ended < count:
            while started < count and started - ended < IN_FLIGHT:
                output = folders.open_output(started)
                actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
                os.posix_spawn("/bin/true", ["/bin/true"], environ, file_actions=actions, setsid=True)
                os.close(output)
                started += 1
            os.waitpid(-1, 0)
            ended += 1
        return count / (time.perf_counter() - began)


def ours(count: int) -> float:
    """The starter of the house with everything it does besides, watched by pidfd; children per second."""
    from titan_fast._accel import spawn

    children: dict[int, int] = {}
    environ = [b"PATH=/usr/bin:/bin"]
    with tempfile.TemporaryDirectory() as root, select.epoll() as poll:
        folders = Folders(root)
        started = ended = 0
        began = time.perf_counter()
        while ended < count:
            while started < count and started - ended < IN_FLIGHT:
                output = folders.new_output(started)
                pid, pidfd = spawn([b"/bin/true"], environ, b"/", output, 1 << 40)
                poll.register(pidfd, select.EPOLLIN)
                children[pidfd] = pid
                started += 1
            for pidfd, _ in poll.poll():
                os.waitid(os.P_PID, children.pop(pidfd), os.WEXITED)
                os.close(pidfd)
                ended += 1
        return count / (time.perf_counter() - began)


def executor(count: int) -> float:
    """The whole executor on asyncio: attempt directory, output, start, exit, outcome; attempts per second."""
    import asyncio

    from titan_fast.worker.executors.base import Attempt, Outcome
    from titan_fast.worker.executors.spawn import SpawnExecutor

    async def run(root: str) -> float:
        folders = Folders(root)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        env = {"PATH": "/usr/bin:/bin", "HOME": "/", "TITAN_FENCE": "1.1", "TITAN_ATTEMPT_DIR": root}
        started = ended = 0

        def start() -> None:
            nonlocal started
            place = folders.next(started)
            started += 1
            runner.start(
                Attempt(fence=started, task="1/true", argv=("true",), env=env, cwd="/", attempt_dir=place, timeout=60)
            )

        class Watch:
            def attempt_started(self, fence: int, pid: int, at: float) -> None:
                pass

            def attempt_ended(self, outcome: Outcome) -> None:
                nonlocal ended
                ended += 1
                if started < count:
                    start()
                elif ended == count:
                    done.set_result(None)

        runner = SpawnExecutor(Watch())
        began = time.perf_counter()
        for _ in range(IN_FLIGHT):
            start()
        await done
        rate = count / (time.perf_counter() - began)
        await runner.close(0)
        return rate

    with tempfile.TemporaryDirectory() as root:
        return asyncio.run(run(root))


def main() -> None:
    for name, value in measure().items():
        print(f"{name:28} {value:.3f}")
    print(f"{'executor_vs_posix_spawn':28} {compare(lambda: executor(COUNT), lambda: bare(COUNT)):.3f}")
    for title, run in (("bare", bare), ("ours", ours), ("executor", executor)):
        before = time.process_time()
        rate = run(COUNT * 4)
        spent = (time.process_time() - before) / (COUNT * 4)
        print(f"{title:10} {rate:6.0f} per second, {spent * 1e6:4.0f} us of processor time of our own for each")


if __name__ == "__main__":
    main()
