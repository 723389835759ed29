"""Lanes: what they are given, what comes back, and who is blamed when a process dies. The processes are real."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import os
import pickle
import signal
import struct
import sys
import time

import pytest

from titan_fast import _layout as layout
from titan_fast.ids import Ending, format_fence, make_fence
from titan_fast.worker import function_attempts
from titan_fast.worker.executors import _pool
from titan_fast.worker.executors import functions as functions_module
from titan_fast.worker.executors import lane as lane_module
from titan_fast.worker.executors.functions import Functions
from titan_fast.worker.executors.lane import Function, Kind
from titan_fast.worker.slots import Slots, Stretch

DEADLINE = 30.0
FIRST = make_fence(1, 1)
RESULT = struct.Struct(">" + "".join(code for _, code in layout.LAYOUTS[layout.RESULT][1]))
KIND = Kind((("PATH", os.environ["PATH"]),), "")


def blob(items):
    parts = [pickle.dumps(item, 5) for item in items]
    ends = [sum(map(len, parts[:n])) for n in range(len(parts) + 1)]
    return b"".join(end.to_bytes(4, "big") for end in ends) + b"".join(parts)


class Stage:
    """Lanes and the part of an agent that feeds them; what they tell, by fence."""

    def __init__(self, folder, slots):
        self.folder = folder
        self.slots = Slots(slots)
        self.described = {}
        self.lanes = None
        self.results = {}
        self.rows = {}
        self.deaths = {}
        self.started = []
        self.outputs = {}
        self.doors = []
        self.files = {}
        self.news = None
        self.is_inside = False
        self.stopped = False

    def play(self, scene):
        async def main():
            self.news = asyncio.Event()
            self.lanes = Functions(self, self.slots.slots, f"{self.folder}/functions", f"{self.folder}/attempts")
            try:
                async with asyncio.timeout(DEADLINE):
                    await scene()
            finally:
                self.stopped = True
                await self.lanes.close(0)

        asyncio.run(main())
        assert not os.path.exists(f"{self.folder}/functions")

    def give(self, function, items, *, run=1, spec=0, is_array=True, fence=FIRST, pickled=None, kind=KIND, **fields):
        """Members with these items, waiting for a lane."""
        items = list(items)
        pickled = pickle.dumps(function, 5) if pickled is None else pickled
        fields = {"timeout": 0.0, "grace": 0.2, "arguments": (), "spread": False, **fields}
        self.described[run, spec] = Function(
            1000 * run + spec,
            run,
            spec,
            "f",
            0,
            is_array,
            pickled,
            fields["arguments"],
            fields["timeout"],
            fields["grace"],
            kind,
            fields["spread"],
        )
        self.slots.assign(Stretch(run, spec, 0, len(items), 0, 1, fence, blob(items), len(items)))
        self.start_next()

    def start_next(self):
        slots = self.slots
        while slots.head is not None and not self.stopped:
            function = self.described[slots.head.run, slots.head.spec]
            free = slots.slots - slots.used
            with self.inside():
                taken = self.lanes.feed(function, free > 0, -(-slots.queued // (free or slots.slots)), slots.cut)
            if taken is None:
                return
            slots.lanes += taken

    @contextlib.contextmanager
    def inside(self):
        self.is_inside = True
        yield
        self.is_inside = False

    # what they tell

    def functions_ended(self, ended):
        assert not self.is_inside, "told from inside of a call"
        assert sum(count for count, _ in ended.attempts) == ended.count
        at = 0
        for row in RESULT.iter_unpack(ended.records):
            fence, size = row[5], row[-1]
            assert fence not in self.rows and fence not in self.deaths, "told twice"
            self.rows[fence] = dict(zip((name for name, _ in layout.LAYOUTS[layout.RESULT][1]), row, strict=True))
            self.results[fence] = ended.tail[at : at + size]
            at += size
        assert at == len(ended.tail)
        self.news.set()

    def function_died(self, death):
        assert not self.is_inside and death.start.fence not in self.rows
        self.deaths[death.start.fence] = death
        self.news.set()

    def functions_started(self, rows, outputs):
        self.started += rows
        self.outputs.update(outputs)
        self.news.set()

    def functions_unrun(self, stretches):
        self.slots.put_back(stretches)
        self.start_next()

    def lane_freed(self):
        self.slots.lanes -= 1
        assert self.slots.lanes >= 0
        self.start_next()

    def lane_has_room(self):
        self.start_next()

    def door_of(self, fence):
        self.doors.append(fence)
        return {"TITAN_AGENT": "/door", "TITAN_AGENT_TOKEN": f"token of {fence}"}

    def fetch_file(self, digest, path, done):
        if digest in self.files:
            with open(path, "wb") as file:
                file.write(self.files[digest])
        asyncio.get_running_loop().call_later(0.01, done, "" if digest in self.files else "it is not there")

    # what tests look at

    async def until(self, condition):
        while not (value := condition()):
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.02)
        return value

    async def over(self, count):
        await self.until(lambda: len(self.rows) + len(self.deaths) >= count)
        await self.until(lambda: not self.slots.lanes)

    def values(self):
        return {fence - FIRST: pickle.loads(data) for fence, data in self.results.items()}

    def kept(self, member, name):
        with open(f"{self.folder}/attempts/{format_fence(FIRST + member)}/{name}", "rb") as file:
            return file.read()

    def output(self, member):
        return self.kept(member, "output")


@pytest.fixture
def make(tmp_path):
    (tmp_path / "attempts").mkdir()
    return lambda slots=2: Stage(tmp_path, slots)


@pytest.fixture
def stage(make):
    return make()


def by_value(function):
    import cloudpickle

    return cloudpickle.dumps(function, 5)


def test_the_process_knows_the_records_of_the_wire():
    for number, known in ((layout.LOT, _pool.LOT), (layout.RESULT, _pool.RESULT)):
        assert known.format == ">" + "".join(code for _, code in layout.LAYOUTS[number][1])
    assert _pool.PROLOGUE.size == layout.PROLOGUE_SIZE
    assert layout.RESULT_IS_FILE == _pool.IS_FILE
    assert (int(Ending.EXIT), int(Ending.RECALLED)) == (_pool.EXIT, _pool.RECALLED)


def test_every_member_once_and_in_two_processes(stage):
    async def scene():
        stage.give(abs, range(-3000, 0))
        await stage.over(3000)
        assert stage.values() == {n: 3000 - n for n in range(3000)}
        assert {row["index"] - (fence - FIRST) for fence, row in stage.rows.items()} == {0}
        assert {row["code"] for row in stage.rows.values()} == {0}
        assert len(stage.lanes._lanes) == 2

    stage.play(scene)


def test_batches_grow_to_a_millisecond_and_shrink_again(stage, monkeypatch):
    given = []
    give = lane_module.Lane.give
    monkeypatch.setattr(lane_module.Lane, "give", lambda self, *what: given.append(what[1].count) or give(self, *what))

    async def scene():
        stage.give(abs, range(5000))
        assert given == [1, 1], "nobody knows yet how long they take"
        await stage.over(5000)
        assert max(given) > 100
        given.clear()
        stage.give(time.sleep, [0.01] * 20, spec=1, fence=FIRST + 5000)
        await stage.over(5020)
        assert given == [1] * 20

    stage.play(scene)


def test_single_calls_are_given_until_they_are_a_batch_of_work(make):
    stage = make(1)

    async def scene():
        stage.give(abs, [((0,), {})], is_array=False)
        await stage.over(1)
        (lane,) = stage.lanes._lanes
        stage.lanes._costs[pickle.dumps(abs, 5)].seconds = lane_module.BATCH / 50
        os.kill(lane.process.pid, signal.SIGSTOP)  # so that all of them are there when it looks
        for number in range(1, 201):
            stage.give(abs, [((number,), {})], run=1 + number, is_array=False, fence=FIRST + number)
        assert 95 < len(lane.batches) <= 100
        os.kill(lane.process.pid, signal.SIGCONT)
        await stage.over(201)
        assert not lane.batches
        assert lane.ahead == 0

    stage.play(scene)


class Wire:
    """The socket to a process, and what goes over it: how much at a time, and how often the process rings."""

    def __init__(self, link):
        self.link = link
        self.sent = []
        self.rings = 0

    def __getattr__(self, name):
        return getattr(self.link, name)

    def send(self, data):
        self.sent.append(bytes(data))
        return self.link.send(data)

    def recv(self, size):
        data = self.link.recv(size)
        self.rings += data.count(b".")
        return data


def sleep_and_wait():
    def sleep_and_wait(seconds, path):
        time.sleep(seconds)
        while path and not os.path.exists(path):
            time.sleep(0.001)

    return by_value(sleep_and_wait)


async def one_lane(stage, pickled, *arguments):
    """A lane that has done one call of a function, which from now on is believed to be short."""
    stage.give(None, [(arguments, {})], is_array=False, pickled=pickled)
    await stage.over(1)
    stage.lanes._costs[pickled].seconds = lane_module.BATCH / 50
    (lane,) = stage.lanes._lanes
    lane.link = Wire(lane.link)
    return lane


def call(stage, pickled, number, *arguments):
    fields = {"run": 1 + number, "is_array": False, "fence": FIRST + number, "pickled": pickled}
    stage.give(None, [(arguments, {})], **fields)


def test_a_description_and_its_call_are_one_write(make):
    stage = make(1)

    async def scene():
        abs_of = pickle.dumps(abs, 5)
        lane = await one_lane(stage, abs_of, -1)
        call(stage, abs_of, 1, -2)
        await stage.over(2)
        assert stage.values() == {0: 1, 1: 2}
        assert len(lane.link.sent) == 1

    stage.play(scene)


def test_a_process_rings_once_for_the_calls_that_were_there(make, monkeypatch):
    monkeypatch.setattr(Functions, "_look", lambda lanes: None)
    stage = make(1)

    async def scene():
        abs_of = pickle.dumps(abs, 5)
        lane = await one_lane(stage, abs_of, 0)
        for turn in range(3):
            lane.link.rings = 0
            os.kill(lane.process.pid, signal.SIGSTOP)
            for number in range(1, 31):
                call(stage, abs_of, 30 * turn + number, -30 * turn - number)
            os.kill(lane.process.pid, signal.SIGCONT)
            await stage.over(30 * turn + 31)
            assert 1 <= lane.link.rings <= 10, "and once more for each millisecond that it is kept waiting"
        assert stage.values() == {number: number for number in range(91)}

    stage.play(scene)


def test_what_has_ended_is_told_while_the_next_one_takes_its_time(make, monkeypatch, tmp_path):
    monkeypatch.setattr(Functions, "_look", lambda lanes: None)
    stage = make(1)
    gate = tmp_path / "gate"

    async def scene():
        pickled = sleep_and_wait()
        lane = await one_lane(stage, pickled, 0.0, "")
        os.kill(lane.process.pid, signal.SIGSTOP)
        for number in range(1, 10):  # each of them shorter than a ring is put off, together longer
            call(stage, pickled, number, 0.0004, "")
        call(stage, pickled, 10, 0.0, str(gate))
        os.kill(lane.process.pid, signal.SIGCONT)
        await stage.until(lambda: len(stage.rows) > 2)
        assert len(stage.rows) < 11
        expected = sum(seconds for _, seconds in lane.batches)
        assert lane.ahead == pytest.approx(expected), "what it has done is not ahead of it"
        gate.touch()
        await stage.over(11)
        assert {row["code"] for row in stage.rows.values()} == {0}

    stage.play(scene)


def test_a_few_are_spread_over_the_slots(stage):
    async def scene():
        stage.give(abs, range(100))
        await stage.over(100)
        stage.give(abs, range(10), fence=FIRST + 1000)
        assert [lane.members() for lane in stage.lanes._lanes] == [5, 5]
        await stage.over(110)

    stage.play(scene)


def test_members_of_an_array_may_be_given_arguments_of_any_kind(stage):
    async def scene():
        items = [((1, 2), {"c": 3}), ((), {"a": 4, "b": 5}), (([6], 7), {})]
        stage.give(None, items, pickled=by_value(lambda a, b, c=0: (a, b, c)), spread=True)
        await stage.over(3)
        assert stage.values() == {0: (1, 2, 3), 1: (4, 5, 0), 2: ([6], 7, 0)}

    stage.play(scene)


def test_what_many_descriptions_have_in_common_is_kept_once():
    known = {}
    first = bytes([1, 2, 3])
    assert function_attempts._the_same(known, first) is first
    assert function_attempts._the_same(known, bytes(bytearray(first))) is first
    for number in range(10_000):
        function_attempts._the_same(known, number.to_bytes(4, "big"))
    assert len(known) <= function_attempts.MAX_SHARED


def test_arguments_are_what_parents_gave(stage):
    class Parents(pickle.Pickler):
        def persistent_id(self, item):
            return item[1:] if isinstance(item, tuple) and item and item[0] == "parent" else None

    def results(*parts):
        ends = [sum(map(len, parts[:n])) for n in range(len(parts) + 1)]
        return b"".join(n.to_bytes(4, "big") for n in (len(parts), *ends)) + b"".join(parts)

    import io

    file = io.BytesIO()
    Parents(file, 5).dump((([("parent", 0, True, True)], ("parent", 1, False, False)), {}))
    stage.files["d" * 64] = pickle.dumps("large")

    async def scene():
        arguments = (
            results(pickle.dumps(1), b"artifact:" + b"d" * 64, pickle.dumps([2])),
            results(b" text \n"),
        )
        function = Function(7, 1, 0, "f", 0, False, by_value(lambda a, b: (a, b)), arguments, 0.0, 1.0, KIND)
        stage.described[1, 0] = function
        payload = bytes(4) + len(file.getvalue()).to_bytes(4, "big") + file.getvalue()
        stage.slots.assign(Stretch(1, 0, 0, 1, 0, 1, FIRST, payload, 1))
        stage.start_next()
        await stage.over(1)
        assert stage.values() == {0: ([[1, "large", [2]]], "text")}
        stage.files.clear()
        stage.slots.assign(Stretch(1, 0, 0, 1, 0, 2, FIRST + 1, payload, 1))
        stage.start_next()
        await stage.over(2)
        assert stage.rows[FIRST + 1]["code"] == 1
        assert stage.results[FIRST + 1].startswith(b"OSError: it is not there\0")

    stage.play(scene)


@pytest.mark.parametrize("size", [1 << 19, (1 << 20) + 1])
def test_results_that_do_not_fit_the_shared_memory_wait_for_room(stage, size):
    async def scene():
        stage.give(functools.partial(operator.mul, b"x"), [size] * 40)
        await stage.over(40)
        for fence, row in stage.rows.items():
            if row["flags"]:
                assert len(pickle.loads(stage.kept(fence - FIRST, "result"))) == size
            else:
                assert len(pickle.loads(stage.results[fence])) == size
        assert {row["flags"] for row in stage.rows.values()} == {layout.RESULT_IS_FILE if size > 1 << 20 else 0}

    stage.play(scene)


# ---------------------------------------------------------------- ends that are none of their own


def die_at(member, how):
    def run(n):
        if n == member:
            os.write(1, b"last words")
            how()
        return n

    return by_value(run)


@pytest.mark.parametrize(
    ("how", "ending", "code"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), Ending.SIGNAL, signal.SIGSEGV),
        (lambda: os._exit(7), Ending.EXIT, 7),
    ],
)
def test_a_death_takes_the_member_with_it_that_ran_and_no_other(stage, how, ending, code):
    async def scene():
        stage.give(None, range(1000), pickled=die_at(600, how))
        await stage.over(1000)
        ((fence, death),) = stage.deaths.items()
        assert (fence - FIRST, death.ending, death.code) == (600, ending, code)
        assert stage.output(600) == b"last words" and death.output_size == 10
        assert stage.values() == {n: n for n in range(1000) if n != 600}

    stage.play(scene)


def test_a_process_that_is_killed_between_two_members_takes_nobody_with_it(stage):
    async def scene():
        stage.give(abs, range(10))
        await stage.over(10)
        for lane in stage.lanes._lanes:
            lane.process.kill()
        stage.give(abs, range(100), fence=FIRST + 100)
        await stage.over(110)
        assert not stage.deaths

    stage.play(scene)


def test_a_process_that_cannot_begin_is_no_endless_story(stage, monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nsys.exit(9)")

    async def scene():
        monkeypatch.setattr(functions_module._pool, "__file__", str(broken))
        stage.give(abs, range(3))
        await stage.over(3)
        assert {death.ending for death in stage.deaths.values()} == {Ending.NOT_STARTED}
        assert "exit code 9" in stage.deaths[FIRST].note

    stage.play(scene)


def test_what_waits_behind_a_long_one_is_run_elsewhere_and_only_once(stage, tmp_path):
    ran = tmp_path / "ran"
    ran.mkdir()

    def run(n):
        (ran / f"{n}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if n == 300:
            while not (ran / "go").exists():
                time.sleep(0.01)
        return n

    async def scene():
        stage.give(None, range(1000), pickled=by_value(run))
        await stage.until(lambda: len(stage.rows) == 999)
        assert [row[3] for row in await stage.until(lambda: stage.started)] == [FIRST + 300]
        (ran / "go").touch()
        await stage.over(1000)
        assert len(os.listdir(ran)) == 1001
        stage.give(abs, range(100), fence=FIRST + 5000)
        await stage.over(1100)

    stage.play(scene)


def test_a_timeout_and_a_kill_end_one_member_each(stage):
    async def scene():
        sleeps = [0] * 50
        sleeps[20] = sleeps[30] = 60
        stage.give(time.sleep, sleeps, timeout=0.3)
        await stage.over(50)
        assert {fence - FIRST: death.ending for fence, death in stage.deaths.items()} == {
            20: Ending.TIMEOUT,
            30: Ending.TIMEOUT,
        }
        stage.give(time.sleep, [60, 60], spec=1, fence=FIRST + 100)
        await stage.until(lambda: len([row for row in stage.started if row[3] >= FIRST + 100]) == 2)
        with stage.inside():
            stage.lanes.kill(FIRST + 100, 0.0)
        await stage.until(lambda: FIRST + 100 in stage.deaths)
        assert stage.deaths[FIRST + 100].ending is Ending.KILLED
        assert FIRST + 101 not in stage.deaths

    stage.play(scene)


def test_who_ignores_term_is_killed_after_its_grace(stage):
    def stubborn(n):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    async def scene():
        stage.give(None, [1], pickled=by_value(stubborn), timeout=0.2, grace=0.2)
        await stage.over(1)
        death = stage.deaths[FIRST]
        assert (death.ending, death.code) == (Ending.TIMEOUT, -signal.SIGKILL)

    stage.play(scene)


def test_what_has_not_begun_can_be_taken_back_at_any_moment(make):
    stage = make(1)

    async def scene():
        stage.give(time.sleep, [0.0001] * 500)
        seen = turn = 0
        while len(stage.rows) < 500:
            # Whatever the process is at: nothing is lost, and `functions_ended` sees that nothing runs twice.
            await asyncio.sleep(0)
            turn = turn + 1 if len(stage.rows) == seen else 0
            seen = len(stage.rows)
            if turn < 20:  # always, and it would never come to begin anything
                with stage.inside():
                    taken = stage.lanes.take_back(FIRST, 500)
                stage.slots.put_back(taken)
                stage.start_next()
        await stage.over(500)

    stage.play(scene)


# ---------------------------------------------------------------- around a member


def test_a_forked_child_does_not_go_on_as_a_lane(stage):
    def fork(n):
        if os.fork() == 0:
            return "child"
        os.wait()
        return n

    async def scene():
        stage.give(None, range(20), pickled=by_value(fork))
        await stage.over(20)
        assert stage.values() == {n: n for n in range(20)}

    stage.play(scene)


def test_what_a_member_does_to_its_process_stays_with_it(stage):
    def spoil(n):
        sys.stdout.write(f"{n}")
        os.chdir("/")
        sys.stdout = None
        os.close(1)
        return os.getcwd()

    async def scene():
        stage.give(None, range(10), pickled=by_value(spoil))
        await stage.over(10)
        stage.give(print, ["x"] * 4, spec=1, fence=FIRST + 100)
        await stage.over(14)
        assert [stage.output(n) for n in (0, 5, 9)] == [b"0", b"5", b"9"]
        assert [stage.output(n) for n in (100, 103)] == [b"x\n"] * 2

    stage.play(scene)


def test_the_environment_tells_the_task_when_somebody_looks(stage):
    def look(n):
        seen = os.environ.get("TITAN_TASK"), os.environ["TITAN_FENCE"], "TITAN_AGENT_TOKEN" in os.environ
        return seen if n % 2 else None

    async def scene():
        stage.give(None, range(50), pickled=by_value(look), run=12)
        await stage.over(50)
        assert stage.values()[7] == ("12/f[7]", f"1.{8}", True)
        assert sorted(stage.doors) == [FIRST + n for n in range(50)]

    stage.play(scene)


def test_other_environments_have_other_processes(stage):
    other = Kind((*KIND.env, ("FLAVOUR", "other")), "")

    async def scene():
        stage.give(os.getenv, ["FLAVOUR"] * 4)
        await stage.over(4)
        stage.give(os.getenv, ["FLAVOUR"] * 4, spec=1, fence=FIRST + 4, kind=other)
        await stage.over(8)
        assert [stage.values()[n] for n in range(8)] == [None] * 4 + ["other"] * 4

    stage.play(scene)


def test_the_processes_of_a_working_copy_go_before_it(stage):
    project = stage.folder / "project"
    project.mkdir()
    kind = Kind(KIND.env, str(project))

    async def scene():
        stage.give(os.path.abspath, ["."] * 4, kind=kind)
        await stage.over(4)
        assert set(stage.values().values()) == {str(project)}
        stage.lanes.forget(str(project))
        before = [lane.process.pid for lane in stage.lanes._lanes]
        stage.give(os.path.abspath, ["."] * 4, fence=FIRST + 4, kind=kind)
        await stage.over(8)
        await stage.until(lambda: not {lane.process.pid for lane in stage.lanes._lanes} & set(before))

    stage.play(scene)


def test_a_process_without_work_goes(stage, monkeypatch):
    monkeypatch.setattr(functions_module, "IDLE", 0.1)

    async def scene():
        stage.give(abs, range(4))
        await stage.over(4)
        await stage.until(lambda: not stage.lanes._lanes)
        stage.give(abs, range(4), fence=FIRST + 4)
        await stage.over(8)

    stage.play(scene)


def test_a_process_forgets_old_functions_when_it_knows_many(stage, monkeypatch):
    monkeypatch.setattr(lane_module, "MAX_KNOWN", 3)

    async def scene():
        for turn in range(2):
            for spec in range(10):
                fence = FIRST + 100 * turn + 10 * spec
                stage.give(functools.partial(operator.add, spec), range(5), spec=spec, fence=fence)
        await stage.over(100)
        assert stage.values()[94] == 4 + 9 and stage.values()[3] == 3

    stage.play(scene)
