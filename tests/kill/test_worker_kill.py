"""Agents killed and frozen, connections cut: what runs goes on under the next agent, what is lost runs again."""

from __future__ import annotations

import pytest
from figures import Figures
from rounds import play

FAULTS = [
    *["kill_agent"] * 8,
    *["freeze_agent"] * 3,
    "freeze_worker",
    *["cut_connection"] * 3,
    "stall_connection",
    "half_open_connection",
    "lose_agent",
    "lose_worker",
    "lose_connection",
]
LONG_ROUNDS = 25

COMMAND = "pytest tests/kill/test_worker_kill.py"


@pytest.mark.kill
def test_killed_frozen_and_cut_agents_lose_nothing(disk):
    play(disk, Figures("agent-kill", COMMAND, "CI"), FAULTS, 1)


@pytest.mark.kill
@pytest.mark.long
def test_agents_killed_frozen_and_cut_five_hundred_times_lose_nothing(disk):
    play(disk, Figures("agent-kill", f"{COMMAND} --long", "long"), FAULTS, LONG_ROUNDS)
