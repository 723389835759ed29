"""What a graph file may not say, with the words and the line it is told in."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_fast.errors import InvalidFile
from titan_fast.model import yaml_nodes
from titan_fast.model.problems import MAX_PROBLEMS
from titan_fast.model.yaml_file import LoadedGraph, lint_file, load_file, load_text

NOT_A_DURATION = "is not a duration (write 30s, 5m, 1h30m, 500ms or a number of seconds)"


def problems(text: str, **inputs: str) -> list[str]:
    with pytest.raises(InvalidFile) as refused:
        load_text(text, "f.yaml", inputs)
    assert refused.value.exit_code == 2
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


# ---------------------------------------------------------------- the file itself


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1: the file is empty"),
        (b"\n# only a comment\n", "1: the file is empty"),
        (b"---\n...\n", "1: the file is empty"),
        (b"- a\n- b\n", "1: expected a mapping with 'tasks', found a list"),
        (b"hello\n", "1: expected a mapping with 'tasks', found 'hello'"),
        (b"name: x\n", "1: there are no tasks (they stand under 'tasks')"),
        (b"name: x\ntasks: []\n", "2: there are no tasks here"),
        (b"name: x\ntasks: {}\n", "2: there are no tasks here"),
        (b"name: x\njobs:\n", "2: there are no tasks here"),
        (b"jobs: 5\n", "1: expected a list of tasks, or a mapping of names to tasks, found '5'"),
        (b"name: x\ntasks: \xff\n", "2: the file is not UTF-8 text"),
        ("name: x".encode("utf-16"), "1: the file is not UTF-8 text"),
        (b"name: x\nenv: \x07\n", "2: the character U+0007 cannot stand in a YAML file"),
        (b"a: {run: x}\n---\nb: 1\n", "2: a second document starts here, but a file holds one graph"),
        (b"? [a]\n: b\n", "1: a key must be text, found a list"),
        (b"x: 1\n? {a: b}\n: b\n", "2: a key must be text, found a mapping"),
        (b"x:\n  y: *nowhere\n", "2: the alias '*nowhere' has no anchor '&nowhere' before it"),
        (b"x: &a\n  - *a\n", "2: the alias '*a' stands inside what it names"),
        (b"[" * 5000, "1: nested more than 100 deep"),
        (b"{a: " * 5000, "1: nested more than 100 deep"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_graph_at_all(tmp_path, data, message):
    path = tmp_path / "f.yaml"
    path.write_bytes(data)
    assert lint_file(path) == [f"{path}:{message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntasks: {a: b: c}\n",
         "f.yaml:2: invalid YAML: while parsing a flow mapping did not find expected ',' or '}'"),
        ("tasks:\n  - id: a\n   run: x\n",
         "f.yaml:3: invalid YAML: while parsing a block collection did not find expected '-' indicator "
         "(begun on line 2)"),
        ("name: x\ntasks: [\n",
         "f.yaml:2: invalid YAML: while parsing a flow node did not find expected node content"),
        ("name: x\n\ttasks: x\n",
         "f.yaml:2: invalid YAML: while scanning a plain scalar found a tab character that violates indentation"
         " (begun on line 1)"),
        ("tasks:\n- id: a\n  run: 'x\n",
         "f.yaml:3: invalid YAML: while scanning a quoted scalar found unexpected end of stream"),
    ],
)  # fmt: skip
@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="the words are libyaml's")
def test_what_is_no_yaml_is_told_with_the_line_of_the_mistake(text, message):
    assert [line.replace(" (a tab: YAML indents with spaces)", "") for line in problems(text)] == [message]


def test_without_libyaml_the_same_files_are_read_and_refused(monkeypatch):
    monkeypatch.setattr(yaml_nodes, "_LOADER", yaml.SafeLoader)
    assert load_text("tasks: {a: {run: [x, &q 'y', *q]}}", "f").graph.tasks[0].work.argv == ("x", "y", "y")
    assert problems("name: x\ntasks: {a: b: c}\n")[0].startswith("f.yaml:2: invalid YAML: ")
    assert problems("tasks: {a: {run: x, ruun: y}}\n") == [
        "f.yaml:1: task 'a': unknown key 'ruun' (did you mean 'run'?)"
    ]


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    for place, what in (
        (tmp_path / "no.yaml", "there is no such file"),
        (tmp_path, "this is a folder, not a graph file"),
    ):
        assert lint_file(place) == [f"{place}: {what}"]
        with pytest.raises(InvalidFile, match=what):
            load_file(place)


def test_a_file_over_64_mib_is_not_read_on(tmp_path):
    path = tmp_path / "f.yaml"
    with open(path, "wb") as file:
        file.truncate((64 << 20) + 1)
    assert lint_file(path) == [f"{path}:1: the file is larger than 64 MiB (put what varies into a matrix)"]


def test_an_alias_bomb_ends_where_it_gets_too_large():
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert problems("\n".join(lines)) == ["f.yaml:8: more than 10,000,000 values once its aliases are written out"]


def test_an_alias_bomb_of_merge_keys_ends_too():
    lines = ["x0: &x0 {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}"]
    lines += [f"y{n}: {{<<: [{', '.join(['*x0'] * 100)}]}}" for n in range(100)]
    assert "more than 10,000,000 values" in problems("\n".join(lines))[0]


def test_duplicate_keys_are_told_wherever_they_are():
    text = "name: x\nname: y\ntasks:\n  a:\n    run: x\n    env: {A: 1, B: 2, A: 3}\n  a: {run: y}\n"
    assert problems(text) == [
        "f.yaml:2: the key 'name' appears twice (first on line 1)",
        "f.yaml:6: the key 'A' appears twice (first on line 6)",
        "f.yaml:7: the key 'a' appears twice (first on line 4)",
    ]


def test_tags_make_no_objects():
    text = "tasks:\n  a: {run: !!python/object/apply:os.system [x]}\n  b: {run: !mine x, timeout: !!str 5}\n"
    assert problems(text) == [
        "f.yaml:2: the tag '!!python/object/apply:os.system' is not allowed",
        "f.yaml:3: the tag '!mine' is not allowed",
    ]


# ---------------------------------------------------------------- keys and values


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("need", " (did you mean 'needs'?)"),
        ("dependsOn", " (did you mean 'depends_on'?)"),
        ("dependencies", " (did you mean 'needs'?)"),
        ("name", " (did you mean 'id'?)"),
        ("command", " (did you mean 'run'?)"),
        ("timeOut", " (did you mean 'timeout'?)"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(key, hint):
    text = f"tasks:\n- id: a\n  run: x\n  {key}: 1\n"
    assert problems(text) == [f"f.yaml:4: task 'a': unknown key '{key}'{hint}"]


def test_an_unknown_key_of_the_graph_is_told_with_the_nearest_one():
    assert problems("task: []\njobs: {a: {run: x}}\n") == ["f.yaml:1: unknown key 'task' (did you mean 'tasks'?)"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("type: batch", "type: expected run, found 'batch'"),
        ("type: service", "'type: service' is not supported yet"),
        ("run: {}", "run: expected a command (shell text or a list), found a mapping"),
        ("needs: {b: c}", "needs: expected a task's name, or a list of them, found a mapping"),
        ("needs: [[b]]", "needs: expected a task's name, found a list"),
        ("requires: {a: b}", "requires: expected a capability, or a list of them, found a mapping"),
        ("requires: A B", "requires: the capability 'A B' contains ' '"),
        ("priority: high", "priority: expected a whole number from -1,000,000 to 1,000,000, found 'high'"),
        ("priority: 1.5", "priority: expected a whole number from -1,000,000 to 1,000,000, found '1.5'"),
        ("priority: 010", "priority: expected a whole number from -1,000,000 to 1,000,000, found '010'"),
        ("priority: 9999999", "priority: expected a whole number from -1,000,000 to 1,000,000, found '9999999'"),
        ("priority: []", "priority: expected a whole number from -1,000,000 to 1,000,000, found a list"),
        ("retries: -1", "retries: expected a whole number from 0 to 60,000, found '-1'"),
        ("retries: yes", "retries: expected a whole number from 0 to 60,000, found 'yes'"),
        ("delay: soon", f"delay: 'soon' {NOT_A_DURATION}"),
        ("delay: -2", "delay: a duration cannot be negative: '-2'"),
        ("timeout: [5]", "timeout: expected a duration such as 30s, 5m or 1h30m, found a list"),
        ("timeout: .inf", f"timeout: '.inf' {NOT_A_DURATION}"),
        ("timeout: 200y", f"timeout: '200y' {NOT_A_DURATION}"),
        ("grace: 2d", "grace: '2d' is longer than 1d"),
        ("when: failed", "when: expected success, failure or always, found 'failed' (did you mean 'failure'?)"),
        ("affinity: true", "affinity is to the worker of a parent, but the task needs none"),
        ("affinity: {mode: require}", "affinity is to the worker of a parent, but the task needs none"),
        ("affinity: [b]", "affinity: expected true, a key, or a mapping with 'to', found a list"),
        ("affinity: {to: [b]}", "affinity: to: expected a task's name or a key, found a list"),
        ("affinity: {to: k, mode: must}", "affinity: mode: expected prefer or require, found 'must'"),
        ("affinity: {to: k, when: 5}", "affinity: unknown key 'when'"),
        ("retry: 3", "retry: expected a mapping with 'max', found '3' (a number goes to 'retries')"),
        ("retry: {backoff: 3}", "retry: 'max' is missing"),
        ("retry: {max: 3, backof: 3}", "retry: unknown key 'backof' (did you mean 'backoff'?)"),
        ("retry: {max: 3, on: [0]}", "retry: on: expected exit codes from 1 to 255, or timeout, found '0'"),
        ("retry: {max: 3, on: [killed]}", "retry: on: expected exit codes from 1 to 255, or timeout, found 'killed'"),
        ("env: [A=1]", "env: expected a mapping of names to values, found a list"),
        ("env: {A: }", "env: 'A' has no value (write \"\" for an empty one)"),
        ("env: {A: [1]}", "env: expected text, found a list"),
        ("env: {A=B: 1}", "env: 'A=B' cannot be the name of a variable"),
        ('env: {"": 1}', "env: '' cannot be the name of a variable"),
        (r'env: {A: "a\0b"}', r"env: 'a\x00b' holds a NUL character, which no program can be given"),
        ("isolation: cold", "isolation: expected fresh or warm, found 'cold'"),
        ("isolation: fresh", "isolation: it goes with a Python script, but there is no 'file'"),
        ("preload: [numpy]", "preload: it goes with a Python script, but there is no 'file'"),
        ("preload: [num-py]", "preload: 'num-py' cannot be the name of a module"),
        ("preload: [for]", "preload: 'for' cannot be the name of a module"),
        ("preload: {a: b}", "preload: expected a module's name, or a list of them, found a mapping"),
        ("matrix: [1, 2]", "matrix: expected a mapping of names to lists, found a list"),
        ("matrix: {}", "matrix: it names no values"),
        ("matrix: {a: 1}", "matrix: a: expected a list of values, found '1'"),
        ("matrix: {a: []}", "matrix: a: the list is empty"),
        ("matrix: {a: [null]}", "matrix: expected a value, found nothing"),
        ("matrix: {a: [{b: c}]}", "matrix: expected a value, found a mapping"),
        ("matrix: {'a b': [1]}", "matrix: 'a b' cannot be a name (letters, digits, _ and -)"),
        ("args: x", "'args' goes with 'file'; with 'run', it is part of the command"),
        ("python: x", "'python' goes with 'file'; with 'run', it is part of the command"),
        ("file: x.py", "'file' and 'run' exclude each other"),
        ("resources: {gpu: 1}", "'resources' is not supported yet (every task takes one slot)"),
        ("resources: {slots: 2}", "'resources' is not supported yet (every task takes one slot)"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_what_was_expected(field, message):
    filler = "" if field.startswith("run") else "  run: x\n"
    line = 4 if filler else 3
    assert problems(f"tasks:\n- id: a\n{filler}  {field}\n") == [f"f.yaml:{line}: task 'a': {message}"]


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("port: 80", "port"),
        ("health: {http: /}", "health"),
        ("restart: {policy: always}", "restart"),
        ("replicas: 2", "replicas"),
        ("lifetime: run", "lifetime"),
        ("schedule: {cron: x}", "schedule"),
        ("gate: {message: ok?}", "gate"),
        ("hitl_message: ok?", "hitl_message"),
        ("max_wait_seconds: 5", "max_wait_seconds"),
        ("on_failure: {run: x}", "on_failure"),
    ],
)
def test_what_comes_later_is_refused_by_name(field, key):
    text = f"tasks:\n- id: a\n  run: x\n  {field}\n"
    assert problems(text) == [f"f.yaml:4: task 'a': '{key}' is not supported yet"]


@pytest.mark.parametrize("field", ["schedule: {cron: x}", "on_failure: {webhook: x}"])
def test_what_comes_later_for_the_graph_is_refused_by_name(field):
    text = f"{field}\ntasks: {{a: {{run: x}}}}"
    assert problems(text) == [f"f.yaml:1: '{field.partition(':')[0]}' is not supported yet"]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("name: [a]", "name: expected a name, found a list"),
        ('name: "a\\tb"', "name: the name 'a\\tb' contains the control character U+0009"),
        ("project: folder", "project: expected true or false, found 'folder'"),
        ("env: x", "env: expected a mapping of names to values, found 'x'"),
        ("inputs: [a]", "inputs: expected a mapping of names to defaults, found a list"),
        ("inputs: {a: [1]}", "inputs: a: expected text, found a list"),
        ("inputs: {a b: 1}", "inputs: 'a b' cannot be a name (letters, digits, _ and -)"),
    ],
)
def test_a_wrong_value_for_the_graph(head, message):
    assert problems(f"{head}\ntasks: {{a: {{run: x}}}}") == [f"f.yaml:1: {message}"]


def test_two_words_for_one_thing():
    text = "tasks:\n- id: a\n  run: x\n  needs: []\n  depends_on: []\n- {id: b, run: x, retries: 1, retry: {max: 2}}\n"
    assert problems(text) == [
        "f.yaml:5: task 'a': 'needs' and 'depends_on' mean the same, keep one of them",
        "f.yaml:6: task 'b': 'retries' and 'retry' mean the same, keep one of them",
    ]
    assert problems("tasks: {a: {run: x}}\njobs: {b: {run: x}}") == [
        "f.yaml:2: 'tasks' and 'jobs' mean the same, keep one of them"
    ]


# ---------------------------------------------------------------- tasks and edges


def test_a_task_must_say_what_to_run():
    assert problems("tasks:\n- id: a\n- {id: b, run: '', needs: a}\n- {id: c, run: []}\n- id: d\n  file: ''\n") == [
        "f.yaml:2: task 'a': there is nothing to run (give 'run' or 'file')",
        "f.yaml:3: task 'b': run: the command is empty",
        "f.yaml:4: task 'c': run: the command is empty",
        "f.yaml:6: task 'd': file: the path is empty",
    ]
    assert problems("tasks:\n- id: a\n  file: x.py\n  run: x\n") == [
        "f.yaml:4: task 'a': 'file' and 'run' exclude each other"
    ]
    assert problems("tasks:\n  a:\n  b: {run: x}") == [
        "f.yaml:2: task 'a': there is nothing to run (give 'run' or 'file')"
    ]


def test_a_task_must_have_a_name_that_can_be_addressed():
    text = "tasks:\n- run: x\n- {id: , run: x}\n- id: a/b\n  run: x\n- {id: [a], run: x}\n- x\n"
    assert problems(text) == [
        "f.yaml:2: task number 1: there is no 'id'",
        "f.yaml:3: task number 2: there is no 'id'",
        "f.yaml:4: task number 3: the name 'a/b' contains '/' (names are addressed as 12/name and 12/name[3])",
        "f.yaml:6: task number 4: id: expected a name, found a list",
        "f.yaml:7: task number 5: expected a mapping of fields, found 'x'",
    ]
    assert problems("tasks:\n  'a[': {run: x}\n  b: {id: c, run: x}\n  d: [x]\n") == [
        "f.yaml:2: task 'a[': the name 'a[' contains '[' (names are addressed as 12/name and 12/name[3])",
        "f.yaml:3: task 'b': its 'id' is 'c', keep one of the two names",
        "f.yaml:4: task 'd': expected a mapping of fields, found a list",
    ]


def test_a_task_is_defined_once():
    assert problems("tasks:\n- {id: a, run: x}\n- id: b\n  run: x\n- id: a\n  run: y\n") == [
        "f.yaml:5: task 'a' is already defined on line 2"
    ]


def test_a_need_that_is_not_there_is_told_with_the_one_meant():
    text = """\
