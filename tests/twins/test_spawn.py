"""The process starter: what the child gets, what fails and how, that nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from titan_fast import _spawn_py

TWIN = "_spawn"
SH = b"/bin/sh"
DEADLINE = 30


@pytest.fixture
def output(tmp_path):
    """An output file: (path, function that reads it)."""
    path = tmp_path / "output"
    path.touch(0o600)
    return os.fsencode(path), path.read_bytes


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    children = psutil.Process().children()  # what other tests and libraries left is not ours
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert signal.pthread_sigmask(signal.SIG_SETMASK, mask) == mask, "signals are left blocked"
    assert psutil.Process().children() == children
    if before:
        assert sorted(os.listdir("/proc/self/fd")) == before


def reap(pid, pidfd=-1):
    """Wait for the end of a child: (how, code or signal)."""
    if pidfd >= 0:
        assert select.select([pidfd], [], [], DEADLINE)[0], "the child did not end in time"
        os.close(pidfd)
    info = os.waitid(os.P_PID, pid, os.WEXITED)
    return info.si_code, info.si_status


def run(twin, script, output, env=(b"PATH=/usr/bin:/bin",), cwd=b"/", limit=0, args=()):
    pid, pidfd = twin.spawn([SH, b"-c", script, b"sh", *args], list(env), cwd, output[0], limit)
    how = reap(pid, pidfd)
    return how, output[1]()


def test_exit_code_and_pidfd(twin, output):
    pid, pidfd = twin.spawn([SH, b"-c", b"exit 7"], [], b"/", output[0], 0)
    assert pid > 0
    if hasattr(os, "pidfd_open"):
        assert pidfd >= 0
        assert not os.get_inheritable(pidfd)
    assert reap(pid, pidfd) == (os.CLD_EXITED, 7)


def test_death_by_signal(twin, output):
    assert run(twin, b"kill -9 $$", output)[0] == (os.CLD_KILLED, signal.SIGKILL)


def test_own_session_and_group(twin, output):
    pid, pidfd = twin.spawn([SH, b"-c", b"read line < /dev/zero"], [], b"/", output[0], 0)
    try:
        assert os.getsid(pid) == os.getpgid(pid) == pid
    finally:
        os.killpg(pid, signal.SIGKILL)
        reap(pid, pidfd)


def test_descriptors(twin, output):
    """0 is /dev/null, 1 and 2 the output; not even an inheritable one of the parent comes along."""
    stray = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        script = b"readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; ls /proc/$$/fd"
        how, text = run(twin, script, output)
    finally:
        os.close(stray)
    assert how == (os.CLD_EXITED, 0)
    null, one, two, *rest = text.decode().split()
    assert null == "/dev/null"
    assert one == two and one.endswith("/output")
    assert set(rest) <= {"0", "1", "2"}


def test_environment_and_folder(twin, output, tmp_path):
    env = [b"B=two words", b"A=1", b"EMPTY=", b"SIGN=a=b"]
    how, text = run(twin, b"/bin/cat /proc/$$/environ; pwd", output, env, os.fsencode(tmp_path))
    assert how == (os.CLD_EXITED, 0)
    assert text == b"".join(entry + b"\0" for entry in env) + os.fsencode(tmp_path) + b"\n"


def test_relative_program_is_taken_from_the_folder(twin, output, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho here\n")
    tool.chmod(0o755)
    for name in (b"./tool", b"tool"):
        pid, pidfd = twin.spawn([name], [b"PATH=/nowhere"], os.fsencode(tmp_path), output[0], 0)
        assert reap(pid, pidfd) == (os.CLD_EXITED, 0)
    assert output[1]() == b"here\nhere\n"


def test_signals_are_default_and_unblocked(twin, output):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        # Not through a shell: it blocks signals while it starts what would look at it.
        how = reap(*twin.spawn([b"/bin/grep", b"Sig", b"/proc/self/status"], [], b"/", output[0], 0))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert how == (os.CLD_EXITED, 0)
    values = dict(line.split(":\t") for line in output[1]().decode().splitlines())
    assert int(values["SigBlk"], 16) == 0
    # 32 and 33 are the C library's own: its posix_spawn (as make uses it) leaves them ignored; nobody may reset them.
    assert int(values["SigIgn"], 16) & ~(0b11 << 31) == 0


def test_file_limit(twin, output):
    """The child is born with the limit; when the starter returns, it can no longer raise it."""
    how, text = run(twin, b"ulimit -f", output, limit=1 << 20)
    assert how == (os.CLD_EXITED, 0)
    assert int(text) in (1024, 2048), "in KiB, or in blocks of 512"
    if hasattr(resource, "prlimit"):
        pid, pidfd = twin.spawn([SH, b"-c", b"read line < /dev/zero"], [], b"/", output[0], 1 << 20)
        try:
            assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (1 << 20, 1 << 20)
        finally:
            os.killpg(pid, signal.SIGKILL)
            reap(pid, pidfd)


def test_file_limit_ends_what_writes_on(twin, output):
    ours = resource.getrlimit(resource.RLIMIT_FSIZE)
    how, text = run(twin, b"exec head -c 3000000 /dev/zero", output, limit=1 << 20)
    assert how == (os.CLD_KILLED, signal.SIGXFSZ)
    assert len(text) == 1 << 20
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == ours, "our own is as it was"


def test_file_limit_above_the_hard_limit_is_the_hard_limit(twin, output):
    code = (
        "import importlib, os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"spawn = importlib.import_module({twin.__name__!r}).spawn\n"
        f"pid, _ = spawn([b'/bin/sh', b'-c', b'ulimit -f'], [], b'/', {output[0]!r}, 1 << 40)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED)\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=True)
    assert int(output[1]()) in (1024, 2048)


def test_no_file_limit_leaves_it_as_it_was(twin, output):
    how, text = run(twin, b"ulimit -f", output)
    expected = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    assert how == (os.CLD_EXITED, 0)
    assert (text.strip() == b"unlimited") == (expected == resource.RLIM_INFINITY)


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_the_output_may_take_a_low_number(twin, output, closed):
    """A daemon has closed its standard descriptors, and the output takes the number of one of them."""
    path, read = output
    code = (
        "import importlib, os\n"
        f"spawn = importlib.import_module({twin.__name__!r}).spawn\n"
        f"for fd in {[int(c) for c in closed]}: os.close(fd)\n"
        "script = b'echo out; echo err >&2; readlink /proc/$$/fd/0'\n"
        f"pid, _ = spawn([b'/bin/sh', b'-c', script], [b'PATH=/usr/bin:/bin'], b'/', {path!r}, 0)\n"
        "assert os.waitid(os.P_PID, pid, os.WEXITED).si_status == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=True)
    assert read() == b"out\nerr\n/dev/null\n"


def failures(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("text")
    bare = tmp_path / "bare"
    bare.write_text("no first line that names an interpreter")
    bare.chmod(0o755)
    lost = tmp_path / "lost"
    lost.write_text("#!/no/such/interpreter\n")
    lost.chmod(0o755)
    there = str(tmp_path)
    return [
        ("/no/such/program", there, errno.ENOENT, "/no/such/program"),
        (str(plain), there, errno.EACCES, str(plain)),
        (there, there, errno.EACCES, there),
        (str(lost), there, errno.ENOENT, str(lost)),
        (str(bare), there, errno.ENOEXEC, str(bare)),
        ("/bin/true", there + "/none", errno.ENOENT, there + "/none"),
        ("/bin/true", str(plain), errno.ENOTDIR, str(plain)),
        ("/no/program", "/no/folder", errno.ENOENT, "/no/folder"),
        ("/no/\udcff", there, errno.ENOENT, "/no/\udcff"),
        ("", there, errno.ENOENT, ""),
    ]


@pytest.mark.parametrize("case", range(10))
def test_what_fails_says_which_step(twin, output, tmp_path, case):
    program, folder, number, named = failures(tmp_path)[case]
    with pytest.raises(OSError) as caught:
        twin.spawn([os.fsencode(program)], [], os.fsencode(folder), output[0], 0)
    assert (caught.value.errno, caught.value.filename) == (number, named)
    assert caught.value.strerror == os.strerror(number)


def test_too_long_arguments(twin, output):
    with pytest.raises(OSError) as caught:
        twin.spawn([b"/bin/true", b"x" * (4 << 20)], [], b"/", output[0], 0)
    assert (caught.value.errno, caught.value.filename) == (errno.E2BIG, "/bin/true")


@pytest.mark.parametrize(
    ("argv", "env", "cwd"),
    [
        ([], [], b"/"),
        ([b"/bin/tr\0ue"], [], b"/"),
        ([b"/bin/true", b"\0"], [], b"/"),
        ([b"/bin/true"], [b"A=\0"], b"/"),
        ([b"/bin/true"], [], b"/\0"),
    ],
)
def test_values_that_cannot_be(both, output, argv, env, cwd):
    texts = []
    for module in both:
        with pytest.raises(ValueError) as caught:
            module.spawn(argv, env, cwd, output[0], 0)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_text_is_refused(twin, output):
    with pytest.raises(TypeError):
        twin.spawn(["/bin/true"], [], b"/", output[0], 0)


NO_NUL = st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"x"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    args=st.lists(NO_NUL, max_size=5),
    env=st.dictionaries(st.from_regex(rb"[A-Z_]{1,8}", fullmatch=True), NO_NUL, max_size=5),
)
def test_every_byte_arrives(both, tmp_path_factory, args, env):
    entries = [key + b"=" + value for key, value in env.items()]
    path = tmp_path_factory.mktemp("bytes") / "output"
    for module in both:
        path.write_bytes(b"")
        script = b"/bin/cat /proc/$$/cmdline /proc/$$/environ"
        started = module.spawn([SH, b"-c", script, *args], entries, b"/", os.fsencode(path), 0)
        assert reap(*started) == (os.CLD_EXITED, 0)
        shown = [SH, b"-c", script, *args, *entries]
        assert path.read_bytes() == b"".join(text + b"\0" for text in shown)


def test_many_threads_at_once(twin, output):
    codes = {}

    def work(number):
        pid, pidfd = twin.spawn([SH, b"-c", b"exit %d" % number], [], b"/", output[0], 0)
        codes[number] = reap(pid, pidfd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert codes == {number: (os.CLD_EXITED, number) for number in range(1, 25)}


def test_no_pidfd_is_minus_one(monkeypatch, output):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    pid, pidfd = _spawn_py.spawn([b"/bin/true"], [], b"/", output[0], 0)
    assert pidfd == -1
    assert reap(pid) == (os.CLD_EXITED, 0)


def test_the_process_notes_itself_before_it_is_the_program(twin, output, tmp_path):
    """Whoever is killed right after the start finds the note; it is one write at the end of the file."""
    notes = os.open(tmp_path / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(notes, b"first\n")
    try:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        argv = [b"/bin/cat", bytes(tmp_path / "notes")]
        pid, pidfd = twin.spawn(argv, [], b"/", output[0], 0, (notes, b'["spawned",42,'))
        os.waitpid(pid, 0)
        if pidfd >= 0:
            os.close(pidfd)
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
    finally:
        os.close(notes)
    seen = output[1]().decode()
    assert seen == (tmp_path / "notes").read_text(), "the program runs after the note"
    first, note = seen.splitlines()
    assert first == "first"
    kind, fence, noted_pid, at = json.loads(note)
    assert (kind, fence, noted_pid) == ("spawned", 42, pid)
    assert before - 0.001 <= at <= after + 0.001


def test_a_note_that_is_too_long_is_refused(twin, output):
    with pytest.raises(ValueError, match="the note is too long"):
        twin.spawn([b"/bin/true"], [], b"/", output[0], 0, (0, b"x" * 201))


def test_an_output_that_is_not_there_or_a_link_is_an_error_of_its_own(twin, output, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(os.fsdecode(output[0]))
    for path, number in ((tmp_path / "none", errno.ENOENT), (link, errno.ELOOP)):
        with pytest.raises(OSError) as caught:
            twin.spawn([b"/bin/true"], [], b"/", os.fsencode(path), 0)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
