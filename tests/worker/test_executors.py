"""One suite over every executor: how attempts start, end, are ended, and that nothing is ever left behind.

Each executor is played on asyncio, on uvloop, and without the kernel's help (no pidfd, no /proc). This process is a
subreaper meanwhile, so whatever escapes an attempt turns up as a child of it and fails the test.

Functions are no executor, but an attempt may be one that waits for its command: `also_functions` is what they promise,
too. Not what belongs to a process of one's own: adoption, arguments, and a tree that ends with its first process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import pickle
import select
import shlex
import signal
import struct
import subprocess
import sys
import time

import cloudpickle
import msgspec
import psutil
import pytest

from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import _pool, tree
from titan_fast.worker.executors import spawn as spawn_module
from titan_fast.worker.executors.base import Attempt, Exit, Left, Outcome
from titan_fast.worker.executors.functions import LIVE_NAME, MOMENT, Function, Functions, Kind
from titan_fast.worker.executors.spawn import FILE_LIMIT, SpawnExecutor
from titan_fast.worker.executors.warm import WarmExecutor
from titan_fast.worker.exits import Told
from titan_fast.worker.journal import Exited, Journal, JournalFile, Stopping
from titan_fast.worker.results import MAX_RESULT, RESULT_REFUSED
from titan_fast.worker.slots import Stretch

DEADLINE = 20.0


def warm_executor(observer, **options):
    return WarmExecutor(observer, env={"PATH": PATH}, **options)


class FunctionExecutor:
    """Each attempt is a function that ends as its command does."""

    def __init__(self, stage, file_limit=FILE_LIMIT):
        self._told = stage
        self._functions = Functions(self, 64, f"{stage.folder}/functions", str(stage.folder), file_limit=file_limit)

    def start(self, attempt):
        fence = attempt.fence
        kind = Kind((("PATH", PATH),), "")
        timing = (attempt.timeout, attempt.grace)
        function = Function(fence, 1, fence, "t", 0, False, function_of(attempt.argv[2]), (), *timing, kind)
        item = pickle.dumps(((), {}), 5)
        payload = bytes(4) + len(item).to_bytes(4, "big") + item
        stretch = Stretch(1, fence, 0, 1, 0, 1, fence, payload, 1)
        assert self._functions.feed(function, True, 1, lambda count: stretch)

    def kill(self, fence, grace):
        loop = asyncio.get_running_loop()
        if self._functions.take_back(fence, 1):
            loop.call_soon(self._told.attempt_ended, Outcome(fence, Ending.KILLED, 0, 0.0, 0.0, 0, b""))
        elif not self._functions.kill(fence, grace):
            loop.call_later(MOMENT, self.kill, fence, grace)

    async def close(self, grace):
        await self._functions.close(grace)

    def functions_started(self, rows, outputs):
        for _, _, _, fence, pid, began in rows:
            self._told.attempt_started(fence, pid, began / 1e6)

    def functions_ended(self, ended):
        for row in struct.iter_unpack(_pool.RESULT.format, ended.records):
            _, _, _, ending, _, fence, code, began, took, output, _ = row
            times = (began / 1e6, max(took, 1) / 1e6)
            self._told.attempt_ended(Outcome(fence, tuple(Ending)[ending], code, *times, output, b""))

    def function_died(self, death):
        fence, note = death.start.fence, death.note.encode()
        how = (death.ending, death.code, death.began, death.duration)
        self._told.attempt_ended(Outcome(fence, *how, death.output_size, note))

    def functions_unrun(self, stretches):
        raise AssertionError("a process ended before it began what it was given")

    def lane_freed(self):
        pass

    def lane_has_room(self):
        pass


def function_of(script):
    def as_command():
        import os
        import signal
        import subprocess

        os.environ["TITAN_ATTEMPT_DIR"]  # it is told who looks for it
        code = subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL).returncode
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        raise SystemExit(code)

    return cloudpickle.dumps(as_command, 5)


EXECUTORS = {"functions": FunctionExecutor, "spawn": SpawnExecutor, "warm": warm_executor}
SURROUNDINGS = ("asyncio", "uvloop", "portable")
PATH = "/usr/local/bin:/usr/bin:/bin"
PYTHON = shlex.quote(sys.executable)
BECOME = """
import os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""What a warm script has to be to play the same commands as the others."""
EXEC = "os.execvp(sys.argv[1], sys.argv[1:])"


def python(code):
    """A command that runs ``code`` and then becomes its arguments."""
    return f"{PYTHON} -c {shlex.quote(f'import os, sys; {code}; {EXEC}')}"


OWN_GROUP = python("os.setpgid(0, 0)")
ORPHANED = python("os.fork() and os._exit(0); os.setpgid(0, 0)")
DETACHED = python("os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)")
"""Double fork and a session of its own."""


def program(name):
    return next(f"{folder}/{name}" for folder in PATH.split(":") if os.access(f"{folder}/{name}", os.X_OK))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")


class Stage:
    """An executor on a running loop, who is told, and attempts by number."""

    def __init__(self, executor, folder, is_warm):
        self.make = executor
        self.is_warm = is_warm
        self.folder = folder
        self.executor = None
        self.started = {}
        self.outcomes = {}
        self.is_inside = False
        self.news = None

    def attempt_started(self, fence, pid, started):
        assert not self.is_inside, "told from inside start or kill"
        assert fence not in self.outcomes, "told of the start after the end"
        self.started[fence] = pid
        self.news.set()

    def attempt_ended(self, outcome):
        assert not self.is_inside, "told from inside start or kill"
        assert outcome.fence not in self.outcomes, "told twice"
        self.outcomes[outcome.fence] = outcome
        self.news.set()

    def play(self, scene):
        async def main():
            self.news = asyncio.Event()
            self.executor = self.make(self)
            try:
                async with asyncio.timeout(DEADLINE):
                    if self.is_warm and isinstance(self.executor, WarmExecutor):
                        await self.warm_up()
                    await scene()
            finally:
                await self.executor.close(0)

        self.runner(main())

    async def warm_up(self, **fields):
        """The first ones begin fresh; after that a template is up."""
        told, self.executor._observer = self.executor._observer, Silent()
        self.begin(self.script("", fence=0, **fields))
        await self.until(lambda: self.executor.is_warm(fields.get("preload", ())) and not self.executor._live)
        self.executor._observer = told

    def script(self, code, *args, fence=1, preload=(), **fields):
        """An attempt that is a Python script."""
        attempt = self.attempt(fence, sys.executable, "-u", "", *args, preload=preload, **fields)
        path = self.place(fence) / "script.py"
        path.write_text(code)
        return msgspec.structs.replace(attempt, argv=(*attempt.argv[:2], str(path), *args))

    def place(self, fence):
        return self.folder / format_fence(fence)

    def attempt(self, fence, *argv, env=None, cwd="/", **fields):
        place = self.place(fence)
        place.mkdir(exist_ok=True)
        given = {
            "PATH": PATH,
            "TITAN_FENCE": f"1.{fence}",
            "TITAN_ATTEMPT_DIR": str(place),
            "TITAN_RESULT": str(place / "result"),
        }
        return Attempt(
            fence, f"1/t[{fence}]", argv, given if env is None else env, cwd=cwd, attempt_dir=str(place), **fields
        )

    def start(self, fence, script, **fields):
        self.begin(self.attempt(fence, "sh", "-c", script, **fields))

    def begin(self, attempt):
        self.is_inside = True
        self.executor.start(self.played(attempt))
        self.is_inside = False

    def played(self, attempt):
        """The same in the way of this executor."""
        if self.is_warm and attempt.argv[:1] == ("sh",):
            path = self.folder / "become.py"
            if not path.exists():  # others may be reading it
                path.write_text(BECOME)
            argv = (sys.executable, "-u", str(path), *attempt.argv)
            attempt = msgspec.structs.replace(attempt, argv=argv, preload=())
        return attempt

    def kill(self, fence, grace):
        self.is_inside = True
        self.executor.kill(fence, grace)
        self.is_inside = False

    async def ended(self, fence):
        while fence not in self.outcomes:
            self.news.clear()
            await self.news.wait()
        return self.outcomes[fence]

    async def run(self, script, fence=1, **fields):
        self.start(fence, script, **fields)
        return await self.ended(fence)

    def output(self, fence=1):
        return (self.place(fence) / "output").read_bytes()

    async def until(self, condition):
        """Wait for something that nobody tells of; the deadline is that of the scene."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def shows(self, text, fence=1):
        places = [self.place(fence) / name for name in ("output", LIVE_NAME)]
        await self.until(lambda: any(place.exists() and text in place.read_bytes() for place in places))


