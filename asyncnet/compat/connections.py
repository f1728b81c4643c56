"""Serving connections: the listener, the acceptor, and the care for a handler."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from selectors import EVENT_READ
from typing import Any, Final, TypeAlias

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.compat.blocking import wait_ready
from asyncnet.compat.serving import FULL_PAUSE, PAUSE, Job, Stats
from asyncnet.compat.streams import open_streams
from asyncnet.compat.tasks import Driver
from asyncnet.compat.traps import Trap, sleep, trap
from asyncnet.tcp.listeners import PEER_ERRORS

__all__ = ["Connection", "Handler", "StreamService", "attend"]

logger: Final = logging.getLogger("asyncnet.compat")

Handler: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, object]]
"""A coroutine function that takes a reader and a writer, as `asyncio.start_server` calls it."""

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted before others get a turn."""
_MOST_AT_THE_END: Final = 1024
"""Connections accepted after a stop at most: new clients may come as fast as they are accepted."""
_QUIET: Final = 0.001
"""Seconds without a new connection after which everybody has come who was about to when the server was stopped."""
_MOST_MISSES: Final = 50
"""How often accepting finds nobody at the end, at most: some may come all the time."""


@attrs.frozen(eq=False)
class Connection:
    """A connection that was accepted; a `Job`."""

    handler: Handler
    sock: socket.socket
    peer: Any

    def run(self, driver: Driver, stats: Stats, *, drains: bool = False) -> Coroutine[Any, Any, None]:
        """See `Job`."""
        reader, writer = open_streams(driver.adopt(self.sock), self.peer, closing=driver.forget, drains=drains)
        return attend(self.handler, reader, writer, stats, writer.wait_closed, writer.abort)

    def close(self) -> None:
        """See `Job`."""
        self.sock.close()


class StreamService:
    """A listener, and the handler of its connections; a `Service`.

    Args:
        handler: serves each connection.
        address: where to listen.
        backlog: how many connections the kernel may keep waiting.

    Raises:
        OSError: the address cannot be used; the message says why and what to do.
    """

    def __init__(self, handler: Handler, address: Address, *, backlog: int) -> None:
        self.handler = handler
        self.backlog = backlog
        self.socket = _listen(address, backlog)
        self.address: Address = self.socket.getsockname()
        self._name = format_address(self.address)
        self._waiting: deque[tuple[socket.socket, Any]] = deque()

    async def front(
        self, admit: Callable[[Job], object], stats: Stats, *, room: Callable[[], int] = lambda: sys.maxsize
    ) -> None:
        """Accept until cancelled; see `Service`.

        Running out of descriptors, memory or room costs a pause, in which new connections wait in the backlog.
        """
        listener = self.socket
        readable, strained = Trap(EVENT_READ, listener, drained=True), False
        try:
            while True:
                for _ in range(ACCEPTS_PER_TURN):
                    try:
                        while room() <= 0:
                            if not strained:
                                stats.count(pauses=1)
                                logger.warning("%s: as many connections as this engine takes are open", self._name)
                            strained = True
                            await sleep(FULL_PAUSE)
                        try:
                            sock, peer = listener.accept()
                        except OSError as exc:
                            if exc.errno == errno.EINVAL:
                                return  # another process has shut the listener down
                            raise
                        self._welcome(sock, peer, admit)
                    except BlockingIOError:
                        await trap(readable)
                    except (OSError, RuntimeError, MemoryError) as exc:
                        if isinstance(exc, OSError) and exc.errno in PEER_ERRORS:
                            continue  # what happened to the waiting connection itself
                        stats.count(pauses=1)
                        if not strained:
                            logger.warning("accepting on %s pauses: %s", self._name, exc)
                        strained = True
                        await sleep(PAUSE)
                    else:
                        strained = False
                await sleep(0)
        except asyncio.CancelledError:
            self.accept_last(room())
            listener.close()  # right after the last accept: who connects in between is reset
            self.admit_waiting(admit, stats)
            raise
        finally:
            self.close()

    def accept_last(self, room: int) -> None:
        """Accept those whom the system has connected already: closing the listener would reset them; see `Service`.

        Nobody is served before all are accepted: who has got an answer may come back at once, and so without an end.
        Those who got one just before the stop are coming back now, one after the other, which takes longer than to
        accept one; so it is over only when nobody has come for a moment.
        """
        most, misses = min(self.backlog, _MOST_AT_THE_END, room), _MOST_MISSES
        while misses and len(self._waiting) < most:
            try:
                self._waiting.append(self.socket.accept())
            except BlockingIOError:
                misses -= 1
                try:
                    wait_ready(self.socket, EVENT_READ, _QUIET)
                except TimeoutError:
                    return
            except OSError as exc:
                misses -= 1
                if exc.errno not in PEER_ERRORS:
                    return  # there is no descriptor, or another process has shut the listener down

    def admit_waiting(self, admit: Callable[[Job], object], stats: Stats) -> None:
        """See `Service`."""
        while self._waiting:
            try:
                self._welcome(*self._waiting.popleft(), admit)
            except (OSError, RuntimeError, MemoryError) as exc:
                stats.count(refused=1)
                logger.warning("%s: a connection is not served any more: %s", self._name, exc)

    def _welcome(self, sock: socket.socket, peer: Any, admit: Callable[[Job], object]) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            admit(Connection(self.handler, sock, peer))
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """See `Service`."""
        self.socket.close()
        for sock, _ in self._waiting:
            sock.close()


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
                logger.error("the handler of %s failed: %s", _peer(writer), exc, exc_info=exc)
                stats.count(failed=1)
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
