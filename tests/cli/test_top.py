"""top: a frame is a function of what was seen, fits its terminal, and is all that a pipe gets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from titan_fast.cli import top
from titan_fast.protocol import messages as msg

NOON = 1_700_000_000.0


def stated(**figures):
    figures = {"commits": 100, "facts": 300, "ended": 1000, "durable": True, "started_at": NOON - 60, **figures}
    tasks = {"PENDING": 7, "RUNNING": 3, "COMPLETED": 990, "FAILED": 0}
    return msg.Stated(
        "compiled", "uvloop", "1.2", 4, "c", workers=2, runs=3, tasks=tasks, facts_per_commit=3.0,
        durability="full", connections=5, loop_lag=0.0012, memory=96 << 20, **figures,
    )  # fmt: skip


def worker(name, state="READY", running=2, slots=4):
    return msg.WorkerRow(name, name, state, ("GPU", "HIGH_MEM"), slots, running, 5, "permanent", NOON)


def run(number, state="RUNNING", done=5, total=10, name="nightly"):
    counts = {"PENDING": total - done, "RUNNING": 0, "COMPLETED": done}
    return msg.RunRow(number, name, state, "", NOON - 90, NOON - 75, 0.0 if state == "RUNNING" else NOON, counts)


def seen(workers=(), runs=(), at=NOON, **figures):
    return top.Seen(stated(**figures), tuple(workers), tuple(runs), at)


def text(view, width=100, height=30, colour=False, ascii_only=False):
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=colour, color_system="256" if colour else None
    )
    console.print(top.frame(view, width, height, ascii_only))
    return console.file.getvalue()


BUSY = seen([worker("alpha"), worker("beta", "LOST", 0)], [run(12), run(11, "FAILED", 10)])


def test_a_frame_tells_of_the_master_the_workers_and_the_runs():
    lines = text(top.View("127.0.0.1:9090", BUSY)).splitlines()
    assert lines[0].startswith("titan-fast 1.2 at 127.0.0.1:9090  epoch 4, durability full  ")
    assert lines[1] == "- tasks/s  - commits/s (3.0 facts each)  loop lag 1.2 ms  memory 96.0 MiB  5 connections"
    assert lines[2] == "tasks: 7 PENDING  3 RUNNING  990 COMPLETED"
    words = [line.split() for line in lines[4:] if line.strip()]
    assert words == [
        ["WORKER", "STATE", "SLOTS", "QUEUED", "CAPABILITIES"],
        ["alpha", "READY", "████████░░░░░░░░", "2/4", "5", "GPU,HIGH_MEM"],
        ["beta", "LOST", "░░░░░░░░░░░░░░░░", "0/4", "5", "GPU,HIGH_MEM"],
        ["RUN", "NAME", "STATE", "TASKS", "TOOK"],
        ["12", "nightly", "RUNNING", "████████░░░░░░░░", "5/10", "1m15s"],
        ["11", "nightly", "FAILED", "████████████████", "10/10", "1m15s"],
    ]


def test_what_is_counted_by_the_second_is_between_two_looks_at_one_master():
    later = seen(at=NOON + 2, ended=1050, commits=120)
    assert "25 tasks/s  10 commits/s" in text(top.View("m", later, BUSY))
    another = seen(at=NOON + 2, ended=3, commits=1, started_at=NOON + 1)
    assert "- tasks/s  - commits/s" in text(top.View("m", another, BUSY))


def test_a_master_that_is_away_and_a_stuck_disk_are_said():
    said = text(top.View("m", seen(durable=False), away=True), width=30)
    assert said.startswith("no answer since")
    assert text(top.View("m", seen(durable=False)), width=30).startswith("the disk is stuck")


def test_on_a_narrow_terminal_names_give_way_and_figures_do_not():
    lines = text(top.View("m", BUSY), width=44).splitlines()
    words = [line.split() for line in lines[4:] if line.strip()]
    assert words[1] == ["alpha", "READY", "2/4"]
    assert words[4] == ["12", "nightly", "RUNNING", "5/10", "1m15s"]


def test_nothing_there_is_said_with_what_to_do():
    said = text(top.View("m", seen()))
    assert "no workers: titan-fast worker" in said
    assert "no runs yet: titan-fast run FILE.yaml" in said


@pytest.mark.parametrize("width", [20, 40, 80, 120, 250])
@pytest.mark.parametrize("height", [6, 10, 24, 60])
@pytest.mark.parametrize(("workers", "runs"), [(0, 0), (1, 1), (3, 100), (200, 3), (200, 100)])
def test_a_frame_fits_its_terminal(width, height, workers, runs):
    full = seen(
        [worker(f"worker-with-a-long-name-{number}") for number in range(workers)],
        [run(number, name="a name that goes on " * 5) for number in range(runs)],
    )
    lines = text(top.View("127.0.0.1:9090", full), width, height).splitlines()
    assert len(lines) <= max(height, 11)
    assert all(len(line) <= width for line in lines)


def test_what_has_no_room_is_counted():
    crowd = seen([worker(f"w{number}") for number in range(50)], [run(number) for number in range(40)])
    lines = text(top.View("m", crowd), height=24).splitlines()
    shown = sum(line.startswith("w") for line in lines)
    assert f"and {50 - shown} more" in "\n".join(lines)
    assert "more" in lines[-1]


def test_without_unicode_bars_are_plain():
    said = text(top.View("m", BUSY), ascii_only=True)
    assert "########........" in said
    assert said.isascii()


def test_names_cannot_move_the_cursor_nor_colour_anything():
    nasty = seen([worker("a\x1b[2Jb")], [run(1, name="[red]x[/red]\x1b[1m\n")])
    said = text(top.View("m", nasty), colour=True)
    assert "\x1b[2J" not in said and "\x1b[1m\n" not in said
    assert "[red]x[/red]" in said


@pytest.mark.parametrize(
    ("part", "whole", "bar"),
    [(0, 0, ".........."), (1, 100, "#........."), (99, 100, "#########."), (4, 4, "##########")],
)
def test_bars_are_empty_and_full_only_when_that_is_true(part, whole, bar):
    assert top._bar(part, whole, 60, True) == bar + " "
    assert top._bar(part, whole, 59, True) == ""


# ---------------------------------------------------------------- the verb


@pytest.fixture
def cluster(master):
    running, older = run(3), run(2, "COMPLETED", 10)
    master.on(msg.Stats, stated())
    master.script(
        msg.List,
        lambda asked: [
            msg.Listed(workers=(worker("alpha"),))
            if asked.what == "workers"
            else msg.Listed(runs=(running,) if asked.state else (run(4, "COMPLETED", 10), running, older))
        ],
    )
    return master


def test_what_is_no_terminal_gets_one_frame(cli, cluster):
    done = cli("top")
    assert "alpha" in done.text
    rows = [line.split()[0] for line in done.text.splitlines() if "nightly" in line]
    assert rows == ["3", "4", "2"], "what is unfinished comes first"
    assert "\x1b" not in done.text
    assert [type(asked) for asked in cluster.asked] == [msg.Stats, msg.List, msg.List, msg.List]


def test_wrong_input_ends_with_2(cli, cluster):
    assert "every 0.1 seconds" in cli("top", "--interval", "0.01", code=2).err
    cli("top", "--interval", "x", code=2)
    assert cluster.asked == []


def test_no_master_ends_with_3(cli, master, monkeypatch):
    monkeypatch.setenv("TITAN_CLIENT_CONNECT_TIMEOUT", "0.1")
    master.stop()
    assert "no master answers" in cli("top", code=3).err
