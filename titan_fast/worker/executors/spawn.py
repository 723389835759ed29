"""Attempts as processes of their own: one `spawn`, one output file, one pidfd, and the end of the whole tree.

The path of an attempt that starts and ends by itself is kept short: no task, no pipe, no timer but its own timeout. A
new process has to be waited for until it runs its program, which a busy machine may take a millisecond to let it do:
while others run, a thread waits instead of the loop. All pidfds sit in one epoll descriptor, which is the only thing
the event loop watches; where there are none, a timer asks for each child. What must be ended is left to the `sweep`.
Knows nothing of the master, of slots or of shipping output.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from titan_fast._accel import spawn
from titan_fast.ids import Ending
from titan_fast.worker.executors import tree
from titan_fast.worker.executors.base import Attempt, Clocks, Exit, Left, Observer, Outcome, Recorder
from titan_fast.worker.executors.sweep import Sweep
from titan_fast.worker.exits import Exits, Told
from titan_fast.worker.output import OUTPUT_NAME, note, total_size
from titan_fast.worker.results import MAX_RESULT, RESULT_NAME, RESULT_REFUSED, read_result

FILE_LIMIT = 1 << 40
"""RLIMIT_FSIZE, bytes. The output is kept short by punching holes, so this only ends what has gone mad."""

_LINGER = 0.25
"""Seconds that processes left behind by a leader that ended by itself have before KILL: what it piped its output
through (``exec > >(tee log)``) may be writing the last lines, and TERM would cut them."""
_POLL_FIRST = 0.002
_POLL_SLOWEST = 0.05
_MOST_STARTERS = min(4, os.cpu_count() or 1)
"""Threads that start processes; more would only wait for the same processors."""
_ENCODING = sys.getfilesystemencoding()
SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW
_HAS_PIDFD = hasattr(os, "pidfd_open") and hasattr(select, "epoll")


class Live:
    """An attempt that has been started and not been reported yet."""

    __slots__ = (
        "attempt",
        "began",
        "ended",
        "ending",
        "exit",
        "is_adopted",
        "is_reaped",
        "output",
        "pid",
        "pidfd",
        "start",
        "timer",
    )

    def __init__(self, attempt: Attempt, began: Clocks) -> None:
        self.attempt = attempt
        self.began = began
        self.pid = self.pidfd = self.output = -1
        self.start = 0
        """When an adopted leader was started, as `tree.Member.start`."""
        self.is_adopted = False
        """Its leader is the keeper's child: that one waits for it and tells how it ended."""
        self.timer: asyncio.TimerHandle | None = None
        self.ended = 0.0
        """When the leader was seen to have ended (monotonic); 0: it has not."""
        self.exit: Exit | None = None
        """How the leader ended, once that is known."""
        self.is_reaped = False
        """The leader has been waited for, here or by the keeper: its number may be another's."""
        self.ending: Ending | None = None
        """Why the tree is being ended; EXIT: the leader ended by itself and left processes behind."""

    def tree(self) -> tree.Tree:
        """How to tell its processes; only asked for when there is something to end."""
        env = self.attempt.env
        status = os.fstat(self.output) if self.output >= 0 else None
        return tree.Tree(
            leader=self.pid,
            born=self.began.boot,
            fence=encode(env.get("TITAN_FENCE", "")),
            place=encode(env.get("TITAN_ATTEMPT_DIR", "")),
            output=(status.st_dev, status.st_ino) if status is not None else (0, 0),
            start=self.start,
        )

    def has_ended(self) -> bool:
        """Whether the leader has, as the system knows it this moment."""
        if self.exit is not None:
            return True
        return tree.is_over(self.pidfd) if self.is_adopted else tree.has_exited(self.pid)


