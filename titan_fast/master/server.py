"""The master process: wires the parts, starts them, drains them, stops them. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import ipaddress
import logging
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from titan_fast.config import Settings, home, token_path
from titan_fast.errors import Busy, DiskFull, InvalidUsage, PortTaken, Refused, StateLocked, StoreFailed
from titan_fast.master.artifacts import BlobStore
from titan_fast.master.committer import SWITCH_INTERVAL, Committer, InlineCommitter, ThreadCommitter
from titan_fast.master.data import Data
from titan_fast.master.effects import Effects
from titan_fast.master.garden import Garden
from titan_fast.master.history import History
from titan_fast.master.intake import Intake
from titan_fast.master.liveness import Liveness
from titan_fast.master.logs import LogStore
from titan_fast.master.pump import Pump
from titan_fast.master.queries import Queries
from titan_fast.master.sabotage import FENCES_REUSED, OLD_ATTACH_ACCEPTED, STALE_SESSION_ACCEPTED
from titan_fast.master.session import Session
from titan_fast.master.space import BALLAST, Space
from titan_fast.master.store.base import Opened, Store
from titan_fast.master.store.bodies import sync_folder
from titan_fast.master.store.memory import MemoryStore
from titan_fast.master.store.sqlite import SqliteStore
from titan_fast.master.watch import Collectors, Followers, Watchers
from titan_fast.model.archive import mark_private
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Budget
from titan_fast.protocol.opcodes import Role
from titan_fast.scheduler.core import Scheduler
from titan_fast.scheduler.events import StopRequested
from titan_fast.scheduler.state import Tuning

log = logging.getLogger("titan_fast.master")

DEAD_AGENT = 3
"""Heartbeats that a worker's agent must have missed for another one to take its place while its connection is open: a
machine that lost its power says no goodbye, and two live agents of one work directory are a mistake."""
MAX_EPOCHS_AHEAD = 100_000
"""A worker that has seen a later epoch than ours is believed up to here."""
SPARE_FILES = 64
"""Descriptors that no connection gets: the store, which ends the master when it cannot open a file, and uploads."""


class Master:
    """One master. `start` listens, `stop` ends in order; everything in between is the pump's."""

    def __init__(
        self,
        settings: Settings,
        store: Store | None = None,
        *,
        committer: Callable[[Store, Callable[[], int], Pump], Committer] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        seed: int | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        sabotage: frozenset[str] = frozenset(),
    ) -> None:
        """Everything after ``store`` is for a simulation, which has its own disk, clocks, chance and end."""
        self.settings = settings
        self._given_store = store
        self._make_committer = committer
        self._clock, self._wall = clock, wall
        self._seed = random.SystemRandom().getrandbits(64) if seed is None else seed
        self.sabotage = sabotage
        """Faults built in on purpose, by name, to see a test go red (`master.sabotage`)."""
        self._on_failure = on_failure or _end_at_once
        self.state_dir = Path(settings.master.state_dir or home() / "state").absolute()
        self.started_at = wall()
        self.cluster = ""
        self.epoch = 0
        self.nonce = ""
        self.nonces: dict[int, str] = {}
        """Epochs of this state, and their nonces: what was assigned under others was not assigned by us."""
        self.host = settings.master.host
        self.port = settings.master.port
        self.tokens: dict[str, str] = {}
        self.token_files: list[Path] = []
        self.budget = Budget(settings.limits.unfinished)
        self.sessions: dict[Session, None] = {}
        """Whoever is connected, in the order of coming: what happens to all of them happens in that order."""
        self.worker_sessions: dict[str, Session] = {}
        self.newest_connections: dict[str, tuple[str, int]] = {}
        """Worker -> (nonce of its agent, number of the connection), also when nobody is there any more."""
        self._store_epoch = 0
        """Of the store, which has a new one a moment before we do."""
        self._is_raising = False
        self._full_at = -1
        """What was durable when the disk was full last."""
        self._strangers: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._lock: IO[str] | None = None

    # ------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Raises InvalidUsage, StateLocked, PortTaken, StoreFailed, DiskFull."""
        try:
            await self._start()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no space is left on the disk of {self.state_dir}", hint="make room there") from None
            raise InvalidUsage(f"cannot use the state directory {self.state_dir}: {error}") from None
        except UnicodeError as error:
            raise InvalidUsage(f"a file in the state directory {self.state_dir} is damaged: {error}") from None

    async def _start(self) -> None:
        if not _is_loopback(self.host):
            raise InvalidUsage(
                f"--host {self.host} is not loopback, and other machines can only be served over TLS, which this "
                "version does not have",
                hint="use 127.0.0.1 and an ssh tunnel (ssh -L 9090:127.0.0.1:9090 HOST)",
            )
        self._lock_state()
        loop = asyncio.get_running_loop()
        self.loop_name = type(loop).__module__.partition(".")[0]
        self.store = self._given_store or self._open_store()
        is_kept = self.store.durability != "memory"
        self.space = Space(self.state_dir, self.settings.store.free_space, BALLAST if is_kept else 0)
        try:
            opened = self.store.open()
        except DiskFull:
            self.space.release()
            opened = self.store.open()
        self.space.restore()
        self._begin_epoch(opened)
        self.cluster = self._cluster_id()
        scheduler = self.settings.scheduler
        tuning = Tuning(
            crash_limit=scheduler.crash_limit,
            prefetch=scheduler.prefetch,
            recall_after=scheduler.recall_after,
            keep_copies=scheduler.keep_copies,
            recovery_grace=scheduler.recovery_grace,
            kv_bytes=self.settings.limits.kv,
            sabotage=self.sabotage,
        )
        epoch = 1 if FENCES_REUSED in self.sabotage else self.epoch
        self.scheduler = Scheduler(epoch, self._seed, tuning)
        limits = self.settings.limits
        self.pump = Pump(
            self.scheduler, self._on_failure, self._disk_is_full, limits.uncommitted, self._clock, self._wall
        )
        self.pump.committer = self._new_committer()
        self.history = History(self.store, self.pump.committer, self.scheduler)
        self.data = Data(self)
        self.blobs = BlobStore(self.state_dir / "blobs", limits.project)
        self.logs = LogStore(self.state_dir / "logs", limits.log_head, limits.log_tail, fresh=not is_kept)
        self.queries = Queries(self)
        self.watchers = Watchers(self)
        self.followers = Followers(self)
        self.collectors = Collectors(self)
        self.intake = self.pump.intake = Intake(self)
        self.effects = self.pump.effects = Effects(self)
        self.liveness = Liveness(self.pump, scheduler, self.worker_lost)
        self.garden = Garden(self)
        try:
            # Before the state is read: who dials us meanwhile is in the backlog, and not asleep until its next try.
            self._server = await loop.create_server(lambda: Session(self), self.host, self.port, backlog=1024)
        except OSError as error:
            self.liveness.stop()
            self.garden.close()
            self.pump.stop()
            self.pump.committer.close()
            self.store.close()
            raise PortTaken(self.host, self.port) from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._write_tokens()
        self._go_on()

    def _open_store(self) -> Store:
        durability = self.settings.store.durability
        if durability == "memory":
            return MemoryStore()
        return SqliteStore(self.state_dir, durability)

    def _new_committer(self) -> Committer:
        make = self._make_committer
        if make is None:
            make = InlineCommitter if self.store.durability == "memory" else ThreadCommitter
        return make(self.store, lambda: self._store_epoch, self.pump)

    def _go_on(self) -> None:
        """From what the store knows: unfinished runs wait for the workers that were alive."""
        loaded = self.store.load()
        self.scheduler.advance(self._clock(), self._wall())
        self.scheduler.restore(loaded.next_run, loaded.revision, loaded.workers, loaded.keys, loaded.runs)
        unfinished = len(self.scheduler.state.runs)
        if unfinished and loaded.workers:
            log.warning(
                "%d unfinished runs go on when the %d workers that were alive are back, or after %g s",
                unfinished,
                len(loaded.workers),
                self.settings.scheduler.recovery_grace,
            )
        for worker in loaded.workers:
            self.liveness.expect(worker.worker)
        self.pump.wake()

    def raise_epoch(self, seen: int) -> NoReturn:
        """A worker has seen a later epoch: this state is an old copy that somebody put back. Whatever was assigned
        since is not ours, and our fences must be above it. The worker comes again when the store has a new epoch.

        Raises:
            Busy: soon. Refused: no state was ever opened that often.
        """
        if seen > self.epoch + MAX_EPOCHS_AHEAD:
            raise Refused(f"a worker says it has seen epoch {seen}; this master is at {self.epoch}")
        if not self._is_raising:
            log.warning("a worker has seen epoch %d, this state is of epoch %d: it is an old copy", seen, self.epoch)
            self._is_raising = True
            self.pump.committer.call(lambda: self._raise_in_store(seen + 1), self._raised)
        raise Busy("this state is an old copy and takes a new epoch first", hint="come again in a moment")

    def _raise_in_store(self, epoch: int) -> Opened:
        """In the store's thread: the next commit is of the new epoch already."""
        opened = self.store.raise_epoch(epoch)
        self._store_epoch = opened.epoch
        return opened

    def _raised(self, opened: object) -> None:
        self._is_raising = False
        if not isinstance(opened, Opened):
            if not isinstance(opened, DiskFull):
                self.pump.store_failed(StoreFailed(str(opened)))
            return
        self._begin_epoch(opened)
        self.scheduler.begin_epoch(self.epoch)
        for session in list(self.sessions):
            if session.role is Role.WORKER:  # attached or about to be: it was welcomed by the epoch before
                session.abort()  # it comes back and learns of the new one

    def _begin_epoch(self, opened: Opened) -> None:
        self.epoch, self.nonce, self.nonces = opened.epoch, opened.nonce, opened.nonces
        self._store_epoch = opened.epoch

    def check_space(self, upload: int = 0) -> None:
        """Raises DiskFull."""
        if self.pump.is_stuck:
            raise DiskFull(
                f"the disk of {self.state_dir} does not keep up: what was accepted before waits to be written",
                hint="try again in a moment; titan-fast doctor looks at the disk",
            )
        self.space.check(sum(batch.size for batch in self.pump.committer.pending), upload)

    def refusing(self) -> str:
        """Why nothing new is accepted; empty: it is."""
        try:
            self.check_space()
        except DiskFull as error:
            return error.message
        return ""

    def _disk_is_full(self, error: DiskFull) -> None:
        if self._full_at != self.pump.durable:  # it is tried again four times a second
            self._full_at = self.pump.durable
            log.error("%s: what was accepted waits, and is written when there is room", error)
        self.space.release()

    def _lock_state(self) -> None:
        """One master per state directory. The lock dies with the process and is not inherited by what it starts."""
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            mark_private(self.state_dir)
            self._lock = (self.state_dir / "lock").open("a+")
        except OSError as error:
            raise InvalidUsage(f"cannot use the state directory {self.state_dir}: {error.strerror}") from None
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateLocked(
                f"another master uses the state directory {self.state_dir}",
                hint="stop it, or give this one its own with --state-dir",
            ) from None

    def _cluster_id(self) -> str:
        path = self.state_dir / "cluster"
        if not path.exists():
            _write_secret(path, secrets.token_hex(8))
        name = path.read_text("ascii").strip()
        if not name:
            raise InvalidUsage(f"{path}, the cluster's name, is empty", hint="take it from a backup; workers know it")
        return name

    def _write_tokens(self) -> None:
        """Tokens live with the state; where clients of this home look for them is a copy."""
        for role in ("client", "worker"):
            kept = self.state_dir / "tokens" / role
            if not kept.exists():
                _write_secret(kept, secrets.token_urlsafe(32))
            self.tokens[role] = kept.read_text("ascii").strip()
            if not self.tokens[role]:
                raise InvalidUsage(f"the token file {kept} is empty", hint="remove it: a new one is made at the start")
            place = token_path(self.host, self.port, role)
            _write_secret(place, self.tokens[role])
            self.token_files.append(place)

    async def stop(self, drain: float, hurry: asyncio.Event | None = None) -> None:
        """In order: place nothing new, let what runs finish for up to ``drain`` seconds (or until somebody is in a
        hurry), say what is known, hang up. What runs longer goes on: the next master is told of it."""
        running = sum(worker.held for worker in self.scheduler.state.workers.values() if worker.state != "LOST")
        if running:
            log.warning(
                "stopping: %d attempts may end within %g s; what runs longer goes on without us", running, drain
            )
        self.pump.happened(StopRequested())
        deadline = time.monotonic() + drain
        while time.monotonic() < deadline and self._in_flight() and not (hurry and hurry.is_set()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.liveness.stop()
        self.garden.close()
        if self._server is not None:
            self._server.close()
        self.pump.stop()
        durable = max(self.pump.durable, self.pump.committer.close())
        for session in list(self.sessions):
            session.flush(durable)
            session.close()
        await asyncio.sleep(0)
        self.store.close()
        for path in self.token_files:
            path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _in_flight(self) -> bool:
        return any(worker.held for worker in self.scheduler.state.workers.values() if worker.state != "LOST")

    # ------------------------------------------------------------ sessions

    @property
    def connections(self) -> int:
        return len(self.sessions)

    def admit_stranger(self, session: Session) -> None:
        """Raises Busy."""
        limits = self.settings.limits
        if (
            self._strangers.total() >= limits.strangers
            or self._strangers[session.address] >= limits.strangers_per_address
        ):
            raise Busy("too many connections that have not said who they are", hint="try again in a moment")
        if len(self.sessions) + SPARE_FILES >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            raise Busy(
                f"{len(self.sessions)} connections are all that this master has open files for",
                hint="raise the limit before it is started (ulimit -n)",
            )
        self._strangers[session.address] += 1
        self.sessions[session] = None

    def stranger_proved(self, session: Session) -> None:
        self._strangers[session.address] -= 1
        if not self._strangers[session.address]:
            del self._strangers[session.address]

    def attach(self, session: Session, message: msg.Attach) -> None:
        """Bind a session to a worker. The worker's order counts: a lower connection number is an old one.

        Raises:
            Refused: a second live agent with the same id, or a session older than the one we have.
        """
        if session.worker not in ("", message.worker):
            raise Refused("this connection belongs to another worker already")
        nonce, newest = self.newest_connections.get(message.worker, ("", 0))
        if nonce == message.nonce and message.connection < newest and OLD_ATTACH_ACCEPTED not in self.sabotage:
            raise Refused("a newer connection of this worker was there")
        old = self.worker_sessions.get(message.worker)
        if old is not None and old is not session:
            silence = self.liveness.silence(message.worker) or 0.0
            if (
                old.nonce != message.nonce
                and not old.closed
                and silence < DEAD_AGENT * self.settings.scheduler.heartbeat
            ):
                known = self.scheduler.state.workers.get(message.worker)
                raise Refused(
                    f"the id of this worker ({message.worker}) is that of "
                    f"{known.name if known is not None else 'another worker'} at {old.address}, which is connected",
                    hint="if its work directory is a copy, remove the file `id` in it or use another --work-dir; "
                    "else stop the other worker",
                )
            if STALE_SESSION_ACCEPTED not in self.sabotage:
                old.worker = ""
                old.abort()
        session.worker = message.worker
        session.nonce = message.nonce
        session.fetches = message.fetches
        self._remember(message)
        session.known_specs.clear()
        session.attaching = True
        self.worker_sessions[message.worker] = session
        self.liveness.attached(message.worker)

    def _remember(self, message: msg.Attach) -> None:
        """Of workers that nobody knows any more nothing is kept for long."""
        known, here, newest = self.scheduler.state.workers, self.worker_sessions, self.newest_connections
        if len(newest) > 2 * (len(known) + len(here)):
            for worker in [worker for worker in newest if worker not in known and worker not in here]:
                del newest[worker]
        self.newest_connections[message.worker] = (message.nonce, message.connection)

    def worker_left(self, session: Session) -> None:
        self.liveness.forget(session.worker)
        self.worker_sessions.pop(session.worker, None)
        session.worker = ""

    def worker_lost(self, worker: str) -> None:
        """Its work runs elsewhere. A connection that is still open ends, so that it attaches anew when it wakes up."""
        known = self.scheduler.state.workers.get(worker)
        if known is not None:
            log.warning("worker %s is lost: its %d attempts run elsewhere", known.name, known.held)
        session = self.worker_sessions.pop(worker, None)
        if session is not None:
            session.worker = ""
            session.abort()

    def session_closed(self, session: Session) -> None:
        if session in self.sessions:
            del self.sessions[session]
            if session.role == "stranger":
                self.stranger_proved(session)
        self.watchers.session_closed(session)
        self.followers.session_closed(session)
        self.collectors.session_closed(session)
        self.blobs.drop(session)
        if session.worker and self.worker_sessions.get(session.worker) is session:
            del self.worker_sessions[session.worker]
            self.liveness.closed(session.worker)

    def session_drained(self, session: Session) -> None:
        self.watchers.session_drained(session)
        self.followers.session_drained(session)
        self.collectors.session_drained(session)


async def run_master(settings: Settings, announce: Callable[[Master], None]) -> int:
    """Start a master, tell ``announce`` when it listens, serve until a signal, stop in order."""
    # While a large state is read nothing becomes garbage; and the store's thread must not wait for the loop.
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL)
    _raise_file_limit()
    master = Master(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    await master.start()
    announce(master)
    master.garden.collect_when_idle()
    await stop.wait()
    await master.stop(settings.master.drain, hurry)
    return 0


def _end_at_once(error: Exception) -> None:
    """After a failed commit nothing is known about what is on the disk, and trying again proves nothing (PostgreSQL,
    2018: a second fsync that succeeds). Whoever waits for an answer repeats his request to the next master."""
    log.critical("the store failed, this master ends at once: %s", error)
    logging.shutdown()
    os._exit(StoreFailed.exit_code)


def _raise_file_limit() -> None:
    """A connection is an open file, and the usual limit of a thousand is for programs that have a few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems have a lower one of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _write_secret(path: Path, text: str) -> None:
    """0600 from its first byte, and in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)
