"""Attempts that are ended, by a timeout or a kill, and everything that they have started with them."""

from __future__ import annotations

import errno
import shlex
import signal
import subprocess
import time

import psutil
import pytest
from executor_stage import (
    DEADLINE,
    DETACHED,
    ORPHANED,
    OWN_GROUP,
    PATH,
    PYTHON,
    also_functions,
    children_but_templates,
    living,
    needs_proc,
    program,
)

from titan_fast.ids import Ending
from titan_fast.worker.executors import tree

# ---------------------------------------------------------------- timeout and kill


@also_functions
@pytest.mark.kill
def test_timeout(stage):
    async def scene():
        outcome = await stage.run("sleep 1000", timeout=0.1, grace=DEADLINE)
        assert (outcome.ending, outcome.code) == (Ending.TIMEOUT, -signal.SIGTERM)
        assert 0.1 <= outcome.duration < DEADLINE / 2

    stage.play(scene)


@pytest.mark.kill
def test_timeout_with_term_ignored(stage):
    async def scene():
        outcome = await stage.run("trap '' TERM; echo up; while :; do sleep 1000; done", timeout=0.1, grace=0.1)
        assert (outcome.ending, outcome.code) == (Ending.TIMEOUT, -signal.SIGKILL)
        assert 0.2 <= outcome.duration < DEADLINE / 2

    stage.play(scene)


@also_functions
@pytest.mark.kill
def test_in_time_is_not_a_timeout(stage):
    async def scene():
        outcome = await stage.run("exit 1", timeout=DEADLINE)
        assert (outcome.ending, outcome.code) == (Ending.EXIT, 1)

    stage.play(scene)


@pytest.mark.kill
def test_term_lets_it_tidy_up(stage):
    async def scene():
        stage.start(1, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
        await stage.shows(b"up")
        stage.kill(1, DEADLINE)
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.KILLED, 0)
        assert stage.output().endswith(b"bye\n")

    stage.play(scene)


@pytest.mark.kill
def test_the_grace_is_for_the_whole_tree(stage):
    """The leader dies of TERM at once; what it started has its grace all the same."""
    tidy = shlex.quote("trap 'sleep 0.2; echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")

    async def scene():
        stage.start(1, f"sh -c {tidy} & wait")
        await stage.shows(b"up")
        stage.kill(1, DEADLINE)
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.KILLED, -signal.SIGTERM)
        assert stage.output().endswith(b"bye\n")

    stage.play(scene)


@pytest.mark.kill
def test_term_reaches_those_outside_of_the_group(stage):
    tidy = shlex.quote("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")

    async def scene():
        stage.start(1, f"{DETACHED} sh -c {tidy}; sleep 1000")
        await stage.shows(b"up")
        stage.kill(1, DEADLINE)
        assert (await stage.ended(1)).ending is Ending.KILLED
        assert stage.output().endswith(b"bye\n")

    stage.play(scene)


@also_functions
@pytest.mark.kill
def test_kill_without_grace(stage):
    async def scene():
        stage.start(1, "trap 'echo bye' TERM; echo up; while :; do sleep 0.01; done")
        await stage.shows(b"up")
        stage.kill(1, 0)
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.KILLED, -signal.SIGKILL)
        assert stage.output() == b"up\n"

    stage.play(scene)


@pytest.mark.kill
def test_kill_at_once_after_start(stage):
    async def scene():
        stage.start(1, "sleep 1000")
        stage.kill(1, 0)
        assert (await stage.ended(1)).ending is Ending.KILLED
        assert 1 in stage.started

    stage.play(scene)


@pytest.mark.kill
def test_what_starts_while_others_run_is_killed_and_fails_as_what_starts_alone(stage):
    async def scene():
        stage.start(1, "sleep 1000")
        stage.start(2, "sleep 1000")
        stage.kill(2, 10.0)
        stage.kill(2, 0)
        stage.begin(stage.attempt(3, "/no/such/program"))
        stage.begin(stage.attempt(4, "/bin/true", cwd="/no/such/folder"))
        for fence in range(5, 25):
            stage.start(fence, f"exit {fence}")
        assert (await stage.ended(2)).ending is Ending.KILLED
        for fence, words in ((3, b"/no/such/program does not exist"), (4, b"/no/such/folder does not exist")):
            outcome = await stage.ended(fence)
            assert outcome.ending is Ending.NOT_STARTED and words in outcome.result
            assert fence not in stage.started
        assert [(await stage.ended(fence)).code for fence in range(5, 25)] == [*range(5, 25)]
        assert 1 not in stage.outcomes

    stage.play(scene)


