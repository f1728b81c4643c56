"""Servers whose handlers run in processes, on sockets that block.

The parent accepts, or leaves that to its children, in a `Kernel` of its own, over a selector that keeps nothing in the
system, so that a child's copy of it can be thrown away. Each child has a socket to its parent, its line. The child
tells how its handlers ended, one byte each; when the line ends, the child has ended, however it did.

A child ignores SIGINT and SIGTERM, which a terminal or a service manager may send to all processes at once: it is the
parent that stops. SIGUSR1 from the parent cancels: `asyncio.CancelledError` is raised wherever the child waits, even in
a call that blocks, which is more than a thread can do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from selectors import EVENT_READ
from typing import Any, Final, NoReturn

import attrs

from asyncnet.compat.blocking import BlockingDriver, wait_ready
from asyncnet.compat.kernel import Kernel
from asyncnet.compat.serving import CANCEL_WAIT, PAUSE, Job, Server, Service, Stats
from asyncnet.compat.tasks import Spawned
from asyncnet.compat.traps import HasFileno, sleep, wait_readable
from asyncnet.forks import flush_streams

__all__ = ["MAX_PROCESSES", "MAX_SPARE", "MIN_SPARE", "PreforkServer", "ProcessServer"]

logger: Final = logging.getLogger("asyncnet.compat")

MAX_PROCESSES: Final = 256
"""Children at a time; more connections wait in the kernel's backlog."""
MIN_SPARE: Final = 2
"""Children of a prefork server that wait for a connection; when there are fewer, more are made."""
MAX_SPARE: Final = 16
"""Children that wait for a connection; when there are more, some are told to end."""

_BUSY: Final = b"+"
_ENDS: Final = {b"0": "", b"f": "failed", b"d": "disconnected", b"c": "cancelled"}
"""What a child says when a handler has ended, and the counter that it goes to."""
_PAUSED: Final = b"p"
_QUIT: Final = b"q"

_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)
_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGUSR1} if hasattr(signal, "SIGUSR1") else set())


@attrs.define(eq=False)
class _Child:
    """A process, as its parent knows it."""

    pid: int
    line: socket.socket
    busy: bool = False
    quitting: bool = False


class _ForkingServer(Server):
    """What the two kinds share: children, and how they end."""

    def __init__(self, service: Service, *, grace: float) -> None:
        super().__init__(service, grace=grace)
        self._children: set[_Child] = set()
        self._stopping = False

    def _serve(self) -> None:
        self._kernel = kernel = Kernel(_Selector())
        try:
            front = kernel.spawn(self._front())
            kernel.run(until=kernel.spawn(self._wait_stopped()))
            self._stopping = True
            self._end_front()
            kernel.cancel(front)
            again = kernel.spawn(self._wait_stopped())
            kernel.run(until=again, timeout=self._grace, alone=True)
            kernel.cancel(again)
            self._signal(signal.SIGUSR1)
            kernel.run(timeout=CANCEL_WAIT)
            if self._children:
                logger.error("%d processes did not end and are killed", len(self._children))
                self._signal(signal.SIGKILL)
            kernel.run(timeout=CANCEL_WAIT)
        finally:
            kernel.close()

    @abstractmethod
    async def _front(self) -> None:
        """Take what arrives, until cancelled."""

    def _end_front(self) -> None:
        """Tell children that accept by themselves to do so no more."""

    def _signal(self, number: int) -> None:
        for child in self._children:
            os.kill(child.pid, number)  # it is not waited for yet, so the number is its own

    def _fork(self, work: Callable[[socket.socket], None]) -> _Child:
        """Run `work` in a child, with its end of the line.

        Raises:
            OSError: the system has no room for one more.
        """
        ours, theirs = socket.socketpair()
        try:
            flush_streams()  # or what is in their buffers would come twice
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    self._be_child(work, theirs, before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        child = _Child(pid, ours)
        self._children.add(child)
        self._kernel.spawn(self._watch(child))
        return child

    def _room(self) -> int:
        return MAX_PROCESSES - len(self._children)

    def _fork_for(self, job: Job) -> None:
        """Serve a job in a child of its own, which lets go of those that wait for theirs."""

        def work(line: socket.socket) -> None:
            if job.sock is not None:
                self._service.close()  # a datagram is answered by it
            _work_off(job, line)

        self._fork(work)
        job.close()

    def _be_child(self, work: Callable[[socket.socket], None], line: socket.socket, mask: Any) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, _raise_cancelled)
            for child in self._children:
                child.line.close()
            self._wake.close()
            self._bell.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            work(line)
            status = 0
        except asyncio.CancelledError:
            status = 0
        except BaseException as exc:
            logger.error("a process failed: %s", exc, exc_info=exc)
        finally:
            try:
                flush_streams()
            finally:  # a cancellation may come even now, and a copy of the parent must not go on
                os._exit(status)

    async def _watch(self, child: _Child) -> None:
        """Hear what a child reports until it has ended, then bury it."""
        try:
            while reports := await self._reports(child):
                for n in range(len(reports)):
                    self._heard(child, reports[n : n + 1])
        finally:
            self._kernel.forget(child.line)
            child.line.close()
            self._children.discard(child)
            _, status = os.waitpid(child.pid, 0)  # noqa: ASYNC222  # its line has ended, so it has
            if child.busy:  # it was killed
                self._stats.count(active=-1, failed=1)
            if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
                logger.error("process %d ended with status %d", child.pid, os.waitstatus_to_exitcode(status))

    async def _reports(self, child: _Child) -> bytes:
        while True:
            await wait_readable(child.line)
            try:
                return child.line.recv(4096)
            except BlockingIOError:
                continue
            except OSError:  # it was killed with something unread
                return b""

    def _heard(self, child: _Child, report: bytes) -> None:
        if report == _PAUSED:
            self._stats.count(pauses=1)
        elif report == _BUSY:
            child.busy = True
            self._stats.count(accepted=1, active=1)
        elif child.busy:
            child.busy = False
            counter = _ENDS.get(report)
            self._stats.count(active=-1, **({counter: 1} if counter else {}))


