"""Graph files (YAML): from a path or a text to the specs the master takes, or to all that is wrong with it.

What YAML means is in `yaml_nodes`, what a field means in `fields`, what makes a task in `drafts`; here the tasks of
a file meet. The files of the original Titan load unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from titan_fast.errors import InvalidFile
from titan_fast.model import expand, names, yaml_nodes
from titan_fast.model.drafts import Draft, read_draft
from titan_fast.model.edges import find_cycles, find_unrelated
from titan_fast.model.fields import GRAPH, TASK, AffinityWish, Placed, Values, read_fields
from titan_fast.model.problems import Problems, Wrong
from titan_fast.model.scripts import Scripts
from titan_fast.model.spec import MAX_NAMED_TASKS, Affinity, GraphSpec
from titan_fast.model.yaml_nodes import Entry, Items, Node, Scalar, found

_MAX_PATH = 12
"""Tasks of a cycle that are named."""


class LoadedGraph(msgspec.Struct, frozen=True):
    """A graph file, ready to be submitted once its project is packed."""

    graph: GraphSpec
    """Its ``project`` is empty: the archive does not exist yet."""
    project_dir: Path | None = None
    """The folder to pack; None: no task needs a file of it."""
    payloads: list[bytes] = []
    """The attachments of the arrays; `TaskSpec.payload` is an index into them."""
    project_files: tuple[str, ...] = ()
    """What to pack of the folder (``project: false``: the scripts alone); empty: all that is not left out."""


def load_file(path: str | os.PathLike[str], inputs: Mapping[str, str] = {}) -> LoadedGraph:
    """The graph of a YAML file.

    Args:
        path: the file; scripts are looked for relative to its folder.
        inputs: what ``--set k=v`` gave.

    Raises:
        InvalidFile: with all its problems, each ``file:line: text``.
    """
    return _loaded(_File(os.fspath(path), inputs, _folder_of(path)), _bytes_of(path))


def lint_file(path: str | os.PathLike[str], inputs: Mapping[str, str] = {}) -> list[str]:
    """All problems of a YAML file, each ``file:line: text``, sorted by line; empty when it would load.

    An input without a default that is not given is no problem of the file: what rests on it is not looked at.
    """
    try:
        data = _bytes_of(path)
    except InvalidFile as error:
        return error.problems
    file = _File(os.fspath(path), inputs, _folder_of(path), lint=True)
    file.build(data)
    return file.problems.to_lines()


def load_text(text: str, name: str, inputs: Mapping[str, str] = {}, folder: Path | None = None) -> LoadedGraph:
    """The graph of a YAML text.

    Args:
        text: the YAML.
        name: stands for the file's name in problems, and for the graph's when the text has none.
        inputs: what ``--set k=v`` gave.
        folder: where its scripts are; None: they are not looked for, and there is no project.

    Raises:
        InvalidFile: with all its problems, each ``name:line: text``.
    """
    return _loaded(_File(name, inputs, folder), text.encode("utf-8", "surrogatepass"))


def _loaded(file: _File, data: bytes) -> LoadedGraph:
    loaded = file.build(data)
    if loaded is None:
        raise InvalidFile(file.problems.to_lines())
    return loaded


def _folder_of(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path)).parent


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(yaml_nodes.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidFile([f"{os.fspath(path)}: there is no such file"]) from error
    except IsADirectoryError as error:
        raise InvalidFile([f"{os.fspath(path)}: this is a folder, not a graph file"]) from error
    except OSError as error:
        raise InvalidFile([f"{os.fspath(path)}: cannot be read: {error.strerror}"]) from error


class _File:
    """One file on its way to a graph."""

    def __init__(self, name: str, inputs: Mapping[str, str], folder: Path | None, lint: bool = False) -> None:
        self.problems = Problems(name)
        self._name = name
        self._given = inputs
        self._folder = folder
        self._lint = lint
        self._values = Values(self.problems)
        self._scripts = Scripts(folder, self._values.guesses)
        self._drafts: list[Draft] = []
        self._numbers: dict[str, int] = {}
        """Each task's place among the drafts."""
        self._nameless = False
        """The name of some task could not be read, so another may rightly need what we do not find."""

    def build(self, data: bytes) -> LoadedGraph | None:
        """The graph; None when there are problems (and with ``lint``, which asks for nothing else)."""
        text = yaml_nodes.decode(data, self.problems)
        root = None if text is None else yaml_nodes.read(text, self.problems)
        if self.problems and root is None:
            return None
        if root is None or (isinstance(root, Scalar) and root.is_null):
            self.problems.add(1, "the file is empty")
            return None
        if not isinstance(root, yaml_nodes.Mapping):
            self.problems.add(root.line, f"expected a mapping with 'tasks', found {found(root)}")
            return None
        self._read_inputs(root.entries.get("inputs"))
        fields, written = read_fields(self._values, root.entries, GRAPH)
        self._read_tasks(written.get("tasks") or root.entries.get("tasks") or root.entries.get("jobs"))
        self._resolve()
        return None if self.problems or self._lint else self._to_graph(fields)

    # ------------------------------------------------------------ inputs

    def _read_inputs(self, entry: Entry | None) -> None:
        inputs = self._values.inputs
        if entry is not None and isinstance(entry.node, yaml_nodes.Mapping):
            for key, default in entry.node.entries.items():
                if not expand.NAME.fullmatch(key):
                    self.problems.add(default.line, f"inputs: '{key}' cannot be a name (letters, digits, _ and -)")
                else:
                    inputs[key] = self._input(key, default)
        elif entry is not None and not (isinstance(entry.node, Scalar) and entry.node.is_null):
            what = f"expected a mapping of names to defaults, found {found(entry.node)}"
            self.problems.add(entry.node.line, f"inputs: {what}")
        line = 1 if entry is None else entry.line
        for key, value in self._given.items():
            if key not in inputs:
                hint = self._values.guesses.hint(key, inputs)
                self.problems.add(line, f"--set {key}: this file has no such input{hint}")
            elif "\0" in value:
                self.problems.add(line, f"--set {key}: the value holds a NUL character, which no program can be given")
            elif not value.isascii() and value.encode("utf-8", "replace").decode() != value:
                # Bytes of the command line that are no text arrive as lone surrogates, which no message can carry.
                self.problems.add(line, f"--set {key}: the value is not UTF-8 text")

    def _input(self, key: str, default: Entry) -> str | None:
        if key in self._given:
            return self._given[key]
        if isinstance(default.node, Scalar) and default.node.is_null:
            if not self._lint:
                self.problems.add(default.line, f"the input '{key}' has no default: give it with --set {key}=…")
            return None
        try:
            return self._values.plain_text(default.node)
        except Wrong as wrong:
            self.problems.add(wrong.line, f"inputs: {key}: {wrong.text}")
            return None

    # ------------------------------------------------------------ tasks

    def _read_tasks(self, entry: Entry | None) -> None:
        if entry is None:
            self.problems.add(1, "there are no tasks (they stand under 'tasks')")
            return
        node = entry.node
        tasks: list[tuple[str | None, int, Node]] = []
        if isinstance(node, Items):
            tasks = [(None, item.line, item) for item in node.nodes]
        elif isinstance(node, yaml_nodes.Mapping):
            tasks = [(key, each.line, each.node) for key, each in node.entries.items()]
        elif not node.is_null:
            what = f"expected a list of tasks, or a mapping of names to tasks, found {found(node)}"
            self.problems.add(node.line, what)
            return
        if not tasks:
            self.problems.add(entry.line, "there are no tasks here")
        elif len(tasks) > MAX_NAMED_TASKS:
            most = f"at most {MAX_NAMED_TASKS:,} are allowed in a file (a matrix makes many of one)"
            self.problems.add(entry.line, f"{len(tasks):,} tasks, {most}")
        else:
            for number, (key, line, task) in enumerate(tasks, start=1):
                self._read_task(number, key, line, task)

    def _read_task(self, number: int, key: str | None, line: int, node: Node) -> None:
        values = self._values
        values.owner = f"task number {number}: " if key is None else f"task '{key}': "
        if isinstance(node, yaml_nodes.Mapping):
            entries = node.entries
        elif key is not None and isinstance(node, Scalar) and node.is_null:
            entries = {}
        else:
            self.problems.add(line, f"{values.owner}expected a mapping of fields, found {found(node)}")
            return
        # The name first: the problems of the other fields begin with it.
        name = self._task_name(key, line, entries.get("id"))
        if name is not None:
            values.owner = f"task '{name}': "
        others = {field: entry for field, entry in entries.items() if field != "id"}
        draft = read_draft(values, self._scripts, name or "", line, others)
        values.owner = ""
        if name in self._numbers:
            first = self._drafts[self._numbers[name]].line
            self.problems.add(line, f"task '{name}' is already defined on line {first}")
        elif name is not None:
            self._numbers[name] = len(self._drafts)
            self._drafts.append(draft)

    def _task_name(self, key: str | None, line: int, entry: Entry | None) -> str | None:
        owner = self._values.owner
        read, written = read_fields(self._values, {} if entry is None else {"id": entry}, TASK)
        name: str | None = read.get("id")
        if key is not None:
            if name is not None and name != key:
                self.problems.add(line, f"{owner}its 'id' is '{name}', keep one of the two names")
            name = key
        elif "id" not in written:
            self.problems.add(line, f"{owner}there is no 'id'")
        elif name is None:
            self._nameless = True
        if name is not None:
            try:
                names.check_name(name)
            except ValueError as error:
                place = line if key is not None or entry is None else entry.node.line
                self.problems.add(place, f"{owner}{error}")
        return name

    # ------------------------------------------------------------ edges

    def _resolve(self) -> None:
        """Looks up what tasks need, and whom they want to be near."""
        needs: list[list[int]] = []
        for draft in self._drafts:
            task = draft.spec.name
            numbers: dict[int, None] = {}
            for need in draft.needs:
                number = self._numbers.get(need.text)
                if number is not None:
                    numbers[number] = None
                elif not self._nameless:
                    self._tell_unknown(task, need)
            needs.append(list(numbers))
            wish = draft.affinity
            if wish is not None and wish.may_be_task and self._numbers.get(wish.to or "", -1) not in {-1, *numbers}:
                what = f"affinity: it does not need '{wish.to}' itself (add it to 'needs', or choose another key)"
                self.problems.add(wish.line, f"task '{task}': {what}")
        for cycle in find_cycles(needs):
            self._tell_cycle(cycle)
        self._resolve_results(needs)

    def _resolve_results(self, needs: list[list[int]]) -> None:
        """A result can be taken of a named task that is needed: only then it is there, and one."""
        pairs, uses = [], []
        for number, draft in enumerate(self._drafts):
            for use in draft.results:
                other = self._numbers.get(use.text.partition("[")[0])
                if other is None:
                    if not self._nameless:
                        hint = self._values.guesses.hint(use.text, self._numbers, but=draft.spec.name)
                        self._tell_result(draft, use, f"which is not in this file{hint}")
                elif self._drafts[other].spec.array or use.text not in self._numbers:
                    self._tell_result(draft, use, "which is an array: its members have results, it has none")
                elif other not in needs[number]:
                    pairs.append((number, other))
                    uses.append(use)
        for place in find_unrelated(needs, pairs):
            self._tell_result(self._drafts[pairs[place][0]], uses[place], "which it does not need (add it to 'needs')")

    def _tell_result(self, draft: Draft, use: Placed, what: str) -> None:
        self.problems.add(use.line, f"task '{draft.spec.name}' uses the result of '{use.text}', {what}")

    def _tell_unknown(self, task: str, need: Placed) -> None:
        hint = ""
        base = need.text.partition("[")[0]
        if need.text.endswith("]") and base in self._numbers:
            hint = f" (did you mean '{base}'? It stands for all its members)"
        else:
            hint = self._values.guesses.hint(need.text, self._numbers, but=task)
        self.problems.add(need.line, f"task '{task}' needs '{need.text}', which is not in this file{hint}")

    def _tell_cycle(self, cycle: list[int]) -> None:
        drafts = [self._drafts[number] for number in cycle]
        path = [draft.spec.name for draft in [*drafts, drafts[0]]]
        after = path[1]
        line = next(need.line for need in drafts[0].needs if need.text == after)
        if len(path) > _MAX_PATH:
            path = [*path[: _MAX_PATH - 2], f"… {len(path) - _MAX_PATH + 1:,} more …", path[-1]]
        self.problems.add(line, f"tasks wait for each other: {' → '.join(path)}")

    # ------------------------------------------------------------ the graph

    def _to_graph(self, fields: dict[str, Any]) -> LoadedGraph:
        tasks = []
        payloads: list[bytes] = []
        replace = msgspec.structs.replace
        for draft in self._drafts:
            spec = draft.spec
            if draft.needs:
                spec = replace(spec, needs=tuple(dict.fromkeys(need.text for need in draft.needs)))
            if draft.affinity is not None:
                spec = replace(spec, affinity=_to_affinity(draft.affinity, self._numbers))
            if draft.matrix is not None:
                spec = replace(spec, payload=len(payloads))
                payloads.append(draft.matrix.to_payload())
            tasks.append(spec)
        names_files = any(task.work.file for task in tasks)
        is_project: bool = fields.get("project", names_files)
        return LoadedGraph(
            graph=GraphSpec(
                name=fields.get("name") or self._default_name(),
                tasks=tuple(tasks),
                env=fields.get("env", {}),
            ),
            project_dir=self._folder if is_project or names_files else None,
            payloads=payloads,
            project_files=() if is_project else tuple(sorted(self._scripts.paths)),
        )

    def _default_name(self) -> str:
        stem = Path(self._name).stem
        try:
            return names.check_graph_name(stem)
        except ValueError:
            return "graph"


def _to_affinity(wish: AffinityWish, tasks: Mapping[str, int]) -> Affinity:
    if wish.to is None:
        return Affinity("parent", mode=wish.mode, wait=wish.wait)
    is_task = wish.may_be_task and wish.to in tasks
    return Affinity("parent" if is_task else "key", key=wish.to, mode=wish.mode, wait=wish.wait)
