"""The state machine between bytes and messages: what it lets through, what it answers, what it hangs up over."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_fast import _layout as layout
from titan_fast._accel import frame, pack
from titan_fast.errors import BadFrame, BadMessage, BadRecords, FrameTooLarge, TooLarge, WrongRole, WrongVersion
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import (
    FAIR_SHARE,
    HOT_LAYOUTS,
    MAX_ERROR_TEXT,
    MAX_UNFINISHED,
    Budget,
    Connection,
    old_version_error,
    send,
    send_error,
    send_hot,
)
from titan_fast.protocol.messages import encode
from titan_fast.protocol.opcodes import Op, Role, is_allowed

MORE, REPLY, ATTACHMENTS = layout.FLAG_MORE, layout.FLAG_REPLY, layout.FLAG_ATTACHMENTS
UNKNOWN = 0xEE


def opened(sender=Role.CLIENT, **limits):
    connection = Connection(sender)
    connection.open(sender, **limits)
    return connection


def whole(op, body, request=7, flags=0, cut=()):
    """One message as several frames, cut at these places."""
    ends = [*cut, len(body)]
    starts = [0, *cut]
    return [
        frame(op, flags | (MORE if end != ends[-1] else 0), request, body[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def hot_columns(op, rows=2):
    return [[0.5] * rows if code == "d" else [1] * rows for _, code in layout.LAYOUTS[HOT_LAYOUTS[op]][1]]


# ---------------------------------------------------------------- whole conversations

CLIENT_SAYS = [
    send(msg.Cancel(3, "a", 2), request=1),
    send(msg.Stats(), request=2),
    send(msg.BlobPut(digest="d", offset=0, size=6), (b"abc", b"", b"def"), request=3),
    frame(UNKNOWN, 0, 4, b"?"),
    *whole(Op.CANCEL, b'{"run": 4}', request=5, cut=(3, 6)),
    send(msg.Challenge("n", "p"), request=6),
    send(msg.Logs(1, "t"), request=7),
]


def heard(connection, pieces):
    return [incoming for piece in pieces for incoming in connection.receive(piece)]


def story(said):
    return [
        (msgspec.structs.replace(one, error=None), None if one.error is None else (one.error.code, one.error.message))
        for one in said
    ]


@pytest.mark.parametrize(
    ("sender", "frames"),
    [
        (Role.CLIENT, CLIENT_SAYS),
        (
            Role.WORKER,
            [
                send(msg.Attach("w", "n", "x", 1, 4, inventory=(msg.Held(1, 2, 3, 4, 1),)), request=1),
                send_hot(Op.STARTED, 1, hot_columns(Op.STARTED)),
                send_hot(Op.RESULT, 2, hot_columns(Op.RESULT), b"ok"),
                send(msg.Output(run=1, index=2, fence=3), (b"hello",)),
            ],
        ),
        (
            Role.MASTER,
            [
                send(msg.Welcome("worker", "c", 1, "s", 1, 1), request=1, is_reply=True),
                send_hot(Op.ASSIGN, 0, hot_columns(Op.ASSIGN)),
                send_error(BadMessage("no", hint="h", field="f"), 9),
            ],
        ),
    ],
    ids=["client", "worker", "master"],
)
def test_a_stream_means_the_same_however_it_is_cut(sender, frames):
    stream = b"".join(frames)
    expected = story(opened(sender).receive(stream))
    assert len(expected) == len(frames) - (2 if frames is CLIENT_SAYS else 0)
    for at in range(len(stream) + 1):
        assert story(heard(opened(sender), (stream[:at], stream[at:]))) == expected
    single = opened(sender)
    assert story(heard(single, (stream[at : at + 1] for at in range(len(stream))))) == expected
    assert single.broken is None
    assert single.held == 0


def test_what_the_client_said():
    said = opened().receive(b"".join(CLIENT_SAYS))
    assert said[0].message == msg.Cancel(3, "a", 2)
    assert said[2].attachments == (b"abc", b"", b"def")
    assert (said[3].op, said[3].request, said[3].error.message) == (Op.ERROR, 4, "opcode 0xee is not known")
    assert said[4].message == msg.Cancel(4)
    assert isinstance(said[5].error, WrongRole)
    assert said[6].message == msg.Logs(1, "t")


@pytest.mark.parametrize("op", [op for op in Op if op.hot], ids=lambda op: op.name)
def test_records_arrive_as_columns(op):
    sender = next(iter(op.roles))
    (said,) = opened(sender).receive(send_hot(op, 5, hot_columns(op), b"tail"))
    assert (said.op, said.sequence, list(said.columns), said.tail) == (op, 5, hot_columns(op), b"tail")


def test_an_error_travels_with_all_its_parts():
    (said,) = opened(Role.MASTER).receive(send_error(BadMessage("text", hint="do", field="a.b"), 9))
    assert (said.request, said.is_reply) == (9, True)
    assert said.message == msg.Error("bad_message", "text", "do", "a.b")


def test_an_error_can_always_be_sent():
    data = send_error(BadMessage("\udcff" + "x" * 10 * MAX_ERROR_TEXT), 1)
    (said,) = opened(Role.MASTER).receive(data)
    assert said.message.message.startswith("\\udcffxxx")
    assert len(data) < 2 * MAX_ERROR_TEXT


# ---------------------------------------------------------------- who may say what


def some_frame(op):
    return send_hot(op, 0, hot_columns(op)) if op.hot else frame(op, 0, 3, b"{")


@pytest.mark.parametrize("role", [Role.CLIENT, Role.WORKER, Role.TASK, Role.MASTER])
@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
def test_every_role_and_opcode(op, role):
    connection = opened(role)
    (said,) = connection.receive(some_frame(op))
    assert isinstance(said.error, WrongRole) == (not is_allowed(op, role))
    if isinstance(said.error, WrongRole):
        assert said.error.message == f"a {role} may not send {op.name}"
        assert said.message is None
        assert said.columns == ()
    assert connection.broken is None


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
def test_strangers_get_no_patience(op):
    connection = Connection(Role.STRANGER)
    (said,) = connection.receive(some_frame(op) + send(msg.Hello("n", "client"), request=1))
    assert said.error is connection.broken
    assert isinstance(said.error, BadMessage if is_allowed(op, Role.STRANGER) else WrongRole)
    assert connection.receive(send(msg.Hello("n", "client"), request=1)) == []


@pytest.mark.parametrize("sender", [Role.STRANGER, Role.MASTER])
@pytest.mark.parametrize(
    "data",
    [
        frame(Op.HELLO, MORE, 1, b"{"),
        frame(Op.ERROR, MORE, 1, b"{"),
        frame(Op.ASSIGN, MORE, 1, b"{"),
        frame(UNKNOWN, MORE, 1, b"{"),
    ],
)
def test_nothing_is_collected_before_the_handshake(sender, data):
    connection = Connection(sender)
    assert connection.receive(data) == []
    assert "before the handshake is done" in connection.broken.message
    assert connection.held == 0


def test_a_stranger_sends_small_frames_only():
    connection = Connection(Role.STRANGER)
    connection.receive(frame(Op.HELLO, 0, 1, b" " * layout.MAX_BODY_BEFORE_HELLO)[:12])
    assert isinstance(connection.broken, FrameTooLarge)


def test_a_peer_may_send_more_when_it_is_known():
    connection = opened()
    (said,) = connection.receive(frame(Op.CANCEL, 0, 1, b'{"run": 1}' + b" " * 2 * layout.MAX_BODY_BEFORE_HELLO))
    assert said.message == msg.Cancel(1)


def test_no_welcome_raises_the_limit_of_a_frame():
    connection = opened(max_body=1 << 31)
    connection.receive(bytes((2, Op.STATS, 0, 0)) + (layout.MAX_BODY + 1).to_bytes(4, "big"))
    assert isinstance(connection.broken, FrameTooLarge)


# ---------------------------------------------------------------- one bad message is not everybody's problem


def test_a_bad_message_is_answered_and_the_next_one_is_read():
    connection = opened()
    said = connection.receive(
        frame(Op.CANCEL, 0, 1, b'{"run": "x"}') + frame(UNKNOWN, REPLY, 2, b"") + send(msg.Stats(), request=3)
    )
    assert [(one.request, type(one.error)) for one in said] == [(1, BadMessage), (2, BadMessage), (3, type(None))]
    assert said[0].error.field == "run"
    assert [one.is_reply for one in said] == [False, True, False]
    assert connection.broken is None


def test_a_forbidden_or_unknown_message_in_parts_is_refused_once():
    connection = opened()
    parts = whole(Op.WELCOME, b"x" * 100, cut=range(10, 100, 10)) + whole(UNKNOWN, b"x" * 9, request=8, cut=(3, 6))
    said = heard(connection, parts)
    assert [(type(one.error), one.request) for one in said] == [(WrongRole, 7), (BadMessage, 8)]
    assert connection.held == 0


@pytest.mark.parametrize("op", [op for op in Op if not op.hot and Role.MASTER not in op.roles], ids=lambda op: op.name)
def test_a_request_marked_as_a_reply_is_refused_as_a_request(op):
    """Else it would be carried out, and its errors would be told to nobody."""
    sender = next(iter(op.roles))
    (said,) = opened(sender).receive(frame(op, REPLY, 7, b"{}"))
    assert said.error.message == f"{op.name} is a request and cannot be a reply"
    assert not said.is_reply


@pytest.mark.parametrize("op", [op for op in Op if op.hot], ids=lambda op: op.name)
@pytest.mark.parametrize("flags", [MORE, ATTACHMENTS, MORE | ATTACHMENTS])
def test_records_do_not_come_in_parts(op, flags):
    connection = opened(next(iter(op.roles)))
    body = pack(HOT_LAYOUTS[op], 0, hot_columns(op))
    (said,) = connection.receive(frame(op, flags, 0, body))
    assert isinstance(said.error, BadRecords)
    assert connection.held == 0


def test_records_of_another_opcode():
    body = pack(layout.KILL, 0, hot_columns(Op.KILL))
    (said,) = opened(Role.WORKER).receive(frame(Op.RESULT, 0, 0, body))
    assert said.error.message == "RESULT with records of layout 5"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 15,
        (99).to_bytes(2, "big") + b"\0" * 14,
        (3).to_bytes(2, "big") + b"\0\1" + b"\0" * 12,
        (3).to_bytes(2, "big") + (54).to_bytes(2, "big") + b"\xff" * 4 + b"\0" * 8,
    ],
)
def test_records_that_cannot_be_read(body):
    (said,) = opened(Role.WORKER).receive(frame(Op.RESULT, 0, 0, body))
    assert isinstance(said.error, BadRecords)


# ---------------------------------------------------------------- bytes that are no frames


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"\1\1\0\0\0\0\0\4", WrongVersion),
        (b"\3\1\0\0\0\0\0\4", WrongVersion),
        (b"\2\1\x08\0\0\0\0\4", BadFrame),
        (b"\2\1\0\1\0\0\0\4", BadFrame),
        (b"\2\1\0\0\0\0\0\3", BadFrame),
        (b"\2\1\0\0\xff\xff\xff\xff", FrameTooLarge),
        (b"GET / HTTP/1.1\r\n", WrongVersion),
    ],
)
def test_a_bad_header_ends_the_stream(header, error):
    connection = opened()
    (said,) = connection.receive(send(msg.Stats(), request=1) + header)
    assert said.message == msg.Stats()
    assert type(connection.broken) is error
    assert connection.receive(send(msg.Stats(), request=2)) == []
    assert connection.held == 0


def test_an_old_frame_is_answered_in_its_own_version():
    connection = Connection(Role.STRANGER)
    connection.receive(b"\1\x01\0\0\0\0\0\2{}")
    assert isinstance(connection.broken, WrongVersion)
    assert connection.broken.version == 1
    answer = old_version_error(connection.broken)
    assert answer[:4] == b"\1\0\0\0"
    assert int.from_bytes(answer[4:8], "big") == len(answer) - 8
    assert answer[8:].startswith(b"ERROR: protocol version 1")
    assert b"TITAN_PROTO 2" in answer


# ---------------------------------------------------------------- messages in several frames


def test_a_long_message_is_sent_and_read_in_parts():
    text = "x" * (2 * layout.MAX_BODY + 1000)
    data = send(msg.BlobPut(digest=text), (b"a", b"bc"), request=3)
    assert data[2] == MORE | ATTACHMENTS
    connection = opened()
    (said,) = connection.receive(data)
    assert said.message.digest == text
    assert said.attachments == (b"a", b"bc")
    assert connection.held == 0


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_message_at_the_edge_of_a_frame(extra):
    empty = len(encode(msg.BlobAsk(""))[0])
    text = "x" * (layout.MAX_BODY - layout.REQUEST_ID_SIZE - empty + extra)
    data = send(msg.BlobAsk(text), request=1)
    assert bool(data[2] & MORE) == (extra > 0)
    (said,) = opened().receive(data)
    assert said.message == msg.BlobAsk(text)


def test_sending_more_than_the_other_end_takes_is_refused_here():
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        send(msg.BlobAsk("x" * 1000), max_message=1000)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_messages_in_parts_may_interleave(data):
    messages = [msg.Cancel(number, "t" * 10) for number in range(4)]
    streams = []
    for number, message in enumerate(messages):
        body = encode(message)[0]
        cut = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=4)))
        streams.append(whole(Op.CANCEL, body, request=number, cut=cut))
    connection = opened()
    said = []
    while any(streams):
        stream = data.draw(st.sampled_from([stream for stream in streams if stream]))
        said += connection.receive(stream.pop(0))
    assert sorted((one.request, one.message.run) for one in said) == [(n, n) for n in range(4)]
    assert connection.held == 0


def test_one_request_number_under_two_opcodes_is_two_messages():
    connection = opened()
    cancel = whole(Op.CANCEL, b'{"run": 1}', cut=(4,))
    retry = whole(Op.RETRY, b'{"run": 2}', cut=(4,))
    said = heard(connection, (cancel[0], retry[0], cancel[1], retry[1]))
    assert [one.message for one in said] == [msg.Cancel(1), msg.Retry(2)]


def test_an_empty_last_part_is_fine():
    assert heard(opened(), whole(Op.CANCEL, b'{"run": 1}', cut=(10,)))[0].message == msg.Cancel(1)


def test_an_empty_part_in_the_middle_is_not():
    """They cost their sender 12 bytes each and would go on for ever."""
    connection = opened()
    connection.receive(frame(Op.CANCEL, MORE, 1, b""))
    assert connection.broken.message == "an empty part of a message"


@pytest.mark.parametrize("flags", [(MORE | ATTACHMENTS, 0), (MORE, ATTACHMENTS), (MORE | REPLY, 0), (MORE, REPLY)])
def test_the_flags_of_a_message_do_not_change(flags):
    connection = opened(Role.MASTER)
    first, second = flags
    assert connection.receive(frame(Op.LOGGED, first, 1, b"{") + frame(Op.LOGGED, second, 1, b"}")) == []
    assert connection.broken.message == "the flags of a message change between its frames"


def test_a_message_is_never_longer_than_the_limit():
    connection = opened(max_message=1000)
    (said,) = heard(connection, whole(Op.CANCEL, b'{"run": 1}' + b" " * 990, cut=(500,)))
    assert said.message == msg.Cancel(1)
    assert heard(connection, whole(Op.CANCEL, b'{"run": 1}' + b" " * 991, cut=(500,))) == []
    assert isinstance(connection.broken, TooLarge)
    assert connection.held == 0


def test_unfinished_messages_share_the_limit():
    connection = opened(max_message=1000)
    for request in range(4):
        connection.receive(frame(Op.CANCEL, MORE, request, b" " * 250))
    assert connection.broken is None
    connection.receive(frame(Op.CANCEL, MORE, 0, b" "))
    assert connection.broken.message == "a message of more than 1000 bytes"


def test_unfinished_messages_are_few():
    connection = opened()
    for request in range(MAX_UNFINISHED):
        connection.receive(frame(Op.CANCEL, MORE, request, b"{"))
    assert connection.broken is None
    connection.receive(send(msg.Stats(), request=99))
    assert connection.broken is None
    connection.receive(frame(Op.CANCEL, MORE, MAX_UNFINISHED, b"{"))
    assert connection.broken.message == f"more than {MAX_UNFINISHED} unfinished messages"


def test_tiny_parts_cost_no_more_memory_than_their_bytes():
    connection = opened()
    part = frame(Op.CANCEL, MORE, 1, b"ab") * 1000
    connection.receive(part)
    tracemalloc.start()
    for _ in range(60):
        connection.receive(part)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert connection.held == 122_000
    assert grown < 2 * connection.held + 20_000


def test_a_bad_message_in_parts_leaves_nothing_behind():
    connection = opened()
    (said,) = heard(connection, whole(Op.CANCEL, b'{"run": "x"}', cut=(5,)))
    assert said.error.field == "run"
    assert connection.held == 0
    assert heard(connection, whole(Op.CANCEL, b'{"run": 1}', cut=(5,)))[0].message == msg.Cancel(1)


# ---------------------------------------------------------------- many connections together


def part(size, request=1):
    return frame(Op.CANCEL, MORE, request, b" " * size)


def test_connections_share_a_budget():
    budget = Budget(3 * FAIR_SHARE)
    first, second = opened(budget=budget), opened(budget=budget)
    first.receive(part(2 * FAIR_SHARE))
    second.receive(part(FAIR_SHARE - 100))
    assert budget.held == 3 * FAIR_SHARE - 100
    second.receive(part(100))
    assert (first.broken, second.broken) == (None, None)
    second.receive(part(1))
    assert "on all connections" in second.broken.message
    assert budget.held == 2 * FAIR_SHARE
    assert first.receive(frame(Op.CANCEL, 0, 1, b'{"run": 1}'))[0].message == msg.Cancel(1)
    assert budget.held == 0


def test_half_a_frame_counts_too():
    budget = Budget(FAIR_SHARE)
    connection = opened(budget=budget)
    connection.receive(frame(Op.CANCEL, 0, 1, b" " * (2 * FAIR_SHARE))[: FAIR_SHARE + 1])
    assert isinstance(connection.broken, TooLarge)
    assert budget.held == 0


def test_a_connection_that_ends_pays_back():
    budget = Budget(FAIR_SHARE)
    connection = opened(budget=budget)
    connection.receive(part(100) + part(50, request=2)[:40])
    assert budget.held == connection.held == 140
    connection.close()
    connection.close()
    assert (budget.held, connection.broken) == (0, None)


# ---------------------------------------------------------------- noise


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    role=st.sampled_from(list(Role)),
    frames=st.lists(
        st.tuples(
            st.sampled_from([*map(int, Op), UNKNOWN]),
            st.integers(0, 7),
            st.integers(0, 2),
            st.sampled_from([b"", b"{}", b'{"run": 1}', b"\0\0\0\2{}", b"\0" * 16, b"\xff" * 20]),
        ),
        max_size=12,
    ),
)
def test_no_frame_makes_it_raise(role, frames):
    connection = Connection(role)
    if role is not Role.STRANGER:
        connection.open(role)
    for one in frames:
        for said in connection.receive(frame(*one)):
            assert said.error is not None or said.message is not None or said.op.hot
            assert said.error is None or (said.message is None and not said.columns)
    if connection.broken is not None:
        assert connection.held == 0
        assert connection.receive(send(msg.Stats())) == []
