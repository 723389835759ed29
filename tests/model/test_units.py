"""Durations and sizes: what is read, what is refused in which words, and that nothing is lost on the way back."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_fast.model.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("1s100ms", 1.1),
        ("PT5M", 300.0),
        ("P1DT2H", 93_600.0),
        ("PT0.5S", 0.5),
        ("P2W", 1_209_600.0),
        ("90", 90.0),
        ("0", 0.0),
        ("0.25", 0.25),
        (" 3s ", 3.0),
        (2, 2.0),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["soon", "", "5 minutes", "m", "PT", "P", "P1M", "30m1h", "1h1h", "5mm", "0x10", "٣s", "nan"]
)
def test_what_is_no_duration_is_refused_with_what_can_be_written(text):
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert str(refused.value) == f"'{text}' is not a duration (write 30s, 5m, 1h30m, 500ms or a number of seconds)"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-5s", "a duration cannot be negative: '-5s'"),
        (-1, "a duration cannot be negative: '-1'"),
        ("101y", "'101y' is not a duration (write 30s, 5m, 1h30m, 500ms or a number of seconds)"),
        ("40000d", "'40000d' is longer than 100 years"),
        ("1e300", "'1e300' is longer than 100 years"),
        (float("inf"), "'inf' is longer than 100 years"),
        (float("nan"), "'nan' is not a duration (write 30s, 5m, 1h30m, 500ms or a number of seconds)"),
        (True, "'True' is not a duration (write 30s, 5m, 1h30m, 500ms or a number of seconds)"),
    ],
)
def test_a_duration_out_of_range_says_so(value, message):
    with pytest.raises(ValueError) as refused:
        parse_duration(value)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.5, "500ms"),
        (0.00025, "0.25ms"),
        (1.5, "1.5s"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (86_400, "1d"),
        (-2, "-2s"),
    ],
)
def test_a_duration_is_written_as_people_do(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_a_duration_survives_being_written_and_read(microseconds):
    seconds = microseconds / 1_000_000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 999))
def test_the_parts_of_a_duration_add_up(hours, minutes, seconds, millis):
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"
    assert parse_duration(text) == (hours * 3_600_000 + minutes * 60_000 + seconds * 1_000 + millis) / 1_000


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5 KiB", 1536),
        ("500MB", 500_000_000),
        ("7", 7),
        ("7B", 7),
        ("1kb", 1000),
        (42, 42),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("big", "'big' is not a size (write 512MiB, 2GiB, 500MB or a number of bytes)"),
        ("", "'' is not a size (write 512MiB, 2GiB, 500MB or a number of bytes)"),
        ("5XiB", "'5XiB' is not a size (write 512MiB, 2GiB, 500MB or a number of bytes)"),
        ("512M", "'512M' is ambiguous: write 512MiB or 512MB"),
        ("2g", "'2g' is ambiguous: write 2GiB or 2GB"),
        ("-1KiB", "a size cannot be negative: '-1KiB'"),
        ("0.3KiB", "'0.3KiB' is not a whole number of bytes"),
        ("99999PiB", "'99999PiB' is larger than any size there is"),
        (True, "'True' is not a size (write 512MiB, 2GiB, 500MB or a number of bytes)"),
    ],
)
def test_what_is_no_size_is_refused_in_so_many_words(value, message):
    with pytest.raises(ValueError) as refused:
        parse_size(value)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        ((1 << 20) - 1, "1 MiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_a_size_is_written_as_people_do(size, text):
    assert format_size(size) == text
