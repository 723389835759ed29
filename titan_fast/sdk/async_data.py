"""`data` and `blobs` with ``await``: keys and artifacts. Files are read and written in threads."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from titan_fast.errors import ConnectionLost, InvalidUsage, NoSuchArtifact, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.sdk import blobs, calls
from titan_fast.sdk.data import ADDRESS, WHOLE, the_one, ttl_seconds
from titan_fast.sdk.line import may_pass

if TYPE_CHECKING:
    from titan_fast.sdk.async_client import AsyncClient


class AsyncKeys:
    """The cluster's key-value space; `Keys` with ``await``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, name: str) -> bytes:
        return (await self.entry(name)).value

    async def entry(self, name: str) -> calls.Entry:
        return await self._client.call(calls.kv_get(name))

    async def set(
        self, name: str, value: bytes | str, *, expect: int | None = None, ttl: float | str | None = None
    ) -> int:
        data = value.encode() if isinstance(value, str) else bytes(value)
        return await self._client.call(calls.kv_set(name, data, expect, ttl_seconds(ttl)))

    async def rm(self, name: str, *, expect: int | None = None) -> int:
        return await self._client.call(calls.kv_set(name, None, expect, 0.0))

    async def ls(self, prefix: str = "") -> list[msg.KvRow]:
        pages = self._client.pages(lambda after: calls.kv_list(prefix, after))
        return [row async for page in pages for row in page.keys]


class AsyncArtifacts:
    """Files under names of their own; `Artifacts` with ``await``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def put(self, source: str | Path | bytes, name: str | None = None) -> msg.ArtifactFile:
        if isinstance(source, bytes):
            if name is None:
                raise InvalidUsage("an artifact of bytes needs a name")
            return await self._put(io.BytesIO(source), name)
        try:
            with open(source, "rb") as file:  # noqa: ASYNC230
                return await self._put(file, Path(source).name if name is None else name)
        except OSError as error:
            raise InvalidUsage(f"{source} cannot be read: {error.strerror or error}") from None

    async def _put(self, file: io.BufferedReader | io.BytesIO, name: str) -> msg.ArtifactFile:
        digest = (await asyncio.to_thread(hashlib.file_digest, file, "sha256")).hexdigest()
        size = file.seek(0, io.SEEK_END)
        publish = calls.artifact_publish(name, digest)  # a name that cannot be is told before anything is sent
        await upload(self._client, file, digest, size)
        await self._client.call(publish)
        return await self._client.call(calls.artifact_find(name))

    async def get(self, name: str, path: str | Path, *, replace: bool = True) -> msg.ArtifactFile:
        found = await self.find(name)
        with blobs.writing(Path(path), replace=replace) as file:
            await download(self._client, found.digest, found.size, file)
        return found

    async def read(self, name: str) -> bytes:
        found = await self.find(name)
        return b"".join([piece async for piece in read(self._client, found.digest, found.size)])

    async def find(self, name: str) -> msg.ArtifactFile:
        digits = ADDRESS(name)
        if digits is None or len(digits[1]) == WHOLE:
            return await self._client.call(calls.artifact_find(digits[1] if digits else name))
        try:
            return await self._client.call(calls.artifact_find(name))
        except NoSuchArtifact:
            found = the_one(name, digits[1], await self.ls())
            if found is None:
                raise
            return found

    async def ls(self, prefix: str = "") -> list[msg.ArtifactFile]:
        pages = self._client.pages(lambda after: calls.artifact_list(prefix, after))
        return [row async for page in pages for row in page.artifacts]


async def upload(client: AsyncClient, file: IO[bytes], digest: str, size: int) -> None:
    """As `blobs.upload`."""
    for is_last in (*[False] * (blobs.UPLOADS - 1), True):
        if await client.call(calls.blob_size(digest)) == size:
            return
        try:
            wire = await client.line.wire()
            file.seek(0)
            for offset in range(0, max(size, 1), blobs.PIECE):
                piece = await asyncio.to_thread(file.read, blobs.PIECE)
                await wire.ask(msg.BlobPut(digest=digest, offset=offset, size=size), (piece,))
            return
        except TitanError as error:
            if is_last or not may_pass(error, connecting=False):
                raise


async def read(client: AsyncClient, digest: str, size: int) -> AsyncIterator[bytes]:
    """As `blobs.read`."""
    found = hashlib.sha256()
    at = 0
    while at < size:
        piece = await client.call(calls.blob_get(digest, at))
        if not piece:
            break
        found.update(piece)
        at += len(piece)
        yield piece
    if at != size or found.hexdigest() != digest:
        raise ConnectionLost(f"the file {digest[:12]}… did not arrive whole: {at} of {size} bytes", hint="try it again")


async def download(client: AsyncClient, digest: str, size: int, file: IO[bytes]) -> None:
    """As `blobs.download`."""
    async for piece in read(client, digest, size):
        await asyncio.to_thread(file.write, piece)
