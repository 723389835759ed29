"""Each call once: what is sent, what the answer means, and how to go on after a lost connection. `Client` carries them
out blocking; an async client can carry out the same objects with ``await``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from titan_fast.errors import InvalidUsage
from titan_fast.ids import TaskId, parse_task_id
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.protocol.messages import Message

T = TypeVar("T")

MANY = 1000
"""Rows that a page of a long listing is asked for."""
MAX_KEY = 512
"""Characters of the name of a key or an artifact."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]").search
"""What moves a cursor, ends a line or turns the direction of writing."""
_CURSOR = re.compile("[0-9]{0,18}").fullmatch
_LOGS_CURSOR = re.compile(r"([0-9]{1,19}\.[0-9]{1,19})?").fullmatch


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request with one answer. It may be sent again whenever the answer is missing."""

    message: Message
    parse: Callable[[Incoming], T]
    attachments: tuple[bytes, ...] = ()
    then: str = ""
    """The command to use when the master went away and did not come back."""

    @property
    def resume(self) -> None:
        """Without its answer it is sent as it was."""

    def ends_with(self, incoming: Incoming) -> bool:
        return True


class Stream(msgspec.Struct, Generic[T], frozen=True):
    """One request with many answers; ``is_last`` tells the final one."""

    message: Message
    parse: Callable[[Incoming], T]
    is_last: Callable[[T], bool]
    resume: Callable[[Message, Incoming], Message] | None = None
    """(request, an answer to it) -> the request that asks for what follows; None: the same request."""
    then: str = ""
    attachments: tuple[bytes, ...] = ()

    def ends_with(self, incoming: Incoming) -> bool:
        """Nothing follows this answer."""
        return self.is_last(self.parse(incoming))


class Page(Protocol):
    """A part of a listing."""

    @property
    def next(self) -> str:
        """Where the page after it begins; empty: it is the last one."""


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


# ---------------------------------------------------------------- runs and tasks


def submit(graph: GraphSpec, payloads: tuple[bytes, ...]) -> Call[int]:
    then = "titan-fast ls shows whether it was accepted"
    return Call(msg.Submit(graph=graph), lambda incoming: _message(incoming).run, payloads, then)


def submit_and_watch(graph: GraphSpec, payloads: tuple[bytes, ...]) -> Stream[msg.Accepted | msg.Update]:
    """The number of the run, then its outcome; the outcome alone when it comes as soon."""

    def resume(asked: Message, incoming: Incoming) -> Message:
        said = _message(incoming)
        return msg.Watch(said.run) if isinstance(said, msg.Accepted) else asked

    then = "titan-fast ls shows whether it was accepted"
    message = msg.Submit(graph=graph, watch=True)
    return Stream(message, _message, lambda said: isinstance(said, msg.Update) and said.final, resume, then, payloads)


def submit_and_collect(graph: GraphSpec, payloads: tuple[bytes, ...]) -> Stream[Incoming]:
    """Of a graph of functions: what they gave, as it comes, some of it perhaps twice; the outcome last."""

    def resume(asked: Message, incoming: Incoming) -> Message:
        return msg.Watch(_message(incoming).run, results=True)

    def is_last(incoming: Incoming) -> bool:
        return isinstance(incoming.message, msg.Update)

    then = "titan-fast ls shows what became of it"
    message = msg.Submit(graph=graph, watch=True, results=True)
    return Stream(message, lambda incoming: incoming, is_last, resume, then, payloads)


def cancel(target: TaskId, only_waiting: bool = False) -> Call[int]:
    message = msg.Cancel(*_parts(target), only_waiting=only_waiting)
    return Call(message, lambda incoming: _message(incoming).run, then=f"titan-fast cancel {target}")


def retry(target: TaskId) -> Call[int]:
    then = f"titan-fast retry {target}"
    return Call(msg.Retry(*_parts(target)), lambda incoming: _message(incoming).run, then=then)


def drop(target: TaskId) -> Call[int]:
    then = f"titan-fast dlq drop {target}"
    return Call(msg.Drop(*_parts(target)), lambda incoming: _message(incoming).run, then=then)


def watch(target: TaskId, progress: bool) -> Stream[msg.Update]:
    """``target`` names its run: the newest one may be another after a lost connection."""
    then = f"titan-fast wait {target}"
    return Stream(msg.Watch(*_parts(target), progress), _message, lambda update: update.final, then=then)


def list_page(what: str, run: int = 0, state: str = "", cursor: str = "", limit: int = 100) -> Call[msg.Listed]:
    return Call(msg.List(what, run, state, _page(cursor), limit), _message)


def runs_page(state: str, cursor: str, limit: int | None, got: int) -> Call[msg.Listed]:
    """The next page of runs, when there were ``got`` on those before it and ``limit`` are wanted."""
    return list_page("runs", state=state, cursor=cursor, limit=MANY if limit is None else min(limit - got, MANY))


def tasks_after(target: TaskId, state: str, limit: int) -> Call[msg.Listed]:
    """The first page of the tasks behind this one; the others by cursor."""
    run, task, member = _parts(target)
    asked = msg.List("tasks", run, state, limit=limit, task=task, member=member, critical=("task", "member"))
    return Call(asked, _message)


def show(target: TaskId, cursor: str = "", limit: int = 1000) -> Call[msg.Shown]:
    return Call(msg.Show(*_parts(target), _page(cursor), limit), _message)


def _page(cursor: str) -> str:
    if _CURSOR(cursor) is None:
        raise InvalidUsage(f"'{cursor}' is no cursor", hint="one stands beside the page before it, as its `next`")
    return cursor


def explain(target: TaskId) -> Call[msg.Explained]:
    return Call(msg.Explain(*_parts(target)), _message)


class Piece(msgspec.Struct, frozen=True):
    """A piece of a task's output; ``dropped`` bytes before it were not kept."""

    data: bytes
    dropped: int
    final: bool
    state: str
    attempt: int
    fence: int
    offset: int
    """Where it begins in the output of the attempt with that fence."""

    @property
    def shown(self) -> bytes:
        """For people: with a line before it where something is missing."""
        return (
            b"\n[\xe2\x80\xa6 %d bytes not kept \xe2\x80\xa6]\n%b" % (self.dropped, self.data)
            if self.dropped
            else self.data
        )

    def to_cursor(self, read: int) -> str:
        """Where to go on when so much of it has been read."""
        return f"{self.fence}.{self.offset + read}"


