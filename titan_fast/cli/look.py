"""The verbs that look and change nothing: ls, show, explain, logs, workers, stats."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

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
@click.option(
    "--after", default="", metavar="ID", help="only what follows this run or task in the listing: the next page"
)
@click.option("-n", "--limit", default=20, help="at most so many rows", type=click.IntRange(1))
@output.client_options
def ls(
    what: str,
    run_id: str,
    state: str,
    after: str,
    limit: int,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """List runs (default), tasks or workers.

    For the next page give the id of the last row as --after; fewer rows than -n are the last page.
    """
    if what in LATER:
        raise InvalidUsage(f"this version has no {LATER[what]} yet", hint="there are runs, tasks and workers")
    if what not in STATES:
        raise InvalidUsage(f"there is no listing of '{what}'", hint="there are runs, tasks and workers")
    state = state.upper()
    if state and state not in STATES[what]:
        raise InvalidUsage(f"--state {state}: {what} are {', '.join(STATES[what])}")
    if what == "workers":
        if after:
            raise InvalidUsage("--after: workers are listed whole", hint="leave it out")
        with output.connect(master, token_file) as client:
            return _write_workers([worker for worker in client.workers() if state in ("", worker.state)], as_json)
    number, behind = (None, None) if what == "runs" else _where(run_id, after)
    first = _run_before(after) if what == "runs" else ""
    with output.connect(master, token_file) as client:

        def page_at(cursor: str, left: int) -> calls.Call[msg.Listed]:
            if behind is not None and not cursor:
                return calls.tasks_after(behind, state, left)
            return calls.list_page(what, number or 0, state, cursor, left)

        rows, page = _gather(client, page_at, lambda page: page.runs if what == "runs" else page.tasks, limit, first)
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
            "no more runs" if after else "no runs yet: titan-fast run FILE.yaml",
        )
    else:
        _write_tasks(rows, as_json)
    if page.next and not as_json:
        click.echo(f"… more: -n N, or --after {rows[-1].id}" if rows else "… more: -n N", err=True)
    return 0


ps = ls


def _where(run_id: str, after: str) -> tuple[int | None, TaskId | None]:
    """(the run whose tasks are listed, the task behind which). Raises InvalidUsage."""
    number = calls.task_id(run_id).run
    if not after:
        return number, None
    behind = calls.task_id(after)
    if behind.task is None:
        raise InvalidUsage(f"--after {after} is no task", hint="give the id of the last row, such as 12/square[417]")
    if number is not None and behind.run is not None and number != behind.run:
        raise InvalidUsage(f"--after {after} is no task of run {number}", hint="leave out --run")
    return number, behind._replace(run=behind.run if number is None else number)


def _run_before(after: str) -> str:
    """The cursor behind a run. Raises InvalidUsage."""
    if not after:
        return ""
    behind = calls.task_id(after)
    if behind.task is not None or behind.run is None:
        raise InvalidUsage(f"--after {after} is no run's number", hint="give the id of the last row, such as 12")
    return str(behind.run)


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
@click.option("-n", "--limit", default=1000, help="at most so many tasks; of a tree, lines", type=click.IntRange(1))
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
    tree = tree and not as_json
    if tree and cursor:
        raise InvalidUsage("--cursor: a tree has no pages", hint="-n N says how many lines of it you want")
    specs: list[msg.SpecRow] = []
    with output.connect(master, token_file) as client:
        wanted = client.exact(wanted)
        if tree:
            pages = client.pages(lambda at: calls.list_page("specs", wanted.run or 0, cursor=at, limit=MANY))
            specs = [spec for page in pages for spec in page.specs]
        tasks, shown = _gather(
            client,
            lambda at, left: calls.show(wanted, at, left),
            lambda shown: shown.tasks,
            1 if tree else limit,
            cursor,
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
    click.echo(f"  {_counted(run.counts)}")
    if tree:
        _write_tree(specs, wanted.task, limit)
        return 0
    _write_tasks(tasks, False)
    if shown.next:
        click.echo(f"… more: titan-fast show {target} --cursor {shown.next}", err=True)
    return 0


def _write_tree(specs: Sequence[msg.SpecRow], top: str | None, limit: int) -> None:
    """Each task below the last of its parents; what it needs besides stands beside it. A worklist, not recursion.

    Args:
        top: only this one and what is below it.
        limit: lines at most.
    """
    children: dict[str, list[msg.SpecRow]] = {}
    roots = []
    for spec in specs:
        if spec.name == top or (top is None and not spec.needs):
            roots.append(spec)
        if spec.needs:
            children.setdefault(spec.needs[-1], []).append(spec)
    stack = [(spec, 0) for spec in reversed(roots)]
    while stack and limit:
        spec, depth = stack.pop()
        limit -= 1
        label = spec.name if spec.members < 0 else f"{spec.name}[{spec.members}]"
        states = next(iter(spec.counts)) if len(spec.counts) == 1 else _counted(spec.counts)
        others = spec.needs[:-1]
        also = f"  (needs also {', '.join(others[:5])}{'…' if len(others) > 5 else ''})" if others else ""
        click.echo(f"{'   ' * depth}{'└─ ' if depth else ''}{label} {states}{also}")
        stack.extend((child, depth + 1) for child in reversed(children.get(spec.name, ())))
    if stack:
        click.echo("… more: -n N", err=True)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n)


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
@click.option("--limit", metavar="BYTES", type=click.IntRange(4), help="at most so much of it: a page")
@click.option("--cursor", default="", help="where a page begins (the last one's `next`)")
@output.client_options
def logs(
    target: str,
    follow: bool,
    tail: int | None,
    attempt: int | None,
    limit: int | None,
    cursor: str,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """The output of a task, as it wrote it (12/extract, 12/square[417], or 12 when it has one task).

    Where bytes were not kept, a line says so; with --json `gaps` tells where, too.
    """
    wanted = calls.task_id(target)
    if cursor and (tail is not None or attempt is not None):
        raise InvalidUsage("--cursor goes on in one attempt at one place", hint="leave out --tail and --attempt")
    out = sys.stdout.buffer
    text: list[bytes] = []
    gaps = []
    left, more = limit, None
    with output.connect(master, token_file) as client:
        wanted = client.exact(wanted)
        stream = calls.logs(wanted, follow, -1 if tail is None else tail, attempt or 0, cursor)
        for piece in client.stream(stream):
            if left is not None and len(piece.data) >= left and not piece.final:
                cut = _whole_characters(piece.data[:left])
                more = piece.to_cursor(cut)
                piece = msgspec.structs.replace(piece, data=piece.data[:cut])
            elif left is not None:
                left -= len(piece.data)
            if piece.dropped:
                gaps.append({"offset": piece.offset - piece.dropped, "bytes": piece.dropped})
            if as_json:
                text.append(piece.shown)
            else:
                out.write(piece.shown)
                out.flush()
            if more is not None:
                break
    if as_json:
        document = {"id": str(wanted), "output": b"".join(text).decode("utf-8", "replace"), "gaps": gaps, "next": more}
        output.write_json(document)
    elif more is not None:
        click.echo(f"… more: titan-fast logs {wanted} --cursor {more}", err=True)
    return 0


def _whole_characters(data: bytes) -> int:
    """Its bytes without those of a character of UTF-8 that is not all there."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return len(data) - back if length > back else len(data)
    return len(data)


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
