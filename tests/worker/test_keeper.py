"""The keeper as a program: what it passes on, what it cleans up, when it starts the agent again, how it ends.

Agents here are small scripts that write down what happens to them.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from titan_fast.worker import keeper as keeper_module

KEEPER = keeper_module.__file__
DEADLINE = 20.0
AGENT = """
import os, signal, subprocess, sys, time
sys.path.insert(0, {folder!r})
from keeper import die_with_keeper
die_with_keeper()

def say(*words):
    with open({notes!r}, "a") as file:
        print(*words, file=file)

def wait():
    while True:
        signal.pause()

say("agent", os.getpid())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")


class Kept:
    """A keeper, and what its agents wrote down."""

    def __init__(self, folder, code, *options):
        self.notes = folder / "notes"
        self.notes.touch()
        script = folder / "agent.py"
        script.write_text(AGENT.format(folder=str(Path(KEEPER).parent), notes=str(self.notes)) + code)
        self.errors = folder / "errors"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", KEEPER, *options, "--", sys.executable, str(script)],
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )

    def lines(self):
        return [line.split() for line in self.notes.read_text().splitlines()]

    def pids(self, word):
        return [int(line[1]) for line in self.lines() if line[0] == word]

    def wait_for(self, word, count=1):
        until(lambda: len([line for line in self.lines() if line[0] == word]) >= count, f"{word} ({self.lines()})")
        return self.pids(word) if len(self.lines()[-1]) > 1 else []

    def end(self):
        return self.process.wait(DEADLINE)

    def said(self):
        return self.errors.read_text()


