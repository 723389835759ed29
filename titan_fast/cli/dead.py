"""dlq: the tasks that are DEAD, because they took worker after worker with them. Look at them, run them again, or
let them rest.
"""

from __future__ import annotations

import click

from titan_fast.cli import output
from titan_fast.errors import NothingToDo
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.client import Client

LOG_LINES = 20


@click.group()
def dlq() -> None:
    """The tasks that are DEAD: their workers were lost with them again and again."""


@dlq.command("ls")
@output.client_options
def dlq_ls(master: str | None, token_file: str | None, as_json: bool) -> int:
    """List the DEAD tasks of all runs."""
    with output.connect(master, token_file) as client:
        rows = client.dead()
    if as_json:
        output.write_json([_document(row) for row in rows])
        return 0
    output.table(
        ["TASK", "STATE", "REASON", "ATTEMPTS"],
        ((row.id, row.state, row.reason, row.attempt) for row in rows),
        "no task is DEAD",
    )
    return 0


@dlq.command("show")
@click.argument("target", metavar="ID")
@output.client_options
def dlq_show(target: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """One DEAD task: what happened to it, and the end of its output."""
    with output.connect(master, token_file) as client:
        (row, *others) = _dead(client, target)
        if others:
            raise NothingToDo(f"{target} is {1 + len(others)} DEAD tasks", hint=f"titan-fast dlq show {row.id}")
        wanted = calls.task_id(row.id)
        found = client.call(calls.explain(wanted))
        pieces = client.stream(calls.logs(wanted, False, LOG_LINES, 0))
        log = b"".join(piece.data for piece in pieces).decode("utf-8", "replace")
    if as_json:
        more = {"worker": row.worker or None, "detail": found.detail, "fix": found.fix or None, "log": log}
        output.write_json({**_document(row), **more})
        return 0
    click.echo(f"{row.id} {row.state} ({row.reason}) after {row.attempt} attempts, the last one on {row.worker or '-'}")
    click.echo(f"  {found.detail}")
    if found.fix:
        click.echo(f"  {found.fix}")
    for line in log.splitlines():
        click.echo(f"    | {line}")
    return 0


@dlq.command("retry")
@click.argument("target", metavar="ID")
@output.client_options
def dlq_retry(target: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Run DEAD tasks again: one (12/extract, 12/square[417]), or all of an array or run."""
    with output.connect(master, token_file) as client:
        rows = _dead(client, target)
        for row in rows:
            client.retry(row.id)
    return _say(rows, "open again", as_json)


@dlq.command("drop")
@click.argument("target", metavar="ID")
@output.client_options
def dlq_drop(target: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """List DEAD tasks no more; they stay DEAD, and what happened is kept with their run."""
    with output.connect(master, token_file) as client:
        rows = _dead(client, target)
        for row in rows:
            client.drop(row.id)
    return _say(rows, "dropped", as_json)


def _dead(client: Client, target: str) -> list[msg.TaskRow]:
    """The DEAD tasks that ``target`` names, at least one. Raises NothingToDo, NoSuchRun, NoSuchTask."""
    wanted = client.exact(calls.task_id(target))
    rows = [row for row in client.dead() if _is_of(calls.task_id(row.id), wanted)]
    if not rows:
        client.call(calls.show(wanted, limit=1))  # what is not there at all is another mistake
        raise NothingToDo(f"nothing of {wanted} is DEAD", hint="titan-fast dlq ls lists what is")
    return rows


def _is_of(task: TaskId, wanted: TaskId) -> bool:
    return task.run == wanted.run and wanted.task in (None, task.task) and wanted.member in (None, task.member)


def _document(row: msg.TaskRow) -> dict[str, object]:
    return {"id": row.id, "state": row.state, "reason": row.reason, "attempts": row.attempt}


def _say(rows: list[msg.TaskRow], what: str, as_json: bool) -> int:
    if as_json:
        output.write_json({"ids": [row.id for row in rows]})
    else:
        for row in rows:
            click.echo(f"{row.id} {what}")
    return 0
