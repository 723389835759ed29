"""Faults that can be built in on purpose. Each breaks a promise and must turn a named test red, or that test proves
nothing. `scheduler.state.Tuning.sabotage` holds the names that are on; production never sets it.
"""

from __future__ import annotations

PARENTS_COUNTED_ONCE = "parents_counted_once"
FORGET_TO_REQUEUE = "forget_to_requeue"
FLOOR_IGNORED = "floor_ignored"
PARENTS_FENCE_IGNORED = "parents_fence_ignored"
ABSENT_IS_CRASH = "absent_is_crash"
COPIED_STATE = "copied_state"
HIGHER_FENCE_IGNORED = "higher_fence_ignored"
RETRY_NOT_FENCED = "retry_not_fenced"
OLD_NONCE_KEPT = "old_nonce_kept"
HOLD_SKIPPED = "hold_skipped"
CANCEL_FORGOTTEN = "cancel_forgotten"
BACKOFF_FORGOTTEN = "backoff_forgotten"
CRASHES_FORGOTTEN = "crashes_forgotten"

BREAKS = {
    PARENTS_COUNTED_ONCE: "A parent is counted off only while it is the first of its child: joins never start.",
    FORGET_TO_REQUEUE: "The attempts of a lost worker are closed and their tasks forgotten.",
    FLOOR_IGNORED: "An attempt that ended for the books is kept when its worker comes back with it.",
    PARENTS_FENCE_IGNORED: "A child's attempt from before its parent ran again is kept.",
    ABSENT_IS_CRASH: "An assignment that never arrived counts towards the crash limit.",
    COPIED_STATE: "Attempts of another history, whose epoch has our number, are taken for ours.",
    HIGHER_FENCE_IGNORED: "An attempt is kept though a later one of its task is known.",
    RETRY_NOT_FENCED: "A retry draws no line: attempts from before it still count.",
    OLD_NONCE_KEPT: "A new incarnation of a worker goes under the nonce of the old one.",
    HOLD_SKIPPED: "After a restart nobody waits for the workers that were alive.",
    CANCEL_FORGOTTEN: "A cancel that nobody had confirmed is forgotten in a restart.",
    BACKOFF_FORGOTTEN: "What waited out a backoff or a delay starts at once after a restart.",
    CRASHES_FORGOTTEN: "How many workers a task took with it is forgotten in a restart.",
}
"""Name -> what is wrong then."""
SABOTAGE = frozenset(BREAKS)
