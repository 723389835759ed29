"""A redis of our own for the contenders that need a broker: on a free port, in memory alone, ends with us.

Nothing is written to a disk (no snapshots, no append-only file): that is the fastest broker there is, and promises less
than what it is compared with.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import contract

URL = "TITAN_FAST_PEERS_URL"
"""Where it listens, for the modules that workers import."""
UNPACKED = "TITAN_FAST_PEERS_REDIS"
"""The folder into which the packages of Debian were unpacked, when redis is not installed."""


class Redis:
    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        argv = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        program, environ = find()
        self._process = contract.start([program, *map(str, argv)], folder / "redis.log", environ)
        self.pid = self._process.pid
        self._wait(folder / "redis.log")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"redis did not start: {log.read_text()[-500:]}") from None
                time.sleep(0.002)

    def memory(self) -> int:
        """Bytes it holds, as it counts them."""
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            line.sendall(b"INFO memory\r\n")
            text = line.recv(65536).decode()
        return int(text.partition("used_memory:")[2].split()[0])

    def stop(self) -> None:
        contract.end(self._process)


class OnRedis(contract.Contender):
    """A contender whose broker and result store is a redis, and whose worker is one program."""

    _redis: Redis | None = None
    _worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def version(cls) -> str:
        return f"{super().version()} on redis {version()}"

    def worker_argv(self) -> list[str]:
        raise NotImplementedError

    def connect(self) -> None:
        """As a client; the URL is in the environment."""
        raise NotImplementedError

    def start(self, workers: bool = True) -> None:
        self._redis = Redis(self.folder)
        os.environ[URL] = self._redis.url
        if workers:
            self._worker = contract.start([sys.executable, "-m", *self.worker_argv()], self.folder / "log")
        self.connect()

    def stop(self) -> None:
        if self._worker is not None:
            contract.end(self._worker)
        if self._redis is not None:
            self._redis.stop()

    def schedulers(self) -> list[int]:
        return [self._redis.pid]

    def workers(self) -> list[int]:
        return [self._worker.pid]

    def memory(self) -> int:
        return self._redis.memory()


def find() -> tuple[str, dict[str, str]]:
    """The program and what its environment needs. Raises Missing."""
    if installed := shutil.which("redis-server"):
        return installed, {}
    root = Path(os.environ.get(UNPACKED, "/nowhere"))
    program = root / "usr/bin/redis-server"
    if not program.exists():
        raise contract.Missing("there is no redis-server")
    libraries = [str(path) for path in (root / "usr/lib").glob("*-linux-gnu")]
    return str(program), {"LD_LIBRARY_PATH": ":".join(libraries)}


def version() -> str:
    """Raises Missing."""
    program, environ = find()
    said = subprocess.run([program, "--version"], env={**os.environ, **environ}, capture_output=True, text=True)
    if said.returncode:
        raise contract.Missing(f"{program} does not start: {said.stderr.strip()}")
    return said.stdout.partition("v=")[2].split()[0]
