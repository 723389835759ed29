"""bench: measure a cluster. ``latency`` and ``throughput`` run tasks that do nothing, ``replay`` a published workflow
instance, one real process per task.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titan_fast.cli import output
from titan_fast.cli.progress import follow
from titan_fast.config import token_path
from titan_fast.errors import InvalidUsage, WaitTimedOut
from titan_fast.sdk.client import Client
from titan_fast.sdk.graph import Graph

if TYPE_CHECKING:
    from titan_fast.model.wfformat import Instance

NOTHING = bool
"""The function of a task that does nothing; every Python has it."""
WARM_UP = 5
"""Runs before those that count: the first one makes folders and sends its spec."""
PATIENCE = 10.0
"""Seconds without an end until it is asked whether anybody is still at work."""
CPUS = os.cpu_count() or 1


@click.group()
def bench() -> None:
    """Measure a cluster."""


@bench.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--scale", default=1.0, type=click.FloatRange(min=0.0), help="factor on the recorded run times")
@click.option("--slots", type=click.IntRange(1, 4096), help="slots to run on [of the cluster; with --local 16]")
@click.option("--local", is_flag=True, help="on a master and a worker of its own")
@output.client_options
def replay(
    file: Path,
    scale: float,
    slots: int | None,
    local: bool,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Replay a WfFormat instance and compare with what is possible.

    Every task is a process that sleeps its recorded run time; its own timestamps tell whether each ran once and every
    edge held. `floor` is max(critical path, work / slots), `greedy` what a scheduler without overhead would need.
    """
    from titan_fast.model.wfformat import load_instance

    instance = load_instance(file)
    with _measured(local, slots, 16, master, token_file) as (client, slots):
        return _replay(client, instance, scale, slots, as_json)


@bench.command()
@click.option("-n", "count", default=200, type=click.IntRange(1, 1_000_000), help="runs, one after the other [200]")
@click.option("--slots", type=click.IntRange(1, 4096), help="slots to run on [of the cluster; with --local CPUs]")
@click.option("--local", is_flag=True, help="on a master and a worker of its own")
@output.client_options
def latency(
    count: int, slots: int | None, local: bool, master: str | None, token_file: str | None, as_json: bool
) -> int:
    """How long one task takes from submit to outcome, when nothing else is asked for.

    Each is a run of one task that does nothing, submitted and waited for in one request; the next follows when it is
    over. The first few are not counted.
    """
    graph = Graph("bench-latency")
    graph.call(NOTHING, name="nothing")
    with _measured(local, slots, CPUS, master, token_file) as (client, _):
        seconds = []
        for _ in range(WARM_UP + count):
            began = time.perf_counter()
            _finish(client, graph)
            seconds.append(time.perf_counter() - began)
    seconds = sorted(seconds[WARM_UP:])
    p50, p99 = _percentile(seconds, 50), _percentile(seconds, 99)
    if as_json:
        output.write_json({"n": count, "p50": p50, "p99": p99})
    else:
        click.echo(f"{count} runs of one task: p50 {1000 * p50:.2f} ms, p99 {1000 * p99:.2f} ms")
    return 0


@bench.command()
@click.option("-n", "count", default=10_000, type=click.IntRange(1, 1_000_000), help="tasks of the array [10000]")
@click.option("--slots", type=click.IntRange(1, 4096), help="slots to run on [of the cluster; with --local CPUs]")
@click.option("--local", is_flag=True, help="on a master and a worker of its own")
@output.client_options
def throughput(
    count: int, slots: int | None, local: bool, master: str | None, token_file: str | None, as_json: bool
) -> int:
    """How many tasks that do nothing a cluster finishes in a second: one array, from submit to outcome."""
    graph = Graph("bench-throughput")
    graph.map(NOTHING, range(count), name="nothing")
    with _measured(local, slots, CPUS, master, token_file) as (client, slots):
        began = time.perf_counter()
        _finish(client, graph)
        seconds = time.perf_counter() - began
    rate = count / seconds
    if as_json:
        output.write_json({"n": count, "seconds": seconds, "rate": rate})
    else:
        click.echo(f"{count} tasks on {slots} slots in {seconds:.2f} s: {rate:,.0f} a second")
    return 0


