"""Writes the pages that are made from the code: protocol.md, configuration.md and errors.md.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1 when one of them is not what the code says

The prose stands here, every table comes from the definitions, and the examples are bytes that the code really makes.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import struct
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from titan_fast import _layout as layout  # noqa: E402
from titan_fast import config, errors, ids  # noqa: E402
from titan_fast._accel import frame, pack  # noqa: E402
from titan_fast.model import spec  # noqa: E402
from titan_fast.protocol import connection, handshake, messages  # noqa: E402
from titan_fast.protocol.opcodes import Op, Role  # noqa: E402

NOTE = "<!-- Written by docs/generate.py from the code. Change the code or that file, not this page. -->"

# ---------------------------------------------------------------- reading the definitions


def field_docs(module: Any) -> dict[str, dict[str, str]]:
    """Class -> field -> the string literal that follows the field in the source."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        docs = found[node.name] = {}
        for before, after in zip(node.body, node.body[1:], strict=False):
            match before, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = one_line(text)
    return found


def summary(cls: type) -> str:
    """The whole docstring as one paragraph; empty when the class has none of its own."""
    return one_line(cls.__dict__.get("__doc__") or "")


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


_KINDS: dict[type, str] = {
    msgspec.inspect.BoolType: "bool",
    msgspec.inspect.FloatType: "number",
    msgspec.inspect.StrType: "text",
    msgspec.inspect.NoneType: "null",
}


def describe_type(info: msgspec.inspect.Type) -> str:
    """A type as somebody who writes JSON thinks of it."""
    match info:
        case msgspec.inspect.Metadata():
            return describe_type(info.type)
        case msgspec.inspect.IntType():
            return _range(info.ge, info.le)
        case msgspec.inspect.VarTupleType():
            return f"list of {describe_type(info.item_type)}"
        case msgspec.inspect.TupleType():
            return f"[{', '.join(describe_type(part) for part in info.item_types)}]"
        case msgspec.inspect.DictType():
            return f"object of {describe_type(info.value_type)}"
        case msgspec.inspect.UnionType():
            return " or ".join(describe_type(part) for part in info.types)
        case msgspec.inspect.LiteralType():
            return " or ".join(code(value) for value in info.values)
        case msgspec.inspect.StructType():
            return f"[{info.cls.__name__}](#the-structure-{info.cls.__name__.lower()})"
    return _KINDS[type(info)]


_RANGES = {
    (None, None): "int",
    (0, (1 << 32) - 1): "int, u32",
    (0, (1 << 63) - 1): "int, u63",
    (-1, (1 << 32) - 1): "int, u32 or -1",
    (-1, (1 << 63) - 1): "int, u63 or -1",
    (1, (1 << 32) - 1): "int, u32 from 1",
    (-(1 << 31), (1 << 31) - 1): "int, i32",
}


def _range(low: int | None, high: int | None) -> str:
    known = _RANGES.get((low, high))
    return known or f"int, {'' if low is None else low} … {'' if high is None else high}"


def describe_default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct):
        return "`{}`"
    if isinstance(value, tuple):
        return "`[]`"
    return code(msgspec.json.encode(value).decode())


def code(text: object) -> str:
    return f"`{text}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(cell(text) for text in row) + " |" for row in rows), ""]


