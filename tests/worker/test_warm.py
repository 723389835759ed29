"""Scripts that begin as forks see what a fresh interpreter shows them; no template's end costs or doubles one.

The corpus is played twice, warm and by a fresh interpreter; output and exit code must be the same.
"""

# ruff: noqa: E501  (a script stays on its line)

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from titan_fast.ids import Ending
from titan_fast.worker.executors import warm
from titan_fast.worker.executors.base import Attempt
from titan_fast.worker.executors.warm import WarmExecutor

DEADLINE = 30.0
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates are there on Linux")


class Stage:
    """A warm executor and what it told."""

    def __init__(self, folder):
        self.folder = folder
        self.executor = None
        self.started = {}
        self.outcomes = {}
        self.news = None
        self.env = ENV
        self.options = {}

    def attempt_started(self, fence, pid, at):
        self.started[fence] = pid
        self.news.set()

    def attempt_ended(self, outcome):
        assert outcome.fence not in self.outcomes, "told twice"
        self.outcomes[outcome.fence] = outcome
        self.news.set()

    def play(self, scene):
        async def main():
            self.news = asyncio.Event()
            self.executor = WarmExecutor(self, env=self.env, **self.options)
            try:
                async with asyncio.timeout(DEADLINE):
                    await scene()
            finally:
                await self.executor.close(0)

        asyncio.run(main())
        reap_orphans()
        assert not psutil.Process().children(), "somebody is left"

    async def until(self, condition):
        """Wait for something that nobody tells of; the deadline is that of the scene."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def up(self, preload=(), env=None):
        """Wait until a template is; gives its process. Who asks makes one, so who met the end of the last asks again."""
        pids = []
        while not pids or not self.executor.is_warm(preload):
            self.start(0, "", preload=preload, env=env)
            await self.ended(0)
            del self.outcomes[0]
            await self.until(lambda: self.executor.is_warm(preload) or not self._pids(preload))
            pids = self._pids(preload)
        return psutil.Process(pids[0])

    def _pids(self, preload):
        return [template.pid for kind, template in self.executor._templates.items() if kind.preload == preload]

    def place(self, fence):
        return self.folder / str(fence)

    def attempt(self, fence, code, *args, env=None, preload=(), script=None, cwd="/", **fields):
        place = self.place(fence)
        place.mkdir(exist_ok=True)
        path = script or place / "script.py"
        if script is None:
            path.write_text(textwrap.dedent(code))
        given = {
            **ENV,
            "PYTHONUNBUFFERED": "1",
            "TITAN_FENCE": f"1.{fence}",
            "TITAN_ATTEMPT_DIR": str(place),
            **(env or {}),
        }
        argv = (sys.executable, "-u", str(path), *args)
        return Attempt(fence, "1/t", argv, given, str(cwd), str(place), preload=preload, **fields)

    def start(self, fence, code, *args, **fields):
        """Whether it was ordered of a template."""
        self.executor.start(self.attempt(fence, code, *args, **fields))
        return fence in self.executor._asked

    async def ended(self, fence):
        while fence not in self.outcomes:
            self.news.clear()
            await self.news.wait()
        return self.outcomes[fence]

    async def run(self, code, *args, fence=1, is_warm=True, **fields):
        assert self.start(fence, code, *args, **fields) is is_warm
        return await self.ended(fence)

    def output(self, fence=1):
        return (self.place(fence) / "output").read_bytes().decode()


def reap_orphans():
    """What scripts left behind and has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture
def stage(tmp_path):
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what escapes turns up here
    return Stage(tmp_path)


# ---------------------------------------------------------------- the same as a fresh interpreter

