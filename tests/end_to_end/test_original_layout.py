"""Graph files in the layout of the original Titan (jobs, depends_on, requirement, project: true) run unchanged."""

from __future__ import annotations

import pytest

SCRIPT = """\
import os, sys, time
with open(os.environ["SEEN"], "a") as seen:
    seen.write(f"{os.environ['TITAN_TASK'].partition('/')[2]} {os.environ['TITAN_WORKER']} {' '.join(sys.argv[1:])}\\n")
time.sleep(0.05)
"""

DIAMOND = """\
name: "nightly-diamond"
version: "1.0"
project: true

jobs:
  - id: "load"
    type: "run"
    file: "steps/step.py"
  - id: "left_half"
    type: "run"
    file: "steps/step.py"
    depends_on: ["load"]
  - id: "right_half"
    type: "run"
    file: "steps/step.py"
    depends_on: ["load"]
  - id: "merge"
    type: "run"
    file: "steps/step.py"
    depends_on: ["left_half", "right_half"]
"""

FAN_OUT = """\
name: "fan"
version: "1.0"
project: true
jobs:
  - {id: "start", type: "run", file: "steps/step.py", args: "--mode begin"}
""" + "".join(
    f"""\
  - id: "part-{n}"
    type: "run"
    file: "steps/step.py"
    args: "PART_{n}"
    depends_on: ["start"]
"""
    for n in range(1, 5)
)

ROUTED = """\
name: "Route_And_Rank"
project: true  # ships the folder

jobs:
  - id: "Prepare"
    type: "run"
    file: "steps/step.py"
    requirement: "GENERAL"
    priority: 1
  - id: "Train"
    type: "run"
    file: "steps/step.py"
    depends_on: ["Prepare"]
    requirement: "GPU"
    priority: 10
  - id: "Later"
    type: "run"
    file: "steps/step.py"
    depends_on:
      - "Train"
    delay: 1
  - id: "Sticky"
    type: "run"
    file: "steps/step.py"
    depends_on: ["Train"]
    affinity: true
"""


@pytest.fixture
def run(cluster, ask, tmp_path):
    """Runs a file of that layout; returns {task: (worker, arguments)} in the order they ran."""
    cluster.start_worker("plain", "--slots", "2")
    cluster.start_worker("gpu", "--slots", "2", "--caps", "GPU")
    cluster.wait_for_workers(2)
    project = tmp_path / "project"
    (project / "steps").mkdir(parents=True)
    (project / "steps" / "step.py").write_text(SCRIPT)

    def run(text):
        seen = tmp_path / "seen"
        seen.unlink(missing_ok=True)
        # The one thing the original has no field for: where this test wants to read.
        (project / "flow.yaml").write_text(text + f"env: {{SEEN: {seen}}}\n")
        ask("run", project / "flow.yaml")
        lines = [line.split(" ", 2) for line in seen.read_text().splitlines()]
        return {task: (worker, arguments) for task, worker, arguments in lines}

    return run


@pytest.mark.smoke
def test_a_diamond(run):
    order = list(run(DIAMOND))
    assert order[0] == "load"
    assert order[-1] == "merge"
    assert set(order) == {"load", "left_half", "right_half", "merge"}


def test_a_fan_out_with_arguments(run):
    seen = run(FAN_OUT)
    assert seen["start"][1] == "--mode begin"
    assert [seen[f"part-{n}"][1] for n in range(1, 5)] == [f"PART_{n}" for n in range(1, 5)]


def test_routing_priorities_delay_and_affinity(run, ask):
    seen = run(ROUTED)
    assert seen["Train"][0] == "gpu"
    assert seen["Sticky"][0] == "gpu", "affinity: the worker of its parent"
    times = {task["name"]: task for task in ask.json("show", "last")["tasks"]}
    assert times["Later"]["started_at"] > times["Sticky"]["finished_at"], "delayed by a second"


def test_what_is_not_there_yet_is_refused_by_name(cli, tmp_path):
    (tmp_path / "s.py").write_text("")
    (tmp_path / "service.yaml").write_text(
        'name: s\nproject: true\njobs:\n  - {id: web, type: "service", file: s.py, port: 9000}\n'
    )
    done = cli("lint", "service.yaml", code=2)
    assert "service.yaml:4: task 'web'" in done.stderr
    assert "not supported yet" in done.stderr
