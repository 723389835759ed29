"""What an attempt is given: its environment, from an allow-list, and its command.

Pure but for looking at the file it is to run. Knows nothing of slots, processes or the master.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from titan_fast.errors import InvalidGraph
from titan_fast.ids import format_fence
from titan_fast.model.expand import fill
from titan_fast.model.spec import Work

ALLOWED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
)
"""What attempts inherit of the worker's environment; ``*`` at the end stands for any rest."""


def inherit(base: Mapping[str, str], allow: str = "") -> dict[str, str]:
    """The part of an environment that attempts inherit.

    Args:
        base: all of it.
        allow: names beyond `ALLOWED`, separated by commas; ``NAME*`` stands for all that begin so.
    """
    allowed = _allowed(allow)
    return {key: value for key, value in base.items() if allowed(key)}


@functools.lru_cache(64)
def _allowed(allow: str) -> Callable[[str], object]:
    names = [*ALLOWED, *(name.strip() for name in allow.split(","))]
    patterns = (re.escape(name[:-1]) + ".*" if name.endswith("*") else re.escape(name) for name in names if name)
    return re.compile("|".join(patterns), re.DOTALL).fullmatch


def with_own_programs(env: Mapping[str, str]) -> dict[str, str]:
    """``titan-fast`` can be called in a task wherever this worker's Python has it; what was on PATH comes first."""
    ours = os.path.dirname(sys.executable)
    path = env.get("PATH", os.defpath)
    return {**env, "PATH": path if ours in path.split(os.pathsep) else f"{path}{os.pathsep}{ours}"}


def build_environment(
    base: Mapping[str, str],
    *,
    allow: str | None = "",
    graph_env: Mapping[str, str],
    work: Work,
    payload: Mapping[str, Any] | None,
    results: Mapping[str, str] | None = None,
    run: int,
    task: str,
    attempt: int,
    fence: int,
    worker: str,
    worker_id: str,
    attempt_dir: str,
) -> dict[str, str]:
    """The whole environment of an attempt: what is inherited, the graph's, the task's, and what it is told.

    Args:
        base: the worker's environment.
        allow: see `inherit`; None: ``base`` is what that left.
        payload: the member's, in an array.
        results: of the tasks its texts name, by task.
        task: ``12/extract``.

    Raises:
        InvalidGraph: a text names a matrix value or a result that is not there.
    """
    env = dict(base) if allow is None else inherit(base, allow)
    env.update(graph_env)
    if work.env:
        values = _texts(payload)
        for key, text in work.env.items():
            env[key] = _filled(text, values, results)
    if work.file.endswith(".py"):
        env.setdefault("PYTHONUNBUFFERED", "1")
    env["TITAN_RUN_ID"] = str(run)
    env["TITAN_TASK"] = task
    env["TITAN_ATTEMPT"] = str(attempt)
    env["TITAN_FENCE"] = format_fence(fence)
    env["TITAN_WORKER"] = worker
    env["TITAN_WORKER_ID"] = worker_id
    env["TITAN_ATTEMPT_DIR"] = attempt_dir
    env["TITAN_RESULT"] = f"{attempt_dir}/result"
    return env


def function_environment(
    base: Mapping[str, str], *, graph_env: Mapping[str, str], work: Work, worker: str, worker_id: str
) -> dict[str, str]:
    """The environment of the processes that run a function: what all its attempts have in common.

    What differs between them (TITAN_TASK, …) is put there by the process, when somebody looks.
    """
    return {**base, **graph_env, **work.env, "TITAN_WORKER": worker, "TITAN_WORKER_ID": worker_id}


def resolve_command(
    work: Work, payload: Mapping[str, Any] | None, workdir: str, results: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """What to execute: the arguments as given, a shell for shell text, or what runs the file.

    A ``.py`` file is run unbuffered by the worker's own Python or the one the task names; any other by itself when
    it is executable, else by what its first line (``#!``) names.

    Raises:
        InvalidGraph: there is no such file, it leads out of the working copy, nobody can run it, or a text names a
            matrix value or a result that is not there.
    """
    values = _texts(payload)

    def filled(text: str) -> str:
        return _filled(text, values, results)

    args = [filled(text) for text in work.args]
    if work.shell:
        return ("/bin/sh", "-c", filled(work.shell), *(["sh", *args] if args else ()))
    if work.file:
        return (*_runner(filled(work.file), filled(work.python), workdir), *args)
    return (*(filled(text) for text in work.argv), *args)


def _runner(file: str, python: str, workdir: str) -> tuple[str, ...]:
    """How to run a file of the project, up to its own arguments."""
    if file.startswith("/") or ".." in file.split("/") or "\0" in file:
        raise InvalidGraph(
            f"file {file!r} leads out of the project", hint="name it relative to the project's folder", field="file"
        )
    path = os.path.normpath(f"{workdir}/{file}")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InvalidGraph(f"file {file!r} is not in the project ({error.strerror})", field="file") from None
    if not stat.S_ISREG(mode):
        raise InvalidGraph(f"{file!r} in the project is not a file", field="file")
    if file.endswith(".py"):
        return python or sys.executable, "-u", path
    if mode & 0o111:
        return (path,)
    with open(path, "rb") as script:
        first = script.readline(4096)
    words = os.fsdecode(first[2:]).strip().split(None, 1) if first.startswith(b"#!") else []
    if not words:
        raise InvalidGraph(
            f"file {file!r} cannot be run: it does not end in .py, is not executable and has no first line (#!)",
            hint=f"chmod +x {file}, or begin it with a line such as #!/bin/sh",
            field="file",
        )
    return *words, path


def _texts(payload: Mapping[str, Any] | None) -> dict[str, str] | None:
    """A member's values as the texts that stand for them; None outside of arrays."""
    if payload is None:
        return None
    return {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in payload.items()
    }


def _filled(text: str, values: Mapping[str, str] | None, results: Mapping[str, str] | None) -> str:
    if "${" not in text:
        return text
    try:
        return fill(text, values, results)
    except KeyError as error:
        name = str(error.args[0])
        if values is not None and f"${{matrix.{name}}}" in text:
            there = ", ".join(sorted(values)) or "none"
            raise InvalidGraph(f"'${{matrix.{name}}}' has no value; there are: {there}") from None
        there = ", ".join(sorted(results or ())) or "none"
        raise InvalidGraph(
            f"'${{tasks.{name}}}' has no value; there are results of: {there}",
            hint="name a task that this one needs, and end with .result",
        ) from None
