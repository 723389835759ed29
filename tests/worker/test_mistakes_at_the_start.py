"""A worker that cannot work says so once, in a sentence, and is gone: its keeper does not try for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from titan_fast import cli

DEADLINE = 60


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("TITAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TITAN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Started(Exception):
    """The keeper would have been started now."""


@pytest.fixture
def start(home, monkeypatch, capsys):
    """Start a worker up to where its keeper would begin; gives the exit code and what was said."""

    def execv(*_):
        raise Started

    monkeypatch.setattr(os, "execv", execv)

    def start(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["worker", *arguments])
        return ended.value.code, capsys.readouterr().err

    return start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "a/b"], "--name: 'a/b'"),
        (["--name", ".."], "--name: '..'"),
        (["--name", "."], "--name: '.'"),
        (["--name", "/etc"], "--name: '/etc'"),
        (["--name", "a\nb"], "U+000A"),
        (["--name", "a\u200bb"], "does not print"),
        (["--name", " w"], "starts or ends with a space"),
        (["--name", "x" * 201], "201 characters, at most 200"),
        (["--caps", "A B"], "--caps: the capability 'A B' contains ' '"),
        (["--caps", "GPU,\x1b[31m"], "--caps: the capability"),
        (["--caps", "x" * 201], "201 characters, at most 200"),
    ],
)
def test_a_name_or_capability_that_cannot_be_is_refused_before_anything_is_started(start, arguments, said):
    code, text = start(*arguments)
    assert code == 2
    assert said in text


def test_names_from_the_environment_are_looked_at_too(start, monkeypatch):
    monkeypatch.setenv("TITAN_WORKER_NAME", "../../etc")
    code, text = start()
    assert code == 2
    assert "../../etc" in text


@pytest.mark.parametrize("arguments", [[], ["--name", "Größe 1 [a]"], ["--name", "x" * 200, "--caps", "GPU, HIGH_MEM"]])
def test_other_names_are_fine_and_no_master_has_to_be_there_yet(home, start, arguments):
    with pytest.raises(Started):
        cli.main(["worker", *arguments])


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_a_token_file_that_is_named_must_be_there(home, start, content):
    file = home / "token"
    if content is not None:
        file.write_text(content)
    code, text = start("--token-file", str(file))
    assert code == 5
    assert str(file) in text
    file.write_text("secret\n")
    with pytest.raises(Started):
        cli.main(["worker", "--token-file", str(file)])


@pytest.mark.parametrize("place", ["file", "file/below", "read-only/below", "read-only"])
def test_a_work_directory_that_cannot_be_used_ends_agent_and_keeper_with_one_sentence(home, place):
    if place.startswith("read-only") and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (home / "file").touch()
    (home / "read-only").mkdir(mode=0o500)
    work = home / place
    command = [sys.executable, "-m", "titan_fast", "worker", "--master", "127.0.0.1:1", "--work-dir", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"the work directory {work} cannot be used") == 1, "said once: nobody tried again"
    assert "--work-dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting it again" not in done.stderr
