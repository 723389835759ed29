"""A process that has Python up and waits to be forked: each fork of it is one attempt's script.

Started by path, ``python -u -P _template.py AGENT FOLDER [MODULE…]``, with a socket to its agent as descriptor 3. It
never executes a script, opens nothing while it serves but small scripts to compile them, and its loop is "take an
order, fork". A fork is a child of the agent (docs/decisions/012-warm-children.md), so nobody here waits for it, and it
outlives this process. Imports nothing of the house and little of anything else, for a script must find what a fresh
interpreter has. Gone when its agent is.

Orders are marshalled, one a message, behind the path of the script, with the descriptor of the agent's journal. Answers
are words: ``up``, ``no WHY``, and of the child itself ``began NUMBER PID`` or ``failed NUMBER PID ERRNO STEP``; PID 0
when there is no child.
"""

# ruff: noqa: E402, SIM105  (the order of the first lines matters; contextlib would have to be loaded)

from __future__ import annotations

_NAMES = tuple(name for name in globals() if name.startswith("__"))
"""What a ``__main__`` of this interpreter begins with."""

import sys

_FRESH = frozenset(sys.modules)
"""What a fresh interpreter has loaded."""

import _imp
import _signal  # type: ignore[import-not-found]  # `signal` would load much more
import _socket
import _warnings
import _weakref
import atexit
import ctypes
import gc
import marshal
import os
import posix
import time
from itertools import islice as _islice

TYPE_CHECKING = False  # as `typing` has it, which a fresh interpreter has not loaded
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any, NoReturn

    Codes = dict[bytes, tuple[tuple[int, ...], CodeType, int]]
    """By path: what the file was like, what it compiled to, and how many bytes that is about."""

SOCKET = 3
MAX_ORDER = 1 << 18
MAX_CODE = 1 << 17
"""Bytes of a compiled script that is worth keeping."""
SMALL = 1 << 13
"""Bytes of a script that is compiled before the fork: it takes a few milliseconds at most."""
MOST_SCRIPTS = 1024
MOST_CODE = 16 << 20
MOST_FOLDERS = 64
ROOM = 1 << 15
"""Bytes of arguments and environment that a child need not find room for."""
MOST_LOOKS = 64
"""Names that are looked for in a folder one by one, as long as it may be."""
SETTLED = 50_000_000
"""Nanoseconds after which a folder that changes has another time of its last change, however coarse that is."""
_BEFORE_BYTES = 5
"""What marshal writes before bytes: a type and their number."""
PROBE_TIME = 5.0
"""Seconds a forked child has to use what was loaded."""

_CLONE = {"x86_64": (56, 3), "aarch64": (220, 4)}
"""By machine: the number of clone(2), and where among its arguments the child's thread id has its address."""
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_CLOSE_RANGE = 436
_IGNORED = (_signal.SIGPIPE, _signal.SIGXFSZ)
"""What Python ignores, and what it starts must not."""
_PR_SET_PDEATHSIG, _PR_GET_TID_ADDRESS, _PR_SET_MM, _PR_SET_MM_MAP = 1, 40, 35, 14
_RLIMIT_FSIZE = 1
_FILE_TYPE, _REGULAR = 0o170000, 0o100000

_PROBES = {
    "numpy": "a = module.ones((300, 300)); assert (a @ a)[0, 0] == 300; module.linalg.eigvalsh(a)",
    "scipy": "from scipy import linalg; linalg.inv([[2.0, 0.0], [0.0, 2.0]])",
    "pandas": "assert module.DataFrame({'a': [1, 2]}).groupby('a').size().sum() == 2",
    "torch": "a = module.ones((300, 300)); assert float((a @ a)[0, 0]) == 300",
}
"""What a child must be able to do with a module; with the others, to look at what they offer."""


