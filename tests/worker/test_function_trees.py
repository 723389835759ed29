"""What a function has started, when it is ended by force or its process dies: gone before anybody is told, and nobody
else is hit. The processes are real, and as unruly as those of commands."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
from test_functions import DEADLINE, FIRST, KIND, Stage

from titan_fast.ids import Ending, format_fence
from titan_fast.worker.executors import functions as functions_module
from titan_fast.worker.executors import tree

UNRULY = str(Path(__file__).with_name("unruly.py"))
KINDS = (
    "child",
    "daemon",
    "known_by_its_group",
    "known_by_its_output",
    "of_another_group",
    "of_another_session",
    "orphaned",
    "stopped",
    "storm",
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="trees are told apart by what Linux shows of them"),
]


class Troupe(Stage):
    """A stage whose members start processes, each of which signs a ledger (`unruly`)."""

    def __init__(self, folder, slots):
        super().__init__(folder, slots)
        self.ledger = str(folder / "ledger")
        self.alive_when_told = {}

    def function_died(self, death):
        self.alive_when_told[death.start.fence] = self.living
        super().function_died(death)

    def functions_ended(self, ended):
        super().functions_ended(ended)
        for fence in self.rows:
            self.alive_when_told.setdefault(fence, self.living)

    @property
    def signatures(self):
        """[pid, start, kind] or [pid, start] each."""
        path = Path(self.ledger)
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def kinds(self):
        return [signature[2] for signature in self.signatures if len(signature) > 2]

    @property
    def living(self):
        return sorted({int(pid) for pid, start, *_ in self.signatures if int(start) == tree.start_of(int(pid))})

    def enact(self, script, items=(0,), **fields):
        """Members that run ``script(unruly, item)``; they and what they start sign the ledger."""
        ledger, place = self.ledger, UNRULY

        def run(item):
            import importlib.util

            spec = importlib.util.spec_from_file_location("unruly", place)
            unruly = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(unruly)
            unruly.LEDGER = ledger
            unruly.sign()
            return script(unruly, item)

        self.give(None, items, pickled=cloudpickle.dumps(run, 5), **fields)

    async def up(self, *kinds):
        await self.until(lambda: set(kinds) <= set(self.kinds))

    def end(self, member=0, grace=0.0):
        with self.inside():
            assert self.lanes.kill(FIRST + member, grace)

    async def told(self, member=0):
        """How it ended; nothing of it may be left."""
        await self.until(lambda: FIRST + member in self.deaths)
        assert self.alive_when_told[FIRST + member] == []
        return self.deaths[FIRST + member].ending


@pytest.fixture
def make(tmp_path):
    (tmp_path / "attempts").mkdir()
    made = []

    def make(slots=2):
        made.append(Troupe(tmp_path, slots))
        return made[-1]

    yield make
    for troupe in made:
        while living := troupe.living:  # of a test that failed; some of it forks while it is looked for
            for pid in living:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def troupe(make):
    return make()


def grow_and(end):
    def script(unruly, kind):
        getattr(unruly, kind)()
        while kind not in unruly.signed():
            unruly.time.sleep(0.002)
        if end == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        unruly.hang("up")

    return script


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grace", [0.0, 0.1])
@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_nobody_is_left_when_the_end_by_force_is_told(troupe, kind, how, grace):
    async def scene():
        is_timed = how == "timeout"
        troupe.enact(grow_and("hang"), [kind], timeout=0.3 if is_timed else 0.0, grace=grace)
        await troupe.up(kind, "up")
        if not is_timed:
            troupe.end(grace=grace)
        assert await troupe.told() is (Ending.TIMEOUT if is_timed else Ending.KILLED)
        assert kind in troupe.kinds

    troupe.play(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_left_of_a_process_that_dies_by_itself(troupe, kind):
    async def scene():
        troupe.enact(grow_and("crash"), [kind])
        assert await troupe.told() is Ending.SIGNAL
        assert kind in troupe.kinds
        troupe.give(abs, [-1], spec=1, fence=FIRST + 1)
        await troupe.over(2)

    troupe.play(scene)


@pytest.mark.parametrize("kind", ["daemon", "storm"])
def test_nobody_is_left_of_what_ran_when_the_agent_ends(troupe, kind):
    async def scene():
        troupe.enact(grow_and("hang"), [kind])
        await troupe.up(kind, "up")

    troupe.play(scene)
    assert not troupe.living


def ignore_term_in_daemon(unruly):
    """A daemon that only KILL ends; returns when it is there."""

    def body():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        unruly.let_go_of_output()
        unruly.hang("stubborn")

    unruly.orphan(body)
    while "stubborn" not in unruly.signed():
        unruly.time.sleep(0.002)


def test_what_ignores_term_has_its_grace_after_its_function_and_the_end_waits_for_it(make):
    troupe = make(1)

    def script(unruly, _):
        ignore_term_in_daemon(unruly)
        unruly.hang("up")

    async def scene():
        troupe.enact(script)
        await troupe.up("up")
        troupe.give(abs, [-1], spec=1, fence=FIRST + 1)
        (lane,) = troupe.lanes._lanes
        troupe.end(grace=0.3)
        await troupe.until(lambda: lane.is_dead)
        assert len(troupe.living) == 1, "in its grace"
        assert [start.fence for start, since in troupe.lanes.held() if since] == [FIRST], "nothing is over yet"
        assert troupe.lanes.is_running(FIRST) and troupe.slots.lanes == 1 and not troupe.deaths
        assert await troupe.told() is Ending.KILLED
        assert troupe.lanes._loop.time() - lane.died > 0.1
        assert troupe.deaths[FIRST].duration < lane.died - lane.began / 1e9 + 1e-3
        await troupe.over(2)

    troupe.play(scene)


def test_processes_of_multiprocessing_need_no_grace(troupe):
    """One of them ignores TERM, and goes when its parent has gone."""

    def script(unruly, _):
        import multiprocessing

        pool = multiprocessing.get_context("spawn").Pool(2)
        pool.map(abs, [-1, -2])
        for each in multiprocessing.active_children():
            with open(f"/proc/{each.pid}/stat") as stat, open(unruly.LEDGER, "a") as ledger:
                ledger.write(f"{each.pid} {stat.read().rpartition(')')[2].split()[19]} pooled\n")
        unruly.hang("up")

    async def scene():
        troupe.enact(script)
        await troupe.up("up", "pooled")
        asked = time.monotonic()
        troupe.end(grace=1000.0)
        assert await troupe.told() is Ending.KILLED
        assert time.monotonic() - asked < DEADLINE

    troupe.play(scene)


def test_a_second_kill_makes_the_grace_shorter(troupe):
    def script(unruly, _):
        ignore_term_in_daemon(unruly)
        unruly.hang("up")

    async def scene():
        troupe.enact(script)
        await troupe.up("up")
        troupe.end(grace=1000.0)
        await troupe.until(lambda: troupe.lanes._lanes[0].is_dead)
        troupe.end(grace=0.0)
        assert await troupe.told() is Ending.KILLED

    troupe.play(scene)


def test_who_returns_when_he_is_asked_to_end_has_ended_when_all_is_gone(troupe):
    def script(unruly, _):
        ignore_term_in_daemon(unruly)

        class Asked(Exception):
            pass

        def asked(*_):
            raise Asked

        signal.signal(signal.SIGTERM, asked)
        try:
            unruly.hang("up")
        except Asked:
            return "in order"

    async def scene():
        troupe.enact(script, [0], grace=0.2)
        await troupe.up("up")
        troupe.end(grace=0.2)
        await troupe.until(lambda: FIRST in troupe.rows)
        assert troupe.alive_when_told[FIRST] == []
        assert (troupe.rows[FIRST]["ending"], troupe.values()[0]) == (Ending.EXIT, "in order")
        await troupe.over(1)
        await troupe.until(lambda: not troupe.lanes._lanes)

    troupe.play(scene)


def test_term_reaches_what_has_left_the_group(troupe):
    def script(unruly, _):
        def body():
            os.setsid()
            unruly.let_go_of_output()
            signal.signal(signal.SIGTERM, lambda *_: (unruly.sign("asked"), os._exit(0)))
            unruly.hang("outside")

        unruly.orphan(body)
        while "outside" not in unruly.signed():
            unruly.time.sleep(0.002)
        unruly.hang("up")

    async def scene():
        troupe.enact(script)
        await troupe.up("up")
        troupe.end(grace=20.0)
        assert await troupe.told() is Ending.KILLED
        assert troupe.kinds.count("asked") == 1

    troupe.play(scene)


def test_who_was_known_as_a_child_is_found_when_its_parent_has_gone_before_it(troupe):
    """Of its own session, environment and output: only its parent gives it away, and that one ends on TERM."""

    def script(unruly, _):
        code = "import os,signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'.'); signal.pause()"
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], env={}, start_new_session=True, **quiet)
        with open(f"/proc/{child.pid}/stat") as stat:
            start = stat.read().rpartition(")")[2].split()[19]
        with open(unruly.LEDGER, "a") as ledger:
            ledger.write(f"{child.pid} {start} child\n")
        child.stdout.read(1)
        unruly.hang("up")

    async def scene():
        troupe.enact(script)
        await troupe.up("up")
        troupe.end(grace=0.2)
        assert await troupe.told() is Ending.KILLED

    troupe.play(scene)


# ---------------------------------------------------------------- who is not hit


def stranger(**env):
    return subprocess.Popen(["sleep", "1000"], env={**dict(KIND.env), **env}, start_new_session=True)


def test_no_stranger_and_no_neighbour_is_hit(troupe):
    async def scene():
        troupe.enact(grow_and("hang"), ["daemon", "of_another_session"])
        await troupe.until(lambda: troupe.kinds.count("up") == 2)
        first = next(lane for lane in troupe.lanes._lanes if lane.book[0].stretch.fence == FIRST)
        place = f"{troupe.folder}/attempts/{format_fence(FIRST)}"
        strangers = [
            stranger(TITAN_PROCESS=first.output + "0"),
            stranger(TITAN_PROCESS=""),
            stranger(NOT_TITAN_PROCESS=first.output),
            stranger(TITAN_FENCE=format_fence(FIRST), TITAN_ATTEMPT_DIR=place + "0"),
        ]
        try:
            before = troupe.living
            troupe.end(grace=0.05)
            await troupe.until(lambda: FIRST in troupe.deaths)
            assert [each.poll() for each in strangers] == [None] * 4
            assert troupe.living and set(troupe.living) < set(before)
            assert FIRST + 1 not in troupe.deaths
        finally:
            for each in strangers:
                each.kill()
                each.wait()

    troupe.play(scene)


def test_who_took_the_number_of_a_dead_process_is_no_part_of_its_tree():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        start = tree.start_of(child.pid)
        assert tree.scan([tree.Tree(child.pid, 0.0, start=start + 1)]) == [[]]
        assert tree.scan([tree.Tree(child.pid, 0.0, start=start)]) == [[tree.Member(child.pid, start)]]
        known = frozenset({tree.Member(child.pid, start + 1)})
        assert tree.scan([tree.Tree(0, 0.0, known=known)]) == [[]]
    finally:
        child.kill()
        child.wait()


def test_what_a_function_leaves_behind_when_it_returns_stays_until_its_process_is_ended(make):
    troupe = make(1)

    def leave(unruly, _):
        unruly.child()
        unruly.daemon()
        while not {"child", "daemon"} <= unruly.signed():
            unruly.time.sleep(0.002)

    async def scene():
        troupe.enact(leave)
        await troupe.over(1)
        troupe.enact(lambda unruly, _: unruly.hang("up"), spec=1, fence=FIRST + 1)
        await troupe.up("up")
        assert len(troupe.living) == 3
        troupe.end(1)
        await troupe.told(1)

    troupe.play(scene)


def test_nobody_looks_at_processes_while_functions_return_and_their_processes_go(troupe, monkeypatch):
    monkeypatch.setattr(functions_module, "IDLE", 0.05)
    looks = []
    scan = tree.scan
    monkeypatch.setattr(tree, "scan", lambda trees: (looks.append(len(trees)) if trees else None) or scan(trees))

    async def scene():
        troupe.give(abs, range(2000))
        await troupe.over(2000)
        await troupe.until(lambda: not troupe.lanes._lanes)
        assert not looks

    troupe.play(scene)


def test_one_look_serves_all_lanes_that_are_killed_in_one_turn(make, monkeypatch):
    troupe = make(8)
    looks = []
    scan = tree.scan
    monkeypatch.setattr(tree, "scan", lambda trees: (looks.append(len(trees)) if trees else None) or scan(trees))

    async def scene():
        troupe.enact(lambda unruly, _: unruly.hang("up"), range(8))
        await troupe.until(lambda: troupe.kinds.count("up") == 8)
        for member in range(8):
            troupe.end(member, grace=20.0)
        assert not looks, "asking sends nothing"
        await troupe.until(lambda: len(troupe.deaths) == 8)
        assert looks[0] == 8
        assert not troupe.living

    troupe.play(scene)


def test_a_process_knows_its_name_and_so_does_what_it_starts(troupe):
    async def scene():
        troupe.give(os.getenv, ["TITAN_PROCESS"])
        troupe.give(subprocess.check_output, [["printenv", "TITAN_PROCESS"]], spec=1, fence=FIRST + 1)
        await troupe.over(2)
        names = [pickle.loads(troupe.results[FIRST]), pickle.loads(troupe.results[FIRST + 1]).decode().strip()]
        assert set(names) <= {lane.output for lane in troupe.lanes._lanes}

    troupe.play(scene)
