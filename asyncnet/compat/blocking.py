"""Engines whose sockets block: what a handler waits for, it waits for inside the call, so it runs as plain code does.

`run_blocking` drives one coroutine to its end. A thread, a process or a greenlet around it makes an engine.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from selectors import EVENT_READ
from typing import Any, Final, TypeVar

from asyncnet.addresses import Address
from asyncnet.compat.serving import CANCEL_WAIT, Handler, Server, accept, converse
from asyncnet.compat.traps import SLEEP, HasFileno, Trap, foreign, without_asyncio
from asyncnet.errors import MissingExtraError

__all__ = ["MAX_THREADS", "GeventServer", "ThreadServer", "pause", "run_blocking", "wait_ready"]

logger = logging.getLogger("asyncnet.compat")

MAX_THREADS: Final = 4096
"""Connections at a time; each costs a thread. More wait in the kernel's backlog."""

LONGEST: Final = 86400.0
"""Seconds that a selector is asked to wait at most; some take no more than 24 days."""

# Neither of the two takes a descriptor, so waiting works even when there is none left.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)

T = TypeVar("T")


def wait_ready(sock: HasFileno, kind: int, timeout: float | None = None, *, alarm: socket.socket | None = None) -> None:
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
        ready = [key.fileobj for key, _ in selector.select(timeout)]
    if alarm in ready:
        raise asyncio.CancelledError
    if not ready:
        raise TimeoutError("timed out")


def pause(seconds: float, *, alarm: socket.socket) -> None:
    """Sleep in this thread, at most until `alarm` becomes readable.

    Raises:
        asyncio.CancelledError: the alarm went off.
    """
    if seconds <= 0:
        time.sleep(0)
    while seconds > 0:
        part = min(seconds, LONGEST)
        seconds -= part
        try:
            wait_ready(alarm, EVENT_READ, part)
        except TimeoutError:
            continue
        raise asyncio.CancelledError


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
    """
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
            if request.kind == SLEEP:
                sleep(request.timeout or 0)
            else:
                wait(request.source, request.kind, request.timeout)
        except BaseException as exc:
            outcome = exc


class ThreadServer(Server):
    """A thread per connection.

    A thread cannot be interrupted. When the grace is over, its connection is shut down, so that a read ends and a
    write fails, and its waits of `asyncnet.compat` raise `asyncio.CancelledError`.
    """

    def __init__(self, handler: Handler, address: Address, *, backlog: int, grace: float) -> None:
        super().__init__(handler, address, backlog=backlog, grace=grace)
        self._threads: dict[threading.Thread, socket.socket] = {}

    def _serve(self) -> None:
        # Never read, the byte in this alarm wakes every thread that watches it, now or later.
        alarm, bell = socket.socketpair()
        with alarm, bell, without_asyncio():
            acceptor = accept(
                self._listener,
                partial(self._admit, alarm=alarm),
                self._stats,
                full=lambda: len(self._threads) >= MAX_THREADS,
            )
            try:
                run_blocking(acceptor, self._until_stopped(pause), self._until_stopped(wait_ready))
            except asyncio.CancelledError:
                pass
            self._join(self._grace)
            bell.send(b"\0")
            for sock in list(self._threads.values()):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # its thread has closed it
                    pass
            self._join(CANCEL_WAIT)
            if self._threads:
                logger.error("%d handlers did not end; their threads end with the process", len(self._threads))

    def _until_stopped(self, wait: Callable[..., None]) -> Callable[..., None]:
        def waits(*args: Any) -> None:
            try:
                wait(*args, alarm=self._wake)
            except asyncio.CancelledError:
                if self._told_to_stop():
                    raise

        return waits

    def _admit(self, sock: socket.socket, peer: Any, alarm: socket.socket) -> None:
        sock.settimeout(None)
        thread = threading.Thread(target=self._converse, args=(sock, peer, alarm), daemon=True)
        self._threads[thread] = sock
        try:
            thread.start()
        except BaseException:
            del self._threads[thread]
            raise

    def _converse(self, sock: socket.socket, peer: Any, alarm: socket.socket) -> None:
        try:
            with without_asyncio():
                run_blocking(
                    converse(self._handler, sock, peer, self._stats),
                    partial(pause, alarm=alarm),
                    partial(wait_ready, alarm=alarm),
                )
        except asyncio.CancelledError:
            pass
        finally:
            del self._threads[threading.current_thread()]

    def _join(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for thread in list(self._threads):
            thread.join(max(0, deadline - time.monotonic()))


class GeventServer(Server):
    """A greenlet per connection, on gevent's own sockets; nothing is monkey-patched."""

    def __init__(self, handler: Handler, address: Address, *, backlog: int, grace: float) -> None:
        try:
            import gevent.socket  # noqa: F401  # before the listener opens
        except ImportError as exc:
            raise MissingExtraError("The gevent engine", "compat") from exc
        super().__init__(handler, address, backlog=backlog, grace=grace)

    def _serve(self) -> None:
        import gevent
        import gevent.socket

        greenlets: set[Any] = set()

        def wait(sock: HasFileno, kind: int, timeout: float | None = None) -> None:
            ready = gevent.socket.wait_read if kind == EVENT_READ else gevent.socket.wait_write
            ready(sock.fileno(), timeout=timeout, timeout_exc=TimeoutError("timed out"))

        def drive(coro: Coroutine[Any, Any, None]) -> None:
            try:
                run_blocking(coro, gevent.sleep, wait)
            except asyncio.CancelledError:
                pass

        def admit(sock: socket.socket, peer: Any) -> None:
            own = gevent.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
            greenlet = gevent.spawn(drive, converse(self._handler, own, peer, self._stats))
            greenlets.add(greenlet)
            greenlet.link(greenlets.discard)

        with without_asyncio():
            acceptor = gevent.spawn(drive, accept(self._listener, admit, self._stats))
            while not self._told_to_stop():
                wait(self._wake, EVENT_READ)
            gevent.sleep(0)  # a greenlet that is killed before it begins never cleans up
            acceptor.kill(asyncio.CancelledError)
            gevent.joinall(list(greenlets), timeout=self._grace)
            gevent.killall(list(greenlets), asyncio.CancelledError, timeout=CANCEL_WAIT)
            if greenlets:
                logger.error("%d handlers did not end; they end with the process", len(greenlets))
