"""A backup is made while the master works as fast as it can, and what it holds is a prefix of what happened."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from report import Report

from titan_fast.master.store.backup import restore
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.scheduler.facts import EndedHead

MEMBERS = 500
RESULT = bytes(range(256)) * 4


@pytest.mark.kill
@pytest.mark.parametrize(("runs", "limit"), [(60, 30.0), pytest.param(2000, 120.0, marks=pytest.mark.long)])
def test_a_backup_ends_under_full_load_and_holds_a_prefix(load, request, tmp_path, runs, limit):
    is_long = request.config.getoption("--long")
    file = tmp_path / "copy.backup"
    command = f"pytest tests/master/scale/test_backup.py{' --long -m long' if is_long else ''}"
    with (
        Report("backup", command, is_long) as report,
        load(MEMBERS, RESULT) as it,
        it.cluster.client() as client,
    ):
        ended = it.run(runs)
        with ThreadPoolExecutor(1) as others:
            done = threading.Event()
            load_of_others = others.submit(it.run_while, lambda: not done.is_set(), 4)
            try:
                before = client.stats().facts
                began = time.monotonic()
                made = client.backup(file)
                seconds = time.monotonic() - began
                facts = client.stats().facts - before
            finally:
                done.set()
            meanwhile = load_of_others.result()
        report.figures |= {
            "seconds": seconds,
            "size, MiB": made.size / (1 << 20),
            "facts made meanwhile": facts,
            "runs finished meanwhile": len(meanwhile),
        }
        assert seconds < limit
        assert facts > 0, "nothing happened meanwhile: that was no load"
        restore(file, tmp_path / "restored")
        check_prefix(SqliteStore(tmp_path / "restored"), ended)


def check_prefix(store, ended):
    """Every run up to the newest one is there, those that had ended with all of their results, and of the others
    whatever a restart knows is in their history too."""
    store.open()
    finished = {head.id: head for head in store.runs(1 << 62, 1 << 30)}
    unfinished = {record.accepted.run: record for record in store.load().runs}
    known = sorted([*finished, *unfinished])
    assert known == list(range(1, len(known) + 1)), "a run is there and one before it is not"
    assert set(ended) <= finished.keys()
    for run, head in finished.items():
        assert head.counts["COMPLETED"] == MEMBERS
        assert len(store.latest(run, 0, MEMBERS)) == MEMBERS
        assert store.result(run, MEMBERS - 1) == RESULT
    for run, record in unfinished.items():
        heads = [item for item in record.happened if isinstance(item, EndedHead)]
        completed = sum(count for head in heads for _, count, _, _ in head.clean)
        assert len(store.latest(run, 0, MEMBERS)) == completed
    store.close()
