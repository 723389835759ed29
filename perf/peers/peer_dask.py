"""dask.distributed: one scheduler and one worker with two threads, as processes of their own.

Threads, no nanny, no dashboard: the functions hold the interpreter for microseconds or wait for a process, and that is
the smallest and fastest set-up. `Client.map` and `gather` are its batch calls. Its functions are pure by default (the
same call again is not run again), so ``pure=False``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import contract


def noop(item: int) -> int:
    return item


def after(item: int, parent: int) -> int:
    return item


def count(items: list[int]) -> int:
    return len(items)


def run(argv: list[str]) -> int:
    return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode


class Dask(contract.Contender):
    """Measures dask.distributed."""

    name = "dask"
    package = "distributed"
    modules = ("distributed",)
    _client = None
    _processes = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._queued: list[list[object]] = []
        """All of them: the scheduler forgets a task whose future is gone, and its count would never be reached."""

    def start(self, workers: bool = True) -> None:
        from distributed import Client

        # All start at once; the worker and the client wait for the file.
        place = str(self.folder / "scheduler.json")
        log = self.folder / "log"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", place]
        self._processes = [contract.start([sys.executable, "-m", "distributed.cli.dask_scheduler", *options], log)]
        if workers:
            options = ["--nthreads", str(contract.SLOTS), "--no-nanny", "--no-dashboard", "--scheduler-file", place]
            argv = [sys.executable, "-m", "distributed.cli.dask_worker", *options]
            self._processes.append(contract.start([*argv, "--local-directory", str(self.folder)], log))
        self._client = Client(scheduler_file=place, set_as_default=False)

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        for process in reversed(self._processes):
            contract.end(process)

    def schedulers(self) -> list[int]:
        return [self._processes[0].pid]

    def workers(self) -> list[int]:
        return [self._processes[1].pid]

    def call(self, item: int) -> object:
        return self._client.submit(noop, item, pure=False).result()

    def map(self, count: int) -> Sequence[object]:
        return self._client.gather(self._client.map(noop, range(count), pure=False))

    def singles(self, count: int) -> Sequence[object]:
        return self._client.gather([self._client.submit(noop, item, pure=False) for item in range(count)])

    def chain(self, count: int) -> object:
        future = self._client.submit(noop, 0, pure=False)
        for _ in range(count - 1):
            future = self._client.submit(noop, future, pure=False)
        return future.result()

    def fan(self, width: int) -> object:
        root = self._client.submit(noop, 0, pure=False)
        members = self._client.map(after, range(width), parent=root, pure=False)
        return self._client.submit(count, members, pure=False).result()

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        return self._client.gather(self._client.map(run, commands, pure=False))

    def queue(self, count: int) -> None:
        before = self._known()
        self._queued.append(self._client.map(noop, range(count), pure=False))
        while self._known() < before + count:
            time.sleep(0.01)

    def _known(self) -> int:
        return self._client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


if __name__ == "__main__":
    contract.main(Dask)
