"""The keeper: parent of the worker's agent, and of every process that loses its own parent.

Started by path, ``python -S -P keeper.py [--loss-time SECONDS] -- COMMAND…``, usually by exec in the process that was
``titan-fast worker``. It runs no user code, imports nothing of the house and must never die: it starts the agent,
passes signals on and waits for whatever ends. When the agent dies it keeps what that left running and starts the next
one, which goes on with it; when none stays up it ends everything. It ends with the agent's exit code and leaves no
process behind.

How orphans ended is kept in memory until an agent has taken it: the agent has one end of a socket (KEEPER_EXITS), on
which it is told line by line, ``pid start status at place``, and answers TAKEN for each line it has dealt with. It may
send SYNC, whose answer is an empty line, and sends UP when the master knows it. A note is made before the process is
waited for, and forgotten when it is taken.

The agent must not outlive it. Only the agent itself can ask for that without a gap, so it begins with
`die_with_keeper()`: SIGKILL when the parent dies, then a look whether TITAN_KEEPER_PID still is the parent.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import sys
import time
from collections import deque, namedtuple

TYPE_CHECKING = False  # `typing` would double what this takes
if TYPE_CHECKING:
    from typing import NoReturn

KEEPER_PID = "TITAN_KEEPER_PID"
KEEPER_EXITS = "TITAN_KEEPER_EXITS"
"""Number of the agent's descriptor on which it is told of exits."""
TAKEN, SYNC, UP = b".", b"?", b"!"
ON_PURPOSE = (0, 2, 3, 5, 70)
"""Exit codes with which an agent ends because it means to; anything else is a death."""
GAVE_UP = 70
"""The keeper's exit code when no agent stays up."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
STAYS_UP = 5.0
"""Seconds an agent has to live for its death to be the first one again."""
LOSS_TIME = 15.0
"""Seconds without an agent that says UP or stays up until everything is ended: by then the master has given the worker
up, and what runs here runs elsewhere, too."""
_FAULT_PAUSE = 5.0
"""Seconds to wait after a fault of our own."""

_SAME_REQUEST = 0.3
"""A signal that comes again within so many seconds is the same Ctrl-C, come twice (from the terminal and a parent)."""
_HURRY = 3.0
"""Seconds that an agent has to end after it was told a second time."""
_TREE_TIME = 10.0
"""Seconds that ending what was left behind may take: a process on a dead disk must not hold the keeper for ever."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Options(namedtuple("Options", "command loss_time", defaults=[LOSS_TIME])):
    """The command line: what the agent is started by (a list), and after how many seconds without one all is ended."""

    __slots__ = ()


def die_with_keeper() -> None:
    """For the agent, first thing: be killed when the keeper dies, and end now if it already has."""
    keeper = os.environ.get(KEEPER_PID, "")
    if keeper.isdigit():
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(keeper):
            os._exit(0)


