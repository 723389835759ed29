"""The example of functions, run as it says: against a cluster, by its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from titan_fast.testing.cluster import Cluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "functions" / "primes.py"


def test_the_primes_are_counted(tmp_path):
    with Cluster(tmp_path / "home") as cluster:
        cluster.start_worker("w1", "--slots", "2")
        cluster.wait_for_workers(1)
        environ = {**os.environ, "TITAN_HOME": str(cluster.home), "TITAN_ADDR": cluster.address}
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "78,498 primes below 1,000,000",
        "60,000 to 80,000: 1,780",
        "[2262, 1941, 1854, 1780, 1755]",
    ]