class Silent:
    def attempt_started(self, fence, pid, started):
        pass

    def attempt_ended(self, outcome):
        pass


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


def open_files():
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return sorted(os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.lexists(f"/proc/self/fd/{name}"))


def reap_orphans():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


also_functions = pytest.mark.parametrize("stage", sorted(EXECUTORS), indirect=True)


@pytest.fixture(params=sorted(EXECUTORS.keys() - {"functions"}))
def stage(request, surroundings, uvloop, tmp_path):
    stage = Stage(EXECUTORS[request.param], tmp_path, request.param == "warm")
    stage.runner = uvloop.run if surroundings == "uvloop" else asyncio.run
    return stage


# ---------------------------------------------------------------- ending by itself


@also_functions
@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(stage, code):
    async def scene():
        outcome = await stage.run(f"echo hello; exit {code}")
        assert (outcome.ending, outcome.code) == (Ending.EXIT, code)
        assert outcome.output_size == 6 and stage.output() == b"hello\n"
        assert 0 < outcome.duration < DEADLINE
        assert abs(time.time() - outcome.started) < DEADLINE
        assert outcome.result == b""

    stage.play(scene)


@also_functions
def test_signal(stage):
    async def scene():
        outcome = await stage.run("kill -SEGV $$")
        assert (outcome.ending, outcome.code) == (Ending.SIGNAL, signal.SIGSEGV)

    stage.play(scene)


