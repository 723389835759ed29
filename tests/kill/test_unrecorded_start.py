"""The narrowest moment: the agent is killed when it has started a process and before it could write that down."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from chaos import Chaos
from history import Began
from load import Node, to_graph

AGENT = """
import os, signal, sys
from titan_fast.cli import main
from titan_fast.worker.executors import spawn

start = spawn.spawn

def start_and_die(*arguments):
    started = start(*arguments)
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return started  # the next agent
    os.kill(os.getpid(), signal.SIGKILL)

spawn.spawn = start_and_die
sys.argv[0] = "titan-fast"
sys.exit(main())
"""
"""The agent as it is, but that the first process it starts is the last thing it does."""


@pytest.fixture
def chaos(disk):
    with Chaos(disk, 1, workers=0) as chaos:
        yield chaos


@pytest.mark.kill
@pytest.mark.parametrize("seconds", [0.0, 2.0], ids=["has ended meanwhile", "still runs"])
def test_a_task_whose_start_nobody_noted_is_not_started_again(chaos, disk, seconds):
    mark = disk / "killed"
    keeper = find_spec("titan_fast.worker.keeper").origin
    token = chaos.home / "tokens" / f"{chaos.address.replace(':', '_')}.worker"
    agent = [sys.executable, "-P", "-c", AGENT.format(mark=str(mark)), "agent"]
    options = ["--name", "w1", "--slots", "1", "--master", chaos.address, "--token-file", str(token)]
    chaos.workers["w1"] = subprocess.Popen(
        [sys.executable, "-P", keeper, "--", *agent, *options], env=chaos.environ, start_new_session=True
    )
    with chaos.client() as client:
        run = client.submit(to_graph({"t": Node(seconds)}, "k", chaos.history))
        run.wait(30)
        (row,) = run.tasks()
    assert mark.exists(), "the agent was not killed, so nothing was shown"
    began = [event.fence for event in chaos.history.read() if isinstance(event, Began)]
    assert len(began) == 1, f"started {len(began)} times: {began}"
    assert (row.attempt, row.exit_code) == (1, 0)
