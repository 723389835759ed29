"""The command line in this process, against a master that follows a script."""

from __future__ import annotations

import io
import json
import sys
from typing import NamedTuple

import pytest

from titan_fast.cli import main
from titan_fast.testing.scripted_master import ScriptedMaster


class Done(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def text(self):
        return self.out.decode()

    @property
    def document(self):
        return json.loads(self.out)

    @property
    def error(self):
        """What ``--json`` says on stderr."""
        return json.loads(self.err)["error"]


@pytest.fixture
def master():
    with ScriptedMaster() as master:
        yield master


@pytest.fixture
def cli(master, monkeypatch, tmp_path, capsysbinary):
    """Calls a verb; fails when the exit code is not ``code``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TITAN_ADDR", master.address)
    monkeypatch.setenv("TITAN_TOKEN", master.token)
    monkeypatch.setenv("TITAN_CLIENT_RECONNECT_TIMEOUT", "20")

    def call(*arguments, code=0, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        done = Done(ended.value.code, out, err.decode())
        assert done.code == code, done
        return done

    return call
