"""Running a coroutine where waiting means blocking: what a handler waits for, it waits for inside the call.

`BlockingDriver` drives one coroutine to its end. A thread, a process or a greenlet around it makes an engine.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from math import inf
from selectors import EVENT_READ
from typing import Any, Final, TypeVar

from asyncnet.compat.tasks import Scope, Spawned, earliest
from asyncnet.compat.traps import JOIN, SLEEP, HasFileno, Trap, foreign, without_asyncio

__all__ = ["LONGEST", "BlockingDriver", "ThreadDriver", "ThreadTask", "run_blocking", "wait_ready"]

LONGEST: Final = 86400.0
"""Seconds that a selector is asked to wait at most; some take no more than 24 days."""

# Neither of the two takes a descriptor, so waiting works even when there is none left.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)

T = TypeVar("T")


def wait_ready(sock: HasFileno, kind: int, timeout: float | None = None, *, alarm: HasFileno | None = None) -> None:
    """Wait in this thread until `sock` is ready.

    Args:
        sock: a socket of any kind.
        kind: ``selectors.EVENT_READ`` or ``EVENT_WRITE``.
        timeout: seconds; None for ever.
        alarm: ends the wait when it becomes readable.

    Raises:
        TimeoutError: `timeout` has passed.
        asyncio.CancelledError: the alarm went off.
    """
    with _Selector() as selector:
        selector.register(sock, kind)
        if alarm is not None:
            selector.register(alarm, EVENT_READ)
        ready = [key.fileobj for key, _ in selector.select(timeout if timeout is None else min(timeout, LONGEST))]
    if alarm in ready:
        raise asyncio.CancelledError
    if not ready:
        raise TimeoutError("timed out")


class BlockingDriver:
    """Runs one coroutine of traps to its end in this thread; what it waits for, the thread waits for."""

    blocking = True
    shares_thread = False

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        """The open timeouts of the coroutine."""

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run `coro`, and return its result.

        Raises:
            BaseException: whatever the coroutine raises.
            RuntimeError: an event loop runs in this thread.
        """
        try:
            with without_asyncio(self):
                return self.drive(coro)
        finally:
            coro.close()  # for the case that it never began

    def drive(self, coro: Coroutine[Any, Any, T]) -> T:
        """Do what `run` does, where that this driver runs is known already."""
        outcome: BaseException | None = None
        while True:
            try:
                request = coro.send(outcome)
                while type(request) is not Trap:
                    request = coro.throw(foreign(request))
            except StopIteration as stop:
                result: T = stop.value
                return result
            outcome = None
            try:
                self._meet(request)
            except BaseException as exc:
                outcome = exc

    def _meet(self, request: Trap) -> None:
        """Wait for what is asked, or until a timeout has passed."""
        timeout, due = request.timeout, earliest(self.scopes) if self.scopes else None
        if due is not None:
            left = max(0.0, due.deadline - time.monotonic())
            if timeout is None or left <= timeout:
                timeout = left
            else:
                due = None
        if request.kind == SLEEP:
            self.sleep(inf if timeout is None else timeout)
        elif request.kind == JOIN:
            self.join(request.source, timeout)
        else:
            try:
                self.wait(request.source, request.kind, timeout)
                return
            except TimeoutError:
                if due is None:
                    raise
        if due is not None and time.monotonic() >= due.deadline and not getattr(request.source, "finished", False):
            raise due.expire()

    # What the engines do each in their way.

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""
        while seconds > LONGEST:
            time.sleep(LONGEST)
            seconds -= LONGEST
        time.sleep(seconds)

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        """Wait for a socket that does not block, as `wait_ready` does."""
        wait_ready(sock, kind, timeout)

    def join(self, task: Any, timeout: float | None) -> None:
        """Wait until a task of `spawn` has ended, or the timeout has passed."""
        task.join(timeout)

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        """Run a coroutine in a thread of its own."""
        return ThreadTask(coro, ThreadDriver()).start()

    def adopt(self, sock: Any) -> Any:
        """Make a socket one that blocks, and return it."""
        sock.settimeout(None)
        return sock

    def forget(self, sock: Any) -> None:
        """Nothing refers to a socket that is about to be closed."""

    def check(self) -> None:
        """Nobody cancels."""


