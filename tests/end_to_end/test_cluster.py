"""One master, several workers: work lands only where it may, survives a killed worker, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from titan_fast import Graph
from titan_fast.model.wfformat import greedy_makespan, load_instance
from titan_fast.testing.cluster import Cluster, until

ROOT = Path(__file__).parents[2]
INSTANCES = ROOT.parent / "shared" / "wfinstances"


def kill_tree(pid):
    """The whole worker at once, as when its machine is switched off: keeper, agent, tasks."""
    keeper = psutil.Process(pid)
    victims = [*keeper.children(recursive=True), keeper]
    for victim in victims:
        victim.suspend()
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=10)


def processes_with(text):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(text in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.mark.smoke
def test_a_mixed_graph_lands_only_where_it_may(cluster):
    cluster.start_worker("plain", "--slots", "2")
    cluster.start_worker("gpu", "--slots", "2", "--caps", "GPU")
    cluster.start_worker("both", "--slots", "2", "--caps", "GPU,HIGH_MEM")
    cluster.wait_for_workers(3)
    graph = Graph("mixed")
    for i in range(12):
        graph.task(f"any{i}", run="sleep 0.02")
        graph.task(f"gpu{i}", run="sleep 0.02", requires=["GPU"], needs=[f"any{i}"])
        graph.task(f"big{i}", run="true", requires=["GPU", "HIGH_MEM"], needs=[f"gpu{i}"])
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(60)
        for row in run.tasks():
            allowed = {"any": {"plain", "gpu", "both"}, "gpu": {"gpu", "both"}, "big": {"both"}}[row.name[:3]]
            assert row.worker in allowed, f"{row.name} ran on {row.worker}"


def test_tasks_nobody_can_serve_wait_in_sight_and_block_nobody(cluster, ask):
    cluster.start_worker("plain", "--slots", "1")
    stuck = ask.json("submit", "--requires", "TPU", "--", "true")["run"]
    assert "COMPLETED" in ask("submit", "--wait", "--", "true").stdout
    assert ask("explain", f"{stuck}/true").stdout.splitlines() == [
        f"{stuck}/true PENDING: waits for a worker with TPU; none is connected",
        "  start one with: titan-fast worker --caps TPU",
    ]
    cluster.start_worker("tpu", "--caps", "TPU", "--slots", "1")
    ask("wait", stuck, "--timeout", "30")


@pytest.mark.kill
def test_a_killed_workers_tasks_run_elsewhere(tmp_path):
    ran = tmp_path / "ran"
    environ = {"TITAN_SCHEDULER_LOST_AFTER": "1.0", "TITAN_SCHEDULER_SUSPECT_AFTER": "0.5"}
    with Cluster(tmp_path / "home", environ=environ) as cluster:
        doomed = cluster.start_worker("doomed", "--slots", "2", "--caps", "GPU")
        cluster.start_worker("plain", "--slots", "2")
        cluster.start_worker("both", "--slots", "2", "--caps", "GPU,HIGH_MEM")
        cluster.wait_for_workers(3)
        graph = Graph("survivor")
        for i in range(30):
            requires = ["GPU"] if i % 3 == 0 else []
            graph.task(f"t{i}", run=f"sleep 0.3; echo t{i} >> {ran}", requires=requires)
        graph.task("end", run="true", needs=list(graph.tasks))
        with cluster.client() as client:
            run = client.submit(graph)
            until(lambda: any(row.worker == "doomed" and row.state == "RUNNING" for row in run.tasks()), "work there")
            kill_tree(doomed.pid)
            doomed.wait()
            run.wait(60)
            rows = run.tasks()
            assert {row.state for row in rows} == {"COMPLETED"}
            assert max(row.attempt for row in rows) == 2, "nothing was lost, so nothing was shown"
            states = {worker.name: worker.state for worker in client.workers()}
            assert states["doomed"] == "LOST"
    assert set(ran.read_text().split()) == {f"t{i}" for i in range(30)}


@pytest.mark.kill
def test_a_killed_agent_is_started_again_and_nothing_is_lost(cluster):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    graph = Graph("agent")
    for i in range(8):
        graph.task(f"t{i}", run="sleep 0.4")
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: run.show().counts["RUNNING"] >= 1, "something runs")
        keeper = psutil.Process(cluster.workers["w1"].pid)
        agent = keeper.children()[0]
        agent.kill()
        run.wait(60)
        assert run.show().counts["COMPLETED"] == 8


@pytest.mark.kill
def test_cancel_leaves_no_process(cluster, ask):
    cluster.start_worker("w1", "--slots", "4")
    mark = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    graph = Graph("trees")
    graph.task("plain", run=f"exec sleep 600.1 # {mark}")
    deaf = f"trap '' TERM; (trap '' TERM; sh -c 'sleep 601; : {mark}') & wait; sleep 1"
    graph.task("stubborn", run=deaf, grace="200ms")
    graph.task("runaway", run=f"setsid sh -c 'trap \"\" TERM; sleep 602; : {mark}' & sleep 600", grace="200ms")
    graph.task("later", run="true", needs=["plain"])
    with cluster.client() as client:
        run = client.submit(graph)
        until(lambda: run.show().counts["RUNNING"] == 3, "all run")
        until(lambda: len(processes_with(mark)) >= 3, "all processes are there")
        ask("cancel", run.id, "--wait")
        assert run.state == "CANCELLED"
        assert {row.state for row in run.tasks()} == {"CANCELLED"}
        assert not processes_with(mark)


def test_a_small_run_does_not_wait_behind_a_large_one(cluster):
    """10 tasks of equal priority behind 100,000: the first starts within one task's duration and 100 ms."""
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    large = Graph("large")
    large.task("many", run=["sleep", "0.2"], matrix={"i": range(100_000)})
    small = Graph("small")
    small.task("few", run=["sleep", "0.2"], matrix={"i": range(10)})
    with cluster.client() as client:
        first = client.submit(large)
        until(lambda: first.show().counts["RUNNING"], "the large run began")
        asked = time.time()
        second = client.submit(small)
        until(lambda: second.show().counts["RUNNING"] or second.show().counts["COMPLETED"], "the small run began")
        began = min(row.started_at for row in second.tasks() if row.started_at)
        waited = began - asked
        first.cancel()
        second.cancel()
    print(f"started after {waited:.3f} s")
    assert waited < 0.2 + 0.1


