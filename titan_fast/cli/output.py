"""How things are written: tables for people, one JSON document for programs. (Errors: `complaints`.)"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import orjson

from titan_fast.protocol import messages as msg
from titan_fast.sdk.client import Client

F = TypeVar("F", bound=Callable[..., Any])

NAME_WIDTH = 60
"""Characters of a name or a reason in a table; ``--json`` has all of it."""

STATE_COLOURS = {
    "COMPLETED": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
    "DEAD": "red",
    "CANCELLED": "yellow",
    "SKIPPED": "yellow",
    "READY": "green",
    "LOST": "red",
    "SUSPECT": "yellow",
}


def client_options(command: F) -> F:
    """``--master``, ``--token-file`` and ``--json``, for every verb that asks a master."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="one JSON document instead of a table"),
        click.option("--token-file", metavar="FILE", help="file that holds the client token"),
        click.option("--master", metavar="HOST:PORT", help="address of the master [TITAN_ADDR, 127.0.0.1:9090]"),
    ):
        command = option(command)
    return command


def connect(master: str | None, token_file: str | None, reconnect_timeout: float | None = None) -> Client:
    """The client of a verb: says on stderr when its master is away and when it is back."""

    def tell(text: str) -> None:
        click.echo(f"titan-fast: {text}", err=True)

    return Client(master, token_file=token_file, reconnect_timeout=reconnect_timeout, tell=tell)


def colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def write_json(document: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    sys.stdout.flush()


def warn_unless(durable: bool) -> None:
    """Beside an answer that rests on facts the master cannot write down now."""
    if not durable:
        click.echo("titan-fast: the master's disk is stuck; a crash now would undo some of this", err=True)


def at(seconds: float) -> str | None:
    """RFC 3339 in UTC; None for what has not happened."""
    if not seconds:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(seconds: float) -> str:
    """A moment for a table, in local time."""
    if not seconds:
        return "-"
    return datetime.datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """A duration for people: 0.35 s, 12.4 s, 3m07s, 2h05m."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def size(number: int) -> str:
    """Bytes for people: 17 B, 2.4 KiB, 1.0 GiB."""
    amount = float(number)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}" if unit != "B" else f"{number} B"
        amount /= 1024
    return f"{amount:.1f} GiB"


def plain(text: str, width: int = 0) -> str:
    """A text as one piece of a line: what would move the cursor is written out, what is too long is cut."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Columns as wide as their widest cell; states in their colour on a terminal."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths = [max(len(line[place]) for line in [list(columns), *cells]) for place in range(len(columns))]
    paint = colours()
    click.echo("  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip())
    for line in cells:
        padded = []
        for cell, width in zip(line, widths, strict=True):
            text = cell.ljust(width)
            padded.append(click.style(text, fg=STATE_COLOURS[cell]) if paint and cell in STATE_COLOURS else text)
        click.echo("  ".join(padded).rstrip())


def run_document(run: msg.RunRow) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "submitted_at": at(run.submitted_at),
        "started_at": at(run.started_at),
        "finished_at": at(run.finished_at),
        "counts": run.counts,
    }


def task_document(task: msg.TaskRow) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "state": task.state,
        "reason": task.reason,
        "generation": task.generation,
        "attempt": task.attempt,
        "worker": task.worker or None,
        "exit_code": task.exit_code,
        "started_at": at(task.started_at),
        "finished_at": at(task.finished_at),
        "duration": task.duration,
    }


def worker_document(worker: msg.WorkerRow) -> dict[str, Any]:
    return {
        "id": worker.id,
        "name": worker.name,
        "state": worker.state,
        "capabilities": list(worker.capabilities),
        "slots": worker.slots,
        "running": worker.running,
        "kind": worker.kind,
        "last_seen_at": at(worker.last_seen_at),
    }


def final_line(update: msg.Update) -> str:
    """``run 1 COMPLETED: 13 tasks in 4.2 s, result: PATH``."""
    total = sum(update.counts.values())
    tasks = "1 task" if total == 1 else f"{total} tasks"
    line = f"run {update.run} {update.state}: {tasks} in {update.elapsed:.1f} s"
    if update.state != "COMPLETED":
        others = ", ".join(f"{n} {state}" for state, n in update.counts.items() if n and state != "COMPLETED")
        line += f" ({others})" if others else ""
    if update.result:
        line += f", result: {update.result}"
    return line


def write_failures(update: msg.Update) -> None:
    """What failed, why, and the end of what it said."""
    for failed in update.failed:
        click.echo(f"  {failed.name} {failed.state}: {failed.reason}", err=True)
        for line in failed.tail.splitlines()[-10:]:
            click.echo(f"    | {line}", err=True)
    if update.failed:
        click.echo(f"  titan-fast logs {update.run}/{update.failed[0].name} has all of it", err=True)
