"""What the body of each cold message means: one typed class per message, registered by opcode.

A body is one JSON document, then raw attachments whose lengths it lists. Unknown fields are ignored (a newer peer
may say more); a document whose ``critical`` list names a field we do not know is refused. Every number has bounds:
what reaches the master's turn fits the integers of files, clocks and databases.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from titan_fast.errors import BadMessage
from titan_fast.model.spec import MAX_PARTS, GraphSpec, Work
from titan_fast.protocol.opcodes import Op

MAX_ATTACHMENTS = MAX_PARTS
"""Raw parts of one message: a payload and a function for each named task of a graph."""
MAX_CRITICAL = 32
MAX_COPIES = 10_000
"""Working copies that one ATTACH tells of."""
MAX_SAID = 300
"""Characters of a peer's own text that an error about it repeats."""

_U63 = (1 << 63) - 1
_U32 = (1 << 32) - 1

RunNumber = Annotated[int, Meta(ge=0, le=_U63)]
FenceNumber = Annotated[int, Meta(ge=0, le=_U63)]
Size = Annotated[int, Meta(ge=0, le=_U63)]
"""Bytes, or a position in them."""
SizeOrNone = Annotated[int, Meta(ge=-1, le=_U63)]
Count = Annotated[int, Meta(ge=0, le=_U32)]
Member = Annotated[int, Meta(ge=-1, le=_U32)]
"""Position in an array; -1 is no member in particular."""
Lines = Annotated[int, Meta(ge=-1, le=_U32)]
Limit = Annotated[int, Meta(ge=1, le=_U32)]
Cursor = Annotated[str, Meta(pattern=r"^[0-9]{0,18}\Z")]
"""Where a page begins: ``next`` of the page before it, or empty."""
Seconds = Annotated[float, Meta(ge=0)]
Wall = Annotated[float, Meta(ge=0)]
"""Seconds since 1970, UTC; 0 is never."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """The root of all cold messages."""

    op: ClassVar[Op]
    critical: Annotated[tuple[str, ...], Meta(max_length=MAX_CRITICAL)] = ()
    """Names of fields of this document that a reader must know. One that does not refuses the message."""


class Once(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The key of a request that changes something: it is carried out once, however often it is sent."""

    client: Annotated[str, Meta(min_length=1, max_length=64)]
    """Random name of the client."""
    counter: Size
    """Counts the client's requests."""
    repeat: bool = False
    """It was sent before and no answer came: answer as then, if it succeeded."""


class WithAttachments(Message, frozen=True, omit_defaults=True, kw_only=True):
    """A message that raw bytes may follow."""

    attachments: Annotated[tuple[Size, ...], Meta(max_length=MAX_ATTACHMENTS)] = ()
    """Lengths of the raw parts after the document, bytes."""


BY_OP: dict[Op, type[Message]] = {}


def _register(op: Op, cls: type[Message]) -> None:
    if op.hot:
        raise TypeError(f"{op.name} is hot: it has records, not a message")
    if op in BY_OP:
        raise TypeError(f"{op.name} has two messages")
    cls.op = op
    BY_OP[op] = cls


# ---------------------------------------------------------------- opening


class Hello(Message, frozen=True, omit_defaults=True):
    nonce: str
    """32 random bytes, as 64 lower-case hex digits; new for every connection."""
    token: str
    """Which token the peer holds: ``client`` or ``worker``, at an agent ``task``; never the token itself."""
    oldest: Count = 2
    """Oldest protocol version the peer speaks."""
    newest: Count = 2
    """Newest protocol version the peer speaks."""
    cluster: str = ""
    """The cluster this peer knows; a master of another one refuses it. Empty: any."""
    epoch: FenceNumber = 0
    """Highest epoch this peer has seen."""
    software: str = ""
    """Version of the peer's software, for people."""
    fence: FenceNumber = 0
    """The attempt that this connection speaks for, and for nobody else: its role is ``task``."""


class Challenge(Message, frozen=True, omit_defaults=True):
    nonce: str
    """The master's 32 random bytes, as 64 lower-case hex digits."""
    proof: str
    """The master's proof, hex."""
    version: Count = 2
    """The protocol version both will speak."""


class Proof(Message, frozen=True, omit_defaults=True):
    proof: str
    """The peer's proof, hex."""


