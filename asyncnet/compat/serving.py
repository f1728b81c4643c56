"""What the servers of all engines share: listener, acceptor, care for a handler, counters, and the way to stop.

The acceptor is a coroutine of traps like any handler, so whatever drives handlers drives it too. `Server.stop` writes
one byte to a socket that every engine watches in its own way: that is safe from any thread and from a signal handler,
before the server runs as well as after.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from selectors import EVENT_READ
from typing import Any, Final, TypeAlias

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.compat.streams import SocketLike, open_streams
from asyncnet.compat.traps import Trap, sleep, trap, wait_readable
from asyncnet.errors import ClosedError
from asyncnet.tcp.listeners import PEER_ERRORS

__all__ = ["CANCEL_WAIT", "STOP", "Handler", "Server", "Stats", "accept", "attend", "converse"]

logger = logging.getLogger("asyncnet.compat")

Handler: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, object]]
"""A coroutine function that takes a reader and a writer, as `asyncio.start_server` calls it."""

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted before others get a turn."""
PAUSE: Final = 0.1
"""Seconds without accepting after the system or the engine ran out of something; connections wait in the backlog."""
CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled handler has to end."""
STOP: Final = b"\0"
"""What stops a server; no signal has this number."""


@attrs.define
class Stats:
    """What a server has counted."""

    accepted: int = 0
    """Connections whose handler was started."""
    active: int = 0
    """Handlers that run now."""
    failed: int = 0
    """Handlers that raised; the traceback is in the log."""
    disconnected: int = 0
    """Handlers that ended by the error that the peer's leaving gave them."""
    cancelled: int = 0
    """Handlers that were cancelled when the server stopped."""
    pauses: int = 0
    """How often accepting paused, because descriptors, memory or threads ran out."""
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False, eq=False, init=False)

    def count(self, **changes: int) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)


class Server(ABC):
    """A listener and the engine that serves it; made by `create_server`.

    Attributes:
        address: what it listens on, with the real port.
    """

    def __init__(self, handler: Handler, address: Address, *, backlog: int, grace: float) -> None:
        self._handler = handler
        self._grace = grace
        self._stats = Stats()
        self._began = False
        # The byte that stops the server travels from `_bell` to `_wake`.
        self._wake, self._bell = socket.socketpair()
        try:
            self._wake.setblocking(False)
            self._bell.setblocking(False)
            self.address = self._open(address, backlog)
        except BaseException:
            self._wake.close()
            self._bell.close()
            raise

    def _open(self, address: Address, backlog: int) -> Address:
        """Listen, and return the real address."""
        self._listener = _listen(address, backlog)
        return self._listener.getsockname()  # type: ignore[no-any-return]  # an address by its family

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
        self._listener.close()
        self._bell.close()
        self._wake.close()


def _listen(address: Address, backlog: int) -> socket.socket:
    host, port = address[0], address[1]
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        # Accepted sockets inherit the protocol number; asyncio sets TCP_NODELAY only where it is there.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setblocking(False)
            if os.name == "posix":  # on Windows the option would let another program take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address if len(address) == 4 else place)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise explain(exc, "bind TCP", address) from exc
    return listener


async def accept(
    listener: socket.socket,
    admit: Callable[[socket.socket, Any], object],
    stats: Stats,
    *,
    full: Callable[[], bool] = lambda: False,
) -> None:
    """Accept until cancelled, and close `listener` then.

    Running out of descriptors, memory or room costs a pause, in which new connections wait in the kernel's backlog.

    Args:
        listener: it must not block.
        admit: takes each connection and the address of its peer, and must not wait. When it raises, the connection
            is closed.
        stats: counts the pauses.
        full: tells whether there is room for no more.
    """
    readable, strained = Trap(EVENT_READ, listener), False
    try:
        while True:
            for _ in range(ACCEPTS_PER_TURN):
                try:
                    if full():
                        raise OSError("as many connections as this engine takes are open")
                    sock, peer = listener.accept()
                    try:
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        admit(sock, peer)
                    except BaseException:
                        sock.close()
                        raise
                except BlockingIOError:
                    await trap(readable)
                except (OSError, RuntimeError, MemoryError) as exc:
                    if isinstance(exc, OSError) and exc.errno in PEER_ERRORS:
                        continue  # what happened to the waiting connection itself
                    stats.count(pauses=1)
                    if not strained:
                        logger.warning("accepting on %s pauses: %s", format_address(listener.getsockname()), exc)
                    strained = True
                    await sleep(PAUSE)
                else:
                    strained = False
            await sleep(0)
    finally:
        listener.close()


async def attend(
    handler: Handler,
    reader: Any,
    writer: Any,
    stats: Stats,
    wait_closed: Callable[[], Awaitable[object]],
    abort: Callable[[], object],
) -> None:
    """Serve one connection to its end: count it, and keep what the handler raises from everybody else.

    An error that comes from the peer's leaving is logged for debugging only, anything else with its traceback.

    Args:
        handler: called with `reader` and `writer`.
        reader: of the connection.
        writer: of the connection.
        stats: counts what becomes of it.
        wait_closed: waits until what is written has left; raises `OSError` when it cannot.
        abort: closes the connection at once; not called after `wait_closed` has returned.
    """
    stats.count(accepted=1, active=1)
    try:
        try:
            await handler(reader, writer)
        except Exception as exc:
            if _is_lost_by(exc, reader, writer):
                stats.count(disconnected=1)
                logger.debug("%s: the peer went away: %r", _peer(writer), exc)
            else:
                stats.count(failed=1)
                logger.error("the handler of %s failed: %s", _peer(writer), exc, exc_info=exc)
        writer.close()
        await wait_closed()
    except OSError as exc:
        logger.debug("%s: the last bytes are lost: %r", _peer(writer), exc)
        abort()
    except BaseException as exc:
        stats.count(cancelled=isinstance(exc, asyncio.CancelledError))
        abort()
        raise
    finally:
        stats.count(active=-1)


def _is_lost_by(exc: Exception, reader: Any, writer: Any) -> bool:
    """Tell whether the peer is to blame for what a handler raised; a connection to another host may be, too."""
    if isinstance(exc, asyncio.IncompleteReadError):
        return bool(reader.at_eof())
    return isinstance(exc, TimeoutError) or (isinstance(exc, ConnectionError) and writer.is_closing())


def _peer(writer: Any) -> str:
    return format_address(writer.get_extra_info("peername"))


def converse(
    handler: Handler,
    sock: SocketLike,
    peer: Any,
    stats: Stats,
    closing: Callable[[Any], object] | None = None,
) -> Coroutine[Any, Any, None]:
    """Return the coroutine that serves one accepted socket; `closing` is called right before it is closed."""
    reader, writer = open_streams(sock, peer, closing=closing)
    return attend(handler, reader, writer, stats, writer.wait_closed, writer.abort)
