"""`${tasks.NAME.result}`: whose results a task's texts ask for. NAME is a task that is needed, directly or over others.

The texts keep the reference; the master looks here for what to send along with a spec, and the worker puts it in
(`expand.fill`). What a result holds is not known here.
"""

from __future__ import annotations

from titan_fast.model.expand import REFERENCE
from titan_fast.model.spec import Work

SUFFIX = ".result"


def references(work: Work) -> tuple[str, ...]:
    """Names of the tasks whose results stand in ``work``, each once, in the order of its texts."""
    found: dict[str, None] = {}
    for text in (*work.argv, work.shell, *work.args, *work.env.values()):
        if "${tasks." in text:
            for match in REFERENCE.finditer(text):
                if match[1] == "tasks" and (name := result_of(match[2])) is not None:
                    found[name] = None
    return tuple(found)


def result_of(reference: str) -> str | None:
    """``NAME`` of ``NAME.result``, what follows ``tasks.`` in a reference; None when it is written otherwise."""
    name = reference.removesuffix(SUFFIX)
    return name if name and name != reference else None
