"""bench: measure a cluster. ``bench replay`` runs a published workflow instance, one real process per task."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from titan_fast.cli import output
from titan_fast.cli.progress import follow
from titan_fast.config import token_path
from titan_fast.errors import InvalidUsage
from titan_fast.sdk.client import Client

if TYPE_CHECKING:
    from titan_fast.model.wfformat import Instance


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
    if not local:
        with output.connect(master, token_file) as client:
            ready = sum(worker.slots for worker in client.workers() if worker.state == "READY")
            if not ready:
                raise InvalidUsage("no worker is ready", hint="start one: titan-fast worker --slots 16, or use --local")
            if slots is not None and slots != ready:
                raise InvalidUsage(f"--slots {slots}, but the workers have {ready} slots", hint="or use --local")
            return _replay(client, instance, scale, ready, as_json)
    from titan_fast.sdk.local import LocalCluster

    slots = slots or 16
    home = Path(tempfile.mkdtemp(prefix="titan-fast-"))
    try:
        with LocalCluster(home) as cluster:
            cluster.start_worker("local", "--slots", str(slots), "--drain", "0")
            host, _, port = cluster.address.rpartition(":")
            token = token_path(host, int(port), "client", {"TITAN_HOME": str(home)})
            with output.connect(cluster.address, str(token), 0.0) as client:
                _wait_for_slots(client, slots)
                return _replay(client, instance, scale, slots, as_json)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_for_slots(client: Client, slots: int) -> None:
    """The clock starts when the worker is there: what is measured is scheduling, not starting Python."""
    deadline = time.monotonic() + 30
    while sum(worker.slots for worker in client.workers() if worker.state == "READY") < slots:
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
