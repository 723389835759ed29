"""Random graphs whose tasks are only a duration and a way to end, both written in the command or the function."""

from __future__ import annotations

import itertools
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
NOTHING_ELSE = b"endless"
"""A function that ends when it is ended."""


class Shape(msgspec.Struct, frozen=True):
    """A graph and what is sent with it."""

    graph: GraphSpec
    payloads: tuple[bytes, ...] = ()
    is_endless: bool = False
    """It ends only when somebody cancels it."""

    @property
    def tasks(self) -> int:
        return sum(task.count for task in self.graph.tasks)

    @property
    def functions(self) -> list[TaskSpec]:
        return [task for task in self.graph.tasks if task.work.is_function]


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


class _Functions:
    """A graph with functions, while it is drawn."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tasks: list[TaskSpec] = []
        self.payloads: list[bytes] = []
        self._places: dict[bytes, int] = {}

    def add(self, task: TaskSpec) -> str:
        self.tasks.append(task)
        return task.name

    def command(self, name: str, *needs: str, count: int = 0) -> str:
        return self.add(_task(self.rng, name, *needs, count=count))

    def call(self, name: str, *arguments: str, needs: tuple[str, ...] = (), count: int = 0, **fields: object) -> str:
        """``count`` 0 is a call, anything else an array."""
        rng = self.rng
        mean = rng.choice((1e-6, 2e-5, 3e-4, 3e-3, 0.05, 0.4, 3.0) if count else (1e-6, 1e-3, 0.05, 0.5, 5.0, 20.0))
        bad = rng.choice((0.0, 0.0, 0.0, 0.0, 0.02, 0.2))
        options: dict[str, object] = {
            "requires": rng.choice((*CAPABILITIES, (), (), ())),
            "priority": rng.choice((1, 1, 1, 5)),
            "delay": rng.choice((0.0, 0.0, 0.0, 0.0, 0.0, 3.0)),
            "retry": rng.choice(RETRIES),
        }
        if arguments or needs:
            options["when"] = rng.choice(("success", "success", "success", "success", "success", "always", "failure"))
            if rng.random() < 0.1:
                options["affinity"] = Affinity("parent", wait=2.0)
        elif rng.random() < 0.05:
            options["affinity"] = Affinity("key", rng.choice("ab"), wait=1.0)
        pickled = fields.pop("pickled", b"call %g %g" % (mean, bad))
        assert isinstance(pickled, bytes)
        work = Work(
            function=self._place(pickled),
            arguments=arguments,
            timeout=rng.choice((0.0, 0.0, 0.0, 0.3, 5.0)),
            grace=rng.choice(GRACES),
        )
        return self.add(
            TaskSpec(
                name,
                work,
                (*arguments, *needs),
                count=max(1, count),
                array=count > 0,
                payload=self._place(_payloads(max(1, count))),
                **(options | fields),  # type: ignore[arg-type]
            )
        )

    def _place(self, attachment: bytes) -> int:
        if attachment not in self._places:
            self._places[attachment] = len(self.payloads)
            self.payloads.append(attachment)
        return self._places[attachment]


def payload_of(member: int) -> bytes:
    """What a function of an array is given; nobody else is."""
    return b"member %d" % member


def _payloads(count: int) -> bytes:
    items = [payload_of(member) for member in range(count)]
    ends = itertools.accumulate(map(len, items), initial=0)
    return b"".join((*(end.to_bytes(4, "big") for end in ends), *items))


def draw_functions(rng: random.Random, name: str) -> Shape:
    """One of the shapes of people who call functions."""
    drawn = _Functions(rng)
    rng.choice((_plain, _plain, _plain, _map, _map, _spread, _spread, _calls, _mixed, _mixed, _mesh, _sleeper))(drawn)
    is_endless = any(
        task.work.is_function and drawn.payloads[task.work.function] == NOTHING_ELSE for task in drawn.tasks
    )
    return Shape(GraphSpec(name, tuple(drawn.tasks)), tuple(drawn.payloads), is_endless)


def _plain(drawn: _Functions) -> None:
    """Many that take no time, need nothing and never fail: what is told of them is told of many at once."""
    rng = drawn.rng
    nothing = b"call %g 0" % rng.choice((1e-6, 1e-6, 2e-5, 1e-4))
    drawn.call("item", count=rng.randrange(100, 600), pickled=nothing, delay=0.0)


def _map(drawn: _Functions) -> None:
    drawn.call("item", count=drawn.rng.randrange(50, 400))
    if drawn.rng.random() < 0.5:
        drawn.call("sum", "item")
    if drawn.rng.random() < 0.3:
        drawn.call("other", needs=("item",), count=drawn.rng.randrange(10, 100))


def _spread(drawn: _Functions) -> None:
    """One, many, one, with what each gives."""
    first = drawn.call("first")
    each = drawn.call("each", first, count=drawn.rng.randrange(20, 150))
    drawn.call("sum", first, each)


def _calls(drawn: _Functions) -> None:
    last = drawn.call("t0")
    for number in range(1, drawn.rng.randrange(4, 12)):
        last = drawn.call(f"t{number}", last)


def _mixed(drawn: _Functions) -> None:
    """Commands and functions, after each other and with what the others gave."""
    rng = drawn.rng
    load = drawn.command("load", count=rng.choice((0, 0, 12)))
    each = drawn.call("each", load, count=rng.randrange(20, 120))
    check = drawn.command("check", each)
    drawn.call("report", check, each)
    drawn.command("send", "report", count=rng.choice((0, 5)))


def _mesh(drawn: _Functions) -> None:
    rng = drawn.rng
    above: list[str] = []
    for layer in range(rng.randrange(2, 5)):
        names = []
        for number in range(rng.randrange(2, 4)):
            needs = rng.sample(above, rng.randrange(1, len(above) + 1)) if above else []
            given = tuple(name for name in needs if rng.random() < 0.7)
            others = tuple(name for name in needs if name not in given)
            count = rng.choice((0, 0, 1, 8, 40))
            names.append(drawn.call(f"l{layer}n{number}", *given, needs=others, count=count))
        above = names
    rng.shuffle(drawn.tasks)


def _sleeper(drawn: _Functions) -> None:
    """Functions that somebody has to end, among others."""
    drawn.call("rare", count=drawn.rng.choice((0, 3)), pickled=NOTHING_ELSE)
    drawn.call("item", count=drawn.rng.randrange(5, 60))
    drawn.call("after", "rare", count=10)


def _plan_of_call(rng: random.Random, argv: tuple[str, ...]) -> Plan:
    stubborn = rng.choice((0.0, 0.0, 0.01, 1.0, 60.0))
    if argv == (NOTHING_ELSE.decode(),):
        return Plan(1e6, stubborn=stubborn)
    _, mean, bad = argv
    seconds = float(mean) * rng.expovariate(1.0)
    output = rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 7))
    if rng.random() >= float(bad):
        return Plan(seconds, stubborn=stubborn, output=output)
    ending, code, said, is_exit = rng.choice(
        (
            (Ending.EXIT, 1, "ValueError: no", False),
            (Ending.EXIT, 7, "", False),
            (Ending.EXIT, 7, "", True),
            (Ending.EXIT, 0, "", True),
            (Ending.SIGNAL, 11, "", False),
        )
    )
    return Plan(seconds, ending, code, stubborn, is_exit=is_exit, said=said, output=output)


def plan(seed: int, attempt: Attempt) -> Plan:
    """What an attempt will do: by the seed, its task and its number, so that it is the same wherever it runs."""
    rng = random.Random(f"{seed}/{attempt.task}/{attempt.fence}")
    if attempt.argv[0] != "work":
        return _plan_of_call(rng, attempt.argv)
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
