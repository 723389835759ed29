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


@needs_proc
def test_term_comes_once_to_each_in_the_group_of_a_living_leader_or_out_of_it(tmp_path):
    code = """
import os, signal, sys
# One after the other: a handler could be interrupted by the next one.
asked = signal.SIGTERM, signal.SIGCONT
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
leaves = os.fork() == 0
if leaves:
    os.setsid()
os.write(1, b"up\\n")
while signal.sigwait(asked) == signal.SIGTERM:
    os.write(1, b"asked\\n")
os.write(1, b"told to go on\\n")
"""
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    spare = set()
    try:
        assert [leader.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
        ((*members,),) = tree.scan([tree.Tree(leader.pid, tree.boot_time() - 1)])
        assert len(members) == 2
        tree.ask_to_end(leader.pid, -1, members, spare)
        assert sorted(leader.stdout.read().splitlines()) == [b"asked"] * 2 + [b"told to go on"] * 2
        assert not spare
        deadline = time.monotonic() + DEADLINE
        while any(tree.start_of(member.pid) == member.start for member in members):
            assert time.monotonic() < deadline
            select.select([], [], [], 0.001)
    finally:
        leader.kill()
        leader.wait()
        leader.stdout.close()
