"""A suite must be able to fail: every promise that is broken on purpose is noticed by some hour, and soon.

``python tests/simulation/replay.py --catch-all`` tells by which one, and who else notices.
"""

from __future__ import annotations

import pytest
from catch import CAUGHT_BY, WITNESSES, first_catch
from sabotage import BREAKS, BUILT_IN, PATCHES
from weather import CLIMATES, MIXED, NETWORK_ONLY, STRANGE, WORKERS_ONLY, climate_of

HOURS = 60
"""In which each must be noticed here; by hand it may take a thousand."""
WEATHER = {
    "absent_is_crash": WORKERS_ONLY,
    "copied_state": STRANGE,
    "higher_fence_ignored": MIXED,
    "kills_ignored": WORKERS_ONLY,
    "old_attach_accepted": NETWORK_ONLY,
    "parents_fence_ignored": STRANGE,
    "retry_not_fenced": MIXED,
}
"""In which a promise shows sooner than in others: a test that looks on is not worth the minute."""
FIRST = {"absent_is_crash": 190, "retry_not_fenced": 850}
"""Seeds before this one notice nothing, as hours are now. Wrong, this makes a test slower, and nothing else."""


def hours_for(name: str) -> list[int]:
    climates = [WEATHER[name]] if name in WEATHER else CLIMATES
    first = FIRST.get(name, 0)
    return [seed for seed in range(first, first + HOURS * len(CLIMATES)) if climate_of(seed) in climates][:HOURS]


def test_there_are_many_promises_to_break_and_each_has_one_name() -> None:
    assert len(BREAKS) == len(BUILT_IN) + len(PATCHES) >= 20
    assert BREAKS.keys() >= WITNESSES.keys() | CAUGHT_BY.keys()


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_is_noticed(name: str) -> None:
    assert first_catch(name, hours_for(name)) is not None
