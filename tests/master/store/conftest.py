"""Every store there is, each with a way to open again what it committed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from titan_fast.master.store.base import Store
from titan_fast.master.store.memory import MemoryStore
from titan_fast.master.store.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).parent))


class Clock:
    """A wall clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "disk", "os"])
def another(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Store]]:
    """Makes stores of one content: the first call a new one, each later call one that finds what was committed."""
    made: list[Store] = []

    def make() -> Store:
        if request.param == "memory":
            made.append(MemoryStore(of=made[-1] if made else None, clock=clock))
        else:
            made.append(SqliteStore(tmp_path / "state", request.param, clock=clock))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(another: Callable[[], Store]) -> Store:
    """A new one, opened: epoch 1."""
    store = another()
    assert store.open().epoch == 1
    return store
