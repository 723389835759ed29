"""Working copies of runs: made once, and never those of a run that is forgotten."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from titan_fast.worker.projects import Projects
from titan_fast.worker.workspace import Workspace


@pytest.fixture
def space(tmp_path):
    space = Workspace(tmp_path / "work")
    space.open()
    yield space
    space.close()


def test_a_run_that_is_forgotten_while_its_copy_is_made_leaves_none_to_the_next_of_its_number(space, monkeypatch):
    """As when another master's history begins, which counts its runs anew."""
    began, go = threading.Event(), threading.Event()
    real = space.working_copy

    def slow(run, project=""):
        place = real(run, project)
        if not began.is_set():
            open(f"{place}/of the old run", "w").close()
            began.set()
            go.wait(20)
        return place

    monkeypatch.setattr(space, "working_copy", slow)

    async def scene():
        projects = Projects(space, lambda frame: None)
        old = asyncio.create_task(projects.prepare(1, ""))
        await asyncio.to_thread(began.wait, 20)
        projects.forget(1)
        new = asyncio.create_task(projects.prepare(1, ""))
        await asyncio.sleep(0)
        go.set()
        assert await old == "the run is forgotten"
        assert await new == ""
        assert projects.is_ready(1)
        assert os.listdir(real(1)) == []

    asyncio.run(scene())


def test_a_forgotten_run_is_gone(space):
    async def scene():
        projects = Projects(space, lambda frame: None)
        assert await projects.prepare(1, "") == ""
        projects.forget(1)
        assert not projects.is_ready(1) and space.runs() == []

    asyncio.run(scene())
