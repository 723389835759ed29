"""The client for asyncio: the names of `Client` with ``await``. Every call is defined in `calls`; here they are carried
out, any number of them at a time over one connection.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from titan_fast.errors import WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.sdk import async_data, blobs, calls
from titan_fast.sdk.async_data import AsyncArtifacts, AsyncKeys
from titan_fast.sdk.async_handles import AsyncPendingRun, AsyncRunHandle
from titan_fast.sdk.async_line import AsyncLine
from titan_fast.sdk.client import MakesExecutors, client_settings, prune_call
from titan_fast.sdk.parts import AHEAD, UNANSWERED, WATCHED, Parts, Submittable, groups, last_task, to_parts

if TYPE_CHECKING:
    from titan_fast.model.yaml_file import LoadedGraph

log = logging.getLogger("titan_fast.client")

T = TypeVar("T")
P = TypeVar("P", bound=calls.Page)


class AsyncClient(MakesExecutors):
    """`Client` for asyncio: the same names, arguments and errors, with ``await``.

    async with AsyncClient() as client:
        run = await client.submit(graph)
        await run.wait(timeout=600)
        print(await run["train"].logs())

    Tasks of one loop may share it: their calls go over one connection. One that is cancelled forgets its request and
    disturbs no other; what it asked for may have been carried out.
    """

    def __init__(
        self,
        master: str | None = None,
        *,
        token: str | None = None,
        token_file: str | None = None,
        timeout: float | None = None,
        reconnect_timeout: float | None = None,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self._use(AsyncLine(*client_settings(master, token, token_file, timeout, reconnect_timeout, tell)))

    def _use(self, line: AsyncLine) -> None:
        self.line: AsyncLine = line
        self._unanswered: deque[AsyncPendingRun] = deque()
        self._unwatched: deque[weakref.ref[AsyncPendingRun]] = deque()
        self.kv = AsyncKeys(self)
        self.artifacts = AsyncArtifacts(self)

    async def close(self) -> None:
        await self.line.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ carrying out

    async def call(self, call: calls.Call[T], history: str = "") -> T:
        return call.parse(await self.line.ask(call.message, call.attachments, call.then, history))

    async def stream(
        self, stream: calls.Stream[T], timeout: float | None = None, history: str = ""
    ) -> AsyncIterator[T]:
        answers = self.line.stream(
            stream.message,
            stream.attachments,
            timeout=timeout,
            resume=stream.resume,
            then=stream.then,
            history=history,
        )
        async with aclosing(answers):
            async for incoming in answers:
                item = stream.parse(incoming)
                yield item
                if stream.is_last(item):
                    return

    async def pages(self, page_at: Callable[[str], calls.Call[P]], history: str = "") -> AsyncIterator[P]:
        cursor = ""
        while True:
            page = await self.call(page_at(cursor), history)
            yield page
            cursor = page.next
            if not cursor:
                return

    async def exact(self, target: TaskId) -> TaskId:
        if target.run is not None:
            return target
        return target._replace(run=(await self.call(calls.show(TaskId(None), limit=1))).run.id)

    # ------------------------------------------------------------ graphs

    async def submit(self, graph: Submittable) -> AsyncRunHandle:
        return await self._submit(to_parts(graph))

    async def submit_nowait(self, graph: Submittable) -> AsyncPendingRun:
        return (await self.submit_many([graph]))[0]

    async def submit_many(self, graphs: Iterable[Submittable]) -> list[AsyncPendingRun]:
        addresses: dict[object, str] = {}
        pending = []
        for group in groups(graphs):
            pending += await self._begin([await self._with_project(to_parts(graph), addresses) for graph in group])
        return pending

    async def run(self, what: Submittable | int | str = "last", *, timeout: float | None = None) -> AsyncRunHandle:
        if isinstance(what, int | str):
            target = calls.task_id(what)
            return AsyncRunHandle(self, (await self.call(calls.show(TaskId(target.run), limit=1))).run.id)
        handle = await self.submit_nowait(what)
        await handle.wait(timeout)
        return handle

    async def submit_file(self, path: str | Path, inputs: Mapping[str, str] | None = None) -> AsyncRunHandle:
        from titan_fast.model.yaml_file import load_file

        return await self.submit_loaded(await asyncio.to_thread(load_file, Path(path), dict(inputs or {})))

    async def submit_loaded(self, loaded: LoadedGraph) -> AsyncRunHandle:
        return await self._submit(to_parts(loaded))

    async def submit_spec(self, graph: GraphSpec) -> AsyncRunHandle:
        return await self._submit(to_parts(graph))

    async def _submit(self, parts: Parts) -> AsyncRunHandle:
        parts = await self._with_project(parts, {})
        return AsyncRunHandle(self, await self.call(calls.submit(parts.graph, parts.payloads)))

    async def _with_project(self, parts: Parts, addresses: dict[object, str]) -> Parts:
        if parts.project is None:
            return parts
        folder = parts.project, parts.files
        if folder not in addresses:
            addresses[folder] = await self.upload_project(*folder)
        graph = msgspec.structs.replace(parts.graph, project=addresses[folder])
        return parts._replace(graph=graph, project=None)

    async def _begin(self, graphs: Sequence[Parts]) -> list[AsyncPendingRun]:
        while self._unanswered and len(self._unanswered) + len(graphs) > UNANSWERED:
            await self._unanswered.popleft().settle()
        watched = self.line.has_room(len(graphs), WATCHED)
        make = calls.submit_and_watch if watched else calls.submit
        requests = [make(parts.graph, parts.payloads) for parts in graphs]
        exchanges = await self.line.begin(requests)
        begun = [
            AsyncPendingRun(self, exchange, last_task(parts.graph), watched=watched)
            for parts, exchange in zip(graphs, exchanges, strict=True)
        ]
        self._unanswered += begun
        if not watched:
            self._unwatched += map(weakref.ref, begun)
        return begun

    async def watch_ahead(self, run: AsyncPendingRun, timeout: float | None) -> None:
        """As `Client.watch_ahead`."""
        async with AsyncExitStack() as locks:
            chosen = [run] if await run.is_to_be_watched(locks, timeout) else []
            while chosen and self._unwatched and len(chosen) < AHEAD and self.line.has_room(len(chosen) + 1, WATCHED):
                other = self._unwatched.popleft()()
                with suppress(WaitTimedOut):
                    if other is not None and other.history == run.history and await other.is_to_be_watched(locks, 0.0):
                        chosen.append(other)
            requests = [each.to_watch() for each in chosen]
            for each, exchange in zip(chosen, await self.line.begin(requests, run.history), strict=True):
                each.is_watched_by(exchange)

    async def upload_project(self, folder: Path, files: Sequence[str] = ()) -> str:
        from titan_fast.model.archive import pack_project

        with tempfile.TemporaryFile() as archive:
            digest, size = await asyncio.to_thread(pack_project, folder, archive, files)
            await async_data.upload(self, archive, digest, size)
        return digest

    async def cancel(self, target: str | int) -> None:
        await self.call(calls.cancel(await self.exact(calls.task_id(target))))

    async def retry(self, target: str | int) -> None:
        await self.call(calls.retry(await self.exact(calls.task_id(target))))

    async def dead(self) -> list[msg.TaskRow]:
        pages = self.pages(lambda cursor: calls.list_page("dead", cursor=cursor, limit=1000))
        return [task async for page in pages for task in page.tasks]

    async def drop(self, target: str | int) -> None:
        await self.call(calls.drop(await self.exact(calls.task_id(target))))

    # ------------------------------------------------------------ looking

    async def runs(self, state: str = "", limit: int | None = None) -> list[msg.RunRow]:
        rows: list[msg.RunRow] = []
        async for page in self.pages(lambda cursor: calls.runs_page(state, cursor, limit, len(rows))):
            rows.extend(page.runs)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    async def workers(self) -> list[msg.WorkerRow]:
        return list((await self.call(calls.list_page("workers"))).workers)

    async def explain(self, target: str | int) -> msg.Explained:
        return await self.call(calls.explain(calls.task_id(target)))

    async def stats(self) -> msg.Stated:
        return await self.call(calls.stats())

    # ------------------------------------------------------------ care

    async def prune(self, keep: int | None = None, older_than: float | str | None = None) -> int:
        return await self.call(prune_call(keep, older_than))

    async def backup(self, path: str | Path, *, replace: bool = False) -> msg.BackedUp:
        # Opened first: the master makes no copy that cannot be kept.
        file: IO[bytes]
        with blobs.writing(Path(path), replace=replace, mode=0o600) as file:
            made = await self.call(calls.backup())
            await async_data.download(self, made.digest, made.size, file)
        return made
