"""Building a graph in Python. What is wrong is said where it is written, not when it is submitted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec

from titan_fast.errors import InvalidGraph
from titan_fast.model.expand import Matrix, replace_references
from titan_fast.model.names import check_graph_name, check_name, closest, normal_capabilities
from titan_fast.model.results import references, result_of
from titan_fast.model.scripts import check_isolation, check_preload
from titan_fast.model.spec import DEFAULT_GRACE, MAX_SECONDS, Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.model.units import parse_duration
from titan_fast.sdk.options import check_options

if TYPE_CHECKING:
    from titan_fast.sdk.handles import RunHandle

Duration = float | str
"""Seconds, or a text like ``90s``, ``1h30m``, ``PT5M``."""
Needs: TypeAlias = "Task | str | Iterable[Task | str]"
"""Tasks, as objects or by their names."""


class Task:
    """A task of a graph being built: name it in ``needs`` of others."""

    def __init__(
        self,
        graph: Graph,
        spec: TaskSpec,
        matrix: Matrix | None = None,
        *,
        function: bytes | None = None,
        payload: bytes = b"",
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.matrix = matrix
        self.function = function
        """Pickled; None: it is a command."""
        self.payload = payload
        """Of a function: its arguments."""

    @property
    def name(self) -> str:
        return self.spec.name

    def result(self, run: RunHandle, timeout: float | None = None) -> Any:
        """What it gave in a run; see `TaskHandle.result`. Of an array the list of all results."""
        handle = run[self.name]
        return handle.results(timeout) if self.spec.array else handle.result(timeout)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} stands for a result as an argument of Graph.call, and nowhere else")

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
        check_options("a graph", name=name, env=env)
        self.name = _checked(check_graph_name, name)
        check_options(f"graph '{name}'", project=project)
        self.project = None if project is None else Path(project)
        self.env = dict(env or {})
        self.tasks: dict[str, Task] = {}
        self._numbered: dict[str, int] = {}
        """Names of functions, and the number that was given last."""
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
        needs: Needs = (),
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
        self._check_new(name)
        check_options(
            f"task '{name}'",
            run=run,
            file=file,
            args=args,
            python=python,
            isolation=isolation,
            preload=preload,
            needs=_several(needs),
            requires=requires,
            priority=priority,
            affinity=affinity,
            delay=delay,
            timeout=timeout,
            grace=grace,
            retries=retries,
            retry=retry,
            when=when,
            env=env,
            matrix=matrix,
        )
        parents = self._parents(name, needs)
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
            retry=retry if retry is not None else Retry(max=int(retries)),
            when=when,
            affinity=_affinity(name, affinity, bool(parents)),
            count=members.count if members is not None else 1,
            array=members is not None,
        )
        if when not in ("success", "failure", "always"):
            raise InvalidGraph(f"task '{name}': when={when!r} is not success, failure or always")
        task = self.tasks[name] = Task(self, spec, members)
        return task

    def call(
        self,
        function: Callable[..., object],
        /,
        *args: object,
        name: str | None = None,
        needs: Needs = (),
        requires: Iterable[str] = (),
        priority: int = 1,
        affinity: bool | str | Affinity | None = None,
        delay: Duration = 0,
        timeout: Duration = 0,
        grace: Duration = DEFAULT_GRACE,
        retries: int = 0,
        retry: Retry | None = None,
        env: Mapping[str, str] | None = None,
        **kwargs: object,
    ) -> Task:
        """Add a task that calls a Python function on a worker; what it returns is its result.

        A task among the arguments, however deep inside of them, is replaced by its result and needed: a function's by
        what it returned, a map's by the list of that, a command's by the text that it wrote to TITAN_RESULT. With a
        project, its folder is where modules are found and the current directory.

        Args:
            name: default: the function's, with ``-2``, ``-3``, … when that is taken.
            needs: further tasks that must be done before.
            args, kwargs: the function's arguments; those named like one of the parameters here need a
                `functools.partial`.

        The others are those of `task`.

        Raises:
            InvalidGraph: names the task and what is wrong with it; a function or an argument cannot be pickled.
        """
        from titan_fast.sdk import functions

        name = self._free_name(name, function)
        parents = _Parents(self, name)
        payload = functions.pickled_call(name, args, kwargs, parents.stand_in)
        options = _Options(requires, priority, affinity, delay, timeout, grace, retries, retry, env)
        return self._add_function(name, function, 1, False, payload, parents, needs, options)

    def map(
        self,
        function: Callable[..., object],
        items: Iterable[object],
        /,
        *,
        name: str | None = None,
        needs: Needs = (),
        requires: Iterable[str] = (),
        priority: int = 1,
        affinity: bool | str | Affinity | None = None,
        delay: Duration = 0,
        timeout: Duration = 0,
        grace: Duration = DEFAULT_GRACE,
        retries: int = 0,
        retry: Retry | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Task:
        """Add an array of tasks that call a Python function, each with one of the items; otherwise as `call`.

        Raises:
            InvalidGraph: as `call`; there are no items.
        """
        from titan_fast.sdk import functions

        name = self._free_name(name, function)
        check_options(f"task '{name}'", items=items)
        parents = _Parents(self, name)
        count, payload = functions.pickled_items(name, items, parents.stand_in)
        options = _Options(requires, priority, affinity, delay, timeout, grace, retries, retry, env)
        return self._add_function(name, function, count, True, payload, parents, needs, options)

    def _add_function(
        self,
        name: str,
        function: Callable[..., object],
        count: int,
        array: bool,
        payload: bytes,
        arguments: _Parents,
        needs: Needs,
        options: _Options,
    ) -> Task:
        from titan_fast.sdk import functions

        if not callable(function):
            raise InvalidGraph(f"task '{name}': {function!r} cannot be called")
        if needs != () or options != _USUAL:
            check_options(f"task '{name}'", needs=_several(needs), **options._asdict())
        parents = tuple(dict.fromkeys((*arguments.names, *self._parents(name, needs))))
        pickled = functions.pickled_function(name, function, self.project is not None)
        work = Work(
            function=0,
            arguments=tuple(arguments.names),
            env={str(key): str(value) for key, value in (options.env or {}).items()},
            timeout=_seconds(name, "timeout", options.timeout),
            grace=_seconds(name, "grace", options.grace),
        )
        _check_references(name, work, None)
        spec = TaskSpec(
            name=name,
            work=work,
            needs=parents,
            requires=_capabilities(name, options.requires),
            priority=int(options.priority),
            delay=_seconds(name, "delay", options.delay),
            retry=options.retry if options.retry is not None else Retry(max=int(options.retries)),
            affinity=_affinity(name, options.affinity, bool(parents)),
            count=count,
            array=array,
        )
        task = self.tasks[name] = Task(self, spec, function=pickled, payload=payload)
        return task

    def _free_name(self, name: str | None, function: Callable[..., object]) -> str:
        if name is not None:
            self._check_new(name)
            return name
        from titan_fast.sdk import functions

        base = _checked(check_name, functions.name_of(function))
        number = self._numbered.get(base, 1)
        free = base if number == 1 else f"{base}-{number}"
        while free in self.tasks:
            number += 1
            free = f"{base}-{number}"
        self._numbered[base] = number
        return free

    def _check_new(self, name: str) -> None:
        check_options("a task", name=name)
        _checked(check_name, name)
        if name in self.tasks:
            raise InvalidGraph(f"task '{name}' is there already")

    def _parents(self, name: str, needs: Needs) -> tuple[str, ...]:
        return tuple(self._parent(name, parent) for parent in _several(needs))

    def _parent(self, name: str, parent: Task | str) -> str:
        if isinstance(parent, Task):
            if parent.graph is not self:
                raise InvalidGraph(f"task '{name}' needs {parent!r}, which is in another graph")
            return parent.name
        if not isinstance(parent, str):
            raise InvalidGraph(f"task '{name}': needs: {parent!r} is not a task or the name of one", field="needs")
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
            args=_arguments(name, args),
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
        """What travels to the master, without the project's address, and the attachments: payloads and functions."""
        payloads: list[bytes] = []
        functions: dict[bytes, int] = {}
        """Each once, however many tasks call it."""
        specs = []
        for task in self.tasks.values():
            spec = task.spec
            if task.function is not None:
                if task.function not in functions:
                    functions[task.function] = len(payloads)
                    payloads.append(task.function)
                work = msgspec.structs.replace(spec.work, function=functions[task.function])
                spec = msgspec.structs.replace(spec, work=work, payload=len(payloads))
                payloads.append(task.payload)
            if task.matrix is not None:
                spec = msgspec.structs.replace(spec, payload=len(payloads))
                payloads.append(task.matrix.to_payload())
            specs.append(spec)
        return GraphSpec(self.name, tuple(specs), self.env), tuple(payloads)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r} with {len(self.tasks)} tasks>"


