"""Starting a process, in pure Python (contract: `_spawn.pyi`, twin: `_spawn.pyx`).

`subprocess` does the work, by vfork where it can. Two things it cannot do there are done around it: the file limit
is set on the child from outside (it is ours and not waited for, so its number is its own), and only when this
process ignores or blocks signals a function between fork and exec puts that right.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_RESTORED = {signal.SIGPIPE, getattr(signal, "SIGXFSZ", None), getattr(signal, "SIGXFZ", None)}
"""What `subprocess` itself sets back to the default."""


def spawn(argv: Sequence[bytes], env: Sequence[bytes], cwd: bytes, output: int, file_limit: int) -> tuple[int, int]:
    """Start a program in a session of its own; see `_spawn.pyi`."""
    if not argv:
        raise ValueError("argv is empty")
    _check_text(*argv, *env, cwd)
    limit = _allowed_limit(file_limit)
    prepare = _preparation(limit)
    program = argv[0] if b"/" in argv[0] else b"./" + argv[0]  # or subprocess would search PATH
    try:
        child = subprocess.Popen(
            argv,
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=_mapping(env),
            start_new_session=True,
            close_fds=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        place = cwd if error.filename == cwd else argv[0]
        number = error.errno or 0
        raise OSError(number, os.strerror(number), os.fsdecode(place)) from None
    # We reap it ourselves: a Popen that believes its child still runs would have `subprocess` wait for it later.
    child.returncode = 0
    if limit >= 0 and prepare is None:
        with contextlib.suppress(OSError):  # it has ended already
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return child.pid, _open_pidfd(child.pid)


def _check_text(*texts: bytes) -> None:
    for text in texts:
        if not isinstance(text, bytes):
            raise TypeError(f"Expected bytes, got {type(text).__name__}")
        if b"\0" in text:
            raise ValueError("embedded null byte")


def _mapping(entries: Sequence[bytes]) -> dict[bytes, bytes]:
    pairs = (entry.partition(b"=") for entry in entries)
    return {key: value for key, _, value in pairs}


def _allowed_limit(file_limit: int) -> int:
    """The RLIMIT_FSIZE to set, never above the hard one we have; -1: leave it."""
    if file_limit <= 0:
        return -1
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return file_limit if hard == resource.RLIM_INFINITY else min(file_limit, hard)


def _preparation(limit: int) -> Callable[[], None] | None:
    """What must run between fork and exec, or None, which is the usual case and lets subprocess use vfork."""
    ignored = [number for number in _SIGNALS if number not in _RESTORED and signal.getsignal(number) == signal.SIG_IGN]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    limited = limit >= 0 and not hasattr(resource, "prlimit")
    if not (ignored or blocked or limited):
        return None

    def prepare() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if limit >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1
