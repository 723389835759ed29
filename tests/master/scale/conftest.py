"""A master of real processes under load: paper workers that end everything at once, and clients that only submit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from titan_fast.errors import DiskFull
from titan_fast.master.store.schema import FILE
from titan_fast.master.store.sqlite import CACHE
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.sdk.client import Client
from titan_fast.sdk.handles import RunHandle
from titan_fast.testing.cluster import Cluster, until
from titan_fast.testing.paper_worker import PaperWorker, PaperWorkers

WORK = Work(argv=("true",))


class Load:
    """A cluster on paper; runs of ``members`` tasks each are submitted and waited for by a few clients."""

    def __init__(self, cluster: Cluster, members: int) -> None:
        self.cluster = cluster
        self._task = TaskSpec("a", WORK, count=members, array=members > 1)

    @property
    def resident(self) -> int:
        """Bytes of the master's memory."""
        return psutil.Process(self.cluster.master.pid).memory_info().rss

    @property
    def cached(self) -> int:
        """Bytes of the master's store that its cache may hold: all, up to the cache's size."""
        return min(CACHE, (self.cluster.home / "state" / FILE).stat().st_size)

    def run(self, runs: int, clients: int = 8) -> list[int]:
        """Submit so many runs and wait for the end of each. Their numbers."""
        numbers = itertools.count(1)
        return self.run_while(lambda: next(numbers) <= runs, clients)

    def run_while(self, goes_on: Callable[[], bool], clients: int = 8) -> list[int]:
        def work() -> list[int]:
            ended = []
            with self.cluster.client() as client:
                while goes_on():
                    run = until(lambda: self._submit(client), "a submit is taken", 60)
                    run.wait(60)
                    ended.append(run.id)
            return ended

        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(work) for _ in range(clients)]
            return sorted(number for future in futures for number in future.result())

    def _submit(self, client: Client) -> RunHandle | None:
        """None: the disk does not keep up with this load, and we are to try again in a moment."""
        try:
            return client.submit_spec(GraphSpec("load", (self._task,)))
        except DiskFull as error:
            if "try again in a moment" not in error.hint:
                raise
            return None


@pytest.fixture
def load(tmp_path):
    """Makes loads: ``with load(members, result, **settings) as it``, settings as environment variables."""

    @contextmanager
    def make(members, result=b"", **environ):
        with Cluster(tmp_path, environ=environ, options=["--drain", "0"]) as cluster:
            workers = [PaperWorker(name, result=result) for name in ("first", "second")]
            with PaperWorkers.of(cluster, *workers) as paper:
                until(lambda: paper.are_attached, "the workers are attached")
                yield Load(cluster, members)

    return make
