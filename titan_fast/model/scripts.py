"""The script files a graph file names: paths inside its folder, and there."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from keyword import iskeyword
from pathlib import Path

from titan_fast.model.names import Guesses
from titan_fast.model.spec import MAX_NAME

_DRIVE = re.compile(r"[A-Za-z]:")


def to_project_path(text: str) -> str:
    """A path as the worker finds it in the project: relative, with ``/``, without ``.`` and ``..``.

    Raises:
        ValueError: it is absolute, leads outside or names no file.
    """
    # The original was at home on Windows too: its files may say src\\a.py.
    path = text.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise ValueError(f"'{text}' is absolute, but a script is named relative to the folder of this file")
    path = posixpath.normpath(path)
    if path == ".." or path.startswith("../"):
        raise ValueError(f"'{text}' leads outside the folder of this file")
    if path == ".":
        raise ValueError(f"'{text}' names a folder, not a script")
    return path


def check_isolation(file: str) -> None:
    """Only Python scripts begin warm or fresh.

    Raises:
        ValueError: it is none.
    """
    if not file.endswith(".py"):
        what = f"'{file}' does not end in .py" if file else "there is no 'file'"
        raise ValueError(f"it goes with a Python script, but {what}")


def check_preload(names: Iterable[str], file: str, python: str, isolation: str) -> None:
    """Modules can be loaded beforehand for a Python script that the worker's own Python runs, and may begin warm.

    Raises:
        ValueError: they cannot, or a name is none of a module.
    """
    for name in names:
        if len(name) > MAX_NAME or not all(part.isidentifier() and not iskeyword(part) for part in name.split(".")):
            raise ValueError(f"'{name}' cannot be the name of a module")
    check_isolation(file)
    if python:
        raise ValueError("it goes with the worker's own Python, not with another one ('python')")
    if isolation == "fresh":
        raise ValueError("it excludes isolation: fresh (a fresh interpreter has nothing loaded)")


class Scripts:
    """What is there of the scripts of one project; each path and folder is looked at once."""

    def __init__(self, folder: Path | None, guesses: Guesses) -> None:
        self._guesses = guesses
        self._folder = folder
        """None: a text without a place, whose scripts cannot be looked for."""
        self._verdicts: dict[str, str | None] = {}
        self._listings: dict[Path, list[str]] = {}

    @property
    def paths(self) -> Iterable[str]:
        """All that were checked."""
        return self._verdicts

    def check(self, path: str) -> None:
        """Looks for the file.

        Raises:
            ValueError: there is none.
        """
        if path not in self._verdicts:
            self._verdicts[path] = self._verdict(path)
        verdict = self._verdicts[path]
        if verdict is not None:
            raise ValueError(verdict)

    def _verdict(self, path: str) -> str | None:
        if self._folder is None:
            return None
        place = self._folder / path
        if place.is_file():
            return None
        if place.is_dir():
            return f"'{path}' is a folder, not a script"
        parent = posixpath.dirname(path)
        hint = self._guesses.hint(place.name, self._listing(place.parent), posixpath.join(parent, "{}"))
        return f"there is no '{path}' in the folder of this file{hint}"

    def _listing(self, folder: Path) -> list[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = sorted(entry.name for entry in folder.iterdir())
            except OSError:
                self._listings[folder] = []
        return self._listings[folder]
