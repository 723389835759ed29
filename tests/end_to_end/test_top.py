"""top on a terminal: keys, sizes, a master that goes away and comes back. And bench on a cluster of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pytest


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments, environ, width=100, height=24):
        self.master, self.slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.slave)
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "titan_fast", *arguments],
            env={**os.environ, "TERM": "xterm-256color", **environ},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, width, height):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, text, timeout=30.0):
        """What it wrote up to and with ``text``."""
        deadline = time.monotonic() + timeout
        while text not in self.said:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.said[-2000:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.said += os.read(self.master, 65536).decode("utf-8", "replace")
        before, _, self.said = self.said.partition(text)
        return before + text

    def type(self, text):
        os.write(self.master, text.encode())

    def ends(self, timeout=20.0):
        """Its exit code; the terminal is as it was."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it did not end"
            if select.select([self.master], [], [], 0.05)[0]:
                self.said += os.read(self.master, 65536).decode("utf-8", "replace")
        assert termios.tcgetattr(self.slave) == self.before
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(cluster):
    opened = []

    def start(*arguments, **environ):
        environ = {"TITAN_HOME": str(cluster.home), "TITAN_ADDR": cluster.address, **environ}
        opened.append(Terminal(("top", "--interval", "0.2", *arguments), environ))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_top_lives_as_long_as_somebody_looks(cluster, terminal):
    cluster.start_worker("alpha", "--slots", "2")
    cluster.wait_for_workers(1)
    screen = terminal(NO_COLOR="1")
    first = screen.wait_for("alpha")
    assert "\x1b[?1049h" in first, "on a screen of its own"
    screen.resize(60, 20)
    screen.wait_for("alpha")
    cluster.kill_master()
    screen.wait_for("no answer since")
    cluster.restart_master()
    screen.wait_for("epoch 2")
    assert "\x1b[31m" not in screen.said and ";31m" not in screen.said
    screen.type("q")
    assert screen.ends() == 0
    assert "\x1b[?1049l" in screen.said, "and back"


def test_ctrl_c_and_a_signal_leave_the_terminal_as_it_was(terminal):
    for end, code in ((lambda screen: screen.type("\x03"), 130), (lambda screen: screen.process.terminate(), 143)):
        screen = terminal()
        screen.wait_for("no workers")
        end(screen)
        assert screen.ends() == code


@pytest.mark.parametrize("verb", ["latency", "throughput"])
def test_bench_on_a_cluster_of_its_own(cli, verb):
    document = cli.json("bench", verb, "-n", 5, "--local", "--slots", 2)
    assert document["n"] == 5
    assert min(document.values()) > 0
