"""The keeper as a program: what it passes on, what it cleans up, when it starts the agent again, how it ends.

Agents here are small scripts that write down what happens to them.
"""

from __future__ import annotations

import ast
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from titan_fast.worker import keeper as keeper_module

KEEPER = keeper_module.__file__
DEADLINE = 20.0
AGENT = """
import os, signal, socket, subprocess, sys, time
sys.path.insert(0, {folder!r})
from keeper import die_with_keeper
die_with_keeper()

def say(*words):
    with open({notes!r}, "a") as file:
        print(*words, file=file)

def wait():
    while True:
        signal.pause()

def line():
    return socket.socket(fileno=int(os.environ["TITAN_KEEPER_EXITS"]))

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
    before = set(psutil.Process().children(recursive=True))
    kept = []

    def start(code, *options):
        kept.append(Kept(tmp_path, code, *options))
        return kept[-1]

    yield start
    left = [child for child in set(psutil.Process().children(recursive=True)) - before if not is_gone(child.pid)]
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
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
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


FIRST_AND_SECOND = """
NOTES = {notes!r}
tasks = [int(line.split()[1]) for line in open(NOTES) if line.startswith("task")]

def read(sock, count):
    data = b""
    while data.count(b"\\n") < count:
        data += sock.recv(65536)
    return [line.decode() for line in data.splitlines()]
"""


def in_two_lives(tmp_path, first, second):
    """The code of an agent's first life, and of those after it, which finds ``tasks`` in the notes and does not end."""
    head = FIRST_AND_SECOND.replace("{notes!r}", repr(str(tmp_path / "notes"))).replace("\\\\", "\\")
    return f"{head}\nif tasks:\n{textwrap.indent(second, '    ')}\n{first}\n"


@pytest.mark.kill
def test_what_a_killed_agent_left_runs_on_under_the_next(keep, tmp_path):
    """The processes are the keeper's children now; they end with it, when the agent ends on purpose."""
    kept = keep(
        in_two_lives(
            tmp_path,
            leaves_trees(tmp_path) + "say('ready', 0)\nwait()",
            """
for pid in tasks:
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    say("found", pid, fields[0], int(fields[1]) - os.getppid())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
say("second", os.getpid())
wait()
""",
        )
    )
    kept.wait_for("task", 2)
    kept.wait_for("ready")
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    kept.wait_for("second")
    assert "was ended by signal 9; starting it again in 0.05 s" in kept.said()
    found = {int(line[1]): line[2:] for line in kept.lines() if line[0] == "found"}
    assert set(found) == set(kept.pids("task"))
    assert all(state == "S" for state, _ in found.values())
    assert "0" in {parent for _, parent in found.values()}
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 0
    assert all(is_gone(pid) for pid in kept.pids("task"))


LEAVES_ORPHANS = """
for code in (0, 7):
    if os.fork() == 0:
        if os.fork() == 0:
            say("task", os.getpid(), code)
            if code == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(code)
        os._exit(0)
    os.wait()
"""


def test_exits_are_told_from_the_first_untaken_one_to_every_next_agent(keep, tmp_path):
    kept = keep(
        in_two_lives(
            tmp_path,
            LEAVES_ORPHANS + "say('told', *read(line(), 2))\nos.kill(os.getpid(), 9)",
            """
sock = line()
if len(open(NOTES).read().split("agent")) == 3:
    say("told", *read(sock, 2))
    sock.send(b".")
    sock.send(b"?")
    say("synced", *read(sock, 1))
    os.kill(os.getpid(), 9)
sock.send(b"?")
say("told", *read(sock, 2))
sys.exit(0)
""",
        )
    )
    assert kept.end() == 0
    assert len(kept.pids("agent")) == 3
    told = [[float(word) for word in line[1:] if word != "-"] for line in kept.lines() if line[0] == "told"]
    first, second, third = ([numbers[at : at + 4] for at in range(0, len(numbers), 4)] for numbers in told)
    tasks = [(int(line[1]), int(line[2])) for line in kept.lines() if line[0] == "task"]
    assert {item[0]: item[2] for item in first} == {pid: -signal.SIGTERM if code else 0 for pid, code in tasks}
    assert all(item[1] > 0 and abs(item[3] - time.monotonic()) < DEADLINE for item in first)
    assert second == first, "the first agent died without having dealt with them"
    assert third == first[1:], "the second one took the first of them"
    assert ["synced"] in kept.lines()


