"""The pool process: it runs functions one after the other, for the agent that started it and as long as that one lives.

Started by its path with ``-P``; it imports nothing of the house, and of the library what every function needs. Batches
come over a socket, as the lots of the wire; results are written into shared memory as the records of the wire, so that
what has ended counts however this process dies, and so does which member it was busy with. What belongs to one run (its
functions, its files) comes with the batches.

The cells of the shared memory, each a u64 of this machine: see `CLAIMED` to `TURN`. Positions count the members that
this process was ever given, from 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import marshal
import mmap
import os
import pickle
import signal
import struct
import sys
import time
from typing import Any, NoReturn

CLAIMED, BEGAN, TAKEN_FROM, TAKEN_TO, ROWS, READ, TURN = range(7)
"""Claimed: the position that is run, or was run last. Began: since when, monotonic clock in nanoseconds; 0: it is over.
Taken from, to: positions that the agent took back. Rows: results ever written. Read: rows that the agent has taken.
Turn: how often writing began again at the front."""

CELLS = 16
ROWS_AT = 8 * CELLS
MAX_ROWS = 2048
PROLOGUE = struct.Struct(">HHIQ")
LOT = struct.Struct(">QIIIHHQI")
RESULT = struct.Struct(">QIHBBQiQQQI")
"""`_layout.LAYOUTS`, which a test compares."""
BYTES_AT = -(-(ROWS_AT + MAX_ROWS * RESULT.size) // 4096) * 4096
MAX_BYTES = 4 << 20
SIZE = BYTES_AT + MAX_BYTES

INLINE = 1 << 20
"""Bytes of a result that are told with its end; a longer one becomes a file."""
IS_FILE, HAS_MORE = 1, 128
"""In the flags of a record; the second one is for the agent alone: there is output, a directory, an open door."""
EXIT, RECALLED = 0, 4
RING_AFTER = 1_000_000
"""Nanoseconds after which results of an unfinished batch are announced."""
ROTATE_AFTER = 50_000_000
"""Nanoseconds of a member after which the next one has a new file for its output: the agent may be reading this one."""
MAX_TEXT = 300
MAX_TRACEBACK = 64 << 10
MAX_EXCEPTION = 256 << 10
HEADER = struct.Struct(">cI")
PICKLE = 5
SAID_WITH = b"\0"
"""Between the reason of a failure and what clients read of it."""

_OUTPUT = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_PR_SET_PDEATHSIG = 1


class _Spec:
    """What the members of one spec run."""

    __slots__ = ("_values", "arguments", "first", "function", "is_array", "name", "pickled", "run", "spread")

    def __init__(
        self, run: int, name: str, first: int, is_array: bool, spread: bool, pickled: bytes, arguments: list[bytes]
    ) -> None:
        self.run = run
        self.name = name
        self.first = first
        self.is_array = is_array
        self.spread = spread
        self.pickled = pickled
        self.function: Any = None
        self.arguments = arguments
        self._values: dict[Any, Any] = {}

    def argument(self, place: int, is_pickled: bool, is_array: bool, fetch: Any) -> Any:
        """What a parent gave: of an array the list of it. Every use of it is the same object."""
        key = (place, is_pickled, is_array)
        if key not in self._values:
            blob = self.arguments[place]
            (count,) = struct.unpack_from(">I", blob)
            offsets = struct.unpack_from(f">{count + 1}I", blob, 4)
            base = 4 * (count + 2)
            parts = [blob[base + offsets[at] : base + offsets[at + 1]] for at in range(count)]
            values = [_value(part, is_pickled, fetch) for part in parts]
            self._values[key] = values if is_array else values[0]
        return self._values[key]


def _value(data: bytes, is_pickled: bool, fetch: Any) -> Any:
    if not is_pickled:
        return data.decode("utf-8", "replace").strip()
    if data.startswith(b"artifact:"):
        with open(fetch(data[len(b"artifact:") :]), "rb") as file:
            os.unlink(file.name)
            return pickle.load(file)
    if not data:
        raise LookupError("a task whose result is an argument was skipped, so there is none")
    return pickle.loads(data)


class _Unpickler(pickle.Unpickler):
    """Parents stand in a pickle as persistent ids."""

    spec: _Spec
    fetch: Any

    def persistent_load(self, pid: Any) -> Any:
        place, is_pickled, is_array = pid
        return self.spec.argument(place, is_pickled, is_array, self.fetch)


class _Environ(type(os.environ)):  # type: ignore[misc]
    """What an attempt is told by its environment, put there when somebody looks."""

    pool: Pool

    def __getitem__(self, key: str) -> str:
        if key[:6] == "TITAN_" and self.pool.busy:
            self.pool.tell(key)
        return super().__getitem__(key)  # type: ignore[no-any-return]

    def __iter__(self) -> Any:
        if self.pool.busy:
            self.pool.tell("")
        return super().__iter__()


class Pool:
    """The process. ``run`` returns when the agent has hung up."""

    def __init__(self, link: int, memory: int, folder: str, output: str, file_limit: int) -> None:
        """
        Args:
            link: a stream socket to the agent.
            memory: `SIZE` bytes to share with it.
            folder: where the directories of attempts are.
            output: the file that is standard output and error.
            file_limit: RLIMIT_FSIZE, bytes; 0: none.
        """
        self._link = link
        self._memory = mmap.mmap(memory, SIZE)
        os.close(memory)
        self._cells = memoryview(self._memory)[: 8 * CELLS].cast("Q")
        self._folder = folder
        self._output = output
        self._home = os.getcwd()
        self._specs: dict[int, _Spec] = {}
        self._received = bytearray()
        self._waiting: list[tuple[bytes, bytes]] = []
        """Messages that came while an answer was waited for."""
        self._position = 0
        self._row = self._at = 0
        """Where the next row and the next bytes go."""
        self._rows = 0
        self._rung = 0
        self._owes = False
        """There are results that the agent was not rung up for."""
        self.busy = False
        """A member runs that the environment can tell of."""
        self._told: list[str] = []
        self._is_special = False
        self._this: tuple[_Spec, int, int, int] | None = None
        """(spec, index, attempt, fence) of the member."""
        self._is_child = False
        os.register_at_fork(after_in_child=self._forked)
        if file_limit:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    def _forked(self) -> None:
        self._is_child = True
        self.busy = False

    # ------------------------------------------------------------ the agent

    def run(self) -> None:
        while True:
            kind, body = self._waiting.pop(0) if self._waiting else self._receive()
            if kind == b"L":
                self._run_batch(body)
            elif kind == b"S":
                number, *described = marshal.loads(body)
                self._specs[number] = _Spec(*described)
            elif kind == b"F":
                self._specs.clear()

    def _receive(self) -> tuple[bytes, bytes]:
        held = self._received
        while len(held) < HEADER.size:
            self._read()
        kind, length = HEADER.unpack_from(held)
        end = HEADER.size + length
        while len(held) < end:
            self._read()
        body = bytes(held[HEADER.size : end])
        del held[:end]
        return kind, body

    def _read(self) -> None:
        if self._owes:  # nothing more is here
            self._owes = False
            self._ring(0)
        data = os.read(self._link, 1 << 18)
        if not data:
            os._exit(0)
        self._received += data

    def _ask(self, question: bytes) -> Any:
        """An answer of the agent; batches that come before it wait."""
        os.write(self._link, question)
        while True:
            kind, body = self._receive()
            if kind == b"A":
                return marshal.loads(body)
            self._waiting.append((kind, body))

    def _fetch(self, digest: bytes) -> str:
        """A file of the master, as a path. Raises OSError."""
        path, problem = self._ask(b"G" + digest)
        if problem:
            raise OSError(problem)
        return str(path)

    def _ring(self, now: int) -> None:
        self._rung = now
        os.write(self._link, b".")

    # ------------------------------------------------------------ a batch

    def _run_batch(self, body: bytes) -> None:
        _, size, count, position = PROLOGUE.unpack_from(body)
        at = PROLOGUE.size + count * size
        self._position = position - 1
        os.chdir(self._home)
        lots = list(LOT.iter_unpack(memoryview(body)[PROLOGUE.size : at]))
        is_alone = count == 1 and lots[0][3] == 1
        if self._told and not is_alone:
            self._forget_told()
        if not self._owes:
            self._owes, self._rung = True, time.monotonic_ns()
        for lot in lots:
            self._run_lot(body, at, lot, is_alone)
            at += lot[7]

    def _run_lot(self, body: bytes, at: int, lot: tuple[int, ...], is_alone: bool) -> None:
        run, number, first, count, generation, attempt, fence, _ = lot
        spec = self._specs[number]
        if not spec.is_array:
            del self._specs[number]  # its only member: another attempt comes with another description
        cells, memory = self._cells, self._memory
        clock, loads, dumps, put, lseek = time.monotonic_ns, pickle.loads, pickle.dumps, RESULT.pack_into, os.lseek
        wall = time.time_ns() - clock()
        has_arguments, spread = bool(spec.arguments), spec.spread
        out, err = self._standard_streams()
        offsets = struct.unpack_from(f">{count + 1}I", body, at)
        base = at + 4 * (count + 1) - offsets[0]
        position = self._position
        for member in range(count):
            position += 1
            cells[CLAIMED] = position
            if cells[TAKEN_FROM] <= position < cells[TAKEN_TO]:
                self._write(run, first + member, generation, RECALLED, fence + member)
                continue
            self._this = (spec, first + member, attempt, fence + member)
            began = cells[BEGAN] = clock()
            self.busy = True
            try:
                if is_alone:
                    self._tell_alone()
                if spec.function is None:
                    spec.function = loads(spec.pickled)
                    began = clock()
                if has_arguments:
                    unpickler = _Unpickler(io.BytesIO(body[base + offsets[member] : base + offsets[member + 1]]))
                    unpickler.spec, unpickler.fetch = spec, self._fetch
                    item = unpickler.load()
                else:
                    item = loads(body[base + offsets[member] : base + offsets[member + 1]])
                value = spec.function(*item[0], **item[1]) if spread else spec.function(item)
                if self._is_child:
                    os._exit(0)
                code = 0
                try:
                    data = dumps(value, PICKLE)
                except Exception:
                    data = _dumps_by_value(value)
                del value, item
            except BaseException as error:
                if self._is_child:
                    os._exit(1)
                code, data = _failed(error)
            ended = clock()
            self.busy = False
            if sys.stdout is not out or sys.stderr is not err:
                out, err = self._standard_streams()
            try:
                has_written = lseek(1, 0, 1) or ended - began > ROTATE_AFTER
            except OSError:  # the function closed it
                has_written = True
            written = self._keep_output(fence + member) if has_written else 0
            flags = 0
            if len(data) > INLINE:
                code, flags, data = self._keep_result(fence + member, code, data)
            if self._is_special or written:
                flags |= HAS_MORE
                self._is_special = False
            if self._told and not is_alone:
                self._forget_told()
            if self._row == MAX_ROWS or self._at + len(data) > MAX_BYTES or cells[READ] == self._rows:
                self._begin_again()
            row = self._row
            self._row = row + 1
            put(
                memory,
                ROWS_AT + row * RESULT.size,
                run,
                first + member,
                generation,
                EXIT,
                flags,
                fence + member,
                code,
                (began + wall) // 1000,
                (ended - began) // 1000,
                written,
                len(data),
            )
            place = BYTES_AT + self._at
            memory[place : place + len(data)] = data
            self._at += len(data)
            self._rows += 1
            cells[ROWS] = self._rows
            cells[BEGAN] = 0
            if ended - self._rung > RING_AFTER:
                self._ring(ended)
        self._position = position

    @staticmethod
    def _standard_streams() -> tuple[Any, Any]:
        """Standard output and error as every member finds them."""
        if sys.__stdout__ is None or sys.__stdout__.closed:
            sys.__stdout__ = _text(1)  # type: ignore[misc]
        if sys.__stderr__ is None or sys.__stderr__.closed:
            sys.__stderr__ = _text(2)  # type: ignore[misc]
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        return sys.stdout, sys.stderr

    def _write(self, run: int, index: int, generation: int, ending: int, fence: int) -> None:
        """A record of something that was not run."""
        if self._row == MAX_ROWS or self._cells[READ] == self._rows:
            self._begin_again()
        place = ROWS_AT + self._row * RESULT.size
        RESULT.pack_into(self._memory, place, run, index, generation, ending, 0, fence, 0, 0, 0, 0, 0)
        self._row += 1
        self._rows += 1
        self._cells[ROWS] = self._rows

    def _begin_again(self) -> None:
        """Write at the front again. When that is full of what was not read, wait for the agent."""
        cells = self._cells
        if cells[READ] != self._rows:
            self._ask(b"W")
        self._row = self._at = 0
        cells[TURN] += 1

    def _keep_output(self, fence: int) -> int:
        """What a member wrote becomes its output; returns how much it was, 0 where it cannot be kept."""
        size = 0
        with contextlib.suppress(OSError):
            size = os.stat(self._output).st_size
            if size:
                os.rename(self._output, f"{self._attempt_dir(fence)}/output")
        with contextlib.suppress(OSError):
            os.unlink(self._output)
        self._open_output()
        return size

    def _open_output(self) -> None:
        output = os.open(self._output, _OUTPUT, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if output > 2:
            os.close(output)
        else:  # a function had closed that one
            os.set_inheritable(output, True)

    def _keep_result(self, fence: int, code: int, data: bytes) -> tuple[int, int, bytes]:
        """A large result becomes a file; (code, flags, bytes) to tell."""
        try:
            with open(f"{self._attempt_dir(fence)}/result", "wb") as file:
                file.write(data)
        except OSError as error:
            return 1, 0, f"OSError: the result of {len(data):,} bytes cannot be kept ({error.strerror})".encode()
        return code, IS_FILE, b""

    def _attempt_dir(self, fence: int) -> str:
        place = f"{self._folder}/{_written(fence)}"
        os.makedirs(place, 0o700, exist_ok=True)
        return place

    # ------------------------------------------------------------ the environment

    def tell(self, key: str) -> None:
        """Put there what somebody looks for; an empty key is all of it."""
        self.busy = False  # what we look for ourselves
        try:
            if not self._told:
                self._tell_task()
            assert self._this is not None
            if key in ("", "TITAN_ATTEMPT_DIR") and "TITAN_ATTEMPT_DIR" not in self._told:
                self._set("TITAN_ATTEMPT_DIR", self._attempt_dir(self._this[3]))
                self._is_special = True
            if key in ("", "TITAN_AGENT", "TITAN_AGENT_TOKEN") and "TITAN_AGENT" not in self._told:
                self._is_special = True
                for name, text in self._ask(b"T" + self._this[3].to_bytes(8, "big")).items():
                    self._set(name, text)
        finally:
            self.busy = True

    def _tell_alone(self) -> None:
        """A member that is its whole batch may take its time, and start processes: they are told, too."""
        if len(self._told) > 4:
            self._forget_told()
        self._told.clear()
        self._tell_task()

    def _tell_task(self) -> None:
        """What costs nothing but the telling."""
        assert self._this is not None
        spec, index, attempt, fence = self._this
        task = f"{spec.run}/{spec.name}"
        self._set("TITAN_RUN_ID", str(spec.run))
        self._set("TITAN_TASK", f"{task}[{index - spec.first}]" if spec.is_array else task)
        self._set("TITAN_ATTEMPT", str(attempt))
        self._set("TITAN_FENCE", _written(fence))

    def _set(self, key: str, text: str) -> None:
        os.environ[key] = text
        self._told.append(key)

    def _forget_told(self) -> None:
        for key in self._told:
            os.environ.pop(key, None)
        self._told.clear()


def _text(fd: int) -> io.TextIOWrapper:
    """Standard output as it was, after a function has closed it."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


