"""Servers whose handlers run in threads, on sockets that block."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from selectors import EVENT_READ
from typing import Any, Final

from asyncnet.compat.blocking import BlockingDriver, ThreadDriver, ThreadTask, wait_ready
from asyncnet.compat.serving import CANCEL_WAIT, Job, Server, Service
from asyncnet.compat.tasks import Spawned
from asyncnet.compat.traps import HasFileno

__all__ = ["MAX_THREADS", "POOL_SIZE", "PoolServer", "ThreadServer"]

logger: Final = logging.getLogger("asyncnet.compat")

MAX_THREADS: Final = 4096
"""Handlers at a time; each costs a thread. More connections wait in the kernel's backlog."""
_ENDED: Final = b"\xff"
"""What wakes a server that waits for its threads; no signal has this number."""
POOL_SIZE: Final = 256
"""Threads of a pool, started when they are needed and kept."""


class _Front(BlockingDriver):
    """Drives the service's front: whatever it waits for, it waits for the end of the server, too."""

    def __init__(self, wake: socket.socket, is_over: Callable[[], bool]) -> None:
        super().__init__()
        self._wake, self._is_over = wake, is_over

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            while True:
                wait_ready(self._wake, EVENT_READ, max(0.0, deadline - time.monotonic()))
                if self._is_over():
                    raise asyncio.CancelledError
        except TimeoutError:
            return

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        try:
            wait_ready(sock, kind, timeout, alarm=self._wake)
        except asyncio.CancelledError:
            if self._is_over():
                raise


class ThreadServer(Server):
    """A thread for each connection or datagram.

    A thread cannot be interrupted. When the grace is over, its connection is shut down, so that a read ends and a
    write fails, and its waits of `asyncnet.compat` raise `asyncio.CancelledError`.
    """

    limit = MAX_THREADS

    def __init__(self, service: Service, *, grace: float) -> None:
        super().__init__(service, grace=grace)
        self._tasks: dict[ThreadTask, socket.socket | None] = {}
        self._stopping = False

    def _serve(self) -> None:
        front = self._service.front(self._admit, self._stats, room=self._room)
        try:
            _Front(self._wake, self._told_to_stop).run(front)
        except asyncio.CancelledError:
            pass
        self._stopping = True
        self._wait_for_all(self._grace)
        for task, sock in list(self._tasks.items()):
            task.cancel()
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # its thread has closed it
                    pass
        self._wait_for_all(CANCEL_WAIT)
        if self._tasks:
            logger.error("%d handlers did not end; their threads end with the process", len(self._tasks))

    def _wait_for_all(self, timeout: float) -> None:
        """Wait until every thread has ended, or the timeout has passed, or the server is told to stop again."""
        deadline = time.monotonic() + timeout
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            try:
                wait_ready(self._wake, EVENT_READ, left)
            except TimeoutError:
                return
            if self._told_to_stop():
                return

    def ended(self, task: ThreadTask) -> None:
        """Hear that a thread has ended."""
        self._tasks.pop(task, None)
        if self._stopping:
            try:
                self._bell.send(_ENDED)
            except OSError:  # told often enough
                pass

    def _room(self) -> int:
        return self.limit - len(self._tasks)

    def _admit(self, job: Job) -> None:
        driver = _Driver(self)
        self._enter(_Task(job.run(driver, self._stats), driver, self), job.sock).start()

    def _enter(self, task: ThreadTask, sock: socket.socket | None = None) -> ThreadTask:
        self._tasks[task] = sock
        return task


class _Driver(ThreadDriver):
    """What a handler spawns ends with its server."""

    def __init__(self, server: ThreadServer) -> None:
        super().__init__()
        self._server = server

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        """Run a coroutine in a thread of its own."""
        return self._server._enter(_Task(coro, _Driver(self._server), self._server)).start()


class _Task(ThreadTask):
    """A thread that its server knows while it runs."""

    def __init__(self, coro: Coroutine[Any, Any, Any], driver: ThreadDriver, server: ThreadServer) -> None:
        super().__init__(coro, driver)
        self._server = server

    def start(self) -> ThreadTask:
        """See `ThreadTask`."""
        try:
            return super().start()
        except BaseException:
            self._server.ended(self)
            raise

    def run(self) -> None:
        """See `ThreadTask`."""
        try:
            super().run()
        finally:
            self._server.ended(self)


class PoolServer(ThreadServer):
    """Threads that take one connection or datagram after the other: none has to be started for it."""

    limit = POOL_SIZE

    def __init__(self, service: Service, *, grace: float) -> None:
        super().__init__(service, grace=grace)
        self._jobs: queue.SimpleQueue[ThreadTask | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._free = 0
        self._lock = threading.Lock()

    def _serve(self) -> None:
        try:
            super()._serve()
        finally:
            for _ in self._threads:
                self._jobs.put(None)

    def _admit(self, job: Job) -> None:
        driver = _Driver(self)
        with self._lock:
            if self._free <= 0 and len(self._threads) < self.limit:
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._threads.append(thread)
            else:
                self._free -= 1  # promised to this job; below 0, a thread is about to be free
        self._jobs.put(self._enter(_Task(job.run(driver, self._stats), driver, self), job.sock))

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            task.run()
            del task  # or its connection would stay until the next one
            with self._lock:
                self._free += 1
