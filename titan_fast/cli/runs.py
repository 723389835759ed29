"""The verbs that start and end work: run, submit, lint, wait, cancel, retry."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from titan_fast.cli import output
from titan_fast.cli.options import DurationType
from titan_fast.cli.progress import follow
from titan_fast.errors import InvalidFile, InvalidUsage, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.handles import RunHandle


def _inputs(pairs: tuple[str, ...]) -> dict[str, str]:
    inputs = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidUsage(f"--set {pair}: write --set KEY=VALUE")
        inputs[key] = value
    return inputs


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--wait/--no-wait", default=True, help="wait for the run to end (default)")
@click.option("--local", is_flag=True, help="on a master and a worker of its own, for this run alone")
@click.option("--slots", type=click.IntRange(1, 4096), help="slots of the local worker [CPUs]")
@click.option("--set", "pairs", multiple=True, metavar="K=V", help="an input of the graph")
@click.option("--timeout", type=DurationType(), help="how long to wait; the run goes on")
@output.client_options
def run(
    file: Path,
    wait: bool,
    local: bool,
    slots: int | None,
    pairs: tuple[str, ...],
    timeout: float | None,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Run a graph file. Ctrl-C detaches (with --local it cancels)."""
    from titan_fast.model.yaml_file import load_file

    loaded = load_file(file, _inputs(pairs))
    if local:
        return _run_locally(loaded, slots, timeout, as_json)
    if slots is not None:
        raise InvalidUsage("--slots goes with --local")
    with output.connect(master, token_file) as client:
        if not wait:
            return _say_submitted(client.submit(loaded), as_json)
        return _wait(client.submit_nowait(loaded), timeout, as_json)


def _say_submitted(handle: RunHandle, as_json: bool) -> int:
    if as_json:
        output.write_json({"run": handle.id, "state": handle.state})
    else:
        click.echo(f"run {handle.id} submitted")
        if sys.stderr.isatty():
            click.echo(f"  titan-fast wait {handle.id}", err=True)
    return 0


def _wait(handle: RunHandle, timeout: float | None, as_json: bool, detach: bool = True) -> int:
    has_bar = sys.stderr.isatty() and not as_json
    if not as_json and not has_bar:
        click.echo(f"run {handle.id} submitted", err=True)
    try:
        # Without a bar the outcome is all there is to ask for, and that was asked for with the submit.
        update = follow(handle.watch(timeout)) if has_bar else handle.outcome(timeout)
    except KeyboardInterrupt:
        if detach:
            click.echo(f"\ndetached; run {handle.id} goes on: titan-fast wait {handle.id}", err=True)
        raise
    except WaitTimedOut:
        raise WaitTimedOut(
            f"run {handle.id} is not finished after {timeout:g} s; it goes on", hint=f"titan-fast wait {handle.id}"
        ) from None
    return _say_final(update, as_json)


def _say_final(update: msg.Update, as_json: bool) -> int:
    if as_json:
        document: dict[str, Any] = {
            "run": update.run,
            "state": update.state,
            "reason": update.reason,
            "counts": update.counts,
            "elapsed": update.elapsed,
            "result": update.result or None,
        }
        if update.task_state:
            document["exit_code"] = update.exit_code
        output.write_json(document)
    else:
        click.echo(output.final_line(update))
        output.write_failures(update)
    return 0 if update.state == "COMPLETED" else 1


def _run_locally(loaded: Any, slots: int | None, timeout: float | None, as_json: bool) -> int:
    """A master and a worker in a folder of their own: removed after success, kept and named after failure."""
    from titan_fast.sdk.local import LocalCluster

    home = Path(tempfile.mkdtemp(prefix="titan-fast-"))
    code = 1
    try:
        with LocalCluster(home) as cluster:
            options = ["--slots", str(slots)] if slots else []
            cluster.start_worker("local", *options, "--drain", "0")
            with output.connect(cluster.address, _local_token(cluster.address, home), 0.0) as client:
                handle = client.submit_loaded(loaded)
                try:
                    code = _wait(handle, timeout, as_json, detach=False)
                except (KeyboardInterrupt, WaitTimedOut):
                    click.echo(f"\ncancelling run {handle.id}", err=True)
                    handle.cancel()
                    follow(handle.watch(30.0), quiet=True)
                    raise
    finally:
        if code == 0:
            shutil.rmtree(home, ignore_errors=True)
        else:
            click.echo(f"  state, logs and working copies are kept in {home}", err=True)
    return code


