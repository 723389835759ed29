"""Function tasks while a graph is being built: names, edges, what travels, and what is refused where it is written."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import operator
import os
import pickle
import subprocess
import sys
import threading

import msgspec
import pytest

from titan_fast import Graph, TaskFailed
from titan_fast.errors import FunctionRaised, InvalidGraph, InvalidUsage
from titan_fast.model.spec import MAX_PAYLOAD
from titan_fast.protocol import messages as msg
from titan_fast.sdk import functions
from titan_fast.sdk.handles import RunHandle


def parts_of(blob, count):
    ends = [int.from_bytes(blob[4 * n : 4 * n + 4], "big") for n in range(count + 1)]
    base = 4 * (count + 1)
    assert len(blob) == base + ends[-1]
    return [blob[base + start : base + end] for start, end in itertools.pairwise(ends)]


class Placed(pickle.Unpickler):
    def persistent_load(self, pid):
        return ("parent", *pid)


def load(data):
    import io

    return Placed(io.BytesIO(data)).load()


def test_a_map_is_one_array_with_one_function_and_one_blob():
    graph = Graph("g")
    graph.map(operator.neg, range(1000), name="neg", retries=2, requires=["gpu"], timeout="5s")
    spec, payloads = graph.to_spec()
    (task,) = spec.tasks
    assert (task.name, task.count, task.array, task.retry.max, task.requires) == ("neg", 1000, True, 2, ("gpu",))
    assert (task.work.function, task.payload, task.work.timeout) == (0, 1, 5.0)
    assert pickle.loads(payloads[0]) is operator.neg
    assert [pickle.loads(part) for part in parts_of(payloads[1], 1000)] == list(range(1000))


def test_tasks_among_the_arguments_are_edges_however_deep_they_are():
    graph = Graph("g")
    text = graph.task("text", run="true")
    one = graph.call(abs, -1)
    many = graph.map(abs, [1, 2])
    last = graph.call(print, {"deep": [(one, many)]}, one, sep=text, needs=["text"], name="last")
    assert last.spec.needs == ("abs", "abs-2", "text")
    assert last.spec.work.arguments == ("abs", "abs-2", "text")
    spec, payloads = graph.to_spec()
    (call,) = parts_of(payloads[spec.tasks[3].payload], 1)
    first, array, plain = ("parent", 0, True, False), ("parent", 1, True, True), ("parent", 2, False, False)
    assert load(call) == (({"deep": [(first, array)]}, first), {"sep": plain})


def test_a_task_among_plain_arguments_is_an_edge():
    graph = Graph("g")
    text = graph.task("text", run="true")
    last = graph.call(print, 1, sep=text, end="")
    assert last.spec.needs == ("text",)
    spec, payloads = graph.to_spec()
    (call,) = parts_of(payloads[spec.tasks[1].payload], 1)
    assert load(call) == ((1,), {"sep": ("parent", 0, False, False), "end": ""})


def test_a_function_travels_once():
    graph = Graph("g")
    for _ in range(10):
        graph.call(abs, 1)
    spec, payloads = graph.to_spec()
    assert len(payloads) == 11
    assert {task.work.function for task in spec.tasks} == {0}


def test_names_are_those_of_the_functions_and_numbered():
    graph = Graph("g")
    graph.task("abs-2", run="true")
    calls = [abs, abs, abs, lambda: 1, lambda: 2, functools.partial(abs, 3), operator.itemgetter(1)]
    names = [graph.call(function).name for function in calls]
    assert names == ["abs", "abs-3", "abs-4", "lambda", "lambda-2", "abs-5", "itemgetter"]


def test_what_only_this_program_knows_travels_by_value(tmp_path):
    """As a worker sees it: a process that has neither this module nor the current directory."""
    path = tmp_path / "mine.py"
    path.write_text("FACTOR = 3\nclass Point:\n    x = 4\ndef times(p):\n    return p.x * FACTOR\n")
    spec = importlib.util.spec_from_file_location("mine", path)
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        data = functions.pickled_function("t", module.times, ships_project=False)
        assert b"FACTOR" in data
        assert b"FACTOR" not in functions.pickled_function("t", module.times, ships_project=True)
    finally:
        del sys.modules["mine"]
    code = f"import pickle\nclass P: x = 5\nprint(pickle.loads({data!r})(P))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "15\n"


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda graph: graph.call(lambda: lock), "task 'lambda': the function 'lambda' cannot be sent"),
        (lambda graph: graph.call(abs, threading.Lock()), "task 'abs': an argument cannot be sent"),
        (lambda graph: graph.map(abs, [1, threading.Lock()], name="m"), "task 'm': item 1 cannot be sent"),
        (lambda graph: graph.map(abs, []), "task 'abs': there are no items"),
        (lambda graph: graph.call(3), "cannot be called"),
        (lambda graph: graph.call(abs, name="a/b"), "a/b"),
        (lambda graph: [graph.call(abs, name="a"), graph.call(abs, name="a")], "task 'a' is there already"),
        (lambda graph: graph.call(abs, Graph("other").call(abs, 1)), "which is in another graph"),
        (lambda graph: graph.call(functools.partial(abs, graph.call(abs, 1, name="x"))), "stands for a result"),
        (lambda graph: graph.call(abs, bytes(MAX_PAYLOAD + 1)), "at most 4,194,304 are allowed"),
        (lambda graph: graph.call(abs, 1, retries=-1), "retries: -1 is not between 0 and 60,000"),
        (lambda graph: graph.call(abs, 1, needs=["nobody"]), "which is not in this graph yet"),
        (lambda graph: graph.call(abs, 1, timeout="soon"), "timeout"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(build, says):
    graph = Graph("g")
    with pytest.raises(InvalidGraph) as found:
        build(graph)
    assert says in str(found.value)


lock = threading.Lock()


# ---------------------------------------------------------------- results


def given(*values, missing=(), pickled=True, cursor=""):
    parts = tuple(pickle.dumps(value) if pickled else value for value in values)
    return msg.Given(pickled=pickled, missing=missing, next=cursor), parts


def answers(master, pages):
    from titan_fast.protocol.connection import send

    final = msg.Update(7, "g", "COMPLETED", {}, final=True, task_state="COMPLETED")
    master.on(msg.Watch, final)
    asked = []

    def page(request):
        asked.append(request)
        document, parts = pages[int(request.cursor or 0)]
        whole = msgspec.structs.replace(document, attachments=tuple(map(len, parts)))
        assert send(whole, parts)
        return [(document, *parts)]

    master.script(msg.Results, page)
    return asked


def test_results_come_page_by_page_in_order(client, master):
    asked = answers(master, [given(0, 1, 2, cursor="1"), given(3, 4)])
    handle = RunHandle(client, 7)["square"]
    assert handle.results() == [0, 1, 2, 3, 4]
    assert [(each.run, each.task, each.member, each.cursor) for each in asked] == [
        (7, "square", -1, ""),
        (7, "square", -1, "1"),
    ]
    with pytest.raises(InvalidUsage, match="members"):
        handle.result()


def test_one_result_of_a_function_or_a_command(client, master):
    answers(master, [given([1])])
    assert RunHandle(client, 7)["square"][3].result() == [1]
    answers(master, [given(b" text\n", pickled=False)])
    assert RunHandle(client, 7)["shell"].result() == "text"


def test_a_failure_is_raised_with_what_it_left(client, master):
    missing = (msg.NoResult(0, "square[3]", "FAILED", "KeyError: 'x'"),)
    data = b"KeyError: 'x'\0" + pickle.dumps(("Traceback …\n", pickle.dumps(KeyError("x"))))
    document, _ = given(missing=missing)
    answers(master, [(document, (data,))])
    with pytest.raises(TaskFailed) as found:
        RunHandle(client, 7)["square"][3].result()
    assert str(found.value) == "7/square[3] is FAILED (KeyError: 'x')\nTraceback …"
    assert repr(found.value.__cause__) == "KeyError('x')"
    assert found.value.hint == "titan-fast logs 7/square[3]"


@pytest.mark.parametrize("pickled", [b"", b"cno\nclass\n.", pickle.dumps("no exception")])
def test_an_exception_that_cannot_be_had_keeps_its_type_its_message_and_its_traceback(client, master, pickled):
    missing = (msg.NoResult(0, "square[3]", "FAILED", "SoldOut: three\nlines"),)
    left = pickle.dumps(("Traceback …\n", pickled)) + pickle.dumps(("shop.orders.SoldOut", "three\nlines"))
    document, _ = given(missing=missing)
    answers(master, [(document, (b"SoldOut: three lines\0" + left,))])
    with pytest.raises(TaskFailed) as found:
        RunHandle(client, 7)["square"][3].result()
    cause = found.value.__cause__
    assert isinstance(cause, FunctionRaised)
    assert (cause.type, cause.message, found.value.traceback) == (
        "shop.orders.SoldOut",
        "three\nlines",
        "Traceback …\n",
    )
    assert str(cause) == "shop.orders.SoldOut: three\nlines"


@pytest.mark.parametrize(
    "left", [b"", b"exit", b"E: x\0no pickle", b"E: x\0" + pickle.dumps(("text", b"cno\nclass\n."))]
)
def test_what_cannot_be_read_of_a_failure_is_left_out(client, master, left):
    document, _ = given(missing=(msg.NoResult(0, "t", "FAILED", "E: x"),))
    answers(master, [(document, (left,))])
    with pytest.raises(TaskFailed, match="E: x") as found:
        RunHandle(client, 7)["t"].result()
    assert found.value.__cause__ is None


def test_importing_the_sdk_does_not_import_what_pickles_functions():
    code = "import sys\nfrom titan_fast import Client, Graph\nprint('cloudpickle' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
