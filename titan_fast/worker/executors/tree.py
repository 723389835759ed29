"""Which processes belong to an attempt, and ending them all.

A process belongs to an attempt by its process group or session, by TITAN_FENCE together with TITAN_ATTEMPT_DIR in
its environment (of a function, by the TITAN_PROCESS of the process that runs it), by the attempt's output file open on
descriptor 1 or 2, or by being a child of one that does (reliability.md §6; a process that sheds all of these gets away,
and only a cgroup would hold it). Nothing is ever signalled by its number alone: by pidfd after its start time was
compared, or not at all.

One scan of /proc serves any number of attempts; nothing here is needed for an attempt that ends by itself and
leaves nobody behind. Where there is no /proc, psutil answers, and descriptors are not looked at.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

_TO_GROUP = 4
"""PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9): to the group led by this process, also when it has been waited for."""
_STOP_PASSES = 10
_HAS_PROC = os.path.exists("/proc/self/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_TICK = 0.05
"""Seconds by which a start time may be told wrong: it is rounded to clock ticks."""


class Member(NamedTuple):
    """A living process of a tree; the number alone would not name it."""

    pid: int
    start: int


class Tree(msgspec.Struct, frozen=True):
    """How to tell the processes of one attempt."""

    leader: int
    """The process started first; its number is also that of its group and session."""
    born: float
    """Seconds since boot when it was started: nothing older belongs to it (0: unknown)."""
    fence: bytes = b""
    """The value of TITAN_FENCE it was given; empty: none was."""
    place: bytes = b""
    """The value of TITAN_ATTEMPT_DIR. Fences are unique within one cluster only, folders on the whole machine."""
    output: tuple[int, int] = (0, 0)
    """Device and inode of the output file."""
    start: int = 0
    """When the leader was started, as `Member.start`. Given when somebody else waits for it: its number may then be a
    stranger's (0: it is our child, and its number its own)."""
    process: bytes = b""
    """The value of TITAN_PROCESS it was given; empty: none was."""
    known: frozenset[Member] = frozenset()
    """Those that were found to belong to it before, whatever they show by now."""


class _Process(NamedTuple):
    pid: int
    start: int
    parent: int
    group: int
    session: int


