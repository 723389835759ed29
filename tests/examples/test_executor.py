"""The example of calls by themselves, run as it says: against a cluster, by its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from titan_fast.testing.cluster import Cluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "executor" / "words.py"


def test_the_words_are_counted(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(100):
        (texts / f"{number}.md").write_text(f"the {number}\n\nThe end\n{number}\n")
    with Cluster(tmp_path / "home") as cluster:
        cluster.start_worker("w1", "--slots", "2")
        cluster.wait_for_workers(1)
        environ = {**os.environ, "TITAN_HOME": str(cluster.home), "TITAN_ADDR": cluster.address}
        command = [sys.executable, str(EXAMPLE), str(texts)]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["100 texts, 300 lines; most begin with 'the'"]
