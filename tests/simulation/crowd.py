"""Clients that never give up: they speak the real protocol, repeat what was not answered, and write down what they
were told. What they were told is what the oracle holds the cluster to.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from graphs import Shape
from keys import Wish

from titan_fast.errors import Conflict, ConnectionLost, NoSuchKey, NothingToDo, TitanError
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, send
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Opening, error_from
from titan_fast.testing.simulation.world import Program

PATIENCE = 12.0
"""Seconds without an answer after which a client tries another connection."""
PAUSE = 1.0
"""Longest pause between two tries."""
KEYS = ("a", "b", "c")
TTLS = (1.0, 8.0, 30.0)


class Notes(Protocol):
    """Who remembers what clients were told."""

    def asks(self) -> None:
        """Something is about to be asked that changes something."""

    def submit_asked(self, key: msg.Once, graph: GraphSpec) -> None: ...
    def submit_acknowledged(self, key: msg.Once, run: int) -> None: ...
    def cancel_acknowledged(self, run: int, task: str, member: int) -> None: ...
    def told(self, run: int, update: msg.Update) -> None: ...
    def shown(self, shown: msg.Shown) -> None: ...
    def given(self, run: int, task: str, first: int, given: msg.Given, results: Sequence[bytes]) -> None: ...
    def welcomed(self, client: str, welcome: msg.Welcome) -> None: ...
    def key_asked(self, key: msg.Once, wish: Wish) -> None: ...
    def key_acknowledged(self, key: msg.Once, revision: int) -> None: ...
    def key_refused(self, key: msg.Once, why: str) -> None: ...
    def key_seen(self, name: str, since: float, revision: int, value: bytes) -> None: ...
    def key_not_seen(self, name: str, since: float) -> None: ...


class _Line(asyncio.Protocol):
    """One connection to the master."""

    def __init__(self, token: str) -> None:
        self._connection = Connection(Role.MASTER)
        self._opening: Opening | None = Opening(self._connection, "client", token)
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, asyncio.Queue[Incoming | TitanError]] = {}
        self._next = 2
        self.opened: asyncio.Future[msg.Welcome] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) and self._opening is not None
        self._transport = transport
        transport.write(self._opening.hello())

    def data_received(self, data: bytes) -> None:
        for incoming in self._connection.receive(data):
            if self._opening is not None:
                self._open(incoming)
            elif (answer := self._answers.get(incoming.request)) is not None:
                answer.put_nowait(incoming)

    def _open(self, incoming: Incoming) -> None:
        assert self._opening is not None and self._transport is not None
        try:
            self._transport.write(self._opening.take(incoming))
        except TitanError as error:
            self.connection_lost(None)
            self._transport.abort()
            if not error.retryable:  # a master that stood still may have no time left for us
                raise AssertionError(f"a client was not let in: {error}") from None
            return
        if self._opening.welcome is not None:
            welcome, self._opening = self._opening.welcome, None
            if not self.opened.done():  # given up meanwhile
                self.opened.set_result(welcome)

    def connection_lost(self, error: Exception | None) -> None:
        lost = ConnectionLost("the connection to the master broke")
        if not self.opened.done():
            self.opened.set_exception(lost)
            self.opened.exception()
        for answer in self._answers.values():
            answer.put_nowait(lost)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def ask(self, message: msg.Message, attachments: tuple[bytes, ...]) -> asyncio.Queue[Incoming | TitanError]:
        assert self._transport is not None
        request, self._next = self._next, self._next + 1
        answers = self._answers[request] = asyncio.Queue()
        self._transport.write(send(message, attachments, request))
        return answers


class Client:
    """One client program. ``say`` is called with what it learns."""

    def __init__(
        self, program: Program, address: tuple[str, int], token: str, notes: Notes, rng: random.Random
    ) -> None:
        self.program = program
        self.name = program.name
        self.notes = notes
        self.rng = rng
        self.pending = 0
        """Requests that wait for an answer."""
        self._address = address
        self._token = token
        self._line: _Line | None = None
        self._was_cut_off = asyncio.Event()
        self._epoch = 0
        """Of the master that answered last."""
        self._counter = 0
        self._revisions = dict.fromkeys(KEYS, 0)
        """Of keys, as this client saw them last."""

    # ------------------------------------------------------------ one request

    async def _open(self) -> _Line:
        """A connection that is let in; tries for ever."""
        while self._line is None:
            line = _Line(self._token)
            try:
                await asyncio.wait_for(self._introduce(line), PATIENCE)
                self._line = line
            except (OSError, ConnectionLost):
                line.hang_up()
                await asyncio.sleep(self.rng.random() * PAUSE)
        return self._line

    async def _introduce(self, line: _Line) -> None:
        await asyncio.get_running_loop().create_connection(lambda: line, *self._address)
        welcome = await line.opened
        self._epoch = welcome.epoch
        self.notes.welcomed(self.name, welcome)

    def _drop(self, line: _Line) -> None:
        line.hang_up()
        self._was_cut_off.set()
        self._was_cut_off.clear()
        if self._line is line:
            self._line = None

    async def ask(
        self,
        make: Callable[[bool], msg.Message],
        attachments: tuple[bytes, ...] = (),
        is_last: Callable[[msg.Message], bool] = lambda message: True,
        patience: float = PATIENCE,
    ) -> msg.Message:
        """The (last) answer, without what is attached to it. See `ask_whole`."""
        answer = (await self.ask_whole(make, attachments, is_last, patience)).message
        assert answer is not None
        return answer

    async def ask_whole(
        self,
        make: Callable[[bool], msg.Message],
        attachments: tuple[bytes, ...] = (),
        is_last: Callable[[msg.Message], bool] = lambda message: True,
        patience: float = PATIENCE,
    ) -> Incoming:
        """The (last) answer, however often it has to be asked; ``make`` is told whether it is a repetition.

        Raises:
            TitanError: the master refused.
        """
        self.pending += 1
        is_repeat = False
        try:
            while True:
                line = await self._open()
                answers = line.ask(make(is_repeat), attachments)
                is_repeat = True
                try:
                    while True:
                        async with asyncio.timeout(patience):
                            answer = await answers.get()
                        if isinstance(answer, TitanError):
                            raise answer
                        assert answer.message is not None
                        if isinstance(answer.message, msg.Error):
                            error = error_from(answer.message)
                            if error.retryable:
                                await asyncio.sleep(self.rng.random() * PAUSE)
                                break
                            raise error
                        if is_last(answer.message):
                            return answer
                except (TimeoutError, ConnectionLost):
                    self._drop(line)
                    await asyncio.sleep(self.rng.random() * PAUSE)
        finally:
            self.pending -= 1

    def _once(self) -> Callable[[bool], msg.Once]:
        self._counter += 1
        counter = self._counter
        return lambda is_repeat: msg.Once(self.name, counter, is_repeat)

    # ------------------------------------------------------------ what it does

    async def submit(self, shape: Shape) -> int:
        once = self._once()
        self.notes.submit_asked(once(False), shape.graph)
        self.notes.asks()
        answer = await self.ask(lambda repeat: msg.Submit(graph=shape.graph, once=once(repeat)), shape.payloads)
        assert isinstance(answer, msg.Accepted)
        self.notes.submit_acknowledged(once(False), answer.run)
        return answer.run

    async def wait(self, run: int, patience: float = 60.0) -> msg.Update:
        answer = await self.ask(
            lambda _: msg.Watch(run), is_last=lambda m: isinstance(m, msg.Update) and m.final, patience=patience
        )
        assert isinstance(answer, msg.Update)
        self.notes.told(run, answer)
        return answer

    async def cancel(self, run: int, task: str = "", member: int = -1) -> None:
        once = self._once()
        self.notes.asks()
        try:
            answer = await self.ask(lambda repeat: msg.Cancel(run, task, member, once(repeat)))
        except NothingToDo:
            await self._is_refused_again(msg.Cancel(run, task, member, once(True)))
            return
        assert answer == msg.Accepted(run), f"a cancel of run {run} is answered with {answer}"
        self.notes.cancel_acknowledged(run, task, member)

    async def retry(self, run: int, task: str = "") -> None:
        once = self._once()
        self.notes.asks()
        try:
            answer = await self.ask(lambda repeat: msg.Retry(run, task, -1, once(repeat)))
        except NothingToDo:
            return
        assert answer == msg.Accepted(run), f"a retry of run {run} is answered with {answer}"

    async def _is_refused_again(self, request: msg.Cancel) -> None:
        """A request that was refused has no key in the books: sent once more, it is judged once more. The next master
        may judge otherwise: a refusal promises nothing, and what it rested on may have gone with the one before."""
        epoch = self._epoch
        try:
            answer = await self.ask(lambda _: request)
        except NothingToDo:
            return
        assert self._epoch != epoch, f"{request} is refused, and then answered with {answer}"
        self.notes.cancel_acknowledged(request.run, request.task, request.member)

    async def show(self, run: int) -> None:
        cursor = ""
        while True:
            question = msg.Show(run, cursor=cursor)
            shown = await self.ask(lambda _, question=question: question)  # type: ignore[misc]
            assert isinstance(shown, msg.Shown)
            self.notes.shown(shown)
            cursor = shown.next
            if not cursor:
                return

    async def results(self, run: int, task: str) -> None:
        """What a task or all members of an array gave, page by page."""
        at, cursor = 0, ""
        while True:
            question = msg.Results(run, task, cursor=cursor)
            answer = await self.ask_whole(lambda _, question=question: question)  # type: ignore[misc]
            assert isinstance(answer.message, msg.Given)
            self.notes.given(run, task, at, answer.message, answer.attachments)
            at, cursor = at + len(answer.attachments), answer.message.next
            if not cursor:
                return

    # ------------------------------------------------------------ keys

    async def get(self, name: str) -> None:
        since = self.program.world.now
        try:
            answer = await self.ask_whole(lambda _: msg.KvGet(name))
        except NoSuchKey:
            self._revisions[name] = 0
            self.notes.key_not_seen(name, since)
            return
        assert isinstance(answer.message, msg.KvValue)
        self._revisions[name] = answer.message.revision
        if answer.message.durable:
            self.notes.key_seen(name, since, answer.message.revision, answer.attachments[0])

    async def set(self, name: str, *, is_removal: bool = False, expect: int = -1, ttl: float = 0.0) -> None:
        once = self._once()
        value = None if is_removal else f"{self.name} {self._counter}".encode()
        self.notes.key_asked(once(False), Wish(name, value, expect, ttl, self.program.world.now))
        self.notes.asks()
        parts = () if value is None else (value,)
        try:
            answer = await self.ask(
                lambda repeat: msg.KvSet(name=name, expect=expect, ttl=ttl, once=once(repeat)), parts
            )
        except (Conflict, NoSuchKey) as error:
            self.notes.key_refused(once(False), error.code)
            return
        assert isinstance(answer, msg.KvDone)
        self._revisions[name] = 0 if value is None else answer.revision
        self.notes.key_acknowledged(once(False), answer.revision)

    async def _use_keys(self, seconds: float) -> None:
        """Set, compare and set, remove and look, the same few keys as everybody, for so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await asyncio.sleep(6.0 * self.rng.expovariate(1.0))
            name, luck = self.rng.choice(KEYS), self.rng.random()
            if luck < 0.2:
                await self.set(name, ttl=self.rng.choice((0.0, *TTLS)))
            elif luck < 0.6:
                await self.set(name, expect=self._revisions[name], ttl=self.rng.choice((0.0, 0.0, 0.0, *TTLS)))
            elif luck < 0.7:
                await self.set(name, is_removal=True, expect=self.rng.choice((-1, self._revisions[name])))
            else:
                await self.get(name)
        for name in KEYS:
            await self.get(name)

    # ------------------------------------------------------------ its day

    async def live(self, shapes: Sequence[Shape], seconds: float) -> None:
        """Submit these graphs at random times within so many seconds, and look after each of them."""
        cares = [self.program.main(self._use_keys(seconds))]
        times = sorted(seconds * self.rng.random() for _ in shapes)
        for shape, when, before in zip(shapes, times, [0.0, *times], strict=False):
            await asyncio.sleep(when - before)
            cares.append(self.program.main(self._care(shape)))
        await asyncio.gather(*cares)

    async def _care(self, shape: Shape) -> None:
        run = await self.submit(shape)
        mood = self.rng.random()
        if mood < 0.25 or shape.is_endless:
            await asyncio.sleep(self.rng.random() * 40)
            if shape.is_endless or self.rng.random() < 0.5:
                await self.cancel(run)
            else:
                await self.cancel(run, *self.a_task(shape))
            if self.rng.random() < 0.3 and not shape.is_endless:
                await self.retry(run)
        elif mood < 0.45:
            await self._begin_again_when_nobody_answers(run)
        cares = [self.program.main(self._change_my_mind(run, shape))] if shape.functions else []
        nosy = asyncio.create_task(self._look_often(run)) if mood > 0.6 else None
        update = await self.wait(run)
        await asyncio.gather(*cares)
        if nosy is not None:
            nosy.cancel()
        if update.state != "COMPLETED" and self.rng.random() < 0.5 and not shape.is_endless:
            await asyncio.sleep(self.rng.random() * 5)
            await self.retry(run)
            await self.wait(run)
        await self.show(run)
        for task in shape.functions:
            await self.results(run, task.name)

    async def _begin_again_when_nobody_answers(self, run: int) -> None:
        """As people do who think that it hangs: by then the next master does not know yet what runs."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._was_cut_off.wait(), 60)
            await self.cancel(run)
            await self.wait(run)
            await self.retry(run)

    async def _look_often(self, run: int) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 8)
            answer = await self.ask(lambda _: msg.Show(run, limit=30))
            assert isinstance(answer, msg.Shown)
            self.notes.shown(answer)

    async def _change_my_mind(self, run: int, shape: Shape) -> None:
        """Some of it is not wanted any more, soon after it was, or much later."""
        if self.rng.random() < 0.5:
            for _ in range(self.rng.randrange(1, 8)):
                await asyncio.sleep(self.rng.choice((0.003, 0.1, 3.0)) * self.rng.expovariate(1.0))
                await self.cancel(run, *self.a_task(shape))

    def a_task(self, shape: Shape) -> tuple[str, int]:
        task = self.rng.choice(shape.graph.tasks)
        return task.name, self.rng.randrange(task.count) if task.array and self.rng.random() < 0.7 else -1
