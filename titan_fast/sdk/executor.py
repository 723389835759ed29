"""Calls by themselves, each with a future of its own, as ``concurrent.futures`` has them; they travel as arrays.

A run for each call would cost a hundred times what the call does (docs/decisions/015-executor.md). So a thread takes
whatever was submitted while it was busy, makes one run of it with an array for each function, and is told what each
member gave as that comes: a slow call holds back nobody's result. How a connection breaks and comes back, and what is
sent again, is not known here.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import msgspec

from titan_fast._layout import RESULT_PREFIX
from titan_fast.errors import InternalError, InvalidGraph, TaskFailed, TitanError
from titan_fast.ids import TaskId
from titan_fast.model.names import check_name
from titan_fast.model.spec import GraphSpec, TaskSpec
from titan_fast.protocol import messages as msg
from titan_fast.sdk import async_data, calls, functions
from titan_fast.sdk.async_client import AsyncClient
from titan_fast.sdk.async_line import AsyncLine
from titan_fast.sdk.line import MadeOf
from titan_fast.sdk.parts import WATCHED

if TYPE_CHECKING:
    from titan_fast.sdk.graph import Graph

P = ParamSpec("P")
T = TypeVar("T")

MOST = 100_000
"""Calls without a result yet; one more waits."""
MOST_BYTES = 256 << 20
"""Of their arguments."""
PER_RUN = 10_000
BYTES_PER_RUN = 4 << 20
"""Calls, and bytes of their arguments and functions, from which on a run takes no more."""
PAUSE = 0.001
"""Seconds between two runs while calls are on their way: what is submitted meanwhile goes together."""
LARGE_AT_A_TIME = 4
"""Results that are files, and fetched one piece after the other."""

ENDED_BADLY = ("FAILED", "SKIPPED", "CANCELLED", "DEAD")

_FILE = RESULT_PREFIX.encode()
_open: weakref.WeakSet[_Sender] = weakref.WeakSet()


class _Function(NamedTuple):
    """What is called."""

    name: str
    pickled: bytes


class _Call(NamedTuple):
    function: _Function
    payload: bytes
    future: _Future[Any]


class Executor(concurrent.futures.Executor):
    """Runs calls on the workers. `client.executor()` makes one.

    What the standard library says of executors holds: ``submit``, ``map`` and ``shutdown``, futures that can be waited
    for, ``with``, `asyncio.loop.run_in_executor`; in coroutines ``async with`` does not block the loop. A call that did
    not return raises what a task does: `TaskFailed`, its cause the function's own exception. When the master went away
    and did not come back, that is `NoMaster`.

    A call is sent at once, or, when others are on their way, within a millisecond or two and with all that were
    submitted meanwhile. Its result is told as soon as it is durable, whatever else was sent with it. Arguments are
    pickled when they are submitted. So is what is called, but for plain functions: of these the first pickle is used
    for all calls, with the values that it closes over as they were then.

    100,000 calls (or 256 MiB of arguments) may be without a result; one more waits in ``submit``. Callbacks of futures
    run in the executor's thread: while one takes its time, no result comes. Threads may share it, a forked child may
    not use it. What was submitted is waited for when the program ends.
    """

    def __init__(self, made_of: MadeOf, graph: Graph) -> None:
        """``graph``: its one task stands for all calls."""
        self._sender = _Sender(AsyncLine(*made_of), graph.to_spec()[0], graph.project)
        self._ships_project = graph.project is not None
        self._known: dict[int, tuple[weakref.ref[Any], _Function]] = {}
        """Plain functions by their ids, as long as they exist."""
        weakref.finalize(self, self._sender.close).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it on a worker.

        An argument, or a function, that cannot be pickled is the exception of the future: InvalidGraph.

        Raises:
            RuntimeError: the executor was shut down, or belongs to another process.
        """
        future: _Future[T] = _Future()
        known = self._known.get(id(fn))
        try:
            function = known[1] if known is not None else self._described(fn)
            payload = functions.pickled_arguments(function.name, args, kwargs)
        except TitanError as error:
            self._sender.check_open()
            future.set_exception(error)
        else:
            self._sender.put(_Call(function, payload, future))
        return future

    def _described(self, fn: Callable[..., object]) -> _Function:
        """Raises InvalidGraph."""
        if not callable(fn):
            raise InvalidGraph(f"{fn!r} cannot be called")
        name = functions.name_of(fn)
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidGraph(str(error)) from None
        described = _Function(name, functions.pickled_function(name, fn, self._ships_project))
        if isinstance(fn, FunctionType) or isinstance(getattr(fn, "__self__", None), ModuleType):
            # Anything else may be another one by the next call: an object, or a method of one.
            key, known = id(fn), self._known
            known[key] = weakref.ref(fn, lambda _: known.pop(key, None)), described
        return described

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls are taken; those that were are carried out.

        Args:
            wait: return when all of them have ended.
            cancel_futures: those that have not begun are cancelled, also where they were sent already.
        """
        self._sender.close(cancel_futures)
        if wait:
            self._sender.join()

    async def __aenter__(self) -> Executor:
        return self

    async def __aexit__(self, *_: object) -> None:
        """As the end of ``with``; the loop goes on meanwhile."""
        await asyncio.to_thread(self.shutdown)


class _OwnClient(AsyncClient):
    def __init__(self, line: AsyncLine) -> None:
        self._use(line)


class _Sender:
    """The thread of an executor, and what it has to do. It lives on without its executor until that is done."""

    def __init__(self, line: AsyncLine, template: GraphSpec, project: Path | None) -> None:
        self._client = _OwnClient(line)
        self._template = template
        self._project = project
        self._lock = threading.RLock()
        """Over what follows here. Whoever holds it may be the one who finds that the executor has become garbage."""
        self._has_room = threading.Condition(self._lock)
        self._queued: deque[_Call] = deque()
        self._unanswered = 0
        self._bytes = 0
        self._waiting = 0
        """Threads that wait for room."""
        self._is_woken = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._uploading: asyncio.Lock
        self._address = ""
        """Of the project; the master keeps it as long as runs need it."""
        self.large: asyncio.Semaphore
        self._runs: dict[asyncio.Task[None], _Run] = {}
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ any thread

    def check_open(self) -> None:
        """Raises RuntimeError."""
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if os.getpid() != self._pid:
            raise RuntimeError("this executor belongs to the process that was forked")

    def put(self, call: _Call) -> None:
        """Waits for room. Raises RuntimeError."""
        size = len(call.payload)
        with self._lock:
            self.check_open()
            while self._unanswered and (self._unanswered >= MOST or self._bytes + size > MOST_BYTES):
                if threading.current_thread() is self._thread:
                    break  # a callback of a future: whoever makes room is here
                self._waiting += 1
                try:
                    self._has_room.wait()
                finally:
                    self._waiting -= 1
                self.check_open()
            self._queued.append(call)
            self._unanswered += 1
            self._bytes += size
            if self._is_woken:
                return
            self._is_woken = True
            if self._thread is None:
                self._start()
            self._loop.call_soon_threadsafe(self._look)

    def _start(self) -> None:
        is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(is_ready,), name="titan-fast-executor", daemon=True)
        self._thread.start()
        is_ready.wait()
        _open.add(self)

    def close(self, cancel: bool = False) -> None:
        if os.getpid() != self._pid:
            return  # whoever forked us goes on
        with self._lock:
            self._is_closed = True
            taken: deque[_Call] = deque()
            if cancel:
                taken, self._queued = self._queued, taken
            self._has_room.notify_all()
            if self._thread is not None:
                with suppress(RuntimeError):  # it has come to its end
                    self._loop.call_soon_threadsafe(self._closing, cancel)
        for call in taken:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        self.answered(len(taken), sum(len(call.payload) for call in taken))

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def answered(self, count: int, size: int = 0) -> None:
        with self._lock:
            self._unanswered -= count
            self._bytes -= size
            if self._waiting:
                self._has_room.notify_all()

    # ------------------------------------------------------------ its own thread

    def _run(self, is_ready: threading.Event) -> None:
        asyncio.run(self._main(is_ready))

    async def _main(self, is_ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._uploading = asyncio.Lock()
        self.large = asyncio.Semaphore(LARGE_AT_A_TIME)
        is_ready.set()
        async with self._client:
            await self._over.wait()

    def _look(self) -> None:
        """Something was submitted. Alone it is sent at once; behind others it waits a moment for more."""
        if self._timer is None:
            rest = self._sent_at + PAUSE - time.monotonic() if self._runs else 0.0
            if rest > 0:
                self._timer = self._loop.call_later(rest, self._send)
            else:
                self._send()

    def _send(self) -> None:
        self._timer = None
        while len(self._runs) < WATCHED and (taken := self._take()):
            run = _Run(self, self._client, self._template, taken)
            task = self._loop.create_task(run.carry_out())
            self._runs[task] = run
            task.add_done_callback(self._ended)
            self._sent_at = time.monotonic()

    def _take(self) -> list[_Call]:
        """What the next run is made of; what was cancelled meanwhile is none of it."""
        taken: list[_Call] = []
        size = dropped = dropped_bytes = 0
        function: _Function | None = None
        with self._lock:
            queued = self._queued
            while queued and len(taken) < PER_RUN and size < BYTES_PER_RUN:
                call = queued.popleft()
                if call.future.set_running_or_notify_cancel():
                    taken.append(call)
                    size += len(call.payload)
                    if call.function is not function:
                        function = call.function
                        size += len(function.pickled)
                else:
                    dropped += 1
                    dropped_bytes += len(call.payload)
            self._is_woken = bool(queued)
        if dropped:
            self.answered(dropped, dropped_bytes)
        return taken

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        if self._queued and self._timer is None:
            self._send()
        self._end_if_done()

    def _closing(self, cancel: bool) -> None:
        if cancel:
            for run in self._runs.values():
                run.take_back()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_closed and not self._runs and not self._queued:
            self._over.set()

    async def address_of_project(self) -> str:
        """Empty: there is none. Raises TitanError."""
        if self._project is None:
            return ""
        async with self._uploading:
            if not self._address or await self._client.call(calls.blob_size(self._address)) < 0:
                self._address = await self._client.upload_project(self._project)
            return self._address


class _Run:
    """Calls that are sent together."""

    def __init__(self, sender: _Sender, client: AsyncClient, template: GraphSpec, sent: list[_Call]) -> None:
        self._sender = sender
        self._client = client
        of: dict[_Function, list[_Call]] = {}
        for call in sent:
            of.setdefault(call.function, []).append(call)
        self._futures: list[_Future[Any] | None] = [call.future for group in of.values() for call in group]
        """By the place of their task in the run; None: it is done."""
        self._left = len(sent)
        self._bytes = sum(len(call.payload) for call in sent)
        self._graph, self._payloads = _described(template, of)
        self._number: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._is_unwanted = False
        self._beside: set[asyncio.Task[None]] = set()

    async def carry_out(self) -> None:
        """Until every one of its futures is done."""
        problem: Exception = InternalError("the run is over, and the master has not told all of its results")
        try:
            await self._collect()
        except Exception as error:  # whatever it is, nobody is to wait for ever
            problem = error
        self._number.cancel()
        while self._beside:
            await asyncio.wait(self._beside)
        for future in self._futures:
            if future is not None:
                future.set_exception(problem)
        self._sender.answered(self._left, self._bytes)

    async def _collect(self) -> None:
        project = await self._sender.address_of_project()
        graph = msgspec.structs.replace(self._graph, project=project) if project else self._graph
        call = calls.submit_and_collect(graph, self._payloads)
        self._payloads = ()  # from here on the request has them, as long as it needs them
        async for incoming in self._client.stream(call):
            said = incoming.message
            if not self._number.done():
                self._number.set_result(said.run)  # type: ignore[union-attr]
            if isinstance(said, msg.Given):
                self._take(said, incoming.attachments)

    def _take(self, given: msg.Given, parts: tuple[bytes, ...]) -> None:
        """Some of it may have been told before a connection broke."""
        futures, missing = self._futures, {row.place: row for row in given.missing}
        done = 0
        indexes = itertools.chain.from_iterable(range(first, first + count) for first, count in given.stretches)
        for place, (index, part) in enumerate(zip(indexes, parts, strict=True)):
            future = futures[index]
            if future is None:
                continue
            if place in missing:
                row = missing[place]
                if row.state not in ENDED_BADLY:
                    continue  # somebody opened it again
                self._failed(future, given.run, row, part)
            elif part.startswith(_FILE):
                self._do_beside(self._fetch(future, part[len(_FILE) :].decode()))
            else:
                _give(future, part)
            futures[index] = None
            done += 1
        self._left -= done
        self._sender.answered(done)

    def _failed(self, future: _Future[Any], run: int, row: msg.NoResult, left: bytes) -> None:
        if self._is_unwanted and row.state == "CANCELLED":
            future.take_back()
            return
        traceback, error = functions.raised(left)
        failed = TaskFailed(f"{run}/{row.name}", row.state, row.reason, traceback)
        failed.__cause__ = error
        future.set_exception(failed)

    async def _fetch(self, future: _Future[Any], digest: str) -> None:
        """A result that is too large to be told."""
        try:
            async with self._sender.large:
                size = await self._client.call(calls.blob_size(digest))
                pieces = [piece async for piece in async_data.read(self._client, digest, size)]
        except Exception as error:
            future.set_exception(error)
        else:
            _give(future, b"".join(pieces))

    def take_back(self) -> None:
        """Cancel what has not begun."""
        if not self._is_unwanted:
            self._is_unwanted = True
            self._do_beside(self._cancel())

    async def _cancel(self) -> None:
        with suppress(TitanError):  # it is over; or what broke is told by the futures
            call = calls.cancel(TaskId(await self._number), only_waiting=True)
            await self._client.call(call)

    def _do_beside(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


class _Future(Future[T]):
    """It may be cancelled after it was sent, by an executor that is shut down."""

    _is_taken_back = False

    def take_back(self) -> None:
        self._is_taken_back = True
        self.set_exception(CancelledError())

    def cancelled(self) -> bool:
        return self._is_taken_back or super().cancelled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        if self._is_taken_back and error is not None:
            raise error
        return error


def _give(future: _Future[Any], pickled: bytes) -> None:
    try:
        value = functions.returned(pickled)
    except Exception as error:  # its class is not here, or cannot be made
        future.set_exception(error)
    else:
        future.set_result(value)


def _described(template: GraphSpec, of: dict[_Function, list[_Call]]) -> tuple[GraphSpec, tuple[bytes, ...]]:
    """A graph with an array for each function, and its attachments."""
    (task,) = template.tasks
    specs: list[TaskSpec] = []
    payloads: list[bytes] = []
    numbered: dict[str, int] = {}
    for function, group in of.items():
        number = numbered[function.name] = numbered.get(function.name, 0) + 1
        work = msgspec.structs.replace(task.work, function=len(payloads), spread=True)
        specs.append(
            msgspec.structs.replace(
                task,
                name=function.name if number == 1 else f"{function.name}-{number}",
                work=work,
                count=len(group),
                array=len(group) > 1,  # of one alone the worker forgets everything with its end
                payload=len(payloads) + 1,
            )
        )
        payloads += function.pickled, functions.to_blob([call.payload for call in group])
    return msgspec.structs.replace(template, tasks=tuple(specs)), tuple(payloads)


@atexit.register
def _finish() -> None:
    """What was submitted is carried out, as the executors of the library do it."""
    for sender in list(_open):
        sender.close()
        sender.join()