def test_start_is_told_before_the_end(stage):
    async def scene():
        for fence in range(1, 30):
            stage.begin(stage.attempt(fence, "true"))
        for fence in range(1, 30):
            await stage.ended(fence)
        assert sorted(stage.started) == list(range(1, 30))
        assert len(set(stage.started.values())) == 29

    stage.play(scene)


@also_functions
def test_output_is_both_streams_in_order_and_any_bytes(stage):
    async def scene():
        outcome = await stage.run(r"printf '\377\000a'; printf '\200b' >&2; printf c")
        assert stage.output() == b"\xff\x00a\x80bc"
        assert outcome.output_size == 6

    stage.play(scene)


@also_functions
def test_large_output(stage):
    async def scene():
        outcome = await stage.run("head -c 5000000 /dev/zero")
        assert (outcome.code, outcome.output_size) == (0, 5_000_000)

    stage.play(scene)


@also_functions
def test_file_limit_stops_what_writes_for_ever(stage):
    make = stage.make
    stage.make = lambda observer: make(observer, file_limit=1 << 20)

    async def scene():
        outcome = await stage.run("exec cat /dev/zero")
        assert (outcome.ending, outcome.code) == (Ending.SIGNAL, signal.SIGXFSZ)
        assert outcome.output_size == 1 << 20

    stage.play(scene)