class _Hooked(BlockingDriver):
    def __init__(self, sleep: Callable[[float], object], wait: Callable[[HasFileno, int, float | None], object]):
        super().__init__()
        self._sleep, self._wait = sleep, wait

    def sleep(self, seconds: float) -> None:
        self._sleep(seconds)

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        self._wait(sock, kind, timeout)


def run_blocking(
    coro: Coroutine[Any, Any, T],
    sleep: Callable[[float], object] = time.sleep,
    wait: Callable[[HasFileno, int, float | None], object] = wait_ready,
) -> T:
    """Run a coroutine of traps to its end in this thread or greenlet, and return its result.

    Args:
        coro: what to run.
        sleep: waits for some seconds.
        wait: waits for a socket that does not block, with a kind and a timeout as `wait_ready` takes them. What the
            two raise is raised inside the coroutine.

    Raises:
        BaseException: whatever the coroutine raises.
        RuntimeError: an event loop runs in this thread.
    """
    return _Hooked(sleep, wait).run(coro)


class ThreadDriver(BlockingDriver):
    """Drives a coroutine whose waits another thread may end."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self._lock = threading.Lock()
        self._wakeup = threading.Event()
        self._bell: socket.socket | None = None  # there while the thread waits for a socket

    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` in the next wait, or the present one; a call that blocks goes on."""
        with self._lock:
            self._told = True
            self._wakeup.set()
            if self._bell is not None:
                self._bell.send(b"\0")

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds, or until cancelled."""
        if seconds <= 0:
            time.sleep(0)
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._wakeup.wait(min(left, LONGEST))
            self._wakeup.clear()

    def join(self, task: Any, timeout: float | None) -> None:
        """Wait until a task of `spawn` has ended, or the timeout has passed, or until cancelled."""
        task.wake_at_end(self._wakeup)
        self._wakeup.wait(timeout)
        self._wakeup.clear()
        self.check()

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        """Wait for a socket, as `wait_ready` does, or until cancelled."""
        alarm, bell = socket.socketpair()
        with alarm, bell:
            with self._lock:
                self._bell = bell
            try:
                self.check()
                wait_ready(sock, kind, timeout, alarm=alarm)
            except asyncio.CancelledError:
                self._told = False
                raise
            finally:
                with self._lock:
                    self._bell = None

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if told so, once."""
        if self._told:
            self._told = False
            raise asyncio.CancelledError


class ThreadTask(Spawned):
    """A coroutine in a thread of its own.

    Args:
        coro: what to run.
        driver: what runs it.
    """

    def __init__(self, coro: Coroutine[Any, Any, Any], driver: ThreadDriver) -> None:
        self._coro = coro
        self._driver = driver
        self._ended = threading.Event()
        self._waiters: list[threading.Event] = [self._ended]
        self._thread = threading.Thread(target=self.run, daemon=True)

    def start(self) -> ThreadTask:
        """Start the thread.

        Raises:
            RuntimeError: the system has no room for one more.
        """
        try:
            self._thread.start()
        except BaseException:
            self._coro.close()
            raise
        return self

    def run(self) -> None:
        """Run the coroutine in the thread that calls."""
        try:
            self.finish(self._driver.run(self._coro))
        except BaseException as exc:
            self.finish(error=exc)
        finally:
            for waiter in self._waiters:
                waiter.set()

    def wake_at_end(self, waiter: threading.Event) -> None:
        """Set `waiter` when it ends, or now if it has."""
        self._waiters.append(waiter)
        if self.finished:
            waiter.set()

    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` in its next wait; see `ThreadDriver.cancel`."""
        self._driver.cancel()

    def join(self, timeout: float | None = None) -> None:
        """Wait in this thread until it has ended, or so many seconds have passed."""
        self._ended.wait(timeout)