def size(number: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor and number % factor == 0:
            return f"{number // factor} {unit}"
    return f"{number:,}"


# ---------------------------------------------------------------- the protocol

OPENING_TEXT = """\
# TITAN_PROTO 2

This is the language of masters, workers and clients, complete enough to write a client in another language: that takes
a socket, a JSON library and HMAC-SHA256. Everything below is made from the code that speaks it.

## The shape of a connection

A peer connects by TCP and speaks first. Both sides send **frames**. A frame is an 8-byte header, a request id and the
rest of the body, whose meaning belongs to the opcode. All numbers are unsigned and big-endian unless said otherwise.

A peer gives each request a number of its own choice (a `u32`, not 0), and every answer carries it. Answers come in
any order, so many requests may be under way at once. Request id 0 means that no answer is expected. An answer has
the reply flag; it is either the message the tables name, or ERROR. Some requests have many answers (WATCH, LOGS,
SUBMIT with `watch`): they go on until the one that says `final`.

Messages come in two kinds. A **cold** message is one JSON document, and maybe raw bytes after it. A **hot** message
is a table of packed records: only workers and masters use those, and a client never meets one.
"""

FRAME_TEXT = """\
The length counts everything after the header, so it is at least {request_id}. It is judged as soon as the header is
there: a frame with a wrong version, an unknown flag, a reserved byte that is not 0 or a length over the limit ends the
connection, because nothing behind it can be cut any more.
"""

COLD_TEXT = """\
### Cold messages

Without the attachments flag the rest of the body is one JSON document (UTF-8, an object). With it, the rest is a `u32`
length, the document of that length, and then raw parts whose lengths the document's field `attachments` lists. They
fill the frame exactly; a part may be empty. Nothing is ever written in base64.

Fields with a default may be left out. Unknown fields are ignored, so that either side can be newer. Where a reader
must not ignore a field, its name stands in the list `critical`, which every message may have: a reader that does
not know a field named there refuses the message. Numbers have bounds (*u63* is 0 … 2⁶³ - 1), and a document that
breaks its types is answered with an ERROR `bad_message` whose text and `field` say where, such as
`$.graph.tasks[3].priority`. The connection goes on: one bad request is not everybody's problem.

### Messages in several frames

A message longer than a frame may be is cut anywhere into several, all of the same opcode, request id and flags; all but
the last one also have the *more* flag. Parts of different messages may interleave. Only the last part may be empty, and
hot messages are never cut. Before the handshake is done nobody may send parts at all. All unfinished messages of a
connection together are at most as long as one message may be, and there are at most {unfinished} of them.
"""

HOT_TEXT = """\
### Hot messages

The rest of the body is a prologue of {prologue} bytes (layout `u16`, record size `u16`, record count `u32`,
sequence `u64`), so many records, and a tail of raw bytes that belongs to the layout. Fields stand one after the
other without padding. Records may be longer than the layout says: a reader takes the fields it knows from the front
and skips the rest, so layouts grow at their end only. Times are microseconds since 1970 on the clock of the machine
that wrote them, durations are microseconds. ACK has no records, its sequence says it all; nor has the HEARTBEAT
with which a master answers a worker's.
"""

LIMITS_TEXT = """\
## Limits

These are the defaults; the master says its own in WELCOME. Who breaks one is told so. What is too long, too many at a
time or too slow also ends the connection, because it would cost its reader more than an answer.
"""

HANDSHAKE_TEXT = """\
## The handshake

There is no anonymous mode. A master has two tokens, one for clients and one for workers, in files that only their
owner can read. Which of them a peer knows decides its role; what it says about itself decides nothing. The token is
never sent: each side proves that it knows it, and the master proves first, so that a peer gives nothing to somebody
who merely listens on the port.

1. The peer sends HELLO with a nonce (32 random bytes, as 64 lower-case hex digits) and the name of its token.
2. The master answers CHALLENGE with a nonce of its own and the proof of side `master`. The peer checks it before it
   says anything else, and hangs up when it is wrong.
3. The peer sends PROOF with the proof of side `peer`, and waits: what it sends before WELCOME is still judged as
   said by a stranger.
4. The master answers WELCOME. From here on the peer has the role of its token.

A proof is the HMAC-SHA256, in lower-case hex, whose key is the token's text and whose message is the ASCII text

    titan-fast 2|SIDE|PEER NONCE|MASTER NONCE

so with the token `token`, a peer nonce of 64 zeros and a master nonce of 64 ones, the peer's proof is `{vector}`.
Compare proofs in constant time, use a nonce once, and refuse an empty token. WELCOME counts only after a CHALLENGE
whose proof was right. A stranger has {stranger} bytes for a frame and a few seconds for all of it, and the first
mistake ends the connection.

HELLO also says which protocol versions the peer speaks, the cluster it knows (a master of another one refuses it)
and the highest epoch it has seen.

### Inside a task

Code that runs as a task has no token of the cluster. It connects to the unix socket that `TITAN_AGENT` names, where its
worker's agent listens, and opens the connection as above with the token name `task`, the token in `TITAN_AGENT_TOKEN`
and the field `fence`, which is `TITAN_FENCE` as one number: epoch × 2⁴⁰ + sequence. The agent then opens a
connection to the master with the worker's token and the same `fence`, hands the master's WELCOME on, and from there on
passes every byte in both directions. The role is `task`: keys and artifacts, nothing else. It ends with the attempt.
"""

REPEAT_TEXT = """\
## When a connection breaks

A master that stops, crashes or is restarted is back a little later, and a client that goes on where it stopped loses
nothing. It connects again (to any address of its list, with growing random pauses of at most a second), and then:

* A request that **changes** something has the field `once`: a random name of the client and a number that it never
  uses twice. When no answer came, it sends the same request with the same key and `repeat` set. A request that was
  carried out before is then answered as it was, and not carried out again. A master answers only when the change is
  durable, so what was answered needs no repeat. Keys are kept for a day, and for an hour after their run has ended.
* A **question** is asked again. Whoever watches or reads the newest run (run 0) asks for it by its number from the
  first answer on: by now the newest may be another one.
* **WATCH** is sent again and answers with how things are now.
* A **SUBMIT that watches** (`watch`) is sent again, as a repeat, while nobody has answered. Who has its ACCEPTED sends
  WATCH with that number instead.
* **LOGS** goes on with the `fence` of the last piece and the `offset` behind its last byte; no byte is missing or
  comes twice.
* A file whose connection ended before its last BLOB_PUT is begun again from its first byte.

WELCOME names the master's `history`. When it is another one than before, the state was lost or replaced: the run
numbers and revisions of before mean nothing any more, and asking about them would answer about somebody else's.

ERROR `stopping` and every other *retryable* error (see errors.md) can be treated like a connection that broke, except
`disk_full`: somebody has to make room, and should hear of it.
"""

OLD_TEXT = """\
## Peers of version 1

The header is that of the original TITAN_PROTO, so that either side can cut the other's frames. A version-1 frame is
answered with a version-1 error frame, and the connection ends:
"""

EXAMPLE_TEXT = """\
## A frame, byte by byte

The request to cancel member 3 of the array `square` in run 12, as request 7:
"""

ATTACHED_TEXT = """\
The first piece of an output, an answer to request 9 with one attachment:
"""

HOT_EXAMPLE_TEXT = """\
And a hot one: a worker says that attempt 1.5 (epoch 1, sequence 5) of task 2 in run 12 runs as process 4242:
"""


def protocol() -> str:
    docs = field_docs(messages)
    spec_docs = field_docs(spec)
    out = [NOTE, "", OPENING_TEXT, "## Frames", ""]
    out += table(
        ("offset", "size", "field"),
        (
            ("0", "1", f"version: `{layout.VERSION}`"),
            ("1", "1", "opcode"),
            ("2", "1", "flags"),
            ("3", "1", "reserved: `0`"),
            ("4", "4", "length of the body"),
            (str(layout.HEADER_SIZE), str(layout.REQUEST_ID_SIZE), "request id: the first bytes of the body"),
            (str(layout.HEADER_SIZE + layout.REQUEST_ID_SIZE), "length - 4", "the message"),
        ),
    )
    out += table(
        ("flag", "name", "meaning"),
        (
            (f"`{layout.FLAG_REPLY:#04x}`", "reply", "an answer to the request of this id"),
            (f"`{layout.FLAG_ATTACHMENTS:#04x}`", "attachments", "raw bytes follow the document"),
            (f"`{layout.FLAG_MORE:#04x}`", "more", "the message goes on in another frame"),
        ),
    )
    out += [FRAME_TEXT.format(request_id=layout.REQUEST_ID_SIZE)]
    out += [COLD_TEXT.format(unfinished=connection.MAX_UNFINISHED), HOT_TEXT.format(prologue=layout.PROLOGUE_SIZE)]
    out += [LIMITS_TEXT, *limits()]
    vector = handshake.proof("token", "peer", "0" * 64, "1" * 64)
    out += [HANDSHAKE_TEXT.format(vector=vector, stranger=f"{layout.MAX_BODY_BEFORE_HELLO:,}")]
    out += [REPEAT_TEXT, OLD_TEXT, *old_version(), EXAMPLE_TEXT, *cold_example(), ATTACHED_TEXT, *attached_example()]
    out += [HOT_EXAMPLE_TEXT, *hot_example()]
    out += ["## Opcodes", "", "Who may send what. A message of any other role is answered with ERROR `wrong_role`.", ""]
    out += table(
        ("number", "name", "from", "kind", "meaning"),
        (
            (
                f"`{op:#04x}`",
                f"[{op.name}](#{op.name.lower()})",
                ", ".join(str(role) for role in Role if role in op.roles),
                "hot" if op.hot else "cold",
                op.doc,
            )
            for op in sorted(Op)
        ),
    )
    out += ["## Messages", "", "Every one may also have `critical`, a list of field names (see *Cold messages*).", ""]
    for op in sorted(Op):
        out += hot_message(op) if op.hot else cold_message(op, docs)
    out += ["## Parts of messages", "", "What the tables above link to.", ""]
    for cls in structs():
        out += [f"### The structure {cls.__name__}", "", *([summary(cls), ""] if summary(cls) else [])]
        out += fields(cls, {**docs, **spec_docs}.get(cls.__name__, {}))
    out += ["## Records", "", *records()]
    return "\n".join(out)


def limits() -> list[str]:
    seconds = config.LimitSettings()
    return table(
        ("what", "limit"),
        (
            ("body of a frame before WELCOME", size(layout.MAX_BODY_BEFORE_HELLO)),
            ("body of a frame", size(layout.MAX_BODY)),
            ("a message in several frames, and all unfinished ones together", size(connection.MAX_MESSAGE)),
            ("unfinished messages", str(connection.MAX_UNFINISHED)),
            ("attachments of a message", f"{messages.MAX_ATTACHMENTS:,}"),
            ("names in `critical`", str(messages.MAX_CRITICAL)),
            ("seconds from the connection to the proof", f"{seconds.hello_timeout:g}"),
            ("connections that have not proved themselves, in all", str(seconds.strangers)),
            ("the same, from one address", str(seconds.strangers_per_address)),
            ("bytes a peer may leave unread", size(seconds.undrained)),
        ),
    )


def structs() -> list[type[msgspec.Struct]]:
    """Every structure that messages are made of, in the order in which a reader meets them."""
    found: dict[type[msgspec.Struct], None] = {}

    def visit(info: Any) -> None:
        match info:
            case msgspec.inspect.StructType():
                if not issubclass(info.cls, messages.Message):
                    if info.cls in found:
                        return
                    found[info.cls] = None
                for field in info.fields:
                    visit(field.type)
            case msgspec.inspect.VarTupleType():
                visit(info.item_type)
            case msgspec.inspect.DictType():
                visit(info.value_type)
            case msgspec.inspect.UnionType():
                for part in info.types:
                    visit(part)
            case msgspec.inspect.Metadata():
                visit(info.type)

    for op in sorted(messages.BY_OP):
        visit(msgspec.inspect.type_info(messages.BY_OP[op]))
    return list(found)


def fields(cls: type[msgspec.Struct], docs: dict[str, str], without: tuple[str, ...] = ()) -> list[str]:
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.StructType)
    rows = [
        (code(field.encode_name), describe_type(field.type), describe_default(field), docs.get(field.name, ""))
        for field in sorted(info.fields, key=lambda field: not field.required if not info.array_like else 0)
        if field.name not in without
    ]
    return table(("field", "type", "default", "meaning"), rows) if rows else []


