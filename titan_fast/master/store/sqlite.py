"""The durable store: one SQLite file in WAL mode, and large graphs as files beside it.

Two connections, because a reader must not wait for a writer's disk: `commit`, `raise_epoch` and all care but `backup`
belong to one thread (the committer's), everything else that reads to one other (the loop's), `backup` to any. `open`
and `close` are called while nothing else is under way. What a fact means is the scheduler's business.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeVar, cast

import apsw

from titan_fast.errors import DiskFull, InvalidUsage, StateLocked, StoreFailed, StoreFenced, StoreUnknown
from titan_fast.master.store import retention, rows, schema
from titan_fast.master.store.base import ArtifactRow, AttemptRow, Loaded, Opened, Pruned, RunHead
from titan_fast.master.store.bodies import Bodies, sync_file, sync_folder
from titan_fast.master.store.schema import fetch
from titan_fast.scheduler.facts import (
    ArtifactPublished,
    Fact,
    Key,
    KvChanged,
    RunAccepted,
    RunRecord,
    WorkerRegistered,
)

CHECKPOINT_IDLE = 512
"""Pages of the write-ahead log from which on an idle moment is used to empty it (4 MiB)."""
CHECKPOINT_NOW = 2048
"""Pages from which on a commit does it (16 MiB), which takes a tenth of a second."""
PAGES_OF_A_COMMIT = 8
"""Pages that the smallest commit writes: a leaf of each table and index it touches."""
CACHE = 16 << 20
"""Bytes of the file that the writing connection keeps in memory at most."""
MAX_INTEGER = (1 << 63) - 1
"""What SQLite can compare with."""

N = TypeVar("N", WorkerRegistered, KvChanged, ArtifactPublished)

_COMMIT = "INSERT INTO door VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PIECES = "FROM outcomes WHERE run = ? AND block BETWEEN ? AND ? AND first <= ? AND last >= ?"


class SqliteStore:
    """The store in ``folder``, which is made when it is not there.

    Args:
        durability: what a commit survives: ``disk`` a power cut, ``os`` a killed process.
        clock: the wall clock, for the age of replies.
        vfs: SQLite's name of another way to its files, for tests of failing disks.
    """

    def __init__(
        self,
        folder: Path,
        durability: Literal["disk", "os"] = "disk",
        *,
        clock: Callable[[], float] = time.time,
        vfs: str | None = None,
    ) -> None:
        self.durability: str = durability
        self.history = ""
        self.folder = folder
        self._path = folder / schema.FILE
        self._bodies = Bodies(folder / schema.BODIES)
        self._clock = clock
        self._vfs = vfs
        self._epoch = 0
        self._nonce = ""
        self._is_lost = False
        self._log_pages = 0
        self._fold = retention.Fold()
        self._write: apsw.Connection
        self._read: apsw.Connection

    # ------------------------------------------------------------ whose it is

    def open(self) -> Opened:
        with self._readable():
            if (self.folder / schema.UNFINISHED).exists():
                raise StoreFailed(
                    f"{self.folder} holds a backup that was not restored to its end",
                    hint="run titan-fast restore again, with the same file",
                )
            if not self.folder.exists():
                self.folder.mkdir(parents=True, mode=0o700)
                sync_folder(self.folder.parent)
            self._must_not_be_lost()
            self._write = schema.connect(self._path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, self._vfs)
            schema.claim_file(self._write, self._path)
            self._prepare()
            self._read = schema.connect(self._path, apsw.SQLITE_OPEN_READONLY, self._vfs)
            ((self.history,),) = fetch(self._read, "SELECT history FROM meta")
            self._bodies.make()
        return self.raise_epoch(0)

    def _must_not_be_lost(self) -> None:
        """Raises StoreFailed: the folder had a state, and its file is gone. An empty one in its place would end all
        that runs, as unknown."""
        if self._bodies.folder.exists() and not (self._path.exists() and self._path.stat().st_size):
            raise StoreFailed(
                f"{self.folder} had a state, and {self._path.name} is not there any more",
                hint="put it back; or move the folder away and restore a backup, or begin anew",
            )

    def _prepare(self) -> None:
        """Settings of the writing connection; everything promised before is in the file itself when it returns."""
        db = self._write
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "FULL" if self.durability == "disk" else "NORMAL")
        db.pragma("fullfsync", self.durability == "disk")
        db.pragma("checkpoint_fullfsync", self.durability == "disk")
        db.pragma("journal_size_limit", 64 << 20)
        db.pragma("cache_size", -(CACHE >> 10))
        db.pragma("temp_store", "memory")
        db.execute(schema.DOOR)
        ((is_busy, _, _),) = fetch(db, "PRAGMA main.wal_checkpoint(TRUNCATE)")
        if is_busy:
            raise StateLocked(
                f"another program has {self._path} open", hint="stop it (titan-fast doctor shows a running master)"
            )
        # A checkpoint inside of a commit would make somebody wait for it: `tidy` does them.
        db.pragma("wal_autocheckpoint", 0)
        sync_folder(self.folder)

    def raise_epoch(self, epoch: int) -> Opened:
        nonce = secrets.token_hex(8)
        with self._transaction():
            sql = "UPDATE meta SET epoch = max(epoch + 1, ?), nonce = ? RETURNING epoch"
            ((number,),) = fetch(self._write, sql, epoch, nonce)
            self._write.execute("INSERT INTO epochs VALUES (?, ?)", (number, nonce))
        self._epoch, self._nonce = number, nonce
        return Opened(self._epoch, nonce, dict(fetch(self._write, "SELECT epoch, nonce FROM epochs")))

    def close(self) -> None:
        for connection in (getattr(self, "_read", None), getattr(self, "_write", None)):
            if connection is not None:
                connection.close()

    # ------------------------------------------------------------ writing

    def commit(self, epoch: int, facts: Sequence[Fact]) -> None:
        batches = list(rows.batches(facts))
        if epoch != self._epoch:
            raise self._fenced()
        with self._transaction(len(batches) > 1 or bool(batches[0].recount or batches[0].forgotten)):
            for batch in batches:
                for digest, body in batch.bodies.items():
                    self._bodies.keep(digest, body)
                headlines, named = batch.headlines().json(), batch.named().json()  # add to the blob
                blob = batch.blob()
                self._write.execute(
                    _COMMIT,
                    (
                        epoch,
                        self._nonce,
                        batch.facts,
                        batch.last_run,
                        batch.revision,
                        batch.journal.json(),
                        batch.outcomes.json(),
                        batch.runs.json(),
                        headlines,
                        named,
                        batch.replies.json(),
                        blob,
                    ),
                )
                for run in batch.recount:
                    self._count_dead(run)
                if batch.forgotten:
                    retention.doom(self._write, batch.forgotten)
                # About; SQLite would tell through a callback, which has to wait for the interpreter in every commit.
                self._log_pages += PAGES_OF_A_COMMIT + 2 * len(blob) // schema.PAGE
        if self._log_pages >= CHECKPOINT_NOW:
            self._checkpoint()

    def _count_dead(self, run: int) -> None:
        """Tasks that are DEAD, without those that somebody dropped."""
        sql = "SELECT kind, version, data FROM journal WHERE run = ? AND kind IN ('tasks_dropped', 'tasks_reopened')"
        dropped = rows.dropped(rows.decode(*row) for row in fetch(self._write, sql + " ORDER BY seq", run))
        for (end,) in fetch(self._write, "SELECT ended FROM runs WHERE number = ? AND state <> ''", run):
            dead = max(0, rows.decode_ended(end).counts.get("DEAD", 0) - dropped)
            self._write.execute("UPDATE runs SET dead = ? WHERE number = ?", (dead, run))

    @contextmanager
    def _transaction(self, several: bool = True) -> Iterator[None]:
        """What is written in here is on the disk after it, or not at all; one statement alone is that by itself.

        Raises:
            StoreFenced, StoreUnknown, DiskFull, as `commit`.
        """
        if self._is_lost:
            raise StoreUnknown(f"a write to {self._path} failed before", hint="start the master again")
        try:
            if several:
                self._write.execute("BEGIN IMMEDIATE")
            yield
            if several:
                self._write.execute("COMMIT")
        except apsw.FullError:
            self._roll_back()
            raise self._disk_full() from None
        except apsw.ConstraintError as error:
            self._roll_back()
            if str(error) == "fenced":
                raise self._fenced() from None
            raise
        except apsw.Error as error:
            raise self._unknown(error) from None
        except OSError as error:
            self._roll_back()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from None
            raise self._unknown(error) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        try:
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
        except apsw.Error as error:
            raise self._unknown(error) from None

    def _fenced(self) -> StoreFenced:
        return StoreFenced(
            f"another master has opened {self._path} after this one (epoch {self._epoch})",
            hint="run one master on a state directory",
        )

    def _disk_full(self) -> DiskFull:
        return DiskFull(f"no space is left on the disk of {self.folder}", hint="make room; what was accepted goes on")

    def _unknown(self, error: Exception) -> StoreUnknown:
        self._is_lost = True
        return StoreUnknown(
            f"writing to {self._path} failed ({error}): whether it is on the disk is not known",
            hint="look at the disk, then start the master again",
        )

    def _checkpoint(self) -> None:
        """Move what is in the write-ahead log to its place. Not for lack of space: what is in the log is safe."""
        try:
            fetch(self._write, "PRAGMA main.wal_checkpoint(PASSIVE)")
        except apsw.FullError:
            pass
        except apsw.Error as error:
            raise self._unknown(error) from None
        self._log_pages = 0

    # ------------------------------------------------------------ reading

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Raises StoreFailed, StateLocked: what is wrong with the file, and what to do."""
        try:
            yield
        except (apsw.BusyError, apsw.LockedError):
            raise StateLocked(f"another program has {self._path} locked", hint="stop it and try again") from None
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise StoreFailed(f"{self._path} is damaged or no state: {error}", hint="restore a backup") from None
        except (apsw.Error, OSError) as error:
            raise StoreFailed(f"{self._path} cannot be used: {error}", hint="look at the disk and its rights") from None

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several reads of one moment: the other thread forgets and folds rows meanwhile."""
        with self._readable(), self._read:
            yield

    def load(self) -> Loaded:
        with self._snapshot():
            ((last_run, revision),) = fetch(self._read, "SELECT last_run, revision FROM meta")
            workers = self._named(WorkerRegistered, "ORDER BY seq")
            keys = self._named(KvChanged, "ORDER BY name")
            unfinished = fetch(self._read, "SELECT number FROM runs WHERE state = '' ORDER BY number")
        runs = (record for (number,) in unfinished if (record := self.run(number)))
        return Loaded(last_run + 1, revision, workers, keys, runs)

    def _named(self, cls: type[N], rest: str, *values: object) -> list[N]:
        sql = f"SELECT kind, version, data FROM named WHERE kind = ? {rest}"
        return [cast(N, rows.decode(*row)) for row in fetch(self._read, sql, rows.KIND[cls], *values)]

    def attempts(self, run: int, index: int) -> list[AttemptRow]:
        return [row for _, row in self._attempts(run, index, 1)]

    def latest(self, run: int, first: int, count: int) -> dict[int, AttemptRow]:
        return dict(self._attempts(run, first, count))

    def _attempts(self, run: int, first: int, count: int) -> Iterator[tuple[int, AttemptRow]]:
        """(task, an attempt of it); those of a task oldest first."""
        with self._readable():
            sql = f"SELECT detail {_PIECES} ORDER BY block, seq, part"
            found = fetch(self._read, sql, *_range(run, first, count))
        for (detail,) in found:
            yield from rows.attempt_rows(detail, first, count)

    def result(self, run: int, index: int) -> bytes:
        with self._snapshot():
            sql = f"SELECT seq, part, detail {_PIECES} ORDER BY seq DESC, part DESC"
            for seq, part, detail in fetch(self._read, sql, *_range(run, index, 1)):
                place = rows.place_of_result(detail, index)
                if place is not None:
                    key = (run, index // rows.BLOCK, seq, part)
                    sql = "SELECT substr(body, ?, ?) FROM outcomes WHERE (run, block, seq, part) = (?, ?, ?, ?)"
                    for (result,) in fetch(self._read, sql, *place, *key):
                        return result or b""
        return b""

    def results(self, run: int, first: int, count: int, state: str) -> dict[int, bytes]:
        with self._readable():
            sql = f"SELECT detail, body {_PIECES} ORDER BY block, seq, part"
            found = fetch(self._read, sql, *_range(run, first, count))
        return {
            index: result
            for detail, body in found
            for index, result in rows.results_in(detail, body or b"", first, count, state)
        }

    def run(self, number: int) -> RunRecord | None:
        with self._snapshot():
            found = fetch(self._read, "SELECT graph FROM runs WHERE number = ?", number)
            if not found:
                return None
            sql = "SELECT kind, version, data FROM journal WHERE run = ? ORDER BY seq"
            accepted, *happened = (rows.decode(*row) for row in fetch(self._read, sql, number))
        if not isinstance(accepted, RunAccepted):
            raise StoreFailed(f"run {number} in {self._path} has no beginning", hint="restore a backup")
        ((graph,),) = found
        if graph:
            try:
                accepted = rows.with_body(accepted, self._bodies.read(graph))
            except StoreFailed:
                if fetch(self._read, "SELECT 1 FROM runs WHERE number = ?", number):
                    raise
                return None  # forgotten meanwhile, and its file with it
        return RunRecord(accepted, cast(list[rows.Happened], happened))

    def runs(self, before: int, limit: int, state: str = "", dead: bool = False) -> list[RunHead]:
        with self._readable():
            found = fetch(
                self._read,
                "SELECT number, begun, ended FROM runs WHERE number < ?1 AND state <> '' AND (?2 = '' OR state = ?2) "
                "AND (NOT ?3 OR dead > 0) ORDER BY number DESC LIMIT ?4",
                min(before, MAX_INTEGER),
                state,
                dead,
                limit,
            )
        return [_head(*row) for row in found]

    def reply(self, key: Key) -> int | None:
        with self._readable():
            sql = "SELECT number FROM replies WHERE client = ? AND counter = ?"
            return next((number for (number,) in fetch(self._read, sql, key.client, key.counter)), None)

    def artifact(self, name: str) -> ArtifactRow | None:
        with self._readable():
            found = self._named(ArtifactPublished, "AND name = ?", name)
        return _artifact(found[0]) if found else None

    def artifacts(self, prefix: str, after: str, limit: int) -> list[ArtifactRow]:
        with self._readable():
            found = self._named(
                ArtifactPublished, "AND name >= ? AND name > ? ORDER BY name LIMIT ?", prefix, after, limit
            )
        return [_artifact(fact) for fact in takewhile(lambda fact: fact.name.startswith(prefix), found)]

    def digests(self) -> set[str]:
        with self._readable():
            return schema.digests_of(self._read)

    # ------------------------------------------------------------ care

    def outdated(self, keep_runs: int, older_than: float, after: int, limit: int) -> list[RunHead]:
        with self._readable():
            found = fetch(
                self._write,
                "SELECT number, begun, ended FROM runs WHERE state <> '' AND number > ? AND (finished_at < ? OR number "
                "<= (SELECT number FROM runs WHERE state <> '' ORDER BY number DESC LIMIT 1 OFFSET ?)) "
                "ORDER BY number LIMIT ?",
                after,
                older_than,
                keep_runs,
                limit,
            )
        return [_head(*row) for row in found]

    def numbers(self) -> set[int]:
        with self._readable():
            return {number for (number,) in fetch(self._write, "SELECT number FROM runs")}

    def prune(self, seconds: float) -> Pruned:
        deadline = time.monotonic() + seconds
        with self._transaction():
            self._insist()
            gone, is_done = retention.prune(self._write, self._clock(), deadline)
            self._bodies.has_strays |= bool(gone)
        if is_done and self._bodies.has_strays:
            with self._readable():
                self._bodies.sweep(schema.bodies_of(self._write))
        return Pruned(gone, is_done)

    def tidy(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._transaction():
            self._insist()
            has_more = self._fold.step(self._write, deadline) or retention.give_back(self._write, deadline)
        if self._log_pages >= CHECKPOINT_IDLE:
            self._checkpoint()
        return has_more

    def _insist(self) -> None:
        """Nobody else has opened the file since we did."""
        if fetch(self._write, "SELECT epoch, nonce FROM meta") != [(self._epoch, self._nonce)]:
            raise self._fenced()

    def backup(self, path: str) -> None:
        """Make the folder ``path`` with a copy of the database and of the graphs it names, a store like any other.

        Raises:
            InvalidUsage: something is there already. DiskFull: no room for it. StoreFailed: the copy is not good.
        """
        target = Path(path)
        try:
            target.mkdir(mode=0o700)
        except OSError as error:
            raise InvalidUsage(f"cannot make the folder {target}: {error.strerror}") from None
        try:
            with self._bodies.stay, self._readable():
                self._copy(target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _copy(self, target: Path) -> None:
        try:
            source = schema.connect(self._path, apsw.SQLITE_OPEN_READONLY, self._vfs)
            with closing(source):
                source.execute("VACUUM INTO ?", (str(target / schema.FILE),))
            with schema.verified(target / schema.FILE) as copy:
                named = schema.bodies_of(copy)
            bodies = Bodies(target / schema.BODIES)
            bodies.make()
            for digest in named:
                bodies.keep(digest, self._bodies.read(digest))
            sync_file(target / schema.FILE)
            sync_folder(target)
            sync_folder(target.parent)
        except (apsw.FullError, OSError) as error:
            if isinstance(error, apsw.FullError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no space is left for the copy in {target}") from None
            raise


def _range(run: int, first: int, count: int) -> tuple[int, int, int, int, int]:
    """Values for `_PIECES`."""
    last = first + count - 1
    return run, first // rows.BLOCK, last // rows.BLOCK, last, first


def _head(number: int, begun: bytes, ended: bytes) -> RunHead:
    return rows.run_head(number, rows.decode_begun(begun), rows.decode_ended(ended))


def _artifact(fact: ArtifactPublished) -> ArtifactRow:
    return ArtifactRow(fact.name, fact.digest, fact.size, fact.at)
