"""YAML text as a tree in which every value knows its line. Knows YAML, and nothing of graphs.

Built from the parser's events, not from PyYAML's nodes: `yaml.compose` recurses in C and ends the process on a
few thousand brackets, and its nodes make the collector's work grow faster than the file (18 s for 100,000 tasks,
against 4). Aliases share their node; what a walk over the tree would visit is counted while it is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import yaml

from titan_fast.model.problems import Problems

MAX_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_VALUES = 10_000_000
"""Values of a file with its aliases written out: an alias bomb is small in the file and endless in the walk."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp"))
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {
    spelling: value
    for value, words in ((True, "true yes on"), (False, "false no off"))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
}


class Scalar(msgspec.Struct, frozen=True, gc=False):
    """A text, number, bool or null: which of them is asked when somebody reads it."""

    text: str
    line: int
    plain: bool
    """Written without quotes and tag, so that `yes` and `null` have their YAML meaning."""

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS

    def to_bool(self) -> bool | None:
        """True or False as YAML 1.1 (and quoted `true`, `false`) says it, else None."""
        if self.plain or self.text in ("true", "false"):
            return _BOOLS.get(self.text)
        return None

    def to_text(self) -> str:
        """The text as it was written; only `True` and `TRUE` become `true`, as YAML 1.2 reads them.

        `no` stays `no`: the country is meant as often as the answer. `1.0`, `007` and dates keep their shape.
        """
        if self.plain and self.text in ("True", "TRUE", "False", "FALSE"):
            return self.text.lower()
        return self.text


class Items(msgspec.Struct, frozen=True, gc=False):
    """A list."""

    nodes: tuple[Node, ...]
    line: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A value of a mapping, with its key's line."""

    line: int
    node: Node


class Mapping(msgspec.Struct, frozen=True, gc=False):
    """A mapping whose keys are texts, merge keys (`<<`) already merged."""

    entries: dict[str, Entry]
    line: int


Node = Scalar | Items | Mapping


def found(node: Node) -> str:
    """What a node is, for "expected …, found …"."""
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if node.is_null:
        return "nothing"
    text = node.text if len(node.text) <= 60 else node.text[:57] + "…"
    return f"'{text}'"


def decode(data: bytes, problems: Problems) -> str | None:
    """The text of a file's bytes, or None after noting why there is none."""
    if len(data) > MAX_BYTES:
        problems.add(1, f"the file is larger than {MAX_BYTES >> 20} MiB (put what varies into a matrix)")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(data.count(b"\n", 0, error.start) + 1, "the file is not UTF-8 text")
        return None
    unreadable = _UNREADABLE.search(text)
    if unreadable is not None:
        line = text.count("\n", 0, unreadable.start()) + 1
        problems.add(line, f"the character U+{ord(unreadable[0]):04X} cannot stand in a YAML file")
        return None
    return text


def read(text: str, problems: Problems) -> Node | None:
    """The tree of a YAML text; None when it is empty or, with the problem noted, no YAML."""
    try:
        return _Tree(problems).build(text)
    except yaml.MarkedYAMLError as error:
        problems.add(*_syntax_problem(text, error))
    except yaml.YAMLError as error:
        problems.add(1, f"invalid YAML: {error}")
    except _Stop as stop:
        problems.add(stop.line, stop.text)
    return None


def _syntax_problem(text: str, error: yaml.MarkedYAMLError) -> tuple[int, str]:
    lines = text.splitlines() or [""]
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    what = " ".join(filter(None, (error.context, error.problem)))
    # What is missing at the end of the file is missed on the line after the last.
    line = min(line, len(lines) - 1)
    if error.context_mark is not None and error.context_mark.line < line:
        what += f" (begun on line {error.context_mark.line + 1})"
    if lines[line][column : column + 1] == "\t":
        what += " (a tab: YAML indents with spaces)"
    return line + 1, f"invalid YAML: {what}"


class _Stop(Exception):
    """A problem after which the rest of the text cannot be made sense of."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class _Open:
    """A list or mapping whose end has not come yet."""

    __slots__ = ("anchor", "entries", "key", "key_line", "line", "merges", "nodes", "size")

    def __init__(self, line: int, anchor: str | None, is_mapping: bool) -> None:
        self.line = line
        self.anchor = anchor
        self.size = 1
        self.nodes: list[Node] = []
        self.entries: dict[str, Entry] | None = {} if is_mapping else None
        self.key: str | None = None
        self.key_line = 0
        self.merges: list[Entry] = []


_MERGE = "<<"
_MERGE_KEY = "\0<<"
"""No text of a file holds NUL, so this cannot be somebody's key: a quoted "<<" is an ordinary one."""


