"""What the body of each cold message means: one typed class per message, registered by opcode.

A body is one JSON document, then raw attachments whose lengths it lists. Unknown fields are ignored (a newer peer
may say more); a document whose ``critical`` list names a field we do not know is refused.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from titan_fast.errors import BadMessage
from titan_fast.model.spec import GraphSpec, Work
from titan_fast.protocol.opcodes import Op


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """The root of all cold messages."""

    op: ClassVar[Op]


class WithAttachments(Message, frozen=True, omit_defaults=True):
    """A message that raw bytes follow."""

    attachments: tuple[int, ...] = ()
    """Lengths of the raw parts after the document, bytes. Filled in when the message is written."""


BY_OP: dict[Op, type[Message]] = {}


def _register(op: Op, cls: type[Message]) -> None:
    if op in BY_OP:
        raise TypeError(f"{op.name} has two messages")
    cls.op = op
    BY_OP[op] = cls


# ---------------------------------------------------------------- opening


class Hello(Message, frozen=True, omit_defaults=True):
    nonce: str
    """32 random bytes, hex."""
    token: str
    """Which token the peer holds: ``client`` or ``worker``; never the token itself."""
    oldest: int = 2
    newest: int = 2
    cluster: str = ""
    """The cluster this peer knows; another one refuses it."""
    epoch: int = 0
    """Highest epoch this peer has seen."""
    software: str = ""
    critical: tuple[str, ...] = ()


class Challenge(Message, frozen=True, omit_defaults=True):
    nonce: str
    proof: str
    """HMAC-SHA256 of the token over "master", both nonces; hex."""
    version: int = 2


class Proof(Message, frozen=True, omit_defaults=True):
    proof: str
    """HMAC-SHA256 of the token over "peer", both nonces; hex."""


class Welcome(Message, frozen=True, omit_defaults=True):
    role: str
    cluster: str
    epoch: int
    software: str
    max_body: int
    max_message: int
    history: str = ""
    """Names everything the master knows: with another one, run numbers and fences mean other things."""
    heartbeat: float = 1.0


class Error(Message, frozen=True, omit_defaults=True):
    code: str
    message: str
    hint: str = ""
    field: str = ""


# ---------------------------------------------------------------- clients


class Submit(WithAttachments, frozen=True, omit_defaults=True):
    """Attachments are the arrays' payloads."""

    graph: GraphSpec = msgspec.field(default_factory=lambda: GraphSpec("", ()))
    watch: bool = False


class Accepted(Message, frozen=True, omit_defaults=True):
    run: int


class Watch(Message, frozen=True, omit_defaults=True):
    """``run`` 0 is the newest one. With ``task`` the watch ends with that task."""

    run: int
    task: str = ""
    member: int = -1
    progress: bool = False
    """Every change, at most ten a second; without it only the end."""


class FailedTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task that ended badly, with the end of its output."""

    name: str
    state: str
    reason: str
    tail: str = ""


class Update(Message, frozen=True, omit_defaults=True):
    run: int
    name: str
    state: str
    counts: dict[str, int]
    reason: str = ""
    final: bool = False
    task_state: str = ""
    exit_code: int | None = None
    """Of the watched task, or of a run's only task."""
    elapsed: float = 0.0
    """Seconds from submit to now, or to the end."""
    result: str = ""
    """What the run's last task wrote to TITAN_RESULT, when it has one last task."""
    running: tuple[str, ...] = ()
    failed: tuple[FailedTask, ...] = ()


class List(Message, frozen=True, omit_defaults=True):
    what: str
    run: int = 0
    state: str = ""
    cursor: str = ""
    limit: int = 100


class RunRow(msgspec.Struct, frozen=True):
    id: int
    name: str
    state: str
    reason: str
    submitted_at: float
    started_at: float
    finished_at: float
    counts: dict[str, int]


class TaskRow(msgspec.Struct, frozen=True):
    id: str
    name: str
    state: str
    reason: str
    generation: int
    attempt: int
    worker: str
    exit_code: int | None
    started_at: float
    finished_at: float
    duration: float | None
    needs: tuple[str, ...] = ()


