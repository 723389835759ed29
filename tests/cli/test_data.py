"""kv and artifact: values arrive byte by byte, changes only as expected, files whole or not at all."""

from __future__ import annotations

import hashlib
import os

import pytest

from titan_fast.errors import Conflict, NoSuchArtifact, NoSuchKey
from titan_fast.protocol import messages as msg

BYTES = b"\x00\xff raw\n\n"


# ---------------------------------------------------------------- kv


def test_get_writes_the_value_and_nothing_else(cli, master):
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=3), BYTES))
    assert cli("kv", "get", "k").out == BYTES


@pytest.mark.parametrize(
    ("value", "shown"),
    [("ä".encode(), {"value": "ä"}), (b"", {"value": ""}), (b"\xff", {"value": None, "base64": "/w=="})],
)
def test_get_as_json_has_the_revision(cli, master, value, shown):
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=3, expires_at=1.5), value))
    document = cli("kv", "get", "k", "--json").document
    assert document == {"name": "k", "revision": 3, "expires_at": "1970-01-01T00:00:01.500Z", **shown}


def test_a_key_that_is_not_there_ends_with_4(cli, master):
    master.on(msg.KvGet, NoSuchKey("k"))
    assert "there is no key 'k'" in cli("kv", "get", "k", code=4).err
    assert cli("kv", "get", "k", "--json", code=4).error["code"] == "no_such_key"


@pytest.fixture
def values(master):
    """What was set, in order; None: taken away."""
    found = []

    def change(asked, *values):
        found.append(values[0] if values else None)
        yield msg.KvDone(7)

    master.script(msg.KvSet, change)
    return found


def test_set_takes_an_argument_what_comes_in_or_a_file(cli, values, tmp_path):
    (tmp_path / "file").write_bytes(BYTES)
    assert cli("kv", "set", "k", "text ä").text == "k revision 7\n"
    cli("kv", "set", "k", "")
    cli("kv", "set", "k", "-", stdin=BYTES)
    assert cli("kv", "set", "k", "--file", tmp_path / "file", "--json").document == {"name": "k", "revision": 7}
    assert values == ["text ä".encode(), b"", BYTES, BYTES]


@pytest.mark.parametrize("arguments", [(), ("v", "--file", "file")])
def test_set_wants_one_value(cli, values, tmp_path, arguments):
    (tmp_path / "file").write_bytes(b"x")
    assert "wants one value" in cli("kv", "set", "k", *arguments, code=2).err
    assert values == []


def test_set_and_rm_say_what_they_expect(cli, master, values):
    cli("kv", "set", "k", "v")
    cli("kv", "set", "k", "v", "--expect", 0, "--ttl", "10m")
    cli("kv", "rm", "k", "--expect", 7)
    assert [(asked.expect, asked.ttl) for asked in master.asked] == [(-1, 0.0), (0, 600.0), (7, 0.0)]
    assert values == [b"v", b"v", None]


def test_a_conflict_ends_with_1(cli, master):
    master.on(msg.KvSet, Conflict("k has revision 9, not 4"))
    assert "k has revision 9, not 4" in cli("kv", "set", "k", "v", "--expect", 4, code=1).err


@pytest.mark.parametrize("options", [("--ttl", "soon"), ("--ttl", "0"), ("--expect", "-1"), ("--expect", "x")])
def test_options_of_set_that_make_no_sense_end_with_2(cli, values, options):
    cli("kv", "set", "k", "v", *options, code=2)
    assert values == []


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_a_name_no_key_can_have_ends_with_2(cli, name):
    assert "1 to 512 characters" in cli("kv", "get", name, code=2).err


def test_ls_has_every_page(cli, master):
    pages = {
        "": msg.KvListed(keys=(msg.KvRow("a/1", 5, 1, 0.0),), next="a/1"),
        "a/1": msg.KvListed(keys=(msg.KvRow("a/2", 1 << 20, 2, 0.0),)),
    }
    master.script(msg.KvList, lambda asked: [pages[asked.after]])
    rows = cli("kv", "ls", "a/", "--json").document
    assert rows[0] == {"name": "a/1", "size": 5, "revision": 1, "expires_at": None}
    assert [row["name"] for row in rows] == ["a/1", "a/2"]
    assert {asked.prefix for asked in master.asked} == {"a/"}
    assert "a/2" in cli("kv", "ls").text


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "tab\t", "\x7f", "\x9b", "\u202ecod.exe"])
def test_a_name_that_would_lead_a_terminal_astray_is_refused(cli, master, values, tmp_path, name):
    (tmp_path / "m").write_bytes(BYTES)
    assert "control characters" in cli("kv", "set", name, "v", code=2).err
    assert "control characters" in cli("artifact", "put", "m", "--name", name, code=2).err
    assert master.asked == []


