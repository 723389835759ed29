"""Test kit that ships: what our own tests use, users may use for theirs."""
