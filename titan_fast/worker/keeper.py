"""The keeper: parent of the worker's agent, and of every process that loses its own parent.

Started by path, ``python -P keeper.py [--spool DIR] [--quick-deaths N] -- COMMAND…``, usually by exec in the process
that was ``titan-fast worker``. It runs no user code, imports nothing of the house and must never die: it starts the
agent, passes signals on, waits for whatever ends, ends what a dead agent left running (those attempts are run again
elsewhere) and starts the agent again. It ends with the agent's exit code and leaves no process behind.

The agent must not outlive it. Only the agent itself can ask for that without a gap, so it begins with
`die_with_keeper()`: SIGKILL when the parent dies, then a look whether TITAN_KEEPER_PID still is the parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import NamedTuple, NoReturn

KEEPER_PID = "TITAN_KEEPER_PID"
ON_PURPOSE = (0, 2, 3, 5, 70)
"""Exit codes with which an agent ends because it means to; anything else is a death."""
GAVE_UP = 70
"""The keeper's exit code after too many quick deaths."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
QUICK = 10.0
"""Seconds an agent has to live for its death not to count as a quick one."""
QUICK_DEATHS = 10
SPOOL_NAME = "exits.jsonl"
SPOOL_LIMIT = 1 << 20

_SAME_REQUEST = 0.3
"""A signal that comes again within so many seconds is the same Ctrl-C, come twice (from the terminal and a parent)."""
_HURRY = 3.0
"""Seconds that an agent has to end after it was told a second time."""
_TREE_TIME = 10.0
"""Seconds that ending what was left behind may take: a process on a dead disk must not hold the keeper for ever."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Options(NamedTuple):
    """The command line."""

    command: list[str]
    spool: str = ""
    """Folder for the exits of adopted processes; empty: they are not recorded."""
    quick_deaths: int = QUICK_DEATHS


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
        self._deaths = 0
        self._pause = FIRST_PAUSE
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
            self._end_orphans()
            code = status if status >= 0 else 128 - status
            if self._is_forced:
                return 128 + self._asked
            if self._asked or status in ON_PURPOSE:
                return code
            if time.monotonic() - self._started >= QUICK:
                self._deaths, self._pause = 0, FIRST_PAUSE
            self._deaths += 1
            how = f"ended with exit code {status}" if status >= 0 else f"was ended by signal {-status}"
            if self._deaths >= self._options.quick_deaths:
                _say(f"the agent {how}, {self._deaths} times now soon after its start: giving up")
                return GAVE_UP
            _say(f"the agent {how}; starting it again in {self._pause:.1f} s")
            self._wait_until(time.monotonic() + self._pause)
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
            if self._asked:
                return 128 + self._asked

    # ---------------------------------------------------------------- the agent

    def _run_agent(self) -> int:
        """Start it and wait for its end: its exit code, or minus the signal that ended it."""
        if not self._agent:
            self._started = time.monotonic()
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
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        # A group of its own: a Ctrl-C at the terminal reaches us alone, and the agent hears of it once.
        return os.posix_spawnp(
            command[0],
            command,
            {**os.environ, KEEPER_PID: str(os.getpid())},
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=(*_FORWARDED, signal.SIGPIPE, signal.SIGXFSZ),
        )

    def _send_agent(self, number: int) -> None:
        """Our child and not waited for, so the number is its own. A closed terminal asks for nothing but an end."""
        if self._agent:
            os.kill(self._agent, signal.SIGTERM if number == signal.SIGHUP else number)

    # ---------------------------------------------------------------- waiting

    def _sleep(self, seconds: float | None) -> None:
        """Until a signal arrives or the time is over; acts on what came."""
        select.select([self._wake], [], [], seconds)
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
        """A line in the spool: who ended how. A spool that cannot be written is no reason to stop."""
        if not self._options.spool:
            return
        line = json.dumps({"pid": pid, "start": _start_time(pid), "status": status, "at": time.time()})
        path = os.path.join(self._options.spool, SPOOL_NAME)
        try:
            os.makedirs(self._options.spool, mode=0o700, exist_ok=True)
            with open(path, "a") as file:
                file.write(line + "\n")
                full = file.tell() > SPOOL_LIMIT
            if full:
                os.replace(path, path + ".old")
        except OSError as error:
            _say(f"the exit of process {pid} could not be recorded: {error}")

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
        name, _, value = arguments.pop(0).partition("=")
        if name not in ("--spool", "--quick-deaths"):
            return None
        if not value:
            if not arguments:
                return None
            value = arguments.pop(0)
        if name == "--spool":
            options = options._replace(spool=value)
        elif value.isdigit():
            options = options._replace(quick_deaths=int(value))
        else:
            return None
    return options._replace(command=arguments[1:]) if len(arguments) > 1 else None


def main() -> NoReturn:
    options = _parse(sys.argv[1:])
    if options is None:
        _say("usage: keeper.py [--spool DIR] [--quick-deaths N] -- COMMAND…")
        sys.exit(2)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = Keeper(options)
    while True:
        try:
            code = keeper.run()
        except Exception as error:  # whatever it is, the processes in our care come first
            _say(f"{type(error).__name__}: {error}; going on")
            time.sleep(LONGEST_PAUSE)
            continue
        os._exit(code)


if __name__ == "__main__":
    main()