class _Watch:
    """Many pidfds as one descriptor for the loop: registering one costs a system call, not a handle of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[list[Live]], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._poll = select.epoll()
        self._live: dict[int, Live] = {}
        loop.add_reader(self._poll.fileno(), self._ready)

    def add(self, live: Live) -> None:
        # One shot: a dead leader may be kept for a while, and would be reported in every turn of the loop.
        self._poll.register(live.pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        self._live[live.pidfd] = live

    def remove(self, live: Live) -> None:
        """Before its pidfd is closed. That takes it out of the set, unless a child between fork and exec holds a copy:
        what has not been reported yet must not be reported under a number that is another's by then."""
        if self._live.pop(live.pidfd, None) is not None:
            self._poll.unregister(live.pidfd)

    def close(self) -> None:
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()

    def _ready(self) -> None:
        self._ended([self._live.pop(fd) for fd, _ in self._poll.poll(0)])


class _Poller:
    """The same without pidfds: a timer asks for each child, often at first, less and less while nothing happens."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[list[Live]], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._live: dict[int, Live] = {}
        self._pause = _POLL_FIRST
        self._timer: asyncio.TimerHandle | None = None

    def add(self, live: Live) -> None:
        self._live[live.pid] = live
        self._pause = _POLL_FIRST
        if self._timer is None:
            self._timer = self._loop.call_later(self._pause, self._look)

    def remove(self, live: Live) -> None:
        self._live.pop(live.pid, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        ended = [live for live in self._live.values() if tree.has_exited(live.pid)]
        self._pause = _POLL_FIRST if ended else min(_POLL_SLOWEST, self._pause * 1.5)
        for live in ended:
            del self._live[live.pid]
        if self._live:
            self._timer = self._loop.call_later(self._pause, self._look)
        if ended:
            self._ended(ended)


class _NoRecorder:
    """Nobody goes on with these attempts."""

    def spawn_note(self, fence: int) -> None: ...
    def spawned(self, fence: int, pid: int, at: float) -> None: ...
    def stopping(self, fence: int, ending: Ending) -> None: ...
    def exited(self, exits: Sequence[tuple[int, Exit]]) -> None: ...


class SpawnExecutor:
    """Runs commands as processes of their own (the contract is `base.Executor`)."""

    def __init__(
        self,
        observer: Observer,
        *,
        file_limit: int = FILE_LIMIT,
        recorder: Recorder | None = None,
        exits: Exits | None = None,
    ) -> None:
        """It belongs to the event loop that runs now.

        Args:
            observer: who is told.
            file_limit: RLIMIT_FSIZE of every attempt, bytes; 0: none.
            recorder: who writes down what the next executor needs to adopt.
            exits: the keeper's; without it nothing can be adopted.
        """
        self._observer = observer
        self._file_limit = file_limit
        self._recorder: Recorder = recorder or _NoRecorder()
        self._exits = exits
        self._adopted: dict[int, Live] = {}
        """By number of the leader, until the keeper tells how it ended."""
        self._loop = asyncio.get_running_loop()
        self._live: dict[int, Live] = {}
        self._news: deque[tuple[int, int, float] | Outcome] = deque()
        self._watch = _Watch(self._loop, self._leaders_ended) if _HAS_PIDFD else None
        self._poller = _Poller(self._loop, self._leaders_ended)
        self._sweep: Sweep[Live] = Sweep(_has_told_its_end, self._is_gone)
        self._empty: asyncio.Future[None] | None = None
        self._starters: list[threading.Thread] = []
        self._to_start: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._starting: set[int] = set()
        """Attempts whose process a thread is making."""
        self._wishes: dict[int, tuple[Ending, float]] = {}
        """Those of them that are to be ended as soon as they have begun, and their grace."""
        self._is_closed = False

    # ---------------------------------------------------------------- the contract

    def start(self, attempt: Attempt) -> None:
        """Begin. Never raises for what the attempt is: what cannot start ends with NOT_STARTED."""
        live = Live(attempt, Clocks(time.time(), time.monotonic(), tree.boot_time()))
        try:
            if self._is_closed:
                raise OSError(errno.ESHUTDOWN, "the worker is stopping")
            self._begin(live)
        except (OSError, ValueError) as error:
            self._cannot_begin(live, error)

    def _begin(self, live: Live) -> None:
        """Make the process, or see to it that it is made (then `_has_begun` follows, or `_cannot_begin`).

        Raises:
            OSError, ValueError: it cannot be.
        """
        attempt = live.attempt
        output = open_output(live)
        argv = [encode(text) for text in attempt.argv]
        if argv:
            argv[0] = _find_program(attempt)
        env = [encode(f"{key}={value}") for key, value in attempt.env.items()]
        cwd = encode(attempt.cwd)
        note = self._recorder.spawn_note(attempt.fence)
        if not self._live:
            self._has_begun(live, *spawn(argv, env, cwd, output, self._file_limit, note))
            return
        if note is not None:
            note = os.dup(note[0]), note[1]  # the journal may be another file by then
        self._leave_to_thread(live, note, lambda: spawn(argv, env, cwd, output, self._file_limit, note))

    def _leave_to_thread(self, live: Live, note: tuple[int, bytes] | None, make: Callable[[], tuple[int, int]]) -> None:
        """`_made` follows."""
        fence = live.attempt.fence
        self._live[fence] = live
        self._starting.add(fence)

        def work() -> None:
            made: tuple[int, int] | OSError | ValueError
            try:
                made = make()
            except (OSError, ValueError) as error:
                made = error
            if note is not None:
                os.close(note[0])
            self._loop.call_soon_threadsafe(self._made, live, made)

        if len(self._starters) < min(_MOST_STARTERS, len(self._starting)):
            starter = threading.Thread(target=_work_off, args=(self._to_start,), name="titan-starter", daemon=True)
            try:
                starter.start()
                self._starters.append(starter)
            except RuntimeError:  # there are too many in this system
                if not self._starters:
                    work()
                    return
        self._to_start.put(work)

    def _made(self, live: Live, made: tuple[int, int] | OSError | ValueError) -> None:
        fence = live.attempt.fence
        self._starting.discard(fence)
        wish = self._wishes.pop(fence, None)
        if not isinstance(made, tuple):
            self._cannot_begin(live, made)
            return
        self._has_begun(live, *made)
        if wish is not None:
            self._end(live, *wish)

    def _has_begun(self, live: Live, pid: int, pidfd: int) -> None:
        """There is a process, our child."""
        attempt = live.attempt
        live.pid, live.pidfd = pid, pidfd
        self._recorder.spawned(attempt.fence, live.pid, tree.boot_time())
        self._live[attempt.fence] = live
        (self._poller if self._watch is None or live.pidfd < 0 else self._watch).add(live)
        self._time_out_after(live, attempt.timeout)
        self._tell_soon((attempt.fence, live.pid, live.began.wall))

    def _cannot_begin(self, live: Live, error: OSError | ValueError) -> None:
        if live.output >= 0:
            os.close(live.output)
        self._tell_soon(_not_started(live, error))
        self._forget(live)

    def _forget(self, live: Live) -> None:
        self._live.pop(live.attempt.fence, None)
        if self._empty is not None and not self._live:
            self._empty.set_result(None)
            self._empty = None

    def _time_out_after(self, live: Live, seconds: float) -> None:
        attempt = live.attempt
        if attempt.timeout > 0:
            live.timer = self._loop.call_later(max(0.0, seconds), self._end, live, Ending.TIMEOUT, attempt.grace)

    def kill(self, fence: int, grace: float) -> None:
        """TERM to the tree, ``grace`` seconds later KILL; ends as KILLED. Unknown or ended fences are ignored."""
        live = self._live.get(fence)
        if live is not None:
            self._end(live, Ending.KILLED, grace)

    async def close(self, grace: float) -> None:
        """Kill everything, wait until it is gone."""
        self._is_closed = True
        for live in list(self._live.values()):
            self._end(live, Ending.KILLED, grace)
        while self._live:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)
        self._deliver()
        self._poller.close()
        for _ in self._starters:
            self._to_start.put(None)
        while self._starters:
            self._starters.pop().join()
        self._sweep.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._exits is not None:
            self._exits.close()
            self._exits = None

    # ---------------------------------------------------------------- adopting

    def adopt(self, left: Sequence[Left]) -> list[int]:
        """Go on with what an earlier agent left; see `base.Executor`."""
        found = [(each, self._find_again(each)) for each in left]
        # Whoever had been waited for before we looked is in the backlog: the keeper makes its note first.
        backlog = self._exits.backlog() if self._exits is not None else []
        over: list[Live] = []
        gone: list[Live] = []
        for each, live in found:
            live.exit = each.exit or _told_of(live, each, backlog)
            if live.output < 0 or not (live.is_adopted or live.exit is not None):
                gone.append(live)
                continue
            self._live[each.attempt.fence] = live
            if live.exit is not None:
                live.is_reaped = True
                over.append(live)
            else:
                self._adopted[live.pid] = live
            if each.stopping is not None:
                # The other agent may not have come to TERM.
                self._begin_to_end(live, each.stopping, each.attempt.grace)
            else:
                self._time_out_after(live, each.attempt.timeout - (time.monotonic() - each.began.monotonic))
        tree.stop_and_kill([live.tree() for live in gone], set())
        for live in gone:
            _close(live)
        if self._exits is not None:
            tree.end_strangers(self._exits.parent, [live.tree() for live in self._live.values()])
            self._recorder.exited([(live.attempt.fence, live.exit) for live in over if live.exit is not None])
            self._exits.taken(len(backlog))
            self._exits.listen(self._told)
        if over:
            self._loop.call_soon(self._leaders_ended, over)
        return [live.attempt.fence for live in gone]

    def _find_again(self, left: Left) -> Live:
        """An attempt with its output, and its first process if that is there; adopted if it is the keeper's now."""
        attempt, born = left.attempt, left.began.boot
        live = Live(attempt, left.began)
        with contextlib.suppress(OSError):
            # A task may have removed its output; the marks of an empty one do no harm.
            live.output = os.open(f"{attempt.attempt_dir}/{OUTPUT_NAME}", os.O_RDONLY | os.O_CREAT | SAFELY, 0o600)
        keeper = self._exits.parent if self._exits is not None else -1
        pid, spawned = left.pid, left.spawned
        if not pid:
            fence, place = attempt.env.get("TITAN_FENCE", ""), attempt.env.get("TITAN_ATTEMPT_DIR", "")
            pid = tree.find_child(keeper, born, encode(fence), encode(place))
            spawned = tree.boot_time()
        pidfd = open_pidfd(pid)
        process = tree.find(pid)
        if process is None or not tree.is_start(process.start, born, spawned):
            if pidfd >= 0:
                os.close(pidfd)
            return live
        live.pid, live.pidfd, live.start = pid, pidfd, process.start
        live.is_adopted = pidfd >= 0 and process.parent == keeper
        if live.is_adopted and not left.pid:
            self._recorder.spawned(attempt.fence, pid, spawned)
        return live

    def _told(self, news: list[Told]) -> None:
        """The keeper has waited for these; some of them are leaders of ours."""
        ended = []
        for told in news:
            live = self._adopted.get(told.pid)
            if live is not None and live.start == told.start:
                del self._adopted[told.pid]
                live.exit = told.exit
                live.is_reaped = True
                ended.append(live)
        self._recorder.exited([(live.attempt.fence, live.exit) for live in ended if live.exit is not None])
        if self._exits is not None:
            self._exits.taken(len(news))
        self._leaders_ended(ended)

    # ---------------------------------------------------------------- telling

    def _tell_soon(self, news: tuple[int, int, float] | Outcome) -> None:
        if not self._news:
            self._loop.call_soon(self._deliver)
        self._news.append(news)

    def _deliver(self) -> None:
        """Tell what there is to tell, in order. Only from the loop, never below `start` or `kill`."""
        while self._news:
            news = self._news.popleft()
            try:
                if isinstance(news, Outcome):
                    self._observer.attempt_ended(news)
                else:
                    self._observer.attempt_started(*news)
            except Exception as error:  # a listener's fault must not cost the others their news
                self._loop.call_exception_handler({"message": "an executor's observer failed", "exception": error})

    # ---------------------------------------------------------------- the end of a leader

    def _leaders_ended(self, ended: list[Live]) -> None:
        """They have ended. Our own children have not been waited for; how the others ended is known."""
        self._look_at_exits([live for live in ended if live.exit is None])
        for live in ended:
            assert live.exit is not None
            live.ended = live.exit.at
            if live.ending is not None:
                self._sweep.look_soon()
                continue
            if live.timer is not None:
                live.timer.cancel()
            _wait_for(live)
            if live.pid < 0 or tree.send_group(live.pidfd, live.pid, 0) or tree.is_held(live.output):
                self._begin_to_end(live, Ending.EXIT, _LINGER)
            else:
                self._finish(live)
        self._deliver()

    def _look_at_exits(self, ended: list[Live]) -> None:
        """How children of ours ended: seen and written down before any of them is waited for."""
        if ended:
            exits = [_exit_of(live.pid) for live in ended]
            for live, how in zip(ended, exits, strict=True):
                live.exit = how
            self._recorder.exited([(live.attempt.fence, how) for live, how in zip(ended, exits, strict=True)])

    def _finish(self, live: Live) -> None:
        """The tree is gone: say how it went. The caller delivers."""
        attempt = live.attempt
        if live.exit is None:
            self._look_at_exits([live])
        assert live.exit is not None
        _wait_for(live)
        (self._poller if self._watch is None or live.pidfd < 0 else self._watch).remove(live)
        how, code = live.exit.how, live.exit.code
        output_path = f"{attempt.attempt_dir}/{OUTPUT_NAME}"
        result = read_result(f"{attempt.attempt_dir}/{RESULT_NAME}")
        if result.complaint:
            note(output_path, result.complaint)
        if live.ending is None or live.ending is Ending.EXIT:
            ending = Ending.EXIT if how == os.CLD_EXITED else Ending.SIGNAL
            if result.complaint and ending is Ending.EXIT and code == 0:
                code = RESULT_REFUSED
        else:
            ending = live.ending
            if how != os.CLD_EXITED:
                code = -code
        size = total_size(live.output, output_path)
        _close(live)
        duration = (live.ended or live.exit.at) - live.began.monotonic
        is_file = result.is_file and ending is Ending.EXIT and code == 0  # of a failure no file is kept
        self._news.append(Outcome(attempt.fence, ending, code, live.began.wall, duration, size, result.text, is_file))
        self._forget(live)

    # ---------------------------------------------------------------- ending a tree

    def _end(self, live: Live, ending: Ending, grace: float) -> None:
        """TERM, KILL after the grace. Also when it is being ended already: the earlier end counts."""
        fence = live.attempt.fence
        if fence in self._starting:
            _, earlier = self._wishes.get(fence, (ending, grace))
            self._wishes[fence] = (ending, min(earlier, grace))
        elif live.ending is None:
            if not live.has_ended():  # otherwise it was faster: its descriptor is ready, and it ended by itself
                if live.timer is not None:
                    live.timer.cancel()
                self._begin_to_end(live, ending, grace)
        elif live.ending is not Ending.EXIT:
            if ending is Ending.KILLED and live.ending is not ending:
                live.ending = ending
                self._recorder.stopping(fence, ending)
            self._sweep.hasten(live, grace)

    def _begin_to_end(self, live: Live, ending: Ending, grace: float) -> None:
        live.timer = None
        live.ending = ending
        is_forced = ending is not Ending.EXIT
        if is_forced:
            self._recorder.stopping(live.attempt.fence, ending)
        output = f"{live.attempt.attempt_dir}/{OUTPUT_NAME}"
        self._sweep.begin(live, live.tree(), live.pidfd, output, grace, ask=is_forced)

    def _is_gone(self, live: Live) -> None:
        self._finish(live)
        self._deliver()


