"""What every store promises, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from samples import ARTIFACT, PROJECT, accepted, ended, forget, forgotten, kv, published, registered, run_ended

from titan_fast.errors import StoreFenced
from titan_fast.ids import make_fence
from titan_fast.master.store.base import ArtifactRow, AttemptRow, Pruned, RunHead, Store
from titan_fast.scheduler.facts import (
    AttemptsRunning,
    CancelAsked,
    EndedHead,
    Key,
    RunRecord,
    TasksDropped,
    TasksReopened,
    TasksSettled,
    WorkerGone,
    head_of,
)

Another = Callable[[], Store]

KEY = Key("client", 7)
DAY, HOUR = 86400.0, 3600.0


def unfinished(store: Store) -> list[int]:
    return [record.accepted.run for record in store.load().runs]


# ---------------------------------------------------------------- whose it is


def test_every_opening_has_a_higher_epoch_and_a_nonce_that_is_remembered(another: Another) -> None:
    first = another().open()
    second = another().open()
    assert (first.epoch, second.epoch) == (1, 2)
    assert first.nonce != second.nonce
    assert second.nonces == {1: first.nonce, 2: second.nonce}


def test_the_history_has_a_name_that_stays(another: Another) -> None:
    first, second = another(), another()
    first.open()
    second.open()
    assert first.history == second.history != ""


def test_an_epoch_that_a_worker_has_seen_is_passed(another: Another) -> None:
    store = another()
    store.open()
    raised = store.raise_epoch(41)
    assert raised.epoch == 41
    assert raised.nonces.keys() == {1, 41}
    assert store.raise_epoch(7).epoch == 42, "epochs only grow"
    store.commit(42, [accepted(1)])
    assert another().open().epoch == 43


def test_a_master_that_was_followed_by_another_writes_nothing_more(another: Another) -> None:
    first = another()
    epoch = first.open().epoch
    first.commit(epoch, [accepted(1)])
    second = another()
    second.open()
    with pytest.raises(StoreFenced):
        first.commit(epoch, [accepted(2)])
    assert unfinished(second) == [1]


def test_a_commit_under_another_epoch_is_refused(store: Store) -> None:
    with pytest.raises(StoreFenced):
        store.commit(2, [accepted(1)])
    assert unfinished(store) == []


# ---------------------------------------------------------------- what a restart reads


def test_an_unfinished_run_comes_back_with_everything_that_happened_in_order(another: Another) -> None:
    store = another()
    store.open()
    facts = [
        accepted(3, project=PROJECT),
        ended(3, [0], state="PENDING", reason="exit:3", due={0: (21.0, 10.0)}),
        AttemptsRunning(11.0, 3, [1], [0], [1], [make_fence(1, 4)], ["w1"], [1_700_000_000_000_000]),
        ended(3, [2, 1]),
        TasksSettled(11.5, 3, 1, 2, "SKIPPED", "upstream_failed"),
        CancelAsked(11.6, 3, 0, 4, key=KEY),
        TasksReopened(11.7, 3, ((0, 1), (2, 2)), make_fence(1, 9)),
        TasksDropped(11.8, 3, ((3, 1),)),
    ]
    store.commit(1, facts[:3])
    store.commit(1, facts[3:4])
    store.commit(1, facts[4:])
    again = another()
    again.open()
    happened = [head_of(fact) if hasattr(fact, "result") else fact for fact in facts[1:]]
    assert list(again.load().runs) == [RunRecord(facts[0], happened)]
    assert again.run(3) == RunRecord(facts[0], happened)


def test_a_thousand_successes_at_one_worker_are_one_stretch_for_a_restart(store: Store) -> None:
    store.commit(1, [accepted(1, tasks=5000), ended(1, range(1000, 3000))])
    (record,) = store.load().runs
    stretches = ((1000, 1000, make_fence(1, 2000), "worker-1"), (2000, 1000, make_fence(1, 3000), "worker-0"))
    assert record.happened == [EndedHead(11.0, 1, stretches, ())]


def test_a_finished_run_is_not_read_by_a_restart_and_a_reopened_one_is(another: Another) -> None:
    store = another()
    store.open()
    for run in (1, 2, 3):
        store.commit(1, [accepted(run), ended(run, range(4))])
    store.commit(1, [run_ended(2, state="FAILED"), run_ended(1)])
    assert unfinished(store) == [3]
    store.commit(1, [TasksReopened(13.0, 2, ((0, 1),))])
    assert unfinished(store) == [2, 3]
    assert [head.id for head in store.runs(100, 10)] == [1]
    store.commit(1, [run_ended(2, at=20.0)])
    again = another()
    again.open()
    assert unfinished(again) == [3]
    assert [(head.id, head.finished_at) for head in again.runs(100, 10)] == [(2, 20.0), (1, 12.0)]


def test_numbers_are_never_given_twice(another: Another) -> None:
    store = another()
    store.open()
    assert (store.load().next_run, store.load().revision) == (1, 0)
    store.commit(1, [accepted(1), run_ended(1), accepted(2), run_ended(2), kv("k", b"v", 5), kv("k", None, 6)])
    forget(store)
    again = another()
    again.open()
    assert again.run(2) is None
    assert (again.load().next_run, again.load().revision) == (3, 6)


def test_workers_are_those_that_neither_left_nor_were_lost(another: Another) -> None:
    store = another()
    store.open()
    store.commit(1, [registered("a"), registered("b"), registered("c"), WorkerGone(10.0, "c", "left")])
    store.commit(1, [WorkerGone(11.0, "a", "lost"), registered("a", "n2"), registered("c", "n2")])
    store.commit(1, [WorkerGone(12.0, "b", "lost")])
    again = another()
    again.open()
    assert again.load().workers == [registered("a", "n2"), registered("c", "n2")]


def test_keys_are_the_last_that_was_said_about_them_whatever_the_time(another: Another) -> None:
    store = another()
    store.open()
    store.commit(1, [kv("b", b"1", 1), kv("a", b"", 2, expires_at=1.0), kv("c", b"x", 3), kv("b", b"2", 4)])
    store.commit(1, [kv("c", None, 5), kv("d", None, 6), kv("d", b"\0\xff", 7)])
    again = another()
    again.open()
    loaded = again.load()
    assert loaded.keys == [kv("a", b"", 2, expires_at=1.0), kv("b", b"2", 4), kv("d", b"\0\xff", 7)]
    assert loaded.revision == 7


def test_names_may_be_any_text(another: Another) -> None:
    store = another()
    store.open()
    names = ["", "a\0b", "a", "'; DROP TABLE named; --", "é", "🜂", '"\\', "\n"]
    store.commit(1, [kv(name, name.encode(), 1 + place) for place, name in enumerate(names)])
    store.commit(1, [published(name) for name in names])
    again = another()
    again.open()
    assert [fact.name for fact in again.load().keys] == sorted(names)
    assert [row.name for row in again.artifacts("a", "", 9)] == ["a", "a\0b"]


# ---------------------------------------------------------------- what attempts did


def test_attempts_of_a_task_are_told_oldest_first(store: Store) -> None:
    store.commit(1, [accepted(1), ended(1, [1, 2], state="PENDING", reason="exit:3")])
    store.commit(1, [ended(1, [2], attempt=2, state="DEAD", reason="worker_lost"), ended(1, [1], attempt=2)])
    store.commit(1, [ended(1, [2], attempt=1, generation=1)])
    fence = make_fence(1, 1002)
    told = [
        AttemptRow(0, 1, fence, "worker-0", "PENDING", "exit:3", 3, 1_700_000_000_000_002, 1502),
        AttemptRow(0, 2, fence + 1000, "worker-0", "DEAD", "worker_lost", 3, 1_700_000_000_000_002, 1502),
        AttemptRow(1, 1, fence, "worker-0", "COMPLETED", "", 0, 1_700_000_000_000_002, 1502),
    ]
    assert store.attempts(1, 2) == told
    assert store.latest(1, 0, 4).keys() == {1, 2}
    assert store.latest(1, 2, 1) == {2: told[-1]}
    assert store.attempts(1, 0) == store.attempts(9, 2) == []


def test_a_page_of_an_array_is_the_newest_attempt_of_each_task_in_it(store: Store) -> None:
    store.commit(1, [accepted(1, tasks=20_000), accepted(2)])
    for first in range(0, 12_000, 700):
        store.commit(1, [ended(1, range(first, first + 700), state="PENDING", reason="exit:3")])
    store.commit(1, [ended(1, range(11_999, 0, -3), attempt=2), ended(2, [5])])
    page = store.latest(1, 1500, 10_000)
    assert sorted(page) == list(range(1500, 11_500))
    assert {index for index, row in page.items() if row.attempt == 2} == set(range(1502, 11_500, 3))
    assert all(row.started == 1_700_000_000_000_000 + index for index, row in page.items())


def test_rows_of_one_task_in_one_fact_keep_their_order(store: Store) -> None:
    fact = ended(1, [5000, 7, 5000, 7, 5000], results=[b"old", b"", b"older", b"", b"newest"])
    fact.attempt[:] = [1, 1, 2, 2, 3]
    store.commit(1, [accepted(1, tasks=9000), fact])
    assert [row.attempt for row in store.attempts(1, 5000)] == [1, 2, 3]
    assert store.latest(1, 0, 9000)[7].attempt == 2
    assert store.result(1, 5000) == b"newest"


def test_a_result_is_what_the_newest_completed_attempt_gave(store: Store) -> None:
    store.commit(1, [accepted(1, tasks=5000)])
    store.commit(1, [ended(1, [1, 2, 3], results=[b"one", b"", b"three"])])
    store.commit(1, [ended(1, [1, 4, 3000], attempt=2, results=[b"uno", b"four", b"\0" * 3_000_000])])
    store.commit(1, [ended(1, [1, 5], attempt=3, state="FAILED", reason="exit:3", results=[b"no", b"no"])])
    given = {index: store.result(1, index) for index in (0, 1, 2, 3, 4, 5)}
    assert given == {0: b"", 1: b"uno", 2: b"", 3: b"three", 4: b"four", 5: b""}
    assert store.result(1, 3000) == b"\0" * 3_000_000
    assert store.result(2, 1) == b""


def test_large_results_are_all_there(store: Store) -> None:
    results = [bytes([place]) * 400_000 for place in range(20)]
    store.commit(1, [accepted(1), ended(1, range(20), results=results)])
    assert [store.result(1, index) for index in range(20)] == results


# ---------------------------------------------------------------- listings


def test_finished_runs_are_listed_newest_first_in_pages(store: Store) -> None:
    for run in range(1, 8):
        state = "FAILED" if run % 2 else "COMPLETED"
        store.commit(1, [accepted(run), run_ended(run, at=20.0 + run, state=state)])
    store.commit(1, [accepted(8)])
    assert store.runs(1 << 63, 1) == [
        RunHead(7, "graph-7", "FAILED", "", 10.0, 10.5, 27.0, {"COMPLETED": 4}),
    ]
    assert [head.id for head in store.runs(6, 3)] == [5, 4, 3]
    assert [head.id for head in store.runs(6, 3, "COMPLETED")] == [4, 2]
    assert store.runs(6, 3, "CANCELLED") == []


def test_dead_runs_are_those_with_dead_tasks_that_nobody_dropped(store: Store) -> None:
    for run in range(1, 5):
        store.commit(1, [accepted(run, tasks=9)])
    store.commit(1, [TasksDropped(11.0, 4, ((1, 2),))])
    store.commit(1, [run_ended(1), *(run_ended(run, state="FAILED", dead=3) for run in (2, 3, 4))])
    assert [head.id for head in store.runs(100, 10, dead=True)] == [4, 3, 2]
    store.commit(1, [TasksDropped(13.0, 3, ((1, 2),)), TasksDropped(13.0, 3, ((2, 2),))])
    assert [head.id for head in store.runs(100, 10, dead=True)] == [4, 2]
    store.commit(1, [TasksReopened(14.0, 3, ((1, 3),)), run_ended(3, state="FAILED", dead=1)])
    assert [head.id for head in store.runs(100, 10, dead=True)] == [4, 3, 2]


def test_artifacts_are_listed_by_name(store: Store) -> None:
    store.commit(1, [published(name) for name in ("m/b", "m/a", "n", "m", "m/c")])
    newer = published("m/b", "ef" * 32, at=20.0)
    store.commit(1, [newer])
    assert store.artifact("m/b") == ArtifactRow("m/b", newer.digest, 3, 20.0)
    assert store.artifact("m/") is None
    assert [row.name for row in store.artifacts("", "", 99)] == ["m", "m/a", "m/b", "m/c", "n"]
    assert [row.name for row in store.artifacts("m/", "", 2)] == ["m/a", "m/b"]
    assert [row.name for row in store.artifacts("m/", "m/b", 2)] == ["m/c"]


def test_files_that_something_names_are_known(store: Store) -> None:
    store.commit(1, [accepted(1, project=PROJECT), accepted(2), published("a"), published("b", "ef" * 32)])
    assert store.digests() == {PROJECT, ARTIFACT, "ef" * 32}
    store.commit(1, [published("b"), run_ended(1)])
    assert store.digests() == {PROJECT, ARTIFACT}
    forget(store)
    assert store.digests() == {ARTIFACT}


# ---------------------------------------------------------------- repeats


def test_a_repeated_request_gets_the_number_it_was_given(another: Another) -> None:
    store = another()
    store.open()
    keys = [Key("client", counter) for counter in range(8)]
    store.commit(1, [accepted(41, key=keys[0])])
    store.commit(
        1,
        [
            CancelAsked(11.0, 41, 0, 4, key=keys[1]),
            TasksReopened(11.0, 41, ((0, 1),), key=keys[2]),
            TasksDropped(11.0, 41, ((0, 1),), key=keys[3]),
            kv("k", b"v", 17, key=keys[4]),
            kv("k", None, 18, key=keys[5]),
            published("a", key=keys[6]),
            accepted(42),
        ],
    )
    again = another()
    again.open()
    assert [again.reply(key) for key in keys] == [41, 41, 41, 41, 17, 18, 0, None]
    assert again.reply(Key("another", 0)) is None
    assert again.reply(Key()) is None, "a fact without a key answers nobody"


# ---------------------------------------------------------------- forgetting


def finish(store: Store, runs: range) -> None:
    for run in runs:
        store.commit(1, [accepted(run, key=Key("client", run)), ended(run, range(4)), run_ended(run, at=float(run))])


def test_the_newest_finished_runs_are_kept(store: Store) -> None:
    finish(store, range(1, 8))
    store.commit(1, [accepted(8), ended(8, [0])])
    assert store.numbers() == set(range(1, 9))
    assert forget(store, 3) == Pruned([1, 2, 3, 4], True)
    assert store.numbers() == {5, 6, 7, 8}
    assert [head.id for head in store.runs(100, 10)] == [7, 6, 5]
    assert store.run(4) is None
    assert store.attempts(4, 1) == [] and store.result(4, 1) == b""
    assert store.result(5, 1) == b"result 1"
    assert unfinished(store) == [8]
    assert forget(store, 3) == Pruned([], True)


def test_runs_that_finished_long_ago_are_forgotten(store: Store) -> None:
    finish(store, range(1, 8))
    store.commit(1, [accepted(8, at=1.0)])
    assert forget(store, 100, 3.0).runs == [1, 2]
    assert [head.id for head in store.runs(100, 10)] == [7, 6, 5, 4, 3]
    assert unfinished(store) == [8], "an unfinished run is never too old"


def test_what_ought_to_go_is_told_in_pages_and_nothing_goes_by_that(store: Store) -> None:
    finish(store, range(1, 8))
    store.commit(1, [accepted(8)])
    listed = store.runs(100, 10)
    assert store.outdated(2, 0.0, 0, 3) == listed[:3:-1]
    assert [head.id for head in store.outdated(2, 0.0, 3, 3)] == [4, 5]
    assert [head.id for head in store.outdated(100, 3.0, 0, 9)] == [1, 2]
    assert store.outdated(2, 0.0, 5, 3) == store.outdated(7, 1.0, 0, 9) == []
    assert store.prune(10.0) == Pruned([], True)
    assert store.runs(100, 10) == listed


@pytest.mark.parametrize("is_one_commit", [True, False])
def test_a_run_is_forgotten_or_retried_and_what_came_first_counts(another: Another, is_one_commit: bool) -> None:
    """The core forgets no run that goes on, and opens none that it forgot; were it otherwise, the state could be read
    all the same."""
    store = another()
    store.open()
    finish(store, range(1, 3))
    reopened = [TasksReopened(14.0, run, ((0, 1),), key=Key("again", run)) for run in (1, 2)]
    facts = [forgotten(1), reopened[0], reopened[1], forgotten(2), TasksSettled(16.0, 2, 0, 1, "SKIPPED", "when")]
    for group in [facts] if is_one_commit else [[fact] for fact in facts]:
        store.commit(1, group)
    assert store.prune(10.0) == Pruned([1], True)
    again = another()
    again.open()
    (record,) = again.load().runs
    assert record.accepted == accepted(2, key=Key("client", 2))
    assert record.happened[-2:] == [reopened[1], facts[-1]]
    assert (again.run(1), again.runs(100, 10)) == (None, [])
    store = again
    store.commit(2, [run_ended(2)])
    assert [head.id for head in store.outdated(0, 0.0, 0, 9)] == [2]


def test_all_of_a_short_life_in_one_commit_is_gone(another: Another) -> None:
    store = another()
    store.open()
    life = [accepted(1), ended(1, range(4)), run_ended(1, state="FAILED", dead=1), TasksReopened(13.0, 1, ((0, 1),))]
    store.commit(1, [*life, run_ended(1, at=20.0), forgotten(1), accepted(2), run_ended(2)])
    assert store.prune(10.0) == Pruned([1], True)
    again = another()
    again.open()
    assert [head.id for head in again.runs(100, 10)] == [2]
    assert again.load().next_run == 3


def test_results_that_are_files_go_with_their_run(store: Store) -> None:
    finish(store, range(1, 3))
    finish(store, range(10, 11))
    results = {"1/a": 1, "1/part[0]": 1, "1/\U0010ffff": 1, "10/a": 10, "2/a": 2}
    store.commit(1, [published(name, run=run) for name, run in results.items()])
    assert forget(store, 2).runs == [1]
    assert [row.name for row in store.artifacts("", "", 99)] == ["10/a", "2/a"]
    store.commit(1, [published("2/b", "ef" * 32, run=2)])
    assert "ef" * 32 in store.digests()
    forget(store)
    assert store.digests() == set() and store.artifacts("", "", 99) == []


def test_what_a_user_named_like_a_result_is_his_and_stays(store: Store) -> None:
    finish(store, range(1, 3))
    mine = ["1", "1/", "1/mine", *(f"1/x{number}" for number in range(1000)), "1/z", "10/a", "2/a", "of 1/a"]
    store.commit(1, [published(name) for name in mine])
    store.commit(1, [published("1/y", run=1), published("1/z", run=1), published("1/a", run=1), published("1/z")])
    assert forget(store).runs == [1, 2]
    assert [row.name for row in store.artifacts("", "", 2000)] == sorted(mine), "1/z was named by him last"


def test_any_number_of_files_goes_with_a_run(store: Store) -> None:
    finish(store, range(1, 2))
    store.commit(1, [published(f"1/part[{member}]", run=1) for member in range(1000)])
    assert forget(store) == Pruned([1], True)
    assert store.artifacts("", "", 99) == []


def test_forgetting_goes_on_where_it_stopped(another: Another) -> None:
    store = another()
    store.open()
    finish(store, range(1, 200))
    store.commit(1, [forgotten(*range(1, 200))])
    assert store.runs(1000, 1000) == [], "out of sight at once"
    gone: list[int] = []
    epoch = 1
    while not (pruned := store.prune(0.001)).is_done:
        gone += pruned.runs
        store = another()
        epoch = store.open().epoch
    gone += pruned.runs
    assert sorted(gone) == list(range(1, 200)), "each run is gone once"
    assert store.runs(1000, 1000) == []
    store.commit(epoch, [accepted(200)])
    assert unfinished(store) == [200]


def test_replies_stay_for_a_day_and_an_hour_after_their_run(store: Store, clock: Callable[[], float]) -> None:
    store.commit(1, [accepted(1, at=0.0, key=Key("c", 1)), kv("k", b"v", 9, key=Key("c", 2))])

    def replies_at(now: float) -> tuple[int | None, int | None]:
        clock.now = now  # type: ignore[attr-defined]
        assert forget(store).is_done
        return store.reply(Key("c", 1)), store.reply(Key("c", 2))

    assert replies_at(DAY - 1) == (1, 9)
    assert replies_at(DAY + 100) == (1, None), "the run goes on"
    store.commit(1, [run_ended(1, at=DAY + 200)])
    assert replies_at(DAY + 300) == (1, None), "the run is forgotten, its reply is not"
    assert store.run(1) is None
    assert replies_at(DAY + HOUR + 199) == (1, None)
    assert replies_at(DAY + HOUR + 201) == (None, None)


def test_results_of_a_range_are_those_of_the_newest_attempts(store: Store) -> None:
    store.commit(1, [accepted(1, tasks=2500)])
    store.commit(1, [ended(1, range(1, 2001), state="PENDING", reason="exit:3", results=[b"no"] * 2000)])
    store.commit(1, [ended(1, range(1, 2001), attempt=2)])
    store.commit(1, [ended(1, [5, 1500], state="FAILED", attempt=3, results=[b"a\0b", b""])])
    store.commit(
        1, [ended(1, [7], attempt=3, results=[b"newer"]), ended(1, [9], attempt=3, results=[b"x" * 3_000_000])]
    )
    found = store.results(1, 3, 2100, "COMPLETED")
    assert sorted(found) == list(range(3, 2001))
    assert (found[3], found[7], len(found[9]), found[2000]) == (b"result 3", b"newer", 3_000_000, b"result 2000")
    assert store.results(1, 0, 2500, "FAILED") == {5: b"a\0b", 1500: b""}
    assert store.results(1, 2001, 10, "COMPLETED") == store.results(2, 0, 10, "COMPLETED") == {}


def test_a_tidied_store_tells_the_same(store: Store) -> None:
    store.commit(1, [accepted(1, tasks=5000), accepted(2)])
    for first in range(0, 5000, 10):
        rows = range(first, first + 10)
        store.commit(1, [ended(1, rows, state="PENDING", reason="exit:3"), ended(1, [*rows][::-1], attempt=2)])
    store.commit(1, [msgspec.structs.replace(run_ended(1), counts={"COMPLETED": 5001})])
    before = store.load(), store.run(1), store.latest(1, 0, 5000), [store.attempts(1, i) for i in range(0, 5000, 99)]
    for _ in range(10_000):
        if not store.tidy(0.001):
            break
    assert not store.tidy(1.0)
    after = store.load(), store.run(1), store.latest(1, 0, 5000), [store.attempts(1, i) for i in range(0, 5000, 99)]
    assert after[1:] == before[1:]
    assert [store.result(1, index) for index in (0, 4999)] == [b"result 0", b"result 4999"]
