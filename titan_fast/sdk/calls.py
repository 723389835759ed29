"""Each call once: what is sent and what the answer means. `Client` carries them out blocking; an async client can
carry out the same objects with ``await``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from titan_fast.errors import InvalidUsage
from titan_fast.ids import TaskId, parse_task_id
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.messages import Message

T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request with one answer."""

    message: Message
    parse: Callable[[Incoming], T]
    attachments: tuple[bytes, ...] = ()


class Stream(msgspec.Struct, Generic[T], frozen=True):
    """One request with many answers; ``is_last`` tells the final one."""

    message: Message
    parse: Callable[[Incoming], T]
    is_last: Callable[[T], bool]


def _message(incoming: Incoming):  # type: ignore[no-untyped-def]
    return incoming.message


def task_id(text: str | int) -> TaskId:
    """``12``, ``12/extract``, ``12/square[417]``, ``last`` or ``last/extract``.

    Raises:
        InvalidUsage: it is none of these.
    """
    found = parse_task_id(str(text))
    if found is None:
        raise InvalidUsage(f"'{text}' names no run or task", hint="write 12, 12/extract, 12/square[417] or last")
    return found


def _parts(target: TaskId) -> tuple[int, str, int]:
    return target.run or 0, target.task or "", -1 if target.member is None else target.member


def submit(graph: GraphSpec, payloads: tuple[bytes, ...]) -> Call[int]:
    return Call(msg.Submit(graph=graph), lambda incoming: _message(incoming).run, payloads)


def cancel(target: TaskId) -> Call[int]:
    return Call(msg.Cancel(*_parts(target)), lambda incoming: _message(incoming).run)


def retry(target: TaskId) -> Call[int]:
    return Call(msg.Retry(*_parts(target)), lambda incoming: _message(incoming).run)


def watch(target: TaskId, progress: bool) -> Stream[msg.Update]:
    return Stream(msg.Watch(*_parts(target), progress), _message, lambda update: update.final)


def list_page(what: str, run: int = 0, state: str = "", cursor: str = "", limit: int = 100) -> Call[msg.Listed]:
    return Call(msg.List(what, run, state, cursor, limit), _message)


def show(target: TaskId, cursor: str = "", limit: int = 1000) -> Call[msg.Shown]:
    return Call(msg.Show(*_parts(target), cursor, limit), _message)


def explain(target: TaskId) -> Call[msg.Explained]:
    return Call(msg.Explain(*_parts(target)), _message)


class Piece(msgspec.Struct, frozen=True):
    """A piece of a task's output; ``dropped`` bytes before it were not kept."""

    data: bytes
    dropped: int
    final: bool
    state: str
    attempt: int


def logs(target: TaskId, follow: bool, tail: int, attempt: int) -> Stream[Piece]:
    def parse(incoming: Incoming) -> Piece:
        logged = _message(incoming)
        data = incoming.attachments[0] if incoming.attachments else b""
        return Piece(data, logged.dropped, logged.final, logged.state, logged.attempt)

    run, task, member = _parts(target)
    return Stream(msg.Logs(run, task, member, attempt, follow, tail), parse, lambda piece: piece.final)


def stats() -> Call[msg.Stated]:
    return Call(msg.Stats(), _message)


def blob_size(digest: str) -> Call[int]:
    return Call(msg.BlobAsk(digest), lambda incoming: _message(incoming).size)


def blob_put(digest: str, offset: int, size: int, data: bytes) -> Call[int]:
    put = msg.BlobPut(digest=digest, offset=offset, size=size)
    return Call(put, lambda incoming: _message(incoming).size, (data,))
