"""A program that opens the store in a folder and commits for ever; it prints a number when everything up to it is
promised. Started by `test_kill`, which kills it."""

from __future__ import annotations

import sys
from pathlib import Path

from samples import accepted, ended, kv
from test_sqlite import large_graph

from titan_fast.master.store.sqlite import SqliteStore


def group(number: int) -> list[object]:
    """What commit ``number`` holds; every seventh has a graph that is a file."""
    first = large_graph(number, f"g{number % 21}") if number % 7 == 0 else accepted(number)
    return [first, ended(number, range(50), results=[b"x" * 500] * 50), kv("last", str(number).encode(), number)]


def main() -> None:
    store = SqliteStore(Path(sys.argv[1]), sys.argv[2])
    epoch = store.open().epoch
    number = store.load().next_run
    while True:
        store.commit(epoch, group(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        if number % 5 == 0:
            store.tidy(0.001)
        number += 1


if __name__ == "__main__":
    main()
