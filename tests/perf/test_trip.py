"""The gate's whole trips: what is held against which limit, in which order, and that each figure has a promise that can
be broken."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

PERF = Path(__file__).parents[2] / "perf"
ECHO = 0.04
LIMIT = {"W1": {"rate": 400_000.0}, "W2": {"p50": ECHO, "p99": 0.07}, "W3": {"rate": 2000.0}, "W4": {"rate": 1000.0}}
MINE = {
    "W1": {"rate": 100_000.0},
    "W2": {"p50": 0.4, "p99": 0.8},
    "W2r": {"p50": 0.12, "p99": 0.2},
    "W3": {"rate": 1500.0},
    "W4": {"rate": 250.0},
    "W5": {"step": 0.08},
    "W5f": {"seconds": 0.02},
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, PERF / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trip(monkeypatch):
    """Its folder of contenders, and what is imported from there, are gone after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield load("bench_trip")
    for name in set(sys.modules) - before:
        if name in ("contract", "instances", "ours"):
            del sys.modules[name]


@pytest.fixture
def asked(trip, monkeypatch):
    """What is measured, in its order, without measuring it: ``trip.rounds`` with answers that are given."""
    order = []

    def measured(answers, prefix):
        def measure(*arguments):
            order.append(f"{prefix}{arguments[-1]}{'!' if arguments[0] == 'relaxed' else ''}")
            return answers[arguments[-1]]

        return measure

    monkeypatch.setattr(trip, "ours", lambda is_relaxed=False: nullcontext("relaxed" if is_relaxed else "durable"))
    monkeypatch.setattr(trip, "measure_limit", measured(LIMIT, "limit "))
    monkeypatch.setattr(trip, "measure_ours", measured(MINE, ""))
    return order


def test_a_figure_is_ours_in_echoes_or_a_part_of_the_limit(trip) -> None:
    assert {name: round(value, 6) for name, value in trip.ratios(LIMIT, MINE).items()} == {
        "trip_p50_vs_echo": 10.0,
        "trip_p99_vs_echo": 20.0,
        "trip_relaxed_p50_vs_echo": 3.0,
        "trip_relaxed_p99_vs_echo": 5.0,
        "chain_step_vs_echo": 2.0,
        "fan_vs_1000_echoes": 0.5,
        "map_vs_bare_pipeline": 0.25,
        "processes_vs_bare_spawn": 0.75,
        "scripts_vs_bare_fork": 0.25,
    }


def test_neighbours_take_turns(trip, asked) -> None:
    list(trip.rounds())
    first, second = asked[:11], asked[11:22]
    assert first[:5] == ["limit W2", "W5f", "W5", "W2r!", "W2"]
    assert second[:5] == ["W2", "W2r!", "W5", "W5f", "limit W2"]
    assert [first[5:7], second[5:7]] == [["limit W1", "W1"], ["W1", "limit W1"]]
    assert len(asked) == 11 * trip.ROUNDS


def test_a_slow_round_is_no_figure(trip, asked, monkeypatch) -> None:
    slow = iter([1.0, 9.0, 1.0, 1.0, 9.0])
    monkeypatch.setattr(trip, "measure_limit", lambda work: LIMIT[work])
    monkeypatch.setattr(
        trip, "measure_ours", lambda _, work: {**MINE[work], "p50": 0.4 * next(slow)} if work == "W2" else MINE[work]
    )
    assert trip.measure()["trip_p50_vs_echo"] == pytest.approx(10.0)


@pytest.mark.parametrize("name", ["bench_trip", "bench_start"])
def test_each_figure_has_a_promise_that_the_slow_down_switch_breaks(trip, asked, monkeypatch, name) -> None:
    """The switch makes ten times worse what is as good as is asked."""
    gate, bench = load("gate"), trip
    if name == "bench_start":
        bench = load(name)
        idle = {"seconds": 0.4, "scheduler": 27.0, "worker": 38.0}
        monkeypatch.setattr(bench, "start", lambda: idle)
        monkeypatch.setattr(bench, "replay", lambda: 0.98)
    promises = gate.read_budgets(PERF / "budgets.toml")
    figures = bench.measure()
    assert figures.keys() <= promises.keys()
    machine = "titan-reference"
    for figure in figures:
        promise = promises[figure]
        at_its_promise = {figure: promise.limit}
        assert not gate.judge(at_its_promise, {figure: promise}, machine)[1]
        at_its_promise[figure] = promise.worsen(promise.limit, 1.01)
        assert gate.judge(at_its_promise, {figure: promise}, machine)[1], figure


def test_the_trips_are_those_of_the_comparison(trip, monkeypatch) -> None:
    """One small round of all of them, for real."""
    monkeypatch.setenv("TITAN_HOME", "mine")
    monkeypatch.setattr(trip, "ROUNDS", 1)
    monkeypatch.setattr(trip, "SCALES", dict.fromkeys(MINE, 0.02))
    ((limit, mine),) = trip.rounds()
    assert limit.keys() == LIMIT.keys() and mine.keys() == MINE.keys()
    assert all(value > 0 for value in trip.ratios(limit, mine).values())
    assert os.environ["TITAN_HOME"] == "mine"
