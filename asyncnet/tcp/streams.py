"""What stands between a transport and a reader and a writer: a `SocketTransport`, or for TLS one of the event loop."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast
from weakref import WeakKeyDictionary

from asyncnet.addresses import Address, format_address
from asyncnet.tcp.alarm import PeerClock
from asyncnet.tcp.deadlines import Deadline, Timeouts
from asyncnet.tcp.reading import StreamReader
from asyncnet.tcp.transport import HARD_LIMIT, READ_SIZE, SocketTransport

__all__ = ["Owner", "StreamProtocol"]

_TOLD: Final = {
    Deadline.FIRST_BYTE: "sent nothing for {} seconds",
    Deadline.MESSAGE: "did not finish its message within {} seconds",
    Deadline.IDLE: "was silent for {} seconds",
    Deadline.WRITE: "took none of the bytes sent to it for {} seconds",
    Deadline.LIFETIME: "has been connected for {} seconds",
}

_buffers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview]] = WeakKeyDictionary()


class Owner(Protocol):
    """What a server does about a connection."""

    def lost(self) -> None:
        """The connection is closed; called once."""

    def missed(self, deadline: Deadline) -> None:
        """The peer has missed a deadline."""


class StreamProtocol(asyncio.BufferedProtocol):
    """Feeds a reader, and holds its writer back while the peer does not take the bytes.

    Args:
        reader: gets what arrives.
        loop: the loop of the connection.
        peer: the other end.
        server_side: which side of a TLS handshake it is.
        timeouts: how long the peer may take.

    Attributes:
        lost: the connection is closed.
        hard_limit: unsent bytes at which the next write ends the connection, where the transport knows no such limit.
        overflowed: it has been ended so.
        missed: the deadline that the peer has missed last.
        owner: is told what becomes of the connection, and ends it when it has lasted for too long.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_waiters",
        "clock",
        "data_received",
        "hard_limit",
        "loop",
        "lost",
        "missed",
        "overflowed",
        "owner",
        "paused",
        "peer",
        "reader",
        "server_side",
        "transport",
    )

    def __init__(
        self,
        reader: StreamReader,
        loop: asyncio.AbstractEventLoop,
        peer: Address | str,
        *,
        server_side: bool,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.reader = reader
        self.peer = peer
        self.server_side = server_side
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.hard_limit = HARD_LIMIT
        self.overflowed = False
        self.missed: Deadline | None = None
        self.owner: Owner | None = None
        self.loop = loop
        self.data_received = reader.receive  # what a `SocketTransport` calls
        self.paused = False
        self._error: Exception | None = None
        self._waiters: list[asyncio.Future[None]] | None = None
        self.clock: PeerClock | None = None
        if timeouts:
            self.clock = PeerClock(loop, timeouts, reader, self._miss)
            reader.watch_with(self.clock)

    # What transports call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or go on by another transport after `StreamWriter.start_tls`."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self.reader.set_transport(transport)
        if self.clock is not None:
            self.clock.attach(self.transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the buffer that all connections of the loop share; its content lasts until `buffer_updated`."""
        try:
            return _buffers[self.loop]
        except KeyError:
            return _buffers.setdefault(self.loop, memoryview(bytearray(READ_SIZE)))

    def buffer_updated(self, nbytes: int) -> None:
        """Give the reader what has arrived."""
        if self.clock is not None:
            self.clock.received()
        self.reader.feed_data(
            _buffers[self.loop][:nbytes]
        )  # perhaps in a task that resumes reading: TLS keeps data back

    def eof_received(self) -> bool:
        """Tell the reader; the other direction stays open where it can."""
        self.reader.feed_eof()
        return isinstance(self.transport, SocketTransport)

    def pause_writing(self) -> None:
        """Let `drain` wait."""
        self.paused = True
        if self.clock is not None:
            self.clock.stalled()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        self.paused = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, the writer and the server."""
        self.lost = True
        self.paused = False
        if isinstance(self.transport, SocketTransport) and self.transport.overflowed:
            self.overflowed = True
        self._error = exc = self._error or exc
        if self.clock is not None:
            self.clock.stop()
        if exc is None:
            self.reader.feed_eof()
        else:
            self.reader.set_exception(exc)
        self._wake()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.lost()
        self.transport = None  # or they would keep each other, until the garbage collector comes
        self.reader.set_transport(None)

    # What the writer and the server call.

    async def drained(self) -> None:
        """Wait until the peer has taken enough.

        Raises:
            OSError: the connection is lost.
        """
        while self.paused:
            await self._change()
        if self.lost:
            raise self._error or ConnectionResetError("Connection lost")

    async def closed(self) -> None:
        """Wait until the connection is closed.

        Raises:
            OSError: it was lost, not closed.
        """
        while not self.lost:
            await self._change()
        if self._error is not None:
            raise self._error

    async def _change(self) -> None:
        waiter = self.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        # Those that were cancelled meanwhile are done.
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def takes_more(self) -> bool:
        """Tell whether a write of TLS makes sense: not when the connection is closed, or is ended here by its peer."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        size = transport.get_write_buffer_size()
        if size < self.hard_limit:
            return True
        self.overflowed = True
        self._error = ConnectionAbortedError(f"the peer left {size} bytes unread")
        transport.abort()
        return False

    def close_within(self, seconds: float) -> None:
        """Close, and abort the connection when its peer takes nothing for so long."""
        assert self.transport is not None
        if not self.transport.is_closing():  # asyncio's TLS transport cannot be aborted after a second close()
            self.transport.close()
        if isinstance(self.transport, SocketTransport) and self.transport.stalled_since() is None:
            return  # nothing has to wait
        if self.clock is None:
            self.clock = PeerClock(self.loop, Timeouts(write=seconds), self.reader, self._miss)
            self.clock.attach(self.transport)
        self.clock.close_within(seconds)

    def _miss(self, deadline: Deadline, seconds: float) -> None:
        self.missed = deadline
        exc = TimeoutError(f"{format_address(self.peer)} {_TOLD[deadline].format(f'{seconds:g}')}")
        if self.owner is not None:
            self.owner.missed(deadline)
            if deadline is Deadline.LIFETIME:
                return
        if deadline in (Deadline.LIFETIME, Deadline.WRITE):
            self._error = exc
            if isinstance(self.transport, SocketTransport):
                self.transport.abort(exc)  # what waits for a file to be sent is told, too
            elif self.transport is not None:
                self.transport.abort()
        else:
            self.reader.interrupt(exc)
