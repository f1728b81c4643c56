"""The writer of asyncio, on any socket and `asyncnet.compat.traps`.

It calls the socket first, and traps only when it would block. What the socket does not take waits in pieces. Whoever
drains sends them, and so does a read, but only one task at a time: where handlers are threads, another may be adding to
their end meanwhile.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from selectors import EVENT_WRITE
from threading import Lock
from time import monotonic
from typing import Any, Final, Protocol

from asyncnet.compat.tasks import OPEN, bounded, open_scopes
from asyncnet.compat.traps import YIELD, Trap, sleep, trap

__all__ = ["CHUNK", "FLUSH_STALL", "TURNS", "SocketLike", "Writer"]

CHUNK: Final = 65536
"""Bytes asked of the system at once; glibc maps and unmaps larger blocks each time."""
TURNS: Final = 64
"""Operations in a row that did not have to wait, after which the others get a turn."""
_PIECES: Final = 256
"""Pieces that are sent as one at most."""
_FLUSH_LOOK: Final = 0.001
"""Seconds after which a task looks whether another one that sends is done."""
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
        self.pending: deque[Buffer] = deque()
        self._flushing = Lock()  # of who sends what is pending; the others leave it to him
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
        if not self.pending and not (OPEN and self._blocking and open_scopes()):
            try:
                sent = self._send(data)
            except BlockingIOError:
                pass
            except TimeoutError as exc:
                if not self.is_anothers(exc):
                    self.fail(exc)
                    return
            except OSError as exc:
                self.fail(exc)
                return
        if sent < len(data):
            self.pending.append(bytes(memoryview(data)[sent:]))

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

    async def flush(self) -> None:
        """Send what is pending, unless another task is doing that."""
        if not self._flushing.locked():
            await self._drain()

    async def _flush(self, stall: float | None = None) -> None:
        """Send what is pending; `TimeoutError` when the peer takes nothing for `stall` seconds."""
        while not self._flushing.acquire(blocking=False):
            await sleep(_FLUSH_LOOK)
        try:
            await self._send_pending(stall)
        finally:
            self._flushing.release()
        if self._closing:
            self._close()
        elif self._eof:
            self._shutdown()

    async def _send_pending(self, stall: float | None) -> None:
        given_up = None if stall is None else monotonic() + stall
        while self.pending:
            data = self._first()
            try:
                sent = bounded(self._sock, self._send, data) if self._blocking else self._send(data)
            except BlockingIOError:
                self._turns = 0
                if given_up is None:
                    await trap(self._writable)
                else:
                    await trap(Trap(EVENT_WRITE, self._sock, max(0.0, given_up - monotonic()), drained=True))
                continue
            except OSError as exc:
                if stall is None and self.is_anothers(exc):
                    continue
                raise self.fail(exc) from None
            if not self.pending:  # aborted meanwhile
                break
            if sent == len(data):
                self.pending.popleft()
            else:
                self.pending[0] = memoryview(data)[sent:]
            if stall is not None:
                given_up = monotonic() + stall

    def _first(self) -> Buffer:
        """Return what is to be sent first, small pieces as one; other threads may be adding to the end."""
        pending = self.pending
        if len(pending) > 1 and len(pending[0]) < CHUNK:
            pieces = list(pending)[:_PIECES]
            pending[0] = b"".join(pieces)
            for _ in range(len(pieces) - 1):
                del pending[1]
        return pending[0]

    def is_anothers(self, exc: OSError) -> bool:
        """Tell whether `exc` is the timeout of another task that uses this socket, which blocks, at the same time."""
        return self._blocking and isinstance(exc, TimeoutError) and exc.errno is None

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
