"""The receiving half of an endpoint: a bounded queue, and the tasks that wait for it.

A datagram stays in the queue until a `recv` takes it: what a task waits for is a wake-up that carries no data, so a
cancelled `recv` loses nothing, closing wakes every waiter, and an ICMP error reaches the task that waits. A waiting
task is resumed while the batch is delivered, so that what it sends leaves with the answers to the rest of the batch.

By default a full queue stops reading: datagrams then wait in the socket's receive buffer, and what the kernel drops
there is counted too. The other policies drop in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from operator import itemgetter
from typing import Any, Final, NoReturn, Self, cast

import attrs

from asyncnet.addresses import Address, format_address
from asyncnet.errors import ClosedError
from asyncnet.udp.ancillary import Datagram
from asyncnet.udp.transport import DatagramTransport
from asyncnet.wakeup import Wakeup

__all__ = ["EndpointStats", "Inbox", "Match", "QueuePolicy", "Request"]

_PAYLOAD: Final = itemgetter(0)

Match = Callable[[bytes, Address], bool]


class QueuePolicy(Enum):
    """What happens when the receive queue is full."""

    STOP_READING = "stop-reading"
    """Nothing is read until there is room; the kernel's buffer holds datagrams, and drops them when it is full."""
    DROP_OLDEST = "drop-oldest"
    DROP_NEWEST = "drop-newest"


@attrs.define
class EndpointStats:
    """What an endpoint has counted since it was opened."""

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    """Bytes sent; where the system has refused a part of a batch, its datagrams count as equally long."""
    dropped: int = 0
    """Datagrams dropped because the receive queue was full."""
    kernel_dropped: int = 0
    """Datagrams dropped by the kernel because the socket's receive buffer was full; 0 where it does not tell."""
    truncated: int = 0
    """Datagrams that were larger than the buffer for one; only seen with ``notes``."""
    errors: int = 0
    """Errors that the system reported for earlier sends, such as ICMP port unreachable."""


@attrs.define(eq=False)
class Request:
    """A question that waits for its answer."""

    match: Match
    answer: asyncio.Future[tuple[bytes, Address]]