def _local_token(address: str, home: Path) -> str:
    from titan_fast.config import token_path

    host, _, port = address.rpartition(":")
    return str(token_path(host, int(port), "client", {"TITAN_HOME": str(home)}))


@click.command()
@click.option("--name", help="name of the run and its task [the command's name]")
@click.option("--requires", default="", metavar="CAPS", help="capabilities, separated by commas")
@click.option("--priority", default=1, help="higher goes first")
@click.option("--retries", default=0, help="further attempts after a failure")
@click.option("--task-timeout", type=DurationType(), default=0.0, help="end the command after this long")
@click.option("--wait/--no-wait", default=False, help="wait, and end with the command's own exit code")
@click.option("--timeout", type=DurationType(), help="how long to wait; the run goes on")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@output.client_options
def submit(
    name: str | None,
    requires: str,
    priority: int,
    retries: int,
    task_timeout: float,
    wait: bool,
    timeout: float | None,
    command: tuple[str, ...],
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Run one command as a task: titan-fast submit -- CMD ARGS…"""
    from titan_fast.config import capabilities
    from titan_fast.sdk.graph import Graph

    name = name or Path(command[0]).name.translate({ord(char): "_" for char in "/[]"}) or "command"
    graph = Graph(name)
    graph.task(
        name,
        run=list(command),
        requires=capabilities(requires),
        priority=priority,
        retries=retries,
        timeout=task_timeout,
    )
    with output.connect(master, token_file) as client:
        if not wait:
            return _say_submitted(client.submit(graph), as_json)
        handle = client.submit_nowait(graph)
        code = _wait(handle, timeout, as_json)
        return (handle.outcome().exit_code or code) if code else 0


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "pairs", multiple=True, metavar="K=V", help="an input of the graph")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def lint(file: Path, pairs: tuple[str, ...], as_json: bool) -> int:
    """Check a graph file without a master: every problem with its line."""
    from titan_fast.model.yaml_file import lint_file

    problems = lint_file(file, _inputs(pairs))
    if as_json:
        output.write_json({"file": str(file), "problems": problems})
        return 2 if problems else 0
    if problems:
        raise InvalidFile(problems)
    click.echo(f"{file}: good")
    return 0


@click.command()
@click.argument("target", metavar="ID")
@click.option("--timeout", type=DurationType(), help="give up after this long (exit code 124)")
@output.client_options
def wait(target: str, timeout: float | None, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Wait for a run (12, last) or a task (12/extract) to end."""
    wanted = calls.task_id(target)
    with output.connect(master, token_file) as client:
        exact = client.exact(wanted)
        try:
            update = follow(client.stream(calls.watch(exact, True), timeout), quiet=as_json)
        except WaitTimedOut:
            raise WaitTimedOut(
                f"{target} is not finished after {timeout:g} s; it goes on", hint=f"titan-fast explain {target}"
            ) from None
    if wanted.task is None:
        return _say_final(update, as_json)
    name = TaskId(update.run, wanted.task, wanted.member)
    if as_json:
        output.write_json({"task": str(name), "state": update.task_state, "exit_code": update.exit_code})
    else:
        click.echo(f"task {name} {update.task_state}")
    return 0 if update.task_state in ("COMPLETED", "SKIPPED") else 1


@click.command()
@click.argument("target", metavar="ID")
@click.option("--wait", "until_gone", is_flag=True, help="return when it is verified gone")
@output.client_options
def cancel(target: str, until_gone: bool, master: str | None, token_file: str | None, as_json: bool) -> int:
    """End a run, a task or an array member; what depends on it is cancelled too."""
    wanted = calls.task_id(target)
    with output.connect(master, token_file) as client:
        exact = client.exact(wanted)
        client.call(calls.cancel(exact))
        state = "CANCELLING"
        if until_gone:
            update = follow(client.stream(calls.watch(exact, False)), quiet=True)
            state = update.task_state if wanted.task else update.state
    if as_json:
        output.write_json({"id": str(exact), "state": state})
    else:
        click.echo(f"{exact} {'cancelled' if until_gone else 'is being cancelled'}")
    return 0


@click.command()
@click.argument("target", metavar="ID")
@output.client_options
def retry(target: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Open what is FAILED, DEAD or CANCELLED again, and what was skipped because of it."""
    wanted = calls.task_id(target)
    with output.connect(master, token_file) as client:
        exact = client.exact(wanted)
        client.call(calls.retry(exact))
    if as_json:
        output.write_json({"run": exact.run, "state": "RUNNING"})
    else:
        click.echo(f"{exact} is open again: titan-fast wait {exact.run}")
    return 0
