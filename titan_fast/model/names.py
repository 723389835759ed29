"""Which names and capabilities are allowed, and what somebody who mistyped one probably meant.

A task is addressed as ``12/extract`` or ``12/square[417]``, so a name cannot hold the signs that stand between
those parts. Errors are ValueErrors whose message names the rule; the caller adds the place.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable

from titan_fast.model.spec import MAX_NAME

_SIGNS = ("/", "[", "]")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, lone surrogates (no UTF-8 has them), line and paragraph separators."""
_LIKENESS = 0.6


def check_name(name: str) -> str:
    """The name itself, when a task may have it.

    Raises:
        ValueError: it is empty, too long, starts or ends with a space, or holds ``/ [ ]`` or a control character.
    """
    for sign in _SIGNS:
        if sign in name:
            raise ValueError(f"the name {name!r} contains '{sign}' (names are addressed as 12/name and 12/name[3])")
    return check_graph_name(name)


def check_graph_name(name: str) -> str:
    """The name itself, when a graph may have it: as for tasks, but ``/ [ ]`` are allowed.

    Raises:
        ValueError: it is empty, too long, starts or ends with a space, or holds a control character.
    """
    if not name:
        raise ValueError("the name is empty")
    if len(name) > MAX_NAME:
        raise ValueError(f"the name '{name[:20]}…' has {len(name):,} characters, at most {MAX_NAME} are allowed")
    # ASCII that prints is nearly every name there is: one C call instead of a look at each character.
    if not (name.isascii() and name.isprintable()):
        for char in name:
            if unicodedata.category(char) in _UNPRINTABLE:
                raise ValueError(f"the name {name!r} contains the control character U+{ord(char):04X}")
    if name[0].isspace() or name[-1].isspace():
        raise ValueError(f"the name '{name}' starts or ends with a space")
    return name


def check_worker_name(name: str) -> str:
    """The name itself, when a worker may have it: it is shown in one line everywhere, and names a folder.

    Raises:
        ValueError: as for graphs, or it holds a ``/`` or a character that does not print, or is ``.`` or ``..``.
    """
    check_graph_name(name)
    if "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} cannot be the name of a folder")
    if not name.isprintable():
        raise ValueError(f"{name!r} holds a character that does not print")
    return name


def to_task_name(text: str) -> str:
    """A legal task name that looks like ``text``; two texts may give the same one."""
    name = "".join("_" if char in _SIGNS or unicodedata.category(char) in _UNPRINTABLE else char for char in text)
    return name.strip()[:MAX_NAME].strip() or "_"


def normal_capabilities(value: str | Iterable[str | None] | None) -> tuple[str, ...]:
    """The capabilities a task requires, in their order, each once.

    Args:
        value: one, a list, or a comma-separated text. ``GENERAL`` (the original's word for "any worker"), None and
            empty texts mean none.

    Raises:
        ValueError: one of them cannot be a capability.
    """
    if value is None:
        return ()
    found: dict[str, None] = {}
    for text in [value] if isinstance(value, str) else value:
        for part in (text or "").split(","):
            tag = part.strip()
            if tag and tag.upper() != "GENERAL":
                found[check_capability(tag)] = None
    return tuple(found)


def check_capability(tag: str) -> str:
    """The tag itself, when a worker may have it.

    Raises:
        ValueError: it is empty, too long, or holds a comma, a space or a control character.
    """
    if not tag:
        raise ValueError("a capability is empty")
    if len(tag) > MAX_NAME:
        raise ValueError(f"the capability '{tag[:20]}…' has {len(tag):,} characters, at most {MAX_NAME} are allowed")
    for char in tag:
        if char == "," or char.isspace() or unicodedata.category(char) in _UNPRINTABLE:
            raise ValueError(f"the capability {tag!r} contains {char!r}")
    return tag


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate somebody who typed ``word`` probably meant, or None. Linear in the candidates."""
    candidates = list(candidates)
    folded = _folded(word)
    for candidate in candidates:
        if _folded(candidate) == folded:
            return candidate
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=_LIKENESS)
    return matches[0] if matches else None


def _folded(word: str) -> str:
    return word.casefold().replace("-", "").replace("_", "").replace(" ", "")


class Guesses:
    """What was meant, for the mistakes of one file; after so many names compared it stops guessing, so that a large
    file that is all wrong is told in linear time."""

    def __init__(self, budget: int = 300_000) -> None:
        self._budget = budget

    def hint(self, word: str, candidates: Collection[str], pattern: str = "{}", but: str | None = None) -> str:
        """`` (did you mean 'needs'?)``, or nothing when no candidate is near.

        Args:
            word: what was written.
            candidates: what could have been.
            pattern: how the answer is shown, ``{}`` being the candidate.
            but: a candidate that makes no sense here.
        """
        if self._budget <= 0:
            return ""
        self._budget -= len(candidates)
        match = closest(word, candidates if but is None else [each for each in candidates if each != but])
        return "" if match is None else f" (did you mean '{pattern.replace('{}', match)}'?)"
