"""Which figures the comparison shows, and what is asked of ours: always against something measured in the same run.

Knows the names of the works and nothing of how they are done.
"""

from __future__ import annotations

from typing import NamedTuple

BEST = "best peer"
LIMIT = "limit"


class Key(NamedTuple):
    """A number that a contender gives for a work."""

    work: str
    figure: str


class Asked(NamedTuple):
    """Ours has to be ``factor`` times as good as ``of`` (below 1: a part of it). ``key``: another figure of that one,
    when it is not the same. ``of`` empty: ``factor`` is a number that ours must not exceed."""

    of: str
    factor: float
    key: Key | None = None


class Figure(NamedTuple):
    key: Key
    title: str
    unit: str
    more_is_better: bool = False
    asked: tuple[Asked, ...] = ()

    def ratio(self, mine: float, other: float) -> float:
        """How many times better mine is."""
        return mine / other if self.more_is_better else other / mine

    def text(self, asked: Asked) -> str:
        """What is asked, for people: ``≥ 75 % of limit``, ``≤ 6 × limit``, ``≤ 100 B``."""
        if not asked.of:
            return f"≤ {asked.factor:g} {self.unit}"
        of = f"{asked.of} of {asked.key.work} {asked.key.figure}" if asked.key else asked.of
        if asked.factor >= 1:
            return f"≥ {asked.factor:g} × {of}"
        return f"≥ {asked.factor * 100:g} % of {of}" if self.more_is_better else f"≤ {1 / asked.factor:g} × {of}"


ECHO = Key("W2", "p50")


def replayed(instance: str) -> Figure:
    """Seconds of a replay, of which the limit is what they would be if nothing cost anything."""
    return Figure(Key("W8", instance), f"replay of {instance}", "s")


EFFICIENCY = 0.95
"""What is asked of each replay: so much of the limit."""

FIGURES = (
    Figure(Key("W1", "rate"), "10,000 no-ops as one batch", "/s", True, (Asked("ray", 100),)),
    Figure(Key("W1s", "rate"), "10,000 no-ops by single submits", "/s", True, (Asked("ray", 20),)),
    Figure(Key("W2", "p50"), "round trip of a no-op, p50", "ms", asked=(Asked(LIMIT, 1 / 6),)),
    Figure(Key("W2", "p99"), "round trip of a no-op, p99", "ms", asked=(Asked(LIMIT, 1 / 10, ECHO),)),
    Figure(Key("W2r", "p50"), "the same, relaxed durability, p50", "ms", asked=(Asked(LIMIT, 1 / 3, ECHO),)),
    Figure(Key("W3", "rate"), "2,000 × /bin/true", "/s", True, (Asked(LIMIT, 0.75), Asked("hyperqueue", 2.5))),
    Figure(Key("W4", "rate"), "300 Python script files", "/s", True, (Asked(BEST, 6), Asked(LIMIT, 0.65))),
    Figure(Key("W5", "step"), "chain of 200 no-ops, per step", "ms", asked=(Asked(LIMIT, 1 / 3),)),
    Figure(Key("W5f", "seconds"), "fan 1 → 1,000 → 1", "s", asked=(Asked("ray", 40),)),
    Figure(Key("W6", "bytes"), "memory per queued task, of a batch", "B", asked=(Asked("", 100),)),
    Figure(Key("W6", "seconds"), "100,000 queued in", "s"),
    Figure(Key("W6n", "bytes"), "memory per queued task, named", "B", asked=(Asked("", 700),)),
    Figure(Key("W7", "seconds"), "cold start to first result", "s", asked=(Asked("", 0.5),)),
    Figure(Key("W7", "scheduler"), "idle memory, scheduler", "MiB", asked=(Asked("", 40),)),
    Figure(Key("W7", "worker"), "idle memory, worker", "MiB", asked=(Asked("", 30),)),
)
