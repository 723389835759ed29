"""Made `state-1.tar.gz`, once: a state as version 1 of the schema writes it, from the facts in `test_golden.py`.

A file that is there is never replaced: what it says is how that version was written. A later one gets its own name.

    python tests/data/golden/make_state.py state-N.tar.gz
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "master" / "store"))

from test_golden import GROUPS

from titan_fast.master.store import schema
from titan_fast.master.store.sqlite import SqliteStore


def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        for epoch in (1, 2):
            store = SqliteStore(state)
            store.open()
            for group in GROUPS[:3] if epoch == 1 else GROUPS[3:]:
                store.commit(epoch, group)
            store.close()
        database = schema.connect(state / schema.FILE, 2, None)
        database.execute(
            "UPDATE meta SET history = 'a5c0ffee00000001', nonce = 'nonce-2';"
            "UPDATE epochs SET nonce = 'nonce-' || epoch; VACUUM"
        )
        database.close()
        with tarfile.open(Path(__file__).with_name(name), "x:gz") as tar:
            for place in sorted(state.rglob("*")):
                if place.is_file():
                    tar.add(place, str(place.relative_to(state)))


if __name__ == "__main__":
    main(sys.argv[1])
