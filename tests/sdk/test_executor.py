"""Calls by themselves: what they are batched into, and that each has its own end, whatever happens to the others, to
the connection or to the executor.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import hashlib
import itertools
import os
import pickle
import struct
import threading
import weakref
from concurrent.futures import ALL_COMPLETED, CancelledError, as_completed, wait

import pytest

from titan_fast import AsyncClient, Client
from titan_fast.errors import InvalidGraph, NoMaster, NoSuchBlob, TaskFailed
from titan_fast.model.spec import MAX_PAYLOAD
from titan_fast.protocol import messages as msg
from titan_fast.sdk import executor, functions
from titan_fast.testing.cluster import until


def square(number):
    return number * number


def fail(text):
    raise ValueError(text)


def given(asked, attachments, run):
    """What a worker would give for all of it, one message for each function."""
    first = 0
    for spec in asked.graph.tasks:
        function = pickle.loads(attachments[spec.work.function])
        blob = attachments[spec.payload]
        offsets = struct.unpack_from(f">{spec.count + 1}I", blob)
        parts, missing = [], []
        for member, (start, end) in enumerate(itertools.pairwise(offsets)):
            base = 4 * (spec.count + 1)
            args, kwargs = pickle.loads(blob[base + start : base + end])
            try:
                parts.append(pickle.dumps(function(*args, **kwargs)))
            except Exception as error:
                left = b"why\0" + pickle.dumps((f"Traceback of {error}", pickle.dumps(error)))
                missing.append(msg.NoResult(member, f"{spec.name}[{member}]", "FAILED", "why"))
                parts.append(left)
        yield (msg.Given(pickled=True, missing=tuple(missing), run=run, stretches=((first, spec.count),)), *parts)
        first += spec.count


def over(run, **fields):
    return msg.Update(run, "g", "COMPLETED", {}, final=True, **fields)


class Work:
    """A master whose runs end when they may."""

    def __init__(self, master):
        self.go_on = threading.Event()
        self.go_on.set()
        self.came = threading.Event()
        self.graphs = []
        self.kept = {}
        self._numbers = itertools.count(1)
        self._master = master
        master.script(msg.Submit, self.submit)
        master.script(msg.Watch, self.watch)
        master._replies = self.replies

    def replies(self, incoming):
        """One after the other: what is given leaves before the run is over."""
        if not isinstance(incoming.message, msg.Submit | msg.Watch):
            return type(self._master)._replies(self._master, incoming)
        if isinstance(incoming.message, msg.Watch):
            return self.watch(incoming.message)
        once = incoming.message.once
        if (once.client, once.counter) not in self.kept:
            self.kept[once.client, once.counter] = self.accept(incoming.message, incoming.attachments)
        run = self.kept[once.client, once.counter]
        return itertools.chain([msg.Accepted(run)], self.answers(run))

    def accept(self, asked, attachments):
        run = next(self._numbers)
        self.graphs.append((asked, attachments))
        self._master.carried_out.append(asked)
        return run

    def submit(self, asked, *attachments):
        raise AssertionError

    def watch(self, asked):
        assert asked.results
        return self.answers(asked.run)

    def answers(self, run):
        self.came.set()
        assert self.go_on.wait(20)
        yield from given(*self.graphs[run - 1], run)
        yield over(run)

    @property
    def sizes(self):
        return [sum(task.count for task in asked.graph.tasks) for asked, _ in self.graphs]


@pytest.fixture
def work(master):
    made = Work(master)
    yield made
    made.go_on.set()


@pytest.fixture
def held(work):
    """Nothing ends until it may."""
    work.go_on.clear()
    return work


@pytest.fixture
def pool(client):
    with client.executor() as pool:
        yield pool


def gather(pool, held, numbers):
    """Futures of calls that are on their way together, behind one that was sent first."""
    first = pool.submit(square, 0)
    assert held.came.wait(10)
    return [first, *(pool.submit(square, number) for number in numbers)]


def together(pool, function, items):
    """Futures of calls that are one run, the first one of the executor."""
    calls = [
        executor._Call(pool._described(function), functions.pickled_arguments("t", (item,), {}), executor._Future())
        for item in items
    ]
    sender = pool._sender
    with sender._lock:
        sender._start()
        sender._queued.extend(calls[:-1])
        sender._unanswered += len(calls) - 1
        sender._bytes += sum(len(call.payload) for call in calls[:-1])
    sender.put(calls[-1])
    return [call.future for call in calls]


# ---------------------------------------------------------------- the library's interface


def test_a_lone_call_is_one_request(work, pool, master):
    future = pool.submit(square, 7)
    assert (future.result(10), future.done(), future.running(), future.cancelled()) == (49, True, False, False)
    assert [type(asked) for asked in master.asked] == [msg.Submit]
    assert isinstance(pool, concurrent.futures.Executor) and isinstance(future, concurrent.futures.Future)


def test_what_is_submitted_while_others_are_on_their_way_goes_together(held, pool, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    futures = gather(pool, held, range(1, 300))
    held.go_on.set()
    assert [future.result(10) for future in futures] == [number * number for number in range(300)]
    assert held.sizes == [1, 299]


def test_every_call_has_its_own_arguments_and_function(held, pool, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    gather(pool, held, [])
    made = [
        pool.submit(square, 3),
        pool.submit(pow, 2, exp=5),
        pool.submit(dict, a=1),
        pool.submit(square, number=4),
        pool.submit(functools.partial(pow, 3), 2),
        pool.submit(functools.partial(pow, 4), 2),
        pool.submit("-".join, ["a", "b"]),
        pool.submit(lambda *, self, fn: self + fn, self=1, fn=2),
    ]
    held.go_on.set()
    assert [future.result(10) for future in made] == [9, 32, {"a": 1}, 16, 9, 16, "a-b", 3]
    (asked, _) = held.graphs[1]
    assert [(task.name, task.count) for task in asked.graph.tasks] == [
        ("square", 2),
        ("pow", 1),
        ("dict", 1),
        ("pow-2", 1),
        ("pow-3", 1),
        ("join", 1),
        ("lambda", 1),
    ]


def test_map_and_the_functions_of_the_library(work, pool):
    assert list(pool.map(square, range(20), timeout=10)) == [number * number for number in range(20)]
    futures = [pool.submit(square, number) for number in range(20)]
    assert wait(futures, 10, ALL_COMPLETED).not_done == set()
    assert sorted(future.result() for future in as_completed(futures, 10)) == sorted(map(square, range(20)))
    called = []
    futures[0].add_done_callback(called.append)
    assert called == [futures[0]]


def test_a_loop_can_run_its_calls_in_it(work, pool):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, square, number) for number in range(10)))

    assert asyncio.run(main()) == [number * number for number in range(10)]


def test_an_async_client_makes_one_too(work, master):
    async def main():
        loop = asyncio.get_running_loop()
        async with AsyncClient(master.address, token=master.token) as client:
            pool = client.executor()
            try:
                return await loop.run_in_executor(pool, functools.partial(pow, exp=2), 9)
            finally:
                pool.shutdown(wait=False)

    assert asyncio.run(main()) == 81


def test_a_coroutine_leaves_it_without_keeping_its_loop(held, master):
    """What was submitted is waited for, and the loop goes on meanwhile: here it is what lets the call end."""

    async def let_it_end():
        assert await asyncio.to_thread(held.came.wait, 10)
        asyncio.get_running_loop().call_soon(held.go_on.set)

    async def main():
        async with AsyncClient(master.address, token=master.token) as client:
            async with client.executor() as pool:
                future = pool.submit(square, 3)
                going_on = asyncio.create_task(let_it_end())
            assert future.done()
            await going_on
            with pytest.raises(RuntimeError):
                pool.submit(square, 4)
            return future.result()

    assert asyncio.run(main()) == 9


def test_the_options_are_those_of_a_task(work, client, master):
    with client.executor("mine", requires=["GPU"], priority=5, timeout="2s", retries=3, env={"A": "b"}) as pool:
        assert pool.submit(square, 2).result(10) == 4
    asked, _ = work.graphs[0]
    (task,) = asked.graph.tasks
    assert (asked.graph.name, task.requires, task.priority, task.work.timeout) == ("mine", ("GPU",), 5, 2.0)
    assert (task.retry.max, task.work.env, task.work.spread, task.array) == (3, {"A": "b"}, True, False)
    with pytest.raises(InvalidGraph, match="retries"):
        client.executor(retries=-1)


# ---------------------------------------------------------------- each by itself


def test_who_fails_fails_alone(held, pool, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    futures = gather(pool, held, [1, 2])
    bad = pool.submit(fail, "no")
    held.go_on.set()
    assert [future.result(10) for future in futures] == [0, 1, 4]
    error = bad.exception(10)
    assert isinstance(error, TaskFailed) and isinstance(error.__cause__, ValueError)
    assert (error.reason, error.traceback) == ("why", "Traceback of no")
    assert "2/fail[0] is FAILED (why)" in str(error)
    with pytest.raises(TaskFailed):
        bad.result()


@pytest.mark.parametrize("arguments", [(threading.Lock(),), (b"x" * (MAX_PAYLOAD + 1),)])
def test_what_cannot_be_sent_is_told_by_its_own_future(work, pool, arguments):
    assert isinstance(pool.submit(square, *arguments).exception(10), InvalidGraph)
    assert pool.submit(square, 3).result(10) == 9


def test_what_cannot_be_called_is_told_by_its_own_future(work, pool):
    assert isinstance(pool.submit(7).exception(10), InvalidGraph)
    assert isinstance(pool.submit(threading.Lock().acquire).exception(10), InvalidGraph)


def test_a_result_that_cannot_be_made_here_is_told_by_its_own_future(held, pool, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    futures = gather(pool, held, [1])
    held.go_on.set()
    parts = (b"no pickle", pickle.dumps(4))
    answers = [(msg.Given(pickled=True, run=2, stretches=((0, 2),)), *parts), over(2)]
    monkeypatch.setattr(held, "answers", lambda run: answers if run == 2 else given(*held.graphs[run - 1], run))
    futures.append(pool.submit(square, 2))
    assert isinstance(futures[1].exception(10), pickle.UnpicklingError)
    assert futures[2].result(10) == 4


def test_a_refusal_is_told_by_all_that_were_sent_together(master, pool):
    master.on(msg.Submit, InvalidGraph("too much"))
    assert isinstance(pool.submit(square, 1).exception(10), InvalidGraph)


def test_results_come_before_the_run_is_over(held, pool, monkeypatch):
    def answers(run):
        yield (msg.Given(pickled=True, run=run, stretches=((1, 1),)), pickle.dumps("second"))
        held.go_on.wait(10)
        yield (msg.Given(pickled=True, run=run, stretches=((0, 1), (2, 1))), pickle.dumps("a"), pickle.dumps("b"))
        yield over(run)

    monkeypatch.setattr(held, "answers", answers)
    first, second, third = together(pool, square, [1, 2, 3])
    assert second.result(10) == "second"
    assert not first.done() and not third.done()
    held.go_on.set()
    assert [first.result(10), third.result(10)] == ["a", "b"]


def test_what_somebody_opened_again_is_waited_for(work, pool, monkeypatch):
    def answers(run):
        row = msg.NoResult(0, "square[0]", "PENDING", "backoff")
        yield (msg.Given(pickled=True, missing=(row,), run=run, stretches=((0, 1),)), b"")
        yield from given(*work.graphs[run - 1], run)
        yield over(run)

    monkeypatch.setattr(work, "answers", answers)
    assert pool.submit(square, 3).result(10) == 9


def test_a_master_that_forgets_a_result_is_found_out(work, pool, monkeypatch):
    monkeypatch.setattr(work, "answers", lambda run: [over(run)])
    with pytest.raises(Exception, match="has not told"):
        pool.submit(square, 3).result(10)


# ---------------------------------------------------------------- cancelling, ending


def test_a_call_can_be_cancelled_until_it_is_sent(held, pool, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    sent, first, second = gather(pool, held, [1, 2])
    assert sent.running() and not sent.cancel()
    assert first.cancel() and first.cancelled() and not second.running()
    held.go_on.set()
    assert second.result(10) == 4
    assert held.sizes == [1, 1]
    with pytest.raises(CancelledError):
        first.result(10)


def test_nothing_is_taken_after_the_end_and_everything_carried_out_that_was(held, client):
    pool = client.executor()
    futures = gather(pool, held, range(1, 50))
    pool.shutdown(wait=False)
    for what in (square, 7):
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(what, 1)
    held.go_on.set()
    assert [future.result(10) for future in futures] == [number * number for number in range(50)]
    pool.shutdown()
    assert not pool._sender._thread.is_alive()


def test_an_executor_that_was_never_used_ends(client):
    with client.executor() as pool:
        pass
    pool.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError):
        pool.submit(square, 1)


def test_the_end_takes_back_what_has_not_begun(held, client, master, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 60)
    master.script(msg.Cancel, lambda asked: [msg.Accepted(asked.run)])

    def answers(run):
        held.came.set()
        row = msg.NoResult(0, "square[0]", "CANCELLED", "cancelled")
        assert held.go_on.wait(10)
        yield (msg.Given(pickled=True, missing=(row,), run=run, stretches=((0, 1),)), b"")
        yield over(run)

    monkeypatch.setattr(held, "answers", answers)
    pool = client.executor()
    sent, waiting = gather(pool, held, [1])
    stop = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
    stop.start()
    with pytest.raises(CancelledError):
        waiting.result(10)
    held.go_on.set()
    stop.join(10)
    assert not stop.is_alive()
    (asked,) = [asked for asked in master.asked if isinstance(asked, msg.Cancel)]
    assert (asked.run, asked.only_waiting) == (1, True)
    assert sent.cancelled() and sent.done()
    for ask in (sent.result, sent.exception):
        with pytest.raises(CancelledError):
            ask(10)


def test_who_drops_the_executor_has_its_results_and_the_thread_ends(held, client):
    pool = client.executor()
    (future,) = gather(pool, held, [])
    thread = pool._sender._thread
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    held.go_on.set()
    assert future.result(10) == 0
    thread.join(10)
    assert not thread.is_alive()


def test_a_forked_child_is_told(work, pool):
    assert pool.submit(square, 2).result(10) == 4
    child = os.fork()
    if not child:
        try:
            pool.submit(square, 2)
        except RuntimeError:
            pool.shutdown()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.submit(square, 3).result(10) == 9


# ---------------------------------------------------------------- large results


def large(run, digest):
    return [(msg.Given(pickled=True, run=run, stretches=((0, 1),)), f"artifact:{digest}".encode()), over(run)]


def test_a_result_that_is_a_file_is_fetched(work, pool, master, monkeypatch):
    data = pickle.dumps("x" * 100_000)
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(work, "answers", lambda run: large(run, digest))
    master.on(msg.BlobAsk, msg.BlobHeld(digest, len(data)))
    master.script(
        msg.BlobGet, lambda asked: [(msg.BlobPiece(digest, asked.offset, len(data)), data[asked.offset :][:60_000])]
    )
    assert pool.submit(square, 3).result(10) == "x" * 100_000


def test_one_that_is_not_there_any_more_is_told_by_its_future(work, client, master, monkeypatch):
    monkeypatch.setattr(work, "answers", lambda run: large(run, "0" * 64))
    master.on(msg.BlobAsk, NoSuchBlob("0" * 64))
    with client.executor() as pool:
        future = pool.submit(square, 3)
    assert isinstance(future.exception(0), NoSuchBlob), "the end waits for it"


# ---------------------------------------------------------------- connections


@pytest.mark.parametrize("step", range(8))
def test_each_call_is_carried_out_once_wherever_the_connection_breaks(work, pool, master, step):
    master.break_at(step)
    futures = [pool.submit(square, number) for number in range(30)]
    assert [future.result(20) for future in futures] == [number * number for number in range(30)]
    assert sum(work.sizes) == 30


def test_what_was_told_is_not_told_again(work, client, master, monkeypatch):
    """The connection breaks behind the result and before the end: the result comes twice."""
    seen = []
    master.break_at(4)
    with client.executor() as pool:
        future = pool.submit(square, 3)
        future.add_done_callback(lambda done: seen.append(done.result()))
        assert future.result(10) == 9
    assert seen == [9]
    assert [type(asked) for asked in master.asked] == [msg.Submit, msg.Watch]
    assert pool._sender._unanswered == pool._sender._bytes == 0


def test_what_is_told_again_with_others_takes_nothing_from_them(work, client, master, monkeypatch):
    def answers(run):
        for index in range(2):
            yield (msg.Given(pickled=True, run=run, stretches=((index, 1),)), pickle.dumps(index))
        yield over(run)

    monkeypatch.setattr(work, "answers", answers)
    master.break_at(4)
    with client.executor() as pool:
        assert [future.result(10) for future in together(pool, square, [5, 6])] == [0, 1]
    assert [type(asked) for asked in master.asked] == [msg.Submit, msg.Watch]
    assert pool._sender._unanswered == pool._sender._bytes == 0


def test_a_master_that_stays_away_is_told_by_every_future(held, master):
    with (
        Client(master.address, token=master.token, reconnect_timeout=0.3, tell=lambda text: None) as client,
        client.executor() as pool,
    ):
        futures = gather(pool, held, range(1, 5))
        held.go_on.set()
        master.stop()
        more = pool.submit(square, 9)
        for future in [*futures, more]:
            error = future.exception(20)
            assert error is None or isinstance(error, NoMaster)
        assert isinstance(more.exception(), NoMaster)


def test_nobody_there_at_all(tmp_path):
    with Client("127.0.0.1:9", token="x", timeout=0.2) as client, client.executor() as pool:
        assert isinstance(pool.submit(square, 1).exception(20), NoMaster)


# ---------------------------------------------------------------- bounds


def test_one_call_too_many_waits(held, client, monkeypatch):
    monkeypatch.setattr(executor, "MOST", 4)
    with client.executor() as pool:
        futures = gather(pool, held, range(1, 4))
        late = threading.Thread(target=lambda: futures.append(pool.submit(square, 4)))
        late.start()
        until(lambda: pool._sender._waiting, "the fifth one waits")
        assert len(futures) == 4
        held.go_on.set()
        late.join(10)
        assert [future.result(10) for future in futures] == [0, 1, 4, 9, 16]


def test_so_do_too_many_bytes(held, client, monkeypatch):
    monkeypatch.setattr(executor, "MOST_BYTES", 1000)
    with client.executor() as pool:
        futures = [pool.submit(len, b"x" * 5000)]
        late = threading.Thread(target=lambda: futures.append(pool.submit(len, b"y")))
        late.start()
        until(lambda: pool._sender._waiting, "the second one waits")
        held.go_on.set()
        late.join(10)
        assert [future.result(10) for future in futures] == [5000, 1]


def test_who_waits_when_it_ends_is_told(held, client, monkeypatch):
    monkeypatch.setattr(executor, "MOST", 1)
    pool = client.executor()
    gather(pool, held, [])
    with concurrent.futures.ThreadPoolExecutor() as threads:
        late = threads.submit(pool.submit, square, 1)
        until(lambda: pool._sender._waiting, "the second one waits")
        pool.shutdown(wait=False)
        assert isinstance(late.exception(10), RuntimeError)
        held.go_on.set()


def test_a_callback_that_submits_waits_for_nobody(work, client, monkeypatch):
    monkeypatch.setattr(executor, "MOST", 1)
    with client.executor() as pool:
        more = []
        future = pool.submit(square, 2)
        future.add_done_callback(lambda done: more.append([pool.submit(square, 3), pool.submit(square, 4)]))
        until(lambda: more, "the callback ran")
        assert [each.result(10) for each in more[0]] == [9, 16]


def test_a_run_takes_no_more_than_so_many_calls_and_bytes(held, client, monkeypatch):
    monkeypatch.setattr(executor, "PAUSE", 0.2)
    monkeypatch.setattr(executor, "PER_RUN", 10)
    monkeypatch.setattr(executor, "BYTES_PER_RUN", 1000)
    with client.executor() as pool:
        futures = gather(pool, held, range(1, 26))
        futures += [pool.submit(len, b"x" * 600) for _ in range(4)]
        held.go_on.set()
        wait(futures, 10)
        assert all(future.done() for future in futures)
    assert held.sizes[:3] == [1, 10, 10]
    assert max(held.sizes) <= 10 and sum(held.sizes) == 30 and len(held.sizes) >= 5


def test_only_so_many_runs_are_on_their_way(held, client, monkeypatch):
    monkeypatch.setattr(executor, "WATCHED", 1)
    monkeypatch.setattr(executor, "PAUSE", 0)
    with client.executor() as pool:
        futures = gather(pool, held, range(1, 40))
        assert held.sizes == [1]
        held.go_on.set()
        assert [future.result(10) for future in futures] == [number * number for number in range(40)]
    assert held.sizes == [1, 39]


# ---------------------------------------------------------------- what is called


def test_a_function_is_pickled_once(work, pool, monkeypatch):
    made = []
    real = functions.pickled_function
    monkeypatch.setattr(functions, "pickled_function", lambda *args: made.append(args[0]) or real(*args))
    for number in range(20):
        pool.submit(square, number).result(10)
    assert made == ["square"]


def test_what_may_change_is_pickled_each_time(work, pool):
    class Adder:
        def __init__(self):
            self.more = 1

        def add(self, number):
            return number + self.more

        __call__ = add

    adder = Adder()
    futures = [pool.submit(adder, 1), pool.submit(adder.add, 1)]
    adder.more = 10
    futures += [pool.submit(adder, 1), pool.submit(adder.add, 1)]
    assert [future.result(10) for future in futures] == [2, 2, 11, 11]


def test_so_is_a_method_of_the_interpreters_own(work, pool):
    items = [1]
    count = items.count
    futures = [pool.submit(count, 1)]
    items.append(1)
    futures.append(pool.submit(count, 1))
    assert [future.result(10) for future in futures] == [1, 2]


def test_an_executor_may_become_garbage_anywhere(held, client):
    """Also while its own thread holds what guards the queue."""
    pool = client.executor()
    (future,) = gather(pool, held, [])
    sender = pool._sender
    with sender._lock:
        del pool
        gc.collect()
        assert sender._is_closed
    held.go_on.set()
    assert future.result(10) == 0


def test_arguments_are_what_they_were_when_they_were_submitted(held, pool):
    gather(pool, held, [])
    items = [1]
    future = pool.submit(sum, items)
    items.append(2)
    held.go_on.set()
    assert future.result(10) == 1


def test_functions_that_are_made_for_each_call_leave_nothing_behind(work, pool):
    futures = [pool.submit(lambda more=number: more + 1) for number in range(50)]
    assert [future.result(10) for future in futures] == list(range(1, 51))
    gc.collect()
    assert not pool._known


def test_results_go_when_their_futures_do(work, pool):
    future = pool.submit(frozenset, [1, 2, 3])
    gone = weakref.ref(future.result(10))
    ended = weakref.ref(future)
    del future
    until(lambda: not pool._sender._runs, "the run is over")
    gc.collect()
    assert gone() is None and ended() is None
