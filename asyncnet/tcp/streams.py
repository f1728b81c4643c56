"""Streams: the reader and the writer of asyncio, made to cost what a protocol's callback costs.

A `StreamProtocol` stands between a transport and them: a `SocketTransport`, or for TLS one of the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import warnings
from collections.abc import Coroutine, Iterable
from ssl import SSLContext
from typing import IO, Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

from asyncnet.addresses import Address, format_address
from asyncnet.tcp.alarm import PeerClock
from asyncnet.tcp.deadlines import Deadline, Timeouts
from asyncnet.tcp.reading import LIMIT, StreamReader
from asyncnet.tcp.sendqueue import Buffer
from asyncnet.tcp.transport import READ_SIZE, SocketTransport

__all__ = ["LIMIT", "StreamProtocol", "StreamReader", "StreamWriter"]

_FILE_PART: Final = 1 << 18
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
        missed: the deadline that the peer has missed last.
        owner: is told what becomes of the connection, and ends it when it has lasted for too long.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_waiters",
        "clock",
        "data_received",
        "loop",
        "lost",
        "missed",
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
            if self.transport is not None:
                self.transport.abort()
        else:
            self.reader.interrupt(exc)


class StreamWriter(asyncio.StreamWriter):
    """`asyncio.StreamWriter`, which also sends files. What is written in one turn of the loop leaves together."""

    __slots__ = ("_loop", "_plain", "_protocol", "_reader", "_transport", "extra")

    def __init__(self, transport: asyncio.Transport, protocol: StreamProtocol) -> None:
        self._transport = transport
        self._plain = transport if isinstance(transport, SocketTransport) else None
        self._protocol = protocol
        self._reader = protocol.reader
        self._loop = protocol.loop
        if self._plain is not None and protocol.clock is None:
            self.write = self._plain.write  # type: ignore[method-assign]  # nobody else needs to know
        self.extra: dict[str, Any] | None = None
        """What `get_extra_info` tells besides and before the transport."""

    @property
    def transport(self) -> asyncio.Transport:
        """The transport underneath."""
        return self._transport

    def write(self, data: Buffer) -> None:
        """Send `data` at the end of this turn; `drain` waits while the peer does not take it.

        Once the connection is closed, nothing happens; `drain` and reads tell.

        Raises:
            TypeError: `data` is not bytes.
            RuntimeError: after `write_eof`.
        """
        self._transport.write(data)
        if self._protocol.clock is not None:
            self._protocol.clock.answered()

    def writelines(self, data: Iterable[Buffer]) -> None:
        """Write the pieces as one."""
        self.write(b"".join(data))

    def write_eof(self) -> None:
        """Tell the peer, after what has been written, that nothing more comes; reading goes on.

        Raises:
            NotImplementedError: TLS cannot.
        """
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Tell whether the connection can be ended on this side alone; with TLS it cannot."""
        return self._transport.can_write_eof()

    def close(self) -> None:
        """Begin to close: what has been written is sent first."""
        if not self._transport.is_closing():  # asyncio's TLS transport cannot be aborted after a second close()
            self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or about to be."""
        return self._transport.is_closing()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed.

        Raises:
            OSError: it was lost, not closed.
        """
        await self._protocol.closed()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername``, ``sockname``, ``socket``, with TLS also ``ssl_object`` and others as in asyncio."""
        if self.extra is not None and name in self.extra:
            return self.extra[name]
        return self._transport.get_extra_info(name, default)

    async def drain(self) -> None:
        """Wait while more is unsent than the transport's limit.

        Raises:
            OSError: the connection is lost.
        """
        if self._plain is not None and self._plain.clear and self._reader.failed is None:
            return
        exc = self._reader.exception()
        if exc is not None:
            raise exc
        if self._transport.is_closing():
            await asyncio.sleep(0)  # so that a loop of writes sees the end of the connection
        await self._protocol.drained()

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send a part of a regular file; the kernel reads it, without TLS.

        The file's own position is neither used nor changed. Cancelled, the rest still leaves before what is written
        later, so that the peer never sees a gap.

        Args:
            file: opened for reading in binary mode.
            offset: of the first byte.
            count: bytes at most; None sends until the end.

        Returns:
            The number of bytes sent; less than `count` when the file ends sooner.

        Raises:
            ValueError: `offset` or `count` is negative.
            OSError: the file cannot be read, or the connection is lost.
            RuntimeError: after `write_eof`.
        """
        if offset < 0:
            raise ValueError(f"offset must be at least 0, not {offset}")
        if count is not None and count < 0:
            raise ValueError(f"count must be at least 0, not {count}")
        left = max(0, os.fstat(file.fileno()).st_size - offset)
        count = left if count is None else min(count, left)
        if not count:
            return 0
        if isinstance(self._transport, SocketTransport):
            done: asyncio.Future[int] = self._loop.create_future()

            def ended(sent: int, exc: OSError | None) -> None:
                if not done.done():
                    done.set_result(sent) if exc is None else done.set_exception(exc)

            self._transport.send_file(file.fileno(), offset, count, ended)
            return await done
        sent = 0
        while sent < count:
            data = await asyncio.to_thread(os.pread, file.fileno(), min(_FILE_PART, count - sent), offset + sent)
            if not data:
                break
            self.write(data)
            sent += len(data)
            await self.drain()
        return sent

    async def start_tls(
        self,
        sslcontext: SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Go on with TLS on this connection.

        Args:
            sslcontext: the context.
            server_hostname: the name that the peer's certificate must have, on the client's side.
            ssl_handshake_timeout: seconds that the handshake may take; None means 60.
            ssl_shutdown_timeout: seconds that the end of the session may take; None means 30.

        Raises:
            ConnectionAbortedError: bytes came before TLS began, which an attacker may have sent.
            OSError: the handshake failed, or the connection is lost.
            RuntimeError: the connection is closed, or has TLS already on a loop that cannot nest it.
        """
        protocol, old = self._protocol, self._transport
        await self.drain()
        if not isinstance(old, SocketTransport):
            new = await self._loop.start_tls(
                old, protocol, sslcontext, server_side=protocol.server_side, server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout, ssl_shutdown_timeout=ssl_shutdown_timeout,
            )  # fmt: skip
            assert new is not None
            protocol.connection_made(new)
            self._transport, self._plain = new, None
            return
        old.set_write_buffer_limits(0)
        await protocol.drained()
        if self._reader.has_data():
            old.abort()
            raise ConnectionAbortedError(
                "bytes came in the clear after which TLS was to begin: the connection is closed"
            )
        self._plain = None
        self.__dict__.pop("write", None)
        self._transport = await open_tls(
            self._loop, old.detach(), protocol, sslcontext, server_hostname=server_hostname,
            handshake_timeout=ssl_handshake_timeout, shutdown_timeout=ssl_shutdown_timeout,
        )  # fmt: skip

    def __del__(self, _warnings: Any = warnings) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None or transport.is_closing():
            return
        if self._loop.is_closed():
            _warnings.warn("loop is closed", ResourceWarning, stacklevel=1)
        else:
            self.close()
            _warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1)


async def open_tls(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    protocol: StreamProtocol,
    context: SSLContext,
    *,
    server_hostname: str | None = None,
    handshake_timeout: float | None = None,
    shutdown_timeout: float | None = None,
) -> asyncio.Transport:
    """Shake hands on a connected socket, and return the event loop's transport for it.

    Args:
        loop: the running loop.
        sock: connected and non-blocking; it is closed when the handshake fails.
        protocol: the connection's.
        context: the context.
        server_hostname: the name that the peer's certificate must have, on the client's side.
        handshake_timeout: seconds that the handshake may take; None means 60.
        shutdown_timeout: seconds that the end of the session may take; None means 30.

    Raises:
        OSError: the handshake failed.
    """
    handshake: Coroutine[Any, Any, tuple[asyncio.Transport, StreamProtocol]]
    if protocol.server_side:
        handshake = loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=context,
            ssl_handshake_timeout=handshake_timeout,
            ssl_shutdown_timeout=shutdown_timeout,
        )
    else:
        handshake = loop.create_connection(
            lambda: protocol,
            sock=sock,
            ssl=context,
            server_hostname=server_hostname or "",
            ssl_handshake_timeout=handshake_timeout,
            ssl_shutdown_timeout=shutdown_timeout,
        )
    try:
        transport, _ = await handshake
    except BaseException as exc:
        loop.call_soon(sock.close)  # after the loop's transport, if there is one
        if not protocol.lost:
            protocol.connection_lost(exc if isinstance(exc, Exception) else None)
        raise
    return transport
