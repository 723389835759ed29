"""The tables of the SQLite store, and whether a file is one of ours. Knows nothing of facts.

The schema's version is the file's ``user_version``: an older file is taken to the newest one when it is opened, a
newer one is refused. What is in the rows has versions of its own (`rows`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw

from titan_fast.errors import BadBackup, StoreFailed, StoreTooNew

APPLICATION_ID = 0x7A17FA57
VERSION = 1
PATIENCE = 10_000
"""Milliseconds to wait for another program that has the file locked."""
PAGE = 8192
"""Bytes."""

_TABLES = """
-- One row: whose file this is, and how far it is.
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    history TEXT NOT NULL,   -- a random name of everything in here; a restored backup has a new one
    epoch INTEGER NOT NULL,
    nonce TEXT NOT NULL,     -- made with the epoch
    position INTEGER NOT NULL,  -- facts ever committed
    last_run INTEGER NOT NULL,  -- the highest run ever, also when it is forgotten
    revision INTEGER NOT NULL   -- the highest revision any key ever had
) STRICT;

CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, nonce TEXT NOT NULL) STRICT;

-- What listings show and retention looks at; a row for each run.
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL,         -- '' while it is unfinished
    dead INTEGER NOT NULL,       -- DEAD tasks that nobody dropped
    finished_at REAL NOT NULL,
    project TEXT NOT NULL,       -- address of its archive, or ''
    graph TEXT NOT NULL,         -- address of the file with its graph and payloads; '' when the journal holds them
    folded INTEGER NOT NULL,     -- its outcomes are in as few rows as they will be
    begun BLOB NOT NULL,
    ended BLOB NOT NULL
) STRICT;
CREATE INDEX unfinished ON runs (number) WHERE state = '';
CREATE INDEX unfolded ON runs (number) WHERE state <> '' AND NOT folded;

