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


@pytest.fixture
def large_run(master):
    """A run of 2,500 tasks, on a master that gives at most 1,000 at a time."""
    names = [f"t{number}" for number in range(2500)]
    run = msg.RunRow(7, "large", "RUNNING", "", 1.0, 1.0, 0.0, {"PENDING": 2500, "RUNNING": 0})

    def page(cursor, limit):
        first = int(cursor or 0)
        end = min(first + limit, first + 1000, len(names))
        rows = tuple(
            msg.TaskRow(f"7/{name}", name, "PENDING", "", 0, 0, "", None, 0.0, 0.0, None) for name in names[first:end]
        )
        return rows, str(end) if end < len(names) else ""

    def show(asked):
        tasks, more = page(asked.cursor, asked.limit)
        return [msg.Shown(run, tasks, more)]

    def listed(asked):
        tasks, more = page(asked.cursor, asked.limit)
        return [msg.Listed(tasks=tasks, next=more)]

    master.script(msg.Show, show)
    master.script(msg.List, listed)
    return names


@pytest.mark.parametrize("limit", [3, 1000, 1001, 2499, 2500, 1 << 40])
@pytest.mark.parametrize("verb", [("show", "7"), ("ls", "tasks", "--run", "7")])
def test_as_many_tasks_are_shown_as_were_asked_for(cli, large_run, verb, limit):
    document = cli(*verb, "-n", limit, "--json").document
    tasks = document["tasks"] if verb[0] == "show" else document
    assert [task["id"] for task in tasks] == [f"7/{name}" for name in large_run[:limit]]


def test_what_was_not_shown_begins_at_the_cursor(cli, large_run):
    document = cli("show", "7", "-n", "1200", "--json").document
    more = cli("show", "7", "--cursor", document["next"], "-n", "9999", "--json").document
    assert len(document["tasks"]) + len(more["tasks"]) == len(large_run)
    assert more["next"] is None


def test_a_tree_has_what_does_not_fit_one_page(cli, large_run):
    assert cli("show", "7", "--tree", "-n", "2500").text.count("PENDING") >= 2500
