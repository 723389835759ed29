"""What is asked while the disk is stuck, and what many watchers and followers cost: with a master in this process."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
import pytest
from master.test_promises import GRAPH, Peer, with_master

from titan_fast.errors import TooLarge
from titan_fast.master import queries, watch
from titan_fast.master.queries import TASKS_PER_PAGE
from titan_fast.master.store.base import AttemptRow, RunHead
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.opcodes import Op
from titan_fast.scheduler.columns import Texts
from titan_fast.scheduler.lifecycle import TaskState
from titan_fast.scheduler.state import Run

QUESTIONS = [
    msg.List("runs"),
    msg.Show(1),
    msg.Explain(1),
    msg.Stats(),
    msg.KvGet("key"),
    msg.KvList(),
    msg.ArtifactList(),
    msg.Watch(1, progress=True),
]
WORK = Work(argv=("true",))


class Listener:
    """In place of a session: keeps what it is told."""

    def __init__(self, master):
        self.master = master
        self.closed = self.choked = False
        self.waiting_bytes = 0
        self.told = []

    def reply(self, message, request, attachments=()):
        self.told.append(message)

    def send_when_durable(self, frame):
        self.told.append(frame)


async def submitted(master, graph=GRAPH):
    client = await Peer.connect(master, "client")
    client.say(msg.Submit(graph=graph))
    run = (await client.next()).message.run
    return client, run


async def started(master):
    """A client, a worker, and the run and fence of the task that runs there."""
    worker = await Peer.connect(master, "worker")
    await worker.attach()
    client, run = await submitted(master)
    while (incoming := await worker.next()).op is not Op.ASSIGN:
        pass
    fence = incoming.columns[6][0]
    worker.say_hot(Op.STARTED, 0, ([run], [0], [0], [fence], [1], [1]))
    return client, worker, run, fence


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ---------------------------------------------------------------- listings


@pytest.mark.parametrize("seed", range(20))
def test_pages_of_runs_hold_each_once_wherever_it_is(tmp_path, monkeypatch, seed):
    """In memory, in the store, or in both: a live run has a record too."""
    rng = random.Random(seed)

    async def scenario(master, store):
        kept = {number: rng.choice(["COMPLETED", "FAILED"]) for number in rng.sample(range(1, 90), 60)}
        live = rng.sample(sorted(kept), rng.choice([0, 3, 40, 50]))
        states = dict(kept)
        runs = master.scheduler.state.runs
        for number in live:
            run = runs[number] = Run(number, "g", 1.0, 0)
            run.status = states[number] = rng.choice(["RUNNING", "RUNNING", "COMPLETED"])

        def heads(before, limit, state="", dead=False):
            found = [n for n in sorted(kept, reverse=True) if n < before and (not state or kept[n] == state)]
            return [RunHead(n, "g", kept[n], "", 1.0, 1.0, 2.0, {}) for n in found[:limit]]

        monkeypatch.setattr(master.history, "runs", heads)
        for state in ("", "RUNNING", "COMPLETED"):
            rows, cursor = [], 1 << 63
            while True:
                page, more = master.queries._runs(cursor, 7, state)
                rows += page
                assert len(page) <= 7
                if not more:
                    break
                cursor = int(more)
            wanted = [n for n in sorted(kept, reverse=True) if not state or states[n] == state]
            assert [(row.id, row.state) for row in rows] == [(n, states[n]) for n in wanted]
        runs.clear()

    with_master(tmp_path, scenario, monkeypatch)


# ---------------------------------------------------------------- a stuck disk


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_a_question_asked_as_a_commit_gets_stuck_is_answered_once_as_not_durable(tmp_path, monkeypatch, question):
    monkeypatch.setattr(queries, "PATIENCE", 0.1)

    async def scenario(master, store):
        client, _ = await submitted(master)
        store.gate.clear()
        client.say(msg.KvSet(name="key"), (b"value",))
        request = client.say(question)
        answer = await client.next()
        assert (answer.request, answer.message.durable) == (request, False)
        if isinstance(question, msg.KvGet):
            assert answer.attachments == (b"value",)
        store.gate.set()
        assert isinstance((await client.next()).message, msg.KvDone)
        request = client.say(msg.Stats())
        assert (await client.next()).request == request, "the question was answered once"

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_an_answer_whose_commit_is_in_time_is_durable_and_the_only_one(tmp_path, monkeypatch, question):
    monkeypatch.setattr(queries, "PATIENCE", 0.3)

    async def scenario(master, store):
        client, _ = await submitted(master)
        store.gate.clear()
        changed = client.say(msg.KvSet(name="key"), (b"value",))
        request = client.say(question)
        await until(lambda: master.queries._held)
        store.gate.set()
        assert [(await client.next()).request for _ in range(2)] == [changed, request]
        await until(lambda: master.queries._timer is None)
        last = client.say(msg.Stats())
        answer = await client.next()
        assert (answer.request, answer.message.durable) == (last, True)
        assert not master.queries._held

    with_master(tmp_path, scenario, monkeypatch)


def test_that_a_run_has_ended_waits_for_the_disk_however_long_that_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "PATIENCE", 0.1)

    async def scenario(master, store):
        client, worker, run, fence = await started(master)
        store.gate.clear()
        worker.say_hot(Op.RESULT, 1, ([run], [0], [0], [0], [0], [fence], [0], [1], [1], [0], [0]))
        await until(lambda: master.queries.run(run).is_final)
        client.say(msg.Watch(run))
        client.say(msg.Watch(run, progress=True))
        looks = (await client.next()).message
        assert (looks.state, looks.durable, looks.final) == ("COMPLETED", False, False)
        await client.hears_nothing()
        store.gate.set()
        ends = [(await client.next()).message for _ in range(2)]
        assert [(end.state, end.durable, end.final) for end in ends] == [("COMPLETED", True, True)] * 2

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_first_attempt_is_the_first_that_started(attempt, tmp_path, monkeypatch):
    """A worker gave the task back unstarted before: its output is not that of attempt 1, because there is none."""

    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        client, run = await submitted(master)
        fences = []
        for ending, code in ((4, 0), (0, 3)):
            while (incoming := await worker.next()).op is not Op.ASSIGN:
                pass
            fences.append(incoming.columns[6][0])
            assert incoming.columns[5][0] == 1, "the number of the attempt"
            if ending == 0:
                worker.say_hot(Op.STARTED, 0, ([run], [0], [0], fences[-1:], [1], [1]))
                worker.say(msg.Output(run=run, index=0, fence=fences[-1], final=True, total=4), (b"text",))
            began = 5 if ending == 0 else 0
            row = ([run], [0], [0], [ending], [0], fences[-1:], [code], [began], [began], [0], [0])
            worker.say_hot(Op.RESULT, len(fences), row)
        await until(lambda: master.queries.run(run).is_final)
        client.say(msg.Logs(run, "", attempt=attempt))
        piece, end = await client.next(), await client.next()
        assert (piece.attachments, piece.message.fence) == ((b"text",), fences[1])
        assert (end.message.final, end.message.attempt) == (True, 1)
        client.say(msg.Show(run))
        (row,) = (await client.next()).message.tasks
        assert (row.state, row.attempt) == ("FAILED", 1)
        client.say(msg.Logs(run, "", attempt=2))
        assert (await client.next()).message.hint == "there are 1 attempts"

    with_master(tmp_path, scenario, monkeypatch)


def test_a_follower_reads_no_further_while_much_waits_for_the_disk_and_misses_nothing(tmp_path, monkeypatch):
    piece, pieces = 4096, 64

    async def scenario(master, store):
        client, worker, run, fence = await started(master)
        limits = msgspec.structs.replace(master.settings.limits, undrained=1 << 16)
        master.settings = msgspec.structs.replace(master.settings, limits=limits)
        client.say(msg.Logs(run=run, task="t", follow=True))
        client.say(msg.KvSet(name="a"), (b"1",))
        assert isinstance((await client.next()).message, msg.KvDone)
        store.gate.clear()
        client.say(msg.KvSet(name="b"), (b"1",))
        await until(lambda: master.pump.committer.stuck_for())
        for number in range(pieces):
            output = msg.Output(run=run, index=0, fence=fence, offset=number * piece, final=False, total=0)
            worker.say(output, (bytes([number]) * piece,))
        worker.say_hot(Op.HEARTBEAT, 5, ([0], [0], [0.0], [0]))
        while (await worker.next()).op is not Op.HEARTBEAT:
            pass
        (session,) = (session for session in master.sessions if session.role == "client")
        assert (1 << 14) < session.waiting_bytes < (1 << 14) + 2 * piece
        store.gate.set()
        got = b""
        while len(got) < piece * pieces:
            incoming = await client.next()
            got += incoming.attachments[0] if isinstance(incoming.message, msg.Logged) else b""
        assert got == b"".join(bytes([number]) * piece for number in range(pieces))

    with_master(tmp_path, scenario, monkeypatch)


def test_progress_is_not_told_while_much_waits_for_the_disk_and_is_caught_up_with_after(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "PROGRESS_INTERVAL", 0.0)

    async def scenario(master, store):
        _, run = await submitted(master)
        slow, quick = Listener(master), Listener(master)
        for listener in (slow, quick):
            master.watchers.watch(listener, 1, msg.Watch(run, progress=True))
        slow.waiting_bytes = master.settings.limits.undrained
        for _ in range(3):
            master.watchers.run_changed(run)
            await until(lambda: master.watchers._timer is None)
        assert (len(slow.told), len(quick.told)) == (1, 4)
        slow.waiting_bytes = 0
        for listener in (slow, quick):
            master.watchers.session_drained(listener)
        assert (len(slow.told), len(quick.told)) == (2, 4)

    with_master(tmp_path, scenario, monkeypatch)


# ---------------------------------------------------------------- many of them


def test_tasks_in_a_state_come_in_pages_of_little_work_each(tmp_path, monkeypatch):
    async def scenario(master, store):
        graph = GraphSpec("g", (TaskSpec("a", WORK, count=1000, array=True),))
        client, run = await submitted(master, graph)
        chosen = [*range(0, 600, 3), *range(700, 900)]
        for member in chosen:
            client.say(msg.Cancel(run, "a", member))
            await client.next()

        async def listed(state, limit):
            found, cursor, pages = [], "", 0
            while True:
                client.say(msg.List("tasks", run, state, cursor, limit))
                page = (await client.next()).message
                assert {row.state for row in page.tasks} <= {state}
                found += [int(row.name.rpartition("[")[2][:-1]) for row in page.tasks]
                pages, cursor = pages + 1, page.next
                if not cursor:
                    return found, pages

        assert await listed("CANCELLED", 1000) == (chosen, 5)
        assert await listed("CANCELLED", 150) == (chosen, 6)
        assert (await listed("PENDING", 1000))[0] == sorted(set(range(1000)) - set(chosen))
        assert await listed("RUNNING", 1000) == ([], 1)
        client.say(msg.List("tasks", run, "HAPPY"))
        assert (await client.next()).message.code == "bad_message"

    with_master(tmp_path, scenario, monkeypatch)


def test_a_task_is_looked_up_by_its_name_once_for_each_watch(tmp_path, monkeypatch):
    asked = []

    class Names(Texts):
        def find(self, text):
            asked.append(text)
            return super().find(text)

    async def scenario(master, store):
        graph = GraphSpec("g", tuple(TaskSpec(f"t{number}", WORK) for number in range(10)))
        _, run = await submitted(master, graph)
        found = master.scheduler.state.runs[run]
        found.names = Names(found.names)
        listener = Listener(master)
        for number in range(10):
            master.watchers.watch(listener, number, msg.Watch(run, f"t{number}"))
        for _ in range(3):
            master.watchers.run_changed(run)
        assert len(asked) == 10

    with_master(tmp_path, scenario, monkeypatch)


def test_a_watch_ends_with_its_own_tasks_and_is_told_nothing_of_others(tmp_path, monkeypatch):
    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach()
        graph = GraphSpec("g", (TaskSpec("a", WORK, count=2, array=True), TaskSpec("b", WORK, needs=("a",))))
        client, run = await submitted(master, graph)
        watches = {
            client.say(msg.Watch(run, "a", 1)): "one member",
            client.say(msg.Watch(run, "a")): "the array",
            client.say(msg.Watch(run)): "the run",
        }
        ended = []
        for count in (1, 2, 3):
            while (incoming := await worker.next()).op is not Op.ASSIGN:
                pass
            index, fence = incoming.columns[2][0], incoming.columns[6][0]
            worker.say_hot(Op.RESULT, count, ([run], [index], [0], [0], [0], [fence], [0], [1], [1], [0], [0]))
        while len(ended) < 3:
            incoming = await client.next()
            assert incoming.message.final
            ended.append(watches[incoming.request])
        assert ended == ["one member", "the array", "the run"]

    with_master(tmp_path, scenario, monkeypatch)


def test_closed_connections_leave_nothing_behind_and_cost_what_they_watched_and_no_more(tmp_path, monkeypatch):
    async def scenario(master, store):
        client, _ = await submitted(master)
        for _ in range(1, 50):
            client.say(msg.Submit(graph=GRAPH))
        while (await client.next()).message.run < 50:
            pass
        listeners = [Listener(master) for _ in range(10_000)]
        for number, listener in enumerate(listeners):
            master.watchers.watch(listener, 1, msg.Watch(1 + number % 50))
            master.followers.start(listener, 2, msg.Logs(run=1 + number % 50, task="t", follow=True))
        began = time.perf_counter()
        for listener in listeners:
            master.watchers.session_closed(listener)
            master.followers.session_closed(listener)
        took = time.perf_counter() - began
        assert took < 2, "going through all of them for each takes a minute"
        for waiters in (master.watchers._waiters, master.followers._waiters):
            assert (waiters._by_run, waiters._by_session) == ({}, {})
        master.watchers.session_closed(Listener(master))

    with_master(tmp_path, scenario, monkeypatch)


def test_one_connection_opens_only_so_many_watches(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "MAX_WATCHES", 3)

    async def scenario(master, store):
        _, run = await submitted(master)
        listener = Listener(master)
        for request in range(3):
            master.watchers.watch(listener, request, msg.Watch(run))
        with pytest.raises(TooLarge):
            master.watchers.watch(listener, 4, msg.Watch(run))
        master.watchers.watch(Listener(master), 1, msg.Watch(run))

    with_master(tmp_path, scenario, monkeypatch)


def test_a_large_run_is_shown_in_pages_that_do_not_keep_the_loop(tmp_path, monkeypatch):
    async def scenario(master, store):
        count = 2 * TASKS_PER_PAGE + 1
        client, run = await submitted(master, GraphSpec("g", (TaskSpec("t", WORK, count=count, array=True),)))
        for make in (
            lambda cursor: msg.Show(run, cursor=cursor, limit=100_000),
            lambda cursor: msg.List("tasks", run, cursor=cursor, limit=100_000),
        ):
            sizes, names, cursor = [], [], ""
            while not sizes or cursor:
                client.say(make(cursor))
                page = (await client.next()).message
                sizes.append(len(page.tasks))
                names += [row.name for row in page.tasks]
                cursor = page.next
            assert sizes == [TASKS_PER_PAGE, TASKS_PER_PAGE, 1]
            assert names == [f"t[{member}]" for member in range(count)]

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("most", [1, 25_000, 1_000_000])
def test_what_a_graph_describes_is_told_with_its_members_counted(most, tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "MEMBERS_PER_PAGE", most)

    async def scenario(master, store):
        worker = await Peer.connect(master, "worker")
        await worker.attach(slots=2)
        tasks = (
            TaskSpec("a", WORK, count=20_000, array=True),
            TaskSpec("one", WORK, count=1, array=True),
            TaskSpec("b", WORK, needs=("a", "one")),
        )
        client, run = await submitted(master, GraphSpec("g", tasks))
        while (incoming := await worker.next()).op is not Op.ASSIGN:
            pass
        fence = incoming.columns[6][0]
        worker.say_hot(Op.STARTED, 0, ([run] * 2, [0, 1], [0, 0], [fence, fence + 1], [1, 1], [1, 1]))
        worker.say_hot(Op.RESULT, 1, ([run], [0], [0], [0], [0], [fence], [3], [5], [5], [0], [0]))
        await until(lambda: master.queries.run(run).counts[TaskState.FAILED] == 1)
        rows, cursor = [], ""
        while not rows or cursor:
            client.say(msg.List("specs", run, cursor=cursor, limit=100_000))
            page = (await client.next()).message
            rows += page.specs
            cursor = page.next
        told = [(row.name, row.members, sum(row.counts.values()), row.needs) for row in rows]
        assert told == [("a", 20_000, 20_000, ()), ("one", 1, 1, ()), ("b", -1, 1, ("a", "one"))]
        assert rows[0].counts == {"FAILED": 1, "RUNNING": 1, "PENDING": 19_998}
        assert rows[1].counts == rows[2].counts == {"PENDING": 1}

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize(
    ("task", "member", "first"), [("a", 6, "a[7]"), ("a", -1, "b"), ("a", 9, "b"), ("b", -1, None)]
)
def test_tasks_are_listed_behind_one_of_them(task, member, first, tmp_path, monkeypatch):
    async def scenario(master, store):
        client, run = await submitted(
            master, GraphSpec("g", (TaskSpec("a", WORK, count=10, array=True), TaskSpec("b", WORK)))
        )
        client.say(msg.List("tasks", run, task=task, member=member, limit=3))
        page = (await client.next()).message
        assert (page.tasks[0].name if page.tasks else None) == first
        client.say(msg.List("tasks", run, task="nothing"))
        assert (await client.next()).message.code == "no_such_task"

    with_master(tmp_path, scenario, monkeypatch)


# ---------------------------------------------------------------- what only the worker has of an output


async def holed(master, fetches=True):
    """(client, worker, run, fence) of a task that runs, and of whose output bytes 5 … 105 are not here."""
    worker = await Peer.connect(master, "worker")
    worker.say(msg.Attach(worker="a" * 32, name="w", nonce="n1", connection=1, slots=1, fetches=fetches))
    client, run = await submitted(master)
    while (incoming := await worker.next()).op is not Op.ASSIGN:
        pass
    fence = incoming.columns[6][0]
    worker.say_hot(Op.STARTED, 0, ([run], [0], [0], [fence], [1], [1]))
    worker.say(msg.Output(run=run, index=0, fence=fence), (b"begin",))
    worker.say(msg.Output(run=run, index=0, fence=fence, offset=105), (b"end",))
    await until(lambda: master.logs.end(run, fence) == 108)
    client.say(msg.Logs(run, ""))
    assert (await client.next()).attachments == (b"begin",)
    return client, worker, run, fence


async def rest(client):
    """(offset, dropped, bytes) of every piece up to the end."""
    pieces = []
    while not (incoming := await client.next()).message.final:
        pieces.append((incoming.message.offset, incoming.message.dropped, incoming.attachments[0]))
    return pieces


MIDDLE = bytes(range(100))


def test_the_middle_is_asked_of_the_worker_part_by_part(tmp_path, monkeypatch):
    async def scenario(master, store):
        client, worker, run, fence = await holed(master)
        for first, end in ((0, 30), (30, 100)):
            asked = (await worker.next()).message
            assert asked == msg.Fetch(run, 0, fence, 5 + first, 100 - first)
            told = msg.Fetched(run=run, index=0, fence=fence, asked=5 + first, offset=5 + first)
            # More than was asked for goes no further.
            worker.say(told, (MIDDLE[first:end] + (b"end" if end == 100 else b""),))
        assert await rest(client) == [(5, 0, MIDDLE[:30]), (35, 0, MIDDLE[30:]), (105, 0, b"end")]

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize(
    ("offset", "data", "pieces"),
    [
        (5, b"", [(105, 100, b"end")]),
        (45, MIDDLE[40:], [(45, 40, MIDDLE[40:]), (105, 0, b"end")]),
        (105, b"end", [(105, 100, b"end")]),
        (0, b"begin", [(105, 100, b"end")]),
    ],
)
def test_what_the_worker_has_no_more_is_told_as_missing(tmp_path, monkeypatch, offset, data, pieces):
    async def scenario(master, store):
        client, worker, run, fence = await holed(master)
        asked = (await worker.next()).message
        attached = (data,) if data else ()
        worker.say(msg.Fetched(run=run, index=0, fence=fence, asked=asked.offset, offset=offset), attached)
        assert await rest(client) == pieces

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("how", ["dies", "is of before"])
def test_nobody_waits_for_a_worker_that_does_not_answer(tmp_path, monkeypatch, how):
    async def scenario(master, store):
        client, worker, _, _ = await holed(master, fetches=how == "dies")
        if how == "dies":
            assert (await worker.next()).op is Op.FETCH
            worker.close()
        assert await rest(client) == [(105, 100, b"end")]

    with_master(tmp_path, scenario, monkeypatch)


def test_what_nobody_asked_for_changes_nothing_and_few_are_asked_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "FETCHES", 1)

    async def scenario(master, store):
        client, worker, run, fence = await holed(master)
        other = await Peer.connect(master, "client")
        other.say(msg.Logs(run, ""))
        assert (await other.next()).attachments == (b"begin",)
        for asked in (4, 6, 1 << 62):
            worker.say(msg.Fetched(run=run, index=0, fence=fence, asked=asked, offset=asked), (b"no",))
        worker.say(msg.Fetched(run=run + 7, index=0, fence=fence, asked=5, offset=5), (b"no",))
        for reader in (client, other):
            asked = (await worker.next()).message
            await worker.hears_nothing()
            worker.say(msg.Fetched(run=run, index=0, fence=fence, asked=asked.offset, offset=5), (MIDDLE,))
            assert await rest(reader) == [(5, 0, MIDDLE), (105, 0, b"end")]

    with_master(tmp_path, scenario, monkeypatch)


def test_one_that_hangs_up_while_it_waits_leaves_its_turn_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "FETCHES", 1)

    async def scenario(master, store):
        client, worker, run, fence = await holed(master)
        others = [await Peer.connect(master, "client") for _ in range(2)]
        for other in others:
            other.say(msg.Logs(run, ""))
            assert (await other.next()).attachments == (b"begin",)
        assert (await worker.next()).op is Op.FETCH
        others[0].close()
        client.close()
        assert (await worker.next()).op is Op.FETCH, "for the one that is left"
        worker.say(msg.Fetched(run=run, index=0, fence=fence, asked=5, offset=5), (MIDDLE,))
        assert await rest(others[1]) == [(5, 0, MIDDLE), (105, 0, b"end")]

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize(
    ("reason", "duration", "told"),
    [
        ("worker_lost", 0, None),
        ("unverified", 0, None),
        ("absent", 0, None),
        ("replaced", 0, None),
        ("exit:1", 0, 0.0),
        ("exit:1", 600_000, 0.6),
    ],
)
@pytest.mark.parametrize("is_final", [True, False])
def test_an_attempt_whose_end_nobody_saw_has_no_duration(tmp_path, monkeypatch, reason, duration, told, is_final):
    row = AttemptRow(1, 1, 7, "w", "DEAD", reason, 0, 5_000_000, duration)

    async def scenario(master, _):
        client, run = await submitted(master)
        if is_final:
            client.say(msg.Cancel(run))
            await client.next()
        generation = master.scheduler.state.runs[run].generation.get(0, 0)
        found = {0: msgspec.structs.replace(row, generation=generation)}
        master.history.latest = lambda *_: found
        client.say(msg.Show(run, task=GRAPH.tasks[0].name))
        (task,) = (await client.next()).message.tasks
        ended = 5.0 + told if is_final and told is not None else 0.0
        assert (task.started_at, task.finished_at, task.duration) == (5.0, ended, told)

    with_master(tmp_path, scenario, monkeypatch)
