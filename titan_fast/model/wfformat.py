"""Published workflow instances (WfFormat 1.5): real graphs with recorded run times, to replay and to measure against.

Reads an instance, says how fast any scheduler could be with it, makes a graph of it in which every task is a real
process that sleeps as long as the recorded one ran, and checks what those processes wrote down about themselves.

A replayed task is one `bash` that starts nothing else: it takes the time from EPOCHREALTIME and sleeps in
`read -t` on a pipe nobody writes to. Measured on two cores, 2 at a time, no sleep, in one run: 1,680 processes/s,
against 950 with a `sleep` child, 1,410 for perl (whose clock needs a system call number of each architecture: HiRes
is not in perl-base), 750 for sh with `date`, 480 for perl with HiRes and 190 for `python -I -S`. bash is essential on
Debian.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Sequence

import msgspec

from titan_fast.errors import InvalidFile, InvalidGraph
from titan_fast.model.edges import find_cycles, topological_order
from titan_fast.model.names import check_graph_name, to_task_name
from titan_fast.model.spec import MAX_NAME, GraphSpec, TaskSpec, Work

VERSION = "1.5"
REPORT_VARIABLE = "TITAN_REPLAY_LOG"
"""The environment variable with the path of the report."""

# One write() per line on a file opened for appending: lines of processes that end together do not mix. Where the
# here-string is no pipe (bash before 5.1, no /dev/fd) a `sleep` child does it.
_SCRIPT = f"""\
printf 'start %s %s\\n' "$EPOCHREALTIME" "$1" >>"${REPORT_VARIABLE}" || exit 1
if {{ exec 3<<<'' 4<>/dev/fd/3; }} 2>/dev/null && [[ -p /dev/fd/4 ]] && read -r -u 4
then read -r -t "$2" -u 4
else sleep "$2"
fi
printf 'finish %s %s\\n' "$EPOCHREALTIME" "$1" >>"${REPORT_VARIABLE}"
"""


class InstanceTask(msgspec.Struct, frozen=True):
    """A task as it ran."""

    id: str
    runtime: float
    """Seconds."""
    parents: tuple[str, ...]
    """Ids."""


class Instance(msgspec.Struct, frozen=True):
    """A workflow as it ran; no cycles, every parent is there."""

    name: str
    tasks: tuple[InstanceTask, ...]
    """In the order of the file."""

    @property
    def edges(self) -> int:
        return sum(len(task.parents) for task in self.tasks)


# ---------------------------------------------------------------- the file


class _Specified(msgspec.Struct):
    id: str
    parents: list[str] = []
    children: list[str] = []


class _Executed(msgspec.Struct):
    id: str
    runtime: float = msgspec.field(name="runtimeInSeconds")


class _Specification(msgspec.Struct):
    tasks: list[_Specified]


class _Execution(msgspec.Struct):
    tasks: list[_Executed]


class _Workflow(msgspec.Struct):
    specification: _Specification
    execution: _Execution


class _Document(msgspec.Struct):
    workflow: _Workflow
    name: str = "instance"


class _Version(msgspec.Struct):
    version: str = msgspec.field(name="schemaVersion", default="")


def load_instance(path: str | os.PathLike[str]) -> Instance:
    """The instance of a file.

    Raises:
        InvalidFile: it cannot be read, or is no WfFormat 1.5; the message names the field.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InvalidFile([f"{os.fspath(path)}: cannot be read: {error.strerror}"]) from error
    return parse_instance(data, os.fspath(path))


def parse_instance(data: bytes, file: str) -> Instance:
    """The instance of a file's bytes; ``file`` stands for it in errors.

    Raises:
        InvalidFile: it is no WfFormat 1.5; the message names the field.
    """
    try:
        document = msgspec.json.decode(data, type=_Document)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `")
        version = _version_of(data)
        hint = "" if version == VERSION else f" (WfFormat {VERSION} is read here, this says '{version}')"
        raise InvalidFile([f"{file}: {place.rstrip('`') or '$'}: {_lower(text)}{hint}"]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFile([_malformed(data, file, error)]) from error
    return _to_instance(document, file)


def _version_of(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=_Version).version
    except msgspec.DecodeError:
        return ""


