"""The verbs that care for a master's state: prune, backup, restore."""

from __future__ import annotations

from pathlib import Path

import click

from titan_fast import config
from titan_fast.cli import output
from titan_fast.cli.options import DurationType


@click.command()
@click.option("--keep", type=click.IntRange(0), metavar="N", help="keep the newest N finished runs [store.keep_runs]")
@click.option("--older-than", type=DurationType(), metavar="D", help="forget what ended so long ago [store.keep_days]")
@output.client_options
def prune(keep: int | None, older_than: float | None, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Forget finished runs now, with their output."""
    with output.connect(master, token_file) as client:
        gone = client.prune(keep, older_than)
    if as_json:
        output.write_json({"runs": gone})
    else:
        click.echo(f"{gone} run{'' if gone == 1 else 's'} forgotten")
    return 0


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="replace the file when it is there")
@output.client_options
def backup(file: Path, force: bool, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Write a consistent copy of the master's state to FILE, while it works."""
    with output.connect(master, token_file) as client:
        made = client.backup(file, replace=force)
    if as_json:
        output.write_json({"file": str(file), "size": made.size, "digest": made.digest})
    else:
        click.echo(f"{file} {output.size(made.size)}")
        click.echo(f"  with no master running: titan-fast restore {file}")
    return 0


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--state-dir", metavar="DIR", help="where the master keeps its state [$TITAN_HOME/state]")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def restore(file: Path, state_dir: str | None, as_json: bool) -> int:
    """Make a backup the state of a master that is not running."""
    from titan_fast.master.store.backup import restore as restore_state

    settings = config.load({"master": {"state_dir": state_dir}})
    folder = Path(settings.master.state_dir) if settings.master.state_dir else config.home() / "state"
    epoch = restore_state(file, folder)
    if as_json:
        output.write_json({"file": str(file), "state_dir": str(folder), "epoch": epoch})
    else:
        where = f" --state-dir {state_dir}" if state_dir else ""
        click.echo(f"{folder} holds what {file} has; start the master: titan-fast up{where}")
    return 0
