"""What keeps a flood small: a rate for each source, and a memory of what was seen a moment ago. Time is an argument."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["RateLimiter", "Recent"]

_MAX_SOURCES: Final = 4096


class RateLimiter:
    """Tells whether a source may cause one thing more.

    A source has one number: when it will have used up what it is due. It is forgotten when it is the one that came
    first and there are too many.

    Args:
        rate: things a second in the long run.
        burst: things at once after a silence.
        max_sources: sources that are remembered.
    """

    def __init__(self, rate: float, burst: float, *, max_sources: int = _MAX_SOURCES) -> None:
        self._interval = 1 / rate
        # A little more, since sums of seconds are rounded, and the clock decides how.
        self._slack = max(0.0, burst - 1 + 1e-3) / rate
        self._max_sources = max_sources
        self._paid_until: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._paid_until)

    def allows(self, source: Hashable, now: float) -> bool:
        """Tell whether a source may, and count it if so."""
        table = self._paid_until
        paid_until = table.get(source, now)
        if paid_until <= now:
            paid_until = now
        elif paid_until - now > self._slack:
            return False
        table[source] = paid_until + self._interval
        if len(table) > self._max_sources:
            del table[next(iter(table))]
        return True


class Recent:
    """Remembers what was seen within a time, and no more than so many things.

    Args:
        seconds: how long.
        size: how many.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._size = size
        self._seen: dict[Hashable, float] = {}  # in the order of time

    def __len__(self) -> int:
        return len(self._seen)

    def seen(self, thing: Hashable, now: float) -> bool:
        """Tell whether a thing was seen within the time, and remember that it was seen if not."""
        seen = self._seen
        then = seen.get(thing)
        if then is not None and now - then < self._seconds:
            return True
        seen.pop(thing, None)
        seen[thing] = now
        while len(seen) > self._size or now - next(iter(seen.values())) >= self._seconds:
            del seen[next(iter(seen))]
        return False
