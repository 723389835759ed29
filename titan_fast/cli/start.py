"""The verbs that start processes: up, master, worker (and the agent a worker's keeper starts)."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import click

from titan_fast import config
from titan_fast.errors import InvalidUsage, TitanError
from titan_fast.loop import run as run_loop
from titan_fast.model.names import check_capability, check_worker_name

PR_SET_PDEATHSIG = 1


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def _die_with(parent: int | None) -> None:
    """Whoever started us must not leave us behind, however it ends (Linux; elsewhere it stops us itself)."""
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


_durability = click.option(
    "--durability",
    type=click.Choice(get_args(get_type_hints(config.StoreSettings)["durability"])),
    help="what is accepted survives: disk a power cut, os a killed process, memory nothing [disk]",
)
_with_parent = click.option("--with-parent", type=int, hidden=True)
_verbose = click.option("-v", "--verbose", is_flag=True, help="log what happens, on stderr")


@click.command()
@click.option("--host", help="address to listen on [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="port to listen on, 0 picks one [9090]")
@click.option("--state-dir", metavar="DIR", help="where it keeps its state [$TITAN_HOME/state]")
@_durability
@click.option("--uvloop/--no-uvloop", default=None, help="run on uvloop where it is installed [yes]")
@click.option("--drain", type=float, help="seconds a stop waits for what runs [10]")
@click.option("--ready-fd", type=int, hidden=True)
@_with_parent
@_verbose
def master(
    host: str | None,
    port: int | None,
    state_dir: str | None,
    durability: str | None,
    uvloop: bool | None,
    drain: float | None,
    ready_fd: int | None,
    with_parent: int | None,
    verbose: bool,
) -> int:
    """The master alone: schedules what clients submit on the workers that dial it."""
    from titan_fast.master.server import Master, run_master

    _die_with(with_parent)
    _log_to_stderr(verbose)

    def announce(started: Master) -> None:
        if ready_fd is not None:
            _tell(ready_fd, f"ok {started.host}:{started.port}")
            return
        click.echo(f"titan-fast master listens on {started.host}:{started.port} (protocol 2, {_engine()})")
        for path in started.token_files:
            click.echo(f"  {path.suffix[1:]} token: {path}")

    try:
        settings = config.load(
            {
                "master": {
                    "host": host,
                    "port": port,
                    "state_dir": state_dir,
                    "uvloop": uvloop,
                    "drain": drain,
                },
                "store": {"durability": durability},
            }
        )
        return run_loop(run_master(settings, announce), settings.master.uvloop)
    except TitanError as error:
        if ready_fd is not None:
            _tell(ready_fd, f"error {error.code}|{error.message}|{error.hint}".replace("\n", " "))
        raise


def _tell(fd: int, line: str) -> None:
    with os.fdopen(fd, "w") as ready:
        ready.write(line + "\n")


def _engine() -> str:
    from titan_fast import _accel
    from titan_fast.loop import has_uvloop

    return f"{_accel.accel}, {'uvloop' if has_uvloop() else 'asyncio'}"


def worker_options(command: Any) -> Any:
    """The options of a worker, which its agent takes too."""
    for option in (
        click.option("--master", "address", metavar="H:P[,H:P]", help="the master's address [127.0.0.1:9090]"),
        click.option("--token-file", metavar="FILE", help="file that holds the worker token"),
        click.option("--name", help="name of this worker [host name and a number]"),
        click.option("--slots", type=click.IntRange(1, 65536), help="attempts at a time [CPUs]"),
        click.option("--caps", metavar="A,B", help="capabilities, for example GPU,HIGH_MEM"),
        click.option("--permanent/--ephemeral", default=None, help="may it be scaled down? [permanent]"),
        click.option("--work-dir", metavar="DIR", help="where it works [$TITAN_HOME/work/NAME]"),
        click.option("--drain", type=float, help="seconds a stop waits for what runs [10]"),
        click.option("--uvloop/--no-uvloop", default=None, help="run on uvloop where it is installed [yes]"),
        _verbose,
    ):
        command = option(command)
    return command


@click.command()
@worker_options
@_with_parent
def worker(with_parent: int | None, **options: Any) -> NoReturn:
    """One worker: becomes the keeper of an agent that dials the master and runs what it is given."""
    _die_with(with_parent)
    # A mistake is told here, once, not by an agent that is started again and again.
    settings, addresses = _worker_settings(options)
    if settings.client.token_file:  # a master that starts later writes its own, where we look unless told otherwise
        config.find_token(settings.client, addresses, "worker")
    keeper = find_spec("titan_fast.worker.keeper")
    assert keeper is not None and keeper.origin is not None
    agent = [sys.executable, "-P", "-m", "titan_fast", "agent", *_as_arguments(options)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-S", "-P", keeper.origin, "--", *agent])


def _as_arguments(options: dict[str, Any]) -> list[str]:
    arguments = []
    names = {"address": "master"}
    for key, value in options.items():
        flag = names.get(key, key).replace("_", "-")
        if key == "permanent":
            arguments += [] if value is None else ["--permanent" if value else "--ephemeral"]
        elif key == "uvloop":
            arguments += [] if value is None else ["--uvloop" if value else "--no-uvloop"]
        elif key == "verbose":
            arguments += ["--verbose"] if value else []
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    return arguments


def _worker_settings(options: dict[str, Any]) -> tuple[config.Settings, list[tuple[str, int]]]:
    given = {key: options[key] for key in ("name", "slots", "caps", "permanent", "work_dir", "drain", "uvloop")}
    settings = config.load(
        {"worker": given, "client": {"master": options["address"], "token_file": options["token_file"]}}
    )
    try:
        if settings.worker.name:  # empty is the host's
            check_worker_name(settings.worker.name)
    except ValueError as error:
        raise InvalidUsage(f"--name: {error}", hint="choose another name for this worker") from None
    for tag in config.capabilities(settings.worker.caps):
        try:
            check_capability(tag)
        except ValueError as error:
            raise InvalidUsage(f"--caps: {error}", hint="separate them with commas: --caps GPU,HIGH_MEM") from None
    return settings, config.parse_addresses(settings.client.master)


@click.command(hidden=True)
@worker_options
def agent(**options: Any) -> int:
    """The agent of a worker; its keeper starts it."""
    from titan_fast.worker.keeper import die_with_keeper

    die_with_keeper()
    from titan_fast.worker.agent import run_agent

    _log_to_stderr(options["verbose"])
    logging.getLogger("titan_fast.worker").setLevel(logging.INFO)  # says when it comes and goes, nothing of attempts
    settings, addresses = _worker_settings(options)

    def find_token() -> str:
        return config.find_token(settings.client, addresses, "worker")

    return run_loop(run_agent(settings.worker, addresses, find_token), settings.worker.uvloop)


@click.command()
@click.option("--workers", "count", default=1, type=click.IntRange(0, 1000), help="workers to start [1]")
@click.option("--slots", type=click.IntRange(1, 65536), help="slots of each [CPUs]")
@click.option("--caps", metavar="A,B", help="capabilities of each")
@click.option("--state-dir", metavar="DIR", help="where the master keeps its state [$TITAN_HOME/state]")
@click.option("--port", type=click.IntRange(0, 65535), help="port to listen on, 0 picks one [9090]")
@_durability
@_verbose
def up(
    count: int,
    slots: int | None,
    caps: str | None,
    state_dir: str | None,
    port: int | None,
    durability: str | None,
    verbose: bool,
) -> int:
    """A master and workers on this machine, in the foreground, until Ctrl-C."""
    from titan_fast.sdk.local import LocalCluster

    engine = _engine()  # what is wrong with it is told before a process is started that would say it again
    settings = config.load({"master": {"port": port, "state_dir": state_dir}})
    home = config.home()
    options = ["--state-dir", str(Path(state_dir).absolute())] if state_dir else []
    options += ["--durability", durability] if durability else []
    cluster = LocalCluster(home, options=[*options, *(["-v"] if verbose else [])], quiet=False)
    stopping: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        stopping.append(number)
        if len(stopping) > 1:
            cluster.hurry()

    address = cluster.start_master(settings.master.port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        extra = [*(["--slots", str(slots)] if slots else []), *(["--caps", caps] if caps else [])]
        for place in range(1, count + 1):
            cluster.start_worker(f"w{place}", *extra, *(["-v"] if verbose else []))
        host, _, number_text = address.rpartition(":")
        client_token = config.token_path(host, int(number_text), "client")
        click.echo(f"titan-fast is up at {address} with {count} worker{'s' if count != 1 else ''} ({engine})")
        click.echo(f"  tokens: {client_token} and .worker beside it")
        if address != f"127.0.0.1:{config.DEFAULT_PORT}":
            click.echo(f"  clients: export TITAN_ADDR={address}")
        click.echo("  try: titan-fast submit --wait -- echo hello      stop: Ctrl-C")
        sys.stdout.flush()
        while not stopping:
            gone = cluster.revive()
            if gone:
                click.echo(f"{gone}; started again, what it held goes on", err=True)
            # A signal ends the sleep early (PEP 475 sleeps on only when the handler returns normally, so poll).
            time.sleep(0.2)
        click.echo("stopping: nothing new is placed, what runs may finish (Ctrl-C again to end it)", err=True)
    finally:
        cluster.stop()
    return 0
