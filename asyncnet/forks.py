"""What a process does before it forks, and before it ends without its parent's clean-up."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["flush_streams"]


def flush_streams() -> None:
    """Write out what has been printed, as far as somebody takes it: a log whose reader is gone must end nobody."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a full disk, a closed stream, none
            stream.flush()
