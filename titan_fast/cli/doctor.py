"""doctor: is this installation, this machine and this cluster in order? And shell completion."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator

import click

from titan_fast import config
from titan_fast.cli import output
from titan_fast.errors import TitanError
from titan_fast.sdk.client import Client

MIN_FREE = 256 << 20


class Check:
    """One line of the report."""

    def __init__(self, name: str, ok: bool, detail: str, fix: str = "") -> None:
        self.name, self.ok, self.detail, self.fix = name, ok, detail, "" if ok else fix


def _checks(master: str | None, token_file: str | None) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    yield from _engine()
    yield from _kernel()
    home = config.home()
    probe = next(path for path in (home, *home.parents) if path.exists())
    writable = os.access(probe, os.W_OK)
    yield Check("home", writable, str(home), "set TITAN_HOME to a folder you may write to")
    free = shutil.disk_usage(probe).free
    yield Check("disk", free > MIN_FREE, f"{free >> 20} MiB free", "make room: work stops below 256 MiB")
    yield Check(
        "isolation",
        True,
        "tasks run as this user: nothing separates them from each other; trees of processes are ended best effort",
    )
    yield from _cluster(master, token_file)


def _engine() -> Iterator[Check]:
    from titan_fast import _accel
    from titan_fast.loop import has_uvloop

    compiled = _accel.accel == "compiled"
    detail = _accel.accel + (f" ({_accel.why})" if _accel.why else "")
    is_chosen = os.environ.get("TITAN_FAST_ACCEL") == "off"
    fix = "unset TITAN_FAST_ACCEL" if is_chosen else "install a C compiler and reinstall titan-fast"
    yield Check("accel", compiled, detail, fix)
    yield Check("uvloop", has_uvloop(), "installed" if has_uvloop() else "missing", "pip install uvloop")


def _kernel() -> Iterator[Check]:
    pidfd = hasattr(os, "pidfd_open")
    if pidfd:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            pidfd = False
    yield Check("pidfd", pidfd, "there" if pidfd else "missing", "a kernel from 5.3 on is faster here")
    linux = sys.platform == "linux"
    yield Check("subreaper", linux, "there" if linux else "missing", "orphans of tasks are found less surely")


def _cluster(master: str | None, token_file: str | None) -> Iterator[Check]:
    try:
        with Client(master, token_file=token_file, timeout=1.0, reconnect_timeout=1.0) as client:
            stats = client.stats()
            workers = client.workers()
            dead = client.dead()
    except TitanError as error:
        yield Check("master", False, error.message, error.hint)
        return
    yield Check("master", True, f"version {stats.software}, {stats.accel} on {stats.loop}, epoch {stats.epoch}")
    durable = stats.durability != "memory"
    yield Check(
        "durability",
        durable,
        stats.durability,
        "a stopped master forgets its runs: start it with --durability disk",
    )
    fix = "make room where the master keeps its state; what was accepted goes on meanwhile"
    yield Check("state", not stats.refusing, stats.refusing or f"{stats.disk_free >> 20} MiB free at the master", fix)
    ready = [worker for worker in workers if worker.state == "READY"]
    slots = sum(worker.slots for worker in ready)
    yield Check("workers", bool(ready), f"{len(ready)} ready with {slots} slots", "start one: titan-fast worker")
    lost = sorted(worker.name for worker in workers if worker.state == "LOST")
    if lost:
        yield Check("lost", False, f"silent: {', '.join(lost)}", "look after them; their tasks run elsewhere")
    if dead:
        yield Check("dead", False, f"DEAD, and waiting for a decision: {len(dead)}", "titan-fast dlq ls")


@click.command()
@output.client_options
def doctor(master: str | None, token_file: str | None, as_json: bool) -> int:
    """Check the installation, the machine and the cluster; says what to do about each finding."""
    checks = list(_checks(master, token_file))
    if as_json:
        output.write_json(
            [
                {"check": check.name, "ok": check.ok, "detail": check.detail, "fix": check.fix or None}
                for check in checks
            ]
        )
    else:
        for check in checks:
            click.echo(f"{'ok ' if check.ok else '!! '} {check.name:12} {check.detail}")
            if check.fix:
                click.echo(f"                 {check.fix}")
    return 0 if all(check.ok for check in checks) else 1


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell: eval "$(titan-fast completion bash)"."""
    from click.shell_completion import get_completion_class

    from titan_fast.cli import titan_fast

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(titan_fast, {}, "titan-fast", "_TITAN_FAST_COMPLETE").source())
    return 0
