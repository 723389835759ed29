"""bench latency and bench throughput: what they print, and what they say instead when there is nothing to measure."""

from __future__ import annotations

import itertools

import pytest

from titan_fast.cli import bench
from titan_fast.protocol import messages as msg

VERBS = ("latency", "throughput")


def worker(state="READY"):
    return msg.WorkerRow("id", "w", state, (), 2, 0, 0, "permanent", 1.0)


@pytest.fixture
def cluster(master):
    """One worker; runs end as they begin, with the state that stands in ``state``."""
    numbers = itertools.count(1)
    state = {"run": "COMPLETED", "workers": [worker()]}

    def submitted(asked, *payloads):
        run = next(numbers)
        if state["run"] == "RUNNING":
            return [msg.Accepted(run)]
        return [msg.Accepted(run), msg.Update(run, "b", state["run"], {state["run"]: 1}, final=True)]

    master.script(msg.Submit, submitted)
    master.script(msg.List, lambda asked: [msg.Listed(workers=tuple(state["workers"]))])
    master.on(msg.Cancel, msg.Accepted(1))
    return state


def test_latency_is_measured_run_by_run(cli, master, cluster):
    document = cli("bench", "latency", "-n", 20, "--json").document
    assert set(document) == {"n", "p50", "p99"}
    assert document["n"] == 20
    assert 0 < document["p50"] <= document["p99"]
    asked = [request for request in master.asked if not isinstance(request, msg.List)]
    assert [type(request) for request in asked] == [msg.Submit] * (20 + bench.WARM_UP), "one request for each run"
    assert "20 runs of one task: p50" in cli("bench", "latency", "-n", 20).text


def test_throughput_is_one_array(cli, master, cluster):
    document = cli("bench", "throughput", "-n", 50, "--json").document
    assert set(document) == {"n", "seconds", "rate"}
    assert document["rate"] == pytest.approx(50 / document["seconds"])
    (submit,) = [request for request in master.asked if isinstance(request, msg.Submit)]
    (task,) = submit.graph.tasks
    assert (task.count, task.array) == (50, True)
    assert "50 tasks on 2 slots in" in cli("bench", "throughput", "-n", 50).text


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_worker_it_says_so(cli, master, cluster, verb):
    cluster["workers"] = [worker("LOST")]
    assert "no worker is ready" in cli("bench", verb, code=2).err
    assert cli("bench", verb, "--json", code=2).error["code"] == "invalid_usage"
    assert not [asked for asked in master.asked if isinstance(asked, msg.Submit)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_worker_that_goes_missing_ends_it(cli, master, cluster, verb, monkeypatch):
    monkeypatch.setattr(bench, "PATIENCE", 0.1)
    cluster["run"] = "RUNNING"
    listed = iter([[worker()], [worker()], [worker("LOST")]])
    master.script(msg.List, lambda asked: [msg.Listed(workers=tuple(next(listed)))])
    assert "run 1 stands still: no worker is ready any more" in cli("bench", verb, code=2).err
    assert isinstance(master.asked[-1], msg.Cancel)


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_cancels_what_runs(cli, master, cluster, verb, monkeypatch):
    cluster["run"] = "RUNNING"

    def interrupt(run, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr("titan_fast.sdk.pending.PendingRun.wait", interrupt)
    cli("bench", verb, code=130)
    assert [asked.run for asked in master.asked if isinstance(asked, msg.Cancel)] == [1]


@pytest.mark.parametrize("verb", VERBS)
def test_a_task_that_fails_is_no_measurement(cli, cluster, verb):
    cluster["run"] = "FAILED"
    done = cli("bench", verb, code=1)
    assert (done.text, "run 1 is FAILED" in done.err) == ("", True)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("arguments", [("-n", "0"), ("-n", "x"), ("--slots", "3"), ("--local", "--master", "h:1")])
def test_wrong_input_ends_with_2(cli, master, cluster, verb, arguments):
    assert cli("bench", verb, *arguments, code=2).err
    assert not [asked for asked in master.asked if isinstance(asked, msg.Submit)]


def test_percentiles_are_of_the_nearest_rank():
    ordered = [float(number) for number in range(1, 101)]
    assert [bench._percentile(ordered, percent) for percent in (50, 99)] == [50.0, 99.0]
    assert bench._percentile([3.0], 99) == 3.0
