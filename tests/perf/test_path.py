"""The stamps of many calls become one way: medians, in their order, without what is in few calls' way."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PERF = Path(__file__).parents[2] / "perf"


@pytest.fixture
def path():
    spec = importlib.util.spec_from_file_location("path", PERF / "path.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_trip_is_from_its_beginning_to_its_end(path) -> None:
    stamps = [(1, "stray"), (5, "begin"), (7, "read"), (9, "end"), (11, "stray"), (15, "begin"), (19, "end")]
    assert list(path.trips(stamps, "begin", "end")) == [
        [(5, "begin"), (7, "read"), (9, "end")],
        [(15, "begin"), (19, "end")],
    ]


def test_without_an_end_it_is_to_the_next_beginning(path) -> None:
    stamps = [(1, "hears"), (2, "writes"), (5, "hears"), (6, "writes"), (9, "hears")]
    assert list(path.trips(stamps, "hears")) == [[(1, "hears"), (2, "writes")], [(5, "hears"), (6, "writes")]]


def test_a_step_is_the_median_of_those_that_have_it(path) -> None:
    trips = [
        [(0, "begin"), (1_000, "read"), (2_000, "read"), (9_000, "end")],
        [(100_000, "begin"), (103_000, "read"), (104_000, "rare"), (107_000, "end")],
        [(200_000, "begin"), (202_000, "read"), (208_000, "end")],
    ]
    assert path.steps(trips) == [("begin", 0.0), ("read", 2.0), ("end", 8.0)]


def test_every_point_is_a_function_of_the_product(path) -> None:
    spec = importlib.util.spec_from_file_location("stamps", PERF / "stamps" / "sitecustomize.py")
    stamps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stamps)
    for points in stamps.POINTS.values():
        for module, cls, name, *_ in points:
            owner = getattr(importlib.import_module(f"titan_fast.{module}"), cls)
            assert callable(getattr(owner, name)), f"{module}.{cls}.{name}"
