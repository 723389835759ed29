"""Standard output that says what is wrong with it: a full disk, or nothing at all where it should be, is told in a
sentence and not in a traceback. What is written is not known here.
"""

from __future__ import annotations

import io
import os
import sys

from titan_fast.errors import UserError


class ReaderGone(Exception):
    """Whoever read standard output has seen enough. (Not a `BrokenPipeError`: click would end the process for one.)"""


class _StandardOutput(io.FileIO):
    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise UserError(f"standard output cannot be written: {error.strerror}") from None


def guard() -> None:
    """Make every write to standard output that fails a `UserError`."""
    found = sys.stdout
    if found is not sys.__stdout__:
        return  # somebody else's, who knows what becomes of it
    if found is None:
        # The lowest number that is free, as a rule 1: no socket may become what others take for standard output.
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_StandardOutput(os.open(os.devnull, os.O_RDONLY), "w")))
        return
    raw = io.BufferedWriter(_StandardOutput(found.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(raw, found.encoding, found.errors, line_buffering=found.isatty())


def let_go() -> None:
    """Forget what could not be written: the interpreter would try once more on its way out, and complain."""
    try:
        sys.stdout.flush()
    except (UserError, ReaderGone):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
