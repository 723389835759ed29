"""What is wrong before a verb has been looked at: a sentence that says what to set, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

WITHOUT_COMPILED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("titan_fast._proto", "titan_fast._heap", "titan_fast._heartbeat", "titan_fast._spawn"):
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, Missing())
from titan_fast.cli import main

main()
"""
"""An installation without them, whatever this one has."""


def run(accel, *arguments):
    environ = {**os.environ, "TITAN_FAST_ACCEL": accel}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILED, *arguments], env=environ, capture_output=True, text=True
    )


@pytest.mark.parametrize("accel", ["bogus", "require"])
@pytest.mark.parametrize("arguments", [["ls"], ["--help"], ["up"], ["logs", "1/t"], ["ls", "--nonsense"]])
def test_a_wrong_choice_of_the_compiled_modules_says_what_to_set(accel, arguments):
    done = run(accel, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    problem, way_out = done.stderr.splitlines()
    assert problem.startswith("titan-fast: ") and "TITAN_FAST_ACCEL" in problem and accel in problem
    assert "TITAN_FAST_ACCEL" in way_out


@pytest.mark.parametrize("accel", ["bogus", "require"])
def test_and_with_json_too(accel):
    done = run(accel, "ls", "--json")
    assert done.returncode == 2
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "no_compiled_modules" and "TITAN_FAST_ACCEL" in error["hint"]


def test_without_them_it_goes_on_where_nobody_requires_them():
    assert run("auto", "--version").returncode == run("auto", "ls", "--help").returncode == 0
