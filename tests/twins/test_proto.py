"""The frame codec: what is cut and what is refused, the same on both twins for every byte."""

from __future__ import annotations

import enum
import itertools
import json
import math
import os
import random
import struct
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report import Report

from titan_fast import _layout, errors

TWIN = "_proto"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text())
GOOD_FRAMES = [vector for vector in VECTORS["frames"] if "frame" in vector]
BAD_FRAMES = [vector for vector in VECTORS["frames"] if "error" in vector]
GOOD_MESSAGES = [vector for vector in VECTORS["messages"] if "message" in vector]
BAD_MESSAGES = [vector for vector in VECTORS["messages"] if "error" in vector]

RANGES = {"Q": (0, 2**64 - 1), "I": (0, 2**32 - 1), "H": (0, 2**16 - 1), "B": (0, 255), "i": (-(2**31), 2**31 - 1)}
KINDS = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "i": "i32"}

MUTATIONS, MUTATIONS_LONG = 2_000_000, 100_000_000

SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The fixture is a module: it stays as it is from example to example."""


def named(vectors):
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def cut(twin, chunks, max_body=_layout.MAX_BODY):
    """(frames, error, bytes pending) after all chunks."""
    framer = twin.Framer(max_body)
    frames = [found for chunk in chunks for found in framer.feed(chunk)]
    return frames, told(framer.error), framer.pending()


def told(error):
    return error and (type(error), error.code, error.message, error.hint)


def outcome(call, *arguments):
    """What a call gave: its value, or its error's type and text. NaN is made comparable."""
    try:
        return repr(call(*arguments))
    except Exception as error:
        return type(error), str(error)


def decoded(vector):
    frame = vector["frame"]
    return frame["opcode"], frame["flags"], frame["request"], bytes.fromhex(frame["message"])


# ---------------------------------------------------------------- the vectors


@named(GOOD_FRAMES)
def test_a_frame_is_read_and_written_as_the_vectors_tell(twin, vector):
    data = bytes.fromhex(vector["hex"])
    assert cut(twin, [data]) == ([decoded(vector)], None, 0)
    assert twin.frame(*decoded(vector)) == data


@named(BAD_FRAMES)
def test_a_bad_frame_is_refused_as_the_vectors_tell(twin, vector):
    frames, error, pending = cut(twin, [bytes.fromhex(vector["hex"])], vector.get("max_body", _layout.MAX_BODY))
    assert frames == [] and pending == 0
    assert error is not None and error[1:3] == (vector["error"]["code"], vector["error"]["text"])


@named(GOOD_MESSAGES)
def test_a_hot_message_is_read_and_written_as_the_vectors_tell(twin, vector):
    data, message = bytes.fromhex(vector["hex"]), vector["message"]
    columns = list(message["columns"].values())
    tail = bytes.fromhex(message["tail"])
    assert list(message["columns"]) == [name for name, _ in _layout.LAYOUTS[message["layout"]][1]]
    assert repr(twin.unpack(data)) == repr((message["layout"], message["sequence"], tuple(columns), tail))
    if "only_decodes" not in vector:
        assert twin.pack(message["layout"], message["sequence"], columns, tail) == data


@named(BAD_MESSAGES)
def test_a_bad_hot_message_is_refused_as_the_vectors_tell(twin, vector):
    with pytest.raises(errors.BadRecords) as caught:
        twin.unpack(bytes.fromhex(vector["hex"]))
    assert caught.value.code == vector["error"]["code"]
    assert caught.value.message == vector["error"]["text"]


def test_the_vectors_know_every_layout():
    assert {vector["message"]["layout"] for vector in GOOD_MESSAGES} == set(_layout.LAYOUTS)


# ---------------------------------------------------------------- the framer


STREAM = b"".join(bytes.fromhex(vector["hex"]) for vector in GOOD_FRAMES)


def test_frames_may_be_cut_at_every_byte(twin):
    whole = cut(twin, [STREAM])
    assert len(whole[0]) == len(GOOD_FRAMES)
    for at in range(len(STREAM) + 1):
        assert cut(twin, [STREAM[:at], STREAM[at:]]) == whole
    assert cut(twin, [STREAM[at : at + 1] for at in range(len(STREAM))]) == whole


