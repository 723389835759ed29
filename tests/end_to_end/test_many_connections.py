"""Ten thousand peers of one master: who keeps quiet costs nobody anything, who misbehaves himself alone, and who is cut
off is back soon.

What it costs the others is measured against a second master of the same machine that has no other peers, one submit
here, one there: whatever else the machine does meanwhile both feel.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import psutil
import pytest
from report import Report

from titan_fast import Graph
from titan_fast.config import token_path
from titan_fast.testing.cluster import Cluster, until

PEERS = 10_000
PROCESSES = 4
SLOW, DEAF = 200, 4
WAITERS, WORKERS = 1_000, 200
BACK = 30.0
"""Seconds until everybody who was cut off is back."""
SLOWER = 2.0
"""How much longer a task may take in a crowd: the median, from the submit to the news of its end."""
MEBIBYTE = 1 << 20
COMMAND = "pytest tests/end_to_end/test_many_connections.py"


class Crowd:
    """A process full of peers; ``crowd("idle", 100)`` is a command of crowd.py."""

    def __init__(self, cluster, address=""):
        host, _, port = cluster.address.rpartition(":")
        tokens = [token_path(host, int(port), role, cluster.environ) for role in ("client", "worker")]
        self._process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("crowd.py"), address or cluster.address, *tokens],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, *command):
        print(*command, file=self._process.stdin, flush=True)

    def end(self):
        line = self._process.stdout.readline()
        assert line, "this part of the crowd has failed"
        return int(line)

    def __call__(self, *command):
        self.begin(*command)
        return self.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Side:
    """A cluster with one real worker, and a client whose tasks are timed."""

    def __init__(self, cluster):
        self.cluster = cluster
        cluster.start_worker("real", "--slots", "1", "--caps", "REAL")
        cluster.wait_for_workers(1)
        self.client = cluster.client()
        self.master = psutil.Process(cluster.master.pid)

    @property
    def resident(self):
        return self.master.memory_info().rss

    @property
    def connections(self):
        return self.client.stats().connections

    def time(self):
        """Seconds from the submit of a task to the news of its end."""
        graph = Graph("timed")
        graph.task("a", run=["true"], requires=["REAL"])
        began = time.perf_counter()
        self.client.submit(graph).wait(60)
        return time.perf_counter() - began


@pytest.fixture
def sides(tmp_path):
    """A master that is left in peace, and one that is not."""
    limits = {"TITAN_LIMITS_UNDRAINED_SECONDS": "2"}
    with ExitStack() as stack:
        made = []
        for name in ("quiet", "crowded"):
            cluster = stack.enter_context(Cluster(tmp_path / name, environ=limits, options=["--drain", "0"]))
            made.append(Side(cluster))
            stack.enter_context(made[-1].client)
        yield made


def times(sides, goes_on):
    """(quiet, crowded): the medians of tasks timed in turns while ``goes_on(how many there were)``."""
    found = []
    while goes_on(len(found)):
        found.append([side.time() for side in sides])
    return [median(column) for column in zip(*found, strict=True)]


@contextmanager
def peers(side, count=PEERS):
    """So many idle clients; gone when it ends."""
    before = side.connections
    with ExitStack() as stack:
        crowds = [stack.enter_context(Crowd(side.cluster)) for _ in range(PROCESSES)]
        for crowd in crowds:
            crowd.begin("idle", count // PROCESSES)
        assert sum(crowd.end() for crowd in crowds) == count
        assert side.connections == before + count
        yield crowds
    until(lambda: side.connections == before, "the master knows that they are gone")


@pytest.mark.kill
def test_a_crowd_costs_the_others_little_and_leaves_nothing_behind(sides):
    quiet, crowded = sides
    with Report("connections", COMMAND) as report, Crowd(crowded.cluster) as rude:
        figures = report.figures
        figures["idle connections"] = PEERS
        crowded.client.kv.set("large", bytes(MEBIBYTE))
        alone = crowded.resident
        with peers(crowded) as crowds:
            figures["bytes of memory for each"] = (crowded.resident - alone) / PEERS
            alone, together = times(sides, lambda count: count < 60)
            figures |= {"median alone, s": alone, "median beside them, s": together}
            assert together <= SLOWER * alone

            rude("slow", SLOW)
            rude("deaf", DEAF, 24)
            rude("deaf", DEAF, 96)
            alone, together = times(sides, lambda count: count < 60)
            figures |= {"slow senders": SLOW, "readers that do not read": 2 * DEAF}
            figures |= {"median beside those, s": together, "… alone, s": alone}
            assert together <= SLOWER * alone
            there = PEERS + SLOW
            until(lambda: crowded.connections <= there + 2, "who does not read is dropped")
            assert [crowd("lost") for crowd in (*crowds, rude)] == [0] * (PROCESSES + 1), "and nobody else"
