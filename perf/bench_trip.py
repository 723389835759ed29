"""Whole trips, from a client through master and agent to a process and back, against what the machine does by itself.

The works are those of `peers/`, done the same way and checked the same way; the limits run in processes of their own.
A round measures a limit and what is held against it as neighbours, and who goes first alternates; the figures are
medians of the rounds' ratios. An echo is one hop there and back between two processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
ROUNDS = 5
AGAINST = {"W2": ("W2", "W2r", "W5", "W5f"), "W1": ("W1",), "W3": ("W3",), "W4": ("W4",)}
"""By the work of a limit: what is held against it."""
SCALES = {"W3": 0.5}
"""Parts of a work's size; others have all of it."""

Told = dict[str, dict[str, float]]
"""Figures by work, as a contender tells them."""


def ratios(limit: Told, mine: Told) -> dict[str, float]:
    """What the gate holds: times of ours in echoes, rates as a part of the limit's."""
    echo = limit["W2"]["p50"]
    return {
        "trip_p50_vs_echo": mine["W2"]["p50"] / echo,
        "trip_p99_vs_echo": mine["W2"]["p99"] / echo,
        "trip_relaxed_p50_vs_echo": mine["W2r"]["p50"] / echo,
        "trip_relaxed_p99_vs_echo": mine["W2r"]["p99"] / echo,
        "chain_step_vs_echo": mine["W5"]["step"] / echo,
        "fan_vs_1000_echoes": mine["W5f"]["seconds"] / (1000 * echo / 1e3),
        "map_vs_bare_pipeline": mine["W1"]["rate"] / limit["W1"]["rate"],
        "processes_vs_bare_spawn": mine["W3"]["rate"] / limit["W3"]["rate"],
        "scripts_vs_bare_fork": mine["W4"]["rate"] / limit["W4"]["rate"],
    }


def measure() -> dict[str, float]:
    found = [ratios(limit, mine) for limit, mine in rounds()]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def rounds() -> Iterator[tuple[Told, Told]]:
    """(what the limits say, what ours says) of each."""
    with ExitStack() as stack:
        durable, relaxed = stack.enter_context(ours()), stack.enter_context(ours(is_relaxed=True))
        for number in range(ROUNDS):
            limit: Told = {}
            mine: Told = {}
            for neighbour, works in AGAINST.items():
                if number % 2 == 0:
                    limit[neighbour] = measure_limit(neighbour)
                for work in works if number % 2 else reversed(works):
                    mine[work] = measure_ours(relaxed if work == "W2r" else durable, work)
                if number % 2:
                    limit[neighbour] = measure_limit(neighbour)
            yield limit, mine


def measure_limit(work: str) -> dict[str, float]:
    argv = [sys.executable, str(PEERS / "limits.py"), "--work", work, "--scale", str(SCALES.get(work, 1.0))]
    figures: dict[str, float] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)["figures"]
    return figures


def measure_ours(contender: Any, work: str) -> dict[str, float]:
    figures: dict[str, float] = parts()[0].WORKS[work].measure(contender, SCALES.get(work, 1.0))
    return figures


@contextmanager
def ours(is_relaxed: bool = False) -> Iterator[Any]:
    """The contender, with a master and a worker of two slots."""
    home = os.environ.get("TITAN_HOME")
    with tempfile.TemporaryDirectory(prefix="trip-") as folder:
        contender = parts()[1].Ours(Path(folder))
        try:
            if is_relaxed:
                contender.relax()
            contender.start()
            contender.first()
            yield contender
        finally:
            contender.stop()
            restore("TITAN_HOME", home)


def restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def parts() -> tuple[Any, Any]:
    """The modules of the comparison, which stand in a folder of their own."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    import contract
    import ours

    return contract, ours


def main() -> None:
    found = list(rounds())
    for name in ratios(*found[0]):
        each = [ratios(limit, mine)[name] for limit, mine in found]
        print(f"{name:26} {statistics.median(each):7.3f}   {'  '.join(f'{value:.3f}' for value in each)}")


if __name__ == "__main__":
    main()
