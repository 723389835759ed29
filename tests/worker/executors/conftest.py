"""One suite over every executor: how attempts start, end, are ended, and that nothing is ever left behind.

Each executor is played on asyncio, on uvloop, and without the kernel's help (no pidfd, no /proc). This process is a
subreaper meanwhile, so whatever escapes an attempt turns up as a child of it and fails the test.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

from titan_fast.worker.executors import spawn as spawn_module
from titan_fast.worker.executors import tree

sys.path.insert(0, str(Path(__file__).parent))

from executor_stage import EXECUTORS, SURROUNDINGS, Stage, living, open_files, reap_orphans


@pytest.fixture(params=SURROUNDINGS)
def surroundings(request, monkeypatch):
    if request.param == "portable":
        monkeypatch.setattr(spawn_module, "_HAS_PIDFD", False)
        monkeypatch.setattr(tree, "_HAS_PROC", False)
        real = spawn_module.spawn

        def without_pidfd(*args):
            pid, pidfd = real(*args)
            if pidfd >= 0:
                os.close(pidfd)
            return pid, -1

        monkeypatch.setattr(spawn_module, "spawn", without_pidfd)
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    return request.param


@pytest.fixture(scope="module")
def uvloop():
    """With what it opens once and keeps for ever."""
    module = pytest.importorskip("uvloop")
    module.run(asyncio.sleep(0))
    return module


@pytest.fixture(autouse=True, scope="module")
def nothing_is_older():
    """What the tests of other files made is collected once, and not looked at again for each of ours."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left(uvloop):
    """No process, no descriptor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    gc.collect()  # what other tests left to it would be closed in the middle of ours
    gc.collect()  # loops of earlier tests, whose sockets would go in the middle of this one
    before = open_files()
    yield
    reap_orphans()
    left = living(are_templates_left=True)
    shown = [(child.pid, child.cmdline()) for child in left]
    for child in left:
        child.kill()
    reap_orphans()
    assert not shown, "processes were left behind"
    assert open_files() == before


@pytest.fixture(params=sorted(EXECUTORS.keys() - {"functions"}))
def stage(request, surroundings, uvloop, tmp_path):
    stage = Stage(EXECUTORS[request.param], tmp_path, request.param == "warm")
    stage.runner = uvloop.run if surroundings == "uvloop" else asyncio.run
    return stage