def test_three_tasks_of_a_chain_of_priorities_run_in_their_order(cluster, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    order = tmp_path / "order"
    graph = Graph("priorities")
    graph.task("gate", run="sleep 0.3")
    for name, priority in (("low", 1), ("high", 10), ("middle", 5)):
        graph.task(name, run=f"echo {name} >> {order}", priority=priority, needs=["gate"])
    with cluster.client() as client:
        client.submit(graph).wait(30)
    assert order.read_text().split() == ["high", "middle", "low"]


def test_a_stopped_worker_lets_what_runs_finish(cluster, ask):
    worker = cluster.start_worker("w1", "--slots", "1")
    run = ask.json("submit", "--", "sleep", "1")["run"]
    until(lambda: ask.json("show", run)["counts"]["RUNNING"], "it runs")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    shown = ask.json("show", run)
    assert (shown["state"], shown["tasks"][0]["attempt"]) == ("COMPLETED", 1)
    assert ask.json("workers")[0]["state"] == "LEFT"


def test_following_and_waiting_end_with_a_sentence_when_the_master_goes(cluster, ask):
    cluster.start_worker("w1", "--slots", "1")
    run = ask.json("submit", "--", "sh", "-c", "echo begun; sleep 3")["run"]
    ask.environ["TITAN_CLIENT_RECONNECT_TIMEOUT"] = "1"
    follower = ask.start("logs", run, "-f")
    assert follower.stdout.readline() == "begun\n"
    with cluster.client() as client:
        before = client.stats().connections
        waiter = ask.start("wait", run)
        until(lambda: client.stats().connections > before, "the waiter is connected")
    cluster.master.kill()
    for process in (follower, waiter):
        _, err = process.communicate(timeout=20)
        assert process.returncode == 3
        assert "Traceback" not in err
        assert "master" in err


def test_the_port_is_taken(cluster, cli):
    port = cluster.address.rpartition(":")[2]
    done = cli("up", "--port", port, "--state-dir", "other", code=5)
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert "--port" in done.stderr
    done = cli("master", "--port", port, "--state-dir", "other2", code=5)
    assert "--port" in done.stderr


def test_a_second_master_on_the_same_state_is_refused(cluster, ask):
    done = ask("master", "--port", "0", code=5)
    assert "another master uses the state directory" in done.stderr


def test_a_wrong_token_is_refused_in_a_sentence(cluster, ask, tmp_path):
    (tmp_path / "wrong").write_text("not-the-token\n")
    done = ask("ls", "--token-file", tmp_path / "wrong", code=5)
    assert "token" in done.stderr
    done = ask("ls", "--token-file", tmp_path / "wrong", "--json", code=5)
    assert '"code":"bad_proof"' in done.stderr
    worker_token = next((cluster.home / "tokens").glob("*.worker"))
    ask("ls", "--token-file", worker_token, code=5)


def replay(cli, file, scale):
    document = cli.json("bench", "replay", file, "--scale", scale, "--slots", "16", "--local", timeout=300)
    assert document["completed"] == document["tasks"], document
    assert document["violations"] == 0, document
    assert document["floor"] <= document["greedy"] * 1.000001
    return document


@pytest.mark.smoke
def test_our_own_small_instance_replays_without_violations(cli):
    replay(cli, ROOT / "tests/data/diamond.wfformat.json", "0.01")


NAMES = (
    "1000genome-chameleon-2ch-100k-001",
    "blast-chameleon-small-001",
    "montage-chameleon-2mass-01d-001",
    "rnaseq-dirt02-001",
    "seismology-chameleon-700p-001",
    "soykb-chameleon-10fastq-20ch-001",
)


def replay_published(cli, name, seconds):
    """An instance, scaled so that the best possible schedule takes ``seconds`` on 16 slots."""
    file = INSTANCES / f"{name}.json"
    if not file.exists():
        pytest.skip(f"the published instances are not beside this checkout ({INSTANCES})")
    scale = seconds / greedy_makespan(load_instance(file), 16)
    document = replay(cli, file, f"{scale:.9f}")
    print(f"{name}: {document}")


@pytest.mark.parametrize("name", NAMES)
def test_published_instances_replay_without_violations(cli, name):
    replay_published(cli, name, 2.0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_published_instances_replay_in_their_long_size(cli, name):
    replay_published(cli, name, 20.0)


def test_a_lot_whose_payloads_do_not_fit_one_frame_is_sent_in_pieces(cluster):
    cluster.start_worker("w1", "--slots", "256")
    cluster.wait_for_workers(1)
    graph = Graph("heavy")
    graph.task("t", run='printf %s "$BIG" | wc -c', env={"BIG": "${matrix.big}"}, matrix={"big": ["x" * 100_000] * 300})
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(60)
        assert run["t"][299].logs().strip() == "100000"


@pytest.mark.kill
def test_a_frozen_worker_is_lost_and_comes_back_by_itself(tmp_path):
    environ = {"TITAN_SCHEDULER_LOST_AFTER": "1.0", "TITAN_SCHEDULER_SUSPECT_AFTER": "0.5"}
    ran = tmp_path / "ran"
    with Cluster(tmp_path / "home", environ=environ) as cluster:
        cluster.start_worker("frozen", "--slots", "1")
        cluster.wait_for_workers(1)
        graph = Graph("frost")
        graph.task("t", run=f"echo x >> {ran}; sleep 2")
        with cluster.client() as client:
            run = client.submit(graph)
            until(ran.exists, "the task runs")
            agent = psutil.Process(cluster.workers["frozen"].pid).children()[0]
            agent.suspend()
            until(lambda: client.workers()[0].state == "LOST", "the master gave it up")
            agent.resume()
            run.wait(30)
            (row,) = run.tasks()
            assert (row.state, row.attempt) == ("COMPLETED", 2)
    assert len(ran.read_text().split()) == 2


def test_logs_of_a_new_history_are_its_own(tmp_path):
    """With the memory store a restarted master counts from run 1 again; the old run 1's output is not its."""
    for words in ("first life", "second life"):
        with Cluster(tmp_path / "home", options=["--durability", "memory"]) as cluster:
            cluster.start_worker("w1", "--slots", "1")
            graph = Graph("again")
            graph.task("say", run=f"echo {words}")
            with cluster.client() as client:
                run = client.submit(graph)
                run.wait(30)
                assert run.id == 1
                assert run["say"].logs() == f"{words}\n"


@pytest.mark.kill
def test_a_worker_that_is_stopped_in_a_hurry_gives_its_tasks_to_others_after_it_ended_them(cluster, tmp_path):
    log = tmp_path / "log"
    hasty = cluster.start_worker("hasty", "--slots", "1", "--drain", "0")
    cluster.wait_for_workers(1)
    script = f"echo begin $$ >> {log}; trap 'echo end $$ >> {log}; exit 1' TERM; sleep 1 & wait"
    graph = Graph("handover")
    graph.task("t", run=script)
    with cluster.client() as client:
        run = client.submit(graph)
        until(log.exists, "it runs")
        cluster.start_worker("other", "--slots", "1")
        cluster.wait_for_workers(2)
        hasty.send_signal(signal.SIGTERM)
        assert hasty.wait(20) == 0
        run.wait(30)
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert words == ["begin", "end", "begin"], "two copies ran side by side"
