"""dlq: what is DEAD can be seen, run again or dropped, and nothing else is touched by it."""

from __future__ import annotations

import pytest

from titan_fast.errors import NoSuchRun
from titan_fast.protocol import messages as msg


def row(task):
    return msg.TaskRow(task, task, "DEAD", "worker_lost", 1, 5, "w1", None, 1.0, 2.0, 1.0)


@pytest.fixture
def dead(master):
    """Two pages of them, in two runs."""
    pages = {
        "": msg.Listed(tasks=(row("12/extract"), row("12/square[0]")), next="5"),
        "5": msg.Listed(tasks=(row("12/square[17]"), row("13/extract"))),
    }
    master.script(msg.List, lambda asked: [pages[asked.cursor]] if asked.what == "dead" else [])
    master.script(msg.Retry, lambda asked: [msg.Accepted(asked.run)])
    master.script(msg.Drop, lambda asked: [msg.Accepted(asked.run)])


def test_ls_lists_the_dead_of_all_runs(cli, dead):
    rows = cli("dlq", "ls", "--json").document
    assert rows[0] == {"id": "12/extract", "state": "DEAD", "reason": "worker_lost", "attempts": 5}
    assert [row["id"] for row in rows] == ["12/extract", "12/square[0]", "12/square[17]", "13/extract"]
    assert "13/extract" in cli("dlq", "ls").text


def test_without_any_ls_says_so(cli, master):
    master.on(msg.List, msg.Listed())
    assert cli("dlq", "ls").text == "no task is DEAD\n"
    assert cli("dlq", "ls", "--json").document == []


@pytest.mark.parametrize(
    ("target", "touched"),
    [
        ("12/extract", [(12, "extract", -1)]),
        ("12/square[17]", [(12, "square", 17)]),
        ("12/square", [(12, "square", 0), (12, "square", 17)]),
        ("12", [(12, "extract", -1), (12, "square", 0), (12, "square", 17)]),
    ],
)
@pytest.mark.parametrize(("verb", "cls"), [("retry", msg.Retry), ("drop", msg.Drop)])
def test_retry_and_drop_touch_the_dead_that_are_named(cli, dead, master, verb, cls, target, touched):
    ids = cli("dlq", verb, target, "--json").document["ids"]
    asked = [(each.run, each.task, each.member) for each in master.carried_out if isinstance(each, cls)]
    assert asked == touched
    assert len(ids) == len(touched)


@pytest.mark.parametrize("verb", ["retry", "drop", "show"])
def test_what_is_not_dead_is_left_alone(cli, dead, master, verb):
    master.on(msg.Show, msg.Shown(msg.RunRow(12, "r", "RUNNING", "", 1.0, 1.0, 0.0, {}), ()))
    assert "nothing of 12/train is DEAD" in cli("dlq", verb, "12/train", code=1).err
    assert {type(asked) for asked in master.asked} == {msg.List, msg.Show}


@pytest.mark.parametrize("verb", ["retry", "drop", "show"])
def test_a_run_that_is_not_there_ends_with_4(cli, dead, master, verb):
    master.on(msg.Show, NoSuchRun(999))
    assert "there is no run 999" in cli("dlq", verb, "999/t", code=4).err


def test_show_tells_the_story_and_the_end_of_the_output(cli, dead, master):
    master.on(
        msg.Explain,
        msg.Explained(
            "12/extract", "DEAD", "worker_lost", "five workers were lost with it", "titan-fast dlq retry 12/extract"
        ),
    )
    master.on(msg.Logs, (msg.Logged(fence=4), b"one\ntwo\n"), msg.Logged(final=True, fence=4, offset=8))
    text = cli("dlq", "show", "12/extract").text
    for part in (
        "12/extract DEAD (worker_lost) after 5 attempts",
        "w1",
        "five workers were lost",
        "| two",
        "titan-fast dlq retry 12/extract",
    ):
        assert part in text
    document = cli("dlq", "show", "12/extract", "--json").document
    assert document == {
        "id": "12/extract",
        "state": "DEAD",
        "reason": "worker_lost",
        "attempts": 5,
        "worker": "w1",
        "detail": "five workers were lost with it",
        "fix": "titan-fast dlq retry 12/extract",
        "log": "one\ntwo\n",
    }


def test_show_wants_one_task(cli, dead):
    assert "12/square is 2 DEAD tasks" in cli("dlq", "show", "12/square", code=1).err