def _raise_cancelled(*_: object) -> None:
    raise asyncio.CancelledError


def _work_off(job: Job, line: socket.socket) -> None:
    """Serve one connection or datagram in this process, and report how it went."""
    line.sendall(_BUSY)
    stats, driver, end = Stats(), _ChildDriver(), b"0"
    try:
        driver.run(job.run(driver, stats))
        for task in driver.tasks:
            task.join()
    except asyncio.CancelledError:
        for task in driver.tasks:
            task.cancel()
        for task in driver.tasks:
            task.join(CANCEL_WAIT / 2)  # before the parent kills
        raise
    finally:
        if stats.cancelled:
            end = b"c"
        elif stats.failed:
            end = b"f"
        elif stats.disconnected:
            end = b"d"
        line.sendall(end)


class _ChildDriver(BlockingDriver):
    """What a handler spawns runs in threads, which its process waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        task = super().spawn(coro)
        self.tasks.append(task)
        return task


class ProcessServer(_ForkingServer):
    """A process for each connection or datagram."""

    async def _front(self) -> None:
        await self._service.front(self._fork_for, self._stats, room=self._room)


class PreforkServer(_ForkingServer):
    """Processes made beforehand, each of which accepts by itself and serves one connection or datagram at a time.

    When few of them are idle, more are made, and when many are, some end.
    """

    async def _front(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._keep_spares()
                except OSError as exc:
                    self._stats.count(pauses=1)
                    logger.warning("cannot make another process: %s", exc)
                await sleep(PAUSE)
        finally:
            self._service.close()

    def _end_front(self) -> None:
        self._service.accept_last(self._room())
        try:
            self._service.socket.shutdown(socket.SHUT_RD)  # busy children, too, take no more
        except OSError:  # a UDP socket, or a system that cannot
            pass
        for child in self._children:
            self._quit(child)
        self._service.admit_waiting(self._fork_for, self._stats)

    def _keep_spares(self) -> None:
        idle = [child for child in self._children if not child.busy and not child.quitting]
        if len(idle) < MIN_SPARE:
            for _ in range(min(MIN_SPARE, MAX_PROCESSES - len(self._children))):
                self._fork(self._accept)
        elif len(idle) > MAX_SPARE:
            self._quit(idle[0])

    def _quit(self, child: _Child) -> None:
        child.quitting = True
        try:
            child.line.send(_QUIT)
        except OSError:  # it has ended
            pass

    def _heard(self, child: _Child, report: bytes) -> None:
        super()._heard(child, report)
        if not self._stopping:
            try:
                self._keep_spares()
            except OSError:  # the front tries again
                pass

    def _accept(self, line: socket.socket) -> None:
        """Serve what comes, in the child, until the parent says that it is enough, or has ended."""

        def admit(job: Job) -> None:
            try:
                _work_off(job, line)
            finally:
                job.close()
            if _is_readable(line):
                raise asyncio.CancelledError

        _WorkerDriver(line).run(self._service.front(admit, _WorkerStats(line), room=lambda: 1))


class _WorkerStats(Stats):
    """What the front in a child counts, told to the parent."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__()
        self._line = line

    def count(self, **changes: int) -> None:
        """Tell of a pause; a datagram that is dropped is one, too."""
        self._line.sendall(_PAUSED)


class _WorkerDriver(BlockingDriver):
    """Drives the front in a child: whatever it waits for, it waits for a word of the parent, too."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__()
        self._line = line

    def sleep(self, seconds: float) -> None:
        try:
            wait_ready(self._line, EVENT_READ, seconds)
        except TimeoutError:
            return
        raise asyncio.CancelledError

    def wait(self, sock: HasFileno, kind: int, timeout: float | None) -> None:
        wait_ready(sock, kind, timeout, alarm=self._line)


def _is_readable(sock: socket.socket) -> bool:
    try:
        wait_ready(sock, EVENT_READ, 0)
    except TimeoutError:
        return False
    return True
