"""How errors are told: a sentence and what to do about it, or one JSON document. Nothing here needs what may be wrong
itself: not the compiled modules, and no client.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
import orjson

from titan_fast.errors import TitanError


def wants_json(arguments: Sequence[str]) -> bool:
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in before


def write_json_error(code: str, message: str, hint: str) -> None:
    click.echo(orjson.dumps({"error": {"code": code, "message": message, "hint": hint}}), err=True)


def write_error(error: TitanError, arguments: Sequence[str]) -> None:
    if wants_json(arguments):
        write_json_error(error.code, error.message, error.hint)
        return
    click.echo(f"titan-fast: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
