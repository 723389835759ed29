"""A run that was submitted and not waited for: its number, its outcome or its error come when they come."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from titan_fast.errors import NoMaster, TitanError, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.handles import RunHandle, TaskHandle, check_completed, still_going
from titan_fast.sdk.known import Known
from titan_fast.sdk.line import BlockingExchange

if TYPE_CHECKING:
    from titan_fast.sdk.client import Client


class PendingRun(RunHandle):
    """As `RunHandle`, and as a future of ``concurrent.futures``: what asks for its number waits for that, `wait` and
    `result` wait for its end without another request, and each of them raises what went wrong with the submit.

    It knows the outcome that the run had when it ended first. Keep it until its `id` is there: what nobody holds is not
    sent again when the connection breaks.
    """

    def __init__(self, client: Client, exchange: BlockingExchange, last: str, *, watched: bool) -> None:
        """``last``: the task that ends with the run, if there is one."""
        self._client = client
        self._exchange = exchange
        self._known = Known(last, watched)
        self._lock = threading.Lock()
        """Whoever holds it reads the answers."""

    def __getitem__(self, task: str) -> TaskHandle:
        return TaskHandle(
            self._client, TaskId(self.id, task), self.history, self._gift if task == self._known.last else None
        )

    @property
    def target(self) -> TaskId:
        return TaskId(self.id)

    @property
    def history(self) -> str:
        return self._exchange.history

    @property
    def id(self) -> int:
        """Its number: the run is durable. Raises as `Client.submit`."""
        self.settle()
        if self._known.error is not None:
            raise self._known.error
        return self._known.number

    def done(self) -> bool:
        """It has ended, or was never accepted. Waits for nothing."""
        if not self._known.is_over:
            if self._known.is_to_be_watched:
                return self.show().finished_at > 0
            with suppress(WaitTimedOut, NoMaster):
                self._read_until_final(0.0)
        return self._known.is_over

    def exception(self, timeout: float | None = None) -> TitanError | None:
        """What `wait` raises, or None when the run completed. Raises WaitTimedOut."""
        try:
            self.wait(timeout)
        except WaitTimedOut:
            raise
        except TitanError as error:
            return error
        return None

    def wait(self, timeout: float | None = None) -> msg.Update:
        """Until the run is final.

        Raises:
            InvalidGraph, Refused: it was not accepted. Otherwise as `RunHandle.wait`.
        """
        return check_completed(self.outcome(timeout))

    def outcome(self, timeout: float | None = None) -> msg.Update:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if not self._known.watched:
                self.settle()
                self._client.watch_ahead(self, timeout)
            self._read_until_final(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except WaitTimedOut:
            raise still_going(str(self._known.number or "the run"), timeout) from None
        return self._known.end()

    def _gift(self, timeout: float | None) -> bytes | None:
        """What its last task returned, if the end of the run told that."""
        self.outcome(timeout)
        return self._known.gift

    def is_to_be_watched(self, locks: ExitStack, timeout: float | None) -> bool:
        """It is accepted, and how it ends is neither known nor asked for; it stays so as long as ``locks``.

        Raises:
            WaitTimedOut: somebody has been reading its answers all the time.
        """
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise WaitTimedOut("no answer in time")
        locks.callback(self._lock.release)
        return self._known.is_to_be_watched

    def to_watch(self) -> calls.Stream[msg.Update]:
        return calls.watch(TaskId(self._known.number), False)

    def is_watched_by(self, exchange: BlockingExchange) -> None:
        self._exchange, self._known.watched = exchange, True

    def retry(self) -> None:
        """Open what is FAILED, DEAD or CANCELLED again; what is waited for next is how that ends."""
        super().retry()
        self._known.reopened()

    def settle(self) -> None:
        """Until it is accepted or refused; raises neither."""
        with self._lock:
            while not self._known.is_settled:
                self._read(None)

    def _read_until_final(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise WaitTimedOut("no answer in time")
        try:
            while self._known.watched and not self._known.is_over:
                self._read(deadline)
        finally:
            self._lock.release()

    def _read(self, deadline: float | None) -> None:
        """One answer. Raises WaitTimedOut, NoMaster: there may be one another time."""
        try:
            is_open = self._known.heard(self._exchange.next(deadline))
        except TitanError as error:
            self._known.failed(error)
            is_open = False
        if not is_open:
            self._exchange.close()

    def __repr__(self) -> str:
        return f"<PendingRun {self._known.number or '(not accepted yet)'}>"
