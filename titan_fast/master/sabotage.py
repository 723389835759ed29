"""Faults of the shell that can be built in on purpose, beside those of the core (`scheduler.sabotage`). Each must turn
a named test red, or that test proves nothing. Production never sets one."""

from __future__ import annotations

ACKNOWLEDGE_BEFORE_COMMIT = "acknowledge_before_commit"
"""Replies and acknowledgements leave at once."""
VERDICT_BEFORE_COMMIT = "verdict_before_commit"
"""A verdict leaves before the facts it rests on are durable, and assignments to a new worker with it."""
KILL_BEFORE_COMMIT = "kill_before_commit"
"""An attempt is ended though a crash may undo the reason."""
ASSIGN_BEFORE_ADMISSION = "assign_before_admission"
"""A process of a run starts though a crash may undo that the run was ever submitted."""
OLD_ATTACH_ACCEPTED = "old_attach_accepted"
"""An ATTACH of an earlier connection replaces a later one."""
STALE_SESSION_ACCEPTED = "stale_session_accepted"
"""What arrives over a connection that was replaced still counts."""
REPLIES_NOT_STORED = "replies_not_stored"
"""A repeated request is carried out again."""
KEYS_CONSUMED_BY_FAILURES = "keys_consumed_by_failures"
"""A request that was refused is answered as done when it is repeated."""
FENCES_REUSED = "fences_reused"
"""A restart counts its fences from the beginning again."""

SABOTAGE = frozenset(
    {
        ACKNOWLEDGE_BEFORE_COMMIT,
        VERDICT_BEFORE_COMMIT,
        KILL_BEFORE_COMMIT,
        ASSIGN_BEFORE_ADMISSION,
        OLD_ATTACH_ACCEPTED,
        STALE_SESSION_ACCEPTED,
        REPLIES_NOT_STORED,
        KEYS_CONSUMED_BY_FAILURES,
        FENCES_REUSED,
    }
)