CORPUS = {
    "modules that the template has are taken away": """
        import sys, weakref
        class Last:
            def __del__(self):
                print("gone")
        last = Last()
        import decimal
        decimal.last = last
        for name in ("os", "marshal", "time", "io", "codecs"):
            sys.modules.pop(name, None)
        import time
    """,
    "it is not in sys.modules any more": """
        import sys
        del sys.modules["__main__"]
        print("still here")
    """,
    "the compiler warns": """
        print((1 + 1) is 2)
    """,
    "more than is compiled before the fork": """
        def add(a, b):
            return a + b
        print(add(1, 2))
    """
    + "# "
    + "x" * 9000,
    "nothing": "",
    "hello": "print('hello'); import sys; print('err', file=sys.stderr)",
    "bytes": "import sys; sys.stdout.buffer.write(bytes(range(256)))",
    "args": "import sys; print(sys.argv[1:], sys.orig_argv[3:], sys.executable)",
    "path": "import sys; print(sys.path[1:], sys.path[0] == __file__.rpartition('/')[0])",
    "names": "print(list(globals())); print(__name__, __doc__, __package__, __spec__, type(__loader__), __builtins__)",
    "docstring": "'''what it is'''\nprint(__doc__)",
    "flags": "import sys; print(sys.flags, sys.warnoptions, sys.dont_write_bytecode, sys.getrecursionlimit())",
    "streams": """
        import sys
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            print(stream.name, stream.mode, stream.encoding, stream.errors, stream.line_buffering, stream.isatty())
        print(sys.stdout.write_through, sys.stdout.seekable(), sys.stdin.read() == '', sys.stdout is sys.__stdout__)
        """,
    "environment": "import os; print(sorted(os.environ.items())[:3], len(os.environ), os.getenv('A B'), os.environb[b'X'])",
    "environment of what it starts": "import subprocess; print(subprocess.run(['env'], capture_output=True).stdout[:40])",
    "environment changed": """
        import os, subprocess
        os.environ['NEW'] = 'n'; del os.environ['X']
        print(subprocess.run('echo $NEW-$X-$HOME', shell=True, capture_output=True, text=True).stdout)
        """,
    "as the system shows it": r"""
        import os
        for name in ('environ', 'cmdline'):
            with open(f'/proc/self/{name}') as file:
                print([part for part in file.read().split('\0') if 'script' not in part and '1.' not in part
                       and 'ATTEMPT_DIR' not in part])
        """,
    "signals": """
        import signal
        for number in sorted(signal.valid_signals()):
            print(number, signal.getsignal(number))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """,
    "descriptors": "import os; print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))",
    "process": "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0), os.getcwd(), os.umask(0))",
    "thread id": "import threading; print(threading.get_native_id() == __import__('os').getpid(), threading.active_count())",
    "collector": "import gc; print(gc.isenabled(), gc.get_threshold(), gc.garbage)",
    "exit none": "import sys; print(1); sys.exit()",
    "exit zero": "raise SystemExit(0)",
    "exit number": "raise SystemExit(7)",
    "exit large": "raise SystemExit(258)",
    "exit huge": "raise SystemExit(1 << 80)",
    "exit negative": "raise SystemExit(-1)",
    "exit true": "raise SystemExit(True)",
    "exit text": "raise SystemExit('no more')",
    "exit tuple": "raise SystemExit(1, 2)",
    "exit object": "raise SystemExit([1])",
    "exit at once": "import os, atexit; atexit.register(print, 'never'); os._exit(9)",
    "uncaught": "def f(n):\n    return 1 / n\n\nf(0)",
    "uncaught chain": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "uncaught group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "uncaught in a thread": "import threading; t = threading.Thread(target=lambda: 1 / 0, name='t'); t.start(); t.join()",
    "uncaught with a note": "e = ValueError('x'); e.add_note('look'); raise e",
    "recursion": "def f(): f()\ntry:\n    f()\nexcept RecursionError as e:\n    print(e)",
    "syntax error": "def f(:\n",
    "syntax error in what is imported": "import ast; ast.parse('a b', 'f.py')",
    "not utf-8": "# -*- coding: latin-1 -*-\nprint('\xe9')",
    "nul": "print(1)\0",
    "excepthook": "import sys; sys.excepthook = lambda *a: print('mine', a[0], a[2].tb_lineno); raise ValueError",
    "excepthook fails": "import sys\ndef hook(*a): raise TypeError('hook')\nsys.excepthook = hook\nraise ValueError('v')",
    "excepthook exits": "import sys\ndef hook(*a): raise SystemExit(4)\nsys.excepthook = hook\nraise ValueError('v')",
    "keyboard interrupt": "raise KeyboardInterrupt",
    "killed by itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "aborted": "import os; os.abort()",
    "exit functions": "import atexit; atexit.register(print, 'b'); atexit.register(print, 'a'); print('end')",
    "exit function fails": "import atexit; atexit.register(print, 'b')\ndef f(): 1 / 0\natexit.register(f)",
    "a thread goes on": """
        import threading, time
        threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()
        import atexit; atexit.register(print, 'after')
        """,
    "a daemon thread": "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    "a file is not closed": """
        import atexit
        f = open(__file__ + '.out', 'w'); f.write('kept')
        atexit.register(lambda: print(repr(open(__file__ + '.out').read())))
        """,
    "finalizers": """
        import weakref
        class A:
            def __init__(self, name): self.name = name
            def __del__(self): print('del', self.name)
        def f(): return a
        a = A('a'); b = A('b'); cycle = A('c'); cycle.me = cycle
        weakref.finalize(b, print, 'finalize b')
        """,
    "stdout closed": "import sys; sys.stdout.close()",
    "stdout gone": "import os, sys; sys.stdout = open(1, 'w', closefd=False); print('lost'); os.close(1)",
    "stdout none": "import sys; sys.stdout = sys.stderr = None; raise SystemExit('unheard')",
    "unbuffered": "import os, sys; sys.stdout.write('no newline'); os._exit(0)",
    "order of streams": "import os, sys\nfor n in range(5):\n    print(n); os.write(1, b'-'); print(n, file=sys.stderr)",
    "warnings": "import warnings; warnings.warn('careful'); warnings.warn('old', DeprecationWarning)",
    "regular expressions": "import re, enum, json, random; print(re.sub('a', 'b', 'aa'), json.dumps({1: [2]}))",
    "source": "import inspect\ndef f(x):\n    return x + 1\nprint(inspect.getsource(f))",
    "main is importable": "import __main__, sys; x = 5; print(__main__.x, sys.modules['__main__'] is __main__)",
    "pickle": """
        import pickle
        class Point:
            def __init__(self, x): self.x = x
        print(pickle.loads(pickle.dumps(Point(3))).x, pickle.dumps(Point).count(b'__main__'))
        """,
    "subprocess": "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(6 * 7)']))",
    "subprocess fails": "import subprocess; subprocess.run(['false'], check=True)",
    "multiprocessing fork": """
        import multiprocessing
        def square(n): return n * n
        if __name__ == '__main__':
            with multiprocessing.get_context('fork').Pool(2) as pool:
                print(pool.map(square, range(5)))
        """,
    "multiprocessing spawn": """
        import multiprocessing
        def square(n): return n * n
        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                print(pool.map(square, range(5)))
        """,
    "threads": "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t: print(list(t.map(abs, [-1, 2])))",
    "fork": "import os, sys\nif os.fork() == 0: print('child'); sys.exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
    "asyncio": "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print('ran')\nasyncio.run(main())",
    "fault handler": "import faulthandler; faulthandler.enable(); import ctypes; print(ctypes.sizeof(ctypes.c_int))",
    "logging": "import logging; logging.warning('hm'); logging.getLogger('a').error('x')",
    "memory": "x = bytearray(50 << 20); x[::4096] = b'1' * len(x[::4096]); print(len(x))",
    "brk": "a = [object() for _ in range(300000)]; del a; print('fine')",
    "sys hooks": "import sys; sys.settrace(None); print(sys.gettrace(), sys.getprofile(), sys.breakpointhook is None)",
}


@pytest.mark.parametrize("size", [10, 40_000, 120_000])
def test_arguments_of_any_length_are_shown_and_told_apart_by(stage, size):
    async def scene():
        await stage.up()
        code = "import sys; shown = open('/proc/self/cmdline').read().split('\\0'); print(len(sys.argv[1]), shown[3] == sys.argv[1], len(shown))"
        assert (await stage.run(code, "x" * size)).code == 0
        assert stage.output() == f"{size} True 5\n"

    stage.play(scene)


def test_an_order_that_is_too_long_for_a_template_begins_fresh(stage):
    async def scene():
        await stage.up()
        many = ["x" * 1000] * 300
        await stage.run("import sys; print(len(sys.argv))", *many, is_warm=False)
        assert stage.output() == "301\n"

    stage.play(scene)


def test_both_sides_agree_on_how_long_an_order_may_be():
    (line,) = [line for line in Path(warm._TEMPLATE).read_text().splitlines() if line.startswith("MAX_ORDER = ")]
    assert eval(line.partition("=")[2]) == warm.MAX_ORDER


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_a_script_shows_and_ends_as_by_a_fresh_interpreter(stage, name):
    code = textwrap.dedent(CORPUS[name])
    script = stage.folder / "script.py"
    script.write_bytes(code.encode("latin-1"))
    fields = {"script": script, "env": {"X": "1", "A B": "c=d"}}

    async def scene():
        await stage.up()
        found = await stage.run(code, "one", "two words", "", **fields)
        assert stage.start(2, code, "one", "two words", "", preload=None, **fields) is False
        expected = await stage.ended(2)
        assert (found.ending, found.code) == (expected.ending, expected.code), stage.output()
        assert cleaned(stage, 1) == cleaned(stage, 2)
        again = await stage.run(code, "one", "two words", "", fence=3, **fields)  # what was compiled is known now
        assert (again.ending, again.code, cleaned(stage, 3)) == (found.ending, found.code, cleaned(stage, 1))

    stage.play(scene)


def cleaned(stage, fence):
    """Without what is different in every process."""
    text = (stage.place(fence) / "output").read_bytes().decode("latin-1")
    return re.sub(r"0x[0-9a-f]+|Thread-\d+|pid=\d+|'\d+\.\d+'", "N", text)


# ---------------------------------------------------------------- what a fork begins with, line by line


def test_what_was_there_before_the_fork_is_left_alone_by_the_collector(stage):
    async def scene():
        await stage.up()
        await stage.run("import gc; print(gc.get_freeze_count())")
        assert int(stage.output()) > 1000

    stage.play(scene)


def test_nor_is_what_the_template_compiled_for_others_since(stage):
    """The collection at a child's end would visit all of it, and copy the pages it is on."""

    async def scene():
        await stage.up()
        for fence in range(1, 21):
            await stage.run(f"print({fence}, 'of', ({fence}, 20))", fence=fence)
        await stage.run("import gc; print(len(gc.get_objects()))", fence=21)
        assert int(stage.output(21)) < 250

    stage.play(scene)


def test_it_leads_a_session_when_its_start_is_told_and_is_the_agents_child(stage):
    async def scene():
        await stage.up()
        stage.start(1, "import time; time.sleep(99)")
        await stage.until(lambda: 1 in stage.started)
        pid = stage.started[1]
        assert os.getsid(pid) == os.getpgid(pid) == pid
        assert psutil.Process(pid).ppid() == os.getpid()
        stage.executor.kill(1, 0)
        assert (await stage.ended(1)).ending is Ending.KILLED

    stage.play(scene)


def test_its_output_is_appended_to(stage):
    async def scene():
        await stage.up()
        await stage.run("import fcntl, os; print([bool(fcntl.fcntl(n, fcntl.F_GETFL) & os.O_APPEND) for n in (1, 2)])")
        assert stage.output() == "[True, True]\n"

    stage.play(scene)


def test_its_files_are_limited_and_the_templates_are_not(stage):
    stage.options = {"file_limit": 1 << 20}

    async def scene():
        template = await stage.up()
        await stage.run("import resource; print(resource.getrlimit(resource.RLIMIT_FSIZE))")
        assert stage.output() == f"{(1 << 20, 1 << 20)}\n"
        assert template.rlimit(psutil.RLIMIT_FSIZE) != (1 << 20, 1 << 20)

    stage.play(scene)


def test_it_is_no_ones_twin_by_chance(stage):
    async def scene():
        await stage.up(("random",))
        for fence in (1, 2):
            await stage.run("import random; print(random.random())", fence=fence, preload=("random",))
        assert stage.output(1) != stage.output(2)

    stage.play(scene)


def test_it_writes_itself_down_before_it_runs_anything(stage, tmp_path):
    journal = os.open(tmp_path / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Notes:
        def spawn_note(self, fence):
            return journal, b"[%d," % fence

        def spawned(self, fence, pid, at): ...
        def stopping(self, fence, ending): ...
        def exited(self, exits): ...

    stage.options = {"recorder": Notes()}

    async def scene():
        await stage.up()
        code = f"import os; print([line for line in open({str(tmp_path / 'journal')!r}) if '[1,' in line], os.getpid())"
        await stage.run(code)
        assert re.fullmatch(r"\['\[1,(\d+),\d+\.\d{6}\]\\n'\] \1\n", stage.output())

    stage.play(scene)
    os.close(journal)


def test_a_changed_script_is_not_taken_for_the_old_one(stage, tmp_path):
    script = tmp_path / "changing.py"

    async def scene():
        await stage.up()
        for fence, text in enumerate(("print(1)", "print(1)", "print(2)", "print(3)"), 1):
            if not script.exists() or script.read_text() != text:
                script.unlink(missing_ok=True)
                script.write_text(text)
            await stage.run("", fence=fence, script=script)
            assert stage.output(fence) == text[6] + "\n"

    stage.play(scene)


def test_what_lies_beside_a_script_comes_before_what_the_template_has(stage):
    async def scene():
        await stage.up()
        (stage.place(1)).mkdir()
        (stage.place(1) / "ctypes.py").write_text("print('mine')")
        await stage.run("import ctypes")
        assert stage.output() == "mine\n"

    stage.play(scene)


def test_what_comes_to_lie_beside_a_script_later_does_too(stage, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    script = folder / "script.py"
    script.write_text("import ctypes; print(getattr(ctypes, 'MINE', False))")

    async def scene():
        await stage.up()
        await stage.until(lambda: time.time_ns() - folder.stat().st_ctime_ns > 100_000_000)  # settled: it is remembered
        for fence in (1, 2):
            await stage.run("", fence=fence, script=script)
            assert stage.output(fence) == "False\n"
        (folder / "ctypes.py").write_text("MINE = True")
        await stage.run("", fence=3, script=script)
        assert stage.output(3) == "True\n"

    stage.play(scene)


def test_a_folder_that_is_not_there_is_told_as_by_any_other_start(stage):
    async def scene():
        await stage.up()
        assert stage.start(1, "", cwd="/none")
        outcome = await stage.ended(1)
        assert outcome.ending is Ending.NOT_STARTED
        assert outcome.result == b"the working directory /none does not exist"

    stage.play(scene)


# ---------------------------------------------------------------- who begins warm


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "MALLOC_ARENA_MAX", "LC_ALL", "TZ"]
)
def test_what_an_interpreter_reads_when_it_begins_asks_for_one(stage, name):
    async def scene():
        await stage.up()
        await stage.run(f"import os; print(os.environ[{name!r}])", env={name: "0"}, is_warm=False)
        assert stage.output() == "0\n"
        await stage.run("", fence=2, env={"OTHER": "0", "PYTHONUNBUFFERED": ""})

    stage.play(scene)


def test_the_same_as_the_templates_own_is_no_reason(stage):
    stage.env = {**ENV, "TZ": "Asia/Tokyo"}

    async def scene():
        await stage.up(env={"TZ": "Asia/Tokyo"})
        await stage.run("import time; print(time.tzname[0])", env={"TZ": "Asia/Tokyo"})
        assert stage.output() == "JST\n"
        await stage.run("import time; print(time.tzname[0])", fence=2, env={"TZ": "UTC"}, is_warm=False)
        assert stage.output(2) == "UTC\n"

    stage.play(scene)


# ---------------------------------------------------------------- what is loaded before


def test_modules_are_there_before_the_script_asks(stage):
    async def scene():
        await stage.up(("json", "decimal"))
        await stage.run("import sys; print('decimal' in sys.modules)", preload=("json", "decimal"))
        assert stage.output() == "True\n"

    stage.play(scene)


def test_a_module_beside_the_script_is_loaded_from_there(stage, tmp_path):
    (tmp_path / "mine.py").write_text("import os; pid = os.getpid()")
    script = tmp_path / "script.py"
    script.write_text("import mine, os; print(mine.pid != os.getpid())")

    async def scene():
        stage.start(1, "", script=script, preload=("mine",))
        await stage.ended(1)
        await stage.until(lambda: stage.executor.is_warm(("mine",)))
        await stage.run("", fence=2, script=script, preload=("mine",))
        assert [stage.output(1), stage.output(2)] == ["False\n", "True\n"]

    stage.play(scene)


UNFIT = {
    "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()": "1 threads run",
    "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(99))": "it hangs for 0.3 s",
    "import os\nos.register_at_fork(after_in_child=lambda: os._exit(3))": "exit code 3",
    "raise ValueError('not here')": "unfit cannot be loaded: ValueError: not here",
    "import os; os._exit(5)": "it ended",
}


@pytest.mark.parametrize("code", UNFIT)
def test_what_no_fork_could_use_is_not_loaded_before_and_that_is_said_once(stage, tmp_path, monkeypatch, caplog, code):
    template = tmp_path / "_template.py"
    template.write_text(Path(warm._TEMPLATE).read_text().replace("PROBE_TIME = 5.0", "PROBE_TIME = 0.3"))
    monkeypatch.setattr(warm, "_TEMPLATE", str(template))
    (tmp_path / "unfit.py").write_text(code)
    script = tmp_path / "script.py"
    script.write_text("print('ran')")

    async def scene():
        await stage.up()
        fence = 0
        while not stage.executor._refused:
            fence += 1
            stage.start(fence, "", script=script, preload=("unfit",))
            await stage.ended(fence)
            await asyncio.sleep(0.02)
        for fence in (1001, 1002):
            await stage.run("", fence=fence, script=script, preload=("unfit",))
            assert stage.outcomes[fence].code == 0
        assert "nothing is preloaded: " in stage.output(1001) and UNFIT[code] in stage.output(1001)
        assert stage.output(1002) == "ran\n"
        assert len([line for line in caplog.messages if "unfit: not preloaded" in line]) == 1

    stage.play(scene)


def test_a_few_templates_are_kept_and_the_one_not_used_for_longest_goes(stage):
    kinds = [(), ("json",), ("decimal",), ("fractions",), ("random",)]

    async def scene():
        for preload in kinds[:4]:
            await stage.up(preload)
        await stage.run("", preload=())
        await stage.up(kinds[4])
        assert [stage.executor.is_warm(preload) for preload in kinds] == [True, False, True, True, True]

    stage.play(scene)


# ---------------------------------------------------------------- the end of a template


def counted(stage, fence):
    """A script that tells how often it ran."""
    return f"open({str(stage.folder / 'ran')!r}, 'a').write('{fence}\\n')"


@pytest.mark.kill
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_what_a_template_did_not_begin_begins_fresh_and_once(stage, monkeypatch, how):
    monkeypatch.setattr(warm, "PATIENCE", 0.2)

    async def scene():
        template = await stage.up()
        template.suspend()
        for fence in range(1, 6):
            assert stage.start(fence, counted(stage, fence))
        if how == "killed":
            template.kill()
        for fence in range(1, 6):
            outcome = await stage.ended(fence)
            assert (outcome.ending, outcome.code) == (Ending.EXIT, 0)
        assert sorted((stage.folder / "ran").read_text().split()) == list("12345")
        assert await stage.up() != template, "there is another one"
        await stage.run("print('warm')", fence=9)

    stage.play(scene)


@pytest.mark.kill
def test_templates_killed_at_any_moment_cost_nothing_and_double_nothing(stage):
    async def scene():
        for turn in range(1, 13):
            template = await stage.up()
            await stage.run("", fence=10 * turn)
            fences = range(10 * turn + 1, 10 * turn + 7)
            for fence in fences:
                stage.start(fence, counted(stage, fence))
                if fence % 6 == turn % 6:
                    await asyncio.sleep(0.0007 * turn)
                    template.kill()
            for fence in fences:
                assert (await stage.ended(fence)).code == 0
        ran = (stage.folder / "ran").read_text().split()
        assert len(ran) == len(set(ran)) == 72

    stage.play(scene)


def test_a_template_that_always_has_something_to_answer_does_not_hang(stage, monkeypatch):
    monkeypatch.setattr(warm, "PATIENCE", 0.1)

    async def scene():
        template = await stage.up()
        began, fence = time.monotonic(), 0
        while time.monotonic() < began + 0.4 or fence < 3:
            for _ in range(2):  # the next is ordered before the last has been answered
                fence += 1
                assert stage.start(fence, "")
            await stage.until(lambda fence=fence: fence - 1 in stage.started)
        assert await stage.up() == template

    stage.play(scene)


@pytest.mark.kill
def test_children_outlive_their_template(stage):
    async def scene():
        template = await stage.up()
        stage.start(1, "import time; time.sleep(0.3); print('done'); raise SystemExit(6)")
        await stage.until(lambda: 1 in stage.started)
        template.kill()
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code, stage.output()) == (Ending.EXIT, 6, "done\n")

    stage.play(scene)


@pytest.mark.kill
def test_templates_that_never_come_up_are_given_up(stage, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(warm, "_TEMPLATE", str(tmp_path / "none.py"))

    async def scene():
        fence = 0
        while not stage.executor._refused:
            fence += 1
            await stage.run("", fence=fence, is_warm=False)
            await asyncio.sleep(0.02)
        assert stage.executor._templates == {}
        assert "No such file" in caplog.messages[-1]

    stage.play(scene)


@pytest.mark.kill
def test_what_was_ordered_can_be_killed_before_it_begins(stage):
    async def scene():
        template = await stage.up()
        template.suspend()
        stage.start(1, "import time; time.sleep(99)", grace=99)
        stage.executor.kill(1, 99)
        stage.executor.kill(1, 0)
        template.resume()
        outcome = await stage.ended(1)
        assert (outcome.ending, outcome.code) == (Ending.KILLED, -signal.SIGKILL)

    stage.play(scene)
