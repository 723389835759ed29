"""The list of opcodes cannot be wrong in ways that only show on the wire."""

from __future__ import annotations

from enum import unique
from pathlib import Path

import pytest

from titan_fast._layout import LAYOUTS
from titan_fast.protocol import opcodes
from titan_fast.protocol.connection import HOT_LAYOUTS
from titan_fast.protocol.messages import BY_OP, Message, Stats, _register
from titan_fast.protocol.opcodes import BY_NUMBER, Op, Role, is_allowed


def make(source):
    """Import a copy of the module with other members."""
    text = Path(opcodes.__file__).read_text("utf-8")
    marker = "    # opening\n"
    assert marker in text
    scope = {"__name__": "opcodes_of_a_test"}
    exec(compile(text.replace(marker, marker + source), "opcodes", "exec"), scope)
    return scope["Op"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('    NEW = 0x70, "", "Nobody may."\n', "opcode 112 says nobody may send it"),
        ('    NEW = 0x70, "  ", "Nobody may."\n', "opcode 112 says nobody may send it"),
        ('    NEW = 0x70, "king", "Unknown role."\n', "'king' is not a valid Role"),
        ('    NEW = 0x01, "client", "A number that is taken."\n', "duplicate values found"),
        ('    NEW = 0x100, "client", "Too big for its byte."\n', "does not fit its byte"),
        ("    NEW = 0x70\n", "roles"),
    ],
)
def test_a_wrong_member_does_not_import(line, text):
    with pytest.raises((TypeError, ValueError), match=text):
        make(line)


def test_a_right_member_imports():
    assert make('    NEW = 0x70, "client", "Fine."\n').NEW.roles == {"client"}


def test_numbers_are_unique_bytes():
    assert len({int(op) for op in Op}) == len(Op.__members__) == len(BY_NUMBER)
    assert all(0 < op < 256 for op in Op)
    assert unique(Op) is Op


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
def test_each_opcode_is_cold_or_hot_and_documented(op):
    assert (op in BY_OP) != (op in HOT_LAYOUTS)
    assert op.hot == (op in HOT_LAYOUTS)
    assert op.doc.endswith((".", "?"))
    assert op.roles


def test_hot_layouts_exist():
    assert set(HOT_LAYOUTS.values()) <= set(LAYOUTS)


def test_every_message_is_registered_once():
    assert len(set(BY_OP.values())) == len(BY_OP)
    for op, cls in BY_OP.items():
        assert cls.op is op
    defined = {cls for cls in _all_subclasses(Message) if cls.__module__ == Message.__module__}
    assert defined - set(BY_OP.values()) == {cls for cls in defined if cls.__name__ == "WithAttachments"}


def _all_subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from _all_subclasses(sub)


def test_a_second_message_for_an_opcode_does_not_register():
    with pytest.raises(TypeError, match="STATS has two messages"):
        _register(Op.STATS, Stats)


def test_a_hot_opcode_gets_no_message():
    with pytest.raises(TypeError, match="ASSIGN is hot"):
        _register(Op.ASSIGN, Stats)


def test_strangers_may_say_three_things():
    assert {op for op in Op if is_allowed(op, Role.STRANGER)} == {Op.HELLO, Op.PROOF, Op.ERROR}


def test_a_worker_may_bring_and_fetch_files_and_name_none():
    files = {op for op in Op if op.name.startswith(("BLOB_", "ARTIFACT_", "KV_")) and is_allowed(op, Role.WORKER)}
    assert files == {Op.BLOB_ASK, Op.BLOB_PUT, Op.BLOB_GET}


def test_a_task_may_use_keys_and_files_and_nothing_else():
    keys = {Op.KV_GET, Op.KV_SET, Op.KV_LIST}
    files = {Op.BLOB_ASK, Op.BLOB_PUT, Op.BLOB_GET, Op.ARTIFACT_PUBLISH, Op.ARTIFACT_LIST}
    assert {op for op in Op if is_allowed(op, Role.TASK)} == keys | files
