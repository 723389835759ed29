"""What the tests of executors play on: any of the executors, who is told, attempts by number, and what is left of them.

Functions are no executor, but an attempt may be one that waits for its command: `also_functions` is what they promise,
too. Not what belongs to a process of one's own: adoption, arguments, and a tree that ends with its first process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shlex
import struct
import sys

import cloudpickle
import msgspec
import psutil
import pytest

from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import _pool
from titan_fast.worker.executors.base import Attempt, Outcome
from titan_fast.worker.executors.functions import LIVE_NAME, MOMENT, Functions
from titan_fast.worker.executors.lane import Function, Kind
from titan_fast.worker.executors.spawn import FILE_LIMIT, SpawnExecutor
from titan_fast.worker.executors.warm import WarmExecutor
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