name: nightly
tasks:
  - id: prepare
    run: x

  - id: part
    run: x
    matrix: {n: [1, 2]}

  - id: train
    run: x
    needs:
      - prepare
      - prep
      - part[1]
      - zzz
"""
    with pytest.raises(InvalidFile) as refused:
        load_text(text, "pipeline.yaml")
    assert refused.value.problems == [
        "pipeline.yaml:14: task 'train' needs 'prep', which is not in this file (did you mean 'prepare'?)",
        "pipeline.yaml:15: task 'train' needs 'part[1]', which is not in this file "
        "(did you mean 'part'? It stands for all its members)",
        "pipeline.yaml:16: task 'train' needs 'zzz', which is not in this file",
    ]


def test_a_cycle_is_told_with_its_path():
    text = "tasks:\n- {id: c, run: x, needs: [b]}\n- id: a\n  run: x\n  needs:\n  - c\n- {id: b, run: x, needs: [a]}\n"
    assert problems(text) == ["f.yaml:2: tasks wait for each other: c → b → a → c"]
    assert problems("tasks:\n- id: a\n  run: x\n  needs: a\n") == ["f.yaml:4: tasks wait for each other: a → a"]


def test_a_long_cycle_is_told_in_short():
    text = "tasks:\n" + "".join(f"- {{id: t{n}, run: x, needs: t{(n + 1) % 100}}}\n" for n in range(100))
    assert problems(text) == [
        "f.yaml:2: tasks wait for each other: t0 → t1 → t2 → t3 → t4 → t5 → t6 → t7 → t8 → t9 → … 90 more … → t0"
    ]


def test_affinity_to_a_task_is_to_one_that_is_needed():
    text = "tasks:\n- {id: a, run: x}\n- {id: b, run: x, needs: a}\n- {id: c, run: x, needs: b, affinity: {to: a}}\n"
    assert problems(text) == [
        "f.yaml:4: task 'c': affinity: it does not need 'a' itself (add it to 'needs', or choose another key)"
    ]


def test_more_than_a_hundred_thousand_tasks_are_refused():
    text = "name: x\ntasks:\n" + "- {}\n" * 100_001
    assert problems(text) == [
        "f.yaml:2: 100,001 tasks, at most 100,000 are allowed in a file (a matrix makes many of one)"
    ]


# ---------------------------------------------------------------- scripts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "init.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "scripts/inti.py",
            "there is no 'scripts/inti.py' in the folder of this file (did you mean 'scripts/init.py'?)",
        ),
        ("zzz.py", "there is no 'zzz.py' in the folder of this file"),
        ("scripts", "'scripts' is a folder, not a script"),
        ("./", "'./' names a folder, not a script"),
        ("/etc/passwd", "'/etc/passwd' is absolute, but a script is named relative to the folder of this file"),
        ("C:\\a.py", "'C:\\a.py' is absolute, but a script is named relative to the folder of this file"),
        ("../x.py", "'../x.py' leads outside the folder of this file"),
        ("scripts/../../x.py", "'scripts/../../x.py' leads outside the folder of this file"),
        ("..", "'..' leads outside the folder of this file"),
        ("[a]", "expected the path of a script, found a list"),
        ("${matrix.s}.py", "'${matrix.s}' is used, but the task has no matrix"),
    ],
)
def test_a_script_must_be_there_and_inside_the_folder(folder, file, message):
    path = folder / "f.yaml"
    path.write_text(f"tasks:\n- id: a\n  file: {file}\n")
    prefix = "" if "matrix" in file else "file: "
    assert lint_file(path) == [f"{path}:3: task 'a': {prefix}{message}"]


def test_each_script_of_an_array_must_be_there(folder):
    path = folder / "f.yaml"
    path.write_text("tasks:\n- id: a\n  file: scripts/${matrix.s}.py\n  matrix: {s: [init, exit]}\n")
    assert lint_file(path) == [
        f"{path}:3: task 'a': file: there is no 'scripts/exit.py' in the folder of this file "
        "(did you mean 'scripts/init.py'?)"
    ]
    path.write_text("tasks:\n- id: a\n  file: ${matrix.s}/x\n  matrix: {s: [scripts/../..]}\n")
    assert lint_file(path) == [f"{path}:3: task 'a': file: 'scripts/../../x' leads outside the folder of this file"]
    values = ", ".join(map(str, range(101)))
    path.write_text(
        f"tasks:\n- id: a\n  file: ${{matrix.s}}${{matrix.t}}\n  matrix: {{s: [{values}], t: [{values}], u: [1, 2]}}\n"
    )
    assert lint_file(path) == [
        f"{path}:3: task 'a': file: '${{matrix.s}}${{matrix.t}}' names 10,201 scripts, at most 10,000 are allowed"
    ]


def test_args_that_no_shell_could_split(folder):
    (folder / "f.yaml").write_text("tasks:\n- id: a\n  file: scripts/init.py\n  args: it's\n")
    assert lint_file(folder / "f.yaml") == [
        f"{folder}/f.yaml:4: task 'a': args: cannot be split as a shell does: no closing quotation"
    ]


# ---------------------------------------------------------------- matrix and inputs


def test_a_matrix_value_must_be_one_of_the_tasks_own():
    text = """\