def cold_message(op: Op, docs: dict[str, dict[str, str]]) -> list[str]:
    cls = messages.BY_OP[op]
    out = [f"### {op.name}", "", f"`{op:#04x}` · from {who(op)}. {op.doc} {summary(cls)}".strip(), ""]
    own = {**docs["WithAttachments"], **docs.get(cls.__name__, {})}
    return out + fields(cls, own, without=("critical",))


def hot_message(op: Op) -> list[str]:
    name = layout.LAYOUTS[connection.HOT_LAYOUTS[op]][0]
    return [
        f"### {op.name}",
        "",
        f"`{op:#04x}` · from {who(op)} · hot, [{name}](#the-record-{name}) records. {op.doc}",
        "",
    ]


def who(op: Op) -> str:
    return ", ".join(str(role) for role in Role if role in op.roles)


_WIDTHS = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "i": "i32", "d": "f64"}


def records() -> list[str]:
    """The layouts with their offsets, and what the source says of them."""
    source = inspect.getsource(layout)
    text = source.partition("LAYOUTS: dict")[2].partition('"""')[2].partition('"""')[0]
    out = [text.partition("\n\n")[2].strip().replace("``", "`"), ""]
    for number, (name, columns) in layout.LAYOUTS.items():
        total = struct.calcsize(">" + "".join(kind for _, kind in columns))
        used = [op.name for op, carried in connection.HOT_LAYOUTS.items() if carried == number]
        out += [f"### The record {name}", "", f"Layout {number}, {total} bytes; {', '.join(used)}.", ""]
        rows, at = [], 0
        for field, kind in columns:
            rows.append((str(at), _WIDTHS[kind], code(field)))
            at += struct.calcsize(">" + kind)
        out += table(("offset", "type", "field"), rows)
    endings = field_docs(ids)["Ending"]
    out += ["The field `ending` of a result says how the attempt ended:", ""]
    out += table(
        ("number", "name", "meaning"), ((str(int(one)), one.name, endings.get(one.name, "")) for one in ids.Ending)
    )
    return out


