"""One peer: its transport, its connection's state machine, its place in the output commit, its back-pressure.

A session proves the peer (HELLO, CHALLENGE, PROOF, WELCOME), then hands every message to the pump. It knows nothing
of runs or tasks, but that one that speaks for an attempt ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from titan_fast._layout import MAX_BODY, OLD_VERSION
from titan_fast._version import __version__
from titan_fast.errors import BadProof, Busy, Refused, TitanError, WrongVersion
from titan_fast.ids import format_fence
from titan_fast.master import attempts
from titan_fast.master.sabotage import ACKNOWLEDGE_BEFORE_COMMIT, VERDICT_BEFORE_COMMIT
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, Incoming, old_version_error, send, send_error
from titan_fast.protocol.messages import Message
from titan_fast.protocol.opcodes import Role
from titan_fast.protocol.opening import Reception

if TYPE_CHECKING:
    from titan_fast.master.server import Master

LINGER = 5.0
"""Seconds a peer has to read our last words."""

log = logging.getLogger("titan_fast.session")


class Session(asyncio.Protocol):
    """A connection from a client, a worker or a task."""

    def __init__(self, master: Master) -> None:
        self.master = master
        self.connection = Connection(Role.STRANGER)
        self.role = Role.STRANGER
        self.address = ""
        self.worker = ""
        """Id of the worker that attached over this session."""
        self.nonce = ""
        self.fence = 0
        """The attempt that a session of role ``task`` speaks for."""
        self.known_specs: dict[int, set[int]] = {}
        """Run -> specs that were described to this worker, and are still as they were."""
        self.acknowledge = -1
        """Sequence of the last RESULT frame, to be acknowledged with this turn's facts."""
        self.fetches = False
        """A worker that can be asked for parts of outputs."""
        self.attaching = False
        """An ATTACH is here and its VERDICT not yet made: nothing overtakes it."""
        self.attached_at = 0
        """Position of the verdict: what follows it leaves after it."""
        self.choked = False
        """The peer does not drain what we wrote."""
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self.waiting_bytes = 0
        """Of what was said and has not left, because a fact it rests on is not durable."""
        self._out: list[tuple[int, bytes]] = []
        """(position of the fact it waits for, frame), in the order they were said in."""
        self.promised = 0
        """The newest fact this peer waits to be told of."""
        self._patient: dict[int, tuple[int, bytes]] = {}
        """Request -> (position, frame): first words of an answer that its last words may make needless."""
        self._attached: list[bytes] = []
        self._reception = Reception(self._token_of)
        self._holder = ""
        """Id of the worker where that attempt is open."""
        self._timer: asyncio.TimerHandle | None = None
        self._choke_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        limits = self.master.settings.limits
        try:
            self.master.admit_stranger(self)
        except Busy as error:
            self.refuse(error)
            return
        self._transport.set_write_buffer_limits(high=1 << 20)
        self._timer = asyncio.get_running_loop().call_later(limits.hello_timeout, self._never_proved)

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        if self.worker:
            self.master.liveness.beat(self.worker)
        for incoming in self.connection.receive(data):
            if self.closed:
                return
            if self.role is Role.STRANGER:
                self._prove(incoming)
            elif self.fence and not attempts.is_open(self.master.scheduler.state, self._holder, self.fence):
                # It may be open again when its worker has attached anew; the task asks again, and hears what is true.
                log.info("%s: the attempt is not open any more", self.describe())
                self.abort()
                return
            else:
                self.master.pump.arrived(self, incoming)
        if self.connection.broken is not None and not self.closed:
            self.refuse(self.connection.broken)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.connection.close()
        for timer in (self._timer, self._choke_timer):
            if timer is not None:
                timer.cancel()
        self._out.clear()
        self._patient.clear()
        self.waiting_bytes = 0
        # With the collector off a cycle would stay: what proves the peer holds the way to our tokens, and so us.
        del self._reception
        self.master.session_closed(self)

    def pause_writing(self) -> None:
        self.choked = True
        seconds = self.master.settings.limits.undrained_seconds
        self._choke_timer = asyncio.get_running_loop().call_later(seconds, self._never_drained)

    def resume_writing(self) -> None:
        self.choked = False
        if self._choke_timer is not None:
            self._choke_timer.cancel()
        self.master.session_drained(self)

    def _never_drained(self) -> None:
        log.warning("%s does not read what it is sent; dropped", self.describe())
        self.abort()

    # ------------------------------------------------------------ who it is

    def _prove(self, incoming: Incoming) -> None:
        try:
            self._write(self._reception.take(incoming))
            if self._reception.hello is not None and self._reception.is_proved:
                self._enter(self._reception.hello, incoming.request)
        except TitanError as error:
            self.refuse(error, incoming.request)

    def _token_of(self, hello: msg.Hello) -> str:
        if hello.cluster and hello.cluster != self.master.cluster:
            raise Refused("this master belongs to another cluster", hint="its state directory is not the one it was")
        if hello.fence and hello.token != Role.WORKER:
            raise Refused("only a worker may speak for an attempt", hint="go through the worker's TITAN_AGENT")
        return self.master.tokens.get(hello.token, "")

    def _enter(self, hello: msg.Hello, request: int) -> None:
        """The token is proved: the peer has its role."""
        if hello.fence:
            self._speak_for(hello.fence)
        elif hello.epoch > self.master.epoch:
            self.master.raise_epoch(hello.epoch)
        if self._timer is not None:
            self._timer.cancel()
        self.role = Role.TASK if self.fence else Role(hello.token)
        limits = self.master.settings.limits
        self.connection.open(self.role, max_message=limits.max_message, budget=self.master.budget)
        self.master.stranger_proved(self)
        self._write(
            send(
                msg.Welcome(
                    str(self.role),
                    self.master.cluster,
                    self.master.epoch,
                    __version__,
                    MAX_BODY,
                    self.connection.max_message,
                    self.master.store.history,
                    self.master.settings.scheduler.heartbeat,
                    self.master.nonce,
                ),
                request=request,
                is_reply=True,
            )
        )

    def _speak_for(self, fence: int) -> None:
        self._holder = attempts.holder_of(self.master.scheduler.state, fence)
        if not self._holder:
            raise Refused(
                f"attempt {format_fence(fence)} is not open at this master",
                hint="it has ended or was lost, or its worker has not told of it yet",
            )
        self.fence = fence

    def _never_proved(self) -> None:
        if self.role is Role.STRANGER:
            self.refuse(Busy("no HELLO and proof in time"))

    def refuse(self, error: TitanError, request: int = 0) -> None:
        """Say why, in the peer's own version, and hang up."""
        hello = self._reception.hello
        if isinstance(error, BadProof) and hello is not None:
            log.warning("%s does not know the %s token", self.address, hello.token)
        log.info("%s refused: %s", self.describe(), error)
        if isinstance(error, WrongVersion) and error.version == OLD_VERSION and hello is None and not request:
            self._write(old_version_error(error))
        else:
            self._write(send_error(error, request))
        self.close()

    # ------------------------------------------------------------ out

    def send(self, frame: bytes) -> None:
        """Leaves with this turn, whatever is durable: echoes, refusals; behind a verdict that waits, though."""
        self.send_after(self.attached_at, frame)

    def send_work(self, position: int, frame: bytes) -> None:
        """A spec or an assignment: leaves when the fact at ``position`` is durable (0: at once)."""
        self.send_after(max(position, self.attached_at), frame)

    def send_after(self, position: int, frame: bytes, *, is_urgent: bool = True) -> None:
        """Leaves when the fact at ``position`` is durable, and is a reason to commit it now unless it is not urgent.
        What may leave does so in the order it was said in."""
        if self.attaching:
            self._attached.append(frame)
        else:
            self._out.append((position, frame))
            self.waiting_bytes += len(frame)
            if is_urgent:
                self.promised = max(self.promised, position)
        self.master.pump.touched[self] = None

    def send_when_durable(self, frame: bytes, *, is_urgent: bool = True) -> None:
        """Leaves when every fact made so far is durable."""
        early = ACKNOWLEDGE_BEFORE_COMMIT in self.master.sabotage
        self.send_after(self.attached_at if early else self.master.pump.position, frame, is_urgent=is_urgent)

    def withdraw(self, position: int, frame: bytes) -> bool:
        """Take back what waits for the fact at ``position``; False when it has left."""
        try:
            self._out.remove((position, frame))
        except ValueError:
            return False
        self.waiting_bytes -= len(frame)
        return True

    def attach(self, verdict: Message, request: int) -> None:
        """The verdict, and behind it what was held back for it."""
        self.attaching = False
        self.attached_at = 0 if VERDICT_BEFORE_COMMIT in self.master.sabotage else self.master.pump.position
        self.send_after(self.attached_at, send(verdict, request=request, is_reply=True))
        held, self._attached = self._attached, []
        for frame in held:
            self.send_when_durable(frame)

    def reply(self, message: Message, request: int, attachments: tuple[bytes, ...] = ()) -> None:
        early = self._patient.pop(request, None) if self._patient else None
        if early is not None:
            self.waiting_bytes -= len(early[1])
        self.send_when_durable(send(message, attachments, request, is_reply=True))

    def reply_early(self, message: Message, request: int) -> None:
        """The first words of an answer. They leave when they are durable, are no reason for a commit, and give way to
        a `reply` that is there before."""
        frame = send(message, request=request, is_reply=True)
        self._patient[request] = self.master.pump.position, frame
        self.waiting_bytes += len(frame)
        self.master.pump.touched[self] = None

    def refuse_request(self, error: TitanError, request: int) -> None:
        """A refusal promises nothing, so it need not wait."""
        self.send(send_error(error, request))

    def flush(self, durable: int) -> bool:
        """One write for all that may leave. True when something still waits for the disk."""
        if not (self._out or self._patient):
            return False
        was_full = self.waiting_bytes > self.master.settings.limits.undrained // 4
        out, self._out = self._out, []
        ready = [frame for position, frame in out if position <= durable]
        if len(ready) < len(out):
            self._out = [item for item in out if item[0] > durable]
        if self._patient:
            # In front: what else answers these requests comes after.
            early, self._patient = self._patient, {}
            ready[:0] = [frame for position, frame in early.values() if position <= durable]
            self._patient = {request: item for request, item in early.items() if item[0] > durable}
        self.waiting_bytes = sum(len(frame) for _, frame in (*self._out, *self._patient.values()))
        if ready:
            self._write(b"".join(ready))
        if was_full and self.waiting_bytes <= self.master.settings.limits.undrained // 4:
            asyncio.get_running_loop().call_soon(self.master.session_drained, self)
        return bool(self._out or self._patient) and not self.closed

    def _write(self, data: bytes) -> None:
        if self._transport is None or self.closed or not data:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self.master.settings.limits.undrained:
            self._never_drained()

    # ------------------------------------------------------------ in and away

    def rest(self) -> bool:
        """Stop reading for now; True when it was reading."""
        if self._transport is None or self.closed or not self._transport.is_reading():
            return False
        self._transport.pause_reading()
        return True

    def resume(self) -> None:
        if self._transport is not None and not self.closed:
            self._transport.resume_reading()

    def close(self) -> None:
        """Let what is written leave, then hang up; a peer that does not read it is not waited for long."""
        if not self.closed and self._transport is not None:
            self.closed = True
            self._transport.close()
            if self._timer is not None:
                self._timer.cancel()
            # Cancelled when it has hung up: whoever is refused again and again would be kept that long each time.
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self.closed = True
            self._transport.abort()

    def describe(self) -> str:
        return f"{self.worker or self.role} at {self.address or 'unknown'}"

    def __repr__(self) -> str:
        return f"<Session {self.describe()}>"
