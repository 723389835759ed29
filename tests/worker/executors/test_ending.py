"""Attempts that end by themselves, or never begin: their output, their exit, their result."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time

import pytest
from executor_stage import DEADLINE, PATH, also_functions

from titan_fast.ids import Ending
from titan_fast.worker.results import MAX_RESULT, RESULT_REFUSED

# ---------------------------------------------------------------- ending by itself


@also_functions
@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(stage, code):
    async def scene():
        outcome = await stage.run(f"echo hello; exit {code}")
        assert (outcome.ending, outcome.code) == (Ending.EXIT, code)
        assert outcome.output_size == 6 and stage.output() == b"hello\n"
        assert 0 < outcome.duration < DEADLINE
        assert abs(time.time() - outcome.started) < DEADLINE
        assert outcome.result == b""

    stage.play(scene)


@also_functions
def test_signal(stage):
    async def scene():
        outcome = await stage.run("kill -SEGV $$")
        assert (outcome.ending, outcome.code) == (Ending.SIGNAL, signal.SIGSEGV)

    stage.play(scene)


def test_start_is_told_before_the_end(stage):
    async def scene():
        for fence in range(1, 30):
            stage.begin(stage.attempt(fence, "true"))
        for fence in range(1, 30):
            await stage.ended(fence)
        assert sorted(stage.started) == list(range(1, 30))
        assert len(set(stage.started.values())) == 29

    stage.play(scene)


@also_functions
def test_output_is_both_streams_in_order_and_any_bytes(stage):
    async def scene():
        outcome = await stage.run(r"printf '\377\000a'; printf '\200b' >&2; printf c")
        assert stage.output() == b"\xff\x00a\x80bc"
        assert outcome.output_size == 6

    stage.play(scene)


@also_functions
def test_large_output(stage):
    async def scene():
        outcome = await stage.run("head -c 5000000 /dev/zero")
        assert (outcome.code, outcome.output_size) == (0, 5_000_000)

    stage.play(scene)


@also_functions
def test_file_limit_stops_what_writes_for_ever(stage):
    make = stage.make
    stage.make = lambda observer: make(observer, file_limit=1 << 20)

    async def scene():
        outcome = await stage.run("exec cat /dev/zero")
        assert (outcome.ending, outcome.code) == (Ending.SIGNAL, signal.SIGXFSZ)
        assert outcome.output_size == 1 << 20

    stage.play(scene)


def test_environment_is_what_was_given_and_nothing_else(stage, monkeypatch):
    monkeypatch.setenv("UNRELATED_SECRET", "leak")
    env = {"PATH": PATH, "A": "two words", "EMPTY": "", "ODD": "\udcff=\n"}

    async def scene():
        stage.begin(stage.attempt(1, "env", "-0", env=env))
        await stage.ended(1)
        shown = dict(os.fsdecode(line).split("=", 1) for line in stage.output().split(b"\0") if line)
        assert shown == env

    stage.play(scene)


def test_program_is_looked_up_on_the_path_of_the_attempt(stage, tmp_path):
    for name in ("first", "second", "work/third"):
        folder = tmp_path / "bin" / name
        folder.mkdir(parents=True)
        tool = folder / "tool"
        tool.write_text(f"#!/bin/sh\necho {name}\n")
        tool.chmod(0o755)
    (tmp_path / "bin/first/tool").chmod(0o644)
    paths = {f"{tmp_path}/bin/first:{tmp_path}/bin/second": b"second\n", "third": b"work/third\n"}

    async def scene():
        for fence, (path, expected) in enumerate(paths.items(), 1):
            stage.begin(stage.attempt(fence, "tool", env={"PATH": path}, cwd=f"{tmp_path}/bin/work"))
            outcome = await stage.ended(fence)
            assert (outcome.ending, stage.output(fence)) == (Ending.EXIT, expected), outcome.result

    stage.play(scene)


@also_functions
def test_many_at_once(stage):
    async def scene():
        for fence in range(1, 61):
            stage.start(fence, f"echo {fence}; exit {fence % 7}", timeout=60)
        for fence in range(1, 61):
            outcome = await stage.ended(fence)
            assert (outcome.ending, outcome.code) == (Ending.EXIT, fence % 7)
            assert stage.output(fence) == b"%d\n" % fence

    stage.play(scene)


@also_functions
def test_an_observer_that_fails_harms_nobody_else(stage):
    caught = []

    async def scene():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context["exception"]))
        told = stage.attempt_ended

        def fail_once(outcome):
            told(outcome)
            if outcome.fence == 1:
                raise RuntimeError("mine")

        stage.attempt_ended = fail_once
        stage.start(1, "exit 0")
        stage.start(2, "exit 0")
        await stage.ended(1)
        await stage.ended(2)

    stage.play(scene)
    assert [str(error) for error in caught] == ["mine"]


@also_functions
def test_an_observer_may_start_the_next(stage):
    async def scene():
        told = stage.attempt_ended

        def start_next(outcome):
            told(outcome)
            if outcome.fence < 5:
                stage.start(outcome.fence + 1, "exit 0")

        stage.attempt_ended = start_next
        stage.start(1, "exit 0")
        await stage.ended(5)

    stage.play(scene)


# ---------------------------------------------------------------- what cannot start


def hopeless(stage, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("text")
    bare = tmp_path / "bare"
    bare.write_text("echo")
    bare.chmod(0o755)
    lost = tmp_path / "lost"
    lost.write_text("#!/no/such/interpreter\n")
    lost.chmod(0o755)
    cases = [
        (stage.attempt(1, "no-such-program"), errno.ENOENT, "'no-such-program' was not found on PATH (/usr/local"),
        (stage.attempt(2, "/no/such/program"), errno.ENOENT, "/no/such/program does not exist"),
        (stage.attempt(3, str(plain)), errno.EACCES, "plain.txt is not executable"),
        (stage.attempt(4, str(tmp_path)), errno.EACCES, "is a folder"),
        (stage.attempt(5, str(bare)), errno.ENOEXEC, "no first line that names an interpreter"),
        (stage.attempt(6, str(lost)), errno.ENOENT, "names an interpreter in its first line (#!) that does not exist"),
        (stage.attempt(7, "true", cwd=f"{tmp_path}/none"), errno.ENOENT, "none does not exist"),
        (stage.attempt(8, "true", cwd=str(plain)), errno.ENOTDIR, "plain.txt is not a directory"),
        (stage.attempt(9, "true", "a\0b"), errno.EINVAL, "null byte"),
        (stage.attempt(10), errno.EINVAL, "the command is empty"),
        (stage.attempt(11, ""), errno.ENOENT, "does not exist"),
        (stage.attempt(12, "true", "x" * (4 << 20)), errno.E2BIG, "too long (4194"),
        (stage.attempt(13, "./gone", cwd=str(tmp_path)), errno.ENOENT, "./gone does not exist"),
    ]
    lost_place = stage.attempt(14, "true")
    stage.place(14).rmdir()
    return [*cases, (lost_place, errno.ENOENT, "/0.14/output does not exist")]


def test_what_cannot_start_says_why(stage, tmp_path):
    async def scene():
        cases = hopeless(stage, tmp_path)
        for attempt, _, _ in cases:
            stage.begin(attempt)
        assert not stage.outcomes
        for attempt, number, text in cases:
            outcome = await stage.ended(attempt.fence)
            assert (outcome.ending, outcome.code) == (Ending.NOT_STARTED, number), outcome
            assert text in outcome.result.decode(), outcome
        assert not stage.started

    stage.play(scene)


# ---------------------------------------------------------------- the result file


@pytest.mark.parametrize(
    ("script", "code", "result", "note"),
    [
        ("printf 'fine é' > $TITAN_RESULT", 0, "fine é".encode(), b""),
        ("printf half > $TITAN_RESULT; exit 4", 4, b"half", b""),
        (f"head -c {MAX_RESULT} /dev/zero > $TITAN_RESULT", 0, bytes(MAX_RESULT), b""),
        ("mkfifo $TITAN_RESULT", RESULT_REFUSED, b"", b"no regular file"),
        ("mkdir $TITAN_RESULT", RESULT_REFUSED, b"", b"no regular file"),
        ("ln -s /etc/passwd $TITAN_RESULT", RESULT_REFUSED, b"", b"cannot be read"),
    ],
)
def test_result(stage, script, code, result, note):
    async def scene():
        outcome = await stage.run(script)
        assert (outcome.ending, outcome.code, outcome.result) == (Ending.EXIT, code, result)
        assert note in stage.output() and bool(note) == bool(stage.output())
        assert outcome.output_size == len(stage.output())
        assert not outcome.is_file

    stage.play(scene)


@pytest.mark.parametrize("write", [f"head -c {MAX_RESULT + 1} /dev/zero", r"printf '\377'"], ids=["long", "no text"])
def test_a_result_that_is_no_short_text_stays_a_file(stage, write):
    async def scene():
        outcome = await stage.run(f"{write} > $TITAN_RESULT")
        assert (outcome.ending, outcome.code, outcome.result, outcome.is_file) == (Ending.EXIT, 0, b"", True)
        assert not stage.output()
        outcome = await stage.run(f"{write} > $TITAN_RESULT; exit 4", fence=2)
        assert (outcome.code, outcome.result, outcome.is_file) == (4, b"", False), "of a failure nobody needs it"
        outcome = await stage.run(f"{write} > $TITAN_RESULT; sleep 1000", fence=3, timeout=0.2, grace=DEADLINE)
        assert (outcome.ending, outcome.result, outcome.is_file) == (Ending.TIMEOUT, b"", False)

    stage.play(scene)
