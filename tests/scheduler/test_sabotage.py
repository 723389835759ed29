"""A suite must be able to fail: each fault built in on purpose turns the test named beside it red."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_dependencies import check_fan_in
from test_recovery import check_adopted, check_backoff, check_cancel, check_crashes
from test_verdicts import (
    check_floor,
    check_foreign,
    check_higher_fence,
    check_parents_fence,
    check_retry_floor,
)
from test_workers import check_absent, check_lost_worker, check_old_nonce

from titan_fast.scheduler.sabotage import (
    ABSENT_IS_CRASH,
    BACKOFF_FORGOTTEN,
    CANCEL_FORGOTTEN,
    COPIED_STATE,
    CRASHES_FORGOTTEN,
    FLOOR_IGNORED,
    FORGET_TO_REQUEUE,
    HIGHER_FENCE_IGNORED,
    HOLD_SKIPPED,
    OLD_NONCE_KEPT,
    PARENTS_COUNTED_ONCE,
    PARENTS_FENCE_IGNORED,
    RETRY_NOT_FENCED,
    SABOTAGE,
)
from titan_fast.scheduler.state import Tuning

CAUGHT_BY: dict[str, Callable[[Tuning | None], None]] = {
    PARENTS_COUNTED_ONCE: check_fan_in,
    FORGET_TO_REQUEUE: check_lost_worker,
    ABSENT_IS_CRASH: check_absent,
    OLD_NONCE_KEPT: check_old_nonce,
    FLOOR_IGNORED: check_floor,
    RETRY_NOT_FENCED: check_retry_floor,
    HIGHER_FENCE_IGNORED: check_higher_fence,
    PARENTS_FENCE_IGNORED: check_parents_fence,
    COPIED_STATE: check_foreign,
    HOLD_SKIPPED: check_adopted,
    CANCEL_FORGOTTEN: check_cancel,
    BACKOFF_FORGOTTEN: check_backoff,
    CRASHES_FORGOTTEN: check_crashes,
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
