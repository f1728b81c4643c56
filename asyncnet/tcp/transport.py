"""A transport for connected stream sockets, alike on every event loop.

Three things make it cheaper than those of the loops. A read asks for 64 KiB, which glibc takes from its heap, where
asyncio asks for 256 KiB, which it maps and unmaps every time. What the protocol writes while it is told of data leaves
in one call right after that, and what others write in one turn of the loop leaves at its end, so that small writes
travel together. And nothing is asked of the system that nobody asked for: not the addresses, not the options that a
listener hands down.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from asyncnet.addresses import Address
from asyncnet.tcp.sending import HARD_LIMIT, SendingTransport

__all__ = ["HARD_LIMIT", "READ_SIZE", "SocketTransport"]

READ_SIZE: Final = 65536
"""Bytes that are read at once."""
_RESET: Final = struct.pack("ii", 1, 0)


def _fill(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Hand data to a protocol that lends a buffer for them."""
    while data:
        buffer = memoryview(protocol.get_buffer(len(data))).cast("B")
        count = min(len(buffer), len(data))
        if not count:
            raise RuntimeError("get_buffer() returned an empty buffer")
        buffer[:count] = data[:count]
        protocol.buffer_updated(count)
        data = data[count:]


class SocketTransport(SendingTransport):
    """A connected socket under a protocol; it reads from the start.

    Args:
        loop: an event loop with `add_reader`.
        sock: connected and non-blocking; the transport owns it.
        protocol: gets ``connection_made`` at once; a method ``data_received`` is preferred to ``buffer_updated``.
        peer: the other end, as accept() tells it.
        hard_limit: unsent bytes at which the next write ends the connection.

    Attributes:
        peer: the other end.
        closing: the connection is closed or about to be.
        clear: it is not, `write_eof` was not called, and the protocol was not asked to pause writing.
        overflowed: the connection was ended because the peer left `hard_limit` bytes unread.
        on_wait: called when something, a file as well, begins to wait for the peer; `pause_writing` tells only of much.
    """

    __slots__ = ("_reading", "_receive", "peer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        peer: Address | str,
        *,
        hard_limit: int = HARD_LIMIT,
    ) -> None:
        super().__init__(loop, sock, hard_limit)
        self.peer = peer
        self._reading = False
        self.set_protocol(protocol)
        self._protocol.connection_made(self)
        self.resume_reading()

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self.closing else "open"
        return f"<SocketTransport {state} peer={self.peer!r} unsent={self.get_write_buffer_size()}>"

    # Reading.

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._lose(exc)
            return
        if not data:
            self._read_eof()
        elif self._held:
            self._receive(data)
        else:
            self._held = True
            try:
                self._receive(data)
            finally:
                self._held = self._waiting
                if self._first or self._queue is not None:
                    self.flush()

    def _read_eof(self) -> None:
        self.pause_reading()
        if not self._protocol.eof_received():
            self.close()

    def is_reading(self) -> bool:
        """Tell whether data is read as it comes."""
        return self._reading

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`; a second call does nothing."""
        if self._reading:
            self._reading = False
            self._poller.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again; a second call does nothing."""
        if not self._reading and not self.closing:
            self._reading = True
            self._poller.add_reader(self._fd, self._read)

    # The end.

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or about to be."""
        return self.closing

    def close(self) -> None:
        """Read no more, send what has been written, and close then."""
        if self.closing:
            return
        self.flush()
        if self.closing:  # the flush has met a lost connection
            return
        self.closing = True
        self.clear = False
        self.pause_reading()
        if self._queue is None:
            self._lose(None)

    def abort(self, exc: Exception | None = None) -> None:
        """Close at once with a reset; what has not been sent is lost.

        Args:
            exc: what the protocol is told.
        """
        if not self._lost:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass  # the peer was faster
            self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        """Let go of the loop now, and of the socket in its next turn."""
        if not self._lost:
            self._lost = True
            self._release(exc)
            self._loop.call_soon(self._connection_lost, exc)

    def _release(self, exc: Exception | None) -> None:
        self.closing = self._held = True
        self.clear = False
        self.pause_reading()
        if self._waiting:
            self._waiting = False
            self._poller.remove_writer(self._fd)
        self._first = b""
        if self._queue is not None:
            self._queue.clear(exc if isinstance(exc, OSError) else None)
            self._queue = None

    def _connection_lost(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._sock.close()

    def detach(self) -> socket.socket:
        """Give the socket away: the transport is closed, the connection is not, and the protocol is told nothing.

        Raises:
            RuntimeError: there are unsent bytes, or the connection is closed.
        """
        if self.closing or self._first or self._queue is not None:
            raise RuntimeError("the connection is closed, or has unsent bytes")
        self._lost = True
        self._release(None)
        return self._sock

    # What asyncio asks for besides.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername``, ``sockname`` or ``socket``; `default` for anything else."""
        if name == "peername":
            return self.peer
        if name == "socket":
            return TransportSocket(self._sock)
        if name == "sockname":
            try:
                return self._sock.getsockname()
            except OSError:
                pass
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes from now on to this protocol.

        Raises:
            TypeError: it is neither an `asyncio.Protocol` nor an `asyncio.BufferedProtocol`.
        """
        direct: Callable[[bytes], object] | None = getattr(protocol, "data_received", None)
        if direct is not None:
            self._receive = direct
        elif isinstance(protocol, asyncio.BufferedProtocol):
            self._receive = partial(_fill, protocol)
        else:
            raise TypeError(f"protocol must be an asyncio.Protocol or BufferedProtocol, not {protocol!r}")
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol
