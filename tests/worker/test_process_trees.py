"""A real worker and attempts that do not want to end: whatever they fork, when an outcome is reported nobody is left,
and nobody else was hit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from report import Report

from titan_fast.ids import Ending, format_fence, make_fence
from titan_fast.model.spec import Work

TREES, TREES_LONG = 60, 500
SLOTS = 6
AT_A_TIME = SLOTS - 1
"""One slot belongs to an attempt that has nothing to do with all this."""
PATIENCE = 30.0
"""Seconds for an attempt to be over, however hard it clings."""
OWN_END = 7
UNRULY = Path(__file__).with_name("unruly.py")
COMMAND = "pytest tests/worker/test_process_trees.py"

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="trees are told apart by what Linux shows of them"),
]


class Tree:
    """One attempt, and how it is to end."""

    def __init__(self, seed, folder):
        chance = random.Random(-seed)
        self.seed = seed
        self.fence = make_fence(1, seed + 1)
        self.ending = (Ending.TIMEOUT, Ending.KILLED, Ending.EXIT)[seed % 3]
        self.grace = chance.choice([0, 0.05, 0.3])
        self.is_let_grow = chance.random() < 0.7
        """It is killed when it is up, not before."""
        self._ledger = folder / f"ledger{seed}"
        end = str(OWN_END) if self.ending is Ending.EXIT else "hang"
        args = (str(seed), str(self._ledger), end)
        command = (sys.executable, "-I", "-S", str(UNRULY), *args)
        is_script = seed % 2 == 0
        """It begins as a fork of a template, once one is up."""
        self.is_function = seed % 4 == 1 and self.ending is not Ending.EXIT
        """What that starts is let be when it returns."""
        what = {"argv": command}
        if is_script:
            what = {"file": UNRULY.name, "args": args}
        elif self.is_function:
            what = {"function": 0}
        timeout = chance.uniform(0.05, 1.5) if self.ending is Ending.TIMEOUT else 0.0
        self.assignment = {"run": seed, "work": Work(timeout=timeout, grace=self.grace, **what)}
        if self.is_function:
            item = pickle.dumps(command)
            blob = bytes(4) + len(item).to_bytes(4, "big") + item
            self.assignment |= {"parts": (pickle.dumps(subprocess.call),), "payload": blob}

    def signatures(self):
        """[pid, start, kind] or [pid, start] each."""
        return [line.split() for line in self._ledger.read_text().splitlines()] if self._ledger.exists() else []

    @property
    def processes(self):
        return {(int(pid), start) for pid, start, *_ in self.signatures()}

    @property
    def living(self):
        return sorted(pid for pid, start in self.processes if start == start_of(pid))

    @property
    def kinds(self):
        """Of the processes that are what they wanted to be; and ``up`` when all are."""
        return {signature[2] for signature in self.signatures() if len(signature) > 2}

    def __repr__(self):
        return f"tree {self.seed} ({', '.join(sorted(self.kinds))}; {self.ending.name})"


def start_of(pid):
    """When the process that has this number was started, as its tree wrote it down; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Strangers:
    """Processes that look like one of an attempt's, and are none."""

    def __init__(self, work_dir):
        self.processes = []
        self._work_dir = work_dir

    def gather(self, fence):
        """Around an attempt that has just started: their numbers are close to its own."""
        place = self._work_dir / "attempts" / format_fence(fence)
        name = {"TITAN_FENCE": format_fence(fence)}
        self._start(env={**name, "TITAN_ATTEMPT_DIR": str(place.with_name("elsewhere"))})  # another cluster's
        self._start(env={"TITAN_ATTEMPT_DIR": str(place), "TITAN_FENCE": format_fence(fence) + "0"})
        self._start(env={"PATH": os.environ["PATH"]}, start_new_session=False)
        output = place / "output"
        if output.exists():
            with output.open("rb") as file:  # as of somebody who follows it with tail -f
                self._start(env=name, stdin=file)

    def _start(self, **options):
        options = {"start_new_session": True, "stdin": subprocess.DEVNULL, **options}
        self.processes.append(subprocess.Popen(["sleep", "1000"], **options))

    @property
    def hit(self):
        """Numbers of those that have ended."""
        return [process.pid for process in self.processes if process.poll() is not None]

    def part(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Theatre:
    """A scripted master with a real worker, on which trees are played."""

    def __init__(self, session, strangers):
        self._session, self._strangers = session, strangers
        self._room = asyncio.Semaphore(AT_A_TIME)

    async def until(self, condition, what):
        """Some things no master hears of: look again and again, saying something, for a silent master is left."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._session.ack(0)
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE} s: {what}") from None

    def reports(self, fence):
        return [(ending, code) for told, ending, code in self._session.results() if told == fence]

    async def play(self, tree):
        async with self._room:
            self._session.assign(tree.fence, **tree.assignment)
            await self.until(lambda: tree.processes or self.reports(tree.fence), f"{tree} begins")
            self._strangers.gather(tree.fence)
            if tree.ending is Ending.KILLED:
                if tree.is_let_grow:
                    await self.until(lambda: "up" in tree.kinds, f"{tree} is up")
                self._session.kill(tree.fence, int(tree.grace * 1000))
            await self.until(lambda: self.reports(tree.fence), f"{tree} is over")
            assert not tree.living, f"{tree} is over, and these are left: {tree.living}"

    async def play_all(self, trees, quiet):
        """``quiet``: an attempt that runs beside them all and has nothing to do with it."""
        self._session.assign(quiet.fence, run=quiet.seed, work=quiet.work)
        await asyncio.gather(*(self.play(tree) for tree in trees))
        assert not self.reports(quiet.fence), "a neighbour was hit"
        quiet.may_end()
        await self.until(lambda: self.reports(quiet.fence), "the neighbour has ended")
        assert self.reports(quiet.fence) == [(Ending.EXIT, 0)]
        for tree in trees:
            [(ending, code)] = self.reports(tree.fence)
            assert ending is tree.ending, tree
            assert ending is not Ending.EXIT or code == OWN_END, tree
        assert not self._strangers.hit, "strangers were hit"


class Quiet:
    def __init__(self, folder):
        self.seed = 0
        self.fence = make_fence(1, 1)
        self._go = folder / "go"
        self.work = Work(argv=("sh", "-c", f"until [ -e {self._go} ]; do sleep 0.05; done"))

    def may_end(self):
        self._go.touch()


def everybody(pid):
    return [child for child in psutil.Process(pid).children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def is_template(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(part.endswith("_template.py") for part in process.cmdline())
    return False


@pytest.mark.parametrize("count", [TREES, pytest.param(TREES_LONG, marks=pytest.mark.long)])
def test_whatever_an_attempt_forks_nobody_is_left_and_nobody_else_is_hit(make_master, tmp_path, count):
    is_long = count == TREES_LONG
    trees = [Tree(seed, tmp_path) for seed in range(1, count + 1)]
    work_dir = tmp_path / "work"
    strangers = Strangers(work_dir)

    async def scene():
        master = make_master()
        await master.open()
        lay_out(work_dir, trees, master.history)
        worker = start_worker(master.address, tmp_path)
        try:
            session = await master.attached()
            session.keep_all()
            theatre = Theatre(session, strangers)
            await theatre.play_all(trees, Quiet(tmp_path))
            assert len(master.sessions) == 1, "the worker was never gone"
            theirs = "its agent, and what that forks scripts from, is all that runs below the keeper"
            await theatre.until(lambda: [is_template(each) for each in everybody(worker.pid)] == [False, True], theirs)
        finally:
            worker.terminate()
            code = await asyncio.to_thread(worker.wait, PATIENCE)
            await master.close()
        assert code == 0

    with Report("process-trees", f"{COMMAND}{' --long' if is_long else ''}", is_long) as report:
        try:
            asyncio.run(scene())
        finally:
            figures = report.figures
            figures |= {"trees": len(trees), "trees of functions": sum(tree.is_function for tree in trees)}
            figures |= {"strangers": len(strangers.processes), "strangers hit": len(strangers.hit)}
            figures |= {"processes": sum(len(tree.processes) for tree in trees)}
            figures |= {"survivors": sum(len(tree.living) for tree in trees)}
            kinds = Counter(kind for tree in trees for kind in tree.kinds - {"up", "continued"})
            figures |= {f"trees with {kind.replace('_', ' ')}": kinds[kind] for kind in sorted(kinds)}
            strangers.part()
            fell(trees)


def lay_out(work_dir, trees, history):
    """Working copies with the script in them, as an earlier agent would have left them."""
    for tree in trees:
        copy = work_dir / "runs" / str(tree.seed)
        copy.mkdir(parents=True)
        (copy / UNRULY.name).symlink_to(UNRULY)
    (work_dir / "history").write_text(history)


def fell(trees):
    """What a test that failed has left; some of it forks while it is looked for."""
    while left := [pid for tree in trees for pid in tree.living]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start_worker(address, folder):
    host, port = address[:2]
    token = folder / "token"
    token.write_text("worker-token\n")
    options = ["--master", f"{host}:{port}", "--token-file", token, "--work-dir", folder / "work", "--slots", SLOTS]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "titan_fast", "worker", "--name", "w1", *map(str, options)],
            env={**os.environ, "TITAN_HOME": str(folder / "home")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
