"""The blocking client. Every call is defined in `calls`; here they are carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import msgspec

from titan_fast import config
from titan_fast.ids import TaskId
from titan_fast.model.spec import GraphSpec
from titan_fast.protocol import messages as msg
from titan_fast.sdk import calls
from titan_fast.sdk.handles import RunHandle
from titan_fast.sdk.wire import Wire

if TYPE_CHECKING:
    from titan_fast.model.yaml_file import LoadedGraph
    from titan_fast.sdk.graph import Graph

T = TypeVar("T")

PIECE = 4 << 20
"""Bytes of a project archive in one message."""


class Client:
    """A connection to a master.

    Args:
        master: ``host:port[,host:port]``; default: TITAN_ADDR, titan.toml, 127.0.0.1:9090.
        token: the client token; default: TITAN_TOKEN, titan.toml, the token file of this TITAN_HOME.
        timeout: seconds to go on trying to reach a master; default 5.

    Raises:
        NoMaster, NoToken, BadProof: when it is used first.
    """

    def __init__(
        self,
        master: str | None = None,
        *,
        token: str | None = None,
        token_file: str | None = None,
        timeout: float | None = None,
    ) -> None:
        options = {"master": master, "token": token, "token_file": token_file, "connect_timeout": timeout}
        self._settings = config.load({"client": options}).client
        self._open_wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        if self._open_wire is None:
            addresses = config.parse_addresses(self._settings.master)
            self._open_wire = Wire.connect(
                addresses,
                "client",
                lambda: config.find_token(self._settings, addresses, "client"),
                self._settings.connect_timeout,
            )
        return self._open_wire

    def close(self) -> None:
        if self._open_wire is not None:
            self._open_wire.close()
            self._open_wire = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ carrying out

    def call(self, call: calls.Call[T]) -> T:
        return call.parse(self.wire.ask(call.message, call.attachments))

    def stream(self, stream: calls.Stream[T], timeout: float | None = None) -> Iterator[T]:
        """Answers until the last one. Raises WaitTimedOut ``timeout`` seconds from now."""
        for incoming in self.wire.stream(stream.message, timeout):
            item = stream.parse(incoming)
            yield item
            if stream.is_last(item):
                return

    # ------------------------------------------------------------ graphs

    def submit(self, graph: Graph) -> RunHandle:
        """Admit a graph, all of it or none. Returns when it is durable.

        Raises:
            InvalidGraph, ProjectError, Refused: what is wrong, by name.
        """
        spec, payloads = graph.to_spec()
        return self._submit(spec, payloads, graph.project)

    def submit_file(self, path: str | Path, inputs: Mapping[str, str] | None = None) -> RunHandle:
        """Admit a graph file (YAML). Raises InvalidFile with every problem and its line."""
        from titan_fast.model.yaml_file import load_file

        return self.submit_loaded(load_file(Path(path), dict(inputs or {})))

    def submit_loaded(self, loaded: LoadedGraph) -> RunHandle:
        return self._submit(loaded.graph, tuple(loaded.payloads), loaded.project_dir, tuple(loaded.project_files))

    def submit_spec(self, graph: GraphSpec) -> RunHandle:
        """Admit a graph that is described already, without a project."""
        return self._submit(graph, (), None)

    def _submit(
        self, graph: GraphSpec, payloads: tuple[bytes, ...], project: Path | None, files: tuple[str, ...] = ()
    ) -> RunHandle:
        if project is not None:
            graph = msgspec.structs.replace(graph, project=self.upload_project(project, files))
        return RunHandle(self, self.call(calls.submit(graph, payloads)))

    def upload_project(self, folder: Path, files: Sequence[str] = ()) -> str:
        """Bring a folder (or only some files of it) to the master, unless it is there already. Returns its address."""
        import tempfile

        from titan_fast.model.archive import pack_project

        with tempfile.TemporaryFile() as archive:
            digest, size = pack_project(folder, archive, files)
            if self.call(calls.blob_size(digest)) == size:
                return digest
            archive.seek(0)
            for offset in range(0, max(size, 1), PIECE):
                self.call(calls.blob_put(digest, offset, size, archive.read(PIECE)))
        return digest

    # ------------------------------------------------------------ looking

    def run(self, number: int | str = "last") -> RunHandle:
        """A handle to a run that exists."""
        target = calls.task_id(number)
        return RunHandle(self, self.call(calls.show(TaskId(target.run), limit=1)).run.id)

    def runs(self, state: str = "", limit: int = 100) -> list[msg.RunRow]:
        """The newest runs first."""
        return list(self.call(calls.list_page("runs", state=state, limit=limit)).runs)

    def workers(self) -> list[msg.WorkerRow]:
        return list(self.call(calls.list_page("workers")).workers)

    def explain(self, target: str | int) -> msg.Explained:
        """Why a run or task is where it is, and what would help."""
        return self.call(calls.explain(calls.task_id(target)))

    def stats(self) -> msg.Stated:
        return self.call(calls.stats())
