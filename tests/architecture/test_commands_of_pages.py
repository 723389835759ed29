"""Whoever doubts a figure of docs/reliability.md can make it again: each command it prints is one that works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
COMMANDS = sorted(set(re.findall(r"`((?:pytest|python) [^`]+|(?:perf|tests)/[^`:]+\.py)`", PAGE.read_text("utf-8"))))
TESTS = [command for command in COMMANDS if command.startswith("pytest ")]
PROGRAMS = [command for command in COMMANDS if command.startswith("python ")]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True)


def options_of(command: str) -> tuple[str, ...]:
    return tuple(word for word in command.split()[2:])


def test_every_command_says_who_runs_it() -> None:
    assert len(TESTS) > 10 and len(PROGRAMS) > 3
    assert not set(COMMANDS) - {*TESTS, *PROGRAMS}


@pytest.mark.parametrize("options", sorted(set(map(options_of, TESTS))), ids=" ".join)
def test_every_command_of_pytest_has_tests_to_run(options: tuple[str, ...]) -> None:
    places = [command.split()[1] for command in TESTS if options_of(command) == options]
    told = run("-m", "pytest", "--collect-only", "-q", *options, *places)
    assert told.returncode == 0, told.stdout + told.stderr
    for place in places:
        assert re.search(rf"^{re.escape(place)}\b", told.stdout, re.MULTILINE), f"{place} has no test with {options}"


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_program_answers(command: str) -> None:
    told = run(*command.split()[1:], "--help")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("usage: ")
