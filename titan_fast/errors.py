"""Every exception of the house, once: what it is called on the wire, whose fault it is, what to do about it.

`UserError` is a mistake somebody made and can mend, `PeerError` a peer that broke the protocol or went away,
`InternalError` our own fault. An error is built in its class (``raise NoSuchTask("12/x")``) and travels as
(code, message, hint, field); `from_wire` gives the same class back on the other side.
"""

from __future__ import annotations

from typing import Any, ClassVar

_BY_CODE: dict[str, type[TitanError]] = {}


class TitanError(Exception):
    """The root. ``code`` names it on the wire and in JSON, ``exit_code`` is what the command line ends with."""

    code: ClassVar[str] = ""
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        code = cls.__dict__.get("code", "")
        if not code:
            return
        if code in _BY_CODE:
            raise TypeError(f"error code {code!r} is used twice: {_BY_CODE[code].__name__}, {cls.__name__}")
        _BY_CODE[code] = cls

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return from_wire, (self.code, self.message, self.hint, self.field)


class UserError(TitanError):
    """Somebody asked for something that cannot be; the message says what, where and what to do."""

    code = "user_error"


class PeerError(TitanError):
    """The other side broke the protocol, or is not there."""

    code = "peer_error"
    exit_code = 3


class InternalError(TitanError):
    """Our fault. The message is for a bug report."""

    code = "internal"
    exit_code = 70


def from_wire(code: str, message: str, hint: str = "", field: str = "") -> TitanError:
    """The exception a peer described; one of an unknown code is a plain TitanError that keeps its text."""
    cls = _BY_CODE.get(code, TitanError)
    error = cls.__new__(cls)
    TitanError.__init__(error, message, hint=hint, field=field)
    return error


def all_errors() -> dict[str, type[TitanError]]:
    """Every error by its code, for the generated documentation and the tests."""
    return dict(_BY_CODE)


# ---------------------------------------------------------------- what users ask for


class InvalidGraph(UserError):
    """A graph that cannot be run: unknown or duplicate names, a cycle, a field with a wrong value."""

    code = "invalid_graph"
    exit_code = 2


class InvalidFile(InvalidGraph):
    """A graph file with problems; each is a line ``file:line: text``."""

    code = "invalid_file"

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InvalidUsage(UserError):
    """A command, option or value that makes no sense."""

    code = "invalid_usage"
    exit_code = 2


class NoSuchRun(UserError):
    code = "no_such_run"
    exit_code = 4

    def __init__(self, run: object) -> None:
        super().__init__(f"there is no run {run}", hint="titan-fast ls lists the runs")


class NoSuchTask(UserError):
    code = "no_such_task"
    exit_code = 4

    def __init__(self, task: object, hint: str = "") -> None:
        super().__init__(f"there is no task {task}", hint=hint or "titan-fast show RUN lists the tasks of a run")


class NoSuchBlob(UserError):
    code = "no_such_blob"
    exit_code = 4

    def __init__(self, digest: str) -> None:
        super().__init__(f"the master holds no file with the address {digest}", hint="submit the graph again")


class NothingToDo(UserError):
    """A request that is understood but would change nothing, such as the retry of a run that succeeded."""

    code = "nothing_to_do"


class NoCompiledModules(UserError):
    """TITAN_FAST_ACCEL asks for something this installation does not have."""

    code = "no_compiled_modules"
    exit_code = 2


class RunFailed(UserError):
    """A run that was waited for did not complete."""

    code = "run_failed"


class TaskFailed(RunFailed):
    """A task whose result was asked for has none. Of a function that raised an exception the text has its traceback,
    and the exception itself is the cause; where that could not be sent, or not be made here, a `FunctionRaised`."""

    code = "task_failed"
    reason = ""
    """Such as ``ValueError: text``, ``signal:9`` or ``timeout``."""
    traceback = ""
    """As Python prints it; empty when it was no exception."""

    def __init__(self, task: object, state: str, reason: str, traceback: str = "") -> None:
        text = f"{task} is {state}" + (f" ({reason})" if reason else "")
        super().__init__(f"{text}\n{traceback.rstrip()}" if traceback else text, hint=f"titan-fast logs {task}")
        self.reason = reason
        self.traceback = traceback


