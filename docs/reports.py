"""The reports in build/reports, and the pages whose tables are made of them: what the two page writers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

REPORTS = Path(__file__).parents[1] / "build" / "reports"


class Report(msgspec.Struct, frozen=True):
    name: str
    command: str
    size: str
    passed: bool
    seconds: float
    figures: dict[str, float]
    excused: dict[str, int] = {}


def read_report(name: str, type: type[T]) -> T | None:
    path = REPORTS / f"{name}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=type)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise SystemExit(f"{path} is no report: {error}; run its test again") from None


def marks(program: str, table: str) -> tuple[str, str]:
    """What stands before and after a table of a page."""
    return f"<!-- {table}: written by {program} -->", f"<!-- end of the {table} -->"


def rewrite(page: Path, program: str, tables: Mapping[str, Callable[[], str]]) -> None:
    """Put each table between its marks, which name the program. Raises SystemExit: the page has lost its marks."""
    text = page.read_text("utf-8")
    for name, table in tables.items():
        begin, end = marks(program, name)
        head, has_begin, rest = text.partition(begin)
        _, has_end, tail = rest.partition(end)
        if not has_begin or not has_end:
            raise SystemExit(f"{page} has lost its marks ({begin} … {end}): put them back")
        text = f"{head}{begin}\n\n{table()}\n\n{end}{tail}"
    page.write_text(text, "utf-8")