@pytest.mark.kill
def test_of_what_an_agent_left_alive_the_keeper_knows_the_attempt_though_its_number_was_not_written_down(
    keep, tmp_path
):
    kept = keep(
        in_two_lives(
            tmp_path,
            """
place = {"TITAN_ATTEMPT_DIR": "/some place/attempts/1.1"}
lasting = "import os, time; print('task', os.getpid(), file=open(NOTES, 'a')); time.sleep(0.3); os._exit(4)"
code = f"NOTES = {NOTES!r}; {lasting}"
subprocess.Popen([sys.executable, "-c", code], env=place, start_new_session=True)
subprocess.Popen([sys.executable, "-c", code], env=place)
wait()
""",
            "sock = line()\nsay('told', *read(sock, 2))\nsys.exit(0)",
        )
    )
    kept.wait_for("task", 2)
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    assert kept.end() == 0
    (words,) = [line[1:] for line in kept.lines() if line[0] == "told"]
    places = {(words[at + 2], words[at + 4]) for at in (0, 5)}
    assert places == {("4", b"/some place/attempts/1.1".hex()), ("4", "-")}, "that of its first process alone"


def test_a_process_is_waited_for_only_after_a_note_was_made():
    """Until then its number stays its own, and its exit code is nowhere else."""
    kept = keeper_module.Keeper.__new__(keeper_module.Keeper)
    kept._agent = 0
    states = []
    kept._record = lambda pid, status: states.append((pid, status, keeper_module._stat(pid)[0]))
    child = subprocess.Popen(["sh", "-c", "exit 7"])
    until(lambda: kept._reap(), "its end")
    assert states == [(child.pid, 7, "Z")]
    assert keeper_module._stat(child.pid) == []


def test_an_agent_that_reads_nothing_holds_nobody_up(keep):
    kept = keep(
        """
for _ in range(20):
    if os.fork() == 0:
        for _ in range(40):
            if os.fork() == 0:
                os._exit(0)
        os._exit(0)
say("ready", 0)
while os.wait():
    pass
""".replace("while os.wait():\n    pass", "[os.wait() for _ in range(20)]\nsay('done', 0)\nwait()")
    )
    kept.wait_for("done")
    until(lambda: not psutil.Process(kept.process.pid).children()[1:], "all are waited for")
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 128 + signal.SIGTERM


@pytest.mark.kill
def test_when_no_agent_stays_up_everything_ends(keep, tmp_path):
    kept = keep(in_two_lives(tmp_path, leaves_trees(tmp_path) + "wait()", "sys.exit(1)"), "--loss-time", "2")
    kept.wait_for("task", 2)
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    assert kept.end() == keeper_module.GAVE_UP
    assert all(is_gone(pid) for pid in kept.pids("task"))
    said = kept.said().splitlines()
    assert said[:2] == [
        "titan-fast keeper: the agent was ended by signal 9; starting it again in 0.05 s",
        "titan-fast keeper: the agent ended with exit code 1; starting it again in 0.1 s",
    ]
    assert said[-1] == (
        "titan-fast keeper: the agent ended with exit code 1, and none stayed up for 2 s: everything ends now"
    )


@pytest.mark.kill
def test_an_agent_that_the_master_knew_was_up_however_soon_it_died(keep, tmp_path):
    code = """
if len(open(NOTES).read().split("agent")) > 5:
    sys.exit(0)
line().send(b"!")
os.kill(os.getpid(), 9)
"""
    kept = keep(f"NOTES = {str(tmp_path / 'notes')!r}\n{code}", "--loss-time", "0.3")
    assert kept.end() == 0
    assert len(kept.pids("agent")) == 5


@pytest.mark.kill
def test_told_to_stop_between_two_agents_it_ends_what_the_first_one_left(keep, tmp_path):
    kept = keep(in_two_lives(tmp_path, leaves_trees(tmp_path) + "wait()", "sys.exit(1)"))
    kept.wait_for("task", 2)
    os.kill(kept.pids("agent")[0], signal.SIGKILL)
    until(lambda: "starting it again in 0.8 s" in kept.said(), "a long pause")
    kept.process.send_signal(signal.SIGTERM)
    assert kept.end() == 128 + signal.SIGTERM
    assert all(is_gone(pid) for pid in kept.pids("task"))


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
    command = [sys.executable, "-P", KEEPER, "--loss-time=0.01", "--", "/no/such/agent"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE)
    assert done.returncode == keeper_module.GAVE_UP
    assert b"the agent cannot be started: /no/such/agent: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["true"], ["--loss-time"], ["--loss-time", "x", "--", "true"], ["--x", "1", "--", "true"]]
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
    assert len(told["files"]) <= 5, "the keeper's own descriptors do not come along, but for the one end of the line"


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
    kept._agent, kept._asked, kept._force_at, kept._is_forced, kept._line = 4711, 0, 0.0, False, None
    kept._reap = lambda: [(4711, 0)]
    kept._start_agent = lambda: pytest.fail("a second agent was started")
    assert kept._run_agent() == 0