def test_a_key_of_such_a_name_that_is_there_can_be_seen_and_taken_away(cli, master, values):
    master.on(msg.KvList, msg.KvListed(keys=(msg.KvRow("a\x1b[2J\nb", 5, 1, 0.0),)))
    assert "a\\x1b[2J\\nb" in cli("kv", "ls").text
    assert cli("kv", "ls", "--json").document[0]["name"] == "a\x1b[2J\nb"
    cli("kv", "rm", "a\x1b[2J\nb")
    assert values == [None]


def test_a_long_name_is_cut_in_the_table_alone(cli, master):
    master.on(msg.KvList, msg.KvListed(keys=(msg.KvRow("x" * 500, 5, 1, 0.0),)))
    assert max(map(len, cli("kv", "ls").text.splitlines())) < 120
    assert cli("kv", "ls", "--json").document[0]["name"] == "x" * 500


@pytest.mark.parametrize("verb", [("set", "bad\udcff", "x"), ("get", "bad\udcff"), ("ls", "bad\udcff")])
def test_a_name_that_is_no_text_ends_with_2(cli, values, verb):
    assert "is not Unicode" in cli("kv", *verb, code=2).err
    assert values == []


# ---------------------------------------------------------------- artifacts


@pytest.fixture
def shelf(master):
    """Artifacts of a master that holds files in pieces of five bytes."""
    held = {}
    names = {}
    parts = {}

    def row(name):
        digest = names.get(name, name)
        if digest not in held:
            return NoSuchArtifact(name)
        found = next(known for known, address in names.items() if address == digest)
        return msg.ArtifactListed(artifacts=(msg.ArtifactFile(found, digest, len(held[digest]), 1.0),))

    def put(asked, data):
        whole = parts[asked.digest] = (parts.get(asked.digest, b"") if asked.offset else b"") + data
        if len(whole) == asked.size:
            held[asked.digest] = whole
        yield msg.BlobHeld(asked.digest, asked.size if len(whole) == asked.size else -1)

    def publish(asked):
        names[asked.name] = asked.digest
        yield msg.Accepted(0)

    def piece(asked):
        data = held[asked.digest]
        yield (
            msg.BlobPiece(digest=asked.digest, offset=asked.offset, size=len(data)),
            data[asked.offset : asked.offset + 5],
        )

    master.script(msg.BlobAsk, lambda asked: [msg.BlobHeld(asked.digest, len(held.get(asked.digest, b"")) or -1)])
    master.script(msg.BlobPut, put)
    master.script(msg.BlobGet, piece)
    master.script(msg.ArtifactPublish, publish)
    master.script(msg.ArtifactList, lambda asked: [row(asked.name)] if asked.name else [row(name) for name in names])
    return held


CONTENT = b"a model of three pieces"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_published_and_comes_back(cli, shelf, tmp_path):
    (tmp_path / "model.bin").write_bytes(CONTENT)
    document = cli("artifact", "put", "model.bin", "--json").document
    assert document == {
        "name": "model.bin",
        "digest": DIGEST,
        "size": len(CONTENT),
        "published_at": "1970-01-01T00:00:01.000Z",
    }
    cli("artifact", "get", "model.bin", "-o", "copy")
    cli("artifact", "get", DIGEST, "-o", "by-address")
    assert cli("artifact", "get", "model.bin", "-o", "-").out == CONTENT
    assert cli("artifact", "get", f"artifact:{DIGEST}", "-o", "-").out == CONTENT, "as a result says it"
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "by-address").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-address", "copy", "model.bin"]


def test_a_file_that_is_held_is_not_sent_again(cli, master, shelf, tmp_path):
    (tmp_path / "model.bin").write_bytes(CONTENT)
    cli("artifact", "put", "model.bin")
    cli("artifact", "put", "model.bin", "--name", "models/best")
    assert [type(asked) for asked in master.asked].count(msg.BlobPut) == 1


def test_an_empty_file_is_an_artifact(cli, shelf, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    cli("artifact", "put", "empty")
    cli("artifact", "get", "empty", "-o", "copy")
    assert (tmp_path / "copy").read_bytes() == b""


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "models/evil"])
def test_a_name_is_never_a_path(cli, shelf, tmp_path, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "m").write_bytes(CONTENT)
    cli("artifact", "put", "m", "--name", name)
    cli("artifact", "get", name)
    assert (tmp_path / "evil").read_bytes() == CONTENT


