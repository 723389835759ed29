"""Old runs go when nobody waits, and never half: a client, a master and its store."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import asynccontextmanager

import pytest

from titan_fast.config import load
from titan_fast.master import garden
from titan_fast.master.committer import ThreadCommitter
from titan_fast.master.server import Master
from titan_fast.master.store.memory import MemoryStore
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening

DEADLINE = 20.0
GRAPH = GraphSpec("g", (TaskSpec("t", Work(argv=("true",))),))


class GatedStore(MemoryStore):
    """Commits go through while the gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def commit(self, epoch, facts):
        self.gate.wait(DEADLINE)
        super().commit(epoch, facts)


class Peer:
    """A client, message by message."""

    def __init__(self, reader, writer, connection):
        self._reader, self._writer, self._connection = reader, writer, connection
        self._received = []

    @classmethod
    async def connect(cls, master):
        reader, writer = await asyncio.open_connection("127.0.0.1", master.port)
        connection = Connection(Role.MASTER)
        opening = Opening(connection, "client", master.tokens["client"])
        writer.write(opening.hello())
        while opening.welcome is None:
            for incoming in connection.receive(await reader.read(1 << 16)):
                writer.write(opening.take(incoming))
        return cls(reader, writer, connection)

    def say(self, message):
        self._writer.write(send(message, (), 7))

    async def hear(self, seconds=DEADLINE):
        async with asyncio.timeout(seconds):
            while not self._received:
                data = await self._reader.read(1 << 16)
                assert data, "hung up"
                self._received.extend(self._connection.receive(data))
        return self._received.pop(0).message

    async def ask(self, message):
        self.say(message)
        return await self.hear()


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def finish(client, runs):
    """So many runs that ended, cancelled; a client of them."""
    for _ in range(runs):
        run = (await client.ask(msg.Submit(graph=GRAPH))).run
        assert await client.ask(msg.Cancel(run=run)) == msg.Accepted(run)


async def listed(client):
    return [row.id for row in (await client.ask(msg.List(what="runs"))).runs]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TITAN_HOME", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def a_master(home, store=None, **environ):
    """A master, with the store on a disk if no other is given, and two clients of it."""
    settings = load({"master": {"port": 0, "state_dir": str(home / "state")}}, {"TITAN_HOME": str(home), **environ})
    master = Master(settings, store, committer=ThreadCommitter)
    await master.start()
    try:
        yield master, await Peer.connect(master), await Peer.connect(master)
    finally:
        await master.stop(0.0)


def test_a_run_that_was_forgotten_is_gone_for_everybody_and_the_next_master_starts(home):
    async def main():
        async with a_master(home) as (master, client, _):
            await finish(client, 3)
            kept = master.logs._folder
            for run in (1, 2, 3):
                master.logs.append(run, 7, 0, b"said")
            assert await client.ask(msg.Prune(keep_runs=1, older_than=0)) == msg.Pruned(3), "all ended before now"
            assert await listed(client) == []
            assert (await client.ask(msg.Retry(run=2))).code == "no_such_run"
            assert [folder.name for folder in kept.iterdir() if folder.name.isdecimal()] == []
        async with a_master(home) as (_, client, _):
            assert await listed(client) == []
            assert (await client.ask(msg.Submit(graph=GRAPH))).run == 4

    asyncio.run(main())


def test_more_than_a_page_is_forgotten_at_once_and_the_newest_are_kept(home, monkeypatch):
    monkeypatch.setattr(garden, "PAGE", 3)

    async def main():
        async with a_master(home) as (_, client, _):
            await finish(client, 10)
            assert await client.ask(msg.Prune(keep_runs=2, older_than=1e9)) == msg.Pruned(8)
            assert await listed(client) == [10, 9]

    asyncio.run(main())


def test_what_the_core_forgot_cannot_be_retried_before_it_is_durable_either(home):
    async def main():
        store = GatedStore()
        async with a_master(home, store) as (master, client, other):
            await finish(client, 1)
            outdated = store.outdated

            def close_then_tell(*values):
                if found := outdated(*values):
                    store.gate.clear()
                return found

            store.outdated = close_then_tell
            client.say(msg.Prune(keep_runs=0, older_than=0))
            await until(lambda: not master.scheduler.state.runs)
            assert store.run(1) is not None, "it is there, for a moment"
            assert (await other.ask(msg.Retry(run=1))).code == "no_such_run"
            with pytest.raises(TimeoutError):
                await client.hear(0.1)
            store.gate.set()
            assert await client.hear() == msg.Pruned(1)
            assert store.run(1) is None

    asyncio.run(main())


