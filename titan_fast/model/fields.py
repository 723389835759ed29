"""The fields of a graph file, each once: its name, its aliases, how its value is read, or that it comes later.

A value that cannot be used is noted with its line, and the others are still read, so that one look at a file finds
all that is wrong with it. What belongs to several tasks at once (edges, duplicates) is not known here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from titan_fast.model import expand, names, results, units
from titan_fast.model.expand import Matrix
from titan_fast.model.names import Guesses
from titan_fast.model.problems import NotYet, Problems, Wrong
from titan_fast.model.spec import DEFAULT_AFFINITY_WAIT, DEFAULT_BACKOFF, DEFAULT_MAX_DELAY, Retry
from titan_fast.model.yaml_nodes import Entry, Items, Mapping, Node, Scalar, found

MAX_PRIORITY = 1_000_000
MAX_RETRIES = 60_000
"""Attempts are counted in 16 bits on the wire."""
MAX_GRACE = 86_400.0
"""Seconds; it travels as 32 bits of milliseconds."""

_BY_MEMBER = ("matrix",)
_BY_WORKER = ("matrix", "tasks")
_PLACES = {"matrix": "run, file, args, python and env", "tasks": "run, args and env"}

_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9_]*)")


class Unset(Exception):
    """A value that rests on an input nobody has given; the input is the problem, not the value."""


class AffinityWish(NamedTuple):
    """`affinity` as it was written: to whom it is depends on the task's needs."""

    line: int
    to: str | None
    """None: the parent that finished last."""
    may_be_task: bool
    """It stood in `to`, which names a task or a key; else it is a key."""
    mode: Any
    wait: float


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A text, and the line it stands on."""

    text: str
    line: int


class Values:
    """Reads the values of one file: replaces its inputs, and remembers which matrix values and results are used."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.guesses = Guesses()
        self.owner = ""
        """How a problem of the mapping being read begins: ``task 'a': ``."""
        self.inputs: dict[str, str | None] = {}
        """None: declared without a default, and not given."""
        self.matrix_uses: list[Placed] = []
        """Of the task being read."""
        self.result_uses: list[Placed] = []
        """Of the task being read: the tasks whose results it takes."""

    # ------------------------------------------------------------ texts and numbers

    def plain_text(self, node: Node, what: str = "text") -> str:
        """A text in which nothing is replaced yet."""
        if not isinstance(node, Scalar) or node.is_null:
            raise Wrong(node.line, f"expected {what}, found {found(node)}")
        text = node.to_text()
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Wrong(node.line, f"{text!r} holds half of a surrogate pair, which is no character") from error
        if "\0" in text:
            raise Wrong(node.line, f"{text!r} holds a NUL character, which no program can be given")
        return text

    def text(self, node: Node, what: str = "text") -> str:
        text = self.plain_text(node, what)
        return self._replace(text, node.line) if "${" in text else text

    def script_text(self, node: Node, what: str) -> str:
        """A text in which the worker replaces ``${matrix.x}``."""
        text = self.plain_text(node, what)
        return self._replace(text, node.line, _BY_MEMBER) if "${" in text else text

    def work_text(self, node: Node, what: str = "text") -> str:
        """A text in which the worker replaces ``${matrix.x}`` and ``${tasks.NAME.result}``."""
        text = self.plain_text(node, what)
        return self._replace(text, node.line, _BY_WORKER) if "${" in text else text

    def _replace(self, text: str, line: int, later: tuple[str, ...] = ()) -> str:
        """The text with its inputs; ``later`` are the kinds of references that stay in it for the worker."""

        def replace(kind: str, name: str) -> str:
            if kind in _PLACES:
                reference = f"${{{kind}.{name}}}"
                if kind not in later:
                    raise ValueError(f"'{reference}' can stand in {_PLACES[kind]} of a task only")
                task = results.result_of(name) if kind == "tasks" else None
                if kind == "matrix":
                    self.matrix_uses.append(Placed(name, line))
                elif task is not None:
                    self.result_uses.append(Placed(task, line))
                else:
                    raise ValueError(f"'{reference}' is not known (write ${{tasks.NAME.result}})")
                return reference
            if name not in self.inputs:
                hint = self.guesses.hint(name, self.inputs, "${inputs.{}}")
                raise ValueError(f"'${{inputs.{name}}}' is not among the inputs of this file{hint}")
            value = self.inputs[name]
            if value is None:
                raise Unset
            return value

        try:
            return expand.replace_references(text, replace)
        except ValueError as error:
            raise Wrong(line, str(error)) from error

    def whole(self, node: Node, low: int, high: int) -> int:
        what = f"a whole number from {low:,} to {high:,}"
        text = self.text(node, what)
        if not _WHOLE.fullmatch(text):
            raise Wrong(node.line, f"expected {what}, found {found(node)}")
        # Sixty digits are enough to be out of every range, and int() is quadratic.
        number = int(text[:60].replace("_", ""))
        if not low <= number <= high:
            raise Wrong(node.line, f"expected {what}, found '{text[:60]}'")
        return number

    def duration(self, node: Node, most: float = units.MAX_DURATION) -> float:
        text = self.text(node, "a duration such as 30s, 5m or 1h30m")
        try:
            seconds = units.parse_duration(text)
        except ValueError as error:
            raise Wrong(node.line, str(error)) from error
        if seconds > most:
            raise Wrong(node.line, f"'{text}' is longer than {units.format_duration(most)}")
        return seconds

    def yes_or_no(self, node: Node) -> bool:
        value = None
        if isinstance(node, Scalar):
            value = Scalar(self.text(node, "true or false"), node.line, node.plain).to_bool()
        if value is None:
            raise Wrong(node.line, f"expected true or false, found {found(node)}")
        return value

    def choice(self, node: Node, choices: Iterable[str]) -> str:
        choices = list(choices)
        what = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        text = self.text(node, what)
        if text not in choices:
            raise Wrong(node.line, f"expected {what}, found '{text}'{self.guesses.hint(text, choices)}")
        return text

    # ------------------------------------------------------------ lists and mappings

    def one_or_more(self, node: Node, what: str) -> tuple[Node, ...]:
        """The values of a list, or a single one."""
        if isinstance(node, Mapping):
            raise Wrong(node.line, f"expected {what}, found a mapping")
        return node.nodes if isinstance(node, Items) else (node,)

    def mapping(self, node: Node, what: str) -> dict[str, Entry]:
        if not isinstance(node, Mapping):
            raise Wrong(node.line, f"expected {what}, found {found(node)}")
        return node.entries

    # ------------------------------------------------------------ the fields of a task

    def name(self, node: Node) -> str:
        """Of a task, whatever it is: other tasks may name it even if it is not allowed."""
        return self.text(node, "a name")

    def graph_name(self, node: Node) -> str:
        name = self.text(node, "a name")
        try:
            return names.check_graph_name(name)
        except ValueError as error:
            raise Wrong(node.line, str(error)) from error

    def kind(self, node: Node) -> None:
        kind = self.text(node, "run").lower()
        if kind == "service":
            raise NotYet(node.line, "type: service")
        if kind != "run":
            raise Wrong(node.line, f"expected run, found '{kind}'")

    def run(self, node: Node) -> str | tuple[str, ...]:
        if isinstance(node, Items):
            argv = tuple(self.work_text(item) for item in node.nodes)
            if not argv or not argv[0]:
                raise Wrong(node.line, "the command is empty")
            return argv
        text = self.work_text(node, "a command (shell text or a list)")
        if not text.strip():
            raise Wrong(node.line, "the command is empty")
        return text

    def file(self, node: Node) -> Placed:
        text = self.script_text(node, "the path of a script")
        if not text:
            raise Wrong(node.line, "the path is empty")
        return Placed(text, node.line)

    def args(self, node: Node) -> tuple[str, ...]:
        if isinstance(node, Items):
            return tuple(self.work_text(item) for item in node.nodes)
        text = self.plain_text(node, "a list, or text that is split as a shell does")
        # Split before replacing: the value of an input stays one argument, whatever it holds. Alone, an input is
        # the whole text and is split like it: `args: ${inputs.args}`.
        alone = expand.REFERENCE.fullmatch(text.strip()) is not None
        try:
            words = shlex.split(self._replace(text, node.line, _BY_WORKER) if alone else text)
        except ValueError as error:
            raise Wrong(node.line, f"cannot be split as a shell does: {str(error).lower()}") from error
        return tuple(words if alone else (self._replace(word, node.line, _BY_WORKER) for word in words))

    def python(self, node: Node) -> str:
        text = self.script_text(node, "the path of a Python interpreter")
        if not text:
            raise Wrong(node.line, "the path is empty")
        return text

    def isolation(self, node: Node) -> str:
        return self.choice(node, ("fresh", "warm"))

    def preload(self, node: Node) -> tuple[str, ...]:
        what = "a module's name, or a list of them"
        return tuple(dict.fromkeys(self.text(item, "a module's name") for item in self.one_or_more(node, what)))

    def needs(self, node: Node) -> tuple[Placed, ...]:
        what = "a task's name, or a list of them"
        nodes = self.one_or_more(node, what)
        return tuple(Placed(self.text(item, "a task's name"), item.line) for item in nodes)

    def requires(self, node: Node) -> tuple[str, ...]:
        tags = []
        for item in self.one_or_more(node, "a capability, or a list of them"):
            if not (isinstance(item, Scalar) and item.is_null):
                tags.append(self.text(item, "a capability"))
        try:
            return names.normal_capabilities(tags)
        except ValueError as error:
            raise Wrong(node.line, str(error)) from error

    def resources(self, node: Node) -> None:
        entries = self.mapping(node, "a mapping of amounts")
        for key, entry in entries.items():
            if key != "slots" or not isinstance(entry.node, Scalar) or entry.node.text != "1":
                raise NotYet(node.line, "resources", " (every task takes one slot)")

    def priority(self, node: Node) -> int:
        return self.whole(node, -MAX_PRIORITY, MAX_PRIORITY)

    def grace(self, node: Node) -> float:
        return self.duration(node, MAX_GRACE)

    def retries(self, node: Node) -> Retry:
        return Retry(max=self.whole(node, 0, MAX_RETRIES))

    def retry(self, node: Node) -> Retry:
        if isinstance(node, Scalar):
            raise Wrong(node.line, f"expected a mapping with 'max', found {found(node)} (a number goes to 'retries')")
        entries = self.mapping(node, "a mapping with 'max'")
        read, written = read_fields(self, entries, RETRY, "retry: ")
        if "max" not in written:
            raise Wrong(node.line, "'max' is missing")
        return Retry(
            max=read.get("max", 0),
            backoff=read.get("backoff", DEFAULT_BACKOFF),
            max_delay=read.get("max_delay", DEFAULT_MAX_DELAY),
            on=read.get("on", ()),
        )

    def retry_on(self, node: Node) -> tuple[Any, ...]:
        what = "exit codes from 1 to 255, or timeout"
        reasons: dict[int | str, None] = {}
        for item in self.one_or_more(node, what):
            text = self.text(item, what)
            if text == "timeout":
                reasons[text] = None
            elif text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= 255:
                reasons[int(text)] = None
            else:
                raise Wrong(item.line, f"expected {what}, found '{text}'")
        return tuple(reasons)

    def when(self, node: Node) -> str:
        return self.choice(node, ("success", "failure", "always"))

    def affinity(self, node: Node) -> AffinityWish | None:
        if isinstance(node, Scalar):
            return self._affinity_to(node, False, "prefer", DEFAULT_AFFINITY_WAIT)
        entries = self.mapping(node, "true, a key, or a mapping with 'to'")
        read, written = read_fields(self, entries, AFFINITY, "affinity: ")
        mode = read.get("mode", "prefer")
        wait = read.get("wait", DEFAULT_AFFINITY_WAIT)
        to = written.get("to")
        if to is None:
            return AffinityWish(node.line, None, False, mode, wait)
        if not isinstance(to.node, Scalar):
            raise Wrong(to.node.line, f"to: expected a task's name or a key, found {found(to.node)}")
        return self._affinity_to(to.node, True, mode, wait)

    def _affinity_to(self, node: Scalar, may_be_task: bool, mode: str, wait: float) -> AffinityWish | None:
        text = self.text(node, "true, a key, or a mapping with 'to'")
        truth = Scalar(text, node.line, node.plain).to_bool()
        if truth is False:
            return None
        if truth is True:
            return AffinityWish(node.line, None, False, mode, wait)
        try:
            names.check_graph_name(text)
        except ValueError as error:
            raise Wrong(node.line, str(error)) from error
        return AffinityWish(node.line, text, may_be_task, mode, wait)

    def anything(self, node: Node) -> None:
        """Accepted, and of no meaning here."""

    def env(self, node: Node) -> dict[str, str]:
        return self._env(node, self.text)

    def work_env(self, node: Node) -> dict[str, str]:
        return self._env(node, self.work_text)

    def _env(self, node: Node, read: Callable[[Node], str]) -> dict[str, str]:
        env = {}
        for key, entry in self.mapping(node, "a mapping of names to values").items():
            if not key or "=" in key or "\0" in key:
                raise Wrong(entry.line, f"{key!r} cannot be the name of a variable")
            if isinstance(entry.node, Scalar) and entry.node.is_null:
                raise Wrong(entry.line, f"'{key}' has no value (write \"\" for an empty one)")
            env[key] = read(entry.node)
        return env

    def matrix(self, node: Node) -> Matrix:
        entries = self.mapping(node, "a mapping of names to lists")
        values = {}
        for key, entry in entries.items():
            if not expand.NAME.fullmatch(key):
                raise Wrong(entry.line, f"'{key}' cannot be a name (letters, digits, _ and -)")
            if not isinstance(entry.node, Items):
                raise Wrong(entry.node.line, f"{key}: expected a list of values, found {found(entry.node)}")
            if not entry.node.nodes:
                raise Wrong(entry.node.line, f"{key}: the list is empty")
            values[key] = tuple(self.text(item, "a value") for item in entry.node.nodes)
        if not values:
            raise Wrong(node.line, "it names no values")
        matrix = Matrix(values)
        try:
            matrix.check()
        except ValueError as error:
            raise Wrong(node.line, str(error)) from error
        return matrix


