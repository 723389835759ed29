"""Faults that can be built in on purpose. Each must turn a named test red, or that test proves nothing.

`scheduler.state.Tuning.sabotage` holds the names that are on; production never sets it.
"""

from __future__ import annotations

PARENTS_COUNTED_ONCE = "parents_counted_once"
"""A parent is counted off only while it is the first of its child: joins never start."""
FORGET_TO_REQUEUE = "forget_to_requeue"
"""The attempts of a lost worker are closed and their tasks forgotten."""
FLOOR_IGNORED = "floor_ignored"
"""An attempt that ended for the books is kept when its worker comes back with it."""
PARENTS_FENCE_IGNORED = "parents_fence_ignored"
"""A child's attempt from before its parent ran again is kept."""
ABSENT_IS_CRASH = "absent_is_crash"
"""An assignment that never arrived counts towards the crash limit."""
COPIED_STATE = "copied_state"
"""Attempts of another history, whose epoch has our number, are taken for ours."""

SABOTAGE = frozenset(
    {PARENTS_COUNTED_ONCE, FORGET_TO_REQUEUE, FLOOR_IGNORED, PARENTS_FENCE_IGNORED, ABSENT_IS_CRASH, COPIED_STATE}
)
