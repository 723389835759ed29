"""What one holds of a run or task after it was submitted, for asyncio: `handles` and `pending` with ``await``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from titan_fast.errors import InvalidUsage, NoMaster, TitanError, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import async_data, calls
from titan_fast.sdk.async_line import AsyncExchange
from titan_fast.sdk.handles import (
    address_in,
    check_completed,
    check_done,
    check_given,
    check_single,
    least_finished,
    returned,
    still_going,
    value,
)
from titan_fast.sdk.known import Known

if TYPE_CHECKING:
    from titan_fast.sdk.async_client import AsyncClient

T = TypeVar("T")

AsyncGift = Callable[[float | None], Awaitable[bytes | None]]


class _AsyncHandle:
    def __init__(self, client: AsyncClient, target: TaskId, history: str) -> None:
        self._client = client
        self._target = target
        self._history = history

    @property
    def target(self) -> TaskId:
        return self._target

    @property
    def history(self) -> str:
        """What its number belongs to."""
        return self._history

    async def _named(self) -> TaskId:
        """`target`, when it is known."""
        return self.target

    async def _call(self, call: calls.Call[T]) -> T:
        return await self._client.call(call, self.history)

    def _stream(self, stream: calls.Stream[T], timeout: float | None = None) -> AsyncIterator[T]:
        return self._client.stream(stream, timeout, self.history)

    async def _rows(self) -> list[msg.TaskRow]:
        target = await self._named()
        pages = self._client.pages(lambda cursor: calls.show(target, cursor), self.history)
        return [task async for page in pages for task in page.tasks]

    async def outcome(self, timeout: float | None = None) -> msg.Update:
        """The last word about it, good or bad. Raises WaitTimedOut."""
        target = await self._named()
        update = None
        try:
            async for update in self._stream(calls.watch(target, False), timeout):  # noqa: B007
                pass
        except WaitTimedOut:
            raise still_going(str(target), timeout) from None
        assert update is not None
        return update

    async def cancel(self) -> None:
        """Returns when the request is durable; what runs has its grace time to end."""
        await self._call(calls.cancel(await self._named()))

    async def retry(self) -> None:
        """Open what is FAILED, DEAD or CANCELLED again, and what was skipped because of it."""
        await self._call(calls.retry(await self._named()))

    async def explain(self) -> msg.Explained:
        """Why it is where it is, and what would help."""
        return await self._call(calls.explain(await self._named()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"


class AsyncTaskHandle(_AsyncHandle):
    """One task or array of a run. ``handle[417]`` is a member of an array."""

    def __init__(self, client: AsyncClient, target: TaskId, history: str, gift: AsyncGift | None = None) -> None:
        """``gift``: see `TaskHandle`."""
        super().__init__(client, target, history)
        self._gift = gift

    def __getitem__(self, member: int) -> AsyncTaskHandle:
        return AsyncTaskHandle(self._client, self.target._replace(member=member), self.history)

    async def state(self) -> str:
        """Its state now; of an array with members in several states the least finished one."""
        return least_finished(await self.rows())

    async def rows(self) -> list[msg.TaskRow]:
        """Everything known of it, a row for each member."""
        return await self._rows()

    async def wait(self, timeout: float | None = None) -> msg.Update:
        """Until it is final. Raises RunFailed when that is not COMPLETED, WaitTimedOut."""
        return check_done(await self.outcome(timeout), self.target)

    async def result(self, timeout: float | None = None) -> Any:
        """As `TaskHandle.result`."""
        if self._gift is None:
            await self.outcome(timeout)
        elif (known := await self._gift(timeout)) is not None:
            return returned(known)
        given = await self._call(calls.results(self.target))
        check_single(given, self.target)
        return (await self._values(given))[0]

    async def results(self, timeout: float | None = None) -> list[Any]:
        """As `TaskHandle.results`."""
        await self.outcome(timeout)
        values: list[Any] = []
        async for given in self._client.pages(lambda cursor: calls.results(self.target, cursor), self.history):
            values += await self._values(given)
        return values

    async def _values(self, given: calls.Given) -> list[Any]:
        check_given(given, self.target)
        return [value(given, await self._whole(given, part)) for part in given.parts]

    async def _whole(self, given: calls.Given, part: bytes) -> bytes:
        digest = address_in(given, part)
        if not digest:
            return part
        size = await self._client.call(calls.blob_size(digest))
        return b"".join([piece async for piece in async_data.read(self._client, digest, size)])

    async def logs(self, attempt: int = 0) -> str:
        """The output of its newest attempt (or of the given one), as far as it is kept."""
        pieces = self._stream(calls.logs(self.target, False, -1, attempt))
        return b"".join([piece.shown async for piece in pieces]).decode("utf-8", "replace")

    async def follow(self) -> AsyncIterator[bytes]:
        """Its output as it comes, until the task is final."""
        async for piece in self._stream(calls.logs(self.target, True, -1, 0)):
            yield piece.shown


class AsyncRunHandle(_AsyncHandle):
    """A run. ``handle["extract"]`` is one of its tasks."""

    def __init__(self, client: AsyncClient, run: int) -> None:
        super().__init__(client, TaskId(run), client.line.history)

    @property
    def id(self) -> int:
        """Its number."""
        return self.target.run or 0

    def __getitem__(self, task: str) -> AsyncTaskHandle:
        return AsyncTaskHandle(self._client, TaskId(self.id, task), self.history)

    async def state(self) -> str:
        return (await self.show()).state

    async def show(self) -> msg.RunRow:
        return (await self._call(calls.show(await self._named(), limit=1))).run

    async def tasks(self) -> list[msg.TaskRow]:
        return await self._rows()

    async def wait(self, timeout: float | None = None) -> msg.Update:
        """Until the run is final; raises as `RunHandle.wait`."""
        return check_completed(await self.outcome(timeout))

    async def result(self, timeout: float | None = None) -> str:
        """As `RunHandle.result`."""
        return (await self.wait(timeout)).result

    async def watch(self, timeout: float | None = None) -> AsyncIterator[msg.Update]:
        """Progress, at most ten times a second; the last update is final."""
        async for update in self._stream(calls.watch(await self._named(), True), timeout):
            yield update


class AsyncPendingRun(AsyncRunHandle):
    """A run that was submitted and not waited for: `pending.PendingRun` with ``await``. Its `id` is there after
    `settle`, or after anything else that was asked of it."""

    def __init__(self, client: AsyncClient, exchange: AsyncExchange, last: str, *, watched: bool) -> None:
        """``last``: the task that ends with the run, if there is one."""
        self._client = client
        self._exchange = exchange
        self._known = Known(last, watched)
        self._lock = asyncio.Lock()
        """Whoever holds it reads the answers."""

    def __getitem__(self, task: str) -> AsyncTaskHandle:
        gift = self._gift if task == self._known.last else None
        return AsyncTaskHandle(self._client, TaskId(self.id, task), self.history, gift)

    @property
    def target(self) -> TaskId:
        """Raises InvalidUsage: it is not known yet. And what went wrong with the submit."""
        if self._known.error is not None:
            raise self._known.error
        if not self._known.number:
            raise InvalidUsage("it is not known yet whether this run is accepted", hint="await its settle() first")
        return TaskId(self._known.number)

    @property
    def history(self) -> str:
        return self._exchange.history

    async def _named(self) -> TaskId:
        await self.settle()
        return self.target

    async def done(self) -> bool:
        """It has ended, or was never accepted. Waits for nothing."""
        if not self._known.is_over:
            if self._known.is_to_be_watched:
                return (await self.show()).finished_at > 0
            with suppress(WaitTimedOut, NoMaster):
                await self._read_until_final(0.0)
        return self._known.is_over

    async def exception(self, timeout: float | None = None) -> TitanError | None:
        """What `wait` raises, or None when the run completed. Raises WaitTimedOut."""
        try:
            await self.wait(timeout)
        except WaitTimedOut:
            raise
        except TitanError as error:
            return error
        return None

    async def outcome(self, timeout: float | None = None) -> msg.Update:
        """The last word about it, good or bad. Raises WaitTimedOut, and what went wrong with the submit."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if not self._known.watched:
                await self.settle()
                await self._client.watch_ahead(self, timeout)
            await self._read_until_final(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except WaitTimedOut:
            raise still_going(str(self._known.number or "the run"), timeout) from None
        return self._known.end()

    async def _gift(self, timeout: float | None) -> bytes | None:
        """What its last task returned, if the end of the run told that."""
        await self.outcome(timeout)
        return self._known.gift

    async def is_to_be_watched(self, locks: AsyncExitStack, timeout: float | None) -> bool:
        """As of `PendingRun`."""
        try:
            async with asyncio.timeout(timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise WaitTimedOut("no answer in time") from None
        locks.callback(self._lock.release)
        return self._known.is_to_be_watched

    def to_watch(self) -> calls.Stream[msg.Update]:
        return calls.watch(TaskId(self._known.number), False)

    def is_watched_by(self, exchange: AsyncExchange) -> None:
        self._exchange, self._known.watched = exchange, True

    async def retry(self) -> None:
        """Open what is FAILED, DEAD or CANCELLED again; what is waited for next is how that ends."""
        await super().retry()
        self._known.reopened()

    async def settle(self) -> None:
        """Until it is accepted or refused; raises neither."""
        async with self._lock:
            while not self._known.is_settled:
                await self._read(None)

    async def _read_until_final(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise WaitTimedOut("no answer in time") from None
        try:
            while self._known.watched and not self._known.is_over:
                await self._read(deadline)
        finally:
            self._lock.release()

    async def _read(self, deadline: float | None) -> None:
        """One answer. Raises WaitTimedOut, NoMaster: there may be one another time."""
        try:
            is_open = self._known.heard(await self._exchange.next(deadline))
        except TitanError as error:
            self._known.failed(error)
            is_open = False
        if not is_open:
            self._exchange.close()

    def __repr__(self) -> str:
        return f"<AsyncPendingRun {self._known.number or '(not accepted yet)'}>"