# ---------------------------------------------------------------- the tables

Read = Callable[[Values, Node], Any]


class Fields(msgspec.Struct, frozen=True):
    """The keys a mapping may have."""

    read: dict[str, Read]
    aliases: dict[str, str] = {}
    later: frozenset[str] = frozenset()
    """Part of the language, and not there yet: refused by name."""
    meant: dict[str, str] = {}
    """What users of other systems write, for "did you mean"."""

    def hint(self, key: str, guesses: Guesses) -> str:
        """`` (did you mean 'needs'?)``, or nothing."""
        if key in self.meant:
            return f" (did you mean '{self.meant[key]}'?)"
        return guesses.hint(key, [*self.read, *self.aliases, *self.later])


GRAPH = Fields(
    read={
        "name": Values.graph_name,
        "version": Values.anything,
        "project": Values.yes_or_no,
        "env": Values.env,
        "inputs": Values.anything,
        "tasks": Values.anything,
    },
    aliases={"jobs": "tasks"},
    later=frozenset({"schedule", "on_failure"}),
    meant={"environment": "env", "steps": "tasks", "params": "inputs", "variables": "inputs"},
)

TASK = Fields(
    read={
        "id": Values.name,
        "type": Values.kind,
        "file": Values.file,
        "args": Values.args,
        "run": Values.run,
        "python": Values.python,
        "isolation": Values.isolation,
        "preload": Values.preload,
        "needs": Values.needs,
        "requires": Values.requires,
        "resources": Values.resources,
        "priority": Values.priority,
        "affinity": Values.affinity,
        "delay": Values.duration,
        "timeout": Values.duration,
        "grace": Values.grace,
        "retries": Values.retries,
        "retry": Values.retry,
        "when": Values.when,
        "env": Values.work_env,
        "matrix": Values.matrix,
    },
    aliases={"depends_on": "needs", "parents": "needs", "requirement": "requires"},
    later=frozenset(
        {
            "port",
            "health",
            "restart",
            "replicas",
            "lifetime",
            "schedule",
            "gate",
            "hitl_message",
            "max_wait_seconds",
            "on_failure",
        }
    ),
    meant={
        "name": "id",
        "command": "run",
        "cmd": "run",
        "script": "file",
        "dependencies": "needs",
        "environment": "env",
        "capability": "requires",
        "capabilities": "requires",
    },
)

