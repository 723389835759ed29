"""What the disk costs a whole master: throughput and round trips on the durable store against the memory store.

Two masters as processes, each with paper workers that end every assignment at once, so that nothing but the master is
measured; runs alternate between them, and the best of each counts. Run as a program it prints rates and latencies too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles

from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.sdk.client import Client
from titan_fast.testing.cluster import Cluster, until
from titan_fast.testing.paper_worker import PaperWorker, PaperWorkers

MEMBERS = 50_000
ROUNDS = 20
TRIPS = 100
LIMIT = 0.8
"""Of the rate in memory, at least."""
WORK = Work(argv=("true",))


class Bench:
    """A master, its workers and a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def rate(self, members: int = MEMBERS) -> float:
        """Tasks of an array per second, from its submit to its end."""
        began = time.perf_counter()
        self._client.submit_spec(array(members)).wait(60)
        return members / (time.perf_counter() - began)

    def trip(self) -> tuple[float, float]:
        """Seconds until a run of one task was accepted, and until its outcome was pushed."""
        began = time.perf_counter()
        run = self._client.submit_spec(array(1))
        accepted = time.perf_counter()
        run.wait(60)
        return accepted - began, time.perf_counter() - began

    def stats(self) -> msg.Stated:
        return self._client.stats()


def array(members: int) -> GraphSpec:
    return GraphSpec("bench", (TaskSpec("a", WORK, count=members, array=True),))


@contextmanager
def bench(durability: str) -> Iterator[Bench]:
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        cluster = stack.enter_context(Cluster(Path(home), options=["--durability", durability]))
        workers = stack.enter_context(PaperWorkers.of(cluster, PaperWorker("p1"), PaperWorker("p2")))
        until(lambda: workers.are_attached, "the paper workers are attached")
        found = Bench(stack.enter_context(cluster.client()))
        found.rate()  # warm
        yield found


def measure() -> dict[str, float]:
    with bench("disk") as disk, bench("memory") as memory:
        rates = [(disk.rate(), memory.rate()) for _ in range(ROUNDS)]
    return {"durable_vs_memory_throughput": max(pair[0] for pair in rates) / max(pair[1] for pair in rates)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from report import Report

    with Report("durable", "python perf/bench_durable.py") as report, bench("disk") as disk, bench("memory") as memory:
        before = disk.stats()
        rates = [(disk.rate(), memory.rate()) for _ in range(ROUNDS)]
        after = disk.stats()
        trips = [(disk.trip(), memory.trip()) for _ in range(TRIPS)]
        report.figures |= {
            "array tasks per second, durable": (durable := max(pair[0] for pair in rates)),
            "array tasks per second, in memory": (in_memory := max(pair[1] for pair in rates)),
            "durable against memory": durable / in_memory,
            "tasks per commit": ROUNDS * MEMBERS / (after.commits - before.commits),
            "facts per commit": (after.facts - before.facts) / (after.commits - before.commits),
        }
        for place, what in enumerate(("submit accepted", "submit to outcome pushed")):
            for which, store in enumerate(("durable", "in memory")):
                cuts = quantiles((trip[which][place] for trip in trips), n=100, method="inclusive")
                report.figures[f"{what}, {store}, p50, ms"] = cuts[49] * 1e3
                report.figures[f"{what}, {store}, p99, ms"] = cuts[98] * 1e3
        for text, value in report.figures.items():
            print(f"{text:50} {value:12,.2f}")
        assert durable >= LIMIT * in_memory, f"only {durable / in_memory:.0%} of the rate in memory"


if __name__ == "__main__":
    main()
