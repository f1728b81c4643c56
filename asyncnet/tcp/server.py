"""A TCP server that limits, survives and stops.

It owns its acceptor, because those of the event loops cannot do what a server on the internet needs: neither knows a
limit of connections; out of file descriptors, asyncio repeats its traceback once per place in the backlog and uvloop
drops connections without a word; and `asyncio.Server.wait_closed` returns at once or waits for ever, depending on the
Python version. So the listener is read with `add_reader`, and whether it is read at all is decided in one place: not
while the limit is reached, not during a pause after an exhausted resource, not after `close`. Meanwhile connections
wait in the kernel's backlog.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Coroutine
from enum import Enum
from functools import partial
from ssl import SSLContext, SSLError
from typing import Any, Final, Self, TypeAlias

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.opening import Opening

__all__ = ["Handler", "Server", "ServerStats", "StopReport", "serve"]

logger = logging.getLogger("asyncnet.tcp")

Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, object]]
"""What `serve` calls for each connection."""

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted from one listener before the event loop turns to others."""
BACK_OFF: Final = (0.05, 1.0)
"""The first and the longest pause, in seconds, while the system lacks descriptors or memory; it doubles."""
EPISODE_GAP: Final = 5.0
"""Seconds without an exhausted resource after which the next one is logged again."""
FLUSH_STALL: Final = 10.0
"""Seconds in which a closing connection must get rid of some of its bytes, or it is aborted."""
CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled handler has to end."""
PORT_ATTEMPTS: Final = 10
"""How often a free port is looked for that is free on every address."""

# accept() reports what happened to the waiting connection itself (Linux accept(2), "Error handling").
PEER_ERRORS: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)


@attrs.define
class ServerStats:
    """What a server has counted since it was opened.

    ``accepted`` is the sum of ``active`` and of the five ways to end: ``completed``, ``failed``, ``disconnected``,
    ``cancelled`` and ``handshakes_failed``.
    """

    accepted: int = 0
    """Connections taken from the kernel."""
    active: int = 0
    """Connections that are open now, those in their TLS handshake included."""
    completed: int = 0
    """The handler returned."""
    failed: int = 0
    """The handler raised; the traceback is in the log."""
    disconnected: int = 0
    """The peer went away, and the handler ended by the error that this gave it."""
    cancelled: int = 0
    """The handler was cancelled."""
    handshakes_failed: int = 0
    """The connection ended before the handler began, as by a failed TLS handshake."""
    aborted: int = 0
    """Connections cut off: the peer did not take the last bytes, or the handler outlived its cancellation."""
    accept_errors: int = 0
    """Failed calls of accept()."""


@attrs.frozen
class StopReport:
    """How the connections ended that were open when the server was closed."""

    finished: int
    """Handlers that ended by themselves."""
    cancelled: int
    """Handlers that were cancelled at the end of the grace, and ended then."""
    aborted: int
    """Connections that were cut off."""


class _Outcome(Enum):
    """How a connection ended; the value is the counter in `ServerStats`."""

    COMPLETED = "completed"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    CANCELLED = "cancelled"
    HANDSHAKE_FAILED = "handshakes_failed"


@attrs.define(eq=False)
class _Connection:
    """One connection, from accept() to the end of its task."""

    peer: str
    sock: socket.socket | None
    """Until the event loop takes the socket over."""
    lost: asyncio.Future[None]
    """Done when the transport is closed."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    begun: bool = False
    """The event loop has made the transport, and finished the TLS handshake."""
    cancelled: bool = False
    """The server stops, and cancelled the handler."""
    aborted: bool = False

    def made(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def is_lost_by(self, exc: Exception) -> bool:
        """Tell whether the peer is to blame for what a handler raised; a connection to another host may be, too."""
        if self.reader is None or self.writer is None:
            return False
        if isinstance(exc, ExceptionGroup):
            return all(self.is_lost_by(part) for part in exc.exceptions)
        if isinstance(exc, asyncio.IncompleteReadError):
            return self.reader.at_eof()
        if isinstance(exc, ConnectionError | SSLError):
            return self.writer.is_closing() or self.reader.exception() is not None
        return isinstance(exc, TimeoutError)


class _Protocol(asyncio.StreamReaderProtocol):
    """asyncio's protocol, which also tells the connection when it is lost.

    `StreamWriter.wait_closed` is of no use for that: a cancelled wait breaks it for every other one.
    """

    def __init__(self, connection: _Connection, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(asyncio.StreamReader(limit, loop), connection.made, loop)
        self._lost = connection.lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._lost.done():
            self._lost.set_result(None)


def _unsent(writer: asyncio.StreamWriter) -> int:
    try:
        return writer.transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport forgets its connection at a second close()
        return 0


class Server:
    """A running TCP server; made by `serve`.

    Attributes:
        stats: what it has counted.
        closing: set when the server begins to close; handlers of long connections may watch it.
    """

    def __init__(
        self,
        handler: Handler,
        listeners: list[socket.socket],
        *,
        max_connections: int | None,
        grace: float,
        ssl: SSLContext | None,
        limit: int,
    ) -> None:
        self.stats = ServerStats()
        self.closing = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._listeners = listeners
        self._addresses: tuple[Address, ...] = tuple(listener.getsockname() for listener in listeners)
        self._max_connections = max_connections
        self._grace = grace
        self._ssl = ssl
        self._limit = limit
        self._connections: dict[asyncio.Task[_Outcome], _Connection] = {}
        self._reading = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_length = 0.0
        self._exhausted_at = -math.inf
        self._finished = self._cancelled = self._aborted = 0  # what the stop report counts
        self._update_reading()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Every address that the server listens on, with the real port."""
        return self._addresses

    @property
    def address(self) -> Address:
        """The first address that the server listens on."""
        return self._addresses[0]

    # Accepting.

    @property
    def _accepting(self) -> bool:
        return (
            not self.closing.is_set()
            and self._pause is None
            and (self._max_connections is None or len(self._connections) < self._max_connections)
        )

    def _update_reading(self) -> None:
        wanted = self._accepting
        if wanted == self._reading:
            return
        self._reading = wanted
        for listener in self._listeners:
            if wanted:
                self._loop.add_reader(listener, self._accept, listener)
            else:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accepting:
                break
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self.stats.accept_errors += 1
                if exc.errno not in PEER_ERRORS:
                    self._back_off(exc)
                continue
            self._pause_length = 0.0
            self._start(sock, peer)
        self._update_reading()

    def _back_off(self, exc: OSError) -> None:
        """Pause after EMFILE and its like: the listener stays readable, so reading on would only spin."""
        now = self._loop.time()
        if now - self._exhausted_at > EPISODE_GAP:
            logger.warning(
                "cannot accept on %s: %s, with %d connections open; trying again until it works "
                "(raise the limit of open files with 'ulimit -n', or set max_connections below it)",
                format_address(self.address),
                exc.strerror,
                len(self._connections),
            )
        self._exhausted_at = now
        shortest, longest = BACK_OFF
        self._pause_length = min(max(2 * self._pause_length, shortest), longest)
        self._pause = self._loop.call_later(self._pause_length, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._update_reading()

    # One connection.

    def _start(self, sock: socket.socket, peer: Address) -> None:
        connection = _Connection(format_address(peer), sock, self._loop.create_future())
        self.stats.accepted += 1
        self.stats.active += 1
        task = self._loop.create_task(self._run(connection), name=f"tcp {connection.peer}")
        self._connections[task] = connection
        task.add_done_callback(partial(self._ended, connection))

    async def _run(self, connection: _Connection) -> _Outcome:
        sock, connection.sock = connection.sock, None
        assert sock is not None
        try:
            # Both loops set TCP_NODELAY here, and make the socket non-blocking.
            await self._loop.connect_accepted_socket(
                partial(_Protocol, connection, self._limit, self._loop), sock, ssl=self._ssl
            )
        except OSError as exc:
            sock.close()
            logger.debug("%s: no connection: %r", connection.peer, exc)
            return _Outcome.HANDSHAKE_FAILED
        except asyncio.CancelledError:
            if connection.writer is not None:
                self._abort(connection)
            raise
        connection.begun = True
        reader, writer = connection.reader, connection.writer
        if reader is None or writer is None:  # the peer left at the end of the TLS handshake
            return _Outcome.HANDSHAKE_FAILED
        try:
            if connection.cancelled:
                raise asyncio.CancelledError
            coroutine = self._handler(reader, writer)
            if not asyncio.iscoroutine(coroutine):
                raise TypeError(f"handler must be a coroutine function: it returned {coroutine!r}")
            await coroutine
            outcome = _Outcome.COMPLETED
        except asyncio.CancelledError:
            await self._flush(connection, writer)
            raise
        except Exception as exc:
            outcome = self._failed(connection, exc)
        await self._flush(connection, writer)
        return outcome

    def _failed(self, connection: _Connection, exc: Exception) -> _Outcome:
        if connection.is_lost_by(exc):
            logger.debug("%s: the peer went away: %r", connection.peer, exc)
            return _Outcome.DISCONNECTED
        logger.error("the handler of %s failed", connection.peer, exc_info=exc)
        return _Outcome.FAILED

    async def _flush(self, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        """Close and wait until the last bytes have left, as long as they go on leaving."""
        if not writer.is_closing():
            writer.close()
        left = -1
        try:
            while not connection.lost.done() and (unsent := _unsent(writer)) != left:
                left = unsent
                await asyncio.wait((connection.lost,), timeout=FLUSH_STALL)
        finally:
            if not connection.lost.done():
                self._abort(connection)

    def _abort(self, connection: _Connection) -> None:
        if connection.writer is not None and not connection.aborted:
            connection.aborted = True
            self.stats.aborted += 1
            connection.writer.transport.abort()

    def _ended(self, connection: _Connection, task: asyncio.Task[_Outcome]) -> None:
        del self._connections[task]
        connection.reader = connection.writer = None  # the protocol refers to the connection: this breaks the cycle
        if connection.sock is not None:  # cancelled before it began
            connection.sock.close()
        if task.cancelled():
            outcome = _Outcome.CANCELLED
        elif (exc := task.exception()) is not None:
            logger.error("the handler of %s failed", connection.peer, exc_info=exc)
            outcome = _Outcome.FAILED
        else:
            outcome = _Outcome.CANCELLED if connection.cancelled else task.result()
        self.stats.active -= 1
        setattr(self.stats, outcome.value, getattr(self.stats, outcome.value) + 1)
        if self.closing.is_set():
            self._aborted += connection.aborted
            self._cancelled += outcome is _Outcome.CANCELLED and not connection.aborted
            self._finished += outcome is not _Outcome.CANCELLED and not connection.aborted
        self._update_reading()

    # Stopping.

    async def serve_forever(self) -> None:
        """Wait until `close` or `aclose` is called, then for the handlers as `aclose` does, and return.

        Cancelled, it closes the server in the same way before it lets the cancellation through.
        """
        try:
            await self.closing.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Stop accepting at once and set `closing`; open connections go on. A second call does nothing.

        Connections that nobody has accepted yet are refused by the kernel.
        """
        if self.closing.is_set():
            return
        self.closing.set()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._update_reading()
        for listener in self._listeners:
            listener.close()

    async def aclose(self, grace: float | None = None) -> StopReport:
        """Stop accepting, let the handlers finish, cancel those that do not, and abort those that outlive that too.

        It may be called several times, at the same time as well, and by a handler, which it does not wait for. When
        it is cancelled itself, it cancels and aborts whatever is left at once.

        Args:
            grace: seconds that handlers have to finish; None takes the one given to `serve`. Then they are cancelled
                and have one second more.

        Returns:
            How the connections ended that were open when the server was closed.

        Raises:
            ValueError: `grace` is negative or not finite.
        """
        grace = self._grace if grace is None else _checked_grace(grace)
        self.close()
        try:
            await self._wait_ended(grace)
            self._cancel_handlers()
            await self._wait_ended(CANCEL_WAIT)
        finally:
            self._cancel_handlers()
            others = self._others()
            for connection in others.values():
                self._abort(connection)
        lost = [connection.lost for connection in others.values() if connection.aborted]
        if lost:
            await asyncio.wait(lost, timeout=CANCEL_WAIT)
        running = sum(connection.aborted for connection in self._connections.values())
        return StopReport(self._finished, self._cancelled, self._aborted + running)

    def _others(self) -> dict[asyncio.Task[_Outcome], _Connection]:
        """Return the connections, without that of the handler that asks."""
        current = asyncio.current_task()
        return {task: connection for task, connection in self._connections.items() if task is not current}

    async def _wait_ended(self, timeout: float) -> None:
        tasks = self._others()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    def _cancel_handlers(self) -> None:
        for task, connection in self._others().items():
            if not connection.cancelled:
                connection.cancelled = True
                # Without TLS the transport is there in a turn or two. A cancellation in these would make uvloop close
                # it behind the writer's back, which then counts as left open; so `_run` looks at the flag itself.
                if connection.begun or self._ssl is not None:
                    task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def serve(
    handler: Handler,
    host: str | None,
    port: int,
    *,
    max_connections: int | None = None,
    backlog: int = 1024,
    grace: float = 5.0,
    ssl: SSLContext | None = None,
    limit: int = 65536,
) -> Opening[Server]:
    """Open a TCP server: ``async with serve(...) as server`` or ``server = await serve(...)``.

    Each connection runs ``handler(reader, writer)`` in a task of its own, named after the peer; a handler written for
    `asyncio.start_server` needs no change. When it returns or raises, the connection is flushed and closed. What it
    raises goes to the log ``asyncnet.tcp`` and ends nothing but its connection; `ConnectionError`, `TimeoutError` and
    `asyncio.IncompleteReadError` that come from a peer that went away are only logged for debugging. Small writes are
    not held back (TCP_NODELAY).

    Args:
        handler: a coroutine function, or a callable that returns a coroutine.
        host: an address of this host, or a name for all of its addresses; None or empty for every IPv4 and IPv6 one.
        port: 0 takes a free one, the same on each address.
        max_connections: how many are served at a time; more wait in the kernel's backlog. None sets no limit.
        backlog: how many the kernel may keep waiting, for each address; the system caps it.
        grace: seconds that handlers have to finish when the server closes, unless `Server.aclose` is told otherwise.
        ssl: a context with a certificate, for TLS.
        limit: bytes that a reader holds before it stops reading: half of it, and the longest line.

    Raises:
        TypeError: `handler` cannot be called, or `ssl` is no context.
        ValueError: a number is out of range.
        OSError: the address cannot be used; the message says why and what to do.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a coroutine function, not {handler!r}")
    if ssl is not None and not isinstance(ssl, SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {ssl!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 and 65535, not {port}")
    for name, value in (("max_connections", max_connections), ("backlog", backlog), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    _checked_grace(grace)

    async def open_() -> Server:
        listeners = _open_listeners(await _resolve(host, port), backlog)
        try:
            return Server(handler, listeners, max_connections=max_connections, grace=grace, ssl=ssl, limit=limit)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise

    return Opening(open_)


def _checked_grace(grace: float) -> float:
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be 0 seconds or more, and finite, not {grace}")
    return grace


# Listening.


async def _resolve(host: str | None, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the family and the address of each socket to open."""
    if not host:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))]
    try:
        try:  # uvloop's resolver loses the scope of a link-local address
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise explain(exc, "bind TCP", (host, port)) from exc
    except ValueError as exc:  # what the codec of host names refuses
        raise explain(socket.gaierror(socket.EAI_NONAME, str(exc)), "bind TCP", (host, port)) from exc
    return list(dict.fromkeys((int(info[0]), info[4]) for info in infos))


def _open_listeners(addresses: list[tuple[int, tuple[Any, ...]]], backlog: int) -> list[socket.socket]:
    # A port that the system picked on the first address may be in use on the second one.
    attempts = PORT_ATTEMPTS if addresses[0][1][1] == 0 and len(addresses) > 1 else 1
    while True:
        attempts -= 1
        try:
            return _listen_on_all(addresses, backlog)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or attempts == 0:
                raise


def _listen_on_all(addresses: list[tuple[int, tuple[Any, ...]]], backlog: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for family, (host, port, *scope) in addresses:
            try:
                shared_port = listeners[0].getsockname()[1] if listeners else port
                listeners.append(_listen(family, (host, shared_port, *scope), backlog))
            except OSError as exc:
                # Names such as "localhost" have an IPv6 address on hosts without IPv6, too.
                without_ipv6 = family == socket.AF_INET6 and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if not without_ipv6 or len(addresses) == 1:
                    raise
                missing = exc
        if not listeners:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(family: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    try:
        # Accepted sockets inherit the protocol number; asyncio sets TCP_NODELAY only where it is there.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setblocking(False)
            if os.name == "posix":  # on Windows the option would let another program take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise explain(exc, "bind TCP", address) from exc
    return listener
