"""What is noted of attempts, and how the executor of a next agent goes on with those that an earlier one left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import msgspec
import psutil
import pytest
from executor_stage import DEADLINE, DETACHED, OWN_GROUP, PATH, living

from titan_fast.ids import Ending
from titan_fast.worker.executors import tree
from titan_fast.worker.executors.base import Exit, Left
from titan_fast.worker.executors.spawn import SpawnExecutor
from titan_fast.worker.exits import Told
from titan_fast.worker.journal import Exited, Journal, JournalFile, Stopping

# ---------------------------------------------------------------- what the next agent needs


class Notes:
    """A recorder that remembers."""

    def __init__(self):
        self.of = {}

    def spawn_note(self, fence):
        return None

    def spawned(self, fence, pid, at):
        self.of.setdefault(fence, []).append(("spawned", pid, psutil.pid_exists(pid)))

    def stopping(self, fence, ending):
        self.of.setdefault(fence, []).append(("stopping", ending))

    def exited(self, exits):
        for fence, how in exits:
            pid = self.of[fence][0][1]
            is_there = psutil.pid_exists(pid)
            self.of[fence].append(("exited", how.how, how.code, is_there))


def test_what_happens_is_noted_before_it_can_be_lost(stage):
    notes, make = Notes(), stage.make
    stage.make = lambda observer: make(observer, recorder=notes)
    keeps_number = hasattr(os, "waitid")

    async def scene():
        await stage.run("exit 3", fence=1)
        await stage.run("exec sleep 600", fence=2, timeout=0.1, grace=5)
        stage.start(3, "trap '' TERM; echo on; while :; do sleep 1; done")
        await stage.shows(b"on", 3)
        stage.kill(3, 0.05)
        await stage.ended(3)
        await stage.run("no-such-program; exec /no/such/program", fence=4)
        steps = {fence: [(step[0], *step[2:]) for step in found] for fence, found in notes.of.items()}
        assert steps[1] == [("spawned", True), ("exited", 3, keeps_number)]
        term = ("exited", signal.SIGTERM, keeps_number)
        assert steps[2] == [("spawned", True), ("stopping",), term]
        assert notes.of[2][1] == ("stopping", Ending.TIMEOUT)
        assert notes.of[3][1] == ("stopping", Ending.KILLED)
        assert steps[3][2] == ("exited", signal.SIGKILL, keeps_number)
        assert [step[0] for step in notes.of[4]] == ["spawned", "exited"]

    stage.play(scene)


# ---------------------------------------------------------------- adopting

EARLIER = """
import asyncio, msgspec, sys
from pathlib import Path
from titan_fast.worker.executors.base import Attempt, now
from titan_fast.worker.executors.warm import WarmExecutor
from titan_fast.worker.executors.spawn import SpawnExecutor
from titan_fast.worker.journal import Begun, Journal, JournalFile

class Observer:
    def attempt_started(self, fence, pid, started):
        if fence:
            print(fence, pid, flush=True)
    def attempt_ended(self, outcome):
        if outcome.fence:
            print("over", outcome.fence, flush=True)

