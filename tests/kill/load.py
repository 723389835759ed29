"""Work for a cluster that is being broken: graphs of tiny commands that note what they do, and clients that submit
them, wait, cancel and retry, each noting what it asks for and what it is told. Knows nothing of the faults.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import yaml
from history import (
    NOTE,
    Acknowledged,
    Asked,
    Cancelled,
    History,
    Listed,
    Refused,
    RetryAsked,
    Seen,
    SeenLost,
    Shape,
    Waited,
    now,
)

from titan_fast import Graph
from titan_fast.errors import NothingToDo, RunFailed, TitanError
from titan_fast.sdk import calls
from titan_fast.sdk.client import Client
from titan_fast.sdk.handles import RunHandle

PATIENCE = 120.0
"""Seconds a client waits for a run before it says that the cluster hangs."""

# ---------------------------------------------------------------- graphs


class Node(msgspec.Struct):
    """A task: how long it sleeps, what it needs, how many members it has (0: it is no array)."""

    seconds: float
    needs: tuple[str, ...] = ()
    count: int = 0
    has_door: bool = False
    """It fails until somebody makes the file $DOOR."""

    @property
    def script(self) -> str:
        work = f"sleep {self.seconds:.3f}; " if self.seconds else ""
        door = '[ -e "$DOOR" ] || { note ended 1; exit 1; }; ' if self.has_door else ""
        return f'eval "$NOTE"; note began 0; {work}{door}note ended 0'


Plan = dict[str, Node]


def shapes(plan: Plan) -> dict[str, Shape]:
    return {name: Shape(node.count, node.needs) for name, node in plan.items()}


def environment(key: str, history: History) -> dict[str, str]:
    return {"KEY": key, "HISTORY": str(history.path), "NOTE": NOTE, "DOOR": str(door_of(key, history))}


def door_of(key: str, history: History) -> Path:
    return history.path.with_name(f"door-{key}")


def to_graph(plan: Plan, key: str, history: History) -> Graph:
    graph = Graph(key, env=environment(key, history))
    for name, node in plan.items():
        matrix = {"i": range(node.count)} if node.count else None
        graph.task(name, run=node.script, needs=node.needs, matrix=matrix)
    return graph


def to_yaml(plan: Plan, key: str, history: History) -> str:
    tasks = []
    for name, node in plan.items():
        task: dict[str, object] = {"id": name, "run": node.script}
        if node.needs:
            task["needs"] = list(node.needs)
        if node.count:
            task["matrix"] = {"i": list(range(node.count))}
        tasks.append(task)
    return yaml.safe_dump({"name": key, "env": environment(key, history), "tasks": tasks}, sort_keys=False)


def chain(rng: random.Random) -> Plan:
    """One after the other: every end is somebody's beginning."""
    names = [f"link{i}" for i in range(rng.randrange(4, 10))]
    return {name: Node(rng.uniform(0, 0.05), (names[i - 1],) if i else ()) for i, name in enumerate(names)}


def fan(rng: random.Random) -> Plan:
    """Out to an array and in again."""
    return {
        "first": Node(0),
        "many": Node(rng.uniform(0.02, 0.15), ("first",), rng.randrange(10, 40)),
        "last": Node(0, ("many",)),
    }


def lattice(rng: random.Random, layers: int = 4, width: int = 6, seconds: float = 0.15) -> Plan:
    """Layers of named tasks, each with some parents in the layer before."""
    plan: Plan = {}
    above: list[str] = []
    for layer in range(layers):
        names = [f"n{layer}_{i}" for i in range(width)]
        for name in names:
            needs = tuple(rng.sample(above, rng.randrange(1, min(4, len(above) + 1)))) if above else ()
            plan[name] = Node(rng.uniform(0, seconds), needs)
        above = names
    return plan


def slow(rng: random.Random) -> Plan:
    """Tasks that are still running when something else is killed."""
    return {"long": Node(rng.uniform(0.8, 2.0), (), rng.randrange(2, 5)), "last": Node(0, ("long",))}


def doomed(rng: random.Random) -> Plan:
    """To be cancelled while it runs."""
    return {"many": Node(0.4, (), rng.randrange(10, 30)), "never": Node(0, ("many",))}


