"""Results that are told as they come: each with the turn that made it, none before it is durable, none left out."""

from __future__ import annotations

import pytest
from master.test_promises import Peer, with_master
from master.test_watch_and_queries import WORK, Listener, until

from titan_fast.master import watch
from titan_fast.model.spec import GraphSpec, Retry, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.opcodes import Op

FUNCTION = b"the function"


def functions(count, retries=0):
    """An array of functions, and its attachments: payloads that are empty."""
    spec = TaskSpec("f", Work(function=1), count=count, array=True, payload=0, retry=Retry(max=retries, backoff=0.0))
    return GraphSpec("g", (spec,)), (bytes(4 * (count + 1)), FUNCTION)


class Both:
    """A client that collects, and a worker that ends what it is told to."""

    def __init__(self, master, client, worker):
        self.master, self.client, self.worker = master, client, worker
        self.fences = {}
        self._sequence = 0

    @classmethod
    async def connect(cls, master, slots=8):
        worker = await Peer.connect(master, "worker")
        await worker.attach(slots)
        assert (await worker.next()).op is Op.VERDICT
        return cls(master, await Peer.connect(master, "client"), worker)

    async def submit(self, count, retries=0, once=None):
        graph, payloads = functions(count, retries)
        request = self.client.say(msg.Submit(graph=graph, watch=True, results=True, once=once), payloads)
        await self.take(count)
        return request

    async def take(self, count):
        """So many members are assigned."""
        while count > 0:
            incoming = await self.worker.next()
            if incoming.op is Op.ASSIGN:
                for first, length, fence in zip(*(incoming.columns[column] for column in (2, 3, 6)), strict=True):
                    self.fences.update((first + member, fence + member) for member in range(length))
                    count -= length

    def end(self, run, results, code=0):
        self._sequence += 1
        columns = [[], [], [], [], [], [], [], [], [], [], []]
        for index, result in results.items():
            row = (run, index, 0, 0, 0, self.fences[index], code, 5, 5, 0, len(result))
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        self.worker.say_hot(Op.RESULT, self._sequence, columns, b"".join(results.values()))

    async def told(self):
        """Until the end: (index -> result, index -> state of those that have none, the update)."""
        got, missing = {}, {}
        while True:
            incoming = await self.client.next()
            if isinstance(incoming.message, msg.Update):
                return got, missing, incoming.message
            if isinstance(incoming.message, msg.Given):
                self.note(incoming.message, incoming.attachments, got, missing)

    @staticmethod
    def note(given, parts, got, missing):
        indexes = [index for first, count in given.stretches for index in range(first, first + count)]
        got.update(zip(indexes, parts, strict=True))
        missing.update((indexes[row.place], row.state) for row in given.missing)


