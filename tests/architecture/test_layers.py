"""Who may import whom. The table below is the drawing of the house; a walk over the syntax trees holds it to that.

An import counts wherever it stands: at the top of a module, under TYPE_CHECKING, or inside a function.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import NamedTuple

import pytest

import titan_fast
from titan_fast.scheduler import commands, core, events, facts

HOUSE = Path(titan_fast.__file__).parent

LAYER_0 = ("errors", "ids", "_layout", "_version")
TWINS = ("_proto", "_heap", "_heartbeat", "_spawn")
NO_IO = ("asyncio", "socket", "selectors", "select", "subprocess", "threading", "multiprocessing", "signal", "ssl")
NO_CLOCK = ("time", "datetime")


class Layer(NamedTuple):
    """``house``: what of the house its modules may import beside themselves. ``packages``: installed packages it may
    import. ``never``: modules of the standard library it must not know."""

    house: tuple[str, ...]
    packages: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


PURE = (*NO_IO, *NO_CLOCK, "os", "logging", "random", "pathlib")

LAYERS: dict[str, Layer] = {
    # 0: words
    "errors": Layer((), never=PURE),
    "ids": Layer((), never=PURE),
    "_layout": Layer((), never=PURE),
    "_version": Layer((), never=PURE),
    # 1: the twins
    "_proto_py": Layer(LAYER_0, never=PURE),
    "_heap_py": Layer(LAYER_0, never=PURE),
    "_heartbeat_py": Layer(LAYER_0, never=PURE),
    "_spawn_py": Layer(LAYER_0, never=("asyncio", "socket", "logging")),
    # 2: the choice
    "_accel": Layer((*LAYER_0, *TWINS), never=(*NO_IO, *NO_CLOCK)),
    # 3: language, description, decisions
    "protocol": Layer((*LAYER_0, "_accel", "model.spec"), ("msgspec", "orjson"), (*NO_IO, *NO_CLOCK)),
    "model": Layer(LAYER_0, ("msgspec", "yaml"), NO_IO),
    "scheduler": Layer((*LAYER_0, "_accel", "model"), ("msgspec",), (*NO_IO, *NO_CLOCK, "os", "logging", "pathlib")),
    "config": Layer(LAYER_0, ("msgspec",), (*NO_IO, *NO_CLOCK)),
    "loop": Layer(LAYER_0, ("uvloop",)),
    # 4: the shells
    "master": Layer(
        (*LAYER_0, "_accel", "protocol", "model", "scheduler", "config"), ("msgspec", "orjson", "apsw", "psutil")
    ),
    "worker": Layer((*LAYER_0, "_accel", "protocol", "model", "config"), ("msgspec", "psutil", "cloudpickle")),
    "sdk": Layer((*LAYER_0, "_accel", "protocol", "model", "config"), ("msgspec", "orjson", "cloudpickle")),
    # 5: front ends and the test kit
    "cli": Layer(
        ("sdk", "errors", "ids", "config", "loop", "_accel", "_version", "model", "protocol.messages"),
        ("click", "rich", "msgspec", "orjson", "psutil"),
    ),
    "testing": Layer(
        (*LAYER_0, "_accel", "protocol", "model", "scheduler", "config", "master", "worker", "sdk"), ("msgspec",)
    ),
    "__init__": Layer(("_version", "errors", "sdk")),
    "__main__": Layer(("cli",)),
}
"""Beyond the plan: `protocol` reads `model.spec` because SUBMIT carries a graph as it is; `cli` loads graph files with
`model` and prints what the SDK answers, which are messages; the master tells its own memory with psutil."""

ALLOWED_ALSO: dict[str, tuple[str, ...]] = {
    # The start commands run the shells, and they alone.
    "cli.start": ("master.server", "worker.agent", "worker.keeper"),
    # What is restored has no master yet.
    "cli.care": ("master.store.backup",),
}

ALONE = {
    "uvloop": ("loop",),
    "click": ("cli",),
    "rich": ("cli",),
    "yaml": ("model",),
    "apsw": ("master.store",),
    "psutil": ("worker", "cli", "master"),
}
"""Packages that have one home each; a name ends at a dot."""

STARTED_BY_PATH = ("worker.keeper", "worker.executors._template", "worker.executors._pool")
"""They import nothing of the house: what is forked or must never die is small and known."""

SHELF_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base_utils"}


class Import(NamedTuple):
    module: str
    """Who imports, dotted, without ``titan_fast.``."""
    line: int
    target: str
    """What is imported, dotted, absolute; ``from a import b`` is ``a.b``."""


def modules() -> dict[str, Path]:
    """Every module of the house by its dotted name; a package is its folder's name."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = list(path.relative_to(HOUSE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def imports_of(module: str, source: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written out, not relative"
            for alias in node.names:
                yield Import(module, node.lineno, f"{node.module}.{alias.name}")


