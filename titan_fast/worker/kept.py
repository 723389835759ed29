"""Outputs of attempts that have ended and of which the master keeps the beginning and the end alone: the worker has the
middle, for whoever asks. The files stay where the attempts left them; who removes them is not known here.
"""

from __future__ import annotations

from collections.abc import Callable


class KeptOutputs:
    """The newest ones, as many as fit."""

    def __init__(self, limit: int, remove: Callable[[int], None]) -> None:
        """
        Args:
            limit: bytes of all of them.
            remove: is given the fence of one that is kept no more.
        """
        self._limit = limit
        self._remove = remove
        self._kept: dict[int, tuple[int, int, int]] = {}
        """Fence -> (run, index, bytes), oldest first."""
        self._size = 0

    def keep(self, fence: int, run: int, index: int, size: int) -> None:
        """The oldest go for it; itself, when it does not fit at all."""
        self._kept[fence] = run, index, size
        self._size += size
        while self._size > self._limit:
            self._forget(next(iter(self._kept)))

    def has(self, fence: int, run: int, index: int) -> bool:
        return self._kept.get(fence, ())[:2] == (run, index)

    def forget_run(self, run: int) -> None:
        for fence in [fence for fence, kept in self._kept.items() if kept[0] == run]:
            self._forget(fence)

    def clear(self) -> None:
        for fence in list(self._kept):
            self._forget(fence)

    def _forget(self, fence: int) -> None:
        self._size -= self._kept.pop(fence)[2]
        self._remove(fence)