class _Map(ctypes.Structure):
    """prctl_mm_map of linux/prctl.h: where the system reads a process's arguments and environment."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk")),
        *((name, ctypes.c_uint64) for name in ("start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv")),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    ]


class Unable(Exception):
    """This process cannot be a template; the text says why."""


class System:
    """The calls that Python has no name for, looked up once. The lock of the interpreter is kept throughout."""

    def __init__(self) -> None:
        self._c = ctypes.PyDLL(None, use_errno=True)
        self._c.sbrk.restype = ctypes.c_void_p
        machine = os.uname().machine
        if machine not in _CLONE:
            raise Unable(f"processes are not forked for others on {machine}")
        address = ctypes.c_void_p()
        if self._c.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) or not address.value:
            raise Unable("the kernel does not tell where the C library keeps the number of a thread")
        # The C library remembers the thread's number there, and a child has another one. (musl keeps it elsewhere.)
        if ctypes.c_int.from_address(address.value).value != os.getpid():
            raise Unable("this C library keeps the number of a thread where it is not found")
        self._clone, place = _CLONE[machine]
        self._rest = [ctypes.c_ulong(0)] * 4
        self._rest[place - 1] = ctypes.c_ulong(address.value)
        with open("/proc/self/stat", "rb", 0) as file:
            fields = file.read().rpartition(b")")[2].split()
        code, data, ends = fields[23:26], fields[42:45], fields[45:49]
        start_code, end_code, stack = map(int, code)
        self._map = _Map(start_code, end_code, *map(int, data), 0, stack, *map(int, ends), 0, 0, 0xFFFFFFFF)
        if self._set_map():
            raise Unable("the kernel does not let a process say where its environment is")
        self._shown = ctypes.create_string_buffer(ROOM)  # made here: a child would make a type first, for its size
        self._limits = (ctypes.c_uint64 * 2)()
        with open("/proc/self/environ", "rb", 0) as file:
            given = {entry.partition(b"=")[0] for entry in file.read().split(b"\0")}
        self.added = {key: value for key, value in os.environb.items() if key not in given}
        """Variables that the interpreter itself sets at its start: LC_CTYPE, where the C locale is not good enough."""

    def die_with(self, parent: int) -> None:
        """Be killed when the parent is; end now if it already was."""
        self._c.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)

    def fork(self, is_mine: bool = False) -> int:
        """As os.fork, but the child is our parent's; -errno when there is none."""
        flags = _signal.SIGCHLD | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | (0 if is_mine else _CLONE_PARENT)
        self._c.PyOS_BeforeFork()
        pid: int = self._c.syscall(self._clone, ctypes.c_ulong(flags), *self._rest)
        if pid == 0:
            self._c.PyOS_AfterFork_Child()
            return 0
        number = ctypes.get_errno()
        self._c.PyOS_AfterFork_Parent()
        return pid if pid > 0 else -number

    def limit_files(self, size: int) -> None:
        """RLIMIT_FSIZE, soft and hard, never above what the hard one is."""
        limits = self._limits
        self._c.getrlimit(_RLIMIT_FSIZE, limits)
        limits[0] = limits[1] = min(size, limits[1])
        if self._c.setrlimit(_RLIMIT_FSIZE, limits):
            raise OSError(ctypes.get_errno(), "RLIMIT_FSIZE")

    def show(self, argv: list[bytes], env: list[bytes]) -> None:
        """Have the system show these as our arguments and environment; what tells processes apart reads them."""
        first = b"\0".join((*argv, b""))
        data = first + b"\0".join((*env, b""))
        if len(data) > ROOM:
            self._shown = ctypes.create_string_buffer(len(data))
        start = ctypes.addressof(self._shown)
        ctypes.memmove(start, data, len(data))
        self._map.arg_start, self._map.arg_end = start, start + len(first)
        self._map.env_start, self._map.env_end = start + len(first), start + len(data)
        self._set_map()

    def _set_map(self) -> int:
        self._map.brk = self._c.sbrk(ctypes.c_long(0))
        size = ctypes.c_ulong(ctypes.sizeof(self._map))
        code: int = self._c.prctl(_PR_SET_MM, ctypes.c_ulong(_PR_SET_MM_MAP), ctypes.byref(self._map), size, 0)
        return code

    def close_from(self, first: int) -> None:
        """Close every descriptor from this one on."""
        if self._c.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0):
            for name in os.listdir("/proc/self/fd"):
                if int(name) >= first:
                    try:
                        os.close(int(name))
                    except OSError:
                        pass  # the one that was listing

    def clear_environment(self) -> None:
        self._c.clearenv()

    def flush(self) -> None:
        """What C code wrote and the C library still holds."""
        self._c.fflush(None)

    def exit(self, code: int) -> NoReturn:
        """End as the interpreter does when other threads are still there: it stops them before it tidies up."""
        self._c.Py_Exit(code)
        raise AssertionError("it does not return")