@pytest.mark.kill
def test_a_stopped_attempt_is_ended_too(stage):
    async def scene():
        stage.start(1, "echo up; kill -STOP $$; sleep 1000")
        await stage.until(
            lambda: 1 in stage.started and psutil.Process(stage.started[1]).status() == psutil.STATUS_STOPPED
        )
        stage.kill(1, DEADLINE)
        assert (await stage.ended(1)).code == -signal.SIGTERM

    stage.play(scene)


@pytest.mark.kill
def test_the_shorter_grace_counts_and_kill_wins_over_timeout(stage):
    async def scene():
        stage.start(1, "trap 'echo told' TERM; echo up; while :; do sleep 0.01; done", timeout=0.05, grace=1000)
        await stage.shows(b"told")
        stage.kill(1, 1000)
        stage.kill(1, 0.01)
        assert (await stage.ended(1)).ending is Ending.KILLED

    stage.play(scene)


@also_functions
def test_kill_of_what_is_not_there(stage):
    async def scene():
        stage.kill(99, 0)
        outcome = await stage.run("exit 0")
        stage.kill(1, 0)
        assert outcome.ending is Ending.EXIT
        assert list(stage.outcomes) == [1]

    stage.play(scene)


@pytest.mark.kill
def test_what_ended_by_itself_was_not_killed(stage):
    """It has ended, but the loop has not looked yet."""

    async def scene():
        stage.start(1, "exit 5")
        deadline = time.monotonic() + DEADLINE
        while not [child for child in children_but_templates() if tree.has_exited(child.pid)]:
            assert time.monotonic() < deadline  # the loop does not turn meanwhile
        stage.kill(1, 0)
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.EXIT, 5)

    stage.play(scene)


# ---------------------------------------------------------------- trees


HUNG = "echo up; trap '' TERM; while :; do sleep 1000; done"
ESCAPES = {
    "child": f"sh -c {shlex.quote(HUNG)}",
    "background group": f"{OWN_GROUP} sh -c {shlex.quote(HUNG)} & wait",
    "grandchild holds the output": f"{DETACHED} sh -c {shlex.quote(HUNG)}; sleep 1000",
    "group of its own, parent gone, no environment, output closed": f"env -i {ORPHANED} {program('sh')} -c "
    f"{shlex.quote(HUNG)} >/dev/null 2>&1; echo up; sleep 1000",
    "double fork, output closed": f"{DETACHED} sh -c {shlex.quote(HUNG)} 3>&1 >$TITAN_ATTEMPT_DIR/other 2>&1; "
    "until grep -q up $TITAN_ATTEMPT_DIR/other; do sleep 0.01; done; echo up; sleep 1000",
}


@also_functions
@pytest.mark.kill
@pytest.mark.parametrize("escape", sorted(ESCAPES))
@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_the_whole_tree_dies_on_time(stage, escape, how):
    """Nobody waits for the end of the output, so who holds it open matters to nobody."""

    async def scene():
        stage.start(1, ESCAPES[escape], timeout=0.6 if how == "timeout" else 0, grace=0.1)
        if how == "kill":
            await stage.shows(b"up")
            stage.kill(1, 0.1)
        outcome = await stage.ended(1)
        assert outcome.ending is (Ending.KILLED if how == "kill" else Ending.TIMEOUT)
        assert not living(), "gone when it is reported"

    stage.play(scene)


@also_functions
@needs_proc
@pytest.mark.kill
@pytest.mark.parametrize("surroundings", ["asyncio"], indirect=True)
def test_a_tree_is_known_by_its_output_alone(stage):
    """Own session, empty environment, parent gone: only the output file gives it away."""

    async def scene():
        stage.start(1, f"env -i {DETACHED} {program('sh')} -c {shlex.quote(HUNG)}; sleep 1000")
        await stage.shows(b"up")
        stage.kill(1, 0.05)
        await stage.ended(1)
        assert not living()

    stage.play(scene)


STUBBORN = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'.'); signal.pause()"
PARENT = f"""
import signal, subprocess, sys
code, nowhere = {STUBBORN!r}, subprocess.DEVNULL
given = dict(env={{}}, start_new_session=True, stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere)
subprocess.Popen([sys.executable, "-I", "-S", "-c", code], **given).stdout.read(1)
print("up", flush=True)
signal.pause()
"""


