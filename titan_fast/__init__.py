"""titan-fast: a distributed orchestrator. Importing this package loads nothing; names come on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from titan_fast._version import __version__

if TYPE_CHECKING:
    from titan_fast.errors import RunFailed, TaskFailed, TitanError
    from titan_fast.sdk import inside
    from titan_fast.sdk.async_client import AsyncClient
    from titan_fast.sdk.client import Client
    from titan_fast.sdk.graph import Graph, Task
    from titan_fast.sdk.handles import RunHandle, TaskHandle

_HOMES = {
    "AsyncClient": "titan_fast.sdk.async_client",
    "Client": "titan_fast.sdk.client",
    "Graph": "titan_fast.sdk.graph",
    "Task": "titan_fast.sdk.graph",
    "RunHandle": "titan_fast.sdk.handles",
    "TaskHandle": "titan_fast.sdk.handles",
    "RunFailed": "titan_fast.errors",
    "TaskFailed": "titan_fast.errors",
    "TitanError": "titan_fast.errors",
    "inside": "titan_fast.sdk.inside",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Graph",
    "RunFailed",
    "RunHandle",
    "Task",
    "TaskFailed",
    "TaskHandle",
    "TitanError",
    "__version__",
    "inside",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'titan_fast' has no attribute {name!r}")
    module = importlib.import_module(home)
    return module if home.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
