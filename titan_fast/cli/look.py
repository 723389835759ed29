"""The verbs that look and change nothing: ls, show, explain, logs, workers, stats."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from titan_fast.cli import output
from titan_fast.errors import InvalidUsage
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client

P = TypeVar("P", bound=calls.Page)

MANY = 10_000
"""Rows to ask for at once, at most."""
STATES = {
    "runs": ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"),
    "tasks": ("PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED", "CANCELLED", "DEAD"),
    "workers": ("READY", "SUSPECT", "LOST", "DRAINING", "LEFT"),
}
"""What there is to list, and the states it can be in."""

LATER = {"services": "services", "schedules": "cron", "gates": "approvals"}


@click.command()
@click.argument("what", default="runs")
@click.option("--run", "run_id", default="last", help="whose tasks (12, last)")
@click.option("--state", default="", help="only this state (RUNNING, FAILED; workers: READY, LOST)")
@click.option("-n", "--limit", default=20, help="at most so many rows", type=click.IntRange(1))
@output.client_options
def ls(
    what: str, run_id: str, state: str, limit: int, master: str | None, token_file: str | None, as_json: bool
) -> int:
    """List runs (default), tasks or workers."""
    if what in LATER:
        raise InvalidUsage(f"this version has no {LATER[what]} yet", hint="there are runs, tasks and workers")
    if what not in STATES:
        raise InvalidUsage(f"there is no listing of '{what}'", hint="there are runs, tasks and workers")
    state = state.upper()
    if state and state not in STATES[what]:
        raise InvalidUsage(f"--state {state}: {what} are {', '.join(STATES[what])}")
    with output.connect(master, token_file) as client:
        if what == "workers":
            return _write_workers([worker for worker in client.workers() if state in ("", worker.state)], as_json)
        number = 0 if what == "runs" else calls.task_id(run_id).run or 0
        rows, page = _gather(
            client,
            lambda cursor, left: calls.list_page(what, number, state, cursor, left),
            lambda page: page.runs if what == "runs" else page.tasks,
            limit,
        )
    output.warn_unless(page.durable)
    if what == "runs":
        if as_json:
            output.write_json([output.run_document(row) for row in rows])
            return 0
        output.table(
            ["RUN", "NAME", "STATE", "TASKS", "SUBMITTED", "TOOK", "REASON"],
            (
                (row.id, row.name, row.state, _progress(row), output.clock(row.submitted_at), _took(row), row.reason)
                for row in rows
            ),
            "no runs yet: titan-fast run FILE.yaml",
        )
    else:
        _write_tasks(rows, as_json)
    if page.next and not as_json:
        click.echo("… more: -n N", err=True)
    return 0


ps = ls


def _gather(
    client: Client,
    page_at: Callable[[str, int], calls.Call[P]],
    rows_of: Callable[[P], Sequence[Any]],
    limit: int,
    cursor: str = "",
) -> tuple[list[Any], P]:
    """(up to ``limit`` rows from a cursor on, the page with the last of them). A master gives as many as fit a page."""
    rows: list[Any] = []
    while True:
        page = client.call(page_at(cursor, min(limit - len(rows), MANY)))
        rows += rows_of(page)
        cursor = page.next
        if not cursor or len(rows) >= limit:
            return rows, page


def _progress(run: msg.RunRow) -> str:
    total = sum(run.counts.values())
    return f"{total - run.counts['PENDING'] - run.counts['RUNNING']}/{total}"


def _took(run: msg.RunRow) -> str:
    if not run.started_at:
        return "-"
    return output.span((run.finished_at or time.time()) - run.started_at)


def _write_tasks(tasks: Sequence[msg.TaskRow], as_json: bool) -> None:
    if as_json:
        output.write_json([output.task_document(task) for task in tasks])
        return
    output.table(
        ["TASK", "STATE", "REASON", "ATTEMPT", "WORKER", "STARTED", "TOOK"],
        (_task_cells(task) for task in tasks),
        "no tasks",
    )


def _task_cells(task: msg.TaskRow) -> tuple[object, ...]:
    reason = "" if task.reason == "exit:0" else task.reason
    return (
        task.id,
        task.state,
        output.plain(reason, output.NAME_WIDTH) or "-",
        task.attempt or "-",
        task.worker or "-",
        output.clock(task.started_at),
        output.span(task.duration),
    )


def _write_workers(workers: list[msg.WorkerRow], as_json: bool) -> int:
    if as_json:
        output.write_json([output.worker_document(worker) for worker in workers])
        return 0
    output.table(
        ["WORKER", "STATE", "SLOTS", "RUNNING", "QUEUED", "CAPABILITIES", "KIND", "SEEN"],
        (
            (
                worker.name,
                worker.state,
                worker.slots,
                worker.running,
                worker.queued,
                ",".join(worker.capabilities) or "-",
                worker.kind,
                f"{output.span(max(0.0, time.time() - worker.last_seen_at))} ago" if worker.last_seen_at else "-",
            )
            for worker in workers
        ),
        "no workers: titan-fast worker",
    )
    return 0


@click.command()
@output.client_options
def workers(master: str | None, token_file: str | None, as_json: bool) -> int:
    """List the workers."""
    with output.connect(master, token_file) as client:
        return _write_workers(client.workers(), as_json)


@click.command()
@click.argument("target", metavar="ID", default="last")
@click.option("--tree", is_flag=True, help="the tasks by their dependencies")
@click.option("--cursor", default="", help="where a page begins (the last one's `next`)")
@click.option("-n", "--limit", default=1000, help="at most so many tasks", type=click.IntRange(1))
@output.client_options
def show(
    target: str,
    tree: bool,
    cursor: str,
    limit: int,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """A run with its tasks, or one task."""
    wanted = calls.task_id(target)
    with output.connect(master, token_file) as client:
        wanted = client.exact(wanted)
        tasks, shown = _gather(
            client, lambda at, left: calls.show(wanted, at, left), lambda shown: shown.tasks, limit, cursor
        )
    output.warn_unless(shown.durable)
    document: dict[str, Any] = output.run_document(shown.run)
    if as_json:
        document["tasks"] = [output.task_document(task) for task in tasks]
        document["next"] = shown.next or None
        output.write_json(document)
        return 0
    run = shown.run
    click.echo(
        f"run {run.id} {run.name}: {run.state}"
        + (f" ({run.reason})" if run.reason else "")
        + f", submitted {output.clock(run.submitted_at)}, took {_took(run)}"
    )
    click.echo("  " + ", ".join(f"{n} {state}" for state, n in run.counts.items() if n))
    if tree:
        _write_tree(tasks)
    else:
        _write_tasks(tasks, False)
    if shown.next:
        click.echo(f"… more: titan-fast show {target} --cursor {shown.next}", err=True)
    return 0


def _write_tree(tasks: Sequence[msg.TaskRow]) -> None:
    """Each task below the first of its parents; what it needs besides stands beside it. A worklist, not recursion."""
    rows = {task.name: task for task in tasks}
    arrays: dict[str, list[str]] = {}
    for name in rows:
        arrays.setdefault(name.partition("[")[0] if name.endswith("]") else name, []).append(name)
    children: dict[str, list[str]] = {}
    roots = []
    for spec, members in arrays.items():
        parents = [parent for parent in rows[members[0]].needs if parent in arrays]
        if parents:
            children.setdefault(parents[-1], []).append(spec)
        else:
            roots.append(spec)
    stack = [(spec, 0) for spec in reversed(roots)]
    while stack:
        spec, depth = stack.pop()
        members = arrays[spec]
        first = rows[members[0]]
        states = sorted({rows[member].state for member in members})
        label = spec if members == [spec] else f"{spec}[{len(members)}]"
        others = first.needs[:-1]
        also = f"  (needs also {', '.join(others[:5])}{'…' if len(others) > 5 else ''})" if others else ""
        click.echo(f"{'   ' * depth}{'└─ ' if depth else ''}{label} {'/'.join(states)}{also}")
        stack.extend((child, depth + 1) for child in reversed(children.get(spec, ())))


@click.command()
@click.argument("target", metavar="ID")
@output.client_options
def explain(target: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Why a task or run is where it is, and what would help."""
    with output.connect(master, token_file) as client:
        found = client.explain(target)
    output.warn_unless(found.durable)
    if as_json:
        output.write_json(
            {
                "id": found.id,
                "state": found.state,
                "reason": found.reason,
                "detail": found.detail,
                "fix": found.fix or None,
            }
        )
        return 0
    click.echo(f"{found.id} {found.state}: {found.detail}")
    if found.fix:
        click.echo(f"  {found.fix}")
    return 0


