"""`.gitignore` patterns, read as git reads them: the last pattern that fits says it, folders before what is in them.

Our own, though `pathspec` is well kept: it asks about whole paths and must guess which pattern meant a folder, which
answers `*`, `!*/`, `!*.py` otherwise than git (its issues 129 and 137) and otherwise in each release, while an archive
must be the same bytes for everybody. Walking from the outside in, as git does, needs no guess. git is the judge in
the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t-\r ",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


class _Pattern(msgspec.Struct, frozen=True):
    """A line of an ignore file."""

    fits: re.Pattern[str]
    is_for_names: bool
    """It holds no ``/`` inside: it is about the name at any depth, not about the path."""
    is_for_folders: bool
    is_negated: bool


class IgnoreFile:
    """The patterns of one file, for the folder it lies in."""

    def __init__(self, lines: Iterable[str]) -> None:
        read = (_read(line) for line in lines)
        self._patterns = [pattern for pattern in read if pattern is not None]
        self._patterns.reverse()

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """True: ignored; False: not ignored after all (``!name``); None: no pattern fits.

        Args:
            path: relative to the file's folder, with ``/``. The folders it is in must not be ignored themselves:
                nothing below an ignored folder can be had back.
            is_folder: whether it is a folder, which a link to one is not.
        """
        name = path.rpartition("/")[2]
        for pattern in self._patterns:
            if pattern.is_for_folders and not is_folder:
                continue
            if pattern.fits.fullmatch(name if pattern.is_for_names else path):
                return not pattern.is_negated
        return None


def _read(line: str) -> _Pattern | None:
    line = line.removesuffix("\n").removesuffix("\r")
    if line.startswith("#"):
        return None
    text = line.rstrip(" ")
    if (len(text) - len(text.rstrip("\\"))) % 2 and len(text) < len(line):
        text += " "
    is_negated = text.startswith("!")
    text = text.removeprefix("!")
    is_for_folders = text.endswith("/")
    text = text.removesuffix("/")
    is_for_names = "/" not in text
    source = _to_regex(text.removeprefix("/"))
    if not text or source is None:
        return None
    return _Pattern(re.compile(source, re.DOTALL), is_for_names, is_for_folders, is_negated)


def _to_regex(text: str) -> str | None:
    """The regular expression of a pattern; None for one that can fit nothing."""
    parts = []
    here = 0
    while here < len(text):
        char = text[here]
        if char == "*":
            end = here
            while end < len(text) and text[end] == "*":
                end += 1
            # Two stars are any number of folders only where they stand alone between slashes.
            alone = end - here > 1 and text[here - 1 : here] in ("", "/") and text[end : end + 1] in ("", "/")
            if alone and end < len(text):
                parts.append("(?:.*/)?")
                end += 1
            else:
                parts.append(".*" if alone else "[^/]*")
            here = end
        elif char == "?":
            parts.append("[^/]")
            here += 1
        elif char == "[":
            found = _class_to_regex(text, here + 1)
            if found is None:
                return None
            part, here = found
            parts.append(part)
        else:
            if char == "\\":
                here += 1
                if here == len(text):
                    return None
            parts.append(re.escape(text[here]))
            here += 1
    return "".join(parts)


def _class_to_regex(text: str, here: int) -> tuple[str, int] | None:
    """What stands between brackets, and where it ends; None when it does not, or names no class."""
    is_negated = text[here : here + 1] in ("!", "^")
    here += is_negated
    members: list[str] = []
    last = ""
    """The character before, where a range may begin."""
    start = here
    while True:
        char = text[here : here + 1]
        if not char:
            return None
        if char == "]" and here > start:
            break
        if text.startswith("[:", here):
            end = text.find("]", here + 2)
            if end < 0:
                return None
            name = text[here + 2 : end]
            if name.endswith(":"):
                if name[:-1] not in _POSIX:
                    return None
                members.append(_POSIX[name[:-1]])
                here, last = end + 1, ""
                continue
        if char == "-" and last and text[here + 1 : here + 2] not in ("", "]"):
            here += 1
            char = text[here]
            if char == "\\":
                here += 1
                char = text[here : here + 1]
                if not char:
                    return None
            if last <= char:
                members.append(f"{re.escape(last)}-{re.escape(char)}")
            here, last = here + 1, ""
            continue
        if char == "\\":
            here += 1
            char = text[here : here + 1]
            if not char:
                return None
        members.append(re.escape(char))
        here, last = here + 1, char
    inside = "".join(members)
    if is_negated:
        return (f"(?!/)[^{inside}]" if inside else "[^/]"), here + 1
    return (f"(?!/)[{inside}]" if inside else "(?!)"), here + 1