def test_a_run_that_was_retried_while_the_store_looked_for_old_ones_goes_on(home):
    async def main():
        store = GatedStore()
        async with a_master(home, store) as (master, client, other):
            await finish(client, 2)
            loop, outdated, retried = asyncio.get_running_loop(), store.outdated, []

            def told_late(*values):
                found = outdated(*values)
                if not retried:  # the master hears of these runs when one of them goes on
                    retried.append(asyncio.run_coroutine_threadsafe(retry(), loop).result(DEADLINE))
                return found

            async def retry():
                other.say(msg.Retry(run=1))
                await until(lambda: not master.scheduler.state.runs[1].is_final)

            store.outdated = told_late
            assert await client.ask(msg.Prune(keep_runs=0, older_than=0)) == msg.Pruned(1)
            assert await other.hear() == msg.Accepted(1)
            assert await listed(client) == [1]
            assert [record.accepted.run for record in store.load().runs] == [1]

    asyncio.run(main())


def test_what_is_forgotten_while_a_commit_is_under_way_is_removed_behind_the_next_one(home):
    async def main():
        store = GatedStore()
        async with a_master(home, store) as (master, client, other):
            await finish(client, 2)
            loop, outdated, told = asyncio.get_running_loop(), store.outdated, []

            def told_beside_a_commit(*values):
                found = outdated(*values)
                if not told:
                    store.gate.clear()
                    told.append(asyncio.run_coroutine_threadsafe(begin_a_commit(), loop).result(DEADLINE))
                return found

            async def begin_a_commit():
                other.say(msg.Submit(graph=GRAPH))
                await until(lambda: master.pump.committer.stuck_for())
                before = master.pump.position
                opened.append(asyncio.create_task(until(lambda: master.pump.position > before)))
                opened[0].add_done_callback(lambda _: loop.call_later(0.05, store.gate.set))

            opened = []
            store.outdated = told_beside_a_commit
            assert await client.ask(msg.Prune(keep_runs=0, older_than=0)) == msg.Pruned(2)
            assert (await other.hear()).run == 3

    asyncio.run(main())


def test_several_who_forget_wait_for_each_other(home):
    async def main():
        async with a_master(home) as (_, client, other):
            await finish(client, 5)
            client.say(msg.Prune(keep_runs=0, older_than=0))
            other.say(msg.Prune(keep_runs=0, older_than=0))
            answers = [(await peer.hear()).runs for peer in (client, other)]
            assert answers == [5, 0]

    asyncio.run(main())


def test_forgetting_does_not_wait_for_a_backup_nor_run_in_circles_beside_it(home):
    async def main():
        async with a_master(home) as (master, client, _):
            await finish(client, 1)
            prune, slices = master.store.prune, []

            def counted(seconds):
                slices.append(prune(seconds))
                return slices[-1]

            master.store.prune = counted
            with master.store._bodies.stay:  # as whoever copies has it
                assert await client.ask(msg.Prune(keep_runs=0, older_than=0)) == msg.Pruned(1)
            assert len(slices) <= 3, "one is enough, and one for each commit that was under way"

    asyncio.run(main())


def test_a_look_that_forgot_a_run_tidies_and_sweeps_too(home, monkeypatch):
    """At the limit of what is kept that is every look of a busy master."""
    monkeypatch.setattr(garden, "EVERY", 1e9)
    monkeypatch.setattr(garden, "SWEEP_EVERY", 0.0)

    async def main():
        async with a_master(home, TITAN_STORE_KEEP_RUNS="2") as (master, client, _):
            await finish(client, 3)
            done = []
            tidy, sweep = master.store.tidy, master.blobs.sweep
            monkeypatch.setattr(master.store, "tidy", lambda seconds: (tidy(seconds), done.append("tidy"))[0])
            monkeypatch.setattr(master.blobs, "sweep", lambda *which: (sweep(*which), done.append("sweep"))[0])
            master.garden._look()
            await until(lambda: sorted(done) == ["sweep", "tidy"])
            assert await listed(client) == [3, 2]

    asyncio.run(main())


