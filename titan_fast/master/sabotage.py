"""Faults of the shell that can be built in on purpose, beside those of the core (`scheduler.sabotage`). Each breaks a
promise and must turn a named test red, or that test proves nothing. Production never sets one.
"""

from __future__ import annotations

ACKNOWLEDGE_BEFORE_COMMIT = "acknowledge_before_commit"
VERDICT_BEFORE_COMMIT = "verdict_before_commit"
KILL_BEFORE_COMMIT = "kill_before_commit"
ASSIGN_BEFORE_ADMISSION = "assign_before_admission"
OLD_ATTACH_ACCEPTED = "old_attach_accepted"
STALE_SESSION_ACCEPTED = "stale_session_accepted"
REPLIES_NOT_STORED = "replies_not_stored"
KEYS_CONSUMED_BY_FAILURES = "keys_consumed_by_failures"
FENCES_REUSED = "fences_reused"

BREAKS = {
    ACKNOWLEDGE_BEFORE_COMMIT: "Replies and acknowledgements leave at once.",
    VERDICT_BEFORE_COMMIT: "A verdict, and assignments to a new worker, leave before what they rest on is durable.",
    KILL_BEFORE_COMMIT: "An attempt is ended though a crash may undo the reason.",
    ASSIGN_BEFORE_ADMISSION: "A process starts though a crash may undo that its run was ever submitted, or retried.",
    OLD_ATTACH_ACCEPTED: "An ATTACH of an earlier connection replaces a later one.",
    STALE_SESSION_ACCEPTED: "What arrives over a connection that was replaced still counts.",
    REPLIES_NOT_STORED: "A repeated request is carried out again.",
    KEYS_CONSUMED_BY_FAILURES: "A request that was refused is answered as done when it is repeated.",
    FENCES_REUSED: "A restart counts its fences from the beginning again.",
}
"""Name -> what is wrong then."""
SABOTAGE = frozenset(BREAKS)