def hex_lines(parts: Iterable[tuple[bytes, str]]) -> list[str]:
    """Bytes with what they are, sixteen to a line."""
    out = ["```"]
    for data, meaning in parts:
        for at in range(0, len(data), 16):
            piece = data[at : at + 16]
            out.append(f"{piece.hex(' '):<48}{meaning if at == 0 else ''}".rstrip())
    return [*out, "```", ""]


def header_parts(data: bytes, op: Op, flags: str) -> list[tuple[bytes, str]]:
    return [
        (data[0:1], "version 2"),
        (data[1:2], f"opcode {op.name}"),
        (data[2:3], f"flags: {flags}"),
        (data[3:4], "reserved"),
        (data[4:8], f"length of the body: {int.from_bytes(data[4:8], 'big')}"),
        (data[8:12], f"request id {int.from_bytes(data[8:12], 'big')}"),
    ]


def cold_example() -> list[str]:
    data = connection.send(messages.Cancel(12, "square", 3), request=7)
    document = data[12:]
    return hex_lines([*header_parts(data, Op.CANCEL, "none"), (document, document.decode())])


def attached_example() -> list[str]:
    data = connection.send(messages.Logged(), (b"hello\n",), request=9, is_reply=True)
    end = 16 + int.from_bytes(data[12:16], "big")
    parts = [
        *header_parts(data, Op.LOGGED, "reply, attachments"),
        (data[12:16], f"length of the document: {end - 16}"),
        (data[16:end], data[16:end].decode()),
        (data[end:], "the attachment: hello, and the end of the line"),
    ]
    return hex_lines(parts)


