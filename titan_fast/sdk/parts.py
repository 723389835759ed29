"""What can be submitted, and the parts of it that travel: a graph built in Python, a graph file, a description."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from titan_fast.model.spec import GraphSpec
from titan_fast.sdk.graph import Graph

if TYPE_CHECKING:
    from titan_fast.model.yaml_file import LoadedGraph

Submittable: TypeAlias = "Graph | LoadedGraph | GraphSpec"

UNANSWERED = 1024
"""Submits that a client has written and heard nothing of, at most."""
WATCHED = 8192
"""Begun runs whose outcome is pushed, at most (a master allows 10,000 on a connection); of others it is asked for."""
AHEAD = 1024
"""Of those it is asked for so many at a time, when somebody waits for one of them."""
GROUP = 128
"""Submits in one write."""


class Parts(NamedTuple):
    graph: GraphSpec
    payloads: tuple[bytes, ...] = ()
    project: Path | None = None
    """The folder that has to be at the master first."""
    files: tuple[str, ...] = ()
    """Only these of it; empty: all."""


def to_parts(what: Submittable) -> Parts:
    """Raises InvalidGraph."""
    if isinstance(what, GraphSpec):
        return Parts(what)
    if isinstance(what, Graph):
        return Parts(*what.to_spec(), what.project)
    return Parts(what.graph, tuple(what.payloads), what.project_dir, tuple(what.project_files))


def last_task(graph: GraphSpec) -> str:
    """The task that ends when its run does, and not before; empty: there is no such one."""
    tasks = graph.tasks
    if len(tasks) > 1:
        needed = {name for task in tasks for name in task.needs}
        tasks = tuple(task for task in tasks if task.name not in needed)
    return tasks[0].name if len(tasks) == 1 and tasks[0].count == 1 else ""


def groups(what: Iterable[Submittable]) -> Iterator[list[Submittable]]:
    """As many at a time as go in one write."""
    rest = iter(what)
    while group := list(islice(rest, GROUP)):
        yield group
