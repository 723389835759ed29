"""doctor tells what is wrong with a cluster, and what to do about it."""

from __future__ import annotations

import msgspec
import pytest

from titan_fast.protocol import messages as msg

WELL = msg.Stated(
    "compiled", "uvloop", "1.0", 3, "c", 1.0, 1, 0, {}, 0, 0, 0.0, "disk", 1, 0.001, 1 << 25, disk_free=5 << 30
)


def worker(name, state):
    return msg.WorkerRow(f"id-{name}", name, state, (), 2, 0, 0, "permanent", 1.0)


@pytest.fixture
def checks(cli, master):
    """What doctor finds, by name, for a cluster like this."""

    def look(stats=WELL, workers=(), dead=()):
        master.script(msg.Stats, lambda asked: [stats])
        lists = {"workers": msg.Listed(workers=tuple(workers)), "dead": msg.Listed(tasks=tuple(dead))}
        master.script(msg.List, lambda asked: [lists[asked.what]])
        wrong = stats.refusing or dead or any(row.state == "LOST" for row in workers)
        found = {}
        for code in (1, 0):  # what this machine lacks is a finding, too
            try:
                found = {check["check"]: check for check in cli("doctor", "--json", code=code).document}
            except AssertionError:
                continue
            assert code == 1 or not wrong
            return found
        raise AssertionError("neither 0 nor 1")

    return look


def test_a_master_whose_disk_is_full_is_told_with_its_words(checks):
    assert checks()["state"] == {"check": "state", "ok": True, "detail": "5120 MiB free at the master", "fix": None}
    full = msgspec.structs.replace(WELL, refusing="3 MiB are free in /state, 256 MiB are needed")
    state = checks(full)["state"]
    assert not state["ok"]
    assert state["detail"].startswith("3 MiB are free")
    assert "make room" in state["fix"]


def test_lost_workers_are_named(checks):
    found = checks(workers=[worker("a", "READY"), worker("c", "LOST"), worker("b", "LOST")])
    assert found["workers"]["detail"] == "1 ready with 2 slots"
    assert found["lost"]["detail"] == "silent: b, c"
    assert "lost" not in checks(workers=[worker("a", "READY")])


def test_dead_tasks_are_counted(checks):
    row = msg.TaskRow("7/t", "t", "DEAD", "worker_lost", 0, 5, "", None, 0.0, 0.0, None)
    found = checks(workers=[worker("a", "READY")], dead=[row])
    assert found["dead"]["detail"].endswith(": 1")
    assert found["dead"]["fix"] == "titan-fast dlq ls"
