"""Paper workers keep the promises of real ones, or what is measured with them says nothing."""

from __future__ import annotations

import pytest

from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.testing.cluster import Cluster, until
from titan_fast.testing.paper_worker import PaperWorker, PaperWorkers

MEMBERS = 6
WORK = Work(argv=("true",))
GRAPH = GraphSpec("paper", (TaskSpec("a", WORK, count=MEMBERS, array=True),))


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path, options=["--drain", "0"]) as cluster:
        yield cluster


def test_what_they_are_given_ends_at_once_with_their_result(cluster):
    with PaperWorkers.of(cluster, PaperWorker("first", result=b"done")), cluster.client() as client:
        assert client.submit_spec(GRAPH).wait(30).counts["COMPLETED"] == MEMBERS
        assert client.submit_spec(GraphSpec("one", (TaskSpec("a", WORK),))).result(30) == "done"


def test_what_they_hold_when_the_master_is_killed_goes_on_as_the_same_attempt(cluster):
    with PaperWorkers.of(cluster, PaperWorker("first", MEMBERS, holds=True)) as workers, cluster.client() as client:
        run = client.submit_spec(GRAPH)
        until(lambda: workers.workers[0].assigned == MEMBERS, "it holds everything")
        cluster.master.kill()
        cluster.master.wait()
        until(lambda: workers.are_away, "it notices")
        cluster.start_master(int(cluster.address.rpartition(":")[2]))
        workers.let_go()
        run.wait(30)
        assert [task.attempt for task in run.tasks()] == [1] * MEMBERS
        assert workers.workers[0].assigned == MEMBERS


def test_they_end_what_is_cancelled(cluster):
    with PaperWorkers.of(cluster, PaperWorker("first", holds=True)) as workers, cluster.client() as client:
        run = client.submit_spec(GRAPH)
        until(lambda: workers.workers[0].assigned == MEMBERS, "it holds everything")
        run.cancel()
        until(lambda: run.state == "CANCELLED", "all of it is cancelled")
