"""Runs as root of a namespace of its own: a cluster whose state lies on a disk of a few megabytes, which fills up.

    unshare -rm sh -c 'mount -t tmpfs -o size=48m none "$1" && exec python small_disk.py "$1" "$2"' sh DISK HOME

Everything that was acknowledged must be there in the end; what is refused is refused in a sentence.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from titan_fast.errors import DiskFull
from titan_fast.sdk.graph import Graph
from titan_fast.testing.cluster import Cluster, until

MIB = 1 << 20
FREE = {"TITAN_STORE_FREE_SPACE": str(4 * MIB), "TITAN_CLIENT_RECONNECT_TIMEOUT": "30"}


def fill(disk: Path) -> None:
    """Not a byte is left."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"x")


def marks(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main(disk: Path, home: Path) -> None:
    log = home.parent / "marks"
    go = home.parent / "go"
    with Cluster(home, environ=FREE, options=["--state-dir", str(disk / "state")]) as cluster:
        cluster.start_worker("w1", "--slots", "4")
        cluster.wait_for_workers(1)
        with cluster.client() as client:
            accepted = []
            for number in range(4):
                graph = Graph(f"run{number}")
                graph.task("wait", run=f"while [ ! -e {go} ]; do sleep 0.05; done; echo {number} >> {log}")
                graph.task("after", run=f"echo after{number} >> {log}", needs=["wait"])
                accepted.append(client.submit(graph))
            fill(disk)
            time.sleep(0.3)  # a look at the free space is good for a quarter of a second
            refusals = 0
            for number in range(3):
                graph = Graph(f"late{number}")
                graph.task("never", run=f"echo never >> {log}")
                try:
                    client.submit(graph)
                except DiskFull as error:
                    assert "free" in str(error) and str(disk) in str(error), str(error)
                    refusals += 1
            assert refusals == 3, f"{refusals} of 3 submits were refused on a full disk"
            go.touch()
            until(lambda: sum(1 for line in marks(log) if line.isdigit()) == 4, "what was accepted finishes")
            # The outcomes cannot be written. A kill now forgets them; the worker holds them still.
            cluster.kill_master()
            (disk / "filler").unlink()
            cluster.restart_master()
            for run in accepted:
                run.wait(60)
            graph = Graph("again")
            graph.task("works", run=f"echo again >> {log}")
            client.submit(graph).wait(30)
    assert sorted(marks(log)) == sorted([*"0123", *(f"after{n}" for n in range(4)), "again"]), marks(log)


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
