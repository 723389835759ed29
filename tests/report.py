"""What a test found out, as a report in build/reports: docs/reliability.py makes its table of such files.

with Report("restart", "pytest tests/master/test_restart.py", is_long) as report:
    report.figures["named tasks, s"] = seconds

The report is written when the test is over, and says so when it failed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

REPORTS = Path(__file__).parent.parent / "build" / "reports"


class Report:
    """``figures`` is a line of text for each number, ``excused`` one for each kind of thing that needed a reason.
    ``beside`` is for the test itself, when it goes on another time; no page shows it.

    Args:
        name: of the report, and of its row in the table; the long size has a file of its own.
        command: what makes it again.
    """

    def __init__(self, name: str, command: str, is_long: bool = False) -> None:
        self.figures: dict[str, float] = {}
        self.excused: Counter[str] = Counter()
        self.beside: dict[str, int] = {}
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
            "figures": {text: _short(value) for text, value in self.figures.items()},
            "excused": dict(self.excused),
            **self.beside,
        }
        REPORTS.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(report, indent=2) + "\n")


def _short(value: float) -> float:
    """What was counted as it is, what was measured as exactly as anybody believes it."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
