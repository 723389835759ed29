"""A killed agent costs nothing: the next one goes on with the same processes, their exit codes, output and timeouts."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil
import pytest

from titan_fast import Graph
from titan_fast.errors import RunFailed
from titan_fast.testing.cluster import Cluster, until

pytestmark = pytest.mark.kill


def agent_of(worker):
    """The process id of the agent under a worker's keeper; 0 while there is none."""
    try:
        children = psutil.Process(worker.pid).children()
        return next((child.pid for child in children if "agent" in child.cmdline()), 0)
    except psutil.NoSuchProcess:
        return 0


def kill_agent(worker):
    """SIGKILL; gives the pid of the next agent once there is one."""
    agent = agent_of(worker)
    os.kill(agent, signal.SIGKILL)
    return until(lambda: (now := agent_of(worker)) not in (0, agent) and now, "the keeper starts the next agent")


def lines(path):
    return path.read_text().split() if path.exists() else []


def test_running_commands_survive_their_agent(cluster, tmp_path):
    """Three run: one ends while no agent is there, one after the next has come, one is ended by its timeout."""
    worker = cluster.start_worker("w1", "--slots", "3")
    cluster.wait_for_workers(1)
    began, go = tmp_path / "began", tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.02; done"
    graph = Graph("survivors")
    graph.task(
        "gone", run=f"echo gone:$$ >> {began}; echo early; sleep 0.7; echo late; echo got > $TITAN_RESULT; exit 7"
    )
    graph.task("stays", run=f"echo stays:$$ >> {began}; echo early; {wait}; echo late; pwd; exit 8")
    graph.task("slow", run=f"echo slow:$$ >> {began}; echo early; exec sleep 600", timeout="3s", grace="100ms")
    graph.task("after", run="echo after", needs=["stays"], when="always")
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: len(lines(began)) == 3, "three run")
        pids = dict(line.split(":") for line in lines(began))
        agent = agent_of(worker)
        os.kill(worker.pid, signal.SIGSTOP)  # so that no agent is there when the first one ends
        os.kill(agent, signal.SIGKILL)
        until(lambda: not is_running(int(pids["gone"])), "the first has ended")
        os.kill(worker.pid, signal.SIGCONT)
        until(lambda: agent_of(worker) not in (0, agent), "the keeper starts the next agent")
        cluster.wait_for_workers(1)
        assert is_running(int(pids["stays"])) and is_running(int(pids["slow"]))
        assert client.workers()[0].running <= 3, "slots add up"
        go.touch()
        with pytest.raises(RunFailed):
            run.wait(30)
        rows = {row.name: row for row in run.tasks()}
        assert {name: (row.state, row.reason, row.attempt) for name, row in rows.items()} == {
            "gone": ("FAILED", "exit:7", 1),
            "stays": ("FAILED", "exit:8", 1),
            "slow": ("FAILED", "timeout", 1),
            "after": ("COMPLETED", "exit:0", 1),
        }
        assert run["gone"].logs() == "early\nlate\n"
        assert run["stays"].logs().startswith("early\nlate\n/")
        assert run["slow"].logs() == "early\n"
        assert 2.9 < rows["slow"].duration < 6
    assert len(lines(began)) == 3, "something ran twice"
    assert not is_running(int(pids["slow"]))


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_agent_that_is_killed_again_and_again_loses_nothing(cluster, tmp_path):
    worker = cluster.start_worker("w1", "--slots", "4")
    cluster.wait_for_workers(1)
    ran = tmp_path / "ran"
    graph = Graph("again")
    graph.task("t", run=f"echo ${{matrix.i}} >> {ran}; sleep 0.4; echo out${{matrix.i}}", matrix={"i": range(40)})
    with cluster.client() as client:
        run = client.submit(graph)
        for count in (2, 10, 18, 26):
            until(lambda count=count: len(lines(ran)) >= count, f"{count} began")
            kill_agent(worker)
        run.wait(60)
        assert {row.state for row in run.tasks()} == {"COMPLETED"}
        for i in range(40):
            assert run["t"][i].logs() == f"out{i}\n"
        until(lambda: client.workers()[0].running == 0, "all slots are free")
    assert sorted(map(int, lines(ran))) == list(range(40)), "a command was lost or ran twice"


def test_cancel_after_the_agent_was_killed_ends_the_adopted_tree(cluster, tmp_path):
    worker = cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    pids = tmp_path / "pids"
    graph = Graph("tree")
    script = f"setsid sh -c 'trap \"\" TERM; echo $$ >> {pids}; sleep 601' & echo $$ >> {pids}; sleep 600"
    graph.task("t", run=script, grace="200ms")
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: len(lines(pids)) == 2, "both run")
        kill_agent(worker)
        cluster.wait_for_workers(1)
        assert all(is_running(int(pid)) for pid in lines(pids))
        run.cancel()
        until(lambda: run.state == "CANCELLED", "the cancel is done")
    assert not any(is_running(int(pid)) for pid in lines(pids))


def test_a_worker_that_is_stopped_and_started_anew_leaves_no_process(cluster, tmp_path):
    """Killed as a whole: nobody is there to adopt, so its commands end before the next worker does anything."""
    worker = cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    pids = tmp_path / "pids"
    graph = Graph("once")
    graph.task("t", run=f"echo $$ >> {pids}; if [ $(wc -l < {pids}) = 1 ]; then exec sleep 600; fi")
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: lines(pids), "it runs")
        agent = agent_of(worker)
        worker.kill()
        worker.wait(20)
        until(lambda: not is_running(agent), "the agent does not outlive its keeper")
        assert is_running(int(lines(pids)[0])), "the command does, or this test would show nothing"
        cluster.workers.pop("w1")
        cluster.start_worker("w1", "--slots", "1")
        until(lambda: len(lines(pids)) == 2, "it runs again")
        assert not is_running(int(lines(pids)[0])), "two copies ran side by side"
        run.wait(30)
        assert run.state == "COMPLETED"
    for pid in (agent, int(lines(pids)[0])):
        with contextlib.suppress(ChildProcessError):  # they are ours only if this process adopts orphans
            os.waitpid(pid, 0)


def test_a_worker_that_stood_still_as_a_whole_goes_on_and_its_late_result_counts_for_nothing(tmp_path):
    environ = {"TITAN_SCHEDULER_LOST_AFTER": "1.0", "TITAN_SCHEDULER_SUSPECT_AFTER": "0.5"}
    ran = tmp_path / "ran"
    with Cluster(tmp_path / "home", environ=environ) as cluster:
        frozen = cluster.start_worker("frozen", "--slots", "1")
        cluster.wait_for_workers(1)
        graph = Graph("frost")
        graph.task("t", run=f"echo x >> {ran}; n=$(wc -l < {ran}); sleep 1; echo ran $n; echo $n > $TITAN_RESULT")
        with cluster.client() as client:
            run = client.submit(graph)
            until(ran.exists, "it runs")
            whole = [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children(recursive=True)]
            for process in whole:
                with contextlib.suppress(psutil.NoSuchProcess):  # the shell's counting was over
                    process.suspend()
            until(lambda: client.workers()[0].state == "LOST", "the master gave it up")
            cluster.start_worker("other", "--slots", "1")
            run.wait(30)
            for process in reversed(whole):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            until(lambda: {row.state for row in client.workers()} == {"READY"}, "it is back")
            (row,) = run.tasks()
            assert (row.state, row.attempt, row.worker) == ("COMPLETED", 2, "other")
            assert run["t"].logs() == "ran 2\n"
            until(lambda: sum(row.running for row in client.workers()) == 0, "its slot is free")
    assert len(lines(ran)) == 2