def _malformed(data: bytes, file: str, error: Exception) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return f"{file}:{_line_of(data, wrong.start)}: the file is not UTF-8 text"
    what, _, byte = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    position = int(byte.rstrip(")")) if byte else len(data)
    return f"{file}:{_line_of(data, position)}: invalid JSON: {_lower(what)}"


def _line_of(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _to_instance(document: _Document, file: str) -> Instance:
    problems = []
    specified = document.workflow.specification.tasks
    numbers: dict[str, int] = {}
    for number, task in enumerate(specified):
        if task.id in numbers:
            problems.append(f"$.workflow.specification.tasks[{number}].id: '{task.id}' is the id of another task too")
        numbers[task.id] = number
    runtimes: dict[str, float] = {}
    for number, run in enumerate(document.workflow.execution.tasks):
        place = f"$.workflow.execution.tasks[{number}]"
        if run.id not in numbers:
            problems.append(f"{place}.id: '{run.id}' is no task of the specification")
        elif run.id in runtimes:
            problems.append(f"{place}.id: '{run.id}' has been executed already")
        elif not (math.isfinite(run.runtime) and run.runtime >= 0):
            problems.append(f"{place}.runtimeInSeconds: {run.runtime} is no duration")
        runtimes[run.id] = run.runtime
    parents: list[dict[str, None]] = [{} for _ in specified]
    for number, task in enumerate(specified):
        place = f"$.workflow.specification.tasks[{number}]"
        if task.id not in runtimes:
            problems.append(f"{place}.id: '{task.id}' has no runtime in the execution")
        for parent in task.parents:
            if parent not in numbers:
                problems.append(f"{place}.parents: there is no task '{parent}'")
            parents[number][parent] = None
        for child in task.children:
            if child not in numbers:
                problems.append(f"{place}.children: there is no task '{child}'")
            else:
                parents[numbers[child]][task.id] = None
    if not specified:
        problems.append("$.workflow.specification.tasks: there are no tasks")
    if not problems:
        for cycle in find_cycles([[numbers[parent] for parent in each] for each in parents]):
            path = " → ".join(specified[number].id for number in [*cycle, cycle[0]])
            problems.append(f"$.workflow.specification.tasks: tasks wait for each other: {path}")
    if problems:
        raise InvalidFile([f"{file}: {problem}" for problem in problems])
    tasks = (
        InstanceTask(task.id, runtimes[task.id], tuple(sorted(each, key=numbers.__getitem__)))
        for task, each in zip(specified, parents, strict=True)
    )
    return Instance(document.name, tuple(tasks))


# ---------------------------------------------------------------- how fast it can be


def critical_path(instance: Instance) -> float:
    """Seconds of the longest chain of tasks: no number of slots is faster."""
    needs = _needs(instance)
    ends = [0.0] * len(needs)
    for number in topological_order(needs):
        start = max((ends[parent] for parent in needs[number]), default=0.0)
        ends[number] = start + instance.tasks[number].runtime
    return max(ends, default=0.0)


def work(instance: Instance) -> float:
    """Seconds of all tasks together."""
    return math.fsum(task.runtime for task in instance.tasks)


def floor(instance: Instance, slots: int) -> float:
    """Seconds that no scheduler with ``slots`` slots can beat."""
    return max(critical_path(instance), work(instance) / _positive(slots))


def greedy_makespan(instance: Instance, slots: int) -> float:
    """Seconds a scheduler without any overhead needs that starts tasks in the order they became ready.

    Of those that became ready together, the first in the file starts first. A free slot never waits.
    """
    needs = _needs(instance)
    waiting = [len(parents) for parents in needs]
    children: list[list[int]] = [[] for _ in needs]
    for number, parents in enumerate(needs):
        for parent in parents:
            children[parent].append(number)
    ready = [(0.0, number) for number, count in enumerate(waiting) if count == 0]
    running: list[tuple[float, int]] = []
    free = _positive(slots)
    now = 0.0
    while ready or running:
        while ready and free:
            _, number = heapq.heappop(ready)
            heapq.heappush(running, (now + instance.tasks[number].runtime, number))
            free -= 1
        now = running[0][0]
        # All that end at one moment end before anything starts: their children compete by their place in the file.
        while running and running[0][0] == now:
            _, number = heapq.heappop(running)
            free += 1
            for child in children[number]:
                waiting[child] -= 1
                if waiting[child] == 0:
                    heapq.heappush(ready, (now, child))
    return now


def _needs(instance: Instance) -> list[list[int]]:
    numbers = {task.id: number for number, task in enumerate(instance.tasks)}
    return [[numbers[parent] for parent in task.parents] for task in instance.tasks]


def _positive(slots: int) -> int:
    if slots < 1:
        raise ValueError(f"there must be a slot at least, not {slots}")
    return slots


# ---------------------------------------------------------------- the replay


def to_graph(instance: Instance, scale: float = 1.0, report: str | os.PathLike[str] | None = None) -> GraphSpec:
    """The graph that replays an instance: one process per task, which sleeps ``scale`` times its recorded run time.

    Args:
        instance: what to replay.
        scale: 0.01 makes a hundred seconds one.
        report: the file the tasks append to (see `check_report`), on the machine of the workers; None: whoever
            submits the graph puts ``TITAN_REPLAY_LOG`` into its ``env``.

    Raises:
        InvalidGraph: the scale is negative or no number.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise InvalidGraph(f"the scale of a replay cannot be {scale}", field="scale")
    names = task_names(instance)
    by_id = {task.id: name for task, name in zip(instance.tasks, names, strict=True)}
    tasks = []
    for task, name in zip(instance.tasks, names, strict=True):
        argv = ("bash", "-c", _SCRIPT, "replay", name, f"{task.runtime * scale:.6f}")
        tasks.append(TaskSpec(name, Work(argv=argv), needs=tuple(by_id[parent] for parent in task.parents)))
    # EPOCHREALTIME has the decimal sign of the locale; and bash starts faster without one.
    env = {"LC_ALL": "C"}
    if report is not None:
        env[REPORT_VARIABLE] = os.path.abspath(report)
    return GraphSpec(_graph_name(instance.name), tuple(tasks), env)


def task_names(instance: Instance) -> list[str]:
    """The tasks' names in the graph: their ids, made legal and unique."""
    names: dict[str, None] = {}
    tried: dict[str, int] = {}
    for task in instance.tasks:
        base = name = to_task_name(task.id)
        while name in names:
            tried[base] = tried.get(base, 1) + 1
            suffix = f"-{tried[base]}"
            name = base[: MAX_NAME - len(suffix)] + suffix
        names[name] = None
    return list(names)


def _graph_name(text: str) -> str:
    try:
        return check_graph_name(text)
    except ValueError:
        return to_task_name(text)


def check_report(instance: Instance, text: str) -> list[str]:
    """What is wrong with a replay, by the tasks' own clocks; empty when all is well.

    Each task must have run exactly once, from start to finish, and started after its parents had finished.

    Args:
        instance: what was replayed.
        text: the report: lines ``start TIME NAME`` and ``finish TIME NAME``.
    """
    names = task_names(instance)
    starts: dict[str, list[float]] = {name: [] for name in names}
    finishes: dict[str, list[float]] = {name: [] for name in names}
    violations = []
    for number, line in enumerate(text.splitlines(), start=1):
        what, _, rest = line.partition(" ")
        written, _, name = rest.partition(" ")
        times = {"start": starts, "finish": finishes}.get(what)
        time = _time(written)
        if times is None or time is None:
            violations.append(f"line {number} of the report cannot be read: {line[:80]!r}")
        elif name not in times:
            violations.append(f"'{name}' {what}ed, but is no task of the instance")
        else:
            times[name].append(time)
    for name in names:
        if len(starts[name]) != 1:
            violations.append(f"'{name}' started {_times(starts[name])}")
        if len(finishes[name]) != 1:
            violations.append(f"'{name}' finished {_times(finishes[name])}")
    by_id = {task.id: name for task, name in zip(instance.tasks, names, strict=True)}
    for task, name in zip(instance.tasks, names, strict=True):
        for parent in (by_id[each] for each in task.parents):
            if starts[name] and finishes[parent] and min(starts[name]) < max(finishes[parent]):
                early = max(finishes[parent]) - min(starts[name])
                violations.append(f"'{name}' started {early:.6f} s before its parent '{parent}' had finished")
    return violations


def _times(times: Sequence[float]) -> str:
    return "never" if not times else f"{len(times)} times"


def _time(text: str) -> float | None:
    try:
        time = float(text)
    except ValueError:
        return None
    return time if math.isfinite(time) else None
