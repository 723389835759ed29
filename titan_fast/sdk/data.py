"""What tasks and people share: keys with values, and artifacts (files by name). `Client.kv` and `Client.artifacts`."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from titan_fast._layout import RESULT_PREFIX
from titan_fast.errors import InvalidUsage, NoSuchArtifact
from titan_fast.model.units import parse_duration
from titan_fast.protocol import messages as msg
from titan_fast.sdk import blobs, calls

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client


ADDRESS_PREFIX = "sha256:"
"""Before an address where one is shown to people."""
ADDRESS = re.compile(f"(?:{re.escape(RESULT_PREFIX)}|{ADDRESS_PREFIX})?([0-9a-f]{{8,64}})").fullmatch
"""An address or how it begins, with or without what is written before it; a text of another kind is a name."""
WHOLE = 64
"""Digits of an address."""


class Keys:
    """The cluster's key-value space. Values are bytes; text is written as UTF-8."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, name: str) -> bytes:
        """Raises NoSuchKey."""
        return self.entry(name).value

    def entry(self, name: str) -> calls.Entry:
        """The value with its revision and its end. Raises NoSuchKey."""
        return self._client.call(calls.kv_get(name))

    def set(self, name: str, value: bytes | str, *, expect: int | None = None, ttl: float | str | None = None) -> int:
        """Give a key a value. Returns its new revision.

        Args:
            expect: only if the key has this revision; 0: only if there is no such key; None: in any case.
            ttl: seconds, or a text like ``10m``, until the key goes by itself; None: never.

        Raises:
            Conflict: the key is not as expected; nothing was changed.
            TooLarge: the value, or all of them together.
        """
        data = value.encode() if isinstance(value, str) else bytes(value)
        return self._client.call(calls.kv_set(name, data, expect, ttl_seconds(ttl)))

    def rm(self, name: str, *, expect: int | None = None) -> int:
        """Take a key away. Returns the revision of that change. Raises Conflict, NoSuchKey."""
        return self._client.call(calls.kv_set(name, None, expect, 0.0))

    def ls(self, prefix: str = "") -> list[msg.KvRow]:
        """The keys that begin with ``prefix``, by name."""
        pages = self._client.pages(lambda after: calls.kv_list(prefix, after))
        return [row for page in pages for row in page.keys]


class Artifacts:
    """Files under names of their own, addressed by what they hold.

    An address is the SHA-256 of the content in hex digits, also written ``sha256:ADDRESS`` or, where it stands for a
    result that is a file, ``artifact:ADDRESS``. Such a result also has the name of its task, ``12/extract``. The first
    eight digits or more do when no other artifact's address begins so.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def put(self, source: str | Path | bytes, name: str | None = None) -> msg.ArtifactFile:
        """Publish a file, or bytes, under a name; the name now means this file, whatever it meant before.

        Args:
            source: a path, or the content itself.
            name: default: the file's own.

        Raises:
            InvalidUsage: the file cannot be read, or bytes have no name. TooLarge.
        """
        if isinstance(source, bytes):
            if name is None:
                raise InvalidUsage("an artifact of bytes needs a name")
            return self._put(io.BytesIO(source), name)
        try:
            with open(source, "rb") as file:
                return self._put(file, Path(source).name if name is None else name)
        except OSError as error:
            raise InvalidUsage(f"{source} cannot be read: {error.strerror or error}") from None

    def _put(self, file: io.BufferedReader | io.BytesIO, name: str) -> msg.ArtifactFile:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, io.SEEK_END)
        publish = calls.artifact_publish(name, digest)  # a name that cannot be is told before anything is sent
        blobs.upload(self._client, file, digest, size)
        self._client.call(publish)
        return self._client.call(calls.artifact_find(name))

    def get(self, name: str, path: str | Path, *, replace: bool = True) -> msg.ArtifactFile:
        """Write an artifact, by its name or its address, to ``path``: whole, or not at all.

        A ``path`` that is there and no regular file (a device, a pipe) is written into.

        Raises:
            NoSuchArtifact; InvalidUsage: ``path`` cannot be written.
        """
        found = self.find(name)
        with blobs.writing(Path(path), replace=replace) as file:
            blobs.download(self._client, found.digest, found.size, file)
        return found

    def read(self, name: str) -> bytes:
        """The content of an artifact, by its name or its address. Raises NoSuchArtifact."""
        found = self.find(name)
        return b"".join(blobs.read(self._client, found.digest, found.size))

    def find(self, name: str) -> msg.ArtifactFile:
        """An artifact by its name, its address or how that begins; a name comes first.

        Raises:
            NoSuchArtifact; InvalidUsage: addresses of several artifacts begin so.
        """
        digits = ADDRESS(name)
        if digits is None or len(digits[1]) == WHOLE:
            return self._client.call(calls.artifact_find(digits[1] if digits else name))
        try:
            return self._client.call(calls.artifact_find(name))
        except NoSuchArtifact:
            found = the_one(name, digits[1], self.ls())
            if found is None:
                raise
            return found

    def ls(self, prefix: str = "") -> list[msg.ArtifactFile]:
        """The artifacts whose names begin with ``prefix``, by name."""
        pages = self._client.pages(lambda after: calls.artifact_list(prefix, after))
        return [row for page in pages for row in page.artifacts]


def the_one(name: str, digits: str, artifacts: list[msg.ArtifactFile]) -> msg.ArtifactFile | None:
    """The artifact whose address begins so. Raises InvalidUsage: there are several."""
    found = {row.digest: row for row in artifacts if row.digest.startswith(digits)}
    if len(found) > 1:
        raise InvalidUsage(
            f"'{name}' is the beginning of {len(found)} addresses",
            hint=f"write more of it: {', '.join(sorted(found)[:4])}",
        )
    return found.popitem()[1] if found else None


def ttl_seconds(ttl: float | str | None) -> float:
    if ttl is None:
        return 0.0
    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise InvalidUsage(f"ttl: {error}") from None
    if not seconds:
        raise InvalidUsage("ttl: a key that goes at once is never there")
    return seconds
