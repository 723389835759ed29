"""Every opcode: its number, who may send it, what it is for. The documentation and the checks read this list.

Numbers are for ever; the next new one takes the next free number of its group. A member without roles, or with
the number of another one, does not import.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum, unique


class Role(StrEnum):
    """Who a peer is. It follows from the token it proved to know, never from what it says."""

    STRANGER = "stranger"
    """Nothing proved yet."""
    CLIENT = "client"
    WORKER = "worker"
    TASK = "task"
    """Code inside an attempt: its agent has proved the worker token for it."""
    MASTER = "master"


@unique
class Op(IntEnum):
    """One thing that can be said. ``Op.SUBMIT.roles`` may send it."""

    roles: frozenset[Role]
    doc: str
    hot: bool

    def __new__(cls, number: int, roles: str, doc: str, hot: bool = False) -> Op:
        if not roles.split():
            raise TypeError(f"opcode {number} says nobody may send it")
        if not 0 < number < 256:
            raise TypeError(f"opcode {number} does not fit its byte")
        member = int.__new__(cls, number)
        member._value_ = number
        member.roles = frozenset(Role(role) for role in roles.split())
        member.doc = doc
        member.hot = hot
        return member

    # opening
    HELLO = 0x01, "stranger", "First frame of a connection: versions, nonce, which token the peer holds."
    CHALLENGE = 0x02, "master", "Answer to HELLO: the master's nonce and its proof that it knows that token."
    PROOF = 0x03, "stranger", "The peer's proof. From here on its role is that of the token."
    WELCOME = 0x04, "master", "The connection is open: who the master is and its limits."
    ERROR = 0x05, "stranger client worker master", "A typed error; with a request id it is the answer to that request."

    # clients
    SUBMIT = 0x10, "client", "Admit a graph, all or nothing; may ask to be told the outcome (watch)."
    ACCEPTED = 0x11, "master", "Answer to SUBMIT, CANCEL, RETRY, DROP and ARTIFACT_PUBLISH: it is durable."
    WATCH = 0x12, "client", "Tell me how a run or task goes, until it is final."
    UPDATE = 0x13, "master", "Answer to WATCH, and to SUBMIT with watch; the last one is final."
    LIST = 0x14, "client", "One page of runs, tasks, workers or what a graph describes."
    LISTED = 0x15, "master", "Answer to LIST."
    SHOW = 0x16, "client", "One run with a page of its tasks."
    SHOWN = 0x17, "master", "Answer to SHOW."
    EXPLAIN = 0x18, "client", "Why a task or run is where it is."
    EXPLAINED = 0x19, "master", "Answer to EXPLAIN."
    CANCEL = 0x1A, "client", "End a run, a task or an array member, and what depends on it."
    RETRY = 0x1B, "client", "Open the next generation of what failed, died or was cancelled."
    LOGS = 0x1C, "client", "The output of a task's attempt; with follow, until it ends."
    LOGGED = 0x1D, "master", "Answer to LOGS: a piece of output."
    STATS = 0x1E, "client", "The master's own figures."
    STATED = 0x1F, "master", "Answer to STATS."

    # blobs
    BLOB_ASK = 0x20, "client worker task", "Does the master hold the file with this address?"
    BLOB_HELD = 0x21, "master", "Answer to BLOB_ASK and BLOB_PUT."
    BLOB_PUT = 0x22, "client worker task", "One piece of a file; the last one closes it and its address is checked."
    BLOB_GET = 0x23, "worker client task", "Read one piece of a file."
    BLOB_PIECE = 0x24, "master", "Answer to BLOB_GET."

    # data and care
    KV_GET = 0x40, "client task", "The value of one key."
    KV_VALUE = 0x41, "master", "Answer to KV_GET."
    KV_SET = 0x42, "client task", "Give a key a value, if it is as expected; or take it away."
    KV_DONE = 0x43, "master", "Answer to KV_SET: it is durable."
    KV_LIST = 0x44, "client task", "One page of keys."
    KV_LISTED = 0x45, "master", "Answer to KV_LIST."
    ARTIFACT_PUBLISH = 0x46, "client task", "Give a file that the master holds a name."
    ARTIFACT_LIST = 0x47, "client task", "One page of artifacts, or one by its name."
    ARTIFACT_LISTED = 0x48, "master", "Answer to ARTIFACT_LIST."
    DROP = 0x49, "client", "List these DEAD tasks as dead no more."
    PRUNE = 0x4A, "client", "Forget old runs now."
    PRUNED = 0x4B, "master", "Answer to PRUNE."
    BACKUP = 0x4C, "client", "Make a consistent copy of the state; it is fetched as a blob."
    BACKED_UP = 0x4D, "master", "Answer to BACKUP."

    RESULTS = 0x4E, "client", "One page of what tasks gave: the results of functions and commands."
    GIVEN = 0x4F, "master", "Answer to RESULTS, and to WATCH with results."

    # workers
    ATTACH = 0x30, "worker", "Here I am, and this is everything I hold."
    VERDICT = (
        0x31,
        "master",
        "Answer to ATTACH: what to keep, what to hold and what to kill; later again for what was to be held.",
    )
    SPEC = 0x32, "master", "What the tasks of one spec do; sent once before its first lot."
    ASSIGN = 0x33, "master", "Lots to run.", True
    STARTED = 0x34, "worker", "Attempts that began.", True
    RESULT = 0x35, "worker", "Attempts that ended; the sequence of the frame is acknowledged.", True
    ACK = 0x36, "master", "Every RESULT frame up to this sequence is durable.", True
    RECALL = 0x37, "master", "Give back what has not started of these.", True
    KILL = 0x38, "master", "End these attempts.", True
    HEARTBEAT = 0x39, "worker master", "I am here (and how I am); the master echoes it.", True
    OUTPUT = 0x3A, "worker", "A piece of an attempt's output."
    GOODBYE = 0x3B, "worker", "I am draining: nothing new please. With nothing left: I am gone."
    FORGET = 0x3C, "master", "A run is over: its working copy may go."
    FETCH = 0x3E, "master", "A part of an output that the master does not keep, please."
    FETCHED = 0x3F, "worker", "Answer to FETCH: that part, or what there is behind it."


BY_NUMBER: dict[int, Op] = {int(op): op for op in Op}


def is_allowed(op: Op, role: Role) -> bool:
    return role in op.roles
