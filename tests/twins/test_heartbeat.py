"""The heartbeat table: who is judged silent, when, and who never is."""

from __future__ import annotations

import random

import pytest

TWIN = "_heartbeat"
SUSPECT_AFTER, LOST_AFTER = 5.0, 15.0


def outcome(call, *arguments):
    """What a call gave: its value, or its error's type and text. NaN is made comparable."""
    try:
        return repr(call(*arguments))
    except Exception as error:
        return type(error), str(error)


def table_of(twin, rows, now=100.0):
    table = twin.HeartbeatTable()
    assert [table.add(now) for _ in range(rows)] == list(range(rows))
    return table


def scan(table, now):
    return table.scan(now, SUSPECT_AFTER, LOST_AFTER)


def test_a_silent_row_becomes_suspect_then_lost_each_told_once(twin):
    table = table_of(twin, 1)
    assert scan(table, 104.999) == ([], [])
    assert scan(table, 105.0) == ([0], [])
    assert scan(table, 105.0) == scan(table, 114.999) == ([], [])
    assert scan(table, 115.0) == ([], [0])
    assert scan(table, 1000.0) == ([], [])


def test_a_row_that_passes_through_both_is_only_lost(twin):
    table = table_of(twin, 1)
    assert scan(table, 200.0) == ([], [0])


def test_rows_are_told_in_their_order(twin):
    table = table_of(twin, 8)
    for row in (1, 3, 6):
        table.beat(row, 108.0)
    assert scan(table, 113.5) == ([0, 1, 2, 3, 4, 5, 6, 7], [])
    assert scan(table, 115.0) == ([], [0, 2, 4, 5, 7])


def test_a_beat_makes_fresh_again_and_says_that_it_was_needed(twin):
    table = table_of(twin, 2)
    assert table.beat(0, 101.0) is False
    scan(table, 106.0)
    assert table.beat(0, 106.5) is True and table.beat(0, 106.6) is False
    scan(table, 500.0)
    assert table.beat(1, 500.0) is True, "even a lost row"
    assert scan(table, 505.0) == ([1], [])


def test_time_never_runs_backwards(twin):
    table = table_of(twin, 1)
    table.beat(0, 110.0)
    assert table.beat(0, 90.0) is False
    assert table.last(0) == 110.0
    assert scan(table, 50.0) == ([], [])


def test_a_late_beat_still_makes_fresh(twin):
    table = table_of(twin, 1)
    scan(table, 107.0)
    assert table.beat(0, 99.0) is True
    assert table.last(0) == 100.0
    assert scan(table, 107.0) == ([0], []), "heard of, but silent all the same"


def test_a_muted_row_is_not_judged(twin):
    table = table_of(twin, 2)
    table.mute(0, True)
    assert scan(table, 1000.0) == ([], [1])
    table.mute(0, True)
    assert scan(table, 2000.0) == ([], [])


def test_unmuting_is_a_beat_at_the_time_it_was_last_heard(twin):
    table = table_of(twin, 1)
    assert scan(table, 106.0) == ([0], [])
    table.mute(0, True)
    table.mute(0, False)
    assert table.last(0) == 100.0
    assert table.beat(0, 100.0) is False, "it is fresh"
    assert scan(table, 106.0) == ([0], []), "and judged again from its last time on"


def test_a_row_that_was_not_muted_is_not_freshened_by_unmuting(twin):
    table = table_of(twin, 1)
    scan(table, 106.0)
    table.mute(0, False)
    assert scan(table, 106.0) == ([], [])
    assert table.beat(0, 106.0) is True


def test_a_muted_row_may_beat(twin):
    table = table_of(twin, 1)
    scan(table, 106.0)
    table.mute(0, True)
    assert table.beat(0, 107.0) is True and table.last(0) == 107.0
    assert scan(table, 500.0) == ([], []), "and stays muted"


def test_a_closed_connection_is_suspect_at_once_and_lost_in_its_time(twin):
    table = table_of(twin, 1)
    assert table.suspect(0) is True and table.suspect(0) is False
    assert scan(table, 110.0) == ([], []), "whoever called suspect knows"
    assert scan(table, 115.0) == ([], [0])
    assert table.suspect(0) is False


