"""A master and workers of one's own on this machine, as separate processes started by exec.

``titan-fast up`` keeps them in the foreground, ``run --local`` for one run, tests for one test. They die with whoever
started them, whatever ends it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from titan_fast.errors import InvalidUsage, NoMaster, TitanError, from_wire

START_TIMEOUT = 30.0
ON_PURPOSE = (0, 2, 3, 5, 70)
"""Exit codes with which a process ends because it means to; anything else was an accident."""
ACCIDENTS = 5
"""How many in a minute are mended; more have a reason that starting again does not remove."""
PROGRAM = (sys.executable, "-P", "-m", "titan_fast")


class LocalCluster:
    """Processes of one cluster.

    Args:
        home: its TITAN_HOME, with tokens, state and work directories below it.
        environ: further environment for all processes (settings by their variables).
        options: further options for the master, as on the command line.
    """

    def __init__(
        self,
        home: Path,
        *,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        quiet: bool = True,
    ) -> None:
        self.home = home
        self.environ = {**os.environ, **(environ or {}), "TITAN_HOME": str(home)}
        self.address = ""
        self.master: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._options = list(options)
        self._worker_options: dict[str, tuple[str, ...]] = {}
        self._accidents: list[float] = []
        self._quiet = quiet

    def __enter__(self) -> LocalCluster:
        self.start_master()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------ starting

    def start_master(self, port: int = 0) -> str:
        """Start the master and wait until it listens. Returns its address, ``host:port``.

        Raises:
            TitanError: what the master said when it could not start.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        try:
            self.master = self._start(
                ["master", "--port", str(port), "--ready-fd", str(writing), *self._options], (writing,)
            )
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            self.address = _read_ready(ready.fileno(), self.master)
        return self.address

    def start_worker(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker; it is there when it is there (`wait_for_workers`)."""
        self._worker_options[name] = options
        worker = self.workers[name] = self._start(["worker", "--master", self.address, "--name", name, *options])
        return worker

    def _start(self, arguments: Sequence[str], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C in the terminal reaches only us and we stop things in order."""
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                [*PROGRAM, *arguments, "--with-parent", str(os.getpid())],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log if self._quiet else None,
                stderr=log if self._quiet else None,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    # ------------------------------------------------------------ stopping

    def stop(self, timeout: float = 30.0) -> None:
        """In order: the workers take nothing more, finish what runs and report it; then the master goes."""
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers.values():
            _wait(worker, timeout)
        if self.master is not None:
            if self.master.poll() is None:
                self.master.send_signal(signal.SIGTERM)
            _wait(self.master, timeout)
        self.workers.clear()
        self.master = None

    def hurry(self) -> None:
        """A second request to stop: nobody waits for what runs."""
        for process in filter(None, [self.master, *self.workers.values()]):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)

    def revive(self) -> str:
        """Start again what was killed, on the state, the port and the work directory it had. Returns what it was, for
        people; empty when all are there.

        Raises:
            InvalidUsage: it ended because it meant to, or keeps dying.
        """
        gone = ""
        if self.master is not None and self.master.poll() is not None:
            gone = self._accident("the master", self.master.returncode)
            self.start_master(int(self.address.rpartition(":")[2]))
        for name, worker in list(self.workers.items()):
            if worker.poll() is not None:
                gone = self._accident(f"worker {name}", worker.returncode)
                self.start_worker(name, *self._worker_options[name])
        return gone

    def _accident(self, name: str, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        now = time.monotonic()
        self._accidents = [at for at in self._accidents if at > now - 60.0] + [now]
        if code in ON_PURPOSE or len(self._accidents) > ACCIDENTS:
            raise InvalidUsage(f"{name} {how}", hint="what it said stands above")
        return f"{name} {how}"


def _read_ready(fd: int, process: subprocess.Popen[bytes]) -> str:
    """``ok host:port`` or ``error code|message|hint`` from a starting master."""
    deadline = time.monotonic() + START_TIMEOUT
    text = b""
    while not text.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            process.kill()
            process.wait()
            raise NoMaster(f"the master did not start within {START_TIMEOUT:.0f} s")
        piece = os.read(fd, 4096)
        if not piece:
            process.wait()
            raise NoMaster(f"the master ended while it started (exit code {process.returncode})")
        text += piece
    word, _, rest = text.decode().strip().partition(" ")
    if word == "ok":
        return rest
    process.wait()
    code, message, hint = rest.split("|", 2)
    error: TitanError = from_wire(code, message, hint)
    raise error


def _wait(process: subprocess.Popen[bytes], timeout: float) -> None:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
