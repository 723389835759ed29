"""`titan-fast run` of a large graph from a shell ends well while everything around it is killed."""

from __future__ import annotations

import random
import re
import subprocess
import time

import pytest
from chaos import Chaos
from figures import Figures
from history import Acknowledged, Asked, now
from load import Node, lattice, shapes, to_yaml

from titan_fast.sdk.local import PROGRAM

TASKS, LONG_TASKS = 2_000, 20_000
ROUND = [
    "kill_master",
    "kill_agent",
    "kill_worker",
    "kill_keeper",
    "kill_master_while_it_starts",
    "kill_master_and_agent",
    "kill_master_and_worker",
    "lose_worker",
    "cut_connection",
]
"""Again and again, in an order by chance, until the graph is done."""
ARRAYS = 10
AT_LEAST = 6
"""Faults, or the graph was too short to prove anything."""
COMMAND = "pytest tests/kill/test_run_command.py"


def large(tasks):
    """Half of it named tasks in layers, half of it arrays between them, and one last task that needs every end."""
    rng = random.Random(tasks)
    width = 50
    plan = lattice(rng, layers=tasks // 2 // width, width=width, seconds=0.1)
    ends = [name for name in plan if name.startswith(f"n{tasks // 2 // width - 1}_")]
    left = tasks - len(plan) - 1
    for number in range(ARRAYS):
        members = left // ARRAYS + (left % ARRAYS if not number else 0)
        plan[f"array{number}"] = Node(rng.uniform(0, 0.1), (f"n{number}_0",), members)
    plan["last"] = Node(0, (*ends, *(f"array{number}" for number in range(ARRAYS))))
    return plan


def run_while_everything_is_killed(folder, tasks, figures):
    plan = large(tasks)
    with Chaos(folder, seed=tasks) as chaos:
        file = folder / "large.yaml"
        file.write_text(to_yaml(plan, "large", chaos.history))
        chaos.history.note(Asked(now(), "large", shapes(plan)))
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            shell = subprocess.Popen(
                [*PROGRAM, "run", str(file)],
                env={**chaos.environ, "TITAN_ADDR": chaos.address, "NO_COLOR": "1"},
                stdout=out,
                stderr=err,
            )
            try:
                faults = break_things_until_it_ends(shell, chaos)
                quiet = time.monotonic()
                code = shell.wait(60)
            finally:
                shell.kill()
                shell.wait()
        said = (folder / "out").read_text() + (folder / "err").read_text()
        submitted = re.search(r"run (\d+) submitted", said)
        assert submitted, said
        chaos.history.note(Acknowledged(now(), "large", int(submitted[1])))
        verdict = chaos.finish()
        figures.add(verdict, time.monotonic() - quiet)
    print(f"{faults} faults: {verdict.counts} excused: {verdict.excuses}")
    assert code == 0, said
    assert "COMPLETED" in said
    assert "Traceback" not in said
    assert not verdict.broken, f"{folder / 'history'}:\n{verdict.story()}"
    assert faults >= AT_LEAST


def break_things_until_it_ends(shell, chaos):
    faults = 0
    chaos.between = 40_000
    while True:
        for fault in chaos.rng.sample(ROUND, len(ROUND)):
            chaos.let_work_go_on(lambda: shell.poll() is not None)
            if shell.poll() is not None:
                return faults
            getattr(chaos, fault)()
            faults += 1


@pytest.mark.kill
def test_a_large_graph_ends_well_while_everything_is_killed(disk):
    with Figures("run-command", COMMAND, "CI") as figures:
        run_while_everything_is_killed(disk, TASKS, figures)


def test_the_graph_has_the_size_it_says():
    assert sum(node.count or 1 for node in large(TASKS).values()) == TASKS


@pytest.mark.kill
@pytest.mark.long
def test_a_very_large_graph_ends_well_while_everything_is_killed(disk):
    with Figures("run-command", f"{COMMAND} --long", "long") as figures:
        run_while_everything_is_killed(disk, LONG_TASKS, figures)