@named(VECTORS["frames"])
def test_whatever_a_vector_is_it_may_be_cut_at_every_byte(twin, vector):
    data, limit = bytes.fromhex(vector["hex"]), vector.get("max_body", _layout.MAX_BODY)
    whole = cut(twin, [data], limit)
    for at in range(len(data) + 1):
        assert cut(twin, [data[:at], data[at:]], limit) == whole
    assert cut(twin, [data[at : at + 1] for at in range(len(data))], limit) == whole


@named(VECTORS["frames"])
def test_whatever_a_vector_is_both_twins_say_the_same_of_every_beginning(both, vector):
    data, limit = bytes.fromhex(vector["hex"]), vector.get("max_body", _layout.MAX_BODY)
    for length in range(len(data) + 1):
        compiled, pure = (cut(twin, [data[:length]], limit) for twin in both)
        assert compiled == pure


def test_empty_input_changes_nothing(twin):
    framer = twin.Framer()
    assert framer.feed(b"") == [] and framer.pending() == 0
    framer.feed(STREAM[:5])
    assert framer.feed(b"") == [] and framer.pending() == 5


def test_a_bad_header_ends_the_stream_at_every_cut(twin):
    good, bad = bytes.fromhex(GOOD_FRAMES[1]["hex"]), bytes.fromhex(BAD_FRAMES[0]["hex"])
    stream = good + bad + good
    for at in range(len(stream) + 1):
        frames, error, pending = cut(twin, [stream[:at], stream[at:]])
        assert frames == [decoded(GOOD_FRAMES[1])]
        assert error is not None and error[0] is errors.WrongVersion
        assert pending == 0


def test_after_an_error_nothing_is_cut_and_the_first_error_stays(twin):
    framer = twin.Framer()
    framer.feed(bytes.fromhex(BAD_FRAMES[0]["hex"]))
    first = framer.error
    assert framer.feed(STREAM) == [] and framer.pending() == 0
    assert framer.feed(bytes(100)) == []
    assert framer.error is first
    with pytest.raises(AttributeError):
        framer.error = None


def test_a_header_is_judged_before_its_body_is_there(twin):
    framer = twin.Framer(100)
    framer.feed(struct.pack(">BBBBI", 2, 1, 0, 0, 101)[:7])
    assert framer.error is None and framer.pending() == 7
    framer.feed(b"\x65")
    assert told(framer.error)[2] == "frame body of 101 bytes, at most 100 are allowed"


def test_the_longest_body_passes_and_one_byte_more_does_not(twin):
    for length, passes in ((100, True), (101, False)):
        frames, error, _ = cut(twin, [twin.frame(1, 0, 2, bytes(length - 4))], 100)
        assert (len(frames), error is None) == (passes, passes)


def test_the_limit_may_be_raised_and_lowered_between_frames(twin):
    framer = twin.Framer(_layout.MAX_BODY_BEFORE_HELLO)
    framer.max_body = 1 << 20
    assert framer.max_body == 1 << 20
    assert len(framer.feed(twin.frame(1, 0, 0, bytes(100_000)))) == 1
    framer.max_body = 10
    framer.feed(twin.frame(1, 0, 0, bytes(7)))
    assert isinstance(framer.error, errors.FrameTooLarge)


def test_a_frame_that_was_let_in_is_finished_under_the_limit_of_then(twin):
    framer = twin.Framer(1000)
    data = twin.frame(1, 0, 0, bytes(500))
    framer.feed(data[:20])
    framer.max_body = 10
    assert len(framer.feed(data[20:])) == 1
    assert framer.error is None


def test_without_a_limit_given_it_is_that_of_a_frame(twin):
    assert twin.Framer().max_body == twin.Framer(max_body=_layout.MAX_BODY).max_body == _layout.MAX_BODY


@pytest.mark.parametrize("limit", [-1, 2**32, 10**30])
def test_a_limit_must_fit_the_length_field(twin, limit):
    with pytest.raises(OverflowError, match="max_body does not fit u32"):
        twin.Framer(limit)


def test_pending_counts_what_is_held(twin):
    framer, data = twin.Framer(), twin.frame(1, 0, 0, bytes(100))
    for at in range(len(data) - 1):
        framer.feed(data[at : at + 1])
        assert framer.pending() == at + 1
    framer.feed(data[-1:])
    assert framer.pending() == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("b")])
