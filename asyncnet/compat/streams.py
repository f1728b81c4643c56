"""The reader and the writer of asyncio, on any socket and `asyncnet.compat.traps`.

They call the socket first and trap only when it would block. A blocking socket never would, so on threads and
greenlets a handler runs from its first line to its last without a trap, and the same code serves both kinds of
engines.

Two rules keep the price down. A read after a short one traps at once: what had arrived is read, and a ``recv`` that
can only fail costs a third of a small request. And nothing is copied on its way out unless the socket takes only a
part.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic
from typing import Any, Final, Protocol, Self

from asyncnet.compat.tasks import bounded, check_cancelled, open_scopes
from asyncnet.compat.traps import YIELD, Trap, trap

__all__ = ["FLUSH_STALL", "LIMIT", "Reader", "SocketLike", "Writer", "open_streams"]

LIMIT: Final = 65536
"""Bytes that a line may have, unless the reader is told otherwise; as in asyncio."""
CHUNK: Final = 65536
"""Bytes asked of the system at once; glibc maps and unmaps larger blocks each time."""
TURNS: Final = 64
"""Operations in a row that did not have to wait, after which the others get a turn."""
FLUSH_STALL: Final = 10.0
"""Seconds in which a closing connection must get rid of some of its bytes, or they are given up."""

Buffer = bytes | bytearray | memoryview


class _Nothing:
    """What is awaited when there is nothing to wait for."""

    def __await__(self) -> Generator[Any, Any, None]:
        return _NO_STEPS  # type: ignore[return-value]  # no more than an iterator is needed


_NO_STEPS: Final = iter(())
_NOTHING: Final = _Nothing()


class SocketLike(Protocol):
    """What is asked of a socket; `socket.socket` and gevent's have it."""

    def fileno(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: Buffer, /) -> int: ...
    def close(self) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def gettimeout(self) -> float | None: ...
    def settimeout(self, value: float | None, /) -> None: ...
    def getsockname(self) -> Any: ...


def open_streams(
    sock: SocketLike,
    peer: Any = None,
    *,
    limit: int = LIMIT,
    closing: Callable[[Any], object] | None = None,
    drains: bool = False,
) -> tuple[Reader, Writer]:
    """Return the reader and the writer of a connected socket, which they own from now on.

    Args:
        sock: blocking or not.
        peer: its other end, as accept() tells it.
        limit: the longest line in bytes, without its end.
        closing: called with the socket right before it is closed.
        drains: read until the socket has nothing left, before waiting for more. Otherwise a read after a short one
            waits at once, which saves a call.
    """
    writer = Writer(sock, peer, closing)
    return Reader(sock, writer, limit, drains=drains), writer


