"""Objects that are shared by everything on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One object for each event loop, which lives as long as somebody else holds it.

    A table with a strong reference to it would keep the loop for ever, when there is a way from the object to the
    loop, such as by a callback of something that nobody has closed.

    Args:
        make: makes the object of a loop; it must allow weak references.
    """

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], T]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[T]] = WeakKeyDictionary()

    def __call__(self, loop: asyncio.AbstractEventLoop) -> T:
        """Return the object of this loop, and make it when there is none."""
        known = self._made.get(loop)
        found = None if known is None else known()
        if found is None:
            found = self._make(loop)
            self._made[loop] = ref(found)
        return found
