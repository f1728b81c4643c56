"""An awaitable UDP endpoint.

A datagram stays in the queue until a `recv` takes it: what a task waits for is a wake-up that carries no data, so a
cancelled `recv` loses nothing, closing wakes every waiter, and an ICMP error reaches the task that waits. A waiting
task is resumed while the batch is delivered, so that what it sends leaves with the answers to the rest of the batch.

By default a full queue stops reading: datagrams then wait in the socket's receive buffer, and what the kernel drops
there is counted too. The other policies drop in the queue.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from operator import itemgetter
from typing import Any, Final, NoReturn, Self, cast

import attrs

from asyncnet.addresses import Address, format_address
from asyncnet.errors import ClosedError
from asyncnet.udp.ancillary import Datagram
from asyncnet.udp.sockets import join_group, leave_group, set_multicast
from asyncnet.udp.transport import DatagramTransport
from asyncnet.wakeup import Wakeup

__all__ = ["MAX_PAYLOAD", "Endpoint", "EndpointStats", "QueuePolicy"]

MAX_PAYLOAD: Final = 65507
"""The largest payload of a UDP datagram over IPv4, in bytes (65 535 less the IP and UDP headers)."""

_PAYLOAD: Final = itemgetter(0)

Payload = bytes | bytearray | memoryview
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
    dropped: int = 0
    """Datagrams dropped because the receive queue was full."""
    kernel_dropped: int = 0
    """Datagrams dropped by the kernel because the socket's receive buffer was full; 0 where it does not tell."""
    truncated: int = 0
    """Datagrams that were larger than the buffer for one; only seen with ``notes``."""
    errors: int = 0
    """Errors that the system reported for earlier sends, such as ICMP port unreachable."""


@attrs.define(eq=False)
class _Request:
    """A `request` that waits for its answer."""

    match: Match
    answer: asyncio.Future[tuple[bytes, Address]]