class WorkerRow(msgspec.Struct, frozen=True):
    id: str
    name: str
    state: str
    capabilities: tuple[str, ...]
    slots: int
    running: int
    queued: int
    kind: str
    last_seen_at: float


class Listed(Message, frozen=True, omit_defaults=True):
    runs: tuple[RunRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    next: str = ""


class Show(Message, frozen=True, omit_defaults=True):
    run: int
    task: str = ""
    member: int = -1
    cursor: str = ""
    limit: int = 1000


class Shown(Message, frozen=True, omit_defaults=True):
    run: RunRow
    tasks: tuple[TaskRow, ...]
    next: str = ""


class Explain(Message, frozen=True, omit_defaults=True):
    run: int
    task: str = ""
    member: int = -1


class Explained(Message, frozen=True, omit_defaults=True):
    id: str
    state: str
    reason: str
    detail: str
    fix: str = ""


class Cancel(Message, frozen=True, omit_defaults=True):
    run: int
    task: str = ""
    member: int = -1


class Retry(Message, frozen=True, omit_defaults=True):
    run: int
    task: str = ""
    member: int = -1


class Logs(Message, frozen=True, omit_defaults=True):
    run: int
    task: str
    member: int = -1
    attempt: int = 0
    """0 is the newest."""
    follow: bool = False
    tail: int = -1
    """Last lines only; -1 is everything that is kept."""


class Logged(WithAttachments, frozen=True, omit_defaults=True):
    """One attachment: bytes of the output as the task wrote them."""

    offset: int = 0
    dropped: int = 0
    """Bytes between the last piece and this one that nobody kept."""
    final: bool = False
    state: str = ""
    attempt: int = 0


class Stats(Message, frozen=True, omit_defaults=True):
    pass


class Stated(Message, frozen=True, omit_defaults=True):
    accel: str
    loop: str
    software: str
    epoch: int
    cluster: str
    started_at: float
    workers: int
    runs: int
    tasks: dict[str, int]
    commits: int
    facts: int
    facts_per_commit: float
    durability: str
    connections: int
    loop_lag: float
    """Seconds the last second's worst turn took."""
    memory: int
    """Resident bytes."""


# ---------------------------------------------------------------- blobs


class BlobAsk(Message, frozen=True, omit_defaults=True):
    digest: str


class BlobHeld(Message, frozen=True, omit_defaults=True):
    digest: str
    size: int
    """-1: not held."""


class BlobPut(WithAttachments, frozen=True, omit_defaults=True):
    digest: str = ""
    offset: int = 0
    size: int = 0
    """Of the whole file."""


class BlobGet(Message, frozen=True, omit_defaults=True):
    digest: str
    offset: int = 0


class BlobPiece(WithAttachments, frozen=True, omit_defaults=True):
    digest: str = ""
    offset: int = 0
    size: int = 0


# ---------------------------------------------------------------- workers


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One line of an inventory."""

    run: int
    index: int
    generation: int
    fence: int
    started: bool


class Attach(Message, frozen=True, omit_defaults=True):
    worker: str
    name: str
    nonce: str
    connection: int
    slots: int
    capabilities: tuple[str, ...] = ()
    permanent: bool = True
    inventory: tuple[Held, ...] = ()


class VerdictMessage(Message, frozen=True, omit_defaults=True):
    keep: tuple[int, ...] = ()
    kill: tuple[int, ...] = ()


class Spec(Message, frozen=True, omit_defaults=True):
    run: int
    spec: int
    name: str
    first: int
    """Index of its first member in the run."""
    array: bool
    work: Work
    env: dict[str, str] = {}
    project: str = ""


class Output(WithAttachments, frozen=True, omit_defaults=True):
    run: int = 0
    index: int = 0
    fence: int = 0
    offset: int = 0
    final: bool = False
    total: int = 0


class Goodbye(Message, frozen=True, omit_defaults=True):
    empty: bool
    """Nothing is held any more: the connection may end."""


class Forget(Message, frozen=True, omit_defaults=True):
    run: int


for _op, _cls in (
    (Op.HELLO, Hello),
    (Op.CHALLENGE, Challenge),
    (Op.PROOF, Proof),
    (Op.WELCOME, Welcome),
    (Op.ERROR, Error),
    (Op.SUBMIT, Submit),
    (Op.ACCEPTED, Accepted),
    (Op.WATCH, Watch),
    (Op.UPDATE, Update),
    (Op.LIST, List),
    (Op.LISTED, Listed),
    (Op.SHOW, Show),
    (Op.SHOWN, Shown),
    (Op.EXPLAIN, Explain),
    (Op.EXPLAINED, Explained),
    (Op.CANCEL, Cancel),
    (Op.RETRY, Retry),
    (Op.LOGS, Logs),
    (Op.LOGGED, Logged),
    (Op.STATS, Stats),
    (Op.STATED, Stated),
    (Op.BLOB_ASK, BlobAsk),
    (Op.BLOB_HELD, BlobHeld),
    (Op.BLOB_PUT, BlobPut),
    (Op.BLOB_GET, BlobGet),
    (Op.BLOB_PIECE, BlobPiece),
    (Op.ATTACH, Attach),
    (Op.VERDICT, VerdictMessage),
    (Op.SPEC, Spec),
    (Op.OUTPUT, Output),
    (Op.GOODBYE, Goodbye),
    (Op.FORGET, Forget),
):
    _register(_op, _cls)

_DECODERS = {op: msgspec.json.Decoder(cls) for op, cls in BY_OP.items()}
_encode = msgspec.json.Encoder().encode
_KNOWN_CRITICAL = frozenset(Hello.__struct_fields__)


def encode(message: Message, attachments: tuple[bytes, ...] = ()) -> tuple[bytes, bool]:
    """(body after the request id, whether it has attachments)."""
    if not attachments:
        return _encode(message), False
    document = _encode(msgspec.structs.replace(message, attachments=tuple(len(part) for part in attachments)))
    return b"".join((len(document).to_bytes(4, "big"), document, *attachments)), True


def decode(op: Op, body: bytes, has_attachments: bool) -> tuple[Message, tuple[bytes, ...]]:
    """The typed message of a cold body, and its attachments.

    Raises:
        BadMessage: wrong JSON, a missing field or one of a wrong type (``field`` says which), lengths that do not add
            up, or a critical field nobody here knows.
    """
    decoder = _DECODERS.get(op)
    if decoder is None:
        raise BadMessage(f"{op.name} has no cold form")
    attachments: tuple[bytes, ...] = ()
    document = body
    if has_attachments:
        length = int.from_bytes(body[:4], "big")
        if len(body) < 4 or length > len(body) - 4:
            raise BadMessage(f"{op.name}: the document is longer than its frame")
        document = body[4 : 4 + length]
    try:
        message = decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)
        path = text.rpartition("at `")[2].rstrip("`") if "at `" in text else ""
        raise BadMessage(f"{op.name}: {text}", field=path) from None
    if isinstance(message, Hello):
        unknown = sorted(set(message.critical) - _KNOWN_CRITICAL)
        if unknown:
            raise BadMessage(f"{op.name}: this version does not know {', '.join(unknown)}", field=unknown[0])
    if has_attachments:
        if not isinstance(message, WithAttachments):
            raise BadMessage(f"{op.name} has no attachments")
        attachments = _cut(op, body, 4 + length, message.attachments)
    elif isinstance(message, WithAttachments) and message.attachments:
        raise BadMessage(f"{op.name}: attachments are announced and missing")
    return message, attachments


def _cut(op: Op, body: bytes, at: int, lengths: tuple[int, ...]) -> tuple[bytes, ...]:
    if any(length < 0 for length in lengths) or at + sum(lengths) != len(body):
        raise BadMessage(f"{op.name}: attachments of {list(lengths)[:8]} bytes do not fill the frame")
    parts = []
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    return tuple(parts)
