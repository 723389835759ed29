"""The promises of the first screen of the README, with real processes; runs compiled and pure."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from titan_fast import Client, Graph, RunFailed
from titan_fast.model.spec import Retry
from titan_fast.testing.cluster import until

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[2]


def test_the_etl_example_runs_locally_and_ends_with_its_result(cli, tmp_path):
    out = tmp_path / "etl"
    done = cli("run", ROOT / "examples/etl/etl.yaml", "--local", "--set", f"out={out}", "--set", "rows=4000")
    last = done.stdout.splitlines()[-1]
    assert last.startswith("run 1 COMPLETED: 13 tasks in ")
    assert last.endswith(f"result: {out / 'report.md'}")
    assert "| " in (out / "report.md").read_text()


def test_the_first_graph_runs_as_printed(cli):
    done = cli("run", ROOT / "examples/first/hello.yaml", "--local", "--set", "who=Ada")
    assert "run 1 COMPLETED: 4 tasks" in done.stdout
    assert "result: goodbye, Ada" in done.stdout


def test_a_local_run_that_fails_keeps_its_state_and_says_where(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text("tasks:\n  - id: a\n    run: echo before the end; exit 3\n")
    done = cli("run", "bad.yaml", "--local", code=1)
    assert "run 1 FAILED" in done.stdout
    assert "a FAILED: exit:3" in done.stderr
    assert "before the end" in done.stderr
    kept = Path(done.stderr.rpartition("are kept in ")[2].strip())
    assert (kept / "state").is_dir()


def test_one_command_as_a_task_passes_its_exit_code_on(cluster, ask):
    cluster.start_worker("w1", "--slots", "1")
    assert "COMPLETED" in ask("submit", "--wait", "--", "true").stdout
    ask("submit", "--wait", "--", "sh", "-c", "exit 41", code=41)
    ask("submit", "--wait", "--", "sh", "-c", "kill -9 $$", code=137)
    ask("submit", "--wait", "--", "no-such-program-here", code=1)
    assert "no-such-program-here" in ask("explain", "last").stdout


def test_submit_returns_at_once_and_wait_waits(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    may_end = tmp_path / "may end"
    run = ask.json("submit", "--", "sh", "-c", f"while [ ! -e '{may_end}' ]; do sleep 0.05; done")["run"]
    ask("wait", run, "--timeout", "0.05", code=124)
    may_end.touch()
    assert "COMPLETED" in ask("wait", run).stdout


def test_show_and_ls_have_the_documented_fields(cluster, ask):
    cluster.start_worker("w1", "--slots", "2", "--caps", "GPU")
    run = ask.json("submit", "--wait", "--", "true")["run"]
    shown = ask.json("show", run)
    assert list(shown) == [
        "id",
        "name",
        "state",
        "reason",
        "submitted_at",
        "started_at",
        "finished_at",
        "counts",
        "tasks",
        "next",
    ]
    (task,) = shown["tasks"]
    assert list(task) == [
        "id",
        "name",
        "state",
        "reason",
        "generation",
        "attempt",
        "worker",
        "exit_code",
        "started_at",
        "finished_at",
        "duration",
    ]
    assert (task["id"], task["state"], task["worker"], task["exit_code"]) == (f"{run}/true", "COMPLETED", "w1", 0)
    assert shown["submitted_at"].endswith("Z")
    (worker,) = ask.json("ls", "workers")
    assert list(worker) == ["id", "name", "state", "capabilities", "slots", "running", "kind", "last_seen_at"]
    assert worker["capabilities"] == ["GPU"]
    assert [row["id"] for row in ask.json("ls")] == [run]


def test_a_graph_file_is_submitted_from_python_with_its_inputs(cluster):
    cluster.start_worker("w1", "--slots", "1")
    with cluster.client() as client:
        update = client.submit_file(ROOT / "examples/first/hello.yaml", {"who": "Ada"}).wait(30)
    assert (update.state, update.result) == ("COMPLETED", "goodbye, Ada")


def test_logs_follow_a_running_task_to_its_end(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    go = tmp_path / "go"
    script = f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; echo last"
    run = ask.json("submit", "--", "sh", "-c", script)["run"]
    follower = ask.start("logs", f"{run}/sh", "-f")
    assert follower.stdout.readline() == "first\n"
    go.touch()
    out, _ = follower.communicate(timeout=20)
    assert out == "last\n"
    assert follower.returncode == 0
    assert ask("logs", run).stdout == "first\nlast\n"
    assert ask("logs", run, "--tail", "1").stdout == "last\n"


def test_output_that_is_not_text_comes_back_as_it_was(cluster, ask):
    cluster.start_worker("w1", "--slots", "1")
    ask("submit", "--wait", "--", "sh", "-c", r"printf '\377\000\200ok'")
    with cluster.client() as client:
        pieces = b"".join(client.run()["sh"].follow())
    assert pieces == b"\xff\x00\x80ok"
    assert "ok" in ask.json("logs", "last")["output"]


def test_environment_is_built_from_an_allow_list(cluster, ask):
    cluster.environ["SECRET_OF_THE_WORKER"] = "do not pass on"
    cluster.start_worker("w1", "--slots", "1")
    ask("submit", "--wait", "--", "env")
    seen = dict(line.split("=", 1) for line in ask("logs", "last").stdout.splitlines())
    assert "SECRET_OF_THE_WORKER" not in seen
    assert seen["TITAN_TASK"] == "1/env"
    assert seen["TITAN_WORKER"] == "w1"
    assert seen["TITAN_ATTEMPT"] == "1"
    assert {"TITAN_RUN_ID", "TITAN_FENCE", "TITAN_WORKER_ID", "TITAN_ATTEMPT_DIR", "TITAN_RESULT", "PATH"} <= set(seen)


def test_a_project_is_shipped_and_its_scripts_run(cluster, tmp_path):
    cluster.start_worker("w1", "--slots", "2")
    project = tmp_path / "project"
    (project / "lib").mkdir(parents=True)
    (project / "lib" / "data.txt").write_text("42")
    (project / "job.py").write_text(
        "import os, sys, pathlib\n"
        "print(pathlib.Path('lib/data.txt').read_text(), *sys.argv[1:])\n"
        "pathlib.Path(os.environ['TITAN_RESULT']).write_text('done')\n"
    )
    graph = Graph("shipped", project=project)
    graph.task("job", file="job.py", args=["a b", "${matrix.n}"], matrix={"n": [1, 2]})
    with cluster.client() as client:
        run = client.submit(graph)
        run.wait(30)
        assert run["job"][0].logs() == "42 a b 1\n"
        assert run["job"][1].logs() == "42 a b 2\n"
        second = client.submit(graph)
        second.wait(30)


def test_a_failing_run_raises_with_the_task_its_reason_and_its_log_tail(cluster):
    cluster.start_worker("w1", "--slots", "1")
    graph = Graph("bad")
    graph.task("good", run="true")
    graph.task("ugly", run="echo the last words; exit 5", needs=["good"])
    graph.task("never", run="true", needs=["ugly"])
    with cluster.client() as client:
        run = client.submit(graph)
        with pytest.raises(RunFailed, match=r"(?s)ugly FAILED \(exit:5\).*the last words"):
            run.wait(30)
        assert {row.name: row.state for row in run.tasks()} == {
            "good": "COMPLETED",
            "ugly": "FAILED",
            "never": "SKIPPED",
        }


def test_retries_timeouts_and_grace(cluster, tmp_path):
    cluster.start_worker("w1", "--slots", "4")
    counter = tmp_path / "tries"
    graph = Graph("retries")
    third = f"echo x >> {counter}; [ $(wc -l < {counter}) -ge 3 ]"
    graph.task("third", run=third, retry=Retry(max=5, backoff=0.05))
    graph.task("hangs", run="trap '' TERM; sleep 60 & wait; sleep 60", timeout="300ms", grace="100ms")
    began = time.monotonic()
    with cluster.client() as client:
        run = client.submit(graph)
        with pytest.raises(RunFailed, match="hangs FAILED"):
            run.wait(30)
        rows = {row.name: row for row in run.tasks()}
    assert time.monotonic() - began < 15
    assert (rows["third"].state, rows["third"].attempt) == ("COMPLETED", 3)
    assert (rows["hangs"].state, rows["hangs"].reason) == ("FAILED", "timeout")


def test_up_starts_serves_and_stops_in_order(cli, tmp_path):
    up = cli.start("up", "--workers", "2", "--slots", "1", "--port", "0")
    address = until(lambda: up.stdout.readline(), "a first line").split(" at ")[1].split()[0]
    cli.environ["TITAN_ADDR"] = address
    assert "COMPLETED" in cli("submit", "--wait", "--", "true").stdout
    until(lambda: len(cli.json("workers")) == 2, "both workers")
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 0, err
    assert "Traceback" not in err
    cli("ls", code=3)
    assert not list((tmp_path / "home" / "tokens").iterdir())


def test_doctor_and_stats_say_which_twins_are_live(cluster, ask):
    cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    accel = "pure" if os.environ.get("TITAN_FAST_ACCEL") == "off" else ask.json("stats")["accel"]
    assert ask.json("stats")["accel"] == accel
    said = ask("doctor", "--json", code=1 if accel == "pure" else 0).stdout
    checks = {check["check"]: check for check in json.loads(said)}
    assert checks["accel"]["detail"].startswith(accel)
    assert [check["check"] for check in checks.values() if not check["ok"]] == (["accel"] if accel == "pure" else [])
    assert checks["workers"]["ok"]
    assert checks["durability"]["ok"]


def test_importing_the_package_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, titan_fast; print([m for m in sys.modules if m.startswith('titan_fast.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['titan_fast._version']"
    assert Client and Graph
