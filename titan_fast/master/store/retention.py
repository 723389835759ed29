"""Old runs go, small rows become few, freed pages go back: in slices, inside a transaction of the caller.

Knows the tables, and nothing of who holds the connection or when there is time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import apsw
import orjson

from titan_fast.master.store import rows
from titan_fast.master.store.schema import fetch
from titan_fast.scheduler.facts import ArtifactPublished

KEEP_REPLIES = 86400.0
"""Seconds a reply is kept at least,"""
KEEP_AFTER_RUN = 3600.0
"""and seconds after its run has ended."""
KEEP_EPOCHS = 1000
"""Starts of a master whose nonces are known."""

_STRIDE = 256
_FEW = 4
"""Rows deleted at a time that may be a MiB each."""
_MANY = 8
"""Rows of a block that are worth being made fewer,"""
_FOLD_BYTES = 4 << 20
"""unless this many bytes would have to be read and written for it."""


def doom(db: apsw.Connection, runs: Sequence[int]) -> None:
    """Finished runs vanish from every listing; what they leave behind is deleted bit by bit."""
    numbers = orjson.dumps(runs).decode()
    chosen = "FROM runs WHERE state <> '' AND number IN (SELECT value FROM json_each(?))"
    db.execute(f"INSERT INTO forgotten (number, finished_at) SELECT number, finished_at {chosen}", (numbers,))
    db.execute(f"DELETE {chosen}", (numbers,))


def prune(db: apsw.Connection, now: float, deadline: float) -> tuple[list[int], bool]:
    """One slice of forgetting; ``deadline`` is monotonic. Returns (runs gone for good, nothing is left to do)."""
    gone: list[int] = []
    while time.monotonic() < deadline:
        if not (_empty_one(db, gone) or _old_replies(db, now)):
            db.execute("DELETE FROM forgotten WHERE emptied AND finished_at <= ?", (now - KEEP_AFTER_RUN,))
            db.execute(
                "DELETE FROM epochs WHERE epoch <= (SELECT epoch FROM epochs ORDER BY epoch DESC LIMIT 1 OFFSET ?)",
                (KEEP_EPOCHS,),
            )
            return gone, True
    return gone, False


def _empty_one(db: apsw.Connection, gone: list[int]) -> bool:
    """A few rows of a forgotten run, or its end."""
    doomed = fetch(db, "SELECT number FROM forgotten WHERE NOT emptied ORDER BY number LIMIT 1")
    if not doomed:
        return False
    ((run,),) = doomed
    db.execute(
        "DELETE FROM outcomes WHERE (run, block, seq, part) IN "
        "(SELECT run, block, seq, part FROM outcomes WHERE run = ? LIMIT ?)",
        (run, _FEW),
    )
    if db.changes():
        return True
    db.execute(
        "DELETE FROM journal WHERE (run, seq) IN (SELECT run, seq FROM journal WHERE run = ? LIMIT ?)", (run, _STRIDE)
    )
    if db.changes() < _STRIDE and not _unname(db, run):
        db.execute("UPDATE forgotten SET emptied = 1 WHERE number = ?", (run,))
        gone.append(run)
    return True


def _unname(db: apsw.Connection, run: int) -> bool:
    """A few artifacts that are results of this run; False: none are left. What users gave such a name stays."""
    kind, after, end = rows.KIND[ArtifactPublished], f"{run}/", f"{run}0"  # "0" comes right after "/"
    sql = "SELECT name, version, data FROM named WHERE kind = ? AND name > ? AND name < ? ORDER BY name LIMIT ?"
    while page := fetch(db, sql, kind, after, end, _STRIDE):
        facts = [cast(ArtifactPublished, rows.decode(kind, version, data)) for _, version, data in page]
        results = [fact.name for fact in facts if fact.run == run]
        if results:
            db.executemany("DELETE FROM named WHERE kind = ? AND name = ?", [(kind, name) for name in results])
            return True
        after = page[-1][0]
    return False


def _old_replies(db: apsw.Connection, now: float) -> bool:
    db.execute(
        "DELETE FROM replies WHERE (client, counter) IN (SELECT client, counter FROM replies AS old WHERE at < ?1 "
        "AND NOT EXISTS (SELECT 1 FROM runs WHERE number = old.run AND (state = '' OR finished_at > ?2)) "
        "AND NOT EXISTS (SELECT 1 FROM forgotten WHERE number = old.run AND finished_at > ?2) ORDER BY at LIMIT ?3)",
        (now - KEEP_REPLIES, now - KEEP_AFTER_RUN, _STRIDE),
    )
    return db.changes() > 0


class Fold:
    """Outcomes that came a few at a time, block by block in as few rows as they fit. Where it is, is not worth
    keeping: after a restart the run is looked through again."""

    def __init__(self) -> None:
        self._run = 0
        self._block = -1

    def step(self, db: apsw.Connection, deadline: float) -> bool:
        """True when there is more to fold."""
        while True:
            ended = fetch(db, "SELECT number FROM runs WHERE state <> '' AND NOT folded ORDER BY number LIMIT 1")
            if not ended or time.monotonic() >= deadline:
                return bool(ended)
            ((run,),) = ended
            if run != self._run:
                self._run, self._block = run, -1
            ((block, count, size),) = fetch(
                db,
                "SELECT block, count(*), sum(length(body)) FROM outcomes WHERE run = ?1 AND block = "
                "(SELECT min(block) FROM outcomes WHERE run = ?1 AND block > ?2)",
                run,
                self._block,
            )
            if block is None:
                db.execute("UPDATE runs SET folded = 1 WHERE number = ?", (run,))
                continue
            self._block = block
            if count > _MANY and size <= _FOLD_BYTES:
                _fold(db, run, block)


def _fold(db: apsw.Connection, run: int, block: int) -> None:
    """The rows of a block become as many as the pieces they make together, in the same order."""
    sql = "SELECT seq, detail, body FROM outcomes WHERE run = ? AND block = ? ORDER BY seq, part"
    old = fetch(db, sql, run, block)
    fact = rows.joined(run, [(detail, body) for _, detail, body in old])
    db.execute("DELETE FROM outcomes WHERE run = ? AND block = ?", (run, block))
    for part, piece in enumerate(rows.pieces(fact)):
        db.execute(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (run, block, old[0][0], part, piece.first, piece.last, piece.detail, piece.body),
        )


def give_back(db: apsw.Connection, deadline: float) -> bool:
    """Freed pages leave the file; True when there are more."""
    while fetch(db, "PRAGMA freelist_count") != [(0,)]:
        if time.monotonic() >= deadline:
            return True
        fetch(db, "PRAGMA incremental_vacuum(64)")
    return False
