"""HyperQueue by its Python package: a server and a worker with two cores, in the process of the client.

Its functions start an interpreter each, which costs 50 ms, so its no-op is `/bin/true`: what it is made for. Nothing is
written for a task (``stdout=None``). The package asks once a second whether a job is done; we do not wait for that: a
last task, which needs the others, writes into a pipe, and the clock stops when it has run. The wheel has no `hq`
program, whose `hq submit --array` its authors recommend for arrays, so every task is described on its own.
"""

from __future__ import annotations

import gc
import os
import select
from collections.abc import Sequence

import contract

TRUE = ["/bin/true"]
PATIENCE = 240


class HyperQueue(contract.Contender):
    """Measures HyperQueue."""

    name = "hyperqueue"
    package = "hyperqueue"
    modules = ("hyperqueue", "hyperqueue.cluster")
    _cluster = None

    def start(self, workers: bool = True) -> None:
        from hyperqueue import LocalCluster
        from hyperqueue.cluster import WorkerConfig

        worker = WorkerConfig(cores=contract.SLOTS) if workers else None
        self._cluster = LocalCluster(server_dir=str(self.folder / "server"), worker_config=worker)
        self._client = self._cluster.client()
        self._pipe = self.folder / "done"
        os.mkfifo(self._pipe)
        # Open for writing, too: else the end of each writer is the end of the file.
        self._done = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.stop()

    def schedulers(self) -> list[int]:
        return [os.getpid()]

    def _job(self):
        from hyperqueue import Job

        return Job(default_workdir=str(self.folder))

    def _tell(self, job, deps=()):
        """A task that says that it runs."""
        return job.program(["/bin/sh", "-c", f"echo >> {self._pipe}"], stdout=None, stderr=None, deps=deps)

    def _wait(self, told: int) -> None:
        seen = 0
        while seen < told:
            if not select.select([self._done], [], [], PATIENCE)[0]:
                raise TimeoutError(f"{told - seen} of {told} jobs did not end within {PATIENCE} s")
            seen += len(os.read(self._done, 65536))

    def call(self, item: int) -> object:
        job = self._job()
        self._tell(job)
        self._client.submit(job)
        self._wait(1)
        return item

    def map(self, count: int) -> Sequence[object]:
        self.processes([TRUE] * count)
        return range(count)

    def singles(self, count: int) -> Sequence[object]:
        """Jobs of one task. All of them tell that they ran: no task can need those of other jobs."""
        for _ in range(count):
            job = self._job()
            self._tell(job)
            self._client.submit(job)
        self._wait(count)
        return range(count)

    def chain(self, count: int) -> object:
        job = self._job()
        last = []
        for _ in range(count - 1):
            last = [job.program(TRUE, stdout=None, stderr=None, deps=last)]
        self._tell(job, last)
        self._client.submit(job)
        self._wait(1)
        return 0

    def fan(self, width: int) -> object:
        job = self._job()
        root = job.program(TRUE, stdout=None, stderr=None)
        self._tell(job, [job.program(TRUE, stdout=None, stderr=None, deps=[root]) for _ in range(width)])
        self._client.submit(job)
        self._wait(1)
        return width

    def processes(self, commands: Sequence[list[str]]) -> Sequence[object]:
        """A task that fails keeps the last one from running."""
        job = self._job()
        self._tell(job, [job.program(argv, stdout=None, stderr=None) for argv in commands])
        self._client.submit(job)
        self._wait(1)
        return [0] * len(commands)

    def queue(self, count: int) -> None:
        job = self._job()
        for _ in range(count):
            job.program(TRUE, stdout=None, stderr=None)
        self._client.submit(job)
        # The description is the client's, which is in the same process.
        del job
        gc.collect()


if __name__ == "__main__":
    contract.main(HyperQueue)
