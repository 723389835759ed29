"""The report of a test in rounds: what their verdicts counted, summed."""

from __future__ import annotations

from collections import Counter

from checker import Verdict
from report import Report


class Figures(Report):
    """
    with Figures("master-kill", "pytest …", "CI") as figures:
        figures.add(verdict, end)

    Args:
        name: of the report, and of its row in the table.
        command: what runs the test.
        size: ``CI`` or ``long``.
    """

    def __init__(self, name: str, command: str, size: str) -> None:
        super().__init__(name, command, size == "long")
        self._counts: Counter[str] = Counter()
        self._rounds = 0
        self._slowest_end = 0.0

    def add(self, verdict: Verdict, end: float) -> None:
        """A round, and how many seconds everything took to finish after its last fault."""
        self._counts.update(verdict.counts)
        self.excused.update(verdict.excuses)
        self._rounds += 1
        self._slowest_end = max(self._slowest_end, end)
        self.figures = {
            "rounds": self._rounds,
            **self._counts,
            "slowest end after the last fault, s": self._slowest_end,
        }
