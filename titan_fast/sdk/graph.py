"""Building a graph in Python. What is wrong is said where it is written, not when it is submitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from titan_fast.errors import InvalidGraph
from titan_fast.model.expand import Matrix, replace_references
from titan_fast.model.names import check_graph_name, check_name, closest, normal_capabilities
from titan_fast.model.results import references, result_of
from titan_fast.model.scripts import check_isolation, check_preload
from titan_fast.model.spec import DEFAULT_GRACE, Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.model.units import parse_duration

Duration = float | str
"""Seconds, or a text like ``90s``, ``1h30m``, ``PT5M``."""


class Task:
    """A task of a graph being built: name it in ``needs`` of others."""

    def __init__(self, graph: Graph, spec: TaskSpec, matrix: Matrix | None = None) -> None:
        self.graph = graph
        self.spec = spec
        self.matrix = matrix

    @property
    def name(self) -> str:
        return self.spec.name

    def __repr__(self) -> str:
        return f"<Task {self.spec.name!r} of {self.graph.name!r}>"


class Graph:
    """A description: tasks and their edges.

    Args:
        name: what listings show.
        project: a folder that is shipped to the workers; relative ``file=`` paths start there.
        env: environment of every task.
    """

    def __init__(self, name: str, *, project: str | Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self.name = _checked(check_graph_name, name)
        self.project = None if project is None else Path(project)
        self.env = dict(env or {})
        self.tasks: dict[str, Task] = {}
        if self.project is not None and not self.project.is_dir():
            raise InvalidGraph(f"the project folder {self.project} is not there", field="project")

    def task(
        self,
        name: str,
        *,
        run: str | Sequence[str] | None = None,
        file: str | Path | None = None,
        args: Sequence[object] = (),
        python: str = "",
        isolation: Literal["warm", "fresh"] | None = None,
        preload: Iterable[str] = (),
        needs: Iterable[Task | str] = (),
        requires: Iterable[str] = (),
        priority: int = 1,
        affinity: bool | str | Affinity | None = None,
        delay: Duration = 0,
        timeout: Duration = 0,
        grace: Duration = DEFAULT_GRACE,
        retries: int = 0,
        retry: Retry | None = None,
        when: Literal["success", "failure", "always"] = "success",
        env: Mapping[str, str] | None = None,
        matrix: Mapping[str, Sequence[object]] | None = None,
    ) -> Task:
        """Add a task.

        Args:
            run: shell text, or a list of program and arguments.
            file: a script of the project, relative to it (then ``args`` are its arguments).
            isolation: fresh for a Python script that needs an interpreter of its own; else it may begin as a fork of
                a process that has one up.
            preload: modules which that process has loaded, such as ``["numpy"]``.
            needs: tasks that must be done before, as objects or names.
            requires: capabilities a worker must have, all of them.
            affinity: True for the worker of the parent that finished last; a text gathers tasks of that key.
            matrix: makes an array with a member for every combination; ``${matrix.x}`` stands for its values.

        In run=, args= and env=, ``${tasks.x.result}`` stands for what the task x wrote to the file TITAN_RESULT; x must
        be needed, directly or over others. Text of at most 64 KiB stands there as it is. For anything else it is
        ``artifact:ADDRESS``, which ``titan-fast artifact get`` and `inside.artifacts.get` fetch.

        Raises:
            InvalidGraph: names the task and what is wrong with it.
        """
        _checked(check_name, name)
        if name in self.tasks:
            raise InvalidGraph(f"task '{name}' is there already")
        parents = tuple(self._parent(name, parent) for parent in needs)
        members = _matrix(name, matrix)
        work = self._work(name, run, file, args, python, env, timeout, grace)
        work = _with_isolation(name, work, isolation, preload)
        _check_references(name, work, members)
        self._check_results(name, work, parents)
        spec = TaskSpec(
            name=name,
            work=work,
            needs=parents,
            requires=_capabilities(name, requires),
            priority=int(priority),
            delay=_seconds(name, "delay", delay),
            retry=retry if retry is not None else Retry(max=retries),
            when=when,
            affinity=_affinity(name, affinity, bool(parents)),
            count=members.count if members is not None else 1,
            array=members is not None,
        )
        if when not in ("success", "failure", "always"):
            raise InvalidGraph(f"task '{name}': when={when!r} is not success, failure or always")
        if spec.retry.max < 0:
            raise InvalidGraph(f"task '{name}': retries cannot be negative")
        task = self.tasks[name] = Task(self, spec, members)
        return task

    def _parent(self, name: str, parent: Task | str) -> str:
        if isinstance(parent, Task):
            if parent.graph is not self:
                raise InvalidGraph(f"task '{name}' needs {parent!r}, which is in another graph")
            return parent.name
        if parent not in self.tasks:
            known = closest(parent, self.tasks)
            hint = f" (did you mean '{known}'?)" if known else ""
            raise InvalidGraph(f"task '{name}' needs '{parent}', which is not in this graph yet{hint}")
        return parent

    def _check_results(self, name: str, work: Work, parents: tuple[str, ...]) -> None:
        """``${tasks.x.result}`` is there when x is a named task that is needed, directly or over others."""
        for wanted in references(work):
            task = self.tasks.get(wanted)
            if task is None:
                known = closest(wanted, self.tasks)
                what = "is not in this graph yet" + (f" (did you mean '{known}'?)" if known else "")
            elif task.spec.array:
                what = "is an array: its members have results, it has none"
            elif not self._is_needed(wanted, parents):
                what = "it does not need (add it to needs=)"
            else:
                continue
            raise InvalidGraph(f"task '{name}' uses the result of '{wanted}', which {what}")

    def _is_needed(self, wanted: str, parents: tuple[str, ...]) -> bool:
        if wanted in parents:
            return True
        seen, ahead = set(parents), list(parents)
        while ahead:
            for parent in self.tasks[ahead.pop()].spec.needs:
                if parent == wanted:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    ahead.append(parent)
        return False

    def _work(
        self,
        name: str,
        run: str | Sequence[str] | None,
        file: str | Path | None,
        args: Sequence[object],
        python: str,
        env: Mapping[str, str] | None,
        timeout: Duration,
        grace: Duration,
    ) -> Work:
        if (run is None) == (file is None):
            raise InvalidGraph(f"task '{name}' wants one of run= and file=")
        if run is not None and args:
            raise InvalidGraph(f"task '{name}': args= goes with file=; put them into run=")
        if file is not None:
            self._check_file(name, Path(file))
        argv = () if run is None or isinstance(run, str) else tuple(str(part) for part in run)
        if run is not None and not argv and not str(run).strip():
            raise InvalidGraph(f"task '{name}': run= is empty")
        return Work(
            argv=argv,
            shell=run if isinstance(run, str) else "",
            file="" if file is None else Path(file).as_posix(),
            args=tuple(str(arg) for arg in args),
            python=python,
            env={str(key): str(value) for key, value in (env or {}).items()},
            timeout=_seconds(name, "timeout", timeout),
            grace=_seconds(name, "grace", grace),
        )

    def _check_file(self, name: str, file: Path) -> None:
        if self.project is None:
            raise InvalidGraph(f"task '{name}' has file=, so the graph needs project=")
        if file.is_absolute() or ".." in file.parts:
            raise InvalidGraph(f"task '{name}': file={str(file)!r} must be inside the project")
        if not (self.project / file).is_file():
            raise InvalidGraph(f"task '{name}': there is no file {self.project / file}")

    def to_spec(self) -> tuple[GraphSpec, tuple[bytes, ...]]:
        """What travels to the master, without the project's address, and the arrays' payloads."""
        payloads: list[bytes] = []
        specs = []
        for task in self.tasks.values():
            spec = task.spec
            if task.matrix is not None:
                spec = msgspec.structs.replace(spec, payload=len(payloads))
                payloads.append(task.matrix.to_payload())
            specs.append(spec)
        return GraphSpec(self.name, tuple(specs), self.env), tuple(payloads)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r} with {len(self.tasks)} tasks>"


def _with_isolation(name: str, work: Work, isolation: str | None, preload: Iterable[str]) -> Work:
    """How a Python script begins, if anything was said about that."""
    modules = (preload,) if isinstance(preload, str) else tuple(dict.fromkeys(preload))
    field = "isolation"
    try:
        if isolation is not None:
            check_isolation(work.file)
            if isolation not in ("warm", "fresh"):
                raise ValueError(f"{isolation!r} is not warm or fresh")
        field = "preload"
        if modules:
            check_preload(modules, work.file, work.python, isolation or "warm")
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': {field}: {error}") from None
    return msgspec.structs.replace(work, isolation=isolation or "warm", preload=modules)


def _seconds(name: str, field: str, value: Duration) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': {field}: {error}") from None


def _affinity(name: str, value: bool | str | Affinity | None, has_parents: bool) -> Affinity | None:
    if value is None or value is False:
        return None
    if isinstance(value, Affinity):
        return value
    if value is True:
        if not has_parents:
            raise InvalidGraph(f"task '{name}' has affinity to its parent, but no parent")
        return Affinity("parent")
    return Affinity("key", value)


def _matrix(name: str, values: Mapping[str, Sequence[object]] | None) -> Matrix | None:
    """The matrix of an array; every value as the text that stands for it."""
    if values is None:
        return None
    if not values or any(not len(column) for column in values.values()):
        raise InvalidGraph(f"task '{name}': the matrix has no values")
    matrix = Matrix({key: tuple(_text(value) for value in column) for key, column in values.items()})
    try:
        matrix.check()
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': matrix: {error}") from None
    return matrix


def _text(value: object) -> str:
    """As YAML writes it: ``true``, not ``True``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_references(name: str, work: Work, matrix: Matrix | None) -> None:
    """What the worker would find out: a ``${matrix.x}`` without a list, a ``${tasks.…}`` that names no result."""
    known = {} if matrix is None else matrix.values

    def check(kind: str, what: str) -> str:
        if kind == "matrix" and what not in known:
            raise ValueError(f"${{matrix.{what}}} is not there; there is {', '.join(known) or 'no matrix'}")
        if kind == "tasks" and result_of(what) is None:
            raise ValueError(f"${{tasks.{what}}} is not known (write ${{tasks.NAME.result}})")
        return ""

    for text in (*work.argv, work.shell, *work.args, *work.env.values()):
        try:
            replace_references(text, check)
        except ValueError as error:
            raise InvalidGraph(f"task '{name}': {error}") from None


def _capabilities(name: str, requires: Iterable[str]) -> tuple[str, ...]:
    try:
        return normal_capabilities(list(requires))
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': requires: {error}") from None


def _checked(check: Callable[[str], str], name: str) -> str:
    try:
        return check(name)
    except ValueError as error:
        raise InvalidGraph(str(error)) from None
