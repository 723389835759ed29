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
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # started in the background by a shell; what the tests start would ignore Ctrl-C too
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="long size: make test-long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)
