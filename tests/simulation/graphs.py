"""Random graphs whose tasks are only a duration and a way to end, both written in the command."""

from __future__ import annotations

import random

import msgspec

from titan_fast.ids import Ending
from titan_fast.model.spec import Affinity, GraphSpec, Retry, TaskSpec, Work
from titan_fast.testing.simulation.machines import Plan
from titan_fast.worker.executors.base import Attempt

GRACES = (1.0, 3.0)
"""Seconds between TERM and KILL. Nobody else uses these: an end with one of them was asked for by the master."""
RETRIES = (
    Retry(),
    Retry(max=2, backoff=0.5),
    Retry(max=2, backoff=12.0),
    Retry(max=1, backoff=2.0, on=(7, "timeout")),
)
ENDLESS = ("work", "without end")
POISON = ("work", "and take the machine with you")
CAPABILITIES = ((), (), (), (), ("GPU",), ("GPU", "BIG"), ("LAB",))


class Shape(msgspec.Struct, frozen=True):
    """A graph and what is sent with it."""

    graph: GraphSpec
    payloads: tuple[bytes, ...] = ()
    is_endless: bool = False
    """It ends only when somebody cancels it."""

    @property
    def tasks(self) -> int:
        return sum(task.count for task in self.graph.tasks)


def draw(rng: random.Random, name: str) -> Shape:
    """One of the shapes people run."""
    kind = rng.choice((_chain, _chain, _fan, _fan, _fan, _diamond, _diamond, _layers, _layers, _flat, _flat, _rare))
    tasks = kind(rng)
    is_endless = any(task.work.argv == ENDLESS for task in tasks)
    return Shape(GraphSpec(name, tuple(tasks)), is_endless=is_endless)


def _task(rng: random.Random, name: str, *needs: str, count: int = 0, **fields: object) -> TaskSpec:
    """``count`` 0 is a single task."""
    mean = rng.choice((0.002, 0.02, 0.3, 1.0, 3.0)) if count else rng.choice((0.01, 0.5, 2.0, 10.0))
    bad = rng.choice((0.0, 0.0, 0.0, 0.02, 0.3))
    options: dict[str, object] = {
        "requires": rng.choice(CAPABILITIES),
        "priority": rng.choice((1, 1, 1, 5)),
        "delay": rng.choice((0.0, 0.0, 0.0, 0.0, 3.0, 15.0)),
        "retry": rng.choice(RETRIES),
    }
    if needs:
        options["when"] = rng.choice(("success", "success", "success", "success", "always", "failure"))
        if rng.random() < 0.2:
            options["affinity"] = Affinity("parent", wait=2.0)
    elif rng.random() < 0.1:
        options["affinity"] = Affinity("key", rng.choice("ab"), wait=1.0)
    timeout = rng.choice((0.0, 0.0, 0.0, 5.0))
    work = Work(argv=("work", str(mean), str(bad)), timeout=timeout, grace=rng.choice(GRACES))
    return TaskSpec(name, work, needs, count=max(1, count), array=count > 0, **(options | fields))  # type: ignore[arg-type]


def _chain(rng: random.Random) -> list[TaskSpec]:
    tasks = [_task(rng, "t0")]
    for number in range(1, rng.randrange(3, 9)):
        tasks.append(_task(rng, f"t{number}", f"t{number - 1}"))
    return tasks


def _fan(rng: random.Random) -> list[TaskSpec]:
    """One, many, one."""
    return [
        _task(rng, "split"),
        _task(rng, "each", "split", count=rng.randrange(40, 200)),
        _task(rng, "join", "each"),
    ]


def _diamond(rng: random.Random) -> list[TaskSpec]:
    return [
        _task(rng, "top"),
        _task(rng, "left", "top", count=rng.randrange(1, 60)),
        _task(rng, "right", "top"),
        _task(rng, "bottom", "left", "right"),
    ]


def _layers(rng: random.Random) -> list[TaskSpec]:
    """Every task of a layer needs some of the layer above, in any order of description."""
    tasks: list[TaskSpec] = []
    above: list[str] = []
    for layer in range(rng.randrange(2, 4)):
        names = [f"l{layer}n{number}" for number in range(rng.randrange(2, 5))]
        for name in names:
            needs = rng.sample(above, rng.randrange(1, len(above) + 1)) if above else []
            tasks.append(_task(rng, name, *needs, count=rng.choice((0, 0, 10, 30))))
        above = names
    rng.shuffle(tasks)
    return tasks


def _flat(rng: random.Random) -> list[TaskSpec]:
    return [_task(rng, "item", count=rng.randrange(100, 300)), _task(rng, "check", "item", when="always")]


def _rare(rng: random.Random) -> list[TaskSpec]:
    """A service that somebody has to end, or a task that takes every machine it runs on with it."""
    argv = rng.choice((ENDLESS, POISON))
    return [TaskSpec("rare", Work(argv=argv, grace=rng.choice(GRACES))), _task(rng, "after", "rare", count=10)]


def plan(seed: int, attempt: Attempt) -> Plan:
    """What an attempt will do: by the seed, its task and its number, so that it is the same wherever it runs."""
    rng = random.Random(f"{seed}/{attempt.task}/{attempt.fence}")
    if attempt.argv == ENDLESS:
        return Plan(1e6, stubborn=rng.choice((0.0, 60.0)))
    if attempt.argv == POISON:
        return Plan(1.0 + rng.random(), is_poison=True)
    _, mean, bad = attempt.argv
    seconds = float(mean) * rng.expovariate(1.0)
    stubborn = rng.choice((0.0, 0.0, 0.01, 1.0, 60.0))
    if rng.random() < float(bad):
        ending, code = rng.choice(((Ending.EXIT, 1), (Ending.EXIT, 7), (Ending.SIGNAL, 11)))
        return Plan(seconds, ending, code, stubborn)
    return Plan(seconds, stubborn=stubborn)
