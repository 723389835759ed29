"""Waiting for a run in front of a terminal: a bar, what runs now, and a way out with Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from titan_fast.errors import InternalError
from titan_fast.protocol import messages as msg

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def follow(updates: Iterator[msg.Update], quiet: bool = False) -> msg.Update:
    """Show updates as they come; returns the final one."""
    last: msg.Update | None = None
    if quiet or not sys.stderr.isatty():
        for last in updates:  # noqa: B007
            pass
    else:
        with _bar() as (progress, bar):
            for last in updates:
                done = sum(n for state, n in last.counts.items() if state not in ("PENDING", "RUNNING"))
                running = ", ".join(last.running)
                progress.update(
                    bar,
                    total=sum(last.counts.values()),
                    completed=done,
                    description=f"run {last.run} {last.name}" + ("" if last.durable else " (the disk is stuck)"),
                    running=running[:60] + ("…" if len(running) > 60 else ""),
                )
    if last is None:
        raise InternalError("the master answered nothing")
    return last


@contextmanager
def _bar() -> Iterator[tuple[Progress, TaskID]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[running]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        yield progress, progress.add_task("", total=None, running="")
