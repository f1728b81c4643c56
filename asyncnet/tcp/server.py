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
import logging
import math
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from ssl import SSLContext
from typing import Any, Final, Self, TypeAlias

from asyncnet.addresses import Address, format_address
from asyncnet.opening import Opening
from asyncnet.tcp.connections import Connection, ConnectionProtocol, Outcome, ServerStats, StopReport, unsent
from asyncnet.tcp.listeners import PEER_ERRORS, open_listeners, resolve

__all__ = ["Handler", "Server", "serve"]

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
        self._connections: dict[asyncio.Task[Outcome], Connection] = {}
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
        connection = Connection(format_address(peer), sock, self._loop.create_future())
        self.stats.accepted += 1
        self.stats.active += 1
        task = self._loop.create_task(self._run(connection), name=f"tcp {connection.peer}")
        self._connections[task] = connection
        task.add_done_callback(partial(self._ended, connection))

    async def _run(self, connection: Connection) -> Outcome:
        sock, connection.sock = connection.sock, None
        assert sock is not None
        try:
            # Both loops set TCP_NODELAY here, and make the socket non-blocking.
            await self._loop.connect_accepted_socket(
                partial(ConnectionProtocol, connection, self._limit, self._loop), sock, ssl=self._ssl
            )
        except OSError as exc:
            sock.close()
            logger.debug("%s: no connection: %r", connection.peer, exc)
            return Outcome.HANDSHAKE_FAILED
        except asyncio.CancelledError:
            if connection.writer is not None:
                self._abort(connection)
            raise
        connection.begun = True
        reader, writer = connection.reader, connection.writer
        if reader is None or writer is None:  # the peer left at the end of the TLS handshake
            return Outcome.HANDSHAKE_FAILED
        try:
            if connection.cancelled:
                raise asyncio.CancelledError
            coroutine = self._handler(reader, writer)
            if not asyncio.iscoroutine(coroutine):
                raise TypeError(f"handler must be a coroutine function: it returned {coroutine!r}")
            await coroutine
            outcome = Outcome.COMPLETED
        except asyncio.CancelledError:
            await self._flush(connection, writer)
            raise
        except Exception as exc:
            outcome = self._failed(connection, exc)
        await self._flush(connection, writer)
        return outcome

    def _failed(self, connection: Connection, exc: Exception) -> Outcome:
        if connection.is_lost_by(exc):
            logger.debug("%s: the peer went away: %r", connection.peer, exc)
            return Outcome.DISCONNECTED
        logger.error("the handler of %s failed", connection.peer, exc_info=exc)
        return Outcome.FAILED

    async def _flush(self, connection: Connection, writer: asyncio.StreamWriter) -> None:
        """Close and wait until the last bytes have left, as long as they go on leaving."""
        if not writer.is_closing():
            writer.close()
        left = -1
        try:
            while not connection.lost.done() and (size := unsent(writer)) != left:
                left = size
                await asyncio.wait((connection.lost,), timeout=FLUSH_STALL)
        finally:
            if not connection.lost.done():
                self._abort(connection)

    def _abort(self, connection: Connection) -> None:
        if connection.writer is not None and not connection.aborted:
            connection.aborted = True
            self.stats.aborted += 1
            connection.writer.transport.abort()

    def _ended(self, connection: Connection, task: asyncio.Task[Outcome]) -> None:
        del self._connections[task]
        connection.reader = connection.writer = None  # the protocol refers to the connection: this breaks the cycle
        if connection.sock is not None:  # cancelled before it began
            connection.sock.close()
        if task.cancelled():
            outcome = Outcome.CANCELLED
        elif (exc := task.exception()) is not None:
            logger.error("the handler of %s failed", connection.peer, exc_info=exc)
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.CANCELLED if connection.cancelled else task.result()
        self.stats.active -= 1
        setattr(self.stats, outcome.value, getattr(self.stats, outcome.value) + 1)
        if self.closing.is_set():
            self._aborted += connection.aborted
            self._cancelled += outcome is Outcome.CANCELLED and not connection.aborted
            self._finished += outcome is not Outcome.CANCELLED and not connection.aborted
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
        self.closing.set()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._update_reading()
        while self._listeners:
            self._listeners.pop().close()

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

    def _others(self) -> dict[asyncio.Task[Outcome], Connection]:
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
        listeners = open_listeners(await resolve(host, port), backlog)
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
