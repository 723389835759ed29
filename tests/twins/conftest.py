"""Every test here runs on both twins; a compiled twin that is missing FAILS, unless ``--no-compiled`` is given.

A test module names its twins with ``TWIN = "_heap"`` and takes the fixture ``twin``.
"""

from __future__ import annotations

import importlib

import pytest


def pytest_generate_tests(metafunc):
    if "twin" in metafunc.fixturenames:
        metafunc.parametrize("twin", ["compiled", "pure"], indirect=True)


@pytest.fixture
def twin(request):
    """The module under test: compiled or pure."""
    return load_twin(request, request.module.TWIN, request.param)


@pytest.fixture
def both(request):
    """(compiled, pure), for tests that compare them step by step."""
    name = request.module.TWIN
    return load_twin(request, name, "compiled"), load_twin(request, name, "pure")


def load_twin(request, name, kind):
    if kind == "pure":
        return importlib.import_module(f"titan_fast.{name}_py")
    if request.config.getoption("--no-compiled"):
        pytest.skip("--no-compiled")
    try:
        module = importlib.import_module(f"titan_fast.{name}")
    except ImportError as error:
        pytest.fail(f"the compiled twin titan_fast.{name} is missing ({error}); build it, or give --no-compiled")
    assert module.__file__.endswith(".so"), f"{module.__file__} is not compiled"
    return module