def shut(rng: random.Random) -> Plan:
    """Fails, until its client opens the door and asks for a retry."""
    return {"before": Node(0), "door": Node(0, ("before",), has_door=True), "after": Node(0.05, ("door",), 3)}


KINDS: tuple[Callable[[random.Random], Plan], ...] = (chain, chain, fan, fan, lattice, slow, slow, doomed, shut)

# ---------------------------------------------------------------- clients


class Worker(threading.Thread):
    """A thread with a client of its own, until it is told to stop."""

    def __init__(self, name: str, client: Client, history: History) -> None:
        super().__init__(name=name, daemon=True)
        self.client = client
        self.history = history
        self.stopping = threading.Event()

    def refused(self, call: str, error: TitanError) -> None:
        self.history.note(Refused(now(), call, error.code, error.message))


class Submitter(Worker):
    """Submits, waits, cancels and retries, a few runs at a time."""

    def __init__(self, name: str, client: Client, history: History, seed: int) -> None:
        super().__init__(name, client, history)
        self._rng = random.Random(f"{name} {seed}")
        self._count = 0

    def run(self) -> None:
        with self.client:
            while not self.stopping.is_set():
                kinds = self._rng.sample(KINDS, self._rng.randrange(1, 3))
                going = [(kind, run) for kind in kinds if (run := self._submit(kind(self._rng))) is not None]
                for kind, (key, run) in going:
                    try:
                        self._see_through(kind, key, run)
                    except TitanError as error:
                        self.refused(f"run {run.id}", error)

    def _submit(self, plan: Plan) -> tuple[str, RunHandle] | None:
        self._count += 1
        key = f"{self.name}-{self._count}"
        self.history.note(Asked(now(), key, shapes(plan)))
        try:
            run = self.client.submit(to_graph(plan, key, self.history))
        except TitanError as error:
            self.refused(f"submit of {key}", error)
            return None
        self.history.note(Acknowledged(now(), key, run.id))
        return key, run

    def _see_through(self, kind: Callable[[random.Random], Plan], key: str, run: RunHandle) -> None:
        if kind is doomed:
            self._cancel(run)
        state = self._wait(run)
        if kind is shut and state == "FAILED":
            door_of(key, self.history).touch()
            self.history.note(RetryAsked(now(), run.id))
            run.retry()
            self._wait(run)

    def _cancel(self, run: RunHandle) -> None:
        with contextlib.suppress(NothingToDo):  # it was finished already
            run.cancel()
            self.history.note(Cancelled(now(), run.id))

    def _wait(self, run: RunHandle) -> str:
        try:
            state = run.wait(PATIENCE).state
        except RunFailed:
            state = run.state
        self.history.note(Waited(now(), run.id, state))
        look(run, self.history)
        return state


class Watcher(Worker):
    """Looks at the workers all the time; ``lost`` are those that are lost now."""

    def __init__(self, client: Client, history: History) -> None:
        super().__init__("watcher", client, history)
        self.lost: set[str] = set()

    def run(self) -> None:
        with self.client:
            while not self.stopping.wait(0.1):
                try:
                    lost = {worker.name for worker in self.client.workers() if worker.state == "LOST"}
                except TitanError as error:
                    self.refused("workers", error)
                    self.client.close()
                    continue
                for name in lost - self.lost:
                    self.history.note(SeenLost(now(), name))
                self.lost = lost


def look(run: RunHandle, history: History) -> None:
    """Note every task of a run as it is shown."""
    for row in run.tasks():
        seen = Seen(
            now(),
            run.id,
            row.name,
            row.generation,
            row.state,
            row.attempt,
            row.worker,
            row.exit_code,
            row.finished_at,
        )
        history.note(seen)


def look_at_everything(client: Client, history: History) -> None:
    """When it is quiet: every run there is, and every task of it."""
    cursor = ""
    rows = []
    while True:
        page = client.call(calls.list_page("runs", cursor=cursor, limit=1000))
        rows.extend(page.runs)
        cursor = page.next
        if not cursor:
            break
    for row in rows:
        history.note(Listed(now(), row.id, row.name, row.state))
        look(client.run(row.id), history)