async def main():
    journal = Journal(JournalFile(Path(sys.argv[1])), "boot")
    is_warm = sys.argv[2] == "warm"
    if is_warm:
        executor = WarmExecutor(Observer(), env={"PATH": sys.argv[3]}, recorder=journal)
        while not executor.is_warm() or executor._live:
            first = msgspec.json.decode(sys.argv[4], type=Attempt)
            executor.start(first) if not executor._templates else None
            await asyncio.sleep(0.002)
    else:
        executor = SpawnExecutor(Observer(), recorder=journal)
    for line in sys.stdin:
        attempt = msgspec.json.decode(line, type=Attempt)
        timeout, grace = attempt.timeout, attempt.grace
        journal.begun(Begun(1, 0, 0, 0, 1, attempt.fence, attempt.task, timeout, grace, now()))
        executor.start(attempt)
        assert not is_warm or attempt.fence in executor._asked
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Kept:
    """What the keeper tells, played by this process: whatever an earlier agent left is its child."""

    def __init__(self):
        self.parent = os.getpid()
        self.taken_count = 0
        found = {child.pid: tree.find(child.pid) for child in psutil.Process().children()}
        self._starts = {pid: process.start for pid, process in found.items() if process is not None}
        self._timer = None

    def backlog(self):
        return self._reap()

    def listen(self, told):
        self._timer = asyncio.get_running_loop().call_later(0.002, self.listen, told)
        if news := self._reap():
            told(news)

    def taken(self, count):
        self.taken_count += count

    def close(self):
        if self._timer is not None:
            self._timer.cancel()

    def _reap(self):
        told = []
        for pid, start in list(self._starts.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                how = os.CLD_EXITED if code >= 0 else os.CLD_KILLED
                told.append(Told(pid, start, Exit(how, abs(code), time.monotonic())))
                del self._starts[pid]
        return told


class Inheritance:
    """An earlier agent that was killed, what it left, and an executor that goes on with it."""

    def __init__(self, stage, attempts, until=lambda pids: True, change=lambda past: None):
        """``until``: how long it lives, given the processes by fence; ``change``: what its journal did not get."""
        journal = stage.folder / "journal"
        attempts = [stage.played(attempt) for attempt in attempts]
        first = msgspec.json.encode(stage.played(stage.attempt(0, "sh", "-c", "exit 0"))).decode()
        way = "warm" if stage.is_warm else "spawn"
        with subprocess.Popen(
            [sys.executable, "-c", EARLIER, str(journal), way, PATH, first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as agent:
            agent.stdin.write(b"".join(msgspec.json.encode(attempt) + b"\n" for attempt in attempts))
            agent.stdin.close()
            self.pids = dict(tuple(map(int, agent.stdout.readline().split())) for _ in attempts)
            deadline = time.monotonic() + DEADLINE
            while not until(self.pids):
                assert time.monotonic() < deadline
                select.select([], [], [], 0.002)
            agent.kill()
        reading = Journal(JournalFile(journal), "boot")
        reading.close()
        past = reading.past
        change(past)
        by_fence = {attempt.fence: attempt for attempt in attempts}
        self.left = [
            Left(
                msgspec.structs.replace(by_fence[fence], argv=(), cwd=""),
                each.begun.at,
                each.spawned.pid if each.spawned else 0,
                each.spawned.at if each.spawned else 0.0,
                each.stopping.ending if each.stopping else None,
                each.exited.exit if each.exited else None,
            )
            for fence, each in past.items()
        ]
        self.notes = Notes()
        for each in self.left:
            self.notes.spawned(each.attempt.fence, each.pid, 0.0)
        self.exits = Kept()
        stage.make = lambda observer: SpawnExecutor(observer, recorder=self.notes, exits=self.exits)
        self._stage = stage

    def adopt(self):
        self._stage.is_inside = True
        gone = self._stage.executor.adopt(self.left)
        self._stage.is_inside = False
        return gone


@pytest.fixture
def adopting(stage, surroundings):
    if surroundings == "portable" or sys.platform != "linux":
        pytest.skip("orphans are adopted where there are pidfds and /proc")
    return stage


@pytest.mark.kill
def test_an_adopted_attempt_ends_as_if_nothing_had_happened(adopting, tmp_path):
    stage = adopting
    go = tmp_path / "go"
    wait = f"echo begin; until [ -e {go} ]; do sleep 0.01; done; echo end; echo $$ > $TITAN_RESULT"
    both = [stage.attempt(1, "sh", "-c", f"{wait}; exit 5"), stage.attempt(2, "sh", "-c", f"{wait}; kill -USR1 $$")]
    inherited = Inheritance(stage, both, until=lambda _: all(shown(stage, fence, b"begin") for fence in (1, 2)))

    async def scene():
        assert inherited.adopt() == []
        go.touch()
        first, second = await stage.ended(1), await stage.ended(2)
        assert (first.ending, first.code) == (Ending.EXIT, 5)
        assert (second.ending, second.code) == (Ending.SIGNAL, signal.SIGUSR1)
        for outcome in (first, second):
            assert outcome.result == b"%d\n" % inherited.pids[outcome.fence], "the same process"
            assert outcome.output_size == len(b"begin\nend\n") == len(stage.output(outcome.fence))
            assert 0 < outcome.duration < DEADLINE
        assert not stage.started, "its start was told by another agent"
        assert inherited.exits.taken_count == 2 + stage.is_warm, "a template ends with its agent"
        assert [step[0] for step in inherited.notes.of[1]] == ["spawned", "exited"]

    stage.play(scene)


def shown(stage, fence, text):
    path = stage.place(fence) / "output"
    return path.exists() and text in path.read_bytes()


@pytest.mark.kill
def test_what_ended_while_no_agent_was_there_is_told(adopting, tmp_path):
    stage = adopting
    go = tmp_path / "go"
    script = f"until [ -e {go} ]; do sleep 0.01; done; echo done; echo r > $TITAN_RESULT; exit 6"
    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", script)])
    go.touch()
    (leader,) = [child for child in psutil.Process().children() if child.pid == inherited.pids[1]]

    async def scene():
        await stage.until(lambda: leader.status() == psutil.STATUS_ZOMBIE)
        assert inherited.adopt() == []
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code, outcome.result) == (Ending.EXIT, 6, b"r\n")
        assert stage.output() == b"done\n"

    stage.play(scene)


@pytest.mark.kill
def test_an_exit_that_was_noted_and_not_told_is_told(adopting):
    stage = adopting

    def forget_the_end(past):
        past[1].exited = Exited(1, Exit(os.CLD_EXITED, 9, past[1].begun.at.monotonic + 1.5))

    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", "echo x; exit 9")], change=forget_the_end)

    async def scene():
        assert inherited.adopt() == []
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code, outcome.output_size) == (Ending.EXIT, 9, 2)
        assert outcome.duration == pytest.approx(1.5)

    stage.play(scene)


@pytest.mark.kill
def test_timeouts_go_on_with_what_is_left(adopting):
    stage = adopting
    attempts = [
        stage.attempt(1, "sh", "-c", "exec sleep 600", timeout=1.0, grace=5.0),
        stage.attempt(2, "sh", "-c", "exec sleep 600", timeout=300.0),
    ]

    def long_ago(past):
        at = past[2].begun.at
        past[2].begun = msgspec.structs.replace(
            past[2].begun, at=msgspec.structs.replace(at, monotonic=at.monotonic - 301)
        )

    inherited = Inheritance(stage, attempts, change=long_ago)

    async def scene():
        assert inherited.adopt() == []
        overdue = await stage.ended(2)
        assert (overdue.ending, overdue.code) == (Ending.TIMEOUT, -signal.SIGTERM)
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.TIMEOUT, -signal.SIGTERM)
        assert 1.0 <= outcome.duration < 5.0

    stage.play(scene)