class Endpoint(asyncio.DatagramProtocol):
    """A UDP socket to await; made by `bind` and `connect`.

    ``async for data, addr in endpoint`` receives until the endpoint is closed.
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
        self._requests: list[_Request] = []
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
        if self._requests:
            batch = [item for item in batch if not self._answers(item)]  # type: ignore[assignment]  # of one kind
        size = sum(map(len, map(_PAYLOAD, batch)))
        stats = self._stats
        stats.received += len(batch)
        stats.received_bytes += size
        if batch and type(batch[0]) is Datagram:
            stats.truncated += sum(item.truncated for item in batch if type(item) is Datagram)
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
            if not request.answer.done() and request.match(item[0], item[1]):
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
            self._stats.kernel_dropped = self._transport.kernel_dropped
        self._transport = None
        self._is_closing = self._is_closed = True
        self.resume_writing()
        if self._closed is not None:
            self._closed.set_result(None)
        while self._waiters:
            self._wake_one()
        for request in self._requests:
            if not request.answer.done():
                request.answer.set_exception(self._closed_error())

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
            self._stats.kernel_dropped = self._transport.kernel_dropped
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

    async def send(self, data: Payload, addr: Address | None = None) -> None:
        """Send a datagram, waiting while too many wait to leave.

        What the system reports at once is raised here; what it reports later, as ICMP errors, by the next call that
        sends, or, on an endpoint with a peer, that waits.

        Args:
            data: the payload; `MAX_PAYLOAD` bytes at most.
            addr: where to; not given on a connected endpoint.

        Raises:
            ValueError: `addr` is missing, given on a connected endpoint, or the payload is too large.
            ClosedError: the endpoint is closed.
            OSError: the system refuses the datagram, or reports that an earlier one did not arrive.
        """
        while self._writable is not None:
            await self._writable.wait()
        self._send(data, addr)

    def send_nowait(self, data: Payload, addr: Address | None = None) -> None:
        """Send a datagram, or keep it until the system takes it; arguments and errors are those of `send`.

        Raises:
            BlockingIOError: too many datagrams wait to leave.
        """
        if self._writable is not None:
            raise BlockingIOError("too many datagrams wait to leave")
        self._send(data, addr)

    def _send(self, data: Payload, addr: Address | None) -> None:
        size = len(data)
        transport = self._transport
        if addr is None or self._remote_addr is not None or size > MAX_PAYLOAD or transport is None or self._is_closing:
            self._check(data, addr)
            assert transport is not None
        transport.sendto(data, addr)
        if self._error is not None:
            self._raise_error()
        stats = self._stats
        stats.sent += 1
        stats.sent_bytes += size

    async def send_batch(self, batch: Iterable[tuple[Payload, Address | None]]) -> None:
        """Send many datagrams by few system calls.

        Args:
            batch: payloads, each with its address, or with None on a connected endpoint.

        Raises:
            ValueError, ClosedError: as in `send`.
        """
        while self._writable is not None:
            await self._writable.wait()
        items = list(batch)
        self._check_open()
        for data, addr in items:
            self._check(data, addr)
        assert self._transport is not None
        self._transport.send_batch(items)
        if self._error is not None:
            self._raise_error()
        self._stats.sent += len(items)
        self._stats.sent_bytes += sum(len(data) for data, _ in items)

    async def send_segments(self, data: Payload, segment_size: int, addr: Address | None = None) -> None:
        """Send `data` as a train of datagrams to one address; on Linux by one system call for up to 64 of them.

        Args:
            data: the payloads, one behind the other.
            segment_size: bytes of each payload but the last, which may be shorter.
            addr: where to; not given on a connected endpoint.

        Raises:
            ValueError, ClosedError: as in `send`.
        """
        while self._writable is not None:
            await self._writable.wait()
        self._check(b"", addr)
        assert self._transport is not None
        self._transport.send_segments(data, segment_size, addr)
        if self._error is not None:
            self._raise_error()
        self._stats.sent += -(-len(data) // segment_size)
        self._stats.sent_bytes += len(data)

    async def request(
        self,
        data: Payload,
        addr: Address | None = None,
        *,
        match: Match | None = None,
        timeout: float = 1.0,
        retries: int = 3,
        backoff: float = 2.0,
    ) -> tuple[bytes, Address]:
        """Send a question and wait for its answer; ask again when it does not come.

        Datagrams that do not match go to `recv` as usual, so requests may run at the same time.

        Args:
            data: the question.
            addr: whom to ask; not given on a connected endpoint.
            match: given a datagram and its sender, tells whether it is the answer; by default what `addr` sends is.
            timeout: seconds to wait before asking again.
            retries: how often to ask again.
            backoff: what the wait is multiplied by each time.

        Raises:
            TimeoutError: no answer came.
            ValueError: a number is out of range, or `addr` does not fit the endpoint.
            ClosedError: the endpoint is closed before the answer came.
            OSError: the system reports that a datagram did not arrive.
        """
        if timeout <= 0 or retries < 0 or backoff < 1:
            raise ValueError("timeout must be above 0, retries at least 0, backoff at least 1")
        asked = addr if addr is not None else self._remote_addr

        def from_asked(data: bytes, sender: Address) -> bool:
            return asked is not None and sender[:2] == asked[:2]

        answer: asyncio.Future[tuple[bytes, Address]] = asyncio.get_running_loop().create_future()
        request = _Request(match or from_asked, answer)
        self._requests.append(request)
        try:
            for _ in range(retries + 1):
                await self.send(data, addr)
                await asyncio.wait((answer,), timeout=timeout)
                if answer.done():
                    return answer.result()
                timeout *= backoff
        finally:
            self._requests.remove(request)
            answer.cancel()
        raise TimeoutError(f"{format_address(asked)} does not answer: asked {retries + 1} times")

    def join(self, group: str, interface: str | int | None = None) -> None:
        """Receive what is sent to a multicast group; arguments and errors are those of `leave`."""
        join_group(self._socket(), group, interface)

    def leave(self, group: str, interface: str | int | None = None) -> None:
        """Receive no more what is sent to a multicast group.

        Args:
            group: the group's address.
            interface: name or index of the interface; None lets the system choose.

        Raises:
            ValueError: `group` is no multicast address of the endpoint's family.
            OSError: there is no such interface, or the system refuses.
            ClosedError: the endpoint is closed.
        """
        leave_group(self._socket(), group, interface)

    def set_multicast(
        self, *, ttl: int | None = None, loop: bool | None = None, interface: str | int | None = None
    ) -> None:
        """Set how multicast datagrams leave; None leaves a setting as it is.

        Args:
            ttl: routers that a datagram passes at most, 0 to 255.
            loop: whether this host's own members of the group hear it too.
            interface: name or index of the interface that it leaves by.

        Raises:
            ValueError: `ttl` is out of range.
            OSError: there is no such interface, or the system refuses.
            ClosedError: the endpoint is closed.
        """
        set_multicast(self._socket(), ttl=ttl, loop=loop, interface=interface)

    def _socket(self) -> socket.socket:
        self._check_open()
        assert self._transport is not None
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    def _check(self, data: Payload, addr: Address | None) -> None:
        if len(data) > MAX_PAYLOAD:
            raise ValueError(f"a datagram carries {MAX_PAYLOAD} bytes at most, not {len(data)}")
        if (addr is None) == (self._remote_addr is None):
            raise ValueError(
                "addr is missing: the endpoint has no peer" if addr is None else "addr: the endpoint has its peer"
            )
        self._check_open()

    def _check_open(self) -> None:
        if self._transport is None or self._is_closing:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the endpoint on {format_address(self._local_addr)} is closed")

    def close(self) -> None:
        """Close the socket; every waiting `recv` raises `ClosedError`. A second call does nothing."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """Close the socket and wait until it is closed."""
        self.close()
        if not self._is_closed:
            if self._closed is None:
                self._closed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

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
