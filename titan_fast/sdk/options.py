"""What the options of a task may be, for `Graph.task`, `Graph.call` and `Graph.map`: a value of another kind is refused
with the names of the task and of the option. What the values mean is not known here.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from titan_fast.errors import InvalidGraph
from titan_fast.model.spec import MAX_RETRIES, Affinity, Retry

_SHOWN = 60
"""Characters of a wrong value that are repeated."""


class _Kind(NamedTuple):
    what: str
    usual: tuple[type, ...]
    """Exact types that fit: one look, for nearly every value there is."""
    fits: Callable[[Any], bool] = lambda value: False
    """What else does."""


def _is_list(value: object) -> bool:
    """One may go through it, once at least."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


_DURATION = _Kind("a duration, such as 90 or '1h30m'", (int, float, str), _is_number)
_PATH = _Kind("a path", (str, type(None)), lambda value: isinstance(value, os.PathLike))
_TEXT = _Kind("a text", (str,), _is_text)
_TEXTS = _Kind("a text or a list of texts", (str, list, tuple), _is_list)

KINDS: dict[str, _Kind] = {
    "name": _TEXT,
    "run": _Kind("shell text, or a list of program and arguments", (str, list, tuple, type(None)), _is_list),
    "file": _PATH,
    "project": _PATH,
    "args": _Kind("a list of arguments, or a text", (tuple, list, str), _is_list),
    "python": _TEXT,
    "isolation": _Kind("'warm' or 'fresh'", (str, type(None))),
    "preload": _TEXTS,
    "items": _Kind("a list of items", (list, tuple, range), lambda value: isinstance(value, Iterable)),
    "needs": _Kind("a task or a list of tasks", (tuple, list, str), _is_list),
    "requires": _Kind("a capability or a list of them", (tuple, list, str, type(None)), _is_list),
    "priority": _Kind("a whole number", (int,), _is_whole),
    "affinity": _Kind("True, a text or an Affinity", (type(None), bool, str, Affinity), _is_text),
    "delay": _DURATION,
    "timeout": _DURATION,
    "grace": _DURATION,
    "retries": _Kind("a whole number", (int,), _is_whole),
    "retry": _Kind("a Retry, such as Retry(max=3)", (type(None), Retry)),
    "when": _TEXT,
    "env": _Kind("a mapping of names to values", (type(None), dict), lambda value: isinstance(value, Mapping)),
    "matrix": _Kind("a mapping of names to lists", (type(None), dict), lambda value: isinstance(value, Mapping)),
}
"""Every option there is."""

_BOUNDS = {"priority": (-(1 << 31), (1 << 31) - 1), "retries": (0, MAX_RETRIES)}
_ELEMENTS = {"requires": str | None, "preload": str}
"""Lists, and what may be in them."""


def check_options(owner: str, **options: object) -> None:
    """
    Args:
        owner: whose they are, as an error names it.

    Raises:
        InvalidGraph: one is of another kind than it can be, or out of its bounds.
    """
    for option, value in options.items():
        kind = KINDS[option]
        if type(value) not in kind.usual and not kind.fits(value):
            raise _wrong(owner, option, f"{_shown(value)} is not {kind.what}")
        if option in _BOUNDS:
            least, most = _BOUNDS[option]
            if not least <= operator.index(value) <= most:  # type: ignore[arg-type]
                raise _wrong(owner, option, f"{_shown(value)} is not between {least:,} and {most:,}")
        elif option in _ELEMENTS and isinstance(value, list | tuple):
            for item in value:
                if not isinstance(item, _ELEMENTS[option]):
                    raise _wrong(owner, option, f"{_shown(item)} is not a text")
        elif isinstance(value, Retry | Affinity):
            _check_fields(owner, option, value)


def _check_fields(owner: str, option: str, value: Retry | Affinity) -> None:
    """Nobody looks at the fields of these while they are made."""
    try:
        msgspec.convert(msgspec.to_builtins(value), type(value))
    except (msgspec.ValidationError, TypeError) as error:
        raise _wrong(owner, option, str(error).replace("$.", "").replace("`", "'")) from None


def _wrong(owner: str, option: str, what: str) -> InvalidGraph:
    return InvalidGraph(f"{owner}: {option}: {what}", field=option)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
