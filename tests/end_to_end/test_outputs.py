"""A long output: the master keeps its beginning and its end, the worker the rest while it lives."""

from __future__ import annotations

import pytest

from titan_fast.testing.cluster import until

LINES = 600_000
WHOLE = "".join(f"{number}\n" for number in range(1, LINES + 1))


@pytest.fixture
def run(cluster, ask):
    """A command that has written four megabytes."""
    cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    document = ask.json("submit", "--wait", "--", "seq", "1", LINES)
    assert document["state"] == "COMPLETED"
    return document["run"]


def test_the_middle_comes_from_the_worker_and_when_that_is_gone_its_absence_is_told(cluster, ask, run):
    assert ask("logs", run).stdout == WHOLE
    document = ask.json("logs", run)
    assert (document["output"], document["gaps"], document["next"]) == (WHOLE, [], None)
    text, cursor = "", None
    while cursor is not None or not text:
        page = ask.json("logs", run, "--limit", 1_500_000, *(("--cursor", cursor) if cursor else ()))
        text, cursor = text + page["output"], page["next"]
    assert text == WHOLE
    assert ask("logs", run, "--tail", "2").stdout == f"{LINES - 1}\n{LINES}\n"

    cluster.workers["w1"].terminate()
    cluster.workers["w1"].wait()
    document = ask.json("logs", run)
    (gap,) = document["gaps"]
    assert gap["offset"] == 1 << 20
    mark = f"\n[… {gap['bytes']} bytes not kept …]\n"
    end = gap["offset"] + gap["bytes"]
    assert document["output"] == WHOLE[: gap["offset"]] + mark + WHOLE[end:]
    assert ask("logs", run).stdout == document["output"]


def test_who_follows_a_task_that_writes_much_at_once_misses_nothing(cluster, ask, tmp_path):
    cluster.start_worker("w1", "--slots", "1")
    cluster.wait_for_workers(1)
    go_on = tmp_path / "go on"
    command = f"seq 1 {LINES}; while [ ! -e '{go_on}' ]; do sleep 0.05; done; echo end"
    run = ask.json("submit", "--name", "seq", "--", "sh", "-c", command)["run"]
    until(lambda: ask("logs", run).stdout.endswith(f"{LINES}\n"), "it has written")
    assert ask("logs", run).stdout == WHOLE, "while it runs"
    follower = ask.start("logs", "-f", run)
    go_on.touch()
    out, _ = follower.communicate(timeout=60)
    assert out == WHOLE + "end\n"
