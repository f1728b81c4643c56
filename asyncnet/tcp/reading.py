"""The reading half of a stream."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Protocol, SupportsIndex

from asyncnet.wakeup import Wakeup

__all__ = ["LIMIT", "LineTooLong", "StreamReader", "Waits"]

LIMIT: Final = 65536
"""Bytes of the longest line, and half of what a reader holds, unless it is told otherwise; as in asyncio."""

_IN_USE: Final = "the reader is in use: another task waits for its data already"
_EMPTY: Final = bytearray()  # of all readers that hold at most one chunk; it is replaced, not changed

Buffer = bytes | bytearray | memoryview


class LineTooLong(ValueError):
    """What `StreamReader.readline` raises, as asyncio's raises ValueError: a server blames the peer for it."""


class _Readable(Protocol):
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Waits(Protocol):
    """Is told what a reader waits for."""

    def received(self) -> None: ...
    def wait_begins(self) -> None: ...
    def wait_ends(self) -> None: ...


class StreamReader(asyncio.StreamReader):
    """`asyncio.StreamReader`, whose waiting task is resumed by the callback that brings the data.

    What arrives while nothing else is there stays the object that it came as, and a `read` that may have it all gets
    it without a copy. A read may be cancelled at any time: what has arrived is still there for the next one.

    Args:
        limit: bytes of the longest line; reading pauses when twice as much is there.
        loop: by default the running one.

    Attributes:
        overran: a line, or what else ends with a separator, was longer than the limit.
    """

    __slots__ = (
        "_buffer",
        "_chunk",
        "_eof",
        "_high",
        "_interruption",
        "_limit",
        "_loop",
        "_paused",
        "_plain",
        "_transport",
        "_waits",
        "failed",
        "overran",
        "wakeup",
    )

    def __init__(self, limit: int = LIMIT, loop: asyncio.AbstractEventLoop | None = None) -> None:
        if type(limit) is not int:
            limit = _whole("limit", limit)
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._high = 2 * limit
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._chunk = b""  # what is there is either in this
        self._buffer = _EMPTY  # or in this
        self._eof = False
        self.overran = False
        self.failed: Exception | None = None
        self._interruption: Exception | None = None
        self._transport: _Readable | None = None
        self._paused = False
        self.wakeup = Wakeup(self._loop)
        self._waits: Waits | None = None
        self._plain = True  # not at its end, failed, watched or paused

    def __repr__(self) -> str:
        state = f"{self._size()} bytes" + (" eof" if self._eof else "") + (" waiting" if self.wakeup.waiting else "")
        failed = "" if self.failed is None else f" exception={self.failed!r}"
        return f"<StreamReader {state}{failed}>"

    # What the protocol calls.

    def set_transport(self, transport: Any) -> None:
        """Take the transport that reading pauses and resumes."""
        self._transport = transport

    def watch_with(self, waits: Waits) -> None:
        """Tell somebody when a read begins to wait and when it has ended."""
        self._waits = waits
        self._plain = False

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Add what has arrived, and resume the task that waits for it."""
        if not data:
            return
        if self._chunk or self._buffer:
            self._gather()
            self._buffer.extend(data)
        else:
            self._chunk = bytes(data)
        self.wakeup.wake()
        self._pause_above_limit()

    def receive(self, data: bytes) -> None:
        """Do the same in a callback of the event loop, where no task runs."""
        if not self._chunk and not self._buffer:
            self._chunk = data
        else:
            self._gather()
            self._buffer += data
        if self._waits is not None:
            self._waits.received()
        wakeup = self.wakeup
        if wakeup.callback is not None:
            if wakeup.steps is None:
                wakeup.wake_from_callback()
            else:
                wakeup.steps.run()
        if self._chunk or self._buffer:
            self._pause_above_limit()

    def _pause_above_limit(self) -> None:
        """Read no more for now, unless a task waits: it wants more than the limit."""
        if not self._paused and self._size() > self._high and self.wakeup.callback is None and self._transport:
            self._paused = True
            self._plain = False
            self._transport.pause_reading()

    def feed_eof(self) -> None:
        """Nothing more comes."""
        self._eof = True
        self._plain = False
        self.wakeup.wake()

    def exception(self) -> Exception | None:
        """Return what the connection was lost by."""
        return self.failed

    def set_exception(self, exc: Exception) -> None:
        """Let the read that waits, and all that follow, raise `exc`."""
        self.failed = exc
        self._plain = False
        self.wakeup.wake()

    def interrupt(self, exc: Exception) -> None:
        """Let the read that waits raise `exc`; the next one goes on. Without one, nothing happens."""
        if self.wakeup.waiting:
            self._interruption = exc
            self.wakeup.wake()

    def has_data(self) -> bool:
        """Tell whether bytes are there that nobody has read."""
        return bool(self._chunk or self._buffer)

    # What handlers call.

    def at_eof(self) -> bool:
        """Tell whether the peer has ended its side and everything is read."""
        return self._eof and not self._chunk and not self._buffer

    async def read(self, n: int = -1) -> bytes:
        """Return what is there, `n` bytes at most, or wait until something is; empty at the end.

        Args:
            n: bytes at most; negative means everything until the peer ends its side.

        Raises:
            TypeError: `n` is no integer.
            OSError: the connection is lost.
            RuntimeError: another task reads.
        """
        if type(n) is not int:
            n = _whole("n", n)
        if n > 0 and self._plain and not self._chunk and not self._buffer:
            if self.wakeup.callback is not None:
                raise RuntimeError(_IN_USE)
            await self.wakeup
            chunk = self._chunk
            if chunk and self._plain and len(chunk) <= n:
                self._chunk = b""
                return chunk
        if self.failed is not None:
            raise self.failed
        if not n:
            return b""
        if n < 0:  # nothing is taken before the end: whoever is cancelled loses nothing
            while not self._eof:
                await self._wait()
            return self._take(self._size())
        while not self._chunk and not self._buffer and not self._eof:
            await self._wait()
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        """Return exactly `n` bytes.

        Raises:
            TypeError: `n` is no integer.
            ValueError: `n` is negative.
            asyncio.IncompleteReadError: the peer ended its side before; `partial` has what came.
            OSError: the connection is lost.
            RuntimeError: another task reads.
        """
        if type(n) is not int:
            n = _whole("n", n)
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if self.failed is not None:
            raise self.failed
        while self._size() < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(n), n)
            await self._wait()
        return self._take(n)

    async def readline(self) -> bytes:
        r"""Return bytes up to and with ``\n``; what is left when the peer ends its side before; empty at the end.

        Raises:
            ValueError: the line is longer than the limit; it is dropped, or what has come of it.
            OSError: the connection is lost.
            RuntimeError: another task reads.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            return exc.partial
        except asyncio.LimitOverrunError as exc:
            self._gather()
            if self._buffer.startswith(b"\n", exc.consumed):
                del self._buffer[: exc.consumed + 1]
            else:
                self._buffer.clear()
            self._resume()
            raise LineTooLong(exc.args[0]) from None

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Return bytes up to and with the separator.

        Args:
            separator: at least one byte; of a tuple of them, the one that ends first counts.

        Raises:
            TypeError: the separator, or one of them, is not bytes.
            ValueError: it is empty.
            asyncio.IncompleteReadError: the peer ended its side before; `partial` has what came.
            asyncio.LimitOverrunError: more bytes than the limit came before it; they can still be read.
            OSError: the connection is lost.
            RuntimeError: another task reads.
        """
        separators: tuple[Buffer, ...] = (separator,) if type(separator) is bytes else _separators(separator)
        shortest = min(map(len, separators), default=0)
        if not shortest:
            raise ValueError("Separator should be at least one-byte string")
        if self.failed is not None:
            raise self.failed
        longest = max(map(len, separators))
        searched = 0
        while True:
            found = self._find(separators, searched) if self._size() - searched >= shortest else None
            if found is not None:
                break
            searched = max(0, self._size() + 1 - longest)
            if searched > self._limit:
                raise self._overrun("Separator is not found, and chunk exceed the limit", searched)
            if self._eof:
                raise asyncio.IncompleteReadError(self._take(self._size()), None)
            await self._wait()
        begin, end = found
        if begin > self._limit:
            raise self._overrun("Separator is found, but chunk is longer than limit", begin)
        return self._take(end)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what arrives, as it arrives, until the peer ends its side: ``async for chunk in reader.chunks()``.

        ``async for line in reader`` yields lines, as with asyncio.

        Raises:
            OSError: the connection is lost.
            RuntimeError: another task reads.
        """
        while chunk := await self.read(self._limit):
            yield chunk

    # How it is done.

    def _size(self) -> int:
        return len(self._chunk) or len(self._buffer)

    def _find(self, separators: tuple[Buffer, ...], start: int) -> tuple[int, int] | None:
        """Return where the separator begins and ends that ends first."""
        data = self._chunk or self._buffer
        found: tuple[int, int] | None = None
        for separator in separators:
            begin = data.find(separator, start)
            if begin >= 0 and (found is None or begin + len(separator) < found[1]):
                found = begin, begin + len(separator)
        return found

    def _overrun(self, message: str, consumed: int) -> asyncio.LimitOverrunError:
        self.overran = True
        return asyncio.LimitOverrunError(message, consumed)

    def _gather(self) -> None:
        if self._chunk:
            self._buffer, self._chunk = bytearray(self._chunk), b""

    def _take(self, n: int) -> bytes:
        chunk = self._chunk
        if chunk and len(chunk) <= n:
            self._chunk = b""
            data = chunk
        else:
            self._gather()
            data = bytes(memoryview(self._buffer)[:n])
            del self._buffer[:n]
        if self._paused:
            self._resume()
        return data

    def _resume(self) -> None:
        if self._paused and self._size() <= self._limit:
            self._go_on()

    def _go_on(self) -> None:
        self._paused = False
        self._plain = self._waits is None and self.failed is None and not self._eof
        if self._transport is not None:
            self._transport.resume_reading()

    async def _wait(self) -> None:
        """Wait until something happens."""
        if self.wakeup.waiting:
            raise RuntimeError(_IN_USE)
        if self._paused:  # more is asked for than the limit
            self._go_on()
        if self._waits is None:
            await self.wakeup
        else:
            self._waits.wait_begins()
            try:
                await self.wakeup
            finally:
                self._waits.wait_ends()
        if self.failed is not None:
            raise self.failed
        if self._interruption is not None:
            exc, self._interruption = self._interruption, None
            raise exc


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def _separators(separator: Any) -> tuple[Buffer, ...]:
    separators: tuple[Any, ...] = separator if isinstance(separator, tuple) else (separator,)
    for each in separators:
        if not isinstance(each, Buffer):
            raise TypeError(f"separator must be bytes, or a tuple of them, not {each!r}")
    return separators
