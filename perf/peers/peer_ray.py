"""Ray: one node with two CPUs, plain remote tasks, no dashboard.

Ray's own advice for tiny tasks is to put many into one; then they are no tasks any more (nothing retries or cancels
one), so each is a task here, as it is for everybody. All are submitted before anything is waited for, and one `ray.get`
fetches all results.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import contract


def noop(item: int) -> int:
    return item


def after(parent: int, item: int) -> int:
    return item


def count(*items: int) -> int:
    return len(items)


def run(argv: list[str]) -> int:
    return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode


class Ray(contract.Contender):
    """Measures Ray."""

    name = "ray"
    package = "ray"
    modules = ("ray",)
    _ray = None

    def start(self, workers: bool = True) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
        import ray

        ray.init(num_cpus=contract.SLOTS, include_dashboard=False, log_to_driver=False, logging_level="error")
        self._ray = ray
        # A node without workers cannot be had: what is to stay queued wants something that no node has.
        options = {} if workers else {"resources": {"nobody": 1}}
        self._noop, self._after, self._count, self._run = (
            ray.remote(function).options(**options) for function in (noop, after, count, run)
        )

    def stop(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()

    def schedulers(self) -> list[int]:
        """All it started, and its client, which owns the tasks and keeps their queue."""
        return [os.getpid()]

    def call(self, item: int) -> object:
        return self._ray.get(self._noop.remote(item))

    def map(self, count: int) -> Sequence[object]:
        return self._ray.get([self._noop.remote(item) for item in range(count)])

    def singles(self, count: int) -> Sequence[object]:
        return self.map(count)

    def chain(self, count: int) -> object:
        last = self._noop.remote(0)
        for _ in range(count - 1):
            last = self._noop.remote(last)
        return self._ray.get(last)

    def fan(self, width: int) -> object:
        root = self._noop.remote(0)
        return self._ray.get(self._count.remote(*[self._after.remote(root, item) for item in range(width)]))

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        return self._ray.get([self._run.remote(argv) for argv in commands])

    def queue(self, count: int) -> None:
        self._queued = [self._noop.remote(item) for item in range(count)]


if __name__ == "__main__":
    contract.main(Ray)
