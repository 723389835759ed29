"""The async client is the blocking one with ``await``: the same names, the same promises when a connection breaks; and
its calls share one connection, also when some are cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import pickle
import threading

import msgspec
import pytest

from titan_fast import AsyncClient, Client, Graph
from titan_fast.errors import (
    BadProof,
    InvalidFile,
    InvalidGraph,
    InvalidUsage,
    NoMaster,
    NoSuchRun,
    RunFailed,
    TitanError,
    WaitTimedOut,
)
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import async_client as async_module
from titan_fast.sdk import calls
from titan_fast.sdk.async_data import AsyncArtifacts, AsyncKeys
from titan_fast.sdk.async_handles import AsyncPendingRun, AsyncRunHandle, AsyncTaskHandle
from titan_fast.sdk.async_line import AsyncWire
from titan_fast.sdk.data import Artifacts, Keys
from titan_fast.sdk.handles import RunHandle, TaskHandle
from titan_fast.sdk.line import AWAY, BACK
from titan_fast.sdk.pending import PendingRun

GRAPH = Graph("g")
GRAPH.task("t", run="true")
ROW = msg.RunRow(12, "g", "RUNNING", "", 1.0, 1.0, 0.0, {"RUNNING": 1})


def update(final=False, run=12, state=None, result=""):
    state = state or ("COMPLETED" if final else "RUNNING")
    return msg.Update(run, "g", state, {state: 1}, final=final, task_state=state, result=result)


@pytest.fixture
def go(master, told, monkeypatch, tmp_path):
    """Runs a scenario with an async client of ``master``."""
    monkeypatch.setenv("TITAN_HOME", str(tmp_path / "home"))

    def go(scenario, **options):
        options = {"timeout": 5, "reconnect_timeout": 20, **options}

        async def main():
            async with (
                asyncio.timeout(30),
                AsyncClient(master.address, token=master.token, tell=told.append, **options) as client,
            ):
                return await scenario(client)

        return asyncio.run(main())

    return go


# ---------------------------------------------------------------- the same names

PAIRS = [
    (Client, AsyncClient),
    (RunHandle, AsyncRunHandle),
    (TaskHandle, AsyncTaskHandle),
    (PendingRun, AsyncPendingRun),
    (Keys, AsyncKeys),
    (Artifacts, AsyncArtifacts),
]


@pytest.mark.parametrize(("blocking", "other"), PAIRS, ids=lambda cls: cls.__name__)
def test_both_have_the_same_public_methods_with_the_same_parameters(blocking, other):
    def public(cls):
        return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}

    assert set(public(blocking)) == set(public(other))
    for name, method in public(blocking).items():
        if not callable(method):
            continue  # a property: what asks the master has become a method
        mine, theirs = (inspect.signature(found).parameters for found in (method, public(other)[name]))
        assert [(p.name, p.kind, p.default) for p in mine.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ], name
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (Client, AsyncClient))
    assert [(p.name, p.default) for p in ours.values()][:-1] == [(p.name, p.default) for p in theirs.values()][:-1]


@pytest.mark.parametrize("name", ["submit", "wait", "logs", "cancel", "run", "submit_many", "stats"])
def test_what_asks_the_master_is_awaited(name):
    for _, other in PAIRS:
        method = getattr(other, name, None)
        assert method is None or inspect.iscoroutinefunction(method)


# ---------------------------------------------------------------- a connection that breaks

MUTATIONS = {
    "submit": (msg.Submit, msg.Accepted(12), lambda client: client.submit(GRAPH)),
    "cancel": (msg.Cancel, msg.Accepted(12), lambda client: client.cancel("12/t")),
    "kv set": (msg.KvSet, msg.KvDone(5), lambda client: client.kv.set("k", b"v", expect=4)),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("step", range(3))
def test_a_change_is_carried_out_once_wherever_the_connection_breaks(master, go, told, name, step):
    cls, reply, do = MUTATIONS[name]
    master.on(cls, reply)
    master.break_at(step)
    go(do)
    assert len(master.carried_out) == 1
    first, second = master.asked
    assert (first.once.repeat, second.once.repeat) == (False, True)
    assert (first.once.client, first.once.counter) == (second.once.client, second.once.counter)
    assert told == []


def test_who_waits_is_told_once_when_the_master_is_away_and_when_it_is_back(master, go, told):
    master.on(msg.Submit, msg.Accepted(12))
    master.break_at(1, away=4)
    go(lambda client: client.submit(GRAPH))
    assert told == [AWAY, BACK]


@pytest.mark.parametrize("step", range(5))
def test_a_watch_goes_on_wherever_the_connection_breaks(master, go, step):
    master.on(msg.Watch, update(), update(), update(final=True))
    master.break_at(step)

    async def scenario(client):
        return [seen async for seen in client.stream(calls.watch(TaskId(12), True))]

    assert go(scenario)[-1].final
    assert len(master.asked) == 2


def test_a_master_that_stays_away_is_given_up(master, go):
    async def scenario(client):
        await client.line.wire()
        master.stop()
        with pytest.raises(NoMaster, match=r"did not come back within 0\.2 s"):
            await client.stats()

    go(scenario, reconnect_timeout=0.2)


def test_a_wrong_token_and_nobody_there_are_told(master):
    async def ask(token):
        async with AsyncClient(master.address, token=token, timeout=0.1) as client:
            await client.stats()

    with pytest.raises(BadProof):
        asyncio.run(ask("another"))
    master.stop()
    with pytest.raises(NoMaster, match="no master answers"):
        asyncio.run(ask(master.token))


def test_a_run_of_a_lost_state_is_not_taken_for_another_one(master, go):
    master.on(msg.Submit, msg.Accepted(12))

    async def scenario(client):
        run = await client.submit(GRAPH)
        master.history = "second"
        master.stop()
        master.start()
        with pytest.raises(NoSuchRun, match="no run 12 any more"):
            await run.wait()

    go(scenario)


# ---------------------------------------------------------------- many at a time


@pytest.fixture
def numbered(master):
    numbers = itertools.count(1)

    def answer(asked):
        run = next(numbers)
        if asked.graph.name == "bad":
            return [InvalidGraph("no")]
        return [msg.Accepted(run), update(True, run, result=asked.graph.name)] if asked.watch else [msg.Accepted(run)]

    master.script(msg.Submit, answer)
    master.script(msg.Watch, lambda asked: [update(True, asked.run)])
    return master


def test_many_calls_share_one_connection(numbered, go):
    async def scenario(client):
        return await asyncio.gather(*(client.submit(GRAPH) for _ in range(50)))

    assert sorted(run.id for run in go(scenario)) == list(range(1, 51))
    assert numbered.connections == 1


def test_calls_that_break_together_are_carried_out_once_each(numbered, go):
    numbered.break_at(*range(7, 300, 31))

    async def scenario(client):
        return await asyncio.gather(*(client.submit(GRAPH) for _ in range(30)))

    assert sorted(run.id for run in go(scenario)) == list(range(1, 31))
    assert len(numbered.carried_out) == 30


def test_a_cancelled_call_leaves_the_connection_usable(master, go):
    go_on = threading.Event()

    def late(asked):
        go_on.wait(10)
        return [msg.Shown(ROW, ())]

    master.script(msg.Show, late)
    master.on(msg.Submit, msg.Accepted(12))

    async def scenario(client):
        asking = asyncio.create_task(client.run(12))
        other = asyncio.create_task(client.submit(GRAPH))
        while not master.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        assert (await other).id == 12
        assert (await client.submit(GRAPH)).id == 12
        assert not (await client.line.wire())._inboxes

    go(scenario)
    assert master.connections == 1


def test_a_call_that_is_cancelled_while_connecting_does_not_stop_another(master, go):
    master.on(msg.Submit, msg.Accepted(12))

    async def scenario(client):
        first = asyncio.create_task(client.submit(GRAPH))
        second = asyncio.create_task(client.submit(GRAPH))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).id == 12
        with pytest.raises(asyncio.CancelledError):
            await first

    go(scenario)


def test_a_wait_may_time_out_and_be_repeated(master, go):
    go_on = threading.Event()

    def answer(incoming):
        yield msg.Accepted(4)
        go_on.wait(10)
        yield update(True, 4)

    master._replies = answer

    async def scenario(client):
        run = await client.submit_nowait(GRAPH)
        with pytest.raises(WaitTimedOut):
            await run.wait(0.05)
        assert not await run.done()
        go_on.set()
        assert (await run.wait(10)).state == "COMPLETED"
        assert await run.done()

    go(scenario)


def test_many_submits_have_their_own_handles_and_errors(numbered, go):
    bad = Graph("bad")
    bad.task("t", run="true")

    async def scenario(client):
        first, refused, third = await client.submit_many([GRAPH, bad, GRAPH])
        with pytest.raises(InvalidUsage, match="not known yet"):
            _ = first.id
        assert [await first.result(), await third.result()] == ["g", "g"]
        assert (first.id, third.id, first["t"].target) == (1, 3, TaskId(1, "t"))
        assert isinstance(await refused.exception(), InvalidGraph)
        for ask in (refused.wait, refused.cancel, refused.show):
            with pytest.raises(InvalidGraph):
                await ask()

    go(scenario)


@pytest.mark.parametrize("step", [0, 7, 20, 29, 31, 38])
def test_many_submits_are_carried_out_once_wherever_the_connection_breaks(numbered, go, step):
    numbered.break_at(step)

    async def scenario(client):
        runs = await client.submit_many([GRAPH] * 10)
        return [(await run.wait()).run for run in runs]

    assert sorted(go(scenario)) == list(range(1, 11))
    assert len([asked for asked in numbered.carried_out if isinstance(asked, msg.Submit)]) == 10


def test_bounds_hold(numbered, go, monkeypatch):
    monkeypatch.setattr(async_module, "UNANSWERED", 4)
    monkeypatch.setattr(async_module, "WATCHED", 2)

    async def scenario(client):
        runs = []
        for _ in range(12):
            runs.append(await client.submit_nowait(GRAPH))
            assert len(client._unanswered) <= 4
        assert [(await run.wait()).state for run in runs] == ["COMPLETED"] * 12

    go(scenario)
    assert [asked.watch for asked in numbered.asked if isinstance(asked, msg.Submit)][:3] == [True, True, False]


def test_many_outcomes_are_asked_for_in_one_write(numbered, go, monkeypatch):
    monkeypatch.setattr(async_module, "WATCHED", 4)
    writes = []
    write = AsyncWire.write

    async def scenario(client):
        runs = await client.submit_many([GRAPH] * 4) + await client.submit_many([GRAPH] * 4)
        for run in runs:
            await run.settle()
        for run in runs[:4]:
            await run.wait()
        monkeypatch.setattr(AsyncWire, "write", lambda wire, frames: writes.append(frames) or write(wire, frames))
        assert [(await run.wait()).run for run in reversed(runs[4:])] == [8, 7, 6, 5]

    go(scenario)
    assert len(writes) == 1
    assert sorted(asked.run for asked in numbered.asked if isinstance(asked, msg.Watch)) == [5, 6, 7, 8]


def test_the_result_of_the_last_task_and_of_no_other_comes_with_the_end(master, go):
    graph = Graph("g")
    graph.task("t", run="true")
    graph.task("last", run="true", needs=["t"])
    end = msgspec.structs.replace(update(True, 3), gave="last")
    master.on(msg.Submit, msg.Accepted(3), (end, pickle.dumps(42)))
    master.on(msg.Watch, update(True, 3))
    master.script(msg.Results, lambda asked: [(msg.Given(), b"text")])

    async def scenario(client):
        run = await client.submit_nowait(graph)
        await run.settle()
        assert [await run["last"].result() for _ in range(2)] == [42, 42]
        assert [type(asked) for asked in master.asked] == [msg.Submit]
        assert await run["t"].result() == "text"

    go(scenario)


def test_run_waits_and_tells_a_failure(master, go):
    master.on(msg.Submit, msg.Accepted(3), update(True, 3, "FAILED"))
    master.on(msg.Retry, msg.Accepted(3))
    master.on(msg.Watch, update(True, 3))

    async def scenario(client):
        with pytest.raises(RunFailed, match="run 3 is FAILED"):
            await client.run(GRAPH)
        run = await client.submit_nowait(GRAPH)
        assert (await run.outcome()).state == "FAILED"
        await run.retry()
        assert (await run.wait()).state == "COMPLETED"

    go(scenario)


def test_a_client_outlives_its_loop(master):
    """Notebooks and tests run one loop after the other."""
    master.on(msg.Submit, msg.Accepted(12))
    client = AsyncClient(master.address, token=master.token)

    async def scenario():
        return (await client.submit(GRAPH)).id

    assert [asyncio.run(scenario()) for _ in range(2)] == [12, 12]


def test_wrong_input_is_told_before_anybody_is_asked(master, go, tmp_path):
    async def scenario(client):
        for ask in (lambda: client.cancel("a/b/c"), lambda: client.kv.set("", b""), lambda: client.artifacts.put(b"")):
            with pytest.raises(InvalidUsage):
                await ask()
        (tmp_path / "bad.yaml").write_text("tasks: 3")
        with pytest.raises(InvalidFile):
            await client.submit_file(tmp_path / "bad.yaml")
        with pytest.raises(TitanError):
            await client.backup(tmp_path / "none" / "file")

    go(scenario)
    assert master.asked == []


@pytest.mark.parametrize(("limit", "found"), [(None, [12, 11]), (1, [12])])
def test_runs_has_every_page_up_to_the_limit(go, master, limit, found):
    pages = {
        "": msg.Listed(runs=(ROW,), next="12"),
        "12": msg.Listed(runs=(msgspec.structs.replace(ROW, id=11),)),
    }
    master.script(msg.List, lambda asked: [pages[asked.cursor]])

    async def scenario(client):
        return [row.id for row in await client.runs(limit=limit)]

    assert go(scenario) == found
    assert len(master.asked) == len(found)
