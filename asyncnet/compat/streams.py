"""The reader of asyncio on any socket and `asyncnet.compat.traps`, and `open_streams`, which gives it a writer.

They call the socket first and trap only when it would block. A blocking socket never would, so on threads and
greenlets a handler runs from its first line to its last without a trap, and the same code serves both kinds of
engines.

Two rules keep the price down. A read after a short one traps at once: what had arrived is read, and a ``recv`` that
can only fail costs a third of a small request. And nothing is copied on its way out unless the socket takes only a
part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from selectors import EVENT_READ
from typing import Any, Final, Self

from asyncnet.compat.tasks import OPEN, bounded, check_cancelled
from asyncnet.compat.traps import YIELD, Trap, trap
from asyncnet.compat.writing import CHUNK, TURNS, SocketLike, Writer

__all__ = ["LIMIT", "Reader", "open_streams"]

LIMIT: Final = 65536
"""Bytes that a line may have, unless the reader is told otherwise; as in asyncio."""


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
            await writer.flush()
        if self._eof:
            return b""
        if self._exhausted:
            self._turns = 0
            await trap(self._readable)
        else:
            self._turns += 1
            if self._turns > TURNS:
                self._turns = 0
                await trap(YIELD)
        while True:
            try:
                data = bounded(self._sock, self._recv, size) if OPEN and self._blocking else self._recv(size)
                break
            except BlockingIOError:
                self._turns = 0
                await trap(self._readable)
            except OSError as exc:
                if writer.is_anothers(exc):
                    continue
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
