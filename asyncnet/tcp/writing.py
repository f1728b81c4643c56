"""The writing half of a stream, and TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import warnings
from collections.abc import Coroutine, Iterable
from io import UnsupportedOperation
from ssl import SSLContext
from typing import IO, Any, Final

from asyncnet.arguments import check_count, check_hostname, check_seconds
from asyncnet.tcp.sendqueue import Buffer
from asyncnet.tcp.streams import StreamProtocol
from asyncnet.tcp.transport import SocketTransport

__all__ = ["StreamWriter", "open_tls"]

_FILE_PART: Final = 1 << 18


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
        if self._plain is None and not self._protocol.takes_more():
            return
        self._transport.write(data)
        if self._protocol.clock is not None:
            self._protocol.clock.answered()

    def writelines(self, data: Iterable[Buffer]) -> None:
        """Write the pieces as one.

        Raises:
            TypeError: `data` is no list of bytes.
            RuntimeError: after `write_eof`.
        """
        try:
            joined = b"".join(data)
        except TypeError as exc:
            raise TypeError(f"data must be a list of bytes: {exc}") from exc
        self.write(joined)

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
        later, so that the peer never sees a gap; with TLS, it stops where it is.

        Args:
            file: opened for reading in binary mode.
            offset: of the first byte.
            count: bytes at most; None sends until the end.

        Returns:
            The number of bytes sent; less than `count` when the file ends sooner.

        Raises:
            TypeError: `file` has no descriptor, or another argument is no integer.
            ValueError: `file` is no regular file, or `offset` or `count` is negative.
            OSError: the file cannot be read, or the connection is lost.
            RuntimeError: after `write_eof`.
        """
        check_count("offset", offset, lowest=0)
        check_count("count", count, lowest=0, or_none=True)
        left = max(0, _size_of(file) - offset)
        count = left if count is None else min(count, left)
        if not count:
            return 0
        if isinstance(self._transport, SocketTransport):
            done: asyncio.Future[int] = self._loop.create_future()

            def ended(sent: int, exc: OSError | None) -> None:
                if not done.done():
                    done.set_result(sent) if exc is None else done.set_exception(exc)

            self._transport.send_file(file.fileno(), offset, count, ended)
            clock = self._protocol.clock
            if clock is None:
                return await done
            clock.answered()
            try:
                return await done
            finally:
                clock.answered()  # what has come meanwhile is the next message, and the handler reads it only now
        sent = 0
        while sent < count:
            data = await asyncio.to_thread(os.pread, file.fileno(), min(_FILE_PART, count - sent), offset + sent)
            if not data:
                break
            if self._transport.is_closing():
                raise self._reader.exception() or ConnectionResetError("the connection is closed")
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
            TypeError, ValueError: an argument is of a wrong type, or out of range.
            ConnectionAbortedError: bytes came before TLS began, which an attacker may have sent.
            OSError: the handshake failed, or the connection is lost.
            RuntimeError: the connection is closed, or has TLS already on a loop that cannot nest it.
        """
        if not isinstance(sslcontext, SSLContext):
            raise TypeError(f"sslcontext must be an ssl.SSLContext, not {sslcontext!r}")
        check_hostname("server_hostname", server_hostname)
        check_seconds("ssl_handshake_timeout", ssl_handshake_timeout)
        check_seconds("ssl_shutdown_timeout", ssl_shutdown_timeout)
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


def _size_of(file: IO[bytes]) -> int:
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, UnsupportedOperation):
        raise TypeError(f"file must be one of the file system, not {file!r}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"file must be a regular file, not {file!r}")
    return status.st_size


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