def _with_isolation(name: str, work: Work, isolation: str | None, preload: Iterable[str]) -> Work:
    """How a Python script begins, if anything was said about that."""
    modules = (preload,) if isinstance(preload, str) else tuple(preload)
    check_options(f"task '{name}'", preload=modules)
    modules = tuple(dict.fromkeys(modules))
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


class _Options(NamedTuple):
    """What `Graph.call` and `Graph.map` take beside the function."""

    requires: Iterable[str]
    priority: int
    affinity: bool | str | Affinity | None
    delay: Duration
    timeout: Duration
    grace: Duration
    retries: int
    retry: Retry | None
    env: Mapping[str, str] | None


_USUAL = _Options((), 1, None, 0, 0, DEFAULT_GRACE, 0, None, None)


class _Parents:
    """The tasks that stand among the arguments of one, in the order in which they were found."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.names: dict[str, int] = {}
        self._graph = graph
        self._name = name

    def stand_in(self, item: object) -> tuple[int, bool, bool] | None:
        """(place, its result is a pickle, it is an array) of a task; None for anything else."""
        if not isinstance(item, Task):
            return None
        if item.graph is not self._graph:
            raise InvalidGraph(f"task '{self._name}' needs {item!r}, which is in another graph")
        place = self.names.setdefault(item.name, len(self.names))
        return place, item.function is not None, item.spec.array


def _several(needs: Needs) -> Iterable[Task | str]:
    """One stands for a list of one."""
    return (needs,) if isinstance(needs, Task | str) else needs


def _arguments(name: str, args: str | Iterable[object]) -> tuple[str, ...]:
    """A text is split as a shell would."""
    try:
        return tuple(shlex.split(args) if isinstance(args, str) else map(str, args))
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': args: {error}") from None


def _seconds(name: str, field: str, value: Duration) -> float:
    try:
        seconds = parse_duration(value)
        if seconds > MAX_SECONDS:
            raise ValueError(f"{value!r} is longer than ten years")
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': {field}: {error}") from None
    return seconds


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
    for key, column in values.items():
        if not isinstance(key, str) or isinstance(column, str | bytes) or not isinstance(column, Collection):
            raise InvalidGraph(f"task '{name}': matrix: {key!r}: {column!r} is not a name and a list of values")
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
    if requires == ():
        return ()
    several = (requires,) if isinstance(requires, str) else tuple(requires or ())
    check_options(f"task '{name}'", requires=several)
    try:
        return normal_capabilities(several)
    except ValueError as error:
        raise InvalidGraph(f"task '{name}': requires: {error}") from None


def _checked(check: Callable[[str], str], name: str) -> str:
    try:
        return check(name)
    except ValueError as error:
        raise InvalidGraph(str(error)) from None
