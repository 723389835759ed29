"""Code inside tasks uses keys and artifacts: through its agent, without a token, for as long as its attempt runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from titan_fast import Graph
from titan_fast.errors import NoSuchKey
from titan_fast.testing.cluster import until

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """The command line can be found where this Python is."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def worker(path, cluster):
    worker = cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    return worker


@pytest.mark.smoke
def test_a_shell_a_script_and_another_task_share_keys_and_artifacts(worker, cluster, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(
        "from titan_fast import inside\n"
        "task = inside.task()\n"
        "seed = inside.kv.get('seed').decode()\n"
        "inside.artifacts.put(f'model of {seed} by {task.name}'.encode(), 'model')\n"
        "inside.kv.set('done', f'{task.run} {task.attempt} {task.worker}')\n"
    )
    graph = Graph("share", project=project)
    seed = graph.task("seed", run="titan-fast kv set seed 42 && titan-fast kv ls")
    train = graph.task("train", file="train.py", needs=[seed])
    graph.task("read", run="titan-fast artifact get model -o - && titan-fast kv get done", needs=[train])
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(60)
        assert "seed revision 1\n" in run["seed"].logs()
        assert run["read"].logs() == f"model of 42 by {run.id}/train{run.id} 1 w1"
        assert client.kv.get("seed") == b"42"
        assert client.artifacts.read("model") == f"model of 42 by {run.id}/train".encode()


def test_a_task_may_do_nothing_else(worker, cluster):
    graph = Graph("more")
    verbs = ("submit -- true", "ls", "cancel 1", "logs last/t", "stats", "backup copy")
    graph.task("t", run="\n".join(f"titan-fast {verb}; echo $?" for verb in verbs))
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(60)
        said = run["t"].logs()
        assert said.count("a task may not send ") == len(verbs), said
        assert [line for line in said.splitlines() if line.isdigit()] == ["5"] * len(verbs)
        assert len(client.runs()) == 1


def test_what_outlives_its_attempt_is_refused(worker, cluster, tmp_path):
    """The variables of an attempt that is over, in a process that is nobody's."""
    kept = tmp_path / "environ"
    graph = Graph("late")
    graph.task("first", run=f"env > {kept}")
    script = f"set -a; . {kept}; set +a; titan-fast kv set late 1; echo $?"
    graph.task("second", run=script, needs=["first"])
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(60)
        assert "does not run at this worker (any more)" in run["second"].logs()
        assert run["second"].logs().endswith("5\n")
        with pytest.raises(NoSuchKey):
            client.kv.get("late")


@pytest.mark.kill
def test_a_task_asks_on_while_its_master_is_killed_and_started_again(worker, cluster, tmp_path):
    """Every step is counted once: each change expects the revision of the one before."""
    (tmp_path / "count.py").write_text(
        "from pathlib import Path\n"
        "from titan_fast import inside\n"
        "revision = 0\n"
        "for number in range(60):\n"
        "    revision = inside.kv.set('count', str(number), expect=revision)\n"
        f"    Path({str(tmp_path / 'at')!r}).write_text(str(number))\n"
    )
    graph = Graph("count", project=tmp_path)
    graph.task("t", file="count.py")
    with cluster.client() as client:
        run = client.submit(graph)
        for step in (10, 30):
            until(lambda step=step: reached(tmp_path / "at") >= step, f"step {step}")
            cluster.kill_master()
            cluster.restart_master()
        run.wait(60)
        assert [row.attempt for row in run.tasks()] == [1], "the task did not notice"
        assert client.kv.get("count") == b"59"


@pytest.mark.kill
def test_a_task_goes_on_through_the_next_agent(worker, cluster, tmp_path):
    go = tmp_path / "go"
    graph = Graph("adopted")
    wait = f"while [ ! -e {go} ]; do sleep 0.02; done"
    graph.task("t", run=f"titan-fast kv set before 1; {wait}; titan-fast kv set after 2")
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: [row.name for row in client.kv.ls()] == ["before"], "it runs")
        (agent,) = [child.pid for child in psutil.Process(worker.pid).children() if "agent" in child.cmdline()]
        os.kill(agent, signal.SIGKILL)
        go.touch()
        run.wait(60)
        assert client.kv.get("after") == b"2"
        assert [row.attempt for row in run.tasks()] == [1]


def reached(path):
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0
