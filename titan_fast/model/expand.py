"""`${inputs.k}`, `${matrix.x}` and `${tasks.a.result}`: what is written into a file's texts at load and later, and how
a matrix becomes an array.

Inputs are replaced here, once, in any value. The others stay in the text: the worker replaces them from the member's
payload, so an array of ten million members is still one description, and from what its parents wrote.
"""

from __future__ import annotations

import itertools
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from math import prod

import msgspec

from titan_fast.model.spec import MAX_MEMBERS

MAX_PAYLOAD_BYTES = 1 << 30
"""All payloads of one array. Offsets are u32; a quarter of what they can say is still a file nobody should write."""

REFERENCE = re.compile(r"\$\{(inputs|matrix|tasks)\.([^{}]*)\}")
_SPACED = re.compile(r"\$\{\s*(?:inputs|matrix|tasks)\s*\.[^{}]*\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""What an input or a matrix value may be called."""


def replace_references(text: str, replace: Callable[[str, str], str]) -> str:
    """The text with each reference given to ``replace`` as (kind, name), which answers what stands there instead.

    Raises:
        ValueError: a reference holds spaces, so that nobody would replace it.
    """
    for match in _SPACED.finditer(text):
        if any(char.isspace() for char in match[0]):
            raise ValueError(f"'{match[0]}' is written without spaces")
    return REFERENCE.sub(lambda match: replace(match[1], match[2]), text)


class Matrix(msgspec.Struct, frozen=True):
    """Named lists of values; an array has one member for each combination, the last name turning fastest."""

    values: dict[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        return prod(len(values) for values in self.values.values())

    def check(self) -> None:
        """Refuses an array that is too large.

        Raises:
            ValueError: it would have too many members, or too many bytes of values.
        """
        if self.count > MAX_MEMBERS:
            raise ValueError(f"{self.count:,} members, at most {MAX_MEMBERS:,} are allowed")
        if self.payload_size > MAX_PAYLOAD_BYTES:
            raise ValueError(f"{self.payload_size:,} bytes of values, at most {MAX_PAYLOAD_BYTES:,} are allowed")

    @property
    def payload_size(self) -> int:
        """The bytes of all members' payloads, without building them."""
        count = self.count
        own = sum(sum(map(len, parts)) * (count // len(parts)) for parts in self._parts())
        return own + count * (len(self.values) + 1)

    def to_payload(self) -> bytes:
        """The attachment: (count + 1) big-endian u32 offsets, counted from the first payload, then the payloads.

        Each payload is a JSON object ``{"x": "value"}``; every value is text.
        """
        parts = self._parts()
        body = b"{" + b"}{".join(map(b",".join, itertools.product(*parts))) + b"}"
        # A member is as long as its parts, the commas between them and two braces.
        frame = len(parts) + 1
        lengths = (
            sum(combination) + frame
            for combination in itertools.product(*([len(part) for part in column] for column in parts))
        )
        offsets = array("I", itertools.accumulate(lengths, initial=0))
        if sys.byteorder == "little":
            offsets.byteswap()
        return offsets.tobytes() + body

    def _parts(self) -> list[list[bytes]]:
        encode = msgspec.json.encode
        return [[encode(name) + b":" + encode(value) for value in values] for name, values in self.values.items()]

    def count_texts(self, template: str) -> int:
        """How many combinations of the values it names ``template`` has."""
        return prod(len(self.values[name]) for name in self._named(template))

    def texts(self, template: str) -> Iterator[str]:
        """What ``template`` becomes: one text for each combination of the values it names."""
        names = self._named(template)
        for combination in itertools.product(*(self.values[name] for name in names)):
            yield fill(template, dict(zip(names, combination, strict=True)))

    def _named(self, template: str) -> list[str]:
        return list(dict.fromkeys(match[2] for match in REFERENCE.finditer(template) if match[1] == "matrix"))


def fill(template: str, values: Mapping[str, str] | None, results: Mapping[str, str] | None = None) -> str:
    """``template`` as the worker runs it. What is put in is not looked at again, whatever it holds.

    Args:
        values: what stands for ``${matrix.x}``, by x; None leaves them.
        results: what stands for ``${tasks.NAME.result}``, by NAME; None leaves them.

    Raises:
        KeyError: there is none of the name (with ``.result``, if it is a task's).
    """
    results_by_reference = None if results is None else {f"{name}.result": text for name, text in results.items()}
    kinds = {"matrix": values, "tasks": results_by_reference}

    def put_in(match: re.Match[str]) -> str:
        known = kinds.get(match[1])
        return match[0] if known is None else known[match[2]]

    return REFERENCE.sub(put_in, template)
