"""A master killed again and again under load loses nothing it acknowledged, and nothing runs twice for it."""

from __future__ import annotations

import pytest
from figures import Figures
from rounds import play

FAULTS = [
    *["kill_master"] * 14,
    *["kill_master_while_it_starts"] * 2,
    *["kill_master_and_agent"] * 2,
]
"""20 kills: a start that is killed is one more."""
LONG_ROUNDS = 50

COMMAND = "pytest tests/kill/test_master_kill.py"


@pytest.mark.kill
def test_a_killed_master_loses_nothing_it_acknowledged(disk):
    play(disk, Figures("master-kill", COMMAND, "CI"), FAULTS, 1)


@pytest.mark.kill
@pytest.mark.long
def test_a_master_killed_a_thousand_times_loses_nothing_it_acknowledged(disk):
    play(disk, Figures("master-kill", f"{COMMAND} --long", "long"), FAULTS, LONG_ROUNDS)