def test_environment_is_what_was_given_and_nothing_else(stage, monkeypatch):
    monkeypatch.setenv("UNRELATED_SECRET", "leak")
    env = {"PATH": PATH, "A": "two words", "EMPTY": "", "ODD": "\udcff=\n"}

    async def scene():
        stage.begin(stage.attempt(1, "env", "-0", env=env))
        await stage.ended(1)
        shown = dict(os.fsdecode(line).split("=", 1) for line in stage.output().split(b"\0") if line)
        assert shown == env

    stage.play(scene)


def test_program_is_looked_up_on_the_path_of_the_attempt(stage, tmp_path):
    for name in ("first", "second", "work/third"):
        folder = tmp_path / "bin" / name
        folder.mkdir(parents=True)
        tool = folder / "tool"
        tool.write_text(f"#!/bin/sh\necho {name}\n")
        tool.chmod(0o755)
    (tmp_path / "bin/first/tool").chmod(0o644)
    paths = {f"{tmp_path}/bin/first:{tmp_path}/bin/second": b"second\n", "third": b"work/third\n"}

    async def scene():
        for fence, (path, expected) in enumerate(paths.items(), 1):
            stage.begin(stage.attempt(fence, "tool", env={"PATH": path}, cwd=f"{tmp_path}/bin/work"))
            outcome = await stage.ended(fence)
            assert (outcome.ending, stage.output(fence)) == (Ending.EXIT, expected), outcome.result

    stage.play(scene)


@also_functions
def test_many_at_once(stage):
    async def scene():
        for fence in range(1, 61):
            stage.start(fence, f"echo {fence}; exit {fence % 7}", timeout=60)
        for fence in range(1, 61):
            outcome = await stage.ended(fence)
            assert (outcome.ending, outcome.code) == (Ending.EXIT, fence % 7)
            assert stage.output(fence) == b"%d\n" % fence

    stage.play(scene)


@also_functions
def test_an_observer_that_fails_harms_nobody_else(stage):
    caught = []

    async def scene():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context["exception"]))
        told = stage.attempt_ended

        def fail_once(outcome):
            told(outcome)
            if outcome.fence == 1:
                raise RuntimeError("mine")

        stage.attempt_ended = fail_once
        stage.start(1, "exit 0")
        stage.start(2, "exit 0")
        await stage.ended(1)
        await stage.ended(2)

    stage.play(scene)
    assert [str(error) for error in caught] == ["mine"]


@also_functions
def test_an_observer_may_start_the_next(stage):
    async def scene():
        told = stage.attempt_ended

        def start_next(outcome):
            told(outcome)
            if outcome.fence < 5:
                stage.start(outcome.fence + 1, "exit 0")

        stage.attempt_ended = start_next
        stage.start(1, "exit 0")
        await stage.ended(5)

    stage.play(scene)


# ---------------------------------------------------------------- what cannot start


