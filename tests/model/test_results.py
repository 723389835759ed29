"""`${tasks.NAME.result}`: a task may use the result of a task it needs, and every other wish is told with its line."""

from __future__ import annotations

import pytest

from titan_fast.errors import InvalidFile
from titan_fast.model.edges import find_unrelated
from titan_fast.model.expand import fill
from titan_fast.model.results import references
from titan_fast.model.spec import Work
from titan_fast.model.yaml_file import lint_file, load_text

HEAD = "tasks:\n- {id: extract, run: x}\n- {id: clean, run: x, needs: [extract]}\n- {id: other, run: x}\n"
ARRAY = "- {id: square, run: x, matrix: {n: [1, 2]}}\n"


def problems(text, **inputs):
    with pytest.raises(InvalidFile) as refused:
        load_text(text, "f.yaml", inputs)
    return refused.value.problems


# ---------------------------------------------------------------- what a work refers to


@pytest.mark.parametrize(
    ("work", "names"),
    [
        (Work(shell="echo hello"), ()),
        (Work(shell="echo ${tasks.a.result}"), ("a",)),
        (Work(shell="${tasks.b.result} ${tasks.a.result} ${tasks.b.result}"), ("b", "a")),
        (Work(argv=("echo", "${tasks.my task.v2.result}")), ("my task.v2",)),
        (Work(file="x.py", args=("--in=${tasks.a.result}",), env={"B": "${tasks.b.result}"}), ("a", "b")),
        (Work(shell="${tasks.a.result.result}"), ("a.result",)),
        (Work(shell="${tasks.a} ${tasks..result} ${tasks.a.results} $tasks.a.result ${matrix.tasks.a.result}"), ()),
        (Work(file="${tasks.a.result}.py", python="${tasks.a.result}"), ()),
    ],
)
def test_a_work_refers_to_the_tasks_whose_results_its_texts_hold(work, names):
    assert references(work) == names


def test_what_is_put_in_is_never_replaced_again():
    text = "${matrix.x} ${tasks.a.result}"
    filled = fill(text, {"x": "${tasks.a.result}"}, {"a": "${matrix.x} ${tasks.a.result}"})
    assert filled == "${tasks.a.result} ${matrix.x} ${tasks.a.result}"


def test_what_nobody_gives_stays_as_it_is():
    assert fill("${matrix.x} ${tasks.a.result} ${inputs.k}", None) == "${matrix.x} ${tasks.a.result} ${inputs.k}"
    assert fill("${matrix.x} ${tasks.a.result}", {"x": "1"}) == "1 ${tasks.a.result}"
    assert fill("${matrix.x} ${tasks.a.result}", None, {"a": "1"}) == "${matrix.x} 1"


def test_a_result_that_is_missing_is_named():
    with pytest.raises(KeyError, match=r"b\.result"):
        fill("${tasks.b.result}", None, {"a": "1"})


# ---------------------------------------------------------------- graph files


@pytest.mark.parametrize(
    "task",
    [
        "{id: a, needs: [extract], run: 'echo ${tasks.extract.result}'}",
        "{id: a, needs: [extract], run: [echo, '${tasks.extract.result}']}",
        "{id: a, needs: [clean], run: x, env: {E: '${tasks.extract.result}'}}",
        "{id: a, needs: [clean, other], run: 'x ${tasks.other.result} ${tasks.clean.result} ${tasks.extract.result}'}",
        "{id: a, needs: [extract], matrix: {n: [1, 2]}, run: 'echo ${matrix.n} ${tasks.extract.result}'}",
    ],
)
def test_the_result_of_an_ancestor_may_stand_in_a_task(task):
    loaded = load_text(HEAD + "- " + task + "\n", "f.yaml")
    (work,) = (each.work for each in loaded.graph.tasks if each.name == "a")
    assert "extract" in references(work)


def test_results_may_stand_in_the_arguments_of_a_script(tmp_path):
    (tmp_path / "s.py").write_text("")
    path = tmp_path / "f.yaml"
    path.write_text(HEAD + "- {id: a, needs: [clean], file: s.py, args: '-n ${tasks.clean.result}'}\n")
    assert lint_file(path) == []


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("run: echo ${tasks.other.result}", "uses the result of 'other', which it does not need (add it to 'needs')"),
        ("run: echo ${tasks.a.result}", "uses the result of 'a', which it does not need (add it to 'needs')"),
        ("run: '${tasks.extrct.result}'", "uses the result of 'extrct', which is not in this file "
         "(did you mean 'extract'?)"),
        ("env: {E: '${tasks.zzz.result}'}\n  run: x", "uses the result of 'zzz', which is not in this file"),
        ("run: echo ${tasks.square.result}", "uses the result of 'square', which is an array: its members have "
         "results, it has none"),
        ("run: 'echo ${tasks.square[1].result}'", "uses the result of 'square[1]', which is an array: its members "
         "have results, it has none"),
    ],
)  # fmt: skip
def test_any_other_result_is_refused_with_its_line(task, said):
    text = HEAD + ARRAY + "- id: a\n  needs: [clean, square]\n  " + task + "\n"
    assert problems(text) == [f"f.yaml:8: task 'a' {said}"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("run: echo ${tasks.extract}", "run: '${tasks.extract}' is not known (write ${tasks.NAME.result})"),
        ("run: echo ${tasks.extract.output}",
         "run: '${tasks.extract.output}' is not known (write ${tasks.NAME.result})"),
        ("run: x\n  timeout: ${tasks.extract.result}",
         "timeout: '${tasks.extract.result}' can stand in run, args and env of a task only"),
        ("file: ${tasks.extract.result}.py",
         "file: '${tasks.extract.result}' can stand in run, args and env of a task only"),
        ("run: 'echo ${ tasks.extract.result}'", "run: '${ tasks.extract.result}' is written without spaces"),
    ],
)  # fmt: skip
def test_a_reference_that_is_none_is_told(task, said):
    (problem,) = problems(HEAD + "- id: a\n  needs: [extract]\n  " + task + "\n")
    assert problem.partition(": ")[2] == f"task 'a': {said}"


def test_a_result_that_comes_in_with_an_input_is_judged_like_any_other():
    text = "inputs: {k: ''}\n" + HEAD + "- id: a\n  needs: [clean]\n  run: echo ${inputs.k}\n"
    assert load_text(text, "f.yaml", {"k": "${tasks.extract.result}"})
    said = "uses the result of 'other', which it does not need (add it to 'needs')"
    assert problems(text, k="${tasks.other.result}") == [f"f.yaml:6: task 'a' {said}"]


def test_a_cycle_is_told_once_and_its_results_are_not():
    text = "tasks:\n- {id: a, needs: [b], run: x}\n- {id: b, needs: [a], run: 'x ${tasks.b.result}'}\n"
    assert problems(text) == ["f.yaml:2: tasks wait for each other: a → b → a"]


# ---------------------------------------------------------------- ancestors


def test_who_needs_whom_over_any_distance():
    needs = [[], [0], [1], [], [2, 3]]
    pairs = [(4, 0), (4, 3), (2, 3), (0, 4), (1, 1), (2, 0)]
    for at_once in (1, 2, 4096):
        assert find_unrelated(needs, pairs, at_once) == [2, 3, 4]


def test_a_long_chain_is_walked_once_for_many_results():
    """A walk for each of them would take minutes."""
    count = 20_000
    needs = [[place - 1] if place else [] for place in range(count)]
    assert find_unrelated(needs, [(place, place // 2) for place in range(1, count)]) == []
