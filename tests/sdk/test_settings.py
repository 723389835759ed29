"""A setting that makes no sense is told by the name it was given under, with what it may be."""

from __future__ import annotations

import pytest

from titan_fast import config
from titan_fast.errors import InvalidUsage


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TITAN_STORE_DURABILITY", "wrong", "'wrong' is not one of disk, os, memory"),
        ("TITAN_MASTER_PORT", "70000", "'70000' is not a whole number, at least 0, at most 65535"),
        ("TITAN_SCHEDULER_LOST_AFTER", "0", "'0' is not a number, above 0"),
        ("TITAN_MASTER_UVLOOP", "maybe", "'maybe' is not true or false"),
    ],
)
def test_a_variable_is_named_with_its_values(tmp_path, name, value, said):
    with pytest.raises(InvalidUsage) as refused:
        config.load(environ={"TITAN_HOME": str(tmp_path), name: value})
    assert refused.value.message == f"{name}: {said}"


def test_a_file_is_named_with_its_key(tmp_path):
    file = tmp_path / "titan.toml"
    file.write_text("[worker]\nname = 7\n")
    with pytest.raises(InvalidUsage) as refused:
        config.load(environ={"TITAN_HOME": str(tmp_path)})
    assert refused.value.message == f"{file}: [worker] name: 7 is not a text"


def test_an_option_is_named_and_comes_first(tmp_path):
    with pytest.raises(InvalidUsage, match=r"^--state-dir: 7 is not a text$"):
        config.load({"master": {"state_dir": 7}}, {"TITAN_HOME": str(tmp_path), "TITAN_MASTER_STATE_DIR": "there"})


def test_what_makes_sense_is_taken_from_wherever_it_was_given(tmp_path):
    (tmp_path / "titan.toml").write_text("[worker]\nslots = 3\nname = 'a'\n")
    environ = {"TITAN_HOME": str(tmp_path), "TITAN_WORKER_NAME": "b", "TITAN_MASTER_UVLOOP": "false"}
    settings = config.load({"worker": {"drain": 2}}, environ)
    assert (settings.worker.slots, settings.worker.name, settings.worker.drain) == (3, "b", 2.0)
    assert settings.master.uvloop is False