def hopeless(stage, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("text")
    bare = tmp_path / "bare"
    bare.write_text("echo")
    bare.chmod(0o755)
    lost = tmp_path / "lost"
    lost.write_text("#!/no/such/interpreter\n")
    lost.chmod(0o755)
    cases = [
        (stage.attempt(1, "no-such-program"), errno.ENOENT, "'no-such-program' was not found on PATH (/usr/local"),
        (stage.attempt(2, "/no/such/program"), errno.ENOENT, "/no/such/program does not exist"),
        (stage.attempt(3, str(plain)), errno.EACCES, "plain.txt is not executable"),
        (stage.attempt(4, str(tmp_path)), errno.EACCES, "is a folder"),
        (stage.attempt(5, str(bare)), errno.ENOEXEC, "no first line that names an interpreter"),
        (stage.attempt(6, str(lost)), errno.ENOENT, "names an interpreter in its first line (#!) that does not exist"),
        (stage.attempt(7, "true", cwd=f"{tmp_path}/none"), errno.ENOENT, "none does not exist"),
        (stage.attempt(8, "true", cwd=str(plain)), errno.ENOTDIR, "plain.txt is not a directory"),
        (stage.attempt(9, "true", "a\0b"), errno.EINVAL, "null byte"),
        (stage.attempt(10), errno.EINVAL, "the command is empty"),
        (stage.attempt(11, ""), errno.ENOENT, "does not exist"),
        (stage.attempt(12, "true", "x" * (4 << 20)), errno.E2BIG, "too long (4194"),
        (stage.attempt(13, "./gone", cwd=str(tmp_path)), errno.ENOENT, "./gone does not exist"),
    ]
    lost_place = stage.attempt(14, "true")
    stage.place(14).rmdir()
    return [*cases, (lost_place, errno.ENOENT, "/0.14/output does not exist")]


def test_what_cannot_start_says_why(stage, tmp_path):
    async def scene():
        cases = hopeless(stage, tmp_path)
        for attempt, _, _ in cases:
            stage.begin(attempt)
        assert not stage.outcomes
        for attempt, number, text in cases:
            outcome = await stage.ended(attempt.fence)
            assert (outcome.ending, outcome.code) == (Ending.NOT_STARTED, number), outcome
            assert text in outcome.result.decode(), outcome
        assert not stage.started

    stage.play(scene)


# ---------------------------------------------------------------- the result file


@pytest.mark.parametrize(
    ("script", "code", "result", "note"),
    [
        ("printf 'fine é' > $TITAN_RESULT", 0, "fine é".encode(), b""),
        ("printf half > $TITAN_RESULT; exit 4", 4, b"half", b""),
        (f"head -c {MAX_RESULT} /dev/zero > $TITAN_RESULT", 0, bytes(MAX_RESULT), b""),
        ("mkfifo $TITAN_RESULT", RESULT_REFUSED, b"", b"no regular file"),
        ("mkdir $TITAN_RESULT", RESULT_REFUSED, b"", b"no regular file"),
        ("ln -s /etc/passwd $TITAN_RESULT", RESULT_REFUSED, b"", b"cannot be read"),
    ],
)
def test_result(stage, script, code, result, note):
    async def scene():
        outcome = await stage.run(script)
        assert (outcome.ending, outcome.code, outcome.result) == (Ending.EXIT, code, result)
        assert note in stage.output() and bool(note) == bool(stage.output())
        assert outcome.output_size == len(stage.output())
        assert not outcome.is_file

    stage.play(scene)


@pytest.mark.parametrize("write", [f"head -c {MAX_RESULT + 1} /dev/zero", r"printf '\377'"], ids=["long", "no text"])
def test_a_result_that_is_no_short_text_stays_a_file(stage, write):
    async def scene():
        outcome = await stage.run(f"{write} > $TITAN_RESULT")
        assert (outcome.ending, outcome.code, outcome.result, outcome.is_file) == (Ending.EXIT, 0, b"", True)
        assert not stage.output()
        outcome = await stage.run(f"{write} > $TITAN_RESULT; exit 4", fence=2)
        assert (outcome.code, outcome.result, outcome.is_file) == (4, b"", False), "of a failure nobody needs it"
        outcome = await stage.run(f"{write} > $TITAN_RESULT; sleep 1000", fence=3, timeout=0.2, grace=DEADLINE)
        assert (outcome.ending, outcome.result, outcome.is_file) == (Ending.TIMEOUT, b"", False)

    stage.play(scene)


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
            stage.kill(fence, 0)
        for fence in range(1, 31):
            await stage.ended(fence)

    stage.play(scene)
    assert len(looks) < 60, looks


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


def living(are_templates_left=False):
    """Living processes that were started here, wherever they have gone; a template is none of them while it serves."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and (are_templates_left or not is_template(child)):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def children_but_templates():
    return [child for child in psutil.Process().children() if not is_template(child)]


def is_template(process):
    with contextlib.suppress(psutil.ZombieProcess):
        return any(part.endswith("_template.py") for part in process.cmdline())
    return False


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


# ---------------------------------------------------------------- the parts of tree


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
