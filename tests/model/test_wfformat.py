"""Published workflow instances: what is read of them, how fast they can be, and that a replay is judged rightly."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_fast.errors import InvalidFile, InvalidGraph
from titan_fast.model.names import check_name
from titan_fast.model.wfformat import (
    Instance,
    InstanceTask,
    check_report,
    critical_path,
    floor,
    greedy_makespan,
    load_instance,
    parse_instance,
    task_names,
    to_graph,
    work,
)

ROOT = Path(__file__).parents[2]
DIAMOND = ROOT / "tests" / "data" / "diamond.wfformat.json"
PUBLISHED = sorted((ROOT.parent / "shared" / "wfinstances").glob("*.json"))


@pytest.fixture
def diamond() -> Instance:
    return load_instance(DIAMOND)


def instance(*tasks: tuple[str, float, str]) -> Instance:
    """From (id, runtime, parents divided by spaces)."""
    return Instance(
        "test", tuple(InstanceTask(each, runtime, tuple(parents.split())) for each, runtime, parents in tasks)
    )


# ---------------------------------------------------------------- the file


def test_an_instance_is_read_with_the_edges_of_both_lists(diamond):
    assert diamond == Instance(
        "diamond",
        (
            InstanceTask("split", 1.0, ()),
            InstanceTask("left", 2.5, ("split",)),
            InstanceTask("right/half", 4.0, ("split",)),
            InstanceTask("join", 0.5, ("left", "right/half")),
        ),
    )
    assert diamond.edges == 4


@pytest.mark.skipif(
    not PUBLISHED, reason="the published instances are not beside this repository (../shared/wfinstances)"
)
def test_the_published_instances_are_read():
    tasks = {path.name: (len(load_instance(path).tasks), load_instance(path).edges) for path in PUBLISHED}
    assert tasks == {
        "1000genome-chameleon-2ch-100k-001.json": (52, 76),
        "blast-chameleon-small-001.json": (43, 120),
        "montage-chameleon-2mass-01d-001.json": (103, 231),
        "rnaseq-dirt02-001.json": (197, 451),
        "seismology-chameleon-700p-001.json": (701, 700),
        "soykb-chameleon-10fastq-20ch-001.json": (156, 354),
    }
    for path in PUBLISHED:
        found = load_instance(path)
        for slots in (1, 2, 16, 1000):
            assert floor(found, slots) <= greedy_makespan(found, slots) * (1 + 1e-12)
        assert greedy_makespan(found, 1) == pytest.approx(work(found))
        assert greedy_makespan(found, 1000) == pytest.approx(critical_path(found))
        assert len(to_graph(found, 0.01).tasks) == len(found.tasks)


def document(**changes):
    found = json.loads(DIAMOND.read_text())
    for path, value in changes.items():
        *folders, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place = found
        for folder in folders:
            place = place[folder]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return json.dumps(found).encode()


SPEC, EXEC = "workflow__specification__tasks", "workflow__execution__tasks"
AT_SPEC, AT_EXEC = "$.workflow.specification.tasks", "$.workflow.execution.tasks"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workflow": None}, "$: object missing required field `workflow`"),
        ({"workflow__execution": None}, "$.workflow: object missing required field `execution`"),
        ({"workflow__specification": None, "schemaVersion": "1.3"},
         "$.workflow: object missing required field `specification` (WfFormat 1.5 is read here, this says '1.3')"),
        ({f"{EXEC}__1__runtimeInSeconds": "long"}, f"{AT_EXEC}[1].runtimeInSeconds: expected `float`, got `str`"),
        ({f"{EXEC}__1__runtimeInSeconds": -1}, f"{AT_EXEC}[1].runtimeInSeconds: -1.0 is no duration"),
        ({f"{EXEC}__1": None}, f"{AT_SPEC}[1].id: 'left' has no runtime in the execution"),
        ({f"{EXEC}__1__id": "lft"},
         f"{AT_EXEC}[1].id: 'lft' is no task of the specification\n"
         f"FILE: {AT_SPEC}[1].id: 'left' has no runtime in the execution"),
        ({f"{EXEC}__1__id": "split"},
         f"{AT_EXEC}[1].id: 'split' has been executed already\n"
         f"FILE: {AT_SPEC}[1].id: 'left' has no runtime in the execution"),
        ({f"{SPEC}__3__parents": ["lft"]}, f"{AT_SPEC}[3].parents: there is no task 'lft'"),
        ({f"{SPEC}__0__children": ["lft"]}, f"{AT_SPEC}[0].children: there is no task 'lft'"),
        ({f"{SPEC}__1__parents": "split"}, f"{AT_SPEC}[1].parents: expected `array`, got `str`"),
        ({f"{SPEC}__0__parents": ["join"]}, f"{AT_SPEC}: tasks wait for each other: split → join → right/half → split"),
        ({SPEC: [], EXEC: []}, f"{AT_SPEC}: there are no tasks"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_instance_is_told_with_the_field(changes, message):
    with pytest.raises(InvalidFile) as refused:
        parse_instance(document(**changes), "FILE")
    assert str(refused.value) == f"FILE: {message}"


def test_two_tasks_of_one_id_are_told():
    data = document().replace(b'"id": "left"', b'"id": "split"')
    with pytest.raises(InvalidFile) as refused:
        parse_instance(data, "FILE")
    assert refused.value.problems[0] == f"FILE: {AT_SPEC}[1].id: 'split' is the id of another task too"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{\n"workflow": {,}}', "FILE:2: invalid JSON: object keys must be strings"),
        (b'{\n"workflow": {', "FILE:2: invalid JSON: input data was truncated"),
        (b"", "FILE:1: invalid JSON: input data was truncated"),
        (b'{\n"name": "\xff"}', "FILE:2: the file is not UTF-8 text"),
        (b"[]", "FILE: $: expected `object`, got `array`"),
    ],
)
def test_what_is_no_json_is_told_with_the_line(data, message):
    with pytest.raises(InvalidFile) as refused:
        parse_instance(data, "FILE")
    assert str(refused.value).startswith(message)


def test_an_instance_that_is_not_there(tmp_path):
    with pytest.raises(InvalidFile) as refused:
        load_instance(tmp_path / "no.json")
    assert str(refused.value) == f"{tmp_path}/no.json: cannot be read: No such file or directory"


# ---------------------------------------------------------------- how fast it can be


def test_the_bounds_of_the_diamond(diamond):
    assert work(diamond) == 8.0
    assert critical_path(diamond) == 5.5
    assert [floor(diamond, slots) for slots in (1, 2, 3)] == [8.0, 5.5, 5.5]
    assert [greedy_makespan(diamond, slots) for slots in (1, 2, 3)] == [8.0, 5.5, 5.5]


def test_what_became_ready_first_starts_first_and_then_what_stands_first():
    late = instance(("a", 4, "b"), ("e", 3, ""), ("x", 1, ""), ("b", 1, ""), ("d", 3, ""), ("c", 1, "x"))
    # 0: e and x; 1: b, for c is ready only now; 2: d, for a is ready only now; 3: c, ready before a; 4: a, until 8.
    assert greedy_makespan(late, 2) == 8.0
    assert greedy_makespan(late, 1) == 13.0
    greedy = instance(("short", 1, ""), ("also", 1, ""), ("long", 10, ""))
    assert greedy_makespan(greedy, 2) == 11.0  # a scheduler that knew would need 10
    assert floor(greedy, 2) == 10.0


def test_tasks_of_no_length_are_a_moment_each():
    assert greedy_makespan(instance(("a", 0, ""), ("b", 0, "a"), ("c", 2, "b")), 1) == 2.0


def test_a_scheduler_needs_a_slot(diamond):
    for judge in (floor, greedy_makespan):
        with pytest.raises(ValueError, match="there must be a slot at least, not 0"):
            judge(diamond, 0)


INSTANCES = st.lists(
    st.tuples(st.floats(0, 1000), st.lists(st.integers(0, 30), max_size=4)), min_size=1, max_size=30
).map(
    lambda rows: instance(
        *(
            (
                str(number),
                runtime,
                " ".join(dict.fromkeys(str(parent % number) for parent in parents) if number else ""),
            )
            for number, (runtime, parents) in enumerate(rows)
        )
    )
)


@given(INSTANCES, st.integers(1, 8))
def test_no_schedule_beats_the_floor_and_no_greedy_one_is_twice_it(found, slots):
    makespan = greedy_makespan(found, slots)
    assert makespan >= floor(found, slots) * (1 - 1e-9)
    assert makespan <= work(found) * (1 + 1e-9)
    # Graham 1966: list scheduling is within work / slots + critical path.
    assert makespan <= (work(found) / slots + critical_path(found)) * (1 + 1e-9)


# ---------------------------------------------------------------- the replay


def test_names_are_legal_and_unique():
    odd = instance(
        ("a/b", 1, ""), ("a_b", 1, ""), ("a_b-2", 1, ""), ("", 1, ""), ("x" * 300, 1, ""), ("x" * 301, 1, "")
    )
    names = task_names(odd)
    assert names == ["a_b", "a_b-2", "a_b-2-2", "_", "x" * 200, "x" * 198 + "-2"]
    assert [check_name(name) for name in names] == names


def test_the_graph_of_an_instance_sleeps_as_long_as_it_ran(diamond, tmp_path):
    graph = to_graph(diamond, 0.1, tmp_path / "report")
    assert graph.name == "diamond"
    assert graph.env == {"LC_ALL": "C", "TITAN_REPLAY_LOG": str(tmp_path / "report")}
    assert [(each.name, each.needs, each.work.argv[-2:]) for each in graph.tasks] == [
        ("split", (), ("split", "0.100000")),
        ("left", ("split",), ("left", "0.250000")),
        ("right_half", ("split",), ("right_half", "0.400000")),
        ("join", ("left", "right_half"), ("join", "0.050000")),
    ]
    assert to_graph(diamond).env == {"LC_ALL": "C"}


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(diamond, scale):
    with pytest.raises(InvalidGraph, match="the scale of a replay cannot be"):
        to_graph(diamond, scale)


@pytest.fixture
def bash():
    """The replay's only need."""
    try:
        done = subprocess.run(["bash", "-c", "echo ${EPOCHREALTIME:-old}"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("bash is not installed, and a replay is made of it")
    if done.stdout == "old\n":
        pytest.skip("bash is older than 5.0 and has no EPOCHREALTIME")


def start(graph, name, **more):
    argv = next(each.work.argv for each in graph.tasks if each.name == name)
    return subprocess.Popen(argv, env={"PATH": os.environ["PATH"], **graph.env}, stdin=subprocess.DEVNULL, **more)


def test_a_replayed_task_is_one_process_that_sleeps_and_says_when(bash, tmp_path):
    report = tmp_path / "a report"
    one = Instance("x", (InstanceTask("it's $1 task", 0.25, ()),))
    before = time.time()
    assert start(to_graph(one, 1.0, report), "it's $1 task").wait() == 0
    lines = report.read_text().splitlines()
    (what, begun, name), (what2, ended, name2) = (line.split(" ", 2) for line in lines)
    assert (what, what2, name, name2) == ("start", "finish", "it's $1 task", "it's $1 task")
    assert before - 0.001 <= float(begun) <= float(begun) + 0.25 <= float(ended) <= time.time() + 0.001
    assert check_report(one, report.read_text()) == []


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked for in /proc")
def test_a_replayed_task_starts_nothing_else(bash, tmp_path):
    report = tmp_path / "report"
    running = start(to_graph(Instance("x", (InstanceTask("t", 60.0, ()),)), 1.0, report), "t")
    try:
        deadline = time.monotonic() + 20
        # Asleep is both a shell that waits for its `sleep` and one that sleeps itself: the children tell.
        while not (report.exists() and report.read_text() and state(running.pid) == "S"):
            assert time.monotonic() < deadline, "it did not go to sleep"
            time.sleep(0.005)
        assert report.read_text().startswith("start ")
        assert Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text() == ""
    finally:
        running.terminate()
        assert running.wait() == -15


def test_a_replay_without_its_report_fails(bash, tmp_path):
    graph = to_graph(Instance("x", (InstanceTask("t", 0.0, ()),)), 1.0, tmp_path / "no" / "report")
    assert start(graph, "t", stderr=subprocess.DEVNULL).wait() == 1


def test_lines_of_tasks_that_end_together_do_not_mix(bash, tmp_path):
    report = tmp_path / "report"
    crowd = Instance("x", tuple(InstanceTask(f"{number}-{'x' * 150}", 0.0, ()) for number in range(60)))
    graph = to_graph(crowd, 1.0, report)
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda name: start(graph, name).wait(), task_names(crowd)))
    assert codes == [0] * 60
    assert check_report(crowd, report.read_text()) == []


