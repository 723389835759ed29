"""The command line. click and rich live here and nowhere else; one file for each group of verbs."""

from __future__ import annotations

import sys

import click

from titan_fast._version import __version__
from titan_fast.cli import stdout
from titan_fast.errors import TitanError

_VERBS = {
    "up": "start",
    "master": "start",
    "worker": "start",
    "agent": "start",
    "run": "runs",
    "submit": "runs",
    "lint": "runs",
    "wait": "runs",
    "cancel": "runs",
    "retry": "runs",
    "ls": "look",
    "ps": "look",
    "show": "look",
    "explain": "look",
    "logs": "look",
    "workers": "look",
    "stats": "look",
    "top": "top",
    "kv": "data",
    "artifact": "data",
    "dlq": "dead",
    "prune": "care",
    "backup": "care",
    "restore": "care",
    "doctor": "doctor",
    "bench": "bench",
    "completion": "doctor",
}
"""Which module holds a verb: only the one that is typed is imported."""

_HIDDEN = {"agent", "ps"}


class _Verbs(click.Group):
    """Loads a verb's module when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in _VERBS if verb not in _HIDDEN]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        from importlib import import_module

        module = import_module(f"titan_fast.cli.{_VERBS[name]}")
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            from titan_fast.model.names import closest

            near = closest(args[0], [verb for verb in _VERBS if verb not in _HIDDEN])
            hint = f" Did you mean '{near}'?" if near else ""
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="titan-fast")
def titan_fast() -> None:
    """titan-fast: a distributed orchestrator in one install.

    Start a cluster with `titan-fast up`, run a graph with `titan-fast run FILE.yaml`.
    """


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every error a user can cause ends as a sentence and an exit code, never as a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    stdout.guard()
    try:
        code = titan_fast.main(arguments, prog_name="titan-fast", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        from titan_fast.cli.complaints import wants_json, write_json_error

        if wants_json(arguments):
            write_json_error("invalid_usage", error.format_message(), "titan-fast --help")
        else:
            error.show()
        code = 2
    except KeyboardInterrupt:
        code = 130
    except stdout.ReaderGone:
        code = 0
    except TitanError as error:
        from titan_fast.cli.complaints import write_error

        write_error(error, arguments)
        code = error.exit_code
    stdout.let_go()
    sys.exit(code if isinstance(code, int) else 0)