def logs(target: TaskId, follow: bool, tail: int, attempt: int, cursor: str = "") -> Stream[Piece]:
    """``target`` names its run, as for `watch`. ``cursor``: of `Piece.to_cursor`. Raises InvalidUsage."""
    if _LOGS_CURSOR(cursor) is None:
        raise InvalidUsage(f"'{cursor}' is no cursor", hint="one stands beside the page before it, as its `next`")
    fence, _, offset = cursor.partition(".")

    def parse(incoming: Incoming) -> Piece:
        logged = _message(incoming)
        return Piece(
            _data(incoming),
            logged.dropped,
            logged.final,
            logged.state,
            logged.attempt,
            logged.fence,
            logged.offset,
        )

    def resume(asked: Message, incoming: Incoming) -> Message:
        logged = _message(incoming)
        read = logged.offset + len(_data(incoming))
        return msgspec.structs.replace(asked, fence=logged.fence, offset=read, tail=-1)

    run, task, member = _parts(target)
    message = msg.Logs(run, task, member, attempt, follow, tail, int(fence or 0), int(offset or 0))
    then = f"titan-fast logs {'-f ' if follow else ''}{target}"
    return Stream(message, parse, lambda piece: piece.final, resume, then)


def _data(incoming: Incoming) -> bytes:
    return incoming.attachments[0] if incoming.attachments else b""