def _hide_safe_path() -> None:
    """The script was not started with our -P, and what it starts should not be."""
    text = repr(sys.flags)
    names = [part.partition("=")[0].strip() for part in text[text.index("(") + 1 : -1].split(",")]
    if "safe_path" in names:
        place = ctypes.c_ssize_t(names.index("safe_path"))
        ctypes.pythonapi.PyStructSequence_SetItem(ctypes.py_object(sys.flags), place, ctypes.py_object(False))


# ---------------------------------------------------------------- the template


class Template:
    """Takes orders. `serve` returns in a child, with what that is to run; in the template it does not."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._agent = _socket.socket(fileno=SOCKET)
        self._kept, self._keeping = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        """Children hand over what they compiled."""
        self._kept.setblocking(False)
        self._keeping.setblocking(False)
        self._codes: Codes = {}
        self._folders: dict[str, tuple[int, ...]] = {}
        """What folders with scripts were like in which nothing stands before a module of ours."""
        self._known = self._codes, self._folders
        self._size = 0

    def load(self, names: list[str]) -> str:
        """Load modules and try them in a child; what is wrong with them, or an empty text."""
        for name in names:
            try:
                __import__(name)
            except BaseException as error:
                return f"{name} cannot be loaded: {type(error).__name__}: {error}"
        if names:
            # An ordinary fork runs what modules registered for it: some end their threads then, and begin anew.
            self._wait_for(os.fork() or os._exit(0))
            if (threads := len(os.listdir("/proc/self/task"))) > 1:
                return f"{', '.join(names)}: {threads - 1} threads run after loading, which a fork would not have"
            child = self._system.fork(is_mine=True)
            if child == 0:
                self._probe(names)
            if how := self._wait_for(child):
                return f"{', '.join(names)}: a forked process cannot use what was loaded: {how}"
        return ""

    def _wait_for(self, child: int) -> str:
        """How a child of ours ended, in words; empty when well."""
        deadline = time.monotonic() + PROBE_TIME
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return "" if code == 0 else f"exit code {code}" if code > 0 else f"signal {-code}"
            if time.monotonic() > deadline:
                os.kill(child, _signal.SIGKILL)
                os.waitpid(child, 0)
                return f"it hangs for {PROBE_TIME:g} s"
            time.sleep(0.001)

    def say(self, text: str) -> None:
        self._agent.send(text.encode("utf-8", "replace"))

    def serve(self) -> Child:
        """Take orders until the agent is gone."""
        _compile_without_warning(b"0", "")  # the compiler makes 120 types when it is first used
        gc.collect()
        gc.disable()
        gc.freeze()
        _COLLECTIONS[:] = _collections()
        fork, receive, buffer = self._system.fork, self._agent.recvmsg_into, bytearray(MAX_ORDER)
        while True:
            size, rights, _, _ = receive([buffer], 64)
            if not size:
                os._exit(0)
            self._hear_children()
            path = marshal.loads(buffer)
            self._compile(path)
            gc.freeze()  # what was kept since: a child looks at its own objects alone when it ends
            pid = fork()
            journal = int.from_bytes(rights[0][2][:4], sys.byteorder) if rights else -1
            if pid == 0:
                order = marshal.loads(memoryview(buffer)[_BEFORE_BYTES + len(path) : size])
                return Child(self._system, order, journal, self._agent.detach(), self._keeping.detach(), self._known)
            if journal >= 0:
                os.close(journal)
            if pid < 0:
                number = marshal.loads(memoryview(buffer)[_BEFORE_BYTES + len(path) : size])[0]
                self.say(f"failed {number} 0 {-pid} fork")

    def _hear_children(self) -> None:
        """What they compiled, and which folders they looked at, since the last order."""
        while True:
            try:
                path, stamp, code = marshal.loads(data := self._kept.recv(MAX_CODE))
            except BlockingIOError:
                return
            if code is not None:
                self._keep(path, stamp, code, len(data))
            else:
                self._folders[path] = stamp
                if len(self._folders) > MOST_FOLDERS:
                    del self._folders[next(iter(self._folders))]

    def _keep(self, path: bytes, stamp: tuple[int, ...], code: CodeType, size: int) -> None:
        self._size += size - self._codes.pop(path, (0, 0, 0))[2]
        self._codes[path] = (stamp, code, size)
        while len(self._codes) > MOST_SCRIPTS or self._size > MOST_CODE:
            oldest = next(iter(self._codes))
            self._size -= self._codes.pop(oldest)[2]

    def _compile(self, path: bytes) -> None:
        """A small script that is not known yet. What is large, is no file, has an error or makes the compiler warn is
        left to the child."""
        try:
            stamp = _stamp(status := os.stat(path))
            known = self._codes.get(path)
            if known is not None and known[0] == stamp:
                return
            if status.st_mode & _FILE_TYPE != _REGULAR or status.st_size > SMALL:
                return
            script = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                source = os.read(script, SMALL + 1)
                if _stamp(os.fstat(script)) == stamp and len(source) == status.st_size:
                    code = _compile_without_warning(source, os.fsdecode(path))
                    self._keep(path, stamp, code, 4 * len(source) + 1000)
            finally:
                os.close(script)
        except Exception:
            pass  # the child finds the same, and tells

    def _probe(self, names: list[str]) -> NoReturn:
        """In a child: use the modules, and end."""
        code = 1
        try:
            self._agent.detach()
            self._system.close_from(SOCKET)
            for name in names:
                module = sys.modules[name]
                exec(_PROBES.get(name, "[getattr(module, each, None) for each in dir(module)]"), {"module": module})
            gc.collect()
            code = 0
        finally:
            os._exit(code)


# ---------------------------------------------------------------- a child


class Child:
    """A process that becomes one attempt: what a fresh interpreter would be, with the same number all the way."""

    def __init__(
        self,
        system: System,
        order: Any,
        journal: int,
        agent: int,
        keeping: int,
        known: tuple[Codes, dict[str, tuple[int, ...]]],
    ) -> None:
        self._system = system
        self._agent = agent
        self._keeping = keeping
        self._codes, self._folders = known
        number, self._argv, self._env, self._cwd, self._output, self._limit, self._note = order
        self._number: int = number
        self._journal = journal
        self._status = 1

    def run(self) -> NoReturn:
        """Everything. Does not return."""
        try:
            self._begin()
            code, folder = self._find_code()
            try:
                self._become(folder)
            except Exception:
                self._start_over()
            self._play(code)
        finally:
            os._exit(self._status)

    # ------------------------------------------------------------ what a new process is

    def _begin(self) -> None:
        """Up to the point where a program would be executed. Whatever fails, the agent is told."""
        step = "output"
        try:
            os.setsid()
            if self._journal >= 0:
                self._write_note()
            output = os.open(self._output, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.dup2(output, 1)
            os.dup2(output, 2)
            step = "folder"
            os.chdir(self._cwd)
            step = "start"
            if self._limit > 0:
                self._system.limit_files(self._limit)
            self._system.show(self._argv, [key + b"=" + value for key, value in self._env])
        except OSError as error:
            self._say(f"failed {self._number} {os.getpid()} {error.errno} {step}")
            os._exit(127)
        self._say(f"began {self._number} {os.getpid()}")

    def _say(self, text: str) -> None:
        os.write(self._agent, text.encode())

    def _write_note(self) -> None:
        """As `_spawn` does: nothing runs that was not written down."""
        try:
            at = time.clock_gettime(time.CLOCK_BOOTTIME)
            os.write(self._journal, b"%s%d,%.6f]\n" % (self._note, os.getpid(), at))
        except OSError:
            pass  # a full disk: the agent writes it, too

    # ------------------------------------------------------------ what to run

    def _find_code(self) -> tuple[CodeType, str]:
        """The compiled script, from the template's memory or anew, and where it lies. After that nobody else's
        descriptors are open any more."""
        code, path = None, self._argv[2]
        try:
            script = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(script)
            place = os.readlink(f"/proc/self/fd/{script}")
            stamp = _stamp(status)
            known = self._codes.get(path)
            if known is not None and known[0] == stamp:
                code = known[1]
            else:
                source = os.read(script, status.st_size + 1)
                if len(source) == status.st_size:
                    code = self._compile(source, path, stamp)
            folder = place.rpartition("/")[0] or "/"
            if self._is_shadowed(folder):
                code = None
        except Exception:
            code = None  # a fresh interpreter knows best what to say
        self._system.close_from(SOCKET)
        if code is None or place.endswith(" (deleted)"):
            self._start_over()
        return code, folder

    def _compile(self, source: bytes, path: bytes, stamp: tuple[int, ...]) -> CodeType:
        name = os.fsdecode(path)
        try:
            code = _compile_without_warning(source, name)
        except Exception:
            return compile(source, name, "exec", dont_inherit=True)
        self._keep(marshal.dumps((path, stamp, code)))
        return code

    def _is_shadowed(self, folder: str) -> bool:
        """Whether a fresh interpreter would load something there instead of a module we have."""
        status = os.stat(folder)
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
        if self._folders.get(folder) == stamp:
            return False
        if _is_shadowed(folder):
            return True
        if time.time_ns() - status.st_ctime_ns > SETTLED:
            self._keep(marshal.dumps((folder, stamp, None)))
        return False

    def _keep(self, data: bytes) -> None:
        if len(data) <= MAX_CODE:
            try:
                os.write(self._keeping, data)
            except OSError:
                pass  # nobody has ordered anything for a while

    def _start_over(self) -> NoReturn:
        """Become a fresh interpreter after all; the process, its number and its notes stay."""
        for number in _IGNORED:
            _signal.signal(number, _signal.SIG_DFL)
        os.execve(os.fsencode(sys.executable), self._argv, dict(self._env))

    # ------------------------------------------------------------ what a fresh interpreter is

    def _become(self, folder: str) -> None:
        """Environment, arguments, path and __main__ as ``python -u FILE`` has them."""
        self._system.clear_environment()
        env = dict(self._env)
        for key, value in self._system.added.items():
            env.setdefault(key, value)
        for key, value in env.items():
            os.putenv(key, value)
        for known in (vars(os.environ)["_data"], posix.environ):
            known.clear()
            known.update(env)
        _, _, path, *_ = texts = [os.fsdecode(text) for text in self._argv]
        sys.argv[:] = texts[2:]
        sys.orig_argv[:] = texts
        sys.path.insert(0, folder)
        main = type(sys)("__main__")
        loader = type(globals()["__loader__"])("__main__", path)
        given = {"__name__": "__main__", "__file__": path, "__loader__": loader, "__annotations__": {}, "__doc__": None}
        names = main.__dict__
        names.clear()
        for name in _NAMES:
            names[name] = given[name] if name in given else globals()[name]
        sys.modules["__main__"] = main
        for name in ("random", "numpy.random"):
            if name in sys.modules:
                sys.modules[name].seed()
        gc.enable()

    def _play(self, code: CodeType) -> None:
        names = sys.modules["__main__"].__dict__
        failure = None
        try:
            exec(code, names)
            self._status = 0
        except BaseException as error:
            failure = error
        if failure is not None:  # not inside of the handler: what follows has nothing to do with it
            self._tell(failure)
        for name in ("__file__", "__cached__"):
            names.pop(name, None)
        del failure, names, code
        self._codes = {}
        self._shut_down()

    def _tell(self, error: BaseException) -> None:
        """What an interpreter says of an exception that nobody caught, and the exit code it has then."""
        self._status = 1
        if isinstance(error, SystemExit):
            self._status = _exit_code(error.code)
            return
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        error = error.with_traceback(trace)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        if sys.version_info >= (3, 12):
            sys.last_exc = error
        try:
            hook = sys.excepthook
            sys.audit("sys.excepthook", hook, type(error), error, trace)
            hook(type(error), error, trace)
        except SystemExit as end:
            self._status = _exit_code(end.code)
        except BaseException as second:
            following = second.__traceback__.tb_next if second.__traceback__ is not None else None
            _write_error("Error in sys.excepthook:\n")
            sys.__excepthook__(type(second), second.with_traceback(following), following)
            _write_error("\nOriginal exception was:\n")
            sys.__excepthook__(type(error), error, trace)
        if isinstance(error, KeyboardInterrupt):
            self._status = -_signal.SIGINT

    # ------------------------------------------------------------ the end

    def _shut_down(self) -> None:
        """Threads, exit functions, buffers, then the script's objects: in the order of the interpreter."""
        threading = sys.modules.get("threading")
        if threading is not None:
            self._try(threading._shutdown)
        self._try(atexit._run_exitfuncs)
        self._flush()
        if len(sys._current_frames()) > 1:
            self._system.exit(max(0, self._status))  # threads that nobody waits for are still running
        _forget_modules()
        self._flush()
        self._system.flush()
        if self._status == -_signal.SIGINT:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGINT)

    def _try(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)

    def _flush(self) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            try:
                if stream is not None and not getattr(stream, "closed", False):
                    stream.flush()
            except BaseException as error:
                self._status = 120
                if name == "stdout":
                    _write_error(f"Exception ignored in: {stream!r}\n")
                    sys.__excepthook__(type(error), error.with_traceback(None), None)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What tells one content of a file from another."""
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _compile_without_warning(source: bytes, path: str) -> CodeType:
    """Raises whatever the compiler has to say, a warning, too: it is the child's to tell, each time."""
    changed = _warnings._filters_mutated  # type: ignore[attr-defined]
    _warnings.filters.insert(0, ("error", None, Warning, None, 0))
    changed()
    try:
        return compile(source, path, "exec", dont_inherit=True)
    finally:
        del _warnings.filters[0]
        changed()


