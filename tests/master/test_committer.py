"""The way to the disk: promises begin commits, nobody is told early, a full disk is tried again, a failure ends all."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from titan_fast.errors import DiskFull, StoreUnknown
from titan_fast.master.committer import ThreadCommitter
from titan_fast.scheduler.facts import WorkerGone


def fact(number):
    return WorkerGone(0.0, f"w{number}", "left")


class SlowStore:
    """A store whose commits wait until they are let through; errors are raised in their order."""

    def __init__(self):
        self.gate = threading.Semaphore(0)
        self.commits = []
        self.errors = []

    def commit(self, epoch, facts):
        self.gate.acquire()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        self.commits.append([item.worker for item in facts])


class Told:
    def __init__(self):
        self.positions = []
        self.full = 0
        self.failure = None
        self.changed = asyncio.Event()

    def became_durable(self, position):
        self.positions.append(position)
        self.changed.set()

    def disk_is_full(self, error):
        self.full += 1
        self.changed.set()

    def store_failed(self, error):
        self.failure = error
        self.changed.set()

    async def change(self):
        await asyncio.wait_for(self.changed.wait(), 10)
        self.changed.clear()


def with_committer(scenario):
    async def main():
        store, told = SlowStore(), Told()
        committer = ThreadCommitter(store, lambda: 1, told)
        try:
            await scenario(committer, store, told)
        finally:
            for _ in range(100):
                store.gate.release()
            committer.close()

    asyncio.run(main())


def test_what_is_written_is_let_go():
    async def scenario(committer, store, told):
        kept = fact(1)
        before = sys.getrefcount(kept)
        committer.put([kept], 1)
        committer.hurry()
        store.gate.release()
        await told.change()
        async with asyncio.timeout(10):
            while sys.getrefcount(kept) > before:  # noqa: ASYNC110 - the thread's last reference goes a moment after the word of it
                await asyncio.sleep(0)

    with_committer(scenario)


def test_what_comes_while_a_commit_is_under_way_is_the_next_commit():
    async def scenario(committer, store, told):
        committer.put([fact(1)], 1)
        committer.hurry()
        committer.put([fact(2)], 2)
        committer.put([fact(3), fact(4)], 4)
        committer.hurry()
        assert told.positions == []
        store.gate.release()
        await told.change()
        assert told.positions == [1]
        assert [batch.position for batch in committer.pending] == [2, 4]
        store.gate.release()
        await told.change()
        assert told.positions == [1, 4]
        assert store.commits == [["w1"], ["w2", "w3", "w4"]]
        assert not committer.pending

    with_committer(scenario)


def test_a_fact_nobody_waits_for_leaves_a_little_later_by_itself():
    async def scenario(committer, store, told):
        store.gate.release()
        committer.put([fact(1)], 1)
        await told.change()
        assert told.positions == [1]

    with_committer(scenario)


def test_after_a_commit_a_fact_nobody_waits_for_has_time_for_company():
    async def scenario(committer, store, told):
        committer.put([fact(1)], 1)
        committer.hurry()
        committer.put([fact(2)], 2)
        store.gate.release()
        await told.change()
        committer.put([fact(3)], 3)  # in the same breath: a commit that had begun would miss it
        store.gate.release()
        await told.change()
        assert store.commits == [["w1"], ["w2", "w3"]]

    with_committer(scenario)


def test_a_full_disk_is_tried_again_with_the_same_facts_and_drops_none():
    async def scenario(committer, store, told):
        store.errors = [DiskFull("full"), DiskFull("full")]
        committer.put([fact(1)], 1)
        committer.hurry()
        for expected in (1, 2):
            store.gate.release()
            await told.change()
            assert (told.full, told.positions) == (expected, [])
        committer.put([fact(2)], 2)
        store.gate.release()
        await told.change()
        assert told.positions == [1]
        assert store.commits == [["w1"]]

    with_committer(scenario)


def test_after_a_failed_commit_nobody_is_told_anything():
    async def scenario(committer, store, told):
        store.errors = [OSError("lost")]
        committer.put([fact(1)], 1)
        committer.put([fact(2)], 2)
        committer.hurry()
        for _ in range(3):
            store.gate.release()
        await told.change()
        assert str(told.failure) == "lost"
        assert told.positions == []
        assert store.commits == []

    with_committer(scenario)


def test_a_commit_that_does_not_come_back_is_noticed():
    async def scenario(committer, store, told):
        assert committer.stuck_for() == 0.0
        committer.put([fact(1)], 1)
        committer.hurry()
        began = time.monotonic()
        while committer.stuck_for() < 0.01:
            await asyncio.sleep(0)
            assert time.monotonic() - began < 10
        store.gate.release()
        await told.change()
        assert committer.stuck_for() == 0.0

    with_committer(scenario)


def test_jobs_run_between_commits_and_their_errors_come_back():
    async def scenario(committer, store, told):
        results = []

        def done(result):
            results.append(result)
            told.changed.set()

        committer.call(lambda: 42, done)
        await told.change()
        committer.call(lambda: 1 // 0, done)
        await told.change()
        assert results[0] == 42
        assert isinstance(results[1], ZeroDivisionError)

    with_committer(scenario)


def test_closing_writes_what_there_is():
    async def main():
        store, told = SlowStore(), Told()
        committer = ThreadCommitter(store, lambda: 1, told)
        for _ in range(5):
            store.gate.release()
        committer.put([fact(1)], 1)
        committer.put([fact(2)], 2)
        committer.close()
        assert store.commits == [["w1", "w2"]]

    asyncio.run(main())


@pytest.mark.parametrize("error", [DiskFull("no room"), StoreUnknown("who knows")])
def test_nothing_is_written_after_something_that_is_not(error):
    async def scenario(committer, store, told):
        store.errors = [error]
        committer.put([fact(1)], 1)
        committer.hurry()
        committer.put([fact(2)], 2)
        store.gate.release(100)
        await told.change()
        assert committer.close() == 0
        assert store.commits == [], "what survives is a prefix"

    with_committer(scenario)
