"""`timeout` and `spawn`: what asyncio's of the same names do, on every engine.

An engine keeps the open timeouts of each task. When the earliest has passed, it raises `asyncio.CancelledError` where
the task waits, once, and the timeout turns that into `TimeoutError` where its block ends: so code inside the block
that handles `OSError` does not swallow it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from typing import Any, Final, Protocol, Self, TypeVar

import attrs

from asyncnet.compat.traps import JOIN, Trap, current_driver, trap

__all__ = [
    "OPEN",
    "Driver",
    "Scope",
    "Spawned",
    "bounded",
    "check_cancelled",
    "earliest",
    "open_scopes",
    "spawn",
    "timeout",
]

logger: Final = logging.getLogger("asyncnet.compat")

T = TypeVar("T")


@attrs.define(eq=False)
class Scope:
    """An open timeout of a task."""

    deadline: float
    """On the clock of `time.monotonic`."""
    raised: asyncio.CancelledError | None = None
    """What was raised for it, once."""

    def expire(self) -> asyncio.CancelledError:
        """Return what is to be raised where the task waits."""
        self.raised = asyncio.CancelledError("timed out")
        return self.raised


OPEN: Final[set[Scope]] = set()
"""Every open timeout in this process: when there is none, nobody need ask whose."""


def earliest(scopes: list[Scope]) -> Scope | None:
    """Return the timeout that comes first; None when there is none that counts."""
    return min((scope for scope in scopes if scope.raised is None), key=lambda scope: scope.deadline, default=None)


class timeout:  # as asyncio.timeout
    """Bound what is awaited in a block: ``async with compat.timeout(5): ...``.

    Args:
        seconds: until whatever the block waits for is given up; None for no bound.

    Raises:
        TimeoutError: when the block ends, if it was given up.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope: Scope | None = None
        self._scopes: list[Scope] = []
        self._native: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        driver: Driver | None = current_driver()
        if driver is None:
            self._native = asyncio.timeout(self._seconds)
            await self._native.__aenter__()
        elif self._seconds is not None:
            self._scope = Scope(monotonic() + self._seconds)
            self._scopes = driver.scopes
            self._scopes.append(self._scope)
            OPEN.add(self._scope)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None:
        if self._native is not None:
            await self._native.__aexit__(kind, exc, trace)
        elif self._scope is not None:
            self._scopes.remove(self._scope)
            OPEN.discard(self._scope)
            if exc is not None and exc is self._scope.raised:  # and not somebody else's cancellation
                raise TimeoutError("timed out") from exc


def open_scopes() -> list[Scope]:
    """Return the open timeouts of the running task; none outside of the engines that run on traps."""
    driver = _driver()
    return [] if driver is None else driver.scopes


def check_cancelled() -> None:
    """Raise `asyncio.CancelledError` if the running task was cancelled while it was in a call that blocks."""
    driver = _driver()
    if driver is not None:
        driver.check()


def _driver() -> Driver | None:
    try:
        driver: Driver | None = current_driver()
    except RuntimeError:
        return None
    return driver


def bounded(sock: Any, operation: Callable[..., T], *args: Any) -> T:
    """Do an operation of a socket that blocks, within the open timeouts of the running task.

    Raises:
        asyncio.CancelledError: the earliest of them has passed.
        OSError: whatever the operation raises.
    """
    scopes = open_scopes()
    while scopes and (scope := earliest(scopes)) is not None:
        left = scope.deadline - monotonic()
        if left <= 0:
            raise scope.expire()
        try:
            sock.settimeout(left)
            return operation(*args)
        except TimeoutError as exc:
            if exc.errno is not None:  # the connection's, not ours
                raise
        finally:
            if sock.fileno() >= 0:
                sock.settimeout(None)
    return operation(*args)


class Spawned(ABC):
    """A task that `spawn` has started. Awaiting it gives its result, or raises what it raised."""

    finished = False
    result: Any = None
    error: BaseException | None = None
    _heard = False

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        """Note how it ended."""
        self.result, self.error, self.finished = result, error, True
        if isinstance(error, Exception) and not self._heard:
            logger.error("a task failed: %r", error, exc_info=error)

    @abstractmethod
    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` where it waits."""

    def done(self) -> bool:
        """Tell whether it has ended."""
        return self.finished

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._join().__await__()

    def expect(self) -> None:
        """Say that somebody looks at the error that it may end with, so that it need not be logged."""
        self._heard = True

    async def _join(self) -> Any:
        self.expect()
        while not self.finished:
            await trap(Trap(JOIN, self))
        if self.error is not None:
            raise self.error
        return self.result


class Driver(Protocol):
    """What runs coroutines of traps in a thread."""

    blocking: bool
    """Whether sockets are to block."""
    shares_thread: bool
    """Whether it drives several tasks in one thread, all of which a call that blocks would hold up."""

    @property
    def scopes(self) -> list[Scope]:
        """The open timeouts of the task that runs now, the innermost one last."""

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        """Start a task beside the one that runs now."""

    def adopt(self, sock: Any) -> Any:
        """Make a socket one that this driver's tasks can use; returns it, or another object for the same."""

    def forget(self, sock: Any) -> None:
        """Hear that a socket is about to be closed."""

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the running task was cancelled while it was in a call that blocks."""


def spawn(coro: Coroutine[Any, Any, T]) -> Spawned | asyncio.Task[T]:
    """Start another coroutine beside the one that calls, on any engine: a task, a greenlet, a thread.

    Returns:
        The task: await it for its result; ``cancel()`` and ``done()`` do what they do with asyncio. What it raises is
        logged, unless somebody waits for it. It ends with its server or its process at the latest. A thread that is
        cancelled hears of it in its next wait of `asyncnet.compat`; it is not interrupted in a call that blocks.
    """
    driver: Driver | None = current_driver()
    if driver is not None:
        return driver.spawn(coro)
    task = asyncio.get_running_loop().create_task(coro)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


# A loop refers to its tasks weakly.
_running: Final[set[asyncio.Task[Any]]] = set()
