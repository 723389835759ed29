"""What one holds of a run or task after it was submitted: wait for it, read it, end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from titan_fast._layout import RESULT_PREFIX
from titan_fast.errors import InvalidUsage, RunFailed, TaskFailed, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import blobs, calls

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client

T = TypeVar("T")

Gift = Callable[[float | None], bytes | None]
"""Waits so many seconds for the end of a run: what its last task returned, pickled, if that was told with it. None: it
has ended, and what it gave is asked for."""


class _Handle:
    """What names a run or a task of it, and the history in which that number means it."""

    def __init__(self, client: Client, target: TaskId, history: str) -> None:
        self._client = client
        self._target = target
        self._history = history

    @property
    def target(self) -> TaskId:
        return self._target

    @property
    def history(self) -> str:
        """What its number belongs to."""
        return self._history

    def _call(self, call: calls.Call[T]) -> T:
        return self._client.call(call, self.history)

    def _stream(self, stream: calls.Stream[T], timeout: float | None = None) -> Iterator[T]:
        return self._client.stream(stream, timeout, self.history)

    def _rows(self) -> list[msg.TaskRow]:
        pages = self._client.pages(lambda cursor: calls.show(self.target, cursor), self.history)
        return [task for page in pages for task in page.tasks]

    def outcome(self, timeout: float | None = None) -> msg.Update:
        """The last word about it, good or bad. Raises WaitTimedOut."""
        try:
            update = None
            for update in self._stream(calls.watch(self.target, False), timeout):  # noqa: B007
                pass
        except WaitTimedOut:
            raise still_going(str(self.target), timeout) from None
        assert update is not None
        return update

    def cancel(self) -> None:
        """Returns when the request is durable; what runs has its grace time to end."""
        self._call(calls.cancel(self.target))

    def retry(self) -> None:
        """Open what is FAILED, DEAD or CANCELLED again, and what was skipped because of it."""
        self._call(calls.retry(self.target))

    def explain(self) -> msg.Explained:
        """Why it is where it is, and what would help."""
        return self._call(calls.explain(self.target))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"


class TaskHandle(_Handle):
    """One task or array of a run. ``handle[417]`` is a member of an array."""

    def __init__(self, client: Client, target: TaskId, history: str, gift: Gift | None = None) -> None:
        """``gift``: of the task that ends with its run: what tells the end may tell its result along."""
        super().__init__(client, target, history)
        self._gift = gift

    def __getitem__(self, member: int) -> TaskHandle:
        return TaskHandle(self._client, self.target._replace(member=member), self.history)

    @property
    def state(self) -> str:
        """Its state now; of an array with members in several states the least finished one."""
        return least_finished(self.rows())

    def rows(self) -> list[msg.TaskRow]:
        """Everything known of it, a row for each member."""
        return self._rows()

    def wait(self, timeout: float | None = None) -> msg.Update:
        """Until it is final. Raises RunFailed when that is not COMPLETED, WaitTimedOut."""
        return check_done(self.outcome(timeout), self.target)

    def result(self, timeout: float | None = None) -> Any:
        """What a function returned, or the text that a command wrote to TITAN_RESULT; waits until it is there.

        Raises:
            TaskFailed: it did not complete. Of a function that raised an exception that is the cause.
            InvalidUsage: this is an array: see `results`, or name a member.
            WaitTimedOut: it is not final yet; it goes on.
        """
        if self._gift is None:
            self.outcome(timeout)
        elif (known := self._gift(timeout)) is not None:
            return returned(known)
        given = self._call(calls.results(self.target))
        check_single(given, self.target)
        return self._values(given)[0]

    def results(self, timeout: float | None = None) -> list[Any]:
        """The results of all members in order, as `result` gives them. Raises as that, for the first that failed."""
        self.outcome(timeout)
        values: list[Any] = []
        for given in self._client.pages(lambda cursor: calls.results(self.target, cursor), self._history):
            values += self._values(given)
        return values

    def _values(self, given: calls.Given) -> list[Any]:
        check_given(given, self.target)
        return [value(given, self._whole(given, part)) for part in given.parts]

    def _whole(self, given: calls.Given, part: bytes) -> bytes:
        """A result, also when it is too large to be told in one piece."""
        digest = address_in(given, part)
        if not digest:
            return part
        return b"".join(blobs.read(self._client, digest, self._client.call(calls.blob_size(digest))))

    def logs(self, attempt: int = 0) -> str:
        """The output of its newest attempt (or of the given one), as far as it is kept."""
        pieces = self._stream(calls.logs(self.target, False, -1, attempt))
        return b"".join(piece.shown for piece in pieces).decode("utf-8", "replace")

    def follow(self) -> Iterator[bytes]:
        """Its output as it comes, until the task is final."""
        for piece in self._stream(calls.logs(self.target, True, -1, 0)):
            yield piece.shown


class RunHandle(_Handle):
    """A run. ``handle["extract"]`` is one of its tasks."""

    def __init__(self, client: Client, run: int) -> None:
        super().__init__(client, TaskId(run), client.line.history)

    @property
    def id(self) -> int:
        """Its number."""
        return self._target.run or 0

    def __getitem__(self, task: str) -> TaskHandle:
        return TaskHandle(self._client, TaskId(self.id, task), self.history)

    @property
    def state(self) -> str:
        return self.show().state

    def show(self) -> msg.RunRow:
        return self._call(calls.show(self.target, limit=1)).run

    def tasks(self) -> list[msg.TaskRow]:
        return self._rows()

    def wait(self, timeout: float | None = None) -> msg.Update:
        """Until the run is final; a master that is away meanwhile is waited for.

        Raises:
            RunFailed: it did not complete: the failing task, its reason, the end of its output.
            WaitTimedOut: it is not final yet; the run goes on.
            NoMaster: the master went away and did not come back.
        """
        return check_completed(self.outcome(timeout))

    def result(self, timeout: float | None = None) -> str:
        """What the run's last task wrote to TITAN_RESULT, when the run has one last task: the text, or, when it is no
        text or longer than 64 KiB, ``artifact:ADDRESS`` for `Client.artifacts`. Raises as `wait`."""
        return self.wait(timeout).result

    def watch(self, timeout: float | None = None) -> Iterator[msg.Update]:
        """Progress, at most ten times a second; the last update is final."""
        return self._stream(calls.watch(self.target, True), timeout)


def least_finished(rows: list[msg.TaskRow]) -> str:
    order = ("PENDING", "RUNNING", "DEAD", "FAILED", "CANCELLED", "SKIPPED", "COMPLETED")
    return min((row.state for row in rows), key=order.index)


def check_completed(update: msg.Update) -> msg.Update:
    """Raises RunFailed."""
    if update.state != "COMPLETED":
        raise RunFailed(_story(update, f"run {update.run}"), hint=f"titan-fast show {update.run}")
    return update


def check_done(update: msg.Update, task: TaskId) -> msg.Update:
    """Raises RunFailed."""
    if update.task_state not in ("COMPLETED", "SKIPPED"):
        raise RunFailed(_story(update, str(task)))
    return update


def check_single(given: calls.Given, task: TaskId) -> None:
    """Raises InvalidUsage: these are the results of an array."""
    if len(given.parts) != 1:
        raise InvalidUsage(
            f"{task} has {len(given.parts) if not given.next else 'many'} members",
            hint="use .results(), or name one of them as in run['square'][417].result()",
        )


def check_given(given: calls.Given, task: TaskId) -> None:
    """Raises TaskFailed for the first that did not complete."""
    for place, name, state, reason in given.missing:
        from titan_fast.sdk import functions  # it brings a library along that is not small

        traceback, error = functions.raised(given.parts[place])
        raise TaskFailed(f"{task.run}/{name}", state, reason, traceback) from error


def address_in(given: calls.Given, part: bytes) -> str:
    """The address of the file that a function's result is, when it is too large to be told; empty: it is here."""
    prefix = RESULT_PREFIX.encode()
    return part[len(prefix) :].decode() if given.pickled and part.startswith(prefix) else ""


def value(given: calls.Given, part: bytes) -> Any:
    """What a function returned, or the text that a command wrote."""
    return returned(part) if given.pickled else part.decode("utf-8", "replace").strip()


def returned(pickled: bytes) -> Any:
    """Of a function."""
    from titan_fast.sdk import functions  # it brings a library along that is not small

    return functions.returned(pickled)


def still_going(what: str, timeout: float | None) -> WaitTimedOut:
    return WaitTimedOut(f"{what} is not finished after {timeout or 0:g} s; it goes on", hint=f"titan-fast wait {what}")


def _story(update: msg.Update, name: str) -> str:
    lines = [f"{name} is {update.task_state or update.state}"]
    for task in update.failed:
        lines.append(f"  {task.name} {task.state} ({task.reason})")
        lines.extend(f"    | {line}" for line in task.tail.splitlines()[-10:])
    return "\n".join(lines)
