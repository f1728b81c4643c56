"""Resume a waiting task from a callback at once, instead of in the next turn of the event loop.

A future resumes its task by way of the loop's queue: data that has just been received waits there, and on a busy loop a
task pays for an object, two callbacks and a turn each time. A `Wakeup` has the methods by which `asyncio.Task` awaits a
future, keeps the callback that the task leaves, and calls it straight away where that is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

__all__ = ["Wakeup"]


class Wakeup:
    """What one task at a time awaits until somebody calls `wake`; it can be used again afterwards.

    Args:
        loop: the loop of the task.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "callback")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False  # a task looks at it to tell a future from a bare yield
        self._loop = loop
        self.callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._cancelled: tuple[Any, ...] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        # Cheaper than a generator, and a task needs no more than an iterator.
        return iter((self,))  # type: ignore[return-value]

    def wake(self) -> None:
        """Resume the task that waits, if one does: now when no task is running, else in the next turn of the loop."""
        callback, context = self.callback, self._context
        if callback is None or context is None:
            return
        self.callback = self._context = None
        if asyncio.current_task(self._loop) is None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    def wake_from_callback(self) -> None:
        """Do the same where no task can be running: in a callback that the event loop has called itself."""
        callback = self.callback
        if callback is not None:
            self.callback = None
            self._context.run(callback, self)  # type: ignore[union-attr]  # both were set together

    @property
    def waiting(self) -> bool:
        """Whether a task waits that has been neither woken nor cancelled: `callback` is what resumes it."""
        return self.callback is not None

    # What a task calls.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the task."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Keep what resumes the task."""
        self.callback, self._context = callback, context

    def result(self) -> None:
        """Raise `asyncio.CancelledError` in the task if that is why it is resumed."""
        if self._cancelled is not None:
            arguments, self._cancelled = self._cancelled, None
            raise asyncio.CancelledError(*arguments)

    def cancel(self, msg: Any = None) -> bool:
        """Resume the task with `asyncio.CancelledError`; False when it has been woken already."""
        callback, context = self.callback, self._context
        if callback is None:
            return False
        self.callback = self._context = None
        self._cancelled = () if msg is None else (msg,)
        self._loop.call_soon(callback, self, context=context)
        return True
