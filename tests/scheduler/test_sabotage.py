"""A suite must be able to fail: each fault built in on purpose turns the test named beside it red."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_dependencies import check_fan_in
from test_workers import check_lost_worker

from titan_fast.scheduler.sabotage import FORGET_TO_REQUEUE, PARENTS_COUNTED_ONCE, SABOTAGE
from titan_fast.scheduler.state import Tuning

CAUGHT_BY: dict[str, Callable[[Tuning | None], None]] = {
    PARENTS_COUNTED_ONCE: check_fan_in,
    FORGET_TO_REQUEUE: check_lost_worker,
}


@pytest.mark.parametrize("fault", sorted(CAUGHT_BY))
def test_a_built_in_fault_turns_its_test_red(fault: str) -> None:
    check = CAUGHT_BY[fault]
    check(Tuning())
    with pytest.raises(AssertionError):
        check(Tuning(sabotage=frozenset({fault})))


def test_every_fault_has_its_test_and_none_is_on_by_itself() -> None:
    assert set(CAUGHT_BY) == SABOTAGE
    assert not Tuning().sabotage
