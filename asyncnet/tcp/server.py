"""A TCP server that limits, survives and stops.

It owns its acceptor, its connections and its way to stop, because those of the event loops cannot do what a server on
the internet needs: neither knows a limit of connections; out of file descriptors, asyncio repeats its traceback once
per place in the backlog and uvloop drops connections without a word; and `asyncio.Server.wait_closed` returns at once
or waits for ever, depending on the Python version.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from ssl import SSLContext
from typing import Any, Final, Self

import attrs

from asyncnet.addresses import Address, client_of, in_networks
from asyncnet.arguments import check_seconds
from asyncnet.errors import PacketError
from asyncnet.tcp.acceptor import Acceptor
from asyncnet.tcp.connections import Connection, Outcome, ServerStats, StopReport
from asyncnet.tcp.deadlines import Deadline
from asyncnet.tcp.prelude import read_proxy_header
from asyncnet.tcp.proxy import ProxyHeader
from asyncnet.tcp.reading import StreamReader
from asyncnet.tcp.settings import Handler, Settings
from asyncnet.tcp.streams import StreamProtocol
from asyncnet.tcp.transport import SocketTransport
from asyncnet.tcp.writing import StreamWriter, open_tls
from asyncnet.wakeup import Steps

__all__ = ["Server"]

logger = logging.getLogger("asyncnet.tcp")

FLUSH_STALL: Final = 10.0
"""Seconds in which a closing connection must get rid of some of its bytes, or it is aborted."""
CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled handler has to end."""


@attrs.define(eq=False)
class _Served(Connection):
    """A connection that tells its server what becomes of it."""

    server: Server = attrs.field(kw_only=True)

    def handled(self, task: asyncio.Task[object]) -> None:
        """The handler has ended."""
        self.server._handled(self, task)

    def lost(self) -> None:
        """The socket is about to be closed."""
        self.server._lost(self)

    def missed(self, deadline: Deadline) -> None:
        """The peer takes too long."""
        self.server._missed(self, deadline)


