"""From a graph's description to the columns of a run: names resolved, edges counted, cycles refused.

All of a graph or none of it: `admit` raises before the state has changed. Cost is linear in tasks and edges.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from titan_fast.errors import InvalidGraph
from titan_fast.model.results import references
from titan_fast.model.spec import MAX_MEMBERS, MAX_NAMED_TASKS, MAX_PAYLOAD, GraphSpec, TaskSpec
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Options, Run

if TYPE_CHECKING:
    from titan_fast.scheduler.state import State

MAX_EDGES = 10_000_000
_ZERO = bytes(4)
_encode = msgspec.json.Encoder().encode


def admit(state: State, graph: GraphSpec, payloads: Sequence[bytes], number: int, at: float, floor: int) -> Run:
    """A new run with every task BLOCKED and its counters set; the caller adds it to the state.

    Args:
        number: of the run.
        at: wall clock, seconds, when it was submitted.
        floor: the last fence at that time.

    Raises:
        InvalidGraph: no tasks, too many, duplicate or unknown names, a cycle, payloads that do not fit.
    """
    tasks = graph.tasks
    if not tasks:
        raise InvalidGraph(f"graph '{graph.name}' has no tasks", field="tasks")
    if len(tasks) > MAX_NAMED_TASKS:
        raise InvalidGraph(f"{len(tasks)} named tasks, at most {MAX_NAMED_TASKS} are allowed", field="tasks")
    rows = _rows_by_name(tasks)
    if any(task.needs or task.affinity is not None for task in tasks):
        parents_at, parents = _resolve(tasks, rows)
        children_at, children = _transpose(parents_at, parents)
        _refuse_cycles(tasks, parents_at, parents, children_at, children)
    else:
        # As of the many graphs that are one call: nothing to look for.
        parents_at = children_at = array("I", bytes(4 * (len(tasks) + 1)))
        parents = children = array("I")
    _check_payloads(tasks, payloads)
    _check_functions(tasks, payloads)

    run = Run(number, graph.name, at, floor)
    run.env = graph.env
    run.project = graph.project
    run.parents_at, run.parents = parents_at, parents
    run.children_at, run.children = children_at, children
    known: dict[tuple[object, ...], int] = {}
    index = 0
    for spec, task in enumerate(tasks):
        run.names.append(task.name)
        run.first.append(index)
        run.count.append(task.count)
        run.open.append(task.count)
        run.unmet.append(parents_at[spec + 1] - parents_at[spec])
        run.works.append(_encode(task.work).decode())
        if names := references(task.work):
            run.wanted.update(rows[name] for name in names if name in rows)
        if task.work.is_function:
            run.functions[spec] = payloads[task.work.function]
            if task.work.arguments:
                run.wanted.update(rows[name] for name in task.work.arguments)
        key = (task.requires, task.priority, task.delay, task.retry, task.when, task.affinity)
        option = known.get(key)
        if option is None:
            option = known[key] = len(run.options)
            run.options.append(_options(state, task))
            run.tracks_places |= task.affinity is not None and task.affinity.kind == "parent"
        run.option.append(option)
        if task.array:
            run.arrays.add(spec)
        if task.payload >= 0:
            run.payloads[spec] = payloads[task.payload]
        index += task.count
    sinks = [spec for spec in range(len(tasks)) if children_at[spec] == children_at[spec + 1]]
    if len(sinks) == 1 and run.count[sinks[0]] == 1:
        run.last = sinks[0]
        run.wanted.add(run.last)  # its result is the run's
    run.outcome = bytearray(len(tasks))
    run.best = array("Q", bytes(8 * len(tasks)))
    run.state = bytearray(index)
    run.counts[TaskState.BLOCKED] = index
    return run


def _options(state: State, task: TaskSpec) -> Options:
    requires = frozenset(task.requires)
    return Options(state.class_of(requires), requires, task.priority, task.delay, task.retry, task.when, task.affinity)


def _rows_by_name(tasks: Sequence[TaskSpec]) -> dict[str, int]:
    rows: dict[str, int] = {}
    members = 0
    for row, task in enumerate(tasks):
        if rows.setdefault(task.name, row) != row:
            raise InvalidGraph(f"task '{task.name}' is there twice", field=f"tasks[{row}].name")
        if task.count < 1 or (task.count > 1 and not task.array):
            raise InvalidGraph(f"task '{task.name}' has a count of {task.count}", field=f"tasks[{row}].count")
        members += task.count
    if members > MAX_MEMBERS:
        raise InvalidGraph(f"{members} tasks with all array members, at most {MAX_MEMBERS} are allowed", field="tasks")
    return rows


def _resolve(tasks: Sequence[TaskSpec], rows: dict[str, int]) -> tuple[array[int], array[int]]:
    """Edges to parents in rows. A parent named twice is one edge."""
    at, parents = array("I", [0]), array("I")
    for row, task in enumerate(tasks):
        for name in dict.fromkeys(task.needs):
            parent = rows.get(name)
            if parent is None:
                raise InvalidGraph(
                    f"task '{task.name}' needs '{name}', which is not in this graph", field=f"tasks[{row}].needs"
                )
            parents.append(parent)
        affinity = task.affinity
        if affinity is not None and affinity.kind == "parent":
            if affinity.key and affinity.key not in task.needs:
                raise InvalidGraph(
                    f"task '{task.name}' has affinity to '{affinity.key}', which it does not need",
                    field=f"tasks[{row}].affinity",
                )
            if not task.needs:
                raise InvalidGraph(
                    f"task '{task.name}' has affinity to its parent, but no parent", field=f"tasks[{row}].affinity"
                )
        at.append(len(parents))
        if len(parents) > MAX_EDGES:
            raise InvalidGraph(f"more than {MAX_EDGES} edges", field="tasks")
    return at, parents


def _transpose(parents_at: array[int], parents: array[int]) -> tuple[array[int], array[int]]:
    """The same edges from the parents' side."""
    rows = len(parents_at) - 1
    degree = [0] * (rows + 1)
    for parent in parents:
        degree[parent + 1] += 1
    for row in range(rows):
        degree[row + 1] += degree[row]
    at = array("I", degree)
    children = array("I", bytes(4 * len(parents)))
    fill = degree[:-1]
    for row in range(rows):
        for edge in range(parents_at[row], parents_at[row + 1]):
            parent = parents[edge]
            children[fill[parent]] = row
            fill[parent] += 1
    return at, children