GOOD = """\
start 1.0 split
finish 2.0 split
start 2.0 left
start 2.5 right_half
finish 4.0 left
finish 6.5 right_half
start 6.600001 join
finish 7.0 join
"""


def test_a_good_replay_has_no_violations(diamond):
    assert check_report(diamond, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "violations"),
    [
        ("start 2.0 left\n", "start 1.9 left\n", ["'left' started 0.100000 s before its parent 'split' had finished"]),
        ("start 6.600001 join\n", "start 6.0 join\n",
         ["'join' started 0.500000 s before its parent 'right_half' had finished"]),
        ("start 2.0 left\nstart", "start 2.0 left\nstart 2.2 left\nstart", ["'left' started 2 times"]),
        ("finish 4.0 left\n", "", ["'left' finished never"]),
        ("start 6.600001 join\nfinish 7.0 join\n", "", ["'join' started never", "'join' finished never"]),
        ("finish 4.0 left\n", "finish 4.0 left\nfinish 4.1 left\n", ["'left' finished 2 times"]),
        ("start 1.0 split", "start 1.0 split\nstart 1.0 other", ["'other' started, but is no task of the instance"]),
        ("start 1.0 split", "hello\nstart 1.0 split", ["line 1 of the report cannot be read: 'hello'"]),
        ("start 1.0 split", "start now split\nstart 1.0 split",
         ["line 1 of the report cannot be read: 'start now split'"]),
    ],
)  # fmt: skip
def test_a_replay_that_went_wrong_is_told_how(diamond, old, new, violations):
    assert old in GOOD
    assert check_report(diamond, GOOD.replace(old, new, 1)) == violations
