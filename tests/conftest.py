"""What every test shares: the ``--no-compiled`` and ``--long`` switches, and ``report``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption(
        "--no-compiled", action="store_true", help="this machine has no compiled twins: test the pure ones alone"
    )
    parser.addoption("--long", action="store_true", help="run the tests marked long, in their long size")


def pytest_configure(config):
    # Started in the background, or by nohup, we ignore some signals, and so would what the tests start.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="long size: make test-long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)
