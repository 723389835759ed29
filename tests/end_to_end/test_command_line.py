"""What users type wrongly, and what they type to get out: each a sentence, the right exit code, no traceback."""

from __future__ import annotations

import json
import signal

import pytest

from titan_fast.testing.cluster import until


@pytest.fixture
def offline(cli):
    """The command line with no master, and no patience for one."""
    cli.environ["TITAN_CLIENT_CONNECT_TIMEOUT"] = "0.2"
    cli.environ["TITAN_ADDR"] = "127.0.0.1:1"
    return cli


@pytest.mark.parametrize("verb", [["ls"], ["show", "1"], ["wait", "last"], ["submit", "--", "true"], ["stats"]])
def test_without_a_master_every_client_says_so_and_ends_with_3(offline, verb):
    done = offline(*verb, code=3)
    assert "no master answers at 127.0.0.1:1" in done.stderr
    assert "titan-fast up" in done.stderr


def test_an_error_with_json_is_json_on_stderr(offline):
    done = offline("ls", "--json", code=3)
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == "no_master"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "Did you mean 'run'?"),
        (["show", "a/b/c[", "--json"], ""),
        (["show", "nonsense id"], "names no run or task"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "x.yaml", "--set", "novalue"], "--set KEY=VALUE"),
        (["ls", "gates"], "no approvals yet"),
        (["ls", "nothing"], "no listing of 'nothing'"),
        (["submit"], "COMMAND"),
        (["wait", "1", "--timeout", "soon"], "soon"),
        (["stats", "--master", "nowhere:port"], "not an address"),
        (["master", "--host", "0.0.0.0"], "TLS"),
        (["worker", "--slots", "0"], "--slots"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(offline, arguments, said):
    done = offline(*arguments, code=2)
    assert said in done.stderr


def test_a_wrong_setting_is_named_with_its_file(offline, tmp_path):
    (tmp_path / "titan.toml").write_text("[worker]\nslotz = 3\n")
    done = offline("ls", code=2)
    assert "titan.toml" in done.stderr
    assert "slotz" in done.stderr


def test_lint_lists_every_problem_with_its_line(offline, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "name: bad\n"
        "tasks:\n"
        "  - id: prepare\n"
        "    run: 'true'\n"
        "    need: [x]\n"
        "  - id: train\n"
        "    run: 'true'\n"
        "    needs: [prep]\n"
    )
    done = offline("lint", "bad.yaml", code=2)
    assert "bad.yaml:5: task 'prepare': unknown key 'need'" in done.stderr
    assert "bad.yaml:8: task 'train' needs 'prep', which is not in this file (did you mean 'prepare'?)" in done.stderr
    assert len(offline.json("lint", "bad.yaml", code=2)["problems"]) == 2


def test_things_that_are_not_there_end_with_4(cluster, ask):
    assert "there is no run 7" in ask("show", "7", code=4).stderr
    ask("logs", "last", code=4)
    run = ask.json("submit", "--", "true")["run"]
    assert f"there is no task {run}/nope" in ask("explain", f"{run}/nope", code=4).stderr
    ask("logs", f"{run}/true[3]", code=4)


def test_ctrl_c_detaches_from_a_run_and_names_the_way_back(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    (tmp_path / "long.yaml").write_text("tasks:\n  - {id: a, run: sleep 2}\n")
    waiting = ask.start("run", "long.yaml")
    until(lambda: ask.json("ls"), "the run is there")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert "titan-fast wait 1" in err
    assert "COMPLETED" in ask("wait", "1").stdout


def test_ctrl_c_in_a_local_run_cancels_it_and_leaves_nothing_running(cli, tmp_path):
    mark = tmp_path / "started"
    (tmp_path / "long.yaml").write_text(f"tasks:\n  - {{id: a, run: touch {mark}; sleep 300}}\n")
    running = cli.start("run", "long.yaml", "--local")
    until(mark.exists, "the task runs")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert "Traceback" not in err


def test_waiting_with_a_timeout_ends_with_124_and_the_run_goes_on(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    (tmp_path / "long.yaml").write_text("tasks:\n  - {id: a, run: sleep 1}\n")
    done = ask("run", "long.yaml", "--timeout", "100ms", code=124)
    assert "goes on" in done.stderr
    assert "COMPLETED" in ask("wait", "last").stdout


def test_cancel_and_retry_from_the_command_line(cluster, ask):
    run = ask.json("submit", "--", "true")["run"]
    assert "cancelled" in ask("cancel", run, "--wait").stdout
    ask("cancel", run, code=1)
    cluster.start_worker("w1", "--slots", "1")
    ask("retry", run)
    assert "COMPLETED" in ask("wait", run).stdout
    shown = ask.json("show", run)
    assert shown["tasks"][0]["generation"] == 1
    ask("retry", run, code=1)


def test_completion_scripts_are_printed(cli):
    for shell in ("bash", "zsh", "fish"):
        assert "titan-fast" in cli("completion", shell).stdout