class Welcome(Message, frozen=True, omit_defaults=True):
    role: str
    """What the peer is from now on: ``client``, ``worker`` or ``task``."""
    cluster: str
    """Name of the cluster, for the next HELLO."""
    epoch: FenceNumber
    """How often the master's state has been opened."""
    software: str
    """Version of the master's software, for people."""
    max_body: Size
    """Longest frame body the master takes, bytes."""
    max_message: Size
    """Longest message the master takes in several frames, bytes."""
    history: str = ""
    """Names everything the master knows: with another one, run numbers and fences mean other things."""
    heartbeat: Seconds = 1.0
    """Seconds between two heartbeats of a worker."""
    nonce: str = ""
    """Random, made with the epoch: what is assigned under another nonce was assigned by another master."""


class Error(Message, frozen=True, omit_defaults=True):
    code: str
    """What programs look at; see the list of errors."""
    message: str
    """What people read: what is wrong, and where."""
    hint: str = ""
    """What to do about it."""
    field: str = ""
    """The field of the request that is wrong, as a path such as ``graph.tasks[3].priority``."""


# ---------------------------------------------------------------- clients


class Submit(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """Attachments are payloads and functions, as ``payload`` and ``work.function`` of the task specs count them."""

    graph: GraphSpec
    """Every task, with every default resolved."""
    watch: bool = False
    """Also answer with an UPDATE when the run is final, as WATCH would. Where that is durable as soon as the submit is,
    it is the only answer; otherwise ACCEPTED comes first."""
    results: bool = False
    """With ``watch``, in a graph of functions alone: as in WATCH."""
    once: Once | None = None
    """Makes it safe to send the request again."""


class Accepted(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """The run that was made or changed."""


class Watch(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str = ""
    """Watch this task only: the watch ends with it."""
    member: Member = -1
    """Watch this member of the array ``task`` only."""
    progress: bool = False
    """Every change, at most ten a second; without it only the end."""
    results: bool = False
    """Of a whole run of functions: before the end, GIVEN with what they gave, as it becomes known. After a retry, or on
    another connection, some may be told again."""


class FailedTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task that ended badly, with the end of its output."""

    name: str
    state: str
    reason: str
    tail: str = ""
    """The last lines of its output."""


class Update(WithAttachments, frozen=True, omit_defaults=True):
    run: RunNumber
    name: str
    state: str
    """Of the run."""
    counts: dict[str, Count]
    """Tasks of the run by state."""
    reason: str = ""
    final: bool = False
    """Nothing follows."""
    task_state: str = ""
    """Of the watched task, or of a run's only task."""
    exit_code: int | None = None
    """Of the watched task, or of a run's only task."""
    elapsed: Seconds = 0.0
    """Seconds from submit to now, or to the end."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""
    result: str = ""
    """What the run's last task wrote to TITAN_RESULT, when it has one last task."""
    gave: str = ""
    """The run's last task, when that is a function and what it returned is small: it is attached."""
    running: tuple[str, ...] = ()
    """Some of the tasks that run."""
    failed: tuple[FailedTask, ...] = ()
    """Some of the tasks that failed; with the last update."""


class List(Message, frozen=True, omit_defaults=True):
    what: str
    """``runs``, ``tasks``, ``workers``, ``dead`` (the DEAD tasks of all runs that nobody dropped) or ``specs`` (the
    tasks of a run as its graph describes them: an array is one row)."""
    run: RunNumber = 0
    """Whose tasks or specs; 0 is the newest run."""
    state: str = ""
    """Only those in this state."""
    cursor: Cursor = ""
    """``next`` of the page before; empty for the first page."""
    limit: Limit = 100
    """At most so many rows; the master may cut it."""
    task: str = ""
    """Of ``tasks``, without a cursor: only those behind this one. Critical: a master that does not know it would begin
    at the first one again."""
    member: Member = -1
    """Behind this member of the array ``task``; -1: behind all of them. Critical."""


class RunRow(msgspec.Struct, frozen=True):
    """One run in a listing."""

    id: RunNumber
    name: str
    state: str
    reason: str
    submitted_at: Wall
    started_at: Wall
    finished_at: Wall
    counts: dict[str, Count]
    """Tasks by state."""


class TaskRow(msgspec.Struct, frozen=True):
    """One task, or one member of an array, in a listing. Times are the worker's clock."""

    id: str
    """As users write it: ``12/extract``, ``12/square[417]``."""
    name: str
    state: str
    reason: str
    generation: Count
    """Counts retries by hand."""
    attempt: Count
    """Counts starts, through all generations; what was given to a worker and never started does not count."""
    worker: str
    """Name of the worker."""
    exit_code: int | None
    started_at: Wall
    finished_at: Wall
    duration: float | None
    """Seconds."""
    needs: tuple[str, ...] = ()


class SpecRow(msgspec.Struct, frozen=True):
    """A task of a graph; an array is one."""

    name: str
    members: SizeOrNone
    """Of an array; -1: it is none."""
    counts: dict[str, Count]
    """Its members by state, without the states that none of them is in."""
    needs: tuple[str, ...] = ()


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker in a listing."""

    id: str
    name: str
    state: str
    capabilities: tuple[str, ...]
    slots: Count
    running: Count
    queued: Count
    """Attempts it holds that have not started."""
    kind: str
    """``permanent`` or ``ephemeral``."""
    last_seen_at: Wall


class Listed(Message, frozen=True, omit_defaults=True):
    runs: tuple[RunRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    specs: tuple[SpecRow, ...] = ()
    next: str = ""
    """Cursor of the next page; empty when this is the last one."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class Show(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str = ""
    """Only this task or array."""
    member: Member = -1
    """Only this member of the array."""
    cursor: Cursor = ""
    """``next`` of the page before; empty for the first page."""
    limit: Limit = 1000
    """At most so many tasks; the master may cut it."""


class Shown(Message, frozen=True, omit_defaults=True):
    run: RunRow
    tasks: tuple[TaskRow, ...]
    next: str = ""
    """Cursor of the next page; empty when this is the last one."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class Explain(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str = ""
    """Empty: the run as a whole."""
    member: Member = -1


class Explained(Message, frozen=True, omit_defaults=True):
    id: str
    """As users write it."""
    state: str
    reason: str
    """One word for programs."""
    detail: str
    """One sentence for people."""
    fix: str = ""
    """What to do about it."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class Cancel(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str = ""
    """Empty: the whole run."""
    member: Member = -1
    """Only this member of the array."""
    once: Once | None = None
    """Makes it safe to send the request again."""
    only_waiting: bool = False
    """What a worker has goes on."""


class Retry(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str = ""
    """Empty: everything in the run that failed, died or was cancelled."""
    member: Member = -1
    """Only this member of the array."""
    once: Once | None = None
    """Makes it safe to send the request again."""


class Logs(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str
    """One task; empty when the run has only one."""
    member: Member = -1
    attempt: Count = 0
    """0 is the newest."""
    follow: bool = False
    """Go on until the task is final."""
    tail: Lines = -1
    """Last lines only; -1 is everything that is kept."""
    fence: FenceNumber = 0
    """Go on reading the attempt with this fence at ``offset``, after a lost connection; 0: from the beginning."""
    offset: Size = 0


class Logged(WithAttachments, frozen=True, omit_defaults=True):
    """One attachment: bytes of the output as the task wrote them. The last one has none."""

    offset: Size = 0
    """Where the piece begins in the attempt's output."""
    dropped: Size = 0
    """Bytes between the last piece and this one that nobody kept."""
    final: bool = False
    """Nothing follows."""
    state: str = ""
    """Of the task; with the last piece."""
    attempt: Count = 0
    """Number of the attempt; with the last piece."""
    fence: FenceNumber = 0
    """The attempt."""


class Results(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """0 is the newest one."""
    task: str
    """One task or array."""
    member: Member = -1
    """Only this member of the array."""
    cursor: Cursor = ""
    """``next`` of the page before; empty for the first page."""


class NoResult(msgspec.Struct, frozen=True, array_like=True):
    """A task that has given nothing; on the wire an array of its fields in this order."""

    place: Count
    """Which attachment: what it left instead, when its function raised an exception (else empty)."""
    name: str
    state: str
    reason: str


class Given(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment for each task of the page, in order: its result."""

    pickled: bool = False
    """They are what functions returned; otherwise what commands wrote to TITAN_RESULT. Either may be
    ``artifact:ADDRESS``, which no pickle looks like."""
    missing: tuple[NoResult, ...] = ()
    next: str = ""
    """Cursor of the next page; empty when this is the last one."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""
    run: RunNumber = 0
    """Told by a watch: whose they are."""
    stretches: tuple[tuple[Count, Count], ...] = ()
    """Told by a watch: which tasks they are of, as (first, count); the tasks of a run are counted through."""


class Stats(Message, frozen=True, omit_defaults=True):
    """No fields."""


class Stated(Message, frozen=True, omit_defaults=True):
    accel: str
    """``compiled`` or ``pure``."""
    loop: str
    """The event loop's package."""
    software: str
    """Version of the master's software."""
    epoch: FenceNumber
    cluster: str
    started_at: Wall
    workers: Count
    """Workers that are neither lost nor gone."""
    runs: Count
    tasks: dict[str, Size]
    """Tasks by state, of the runs in memory: unfinished ones and the newest finished ones."""
    commits: Size
    facts: Size
    facts_per_commit: float
    durability: str
    """What the store promises."""
    connections: Count
    loop_lag: float
    """Seconds the slowest turn since the last question took."""
    memory: Size
    """Resident bytes."""
    disk_free: Size = 0
    """Bytes that are free where the master keeps its state."""
    refusing: str = ""
    """Why nothing new is accepted; empty: it is."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""
    ended: Size = 0
    """Tasks that became final since this master started; it only grows."""


# ---------------------------------------------------------------- blobs


class BlobAsk(Message, frozen=True, omit_defaults=True):
    digest: str
    """The file's address: its SHA-256, as 64 lower-case hex digits."""


class BlobHeld(Message, frozen=True, omit_defaults=True):
    digest: str
    size: SizeOrNone
    """Bytes of the whole file; -1: not held (yet)."""


class BlobPut(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment: the bytes of the piece. Pieces come in order, the first at offset 0."""

    digest: str
    """The file's address: its SHA-256, as 64 lower-case hex digits."""
    offset: Size = 0
    """Where the piece belongs."""
    size: Size = 0
    """Of the whole file, bytes."""


class BlobGet(Message, frozen=True, omit_defaults=True):
    digest: str
    """The file's address."""
    offset: Size = 0
    """Where the piece should begin."""


class BlobPiece(WithAttachments, frozen=True, omit_defaults=True):
    """One attachment: the bytes of the piece; the master chooses how long it is."""

    digest: str = ""
    offset: Size = 0
    size: Size = 0
    """Of the whole file, bytes."""


# ---------------------------------------------------------------- data and care

KeyName = Annotated[str, Meta(min_length=1, max_length=512)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class KvGet(Message, frozen=True, omit_defaults=True):
    name: KeyName


class KvValue(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment: the value."""

    name: str
    revision: Size
    """Of its last change."""
    expires_at: Wall = 0.0
    """0: never."""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class KvSet(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment: the value; none takes the key away."""

    name: KeyName
    expect: SizeOrNone = -1
    """Only if the key has this revision; 0: only if there is no such key; -1: in any case."""
    ttl: Seconds = 0.0
    """Seconds until the key goes by itself; 0: never."""
    once: Once | None = None
    """Makes it safe to send the request again."""


class KvDone(Message, frozen=True, omit_defaults=True):
    revision: Size
    """Of the key from now on; revisions only grow."""


class KvList(Message, frozen=True, omit_defaults=True):
    prefix: str = ""
    after: str = ""
    """``next`` of the page before; empty for the first page."""
    limit: Limit = 1000


class KvRow(msgspec.Struct, frozen=True):
    """One key in a listing."""

    name: str
    size: Size
    revision: Size
    expires_at: Wall


class KvListed(Message, frozen=True, omit_defaults=True):
    keys: tuple[KvRow, ...]
    next: str = ""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class ArtifactPublish(Message, frozen=True, omit_defaults=True, kw_only=True):
    name: KeyName
    digest: Digest
    """Of a file the master holds (BLOB_PUT)."""
    once: Once | None = None
    """Makes it safe to send the request again."""


class ArtifactList(Message, frozen=True, omit_defaults=True):
    name: str = ""
    """Only this one, by its name or its address; not_found when there is none."""
    prefix: str = ""
    after: str = ""
    limit: Limit = 1000


class ArtifactFile(msgspec.Struct, frozen=True):
    """One artifact in a listing."""

    name: str
    digest: str
    size: Size
    published_at: Wall


class ArtifactListed(Message, frozen=True, omit_defaults=True):
    artifacts: tuple[ArtifactFile, ...]
    next: str = ""
    durable: bool = True
    """False: the store is stuck, and a crash now would undo what is shown."""


class Drop(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    task: str = ""
    """Empty: every DEAD task of the run."""
    member: Member = -1
    once: Once | None = None
    """Makes it safe to send the request again."""


class Prune(Message, frozen=True, omit_defaults=True):
    keep_runs: SizeOrNone = -1
    """Keep so many finished runs; -1: as the settings say."""
    older_than: float = -1.0
    """Forget what ended so many seconds ago; -1: as the settings say."""


class Pruned(Message, frozen=True, omit_defaults=True):
    runs: Size
    """How many runs went."""


class Backup(Message, frozen=True, omit_defaults=True):
    """No fields."""


class BackedUp(Message, frozen=True, omit_defaults=True):
    digest: str
    """Its address for BLOB_GET; the master keeps the file for an hour."""
    size: Size


# ---------------------------------------------------------------- workers


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One line of an inventory; on the wire an array of its fields in this order."""

    run: RunNumber
    index: Count
    """The task's number in its run."""
    generation: Count
    fence: FenceNumber
    stage: Annotated[int, Meta(ge=0, le=2)]
    """0 waits for a slot, 1 runs, 2 has ended and the result is not acknowledged."""
    attempt: Count = 1
    started: Size = 0
    """Microseconds of the worker's clock; 0: not yet."""


class Attach(Message, frozen=True, omit_defaults=True):
    worker: str
    """Id of the worker: it stays the same over restarts of the agent."""
    name: str
    """What people call it."""
    nonce: str
    """Random for every start of the agent: two agents of one id are told apart by it."""
    connection: Size
    """Counts the agent's connections: the highest one counts."""
    slots: Count
    """Attempts it runs at a time; at least 1."""
    capabilities: tuple[str, ...] = ()
    permanent: bool = True
    """False: the master may scale it down."""
    inventory: tuple[Held, ...] = ()
    """Every attempt it holds: running, waiting, or ended without an acknowledgement."""
    copies: Annotated[tuple[RunNumber, ...], Meta(max_length=MAX_COPIES)] = ()
    """Runs whose working copies it keeps: those that are over are forgotten in time."""
    nonces: dict[str, str] = {}
    """Epoch (as text) -> nonce of the masters that assigned what is in the inventory."""
    fetches: bool = False
    """It answers FETCH."""


class VerdictMessage(Message, frozen=True, omit_defaults=True):
    keep: tuple[FenceNumber, ...] = ()
    """Fences of attempts to go on with."""
    kill: tuple[FenceNumber, ...] = ()
    """Fences of attempts to end and forget."""
    wait: tuple[FenceNumber, ...] = ()
    """Fences of attempts to go on with, but whose results are kept back: another verdict follows."""


class Spec(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """Attachments, for a function: it, pickled, then for each of the work's ``arguments`` the results of that task,
    a u32 count, (count + 1) u32 offsets and the bytes they cut."""

    run: RunNumber
    spec: Count
    """The spec's number in its run; lots refer to it."""
    name: str
    first: Count
    """Index of its first member in the run."""
    array: bool
    """Its members are addressed ``name[i]``."""
    work: Work
    """What to do."""
    env: dict[str, str] = {}
    """Environment of the whole graph; that of the work wins."""
    project: str = ""
    """Address of the project archive; empty: none."""
    results: dict[str, str] = {}
    """What stands for ``${tasks.NAME.result}`` in the work, by name."""
    problem: str = ""
    """Why none of its tasks can be started."""


class Output(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment: bytes of the output."""

    run: RunNumber
    index: Count
    fence: FenceNumber
    """The attempt."""
    offset: Size = 0
    """Where the piece begins in the attempt's output."""
    final: bool = False
    """The attempt writes no more."""
    total: Size = 0
    """Bytes of the whole output, when it is final."""


class Goodbye(Message, frozen=True, omit_defaults=True):
    empty: bool
    """Nothing is held any more: the connection may end."""


class Forget(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    """The run whose working copy may go."""


class Fetch(Message, frozen=True, omit_defaults=True):
    run: RunNumber
    index: Count
    fence: FenceNumber
    """The attempt."""
    offset: Size
    """Where to begin in its output."""
    size: Size
    """Bytes wanted; the worker may cut it."""


class Fetched(WithAttachments, frozen=True, omit_defaults=True, kw_only=True):
    """One attachment: bytes of the output; none when the worker has nothing there, or behind it."""

    run: RunNumber
    index: Count
    fence: FenceNumber
    asked: Size
    """``offset`` of the FETCH."""
    offset: Size
    """Where the bytes begin: behind what was asked for when that is gone."""


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
    (Op.RESULTS, Results),
    (Op.GIVEN, Given),
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
    (Op.KV_GET, KvGet),
    (Op.KV_VALUE, KvValue),
    (Op.KV_SET, KvSet),
    (Op.KV_DONE, KvDone),
    (Op.KV_LIST, KvList),
    (Op.KV_LISTED, KvListed),
    (Op.ARTIFACT_PUBLISH, ArtifactPublish),
    (Op.ARTIFACT_LIST, ArtifactList),
    (Op.ARTIFACT_LISTED, ArtifactListed),
    (Op.DROP, Drop),
    (Op.PRUNE, Prune),
    (Op.PRUNED, Pruned),
    (Op.BACKUP, Backup),
    (Op.BACKED_UP, BackedUp),
    (Op.ATTACH, Attach),
    (Op.VERDICT, VerdictMessage),
    (Op.SPEC, Spec),
    (Op.OUTPUT, Output),
    (Op.GOODBYE, Goodbye),
    (Op.FORGET, Forget),
    (Op.FETCH, Fetch),
    (Op.FETCHED, Fetched),
):
    _register(_op, _cls)

_DECODERS = {op: msgspec.json.Decoder(cls) for op, cls in BY_OP.items()}
_FIELDS = {cls: frozenset(cls.__struct_fields__) for cls in BY_OP.values()}
_encode = msgspec.json.Encoder().encode


def encode(message: Message, attachments: tuple[bytes, ...] = ()) -> tuple[bytes, bool]:
    """(body after the request id, whether it has attachments).

    Raises:
        BadMessage: a text in it is not Unicode (a file name, say, that is no text in any encoding).
    """
    if attachments:
        message = msgspec.structs.replace(message, attachments=tuple(map(len, attachments)))
    try:
        document = _encode(message)
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end + 20]
        raise BadMessage(
            f"{message.op.name}: the text {around!a} is not Unicode", hint="rename the file or change the value"
        ) from None
    if not attachments:
        return document, False
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
    if not has_attachments:
        message = _decode(op, decoder, body)
        if isinstance(message, WithAttachments) and message.attachments:
            raise BadMessage(f"{op.name}: attachments are announced and missing", field="attachments")
        return message, ()
    if not issubclass(BY_OP[op], WithAttachments):
        raise BadMessage(f"{op.name} has no attachments")
    end = 4 + int.from_bytes(body[:4], "big")
    if len(body) < 4 or end > len(body):
        raise BadMessage(f"{op.name}: the document is longer than its frame")
    # A view: a document of 100 MB is not copied to be read.
    message = _decode(op, decoder, memoryview(body)[4:end])
    assert isinstance(message, WithAttachments)
    return message, _cut(op, body, end, message.attachments)


def _decode(op: Op, decoder: msgspec.json.Decoder[Message], document: bytes | memoryview) -> Message:
    try:
        message = decoder.decode(document)
    except RecursionError:
        raise BadMessage(f"{op.name}: the document is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The text may repeat what the peer said, and it ends up in logs and terminals.
        text = said(str(error))
        path = text.rpartition("at `$")[2].rstrip("`").removeprefix(".") if "at `$" in text else ""
        raise BadMessage(f"{op.name}: {text}", field=path) from None
    unknown = [name for name in message.critical if name not in _FIELDS[type(message)]]
    if unknown:
        names = said(", ".join(unknown))
        raise BadMessage(f"{op.name}: this version does not know {names}", field=said(unknown[0]))
    return message


def said(text: str) -> str:
    """A peer's text as it may be repeated: printable, on one line, not too long."""
    if len(text) > MAX_SAID:
        text = text[: MAX_SAID - 1] + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _cut(op: Op, body: bytes, at: int, lengths: tuple[int, ...]) -> tuple[bytes, ...]:
    if at + sum(lengths) != len(body):
        shown = ", ".join(map(str, lengths[:8])) + (", …" if len(lengths) > 8 else "")
        raise BadMessage(
            f"{op.name}: attachments of {shown or 'no'} bytes do not fill the frame, {len(body) - at} are there",
            field="attachments",
        )
    parts = []
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    return tuple(parts)