@also_functions
@pytest.mark.kill
def test_who_is_known_as_a_child_alone_is_found_when_its_parent_has_gone_before_it(stage):
    """Of its own session, environment and output: only its parent gives it away, and that one ends on TERM."""

    async def scene():
        stage.start(1, f"exec {PYTHON} -c {shlex.quote(PARENT)}")
        await stage.shows(b"up")
        stage.kill(1, 0.2)
        assert (await stage.ended(1)).ending is Ending.KILLED
        assert not living()

    stage.play(scene)


@also_functions
@pytest.mark.kill
def test_what_forks_faster_than_it_is_found_dies_too(stage):
    script = f"trap '' TERM; echo up; while :; do {DETACHED} sleep 1000; done"

    async def scene():
        stage.start(1, script)
        await stage.until(lambda: len(living()) > 6)
        stage.kill(1, 0)
        await stage.ended(1)
        assert not living()

    stage.play(scene)


@pytest.mark.kill
def test_background_processes_end_with_their_attempt(stage):
    async def scene():
        outcome = await stage.run("sleep 1000 >/dev/null 2>&1 & sleep 1000 >/dev/null 2>&1 & echo up; exit 6")
        assert (outcome.ending, outcome.code) == (Ending.EXIT, 6)
        assert outcome.duration < DEADLINE / 2
        assert not living()

    stage.play(scene)


@needs_proc
@pytest.mark.kill
@pytest.mark.parametrize("surroundings", ["asyncio", "uvloop"], indirect=True)
def test_a_daemon_that_keeps_the_output_ends_with_its_attempt(stage):
    async def scene():
        outcome = await stage.run(
            f"{DETACHED} sh -c {shlex.quote(HUNG)}; until [ -s $TITAN_ATTEMPT_DIR/output ]; do sleep 0.01; done; exit 6"
        )
        assert (outcome.ending, outcome.code) == (Ending.EXIT, 6)
        assert not living()

    stage.play(scene)


@pytest.mark.kill
def test_what_is_about_to_end_is_not_cut_off(stage):
    """As in ``exec > >(tee log)``: the last lines come after the leader has ended."""

    async def scene():
        outcome = await stage.run("(sleep 0.05; echo late) & exit 0")
        assert stage.output() == b"late\n"
        assert (outcome.ending, outcome.code, outcome.output_size) == (Ending.EXIT, 0, 5)

    stage.play(scene)


@also_functions
@pytest.mark.kill
def test_no_stranger_is_hit(stage, tmp_path):
    """The same fence in another cluster on this machine, and a neighbour's attempt, are not ours to end."""
    env = {"PATH": PATH, "TITAN_FENCE": "1.1", "TITAN_ATTEMPT_DIR": str(tmp_path / "elsewhere")}
    stranger = subprocess.Popen(["sleep", "1000"], env=env, start_new_session=True)
    try:

        async def scene():
            stage.start(1, f"{DETACHED} sleep 1000; echo up; sleep 1000")
            stage.start(11, "echo up; sleep 1000")
            await stage.shows(b"up", 1)
            await stage.shows(b"up", 11)
            stage.kill(1, 0)
            await stage.ended(1)
            assert stranger.poll() is None
            assert [psutil.pid_exists(stage.started[11]), 11 in stage.outcomes] == [True, False]

        stage.play(scene)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@also_functions
@pytest.mark.kill
def test_one_look_serves_all_that_are_killed(stage, monkeypatch):
    looks = []
    real = tree.scan
    monkeypatch.setattr(tree, "scan", lambda trees: looks.append(len(trees)) or real(trees))

    async def scene():
        for fence in range(1, 31):
            stage.start(fence, "echo up; sleep 1000")
        for fence in range(1, 31):
            await stage.shows(b"up", fence)
        for fence in range(1, 31):
            stage.kill(fence, 0)
        for fence in range(1, 31):
            await stage.ended(fence)

    stage.play(scene)
    assert looks[0] == 30 and len(looks) < 60, looks


@pytest.mark.kill
def test_close_ends_everything(stage):
    async def scene():
        for fence in range(1, 6):
            stage.start(fence, "trap '' TERM; sleep 1000; sleep 1000" if fence % 2 else "sleep 1000")
        await stage.until(lambda: len(stage.started) == 5)
        await stage.executor.close(0.1)
        assert {outcome.ending for outcome in stage.outcomes.values()} == {Ending.KILLED}
        assert len(stage.outcomes) == 5
        assert not living()
        late = await stage.run("exit 0", fence=6)
        assert (late.ending, late.code) == (Ending.NOT_STARTED, errno.ESHUTDOWN)
        assert late.result == b"the worker is stopping"

    stage.play(scene)
