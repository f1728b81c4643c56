"""Resume a waiting task from a callback at once, instead of in the next turn of the event loop.

A future resumes its task by way of the loop's queue: data that has just been received waits there, and on a busy loop a
task pays for an object, two callbacks and a turn each time. A `Wakeup` has the methods by which `asyncio.Task` awaits a
future, keeps the callback that the task leaves, and calls it straight away where that is safe.

Most of what is left is what the task does around each step of its coroutine. `Steps` spares that too: a coroutine that
waits for the same `Wakeup` again and again runs on, while its task still waits for the first one.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # documented, under "Extending", for other kinds of tasks
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["Steps", "Wakeup"]


class Wakeup:
    """What one task at a time awaits until somebody calls `wake`; it can be used again afterwards.

    Args:
        loop: the loop of the task.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_loop", "callback", "context", "steps")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False  # a task looks at it to tell a future from a bare yield
        self._loop = loop
        self.callback: Callable[[Any], object] | None = None
        self.context: Context | None = None
        self._cancelled: tuple[Any, ...] | None = None
        self.steps: Steps | None = None

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        # Cheaper than a generator, and a task needs no more than an iterator.
        return iter((self,))  # type: ignore[return-value]

    def wake(self) -> None:
        """Resume the task that waits, if one does: now when no task is running, else in the next turn of the loop."""
        callback, context = self.callback, self.context
        if callback is None or context is None:
            return
        self.callback = self.context = None
        if asyncio.current_task(self._loop) is None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    def wake_from_callback(self) -> None:
        """Do the same where no task can be running: in a callback that the event loop has called itself."""
        callback, context = self.callback, self.context
        if callback is None or context is None:
            return
        self.callback = None
        context.run(callback, self)

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
        self.callback, self.context = callback, context

    def result(self) -> None:
        """Raise `asyncio.CancelledError` in the task if that is why it is resumed."""
        if self._cancelled is not None:
            arguments, self._cancelled = self._cancelled, None
            raise asyncio.CancelledError(*arguments)

    def cancel(self, msg: Any = None) -> bool:
        """Resume the task with `asyncio.CancelledError`; False when it has been woken already."""
        callback, context = self.callback, self.context
        if callback is None:
            if self.steps is not None:
                self.steps.note_cancel()
            return False
        self.callback = self.context = None
        self._cancelled = () if msg is None else (msg,)
        self._loop.call_soon(callback, self, context=context)
        return True


_NOTHING: Final = object()


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine for a task, which takes steps by itself while it waits for a certain `Wakeup` and nothing else.

    The task takes every other step: the first, those after waiting for something else, and whatever follows a step that
    did not end in waiting for the same `Wakeup`. So it is an ordinary task for everybody, and the coroutine finds it as
    the current one in all its steps.

    Args:
        coroutine: what the task is to run.
        wakeup: what it mostly waits for; it may be resumed without a call of `run`.
    """

    __slots__ = ("__weakref__", "_awaited", "_cancelled", "_coroutine", "_loop", "_raised", "_send", "_task", "_wakeup")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], wakeup: Wakeup) -> None:
        self._coroutine = coroutine
        self._send = coroutine.send
        self._wakeup = wakeup
        self._loop = wakeup.get_loop()
        self._task: asyncio.Task[Any] | None = None  # while it waits for the wakeup
        self._cancelled = False  # the task was, in a step of which it knows nothing
        self._awaited: Any = _NOTHING  # what that step ended with, or
        self._raised: BaseException | None = None  # what it raised: the task must learn of it
        wakeup.steps = self

    def run(self) -> None:
        """Do what `Wakeup.wake_from_callback` does, and take the step here if the task need not know."""
        wakeup, task = self._wakeup, self._task
        callback, context = wakeup.callback, wakeup.context
        if callback is None or context is None:
            return
        wakeup.callback = None
        if task is not None:
            awaited: Any = _NOTHING
            self._cancelled = False
            _enter_task(self._loop, task)
            try:
                awaited = context.run(self._send, None)
            except BaseException as exc:
                self._raised = exc
            finally:
                _leave_task(self._loop, task)
            if awaited is wakeup and not self._cancelled:
                wakeup.callback = callback  # both wait again, and the task does not know
                return
            self._task, self._awaited = None, awaited
            if self._cancelled and (awaited is wakeup or awaited is None):
                self._loop.call_soon(callback, wakeup, context=context)  # as the task does: not in this turn
                return
        context.run(callback, wakeup)

    def note_cancel(self) -> None:
        """The task was cancelled, perhaps in a step of which it does not know."""
        self._cancelled = True

    # What the task calls.

    def send(self, value: Any) -> Any:
        """Take a step, or tell what the last one led to."""
        awaited, self._awaited = self._awaited, _NOTHING
        if awaited is _NOTHING or awaited is self._wakeup:  # a cancellation was taken back: it might miss a call
            return self._step(self._send, value)
        return awaited

    def throw(self, *raised: Any) -> Any:
        """Raise an exception in the coroutine: the task is cancelled, or what it waited for has failed."""
        awaited, self._awaited = self._awaited, _NOTHING
        if awaited is not self._wakeup and getattr(awaited, "_asyncio_future_blocking", False) and awaited.cancel():
            return awaited  # as the task does when it is cancelled in the step that begins to wait for something
        if isinstance(self._raised, StopIteration):
            self._raised = raised[0]  # as the task does when it is cancelled in its last step
        return self._step(self._coroutine.throw, *raised)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        raised, self._raised = self._raised, None
        try:
            if raised is not None:
                raise raised
            awaited = step(*arguments)
        except BaseException:
            self._task = self._wakeup.steps = None  # or they would keep each other
            raise
        finally:
            del raised
        self._task = asyncio.current_task(self._loop) if awaited is self._wakeup else None
        return awaited

    def close(self) -> None:
        """Close the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    # What `asyncio.Task` shows of it.

    @property
    def __name__(self) -> str:
        return getattr(self._coroutine, "__qualname__", type(self._coroutine).__qualname__)

    @property
    def cr_frame(self) -> FrameType | None:
        """The frame of the coroutine."""
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_code(self) -> CodeType | None:
        """The code of the coroutine."""
        return getattr(self._coroutine, "cr_code", None)

    @property
    def cr_await(self) -> Any:
        """What the coroutine waits for."""
        return getattr(self._coroutine, "cr_await", None)

    @property
    def cr_running(self) -> bool:
        """Whether the coroutine runs."""
        return bool(getattr(self._coroutine, "cr_running", False))
