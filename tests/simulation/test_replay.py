"""A long simulation in several goes: its report has the sum, and no hour counts twice."""

from __future__ import annotations

import json

import pytest
import replay
import report
from hour import Hour

NEVER = 1e18


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """Those of the hours that were run: quick ones, and five of them are the long size."""
    ran = []

    def run(seed, sabotage):
        ran.append(seed)
        return Hour(seed, "", 1000, 1100, 30, 2, 1, 6, 9, 1.0)

    monkeypatch.setattr(replay, "run_hour", run)
    monkeypatch.setattr(replay, "LONG", 5)
    for module in (replay, report):
        monkeypatch.setattr(module, "REPORTS", tmp_path)
    return ran


def told():
    return json.loads((replay.REPORTS / "simulation-long.json").read_text())


def test_another_go_begins_behind_the_one_before(seeds):
    assert replay._more(None, 1, deadline=0.0) == 0
    assert replay._more(None, 1, deadline=NEVER) == 0
    assert seeds == [replay.FRESH + number for number in range(5)]
    assert (told()["figures"]["cluster-hours"], told()["figures"]["tasks"]) == (5, 5000)
    assert told()["next"] == replay.FRESH + 5


def test_where_to_begin_can_be_said_and_what_was_counted_is_not_forgotten(seeds):
    replay._more(70, 1, deadline=0.0)
    assert told()["next"] == 71
    replay._more(3, 1, deadline=0.0)
    assert told()["next"] == 71
    replay._more(None, 1, deadline=0.0)
    assert seeds == [70, 3, 71]


def test_a_report_from_before_begins_where_nobody_was(seeds):
    (replay.REPORTS / "simulation-long.json").write_text(json.dumps({"figures": {"cluster-hours": 3, "failures": 1}}))
    replay._more(None, 1, deadline=NEVER)
    assert seeds == [replay.FRESH, replay.FRESH + 1, replay.FRESH + 2]
    assert told()["figures"]["cluster-hours"] == 5


def test_an_interrupted_go_keeps_what_it_counted(seeds, monkeypatch):
    run = replay.run_hour

    def until_somebody_is_tired(seed, sabotage):
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return run(seed, sabotage)

    monkeypatch.setattr(replay, "run_hour", until_somebody_is_tired)
    with pytest.raises(KeyboardInterrupt):
        replay._more(None, 1, deadline=NEVER)
    assert (told()["figures"]["cluster-hours"], told()["next"]) == (2, replay.FRESH + 2)
