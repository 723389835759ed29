"""Between facts and the rows of a store: what of a fact is looked for, and what is only kept. Pure; knows no database.

A fact is stored under its kind and version, which together stand for its fields *and their defaults*: a field is only
ever added, with a default; a default that changes, or a limit that shrinks, is a new version. What history alone wants
of attempts (worker, times, results) is cut into pieces that lie within one block of tasks, so that a page of an array
is a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import msgspec
import orjson

from titan_fast.errors import StoreFailed, StoreTooNew
from titan_fast.master.store.base import AttemptRow, RunHead
from titan_fast.model.spec import GraphSpec
from titan_fast.scheduler.facts import (
    FACTS,
    KEYED,
    ArtifactPublished,
    AttemptsEnded,
    AttemptsRunning,
    CancelAsked,
    EndedHead,
    Fact,
    Key,
    KvChanged,
    RunAccepted,
    RunEnded,
    RunsForgotten,
    TasksDropped,
    TasksReopened,
    TasksSettled,
    WorkerGone,
    WorkerRegistered,
    head_of,
)

BLOCK = 1024
"""Tasks whose outcomes are stored next to each other."""
PIECE = 1 << 20
"""Bytes of results in one piece, about: what is read to get at one of them."""
LARGE = 256 << 10
"""Bytes of a graph and its payloads beyond which they become a file."""
SMALL = 64
"""Tasks of a run whose outcomes are not worth folding when it has ended."""
MAX_BATCH = 64 << 20
"""Bytes of facts that travel to the database in one statement, about; its own limit is a billion."""

RunFact: TypeAlias = AttemptsRunning | TasksSettled | CancelAsked | TasksReopened | TasksDropped | RunEnded
Happened: TypeAlias = EndedHead | RunFact
Stored: TypeAlias = Happened | RunAccepted | WorkerRegistered | KvChanged | ArtifactPublished

T = TypeVar("T")

_encode = msgspec.msgpack.encode


def _field_default(cls: type[Fact], name: str) -> Any:
    return next(field.default for field in msgspec.structs.fields(cls) if field.name == name)


KIND: dict[type, str] = {cls: str(cls.__struct_config__.tag) for cls in FACTS}
NEWEST = {kind: int(_field_default(cls, "version")) for cls, kind in KIND.items()}
"""The version of each kind that this program writes; it reads all up to that."""
_DECODERS: dict[str, msgspec.msgpack.Decoder[Stored]] = {
    kind: msgspec.msgpack.Decoder(EndedHead if cls is AttemptsEnded else cls) for cls, kind in KIND.items()
}


def decode(kind: str, version: int, data: bytes) -> Stored:
    """A fact as it was stored; of an `AttemptsEnded` its head.

    Raises:
        StoreTooNew: a kind or version this program does not know. StoreFailed: damaged.
    """
    if version > NEWEST.get(kind, 0):
        raise StoreTooNew(
            f"the state holds '{kind}' in version {version}, and this program knows "
            + (f"version {NEWEST[kind]} of it" if kind in NEWEST else "nothing of that kind"),
            hint="install the titan-fast that wrote it, or a newer one",
        )
    try:
        return _DECODERS[kind].decode(data)
    except msgspec.MsgspecError as error:
        raise StoreFailed(f"a '{kind}' in the state cannot be read: {error}", hint="restore a backup") from None


# ---------------------------------------------------------------- what attempts did


class Detail(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The columns of an `AttemptsEnded` that a restart does not read. A column of one value for all rows is that one
    value; ``size`` are the bytes of each result."""

    index: list[int]
    generation: list[int]
    attempt: list[int]
    fence: list[int]
    worker: list[str]
    state: list[str]
    reason: list[str]
    code: list[int]
    started: list[int]
    duration: list[int]
    size: list[int]


