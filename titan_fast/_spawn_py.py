"""Starting a process, in pure Python (contract: `_spawn.pyi`, twin: `_spawn.pyx`).

`subprocess` does the work, by vfork where it can. What it cannot do there is done around it: the file limit is our
own for a moment, so that the child is born with it, and only when this process ignores or blocks signals a function
between fork and exec (which costs a real fork) puts that right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from titan_fast._layout import MAX_NOTE

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_RESTORED = {signal.SIGPIPE, getattr(signal, "SIGXFSZ", None), getattr(signal, "SIGXFZ", None)}
"""What `subprocess` itself sets back to the default."""
_limit_lock = threading.Lock()


def spawn(
    argv: Sequence[bytes],
    env: Sequence[bytes],
    cwd: bytes,
    output: bytes,
    file_limit: int,
    note: tuple[int, bytes] | None = None,
) -> tuple[int, int]:
    """Start a program in a session of its own; see `_spawn.pyi`."""
    if not argv:
        raise ValueError("argv is empty")
    if note is not None and len(note[1]) > MAX_NOTE:
        raise ValueError("the note is too long")
    _check_text(*argv, *env, cwd, output)
    if not argv[0]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "")
    program = argv[0] if b"/" in argv[0] else b"./" + argv[0]  # or subprocess would search PATH
    opened = _open_output(output)
    try:
        with _file_limit(file_limit) as limit:
            child = subprocess.Popen(
                argv,
                executable=program,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=opened,
                cwd=cwd,
                env=_mapping(env),
                start_new_session=True,
                close_fds=True,
                preexec_fn=_preparation(note),
            )
    except OSError as error:
        place = cwd if error.filename == cwd else argv[0]
        number = error.errno or 0
        raise OSError(number, os.strerror(number), os.fsdecode(place)) from None
    finally:
        os.close(opened)
    # We reap it ourselves: a Popen that believes its child still runs would have `subprocess` wait for it later.
    child.returncode = 0
    if limit >= 0 and hasattr(resource, "prlimit"):
        # The hard limit, too. It is ours and not waited for, so its number is its own.
        with contextlib.suppress(OSError):
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return child.pid, _open_pidfd(child.pid)


def _open_output(path: bytes) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None


def _check_text(*texts: bytes) -> None:
    for text in texts:
        if not isinstance(text, bytes):
            raise TypeError(f"Expected bytes, got {type(text).__name__}")
        if b"\0" in text:
            raise ValueError("embedded null byte")


def _mapping(entries: Sequence[bytes]) -> dict[bytes, bytes]:
    pairs = (entry.partition(b"=") for entry in entries)
    return {key: value for key, _, value in pairs}


@contextlib.contextmanager
def _file_limit(wanted: int) -> Iterator[int]:
    """Our own RLIMIT_FSIZE lowered for a moment; gives the limit, never above the hard one, or -1: none is wanted."""
    if wanted <= 0:
        yield -1
        return
    with _limit_lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield limit
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _preparation(note: tuple[int, bytes] | None) -> Callable[[], None] | None:
    """What must run between fork and exec, or None, which is the usual case and lets subprocess use vfork."""
    ignored = [number for number in _SIGNALS if number not in _RESTORED and signal.getsignal(number) == signal.SIG_IGN]
    if note is None and not ignored and not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return None

    def prepare() -> None:
        if note is not None:
            _write_note(*note)
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare


def _write_note(descriptor: int, head: bytes) -> None:
    """In the child. The file limit is the program's, and must not end us here."""
    too_large = getattr(signal, "SIGXFSZ", None)
    if too_large is not None:
        signal.signal(too_large, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(descriptor, b"%s%d,%.6f]\n" % (head, os.getpid(), _boot_time()))
    if too_large is not None:
        signal.signal(too_large, signal.SIG_DFL)


def _boot_time() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1
