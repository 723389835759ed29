"""What the contenders need, made in a folder: a virtual environment for each, and redis.

Everything is pinned in `requirements/`; what is there already and made of the same pins is left alone. No root: redis
comes from the machine, or from Debian's packages unpacked into the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import contract
import redis_server

HERE = Path(__file__).resolve().parent
REDIS_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
ON_REDIS = ("celery", "dramatiq", "taskiq")
BASE: str = sys._base_executable  # type: ignore[attr-defined]
"""What ours was made of."""
STAMP = "made-of.txt"


class NotInstalled(Exception):
    """Why a contender is not there; the others go on."""


def environment(name: str, folder: Path) -> str:
    """The interpreter of the contender's environment, which is made when it is not there. Raises NotInstalled."""
    wanted = (HERE / "requirements" / f"{name}.txt").read_text()
    place = folder / name
    python = place / "bin" / "python"
    stamp = place / STAMP
    if name in ON_REDIS:
        find_redis(folder)
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"… installing {name}", file=sys.stderr, flush=True)
        _run([BASE, "-m", "venv", "--clear", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", _pins(name)])
        stamp.write_text(wanted)
    return str(python)


def bare(folder: Path) -> None:
    """An environment with nothing in it, for scripts; leaves word in the environment where it is."""
    python = folder / "bare" / "bin" / "python"
    if not python.exists():
        _run([BASE, "-m", "venv", "--without-pip", "--clear", str(folder / "bare")])
    os.environ["TITAN_FAST_PEERS_PYTHON"] = str(python)


def _pins(name: str) -> str:
    return str(HERE / "requirements" / f"{name}.txt")


def find_redis(folder: Path) -> None:
    """Leaves word in the environment where it is. Raises NotInstalled."""
    place = folder / "redis"
    os.environ[redis_server.UNPACKED] = str(place)
    if has_redis():
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotInstalled("there is no redis-server, and no Debian to take it from; install it")
    print("… unpacking redis", file=sys.stderr, flush=True)
    place.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", "-q", *REDIS_PACKAGES], place)
    for package in place.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(place)])
        package.unlink()
    if not has_redis():
        raise NotInstalled("the redis-server of Debian's packages does not start; install redis")


def has_redis() -> bool:
    """It may be there and lack a library."""
    try:
        return bool(redis_server.version())
    except contract.Missing:
        return False


def _run(argv: list[str], place: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=place, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise NotInstalled(f"{' '.join(argv[:4])} … ended with {done.returncode}: {lines[-1] if lines else ''}")