_COLUMNS = Detail.__struct_fields__[:-1]
"""Those that are an `AttemptsEnded`'s own; of these all but the first are an `AttemptRow`'s."""
columns_of: Callable[[AttemptsEnded], tuple[list[Any], ...]] = attrgetter(*_COLUMNS)


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Rows of one fact whose tasks lie in one block, in order."""

    block: int
    first: int
    last: int
    detail: bytes
    body: bytes


_decode_detail = msgspec.msgpack.Decoder(Detail).decode


def pieces(fact: AttemptsEnded) -> Iterator[Piece]:
    """Every row of the fact, once; the rows of a task keep their order."""
    if len(fact.index) == 1:
        yield _only_piece(fact)
        return
    for row, count in fact.stretches:
        end = row + count
        while row < end:
            stop = min(end, row + BLOCK - fact.index[row] % BLOCK)
            yield from _pieces(fact, range(row, stop))
            row = stop
    blocks: dict[int, list[int]] = {}
    for row in fact.rows_beside():
        blocks.setdefault(fact.index[row] // BLOCK, []).append(row)
    for rows in blocks.values():
        yield from _pieces(fact, rows)


def _pieces(fact: AttemptsEnded, rows: Sequence[int]) -> Iterator[Piece]:
    """Of rows in one block: one piece, or more when their results are large."""
    size = list(map(len, _cut(fact.result, rows)))
    if sum(size) <= PIECE:
        yield _piece(fact, rows, size)
        return
    begin = held = 0
    for at, more in enumerate(size):
        if held and held + more > PIECE:
            yield _piece(fact, rows[begin:at], size[begin:at])
            begin, held = at, 0
        held += more
    yield _piece(fact, rows[begin:], size[begin:])


def _cut(column: list[T], rows: Sequence[int]) -> list[T]:
    """A slice is a tenth of the work, and what nearly all rows are."""
    return column[rows.start : rows.stop] if isinstance(rows, range) else [column[row] for row in rows]


def _squeezed(column: list[Any]) -> list[Any]:
    return column[:1] if column[0] == column[-1] and column.count(column[0]) == len(column) else column


def _piece(fact: AttemptsEnded, rows: Sequence[int], size: list[int]) -> Piece:
    index = _cut(fact.index, rows)
    detail = Detail(
        index,
        _squeezed(_cut(fact.generation, rows)),
        _squeezed(_cut(fact.attempt, rows)),
        _cut(fact.fence, rows),
        _squeezed(_cut(fact.worker, rows)),
        _squeezed(_cut(fact.state, rows)),
        _squeezed(_cut(fact.reason, rows)),
        _squeezed(_cut(fact.code, rows)),
        _squeezed(_cut(fact.started, rows)),
        _squeezed(_cut(fact.duration, rows)),
        _squeezed(size),
    )
    first, last = min(index), max(index)
    results: list[bytes] = _cut(fact.result, rows)
    return Piece(first // BLOCK, first, last, _encode(detail), b"".join(results))


def _only_piece(fact: AttemptsEnded) -> Piece:
    """The same of a fact of one row, of which there is one for each call by itself: with nothing to cut and nothing to
    squeeze, an eighth of the work."""
    (index,), (result,) = fact.index, fact.result
    detail = Detail(
        fact.index,
        fact.generation,
        fact.attempt,
        fact.fence,
        fact.worker,
        fact.state,
        fact.reason,
        fact.code,
        fact.started,
        fact.duration,
        [len(result)],
    )
    return Piece(index // BLOCK, index, index, _encode(detail), result)


def _full(column: list[Any], count: int) -> list[Any]:
    return column * count if len(column) == 1 else column


def attempt_rows(detail: bytes, first: int, count: int) -> Iterator[tuple[int, AttemptRow]]:
    """(task, how an attempt of it ended), oldest first, of those tasks of a piece that lie in a range."""
    columns = _decode_detail(detail)
    rows = len(columns.index)
    told = zip(
        _full(columns.generation, rows),
        _full(columns.attempt, rows),
        columns.fence,
        _full(columns.worker, rows),
        _full(columns.state, rows),
        _full(columns.reason, rows),
        _full(columns.code, rows),
        _full(columns.started, rows),
        _full(columns.duration, rows),
        strict=True,
    )
    end = first + count
    for index, row in zip(columns.index, told, strict=True):
        if first <= index < end:
            yield index, AttemptRow(*row)


def place_of_result(detail: bytes, index: int) -> tuple[int, int] | None:
    """What the newest COMPLETED attempt of a task gave, in the piece's body: (where it begins, from 1, and its length);
    None: it is not in here."""
    columns = _decode_detail(detail)
    rows = len(columns.index)
    state, size = _full(columns.state, rows), _full(columns.size, rows)
    for row in reversed(range(rows)):
        if columns.index[row] == index and state[row] == "COMPLETED":
            return sum(size[:row]) + 1, size[row]
    return None


def results_in(detail: bytes, body: bytes, first: int, count: int, state: str) -> Iterator[tuple[int, bytes]]:
    """(task, what an attempt with that outcome left), oldest first, of those tasks of a piece that lie in a range."""
    columns = _decode_detail(detail)
    rows = len(columns.index)
    at, end = 0, first + count
    for index, became, size in zip(columns.index, _full(columns.state, rows), _full(columns.size, rows), strict=True):
        if first <= index < end and became == state:
            yield index, body[at : at + size]
        at += size


def joined(run: int, stored: Iterable[tuple[bytes, bytes]]) -> AttemptsEnded:
    """Pieces of a run, each (detail, body), as one fact again, to be cut into fewer."""
    fact = AttemptsEnded(0.0, run, [], [], [], [], [], [], [], [], [], [], [])
    for detail, body in stored:
        columns = _decode_detail(detail)
        rows = len(columns.index)
        for column in _COLUMNS:
            getattr(fact, column).extend(_full(getattr(columns, column), rows))
        at = 0
        for size in _full(columns.size, rows):
            fact.result.append(body[at : at + size])
            at += size
    return fact


# ---------------------------------------------------------------- what listings show


class Begun(msgspec.Struct, frozen=True, array_like=True):
    """What a listing shows of a run's beginning."""

    name: str
    submitted_at: float


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What a listing shows of a run's end."""

    state: str
    reason: str
    started_at: float
    finished_at: float
    counts: dict[str, int]