def boot_time() -> float:
    """Seconds since boot, the clock that start times of processes are told in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _HAS_PROC else 0.0


def scan(trees: Sequence[Tree]) -> list[list[Member]]:
    """The living processes of each tree, in the order of ``trees``; zombies are not among them."""
    found: list[list[Member]] = [[] for _ in trees]
    if not trees:
        return found
    oldest = min(tree.born for tree in trees)
    processes = list(_proc_processes(oldest) if _HAS_PROC else _psutil_processes())
    owner = _by_marks(trees, processes)
    # Children of members, until there are no more: a list is in no useful order.
    children: dict[int, list[_Process]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    waiting = list(owner.items())
    while waiting:
        pid, index = waiting.pop()
        for child in children.get(pid, ()):
            if child.pid not in owner:
                owner[child.pid] = index
                waiting.append((child.pid, index))
    for process in processes:
        if process.pid in owner:
            found[owner[process.pid]].append(Member(process.pid, process.start))
    return found


def send(member: Member, number: int) -> bool:
    """Signal one process if it is still the same one; False when it is gone.

    Raises:
        PermissionError: it runs as somebody else.
    """
    try:
        pidfd = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):
        return _send_without_pidfd(member, number)
    try:
        # The descriptor came first: if the process that has the number now is the one we saw, it has it.
        if start_of(member.pid) != member.start:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def send_group(pidfd: int, leader: int, number: int) -> bool:
    """Signal the process group of a leader; False when nobody is in it.

    Safe after the leader was waited for where the kernel can reach a group by pidfd; elsewhere call it before, or
    right after, when the number cannot have been given away again.
    """
    try:
        if pidfd >= 0 and _reaches_groups():
            signal.pidfd_send_signal(pidfd, number, None, _TO_GROUP)
        else:
            os.killpg(leader, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def stop_and_kill(trees: Sequence[Tree], spare: set[Member]) -> list[list[Member]]:
    """KILL every process of the trees; what was found, which is not proof that it is gone already.

    All are stopped first, again and again until a scan finds nobody new: a process that forks faster than it is
    found would get away otherwise. ``spare`` are those we may not signal; new ones are added to it.
    """
    found: list[list[Member]] = []
    stopped: set[Member] = set()
    for _ in range(_STOP_PASSES):
        found = scan(trees)
        new = [member for members in found for member in members if member not in stopped and member not in spare]
        if not new:
            break
        stopped.update(new)
        send_all(new, signal.SIGSTOP, spare)
    send_all(stopped, signal.SIGKILL, spare)
    return found


def ask_to_end(leader: int, pidfd: int, members: Iterable[Member], spare: set[Member]) -> None:
    """TERM, once to each: one signal to the group of a leader that lives (0: it does not), which nobody forks past, and
    one to everyone outside of it."""
    outsiders = [member for member in members if not leader or _group_of(member.pid) != leader]
    for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process takes TERM when it goes on
        if leader:
            send_group(pidfd, leader, number)
        send_all(outsiders, number, spare)


def send_all(members: Iterable[Member], number: int, spare: set[Member]) -> None:
    """Signal each; those we may not signal are added to ``spare``."""
    for member in members:
        try:
            send(member, number)
        except PermissionError:
            spare.add(member)


def is_held(fd: int) -> bool:
    """Whether anybody has the file of this read-only descriptor open for writing; False when that cannot be told.

    A read lease can only be taken while nobody writes, so asking for one answers the question for two system calls
    instead of a walk through every process's descriptors. It is given back at once.
    """
    return _can_lease(fd, fcntl.F_RDLCK) is False


def is_alone(fd: int) -> bool:
    """Whether nobody but this descriptor has its file open; False when that cannot be told."""
    return _can_lease(fd, fcntl.F_WRLCK) is True


def _can_lease(fd: int, kind: int) -> bool | None:
    """Whether the system grants a lease, which is given back at once; None: there are none for this file."""
    lease = getattr(fcntl, "F_SETLEASE", None)
    if lease is None:
        return None
    try:
        # Whoever opens the file in between makes the kernel send the lease's signal: not SIGIO, which would end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, lease, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    fcntl.fcntl(fd, lease, fcntl.F_UNLCK)
    return True


class Found(NamedTuple):
    """A process as the system shows it, ended ones that nobody has waited for included."""

    start: int
    parent: int


def find(pid: int) -> Found | None:
    """The process that has this number now; None: there is none (or there is no /proc)."""
    fields = _stat_fields(pid) if _HAS_PROC else []
    return Found(int(fields[19]), int(fields[1])) if fields else None


def start_of(pid: int) -> int:
    """When a living process started, in the unit of `Member.start`; -1 when there is none."""
    if _HAS_PROC:
        process = _proc_process(pid)
        return -1 if process is None else process.start
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 1e6)
    except psutil.Error:
        return -1


def is_start(start: int, first: float, last: float) -> bool:
    """Whether a start time lies between two moments of `boot_time`, as exactly as the system tells it."""
    return (first - _TICK) * _TICKS <= start <= (last + _TICK) * _TICKS


def find_child(parent: int, born: float, fence: bytes, place: bytes) -> int:
    """The first process of an attempt by what it was given, among the children of ``parent``; 0: there is none."""
    marked = [Tree(0, born, fence, place)]
    for process in _proc_processes(born) if _HAS_PROC else ():
        is_leader = process.parent == parent and process.session == process.pid
        if is_leader and _by_environment(process.pid, marked, {fence: [0]}, {}) == 0:
            return process.pid
    return 0


def end_strangers(parent: int, trees: Sequence[Tree]) -> int:
    """KILL the children of ``parent``, and their children, that belong to none of the trees; how many were found.

    This process and what it started are spared. All are stopped before the first is killed, as in `stop_and_kill`.
    """
    stopped: set[Member] = set()
    spare: set[Member] = set()
    for _ in range(_STOP_PASSES):
        new = [member for member in _strangers(parent, trees) if member not in stopped and member not in spare]
        if not new:
            break
        stopped.update(new)
        send_all(new, signal.SIGSTOP, spare)
    send_all(stopped, signal.SIGKILL, spare)
    return len(stopped)


def _strangers(parent: int, trees: Sequence[Tree]) -> list[Member]:
    processes = list(_proc_processes(0.0)) if _HAS_PROC else []
    owned = {member.pid for members in scan(trees) for member in members} | {os.getpid()}
    children: dict[int, list[_Process]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    found = []
    waiting = [parent]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in owned:
                found.append(Member(child.pid, child.start))
                waiting.append(child.pid)
    return found


def is_over(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def has_exited(pid: int) -> bool:
    """Whether a child of ours has ended; it stays to be waited for."""
    if hasattr(os, "waitid"):
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True
    import psutil  # a mebibyte that is needed only where there is nothing better

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# ---------------------------------------------------------------- who belongs


def _by_marks(trees: Sequence[Tree], processes: list[_Process]) -> dict[int, int]:
    """pid -> index of its tree, by what the process itself shows."""
    leaders = {tree.leader: index for index, tree in enumerate(trees) if tree.leader > 0}
    for process in processes:
        # A number is given away again only when its group and session are empty.
        if process.pid in leaders and trees[leaders[process.pid]].start not in (0, process.start):
            del leaders[process.pid]
    fences: dict[bytes, list[int]] = {}
    names: dict[bytes, int] = {}
    outputs: dict[tuple[int, int], int] = {}
    known: dict[Member, int] = {}
    for index, tree in enumerate(trees):
        known.update(dict.fromkeys(tree.known, index))
        if tree.fence and tree.place:
            fences.setdefault(tree.fence, []).append(index)
        if tree.process:
            names[tree.process] = index
        if tree.output != (0, 0):
            outputs[tree.output] = index
    owner: dict[int, int] = {}
    myself = os.getpid()
    for process in processes:
        if process.pid == myself:
            continue
        index = leaders.get(process.group, leaders.get(process.session, -1))
        if index < 0 and known:
            index = known.get(Member(process.pid, process.start), -1)
        if index < 0 and (fences or names):
            index = _by_environment(process.pid, trees, fences, names)
        if index < 0 and outputs:
            index = _by_output(process.pid, outputs)
        if index >= 0:
            owner[process.pid] = index
    return owner


def _by_environment(pid: int, trees: Sequence[Tree], fences: dict[bytes, list[int]], names: dict[bytes, int]) -> int:
    environment = b"\0" + _environment_of(pid)
    _, mark, rest = environment.partition(b"\0TITAN_FENCE=")
    if mark:
        for index in fences.get(rest.partition(b"\0")[0], ()):
            if b"\0TITAN_ATTEMPT_DIR=" + trees[index].place + b"\0" in environment:
                return index
    _, mark, rest = environment.partition(b"\0TITAN_PROCESS=")
    return names.get(rest.partition(b"\0")[0], -1) if mark else -1


def _by_output(pid: int, outputs: dict[tuple[int, int], int]) -> int:
    if _HAS_PROC:
        for number in (1, 2):
            try:
                status = os.stat(f"/proc/{pid}/fd/{number}")
            except OSError:
                continue
            index = outputs.get((status.st_dev, status.st_ino), -1)
            if index >= 0:
                return index
    return -1


# ---------------------------------------------------------------- the table of processes


def _read(path: str) -> bytes:
    """A file of /proc whole; empty when the process is gone or not ours to look at."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, 1 << 16)
        if len(data) < 1 << 12:
            return data
        parts = [data]
        while data := os.read(fd, 1 << 16):
            parts.append(data)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _proc_processes(oldest: float) -> Iterator[_Process]:
    """Living processes started after ``oldest`` seconds since boot."""
    first = int((oldest - _TICK) * _TICKS)
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _proc_process(name)) is not None and process.start >= first:
            yield process