def test_a_connection_that_closes_while_it_is_muted_is_judged_from_then_on(twin):
    table = table_of(twin, 1)
    table.mute(0, True)
    assert table.suspect(0) is True
    assert scan(table, 115.0) == ([], [0])


def test_our_own_lateness_is_nobodys_silence(twin):
    table = table_of(twin, 2)
    table.beat(1, 103.0)
    table.shift(4.5)
    assert (table.last(0), table.last(1)) == (104.5, 107.5)
    assert scan(table, 109.4) == ([], [])
    assert scan(table, 109.5) == ([0], [])
    table.shift(0.0)
    with pytest.raises(ValueError, match=r"times are shifted forward, not by -1\.0"):
        table.shift(-1)


def test_rows_are_used_again_and_start_fresh(twin):
    table = table_of(twin, 4)
    table.mute(1, True)
    scan(table, 106.0)
    for row in (1, 3):
        table.remove(row)
    assert len(table) == 2
    assert scan(table, 1000.0) == ([], [0, 2]), "rows that are not in use are not judged"
    assert sorted(table.add(1000.0) for _ in range(3)) == [1, 3, 4]
    assert len(table) == 5
    assert scan(table, 1005.0) == ([1, 3, 4], [])


@pytest.mark.parametrize("row", [1, 2, -1, 2**70, -(2**70)])
def test_a_row_that_is_not_in_use_is_refused_by_every_call(twin, row):
    table = table_of(twin, 2)
    table.remove(1)
    calls = (
        table.remove, table.suspect, table.last, lambda row: table.beat(row, 1.0), lambda row: table.mute(row, True),
        lambda row: table.mute(row, False),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(KeyError, match=f"row {row} is not in use"):
            call(row)
    assert len(table) == 1


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("add", (float("nan"),)),
        ("add", (float("inf"),)),
        ("add", ("1",)),
        ("add", (10**400,)),
        ("add", (7,)),
        ("beat", ("x", 1.0)),
        ("beat", (9, float("nan"))),
        ("beat", (9, None)),
        ("beat", (0.0, 1.0)),
        ("beat", (False, 700)),
        ("mute", (0, "yes")),
        ("mute", (None, True)),
        ("scan", ("1", 2, 3)),
        ("scan", (300, 5, 15)),
        ("scan", (float("nan"), 5, 15)),
        ("scan", (300, float("nan"), float("inf"))),
        ("scan", (300, float("inf"), float("nan"))),
        ("scan", (100, 0, 0)),
        ("scan", (100, -1, 5)),
        ("shift", (float("nan"),)),
        ("shift", ("1",)),
        ("shift", (-0.5,)),
        ("remove", (1.0,)),
    ],
)
def test_odd_arguments_are_met_the_same_way(both, call, arguments):
    results = []
    for module in both:
        table = table_of(module, 3)
        table.remove(1)
        results.append((outcome(getattr(table, call), *arguments), scan(table, 700.0), len(table)))
    assert results[0] == results[1]


@pytest.mark.parametrize("seed", range(60))
def test_both_twins_judge_the_same(both, seed):
    rng = random.Random(seed)
    tables = [module.HeartbeatTable() for module in both]

    def do(call, *arguments):
        first, second = (outcome(getattr(table, call), *arguments) for table in tables)
        assert first == second, (seed, call, arguments)
        return first

    now, rows = 0.0, 1
    for _ in range(400):
        row = rng.randrange(rows + 1) - rng.choice((0, 0, 0, 1))
        kind = rng.random()
        if kind < 0.15 or rows < 3:
            do("add", now)
            rows += 1
        elif kind < 0.2:
            do("remove", row)
        elif kind < 0.5:
            do("beat", row, now - rng.choice((0.0, 0.0, 3.0)))
        elif kind < 0.6:
            do("mute", row, rng.random() < 0.5)
        elif kind < 0.67:
            do("suspect", row)
        elif kind < 0.7:
            do("shift", rng.random())
        elif kind < 0.75:
            do("last", row)
        else:
            now += rng.random() * 4
            do("scan", now, SUSPECT_AFTER, rng.choice((LOST_AFTER, LOST_AFTER, 3.0)))
        do("__len__")
