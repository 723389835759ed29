"""What graph files say: each field and alias of the conventions, and what becomes of it."""

import array
import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from titan_fast.model.expand import Matrix
from titan_fast.model.spec import Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.model.yaml_file import LoadedGraph, lint_file, load_file, load_text


def load(text: str, **inputs: str) -> LoadedGraph:
    return load_text(text, "pipeline.yaml", inputs)


def task(fields: str, before: str = "  - {id: up, run: x}\n") -> TaskSpec:
    """The task `t` with these fields; a task `up` stands before it."""
    indented = "".join(f"    {line}\n" for line in fields.splitlines())
    return load(f"tasks:\n{before}  - id: t\n{indented}").graph.tasks[-1]


def members(payload: bytes, count: int) -> list[dict[str, str]]:
    offsets = array.array("I", payload[: 4 * (count + 1)])
    if sys.byteorder == "little":
        offsets.byteswap()
    body = payload[4 * (count + 1) :]
    assert offsets[0] == 0 and offsets[-1] == len(body)
    return [json.loads(body[start:end]) for start, end in itertools.pairwise(offsets)]


# ---------------------------------------------------------------- whole files


def test_a_graph_of_commands():
    loaded = load(
        """\
name: nightly
env: {REGION: eu}
tasks:
  - id: extract
    run: echo "$REGION" > out
  - id: train
    run: [python3, -c, print(1)]
    needs: [extract]
    requires: [GPU, HIGH_MEM]
"""
    )
    assert loaded == LoadedGraph(
        GraphSpec(
            "nightly",
            (
                TaskSpec("extract", Work(shell='echo "$REGION" > out')),
                TaskSpec(
                    "train",
                    Work(argv=("python3", "-c", "print(1)")),
                    needs=("extract",),
                    requires=("GPU", "HIGH_MEM"),
                ),
            ),
            {"REGION": "eu"},
        )
    )


ORIGINAL = """\
name: "everything-the-original-has"
version: "1.0"
project: true   # ships the folder

jobs:
  - id: "first-step"
    type: "run"
    file: "scripts/first.py"
    priority: 10
    requirement: "GENERAL"
    args: "--mode reset"

  - id: "second-step"
    type: "RUN"
    file: 'src\\second.py'
    args: "FETCH"
    delay: 2
    depends_on:
      - "first-step"
    requirement: null

  - id: "third-step"
    file: "src/second.py"
    affinity: true
    requirement: "GPU"
    args: 7
    hitl_message:
    depends_on: ["second-step", "first-step"]
"""