@pytest.mark.kill
@pytest.mark.parametrize("script", ["exec sleep 600", "trap '' TERM; echo on; while :; do sleep 1; done"])
def test_what_was_being_ended_goes_on_being_ended_for_the_same_reason(adopting, script):
    stage = adopting

    def was_timing_out(past):
        past[1].stopping = Stopping(1, Ending.TIMEOUT)

    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", script, grace=0.1)], change=was_timing_out)

    async def scene():
        assert inherited.adopt() == []
        assert (await stage.ended(1)).ending is Ending.TIMEOUT

    stage.play(scene)


@pytest.mark.kill
def test_a_process_whose_number_was_not_written_down_is_found_by_what_it_was_given(adopting):
    stage = adopting

    def not_written_down(past):
        past[1].spawned = None

    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", "sleep 0.3; exit 4")], change=not_written_down)

    async def scene():
        assert inherited.adopt() == []
        assert (await stage.ended(1)).code == 4
        assert inherited.notes.of[1][-2][:2] == ("spawned", inherited.pids[1]), "and is written down now"

    stage.play(scene)


@pytest.mark.kill
def test_an_adopted_tree_is_ended_as_a_whole_and_what_belongs_to_nobody_at_once(adopting):
    stage = adopting
    tree_of_two = f"trap '' TERM; ({DETACHED} sleep 600) & echo on; while :; do sleep 1; done"
    inherited = Inheritance(
        stage,
        [stage.attempt(1, "sh", "-c", tree_of_two), stage.attempt(2, "sh", "-c", "exec sleep 601")],
        until=lambda _: shown(stage, 1, b"on") and detached(),
    )
    inherited.left = [each for each in inherited.left if each.attempt.fence == 1]
    (outsider,) = detached()

    async def scene():
        stranger = psutil.Process(inherited.pids[2])
        assert inherited.adopt() == []
        await stage.until(lambda: not stranger.is_running() or stranger.status() == psutil.STATUS_ZOMBIE)
        assert outsider.is_running(), "it belongs to an attempt that goes on"
        stage.kill(1, 0.05)
        assert (await stage.ended(1)).ending is Ending.KILLED
        assert not outsider.is_running() or outsider.status() == psutil.STATUS_ZOMBIE

    stage.play(scene)


