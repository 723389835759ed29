"""A real cluster for a test: a master and workers as processes, in a folder of its own, gone when the test ends."""

from __future__ import annotations

import time
from pathlib import Path

from titan_fast.config import token_path
from titan_fast.sdk.client import Client
from titan_fast.sdk.local import LocalCluster

DEADLINE = 30.0


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

    def wait_for_workers(self, count: int, state: str = "READY", timeout: float = DEADLINE) -> None:
        deadline = time.monotonic() + timeout
        with self.client() as client:
            while True:
                states = [worker.state for worker in client.workers()]
                if states.count(state) >= count:
                    return
                if time.monotonic() > deadline:
                    log = Path(self.home / "log").read_text()[-2000:]
                    raise AssertionError(f"{count} workers {state} wanted, there are {states}\n{log}")
                time.sleep(0.02)
