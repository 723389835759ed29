"""Durations and sizes as people write them (`1h30m`, `512MiB`), and back.

Every place that reads such a text (graph files, options, settings, the SDK) reads it here. A text that is none of
them is a ValueError whose message says what can be written; the caller adds where it stood.
"""

from __future__ import annotations

import functools
import math
import re
from decimal import Decimal

MAX_DURATION = 100 * 365 * 86_400.0
"""Seconds. Anything longer is a typing error, and would not fit the records' microseconds for ever either."""
MAX_SIZE = 1 << 62

_DURATION_FORMS = "write 30s, 5m, 1h30m, 500ms or a number of seconds"
_SIZE_FORMS = "write 512MiB, 2GiB, 500MB or a number of bytes"

_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_PARTS = re.compile(
    r"(?:(?P<d>\d+(?:\.\d+)?)\s*d)?\s*(?:(?P<h>\d+(?:\.\d+)?)\s*h)?\s*(?:(?P<m>\d+(?:\.\d+)?)\s*m)?\s*"
    r"(?:(?P<s>\d+(?:\.\d+)?)\s*s)?\s*(?:(?P<ms>\d+(?:\.\d+)?)\s*ms)?\s*(?:(?P<us>\d+(?:\.\d+)?)\s*(?:us|µs))?",
    re.ASCII,
)
_ISO = re.compile(
    r"P(?:(?P<w>\d+(?:\.\d+)?)W)?(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?=\d)(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)
# Decimal, so that 1.1s + 100ms is the float nearest to 1.2 and a text survives the way there and back.
_SECONDS = {
    "w": Decimal(604_800),
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
}

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_BYTES = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGTP", start=1)
    for base, name in ((1024, f"{letter}iB"), (1000, f"{letter}B"))
}
_BYTES_BY_LOWER = {name.lower(): size for name, size in _BYTES.items()}


def parse_duration(value: str | int | float) -> float:
    """Seconds of a duration.

    Args:
        value: `30s`, `5m`, `1h30m`, `500ms`, `2d`, ISO 8601 (`PT5M`) or a bare number of seconds.

    Raises:
        ValueError: it is none of them, negative, or longer than a century.
    """
    if isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is not a duration ({_DURATION_FORMS})")
    if isinstance(value, int | float):
        return _in_range(float(value), str(value))
    text = value.strip()
    if text.startswith("-"):
        _positive_duration(text[1:].lstrip(), value)
        raise ValueError(f"a duration cannot be negative: {_shown(value)}")
    return _positive_duration(text, value)


@functools.lru_cache(maxsize=256)  # A large file says "5m" a hundred thousand times.
def _positive_duration(text: str, value: str) -> float:
    if _NUMBER.fullmatch(text):
        return _in_range(float(text), value)
    match = _PARTS.fullmatch(text) or _ISO.fullmatch(text)
    parts = {unit: number for unit, number in match.groupdict().items() if number} if match else {}
    if not parts:
        raise ValueError(f"{_shown(value)} is not a duration ({_DURATION_FORMS})")
    return _in_range(float(sum(Decimal(number) * _SECONDS[unit] for unit, number in parts.items())), value)


def _in_range(seconds: float, written: str) -> float:
    if math.isnan(seconds):
        raise ValueError(f"{_shown(written)} is not a duration ({_DURATION_FORMS})")
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative: {_shown(written)}")
    if seconds > MAX_DURATION:
        raise ValueError(f"{_shown(written)} is longer than 100 years")
    return seconds


def format_duration(seconds: float) -> str:
    """`1h30m`, `1.5s`, `250ms`: the shortest text `parse_duration` reads back, to the microsecond."""
    micros = round(seconds * 1_000_000)
    if micros < 0:
        return "-" + format_duration(-seconds)
    if 0 < micros < 1_000_000:
        return f"{_decimal(micros, 3)}ms"
    text = ""
    for unit in ("d", "h", "m"):
        count, micros = divmod(micros, int(_SECONDS[unit]) * 1_000_000)
        text += f"{count}{unit}" if count else ""
    return text + f"{_decimal(micros, 6)}s" if micros or not text else text


def _decimal(number: int, places: int) -> str:
    whole, fraction = divmod(number, 10**places)
    return f"{whole}.{fraction:0{places}d}".rstrip("0").rstrip(".")


def parse_size(value: str | int) -> int:
    """Bytes of a size.

    Args:
        value: `512MiB`, `1.5GiB` (powers of 1024), `500MB` (powers of 1000) or a bare number of bytes.

    Raises:
        ValueError: it is none of them, negative, or not a whole number of bytes.
    """
    if isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is not a size ({_SIZE_FORMS})")
    text = str(value).strip()
    if text.startswith("-"):
        raise ValueError(f"a size cannot be negative: {_shown(value)}")
    match = _SIZE.fullmatch(text)
    unit = match["unit"].lower() if match else ""
    if match and len(unit) == 1 and unit in "kmgtp":
        # Docker reads 1m as 2**20, Kubernetes 1M as 10**6: we do not choose between them silently.
        number, letter = match["number"], unit.upper()
        raise ValueError(f"{_shown(value)} is ambiguous: write {number}{letter}iB or {number}{letter}B")
    if match is None or unit not in _BYTES_BY_LOWER:
        raise ValueError(f"{_shown(value)} is not a size ({_SIZE_FORMS})")
    size = Decimal(match["number"]) * _BYTES_BY_LOWER[unit]
    if size != int(size):
        raise ValueError(f"{_shown(value)} is not a whole number of bytes")
    if size > MAX_SIZE:
        raise ValueError(f"{_shown(value)} is larger than any size there is")
    return int(size)


def format_size(size: int) -> str:
    """`512 B`, `1.5 KiB`, `256 MiB`: for people, to one decimal."""
    if size < 1024:
        return f"{size} B"
    for power, letter in enumerate("KMGTP", start=1):
        scaled = size / 1024**power
        if scaled < 1023.95 or letter == "P":
            break
    return f"{scaled:.1f}".removesuffix(".0") + f" {letter}iB"


def _shown(value: object) -> str:
    text = str(value)
    return f"'{text if len(text) <= 60 else text[:57] + '…'}'"