def detached():
    found = []
    for child in living():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if child.cmdline() == ["sleep", "600"] and os.getsid(child.pid) != child.ppid():
                found.append(child)
    return found


@pytest.mark.kill
def test_what_an_adopted_leader_leaves_behind_is_ended(adopting):
    stage = adopting
    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", "sleep 600 & sleep 0.3; echo end; exit 2")])

    async def scene():
        assert inherited.adopt() == []
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code, stage.output()) == (Ending.EXIT, 2, b"end\n")
        assert not living()

    stage.play(scene)


@pytest.mark.kill
def test_a_number_that_is_somebody_elses_now_is_not_adopted_nor_touched(adopting):
    stage = adopting
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    stranger = subprocess.Popen(["cat"], start_new_session=True, **pipes)
    try:
        inherited = Inheritance(stage, [stage.attempt(1, "true")], until=lambda pids: is_reaped(pids[1]))
        left = msgspec.structs.replace(inherited.left[0], pid=stranger.pid, exit=None)
        # Whoever has the number was there before the attempt was, or came long after its process had been seen.
        later = msgspec.structs.replace(left, began=at_boot(left, left.spawned + 1000), spawned=left.spawned + 1001)
        earlier = msgspec.structs.replace(left, began=at_boot(left, 1.0), spawned=2.0)

        async def scene():
            for each in (later, earlier):
                executor = SpawnExecutor(stage)
                assert executor.adopt([each]) == [1]
                await executor.close(0)
                stranger.stdin.write(b"alive?\n")
                assert stranger.stdout.readline() == b"alive?\n"
            same = msgspec.structs.replace(left, began=at_boot(left, 1.0), spawned=left.spawned)
            executor = SpawnExecutor(stage)
            assert executor.adopt([same]) == [1]
            await executor.close(0)
            assert stranger.wait(DEADLINE) == -signal.SIGKILL, "or the numbers above were wrong"

        stage.play(scene)
    finally:
        stranger.kill()
        stranger.communicate()


def is_reaped(pid):
    """By whoever has to, which may be us."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not psutil.pid_exists(pid)


def at_boot(left, seconds):
    return msgspec.structs.replace(left.began, boot=seconds)


@pytest.mark.kill
def test_without_a_keeper_what_was_left_is_ended_before_anything_else(stage):
    """Nobody would learn how it ends, so it has to run again, and not beside itself."""
    if sys.platform != "linux":
        pytest.skip("orphans come to this process on Linux")
    script = f"({OWN_GROUP} sleep 600) & echo on; sleep 600"
    inherited = Inheritance(stage, [stage.attempt(1, "sh", "-c", script)], until=lambda _: shown(stage, 1, b"on"))
    stage.make = SpawnExecutor

    async def scene():
        assert len(living()) >= 2
        assert inherited.adopt() == [1]
        await stage.until(lambda: not living())
        assert not stage.outcomes

    stage.play(scene)