# ---------------------------------------------------------------- starting


def _work_off(orders: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """A thread that starts processes, until it gets None."""
    while (work := orders.get()) is not None:
        work()


def encode(text: str) -> bytes:
    return text.encode(_ENCODING, "surrogateescape")


def open_output(live: Live) -> bytes:
    """Make its output, open it for us to read; where it is. Only what writes to it opens it for writing: a descriptor
    of ours would be copied by every other process that is being made, and it would look as if somebody still wrote."""
    path = f"{live.attempt.attempt_dir}/{OUTPUT_NAME}"
    if live.output < 0:
        live.output = os.open(path, os.O_RDONLY | os.O_CREAT | SAFELY, 0o600)
    return encode(path)


def _find_program(attempt: Attempt) -> bytes:
    """The path of argv[0]: itself when it has a slash, else the first program of that name on the attempt's PATH."""
    name = attempt.argv[0]
    if "/" in name or not name:
        return encode(name)
    path = attempt.env.get("PATH", os.defpath)
    for folder in path.split(os.pathsep):
        place = f"{folder}/{name}" if folder.startswith("/") else os.path.join(attempt.cwd, folder, name)
        if os.access(place, os.X_OK) and not os.path.isdir(place):
            return encode(place)
    raise FileNotFoundError(errno.ENOENT, f"the program {name!r} was not found on PATH ({path})")


def _not_started(live: Live, error: OSError | ValueError) -> Outcome:
    number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
    text = _reason(live.attempt, error).encode("utf-8", "backslashreplace")[:MAX_RESULT]
    return Outcome(live.attempt.fence, Ending.NOT_STARTED, number, live.began.wall, 0.0, 0, text)


def _reason(attempt: Attempt, error: OSError | ValueError) -> str:
    """Why it did not start, in words that name the thing and what to do."""
    if not isinstance(error, OSError):
        return "the command is empty" if not attempt.argv else f"it cannot be started: {error}"
    name = error.filename
    if name is None:
        return error.strerror or str(error)
    if name == attempt.cwd and not os.path.isdir(name):
        return f"the working directory {name} " + ("is not a directory" if os.path.exists(name) else "does not exist")
    if name == attempt.cwd and error.errno == errno.EACCES:
        return f"the working directory {name} may not be entered by this user"
    if error.errno == errno.E2BIG:
        size = sum(map(len, attempt.argv)) + sum(len(key) + len(value) + 2 for key, value in attempt.env.items())
        return f"the arguments and the environment are too long ({size} characters)"
    if error.errno == errno.ENOEXEC:
        return f"{name} is no program this system can run: it has no first line that names an interpreter (#!)"
    there = os.path.join(attempt.cwd, name)
    if error.errno == errno.ENOENT and os.path.exists(there):
        return f"{name} names an interpreter in its first line (#!) that does not exist here"
    if error.errno == errno.ENOENT:
        return f"{name} does not exist"
    if error.errno == errno.EACCES:
        return f"{name} is a folder" if os.path.isdir(there) else f"{name} is not executable (chmod +x?)"
    return f"{name}: {error.strerror}"


# ---------------------------------------------------------------- ending


def _exit_of(pid: int) -> Exit:
    """How a child that has ended did so. It stays to be waited for, where the system lets us look without."""
    how, code = os.CLD_EXITED, 255  # somebody waited for every child of this process; the code is lost
    with contextlib.suppress(ChildProcessError):
        if hasattr(os, "waitid"):
            info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            if info is not None:
                how, code = info.si_code, info.si_status
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            how, code = (os.CLD_EXITED, status) if status >= 0 else (os.CLD_KILLED, -status)
    return Exit(how, code, time.monotonic())


def _has_told_its_end(live: Live) -> bool:
    """Of one that we adopted the keeper tells us, and how."""
    return live.exit is not None or (not live.is_adopted and live.has_ended())


def _wait_for(live: Live) -> None:
    """Give the number of a leader back, if it is our child and has not been waited for."""
    if not live.is_reaped and not live.is_adopted and live.pid > 0:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(live.pid, 0)
    live.is_reaped = True


def _told_of(live: Live, left: Left, backlog: list[Told]) -> Exit | None:
    """What the keeper knows of the end of an attempt's first process: the one we saw, or the one written down, or, if
    that agent did not come to it, the one that was given this attempt's directory."""
    for told in backlog:
        if (told.pid, told.start) == (live.pid, live.start):
            return told.exit
        if told.pid == left.pid and tree.is_start(told.start, left.began.boot, left.spawned):
            return told.exit
        if not left.pid and live.pid < 0 and told.place == encode(left.attempt.attempt_dir):
            return told.exit
    return None


def open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except (OSError, AttributeError):
        return -1


def _close(live: Live) -> None:
    for fd in (live.pidfd, live.output):
        if fd >= 0:
            os.close(fd)
