"""Building graphs in Python: what is wrong is said at the line that is wrong, by name."""

from __future__ import annotations

import functools
import inspect
import re

import pytest

from titan_fast import Graph
from titan_fast.errors import InvalidGraph
from titan_fast.model.spec import Affinity, Retry


def test_a_graph_becomes_a_spec_with_every_default_resolved(tmp_path):
    (tmp_path / "job.py").write_text("pass")
    graph = Graph("nightly", project=tmp_path, env={"A": "1"})
    first = graph.task("first", run=["echo", 7], retries=2, timeout="1h30m")
    graph.task("second", file="job.py", args=[1, "x"], needs=[first], requires=["GPU"], delay="500ms", affinity=True)
    spec, payloads = graph.to_spec()
    assert payloads == ()
    assert [task.name for task in spec.tasks] == ["first", "second"]
    one, two = spec.tasks
    assert one.work.argv == ("echo", "7")
    assert (one.retry.max, one.work.timeout) == (2, 5400.0)
    assert (two.needs, two.requires, two.delay) == (("first",), ("GPU",), 0.5)
    assert (two.work.file, two.work.args, two.affinity) == ("job.py", ("1", "x"), Affinity("parent"))


def test_a_matrix_makes_an_array_with_a_payload_for_each_combination():
    graph = Graph("g")
    graph.task("t", run="echo ${matrix.a} ${matrix.b}", matrix={"a": [1, 2], "b": [True, "x", "y"]})
    spec, payloads = graph.to_spec()
    (task,) = spec.tasks
    assert (task.array, task.count, task.payload) == (True, 6, 0)
    assert b'{"a":"1","b":"true"}' in payloads[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a/b", "run": "true"}, "contains '/'"),
        ({"name": "", "run": "true"}, "empty"),
        ({"name": "t"}, "one of run= and file="),
        ({"name": "t", "run": "true", "file": "x.py"}, "one of run= and file="),
        ({"name": "t", "run": ""}, "empty"),
        ({"name": "t", "run": "true", "args": ["x"]}, "args="),
        ({"name": "t", "file": "x.py"}, "project="),
        ({"name": "t", "run": "true", "needs": ["prep"]}, "did you mean 'prepare'"),
        ({"name": "t", "run": "true", "timeout": "soon"}, "task 't': timeout"),
        ({"name": "t", "run": "true", "retries": -1}, "retries: -1 is not between 0 and 60,000"),
        ({"name": "t", "run": "true", "when": "maybe"}, "when='maybe'"),
        ({"name": "t", "run": "true", "affinity": True}, "no parent"),
        ({"name": "t", "run": "true", "matrix": {"x": []}}, "matrix has no values"),
        ({"name": "t", "run": "echo ${matrix.y}", "matrix": {"x": [1]}}, "${matrix.y}"),
        ({"name": "t", "run": "echo ${matrix.y}"}, "no matrix"),
        ({"name": "prepare", "run": "true"}, "is there already"),
        ({"name": "t", "run": "echo ${tasks.prepare}"}, "write ${tasks.NAME.result}"),
        ({"name": "t", "run": "echo ${ tasks.prepare.result}"}, "without spaces"),
        ({"name": "t", "run": ["echo", "${tasks.prep.result}"]}, "not in this graph yet (did you mean 'prepare'?)"),
        ({"name": "t", "run": "true", "env": {"E": "${tasks.prepare.result}"}}, "does not need (add it to needs=)"),
        ({"name": "t", "run": "echo ${tasks.many.result}", "needs": ["many"]}, "which is an array"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_where_it_is_added(fields, said):
    graph = Graph("g")
    graph.task("prepare", run="true")
    graph.task("many", run="true", matrix={"x": [1]})
    with pytest.raises(InvalidGraph) as error:
        graph.task(**fields)
    assert said in str(error.value)


class Anything:
    """Of no kind that an option could be."""


WRONG = {
    "name": [3, None, ["t"], b"t"],
    "run": [3, {"a": 1}, Anything(), b"true"],
    "file": [3, ["x.py"], Anything()],
    "args": [3, {"a": 1}, Anything(), "un'closed"],
    "python": [3, None, ["python3"]],
    "isolation": [3, ["warm"], "cold"],
    "preload": [3, None, [3], {3}, [["numpy"]]],
    "needs": [3, None, [3], {"p": 1}, [["p"]]],
    "requires": [3, [3], {3}, {"GPU": 1}, Anything()],
    "priority": ["high", None, 1.5, [1], 1 << 31],
    "affinity": [
        3,
        1.5,
        ["key"],
        Anything(),
        Affinity("somewhere"),
        Affinity("key", 3),
        Affinity("key", "k", wait="x"),
    ],
    "delay": [None, True, [1], "soon", -1, float("nan"), 1e10, Anything()],
    "timeout": [None, True, [1], "soon", -1, "20000d"],
    "grace": [None, True, [1], "soon", -1],
    "retries": ["many", None, 1.5, True, [1], -1, 100_000],
    "retry": [
        3,
        "many",
        {"max": 3},
        Retry(max="many"),
        Retry(max=-1),
        Retry(on=("always",)),
        Retry(backoff=Anything()),
    ],
    "when": [3, None, ["success"], "maybe"],
    "env": [3, "A=b", ["A"], Anything()],
    "matrix": [3, "x", ["x"], {"x": 3}, {"x": "abc"}, {3: [1]}],
}


@pytest.mark.parametrize("kind", ["task", "call", "map"])
@pytest.mark.parametrize(("option", "value"), [(option, value) for option in WRONG for value in WRONG[option]])
def test_an_option_of_another_kind_is_refused_with_the_names_of_task_and_option(tmp_path, kind, option, value):
    graph = Graph("g", project=tmp_path)
    (tmp_path / "x.py").write_text("")
    graph.task("p", run="true")
    taken = {option: value}
    if kind == "task":
        of_scripts = option in ("args", "python", "isolation", "preload")
        base = {"name": "t", "file" if of_scripts else "run": "x.py"}
        if option == "file":
            del base["run"]
        make = functools.partial(graph.task, **{**base, **taken})
    elif option not in inspect.signature(graph.map).parameters or (option == "name" and value is None):
        return
    else:
        name = {} if option == "name" else {"name": "t"}
        make = functools.partial(
            *((graph.call, len, []) if kind == "call" else (graph.map, len, [[]])), **name, **taken
        )
    with pytest.raises(InvalidGraph) as error:
        make()
    assert option in str(error.value)
    assert option == "name" or str(error.value).startswith("task 't'")
    assert list(graph.tasks) == ["p"]


def test_one_stands_for_a_list_of_one_and_a_text_is_split_as_a_shell_would(tmp_path):
    (tmp_path / "x.py").write_text("")
    graph = Graph("g", project=tmp_path)
    parent = graph.task("p", run="true")
    task = graph.task("t", file="x.py", args="a 'b c'", needs=parent, requires="GPU", preload="json")
    assert (task.spec.needs, task.spec.requires) == (("p",), ("GPU",))
    assert (task.spec.work.args, task.spec.work.preload) == (("a", "b c"), ("json",))
    assert graph.call(len, [], needs="p", requires="GPU,BIG").spec.requires == ("GPU", "BIG")
    assert graph.map(len, [[]], needs=parent).spec.needs == ("p",)


def test_numbers_of_other_kinds_are_numbers():
    task = Graph("g").task("t", run="true", priority=Index(), retries=Index())
    assert (type(task.spec.priority), task.spec.priority, task.spec.retry.max) == (int, 3, 3)


class Index:
    """As those of numpy are."""

    def __index__(self):
        return 3


def test_items_that_are_none_are_refused():
    with pytest.raises(InvalidGraph, match="task 'len': items: 3 is not a list of items"):
        Graph("g").map(len, 3)


@pytest.mark.parametrize(
    ("fields", "said"), [({"name": 3}, "name: 3"), ({"project": 3}, "project: 3"), ({"env": 3}, "env: 3")]
)
def test_what_is_wrong_with_a_graph_is_told_by_its_name(fields, said):
    with pytest.raises(InvalidGraph, match=said):
        Graph(**{"name": "g", **fields})


@pytest.mark.parametrize("file", ["/etc/passwd", "../up.py", "missing.py"])
def test_a_file_must_be_in_the_project(tmp_path, file):
    with pytest.raises(InvalidGraph, match="task 't'"):
        Graph("g", project=tmp_path).task("t", file=file)


def test_a_parent_must_be_of_the_same_graph():
    other = Graph("other").task("a", run="true")
    with pytest.raises(InvalidGraph, match="in another graph"):
        Graph("g").task("t", run="true", needs=[other])


def test_a_project_folder_must_be_there(tmp_path):
    with pytest.raises(InvalidGraph, match="is not there"):
        Graph("g", project=tmp_path / "nope")


def test_the_result_of_an_ancestor_may_stand_in_a_task():
    graph = Graph("g")
    a = graph.task("a", run="true")
    b = graph.task("b", run="true", needs=[a])
    c = graph.task("c", run="echo ${tasks.a.result}", needs=[b, graph.task("other", run="true")])
    d = graph.task("d", run=["x", "${tasks.c.result}"], env={"E": "${tasks.a.result}"}, needs=[c])
    spec, _ = graph.to_spec()
    assert spec.tasks[-1].work.argv == ("x", "${tasks.c.result}")
    assert d.spec.work.env == {"E": "${tasks.a.result}"}


def test_how_a_script_begins(tmp_path):
    (tmp_path / "a.py").touch()
    (tmp_path / "b.sh").touch()
    graph = Graph("g", project=tmp_path)
    plain = graph.task("plain", file="a.py").spec.work
    assert (plain.isolation, plain.preload) == ("warm", ())
    work = graph.task("numbers", file="a.py", preload=["numpy", "numpy", "os.path"]).spec.work
    assert (work.isolation, work.preload) == ("warm", ("numpy", "os.path"))
    assert graph.task("alone", file="a.py", isolation="fresh").spec.work.isolation == "fresh"
    refused = [
        ({"file": "a.py", "isolation": "cold"}, "'cold' is not warm or fresh"),
        ({"run": "x", "isolation": "fresh"}, "there is no 'file'"),
        ({"file": "b.sh", "preload": ["numpy"]}, "'b.sh' does not end in .py"),
        ({"file": "a.py", "preload": ["num-py"]}, "'num-py' cannot be the name of a module"),
        ({"file": "a.py", "preload": ["numpy"], "python": "/usr/bin/python3"}, "the worker's own Python"),
        ({"file": "a.py", "preload": ["numpy"], "isolation": "fresh"}, "excludes isolation: fresh"),
    ]
    for fields, message in refused:
        with pytest.raises(InvalidGraph, match=re.escape(message)):
            graph.task("t", **fields)
