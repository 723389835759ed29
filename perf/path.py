"""Where the time of one call goes: the same call again and again, each step of its way stamped, medians as a table.

    python perf/path.py          a round trip, and a step of a chain; leaves build/reports/path.json

The processes are those of any cluster, with default settings; `stamps/sitecustomize.py` takes the stamps, at the
beginnings and ends of functions, which makes the whole a few per cent slower. A step that fewer than half of the calls
have is left out: acknowledgements are in no call's way.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TypeAlias

from titan_fast.sdk.client import Client
from titan_fast.sdk.graph import Graph
from titan_fast.testing.cluster import Cluster

STAMPS = Path(__file__).parent / "stamps"
REPORT = Path(__file__).parents[1] / "build" / "reports" / "path.json"
CALLS = 400
WARM = 50

Stamp: TypeAlias = tuple[int, str]
"""(monotonic nanoseconds, point)."""
Step: TypeAlias = tuple[str, float]
"""(point, microseconds since the first one)."""


def same(item: object) -> object:
    return item


def call(client: Client) -> None:
    graph = Graph("call")
    task = graph.call(same, 1, name="same")
    task.result(client.submit_nowait(graph))


def chain(client: Client, length: int) -> None:
    graph = Graph("chain")
    last = graph.call(same, 0, name="same-0")
    for number in range(1, length):
        last = graph.call(same, last, name=f"same-{number}")
    last.result(client.submit_nowait(graph))


def stamped() -> tuple[list[Stamp], list[Stamp]]:
    """All stamps while there were calls, and while there was a chain."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "stamps")
        folder.mkdir()
        paths = [str(STAMPS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = {"TITAN_FAST_STAMPS": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
        with Cluster(Path(name, "home"), environ=environ) as cluster:
            cluster.start_worker("w1", "--slots", "2")
            cluster.wait_for_workers(1)
            with cluster.client() as client:
                for _ in range(WARM):
                    call(client)
                here = watch_client(folder)
                for _ in range(CALLS):
                    here.stamp("begin")
                    call(client)
                    here.stamp("end")
                chain(client, WARM)
                here.stamp("chain begins")
                chain(client, CALLS)
                here.stamp("chain ends")
        here.leave()
        stamps = sorted(
            (int(at), point)
            for path in folder.iterdir()
            for at, _, point in (line.rstrip("\n").partition(" ") for line in path.open())
        )
    at = {point: moment for moment, point in stamps}
    calls = [stamp for stamp in stamps if stamp[0] < at["chain begins"]]
    return calls, [stamp for stamp in stamps if at["chain begins"] < stamp[0] < at["chain ends"]]


def watch_client(folder: Path):  # type: ignore[no-untyped-def]
    """Stamps this process too, from now on."""
    sys.path.insert(0, str(STAMPS))
    os.environ["TITAN_FAST_STAMPS"] = str(folder)
    sys.modules.pop("sitecustomize", None)
    import sitecustomize

    sitecustomize.watch("client")
    return sitecustomize


def trips(stamps: list[Stamp], first: str, last: str = "") -> Iterator[list[Stamp]]:
    """From a point to ``last``; without one, to just before the same point again."""
    trip: list[Stamp] = []
    for stamp in stamps:
        if stamp[1] == first:
            if trip and not last:
                yield trip
            trip = [stamp]
        elif trip:
            trip.append(stamp)
            if stamp[1] == last:
                yield trip
                trip = []


def steps(trips: list[list[Stamp]]) -> list[Step]:
    """Medians, in their order, of what most of them have."""
    moments: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for trip in trips:
        seen: Counter[str] = Counter()
        for at, point in trip:
            seen[point] += 1
            moments[point, seen[point]].append((at - trip[0][0]) / 1000)
    common = [(median(values), point) for (point, _), values in moments.items() if 2 * len(values) > len(trips)]
    return [(point, at) for at, point in sorted(common)]


def main() -> int:
    calls, links = stamped()
    found = {
        "a round trip": steps(list(trips(calls, "begin", "end"))),
        "a step of a chain": steps(list(trips(links, "agent hears"))[10:-10]),
    }
    for what, way in found.items():
        print(what)
        before = 0.0
        for point, at in way:
            print(f"  {at:8.0f}  +{at - before:5.0f}  {point}")
            before = at
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
