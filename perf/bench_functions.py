"""Functions over the whole path: submit, master, worker, processes, results; a durable store, one worker of two slots.

The figures of the gate are ratios of processor time, which other programs do not take from us: all that a map of
10,000 functions that do nothing takes in client, master, agent and lanes, against a bare loop that pickles, unpickles
and calls as often; and all that the same calls take by themselves, by an executor with a future for each, against the
map. Run as a program it prints rates, chains, fans and round trips.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

from titan_fast.sdk.client import Client
from titan_fast.sdk.graph import Graph
from titan_fast.testing.cluster import Cluster

MEMBERS = 10_000
ROUNDS = 7
CPU_ROUNDS = 20
CHAIN = 200
FAN = 1000
TRIPS = 200


def nothing(item: object) -> None:
    return None


def grow(number: int) -> int:
    return number + 1


@contextmanager
def clusters(slots: int = 2) -> Iterator[tuple[Cluster, Client]]:
    with tempfile.TemporaryDirectory() as home, Cluster(Path(home)) as cluster:
        cluster.start_worker("w1", "--slots", str(slots))
        cluster.wait_for_workers(1)
        with cluster.client() as client:
            map_of_nothing(client)  # warm
            yield cluster, client


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def map_of_nothing(client: Client) -> None:
    """W1, its graph included."""
    graph = Graph("nothing")
    graph.map(nothing, range(MEMBERS))
    client.submit(graph).wait(60)


def calls_of_nothing(client: Client) -> None:
    """W1s: the same calls by themselves."""
    with client.executor() as pool:
        futures = [pool.submit(nothing, item) for item in range(MEMBERS)]
        for future in futures:
            future.result(60)


def chain(client: Client) -> None:
    """W5: each link takes the result of the one before."""
    graph = Graph("chain")
    link = graph.call(grow, 0)
    for _ in range(CHAIN - 1):
        link = graph.call(grow, link)
    run = client.submit(graph)
    assert link.result(run, 60) == CHAIN


def fan(client: Client) -> None:
    """W5: one, a thousand, one."""
    graph = Graph("fan")
    first = graph.call(grow, 0, name="first")
    spread = graph.map(grow, range(FAN), name="spread", needs=[first])
    last = graph.call(sum, spread)
    run = client.submit(graph)
    assert last.result(run, 60) == sum(range(1, FAN + 1))


def trip(client: Client) -> None:
    graph = Graph("trip")
    graph.call(nothing, 0)
    client.submit(graph).wait(60)


def bare() -> None:
    for item in [pickle.dumps(item, 5) for item in range(MEMBERS)]:
        pickle.dumps(nothing(pickle.loads(item)), 5)


def processor_time() -> float:
    """Seconds that we and everything that belongs to the cluster have had."""
    processes = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(process.cpu_times()[:2]) for process in processes)


def measure() -> dict[str, float]:
    with clusters() as (_, client):
        ours = cost(lambda: map_of_nothing(client), CPU_ROUNDS)
        calls_of_nothing(client)  # warm
        single = cost(lambda: calls_of_nothing(client), CPU_ROUNDS // 4)
    began = time.process_time()
    for _ in range(CPU_ROUNDS):
        bare()
    bare_loop = (time.process_time() - began) / CPU_ROUNDS
    return {"functions_cpu_vs_bare_loop": ours / bare_loop, "executor_cpu_vs_map": single / ours}


def cost(do: Callable[[], object], rounds: int) -> float:
    """Seconds of processor time that one round takes."""
    before = processor_time()
    for _ in range(rounds):
        do()
    return (processor_time() - before) / rounds


def main() -> None:
    with clusters() as (_, client):
        whole = [timed(lambda: map_of_nothing(client)) for _ in range(ROUNDS)]
        print(f"map of {MEMBERS:,}: {MEMBERS / min(whole):,.0f} tasks/s at best, {MEMBERS / median(whole):,.0f} median")
        for what, do, count in (("chain", chain, CHAIN), ("fan", fan, FAN)):
            took = [timed(lambda do=do: do(client)) for _ in range(ROUNDS)]  # type: ignore[misc]
            print(f"{what} of {count}: {min(took) * 1e3:.1f} ms at best, {median(took) * 1e3:.1f} median")
        trips = sorted(timed(lambda: trip(client)) for _ in range(TRIPS))
        print(f"round trip: {trips[TRIPS // 2] * 1e6:.0f} us p50, {trips[TRIPS * 99 // 100] * 1e6:.0f} us p99")


if __name__ == "__main__":
    main()
