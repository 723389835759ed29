"""The contract of the heartbeat table: `_heartbeat.pyx` (compiled) and `_heartbeat_py.py` (pure)."""

class HeartbeatTable:
    """When each worker was last heard, in one flat table: a beat is one store, a scan one pass.

    Rows are small integers, reused after `remove`. A row is fresh, suspect or lost; a beat makes it fresh again.
    Times are seconds of one monotonic clock.
    """

    def add(self, now: float) -> int: ...
    def remove(self, row: int) -> None:
        """Raises KeyError for a row that is not in use (as every call with a row does)."""

    def beat(self, row: int, now: float) -> bool:
        """Something was heard. True when the row was suspect or lost until now. Time never runs backwards."""

    def mute(self, row: int, muted: bool) -> None:
        """A muted row is not judged (we stopped reading from it); unmuting makes it fresh at its last time."""

    def suspect(self, row: int) -> bool:
        """Make a fresh row suspect at once (its connection closed), muted or not. True when it was fresh."""

    def last(self, row: int) -> float: ...
    def scan(self, now: float, suspect_after: float, lost_after: float) -> tuple[list[int], list[int]]:
        """Rows that became suspect and rows that became lost since the last scan, each in row order.

        Silent for at least the given seconds; rows that `suspect` named are not named again. A row may pass through
        both at once: then it is only in the second.
        """

    def shift(self, seconds: float) -> None:
        """Move every last-heard time forward: the time we ourselves were not listening is nobody's fault."""

    def __len__(self) -> int: ...
