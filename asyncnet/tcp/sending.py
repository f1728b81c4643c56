"""The sending half of the stream transport: what is written in one callback or turn leaves in one call.

What does not leave waits in a `SendQueue` until the socket is writable.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import ref

from asyncnet.perloop import PerLoop
from asyncnet.poller import Poller, poller_of
from asyncnet.tcp.sendqueue import Buffer, FileEnded, FilePart, SendQueue

__all__ = ["HARD_LIMIT", "SendingTransport"]

FLUSH_AT: Final = 65536
"""Bytes written in one turn of the loop that do not wait for its end."""
HIGH_WATER: Final = 65536
"""Unsent bytes above which the protocol is asked to pause."""
HARD_LIMIT: Final = 64 << 20
"""Unsent bytes at which the next write ends the connection."""


class _Turn:
    """What the connections of one loop share: its poller, and the list of those that wrote in this turn."""

    __slots__ = ("__weakref__", "_loop", "poller", "unflushed")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self.poller: Poller = poller_of(loop)
        self.unflushed: list[SendingTransport] = []

    def flush(self) -> None:
        unflushed, self.unflushed = self.unflushed, []
        for transport in unflushed:
            try:
                transport.flush()
            except Exception as exc:  # of a protocol that is told to pause: the others must not wait for ever
                if (loop := self._loop()) is not None:
                    loop.call_exception_handler({"message": f"flushing {transport!r} failed", "exception": exc})


_turn_of: Final = PerLoop(_Turn)


class SendingTransport(asyncio.Transport):
    """Everything of the transport that sends.

    Args:
        loop: an event loop with `add_reader`.
        sock: connected and non-blocking.
        hard_limit: unsent bytes at which the next write ends the connection.
    """

    __slots__ = (
        "__weakref__",
        "_eof",
        "_fd",
        "_first",
        "_hard_limit",
        "_held",
        "_high",
        "_loop",
        "_lost",
        "_low",
        "_paused",
        "_poller",
        "_progressed",
        "_protocol",
        "_queue",
        "_sock",
        "_turn",
        "_waiting",
        "clear",
        "closing",
        "on_wait",
        "overflowed",
    )

    _protocol: Any

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, hard_limit: int) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._turn = _turn_of(loop)
        self._poller = self._turn.poller
        self._first = b""  # what was written alone; more goes to the queue
        self._queue: SendQueue | None = None
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._hard_limit = hard_limit
        self._held = False  # a flush will come: nothing needs to be scheduled
        self._waiting = False  # for the system to take more
        self._paused = False  # the protocol was asked to pause writing
        self.closing = False
        self.clear = True
        self._lost = False
        self._eof = False
        self.overflowed = False
        self._progressed = 0.0
        self.on_wait: Callable[[], object] | None = None

    @abstractmethod
    def abort(self, exc: Exception | None = None) -> None:
        """Close at once with a reset."""

    @abstractmethod
    def _lose(self, exc: Exception | None) -> None:
        """The connection is over."""

    def write(self, data: Buffer) -> None:
        """Send `data` at the end of this callback or turn, or sooner when there is much.

        Once the connection is closed, nothing happens, as in asyncio.

        Raises:
            TypeError: `data` is not bytes.
            RuntimeError: after `write_eof`.
        """
        if self._held and self.clear and not self._first and type(data) is bytes and self._queue is None:
            self._first = data  # the common case: an answer, right after what it answers
            return
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"data: expected bytes, bytearray or memoryview, got {type(data).__name__}")
            data = bytes(data)  # the caller may change it
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self.closing:
            return
        queue = self._queue
        if queue is None:
            if not self._first:
                self._first = data
                if not self._held:
                    if len(data) >= FLUSH_AT:
                        self.flush()
                    else:
                        self._hold()
                return
            queue = self._to_queue()
        if queue.size >= self._hard_limit:
            self.overflowed = True
            self.abort(ConnectionAbortedError(f"the peer left {queue.size} bytes unread"))
            return
        queue.append(data)
        if self._waiting:
            if not self._paused and queue.size > self._high:
                self._pause()
        elif queue.size >= FLUSH_AT:
            self.flush()
        elif not self._held:
            self._hold()

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        """Write the pieces as one."""
        self.write(b"".join(list_of_data))

    def send_file(self, fd: int, offset: int, count: int, ended: FileEnded) -> None:
        """Send a part of a file after what has been written; the kernel reads it.

        Args:
            fd: of a regular file; it may be closed after this call.
            offset: of the first byte.
            count: bytes, at least 1; fewer are sent when the file ends sooner.
            ended: called with the number of bytes sent, and what went wrong or None.

        Raises:
            OSError: the connection is closed, or the system lacks a descriptor to keep the file by.
            RuntimeError: after `write_eof`.
        """
        if self._eof:
            raise RuntimeError("Cannot call send_file() after write_eof()")
        if self.closing:
            raise ConnectionResetError("the connection is closed")
        part = FilePart(fd, offset, count, ended)
        (self._queue or self._to_queue()).append_file(part)
        if not self._waiting:
            self.flush()

    def _to_queue(self) -> SendQueue:
        self._queue = queue = SendQueue()
        if self._first:
            queue.append(self._first)
            self._first = b""
        return queue

    def _hold(self) -> None:
        self._held = True
        unflushed = self._turn.unflushed
        if not unflushed:
            self._loop.call_soon(self._turn.flush)
        unflushed.append(self)

    def _pause(self) -> None:
        self._paused = True
        self.clear = False
        self._protocol.pause_writing()

    def flush(self) -> None:
        """Send now what has been written, as far as the system takes it."""
        self._held = self._waiting
        if self._lost:
            return
        queue, first = self._queue, self._first
        try:
            if queue is None:
                if not first:
                    return
                try:
                    sent = self._sock.send(first)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                self._first = b""
                if sent == len(first):
                    if self._paused:
                        self._resume()
                    return
                self._queue = queue = SendQueue()
                queue.append(memoryview(first)[sent:] if sent else first)
            elif queue.send(self._sock):
                self._progressed = self._loop.time()
        except OSError as exc:
            self._lose(exc)
            return
        if not queue:
            self._queue = None
            if self._waiting:
                self._sent_all()
        elif not self._waiting:
            self._waiting = self._held = True
            self._progressed = self._loop.time()
            self._poller.add_writer(self._fd, self.flush)
            if self.on_wait is not None:
                self.on_wait()
        if self._paused:
            if queue.size <= self._low:
                self._resume()
        elif queue.size > self._high:
            self._pause()

    def _resume(self) -> None:
        self._paused = False
        self.clear = not self.closing and not self._eof
        self._protocol.resume_writing()

    def _sent_all(self) -> None:
        self._waiting = self._held = False
        self._poller.remove_writer(self._fd)
        if self.closing:
            self._lose(None)
        elif self._eof:
            self._shut_down()

    def write_eof(self) -> None:
        """Tell the peer, after what has been written, that nothing more comes; reading goes on."""
        if self._eof or self.closing:
            return
        self._eof = True
        self.clear = False
        self.flush()
        if self._queue is None:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer has gone: reading says so

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the numbers of unsent bytes at which the protocol is asked to pause and to go on.

        Raises:
            ValueError: not 0 <= `low` <= `high`.
        """
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"high ({high}) must be at least low ({low}), and low at least 0")
        self._high, self._low = high, low
        if not self._paused and self.get_write_buffer_size() > high:
            self._pause()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Return the number of unsent bytes, without those of files."""
        return len(self._first) if self._queue is None else self._queue.size

    def stalled_since(self) -> float | None:
        """Return when the system last took some of the unsent bytes, in the time of the loop; None: there are none."""
        return self._progressed if self._waiting else None
