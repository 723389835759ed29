"""What is known of a run that was submitted and not waited for, by the answers that have come. It reads none itself, so
that whoever blocks and whoever awaits share it.
"""

from __future__ import annotations

from titan_fast.errors import NoMaster, TitanError, WaitTimedOut
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Incoming


class Known:
    """Its number, then how it ended; or what went wrong with it."""

    def __init__(self, last: str, watched: bool) -> None:
        """
        Args:
            last: the task that ends with the run, if there is one.
            watched: its outcome is on its way, and not only its number.
        """
        self.last = last
        self.watched = watched
        self.number = 0
        self.outcome: msg.Update | None = None
        self.error: TitanError | None = None
        self.gift: bytes | None = None
        """What its last task returned, if that was told with the outcome."""

    @property
    def is_settled(self) -> bool:
        """It was accepted or refused."""
        return self.number != 0 or self.error is not None

    @property
    def is_over(self) -> bool:
        """It has ended, or was never accepted."""
        return self.outcome is not None or self.error is not None

    @property
    def is_to_be_watched(self) -> bool:
        """It is accepted, and how it ends is neither known nor asked for."""
        return self.number != 0 and not self.watched and not self.is_over

    def end(self) -> msg.Update:
        """Raises what went wrong with the submit."""
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def heard(self, incoming: Incoming) -> bool:
        """Take an answer in; whether more of them are wanted."""
        said = incoming.message
        if isinstance(said, msg.Update | msg.Accepted):
            self.number = said.run
        if isinstance(said, msg.Update) and said.final:
            self.outcome = said
            self.gift = incoming.attachments[0] if said.gave and said.gave == self.last else None
        return self.watched and self.outcome is None

    def failed(self, error: TitanError) -> None:
        """There is no answer. Raises WaitTimedOut, NoMaster: there may be one another time."""
        if isinstance(error, NoMaster) and self.number:
            error.hint = f"when it is back: titan-fast wait {self.number}"
        if isinstance(error, NoMaster | WaitTimedOut):
            raise error
        self.error = error

    def reopened(self) -> None:
        """What is waited for next is another end."""
        self.outcome, self.watched, self.gift = None, False, None
