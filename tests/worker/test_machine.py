"""Which directory a worker takes: its own again after its agent was killed, another worker's never."""

from __future__ import annotations

import subprocess
import sys

import pytest

from titan_fast.config import WorkerSettings
from titan_fast.worker import machine
from titan_fast.worker.keeper import KEEPER_PID

TAKE = """
import sys
from titan_fast.config import WorkerSettings
from titan_fast.worker.machine import ThisMachine
print(ThisMachine(WorkerSettings()).name, flush=True)
sys.stdin.read()
"""


class Unnamed:
    """A process that has taken a directory as an unnamed worker, under the keeper of this number."""

    def __init__(self, home, keeper):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE],
            env={"TITAN_HOME": str(home), KEEPER_PID: keeper},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def take(tmp_path):
    taken = []

    def take(keeper):
        taken.append(Unnamed(tmp_path, keeper))
        return taken[-1]

    yield take
    for each in taken:
        each.kill()


def test_the_next_agent_of_a_keeper_takes_the_directory_of_the_one_before(take):
    first, second = take("101"), take("102")
    assert second.name == f"{first.name}-2"
    first.kill()
    second.kill()
    assert take("102").name == second.name, "its attempts are there, and the first one's are not its business"
    assert take("103").name == first.name


def test_a_directory_in_use_is_left_alone(take):
    first = take("101")
    assert take("101").name == f"{first.name}-2"


def test_a_machine_is_whole(tmp_path):
    """Everything the contract names, and clocks that go on."""
    here = machine.ThisMachine(WorkerSettings(work_dir=str(tmp_path / "work"), name="w"))
    other = here.clocks()
    assert here.name == "w" and len(here.nonce) == 16
    for clock in ("wall", "monotonic", "boot"):
        assert getattr(here.clocks(), clock) >= getattr(other, clock)
    load, memory = here.pulse()
    assert load >= 0 and memory > 0
    here.journal.close()
    here.files.close()
