"""prune, backup, stats: what they ask for, and that a backup is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from titan_fast.errors import NoSuchBlob
from titan_fast.master.store.backup import pack
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.protocol import messages as msg


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), msg.Prune()),
        (("--keep", "0"), msg.Prune(keep_runs=0)),
        (("--older-than", "7d"), msg.Prune(older_than=7 * 86400.0)),
        (("--keep", "10", "--older-than", "0"), msg.Prune(keep_runs=10, older_than=0.0)),
    ],
)
def test_prune_asks_for_what_was_written(cli, master, options, asked):
    master.on(msg.Prune, msg.Pruned(runs=3))
    assert cli("prune", *options).text == "3 runs forgotten\n"
    assert master.asked == [asked]
    assert cli("prune", *options, "--json").document == {"runs": 3}


@pytest.mark.parametrize("options", [("--keep", "-1"), ("--older-than", "soon")])
def test_prune_refuses_what_makes_no_sense(cli, master, options):
    cli("prune", *options, code=2)
    assert master.asked == []


# ---------------------------------------------------------------- backup

STATE = b"the whole state of a master" * 10
DIGEST = hashlib.sha256(STATE).hexdigest()


@pytest.fixture
def made(master):
    """A master that makes a backup and gives it in pieces of a hundred bytes."""

    def piece(asked):
        data = STATE[asked.offset : asked.offset + 100]
        yield msg.BlobPiece(digest=DIGEST, offset=asked.offset, size=len(STATE)), data

    master.on(msg.Backup, msg.BackedUp(digest=DIGEST, size=len(STATE)))
    master.script(msg.BlobGet, piece)


def test_a_backup_is_written_whole_and_for_its_owner_alone(cli, made, tmp_path):
    document = cli("backup", "b.db", "--json").document
    assert document == {"file": "b.db", "size": len(STATE), "digest": DIGEST}
    assert (tmp_path / "b.db").read_bytes() == STATE
    assert stat.S_IMODE((tmp_path / "b.db").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["b.db"]
    assert "titan-fast restore c.db" in cli("backup", "c.db").text


def test_a_file_that_is_there_is_not_written_over(cli, made, master, tmp_path):
    (tmp_path / "b.db").write_bytes(b"precious")
    assert "--force" in cli("backup", "b.db", code=2).err
    assert master.asked == [], "the master was spared the work"
    assert (tmp_path / "b.db").read_bytes() == b"precious"
    cli("backup", "b.db", "--force")
    assert (tmp_path / "b.db").read_bytes() == STATE


@pytest.mark.parametrize("step", range(3, 12))
def test_a_backup_survives_a_lost_connection(cli, made, master, tmp_path, step):
    master.break_at(step)
    cli("backup", "b.db")
    assert (tmp_path / "b.db").read_bytes() == STATE


def test_a_backup_that_went_away_leaves_nothing(cli, made, master, tmp_path):
    master.script(msg.BlobGet, lambda asked: [NoSuchBlob(DIGEST)])
    (tmp_path / "b.db").write_bytes(b"precious")
    cli("backup", "b.db", "--force", code=4)
    assert (tmp_path / "b.db").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["b.db"]


def test_a_folder_that_is_not_there_is_told_before_the_master_works(cli, made, master):
    assert "cannot be written" in cli("backup", "no/such/b.db", code=2).err
    assert master.asked == []


def test_a_pipe_is_written_into_when_that_is_said_and_stays_what_it_is(cli, made, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as reading:
        assert "--force" in cli("backup", "pipe", code=2).err
        cli("backup", "pipe", "--force")
        assert reading.read() == STATE
    assert (tmp_path / "pipe").is_fifo()


def test_restore_wants_a_backup(cli, tmp_path):
    assert "missing.db" in cli("restore", "missing.db", code=2).err
    (tmp_path / "b.db").write_bytes(STATE)
    assert "b.db is no backup" in cli("restore", "b.db", code=2).err
    assert not (tmp_path / "home" / "state").exists()


def test_restore_fills_the_state_directory_that_the_master_would_use(cli, tmp_path):
    (tmp_path / "state").mkdir()
    store = SqliteStore(tmp_path / "state", "os")
    epoch = store.open().epoch
    pack(tmp_path / "state", store, tmp_path / "b.db")
    store.close()
    document = cli("restore", "b.db", "--json").document
    assert document == {"file": "b.db", "state_dir": str(tmp_path / "home" / "state"), "epoch": document["epoch"]}
    assert document["epoch"] > epoch
    assert "titan-fast up --state-dir there" in cli("restore", "b.db", "--state-dir", "there").text
    assert "holds a state already" in cli("restore", "b.db", code=2).err


# ---------------------------------------------------------------- stats


def test_stats_tell_what_the_store_promises_and_how_it_keeps_it(cli, master):
    stated = msg.Stated(
        "compiled", "uvloop", "1", 3, "c", 1.0, 2, 4, {"COMPLETED": 8}, 100, 250, 2.5, "disk", 1, 0.001, 1 << 20
    )
    master.on(msg.Stats, stated)
    document = cli("stats", "--json").document
    assert (document["durability"], document["commits"], document["facts"]) == ("disk", 100, 250)
    assert document["facts_per_commit"] == 2.5
    text = cli("stats").text
    assert "durability        disk" in text
    assert "facts_per_commit  2.5" in text


@pytest.mark.parametrize(
    ("verb", "asked", "answer"),
    [
        (("ls",), msg.List, msg.Listed(durable=False)),
        (("show", "1"), msg.Show, msg.Shown(msg.RunRow(1, "r", "RUNNING", "", 1.0, 1.0, 0.0, {}), (), durable=False)),
        (("explain", "1"), msg.Explain, msg.Explained("1", "RUNNING", "r", "d", durable=False)),
    ],
)
def test_an_answer_that_a_crash_would_undo_says_so(cli, master, verb, asked, answer):
    master.on(asked, answer)
    assert "a crash now would undo some of this" in cli(*verb).err
    assert "a crash now would undo some of this" in cli(*verb, "--json").err
