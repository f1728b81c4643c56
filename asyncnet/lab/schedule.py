"""When a load sends and when it measures: the schedule of an open loop and the warm-up. `now` is an argument, in ns."""

from __future__ import annotations

import random
from collections import deque
from typing import Final

import attrs

__all__ = ["LEAD", "MOST_WAITING", "Schedule", "WarmUp"]

LEAD: Final = 0.05
"""Seconds from the line "measuring" to what counts: who reads then what the server has used disturbs the load."""

MOST_WAITING: Final = 1 << 20
"""Requests that may wait for a free connection; more are counted and not sent."""
_STEADY: Final = 1.05


@attrs.define
class Schedule:
    """The moments at which an open loop is to send, whatever the server does."""

    rate: float
    poisson: bool
    next_due: int
    random: random.Random = attrs.field(factory=lambda: random.Random(1))
    """What the gaps of Poisson arrivals are drawn from."""
    waiting: deque[int] = attrs.field(factory=deque)
    """When the requests that found no free connection were to be sent."""
    unsent: int = 0

    def take_due(self, now: int) -> None:
        """Let everything wait that is due."""
        while self.rate > 0 and self.next_due <= now:
            if len(self.waiting) < MOST_WAITING:
                self.waiting.append(self.next_due)
            else:
                self.unsent += 1
            gap = self.random.expovariate(self.rate) if self.poisson else 1 / self.rate
            self.next_due += int(gap * 1e9) + 1


@attrs.define
class WarmUp:
    """Ends after its time or, with a window, as soon as the rates of three windows differ by 5 % at most."""

    begun: int
    longest: float
    window: float
    _rates: deque[float] = attrs.field(factory=lambda: deque(maxlen=3))
    _from: int = attrs.field(init=False)
    _answers: int = 0

    def __attrs_post_init__(self) -> None:
        self._from = self.begun

    def is_over(self, now: int, answers: int) -> bool:
        """Tell whether the measurement may begin, by the number of answers so far."""
        if now - self.begun >= self.longest * 1e9:
            return True
        if self.window > 0 and now - self._from >= self.window * 1e9:
            self._rates.append((answers - self._answers) / (now - self._from))
            self._from, self._answers = now, answers
            return len(self._rates) == 3 and 0 < max(self._rates) <= min(self._rates) * _STEADY
        return False