def test_a_file_of_the_original_titan_loads_unchanged(tmp_path):
    for name in ("scripts/first.py", "src/second.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "flow.yaml").write_text(ORIGINAL)
    loaded = load_file(tmp_path / "flow.yaml")
    first, second, third = loaded.graph.tasks
    assert loaded.graph.name == "everything-the-original-has"
    assert loaded.project_dir == tmp_path and loaded.project_files == ()
    assert first == TaskSpec("first-step", Work(file="scripts/first.py", args=("--mode", "reset")), priority=10)
    assert second == TaskSpec(
        "second-step", Work(file="src/second.py", args=("FETCH",)), needs=("first-step",), delay=2.0
    )
    assert third == TaskSpec(
        "third-step",
        Work(file="src/second.py", args=("7",)),
        needs=("second-step", "first-step"),
        requires=("GPU",),
        affinity=Affinity("parent"),
    )


def test_tasks_may_be_a_mapping_of_names():
    graph = load("tasks:\n  a: {run: x}\n  7: {run: y, needs: a}\n  c: {id: c, run: z}\n").graph
    assert [each.name for each in graph.tasks] == ["a", "7", "c"]
    assert graph.tasks[1].needs == ("a",)


def test_a_graph_without_a_name_is_called_like_its_file(tmp_path):
    (tmp_path / "nightly.etl.yaml").write_text("tasks: [{id: a, run: x}]")
    assert load_file(tmp_path / "nightly.etl.yaml").graph.name == "nightly.etl"


def test_merge_keys_and_aliases_are_written_out():
    graph = load(
        """\
tasks:
  base: &base
    run: x
    retries: 2
    env: &env {A: "1"}
  other:
    <<: *base
    retries: 3
  third:
    <<: [{timeout: 5s}, *base]
    env: *env
"""
    ).graph
    assert [each.retry.max for each in graph.tasks] == [2, 3, 2]
    assert [each.work.env for each in graph.tasks] == [{"A": "1"}] * 3
    assert graph.tasks[2].work.timeout == 5.0


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes("\ufefftasks:\r\n- id: ä\r\n  run: x\r\n".encode())
    assert load_file(tmp_path / "a.yaml").graph.tasks[0].name == "ä"


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize("field", ["needs", "depends_on", "parents"])
@pytest.mark.parametrize("value", ["up", "[up]", "[up, up]"])
def test_needs_has_its_aliases_and_may_be_one(field, value):
    assert task(f"run: x\n{field}: {value}").needs == ("up",)


@pytest.mark.parametrize("field", ["requires", "requirement"])
@pytest.mark.parametrize(
    ("value", "tags"),
    [("GPU", ("GPU",)), ("[GPU, A100]", ("GPU", "A100")), ("GENERAL", ()), ("null", ()), ("[GENERAL, null]", ())],
)
def test_requires_has_its_alias_and_general_means_any(field, value, tags):
    assert task(f"run: x\n{field}: {value}").requires == tags


@pytest.mark.parametrize(
    ("fields", "work"),
    [
        ("run: echo hi", Work(shell="echo hi")),
        ("run: |\n  set -e\n  echo hi", Work(shell="set -e\necho hi\n")),
        ("run: [echo, hi there, 3, 1.50, true, True, no, 2024-01-01, 0x1F]",
         Work(argv=("echo", "hi there", "3", "1.50", "true", "true", "no", "2024-01-01", "0x1F"))),
        ("run: 5", Work(shell="5")),
        ("file: a/../b.py", Work(file="b.py")),
        ("file: b.py\nargs: [1, 'x y', null-ish]", Work(file="b.py", args=("1", "x y", "null-ish"))),
        ("file: b.py\nargs: --name 'x y' z", Work(file="b.py", args=("--name", "x y", "z"))),
        ("file: b.py\nargs: ''", Work(file="b.py")),
        ("file: b.py\npython: /usr/bin/python3", Work(file="b.py", python="/usr/bin/python3")),
        ("file: b.py\nisolation: fresh", Work(file="b.py", isolation="fresh")),
        ("file: b.py\nisolation: warm\npreload: numpy", Work(file="b.py", preload=("numpy",))),
        ("file: b.py\npreload: [numpy, os.path, numpy]", Work(file="b.py", preload=("numpy", "os.path"))),
        ("run: x\ntimeout: 10m\ngrace: 1.5", Work(shell="x", timeout=600.0, grace=1.5)),
        ("run: x\ntimeout: PT5M\ngrace: 0", Work(shell="x", timeout=300.0, grace=0.0)),
        ("run: x\nenv: {A: 1, B: two, C: true, D: '', E: 007}",
         Work(shell="x", env={"A": "1", "B": "two", "C": "true", "D": "", "E": "007"})),
        ("run: x\nresources: {slots: 1}", Work(shell="x")),
        ("run: x\nargs:\nfile:\nenv: ~", Work(shell="x")),
    ],
)  # fmt: skip
def test_what_is_run(fields, work):
    assert task(fields).work == work


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("priority: 10", {"priority": 10}),
        ("priority: '-3'", {"priority": -3}),
        ("priority: 1_000", {"priority": 1000}),
        ("delay: 2", {"delay": 2.0}),
        ("delay: 500ms", {"delay": 0.5}),
        ("retries: 3", {"retry": Retry(max=3)}),
        ("retry: {max: 2}", {"retry": Retry(max=2)}),
        ("retry: {max: 2, backoff: 3s, max_delay: 1m, on: [1, timeout, 255, 1]}",
         {"retry": Retry(2, 3.0, 60.0, (1, "timeout", 255))}),
        ("retry: {max: 2, on: timeout}", {"retry": Retry(2, on=("timeout",))}),
        ("when: failure", {"when": "failure"}),
        ("when: always", {"when": "always"}),
        ("when: success", {}),
        ("affinity: true", {"affinity": Affinity("parent")}),
        ("affinity: yes", {"affinity": Affinity("parent")}),
        ("affinity: false", {}),
        ("affinity: cache", {"affinity": Affinity("key", "cache")}),
        ("affinity: up", {"affinity": Affinity("key", "up")}),
        ("affinity: {to: up}", {"affinity": Affinity("parent", "up")}),
        ("affinity: {to: cache, mode: require, wait: 5s}", {"affinity": Affinity("key", "cache", "require", 5.0)}),
        ("affinity: {mode: require}", {"affinity": Affinity("parent", "", "require")}),
        ("type: run", {}),
    ],
)  # fmt: skip
def test_how_it_is_run(fields, expected):
    assert task(f"run: x\nneeds: up\n{fields}") == TaskSpec("t", Work(shell="x"), needs=("up",), **expected)


