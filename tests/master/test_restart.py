"""A killed master that starts again goes on at once with a hundred thousand pending tasks; real processes, real disk.

Measured from the exec of the program to the first assignment that a worker receives, which was alive all the time.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
from report import Report

from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.testing.cluster import Cluster, until
from titan_fast.testing.paper_worker import PaperWorker, PaperWorkers

PENDING = 100_000
WORK = Work(argv=("true",))
GRAPHS = {
    "named": tuple(TaskSpec(f"t{number}", WORK) for number in range(PENDING)),
    "array": (TaskSpec("a", WORK, count=PENDING, array=True),),
}
ALIVE = 2.0
"""Seconds to the first assignment when every worker is there."""
LATE = 1.0
"""Seconds it may take after the grace for a worker that does not come."""
TRIES = 3
"""A machine with other work may be slow for a moment, a slow master always is: one good try decides."""
SPIN = 0.1
"""Processor seconds of a look at how much of the machine is ours."""
COMMAND = "pytest tests/master/test_restart.py"


class Killed:
    """A master with pending tasks that is killed and started again, and workers that stay (or not)."""

    def __init__(self, cluster: Cluster, workers: PaperWorkers) -> None:
        self._cluster = cluster
        self._workers = workers

    def start_again(self, *missing: PaperWorker) -> float:
        """Kill it; the seconds from the next exec to the first assignment."""
        port = int(self._cluster.address.rpartition(":")[2])
        self._cluster.master.kill()
        self._cluster.master.wait()
        until(lambda: self._workers.are_away, "the workers notice")
        for worker in missing:
            self._workers.vanish(worker)
        self._workers.forget()  # so that they have room
        began = time.monotonic()
        self._cluster.start_master(port)
        return until(self._assigned_at, "an assignment") - began

    def _assigned_at(self) -> float:
        return min((worker.assigned_at for worker in self._workers.workers if worker.assigned_at), default=0.0)


def slowness() -> float:
    """How many times longer things take because others use the machine too; the promises are for one of our own."""
    began, until = time.monotonic(), time.thread_time() + SPIN
    while time.thread_time() < until:
        pass
    return max(1.0, (time.monotonic() - began) / SPIN)


@contextmanager
def pending(home, kind, grace=10.0):
    """(the master, one of its two workers): all tasks of the graph are pending but for the few the workers hold."""
    first, second = (PaperWorker(name, 4, holds=True) for name in ("first", "second"))
    environ = {"TITAN_SCHEDULER_RECOVERY_GRACE": str(grace)}
    with (
        Cluster(home, environ=environ, options=["--drain", "0"]) as cluster,
        PaperWorkers.of(cluster, first, second) as workers,
    ):
        until(lambda: workers.are_attached, "the workers are attached")
        with cluster.client() as client:
            client.submit_spec(GraphSpec("pending", GRAPHS[kind]))
        until(lambda: first.assigned and second.assigned, "the workers hold something")
        yield Killed(cluster, workers), second


@pytest.mark.kill
@pytest.mark.parametrize("kind", GRAPHS)
def test_with_every_worker_alive_the_first_assignment_comes_within_two_seconds(tmp_path, kind):
    with Report(f"restart-{kind}", COMMAND) as report, pending(tmp_path, kind) as (master, _):
        tries = []
        while len(tries) < TRIES and (not tries or min(tries) > ALIVE):
            tries.append(master.start_again() / slowness())
        report.figures[f"{PENDING:,} pending, {kind}: first assignment after, s"] = min(tries)
        report.figures["tries"] = len(tries)
        assert min(tries) <= ALIVE


@pytest.mark.kill
@pytest.mark.parametrize("grace", [2.0, pytest.param(10.0, marks=pytest.mark.long)])
def test_a_worker_that_does_not_come_is_waited_for_no_longer_than_the_grace(tmp_path, grace):
    is_long = grace >= 10.0
    command = f"{COMMAND}{' --long -m long' if is_long else ''}"
    with Report("restart-missing", command, is_long) as report, pending(tmp_path, "named", grace) as (master, missing):
        seconds = master.start_again(missing)
        late = (seconds - grace) / slowness()
        report.figures["grace, s"] = grace
        report.figures[f"{PENDING:,} pending, one worker missing: first assignment after the grace, s"] = late
        assert 0 <= late <= LATE