-- Everything that happened to a run, in order, as much of it as a restart reads.
CREATE TABLE journal (
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,        -- the fact's position
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX drops ON journal (run, seq) WHERE kind IN ('tasks_dropped', 'tasks_reopened');

-- How attempts ended, for history alone. The results come last: whoever does not want them does not read them.
CREATE TABLE outcomes (
    run INTEGER NOT NULL,
    block INTEGER NOT NULL,      -- all tasks of a row lie in one block
    seq INTEGER NOT NULL,
    part INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    detail BLOB NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (run, block, seq, part)
) STRICT, WITHOUT ROWID;

-- The last fact about everything that has a name: living workers, keys, artifacts.
CREATE TABLE named (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    version INTEGER NOT NULL,
    digest TEXT,                 -- address of the file it names
    data BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- What requests were answered.
CREATE TABLE replies (
    client TEXT NOT NULL,
    counter INTEGER NOT NULL,
    number INTEGER NOT NULL,
    run INTEGER NOT NULL,        -- 0: of no run
    at REAL NOT NULL,
    PRIMARY KEY (client, counter)
) STRICT, WITHOUT ROWID;
CREATE INDEX replies_by_age ON replies (at);

-- Runs that are being forgotten, and for a while that they were.
CREATE TABLE forgotten (
    number INTEGER PRIMARY KEY,
    finished_at REAL NOT NULL,
    emptied INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX unemptied ON forgotten (number) WHERE NOT emptied;
"""

DOOR = """
CREATE TEMP VIEW door AS SELECT 0 AS epoch, 0 AS nonce, 0 AS facts, 0 AS last_run, 0 AS revision, 0 AS journal,
    0 AS outcomes, 0 AS runs, 0 AS headlines, 0 AS named, 0 AS replies, 0 AS bytes;

CREATE TEMP TRIGGER through_the_door INSTEAD OF INSERT ON door BEGIN
    SELECT raise(ABORT, 'fenced') WHERE NOT EXISTS
        (SELECT 1 FROM meta WHERE meta.epoch = NEW.epoch AND meta.nonce = NEW.nonce);

    INSERT INTO journal
        SELECT value->>0, (SELECT position + 1 FROM meta) + (value->>1), value->>2, value->>3,
            substr(NEW.bytes, value->>4, value->>5)
        FROM json_each(NEW.journal);

    INSERT INTO outcomes
        SELECT value->>0, value->>1, (SELECT position + 1 FROM meta) + (value->>2), value->>3, value->>4, value->>5,
            substr(NEW.bytes, value->>6, value->>7), substr(NEW.bytes, value->>8, value->>9)
        FROM json_each(NEW.outcomes);

    INSERT INTO runs
        SELECT value->>0, '', 0, 0.0, value->>1, value->>2, 0, substr(NEW.bytes, value->>3, value->>4), x''
        FROM json_each(NEW.runs);

    UPDATE runs SET state = value->>1, dead = value->>2, finished_at = value->>3, folded = value->>4,
            ended = substr(NEW.bytes, value->>5, value->>6)
        FROM json_each(NEW.headlines) WHERE number = value->>0;

    DELETE FROM named WHERE (kind, name) IN (SELECT value->>0, value->>1 FROM json_each(NEW.named));
    INSERT INTO named
        SELECT value->>0, value->>1, (SELECT position + 1 FROM meta) + (value->>2), value->>3, value->>4,
            substr(NEW.bytes, value->>5, value->>6)
        FROM json_each(NEW.named) WHERE value->>6 > 0;

    INSERT OR REPLACE INTO replies
        SELECT value->>0, value->>1, value->>2, value->>3, value->>4 FROM json_each(NEW.replies);

    UPDATE meta SET position = position + NEW.facts, last_run = max(last_run, NEW.last_run),
        revision = max(revision, NEW.revision);
END;
"""
"""A commit is one statement: a row into a view whose trigger takes it apart. So a writer beside a busy loop waits for
the interpreter once and not after every step, and SQLite makes it one transaction by itself."""


FILE = "state.sqlite"
BODIES = "bodies"
UNFINISHED = "restoring"
"""A folder that is there while a backup is being restored, and still there when that was cut short."""


def connect(path: Path, flags: int, vfs: str | None) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
    connection.set_busy_timeout(PATIENCE)
    return connection


def fetch(connection: apsw.Connection, sql: str, *values: Any) -> list[Any]:
    """All rows at once: a cursor left open would hold the checkpoint back."""
    return connection.execute(sql, values).fetchall()


def is_ours(connection: apsw.Connection) -> bool:
    return bool(connection.pragma("application_id") == APPLICATION_ID)


def bodies_of(connection: apsw.Connection) -> set[str]:
    """Addresses of the graphs that are files beside it."""
    return {digest for (digest,) in fetch(connection, "SELECT graph FROM runs WHERE graph <> ''")}


def digests_of(connection: apsw.Connection) -> set[str]:
    """Addresses of the projects and artifacts it names."""
    sql = "SELECT project FROM runs WHERE project <> '' UNION SELECT digest FROM named WHERE digest IS NOT NULL"
    return {digest for (digest,) in fetch(connection, sql)}


def claim_file(connection: apsw.Connection, path: Path) -> None:
    """Make the tables in a new file; accept one of ours.

    Raises:
        StoreTooNew: of a later schema. StoreFailed: of another program.
    """
    version = connection.pragma("user_version")
    if is_ours(connection):
        if version > VERSION:
            raise StoreTooNew(
                f"{path} has version {version} of the state, and this program knows version {VERSION}",
                hint="install the titan-fast that wrote it, or a newer one",
            )
        return
    if connection.pragma("application_id") or version or fetch(connection, "SELECT 1 FROM sqlite_schema"):
        raise StoreFailed(f"{path} belongs to another program", hint="give the master a folder with --state-dir")
    connection.pragma("page_size", PAGE)
    connection.pragma("auto_vacuum", "incremental")
    with connection:
        connection.execute(_TABLES)
        connection.execute("INSERT INTO meta VALUES (1, ?, 0, '', 0, 0, 0)", (secrets.token_hex(8),))
        connection.pragma("user_version", VERSION)
        connection.pragma("application_id", APPLICATION_ID)


@contextmanager
def verified(path: Path) -> Iterator[apsw.Connection]:
    """A copy that was read from its beginning to its end and is good.

    Raises:
        StoreTooNew: of a later schema. BadBackup: damaged, or no state.
    """
    try:
        with closing(connect(path, apsw.SQLITE_OPEN_READWRITE, None)) as connection:
            if not is_ours(connection):
                raise BadBackup(f"{path.name} is no state of titan-fast")
            claim_file(connection, path)
            ((problem,),) = fetch(connection, "PRAGMA quick_check(1)")
            if problem != "ok":
                raise BadBackup(f"{path.name} is damaged: {problem}")
            yield connection
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise BadBackup(f"{path.name} is damaged: {error}") from None
