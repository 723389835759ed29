"""Ten thousand peers of one master: who keeps quiet costs nobody anything, who misbehaves himself alone, and who is cut
off is back soon.

What it costs the others is measured against a second master of the same machine that has no other peers, one submit
here, one there: whatever else the machine does meanwhile both feel.
"""

from __future__ import annotations

import resource
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

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
PEERS = min(10_000, FILES - 4_000)
"""So many, where a process may have that many open files."""
PROCESSES = 4
SLOW, DEAF = 200, 4
RUSH = 1_000
"""Clients that dial at the same moment."""
WAITERS, WORKERS = 1_000, 200
BACK = 30.0
"""Seconds until everybody who was cut off is back."""
SLOWER = 2.0
"""How much longer a task may take in a crowd: the median, from the submit to the news of its end."""
TIMES = 60
"""Tasks in a median."""
LEFT = 4 << 20
"""Bytes that a crowd may leave behind in a master that has seen one of its size before."""
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
        cluster.start_worker("real", "--slots", "2", "--caps", "REAL")
        cluster.wait_for_workers(1)
        self.client = cluster.client()
        self.master = psutil.Process(cluster.master.pid)

    @property
    def resident(self):
        """Bytes."""
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


@contextmanager
def peers(side, *addresses):
    """A crowd for each address (empty: the master's own); none of them is connected any more when it ends."""
    before = side.connections
    with ExitStack() as stack:
        yield [stack.enter_context(Crowd(side.cluster, address)) for address in addresses]
    until(lambda: side.connections == before, "the master knows that they are gone")


def together(crowds, *command):
    """All do it at the same time; the sum of what they answer."""
    for crowd in crowds:
        crowd.begin(*command)
    return sum(crowd.end() for crowd in crowds)


@contextmanager
def ten_thousand(side):
    with peers(side, *[""] * PROCESSES) as crowds:
        there = side.connections + PEERS
        assert together(crowds, "idle", PEERS // PROCESSES) == PEERS
        assert side.connections == there
        yield crowds
        assert together(crowds, "lost") == 0, "who says nothing is left alone"


def compare(figures, sides, whom, goes_on=lambda count: count < TIMES):
    """Tasks are timed on both sides in turns, while ``goes_on(how many there were)``."""
    found = []
    while goes_on(len(found)):
        found.append([side.time() for side in sides])
    alone, beside = (median(column) for column in zip(*found, strict=True))
    figures |= {f"median beside {whom}, s": beside, f"times as long beside {whom}": beside / alone}
    assert beside <= SLOWER * alone, f"beside {whom}: {beside:.4f} s, alone {alone:.4f} s"


@pytest.mark.kill
def test_a_crowd_costs_the_others_little_and_leaves_nothing_behind(sides, tmp_path):
    crowded = sides[1]
    with Report("connections", COMMAND) as report:
        figures = report.figures
        before = crowded.resident
        with ten_thousand(crowded):
            figures["idle connections"] = PEERS
            figures["bytes of memory for each"] = (crowded.resident - before) // PEERS
            compare(figures, sides, "them")
            those_who_misbehave(figures, sides)
            a_storm(figures, sides, tmp_path)
        emptied = crowded.resident
        with ten_thousand(crowded):
            pass
        # What is free goes back to the system when the master has nothing to do.
        until(lambda: crowded.resident - emptied < LEFT, "it needs no more memory after as many again")
        figures["more memory after as many again, MiB"] = (crowded.resident - emptied) / MEBIBYTE


def those_who_misbehave(figures, sides):
    crowded = sides[1]
    crowded.client.kv.set("large", bytes(MEBIBYTE))
    there = crowded.connections
    with peers(crowded, "") as [rude]:
        rude("slow", SLOW)
        rude("deaf", DEAF, 24)
        rude("deaf", DEAF, 96)
        figures |= {"slow senders": SLOW, "readers that do not read": 2 * DEAF}
        compare(figures, sides, "those who do not read or hardly write")
        until(lambda: crowded.connections <= there + SLOW, "who does not read is dropped")
        assert rude("lost") == 0, "and who is slow is not"
        figures["refused in a rush"] = refused = rude("rush", RUSH)
        assert refused + crowded.connections == there + SLOW + RUSH, "each was let in, or told why not"
        assert refused > 0


def a_storm(figures, sides, folder):
    """Everybody who is cut off at once comes back soon, and goes on as if nothing had been."""
    crowded = sides[1]
    there = crowded.connections
    with peers(crowded, "") as [relay]:
        address = f"127.0.0.1:{relay('relay')}"
        graph = Graph("waited for")
        graph.task("a", run=f"until [ -e {folder / 'go'} ]; do sleep 0.05; done", requires=["REAL"])
        run = crowded.client.submit(graph)
        with peers(crowded, address, address) as [workers, waiters]:

            def are_there():
                everybody = relay("relayed") == crowded.connections - there == WORKERS + WAITERS
                return everybody and workers("attached") == WORKERS

            workers("workers", WORKERS)
            waiters("waiters", WAITERS, run.id)
            until(are_there, "all are there")
            began = time.monotonic()
            assert relay("cut") == WORKERS + WAITERS

            def is_away(count):
                """Until they are back."""
                if not figures.get("back, s") and are_there():
                    figures["back, s"] = time.monotonic() - began
                assert time.monotonic() - began < BACK, "they are not all back"
                return count < TIMES or not figures.get("back, s")

            figures["cut off at once"] = WORKERS + WAITERS
            compare(figures, sides, "those who come back", is_away)
            (folder / "go").touch()
            run.wait(30)
            until(lambda: waiters("returned") == WAITERS, "everybody hears what he waited for")
