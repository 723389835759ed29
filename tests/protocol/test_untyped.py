"""Nothing that a peer wrote is decoded without a type: every call that reads JSON names one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import titan_fast

HOME = Path(titan_fast.__file__).parent
FILES = sorted(path for part in ("protocol", "master", "worker", "sdk") for path in (HOME / part).rglob("*.py"))
PICKLES = {
    "sdk/functions.py",
    "worker/executors/_pool.py",
    "worker/executors/functions.py",
    "worker/executors/lane.py",
    "worker/executors/_template.py",
    "worker/executors/warm.py",
}
"""Functions and their results are pickles, for clients and for the processes that run them, and an agent talks to the
processes it starts in what their language has for that. No master reads any of it."""
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "marshal", "shelve"}
READERS = {"load", "loads", "decode", "Decoder", "JSONDecoder"}


def untyped(source):
    """(line, what) of everything in a module that could read JSON without a type, or worse formats at all."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                (node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES
            ]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in FORBIDDEN_MODULES:
                found.append((node.lineno, module))
            found += [
                (node.lineno, f"{module}.{alias.name}")
                for alias in node.names
                if module in ("json", "orjson", "msgspec.json") and alias.name in READERS
            ]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            keywords = {keyword.arg for keyword in node.keywords}
            if (name.endswith("json.decode") and "type" not in keywords) or (
                name.endswith("json.Decoder") and not node.args and "type" not in keywords
            ):
                found.append((node.lineno, name))
        elif isinstance(node, ast.Attribute) and ast.unparse(node).endswith(("json.loads", "json.load")):
            found.append((node.lineno, ast.unparse(node)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_json_is_read_with_a_type(path):
    found = untyped(path.read_text("utf-8"))
    if str(path.relative_to(HOME)) in PICKLES:
        found = [(line, what) for line, what in found if what not in FORBIDDEN_MODULES]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads('')",
        "import json\njson.load(file)",
        "import json\nread = json.loads",
        "import pickle as p",
        "from json import loads",
        "from orjson import loads",
        "from msgspec.json import decode",
        "import orjson\norjson.loads(b'')",
        "import orjson\nread = orjson.loads",
        "import msgspec\nmsgspec.json.decode(b'')",
        "import msgspec\nmsgspec.json.decode(b'', strict=False)",
        "import msgspec\nmsgspec.json.Decoder()",
    ],
)
def test_the_walk_finds(source):
    assert untyped(source)


@pytest.mark.parametrize(
    "source",
    ["import msgspec\nmsgspec.json.decode(b'', type=int)", "import msgspec\nmsgspec.json.Decoder(int).decode(b'')"],
)
def test_the_walk_lets_pass(source):
    assert not untyped(source)