def test_a_file_of_the_same_name_is_not_written_over(cli, shelf, tmp_path):
    (tmp_path / "m").write_bytes(CONTENT)
    cli("artifact", "put", "m")
    (tmp_path / "m").write_bytes(b"changed")
    assert "is there already" in cli("artifact", "get", "m", code=2).err
    assert (tmp_path / "m").read_bytes() == b"changed"
    cli("artifact", "get", "m", "-o", "m")
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_an_upload_begins_anew_when_its_connection_breaks(cli, master, shelf, tmp_path, monkeypatch):
    monkeypatch.setattr("titan_fast.sdk.blobs.PIECE", 10)
    (tmp_path / "m").write_bytes(CONTENT)
    master.break_at(8)
    cli("artifact", "put", "m")
    offsets = [asked.offset for asked in master.asked if isinstance(asked, msg.BlobPut)]
    assert offsets == [0, 10, 0, 10, 20]
    assert shelf == {DIGEST: CONTENT}


def test_a_file_that_arrives_damaged_is_not_written(cli, shelf, tmp_path):
    (tmp_path / "m").write_bytes(CONTENT)
    cli("artifact", "put", "m")
    shelf[DIGEST] = CONTENT[:-1] + b"!"
    assert "did not arrive whole" in cli("artifact", "get", "m", "-o", "copy", code=3).err
    assert not (tmp_path / "copy").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("verb", [("artifact", "put", "missing"), ("kv", "set", "k", "--file", "missing")])
def test_a_file_that_is_not_there_ends_with_2(cli, verb):
    assert "missing" in cli(*verb, code=2).err


def test_an_artifact_that_is_not_there_ends_with_4(cli, shelf, tmp_path):
    assert cli("artifact", "get", "nothing", "--json", code=4).error["code"] == "no_such_artifact"
    assert "cannot be written" in put_and_get(cli, tmp_path, "no/such/folder").err


def put_and_get(cli, tmp_path, target):
    (tmp_path / "m").write_bytes(CONTENT)
    cli("artifact", "put", "m")
    return cli("artifact", "get", "m", "-o", target, code=2)


def test_ls_lists_names_and_addresses(cli, shelf, tmp_path):
    assert "no artifacts" not in cli_with_one(cli, tmp_path).text
    assert cli("artifact", "ls", "--json").document[0]["digest"] == DIGEST


def cli_with_one(cli, tmp_path):
    (tmp_path / "m").write_bytes(CONTENT)
    cli("artifact", "put", "m")
    return cli("artifact", "ls")


@pytest.mark.parametrize("name", [f"sha256:{DIGEST}", DIGEST[:8], f"sha256:{DIGEST[:12]}", f"artifact:{DIGEST[:12]}"])
def test_an_address_may_be_written_as_it_is_shown(cli, shelf, tmp_path, name):
    cli_with_one(cli, tmp_path)
    assert cli("artifact", "get", name, "-o", "-").out == CONTENT


def test_too_little_of_an_address_is_told_apart_from_none(cli, master, shelf, tmp_path):
    cli_with_one(cli, tmp_path)
    assert "no artifact" in cli("artifact", "get", DIGEST[:7], code=4).err
    assert "no artifact" in cli("artifact", "get", "0" * 12, code=4).err
    rows = tuple(msg.ArtifactFile(name, DIGEST[:12] + name * 52, 1, 1.0) for name in "ab")
    master.script(
        msg.ArtifactList,
        lambda asked: [NoSuchArtifact(asked.name) if asked.name else msg.ArtifactListed(artifacts=rows)],
    )
    assert "the beginning of 2 addresses" in cli("artifact", "get", DIGEST[:12], code=2).err


def test_what_is_no_regular_file_is_written_into_and_stays_what_it_is(cli, shelf, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # and none of the machine's devices: a failure would replace it for everybody
    (tmp_path / "link").symlink_to("pipe")
    cli_with_one(cli, tmp_path)
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as reading:
        for name in ("pipe", "link"):
            cli("artifact", "get", "m", "-o", name)
            assert reading.read() == CONTENT
            assert (tmp_path / name).is_fifo()


def test_a_pipe_without_a_name_is_written_into(cli, shelf, tmp_path):
    cli_with_one(cli, tmp_path)
    out, into = os.pipe()
    with open(out, "rb") as reading:
        done = cli("artifact", "get", "m", "-o", f"/dev/fd/{into}")
        os.close(into)
        assert reading.read() == CONTENT
    assert done.out == b"", "what is said goes nowhere near what is written"


def test_a_link_is_followed_and_stays_a_link(cli, shelf, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/there")
    cli_with_one(cli, tmp_path)
    for _ in ("new", "replaced"):
        cli("artifact", "get", "m", "-o", "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "there").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["there"]