def hot_example() -> list[str]:
    row = (12, 2, 1, ids.make_fence(1, 5), 4242, 1_700_000_000_000_000)
    body = pack(layout.STARTED, 0, [[value] for value in row])
    data = frame(Op.STARTED, 0, 0, body)
    name, columns = layout.LAYOUTS[layout.STARTED]
    parts = [
        *header_parts(data, Op.STARTED, "none"),
        (body[0:2], f"layout {layout.STARTED}: {name}"),
        (body[2:4], f"record size {int.from_bytes(body[2:4], 'big')}"),
        (body[4:8], "records: 1"),
        (body[8:16], "sequence 0"),
    ]
    at = layout.PROLOGUE_SIZE
    for (field, kind), value in zip(columns, row, strict=True):
        width = struct.calcsize(">" + kind)
        parts.append((body[at : at + width], f"{field} {value}"))
        at += width
    return hex_lines(parts)


def old_version() -> list[str]:
    data = connection.old_version_error(errors.WrongVersion(layout.OLD_VERSION))
    parts = [
        (data[0:1], "version 1"),
        (data[1:2], "opcode 0: error"),
        (data[2:4], "flags and reserved"),
        (data[4:8], f"length of the text: {len(data) - 8}"),
        (data[8:], data[8:].decode()),
    ]
    return hex_lines(parts)


