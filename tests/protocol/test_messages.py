"""Bodies: what is written is what is read, and what cannot be read says which field is wrong."""

from __future__ import annotations

import json
from typing import get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from titan_fast.errors import BadMessage
from titan_fast.model.spec import GraphSpec, TaskSpec, Work
from titan_fast.protocol import messages as msg
from titan_fast.protocol.messages import BY_OP, MAX_ATTACHMENTS, WithAttachments, decode, encode
from titan_fast.protocol.opcodes import Op

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def texts_of(info):
    return TEXT.filter(lambda text: len(text) >= (info.min_length or 0))


def values_of(kind):
    """A strategy for a type annotation, as msgspec understands it."""
    info = msgspec.inspect.type_info(kind) if not isinstance(kind, msgspec.inspect.Type) else kind
    match info:
        case msgspec.inspect.IntType():
            low = info.ge if info.ge is not None else -(1 << 63)
            high = info.le if info.le is not None else (1 << 63) - 1
            return st.integers(low, high)
        case msgspec.inspect.FloatType():
            return st.floats(info.ge, info.le, allow_nan=False, allow_infinity=False)
        case msgspec.inspect.StrType():
            return st.from_regex(info.pattern, fullmatch=True) if info.pattern else texts_of(info)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType():
            return st.sampled_from(info.values)
        case msgspec.inspect.UnionType():
            return st.one_of([values_of(part) for part in info.types])
        case msgspec.inspect.VarTupleType():
            return st.lists(values_of(info.item_type), max_size=3).map(tuple)
        case msgspec.inspect.TupleType():
            return st.tuples(*map(values_of, info.item_types))
        case msgspec.inspect.DictType():
            return st.dictionaries(values_of(info.key_type), values_of(info.value_type), max_size=3)
        case msgspec.inspect.StructType():
            return instances(info.cls)
    raise AssertionError(f"no values for {info!r}: teach this test")


def instances(cls):
    """A strategy for a struct. A message's ``critical`` and ``attachments`` are not free, so they stay empty."""
    hints = get_type_hints(cls, include_extras=True)
    names = [name for name in cls.__struct_fields__ if name not in ("critical", "attachments")]
    return st.fixed_dictionaries({name: values_of(hints[name]) for name in names}).map(lambda row: cls(**row))


@pytest.mark.parametrize("op", list(BY_OP), ids=lambda op: op.name)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(op, data):
    cls = BY_OP[op]
    message = data.draw(instances(cls))
    parts = ()
    if issubclass(cls, WithAttachments):
        parts = tuple(data.draw(st.lists(st.binary(max_size=5), max_size=3)))
    body, has_attachments = encode(message, parts)
    assert has_attachments == bool(parts)
    back, cut = decode(op, body, has_attachments)
    assert cut == parts
    assert msgspec.structs.replace(back, attachments=()) == message if parts else back == message


GRAPH = GraphSpec("g", tuple(TaskSpec(name, Work(shell="true")) for name in "abcd"))


def refusal(op, document, has_attachments=False):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(BadMessage) as caught:
        decode(op, body, has_attachments)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    return caught.value


def test_an_error_names_the_field():
    document = json.loads(encode(msg.Submit(graph=GRAPH))[0])
    document["graph"]["tasks"][3]["priority"] = "high"
    error = refusal(Op.SUBMIT, document)
    assert error.message == "SUBMIT: Expected `int`, got `str` - at `$.graph.tasks[3].priority`"
    assert error.field == "graph.tasks[3].priority"