decode_begun = msgspec.msgpack.Decoder(Begun).decode
decode_ended = msgspec.msgpack.Decoder(Ended).decode


def begun(fact: RunAccepted) -> Begun:
    return Begun(fact.graph.name, fact.at)


def ended(fact: RunEnded) -> Ended:
    return Ended(fact.state, fact.reason, fact.started_at, fact.at, fact.counts)


def run_head(run: int, begin: Begun, end: Ended) -> RunHead:
    return RunHead(
        run, begin.name, end.state, end.reason, begin.submitted_at, end.started_at, end.finished_at, end.counts
    )


def dropped(facts: Iterable[object]) -> int:
    """How many tasks somebody wants to see no more as DEAD and that were not opened again since."""
    marks = bytearray()
    for fact in facts:
        if isinstance(fact, TasksDropped | TasksReopened):
            for first, count in fact.stretches:
                marks.extend(bytes(max(0, first + count - len(marks))))
                marks[first : first + count] = (b"\1" if isinstance(fact, TasksDropped) else b"\0") * count
    return marks.count(1)


def answer_of(fact: Fact) -> tuple[Key, int, int] | None:
    """(key, number in the answer, run or 0) of a fact that answered a request."""
    match fact:
        case RunAccepted() | CancelAsked() | TasksReopened() | TasksDropped() if fact.key.client:
            return fact.key, fact.run, fact.run
        case KvChanged() if fact.key.client:
            return fact.key, fact.revision, 0
        case ArtifactPublished() if fact.key.client:
            return fact.key, 0, 0
    return None


# ---------------------------------------------------------------- graphs that are files

_decode_body = msgspec.msgpack.Decoder(tuple[GraphSpec, tuple[bytes, ...]]).decode


def without_body(fact: RunAccepted) -> tuple[RunAccepted, bytes]:
    """The fact without its graph and payloads, and those as the bytes of a file."""
    name_alone = GraphSpec(fact.graph.name, ())
    return msgspec.structs.replace(fact, graph=name_alone, payloads=()), _encode((fact.graph, fact.payloads))


def with_body(fact: RunAccepted, body: bytes) -> RunAccepted:
    graph, payloads = _decode_body(body)
    return msgspec.structs.replace(fact, graph=graph, payloads=payloads)


# ---------------------------------------------------------------- a group of facts as rows


class Blobs:
    """Bytes that travel as one value; each is known by where it begins (from 1) and its length."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []

    def place(self, blob: bytes) -> tuple[int, int]:
        at = self.size + 1
        self._parts.append(blob)
        self.size += len(blob)
        return at, len(blob)

    def joined(self) -> bytes:
        # Never empty: of an empty blob SQLite cuts NULL.
        return b"".join(self._parts) or b"\0"


class Rows:
    """Rows of one table on their way: their plain values as one JSON text, their blobs cut out of the batch's one blob,
    each named by two values: where it begins (from 1) and its length."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._rows: list[list[int | float | str | None]] = []

    def add(self, *values: int | float | str | bytes | None) -> None:
        row: list[int | float | str | None] = []
        append = row.append
        for value in values:
            if isinstance(value, bytes):
                row += self._blobs.place(value)
            else:
                append(value)
        self._rows.append(row)

    def json(self) -> str:
        return orjson.dumps(self._rows).decode()


