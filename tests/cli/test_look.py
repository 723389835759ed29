"""ls and show refuse what makes no sense before anybody is asked, and list what was asked for."""

from __future__ import annotations

import pytest

from titan_fast.cli.look import STATES
from titan_fast.protocol import messages as msg
from titan_fast.scheduler.lifecycle import PUBLIC_STATES


@pytest.mark.parametrize("what", list(STATES))
def test_a_state_that_is_none_ends_with_2_and_the_states(cli, master, what):
    said = cli("ls", what, "--state", "nonsense", code=2).err
    assert ", ".join(STATES[what]) in said
    assert master.asked == []


def test_tasks_have_the_states_of_the_scheduler():
    assert set(STATES["tasks"]) == set(PUBLIC_STATES)


def test_ls_workers_lists_those_in_a_state(cli, master):
    rows = tuple(
        msg.WorkerRow(f"id-{state}", state.lower(), state, (), 1, 0, 0, "permanent", 1.0) for state in ("READY", "LOST")
    )
    master.on(msg.List, msg.Listed(workers=rows))
    assert [row["name"] for row in cli("ls", "workers", "--state", "lost", "--json").document] == ["lost"]
    assert len(cli("ls", "workers", "--json").document) == 2


def test_a_cursor_that_is_none_ends_with_2(cli, master):
    assert "'next' is no cursor" in cli("show", "1", "--cursor", "next", code=2).err
    assert master.asked == []
