"""What one holds of a run or task after it was submitted: wait for it, read it, end it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from titan_fast.errors import RunFailed, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client


class TaskHandle:
    """One task or array of a run. ``handle[417]`` is a member of an array."""

    def __init__(self, client: Client, target: TaskId) -> None:
        self._client = client
        self.target = target

    def __getitem__(self, member: int) -> TaskHandle:
        return TaskHandle(self._client, self.target._replace(member=member))

    @property
    def state(self) -> str:
        """Its state now; of an array with members in several states the least finished one."""
        rows = self.rows()
        order = ("PENDING", "RUNNING", "DEAD", "FAILED", "CANCELLED", "SKIPPED", "COMPLETED")
        return min((row.state for row in rows), key=order.index)

    def rows(self) -> list[msg.TaskRow]:
        """Everything known of it, a row for each member."""
        return _all_rows(self._client, self.target)

    def wait(self, timeout: float | None = None) -> msg.Update:
        """Until it is final. Raises RunFailed when that is not COMPLETED, WaitTimedOut."""
        update = _last(self._client, self.target, timeout)
        if update.task_state not in ("COMPLETED", "SKIPPED"):
            raise RunFailed(_story(update, str(self.target)))
        return update

    def logs(self, attempt: int = 0) -> str:
        """The output of its newest attempt (or of the given one), as far as it is kept."""
        pieces = self._client.stream(calls.logs(self.target, False, -1, attempt))
        return b"".join(piece.data for piece in pieces).decode("utf-8", "replace")

    def follow(self) -> Iterator[bytes]:
        """Its output as it comes, until the task is final."""
        for piece in self._client.stream(calls.logs(self.target, True, -1, 0)):
            yield piece.data

    def cancel(self) -> None:
        self._client.call(calls.cancel(self.target))

    def retry(self) -> None:
        self._client.call(calls.retry(self.target))

    def explain(self) -> msg.Explained:
        return self._client.call(calls.explain(self.target))

    def __repr__(self) -> str:
        return f"<TaskHandle {self.target}>"


class RunHandle:
    """A run. ``handle["extract"]`` is one of its tasks."""

    def __init__(self, client: Client, run: int) -> None:
        self._client = client
        self.id = run

    def __getitem__(self, task: str) -> TaskHandle:
        return TaskHandle(self._client, TaskId(self.id, task))

    @property
    def state(self) -> str:
        return self.show().state

    def show(self) -> msg.RunRow:
        return self._client.call(calls.show(TaskId(self.id), limit=1)).run

    def tasks(self) -> list[msg.TaskRow]:
        return _all_rows(self._client, TaskId(self.id))

    def wait(self, timeout: float | None = None) -> msg.Update:
        """Until the run is final.

        Raises:
            RunFailed: it did not complete: the failing task, its reason, the end of its output.
            WaitTimedOut: it is not final yet; the run goes on.
        """
        update = _last(self._client, TaskId(self.id), timeout)
        if update.state != "COMPLETED":
            raise RunFailed(_story(update, f"run {self.id}"), hint=f"titan-fast show {self.id}")
        return update

    def watch(self, timeout: float | None = None) -> Iterator[msg.Update]:
        """Progress, at most ten times a second; the last update is final."""
        return self._client.stream(calls.watch(TaskId(self.id), True), timeout)

    def cancel(self) -> None:
        """Returns when the request is durable; what runs has its grace time to end."""
        self._client.call(calls.cancel(TaskId(self.id)))

    def retry(self) -> None:
        """Open what is FAILED, DEAD or CANCELLED again, and what was skipped because of it."""
        self._client.call(calls.retry(TaskId(self.id)))

    def explain(self) -> msg.Explained:
        return self._client.call(calls.explain(TaskId(self.id)))

    def __repr__(self) -> str:
        return f"<RunHandle {self.id}>"


def _all_rows(client: Client, target: TaskId) -> list[msg.TaskRow]:
    rows: list[msg.TaskRow] = []
    cursor = ""
    while True:
        page = client.call(calls.show(target, cursor))
        rows.extend(page.tasks)
        cursor = page.next
        if not cursor:
            return rows


def _last(client: Client, target: TaskId, timeout: float | None) -> msg.Update:
    try:
        update = None
        for update in client.stream(calls.watch(target, False), timeout):  # noqa: B007
            pass
    except WaitTimedOut:
        raise WaitTimedOut(
            f"{target} is not finished after {timeout:g} s; it goes on", hint=f"titan-fast wait {target}"
        ) from None
    assert update is not None
    return update


def _story(update: msg.Update, name: str) -> str:
    lines = [f"{name} is {update.task_state or update.state}"]
    for task in update.failed:
        lines.append(f"  {task.name} {task.state} ({task.reason})")
        lines.extend(f"    | {line}" for line in task.tail.splitlines()[-10:])
    return "\n".join(lines)