def is_in(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def problems_of(module: str, source: str) -> list[str]:
    """What in this module breaks the table, a line each."""
    layer = LAYERS[module.partition(".")[0]]
    problems = []
    for item in imports_of(module, source):
        root, _, rest = item.target.partition(".")
        where = f"{module}:{item.line}"
        if root == "titan_fast":
            # `from titan_fast import x` and `from titan_fast.x import y` both name the room x.
            own = (module.partition(".")[0],)
            if not is_in(rest, (*layer.house, *own, *ALLOWED_ALSO.get(module, ()))) and rest:
                problems.append(f"{where} imports {item.target}")
        elif root in sys.stdlib_module_names:
            if root in layer.never:
                problems.append(f"{where} imports {root}")
        elif root not in layer.packages:
            problems.append(f"{where} imports {root}")
        if root in ALONE and not is_in(module, ALONE[root]):
            problems.append(f"{where} imports {root}, whose home is {' and '.join(ALONE[root])}")
    return problems


SOURCES = {name: path.read_text() for name, path in modules().items()}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert not problems_of(module, SOURCES[module])


def test_every_room_is_on_the_drawing() -> None:
    assert {name.partition(".")[0] for name in SOURCES} <= set(LAYERS)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("scheduler.core", "import asyncio"),
        ("scheduler.core", "def f():\n    import time"),
        ("scheduler.core", "from titan_fast.protocol import messages"),
        ("scheduler.core", "if TYPE_CHECKING:\n    from titan_fast.master.server import Master"),
        ("protocol.messages", "import socket"),
        ("protocol.messages", "from titan_fast.scheduler.state import State"),
        ("master.server", "from titan_fast.worker.agent import Agent"),
        ("worker.agent", "from titan_fast.master import server"),
        ("sdk.client", "import click"),
        ("sdk.client", "import uvloop"),
        ("master.server", "import yaml"),
        ("cli.look", "from titan_fast.master.server import Master"),
        ("sdk.client", "from titan_fast._heap_py import Timers"),
        ("errors", "from titan_fast.ids import TaskId"),
    ],
)
def test_the_walk_sees_what_is_forbidden(module: str, line: str) -> None:
    assert problems_of(module, line)


def test_only_accel_imports_the_twins() -> None:
    names = tuple(twin + tail for twin in TWINS for tail in ("", "_py"))
    for module, source in SOURCES.items():
        if module != "_accel":
            found = [i for i in imports_of(module, source) if is_in(i.target.removeprefix("titan_fast."), names)]
            assert not found, found


@pytest.mark.parametrize("module", [name for name in STARTED_BY_PATH if name in SOURCES])
def test_what_is_started_by_path_imports_nothing_of_the_house(module: str) -> None:
    roots = {item.target.partition(".")[0] for item in imports_of(module, SOURCES[module])}
    assert roots <= sys.stdlib_module_names | {"cloudpickle"}, "which users' functions bring along"