class Server:
    """A running TCP server; made by `serve`.

    Attributes:
        stats: what it has counted.
        closing: set when the server begins to close; handlers of long connections may watch it.
    """

    def __init__(self, handler: Handler, listeners: list[socket.socket], settings: Settings) -> None:
        self.stats = ServerStats()
        self.closing = asyncio.Event()
        self._hurried = False
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._handler = handler
        self._settings = settings
        self._connections: set[Connection] = set()
        self._clients: dict[str, int] = {}
        self._ended = asyncio.Event()
        self._finished = self._cancelled = self._aborted = 0  # what the stop report counts
        self._acceptor = Acceptor(listeners, self._admit, self._has_room, self.stats, settings.path)
        self._acceptor.update()

    @property
    def addresses(self) -> tuple[Address | str, ...]:
        """Every address that the server listens on, with the real port; of a Unix socket, its path."""
        return self._acceptor.addresses

    @property
    def address(self) -> Any:
        """The first address that the server listens on."""
        return self._acceptor.addresses[0]

    @property
    def ssl(self) -> SSLContext | None:
        """The context of connections to come; set another one, such as with a new certificate, at any time.

        Connections that are open keep theirs.
        """
        return self._settings.ssl

    @ssl.setter
    def ssl(self, context: SSLContext) -> None:
        if not isinstance(context, SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext, not {context!r}")
        if self._settings.ssl is None:
            raise ValueError("ssl was not given to serve(): this server speaks no TLS")
        self._settings.ssl = context

    # Admission.

    def _has_room(self) -> bool:
        most = self._settings.max_connections
        return most is None or len(self._connections) < most or self._settings.reject

    def _admit(self, sock: socket.socket, peer: Any) -> None:
        settings = self._settings
        stats = self.stats
        stats.accepted += 1
        if settings.max_connections is not None and len(self._connections) >= settings.max_connections:
            stats.rejected += 1
            sock.close()
            return
        connection = _Served(peer, sock, server=self)
        behind_proxy = self._is_behind_proxy(peer)
        if not behind_proxy and not self._enter(connection):
            stats.rejected += 1
            sock.close()
            return
        stats.active += 1
        self._connections.add(connection)
        if behind_proxy or settings.ssl is not None:
            work: Coroutine[Any, Any, object] = self._prepare(connection, behind_proxy=behind_proxy)
        else:
            self._open(connection)
            try:
                work = Steps(self._call_handler(connection), connection.reader.wakeup)
            except Exception as exc:
                self._end(connection, self._outcome_of(connection, exc))
                return
        connection.task = task = self._loop.create_task(work, name=f"tcp {connection.peer}")
        task.add_done_callback(connection.handled, context=self._context)

    def _is_behind_proxy(self, peer: Any) -> bool:
        settings = self._settings
        if not isinstance(peer, tuple):
            return settings.proxy_unix
        return bool(settings.proxy_from) and in_networks(peer[0], settings.proxy_from)

    def _enter(self, connection: Connection) -> bool:
        """Count a connection for its client; False when that has as many as it may."""
        if self._settings.max_per_client is None or not isinstance(connection.address, tuple):
            return True
        client = client_of(connection.address[0])
        number = self._clients.get(client, 0)
        if number >= self._settings.max_per_client:
            return False
        self._clients[client] = number + 1
        connection.client = client
        return True

    def _leave(self, connection: Connection) -> None:
        if connection.client is not None:
            left = self._clients.pop(connection.client) - 1
            if left:
                self._clients[connection.client] = left

    # One connection.

    def _protocol_for(self, connection: _Served) -> StreamProtocol:
        reader = StreamReader(self._settings.limit, self._loop)
        protocol = StreamProtocol(
            reader, self._loop, connection.address, server_side=True, timeouts=self._settings.timeouts
        )
        protocol.owner = connection
        connection.protocol = protocol
        return protocol

    def _open(self, connection: _Served) -> None:
        """Put streams on a plain connection."""
        sock, connection.sock = connection.sock, None
        assert sock is not None
        protocol = self._protocol_for(connection)
        transport = SocketTransport(
            self._loop, sock, protocol, connection.address, hard_limit=self._settings.hard_limit
        )
        connection.writer = StreamWriter(transport, protocol)

    def _call_handler(self, connection: _Served) -> Coroutine[Any, Any, object]:
        coroutine = self._handler(connection.reader, connection.writer)
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(f"handler must be a coroutine function: it returned {coroutine!r}")
        return coroutine

    async def _prepare(self, connection: _Served, *, behind_proxy: bool) -> object:
        """Do what comes before the handler, and run it."""
        settings = self._settings
        extra: dict[str, Any] = {}
        assert connection.sock is not None
        try:
            if behind_proxy:
                header = await read_proxy_header(connection.sock, settings.handshake_timeout)
                extra = _proxy_extra(connection, header)
                if not self._enter(connection):
                    return Outcome.REJECTED
            if settings.ssl is None:
                self._open(connection)
            else:
                sock, connection.sock = connection.sock, None
                protocol = self._protocol_for(connection)
                transport = await open_tls(
                    self._loop, sock, protocol, settings.ssl, handshake_timeout=settings.handshake_timeout
                )
                connection.writer = StreamWriter(transport, protocol)
        except (OSError, EOFError, PacketError) as exc:
            logger.debug("%s: no connection: %r", connection.peer, exc)
            return Outcome.HANDSHAKE_FAILED
        assert connection.writer is not None
        connection.writer.extra = extra or None
        if connection.cancelled:
            raise asyncio.CancelledError
        await self._call_handler(connection)
        return None

    def _handled(self, connection: Connection, task: asyncio.Task[object]) -> None:
        if task.cancelled():
            outcome = Outcome.CANCELLED
        elif (exc := task.exception()) is not None:
            outcome = self._outcome_of(connection, exc)
        else:
            result = task.result() if connection.writer is None else None
            outcome = result if isinstance(result, Outcome) else Outcome.COMPLETED
            if connection.cancelled:
                outcome = Outcome.CANCELLED
        self._end(connection, outcome)

    def _outcome_of(self, connection: Connection, exc: BaseException) -> Outcome:
        if connection.is_lost_by(exc):
            logger.debug("%s: the peer went away: %r", connection.peer, exc)
            return Outcome.DISCONNECTED
        logger.error("the handler of %s failed", connection.peer, exc_info=exc)
        return Outcome.FAILED

    def _end(self, connection: Connection, outcome: Outcome) -> None:
        """The handler has ended: send its last bytes, as long as the peer goes on taking them."""
        connection.outcome = outcome
        if connection.sock is not None:
            connection.sock.close()
            connection.sock = None
        protocol = connection.protocol
        if protocol is None or protocol.lost:
            self._forget(connection)
        elif protocol.transport is not None:
            protocol.close_within(self._settings.timeouts.write or FLUSH_STALL)

    def _lost(self, connection: Connection) -> None:
        protocol = connection.protocol
        assert protocol is not None
        transport = protocol.transport
        if isinstance(transport, SocketTransport) and transport.overflowed:
            self.stats.overflows += 1
            self._count_abort(connection)
        elif protocol.missed is Deadline.WRITE:
            self._count_abort(connection)
        if connection.outcome is not None:
            self._forget(connection)
        self._ended.set()

    def _missed(self, connection: Connection, deadline: Deadline) -> None:
        self.stats.count(f"{deadline.value}_timeouts")
        if deadline is Deadline.LIFETIME and connection.task is not None:
            connection.task.cancel()
            self._loop.call_later(CANCEL_WAIT, self._abort, connection)

    def _abort(self, connection: Connection) -> None:
        if connection in self._connections and connection.protocol is not None:
            self._count_abort(connection)
            if connection.protocol.transport is not None:
                connection.protocol.transport.abort()

    def _count_abort(self, connection: Connection) -> None:
        if not connection.aborted:
            connection.aborted = True
            self.stats.aborted += 1

    def _forget(self, connection: Connection) -> None:
        """The handler has ended and the socket is closed."""
        self._connections.discard(connection)
        self._leave(connection)
        outcome = connection.outcome
        assert outcome is not None
        self.stats.active -= 1
        self.stats.count(outcome.value)
        if self.closing.is_set():
            self._aborted += connection.aborted
            self._cancelled += outcome is Outcome.CANCELLED and not connection.aborted
            self._finished += outcome is not Outcome.CANCELLED and not connection.aborted
        self._ended.set()
        self._acceptor.update()

    # Stopping.

    async def serve_forever(self, signals: Iterable[int] = ()) -> None:
        """Wait until `close` or `aclose` is called, then for the handlers as `aclose` does, and return.

        Cancelled, it closes the server in the same way before it lets the cancellation through.

        Args:
            signals: on the first of these, such as ``(signal.SIGINT, signal.SIGTERM)``, the server closes; a second
                one ends the grace.

        Raises:
            NotImplementedError: signals were given, and the event loop cannot watch them.
        """
        with self._watching(signals):
            try:
                await self.closing.wait()
            finally:
                await self.aclose()

    @contextmanager
    def _watching(self, signals: Iterable[int]) -> Iterator[None]:
        watched: list[int] = []
        try:
            for number in signals:
                self._loop.add_signal_handler(number, self._on_signal)
                watched.append(number)
            yield
        finally:
            for number in watched:
                self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.closing.is_set():
            self.hurry()
        else:
            self.close()

    def close(self) -> None:
        """Stop accepting at once and set `closing`; open connections go on. A second call does nothing.

        Connections that the kernel has made already are still served, as far as there is room.
        """
        self._acceptor.close()
        self.closing.set()

    def hurry(self) -> None:
        """Close, and end the grace of an `aclose` that waits, now or later: handlers are cancelled at once."""
        self._hurried = True
        self.close()
        self._ended.set()

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
        check_seconds("grace", grace, from_zero=True)
        grace = self._settings.grace if grace is None else grace
        current = asyncio.current_task()
        self.close()
        own = len(self._connections) - len(self._others(current))
        try:
            await self._wait_until(lambda: self._hurried or len(self._connections) <= own, grace)
            self._cancel_handlers(current)
            await self._wait_until(lambda: len(self._connections) <= own, CANCEL_WAIT)
        finally:
            self._cancel_handlers(current)
            for connection in self._others(current):
                self._abort(connection)
        await self._wait_until(lambda: all(map(_is_closed, self._others(current))), CANCEL_WAIT)
        running = sum(connection.aborted for connection in self._connections)
        return StopReport(self._finished, self._cancelled, self._aborted + running)

    def _others(self, current: asyncio.Task[Any] | None) -> list[Connection]:
        """Return the connections, without that of the handler that asks."""
        return [connection for connection in self._connections if connection.task is not current]

    async def _wait_until(self, done: Callable[[], bool], timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            pass

    def _cancel_handlers(self, current: asyncio.Task[Any] | None) -> None:
        for connection in self._others(current):
            if not connection.cancelled:
                connection.cancelled = True
                if connection.task is not None:
                    connection.task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _is_closed(connection: Connection) -> bool:
    return connection.protocol is None or connection.protocol.lost


def _proxy_extra(connection: Connection, header: ProxyHeader) -> dict[str, Any]:
    """Return what `get_extra_info` tells of a connection behind a proxy."""
    extra: dict[str, Any] = {"proxy": header, "proxy_peername": connection.address}
    if header.source is not None:
        connection.address = extra["peername"] = header.source
        extra["proxy_sockname"] = header.destination
    return extra
