"""The pages of docs/ whose tables are made of reports, with reports and a page of the test's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"


def page_writer(name: str, folder: Path, monkeypatch) -> ModuleType:
    """The program ``docs/<name>.py``, which reads the reports in the folder and writes ``page.md`` there."""
    monkeypatch.syspath_prepend(str(DOCS))
    program, reports = importlib.import_module(name), importlib.import_module("reports")
    monkeypatch.setattr(reports, "REPORTS", folder)
    monkeypatch.setattr(program, "PAGE", folder / "page.md")
    blocks = ["\nFROM LAST TIME\n".join(reports.marks(f"docs/{name}.py", table)) for table in program.TABLES]
    program.PAGE.write_text("\n\n".join(["before", *blocks, "after\n"]))
    return program