def test_every_kind_of_bytes_is_taken_and_none_is_kept(twin, kind):
    framer = twin.Framer()
    frames = framer.feed(kind(STREAM[:-1]))
    later = bytearray(STREAM[-1:])
    frames += framer.feed(later)
    later.append(1)  # fails while somebody holds a view
    assert frames == [decoded(vector) for vector in GOOD_FRAMES]
    assert {type(frame[3]) for frame in frames} == {bytes}


@pytest.mark.parametrize("data", ["text", None, 5, [1, 2], memoryview(b"abcd")[::2]])
def test_what_is_no_bytes_is_refused_the_same_way(both, data):
    compiled, pure = (outcome(module.Framer().feed, data) for module in both)
    assert compiled == pure and compiled[0] in (TypeError, BufferError)


def test_a_long_frame_in_many_pieces_costs_its_bytes_once(twin):
    """A framer that looks at what it holds again with every piece would take minutes here."""
    data = twin.frame(1, 0, 0, bytes(_layout.MAX_BODY - 4))
    framer, frames = twin.Framer(), []
    for at in range(0, len(data), 1000):
        frames += framer.feed(data[at : at + 1000])
    assert len(frames) == 1 and len(frames[0][3]) == _layout.MAX_BODY - 4


@given(
    frames=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 7), st.integers(0, 2**32 - 1), st.binary(max_size=40)),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 300)),
)
@settings(SHARED, max_examples=150)
def test_what_was_framed_comes_out_however_it_is_cut(both, frames, cuts):
    stream = b"".join(both[0].frame(*frame) for frame in frames)
    assert stream == b"".join(both[1].frame(*frame) for frame in frames)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
    for module in both:
        assert cut(module, chunks) == (frames, None, 0)


# ---------------------------------------------------------------- writing frames


def test_a_frame_over_the_limit_is_not_written(twin):
    assert len(twin.frame(1, 0, 0, bytes(_layout.MAX_BODY - 4))) == _layout.MAX_BODY + 8
    with pytest.raises(errors.FrameTooLarge, match="frame body of 16777217 bytes, at most 16777216 are allowed"):
        twin.frame(1, 0, 0, bytes(_layout.MAX_BODY - 3))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((256, 0, 0, b""), "opcode does not fit u8"),
        ((-1, 0, 0, b""), "opcode does not fit u8"),
        ((0, 256, 0, b""), "flags does not fit u8"),
        ((0, 0, 2**32, b""), "request id does not fit u32"),
        ((0, 0, -1, b""), "request id does not fit u32"),
        ((10**5000, 0, 0, b""), "opcode does not fit u8"),
    ],
)
def test_numbers_that_do_not_fit_a_frame_overflow(twin, arguments, text):
    with pytest.raises(OverflowError, match=text):
        twin.frame(*arguments)


class Code(enum.IntEnum):
    HELLO = 1


