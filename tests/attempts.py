"""A second and a third attempt at what a pause of the machine spoils."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 3


def first_good(attempt: Callable[[], T], is_good: Callable[[T], object]) -> T:
    """Return what the first good one of three attempts returns, or the last one if none is good.

    Only what depends on time belongs in `is_good`, and it is asserted afterwards. What must hold whatever the machine
    does is no reason for another attempt.
    """
    for _ in range(ATTEMPTS - 1):
        found = attempt()
        if is_good(found):
            return found
    return attempt()
