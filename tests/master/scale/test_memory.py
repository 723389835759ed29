"""A master may run for ever: its memory does not grow with what ran through it. Old runs are forgotten meanwhile."""

from __future__ import annotations

import pytest
from report import Report

MEBIBYTE = 1 << 20
GROWTH = 1.10
"""Resident memory at the end against that of a warm master, which holds as many finished runs in memory as it ever
does. The cache of its store fills up meanwhile: replies are kept for a day, and a hundred thousand fill it."""


@pytest.mark.kill
@pytest.mark.parametrize(
    ("kind", "members", "warm", "runs"),
    [
        ("arrays", 50, 1200, 1000),
        ("single tasks", 1, 12_500, 2500),
        pytest.param("arrays", 500, 1500, 2000, marks=pytest.mark.long),
        pytest.param("single tasks", 1, 20_000, 200_000, marks=pytest.mark.long),
    ],
)
def test_memory_stays_where_it_was_whatever_runs_through_a_master(load, request, kind, members, warm, runs):
    is_long = request.config.getoption("--long")
    command = f"pytest tests/master/scale/test_memory.py{' --long -m long' if is_long else ''}"
    with (
        Report(f"memory-{kind.replace(' ', '-')}", command, is_long) as report,
        load(members, bytes(1024), TITAN_STORE_KEEP_RUNS="50") as it,
    ):
        it.run(warm)
        before, cached = it.resident, it.cached
        it.run(runs)
        after, filled = it.resident, it.cached - cached
        report.figures |= {
            "runs": runs,
            "tasks": runs * members,
            "resident when warm, MiB": before / MEBIBYTE,
            "resident at the end, MiB": after / MEBIBYTE,
            "of that in the cache of the store, MiB": filled / MEBIBYTE,
            "bytes for each run that is over": (after - before - filled) / runs,
        }
        assert after <= GROWTH * before + filled