class Given(msgspec.Struct, frozen=True):
    """A page of results. ``missing``: (place, name, state, reason) of those that gave none."""

    parts: tuple[bytes, ...]
    pickled: bool
    missing: tuple[tuple[int, str, str, str], ...]
    next: str


def results(target: TaskId, cursor: str = "") -> Call[Given]:
    """``target`` names its run and its task."""

    def parse(incoming: Incoming) -> Given:
        given = _message(incoming)
        missing = tuple((each.place, each.name, each.state, each.reason) for each in given.missing)
        return Given(incoming.attachments, given.pickled, missing, given.next)

    run, task, member = _parts(target)
    return Call(msg.Results(run, task, member, _page(cursor)), parse)


# ---------------------------------------------------------------- blobs


def blob_size(digest: str) -> Call[int]:
    return Call(msg.BlobAsk(digest), lambda incoming: _message(incoming).size)


def blob_get(digest: str, offset: int) -> Call[bytes]:
    return Call(msg.BlobGet(digest, offset), _data)


# ---------------------------------------------------------------- data


class Entry(msgspec.Struct, frozen=True):
    """One key."""

    name: str
    value: bytes
    revision: int
    """Of its last change; `Keys.set` can expect it."""
    expires_at: float
    """Seconds since 1970; 0: never."""


def kv_get(name: str) -> Call[Entry]:
    def parse(incoming: Incoming) -> Entry:
        found = _message(incoming)
        return Entry(found.name, _data(incoming), found.revision, found.expires_at)

    return Call(msg.KvGet(name=_checked(name, "key")), parse)


def kv_set(name: str, value: bytes | None, expect: int | None, ttl: float) -> Call[int]:
    """``value`` None takes the key away, whatever its name."""
    name = _checked(name, "key") if value is None else _new(name, "key")
    message = msg.KvSet(name=name, expect=-1 if expect is None else expect, ttl=ttl)
    attachments = () if value is None else (value,)
    return Call(message, lambda incoming: _message(incoming).revision, attachments, f"titan-fast kv get {name}")


def kv_list(prefix: str, after: str = "", limit: int = 1000) -> Call[msg.KvListed]:
    return Call(msg.KvList(prefix=prefix, after=after, limit=limit), _message)


def artifact_publish(name: str, digest: str) -> Call[None]:
    message = msg.ArtifactPublish(name=_new(name, "artifact"), digest=digest)
    return Call(message, lambda incoming: None, then="titan-fast artifact ls shows whether it was published")


def artifact_find(name: str) -> Call[msg.ArtifactFile]:
    message = msg.ArtifactList(name=_checked(name, "artifact"))
    return Call(message, lambda incoming: _message(incoming).artifacts[0])


def artifact_list(prefix: str, after: str = "", limit: int = 1000) -> Call[msg.ArtifactListed]:
    return Call(msg.ArtifactList(prefix=prefix, after=after, limit=limit), _message)


def _new(name: str, what: str) -> str:
    """A name that something is to have from now on: what shows it must not be led astray by it."""
    if _CONTROL(_checked(name, what)):
        raise InvalidUsage(f"the name {name!a} has control characters", hint="choose one that can be shown")
    return name


def _checked(name: str, what: str) -> str:
    if not 0 < len(name) <= MAX_KEY:
        raise InvalidUsage(f"the name of {'an' if what[0] in 'a' else 'a'} {what} has 1 to {MAX_KEY} characters")
    return name


# ---------------------------------------------------------------- care


def stats() -> Call[msg.Stated]:
    return Call(msg.Stats(), _message)


def prune(keep_runs: int | None, older_than: float | None) -> Call[int]:
    """None: as the master's settings say. ``older_than`` in seconds."""
    message = msg.Prune(
        keep_runs=-1 if keep_runs is None else keep_runs, older_than=-1.0 if older_than is None else older_than
    )
    return Call(message, lambda incoming: _message(incoming).runs, then="titan-fast prune")


def backup() -> Call[msg.BackedUp]:
    return Call(msg.Backup(), _message, then="titan-fast backup FILE")
