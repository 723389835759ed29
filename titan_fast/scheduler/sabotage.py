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
HIGHER_FENCE_IGNORED = "higher_fence_ignored"
"""An attempt is kept though a later one of its task is known."""
GENERATION_IGNORED = "generation_ignored"
"""An attempt of another generation than the task is in is kept."""
RETRY_FLOOR_KEPT = "retry_floor_kept"
"""A retry does not raise the floors of what it opens again."""
OLD_NONCE_KEPT = "old_nonce_kept"
"""A new incarnation of a worker goes under the nonce of the old one."""
HOLD_SKIPPED = "hold_skipped"
"""After a restart nobody waits for the workers that were alive."""
CANCEL_FORGOTTEN = "cancel_forgotten"
"""A cancel that nobody had confirmed is forgotten in a restart."""
BACKOFF_FORGOTTEN = "backoff_forgotten"
"""What waited out a backoff or a delay starts at once after a restart."""
CRASHES_FORGOTTEN = "crashes_forgotten"
"""How many workers a task took with it is forgotten in a restart."""

SABOTAGE = frozenset(
    {
        PARENTS_COUNTED_ONCE,
        FORGET_TO_REQUEUE,
        FLOOR_IGNORED,
        PARENTS_FENCE_IGNORED,
        ABSENT_IS_CRASH,
        COPIED_STATE,
        HIGHER_FENCE_IGNORED,
        GENERATION_IGNORED,
        RETRY_FLOOR_KEPT,
        OLD_NONCE_KEPT,
        HOLD_SKIPPED,
        CANCEL_FORGOTTEN,
        BACKOFF_FORGOTTEN,
        CRASHES_FORGOTTEN,
    }
)
