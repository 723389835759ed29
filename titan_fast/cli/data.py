"""The verbs for what tasks and people share: kv (keys with values) and artifact (files by name)."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from titan_fast.cli import output
from titan_fast.cli.options import DurationType
from titan_fast.errors import InvalidUsage
from titan_fast.protocol import messages as msg

_expect = click.option("--expect", metavar="REV", type=click.IntRange(0), help="only if the key has this revision")


@click.group()
def kv() -> None:
    """The cluster's key-value space."""


@kv.command("get")
@click.argument("name")
@output.client_options
def kv_get(name: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Write the value of a key, byte by byte as it was set."""
    with output.connect(master, token_file) as client:
        entry = client.kv.entry(name)
    if not as_json:
        sys.stdout.buffer.write(entry.value)
        sys.stdout.flush()
        return 0
    document = {
        "name": entry.name,
        "value": _text(entry.value),
        "revision": entry.revision,
        "expires_at": output.at(entry.expires_at),
    }
    if document["value"] is None:
        document["base64"] = base64.b64encode(entry.value).decode()
    output.write_json(document)
    return 0


def _text(value: bytes) -> str | None:
    """The value as text, if it is any."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


@kv.command("set")
@click.argument("name")
@click.argument("value", required=False)
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="the value is this file's")
@_expect
@click.option("--ttl", type=DurationType(), help="the key goes by itself after so long (10m)")
@output.client_options
def kv_set(
    name: str,
    value: str | None,
    file: Path | None,
    expect: int | None,
    ttl: float | None,
    master: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Give a key a value: an argument, `-` for what comes in, or --file. `--expect 0`: only if there is no such key."""
    if (value is None) == (file is None):
        raise InvalidUsage("kv set wants one value", hint="write it behind the name, '-' to read it, or --file FILE")
    if file is not None:
        data = file.read_bytes()
    elif value == "-":
        data = sys.stdin.buffer.read()
    else:
        # What the command line holds that is no text arrives here as lone surrogates, and leaves as it came.
        data = (value or "").encode("utf-8", "surrogateescape")
    with output.connect(master, token_file) as client:
        revision = client.kv.set(name, data, expect=expect, ttl=ttl)
    return _say_changed(name, revision, as_json)


@kv.command("rm")
@click.argument("name")
@_expect
@output.client_options
def kv_rm(name: str, expect: int | None, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Take a key away."""
    with output.connect(master, token_file) as client:
        revision = client.kv.rm(name, expect=expect)
    return _say_changed(name, revision, as_json)


def _say_changed(name: str, revision: int, as_json: bool) -> int:
    if as_json:
        output.write_json({"name": name, "revision": revision})
    else:
        click.echo(f"{name} revision {revision}")
    return 0


@kv.command("ls")
@click.argument("prefix", default="")
@output.client_options
def kv_ls(prefix: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """List the keys, or those that begin with PREFIX."""
    with output.connect(master, token_file) as client:
        rows = client.kv.ls(prefix)
    if as_json:
        output.write_json(
            [
                {"name": row.name, "size": row.size, "revision": row.revision, "expires_at": output.at(row.expires_at)}
                for row in rows
            ]
        )
        return 0
    output.table(
        ["KEY", "SIZE", "REVISION", "EXPIRES"],
        ((_cut(row.name), row.size, row.revision, output.clock(row.expires_at)) for row in rows),
        "no keys: titan-fast kv set NAME VALUE",
    )
    return 0


def _cut(name: str) -> str:
    return output.plain(name, output.NAME_WIDTH)


# ---------------------------------------------------------------- artifacts


@click.group()
def artifact() -> None:
    """Files that are published under a name."""


@artifact.command("put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="its name [the file's]")
@output.client_options
def artifact_put(file: Path, name: str | None, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Publish a file; the name means this one from now on."""
    with output.connect(master, token_file) as client:
        published = client.artifacts.put(file, name)
    if as_json:
        output.write_json(_artifact_document(published))
    else:
        click.echo(f"{published.name} {output.size(published.size)} sha256:{published.digest}")
    return 0


@artifact.command("get")
@click.argument("name")
@click.option("-o", "--output", "target", metavar="FILE", help="where to [its own name, here]; '-' writes it out")
@output.client_options
def artifact_get(name: str, target: str | None, master: str | None, token_file: str | None, as_json: bool) -> int:
    """Fetch an artifact by its name, by its address (8 digits or more) or by the result that is one.

    ${tasks.a.result} is the text that the task `a` wrote to $TITAN_RESULT; more than 64 KiB, or what is no text, stands
    there as artifact:ADDRESS. It is pasted as it is: for shell text write `env: {X: "${tasks.a.result}"}` and use "$X".
    """
    with output.connect(master, token_file) as client:
        if target == "-":
            sys.stdout.buffer.write(client.artifacts.read(name))
            sys.stdout.flush()
            return 0
        found = client.artifacts.find(name)
        # A name is whatever somebody chose: only what stands behind its last slash names a file here.
        path = Path(target or Path(found.name).name or found.digest)
        if target is None and path.exists():
            raise InvalidUsage(f"{path} is there already", hint="-o FILE writes to another, or over it")
        client.artifacts.get(found.digest, path)
    if as_json:
        output.write_json({**_artifact_document(found), "file": str(path)})
    else:
        # Not into what was written, when that was standard output by another name.
        click.echo(f"{path} {output.size(found.size)}", err=not path.is_file())
    return 0


@artifact.command("ls")
@click.argument("prefix", default="")
@output.client_options
def artifact_ls(prefix: str, master: str | None, token_file: str | None, as_json: bool) -> int:
    """List the artifacts, or those whose names begin with PREFIX."""
    with output.connect(master, token_file) as client:
        rows = client.artifacts.ls(prefix)
    if as_json:
        output.write_json([_artifact_document(row) for row in rows])
        return 0
    output.table(
        ["ARTIFACT", "SIZE", "PUBLISHED", "ADDRESS"],
        ((_cut(row.name), output.size(row.size), output.clock(row.published_at), row.digest[:12]) for row in rows),
        "no artifacts: titan-fast artifact put FILE",
    )
    return 0


def _artifact_document(found: msg.ArtifactFile) -> dict[str, object]:
    return {
        "name": found.name,
        "digest": found.digest,
        "size": found.size,
        "published_at": output.at(found.published_at),
    }
