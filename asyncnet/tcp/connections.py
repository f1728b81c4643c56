"""What a server knows of its connections: one while it is open, and all of them in numbers."""

from __future__ import annotations

import asyncio
import socket
from enum import Enum
from ssl import SSLError

import attrs

__all__ = ["Connection", "ConnectionProtocol", "Outcome", "ServerStats", "StopReport", "unsent"]


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


class Outcome(Enum):
    """How a connection ended; the value is the counter in `ServerStats`."""

    COMPLETED = "completed"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    CANCELLED = "cancelled"
    HANDSHAKE_FAILED = "handshakes_failed"


@attrs.define(eq=False)
class Connection:
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
        """Take the streams that the protocol has made."""
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


class ConnectionProtocol(asyncio.StreamReaderProtocol):
    """asyncio's protocol, which also tells the connection when it is lost.

    `StreamWriter.wait_closed` is of no use for that: a cancelled wait breaks it for every other one.
    """

    def __init__(self, connection: Connection, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(asyncio.StreamReader(limit, loop), connection.made, loop)
        self._lost = connection.lost

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader and the connection."""
        super().connection_lost(exc)
        if not self._lost.done():
            self._lost.set_result(None)


def unsent(writer: asyncio.StreamWriter) -> int:
    """Return the bytes that the transport holds back."""
    try:
        return writer.transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport forgets its connection at a second close()
        return 0