class Batch:
    """Facts, in order, as the rows they add. ``place`` of a fact is how many were before it in its commit."""

    def __init__(self) -> None:
        self.facts = 0
        self.last_run = 0
        self.revision = 0
        # Not the batch itself: with the collector off a cycle would stay, with everything that was committed.
        self._blobs = Blobs()
        self.journal = Rows(self._blobs)
        self.outcomes = Rows(self._blobs)
        self.runs = Rows(self._blobs)
        self.replies = Rows(self._blobs)
        self.bodies: dict[str, bytes] = {}
        """Files to be written first: address -> content."""
        self.recount: set[int] = set()
        """Runs whose DEAD tasks have to be counted again."""
        self.forgotten: list[int] = []
        """Runs that go when all the rows are there."""
        self._headlines: dict[int, tuple[str, int, float, bool, bytes]] = {}
        self._named: dict[tuple[str, str], tuple[int, Fact | None]] = {}

    @property
    def size(self) -> int:
        return self._blobs.size

    def blob(self) -> bytes:
        """What the rows' blobs are cut from."""
        return self._blobs.joined()

    def headlines(self) -> Rows:
        """What was last said of the end of each run, or that it goes on."""
        rows = Rows(self._blobs)
        for run, headline in self._headlines.items():
            rows.add(run, *headline)
        return rows

    def named(self) -> Rows:
        """The last fact about each name (worker, key, artifact); without data when the name is gone."""
        rows = Rows(self._blobs)
        for (kind, name), (place, fact) in self._named.items():
            digest = fact.digest if isinstance(fact, ArtifactPublished) else None
            rows.add(kind, name, place, NEWEST[kind], digest, b"" if fact is None else _encode(fact))
        return rows

    def add(self, fact: Fact) -> None:
        place, self.facts = self.facts, self.facts + 1
        match fact:
            case AttemptsEnded():
                self._journal(place, fact, _encode(head_of(fact)))
                for part, piece in enumerate(pieces(fact) if fact.index else ()):
                    self.outcomes.add(
                        fact.run, piece.block, place, part, piece.first, piece.last, piece.detail, piece.body
                    )
            case RunAccepted():
                self._accepted(place, fact)
            case RunEnded() | AttemptsRunning() | TasksSettled() | CancelAsked() | TasksReopened() | TasksDropped():
                self._journal(place, fact, _encode(fact))
                self._headline(fact)
            case WorkerRegistered():
                self._named[KIND[WorkerRegistered], fact.worker] = (place, fact)
            case WorkerGone():
                self._named[KIND[WorkerRegistered], fact.worker] = (place, None)
            case KvChanged():
                self._named[KIND[KvChanged], fact.name] = (place, fact if fact.value is not None else None)
                self.revision = max(self.revision, fact.revision)
            case ArtifactPublished():
                self._named[KIND[ArtifactPublished], fact.name] = (place, fact)
            case RunsForgotten():
                self.forgotten.extend(fact.runs)
            case _:
                raise TypeError(f"no row for {type(fact).__name__}")
        if type(fact) in KEYED and (answer := answer_of(fact)) is not None:
            key, number, run = answer
            self.replies.add(key.client, key.counter, number, run, fact.at)

    def _journal(self, place: int, fact: RunAccepted | AttemptsEnded | RunFact, data: bytes) -> None:
        kind = KIND[type(fact)]
        self.journal.add(fact.run, place, kind, NEWEST[kind], data)

    def _accepted(self, place: int, fact: RunAccepted) -> None:
        data, digest = _encode(fact), ""
        if len(data) > LARGE:
            hollow, body = without_body(fact)
            data, digest = _encode(hollow), sha256(body).hexdigest()
            self.bodies[digest] = body
        self._journal(place, fact, data)
        self.runs.add(fact.run, fact.graph.project, digest, _encode(begun(fact)))
        self.last_run = max(self.last_run, fact.run)

    def _headline(self, fact: RunFact) -> None:
        match fact:
            case RunEnded():
                dead = fact.counts.get("DEAD", 0)
                is_small = sum(fact.counts.values()) <= SMALL
                self._headlines[fact.run] = fact.state, dead, fact.at, is_small, _encode(ended(fact))
                if dead:
                    self.recount.add(fact.run)
            case TasksReopened():
                self._headlines[fact.run] = "", 0, 0.0, False, b""
            case TasksDropped():
                self.recount.add(fact.run)


def batches(facts: Sequence[Fact]) -> Iterator[Batch]:
    """The facts in order, cut where a statement would grow too large and where runs were forgotten; nearly always one
    batch."""
    batch = Batch()
    for fact in facts:
        if batch.size > MAX_BATCH or batch.forgotten:
            yield batch
            batch = Batch()
        batch.add(fact)
    yield batch
