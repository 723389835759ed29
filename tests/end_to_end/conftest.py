"""Real processes for the tests here: a cluster in a folder of the test's own, and the command line as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from titan_fast.testing.cluster import Cluster


@pytest.fixture
def cluster(tmp_path):
    """A master without workers. What it started is gone when the test ends, or the test fails."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Cluster(tmp_path / "home") as cluster:
        yield cluster
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not left, f"left behind: {left}"


@pytest.fixture
def cli(tmp_path):
    """Calls the command line as a user would, from a shell, in a home of its own."""
    return CommandLine({"TITAN_HOME": str(tmp_path / "home")}, tmp_path)


@pytest.fixture
def ask(cluster, tmp_path):
    """The command line against ``cluster``."""
    return CommandLine({"TITAN_HOME": str(cluster.home), "TITAN_ADDR": cluster.address}, tmp_path)


class CommandLine:
    def __init__(self, environ, cwd):
        self.environ = {**os.environ, "NO_COLOR": "1", **environ}
        self.cwd = cwd

    def start(self, *arguments, **options):
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "titan_fast", *map(str, arguments)],
            env=self.environ,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *arguments, code=0, timeout=120, **options):
        """Run to the end; returns the finished process. Fails when the exit code is not ``code``, or on a traceback."""
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{arguments} did not end:\n{out}\n{err}") from None
        finished = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        assert "Traceback" not in err, err
        assert process.returncode == code, f"exit code {process.returncode}, wanted {code}:\n{out}\n{err}"
        return finished

    def json(self, *arguments, **options):
        """The verb with ``--json``; the document it prints."""
        at = arguments.index("--") if "--" in arguments else len(arguments)
        return json.loads(self(*arguments[:at], "--json", *arguments[at:], **options).stdout)
