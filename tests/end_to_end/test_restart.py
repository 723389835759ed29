"""A killed master: what it accepted goes on, what runs keeps running, and whoever waits is told in the end."""

from __future__ import annotations

import json

import psutil
import pytest

from titan_fast.sdk.graph import Graph
from titan_fast.testing.cluster import until

pytestmark = pytest.mark.kill


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_what_runs_keeps_running_and_is_not_started_again(cluster, tmp_path):
    marks = tmp_path / "marks"
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    graph = Graph("long")
    graph.task("first", run=f"echo first $$ >> {marks}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo done")
    graph.task("second", run=f"echo second >> {marks}", needs=["first"])
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: lines(marks), "the first task runs")
        cluster.kill_master()
        cluster.restart_master()
        (tmp_path / "go").touch()
        run.wait(60)
        assert [line.split()[0] for line in lines(marks)] == ["first", "second"], "each once"
        assert run["first"].logs() == "done\n"
        rows = {row.name: row for row in run.tasks()}
        assert rows["first"].attempt == 1


def test_an_attempt_that_ends_while_the_master_is_away_counts(cluster, tmp_path):
    marks = tmp_path / "marks"
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    graph = Graph("away")
    graph.task(
        "first", run=f"echo begun >> {marks}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo over >> {marks}"
    )
    graph.task("second", run=f"echo second >> {marks}", needs=["first"])
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: lines(marks), "it runs")
        cluster.kill_master()
        (tmp_path / "go").touch()
        until(lambda: "over" in lines(marks), "it ended without a master")
        cluster.restart_master()
        run.wait(60)
    assert lines(marks) == ["begun", "over", "second"]


def test_everything_accepted_is_there_after_a_kill(cluster, ask, tmp_path):
    """Finished runs, pending ones, keys, artifacts, logs: as before."""
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    done = ask.json("submit", "--wait", "--", "sh", "-c", "echo words; exit 3", code=3)["run"]
    gpu = ask.json("submit", "--requires", "GPU", "--", "true")["run"]
    ask("kv", "set", "colour", "blue")
    (tmp_path / "file").write_text("content")
    ask("artifact", "put", tmp_path / "file", "--name", "thing")
    before = ask.json("show", done)
    cluster.kill_master()
    cluster.restart_master()
    assert ask.json("show", done) == before
    assert ask("logs", done).stdout == "words\n"
    assert ask("kv", "get", "colour").stdout.strip() == "blue"
    ask("artifact", "get", "thing", "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"
    assert ask.json("show", gpu)["state"] == "PENDING"
    cluster.start_worker("w2", "--caps", "GPU", "--slots", "1")
    assert ask.json("wait", gpu)["state"] == "COMPLETED"
    assert ask.json("stats")["epoch"] == 2


def test_commands_that_wait_go_on_by_themselves(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    script = f"echo before; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo after"
    run = ask.json("submit", "--", "sh", "-c", script)["run"]
    follower = ask.start("logs", run, "-f")
    assert follower.stdout.readline() == "before\n"
    waiter = ask.start("wait", run, "--json")
    for _ in range(2):
        cluster.kill_master()
        cluster.restart_master()
        cluster.wait_for_workers(1)
    (tmp_path / "go").touch()
    out, err = waiter.communicate(timeout=60)
    assert waiter.returncode == 0, err
    assert json.loads(out)["state"] == "COMPLETED"
    out, err = follower.communicate(timeout=60)
    assert (follower.returncode, out) == (0, "after\n"), err


def test_a_cancel_that_was_answered_holds(cluster, ask, tmp_path):
    marks = tmp_path / "marks"
    cluster.start_worker("w1", "--slots", "1", "--drain", "0")
    cluster.wait_for_workers(1)
    run = ask.json(
        "submit",
        "--",
        "sh",
        "-c",
        f"trap 'sleep 1; echo ended >> {marks}; exit 1' TERM; echo on >> {marks}; sleep 60 & wait",
    )["run"]
    until(lambda: lines(marks), "it runs")
    ask("cancel", run)
    cluster.kill_master()
    cluster.restart_master()
    assert ask.json("wait", run, code=1)["state"] == "CANCELLED"
    cluster.wait_for_workers(1)
    assert ask.json("submit", "--wait", "--", "true")["state"] == "COMPLETED", "its slot is free again"


def test_a_worker_that_never_comes_back_is_not_waited_for_for_ever(tmp_path):
    from titan_fast.testing.cluster import Cluster

    marks = tmp_path / "marks"
    fast = {
        "TITAN_SCHEDULER_RECOVERY_GRACE": "0.5",
        "TITAN_SCHEDULER_LOST_AFTER": "1.5",
        "TITAN_SCHEDULER_SUSPECT_AFTER": "1",
        "TITAN_SCHEDULER_HEARTBEAT": "0.2",
    }
    with Cluster(tmp_path / "home", environ=fast) as cluster:
        cluster.start_worker("w1", "--slots", "1")
        cluster.wait_for_workers(1)
        graph = Graph("orphan")
        graph.task("t", run=f"echo $TITAN_WORKER >> {marks}; test $TITAN_WORKER = w2 || sleep 600")
        with cluster.client() as client:
            run = client.submit(graph)
            until(lambda: lines(marks) == ["w1"], "it runs on w1")
            cluster.kill_master()
            cluster.workers["w1"].kill()
            cluster.workers["w1"].wait()
            cluster.restart_master()
            cluster.start_worker("w2", "--slots", "1")
            run.wait(60)
    assert lines(marks) == ["w1", "w2"]


def test_up_starts_again_what_was_killed(cli, tmp_path):
    up = cli.start("up", "--port", "0", "--slots", "1")
    try:
        address = up.stdout.readline().split(" at ")[1].split()[0]
        cli.environ["TITAN_ADDR"] = address
        run = cli.json("submit", "--", "sleep", "1")["run"]
        for child in psutil.Process(up.pid).children():
            if "master" in child.cmdline():
                child.kill()
        assert cli.json("wait", run)["state"] == "COMPLETED"
        assert cli.json("stats")["epoch"] == 2
    finally:
        up.terminate()
        _, err = up.communicate(timeout=60)
    assert "the master was ended by signal 9; started again" in err
    assert up.returncode == 0
