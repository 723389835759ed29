"""Runs as a program of its own: titan-fast, whose master finds its disk failing at the AT-th change (from 1).

python failing_disk.py full|broken AT master --port 0 …
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import apsw

from titan_fast.cli import main
from titan_fast.master import server
from titan_fast.master.store.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).parents[1] / "master" / "store"))
from disks import FailingDisk

ERRORS = {"full": apsw.FullError, "broken": apsw.IOError}

if __name__ == "__main__":
    how, at = sys.argv[1:3]
    disk = FailingDisk(ERRORS[how], int(at), is_torn=True)
    server.SqliteStore = functools.partial(SqliteStore, vfs=disk.vfs_name)
    sys.argv = ["titan-fast", *sys.argv[3:]]
    sys.exit(main())