class Keeper:
    """One agent at a time, and everything that ends up as a child of this process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._agent = 0
        self._started = 0.0
        self._is_up = False
        """The agent has said UP."""
        self._alone_since = 0.0
        """When the first agent died of those that did not stay up."""
        self._pause = FIRST_PAUSE
        self._line: socket.socket | None = None
        """To the agent: how orphans ended."""
        self._unsent = b""
        self._exits: deque[bytes] = deque()
        """The spool: a line for each exit that no agent has taken."""
        self._places: dict[int, bytes] = {}
        """TITAN_ATTEMPT_DIR of living orphans, in hex: the dead have no environment, and an agent that was killed while
        it started a process did not come to write its number down."""
        self._asked = 0
        """The signal that told us to stop; 0: none has."""
        self._heard_at: dict[int, float] = {}
        self._force_at = 0.0
        """When the agent is killed, because it was asked twice and is still there; 0: not yet."""
        self._is_forced = False
        self._signals: list[int] = []
        self._wake = _wake_up_on(self._signals)

    def run(self) -> int:
        """Keep until there is nothing to keep; the exit code."""
        while True:
            status = self._run_agent()
            if self._is_forced or self._asked or status in ON_PURPOSE:
                self._end_orphans()
                return 128 + self._asked if self._is_forced else status if status >= 0 else 128 - status
            self._look_at_orphans()
            how = f"ended with exit code {status}" if status >= 0 else f"was ended by signal {-status}"
            now = time.monotonic()
            if now - self._started >= STAYS_UP:
                self._is_up, self._pause = True, FIRST_PAUSE
            if self._is_up or not self._alone_since:
                self._alone_since = now
            left = self._alone_since + self._options.loss_time - now
            if left <= 0:
                _say(f"the agent {how}, and none stayed up for {self._options.loss_time:g} s: everything ends now")
                self._end_orphans()
                return GAVE_UP
            pause = min(self._pause, left)
            _say(f"the agent {how}; starting it again in {pause:.2g} s")
            self._wait_until(now + pause)
            self._look_at_orphans()
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
            if self._asked:
                self._end_orphans()
                return 128 + self._asked

    # ---------------------------------------------------------------- the agent

    def _run_agent(self) -> int:
        """Start it and wait for its end: its exit code, or minus the signal that ended it."""
        if not self._agent:
            self._started, self._is_up = time.monotonic(), False
            try:
                self._agent = self._start_agent()
            except OSError as error:
                _say(f"the agent cannot be started: {self._options.command[0]}: {error.strerror}")
                return 127
            if self._asked:  # while it was being started
                self._send_agent(self._asked)
        while True:
            for pid, status in self._reap():
                if pid == self._agent:
                    self._agent = 0
                    self._hear_agent()
                    self._hang_up()
                    return status
            if not self._force_at:
                self._sleep(None)
            elif self._is_forced or (left := self._force_at - time.monotonic()) > 0:
                self._sleep(1.0 if self._is_forced else left)
            else:
                self._is_forced = True
                self._send_agent(signal.SIGKILL)

    def _start_agent(self) -> int:
        command = self._options.command
        mine, its = socket.socketpair()
        mine.setblocking(False)
        its.set_inheritable(True)
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        # A group of its own: a Ctrl-C at the terminal reaches us alone, and the agent hears of it once.
        with its:
            agent = os.posix_spawnp(
                command[0],
                command,
                {**os.environ, KEEPER_PID: str(os.getpid()), KEEPER_EXITS: str(its.fileno())},
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                setsigdef=(*_FORWARDED, signal.SIGPIPE, signal.SIGXFSZ),
            )
        self._line = mine
        self._tell(b"".join(self._exits))
        return agent

    def _send_agent(self, number: int) -> None:
        """Our child and not waited for, so the number is its own. A closed terminal asks for nothing but an end."""
        if self._agent:
            os.kill(self._agent, signal.SIGTERM if number == signal.SIGHUP else number)

    # ---------------------------------------------------------------- waiting

    def _sleep(self, seconds: float | None) -> None:
        """Until a signal arrives, the agent says something or the time is over; acts on what came."""
        line = [self._line.fileno()] if self._line is not None else []
        readable, writable, _ = select.select([self._wake, *line], line if self._unsent else [], [], seconds)
        if writable:
            self._tell(b"")
        if set(line) & set(readable):
            self._hear_agent()
        try:
            while os.read(self._wake, 4096):
                pass
        except BlockingIOError:
            pass
        while self._signals:
            self._heard(self._signals.pop(0))

    def _heard(self, number: int) -> None:
        """The first is passed on. The same again: passed on again, and KILL follows. Once more: KILL now."""
        now = time.monotonic()
        first = self._heard_at.setdefault(number, now)
        if not self._asked:
            self._asked = number
            self._send_agent(number)
        elif now - first >= _SAME_REQUEST:
            self._heard_at[number] = now
            if self._force_at:
                self._force_at = now
            else:
                _say("asked to stop again: everything ends now")
                self._force_at = now + _HURRY
                self._send_agent(number)

    def _wait_until(self, deadline: float) -> None:
        while not self._asked and (left := deadline - time.monotonic()) > 0:
            self._sleep(left)
            self._reap()

    # ---------------------------------------------------------------- children

    def _reap(self) -> list[tuple[int, int]]:
        """Wait for all that have ended: (pid, exit code or minus signal). Orphans are recorded before they are gone."""
        ended = []
        while (found := _next_dead()) is not None:
            pid, status = found
            if pid != self._agent:
                self._record(pid, status)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                break
            ended.append(found)
        return ended

    def _record(self, pid: int, status: int) -> None:
        """Make a note of who ended how, and tell the agent."""
        place = self._places.pop(pid, b"-")
        line = b"%d %d %d %.6f %s\n" % (pid, _start_time(pid), status, time.monotonic(), place)
        self._exits.append(line)
        self._tell(line)

    def _look_at_orphans(self) -> None:
        """Note which attempts the living ones lead: the first process of each has a session of its own."""
        for pid in _children():
            if _stat(pid)[3:4] == [str(pid)] and (place := _place_of(pid)):
                self._places[pid] = place

    # ---------------------------------------------------------------- telling the agent

    def _tell(self, data: bytes) -> None:
        """Send what the agent's end will take; the rest waits, for an agent may be stopped for days."""
        if self._line is None:
            return
        self._unsent += data
        try:
            while self._unsent:
                self._unsent = self._unsent[self._line.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()

    def _hear_agent(self) -> None:
        if self._line is None:
            return
        try:
            words = self._line.recv(1 << 16)
        except OSError:
            words = b""
        if not words:
            self._hang_up()  # its end is closed: it is about to die, or is none of ours
            return
        for _ in range(min(words.count(TAKEN), len(self._exits))):
            self._exits.popleft()
        self._tell(b"\n" * words.count(SYNC))
        self._is_up = self._is_up or UP in words

    def _hang_up(self) -> None:
        """What was not taken is told to the next agent."""
        if self._line is not None:
            self._line.close()
        self._line, self._unsent = None, b""

    def _end_orphans(self) -> None:
        """KILL every child until there is none. A killed child's children become ours, so no tree is too deep; and a
        child that has not been waited for has its number to itself, so no stranger is hit."""
        deadline = time.monotonic() + _TREE_TIME
        pause = 0.001
        while True:
            self._reap()
            if not _has_children():
                return
            children = _children()
            for pid in children:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue  # another user's
            if time.monotonic() > deadline:
                _say(f"processes that will not end are left behind: {', '.join(map(str, children))}")
                return
            self._sleep(pause)
            pause = min(0.05, pause * 2)


def _next_dead() -> tuple[int, int] | None:
    """A child that has ended, still to be waited for (where the system allows to look first)."""
    try:
        if hasattr(os, "waitid"):
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return None
            return info.si_pid, info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        pid, status = os.waitpid(-1, os.WNOHANG)
        return (pid, os.waitstatus_to_exitcode(status)) if pid else None
    except ChildProcessError:
        return None


def _has_children() -> bool:
    """Asked of the system in one step: a list of processes is out of date when it has been read."""
    try:
        if hasattr(os, "waitid"):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return True
        return os.waitpid(-1, os.WNOHANG) is not None
    except ChildProcessError:
        return False


def _children() -> list[int]:
    """Living children of this process (none where there is no /proc: there is no adopting either)."""
    children = []
    myself = os.getpid()
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            fields = _stat(name)
            if len(fields) > 1 and fields[1] == str(myself) and fields[0] not in "ZX":
                children.append(int(name))
    return children


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _place_of(pid: int) -> bytes:
    """A process's TITAN_ATTEMPT_DIR in hex; empty when it has none, or is none of ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            _, _, rest = (b"\0" + file.read()).partition(b"\0TITAN_ATTEMPT_DIR=")
    except OSError:
        return b""
    return rest.partition(b"\0")[0].hex().encode()


def _start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started: with it the number names one process."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def _wake_up_on(signals: list[int]) -> int:
    """A descriptor that becomes readable with each signal; those to pass on are collected in ``signals``."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in _FORWARDED:
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, lambda received, _: signals.append(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *_FORWARDED})
    return reading


def _prctl(option: int, value: int) -> None:
    """Where there is no prctl (not Linux) nothing happens: the agent's own tidying has to do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(2, f"titan-fast keeper: {text}\n".encode("utf-8", "replace"))


def _parse(arguments: list[str]) -> Options | None:
    options = Options([])
    while arguments and arguments[0] != "--":
        name, equals, value = arguments.pop(0).partition("=")
        if not equals and arguments:
            value = arguments.pop(0)
        try:
            seconds = float(value)
        except ValueError:
            return None
        if name != "--loss-time" or not 0 <= seconds < math.inf:
            return None
        options = options._replace(loss_time=seconds)
    return options._replace(command=arguments[1:]) if len(arguments) > 1 else None


def main() -> NoReturn:
    options = _parse(sys.argv[1:])
    if options is None:
        _say("usage: keeper.py [--loss-time SECONDS] -- COMMAND…")
        sys.exit(2)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = Keeper(options)
    while True:
        try:
            code = keeper.run()
        except Exception as error:  # whatever it is, the processes in our care come first
            _say(f"{type(error).__name__}: {error}; going on")
            time.sleep(_FAULT_PAUSE)
            continue
        os._exit(code)


if __name__ == "__main__":
    main()
