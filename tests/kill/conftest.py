"""Real processes, a real disk, and a round of faults in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # what these tests share: history, checker, load, chaos, figures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system that writes to a disk: one in memory would make every promise for nothing."""
    if _is_on_disk(tmp_path):
        return tmp_path
    folder = ROOT / "build" / "kill" / tmp_path.name
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_on_disk(folder):
        pytest.fail(f"{tmp_path} and {folder} are both in memory; name a folder on a disk with --basetemp")
    return folder


def _is_on_disk(folder):
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[str(at)] for at in (folder, *folder.parents) if str(at) in mounts), "") not in (
        "tmpfs",
        "ramfs",
    )


@pytest.fixture(autouse=True)
def nothing_left():
    """What a test starts is gone when it ends."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"
