"""The parts of `tree`: who is signalled, who holds a file, who is reached by a group."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest
from executor_stage import DEADLINE, needs_proc, reap_orphans

from titan_fast.worker.executors import tree


@needs_proc
def test_a_process_of_another_start_time_is_not_signalled(surroundings):
    child = subprocess.Popen(["sleep", "1000"])
    try:
        start = tree.start_of(child.pid)
        assert start > 0
        assert not tree.send(tree.Member(child.pid, start + 1), signal.SIGKILL)
        assert child.poll() is None
        assert tree.send(tree.Member(child.pid, start), signal.SIGKILL)
        assert child.wait(DEADLINE) == -signal.SIGKILL
        assert not tree.send(tree.Member(child.pid, start), signal.SIGKILL)
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_is_held(tmp_path):
    path = tmp_path / "file"
    path.touch()
    watched = os.open(path, os.O_RDONLY)
    reader = os.open(path, os.O_RDONLY)
    try:
        assert not tree.is_held(watched)
        writer = os.open(path, os.O_WRONLY)
        assert tree.is_held(watched)
        os.close(writer)
        assert not tree.is_held(watched)
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # the lease is not kept
    finally:
        os.close(watched)
        os.close(reader)


@needs_proc
def test_a_group_is_reached_after_its_leader_is_gone(tmp_path):
    leader = subprocess.Popen(["sh", "-c", "sleep 1000 & exit 0"], start_new_session=True, stdout=subprocess.DEVNULL)
    pidfd = os.pidfd_open(leader.pid)
    try:
        leader.wait(DEADLINE)
        assert tree.send_group(pidfd, leader.pid, 0)
        assert tree.send_group(pidfd, leader.pid, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        while tree.send_group(pidfd, leader.pid, 0):
            reap_orphans()
            assert time.monotonic() < deadline
            select.select([], [], [], 0.001)
    finally:
        os.close(pidfd)
