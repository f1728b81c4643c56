"""The server whose handlers run in greenlets, on gevent's own sockets; nothing is monkey-patched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from selectors import EVENT_READ
from typing import Any, Final, TypeVar

from asyncnet.compat.blocking import BlockingDriver
from asyncnet.compat.serving import CANCEL_WAIT, Job, Server, Service
from asyncnet.compat.tasks import Scope, Spawned
from asyncnet.compat.traps import HasFileno, without_asyncio
from asyncnet.errors import MissingExtraError

__all__ = ["GeventServer", "run_in_greenlet"]

logger: Final = logging.getLogger("asyncnet.compat")

_LOOK_AGAIN: Final = 0.05
"""Seconds after which a server that stops looks for new greenlets, and whether it was told to hurry."""

T = TypeVar("T")


def _gevent() -> Any:
    try:
        import gevent
        import gevent.event
        import gevent.socket
    except ImportError as exc:
        raise MissingExtraError("The gevent engine", "compat") from exc
    return gevent


class GreenletDriver(BlockingDriver):
    """Drives all greenlets of a thread, each of which has its own timeouts."""

    shares_thread = True

    def __init__(self) -> None:
        self._gevent = _gevent()
        self.greenlets: set[Any] = set()

    @property
    def scopes(self) -> list[Scope]:  # type: ignore[override]  # of the greenlet that runs
        """The open timeouts of the coroutine in the greenlet that runs now."""
        current = self._gevent.getcurrent()
        found: list[Scope] | None = getattr(current, "asyncnet_scopes", None)
        if found is None:
            found = current.asyncnet_scopes = []
        return found

    def sleep(self, seconds: float) -> None:
        """Let other greenlets run for some seconds."""
        self._gevent.sleep(min(seconds, 1e9))

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        """Wait for a socket that does not block."""
        ready = self._gevent.socket.wait_read if kind == EVENT_READ else self._gevent.socket.wait_write
        ready(sock.fileno(), timeout=timeout, timeout_exc=TimeoutError("timed out"))

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        """Run a coroutine in a greenlet of its own."""
        return _Greenlet(coro, self)

    def adopt(self, sock: Any) -> Any:
        """Return a socket of gevent's for the same descriptor."""
        return self._gevent.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


class _Greenlet(Spawned):
    def __init__(self, coro: Coroutine[Any, Any, Any], driver: GreenletDriver) -> None:
        self._gevent = driver._gevent
        self._ended = self._gevent.event.Event()
        self._began = False
        self._greenlet = self._gevent.spawn(self._run, coro, driver)
        driver.greenlets.add(self._greenlet)
        self._greenlet.link(driver.greenlets.discard)

    def _run(self, coro: Coroutine[Any, Any, Any], driver: GreenletDriver) -> None:
        self._began = True
        try:
            self.finish(driver.drive(coro))
        except BaseException as exc:
            self.finish(error=exc)
        finally:
            self._ended.set()

    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` where it waits."""
        if self._began:
            self._greenlet.kill(asyncio.CancelledError, block=False)
        else:  # it must begin, or it cannot clean up: this one's turn comes after it
            self._gevent.spawn(self._greenlet.kill, asyncio.CancelledError, block=False)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or so many seconds have passed."""
        self._ended.wait(timeout)


class GeventServer(Server):
    """A greenlet for each connection or datagram."""

    def __init__(self, service: Service, *, grace: float) -> None:
        try:
            self._driver = GreenletDriver()
        except BaseException:
            service.close()
            raise
        super().__init__(service, grace=grace)

    def _serve(self) -> None:
        gevent, driver = _gevent(), self._driver

        def admit(job: Job) -> None:
            driver.spawn(job.run(driver, self._stats))

        with without_asyncio(driver):
            front = gevent.spawn(_swallow, driver, self._service.front(admit, self._stats))
            while not self._told_to_stop():
                driver.wait(self._wake, EVENT_READ, None)
            gevent.sleep(0)  # a greenlet that is killed before it begins never cleans up
            front.kill(asyncio.CancelledError)
            deadline = time.monotonic() + self._grace
            while driver.greenlets and (left := deadline - time.monotonic()) > 0 and not self._told_to_stop():
                gevent.joinall(list(driver.greenlets), timeout=min(left, _LOOK_AGAIN))
            gevent.sleep(0)
            gevent.killall(list(driver.greenlets), asyncio.CancelledError, timeout=CANCEL_WAIT)
            lasting = [greenlet for greenlet in driver.greenlets if not greenlet.ready()]
        if lasting:
            logger.error("%d handlers did not end; they end with the process", len(lasting))


def _swallow(driver: GreenletDriver, coro: Coroutine[Any, Any, Any]) -> None:
    try:
        driver.drive(coro)
    except asyncio.CancelledError:
        pass


def run_in_greenlet(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a greenlet of this thread, and return its result.

    Raises:
        MissingExtraError: gevent is not installed.
        BaseException: whatever the coroutine raises.
    """
    driver = GreenletDriver()
    with without_asyncio(driver):
        task = _Greenlet(coro, driver)
        task.expect()
        try:
            task.join()
        finally:
            _gevent().sleep(0)
            _gevent().killall(list(driver.greenlets), asyncio.CancelledError, timeout=CANCEL_WAIT)
    if task.error is not None:
        raise task.error
    result: T = task.result
    return result