class Writer:
    """Bytes to the peer; made by `open_streams`. It does what `asyncio.StreamWriter` does.

    As there, `write` raises nothing when the connection is lost; `drain` does, and so does the next read.

    Attributes:
        pending: what the socket has not taken yet.
        error: what the connection was lost by.
    """

    def __init__(self, sock: SocketLike, peer: Any, closing: Callable[[Any], object] | None) -> None:
        self._sock = sock
        self._send = sock.send
        self._blocking = sock.gettimeout() != 0
        self._peer = peer
        self._before_close = closing
        self.pending = bytearray()
        self.error: OSError | None = None
        self._eof = False
        self._closing = False
        self._closed = False
        self._turns = 0
        self._writable = Trap(EVENT_WRITE, sock, drained=True)

    def write(self, data: Buffer) -> None:
        """Send `data`, or as much of it as the socket takes now; the rest is kept until `drain` or a read.

        Raises:
            RuntimeError: after `write_eof`.
            TypeError: `data` is not bytes.
        """
        if type(data) is not bytes:
            data = memoryview(data).cast("B")  # what is counted below must be bytes
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing:
            return
        sent = 0
        # Within a timeout, a socket that blocks is left to what is awaited.
        if not self.pending and not (self._blocking and open_scopes()):
            try:
                sent = self._send(data)
            except BlockingIOError:
                pass
            except OSError as exc:
                self.fail(exc)
                return
        if sent < len(data):
            self.pending += memoryview(data)[sent:]

    def writelines(self, data: Iterable[Buffer]) -> None:
        """Write the pieces as one."""
        self.write(b"".join(data))

    def drain(self) -> Awaitable[None]:
        """Wait until everything is sent.

        Raises:
            OSError: the connection is lost; `ConnectionResetError` when it is closed on this side.
        """
        if self.pending or self._closed or self._turns >= TURNS:
            return self._drain()
        self._turns += 1
        return _NOTHING  # a coroutine costs, and this is the usual case

    async def _drain(self) -> None:
        if self.error is not None:
            raise self.error
        if self._closed:
            raise ConnectionResetError("Connection lost")
        if self.pending:
            await self._flush()
        if self._turns >= TURNS:
            self._turns = 0
            await trap(YIELD)

    async def _flush(self, stall: float | None = None) -> None:
        """Send what is pending; `TimeoutError` when the peer takes nothing for `stall` seconds."""
        given_up = None if stall is None else monotonic() + stall
        while self.pending:
            try:
                sent = bounded(self._sock, self._send, self.pending) if self._blocking else self._send(self.pending)
            except BlockingIOError:
                self._turns = 0
                if given_up is None:
                    await trap(self._writable)
                else:
                    await trap(Trap(EVENT_WRITE, self._sock, max(0.0, given_up - monotonic()), drained=True))
                continue
            except OSError as exc:
                raise self.fail(exc) from None
            del self.pending[:sent]
            if stall is not None:
                given_up = monotonic() + stall
        if self._closing:
            self._close()
        elif self._eof:
            self._shutdown()

    def can_write_eof(self) -> bool:
        """Return True: TCP can close one direction."""
        return True

    def write_eof(self) -> None:
        """Tell the peer that nothing follows, once everything is sent. Reading goes on."""
        if self._eof or self._closing:
            return
        self._eof = True
        if not self.pending:
            self._shutdown()

    def _shutdown(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.fail(exc)

    def close(self) -> None:
        """Close the connection, once everything is sent; `wait_closed` waits for that."""
        self._closing = True
        if not self.pending:
            self._close()

    async def wait_closed(self) -> None:
        """Wait until `close` has done its work.

        Raises:
            OSError: the connection was lost, or the peer took nothing for 10 seconds (`TimeoutError`).
        """
        if self._closing and self.pending:
            if self._blocking:
                self._sock.settimeout(FLUSH_STALL)
            try:
                await self._flush(FLUSH_STALL)
            except TimeoutError as exc:
                raise self.fail(exc) from None
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        """Close at once; what is not sent is lost."""
        self._closing = True
        self.pending.clear()
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._before_close is not None:
            self._before_close(self._sock)
        self._sock.close()

    def fail(self, exc: OSError) -> OSError:
        """Remember that the connection is lost, close it, and return `exc`; called by the reader too."""
        if self.error is None and not self._closed:
            self.error = exc
        self.abort()
        return exc

    def is_closing(self) -> bool:
        """Tell whether the connection is closed, lost, or about to be closed."""
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername``, ``sockname`` or ``socket``, and `default` for anything else."""
        if name == "peername":
            return default if self._peer is None else self._peer
        if name == "socket":
            return self._sock
        if name == "sockname":
            try:
                return self._sock.getsockname()
            except OSError:
                return default
        return default


class Reader:
    """Bytes from the peer; made by `open_streams`. It does what `asyncio.StreamReader` does.

    A read sends first what the writer still holds, so that two sides that wait for each other's bytes get on.
    """

    def __init__(self, sock: SocketLike, writer: Writer, limit: int = LIMIT, *, drains: bool = False) -> None:
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._sock = sock
        self._recv = sock.recv
        self._writer = writer
        self._limit = limit
        self._buffer = bytearray()
        self._eof = False
        self._blocking = sock.gettimeout() != 0
        self._trusts_short_reads = not self._blocking and not drains
        self._exhausted = False  # the last recv took all that had arrived
        self._turns = 0
        self._readable = Trap(EVENT_READ, sock, drained=True)

    async def _receive(self, size: int) -> bytes:
        """Return what has arrived, waiting for the first byte; nothing at the end of the stream."""
        writer = self._writer
        if writer.error is not None:
            raise writer.error
        if writer.pending:
            await writer.drain()
        if self._eof:
            return b""
        if self._exhausted:
            self._turns = 0
            await trap(self._readable)
        else:
            await self._take_turns()
        while True:
            try:
                data = bounded(self._sock, self._recv, size) if self._blocking else self._recv(size)
                break
            except BlockingIOError:
                self._turns = 0
                await trap(self._readable)
            except OSError as exc:
                if self._blocking and isinstance(exc, TimeoutError) and exc.errno is None:
                    continue  # the timeout of another task that uses this socket
                if not writer.is_closing():
                    raise writer.fail(exc) from None
                data = b""  # closed on this side
                break
        if not data:
            self._eof = True
            if self._blocking:
                check_cancelled()  # perhaps it was the server that ended the connection
        self._exhausted = self._trusts_short_reads and len(data) < size
        return data

    async def _take_turns(self) -> None:
        """Let others run after many operations that did not have to wait."""
        self._turns += 1
        if self._turns > TURNS:
            self._turns = 0
            await trap(YIELD)

    async def _fill(self) -> None:
        self._buffer.extend(await self._receive(CHUNK))

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def read(self, n: int = -1) -> Coroutine[Any, Any, bytes]:
        """Return up to `n` bytes, as soon as there is one; ``b""`` at the end; everything when `n` is negative.

        Raises:
            OSError: the connection is lost.
        """
        # A coroutine around a coroutine costs: the usual case has one only.
        if n > 0 and not self._buffer:
            return self._receive(n if n < CHUNK else CHUNK)
        return self._read(n)

    async def _read(self, n: int) -> bytes:
        if self._writer.error is not None:
            raise self._writer.error
        if n < 0:
            blocks = []
            while block := await self.read(self._limit):
                blocks.append(block)
            return b"".join(blocks)
        await self._take_turns()
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        """Return exactly `n` bytes.

        Raises:
            ValueError: `n` is negative.
            asyncio.IncompleteReadError: the stream ended first; ``partial`` has what there was.
            OSError: the connection is lost.
        """
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if self._writer.error is not None:
            raise self._writer.error
        await self._take_turns()
        while len(self._buffer) < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(n), n)
            await self._fill()
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the bytes up to `separator` and with it.

        Raises:
            ValueError: `separator` is empty.
            asyncio.LimitOverrunError: more than the limit came without it; the bytes stay in the reader.
            asyncio.IncompleteReadError: the stream ended first; ``partial`` has what there was.
            OSError: the connection is lost.
        """
        if not separator:
            raise ValueError("Separator should be at least one-byte string")
        if self._writer.error is not None:
            raise self._writer.error
        await self._take_turns()
        buffer, searched = self._buffer, 0
        while (found := buffer.find(separator, searched)) < 0:
            searched = max(0, len(buffer) + 1 - len(separator))
            if searched > self._limit:
                raise asyncio.LimitOverrunError("Separator is not found, and chunk exceed the limit", searched)
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(len(buffer)), None)
            await self._fill()
        if found > self._limit:
            raise asyncio.LimitOverrunError("Separator is found, but chunk is longer than limit", found)
        return self._take(found + len(separator))

    async def readline(self) -> bytes:
        """Return a line with its end; what is left at the end of the stream, and then ``b""``.

        Raises:
            ValueError: the line is longer than the limit; it is dropped.
            OSError: the connection is lost.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            return exc.partial
        except asyncio.LimitOverrunError as exc:
            if self._buffer.startswith(b"\n", exc.consumed):
                self._take(exc.consumed + 1)
            else:
                self._buffer.clear()
            raise ValueError(exc.args[0]) from None

    def at_eof(self) -> bool:
        """Tell whether the stream has ended and every byte was read."""
        return self._eof and not self._buffer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration
