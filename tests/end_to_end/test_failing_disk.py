"""A real master whose disk fails under it, at any of its first writes: it ends rather than say what may not be true,
and the next one has everything that was promised."""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from report import Report

from titan_fast import Graph
from titan_fast.errors import StoreFailed, TitanError
from titan_fast.sdk import local
from titan_fast.testing.cluster import Cluster, until

CHANGES = 200
"""Writes, truncations and syncs of the store, each of which fails once."""
EVERY = 10
"""Of which in CI so few are tried: the store's own tests try each."""
SUBMITS = 24
COMMAND = "pytest tests/end_to_end/test_failing_disk.py"


class Submitter:
    """A client that submits run after run. What it was told is in ``told``, by name; what it meets is raised at the
    end."""

    def __init__(self, cluster):
        self.told = {}
        self._cluster = cluster
        self._problem = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        try:
            with self._cluster.client() as client:
                for number in range(SUBMITS):
                    graph = Graph(f"g{number}")
                    graph.task("a", run=["true"], requires=["NOBODY"])
                    self.told[graph.name] = client.submit(graph).id
        except TitanError as problem:
            self._problem = problem

    @property
    def is_done(self):
        return not self._thread.is_alive()

    def finish(self):
        self._thread.join(60)
        assert self._problem is None, self._problem
        return self.told


def fails_at(folder, how, at, monkeypatch):
    """Whether the master had to end for it, while it ``starts`` or ``works``; empty: it went on."""
    cluster = Cluster(folder, options=["--drain", "0"])
    try:
        ended = ""
        with monkeypatch.context() as patch:
            program = Path(__file__).with_name("failing_disk.py")
            patch.setattr(local, "PROGRAM", (sys.executable, "-P", str(program), how, str(at)))
            try:
                cluster.start_master()
            except TitanError as refused:
                ended = "starts"
                assert str(folder) in str(refused)
                assert cluster.master.returncode == StoreFailed.exit_code, refused
        if ended:
            cluster.start_master()
        submitter = Submitter(cluster)
        until(lambda: submitter.is_done or cluster.ended(), "it goes on or ends")
        if cluster.ended():
            assert not ended, "only one change fails"
            ended = "works"
            assert cluster.master.wait() == StoreFailed.exit_code
            cluster.restart_master()
        told = submitter.finish()
        with cluster.client() as client:
            found = {run.name: run.id for run in client.runs()}
        assert found == told, f"{how} at change {at}: told and found"
        log = (folder / "log").read_text()
        assert not re.search('File ".*titan_fast', log), log
        assert log.count("this master ends at once") == (ended == "works"), log
        return ended
    finally:
        cluster.stop()


@pytest.mark.kill
@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.long)])
def test_no_promise_is_broken_whichever_write_of_a_master_fails(tmp_path, monkeypatch, every):
    is_long = every == 1
    with Report("disk-master", f"{COMMAND}{' --long' if is_long else ''}", is_long) as report:
        ends = Counter()
        for number, at in enumerate(range(1, CHANGES + 1, every)):
            for how in ("broken", "full") if is_long else ("full" if number % 4 == 3 else "broken",):
                ended = fails_at(tmp_path / f"{how}{at}", how, at, monkeypatch)
                ends[f"{how}, the master {f'ends while it {ended}' if ended else 'goes on'}"] += 1
        report.figures |= ends
        assert ends["broken, the master ends while it works"] > 0
        assert ends["full, the master goes on"] > 0, "only a sync fails for no lack of space"
