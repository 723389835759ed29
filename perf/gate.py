"""Runs every `bench_*.py` beside it and holds what they measure against the promises in `budgets.toml`.

Prints one table ``name | measured | promise | headroom`` and leaves it, with the seconds that all of it took, in
``build/reports/gate.json``, of which ``python docs/performance.py`` makes a table. Fails on a broken promise, on a
measurement nobody promised anything about, and on a promise nobody measures. ``TITAN_FAST_SLOWDOWN=name[:factor]``
makes one figure worse by that factor (10 when not given): it proves that the gate can turn red.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

SLOWDOWN = "TITAN_FAST_SLOWDOWN"
MACHINE = "TITAN_FAST_MACHINE"
AGAIN = 2
"""How often a benchmark that breaks a promise is run again."""
Row: TypeAlias = tuple[str, str, str, str]
MAX_FACTOR = 1e6
KINDS = ("ratio", "growth", "absolute", "count")


class Mistake(ValueError):
    """What whoever runs the gate can mend: told in a line, before anything is measured."""


class Promise(NamedTuple):
    """``min`` or ``max``, one of them. An absolute one binds on the named reference machine only."""

    kind: str
    limit: float
    is_max: bool
    machine: str = ""

    def binds(self, machine: str) -> bool:
        return self.kind != "absolute" or self.machine == machine

    def is_kept(self, value: float) -> bool:
        return value <= self.limit if self.is_max else value >= self.limit

    def headroom(self, value: float) -> float:
        """The part of the promise that is left, as a fraction; negative when it is broken."""
        return (1 - value / self.limit) if self.is_max else (value / self.limit - 1)

    def worsen(self, value: float, factor: float) -> float:
        return value * factor if self.is_max else value / factor

    def __str__(self) -> str:
        return f"{'<=' if self.is_max else '>='} {self.limit:g}"


def read_budgets(path: Path) -> dict[str, Promise]:
    """Raises Mistake: there are none, or one that says nothing or is of no known kind."""
    try:
        written = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror} (the folder of benchmarks has it)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Mistake(f"{path}: {error}") from None
    promises = {}
    for name, row in written.items():
        if not isinstance(row, dict) or row.get("kind") not in KINDS:
            raise Mistake(f"{name}: kind is one of {', '.join(KINDS)}")
        if ("min" in row) == ("max" in row):
            raise Mistake(f"{name}: either min or max")
        if (row["kind"] == "absolute") != ("machine" in row):
            raise Mistake(f"{name}: an absolute promise, and no other, names its machine")
        is_max = "max" in row
        promises[name] = Promise(row["kind"], float(row["max" if is_max else "min"]), is_max, row.get("machine", ""))
    return promises


def measure_all(folder: Path, promises: dict[str, Promise], machine: str) -> dict[str, float]:
    """The figures of every benchmark in the folder, by name. A name belongs to one benchmark."""
    figures: dict[str, float] = {}
    for path in sorted(folder.glob("bench_*.py")):
        print(f"… {path.name}", file=sys.stderr, flush=True)
        for name, value in measure_one(load(path), promises, machine).items():
            if name in figures:
                raise ValueError(f"{path.name}: {name} is measured twice")
            figures[name] = value
    return figures


def measure_one(
    measure: Callable[[], dict[str, float]], promises: dict[str, Promise], machine: str
) -> dict[str, float]:
    """A benchmark with a broken promise is run again, and the better figure counts: what the machine did beside it is
    over by then, and what the program got slower by is not."""
    figures = measure()
    for _ in range(AGAIN):
        bound = {name: promises[name] for name in figures if name in promises and promises[name].binds(machine)}
        if all(promise.is_kept(figures[name]) for name, promise in bound.items()):
            break
        again = measure()
        for name, promise in bound.items():
            figures[name] = (min if promise.is_max else max)(figures[name], again[name])
    return figures


def load(path: Path) -> Callable[[], dict[str, float]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    measure: Callable[[], dict[str, float]] = module.measure
    return measure


def read_switch(switch: str, promises: dict[str, Promise]) -> tuple[str, float]:
    """(the figure that is to be made worse, by how much). Raises Mistake: a typing error must not look like green, nor
    be told after minutes."""
    name, _, written = switch.partition(":")
    if name not in promises:
        near = difflib.get_close_matches(name, promises, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise Mistake(f"{SLOWDOWN}={switch}: there is no promise about {name!r}{hint}")
    try:
        factor = float(written or 10)
    except ValueError:
        factor = 0.0
    if not 0 < factor <= MAX_FACTOR:
        raise Mistake(f"{SLOWDOWN}={switch}: {written!r} is no factor; write {name}:3")
    return name, factor


HEAD = ("name", "measured", "promise", "headroom")


def judge(figures: dict[str, float], promises: dict[str, Promise], machine: str) -> tuple[list[Row], list[str]]:
    """(the table's rows, what is wrong)."""
    rows: list[Row] = []
    wrong = []
    for name in sorted(figures.keys() | promises.keys()):
        value, promise = figures.get(name), promises.get(name)
        if value is None:
            wrong.append(f"{name} is promised and nobody measures it")
            rows.append((name, "-", str(promise), "NOT MEASURED"))
        elif promise is None:
            wrong.append(f"{name} is measured and nothing is promised")
            rows.append((name, f"{value:.3f}", "-", "NO PROMISE"))
        elif not promise.binds(machine):
            rows.append((name, f"{value:.3f}", str(promise), f"only on {promise.machine}"))
        else:
            kept = promise.is_kept(value)
            if not kept:
                wrong.append(f"{name}: {value:.3f}, promised {promise}")
            rows.append(
                (name, f"{value:.3f}", str(promise), f"{promise.headroom(value):+.0%}{'' if kept else ' BROKEN'}")
            )
    return rows, wrong


def table(rows: list[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (HEAD, *rows)
    )


def leave_report(rows: list[Row], seconds: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report = {"seconds": round(seconds, 1), "figures": [dict(zip(HEAD, row, strict=True)) for row in rows]}
    (folder / "gate.json").write_text(json.dumps(report, indent=2) + "\n")


def main(folder: Path) -> int:
    began = time.monotonic()
    promises = read_budgets(folder / "budgets.toml")
    switch = os.environ.get(SLOWDOWN, "")
    slower, factor = read_switch(switch, promises) if switch else ("", 1.0)
    machine = os.environ.get(MACHINE) or platform.node()
    figures = measure_all(folder, promises, machine)
    if slower in figures:
        figures[slower] = promises[slower].worsen(figures[slower], factor)
    rows, wrong = judge(figures, promises, machine)
    print(table(rows))
    seconds = time.monotonic() - began
    print(f"took {seconds:.0f} s")
    if not switch:
        leave_report(rows, seconds, folder.parent / "build" / "reports")
    for line in wrong:
        print(f"gate: {line}", file=sys.stderr)
    return 1 if wrong else 0


def run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf/run.sh", description="Benchmarks, held against their promises.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="where the benchmarks are")
    try:
        return main(parser.parse_args(arguments).folder)
    except Mistake as mistake:
        print(f"gate: {mistake}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run())