@pytest.mark.parametrize(
    ("op", "document", "text"),
    [
        (Op.SUBMIT, {}, "missing required field `graph`"),
        (Op.CANCEL, {}, "missing required field `run`"),
        (Op.CANCEL, {"run": -1}, "Expected `int` >= 0 - at `$.run`"),
        (Op.CANCEL, {"run": 1 << 63}, "Expected `int` <= 9223372036854775807 - at `$.run`"),
        (Op.CANCEL, {"run": 10**4000}, "Expected `int` <= 9223372036854775807 - at `$.run`"),
        (Op.CANCEL, b'{"run": ' + b"9" * 100_000 + b"}", "Integer value out of range - at `$.run`"),
        (Op.CANCEL, {"run": 1, "member": -2}, "Expected `int` >= -1 - at `$.member`"),
        (Op.CANCEL, {"run": 1.0}, "Expected `int`, got `float` - at `$.run`"),
        (Op.CANCEL, {"run": True}, "Expected `int`, got `bool` - at `$.run`"),
        (Op.BLOB_GET, {"digest": "", "offset": 1 << 63}, "<= 9223372036854775807 - at `$.offset`"),
        (Op.LIST, {"what": "runs", "limit": 0}, ">= 1 - at `$.limit`"),
        (Op.LIST, {"what": "runs", "cursor": "\u00b2"}, "at `$.cursor`"),
        (Op.LIST, {"what": "runs", "cursor": "9" * 5000}, "at `$.cursor`"),
        (Op.LIST, {"what": "runs", "cursor": "1\n"}, "at `$.cursor`"),
        (Op.WELCOME, b'{"heartbeat": 1e999}', "Number out of range - at `$.heartbeat`"),
        (Op.STATS, b"[]", "Expected `object`, got `array`"),
        (Op.STATS, b"null", "Expected `object`, got `null`"),
        (Op.STATS, b"", "truncated"),
        (Op.STATS, b"{} {}", "trailing"),
        (Op.STATS, b"\x00", "malformed"),
        (Op.PROOF, b'{"proof": "\xff"}', "utf-8"),
        (Op.PROOF, b'{"proof": "\\ud800"}', ""),
        (Op.PROOF, b'{"proof": "\\udc00\\ud800"}', ""),
        (Op.STATS, {"critical": ["x"] * 33}, "length <= 32"),
        (Op.STATS, b'{"x": ' + b"[" * 200_000, "nested too deeply"),
        (Op.STATS, b'{"x": ' * 200_000, "nested too deeply"),
        (Op.SUBMIT, b'{"graph": ' + b"[" * 200_000, "Expected `object`"),
    ],
)
def test_a_wrong_document_is_a_typed_error(op, document, text):
    assert text in refusal(op, document).message


def test_unknown_fields_are_ignored():
    message, _ = decode(Op.CANCEL, b'{"run": 3, "because": {"of": [1, null, "x"]}}', False)
    assert message == msg.Cancel(3)


def test_critical_fields_that_are_known_are_fine():
    message, _ = decode(Op.CANCEL, b'{"run": 3, "critical": ["run", "task"]}', False)
    assert message.run == 3


@pytest.mark.parametrize("op", list(BY_OP), ids=lambda op: op.name)
def test_critical_fields_that_nobody_knows_refuse_any_message(op):
    fields = BY_OP[op].__struct_fields__
    probe = next(name for name in ("only_if_sunny", "sunny") if name not in fields)
    document = json.loads(msgspec.json.encode(EXAMPLES[op]))
    error = refusal(op, {**document, probe: True, "critical": [probe]})
    assert error.message == f"{op.name}: this version does not know {probe}"
    assert error.field == probe


ROW = msg.RunRow(1, "r", "RUNNING", "", 0.0, 0.0, 0.0, {})
EXAMPLES = {
    Op.HELLO: msg.Hello("0" * 64, "worker", fence=7),
    Op.CHALLENGE: msg.Challenge("0" * 64, "p"),
    Op.PROOF: msg.Proof("p"),
    Op.WELCOME: msg.Welcome("client", "c", 1, "s", 1, 1),
    Op.ERROR: msg.Error("code", "text"),
    Op.SUBMIT: msg.Submit(graph=GRAPH),
    Op.ACCEPTED: msg.Accepted(1),
    Op.WATCH: msg.Watch(1),
    Op.UPDATE: msg.Update(1, "n", "RUNNING", {}),
    Op.LIST: msg.List("runs"),
    Op.LISTED: msg.Listed(),
    Op.SHOW: msg.Show(1),
    Op.SHOWN: msg.Shown(ROW, ()),
    Op.RESULTS: msg.Results(1, "t"),
    Op.GIVEN: msg.Given(),
    Op.EXPLAIN: msg.Explain(1),
    Op.EXPLAINED: msg.Explained("1", "s", "r", "d"),
    Op.CANCEL: msg.Cancel(1),
    Op.RETRY: msg.Retry(1),
    Op.LOGS: msg.Logs(1, "t"),
    Op.LOGGED: msg.Logged(),
    Op.STATS: msg.Stats(),
    Op.STATED: msg.Stated("pure", "asyncio", "0", 1, "c", 0.0, 0, 0, {}, 0, 0, 0.0, "none", 0, 0.0, 0),
    Op.BLOB_ASK: msg.BlobAsk("d"),
    Op.BLOB_HELD: msg.BlobHeld("d", -1),
    Op.BLOB_PUT: msg.BlobPut(digest="d"),
    Op.BLOB_GET: msg.BlobGet("d"),
    Op.BLOB_PIECE: msg.BlobPiece(),
    Op.KV_GET: msg.KvGet(name="k"),
    Op.KV_VALUE: msg.KvValue(name="k", revision=1),
    Op.KV_SET: msg.KvSet(name="k"),
    Op.KV_DONE: msg.KvDone(1),
    Op.KV_LIST: msg.KvList(),
    Op.KV_LISTED: msg.KvListed(()),
    Op.ARTIFACT_PUBLISH: msg.ArtifactPublish(name="a", digest="0" * 64),
    Op.ARTIFACT_LIST: msg.ArtifactList(),
    Op.ARTIFACT_LISTED: msg.ArtifactListed(()),
    Op.DROP: msg.Drop(1),
    Op.PRUNE: msg.Prune(),
    Op.PRUNED: msg.Pruned(1),
    Op.BACKUP: msg.Backup(),
    Op.BACKED_UP: msg.BackedUp("d", 1),
    Op.ATTACH: msg.Attach("w", "n", "x", 1, 1),
    Op.VERDICT: msg.VerdictMessage(),
    Op.SPEC: msg.Spec(run=1, spec=0, name="n", first=0, array=False, work=Work(shell="true")),
    Op.OUTPUT: msg.Output(run=1, index=0, fence=1),
    Op.GOODBYE: msg.Goodbye(True),
    Op.FORGET: msg.Forget(1),
    Op.FETCH: msg.Fetch(1, 0, 1, 0, 1),
    Op.FETCHED: msg.Fetched(run=1, index=0, fence=1, asked=0, offset=0),
}


