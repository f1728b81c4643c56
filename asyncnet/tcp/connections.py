"""What a server counts of its connections, and how they end."""

from __future__ import annotations

import asyncio
from enum import Enum
from ssl import SSLError
from typing import TYPE_CHECKING

import attrs

from asyncnet import metrics
from asyncnet.addresses import Address, format_address
from asyncnet.tcp.reading import LineTooLong

if TYPE_CHECKING:
    import socket

    from asyncnet.tcp.reading import StreamReader
    from asyncnet.tcp.streams import StreamProtocol
    from asyncnet.tcp.writing import StreamWriter

__all__ = ["Connection", "MetricsCollector", "Outcome", "ServerStats", "StopReport"]


@attrs.define
class ServerStats:
    """What a server has counted since it was opened.

    ``accepted`` is the sum of ``active`` and of the six ways to end: ``completed``, ``failed``, ``disconnected``,
    ``cancelled``, ``handshakes_failed`` and ``rejected``.
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
    """The peer went away or took too long, and the handler ended by the error that this gave it."""
    cancelled: int = 0
    """The handler was cancelled."""
    handshakes_failed: int = 0
    """The connection ended before the handler began, by its PROXY header or its TLS handshake."""
    rejected: int = 0
    """There was no room for one more, or for one more of this client."""
    aborted: int = 0
    """Connections cut off: the peer did not take its bytes, or the handler outlived its cancellation."""
    shed: int = 0
    """Connections closed at once because the system had no descriptor for them."""
    accept_errors: int = 0
    """Failed calls of accept()."""
    overflows: int = 0
    """Peers that left too many bytes unread."""
    overruns: int = 0
    """Peers that sent a line, or what else ends with a separator, that was longer than the limit."""
    first_byte_timeouts: int = 0
    """Peers that sent nothing in time."""
    message_timeouts: int = 0
    """Peers that did not finish a message in time."""
    idle_timeouts: int = 0
    """Peers that were silent for too long."""
    write_timeouts: int = 0
    """Peers that took nothing of what was sent to them for too long."""
    lifetime_timeouts: int = 0
    """Connections that lasted for too long."""

    def count(self, name: str) -> None:
        """Add one to a counter."""
        setattr(self, name, getattr(self, name) + 1)


class MetricsCollector(metrics.MetricsCollector):
    """A collector of prometheus_client for the counts of a TCP server.

    Register it with ``prometheus_client.REGISTRY.register(MetricsCollector(server))``.

    Args:
        server: the server.
        prefix: of the metrics' names.

    Raises:
        ImportError: prometheus_client is not installed.
    """

    def __init__(self, server: metrics.HasStats, prefix: str = "asyncnet_tcp") -> None:
        super().__init__(server, prefix)


@attrs.frozen
class StopReport:
    """How the connections ended that were open when the server was closed."""

    finished: int
    """Handlers that ended by themselves."""
    cancelled: int
    """Handlers that were cancelled at the end of the grace, and ended then."""
    aborted: int
    """Connections that were cut off."""


class Outcome(Enum):
    """How a connection ended; the value is the counter in `ServerStats`."""

    COMPLETED = "completed"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    CANCELLED = "cancelled"
    HANDSHAKE_FAILED = "handshakes_failed"
    REJECTED = "rejected"


@attrs.define(eq=False)
class Connection:
    """One connection, from accept() until its handler has ended and its socket is closed."""

    address: Address | str
    """Of the peer, or of whom a proxy speaks for."""
    sock: socket.socket | None
    """Until a transport takes the socket over."""
    protocol: StreamProtocol | None = None
    writer: StreamWriter | None = None
    task: asyncio.Task[object] | None = None
    client: str | None = None
    """What it counts as, when connections of a client are counted."""
    outcome: Outcome | None = None
    """Set when the handler has ended."""
    cancelled: bool = False
    """The server stops, and cancelled the handler."""
    aborted: bool = False

    @property
    def reader(self) -> StreamReader:
        """What the handler reads from."""
        assert self.protocol is not None
        return self.protocol.reader

    @property
    def peer(self) -> str:
        """The other end, for messages."""
        return format_address(self.address)

    def is_lost_by(self, exc: BaseException) -> bool:
        """Tell whether the peer is to blame for what a handler raised; a connection to another host may be, too."""
        if self.protocol is None or self.writer is None:
            return False
        if isinstance(exc, ExceptionGroup):
            return all(self.is_lost_by(part) for part in exc.exceptions)
        if isinstance(exc, asyncio.IncompleteReadError):
            return self.protocol.reader.at_eof()
        if isinstance(exc, asyncio.LimitOverrunError | LineTooLong):
            return self.protocol.reader.overran
        if isinstance(exc, ConnectionError | SSLError):
            return self.writer.is_closing() or self.protocol.reader.exception() is not None
        return isinstance(exc, TimeoutError)
