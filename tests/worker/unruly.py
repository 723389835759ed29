"""Runs as an attempt that does not want to end: a tree of processes by a seed. It imports nothing of the house.

    python unruly.py SEED LEDGER hang|CODE

Every process signs the ledger when it begins, ``PID START``, and again when it has become what it wanted to be, with
its kind behind. When all have, the leader signs ``up`` and hangs, or ends with the exit code it was given.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable

STORM = 8
"""Children at a time of a process that forks without an end."""


def sign(kind: str = "") -> None:
    with open("/proc/self/stat") as stat:
        start = stat.read().rpartition(")")[2].split()[19]
    ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, f"{os.getpid()} {start} {kind}\n".encode())
    os.close(ledger)


def signed() -> set[str]:
    """The kinds that are what they wanted to be."""
    with open(LEDGER) as ledger:
        return {line.split(" ", 2)[2].strip() for line in ledger}


def fork(body: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            sign()
            body()
        finally:
            os._exit(1)
    return pid


def hang(kind: str) -> None:
    sign(kind)
    while True:
        signal.pause()


def become_nobody(kind: str) -> None:
    """Go on as another program, which knows nothing of our environment."""
    sign(kind)
    os.execve(shutil.which("sleep") or "/bin/sleep", ["sleep", "1000"], {})


def let_go_of_output() -> None:
    os.closerange(0, 256)
    for _ in range(3):
        os.open("/dev/null", os.O_RDWR)


def orphan(body: Callable[[], None]) -> None:
    """The second fork: whoever started us is gone, and only a subreaper knows us."""
    os.waitpid(fork(lambda: (fork(body), os._exit(0))), 0)


# ---------------------------------------------------------------- the kinds


def child() -> None:
    fork(lambda: hang("child"))


def orphaned() -> None:
    orphan(lambda: hang("orphaned"))


def of_another_group() -> None:
    def body() -> None:
        os.setpgid(0, 0)
        hang("of_another_group")

    orphan(body)


def of_another_session() -> None:
    def body() -> None:
        os.setsid()
        hang("of_another_session")

    orphan(body)


def known_by_its_group() -> None:
    """Without the environment, without the output, and nobody's child."""

    def body() -> None:
        let_go_of_output()
        become_nobody("known_by_its_group")

    orphan(body)


def known_by_its_output() -> None:
    """A grandchild of another session, and another environment, that holds the output open."""

    def body() -> None:
        os.setsid()
        become_nobody("known_by_its_output")

    orphan(body)


def stopped() -> None:
    """It takes no TERM, because it takes nothing."""

    def body() -> None:
        sign("stopped")
        os.kill(os.getpid(), signal.SIGSTOP)
        hang("continued")

    fork(body)


def storm() -> None:
    """It forks faster than anybody looks."""

    def body() -> None:
        os.setsid()
        sign("storm")
        living: list[int] = []
        while True:
            living.append(fork(lambda: time.sleep(0.2)))
            if len(living) == STORM:
                os.waitpid(living.pop(0), 0)
            time.sleep(0.005)

    orphan(body)


def daemon() -> None:
    """By the book: a session of its own, no parent, no output. Its environment alone tells whose it is."""

    def body() -> None:
        os.setsid()
        let_go_of_output()
        hang("daemon")

    orphan(body)


KINDS = (
    child,
    orphaned,
    of_another_group,
    of_another_session,
    known_by_its_group,
    known_by_its_output,
    stopped,
    storm,
)


def main(seed: int, end: str) -> None:
    chance = random.Random(seed)
    sign()
    # A daemon outlives whoever ends by himself: that is what it is for.
    kinds = (*KINDS, daemon) if end == "hang" else KINDS
    chosen = chance.sample(kinds, chance.randint(1, 4))
    if chance.random() < 0.5:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for grow in chosen:
        grow()
    while not {kind.__name__ for kind in chosen} <= signed():
        time.sleep(0.002)
    sign("up")
    if end == "hang":
        while True:
            signal.pause()
    os._exit(int(end))


if __name__ == "__main__":
    LEDGER = sys.argv[2]
    main(int(sys.argv[1]), sys.argv[3])
