"""A result that is a file: what one task writes is what the next one reads, whoever is killed in between."""

from __future__ import annotations

import hashlib
import os
import signal

import psutil
import pytest

from titan_fast import Graph
from titan_fast.testing.cluster import until

SIZE = 3 << 20


def agent_of(worker):
    """The process id of the agent under a worker's keeper; 0 while there is none."""
    try:
        children = psutil.Process(worker.pid).children()
        return next((child.pid for child in children if "agent" in child.cmdline()), 0)
    except psutil.NoSuchProcess:
        return 0


def two_tasks(tmp_path, script):
    """The first is a script that may use $MADE, three MiB that are no text."""
    made = tmp_path / "made"
    made.write_bytes(os.urandom(SIZE))
    graph = Graph("pass-on", env={"MADE": str(made)})
    make = graph.task("make", run=script)
    use = 'titan-fast artifact get ${tasks.make.result} -o got && cat got > "$TITAN_RESULT"'
    graph.task("use", run=use, needs=[make])
    return graph, made.read_bytes()


@pytest.mark.smoke
def test_the_next_task_fetches_it_and_so_does_everybody(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    graph, made = two_tasks(tmp_path, 'cat "$MADE" > "$TITAN_RESULT"')
    address = hashlib.sha256(made).hexdigest()
    with cluster.client() as client:
        run = client.submit(graph)
        assert run.result() == f"artifact:{address}"
        assert [(row.name, row.size) for row in client.artifacts.ls()] == [("1/make", SIZE), ("1/use", SIZE)]
        assert client.artifacts.read("1/use") == made
    assert ask("artifact", "get", f"{run.id}/make", "-o", tmp_path / "copy").stdout == f"{tmp_path}/copy 3.0 MiB\n"
    assert (tmp_path / "copy").read_bytes() == made
    ask("prune", "--keep", "0")
    assert ask.json("artifact", "ls") == [], "it goes with its run"


@pytest.mark.kill
def test_it_survives_the_agent_and_the_master(cluster, tmp_path):
    """Both are killed while the file is on its way: the master has stopped reading when the task ends."""
    worker = cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    pid, go = tmp_path / "pid", tmp_path / "go"
    script = f'echo $$ > {pid}; until [ -e {go} ]; do sleep 0.02; done; cat "$MADE" > "$TITAN_RESULT"'
    graph, made = two_tasks(tmp_path, script)
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: pid.exists() and pid.read_text().strip(), "it runs")
        agent = agent_of(worker)
        psutil.Process(cluster.master.pid).suspend()
        go.touch()
        until(lambda: not psutil.pid_exists(int(pid.read_text())), "it has ended")
        os.kill(agent, signal.SIGKILL)
        until(lambda: agent_of(worker) not in (0, agent), "the keeper starts the next agent")
        cluster.kill_master()
        cluster.restart_master()
        run.wait(60)
        assert client.artifacts.read(f"{run.id}/use") == made
        assert [(row.name, row.attempt) for row in run.tasks()] == [("make", 1), ("use", 1)]
