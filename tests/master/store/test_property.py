"""Whatever happens in whatever groups: both stores tell the same, before and after they are opened again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import accepted, ended, forget, kv, published, registered, run_ended

from titan_fast.ids import make_fence
from titan_fast.master.store.base import Store
from titan_fast.master.store.memory import MemoryStore
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.scheduler.facts import (
    AttemptsRunning,
    CancelAsked,
    Fact,
    Key,
    TasksDropped,
    TasksReopened,
    TasksSettled,
    WorkerGone,
)

RUNS = range(1, 5)
TASKS = 2500
STATES = ("COMPLETED", "FAILED", "PENDING", "DEAD")
NAMES = ("", "a", "a/b", "ab", "b\0", "é", "1/a", "1/b", "2/a")

runs = st.sampled_from(RUNS)
names = st.sampled_from(NAMES)
indexes = st.integers(0, TASKS - 1)
keys = st.one_of(st.just(Key()), st.builds(Key, st.sampled_from(["me", "you"]), st.integers(0, 5)))
stretches = st.lists(st.tuples(indexes, st.integers(1, 2000)), min_size=1, max_size=3).map(tuple)
moments = st.floats(0, 1e10)


@st.composite
def endings(draw: st.DrawFn) -> Fact:
    rows = draw(
        st.one_of(st.lists(indexes, min_size=1, max_size=8), st.builds(range, indexes, st.just(TASKS), st.just(3)))
    )
    if not rows:
        rows = [0]
    fact = ended(
        draw(runs),
        rows,
        at=draw(moments),
        attempt=draw(st.integers(1, 3)),
        generation=draw(st.integers(0, 1)),
        state=draw(st.sampled_from(STATES)),
        reason=draw(st.sampled_from(["", "exit:3", "worker_lost"])),
        due=draw(st.dictionaries(st.integers(0, len(rows) - 1), st.tuples(moments, moments), max_size=2)),
    )
    sizes = draw(st.lists(st.sampled_from([0, 1, 100, 400_000]), max_size=3))
    for row, size in enumerate(sizes[: len(rows)]):
        fact.result[row] = bytes([row]) * size
        fact.state[row] = draw(st.sampled_from(STATES))
    return fact


facts = st.one_of(
    endings(),
    st.builds(
        lambda run, index: AttemptsRunning(1.5, run, [index], [0], [1], [make_fence(1, 9)], ["w"], [7]), runs, indexes
    ),
    st.builds(TasksSettled, moments, runs, indexes, st.integers(1, 9), st.just("SKIPPED"), st.just("when")),
    st.builds(CancelAsked, moments, runs, indexes, st.integers(1, 9), key=keys),
    st.builds(TasksReopened, moments, runs, stretches, st.integers(0, 1 << 62), key=keys),
    st.builds(TasksDropped, moments, runs, stretches, key=keys),
    st.builds(lambda run, at, dead: run_ended(run, at=at, dead=dead), runs, moments, st.sampled_from([0, 1, 3000])),
    st.builds(registered, names, st.sampled_from(["n1", "n2"])),
    st.builds(WorkerGone, moments, names, st.sampled_from(["left", "lost"])),
    st.builds(
        lambda name, value, revision, key: kv(name, value, revision, key=key),
        names,
        st.one_of(st.none(), st.binary(max_size=9)),
        st.integers(1, 99),
        keys,
    ),
    st.builds(
        lambda name, digest, at, key: published(name, digest * 32, at=at, key=key),
        names,
        st.sampled_from(["aa", "bb"]),
        moments,
        keys,
    ),
    st.builds(
        lambda run, digest, at: published(f"{run}/a", digest * 32, at=at, run=run),
        runs,
        st.sampled_from(["aa", "bb"]),
        moments,
    ),
)


def told(store: Store) -> list[object]:
    """Everything a store says."""
    loaded = store.load()
    return [
        (loaded.next_run, loaded.revision, loaded.workers, loaded.keys, list(loaded.runs)),
        [store.run(run) for run in RUNS],
        [store.runs(99, 9, state, dead) for state in ("", "COMPLETED") for dead in (False, True)],
        [store.latest(run, 700, 900) for run in RUNS],
        [store.attempts(run, index) for run in RUNS for index in (0, 1, 1024, TASKS - 1)],
        [store.result(run, index) for run in RUNS for index in (0, 1, 1024, TASKS - 1)],
        [store.reply(Key(client, counter)) for client in ("me", "you") for counter in range(6)],
        [store.artifact(name) for name in NAMES],
        [store.artifacts(prefix, after, 3) for prefix in ("", "a") for after in NAMES],
        store.digests(),
    ]


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(facts, max_size=8), max_size=5), keep=st.integers(0, 4))
def test_both_stores_tell_the_same(groups: list[list[Fact]], keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, sqlite = MemoryStore(), SqliteStore(Path(folder), "os")
        pair: list[Store] = [memory, sqlite]
        for store in pair:
            store.open()
            store.commit(1, [accepted(run, tasks=TASKS - 1, key=Key("me", run)) for run in RUNS])
            for group in groups:
                store.commit(1, group)
        expected = told(memory)
        assert told(sqlite) == expected
        while sqlite.tidy(1.0):
            pass
        sqlite.close()
        again: list[Store] = [MemoryStore(of=memory), SqliteStore(Path(folder), "os")]
        for store in again:
            store.open()
            assert told(store) == expected
        gone = [sorted(forget(store, keep, 5e9, epoch=2).runs) for store in again]
        assert gone[0] == gone[1]
        assert told(again[0]) == told(again[1])
        for store in again:
            store.commit(2, [fact for run in RUNS for fact in (TasksReopened(1.5, run, ((0, 1),)), run_ended(run))])
        assert told(again[0]) == told(again[1])
        again[1].close()