def _written(fence: int) -> str:
    return f"{fence >> 40}.{fence & ((1 << 40) - 1)}"


def _dumps_by_value(value: object) -> bytes:
    """Of classes and functions that only this process knows, all there is. Raises what pickling raises."""
    import cloudpickle

    return cloudpickle.dumps(value, PICKLE)  # type: ignore[no-any-return]


def _failed(error: BaseException) -> tuple[int, bytes]:
    """(exit code, what to tell) of a function that did not return."""
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return 0, pickle.dumps(None, PICKLE)
        if isinstance(error.code, int):
            return error.code & 0xFF or 1, b""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as worse:  # its own text cannot be made
        text = f"{type(error).__qualname__} ({type(worse).__qualname__} while it was shown)\n"
    try:
        said = str(error)
    except Exception:
        said = ""
    name = type(error).__qualname__
    reason = f"{name}: {said}" if said else f"{name}()"
    reason = " ".join(reason.replace("\0", " ").split())[:MAX_TEXT]
    with contextlib.suppress(OSError, ValueError):
        sys.__stderr__.write(text)  # type: ignore[union-attr]
    error.__traceback__ = None
    home = type(error).__module__
    full_name = name if home == "builtins" else f"{home}.{name}"
    # Two pickles, for clients from before the second one: it is for those to whom the exception itself means nothing.
    if len(text) > MAX_TRACEBACK:  # where it was raised stands at its beginning when what it says is long
        text = f"{text[: MAX_TRACEBACK // 2]}\n[…]\n{text[-MAX_TRACEBACK // 2 :]}"
    left = pickle.dumps((text, _pickled(error)), PICKLE)
    left += pickle.dumps((full_name, str(said)[:MAX_TRACEBACK]), PICKLE)
    return 1, reason.encode("utf-8", "replace") + SAID_WITH + left


def _pickled(error: BaseException) -> bytes:
    """Empty when it cannot be, or is too long."""
    try:
        try:
            data = pickle.dumps(error, PICKLE)
        except Exception:
            data = _dumps_by_value(error)
    except Exception:
        return b""
    return data if len(data) <= MAX_EXCEPTION else b""


def _die_with(parent: int) -> None:
    """Be ended with the agent, however that ends."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    except (OSError, AttributeError):
        return  # no Linux: the closed socket has to do
    if os.getppid() != parent:
        os._exit(0)


def main() -> NoReturn:
    link, memory, parent, file_limit = map(int, sys.argv[1:5])
    folder, output, project = sys.argv[5:8]
    _die_with(parent)
    # What functions import of this package is what their agent is.
    house = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, os.path.dirname(house))
    __import__(os.path.basename(house))
    sys.path[0:1] = [project] if project else []
    sys.argv = [""]
    pool = _Environ.pool = Pool(link, memory, folder, output, file_limit)
    os.environ.__class__ = _Environ
    pool.run()
    os._exit(0)


if __name__ == "__main__":
    main()