def test_the_scheduler_uses_no_randomness_but_what_it_is_given() -> None:
    """`random.Random` may be named and built from a seed; functions of the module `random` share hidden state."""
    for module, source in SOURCES.items():
        if module.startswith("scheduler"):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                    assert node.attr == "Random", f"{module}:{node.lineno}: random.{node.attr}"
                assert not (isinstance(node, ast.ImportFrom) and node.module == "random"), module


def test_no_module_is_a_shelf_for_odds_and_ends() -> None:
    for module in SOURCES:
        assert not SHELF_NAMES & set(module.split(".")), f"{module}: a function lives with the noun it serves"


# ---------------------------------------------------------------- what an import loads


def loaded_by(statement: str) -> set[str]:
    """Modules of the house that a fresh interpreter has after the statement."""
    code = f"import sys\n{statement}\nprint(*(m for m in sys.modules if m.split('.')[0] == 'titan_fast'))"
    environ = {**os.environ, "PYTHONPATH": str(HOUSE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing() -> None:
    assert loaded_by("import titan_fast") == {"titan_fast", "titan_fast._version"}


def test_importing_the_package_takes_milliseconds() -> None:
    """Of the processor's time, which other programs do not take from us."""
    code = "import time; t = time.process_time(); import titan_fast; print(time.process_time() - t)"
    environ = {**os.environ, "PYTHONPATH": str(HOUSE.parent)}
    command = [sys.executable, "-c", code]
    took = min(float(subprocess.run(command, env=environ, capture_output=True, text=True).stdout) for _ in range(5))
    assert took < 0.025


@pytest.mark.parametrize("statement", ["import titan_fast.sdk.client", "from titan_fast import Client, Graph"])
def test_the_sdk_brings_no_master_worker_or_scheduler_along(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "titan_fast.sdk.client" in loaded
    assert not [
        name
        for name in loaded
        if is_in(name, tuple(f"titan_fast.{n}" for n in ("master", "worker", "scheduler", "cli")))
    ]


# ---------------------------------------------------------------- completeness


def subclasses(root: type) -> set[type]:
    return {cls for child in root.__subclasses__() for cls in (child, *subclasses(child))}


def test_every_event_has_its_reaction() -> None:
    assert subclasses(events.Event) == set(events.EVENTS) == set(core.REACTIONS)


def test_every_command_and_fact_is_listed() -> None:
    assert subclasses(commands.Command) == set(commands.COMMANDS)
    assert subclasses(facts.Fact) == set(facts.FACTS)


def test_every_command_is_carried_out() -> None:
    from titan_fast.master.effects import Effects

    missing = [c.__name__ for c in commands.COMMANDS if not hasattr(Effects, f"_{c.__name__.lower()}")]
    assert missing in ([], ["Assign"]), "assignments leave at once and have their own way out"


def test_every_command_is_made_somewhere_in_the_core() -> None:
    core_source = "\n".join(source for name, source in SOURCES.items() if name.startswith("scheduler"))
    for cls in (*commands.COMMANDS, *facts.FACTS):
        assert f"{cls.__name__}(" in core_source.replace(f"class {cls.__name__}(", ""), f"nobody makes {cls.__name__}"


def test_every_alarm_has_a_handler_and_every_handler_an_alarm() -> None:
    """The first item of every timer key the core sets is a key of ALARMS."""
    used = set()
    for name, source in SOURCES.items():
        if not name.startswith("scheduler"):
            continue
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("timer", "add")
            ):
                key = node.args[-1] if node.args else None
                if isinstance(key, ast.Tuple) and isinstance(key.elts[0], ast.Constant):
                    used.add(key.elts[0].value)
    assert used == set(core.ALARMS)


def test_facts_have_a_kind_and_a_version_of_their_own() -> None:
    kinds = [cls.__struct_config__.tag for cls in facts.FACTS]
    assert len(set(kinds)) == len(kinds)
    for cls in facts.FACTS:
        hint = typing.get_type_hints(cls)["version"]
        assert hint is int and not isinstance(hint, UnionType)