def _finish(client: Client, graph: Graph) -> None:
    """A run from submit to outcome, as long as somebody works on it.

    Raises:
        RunFailed: a task that does nothing failed. InvalidUsage: there is no worker any more.
    """
    run = client.submit_nowait(graph)
    try:
        while True:
            try:
                run.wait(PATIENCE)
                return
            except WaitTimedOut:
                if not _ready(client):
                    raise InvalidUsage(
                        f"run {run.id} stands still: no worker is ready any more", hint="titan-fast ls workers"
                    ) from None
    except (KeyboardInterrupt, InvalidUsage):
        run.cancel()
        raise


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest rank: so many of a hundred were no slower."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@contextmanager
def _measured(
    local: bool, slots: int | None, default_slots: int, master: str | None, token_file: str | None
) -> Iterator[tuple[Client, int]]:
    """A client of the cluster that is measured, and the slots of that.

    Raises:
        InvalidUsage: no worker is ready, or they have other than ``slots``.
    """
    if not local:
        with output.connect(master, token_file) as client:
            ready = _ready(client)
            if not ready:
                raise InvalidUsage("no worker is ready", hint="start one: titan-fast worker --slots 16, or use --local")
            if slots is not None and slots != ready:
                raise InvalidUsage(f"--slots {slots}, but the workers have {ready} slots", hint="or use --local")
            yield client, ready
        return
    from titan_fast.sdk.local import LocalCluster

    if master is not None:
        raise InvalidUsage("--local has a master of its own", hint="leave out --master or --local")
    slots = slots or default_slots
    home = Path(tempfile.mkdtemp(prefix="titan-fast-"))
    try:
        with LocalCluster(home) as cluster:
            cluster.start_worker("local", "--slots", str(slots), "--drain", "0")
            host, _, port = cluster.address.rpartition(":")
            token = token_path(host, int(port), "client", {"TITAN_HOME": str(home)})
            with output.connect(cluster.address, str(token), 0.0) as client:
                _wait_for_slots(client, slots)
                yield client, slots
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _ready(client: Client) -> int:
    """Slots of the workers that take work."""
    return sum(worker.slots for worker in client.workers() if worker.state == "READY")


def _wait_for_slots(client: Client, slots: int) -> None:
    """The clock starts when the worker is there: what is measured is scheduling, not starting Python."""
    deadline = time.monotonic() + 30
    while _ready(client) < slots:
        if time.monotonic() > deadline:
            raise InvalidUsage("the local worker did not come up")
        time.sleep(0.02)


def _replay(client: Client, instance: Instance, scale: float, slots: int, as_json: bool) -> int:
    from titan_fast.model import wfformat

    with tempfile.NamedTemporaryFile(prefix="titan-replay-") as report:
        graph = wfformat.to_graph(instance, scale, report.name)
        handle = client.submit_spec(graph)
        update = follow(handle.watch(), quiet=as_json)
        text = Path(report.name).read_text()
    found = wfformat.check_report(instance, text)
    floor = wfformat.floor(instance, slots) * scale
    greedy = wfformat.greedy_makespan(instance, slots) * scale
    wall = update.elapsed
    document = {
        "tasks": len(instance.tasks),
        "completed": update.counts.get("COMPLETED", 0),
        "edges": instance.edges,
        "violations": len(found),
        "slots": slots,
        "wall": wall,
        "floor": floor,
        "greedy": greedy,
        "efficiency": greedy / wall if wall else 0.0,
    }
    if as_json:
        output.write_json(document)
    else:
        click.echo(f"{instance.name}: {document['completed']} of {document['tasks']} tasks completed on {slots} slots")
        click.echo(f"  {document['edges']} edges checked, {len(found)} violations")
        click.echo(f"  wall {wall:.2f} s, greedy {greedy:.2f} s, floor {floor:.2f} s, efficiency {greedy / wall:.1%}")
        for violation in found[:20]:
            click.echo(f"  {violation}", err=True)
    return 0 if not found and document["completed"] == document["tasks"] else 1