def test_results_are_told_as_they_come_and_the_end_behind_them(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        request = await both.submit(6)
        both.end(1, {0: b"zero", 1: b"one", 3: b"three"})
        first = await both.client.next()
        if isinstance(first.message, msg.Accepted):
            first = await both.client.next()
        assert (first.request, first.message.run, first.message.stretches) == (request, 1, ((0, 2), (3, 1)))
        assert first.attachments == (b"zero", b"one", b"three")
        both.end(1, {2: b"E: x\0left", 5: b"E: y"}, code=1)
        both.end(1, {4: b"four"})
        got, missing, update = await both.told()
        assert got == {2: b"E: x\0left", 4: b"four", 5: b"E: y"}
        assert missing == {2: "FAILED", 5: "FAILED"}
        assert (update.final, update.state, update.run) == (True, "FAILED", 1)
        assert not master.collectors._waiters._by_run and not master.collectors._waiters._by_session

    with_master(tmp_path, scenario, monkeypatch)


def test_none_is_told_before_it_is_durable(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        await both.submit(2)
        assert isinstance((await both.client.next()).message, msg.Accepted)
        store.gate.clear()
        both.end(1, {0: b"zero"})
        await both.client.hears_nothing()
        store.gate.set()
        assert (await both.client.next()).attachments == (b"zero",)

    with_master(tmp_path, scenario, monkeypatch)


def test_what_is_tried_again_is_not_told(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        await both.submit(2, retries=1)
        both.end(1, {0: b"E: x"}, code=1)
        await both.take(1)
        both.end(1, {0: b"zero", 1: b"one"})
        got, missing, _ = await both.told()
        assert (got, missing) == ({0: b"zero", 1: b"one"}, {})

    with_master(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("is_over", [False, True])
def test_who_asks_later_is_told_what_there_is_already(tmp_path, monkeypatch, is_over):
    """By another watch, or by the same submit that is sent again."""

    async def scenario(master, store):
        both = await Both.connect(master)
        await both.submit(4, once=msg.Once("c", 1))
        both.end(1, {0: b"zero", 2: b"two"})
        if is_over:
            both.end(1, {1: b"one", 3: b"three"})
            await both.told()
        await until(lambda: master.queries.run(1).state.count(master.queries.run(1).state[0]) >= 2)
        both.client.close()
        graph, payloads = functions(4)
        again = msg.Submit(graph=graph, watch=True, results=True, once=msg.Once("c", 1, repeat=True))
        for ask, attachments in ((again, payloads), (msg.Watch(1, results=True), ())):
            both.client = await Peer.connect(master, "client")
            both.client.say(ask, attachments)
            got, missing = {}, {}
            while len(got) < (4 if is_over else 2):
                incoming = await both.client.next()
                if isinstance(incoming.message, msg.Given):
                    both.note(incoming.message, incoming.attachments, got, missing)
            assert (got[0], got[2], missing) == (b"zero", b"two", {})
        if not is_over:
            both.end(1, {1: b"one", 3: b"three"})
            got, _, update = await both.told()
            assert (got, update.state) == ({1: b"one", 3: b"three"}, "COMPLETED")

    with_master(tmp_path, scenario, monkeypatch)


class Reader(Listener):
    """Keeps what came along, too."""

    def __init__(self, master):
        super().__init__(master)
        self.got = {}

    def reply(self, message, request, attachments=()):
        super().reply(message, request)
        if isinstance(message, msg.Given):
            Both.note(message, attachments, self.got, {})


def test_who_does_not_read_is_told_nothing_and_later_all_of_it(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        graph, payloads = functions(4)
        both.client.say(msg.Submit(graph=graph), payloads)
        await both.take(4)
        slow, quick = Reader(master), Reader(master)
        for reader in (slow, quick):
            master.collectors.start(reader, 1, msg.Watch(1, results=True))
        slow.waiting_bytes = master.settings.limits.undrained
        both.end(1, {0: b"zero"})
        both.end(1, {3: b"three", 1: b"one"})
        await until(lambda: len(quick.got) == 3)
        assert not slow.told
        slow.waiting_bytes = 0
        both.end(1, {2: b"two"})
        await until(lambda: isinstance(quick.told[-1], msg.Update))
        assert isinstance(slow.told[-1], msg.Update)
        assert slow.got == quick.got == {0: b"zero", 1: b"one", 2: b"two", 3: b"three"}

    with_master(tmp_path, scenario, monkeypatch)


def test_who_drains_after_the_end_is_told_the_rest_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "BYTES_PER_PAGE", 3)

    async def scenario(master, store):
        both = await Both.connect(master)
        graph, payloads = functions(2)
        both.client.say(msg.Submit(graph=graph), payloads)
        await both.take(2)
        slow = Listener(master)
        master.collectors.start(slow, 1, msg.Watch(1, results=True))
        slow.waiting_bytes = master.settings.limits.undrained
        both.end(1, {0: b"zero", 1: b"one"})
        await until(lambda: master.queries.run(1).is_final)
        assert not slow.told
        slow.waiting_bytes = 0
        master.collectors.session_drained(slow)
        assert [type(said) for said in slow.told] == [msg.Given, msg.Update]
        assert not master.collectors._waiters._by_run

    with_master(tmp_path, scenario, monkeypatch)


def test_a_run_that_is_forgotten_meanwhile_is_told_as_that(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        graph, payloads = functions(1)
        both.client.say(msg.Submit(graph=graph), payloads)
        await both.take(1)
        slow = Listener(master)
        slow.refused = []
        slow.refuse_request = lambda error, request: slow.refused.append(error.code)
        master.collectors.start(slow, 1, msg.Watch(1, results=True))
        slow.waiting_bytes = master.settings.limits.undrained
        both.end(1, {0: b"zero"})
        await until(lambda: master.queries.run(1).is_final)
        await until(lambda: master.pump.durable == master.pump.position)
        both.client.say(msg.Prune(keep_runs=0))
        while not isinstance((await both.client.next()).message, msg.Pruned):
            pass
        slow.waiting_bytes = 0
        master.collectors.session_drained(slow)
        assert slow.refused == ["no_such_run"]
        assert not master.collectors._waiters._by_run

    with_master(tmp_path, scenario, monkeypatch)


def test_what_ends_without_an_attempt_is_told_too(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = Both(master, await Peer.connect(master, "client"), None)
        graph, payloads = functions(3)
        both.client.say(msg.Submit(graph=graph, watch=True, results=True), payloads)
        assert (await both.client.next()).message.run == 1
        both.client.say(msg.Cancel(1, only_waiting=True))
        got, missing, update = await both.told()
        assert got == dict.fromkeys(range(3), b"")
        assert missing == dict.fromkeys(range(3), "CANCELLED")
        assert update.state == "CANCELLED"

    with_master(tmp_path, scenario, monkeypatch)


def test_only_whole_runs_of_functions_are_told_so(tmp_path, monkeypatch):
    async def scenario(master, store):
        client = await Peer.connect(master, "client")
        command = GraphSpec("g", (TaskSpec("t", WORK),))
        client.say(msg.Submit(graph=command, watch=True, results=True))
        assert (await client.next()).message.field == "results"
        client.say(msg.Submit(graph=command))
        assert (await client.next()).message.run == 1, "the other one was not accepted"
        client.say(msg.Watch(1, results=True))
        assert (await client.next()).message.field == "results"
        graph, payloads = functions(2)
        client.say(msg.Submit(graph=graph), payloads)
        assert (await client.next()).message.run == 2
        client.say(msg.Watch(2, "f", results=True))
        assert (await client.next()).message.field == "results"

    with_master(tmp_path, scenario, monkeypatch)


def test_who_hangs_up_leaves_nothing_behind(tmp_path, monkeypatch):
    async def scenario(master, store):
        both = await Both.connect(master)
        await both.submit(2)
        await until(lambda: master.collectors._waiters._by_run)
        both.client.close()
        await until(lambda: not master.collectors._waiters._by_run)
        both.end(1, {0: b"zero", 1: b"one"})
        await until(lambda: master.queries.run(1).is_final)

    with_master(tmp_path, scenario, monkeypatch)
