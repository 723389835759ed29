"""Functions as tasks, on a whole cluster: what comes back, what is blamed for what, and who is killed meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

import psutil
import pytest

from titan_fast import Graph, RunFailed, TaskFailed, inside
from titan_fast.errors import FunctionRaised, InvalidUsage
from titan_fast.testing.cluster import until

WAIT = 60.0


@pytest.fixture
def client(cluster):
    cluster.start_worker("w1", "--slots", "2")
    cluster.wait_for_workers(1)
    with cluster.client() as client:
        yield client


def lanes_of(cluster, name="w1"):
    """The processes for functions under a worker's keeper."""
    try:
        children = psutil.Process(cluster.workers[name].pid).children(recursive=True)
        return [child for child in children if any("_pool.py" in part for part in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def agent_of(cluster, name="w1"):
    children = psutil.Process(cluster.workers[name].pid).children()
    return next(child.pid for child in children if "agent" in child.cmdline())


# ---------------------------------------------------------------- what comes back


def test_what_the_last_function_of_a_run_returned_comes_with_its_end(cluster, client):
    graph = Graph("one")
    first = graph.call(abs, -7)
    last = graph.call(lambda x: {"six": x - 1}, first, name="last")
    run = client.run(graph, timeout=WAIT)
    cluster.kill_master()
    assert last.result(run) == {"six": 6}, "nobody has to be asked for it"


def test_what_is_large_does_not_come_with_the_end_of_a_run(client):
    graph = Graph("one")
    last = graph.call(bytes, 1 << 20)
    assert last.result(client.run(graph, timeout=WAIT)) == bytes(1 << 20)


@pytest.mark.smoke
def test_results_flow_as_arguments(client):
    graph = Graph("squares", env={"FACTOR": "10"})
    squares = graph.map(lambda x: x * x, range(1000), name="square")
    total = graph.call(sum, squares)
    both = graph.call(
        lambda parts, *, by: [parts["total"] * by, parts["squares"][3]], {"total": total, "squares": squares}, by=2
    )
    text = graph.task("text", run='printf " %s " "$FACTOR" > "$TITAN_RESULT"')
    scaled = graph.call(lambda a, b: int(a) * b, text, total, name="scaled")
    run = client.submit(graph)
    expected = sum(x * x for x in range(1000))
    assert total.result(run, WAIT) == expected
    assert run["square"][417].result() == 417 * 417
    assert squares.result(run) == [x * x for x in range(1000)]
    assert both.result(run, WAIT) == [2 * expected, 9]
    assert scaled.result(run, WAIT) == 10 * expected
    assert text.result(run) == "10"
    assert run.wait(WAIT).state == "COMPLETED"
    with pytest.raises(InvalidUsage, match="members"):
        run["square"].result()


def test_one_to_a_thousand_to_one_and_a_chain(client):
    graph = Graph("fan")
    first = graph.call(lambda: list(range(1000)), name="first")
    spread = graph.map(lambda pair: pair[0][pair[1]] + 1, [(first, n) for n in range(1000)], name="spread")
    link = graph.call(sum, spread, name="gather")
    for _ in range(50):
        link = graph.call(lambda x: x + 1, link, name=None)
    run = client.submit(graph)
    assert link.result(run, WAIT) == sum(range(1, 1001)) + 50
    assert link.name == "lambda-50"


@pytest.mark.parametrize("size", [1 << 10, 3 << 20])
def test_a_result_of_any_size_reaches_its_receiver(client, size):
    graph = Graph("large")
    made = graph.map(lambda n: bytes([n]) * size, [1, 2], name="made")
    used = graph.call(lambda parts: [(part[0], len(part)) for part in parts], made, name="used")
    run = client.submit(graph)
    assert used.result(run, WAIT) == [(1, size), (2, size)]
    assert run["made"][1].result() == bytes([2]) * size


def test_what_a_function_prints_is_its_output_and_nobody_elses(client):
    def speak(n):
        if n % 10 == 3:
            print("out", n)
            logging.getLogger("x").warning("logged %d", n)
            os.write(1, b"raw %d\n" % n)
        return n

    graph = Graph("prints")
    graph.map(speak, range(100), name="speak")
    run = client.submit(graph)
    run.wait(WAIT)
    for n in (3, 33, 93):
        until(lambda n=n: run["speak"][n].logs() == f"out {n}\nlogged {n}\nraw {n}\n", "the output is there")
    assert run["speak"][4].logs() == ""


def test_what_a_long_function_prints_can_be_followed(client, tmp_path):
    def work(go):
        print("begun")
        while not os.path.exists(go):
            time.sleep(0.01)
        print("done")

    graph = Graph("follow")
    graph.call(work, str(tmp_path / "go"))
    run = client.submit(graph)
    pieces = run["work"].follow()
    assert next(pieces) == b"begun\n"
    (tmp_path / "go").touch()
    assert b"".join(pieces) == b"done\n"
    assert run["work"].logs() == "begun\ndone\n"


def test_a_function_knows_which_task_it_is(client):
    def who(n):
        task = inside.task()
        return n, task.name, task.run, task.attempt, task.worker, os.environ["TITAN_TASK"]

    graph = Graph("who")
    graph.map(who, range(200), name="who")
    graph.call(lambda: os.path.isdir(os.environ["TITAN_ATTEMPT_DIR"]), name="place")
    graph.call(lambda: os.popen("echo $TITAN_TASK").read(), name="shell")
    graph.call(lambda: inside.kv.set("from", os.environ["TITAN_TASK"]), name="kv")
    run = client.submit(graph)
    run.wait(WAIT)
    names = [f"{run.id}/who[{n}]" for n in range(200)]
    assert run["who"].results() == [(n, names[n], run.id, 1, "w1", names[n]) for n in range(200)]
    assert run["place"].result() is True
    assert run["shell"].result() == f"{run.id}/shell\n"
    assert client.kv.get("from") == f"{run.id}/kv".encode()


def test_a_project_is_where_modules_are_found(client, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "sums.py").write_text("def double(x):\n    return 2 * x\n")
    (project / "note").write_text("here")

    def use(x):
        import sums

        return sums.double(x), open("note").read()

    graph = Graph("project", project=project)
    graph.map(use, range(20), name="use")
    run = client.submit(graph)
    run.wait(WAIT)
    assert run["use"].results() == [(2 * x, "here") for x in range(20)]


# ---------------------------------------------------------------- what goes wrong


def test_an_exception_that_cannot_be_made_again_comes_back_in_words(client, tmp_path):
    """Its class does not take its own arguments back, is in a module that only the workers have, or it is too large."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "shop.py").write_text("class SoldOut(Exception):\n    pass\n")

    class TwoArguments(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    class Wordless(Exception):
        def __str__(self):
            raise RuntimeError("not even that")

    def fail(how):
        if how == "arguments":
            raise TwoArguments(1, 2)
        if how == "module":
            import shop

            raise shop.SoldOut("nothing left")
        if how == "size":
            raise ValueError("x" * (1 << 20))
        error = Wordless()
        error.lock = __import__("threading").Lock()
        raise error

    graph = Graph("words", project=project)
    failing = graph.map(fail, ["arguments", "module", "size", "wordless"], name="fail")
    run = client.submit(graph)
    with pytest.raises(RunFailed):
        run.wait(WAIT)
    causes = []
    for member in range(4):
        with pytest.raises(TaskFailed) as found:
            run["fail"][member].result()
        assert "in fail\n" in found.value.traceback and len(found.value.traceback) < 100_000
        causes.append(found.value.__cause__)
    assert {type(cause) for cause in causes} == {FunctionRaised}
    assert [cause.type.rpartition(".")[2] for cause in causes] == ["TwoArguments", "SoldOut", "ValueError", "Wordless"]
    assert causes[1].type == "shop.SoldOut"
    assert [cause.message[:12] for cause in causes] == ["1 and 2", "nothing left", "x" * 12, ""]
    assert failing.spec.count == 4


def test_an_exception_comes_back_with_its_traceback(client):
    class Odd(Exception):
        pass

    def fail(n):
        if n == 7:
            raise Odd("seven", 7)
        return n

    graph = Graph("fails")
    failing = graph.map(fail, range(20), name="fail")
    after = graph.call(sum, failing)
    run = client.submit(graph)
    with pytest.raises(RunFailed, match="Odd"):
        run.wait(WAIT)
    with pytest.raises(TaskFailed) as found:
        failing.result(run)
    assert (found.value.reason, type(found.value.__cause__).__name__) == ("Odd: ('seven', 7)", "Odd") or (
        "Odd: ('seven', 7)" in found.value.reason
    )
    assert found.value.__cause__.args == ("seven", 7)
    assert "in fail\n" in found.value.traceback and "_pool.py" not in found.value.traceback
    assert "Odd: ('seven', 7)" in until(run["fail"][7].logs, "the traceback is in the output")
    assert run["fail"][8].result() == 8
    row = run["fail"][7].rows()[0]
    assert (row.state, row.exit_code) == ("FAILED", 1)
    with pytest.raises(TaskFailed, match="SKIPPED"):
        after.result(run)


def test_an_exit_code_is_one_and_what_cannot_be_sent_is_said(client):
    graph = Graph("ends")
    graph.call(lambda: sys.exit(3), name="exits")
    graph.call(lambda: sys.exit(), name="leaves")
    graph.call(lambda: (n for n in range(3)), name="generator")
    run = client.submit(graph)
    with pytest.raises(RunFailed):
        run.wait(WAIT)
    assert [(row.name, row.state, row.reason) for row in run.tasks()] == [
        ("exits", "FAILED", "exit:3"),
        ("leaves", "COMPLETED", "exit:0"),
        ("generator", "FAILED", "TypeError: cannot pickle 'generator' object"),
    ]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal:9"),
        (lambda: os._exit(5), "exit:5"),
        (lambda: os.abort(), "signal:6"),
        (lambda: os._exit(0), "SystemExit: the function ended its process, with exit code 0"),
    ],
)
def test_a_process_that_dies_takes_one_member_with_it(client, tmp_path, how, reason):
    ran = tmp_path / "ran"
    ran.mkdir()

    def die(n):
        (ran / f"{n}-{time.monotonic_ns()}").touch()
        if n == 50:
            print("last words", flush=True)
            how()
        return n

    graph = Graph("dies")
    graph.map(die, range(100), name="die")
    run = client.submit(graph)
    with pytest.raises(RunFailed):
        run.wait(WAIT)
    rows = run["die"].rows()
    assert [(row.name, row.reason) for row in rows if row.state != "COMPLETED"] == [("die[50]", reason)]
    assert {row.attempt for row in rows} == {1}
    assert len(os.listdir(ran)) == 100, "nothing ran twice"
    assert "last words" in until(run["die"][50].logs, "its output is there")


def test_a_timeout_ends_one_member(client):
    graph = Graph("slow")
    graph.map(lambda n: time.sleep(30 if n == 5 else 0) or n, range(40), name="slow", timeout=0.3, grace=0.2)
    run = client.submit(graph)
    with pytest.raises(RunFailed):
        run.wait(WAIT)
    assert [(row.name, row.reason) for row in run["slow"].rows() if row.state != "COMPLETED"] == [
        ("slow[5]", "timeout")
    ]


def test_a_cancelled_member_is_ended_and_the_others_go_on(client, cluster):
    graph = Graph("long")
    graph.map(lambda n: time.sleep(60 if n == 2 else 0.01) or n, range(30), name="long")
    run = client.submit(graph)
    until(lambda: run["long"][2].state == "RUNNING", "it runs")
    until(lambda: [row.state for row in run["long"].rows()].count("COMPLETED") == 29, "the others are done")
    run["long"][2].cancel()
    until(lambda: run["long"][2].state == "CANCELLED", "it is ended")
    assert run["long"][29].result() == 29


def test_what_is_queued_behind_a_long_one_goes_elsewhere(client):
    graph = Graph("behind")
    graph.map(lambda n: n, range(2000), name="quick")
    client.submit(graph).wait(WAIT)
    graph = Graph("behind")
    graph.map(lambda n: time.sleep(3 if n == 700 else 0) or n, range(1500), name="mixed")
    run = client.submit(graph)
    until(lambda: [row.state for row in run["mixed"].rows()].count("COMPLETED") == 1499, "all but one", 2.5)
    run.wait(WAIT)


def test_functions_and_commands_share_the_slots(client, tmp_path):
    graph = Graph("mixed")
    for n in range(6):
        graph.task(f"command-{n}", run=f"sleep 0.05; touch {tmp_path}/{n}")
        graph.map(lambda x: time.sleep(0.002) or x, range(20), name=f"function-{n}")
    client.submit(graph).wait(WAIT)


def test_retries_run_again(client, tmp_path):
    def once(n):
        mark = tmp_path / str(n)
        if not mark.exists():
            mark.touch()
            raise OSError("not yet")
        return inside.task().attempt

    graph = Graph("again")
    again = graph.map(once, range(10), name="once", retries=2)
    assert again.result(client.submit(graph), WAIT) == [2] * 10


# ---------------------------------------------------------------- who is killed


@pytest.mark.kill
def test_the_agent_is_killed_and_everything_is_done(client, cluster):
    graph = Graph("agent")
    graph.map(lambda n: time.sleep(0.005) or n, range(400), name="work")
    run = client.submit(graph)
    until(lambda: run.show().counts.get("COMPLETED", 0) > 50, "some are done")
    before = lanes_of(cluster)
    os.kill(agent_of(cluster), signal.SIGKILL)
    until(lambda: not any(lane.is_running() for lane in before), "they die with their agent")
    run.wait(WAIT)
    assert run["work"].results() == list(range(400))


@pytest.mark.kill
def test_the_master_is_killed_and_every_member_is_accepted_once(client, cluster, tmp_path):
    ran = tmp_path / "ran"
    ran.mkdir()

    def work(n):
        (ran / f"{n}-{time.monotonic_ns()}").touch()
        time.sleep(0.003)
        return n

    graph = Graph("master")
    parts = graph.map(work, range(500), name="work")
    total = graph.call(sum, parts)
    run = client.submit(graph)
    for done in (50, 250):
        until(lambda done=done: run.show().counts.get("COMPLETED", 0) > done, "some are done")
        cluster.kill_master()
        cluster.restart_master()
    assert total.result(run, WAIT) == sum(range(500))
    assert run["work"].results() == list(range(500))
    assert len(os.listdir(ran)) == 500, "the worker was never lost, so nothing ran twice"


@pytest.mark.kill
def test_nothing_is_left_when_a_worker_stops(client, cluster):
    graph = Graph("stops")
    graph.map(lambda n: time.sleep(0.01) or n, range(20), name="work")
    client.submit(graph).wait(WAIT)
    lanes = lanes_of(cluster)
    assert lanes
    cluster.workers["w1"].send_signal(signal.SIGTERM)
    assert cluster.workers["w1"].wait(30) == 0
    assert not any(lane.is_running() for lane in lanes)
    assert not os.path.exists(cluster.home / "work" / "w1" / "functions")