def _is_shadowed(folder: str) -> bool:
    if len(_OURS) > MOST_LOOKS:
        return not _OURS.isdisjoint(os.listdir(folder))
    return any(os.access(f"{folder}/{name}", os.F_OK) for name in _OURS)


def _forget_modules() -> None:
    """Let go of what the script made and loaded, so that files are written and finalizers run."""
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    left = []
    module: Any
    for name in ["__main__", *_loaded_since()]:
        module = sys.modules.pop(name, None)
        try:
            left.append(_weakref.ref(module))
        except TypeError:
            pass  # somebody put something else there
    del module
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        sys.__dict__.pop(name, None)
    # Full collections also empty the lists of objects to be used again, which were made before the fork: so many pages
    # to copy. What is younger than the fork is in the two young generations as long as these were never merged.
    has_aged = sys.version_info >= (3, 14) or _collections() != _COLLECTIONS
    gc.collect(2 if has_aged else 1)
    for reference in reversed(left):
        if (module := reference()) is not None:
            names = getattr(module, "__dict__", {})
            for is_private in (True, False):
                for name in list(names):
                    if name != "__builtins__" and (name[:1] == "_" and name[1:2] != "_") >= is_private:
                        names[name] = None


def _loaded_since() -> list[str]:
    """Names of the modules that were not there when the child began. They are the last ones, as long as no other has
    been taken away; to look at the name of each of the others is to write to it."""
    names = list(_islice(reversed(sys.modules), max(0, len(sys.modules) - len(_LOADED) + 1)))
    if not names or names.pop() is not _LAST:
        return [name for name in sys.modules if name not in _LOADED and name != "__main__"]
    names.reverse()
    return names


