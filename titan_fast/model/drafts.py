"""One task of a graph file, from its fields to its spec; whom it needs is still a name with a line."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from titan_fast.model.expand import Matrix
from titan_fast.model.fields import TASK, AffinityWish, Placed, Reading, Values, read_fields
from titan_fast.model.problems import Wrong
from titan_fast.model.results import references
from titan_fast.model.scripts import Scripts, check_isolation, check_preload, to_project_path
from titan_fast.model.spec import DEFAULT_GRACE, Retry, TaskSpec, Work
from titan_fast.model.yaml_nodes import Entry

MAX_SCRIPTS = 10_000
"""Different files one task may name through its matrix: each is looked for."""

_NO_RETRY = Retry()


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A task whose needs are not looked up yet."""

    spec: TaskSpec
    line: int
    needs: tuple[Placed, ...] = ()
    results: tuple[Placed, ...] = ()
    """The tasks whose results its work takes."""
    affinity: AffinityWish | None = None
    matrix: Matrix | None = None


def read_draft(values: Values, scripts: Scripts, name: str, line: int, entries: dict[str, Entry]) -> Draft:
    """The task of a mapping's fields (without its id); what is wrong with it is noted, and left out of the draft."""
    values.matrix_uses = []
    values.result_uses = []
    reading = read_fields(values, entries, TASK)
    try:
        return _to_draft(values, scripts, name, line, reading)
    except Wrong as wrong:
        values.problems.add(wrong.line, f"{values.owner}{wrong.text}")
        # Its needs are known even so: what is wrong between tasks is found in the same go.
        return Draft(TaskSpec(name, Work()), line, reading.values.get("needs", ()), tuple(values.result_uses))


def _to_draft(values: Values, scripts: Scripts, name: str, line: int, reading: Reading) -> Draft:
    read, written = reading
    matrix: Matrix | None = read.get("matrix")
    _check_matrix_uses(values, matrix, "matrix" in written)
    work = _to_work(values, scripts, line, reading)
    if "retries" in written and "retry" in written:
        second = max(written["retries"].line, written["retry"].line)
        raise Wrong(second, "'retries' and 'retry' mean the same, keep one of them")
    affinity: AffinityWish | None = read.get("affinity")
    if affinity is not None and affinity.to is None and not read.get("needs", "needs" in written):
        raise Wrong(affinity.line, "affinity is to the worker of a parent, but the task needs none")
    spec = TaskSpec(
        name=name,
        work=work,
        requires=read.get("requires", ()),
        priority=read.get("priority", 1),
        delay=read.get("delay", 0.0),
        retry=read.get("retry") or read.get("retries") or _NO_RETRY,
        when=read.get("when", "success"),
        count=1 if matrix is None else matrix.count,
        array=matrix is not None,
    )
    return Draft(spec, line, read.get("needs", ()), _results(values, work, line), affinity, matrix)


def _to_work(values: Values, scripts: Scripts, line: int, reading: Reading) -> Work:
    read, written = reading
    if "file" in written and "run" in written:
        second = max(written["file"].line, written["run"].line)
        raise Wrong(second, "'file' and 'run' exclude each other")
    if "file" not in written and "run" not in written:
        raise Wrong(line, "there is nothing to run (give 'run' or 'file')")
    for field in ("args", "python"):
        if "run" in written and field in written:
            raise Wrong(written[field].line, f"'{field}' goes with 'file'; with 'run', it is part of the command")
    run = read.get("run", "")
    file = _script(values, scripts, read["file"], read.get("matrix")) if "file" in read else ""
    isolation, preload, python = read.get("isolation", "warm"), read.get("preload", ()), read.get("python", "")
    if file or "run" in written:  # else what is wrong with the file has been told
        if "isolation" in read:
            _check(written["isolation"].line, "isolation", check_isolation, file)
        if preload:
            _check(written["preload"].line, "preload", check_preload, preload, file, python, isolation)
    return Work(
        argv=run if isinstance(run, tuple) else (),
        shell=run if isinstance(run, str) else "",
        file=file,
        args=read.get("args", ()),
        python=python,
        isolation=isolation,
        preload=preload,
        env=read.get("env", {}),
        timeout=read.get("timeout", 0.0),
        grace=read.get("grace", DEFAULT_GRACE),
    )


def _check(line: int, field: str, check: Callable[..., None], *given: object) -> None:
    try:
        check(*given)
    except ValueError as error:
        raise Wrong(line, f"{field}: {error}") from error


def _results(values: Values, work: Work, line: int) -> tuple[Placed, ...]:
    """Whose results the work takes, each once, where it does first. The value of an input may name one, too."""
    lines = {use.text: use.line for use in reversed(values.result_uses)}
    return tuple(Placed(name, lines.get(name, line)) for name in references(work))


def _script(values: Values, scripts: Scripts, file: Placed, matrix: Matrix | None) -> str:
    """The path of the script: in an array, the text whose every filling was looked for."""
    template, line = file.text, file.line
    try:
        if "${matrix." not in template:
            path = to_project_path(template)
            scripts.check(path)
            return path
        if matrix is None or any(use.text not in matrix.values for use in values.matrix_uses):
            return template  # What is wrong with it has been told.
        count = matrix.count_texts(template)
        if count > MAX_SCRIPTS:
            raise ValueError(f"'{template}' names {count:,} scripts, at most {MAX_SCRIPTS:,} are allowed")
        for text in matrix.texts(template):
            scripts.check(to_project_path(text))
        return template
    except ValueError as error:
        raise Wrong(line, f"file: {error}") from error


def _check_matrix_uses(values: Values, matrix: Matrix | None, is_written: bool) -> None:
    for use in values.matrix_uses:
        name, line = use.text, use.line
        if matrix is None:
            if not is_written:
                values.problems.add(line, f"{values.owner}'${{matrix.{name}}}' is used, but the task has no matrix")
        elif name not in matrix.values:
            hint = values.guesses.hint(name, matrix.values, "${matrix.{}}")
            values.problems.add(line, f"{values.owner}'${{matrix.{name}}}' is not in its matrix{hint}")
