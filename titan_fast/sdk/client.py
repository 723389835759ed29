"""The blocking client. Every call is defined in `calls`; here they are carried out."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from titan_fast import config
from titan_fast.errors import InvalidUsage, WaitTimedOut
from titan_fast.ids import TaskId
from titan_fast.model.spec import DEFAULT_GRACE, Affinity, GraphSpec, Retry
from titan_fast.model.units import parse_duration
from titan_fast.protocol import messages as msg
from titan_fast.sdk import blobs, calls
from titan_fast.sdk.data import Artifacts, Keys
from titan_fast.sdk.graph import Duration, Graph
from titan_fast.sdk.handles import RunHandle
from titan_fast.sdk.line import Line, Lines
from titan_fast.sdk.parts import AHEAD, UNANSWERED, WATCHED, Parts, Submittable, groups, last_task, to_parts
from titan_fast.sdk.pending import PendingRun

if TYPE_CHECKING:
    from titan_fast.model.yaml_file import LoadedGraph
    from titan_fast.sdk.executor import Executor

log = logging.getLogger("titan_fast.client")

T = TypeVar("T")
P = TypeVar("P", bound=calls.Page)


class MakesExecutors:
    """What both clients do the same way."""

    line: Lines[Any, Any]

    def executor(
        self,
        name: str = "executor",
        *,
        project: str | Path | None = None,
        requires: Iterable[str] = (),
        priority: int = 1,
        affinity: str | Affinity | None = None,
        timeout: Duration = 0,
        grace: Duration = DEFAULT_GRACE,
        retries: int = 0,
        retry: Retry | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Executor:
        """An executor of ``concurrent.futures`` whose calls run on the workers.

        with Client() as client, client.executor() as pool:
            futures = [pool.submit(square, n) for n in range(10_000)]

        It has a connection and a thread of its own. See `Executor`.

        Args:
            name: of its runs, in listings.
            project: a folder that is shipped to the workers, as it is at the first call. What is sent together then
                has a working copy and processes of its own, which takes a tenth of a second: for calls that do more.

        The others hold for each call, and are those of `Graph.call`.

        Raises:
            InvalidGraph: one of them is wrong.
        """
        from titan_fast.sdk.executor import Executor

        graph = Graph(name, project=project)
        graph.map(
            len,  # in place of what is called
            [""],
            name="call",
            requires=requires,
            priority=priority,
            affinity=affinity,
            timeout=timeout,
            grace=grace,
            retries=retries,
            retry=retry,
            env=env,
        )
        return Executor(self.line.made_of, graph)


class Client(MakesExecutors):
    """A client of a master. It connects when it is used first, and again when a connection breaks.

    While the master is away calls wait for it and are then carried out, once: nothing is submitted twice, and nothing
    that was accepted is forgotten. Streams go on where they stopped. Threads may share a client.

    Inside of a task a client that is given neither address nor token, and finds no TITAN_ADDR, goes through the task's
    agent (TITAN_AGENT) and may use keys and artifacts.

    Args:
        master: ``host:port[,host:port]``; default: TITAN_ADDR, titan.toml, 127.0.0.1:9090.
        token: the client token; default: TITAN_TOKEN, titan.toml, the token file of this TITAN_HOME.
        timeout: seconds to go on trying to reach a master at first; default 5.
        reconnect_timeout: seconds to wait for a master that went away; default 60.
        tell: is given a sentence when the master is away and when it is back; default: a warning in the log.

    Raises:
        NoMaster, NoToken, BadProof: when it is used first. NoMaster: the master went away and did not come back.
    """

    def __init__(
        self,
        master: str | None = None,
        *,
        token: str | None = None,
        token_file: str | None = None,
        timeout: float | None = None,
        reconnect_timeout: float | None = None,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self.line: Line = Line(*client_settings(master, token, token_file, timeout, reconnect_timeout, tell))
        self._unanswered: deque[PendingRun] = deque()
        self._unwatched: deque[weakref.ref[PendingRun]] = deque()
        self.kv = Keys(self)
        self.artifacts = Artifacts(self)

    def close(self) -> None:
        self.line.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ carrying out

    def call(self, call: calls.Call[T], history: str = "") -> T:
        """``history``: what the run number in the call belongs to; empty: to what the master has now."""
        return call.parse(self.line.ask(call.message, call.attachments, call.then, history))

    def stream(self, stream: calls.Stream[T], timeout: float | None = None, history: str = "") -> Iterator[T]:
        """Answers until the last one. Raises WaitTimedOut ``timeout`` seconds from now."""
        answers = self.line.stream(
            stream.message,
            stream.attachments,
            timeout=timeout,
            resume=stream.resume,
            then=stream.then,
            history=history,
        )
        with closing(answers):
            for incoming in answers:
                item = stream.parse(incoming)
                yield item
                if stream.is_last(item):
                    return

    def pages(self, page_at: Callable[[str], calls.Call[P]], history: str = "") -> Iterator[P]:
        """Every page of a listing; ``page_at`` makes the call for the one at a cursor."""
        cursor = ""
        while True:
            page = self.call(page_at(cursor), history)
            yield page
            cursor = page.next
            if not cursor:
                return

    def exact(self, target: TaskId) -> TaskId:
        """The target with its run's number: the newest run may be another one by the next request."""
        if target.run is not None:
            return target
        return target._replace(run=self.call(calls.show(TaskId(None), limit=1)).run.id)

    # ------------------------------------------------------------ graphs

    def submit(self, graph: Submittable) -> RunHandle:
        """Admit a graph, all of it or none. Returns when it is durable.

        Raises:
            InvalidGraph, ProjectError, Refused: what is wrong, by name.
        """
        return self._submit(to_parts(graph))

    def submit_nowait(self, graph: Submittable) -> PendingRun:
        """As `submit`, without waiting for the answer: write the request and return. Its handle knows the rest.

        Of one client 1,024 submits may be unanswered; one more waits for the oldest of them.
        """
        return self.submit_many([graph])[0]

    def submit_many(self, graphs: Iterable[Submittable]) -> list[PendingRun]:
        """Submit each graph as a run of its own, many in one write. Each is accepted or refused by itself, and its
        handle knows which."""
        addresses: dict[object, str] = {}
        pending = []
        for group in groups(graphs):
            pending += self._begin([self._with_project(to_parts(graph), addresses) for graph in group])
        return pending

    def run(self, what: Submittable | int | str = "last", *, timeout: float | None = None) -> RunHandle:
        """Submit a graph and wait for its end, in one request; or, with a number, a handle to a run that exists.

        Raises:
            RunFailed, WaitTimedOut: as `RunHandle.wait`. InvalidGraph, ProjectError, Refused: as `submit`.
        """
        if isinstance(what, int | str):
            target = calls.task_id(what)
            return RunHandle(self, self.call(calls.show(TaskId(target.run), limit=1)).run.id)
        handle = self.submit_nowait(what)
        handle.wait(timeout)
        return handle

    def submit_file(self, path: str | Path, inputs: Mapping[str, str] | None = None) -> RunHandle:
        """Admit a graph file (YAML). Raises InvalidFile with every problem and its line."""
        from titan_fast.model.yaml_file import load_file

        return self.submit_loaded(load_file(Path(path), dict(inputs or {})))

    def submit_loaded(self, loaded: LoadedGraph) -> RunHandle:
        return self._submit(to_parts(loaded))

    def submit_spec(self, graph: GraphSpec) -> RunHandle:
        """Admit a graph that is described already, without a project."""
        return self._submit(to_parts(graph))

    def _submit(self, parts: Parts) -> RunHandle:
        parts = self._with_project(parts, {})
        return RunHandle(self, self.call(calls.submit(parts.graph, parts.payloads)))

    def _with_project(self, parts: Parts, addresses: dict[object, str]) -> Parts:
        """Its project is at the master; ``addresses`` are of those that were brought there just now."""
        if parts.project is None:
            return parts
        folder = parts.project, parts.files
        if folder not in addresses:
            addresses[folder] = self.upload_project(*folder)
        graph = msgspec.structs.replace(parts.graph, project=addresses[folder])
        return parts._replace(graph=graph, project=None)

    def _begin(self, graphs: Sequence[Parts]) -> list[PendingRun]:
        """One write for all of them. Those that nobody has answered yet are few enough, and kept here."""
        while self._unanswered and len(self._unanswered) + len(graphs) > UNANSWERED:
            self._unanswered.popleft().settle()
        watched = self.line.has_room(len(graphs), WATCHED)
        make = calls.submit_and_watch if watched else calls.submit
        requests = [make(parts.graph, parts.payloads) for parts in graphs]
        exchanges = self.line.begin(requests)
        begun = [
            PendingRun(self, exchange, last_task(parts.graph), watched=watched)
            for parts, exchange in zip(graphs, exchanges, strict=True)
        ]
        self._unanswered += begun
        if not watched:
            self._unwatched += map(weakref.ref, begun)
        return begun

    def watch_ahead(self, run: PendingRun, timeout: float | None) -> None:
        """Ask for the outcome of a run, and for those of others that will be waited for next, in one write.

        Raises:
            WaitTimedOut: somebody reads the answers of this run.
        """
        with ExitStack() as locks:
            chosen = [run] if run.is_to_be_watched(locks, timeout) else []
            while chosen and self._unwatched and len(chosen) < AHEAD and self.line.has_room(len(chosen) + 1, WATCHED):
                other = self._unwatched.popleft()()
                with suppress(WaitTimedOut):
                    if other is not None and other.history == run.history and other.is_to_be_watched(locks, 0.0):
                        chosen.append(other)
            requests = [each.to_watch() for each in chosen]
            for each, exchange in zip(chosen, self.line.begin(requests, run.history), strict=True):
                each.is_watched_by(exchange)

    def upload_project(self, folder: Path, files: Sequence[str] = ()) -> str:
        """Bring a folder (or only some files of it) to the master, unless it is there already. Returns its address."""
        import tempfile

        from titan_fast.model.archive import pack_project

        with tempfile.TemporaryFile() as archive:
            digest, size = pack_project(folder, archive, files)
            blobs.upload(self, archive, digest, size)
        return digest

    def cancel(self, target: str | int) -> None:
        """End a run, a task or an array member. Returns when the request is durable."""
        self.call(calls.cancel(self.exact(calls.task_id(target))))

    def retry(self, target: str | int) -> None:
        """Open what is FAILED, DEAD or CANCELLED again. Raises NothingToDo."""
        self.call(calls.retry(self.exact(calls.task_id(target))))

    def dead(self) -> list[msg.TaskRow]:
        """The DEAD tasks of all runs, but for those that were dropped."""
        pages = self.pages(lambda cursor: calls.list_page("dead", cursor=cursor, limit=1000))
        return [task for page in pages for task in page.tasks]

    def drop(self, target: str | int) -> None:
        """List a DEAD task, or all those of a run, as dead no more."""
        self.call(calls.drop(self.exact(calls.task_id(target))))

    # ------------------------------------------------------------ looking

    def runs(self, state: str = "", limit: int | None = None) -> list[msg.RunRow]:
        """The newest runs first.

        Args:
            state: only those that are RUNNING, say; empty: all.
            limit: at most so many; None: all there are.
        """
        rows: list[msg.RunRow] = []
        for page in self.pages(lambda cursor: calls.runs_page(state, cursor, limit, len(rows))):
            rows.extend(page.runs)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    def workers(self) -> list[msg.WorkerRow]:
        return list(self.call(calls.list_page("workers")).workers)

    def explain(self, target: str | int) -> msg.Explained:
        """Why a run or task is where it is, and what would help."""
        return self.call(calls.explain(calls.task_id(target)))

    def stats(self) -> msg.Stated:
        return self.call(calls.stats())

    # ------------------------------------------------------------ care

    def prune(self, keep: int | None = None, older_than: float | str | None = None) -> int:
        """Forget finished runs now. Returns how many went.

        Args:
            keep: the newest so many stay; default: as the master's settings say.
            older_than: seconds, or a text like ``7d``, since they ended; default: as the settings say.
        """
        return self.call(prune_call(keep, older_than))

    def backup(self, path: str | Path, *, replace: bool = False) -> msg.BackedUp:
        """Write a consistent copy of the master's state to ``path``, whole and durable, or not at all.

        Raises:
            InvalidUsage: it cannot be written, or is there already and ``replace`` is false.
        """
        # Opened first: the master makes no copy that cannot be kept.
        with blobs.writing(Path(path), replace=replace, mode=0o600) as file:
            made = self.call(calls.backup())
            blobs.download(self, made.digest, made.size, file)
        return made


def client_settings(
    master: str | None,
    token: str | None,
    token_file: str | None,
    timeout: float | None,
    reconnect_timeout: float | None,
    tell: Callable[[str], None],
) -> tuple[config.ClientSettings, Callable[[str], None], config.Door | None]:
    """What a line is made of."""
    options = {
        "master": master,
        "token": token,
        "token_file": token_file,
        "connect_timeout": timeout,
        "reconnect_timeout": reconnect_timeout,
    }
    door = config.find_door() if (master, token, token_file) == (None, None, None) else None
    return config.load({"client": options}).client, tell, door


def prune_call(keep: int | None, older_than: float | str | None) -> calls.Call[int]:
    """Raises InvalidUsage."""
    try:
        seconds = None if older_than is None else parse_duration(older_than)
    except ValueError as error:
        raise InvalidUsage(f"older_than: {error}") from None
    return calls.prune(keep, seconds)
