"""What an agent touches of the world: files, processes, clocks, chance. The only place where it is chosen.

`ThisMachine` is the real one. A simulation gives its `Agent` another, which keeps files and processes in memory;
timers and connections come from the running event loop in both. Knows nothing of attempts or of the master.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from titan_fast.config import WorkerSettings, home
from titan_fast.errors import StateLocked
from titan_fast.protocol.connection import Incoming
from titan_fast.worker.command import inherit, with_own_programs
from titan_fast.worker.door import Door
from titan_fast.worker.executors.base import Clocks, Executor, Observer, now
from titan_fast.worker.executors.functions import Functions, Runner
from titan_fast.worker.executors.functions import Observer as FunctionObserver
from titan_fast.worker.executors.warm import WarmExecutor
from titan_fast.worker.exits import Exits
from titan_fast.worker.journal import Journal, JournalFile, boot_id
from titan_fast.worker.keeper import KEEPER_PID
from titan_fast.worker.output import Emit, Shipper
from titan_fast.worker.projects import Projects
from titan_fast.worker.workspace import Workspace

MAX_UNNAMED = 1000


class Files(Protocol):
    """The worker's directory, opened (`workspace.Workspace`)."""

    worker_id: str
    history: str

    def remember_history(self, name: str) -> None: ...
    def runs(self) -> list[int]: ...
    def place_of_run(self, run: int) -> str: ...
    def working_copy(self, run: int) -> str: ...
    def attempt_dir(self, fence: int, make: bool = True) -> str: ...
    def remove_attempt(self, fence: int) -> None: ...
    def keep_attempts(self, fences: Collection[int]) -> None: ...
    def has_room(self) -> bool: ...
    def close(self) -> None: ...


class Copies(Protocol):
    """Who makes the working copies of runs (`projects.Projects`)."""

    def is_ready(self, run: int) -> bool: ...
    async def prepare(self, run: int, project: str) -> str: ...
    def answered(self, incoming: Incoming) -> None: ...
    def ask_again(self) -> None: ...
    def forget(self, run: int) -> None: ...


class Shipping(Protocol):
    """Who sends what attempts write (`output.Shipper`)."""

    def add(self, fence: int, path: str, sent: int = 0) -> None: ...
    def finish(self, fence: int, total: int) -> None: ...
    def forget(self, fence: int) -> None: ...
    def rewind(self, fence: int, offset: int) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Machine(Protocol):
    """Where one agent lives. Made for it, and gone with it."""

    name: str
    """The worker's name."""
    nonce: str
    """Random for every start of an agent."""
    random: random.Random
    environ: Mapping[str, str]
    has_signals: bool
    """SIGINT and SIGTERM ask the agent to stop; without them `Agent.stop` does."""
    files: Files
    journal: Journal

    def executor(self, observer: Observer) -> Executor: ...
    def functions(self, observer: FunctionObserver, slots: int) -> Runner: ...
    def shipper(self, emit: Emit) -> Shipping: ...
    def copies(self, send: Callable[[bytes], None]) -> Copies: ...

    def clocks(self) -> Clocks:
        """Now."""

    def pulse(self) -> tuple[float, int]:
        """(load, available bytes of memory)."""


class ThisMachine:
    """The machine this process runs on (the contract is `Machine`)."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Takes the work directory into use.

        Raises:
            StateLocked: another agent is using it.
            InvalidUsage: it cannot be used.
        """
        self._settings = settings
        self._workspace, self.name = _open_workspace(settings)
        self.files: Files = self._workspace
        self.nonce = secrets.token_hex(8)
        self.random: random.Random = random.SystemRandom()
        self.journal = Journal(JournalFile(self._workspace.root / "attempts.journal"), boot_id())
        self.environ: Mapping[str, str] = os.environ
        self.has_signals = True
        self._exits = Exits.of_keeper(os.environ)

    def executor(self, observer: Observer) -> Executor:
        settings = self._settings
        inherited = with_own_programs(inherit(self.environ, settings.environment))
        limit = settings.file_limit
        return WarmExecutor(observer, env=inherited, file_limit=limit, recorder=self.journal, exits=self._exits)

    def functions(self, observer: FunctionObserver, slots: int) -> Runner:
        root = self._workspace.root
        limit = self._settings.file_limit
        return Functions(observer, slots, f"{root}/functions", f"{root}/attempts", file_limit=limit)

    def shipper(self, emit: Emit) -> Shipping:
        return Shipper(emit, limit=self._settings.output_limit)

    def copies(self, send: Callable[[bytes], None]) -> Copies:
        return Projects(self._workspace, send)

    def door(self, addresses: list[tuple[str, int]], find_token: Callable[[], str]) -> Door:
        return Door(self._workspace.root, self._workspace.worker_id, addresses, find_token)

    def clocks(self) -> Clocks:
        return now()

    def attached(self) -> None:
        """The master knows this worker's agent: so should its keeper."""
        if self._exits is not None:
            self._exits.up()

    def pulse(self) -> tuple[float, int]:
        return os.getloadavg()[0], _available()


def _available() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    import psutil  # large, and needed only where there is no such file

    return int(psutil.virtual_memory().available)


def _open_workspace(settings: WorkerSettings) -> tuple[Workspace, str]:
    """The work directory, locked, and the worker's name; unnamed workers of one machine are numbered."""
    if settings.name or settings.work_dir:
        name = settings.name or _host()
        workspace = _workspace(settings, Path(settings.work_dir or home() / "work" / name))
        workspace.open()
        return workspace, name
    names = [_host(), *(f"{_host()}-{number}" for number in range(2, MAX_UNNAMED + 1))]
    # What an earlier agent of the same keeper left is in its directory, and in no other.
    keeper = os.environ.get(KEEPER_PID, "")
    for name in sorted(names, key=lambda name: not keeper or _keeper_of(home() / "work" / name) != keeper):
        workspace = _workspace(settings, home() / "work" / name)
        try:
            workspace.open()
        except StateLocked:
            continue
        (workspace.root / "keeper").write_text(keeper)
        return workspace, name
    raise StateLocked(f"{MAX_UNNAMED} unnamed workers run on this machine already", hint="name this one with --name")


def _keeper_of(root: Path) -> str:
    try:
        return (root / "keeper").read_text("ascii", "replace")
    except OSError:
        return ""


def _workspace(settings: WorkerSettings, root: Path) -> Workspace:
    return Workspace(root, max_project_bytes=settings.project_limit)


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "worker"