# ---------------------------------------------------------------- projects


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.py").touch()
    (tmp_path / "a.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("head", "what", "ships", "files"),
    [
        ("", "{file: a.py}", True, ()),
        ("", "{run: x}", False, ()),
        ("project: true\n", "{run: x}", True, ()),
        ("project: yes\n", "{file: a.py}", True, ()),
        ("project: false\n", "{file: b.py}, u: {file: ./a.py}, v: {file: b.py}", True, ("a.py", "b.py")),
        ("project: false\n", "{run: x}", False, ()),
    ],
)
def test_the_folder_is_shipped_when_a_task_needs_it_or_the_file_says_so(folder, head, what, ships, files):
    path = folder / "g.yaml"
    path.write_text(f"{head}tasks: {{t: {what}}}")
    loaded = load_file(path)
    assert loaded.project_dir == (folder if ships else None)
    assert loaded.project_files == files


def test_the_folder_is_the_files_whatever_the_working_directory(folder, monkeypatch):
    (folder / "g.yaml").write_text("tasks: {t: {file: a.py}}")
    monkeypatch.chdir(folder)
    assert load_file("g.yaml").project_dir == folder


# ---------------------------------------------------------------- matrix


def test_a_matrix_is_an_array_whose_last_value_turns_fastest():
    loaded = load(
        """\
tasks:
  - id: shard
    run: [work, "${matrix.part}", "${matrix.mode}"]
    env: {PART: "${matrix.part}"}
    matrix: {part: [1, 2.0, true], mode: [fast, 'a "b" ü']}
  - {id: sum, run: x, needs: [shard]}
"""
    )
    shard, total = loaded.graph.tasks
    assert shard == TaskSpec(
        "shard",
        Work(argv=("work", "${matrix.part}", "${matrix.mode}"), env={"PART": "${matrix.part}"}),
        count=6,
        payload=0,
        array=True,
    )
    assert total.needs == ("shard",)
    assert members(loaded.payloads[0], 6) == [
        {"part": part, "mode": mode} for part in ("1", "2.0", "true") for mode in ("fast", 'a "b" ü')
    ]


def test_an_array_of_one_is_an_array_and_each_has_its_payload():
    loaded = load("tasks:\n a: {run: x, matrix: {k: [1]}}\n b: {run: x}\n c: {run: x, matrix: {k: [7, 8]}}\n")
    assert [(each.count, each.array, each.payload) for each in loaded.graph.tasks] == [
        (1, True, 0),
        (1, False, -1),
        (2, True, 1),
    ]
    assert members(loaded.payloads[1], 2) == [{"k": "7"}, {"k": "8"}]


def test_the_scripts_of_an_array_are_looked_for_one_by_one(folder):
    path = folder / "g.yaml"
    path.write_text("project: false\ntasks: {t: {file: '${matrix.s}.py', matrix: {s: [a, b], n: [1, 2, 3]}}}")
    loaded = load_file(path)
    assert loaded.graph.tasks[0].work.file == "${matrix.s}.py"
    assert loaded.project_files == ("a.py", "b.py")


def test_the_size_of_a_payload_is_known_before_it_is_made():
    matrix = Matrix({"a": ("1", 'q"', "üü"), "longer": ("", "x" * 50)})
    assert len(matrix.to_payload()) == 4 * (matrix.count + 1) + matrix.payload_size


def test_a_million_members_are_made_in_a_moment():
    values = ", ".join(map(str, range(1000)))
    loaded = load(f"tasks: {{t: {{run: x, matrix: {{a: [{values}], b: [{values}]}}}}}}")
    assert loaded.graph.tasks[0].count == 1_000_000
    assert members(loaded.payloads[0], 1_000_000)[-1] == {"a": "999", "b": "999"}


# ---------------------------------------------------------------- inputs

INPUTS = "inputs: {part: 1, day: }\n"


def test_an_input_is_its_default_or_what_was_set():
    text = "inputs: {n: 2, who: world}\ntasks: {t: {run: 'echo ${inputs.who}', retries: '${inputs.n}'}}"
    assert load(text).graph.tasks[0] == TaskSpec("t", Work(shell="echo world"), retry=Retry(max=2))
    assert load(text, who="you", n="5").graph.tasks[0] == TaskSpec("t", Work(shell="echo you"), retry=Retry(max=5))