class Index:
    """A number of somebody else's making."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@pytest.mark.parametrize(
    "arguments",
    [
        (Code.HELLO, True, Index(7), b"x"),
        ("1", 0, 0, b""),
        (1.0, 0, 0, b""),
        (1, None, 0, b""),
        (1, 0, 0, "text"),
        (1, 0, 0, bytearray(b"x")),
        (1, 0, 0, None),
        (Index(-1), 0, 0, b""),
    ],
)
def test_frame_takes_and_refuses_the_same_things(both, arguments):
    compiled, pure = (outcome(module.frame, *arguments) for module in both)
    assert compiled == pure


# ---------------------------------------------------------------- hot messages


def column(code, rows):
    if code == "d":
        return st.lists(st.floats() | st.integers(-(2**60), 2**60), min_size=rows, max_size=rows)
    low, high = RANGES[code]
    few = st.sampled_from([low, high, 0, 1])
    return st.lists(few | st.integers(low, high), min_size=rows, max_size=rows)


@st.composite
def messages(draw):
    layout = draw(st.sampled_from(sorted(_layout.LAYOUTS)))
    rows = draw(st.integers(0, 6))
    columns = [draw(column(code, rows)) for _, code in _layout.LAYOUTS[layout][1]]
    return layout, draw(st.integers(0, 2**64 - 1)), columns, draw(st.binary(max_size=20))


@given(message=messages())
@settings(SHARED, max_examples=200)
def test_what_was_packed_comes_out(both, message):
    layout, sequence, columns, tail = message
    packed = both[0].pack(layout, sequence, columns, tail)
    assert packed == both[1].pack(layout, sequence, columns, tail)
    expected = tuple(
        [float(value) for value in values] if code == "d" else values
        for values, (_, code) in zip(columns, _layout.LAYOUTS[layout][1], strict=True)
    )
    for module in both:
        assert repr(module.unpack(packed)) == repr((layout, sequence, expected, tail))


def plain(layout, rows=3):
    """Columns of small numbers."""
    return [[1.5 if code == "d" else 1] * rows for _, code in _layout.LAYOUTS[layout][1]]


@pytest.mark.parametrize("layout", sorted(_layout.LAYOUTS))
def test_a_value_that_does_not_fit_its_field_overflows_and_says_which(twin, layout):
    name, fields = _layout.LAYOUTS[layout]
    for place, (field, code) in enumerate(fields):
        if code == "d":
            continue
        for value in (RANGES[code][0] - 1, RANGES[code][1] + 1, 2**64, -(2**63) - 1, 10**5000):
            columns = plain(layout)
            columns[place][1] = value
            with pytest.raises(OverflowError) as caught:
                twin.pack(layout, 0, columns)
            assert str(caught.value) == f"{name}.{field} of record 1 does not fit {KINDS[code]}"


def test_a_real_number_may_be_anything_but_too_large(twin):
    columns = plain(_layout.PULSE, 6)
    columns[2] = [1, math.inf, -math.inf, 2**1000, True, Index(3)]
    assert twin.unpack(twin.pack(_layout.PULSE, 0, columns))[2][2] == [1.0, math.inf, -math.inf, 2.0**1000, 1.0, 3.0]
    columns[2][4] = 10**400
    with pytest.raises(OverflowError, match=r"pulse\.load of record 4 does not fit f64"):
        twin.pack(_layout.PULSE, 0, columns)


def test_pack_refuses_what_is_no_table_of_the_layout(twin):
    for layout in (0, 7, -1, "lot", None):
        with pytest.raises(ValueError, match="there is no record layout"):
            twin.pack(layout, 0, [])
    with pytest.raises(ValueError, match="slice records take 4 columns, not 3"):
        twin.pack(_layout.SLICE, 0, [[1], [1], [1]])
    with pytest.raises(ValueError, match=r"slice.count has 1 rows, the column before it 2"):
        twin.pack(_layout.SLICE, 0, [[1, 2], [1, 2], [1], [1, 2]])
    for sequence in (-1, 2**64):
        with pytest.raises(OverflowError, match="sequence does not fit u64"):
            twin.pack(_layout.SLICE, sequence, [[], [], [], []])


@pytest.mark.parametrize(
    "arguments",
    [
        (4, 0, ([1], (2,), range(3, 4), [4])),
        (4, 0, ({1: 0}, "a", [1], [1])),
        (4, 0, [b"ab", [1, 2], [1, 2], [1, 2]]),
        (4, True, [[True], [Code.HELLO], [Index(5)], [Index(2**64 - 1)]]),
        (4, 0, [[1], [1], [Index(2**32)], [1]]),
        (4, 0, [[1, 1], [2**32, 1], [1, "x"], [1, 1]]),
        (4, 0, [[1, 1], [1, 1], [1, "x"], [-1, 1]]),
        (4, 0, [[1, 1], [1.0, 2**32], [1, 1], [1, 1]]),
        (4, 0, [[1], [None], [1], [1]]),
        (4, 0, 5),
        (4, 0, [1, 2, 3, 4]),
        (4, "x", [[], [], [], []]),
        (4, 0, [[], [], [], []], "tail"),
        (4, 0, [[], [], [], []], None),
        (4.0, 0, [[1], [1], [1], [1]]),
        ([], 0, []),
        (6, 0, [[1], [1], ["x"], [1]]),
        (6, 0, [[1], [1], [None], [2**64]]),
        (6, 0, [[1], [1], [math.nan], [1]]),
    ],
)
def test_pack_takes_and_refuses_the_same_things(both, arguments):
    compiled, pure = (outcome(module.pack, *arguments) for module in both)
    assert compiled == pure


class Eraser:
    """A number that takes the ground away from under whoever reads it."""

    def __init__(self, victim):
        self.victim = victim

    def __index__(self):
        self.victim.clear()
        return 1


def test_a_column_that_vanishes_while_it_is_packed_does_no_harm(twin):
    for place, victim in ((1, 1), (1, 3)):
        columns = [list(range(1000)) for _ in range(4)]
        columns[place][0] = Eraser(columns[victim])
        try:
            packed = twin.pack(_layout.SLICE, 0, columns)
        except (ValueError, OverflowError):
            continue
        assert len(twin.unpack(packed)[2][0]) <= 1000


@pytest.mark.parametrize("message", ["text", None, bytearray(16), memoryview(bytes(16))])
def test_unpack_takes_bytes_only(both, message):
    compiled, pure = (outcome(module.unpack, message) for module in both)
    assert compiled == pure == (TypeError, f"message must be bytes, not {type(message).__name__}")


def test_a_hot_message_may_be_cut_nowhere_but_in_its_tail(twin):
    whole = twin.pack(_layout.RESULT, 5, plain(_layout.RESULT), b"tail")
    for length in range(len(whole) - 4):
        with pytest.raises(errors.BadRecords):
            twin.unpack(whole[:length])
    for missing in range(5):
        assert twin.unpack(whole[: len(whole) - missing])[3] == b"tail"[: 4 - missing]


# ---------------------------------------------------------------- mutated frames


def seeds(module):
    """Streams to spoil: every vector, and every hot message in a frame."""
    streams = [bytes.fromhex(vector["hex"]) for vector in VECTORS["frames"]]
    streams += [module.frame(3, 0, 1, bytes.fromhex(vector["hex"])) for vector in VECTORS["messages"]]
    return streams


def spoil(rng, data):
    """One to three small changes of the kind that find off-by-ones."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = int(rng.random() * (len(data) + 1))
        kind = int(rng.random() * 6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.random() * 8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 2, 4, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + int(rng.random() * 9)]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.random() * 30)]
        elif len(data) >= 8:
            data[4:8] = (len(data) - 8 + int(rng.random() * 5) - 2 & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.skipif(os.environ.get("TITAN_FAST_ACCEL") == "off", reason="compares both twins: once is enough")
@pytest.mark.parametrize("mutations", [MUTATIONS, pytest.param(MUTATIONS_LONG, marks=pytest.mark.long)])
def test_mutated_frames_meet_the_same_verdict_and_leave_nothing_behind(both, mutations):
    is_long = mutations == MUTATIONS_LONG
    with Report("frames", f"pytest tests/twins/test_proto.py{' --long' if is_long else ''}", is_long) as report:
        frames, messages, grown = compare(*both, mutations)
        report.figures |= {"mutated frames": mutations, "of which were frames still": frames, "and messages": messages}
        report.figures["more memory at the end, MiB"] = grown / (1 << 20)
        assert frames > mutations // 10 and messages > mutations // 50, "most die at once: nothing was tested"
        assert grown < 8 << 20


def compare(compiled, pure, mutations):
    """(frames found, hot messages read, bytes of memory the last three quarters took). Each is cut in two somewhere."""
    rng, streams, process = random.Random(20), seeds(compiled), psutil.Process()
    frames = messages = resident = 0
    for number in range(mutations):
        data = spoil(rng, streams[number % len(streams)])
        at = int(rng.random() * (len(data) + 1))
        a, b = compiled.Framer(4096), pure.Framer(4096)
        found = a.feed(data[:at])
        assert found == b.feed(data[:at])
        rest = a.feed(data[at:])
        assert rest == b.feed(data[at:])
        assert told(a.error) == told(b.error) and a.pending() == b.pending(), data.hex()
        for _, _, _, body in found + rest:
            frames += 1
            verdict = outcome(compiled.unpack, body)
            assert verdict == outcome(pure.unpack, body), body.hex()
            messages += isinstance(verdict, str)
        if number == mutations // 4:
            resident = process.memory_info().rss
    return frames, messages, process.memory_info().rss - resident
