"""What happens when standard output cannot be written: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from titan_fast.protocol import messages as msg

LONG = b"x" * (1 << 20)


@pytest.fixture
def start(master, tmp_path):
    """Starts the command line as a process of its own, by way of a shell that redirects."""
    master.on(msg.List, msg.Listed())
    master.on(msg.KvGet, (msg.KvValue(name="k", revision=3), LONG))
    master.on(msg.Logs, (msg.Logged(final=True), LONG))
    environ = {**os.environ, "TITAN_HOME": str(tmp_path), "TITAN_ADDR": master.address, "TITAN_TOKEN": master.token}

    def run(verb, redirect):
        shell = f'exec "$0" -m titan_fast {verb} {redirect}'
        return subprocess.run(["/bin/bash", "-c", shell, sys.executable], env=environ, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("verb", ["ls", "ls --json", "kv get k", "logs 1/t", "--help"])
@pytest.mark.parametrize(("redirect", "reason"), [(">/dev/full", "No space left"), (">&-", "Bad file descriptor")])
def test_a_failure_is_one_line_and_exit_code_1(start, verb, redirect, reason):
    done = start(verb, redirect)
    assert f"standard output cannot be written: {reason}" in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("verb", ["kv get k", "logs 1/t"])
def test_a_reader_that_has_seen_enough_is_no_failure(start, verb):
    done = start(verb, '| head -c 1; exit "${PIPESTATUS[0]}"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "x", "")
