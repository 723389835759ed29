"""Functions on their way to the workers, and what they gave on its way back: pickles, which no master looks into.

Classes and functions that a worker could not import (of ``__main__``, of notebooks, of modules that are not installed)
travel by value. What stands for a parent in a pickle is its place among the arguments (`Work.arguments`), whether what
it gave is a pickle, and whether it is an array.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import sysconfig
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from types import ModuleType
from typing import Any

import cloudpickle

from titan_fast.errors import FunctionRaised, InvalidGraph
from titan_fast.model.spec import MAX_MEMBERS, MAX_PAYLOAD

PROTOCOL = 5
StandIn = Callable[[object], tuple[int, bool, bool] | None]
"""What stands for an object in a pickle; None: the object itself."""

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
_MAX_BLOB = 0xFFFFFFFF
_registry = threading.Lock()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, stand_in: StandIn) -> None:
        super().__init__(file, PROTOCOL)
        self._stand_in = stand_in

    def persistent_id(self, item: object) -> tuple[int, bool, bool] | None:
        return self._stand_in(item)


def name_of(function: Callable[..., object]) -> str:
    """What it is called; a lambda ``lambda``."""
    inner: Any = function
    while not hasattr(inner, "__name__") and hasattr(inner, "func"):
        inner = inner.func  # functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if name == "<lambda>" else str(name).strip("<>")


def pickled_function(task: str, function: Callable[..., object], ships_project: bool) -> bytes:
    """Raises InvalidGraph: it cannot be sent."""
    with _by_value(function, ships_project), _refusing(task, f"the function {name_of(function)!r}"):
        return cloudpickle.dumps(function, PROTOCOL)  # type: ignore[no-any-return]


def pickled_call(task: str, args: tuple[object, ...], kwargs: dict[str, object], stand_in: StandIn) -> bytes:
    """The payload of one call. Raises InvalidGraph: an argument cannot be sent."""
    return to_blob([pickled_arguments(task, args, kwargs, stand_in)])


def pickled_arguments(
    task: str, args: tuple[object, ...], kwargs: dict[str, object], stand_in: StandIn = lambda item: None
) -> bytes:
    """One part of a `to_blob`. Raises as `pickled_call`."""
    if _PLAIN.issuperset(map(type, args)) and _PLAIN.issuperset(map(type, kwargs.values())):
        part = pickle.dumps((args, kwargs), PROTOCOL)
    else:
        with _refusing(task, "an argument"):
            part = _dumps((args, kwargs), stand_in)
    if len(part) > MAX_PAYLOAD:
        raise _too_long(task, len(part))
    return part


def pickled_items(task: str, items: Iterable[object], stand_in: StandIn) -> tuple[int, bytes]:
    """(how many, their payloads). Raises InvalidGraph: there are none, too many, or one cannot be sent."""
    parts: list[bytes] = []
    dumps = pickle.dumps
    for item in items:
        if type(item) in _PLAIN:
            parts.append(dumps(item, PROTOCOL))
            continue
        with _refusing(task, f"item {len(parts)}"):
            parts.append(_dumps(item, stand_in))
    if not parts:
        raise InvalidGraph(f"task '{task}': there are no items to map")
    if len(parts) > MAX_MEMBERS:
        raise InvalidGraph(f"task '{task}': {len(parts):,} items, at most {MAX_MEMBERS:,} are allowed")
    if (longest := max(map(len, parts))) > MAX_PAYLOAD:
        raise _too_long(task, longest)
    if sum(map(len, parts)) > _MAX_BLOB:
        raise InvalidGraph(f"task '{task}': the items take more than 4 GiB", hint="map over fewer or smaller ones")
    return len(parts), to_blob(parts)


def _dumps(item: object, stand_in: StandIn) -> bytes:
    file = io.BytesIO()
    _Pickler(file, stand_in).dump(item)
    return file.getvalue()


def _too_long(task: str, length: int) -> InvalidGraph:
    return InvalidGraph(
        f"task '{task}': an item or the arguments take {length:,} bytes, at most {MAX_PAYLOAD:,} are allowed",
        hint="return it from a task, whose result may be of any size, or publish it as an artifact",
    )


def to_blob(parts: list[bytes]) -> bytes:
    """(count + 1) big-endian u32 offsets, then the parts."""
    if len(parts) == 1:
        return b"".join((bytes(4), len(parts[0]).to_bytes(4, "big"), *parts))
    offsets = array("I", accumulate(map(len, parts), initial=0))
    if sys.byteorder == "little":
        offsets.byteswap()
    return b"".join((offsets.tobytes(), *parts))


@contextmanager
def _refusing(task: str, what: str) -> Iterator[None]:
    try:
        yield
    except InvalidGraph:
        raise
    except Exception as error:  # whatever its own methods raise
        raise InvalidGraph(
            f"task '{task}': {what} cannot be sent to a worker: {type(error).__name__}: {error}",
            hint="it has to be picklable: open files, sockets, locks and generators are not",
        ) from error


# ---------------------------------------------------------------- what workers cannot import


@contextmanager
def _by_value(function: object, ships_project: bool) -> Iterator[None]:
    """A module that is not installed, and comes with no project, is sent along with the function."""
    module = None if ships_project else _own_module(function)
    if module is None:
        yield
        return
    with _registry:
        is_new = module.__name__ not in cloudpickle.list_registry_pickle_by_value()
        if is_new:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            if is_new:
                cloudpickle.unregister_pickle_by_value(module)


def _own_module(function: object) -> ModuleType | None:
    """The module of a function, where workers cannot have it: a file that nobody installed."""
    root = (getattr(function, "__module__", None) or "").partition(".")[0]
    module = sys.modules.get(root)
    if module is None or root in ("__main__", "titan_fast"):
        return None
    file = getattr(module, "__file__", None)
    places = tuple(getattr(module, "__path__", ())) if file is None else (file,)
    return None if _is_installed(places) else module


@functools.lru_cache(1000)
def _is_installed(places: tuple[str, ...]) -> bool:
    """Or part of the interpreter itself, and so nowhere."""
    return not places or any(os.path.realpath(place).startswith(_installations()) for place in places)


@functools.cache
def _installations() -> tuple[str, ...]:
    paths = (sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple({os.path.realpath(path) + os.sep for path in paths if path})


# ---------------------------------------------------------------- what came back


def returned(data: bytes) -> Any:
    """What a function returned. Raises what its classes raise when they are not here."""
    return pickle.loads(data)


def raised(left: bytes) -> tuple[str, BaseException | None]:
    """(traceback, exception) of what a failed function left; empty and None when it left none. An exception that
    cannot be had itself is a `FunctionRaised`."""
    _, has_more, data = left.partition(b"\0")
    if not has_more:
        return "", None
    file = io.BytesIO(data)
    try:
        text, pickled = pickle.load(file)
    except Exception:  # written by another Python, say
        return "", None
    try:
        error = pickle.loads(pickled) if pickled else None
    except Exception:  # its class is not here, or does not take its own arguments back
        error = None
    if isinstance(error, BaseException):
        return str(text), error
    try:
        name, message = pickle.load(file)
    except Exception:  # a worker from before it was told
        return str(text), None
    return str(text), FunctionRaised(str(name), str(message))
