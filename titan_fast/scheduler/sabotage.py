"""Faults that can be built in on purpose. Each must turn a named test red, or that test proves nothing.

`scheduler.state.Tuning.sabotage` holds the names that are on; production never sets it.
"""

from __future__ import annotations

PARENTS_COUNTED_ONCE = "parents_counted_once"
"""A child's counter is decremented by the first parent that finishes only."""
FORGET_TO_REQUEUE = "forget_to_requeue"
"""What a lost worker held is dropped."""

SABOTAGE = frozenset({PARENTS_COUNTED_ONCE, FORGET_TO_REQUEUE})