@click.command()
@click.argument("target", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="go on until the task is final")
@click.option("--tail", type=click.IntRange(0), help="only the last N lines")
@click.option("--attempt", type=click.IntRange(1), help="of this attempt [the newest]")
@output.client_options
def logs(
    target: str,
    follow: bool,
    tail: int | None,
    attempt: int | None,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """The output of a task, as it wrote it (12/extract, 12/square[417], or 12 when it has one task)."""
    wanted = calls.task_id(target)
    out = sys.stdout.buffer
    text: list[bytes] = []
    with output.connect(master, token_file) as client:
        stream = calls.logs(client.exact(wanted), follow, -1 if tail is None else tail, attempt or 0)
        for piece in client.stream(stream):
            if as_json:
                text.append(piece.data)
                continue
            if piece.dropped:
                out.write(f"\n[… {piece.dropped} bytes not kept …]\n".encode())
            out.write(piece.data)
            out.flush()
    if as_json:
        output.write_json({"id": str(TaskId(*wanted)), "output": b"".join(text).decode("utf-8", "replace")})
    return 0


@click.command()
@output.client_options
def stats(master: str | None, token_file: str | None, as_json: bool) -> int:
    """The master's own figures."""
    with output.connect(master, token_file) as client:
        stated = client.stats()
    output.warn_unless(stated.durable)
    document = {
        "accel": stated.accel,
        "loop": stated.loop,
        "version": stated.software,
        "epoch": stated.epoch,
        "cluster": stated.cluster,
        "started_at": output.at(stated.started_at),
        "workers": stated.workers,
        "runs": stated.runs,
        "tasks": stated.tasks,
        "ended": stated.ended,
        "commits": stated.commits,
        "facts": stated.facts,
        "facts_per_commit": stated.facts_per_commit,
        "durability": stated.durability,
        "durable": stated.durable,
        "disk_free": stated.disk_free,
        "refusing": stated.refusing or None,
        "connections": stated.connections,
        "loop_lag": stated.loop_lag,
        "memory": stated.memory,
    }
    if as_json:
        output.write_json(document)
        return 0
    document["tasks"] = ", ".join(f"{n} {state}" for state, n in stated.tasks.items() if n) or "none"
    document["facts_per_commit"] = f"{stated.facts_per_commit:.1f}"
    document["durable"] = "yes" if stated.durable else "no, the disk is stuck"
    document["loop_lag"] = f"{1000 * stated.loop_lag:.2f} ms (slowest turn since last asked)"
    document["disk_free"] = f"{stated.disk_free >> 20} MiB"
    document["refusing"] = stated.refusing or "nothing"
    document["memory"] = f"{stated.memory / (1 << 20):.1f} MiB"
    for key, value in document.items():
        click.echo(f"{key:18}{value}")
    return 0
