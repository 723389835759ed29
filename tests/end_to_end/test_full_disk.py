"""The disk of the state is full: nothing new is promised, nothing accepted is lost, and room heals everything."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import titan_fast

HERE = Path(__file__).parent


@functools.cache
def why_no_small_disk():
    """Empty where a test may mount a file system of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, timeout=20
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or "unshare failed"


@pytest.mark.kill
def test_on_a_full_disk_what_was_accepted_is_finished_and_nothing_new_is_promised(tmp_path):
    if why_no_small_disk():
        pytest.skip(f"no file system can be mounted here: {why_no_small_disk()}")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=48m none "$1" && exec "$3" "$4" "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", disk, tmp_path / "home", sys.executable, HERE / "small_disk.py"],
        env={**os.environ, "PYTHONPATH": str(Path(titan_fast.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=180,
    )
    log = tmp_path / "home" / "log"
    assert "no space is left on the disk" in log.read_text(), "the store never met the full disk"
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text()[-3000:] if log.exists() else "")