def test_inputs_may_stand_anywhere_and_below_the_tasks():
    text = """\
name: run-${inputs.day}
tasks:
  - id: load-${inputs.day}
    run: [x, "${inputs.day}"]
    timeout: ${inputs.limit}
    affinity: ${inputs.stick}
    requires: ["${inputs.cap}"]
    matrix: {d: ["${inputs.day}", other]}
    needs: ["${inputs.up}"]
  - {id: up, run: x}
inputs: {day: , limit: 5m, stick: false, cap: GPU, up: up}
"""
    loaded = load(text, day="monday")
    assert loaded.graph.name == "run-monday"
    assert loaded.graph.tasks[0] == TaskSpec(
        "load-monday",
        Work(argv=("x", "monday"), timeout=300.0),
        needs=("up",),
        requires=("GPU",),
        count=2,
        payload=0,
        array=True,
    )
    assert members(loaded.payloads[0], 2) == [{"d": "monday"}, {"d": "other"}]


@pytest.mark.parametrize(
    ("args", "value", "expected"),
    [
        ("--name ${inputs.v} end", "it's a b", ("--name", "it's a b", "end")),
        ("--name='${inputs.v}'", "a b", ("--name=a b",)),
        ("${inputs.v}", "--x 1 'a b'", ("--x", "1", "a b")),
        ("['${inputs.v}']", "a b", ("a b",)),
    ],
)
def test_an_inputs_value_stays_one_argument_unless_it_is_all_there_is(folder, args, value, expected):
    text = f'inputs: {{v: ""}}\ntasks: {{t: {{file: a.py, args: {args if args[0] == "[" else json.dumps(args)}}}}}'
    assert load_text(text, "g.yaml", {"v": value}, folder).graph.tasks[0].work.args == expected


def test_what_an_input_holds_is_not_looked_through_again_for_inputs():
    text = 'inputs: {a: "${inputs.b}", b: deep}\ntasks: {t: {run: "echo ${inputs.a} ${OTHER} ${x.y}"}}'
    assert load(text).graph.tasks[0].work.shell == "echo ${inputs.b} ${OTHER} ${x.y}"


# ---------------------------------------------------------------- lint, and size


def test_a_good_file_has_no_problems(folder):
    (folder / "g.yaml").write_text("tasks: {t: {file: a.py}}")
    assert lint_file(folder / "g.yaml") == []


def test_a_file_that_wants_an_input_is_a_good_file(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text("inputs: {day: }\ntasks: [{id: 'a-${inputs.day}', run: x, timeout: '${inputs.day}'}]")
    assert lint_file(path) == []
    assert lint_file(path, {"day": "soon"}) == [
        f"{path}:2: task 'a-soon': timeout: 'soon' is not a duration "
        "(write 30s, 5m, 1h30m, 500ms or a number of seconds)"
    ]


def test_a_task_named_by_an_input_nobody_gave_may_be_needed(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text("inputs: {day: }\ntasks: [{id: 'a-${inputs.day}', run: x}, {id: b, run: x, needs: a-monday}]")
    assert lint_file(path) == []
    assert load_file(path, {"day": "monday"}).graph.tasks[1].needs == ("a-monday",)
    assert len(lint_file(path, {"day": "sunday"})) == 1


def test_lint_says_what_load_says_all_of_it_and_in_order(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text("tasks:\n- {id: a, run: x, needs: b}\n- {id: c, run: x, when: never}\nname: [x]\nnmae: x\n")
    assert lint_file(path) == [
        f"{path}:2: task 'a' needs 'b', which is not in this file",
        f"{path}:3: task 'c': when: expected success, failure or always, found 'never'",
        f"{path}:4: name: expected a name, found a list",
        f"{path}:5: unknown key 'nmae' (did you mean 'name'?)",
    ]
    with pytest.raises(Exception) as refused:
        load_file(path)
    assert refused.value.problems == lint_file(path)


def large_file(path: Path, tasks: int) -> Path:
    lines = ["tasks:\n"]
    for number in range(tasks):
        lines.append(f"  - id: task-{number}\n    run: [echo, hello]\n    needs: [task-{max(number // 2, 0)}]\n")
        lines.append("    timeout: 5m\n    env: {A: 1}\n")
    lines[1] = lines[1].replace("    needs: [task-0]\n", "")
    path.write_text("".join(lines))
    return path


def seconds_to_load(path: Path) -> float:
    start = time.process_time()
    load_file(path)
    return time.process_time() - start


def test_the_time_to_load_grows_with_the_file_and_no_faster(tmp_path):
    small, large = large_file(tmp_path / "s.yaml", 1_500), large_file(tmp_path / "l.yaml", 15_000)
    ratio = min(seconds_to_load(large) for _ in range(2)) / min(seconds_to_load(small) for _ in range(3))
    assert ratio < 25, f"ten times the tasks took {ratio:.0f} times as long"


@pytest.mark.long
def test_a_hundred_thousand_tasks_load_in_seconds(tmp_path):
    path = large_file(tmp_path / "l.yaml", 100_000)
    assert seconds_to_load(path) < 30
