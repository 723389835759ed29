"""What was measured, as a report in build/reports: docs/reliability.py makes its table of such files.

with Report("restart", "pytest tests/master/test_restart.py", is_long) as report:
    report.figures["named tasks, s"] = seconds

The report is written when the measurement is over, and says so when it failed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

REPORTS = Path(__file__).parent.parent / "build" / "reports"


class Report:
    """``figures`` is a line of text for each number.

    Args:
        name: of the report; the long size has a file of its own.
        command: what makes it again.
    """

    def __init__(self, name: str, command: str, is_long: bool = False) -> None:
        self.figures: dict[str, float] = {}
        self._path = REPORTS / f"{name}{'-long' if is_long else ''}.json"
        self._head = {"name": name, "command": command, "size": "long" if is_long else "CI"}
        self._began = time.monotonic()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        report = {
            **self._head,
            "passed": error is None,
            "seconds": round(time.monotonic() - self._began, 1),
            "figures": {text: float(f"{value:.4g}") for text, value in self.figures.items()},
            "excused": {},
        }
        REPORTS.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(report, indent=2) + "\n")