def until(condition, what):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.005)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def keep(tmp_path):
    """Starts keepers; afterwards nothing they had to do with may live. What escapes becomes our child."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    kept = []

    def start(code, *options):
        kept.append(Kept(tmp_path, code, *options))
        return kept[-1]

    yield start
    left = [child for child in psutil.Process().children(recursive=True) if not is_gone(child.pid)]
    shown = [(child.pid, child.cmdline()) for child in left]
    for child in left:
        child.kill()
    for each in kept:
        each.process.wait(DEADLINE)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    assert not shown, "processes were left behind"


LEAVES_TREES = """
subprocess.Popen([sys.executable, "-c", '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({notes!r}, "a") as file:
    print("task", os.getpid(), file=file)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open({notes!r}, "a") as file:
            print("task", os.getpid(), file=file)
    else:
        os._exit(0)
while True:
    signal.pause()
'''.replace("{notes!r}", repr(NOTES))], start_new_session=True)
"""


def leaves_trees(tmp_path):
    """A task with a double-forked, detached child, both deaf to TERM."""
    return f"NOTES = {str(tmp_path / 'notes')!r}\n" + LEAVES_TREES


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("code", keeper_module.ON_PURPOSE)
def test_ends_with_the_agent_that_ends_on_purpose(keep, code):
    kept = keep(f"sys.exit({code})")
    assert kept.end() == code
    assert len(kept.pids("agent")) == 1


@pytest.mark.kill
def test_leaves_nothing_behind(keep, tmp_path):
    kept = keep(
        leaves_trees(tmp_path) + "while open(NOTES).read().count('task') < 2: time.sleep(0.01)\nsys.exit(0)",
    )
    assert kept.end() == 0
    assert len(kept.pids("task")) == 2
    assert all(is_gone(pid) for pid in kept.pids("task")), "gone before the keeper is"


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGTERM, "told 15"), (signal.SIGINT, "told 2"), (signal.SIGHUP, "told 15")]
)
@pytest.mark.kill
def test_passes_a_signal_on_once(keep, number, told):
    kept = keep(
        """
def on_signal(number, _):
    say("told", number)
    say("ending")
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, on_signal)
say("ready", 0)
wait()
"""
    )
    kept.wait_for("ready")
    kept.process.send_signal(number)
    assert kept.end() == 1, "asked to end, so the exit code is no death"
    assert [" ".join(line) for line in kept.lines() if line[0] == "told"] == [told]
    assert len(kept.pids("agent")) == 1


@pytest.mark.kill
def test_an_agent_that_dies_of_the_signal_is_not_started_again(keep):
    kept = keep("say('ready', 0); wait()")
    kept.wait_for("ready")
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 128 + signal.SIGTERM
    assert len(kept.pids("agent")) == 1


DEAF = """
def on_signal(number, _):
    say("told", number)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
say("ready", 0)
while True:
    time.sleep(1000)
"""


@pytest.mark.kill
def test_asked_again_and_again_it_kills(keep, tmp_path):
    kept = keep(leaves_trees(tmp_path) + DEAF)
    kept.wait_for("task", 2)
    kept.wait_for("ready")
    kept.process.send_signal(signal.SIGINT)
    kept.wait_for("told")
    deadline = time.monotonic() + DEADLINE
    while kept.process.poll() is None:  # within a moment it counts as the same Ctrl-C, so it takes a few
        assert time.monotonic() < deadline
        kept.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert kept.end() == 128 + signal.SIGINT
    assert len([line for line in kept.lines() if line[0] == "told"]) == 2, "told once, told again, then killed"
    assert all(is_gone(pid) for pid in [*kept.pids("agent"), *kept.pids("task")])


@pytest.mark.kill
def test_one_ctrl_c_that_comes_twice_is_one(keep):
    """From the terminal, from a parent that passes it on, and as a TERM for good measure."""
    kept = keep(DEAF.replace('say("told", number)', 'say("told", number); signal.alarm(1)'))
    kept.wait_for("ready")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        kept.process.send_signal(number)
    kept.wait_for("told")
    assert kept.end() == 128 + signal.SIGALRM
    assert len([line for line in kept.lines() if line[0] == "told"]) == 1
    assert "again" not in kept.said()


# ---------------------------------------------------------------- dying and starting again


@pytest.mark.kill
def test_a_killed_agent_is_started_again_after_its_tasks_are_ended(keep, tmp_path):
    kept = keep(
        f"""
NOTES = {str(tmp_path / "notes")!r}
tasks = [int(line.split()[1]) for line in open(NOTES) if line.startswith("task")]
if tasks:
    def is_alive(pid):
        try:
            return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    say("second", sum(map(is_alive, tasks)))
    sys.exit(0)
"""
        + leaves_trees(tmp_path)
        + "say('ready', 0); wait()",
        "--spool",
        str(tmp_path / "spool"),
    )
    kept.wait_for("task", 2)
    kept.wait_for("ready")
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    assert kept.end() == 0
    assert [line for line in kept.lines() if line[0] == "second"] == [["second", "0"]]
    assert "was ended by signal 9; starting it again in 0.2 s" in kept.said()
    exits = [json.loads(line) for line in (tmp_path / "spool" / "exits.jsonl").read_text().splitlines()]
    by_pid = {item["pid"]: item for item in exits}
    for pid in kept.pids("task"):
        assert by_pid[pid]["status"] == -signal.SIGKILL
        assert by_pid[pid]["start"] > 0 and abs(by_pid[pid]["at"] - time.time()) < DEADLINE
    assert not set(kept.pids("agent")) & set(by_pid), "agents are no orphans"


def test_exits_of_orphans_are_recorded_while_the_agent_runs(keep, tmp_path):
    kept = keep(
        """
for code in (0, 7):
    if os.fork() == 0:
        if os.fork() == 0:
            say("orphan", os.getpid())
            os._exit(code)
        os._exit(0)
    os.wait()
say("ready", 0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
wait()
""",
        f"--spool={tmp_path}/spool/deep",
    )
    kept.wait_for("ready")
    path = tmp_path / "spool" / "deep" / "exits.jsonl"
    until(lambda: path.exists() and path.read_text().count("\n") == 2, "two exits")
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 0
    exits = {item["pid"]: item["status"] for item in map(json.loads, path.read_text().splitlines())}
    assert set(exits) == set(kept.pids("orphan")) and sorted(exits.values()) == [0, 7]


@pytest.mark.kill
def test_a_spool_that_cannot_be_written_stops_nothing(keep, tmp_path):
    (tmp_path / "spool").write_text("a file, no folder")
    kept = keep(leaves_trees(tmp_path) + "wait()", "--spool", str(tmp_path / "spool"), "--quick-deaths", "1")
    kept.wait_for("task", 2)
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    assert kept.end() == keeper_module.GAVE_UP
    assert "could not be recorded" in kept.said()


@pytest.mark.kill
def test_gives_up_after_quick_deaths(keep):
    kept = keep("sys.exit(1)", "--quick-deaths", "3")
    assert kept.end() == keeper_module.GAVE_UP
    assert len(kept.pids("agent")) == 3
    said = kept.said().splitlines()
    assert said == [
        "titan-fast keeper: the agent ended with exit code 1; starting it again in 0.2 s",
        "titan-fast keeper: the agent ended with exit code 1; starting it again in 0.4 s",
        "titan-fast keeper: the agent ended with exit code 1, 3 times now soon after its start: giving up",
    ]


@pytest.mark.kill
def test_asked_to_end_while_no_agent_runs(keep):
    kept = keep("os.kill(os.getpid(), signal.SIGKILL)")
    until(lambda: "starting it again" in kept.said(), "the pause")
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 128 + signal.SIGTERM


@pytest.mark.kill
def test_the_agent_does_not_outlive_its_keeper(keep):
    kept = keep("say('ready', 0); wait()")
    kept.wait_for("ready")
    kept.process.kill()
    kept.end()
    until(lambda: is_gone(kept.pids("agent")[0]), "the agent's end")


def test_an_agent_whose_keeper_is_gone_already_does_not_begin(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import keeper; keeper.die_with_keeper(); print('began')"
    folder = str(Path(KEEPER).parent)
    for pid, expected in (("999999999", b""), (str(os.getpid()), b"began\n")):
        env = {**os.environ, keeper_module.KEEPER_PID: pid}
        done = subprocess.run([sys.executable, "-c", code, folder], env=env, capture_output=True, timeout=DEADLINE)
        assert (done.returncode, done.stdout) == (0, expected)


# ---------------------------------------------------------------- what it is


def test_an_agent_that_cannot_be_started(tmp_path):
    command = [sys.executable, "-P", KEEPER, "--quick-deaths=2", "--", "/no/such/agent"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE)
    assert done.returncode == keeper_module.GAVE_UP
    assert b"the agent cannot be started: /no/such/agent: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["true"], ["--spool"], ["--quick-deaths", "x", "--", "true"], ["--x", "--", "true"]]
)
def test_usage(arguments):
    done = subprocess.run([sys.executable, "-P", KEEPER, *arguments], capture_output=True, timeout=DEADLINE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"titan-fast keeper: usage: keeper.py")


def test_the_agent_has_its_own_group_defaults_and_no_terminal(keep):
    kept = keep(
        """
say("group", os.getpgrp() - os.getpid())
say("mask", len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
say("stdin", os.readlink("/proc/self/fd/0"))
say("keeper", int(os.environ["TITAN_KEEPER_PID"]) - os.getppid())
say("files", *os.listdir("/proc/self/fd"))
sys.exit(0)
"""
    )
    assert kept.end() == 0
    told = {line[0]: line[1:] for line in kept.lines()}
    assert (told["group"], told["mask"], told["keeper"]) == (["0"], ["0"], ["0"])
    assert told["stdin"] == ["/dev/null"]
    assert len(told["files"]) <= 5, "the keeper's own descriptors do not come along"


def test_it_is_the_process_that_was_the_command(keep, tmp_path):
    """`titan-fast worker` becomes the keeper by exec: the pid a supervisor knows stays."""
    kept = keep("say('parent', os.getppid()); sys.exit(0)")
    assert kept.end() == 0
    assert kept.pids("parent") == [kept.process.pid]


def test_it_imports_nothing_of_the_house():
    imported = set()
    for node in ast.walk(ast.parse(Path(KEEPER).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_it_goes_on_after_a_fault_of_its_own(monkeypatch):
    """Whatever is raised, a running agent is kept, not started twice."""
    kept = keeper_module.Keeper.__new__(keeper_module.Keeper)
    kept._agent, kept._asked, kept._force_at, kept._is_forced = 4711, 0, 0.0, False
    kept._reap = lambda: [(4711, 0)]
    kept._start_agent = lambda: pytest.fail("a second agent was started")
    assert kept._run_agent() == 0
