"""What is wrong with a file: every problem with its line, collected instead of raised at the first."""

from __future__ import annotations

MAX_PROBLEMS = 1_000
"""Kept for one file. A generated file that is wrong is wrong everywhere; nobody reads the thousand-and-first."""


class Wrong(Exception):
    """One value that cannot be used. Whoever reads the field around it adds whose it is and goes on."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class NotYet(Wrong):
    """A part of the language that is still to come; the text names the field."""

    def __init__(self, line: int, what: str, instead: str = "") -> None:
        super().__init__(line, f"'{what}' is not supported yet{instead}")


class Problems:
    """The problems of one file, in the order they were found."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: list[tuple[int, str]] = []
        self._dropped = 0

    def add(self, line: int, text: str) -> None:
        """Note a problem; ``line`` counts from 1."""
        if len(self._found) < MAX_PROBLEMS:
            self._found.append((line, text))
        else:
            self._dropped += 1

    def __bool__(self) -> bool:
        return bool(self._found)

    def to_lines(self) -> list[str]:
        """``file:line: text`` for each, sorted by line."""
        lines = [f"{self.name}:{line}: {text}" for line, text in sorted(self._found, key=lambda found: found[0])]
        if self._dropped:
            last = max(line for line, _ in self._found)
            lines.append(f"{self.name}:{last}: … and {self._dropped:,} more problems")
        return lines
