"""Bringing a run's files to this worker: fetch the project's archive by its address, unpack it once, copy it per run.

Fetching talks to the master through the link; unpacking and copying happen in a thread, since a project may be large
and heartbeats must go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from titan_fast.errors import ConnectionLost, TitanError
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming
from titan_fast.worker.requests import Requests
from titan_fast.worker.workspace import Workspace

FIRST_REQUEST = 1000
"""Request ids below belong to the link."""


class Projects:
    """One per agent. At most one fetch per project and one copy per run at a time."""

    def __init__(self, workspace: Workspace, send_frame: Callable[[bytes], None]) -> None:
        self._workspace = workspace
        self._requests = Requests(send_frame, FIRST_REQUEST)
        self._fetching: dict[str, asyncio.Task[str]] = {}
        self._preparing: dict[int, asyncio.Task[str]] = {}
        self._ready: set[int] = set()
        self._forgotten: set[int] = set()
        """Runs forgotten while their copy was being made."""

    def is_ready(self, run: int) -> bool:
        return run in self._ready

    async def prepare(self, run: int, project: str) -> str:
        """Make the run's working copy. Returns what went wrong, empty when nothing did."""
        task = self._preparing.get(run)
        if task is not None and run in self._forgotten:
            await asyncio.wait([task])  # a run of the same number, of another history: its files are no use
            task = self._preparing.get(run)
        if task is None:
            task = self._preparing[run] = asyncio.create_task(self._prepare(run, project))
        return await asyncio.shield(task)

    async def _prepare(self, run: int, project: str) -> str:
        try:
            if project:
                problem = await self._fetched(project)
                if problem:
                    return problem
            await asyncio.to_thread(self._workspace.working_copy, run, project)
            if run in self._forgotten:
                return "the run is forgotten"
            self._ready.add(run)
            return ""
        except (TitanError, OSError) as error:
            return f"the project could not be brought here: {error}"
        finally:
            del self._preparing[run]
            if run in self._forgotten:
                self._forgotten.discard(run)
                self._workspace.forget_run(run)

    async def _fetched(self, project: str) -> str:
        task = self._fetching.get(project)
        if task is None:
            task = self._fetching[project] = asyncio.create_task(self._fetch(project))
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._fetching.pop(project, None)

    async def _fetch(self, project: str) -> str:
        if self._workspace.has_project(project):
            return ""
        part = self._workspace.project_part(project)
        try:
            offset = 0
            with part.open("wb") as file:
                while True:
                    piece = await self._ask(msg.BlobGet(project, offset))
                    assert isinstance(piece.message, msg.BlobPiece)
                    data = piece.attachments[0] if piece.attachments else b""
                    file.write(data)
                    offset += len(data)
                    if not data or offset >= piece.message.size:
                        break
            await asyncio.to_thread(self._unpack, project, part)
            return ""
        except (TitanError, OSError) as error:
            return f"the project could not be brought here: {error}"
        finally:
            part.unlink(missing_ok=True)

    def _unpack(self, project: str, part: Path) -> None:
        self._workspace.add_project(project, part)

    async def _ask(self, message: msg.Message) -> Incoming:
        """One request to the master; asked again when the connection is cut meanwhile."""
        while True:
            with contextlib.suppress(ConnectionLost):
                return await self._requests.ask(message)

    def answered(self, incoming: Incoming) -> None:
        self._requests.answered(incoming)

    def ask_again(self) -> None:
        """There is a new connection: what was asked on the old one, or in between, will not be answered."""
        self._requests.ask_again()

    def forget(self, run: int) -> None:
        """Its working copy may go, or is not wanted any more once it is there."""
        self._ready.discard(run)
        if run in self._preparing:
            self._forgotten.add(run)
        else:
            self._workspace.forget_run(run)
