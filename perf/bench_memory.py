"""What a task that waits takes of the master's memory: a member of an array with its payload, and a named task.

A real master on its disk, its private memory (USS) before and after, each time when it has been idle for a moment and
has given back what reading the graph took; and ``at_once``, when the answer to the submit is there and it has not. Run
as a program it also counts a million of each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from titan_fast import Client, Graph
from titan_fast.master import garden
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.testing.cluster import Cluster

TASKS = 100_000
SETTLED = 5
"""Looks in a row with less than 1 % between them."""
EVERY = 2 * garden.EVERY / SETTLED
"""Seconds between two looks: meanwhile the master has looked around itself twice, and given back what was free."""
PATIENCE = 60
"""Looks, at most."""


def submit_array(client: Client, tasks: int) -> None:
    graph = Graph("array")
    graph.task("a", run=["true", "${matrix.i}"], matrix={"i": range(tasks)})
    client.submit(graph)


def submit_named(client: Client, tasks: int) -> None:
    """In graphs of 100,000: a graph has no more."""
    for first in range(0, tasks, TASKS):
        rows = range(first, first + min(TASKS, tasks - first))
        work = (TaskSpec(f"task-{row}", Work(argv=("true", str(row)))) for row in rows)
        client.submit_spec(GraphSpec("named", tuple(work)))


@contextmanager
def waiting_master() -> Iterator[tuple[Client, psutil.Process]]:
    """A master without workers."""
    with tempfile.TemporaryDirectory() as home:
        cluster = Cluster(Path(home))
        cluster.start_master()
        try:
            assert cluster.master is not None
            with cluster.client() as client:
                submit_array(client, 1000)  # what only the first graph takes
                yield client, psutil.Process(cluster.master.pid)
        finally:
            cluster.stop()


def settled(process: psutil.Process) -> int:
    """Bytes, once they have stayed the same for a while."""
    looks: list[int] = []
    while len(looks) < PATIENCE:
        time.sleep(EVERY)
        looks.append(process.memory_full_info().uss)
        recent = looks[-SETTLED:]
        if len(recent) == SETTLED and max(recent) < 1.01 * min(recent):
            break
    return looks[-1]


def measured(tasks: int, size: str) -> dict[str, float]:
    with waiting_master() as (client, process):
        empty = settled(process)
        submit_array(client, tasks)
        with_array = settled(process)
        submit_named(client, tasks)
        at_once = process.memory_full_info().uss
        with_both = settled(process)
    return {
        f"memory_bytes_per_array_task_{size}": (with_array - empty) / tasks,
        f"memory_bytes_per_named_task_{size}": (with_both - with_array) / tasks,
        f"memory_bytes_per_named_task_at_once_{size}": (at_once - with_array) / tasks,
    }


def measure() -> dict[str, float]:
    return measured(TASKS, "100k")


def main() -> None:
    figures = measure() | measured(10 * TASKS, "1m")
    for name, value in figures.items():
        print(f"{name:45} {value:8.1f}")


if __name__ == "__main__":
    main()
