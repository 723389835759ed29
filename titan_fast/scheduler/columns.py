"""Columns of short texts as one blob each. A list keeps an object for every row: a hundred thousand of them take ten
times the memory of what they say, and what was made beside them while a graph was read cannot be given back."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Texts:
    """A column of texts that only grows; none is empty. What a row says is made anew each time it is asked for."""

    __slots__ = ("_blob", "_ends")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blob = bytearray()
        self._ends = array("Q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._blob += text.encode()
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        """Rows count from 0; raises IndexError."""
        end = self._ends[row]
        return self._blob[self._begin(row) : end].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self._ends)))

    def find(self, text: str) -> int | None:
        """The first row that says so, or None. As fast as bytes are searched, not a look at each row."""
        wanted = text.encode()
        at = self._blob.find(wanted)
        while at >= 0:
            row = bisect_left(self._ends, at + len(wanted))
            if row < len(self._ends) and self._begin(row) == at and self._ends[row] == at + len(wanted):
                return row
            at = self._blob.find(wanted, at + 1)
        return None

    def _begin(self, row: int) -> int:
        return self._ends[row - 1] if row > 0 else 0