RETRY = Fields(
    read={
        "max": lambda values, node: values.whole(node, 0, MAX_RETRIES),
        "backoff": Values.duration,
        "max_delay": Values.duration,
        "on": Values.retry_on,
    }
)

AFFINITY = Fields(
    read={
        "to": Values.anything,
        "mode": lambda values, node: values.choice(node, ("prefer", "require")),
        "wait": Values.duration,
    }
)


class Reading(NamedTuple):
    """A mapping whose fields were read."""

    values: dict[str, Any]
    """What could be read, by field name."""
    written: dict[str, Entry]
    """What stood there, readable or not, by field name: whoever asks for a missing field looks here."""


def read_fields(values: Values, entries: dict[str, Entry], fields: Fields, inside: str = "") -> Reading:
    """Reads a mapping; what is wrong with it is noted. A key without a value is as good as absent."""
    read: dict[str, Any] = {}
    written: dict[str, Entry] = {}
    add = values.problems.add
    owner = values.owner + inside
    for key, entry in entries.items():
        name = fields.aliases.get(key, key)
        reader = fields.read.get(name)
        node = entry.node
        if reader is None and key not in fields.later:
            add(entry.line, f"{owner}unknown key '{key}'{fields.hint(key, values.guesses)}")
        elif isinstance(node, Scalar) and node.is_null:
            continue
        elif reader is None:
            add(entry.line, f"{owner}'{key}' is not supported yet")
        elif name in written:
            other = next(each for each, first in entries.items() if first is written[name])
            add(entry.line, f"{owner}'{other}' and '{key}' mean the same, keep one of them")
        else:
            written[name] = entry
            try:
                read[name] = reader(values, node)
            except NotYet as wrong:
                add(wrong.line, f"{owner}{wrong.text}")
            except Wrong as wrong:
                add(wrong.line, f"{owner}{key}: {wrong.text}")
            except Unset:
                continue
    return Reading(read, written)
