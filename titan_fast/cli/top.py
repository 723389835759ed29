"""top: the cluster in a terminal, as it is now. `frame` draws what it is given and asks nobody; the rest asks three
cheap questions a beat and puts the answers on the screen.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from titan_fast.cli import output
from titan_fast.cli.options import DurationType
from titan_fast.errors import InvalidUsage, NoMaster, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.client import Client
from titan_fast.sdk.line import AWAY

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

T = TypeVar("T")

RUNS = 50
"""Runs that are asked for: more than these few lines nobody can see."""
SHORTEST = 0.1
"""Seconds between two looks, at least."""
PATIENCE = 5.0
"""Seconds a look waits for a master that is away; then the next one does."""
ROOMY = 60
"""Columns from which on there is room for bars."""
HEADER = 4
"""Lines above the tables."""


class Seen(msgspec.Struct, frozen=True):
    """The cluster at one moment."""

    stated: msg.Stated
    workers: tuple[msg.WorkerRow, ...]
    runs: tuple[msg.RunRow, ...]
    """The unfinished ones first, then the newest."""
    at: float
    """Wall clock, seconds."""


class View(msgspec.Struct, frozen=True):
    """What a frame shows."""

    master: str
    seen: Seen
    before: Seen | None = None
    """The look before that, for what is counted by the second."""
    away: bool = False
    """Since ``seen`` nobody has answered."""


# ---------------------------------------------------------------- drawing


def frame(view: View, width: int, height: int, ascii_only: bool = False) -> RenderableType:
    """One frame: a header, the workers, the runs; never more lines than there are."""
    from rich.console import Group

    room = max(2, height - HEADER - 4)
    workers, runs = view.seen.workers, view.seen.runs
    for_workers = min(len(workers), max(room // 2, room - len(runs)))
    return Group(
        *_header(view),
        "",
        _worker_table(workers, for_workers, width, ascii_only),
        "",
        _run_table(view, max(1, room - for_workers), width, ascii_only),
    )


def _header(view: View) -> Iterator[RenderableType]:
    from rich.text import Text

    stated = view.seen.stated
    line = Text(no_wrap=True, overflow="ellipsis")
    # First, where it is seen on the narrowest screen.
    if view.away:
        line.append(f"no answer since {_clock(view.seen.at)}  ", "bold red")
    elif not stated.durable:
        line.append("the disk is stuck  ", "bold red")
    line.append(f"titan-fast {stated.software} at {view.master}", "bold")
    line.append(f"  epoch {stated.epoch}, durability {stated.durability}")
    if not view.away:
        line.append(f"  {_clock(view.seen.at)}")
    yield line
    figures = (
        f"{_rate(view, 'ended')} tasks/s  {_rate(view, 'commits')} commits/s ({stated.facts_per_commit:.1f} facts each)"
        f"  loop lag {1000 * stated.loop_lag:.1f} ms  memory {output.size(stated.memory)}"
        f"  {stated.connections} connections"
    )
    yield Text(figures, no_wrap=True, overflow="ellipsis")
    counts = "  ".join(f"{number} {state}" for state, number in stated.tasks.items() if number)
    yield Text(f"tasks: {counts or 'none'}", no_wrap=True, overflow="ellipsis")


def _rate(view: View, figure: str) -> str:
    """By the second, between two looks at one master."""
    before = view.before
    if before is None or before.stated.started_at != view.seen.stated.started_at or view.seen.at <= before.at:
        return "-"
    grown = getattr(view.seen.stated, figure) - getattr(before.stated, figure)
    return f"{grown / (view.seen.at - before.at):,.0f}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _table(*columns: str) -> Table:
    """The columns with names in them give way when there is little room."""
    from rich.table import Table

    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        ratio = {"WORKER": 2, "NAME": 2, "CAPABILITIES": 1}.get(column)
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=ratio)
    return table


def _worker_table(workers: tuple[msg.WorkerRow, ...], limit: int, width: int, ascii_only: bool) -> RenderableType:
    from rich.text import Text

    if not workers:
        return Text("no workers: titan-fast worker")
    columns = ["WORKER", "STATE", "SLOTS", "QUEUED", "CAPABILITIES"]
    columns = columns[: 5 if width >= ROOMY else 3]
    table = _table(*columns)
    shown, left = _cut(sorted(workers, key=lambda worker: (worker.state in ("LOST", "LEFT"), worker.name)), limit)
    for worker in shown:
        cells = (
            Text(output.plain(worker.name)),
            _state(worker.state),
            f"{_bar(worker.running, worker.slots, width, ascii_only)}{worker.running}/{worker.slots}",
            str(worker.queued or "-"),
            Text(output.plain(",".join(worker.capabilities)) or "-"),
        )
        table.add_row(*cells[: len(columns)])
    if left:
        table.add_row(f"and {left} more")
    return table


def _run_table(view: View, limit: int, width: int, ascii_only: bool) -> RenderableType:
    from rich.text import Text

    if not view.seen.runs:
        return Text("no runs yet: titan-fast run FILE.yaml")
    table = _table("RUN", "NAME", "STATE", "TASKS", "TOOK")
    shown, left = _cut(view.seen.runs, limit)
    for run in shown:
        total = sum(run.counts.values())
        done = total - run.counts.get("PENDING", 0) - run.counts.get("RUNNING", 0)
        end = run.finished_at or view.seen.at
        table.add_row(
            str(run.id),
            Text(output.plain(run.name)),
            _state(run.state),
            f"{_bar(done, total, width, ascii_only)}{done}/{total}",
            output.span(max(0.0, end - run.started_at)) if run.started_at else "-",
        )
    if left:
        table.add_row("", f"and {left} more")
    return table


def _cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], int]:
    """(as many as have room, how many have not); the line that says so takes room too."""
    if len(rows) <= limit:
        return rows, 0
    shown = max(0, limit - 1)
    return rows[:shown], len(rows) - shown


def _state(state: str) -> RenderableType:
    from rich.text import Text

    return Text(state, output.STATE_COLOURS.get(state, ""))


def _bar(part: int, whole: int, width: int, ascii_only: bool) -> str:
    """For a line so wide; what is there at all is seen, and only what is whole is full."""
    if width < ROOMY:
        return ""
    cells = min(width // 6, 20)
    filled = 0 if not whole else min(cells, part * cells // whole)
    if part and not filled:
        filled = 1
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    return full * filled + empty * (cells - filled) + " "


# ---------------------------------------------------------------- looking


def look(client: Client) -> Seen:
    """Three questions. Raises what `Client.stats` does."""
    stated = client.stats()
    workers = client.workers()
    unfinished = client.call(calls.list_page("runs", state="RUNNING", limit=RUNS)).runs
    newest = client.call(calls.list_page("runs", limit=RUNS)).runs
    first = {run.id for run in unfinished}
    runs = (*unfinished, *(run for run in newest if run.id not in first))
    return Seen(stated, tuple(workers), runs, time.time())


class _Looker(threading.Thread):
    """Looks once a beat, so that the screen answers a key while the master answers nothing."""

    def __init__(self, client: Client, where: str, away: threading.Event, interval: float, tell: int) -> None:
        super().__init__(name="titan-top", daemon=True)
        self.view = View(where, look(client))
        self.error: TitanError | None = None
        self._client, self._away, self._interval, self._tell = client, away, interval, tell
        self._stopped = threading.Event()

    def run(self) -> None:
        while self.error is None and not self._stopped.wait(self._interval):
            try:
                seen = look(self._client)
                self.view = View(self.view.master, seen, self.view.seen)
            except TitanError as error:
                if not (isinstance(error, NoMaster) or error.retryable):
                    self.error = error
            with contextlib.suppress(OSError):
                os.write(self._tell, b".")

    def stop(self) -> None:
        self._stopped.set()

    def latest(self) -> View:
        """Raises what made it end."""
        if self.error is not None:
            raise self.error
        return msgspec.structs.replace(self.view, away=self._away.is_set())


@click.command()
@click.option("--interval", type=DurationType(), default=1.0, help="seconds between two looks [1]")
@click.option("--token-file", metavar="FILE", help="file that holds the client token")
@click.option("--master", metavar="HOST:PORT", help="address of the master [TITAN_ADDR, 127.0.0.1:9090]")
def top(interval: float, token_file: str | None, master: str | None) -> int:
    """The cluster as it is now: the master, its workers, its runs.

    q or Ctrl-C ends it. What is not a terminal gets one frame.
    """
    from rich.console import Console

    if interval < SHORTEST:
        raise InvalidUsage(f"--interval {interval:g}: every {SHORTEST:g} seconds is often enough")
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    away = threading.Event()

    def tell(text: str) -> None:
        if text == AWAY:
            away.set()
        else:
            away.clear()

    with Client(master, token_file=token_file, reconnect_timeout=PATIENCE, tell=tell) as client:
        if console.is_terminal and sys.stdin.isatty():
            _show_live(console, client, away, interval)
        else:
            seen = look(client)
            height = HEADER + 8 + len(seen.workers) + len(seen.runs)
            shown = frame(View(client.line.where, seen), console.width, height, console.options.ascii_only)
            console.print(shown)
    return 0


def _show_live(console: Console, client: Client, away: threading.Event, interval: float) -> None:
    """Until q. Raises KeyboardInterrupt, and what ends a look for good."""
    from rich.live import Live

    with _keys() as (keys, wake):
        looker = _Looker(client, client.line.where, away, interval, wake)
        looker.start()
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    width, height = console.size
                    live.update(frame(looker.latest(), width, height, console.options.ascii_only), refresh=True)
                    if b"q" in keys(interval).lower():
                        return
        finally:
            looker.stop()


@contextlib.contextmanager
def _keys() -> Iterator[tuple[Callable[[float], bytes], int]]:
    """(seconds -> what was typed until then, or until something changed; where to write that something did). The
    terminal gives single keys meanwhile; a change of its size is something that changed."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def resized(*_: object) -> None:
        with contextlib.suppress(OSError):
            os.write(writing, b"w")

    def ended(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    def keys(seconds: float) -> bytes:
        ready, _, _ = select.select([terminal, reading], [], [], seconds)
        if reading in ready:
            os.read(reading, 4096)
        if terminal not in ready:
            return b""
        return os.read(terminal, 4096) or b"q"  # whoever typed is gone

    handlers = {signal.SIGWINCH: resized, signal.SIGTERM: ended}
    kept = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        tty.setcbreak(terminal)
        yield keys, writing
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        for number, handler in kept.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