def _collections() -> list[int]:
    """How often the second and the third generation were looked at."""
    return [each["collections"] for each in gc.get_stats()[1:]]


def _exit_code(code: object) -> int:
    """What an interpreter ends with for the value of a SystemExit."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    _write_error(f"{code}\n")
    return 1


def _write_error(text: str) -> None:
    try:
        if sys.stderr is None:
            os.write(2, text.encode("utf-8", "backslashreplace"))
        else:
            sys.stderr.write(text)
            sys.stderr.flush()
    except Exception:
        pass  # there is nobody to tell


def main(arguments: list[str]) -> NoReturn:
    agent, folder, *names = arguments
    system = template = None
    ours = _FRESH
    try:
        system = System()
        system.die_with(int(agent))
        template = Template(system)
        _hide_safe_path()
        ours = frozenset(sys.modules)
        sys.path[:0] = [folder] if folder else []
        problem = template.load(names)
        del sys.path[: 1 if folder else 0]
    except Unable as error:
        problem = str(error)
    if template is None or problem:
        os.write(SOCKET, f"no {problem}".encode("utf-8", "replace"))
        os._exit(1)
    global _LOADED, _LAST, _OURS
    _LOADED, _LAST = frozenset(sys.modules), next(reversed(sys.modules))
    tails = ("", ".py", ".pyc", *_imp.extension_suffixes())
    if not folder:  # else what was loaded was looked for there first, as the scripts of that folder would
        ours = _LOADED
    looked_for = [name for name in ours - _FRESH - {*sys.builtin_module_names} if "." not in name]
    _OURS = frozenset(name + tail for name in looked_for for tail in tails)
    template.say("up")
    template.serve().run()


_LOADED = _FRESH
"""What is loaded when a child begins."""
_LAST = ""
"""What of that was loaded last."""
_COLLECTIONS: list[int] = []
"""`_collections` at that time."""
_OURS: frozenset[str] = frozenset()
"""What of that a fresh interpreter would have to look for: names of files and folders that hold it."""

if __name__ == "__main__":
    main(sys.argv[1:])
