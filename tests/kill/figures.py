"""What a test found out, as a report in build/reports: docs/reliability.py makes its table of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType

from checker import Verdict

REPORTS = Path(__file__).parents[2] / "build" / "reports"


class Figures:
    """Sums the rounds of one test; the report is written when the test is over, and says so when it failed.

    with Figures("master-kill", "pytest …", "CI") as figures:
        figures.add(verdict, seconds, end)

    Args:
        name: of the report, and of its row in the table.
        command: what runs the test.
        size: ``CI`` or ``long``.
    """

    def __init__(self, name: str, command: str, size: str) -> None:
        self._head = {"name": name, "command": command, "size": size}
        self._counts: Counter[str] = Counter()
        self._excuses: Counter[str] = Counter()
        self._seconds = 0.0
        self._rounds = 0
        self._slowest_end = 0.0

    def __enter__(self) -> Figures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(passed=error is None)

    def add(self, verdict: Verdict, seconds: float, end: float) -> None:
        """A round, how long it took, and how long everything took to finish after its last fault."""
        self._counts.update(verdict.counts)
        self._excuses.update(verdict.excuses)
        self._seconds += seconds
        self._rounds += 1
        self._slowest_end = max(self._slowest_end, end)

    def _write(self, passed: bool) -> None:
        suffix = "-long" if self._head["size"] == "long" else ""
        report = {
            **self._head,
            "passed": passed,
            "seconds": round(self._seconds, 1),
            "figures": {
                "rounds": self._rounds,
                **self._counts,
                "slowest end after the last fault, s": round(self._slowest_end, 1),
            },
            "excused": dict(self._excuses),
        }
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / f"{self._head['name']}{suffix}.json").write_text(json.dumps(report, indent=2) + "\n")