class FunctionRaised(UserError):
    """Stands for the exception of a function, of which the object itself did not come here: its class is not
    importable here, does not take its own arguments back, or it is too large."""

    code = "function_raised"
    type = ""
    """Name of its class, such as ``shop.orders.SoldOut``."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type and self.message else self.type or self.message


class WaitTimedOut(UserError):
    """The wait is over; what was waited for goes on."""

    code = "wait_timed_out"
    exit_code = 124
    retryable = True


class ProjectError(UserError):
    """A project folder that cannot be shipped."""

    code = "invalid_project"
    exit_code = 2


# ---------------------------------------------------------------- refusals


class Refused(UserError):
    """The master understood and says no."""

    code = "refused"
    exit_code = 5


class BadProof(Refused):
    """Wrong token. Says nothing more on purpose."""

    code = "bad_proof"

    def __init__(self) -> None:
        super().__init__(
            "the token is not the right one for this master",
            hint="compare --token-file / TITAN_TOKEN with the tokens/ folder of the master's home",
        )


class WrongRole(Refused):
    code = "wrong_role"

    def __init__(self, role: str, opcode: str) -> None:
        super().__init__(f"a {role} may not send {opcode}", hint="use the token of the right role")


class NoToken(Refused):
    """There is no token where we look for one; the message lists the places."""

    code = "no_token"


class PortTaken(Refused):
    code = "port_taken"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"port {port} on {host} is taken by another program",
            hint="choose another with --port N (0 picks a free one), or stop the other program",
        )


class TooLarge(Refused):
    """Over a limit; the message names the limit and its setting."""

    code = "too_large"


class Busy(Refused):
    """Not now, for a reason that passes by itself in a moment."""

    code = "busy"
    retryable = True


class StateLocked(Refused):
    """Another process uses the state or work directory."""

    code = "state_locked"


class Stopping(Refused):
    """The master is shutting down and takes nothing new."""

    code = "stopping"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the master is stopping", hint="try again when it is back")


# ---------------------------------------------------------------- the wire


class NoMaster(PeerError):
    """Nobody answers at the addresses we know."""

    code = "no_master"
    retryable = True

    @classmethod
    def at(cls, addresses: list[tuple[str, int]], reason: str) -> NoMaster:
        """``reason``: why the last one we tried does not."""
        return cls(
            f"no master answers at {', '.join(f'{host}:{port}' for host, port in addresses)} ({reason})",
            hint="start one with: titan-fast up, or name another with --master host:port",
        )

    @classmethod
    def behind(cls, door: str, reason: object) -> NoMaster:
        """Inside of a task, whose way to the master is its agent."""
        return cls(f"no agent answers at {door} ({reason})", hint="is the worker of this task still running?")


class ConnectionLost(PeerError):
    """The connection ended in the middle of something."""

    code = "connection_lost"
    retryable = True


class BadFrame(PeerError):
    """Bytes that are no frame of this protocol; the connection ends."""

    code = "bad_frame"


class FrameTooLarge(BadFrame):
    code = "frame_too_large"

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"frame body of {length} bytes, at most {limit} are allowed")


class WrongVersion(BadFrame):
    code = "wrong_version"

    def __init__(self, version: int) -> None:
        super().__init__(f"protocol version {version}, this is version 2", hint="use matching titan-fast versions")
        self.version = version


class BadRecords(BadFrame):
    """A hot message whose records cannot be read."""

    code = "bad_records"


class BadMessage(PeerError):
    """A frame whose message does not have the fields or types of its opcode."""

    code = "bad_message"


class UnexpectedMessage(PeerError):
    """A message that has no place at this point of the conversation."""

    code = "unexpected_message"


class ImpossibleTransition(InternalError):
    """A state change the transition table does not know; the text is the task's story."""

    code = "impossible_transition"


# ---------------------------------------------------------------- what is kept


class StoreFailed(InternalError):
    """The store cannot be read or written; the master ends, and what it had promised is on the disk."""

    code = "store_failed"


class StoreFenced(StoreFailed):
    """Another master has opened this store after us; nothing of the commit was written."""

    code = "store_fenced"


class StoreUnknown(StoreFailed):
    """A commit failed in a way that leaves open whether it is on the disk. Nobody may be told anything any more."""

    code = "store_unknown"


class StoreTooNew(StoreFailed):
    """A newer program wrote the state; an older one must not touch it."""

    code = "store_too_new"
    exit_code = 5


class DiskFull(Refused):
    """There is too little free space to promise anything new. What was accepted goes on."""

    code = "disk_full"
    retryable = True


class NoSuchKey(UserError):
    code = "no_such_key"
    exit_code = 4

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no key '{name}'", hint="titan-fast kv ls lists the keys")


class NoSuchArtifact(UserError):
    code = "no_such_artifact"
    exit_code = 4

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no artifact '{name}'", hint="titan-fast artifact ls lists them")


class Conflict(UserError):
    """Compare-and-set: the key is not what the request expected it to be."""

    code = "conflict"


class BadBackup(UserError):
    """A file that is no backup of ours, or is damaged."""

    code = "bad_backup"
    exit_code = 2
