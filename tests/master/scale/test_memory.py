"""A master may run for ever: its memory does not grow with what ran through it. Old runs are forgotten meanwhile."""

from __future__ import annotations

import pytest
from report import Report

MEBIBYTE = 1 << 20
GROWTH = 1.10
"""Resident memory at the end against that of a warm master: it holds as many finished runs in memory as it ever does,
and the cache of its store is full."""


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
        before = it.resident
        it.run(runs)
        after = it.resident
        report.figures |= {
            "runs": runs,
            "tasks": runs * members,
            "resident when warm, MiB": before / MEBIBYTE,
            "resident at the end, MiB": after / MEBIBYTE,
            "bytes for each run that is over": (after - before) / runs,
        }
        assert after <= GROWTH * before
