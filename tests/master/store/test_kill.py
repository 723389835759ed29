"""A killed master has kept every word. (What a power cut leaves is the business of the simulated disk.)"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from committing import group

from titan_fast.master.store.sqlite import SqliteStore


@pytest.mark.kill
@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("rounds", [6, pytest.param(300, marks=pytest.mark.long)])
def test_whatever_was_promised_before_a_kill_is_there(tmp_path: Path, durability: str, rounds: int) -> None:
    chance = random.Random(rounds)
    script = str(Path(__file__).with_name("committing.py"))
    promised = 0
    for turn in range(1, rounds + 1):
        program = subprocess.Popen(
            [sys.executable, script, str(tmp_path / "state"), durability], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        lines = program.stdout
        for _ in range(chance.randrange(1, 60)):
            promised = int(lines.readline())
        program.kill()
        for line in lines:  # what it managed to say before it was gone
            promised = int(line) if line.endswith("\n") else promised
        program.wait()
        lines.close()

        store = SqliteStore(tmp_path / "state")
        assert store.open().epoch == 2 * turn
        loaded = store.load()
        records = list(loaded.runs)
        assert loaded.next_run - 1 >= promised
        assert [record.accepted.run for record in records] == list(range(1, loaded.next_run)), "a prefix, whole"
        assert all(record.accepted == group(record.accepted.run)[0] for record in records[-60:])
        assert loaded.keys == [group(loaded.next_run - 1)[2]]
        assert store.latest(loaded.next_run - 1, 0, 50).keys() == set(range(50))
        store.close()
