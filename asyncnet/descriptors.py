"""How many descriptors this process may have open: the soft limit, mostly 1024, and the hard one above it."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from typing import Final

__all__ = ["EXHAUSTED", "allow_descriptors", "most_descriptors"]

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when it has nothing left to give."""


def allow_descriptors(count: int = sys.maxsize) -> None:
    """Raise the soft limit to `count`, or as far as the hard limit lets it; it is never lowered."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(count, most_descriptors())
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard if most == sys.maxsize else most, hard))


def most_descriptors() -> int:
    """Return the hard limit; `sys.maxsize` where there is none."""
    try:
        import resource
    except ImportError:
        return sys.maxsize
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