env: {A: "${matrix.part}"}
tasks:
- id: a
  run: echo ${matrix.prat}
  matrix: {part: [1, 2]}
- id: b
  run: x
  env: {A: "${matrix.part}"}
- id: c
  run: x
  timeout: ${matrix.part}
  matrix: {part: [1, 2]}
- id: d
  run: echo ${ matrix.part }
  matrix: {part: [1, 2]}
"""
    places = "can stand in run, file, args, python and env of a task only"
    assert problems(text) == [
        f"f.yaml:1: env: '${{matrix.part}}' {places}",
        "f.yaml:4: task 'a': '${matrix.prat}' is not in its matrix (did you mean '${matrix.part}'?)",
        "f.yaml:8: task 'b': '${matrix.part}' is used, but the task has no matrix",
        f"f.yaml:11: task 'c': timeout: '${{matrix.part}}' {places}",
        "f.yaml:14: task 'd': run: '${ matrix.part }' is written without spaces",
    ]


def test_an_array_over_ten_million_members_is_refused_before_it_is_made():
    values = ", ".join(map(str, range(1000)))
    text = f"tasks:\n- id: a\n  run: x\n  matrix: {{a: [{values}], b: [{values}], c: [{values}]}}\n"
    assert problems(text) == ["f.yaml:4: task 'a': matrix: 1,000,000,000 members, at most 10,000,000 are allowed"]


def test_an_array_over_a_gibibyte_is_refused_before_it_is_made():
    values = ", ".join(f"{number:0>600}" for number in range(1000))
    text = f"tasks:\n- id: a\n  run: x\n  matrix: {{a: [{values}], b: [{values}]}}\n"
    assert problems(text) == [
        "f.yaml:4: task 'a': matrix: 1,215,000,000 bytes of values, at most 1,073,741,824 are allowed"
    ]


def test_inputs_are_known_and_given():
    text = "inputs:\n  part: 1\n  day:\ntasks:\n- id: a\n  run: echo ${inputs.day} ${inputs.prat}\n"
    assert problems(text, dya="monday") == [
        "f.yaml:1: --set dya: this file has no such input (did you mean 'day'?)",
        "f.yaml:3: the input 'day' has no default: give it with --set day=…",
    ]
    assert problems(text, day="monday") == [
        "f.yaml:6: task 'a': run: '${inputs.prat}' is not among the inputs of this file "
        "(did you mean '${inputs.part}'?)"
    ]
    assert problems("tasks: {a: {run: x}}", day="monday") == ["f.yaml:1: --set day: this file has no such input"]
    assert problems("inputs: {a: 1}\ntasks: {a: {run: x}}", a="\0") == [
        "f.yaml:1: --set a: the value holds a NUL character, which no program can be given"
    ]
    assert problems("inputs: {a: 1}\ntasks: {a: {run: x}}", a="caf\udce9") == [
        "f.yaml:1: --set a: the value is not UTF-8 text"
    ]
    assert load_text("inputs: {a: 1}\ntasks: {a: {run: '${inputs.a}'}}", "f", {"a": "café"})


# ---------------------------------------------------------------- all of it


def test_a_file_that_is_all_wrong_is_told_in_part_and_in_time():
    text = "tasks:\n" + "".join(f"- {{id: t{n}, runn: x, needs: u{n}, timeout: s{n}}}\n" for n in range(3_000))
    lines = problems(text)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1].endswith(" more problems")


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_is_a_graph_or_told_why_not(text):
    try:
        assert isinstance(load_text(text, "f.yaml"), LoadedGraph)
    except InvalidFile as error:
        assert all(line.startswith("f.yaml:") for line in error.problems) and error.problems


GOOD = """\
name: n
inputs: {i: 1, j: }
env: {A: "${inputs.i}"}
tasks:
  a: &a {run: [x, "${matrix.m}"], matrix: {m: [1, 2]}, retry: {max: 2, on: [3]}}
  b: {<<: *a, run: y, needs: [a], affinity: {to: a}, requires: [G], timeout: 5m}
"""


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_damage_to_a_good_file_is_told_or_harmless(data):
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 8)))
        text = (
            text[:start]
            + data.draw(st.sampled_from(["", "[", "{", ": ", "- ", "\n", "~", "${", "*a", "<<: ", "0"]))
            + text[end:]
        )
    try:
        load_text(text, "f.yaml", {"j": "x"})
    except InvalidFile as error:
        assert all(line.startswith("f.yaml:") for line in error.problems) and error.problems


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("file: b.sh, isolation: fresh", "isolation: it goes with a Python script, but 'b.sh' does not end in .py"),
        ("file: b.sh, preload: [numpy]", "preload: it goes with a Python script, but 'b.sh' does not end in .py"),
        (
            "file: b.py, preload: [numpy], python: /usr/bin/python3",
            "preload: it goes with the worker's own Python, not with another one ('python')",
        ),
        (
            "file: b.py, preload: [numpy], isolation: fresh",
            "preload: it excludes isolation: fresh (a fresh interpreter has nothing loaded)",
        ),
    ],
)
def test_how_a_script_begins_is_refused_where_it_makes_no_sense(fields, message):
    assert problems(f"tasks:\n- {{id: a, {fields}}}\n") == [f"f.yaml:2: task 'a': {message}"]