def _refuse_cycles(
    tasks: Sequence[TaskSpec],
    parents_at: array[int],
    parents: array[int],
    children_at: array[int],
    children: array[int],
) -> None:
    """Kahn's algorithm; what it cannot reach holds a cycle, which is then named."""
    rows = len(tasks)
    unmet = [parents_at[row + 1] - parents_at[row] for row in range(rows)]
    reached = [row for row in range(rows) if not unmet[row]]
    for row in reached:
        for edge in range(children_at[row], children_at[row + 1]):
            child = children[edge]
            unmet[child] -= 1
            if not unmet[child]:
                reached.append(child)
    if len(reached) == rows:
        return
    row = next(row for row in range(rows) if unmet[row])
    seen: dict[int, int] = {}
    path: list[int] = []
    while row not in seen:
        seen[row] = len(path)
        path.append(row)
        row = next(parent for parent in parents[parents_at[row] : parents_at[row + 1]] if unmet[parent])
    cycle = path[seen[row] :]
    names = [tasks[member].name for member in [*cycle, cycle[0]]]
    raise InvalidGraph(
        "the tasks need each other in a circle: " + " needs ".join(f"'{name}'" for name in names[:20]), field="tasks"
    )


def _check_payloads(tasks: Sequence[TaskSpec], payloads: Sequence[bytes]) -> None:
    """Offsets start at 0, never fall and end with the blob, or a slice would read a neighbour's bytes."""
    for row, task in enumerate(tasks):
        if task.payload < 0:
            continue
        field = f"tasks[{row}].payload"
        if task.payload >= len(payloads):
            raise InvalidGraph(f"task '{task.name}' names attachment {task.payload}, which is missing", field=field)
        blob = payloads[task.payload]
        if task.count == 1 and blob[:4] == _ZERO and int.from_bytes(blob[4:8], "big") == len(blob) - 8 <= MAX_PAYLOAD:
            continue
        base = 4 * (task.count + 1)
        offsets = array("I", blob[:base]) if len(blob) >= base else array("I")
        if offsets.itemsize != 4:
            raise InvalidGraph("this machine has no 32-bit integers", field=field)
        offsets.byteswap()
        in_order = all(offsets[i] <= offsets[i + 1] for i in range(len(offsets) - 1))
        if in_order and any(offsets[i + 1] - offsets[i] > MAX_PAYLOAD for i in range(len(offsets) - 1)):
            raise InvalidGraph(
                f"a member of task '{task.name}' has a payload of more than {MAX_PAYLOAD} bytes", field=field
            )
        if len(blob) < base or offsets[0] != 0 or offsets[-1] != len(blob) - base or not in_order:
            raise InvalidGraph(f"the payloads of task '{task.name}' do not fit its {task.count} members", field=field)


def _check_functions(tasks: Sequence[TaskSpec], payloads: Sequence[bytes]) -> None:
    """A function is there and alone; its arguments are results of parents, which have ended when it starts."""
    for row, task in enumerate(tasks):
        work = task.work
        if not work.is_function:
            continue
        if work.argv or work.shell or work.file:
            raise InvalidGraph(f"task '{task.name}' is a function and a command", field=f"tasks[{row}].work")
        if work.function >= len(payloads):
            raise InvalidGraph(
                f"task '{task.name}' names attachment {work.function}, which is missing",
                field=f"tasks[{row}].work.function",
            )
        if task.payload < 0:
            raise InvalidGraph(f"the function of task '{task.name}' has no payload", field=f"tasks[{row}].payload")
        for name in work.arguments:
            if name not in task.needs:
                raise InvalidGraph(
                    f"task '{task.name}' takes the result of '{name}', which it does not need",
                    field=f"tasks[{row}].work.arguments",
                )
