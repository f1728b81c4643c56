"""What the servers of all engines share: what is served, the counters, and the way to stop.

A `Service` owns the listening socket and knows what arrives there, connections or datagrams. Its front is a coroutine
of traps like any handler, so whatever drives handlers drives it too, and hands each `Job` to the engine. `Server.stop`
writes one byte to a socket that every engine watches in its own way: that is safe from any thread and from a signal
handler, before the server runs as well as after.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import attrs

from asyncnet.addresses import Address
from asyncnet.compat.tasks import Driver
from asyncnet.compat.traps import wait_readable
from asyncnet.errors import ClosedError

__all__ = ["CANCEL_WAIT", "FULL_PAUSE", "PAUSE", "STOP", "Job", "Server", "Service", "Stats"]

PAUSE: Final = 0.1
"""Seconds without accepting after the system or the engine ran out of something; connections wait in the backlog."""
CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled handler has to end."""
FULL_PAUSE: Final = 0.005
"""Seconds until an engine that takes no more is asked again."""
STOP: Final = b"\0"
"""What stops a server; no signal has this number."""


@attrs.define
class Stats:
    """What a server has counted; an engine of processes counts what its children report."""

    accepted: int = 0
    """Connections or datagrams whose handler was started."""
    active: int = 0
    """Handlers that run now."""
    failed: int = 0
    """Handlers that raised; the traceback is in the log."""
    disconnected: int = 0
    """Handlers that ended by the error that the peer's leaving gave them."""
    cancelled: int = 0
    """Handlers that were cancelled when the server stopped."""
    refused: int = 0
    """Connections closed at once, and datagrams not served, because the engine has no descriptor that it can watch, or,
    of those that are connected when the server stops, no thread or process."""
    dropped: int = 0
    """Datagrams dropped, because as many handlers as the engine takes were at work."""
    pauses: int = 0
    """How often accepting paused, because descriptors, memory, threads or processes ran out."""
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False, eq=False, init=False)

    def count(self, **changes: int) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)


class Job(Protocol):
    """One connection or datagram that has arrived."""

    @property
    def sock(self) -> socket.socket | None:
        """The socket of a connection."""

    def run(self, driver: Driver, stats: Stats, *, drains: bool = False) -> Coroutine[Any, Any, None]:
        """Return the coroutine that serves it, for `driver` to run.

        Args:
            driver: whose socket it becomes.
            stats: counts what becomes of it.
            drains: read until nothing is left before waiting for more.
        """

    def close(self) -> None:
        """Let go of it unserved."""


class Service(Protocol):
    """What is served, and where.

    Attributes:
        address: what it listens on, with the real port.
        socket: the listening socket; it does not block.
    """

    address: Address
    socket: socket.socket

    def front(
        self, admit: Callable[[Job], object], stats: Stats, *, room: Callable[[], int] = lambda: sys.maxsize
    ) -> Coroutine[Any, Any, None]:
        """Return the coroutine that takes what arrives until it is cancelled, and closes the socket then.

        Cancelled, it does what `accept_last` and `admit_waiting` do.

        Args:
            admit: takes each job, and must not wait. When it raises, the job is closed.
            stats: counts the pauses and what is dropped.
            room: tells how many more jobs the engine takes now.
        """

    def accept_last(self, room: int) -> None:
        """Take what would be lost when the socket is closed, and let it wait; `room` jobs at most."""

    def admit_waiting(self, admit: Callable[[Job], object], stats: Stats) -> None:
        """Admit what waits since `accept_last`; see `front`. What cannot be is closed, and counted as refused."""

    def close(self) -> None:
        """Close the socket, and what waits."""


class Server(ABC):
    """A listening socket and the engine that serves it; made by `create_server` and `create_datagram_server`.

    Attributes:
        address: what it listens on, with the real port.
    """

    def __init__(self, service: Service, *, grace: float) -> None:
        self.address = service.address
        self._service = service
        self._grace = grace
        self._stats = Stats()
        self._began = False
        # The byte that stops the server travels from `_bell` to `_wake`.
        self._wake, self._bell = socket.socketpair()
        self._wake.setblocking(False)
        self._bell.setblocking(False)

    @abstractmethod
    def _serve(self) -> None:
        """Serve until `_told_to_stop`, to be asked whenever `_wake` is readable; then end the handlers, with grace."""

    @property
    def stats(self) -> Stats:
        """What the server has counted so far."""
        return self._stats

    def run(self) -> None:
        """Serve in this thread until `stop` is called, then end the handlers, and close.

        When it is told to stop, it closes the listener at once, gives the handlers their grace, and then cancels those
        that still run: `asyncio.CancelledError` is raised where they wait. A thread cannot be interrupted so: its
        connection ends, and only waits of `asyncnet.compat` raise.

        Raises:
            ClosedError: the server ran before, or is closed.
            RuntimeError: an event loop runs in this thread.
        """
        if self._began or self._wake.fileno() < 0:
            raise ClosedError("this server has ended: create another one")
        self._began = True
        # Otherwise a signal between the interpreter's last look for one and the call that waits would be slept over.
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False) if in_main else -1
        try:
            self._serve()
        finally:
            if in_main:
                signal.set_wakeup_fd(before)
            self.close()

    async def _wait_stopped(self) -> None:
        while not self._told_to_stop():
            await wait_readable(self._wake)

    def _told_to_stop(self) -> bool:
        """Read what has arrived at `_wake`; signals of any kind arrive there too, by their numbers."""
        try:
            return STOP in self._wake.recv(4096)
        except BlockingIOError:
            return False

    def stop(self) -> None:
        """Make `run` return; from any thread or a signal handler, as often as you like, before `run` too."""
        try:
            self._bell.send(STOP)
        except OSError:  # told so often that the buffer is full, or closed already
            pass

    def close(self) -> None:
        """Release the sockets of a server that does not run; `run` does so itself when it ends."""
        self._service.close()
        self._bell.close()
        self._wake.close()