# ---------------------------------------------------------------- the settings

SETTINGS_TEXT = """\
# Configuration

titan-fast needs no configuration: without any, a master listens on 127.0.0.1:{port} and everything else finds it there.
Every setting has a default that is meant to be kept until you know why not.

## Where a setting comes from

The first of these that has it wins:

1. the command's own option, where it has one (`titan-fast COMMAND --help`): a setting's option is its key with dashes,
   such as `--state-dir` for `state_dir`;
2. the environment variable in the tables below, `TITAN_` and the section and the key;
3. `titan.toml` in the working directory;
4. `titan.toml` in `TITAN_HOME`;
5. the default.

`TITAN_HOME` is the folder where state, work directories and tokens live: `$XDG_STATE_HOME/titan-fast`, and without that
variable `~/.local/state/titan-fast`. A file has one table for each section:

```toml
[worker]
slots = 8
caps = "GPU,HIGH_MEM"

[client]
master = "127.0.0.1:9090"
```

A key that is not known, or a value of the wrong type or out of range, is an error that says where it stands; nothing is
ignored quietly. In the environment a switch is `true` or `false` (or `1` or `0`), and numbers are written as usual.

## Finding the master and the token

The address is that of `--master`, else the variable `TITAN_ADDR`, else `master` in a `titan.toml`, else
127.0.0.1:{port}. It may be a list, `host:port,host:port`, whose members are tried in turn.

The token is what `--token-file` or `token_file` names, else `TITAN_TOKEN` or `token`, else the file
`tokens/HOST_PORT.client` in `TITAN_HOME`, where a master that was started with the same home has put it (`.worker` for
workers).

Inside of a task neither is needed: what is given no address and no token, and finds no `TITAN_ADDR`, goes through the
worker's agent with `TITAN_AGENT`, `TITAN_AGENT_TOKEN` and `TITAN_FENCE`, which every task is given. It may use keys and
artifacts (`titan-fast kv`, `titan-fast artifact`, `titan_fast.inside`) as long as that attempt runs.

| short variable | means |
|---|---|
{short}
"""

HOME_TEXT = """\
## The codec

`TITAN_FAST_ACCEL` chooses between the compiled modules and their equals in pure Python: `auto` (default) takes the
compiled ones when all of them are there, `require` refuses to start without them, `off` takes the pure ones.
`titan-fast doctor` says which are in use.
"""


def configuration() -> str:
    short = "\n".join(
        f"| `{name}` | `{long_name(section, key)}` |" for name, (section, key) in sorted(config.SHORT_NAMES.items())
    )
    out = [NOTE, "", SETTINGS_TEXT.format(port=config.DEFAULT_PORT, short=short)]
    for section, cls in config.SECTIONS.items():
        text = summary(cls).partition(": ")[2]
        out += [f"## `[{section}]`", "", text[:1].upper() + text[1:], ""]
        info = msgspec.inspect.type_info(cls)
        assert isinstance(info, msgspec.inspect.StructType)
        out += table(
            ("key", "type", "default", "meaning", "variable"),
            (setting_row(section, field) for field in info.fields),
        )
    return "\n".join([*out, HOME_TEXT])


def setting_row(section: str, field: msgspec.inspect.Field) -> tuple[str, ...]:
    info, description = field.type, ""
    if isinstance(info, msgspec.inspect.Metadata):
        description = (info.extra_json_schema or {}).get("description", "")
        info = info.type
    return (
        code(field.name),
        setting_type(info),
        setting_default(field.default),
        description,
        code(long_name(section, field.name)),
    )


def long_name(section: str, key: str) -> str:
    return f"TITAN_{section}_{key}".upper()


def setting_type(info: msgspec.inspect.Type) -> str:
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(map(str, info.values))
    names: dict[type, str] = {**_KINDS, msgspec.inspect.IntType: "int"}
    text = names[type(info)]
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        if info.ge is not None and info.le is not None:
            return f"{text}, {info.ge:g} … {info.le:g}"
        if info.ge is not None:
            return f"{text} ≥ {info.ge:,}"
        if info.gt is not None:
            return f"{text} > {info.gt:,}"
    return text


def setting_default(value: Any) -> str:
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, int) and value >= 1 << 12 and size(value) != f"{value:,}":
        return f"{code(value)} ({size(value)})"
    return code(f"{value:g}" if isinstance(value, float) else value)


# ---------------------------------------------------------------- the errors

ERRORS_TEXT = """\
# Errors

Every error has a **code** that does not change, and programs look at that. On the wire it travels as an ERROR
message (code, message, hint, field); the SDK raises the class of the same code; with `--json` the command line
prints `{"error": {"code", "message", "hint"}}` on stderr and ends with the exit code of the class. The message says
what is wrong and where, the hint what to do about it. A code that this version does not know arrives as a plain
`TitanError` with its text.

**Retryable** means that the same request may succeed later without anybody changing anything. Errors are of three
families: somebody asked for something that cannot be (`UserError`), the other side broke the protocol or is not
there (`PeerError`), or it is our own fault (`InternalError`). Catch a family, or `TitanError` for all of them.
"""

FAMILIES = (errors.UserError, errors.PeerError, errors.InternalError)


def error_docs() -> str:
    out = [NOTE, "", ERRORS_TEXT]
    every = errors.all_errors()
    for family in FAMILIES:
        members = {name: cls for name, cls in every.items() if issubclass(cls, family)}
        out += [f"## {family.__name__}", "", summary(family), ""]
        out += table(
            ("code", "class", "exit code", "retryable", "meaning"),
            (
                (code(name), code(ancestry(cls)), str(cls.exit_code), "yes" if cls.retryable else "", meaning(cls))
                for name, cls in members.items()
            ),
        )
    rest = [name for name, cls in every.items() if not issubclass(cls, FAMILIES)]
    if rest:
        raise SystemExit(f"these errors belong to no family: {', '.join(rest)}")
    out += ["## Exit codes of the command line", ""]
    out += table(("code", "meaning"), EXIT_CODES)
    return "\n".join(out)


EXIT_CODES = (
    ("0", "good"),
    ("1", "the run or task failed or was cancelled (`submit --wait` passes the command's own code on)"),
    ("2", "wrong usage, or an invalid file"),
    ("3", "no master answers"),
    ("4", "not found"),
    ("5", "refused: the token, a limit, a port that is taken"),
    ("70", "our own fault, or the store failed"),
    ("124", "a wait timed out"),
    ("130", "interrupted"),
)


def ancestry(cls: type[errors.TitanError]) -> str:
    """``BadProof(Refused)``: the class, and what else catches it below its family."""
    parent = cls.__bases__[0]
    return cls.__name__ if parent in (errors.TitanError, *FAMILIES) else f"{cls.__name__}({parent.__name__})"


def meaning(cls: type[errors.TitanError]) -> str:
    """Its docstring, else the text it is built with, with what varies in angle brackets."""
    return summary(cls) or template(cls) or "See its message."


def template(cls: type[errors.TitanError]) -> str:
    """The message of a class that builds it itself: "there is no run <run>"."""
    build = cls.__dict__.get("__init__")
    if build is None:
        return ""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(build)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__" and node.args:
            text = literal(node.args[0])
            return text[:1].upper() + text[1:] + "." if text else ""
    return ""


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"*{ast.unparse(part).strip('f{}').strip(chr(39))}*"
            for part in node.values
        )
    return ""


# ---------------------------------------------------------------- writing

PAGES: dict[str, Callable[[], str]] = {
    "protocol.md": protocol,
    "configuration.md": configuration,
    "errors.md": error_docs,
}


def stale() -> list[str]:
    """Pages that are not what the code says now."""
    found = []
    for name, make in PAGES.items():
        path = HERE / name
        if not path.exists() or path.read_text("utf-8") != make().rstrip() + "\n":
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the pages of docs/ that are made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is stale")
    if parser.parse_args().check:
        old = stale()
        if old:
            print(f"stale: {', '.join(old)}; run python docs/generate.py", file=sys.stderr)
        return 1 if old else 0
    for name, make in PAGES.items():
        (HERE / name).write_text(make().rstrip() + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