class _Tree:
    """Builds the tree, event by event."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._anchors: dict[str, tuple[Node, int] | None] = {}
        """What an anchor names, and how many values that is written out; None while its end has not come."""

    def build(self, text: str) -> Node | None:
        parser = _LOADER(text)
        try:
            self._take_events(parser.get_event)
        finally:
            parser.dispose()
        return self._root

    def _take_events(self, next_event: Callable[[], Any]) -> None:
        documents = 0
        kind = None
        # The order is by frequency: a file is scalars first of all.
        while kind is not yaml.StreamEndEvent:
            event = next_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._scalar(event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._open(event, kind is yaml.MappingStartEvent)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._close()
            elif kind is yaml.AliasEvent:
                self._alias(event)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents == 2:
                    line = event.start_mark.line + 1
                    raise _Stop(line, "a second document starts here, but a file holds one graph")

    def _scalar(self, event: Any) -> None:
        line = event.start_mark.line + 1
        tag = event.tag
        if tag is not None:
            self._check_tag(tag, line)
        plain = event.implicit[0] or (tag is not None and tag != _TAG + "str" and event.style is None)
        node = Scalar(event.value, line, plain)
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, 1)
        self._add(node, 1, line)

    def _open(self, event: Any, is_mapping: bool) -> None:
        line = event.start_mark.line + 1
        if event.tag is not None:
            self._check_tag(event.tag, line)
        if len(self._stack) == MAX_DEPTH:
            raise _Stop(line, f"nested more than {MAX_DEPTH} deep")
        top = self._stack[-1] if self._stack else None
        if top is not None and top.entries is not None and top.key is None:
            raise _Stop(line, f"a key must be text, found {'a mapping' if is_mapping else 'a list'}")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._stack.append(_Open(line, event.anchor, is_mapping))

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node
        if done.entries is None:
            # A tuple: unlike a list, the collector forgets it once it has seen that nothing in it can be a cycle.
            node = Items(tuple(done.nodes), done.line)
        else:
            for merge in done.merges:
                self._merge(done.entries, merge)
            node = Mapping(done.entries, done.line)
        if done.anchor is not None:
            self._anchors[done.anchor] = (node, done.size)
        self._add(node, done.size, done.line)

    def _alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if event.anchor not in self._anchors:
            raise _Stop(line, f"the alias '*{event.anchor}' has no anchor '&{event.anchor}' before it")
        target = self._anchors[event.anchor]
        if target is None:
            raise _Stop(line, f"the alias '*{event.anchor}' stands inside what it names")
        self._add(*target, line)

    def _add(self, node: Node, size: int, line: int) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        top.size += size
        if top.size > MAX_VALUES:
            raise _Stop(line, f"more than {MAX_VALUES:,} values once its aliases are written out")
        if top.entries is None:
            top.nodes.append(node)
        elif top.key is None:
            if not isinstance(node, Scalar):
                raise _Stop(line, f"a key must be text, found {found(node)}")
            top.key = _MERGE_KEY if node.plain and node.text == _MERGE else node.text
            top.key_line = line
        elif top.key is _MERGE_KEY:
            top.merges.append(Entry(line, node))
            top.key = None
        else:
            first = top.entries.get(top.key)
            if first is None:
                top.entries[top.key] = Entry(top.key_line, node)
            else:
                self._problems.add(top.key_line, f"the key '{top.key}' appears twice (first on line {first.line})")
            top.key = None

    def _merge(self, entries: dict[str, Entry], merge: Entry) -> None:
        """Own keys win over merged ones, earlier sources over later ones (the YAML merge key type)."""
        sources = merge.node.nodes if isinstance(merge.node, Items) else (merge.node,)
        for source in sources:
            if not isinstance(source, Mapping):
                self._problems.add(merge.line, f"'<<' expects a mapping, found {found(source)}")
                continue
            for key, entry in source.entries.items():
                entries.setdefault(key, entry)

    def _check_tag(self, tag: str, line: int) -> None:
        if tag not in _PLAIN_TAGS and tag != "!":
            self._problems.add(line, f"the tag '{tag.replace(_TAG, '!!')}' is not allowed")