def _proc_process(pid: int | str) -> _Process | None:
    fields = _stat_fields(pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return _Process(int(pid), int(fields[19]), int(fields[1]), int(fields[2]), int(fields[3]))


def _stat_fields(pid: int | str) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    stat = _read(f"/proc/{pid}/stat")
    # The name stands in parentheses and may hold any character, parentheses included.
    fields = stat[stat.rfind(b")") + 2 :].split(None, 20)
    return fields if len(fields) >= 20 else []


def _psutil_processes() -> Iterator[_Process]:
    import psutil

    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield _Process(
                    process.pid,
                    int(process.create_time() * 1e6),
                    process.ppid(),
                    os.getpgid(process.pid),
                    os.getsid(process.pid),
                )
        except (psutil.Error, OSError):
            continue


def _environment_of(pid: int) -> bytes:
    if _HAS_PROC:
        return _read(f"/proc/{pid}/environ")
    import psutil

    try:
        entries = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return b""
    return b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in entries.items())


def _send_without_pidfd(member: Member, number: int) -> bool:
    if start_of(member.pid) != member.start:
        return False
    try:
        os.kill(member.pid, number)
    except ProcessLookupError:
        return False
    return True


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


@functools.cache
def _reaches_groups() -> bool:
    """Whether the kernel can signal a group by pidfd; EINVAL is its way to say that it cannot."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0, None, _TO_GROUP)
    except OSError as error:
        return error.errno != errno.EINVAL
    finally:
        os.close(pidfd)
    return True