class Inbox(asyncio.DatagramProtocol):
    """Everything of `Endpoint` that receives.

    Args:
        queue_size, queue_bytes, policy: as in `bind`.

    Raises:
        ValueError: a bound is below 1.
    """

    def __init__(
        self,
        *,
        queue_size: int = 1024,
        queue_bytes: int = 4 << 20,
        policy: QueuePolicy = QueuePolicy.STOP_READING,
    ) -> None:
        for name, value in (("queue_size", queue_size), ("queue_bytes", queue_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self._stats = EndpointStats()
        self._queue: deque[Any] = deque()  # pairs of payload and address, or `Datagram`
        self._queue_size = queue_size
        self._queue_bytes = queue_bytes
        self._policy = policy
        self._queued_bytes = 0  # at most too many: counted again when the bound seems reached
        self._reading_stopped = False
        self._waiters: list[Wakeup] = []
        self._requests: list[Request] = []
        self._error: OSError | None = None
        self._writable: asyncio.Event | None = None  # made when writing is paused for the first time
        self._closed: asyncio.Future[None] | None = None
        self._is_closing = self._is_closed = False
        self._transport: DatagramTransport | None = None
        self._local_addr: Address | None = None
        self._remote_addr: Address | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(DatagramTransport, transport)
        self._local_addr = transport.get_extra_info("sockname")
        self._remote_addr = transport.get_extra_info("peername")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.datagrams_received([(data, addr)])

    def datagrams_received(self, batch: list[tuple[bytes, Address]] | list[Datagram]) -> None:
        """Queue what has arrived, and wake as many waiters."""
        size = sum(map(len, map(_PAYLOAD, batch)))
        stats = self._stats
        stats.received += len(batch)
        stats.received_bytes += size
        if batch and type(batch[0]) is Datagram:
            stats.truncated += sum(item.truncated for item in batch if type(item) is Datagram)
        if self._requests:
            batch = [item for item in batch if not self._answers(item)]  # type: ignore[assignment]  # of one kind
            size = sum(map(len, map(_PAYLOAD, batch)))
        self._queued_bytes = self._queued_bytes + size if self._queue else size
        self._queue.extend(batch)
        if len(self._queue) >= self._queue_size or (
            self._queued_bytes >= self._queue_bytes and self._count_bytes() >= self._queue_bytes
        ):
            self._relieve()
        for _ in range(min(len(batch), len(self._waiters))):
            if self._queue:
                self._wake_one()

    def _count_bytes(self) -> int:
        """Return the bytes in the queue; what receiving has taken is not subtracted each time."""
        self._queued_bytes = sum(map(len, map(_PAYLOAD, self._queue)))
        return self._queued_bytes

    def _relieve(self) -> None:
        """Do what the policy says about a full queue."""
        if self._policy is QueuePolicy.STOP_READING:
            if not self._reading_stopped and self._transport is not None:
                self._reading_stopped = True
                self._transport.pause_reading()
            return
        self._count_bytes()
        take = self._queue.popleft if self._policy is QueuePolicy.DROP_OLDEST else self._queue.pop
        while len(self._queue) > self._queue_size or (self._queued_bytes > self._queue_bytes and len(self._queue) > 1):
            self._queued_bytes -= len(take()[0])
            self._stats.dropped += 1

    def _answers(self, item: tuple[bytes, Address] | Datagram) -> bool:
        for request in self._requests:
            if request.answer.done():
                continue
            try:
                matches = request.match(item[0], item[1])
            except Exception as exc:  # whoever asks has made a mistake, and nobody else pays for it
                request.answer.set_exception(exc)
                continue
            if matches:
                request.answer.set_result((item[0], item[1]))
                return True
        return False

    def error_received(self, exc: Exception) -> None:
        self._stats.errors += 1
        if not isinstance(exc, OSError):
            return
        # Without a peer it concerns one datagram that was sent, and nobody who waits for others.
        waiting = [request.answer for request in self._requests if self._remote_addr and not request.answer.done()]
        for answer in waiting:
            answer.set_exception(exc)
        if not waiting:
            self._error = exc
            if self._remote_addr:
                self._wake_one()

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._count_kernel_drops(self._transport)
        self._transport = None
        self._is_closing = self._is_closed = True
        if self._closed is not None:
            self._closed.set_result(None)
        self._wake_all()

    def _wake_all(self) -> None:
        """Let everything that waits see that the endpoint is closed."""
        self.resume_writing()
        while self._waiters:
            self._wake_one()
        for request in self._requests:
            if not request.answer.done():
                request.answer.set_exception(self._closed_error())

    def _count_kernel_drops(self, transport: DatagramTransport) -> None:
        # Of a socket that somebody has closed the kernel tells nothing any more.
        self._stats.kernel_dropped = max(self._stats.kernel_dropped, transport.kernel_dropped)

    def _wake_one(self) -> None:
        if self._waiters:
            self._waiters.pop(0).wake()

    # What the user calls.

    @property
    def local_addr(self) -> Address:
        """The address that the socket is bound to, with the real port."""
        assert self._local_addr is not None
        return self._local_addr

    @property
    def remote_addr(self) -> Address | None:
        """The peer of a connected endpoint, else None."""
        return self._remote_addr

    @property
    def stats(self) -> EndpointStats:
        """What the endpoint has counted so far."""
        if self._transport is not None:
            self._count_kernel_drops(self._transport)
        return self._stats

    async def recv(self) -> tuple[bytes, Address]:
        """Wait for a datagram and return it with its sender's address.

        Several tasks may wait; each datagram goes to one of them.

        Raises:
            ClosedError: the endpoint is closed, and what had arrived before is taken.
            OSError: the endpoint has a peer, and an earlier datagram did not reach it; receiving may go on.
        """
        while not self._queue:
            await self._arrival()
        return self._take()

    async def recv_batch(self, limit: int = 64) -> list[tuple[bytes, Address]] | list[Datagram]:
        """Wait for datagrams and return those that have arrived, at least one.

        Args:
            limit: how many at most.

        Raises:
            ValueError: `limit` is below 1.
            ClosedError, OSError: as in `recv`.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        while not self._queue:
            await self._arrival()
        return [self._pop() for _ in range(min(limit, len(self._queue)))]

    def recv_nowait(self) -> tuple[bytes, Address]:
        """Return a datagram that has arrived, with its sender's address.

        Raises:
            BlockingIOError: none has.
            ClosedError: the endpoint is closed, and what had arrived before is taken.
        """
        if not self._queue:
            self._check_open()
            raise BlockingIOError("no datagram has arrived")
        return self._take()

    async def _arrival(self) -> None:
        if self._error is not None and self._remote_addr:
            self._raise_error()
        self._check_open()
        waiter = Wakeup(asyncio.get_running_loop())
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif self._queue or self._error is not None:
                self._wake_one()  # this wake-up is lost with the task: another one takes it
            raise

    def _raise_error(self) -> NoReturn:
        error, self._error = self._error, None
        assert error is not None
        raise error

    def _take(self) -> tuple[bytes, Address]:
        item = self._pop()
        return item if type(item) is tuple else item[:2]

    def _pop(self) -> Any:
        item = self._queue.popleft()
        if self._reading_stopped:
            self._read_on()
        return item

    def _read_on(self) -> None:
        """Read again when the queue is half empty."""
        if len(self._queue) <= self._queue_size // 2 and self._count_bytes() <= self._queue_bytes // 2:
            self._reading_stopped = False
            if self._transport is not None:
                self._transport.resume_reading()

    def _check_open(self) -> None:
        if self._transport is None or self._is_closing:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the endpoint on {format_address(self._local_addr)} is closed")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        while not self._queue:
            try:
                await self._arrival()
            except ClosedError:
                raise StopAsyncIteration from None
        item = self._queue.popleft()
        if self._reading_stopped:
            self._read_on()
        return item if type(item) is tuple else item[:2]
