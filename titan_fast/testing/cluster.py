"""A real cluster for a test: a master and workers as processes, in a folder of its own, gone when the test ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from titan_fast.config import token_path
from titan_fast.sdk.client import Client
from titan_fast.sdk.local import LocalCluster

T = TypeVar("T")

DEADLINE = 30.0


def until(condition: Callable[[], T], what: str, timeout: float = DEADLINE) -> T:
    """Wait on a condition, not on a time; returns what the condition gave.

    Raises:
        AssertionError: it did not hold within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return value


class Cluster(LocalCluster):
    """`LocalCluster` with what tests ask for.

    with Cluster(tmp_path) as cluster:
        cluster.start_worker("w1", "--slots", "2")
        cluster.wait_for_workers(1)
        cluster.client().submit(graph).wait(30)
    """

    def client(self) -> Client:
        host, _, port = self.address.rpartition(":")
        return Client(self.address, token_file=str(token_path(host, int(port), "client", self.environ)))

    def ended(self) -> str:
        """Names of what is not running any more."""
        processes = {"master": self.master, **self.workers}
        return ", ".join(name for name, process in processes.items() if process and process.poll() is not None)

    def kill_master(self) -> None:
        """As a power cut of the process: nothing is said, nothing is tidied up."""
        assert self.master is not None
        self.master.kill()
        self.master.wait()

    def restart_master(self) -> None:
        """The next master, on the state and the port of the one that is gone."""
        self.start_master(int(self.address.rpartition(":")[2]))

    def wait_for_workers(self, count: int, state: str = "READY", timeout: float = DEADLINE) -> None:
        with self.client() as client:
            until(
                lambda: [worker.state for worker in client.workers()].count(state) >= count,
                f"{count} workers {state}; {self.home / 'log'} has what they said",
                timeout,
            )
