"""Keys and artifacts from Python: what goes in comes out, and a change that is not as expected is an exception."""

from __future__ import annotations

import hashlib

import pytest

from titan_fast import Graph
from titan_fast.errors import Conflict, InvalidUsage, NoSuchKey
from titan_fast.protocol import messages as msg


@pytest.fixture
def keys(master):
    """A master that keeps keys: name -> (value, revision)."""
    kept = {}

    def change(asked, *values):
        _, revision = kept.get(asked.name, (None, 0))
        if asked.expect not in (-1, revision):
            yield Conflict(f"{asked.name} has revision {revision}, not {asked.expect}")
            return
        kept[asked.name] = (values[0] if values else None, revision + 1)
        yield msg.KvDone(revision + 1)

    def get(asked):
        value, revision = kept.get(asked.name, (None, 0))
        yield NoSuchKey(asked.name) if value is None else (msg.KvValue(name=asked.name, revision=revision), value)

    master.script(msg.KvSet, change)
    master.script(msg.KvGet, get)
    return kept


def test_text_and_bytes_are_kept_as_bytes(client, keys):
    assert client.kv.set("k", "ä") == 1
    assert client.kv.get("k") == "ä".encode()
    assert client.kv.set("k", b"\x00\xff", ttl="1m") == 2
    entry = client.kv.entry("k")
    assert (entry.value, entry.revision) == (b"\x00\xff", 2)
    client.kv.rm("k")
    with pytest.raises(NoSuchKey):
        client.kv.get("k")


@pytest.mark.parametrize("step", range(3))
def test_a_comparison_that_was_right_stays_right_over_a_lost_connection(client, master, keys, step):
    """The repeat finds the revision that the first one made, and that is no conflict."""
    client.kv.set("k", b"1")
    master.break_at(master.steps + step)
    assert client.kv.set("k", b"2", expect=1) == 2
    assert keys["k"] == (b"2", 2)


def test_a_key_that_is_not_as_expected_is_a_conflict(client, keys):
    client.kv.set("k", b"1", expect=0)
    with pytest.raises(Conflict, match="revision 1, not 0"):
        client.kv.set("k", b"2", expect=0)
    assert keys["k"] == (b"1", 1)


@pytest.mark.parametrize("ttl", ["soon", 0, -1])
def test_a_time_to_live_that_makes_no_sense_is_told(client, keys, ttl):
    with pytest.raises(InvalidUsage, match="ttl"):
        client.kv.set("k", b"1", ttl=ttl)
    assert keys == {}


# ---------------------------------------------------------------- files


@pytest.fixture
def files(master):
    """A master that keeps files of one piece: digest -> content."""
    kept = {}

    def put(asked, data):
        kept[asked.digest] = data
        yield msg.BlobHeld(asked.digest, len(data))

    def found(asked):
        data = kept[asked.name] if asked.name in kept else next(iter(kept.values()))
        row = msg.ArtifactFile("a", hashlib.sha256(data).hexdigest(), len(data), 1.0)
        yield msg.ArtifactListed(artifacts=(row,))

    master.script(msg.BlobAsk, lambda asked: [msg.BlobHeld(asked.digest, len(kept.get(asked.digest, b"")) or -1)])
    master.script(msg.BlobPut, put)
    master.script(msg.BlobGet, lambda asked: [(msg.BlobPiece(), kept[asked.digest][asked.offset :])])
    master.on(msg.ArtifactPublish, msg.Accepted(0))
    master.script(msg.ArtifactList, found)
    return kept


def test_bytes_are_published_and_read_back(client, files):
    published = client.artifacts.put(b"some bytes", "a")
    assert client.artifacts.read("a") == client.artifacts.read(published.digest) == b"some bytes"
    assert client.artifacts.read(f"artifact:{published.digest}") == b"some bytes", "as a result says it"
    with pytest.raises(InvalidUsage, match="needs a name"):
        client.artifacts.put(b"some bytes")


@pytest.mark.parametrize("name", ["artifact:", "artifact:model", "artifact:" + "A" * 64, "artifact:" + "ab" * 33])
def test_a_name_may_begin_like_an_address(client, master, files, name):
    client.artifacts.put(b"some bytes", name)
    client.artifacts.read(name)
    assert {asked.name for asked in master.asked if isinstance(asked, msg.ArtifactList)} == {name}


def test_a_file_is_published_under_its_own_name(client, master, files, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    client.artifacts.put(tmp_path / "model.bin")
    assert [asked.name for asked in master.asked if isinstance(asked, msg.ArtifactPublish)] == ["model.bin"]
    client.artifacts.get("model.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"


@pytest.mark.parametrize("step", range(9))
def test_a_project_is_submitted_once_wherever_the_connection_breaks(client, master, files, tmp_path, step):
    """Is it there; the file; the graph. Each comes in, is carried out, is answered, and is repeated as it must be."""
    (tmp_path / "s.py").write_text("pass")
    graph = Graph("g", project=tmp_path)
    graph.task("t", file="s.py")
    master.on(msg.Submit, msg.Accepted(12))
    master.break_at(step)
    assert client.submit(graph).id == 12
    (submitted,) = [asked for asked in master.carried_out if isinstance(asked, msg.Submit)]
    assert submitted.graph.project in files


# ---------------------------------------------------------------- care


def test_dead_has_every_page(client, master):
    row = msg.TaskRow("1/t", "t", "DEAD", "worker_lost", 1, 5, "w", None, 1.0, 2.0, 1.0)
    pages = {"": msg.Listed(tasks=(row,), next="1"), "1": msg.Listed(tasks=(row, row))}
    master.script(msg.List, lambda asked: [pages[asked.cursor]])
    assert len(client.dead()) == 3
    assert {asked.what for asked in master.asked} == {"dead"}


@pytest.mark.parametrize(("limit", "found", "asked"), [(None, 7, [1000] * 3), (5, 5, [5, 2]), (2000, 7, [1000] * 3)])
def test_runs_has_every_page_up_to_the_limit(client, master, limit, found, asked):
    def listed(asked):
        rows = [msg.RunRow(9 - number, "g", "COMPLETED", "", 1.0, 1.0, 2.0, {}) for number in range(9)]
        at = int(asked.cursor or 0)
        end = min(at + 3, at + asked.limit, 7)
        return [msg.Listed(runs=tuple(rows[at:end]), next=str(end) if end < 7 else "")]

    master.script(msg.List, listed)
    assert [row.id for row in client.runs("COMPLETED", limit=limit)] == list(range(9, 9 - found, -1))
    assert [(each.what, each.state, each.limit) for each in master.asked] == [("runs", "COMPLETED", n) for n in asked]


def test_prune_takes_texts_and_seconds(client, master):
    master.on(msg.Prune, msg.Pruned(runs=2))
    assert client.prune(keep=3, older_than="7d") == 2
    assert master.asked == [msg.Prune(keep_runs=3, older_than=7 * 86400.0)]
    with pytest.raises(InvalidUsage, match="older_than"):
        client.prune(older_than="old")


def test_the_result_of_a_run_is_what_its_last_task_wrote(client, master):
    master.on(msg.Submit, msg.Accepted(12))
    master.on(msg.Watch, msg.Update(12, "g", "COMPLETED", {"COMPLETED": 1}, final=True, result="42"))
    graph = Graph("g")
    graph.task("t", run="true")
    assert client.submit(graph).result() == "42"