class UntidyStore(GatedStore):
    """There is more to do than ever gets done."""

    def __init__(self):
        super().__init__()
        self.slices = 0

    def tidy(self, seconds):
        self.slices += 1
        return True


def test_while_nothing_happens_one_slice_of_tidying_follows_the_other(home, monkeypatch):
    monkeypatch.setattr(garden, "EVERY", 1e9)
    monkeypatch.setattr(garden, "PAUSE", 0.001)

    async def main():
        store = UntidyStore()
        async with a_master(home, store) as (master, *_):
            master.garden._look()
            await until(lambda: store.slices >= 5)

    asyncio.run(main())


def test_no_slice_of_tidying_is_put_before_a_promise(home, monkeypatch):
    monkeypatch.setattr(garden, "EVERY", 1e9)
    monkeypatch.setattr(garden, "PAUSE", 0.001)
    looks = []

    class Watched(garden.Garden):
        def _tidy_if_idle(self, position):
            looks.append(position)
            super()._tidy_if_idle(position)

        def _tidy_a_slice(self):
            looks.append("slice")
            super()._tidy_a_slice()

    monkeypatch.setattr("titan_fast.master.server.Garden", Watched)

    async def main():
        store = UntidyStore()
        async with a_master(home, store) as (master, client, _):
            master.garden._look()
            await until(lambda: looks.count("slice") > 3)
            store.gate.clear()
            client.say(msg.Submit(graph=GRAPH))
            await until(lambda: master.pump.committer.stuck_for())
            looks.clear()
            await until(lambda: len(looks) >= 10)
            assert "slice" not in looks, "there is a promise"
            store.gate.set()
            assert (await client.hear()).run == 1
            await until(lambda: "slice" in looks)

    asyncio.run(main())


def test_what_a_killed_master_left_is_cleared_away(home, monkeypatch):
    monkeypatch.setattr(garden, "EVERY", 0.01)

    async def main():
        async with a_master(home) as (_, client, _):
            await finish(client, 1)
        state = home / "state"
        for name in (".backup.41", ".backup.41.part", ".backup.41.copy/state.sqlite", "logs/gone-ab-0/7.head"):
            (state / name).parent.mkdir(parents=True, exist_ok=True)
            (state / name).write_bytes(b"left over")
        for run in (1, 77):
            (state / "logs" / str(run)).mkdir()
        async with a_master(home):
            await until(lambda: not list(state.glob(".backup*")))
            await until(lambda: [folder.name for folder in (state / "logs").iterdir()] == ["1"])

    asyncio.run(main())


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_looking_for_old_runs_leaves_nothing_for_the_collector(home, monkeypatch, without_collector):
    made = []

    class Watched(garden._Pruning):
        def __init__(self, *values):
            super().__init__(*values)
            made.append(weakref.ref(self))

    monkeypatch.setattr(garden, "_Pruning", Watched)

    async def main():
        async with a_master(home) as (master, client, _):
            await finish(client, 2)
            for _ in range(3):
                assert (await client.ask(msg.Prune(keep_runs=0, older_than=0))).runs in (2, 0)
            # The store's thread lets go of its last work when it gets the next.
            await until(lambda: [ref() for ref in made] == [None] * 3 or master.pump.committer.call(int, id))

    asyncio.run(main())


@pytest.mark.parametrize("reason", ["objects", "time"])
def test_garbage_is_collected_when_nothing_happens_though_there_was_no_fact(home, monkeypatch, reason):
    monkeypatch.setattr(garden, "GARBAGE", 100 if reason == "objects" else 1 << 30)
    monkeypatch.setattr(garden, "COLLECT_EVERY", 0.0 if reason == "time" else 1e9)

    class Garbage:
        def __init__(self):
            self.itself = self

    async def main():
        async with a_master(home) as (master, *_):
            try:
                master.garden.collect_when_idle()
                left = [weakref.ref(Garbage()) for _ in range(200)]
                assert left[0]() is not None
                monkeypatch.setattr(garden, "EVERY", 0.01)
                master.garden._look()
                await until(lambda: left[-1]() is None)
            finally:
                gc.unfreeze()
                gc.enable()

    asyncio.run(main())
