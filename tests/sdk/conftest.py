"""A master that follows a script, and a client of it that says aloud what happens to its connection."""

from __future__ import annotations

import pytest

from titan_fast import Client
from titan_fast.testing.scripted_master import ScriptedMaster


@pytest.fixture
def master():
    with ScriptedMaster() as master:
        yield master


@pytest.fixture
def told():
    """What the client said about its master."""
    return []


@pytest.fixture
def client(master, told, monkeypatch, tmp_path):
    monkeypatch.setenv("TITAN_HOME", str(tmp_path / "home"))
    with Client(master.address, token=master.token, timeout=5, reconnect_timeout=20, tell=told.append) as client:
        yield client