def test_what_a_peer_said_is_repeated_on_one_short_line():
    assert "\\n" in refusal(Op.STATS, {"critical": ["x\nERROR root: hacked\x1b[2J"]}).message
    assert refusal(Op.STATS, {"critical": ["x" * 100_000]}).field.endswith("…")


def test_nul_in_text_is_text():
    message, _ = decode(Op.BLOB_ASK, b'{"digest": "a\\u0000b"}', False)
    assert message == msg.BlobAsk("a\0b")


def test_text_that_is_not_unicode_is_refused_before_it_leaves():
    with pytest.raises(BadMessage, match=r"BLOB_ASK: the text '/tmp/\\udcff' is not Unicode"):
        encode(msg.BlobAsk("/tmp/\udcff"))


# ---------------------------------------------------------------- attachments


def with_lengths(lengths, rest, op=Op.LOGGED, **fields):
    document = json.dumps({"attachments": lengths, **fields}).encode()
    return len(document).to_bytes(4, "big") + document + rest


def test_attachments_are_cut_by_their_lengths():
    assert decode(Op.LOGGED, with_lengths([2, 0, 3], b"abcde"), True)[1] == (b"ab", b"", b"cde")


@pytest.mark.parametrize(
    ("lengths", "rest", "text"),
    [
        ([3], b"ab", "attachments of 3 bytes do not fill the frame, 2 are there"),
        ([1], b"ab", "attachments of 1 bytes do not fill the frame, 2 are there"),
        ([], b"ab", "attachments of no bytes"),
        ([0] * 20, b"ab", "attachments of 0, 0, 0, 0, 0, 0, 0, 0, … bytes"),
        ([-1, 3], b"ab", "Expected `int` >= 0"),
        ([-1], b"", "Expected `int` >= 0"),
        ([1 << 62, 1 << 62], b"", "do not fill"),
        ([1 << 64], b"", "<= 9223372036854775807"),
        ([10**400], b"", "<= 9223372036854775807"),
        ([True], b"a", "got `bool`"),
        ("2", b"ab", "got `str`"),
    ],
)
def test_lengths_that_do_not_add_up(lengths, rest, text):
    assert text in refusal(Op.LOGGED, with_lengths(lengths, rest), True).message


def test_a_bomb_of_empty_attachments_is_refused():
    document = b'{"attachments":[' + b"0," * MAX_ATTACHMENTS + b"0]}"
    body = len(document).to_bytes(4, "big") + document
    assert f"length <= {MAX_ATTACHMENTS}" in refusal(Op.LOGGED, body, True).message
    assert len(decode(Op.LOGGED, with_lengths([0] * MAX_ATTACHMENTS, b""), True)[1]) == MAX_ATTACHMENTS


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff{}", b"\0\0\0\3{}"])
def test_a_document_longer_than_its_frame(body):
    assert "longer than its frame" in refusal(Op.LOGGED, body, True).message


def test_attachments_where_there_are_none():
    assert "has no attachments" in refusal(Op.STATS, with_lengths([1], b"a"), True).message


def test_attachments_that_are_announced_and_missing():
    error = refusal(Op.LOGGED, {"attachments": [0]})
    assert error.message == "LOGGED: attachments are announced and missing"


def test_a_hot_opcode_has_no_document():
    assert "has no cold form" in refusal(Op.ASSIGN, {}).message


@settings(max_examples=150, deadline=None, derandomize=True)
@given(op=st.sampled_from(list(BY_OP)), body=st.binary(max_size=60), has_attachments=st.booleans())
def test_noise_is_read_or_refused(op, body, has_attachments):
    try:
        decode(op, body, has_attachments)
    except BadMessage as error:
        assert error.message.startswith(op.name)
