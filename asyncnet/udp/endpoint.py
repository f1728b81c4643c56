"""An awaitable UDP endpoint.

A datagram stays in the queue until a `recv` takes it: the futures of waiting tasks are wake-ups and carry no data, so a
cancelled `recv` loses nothing, closing wakes every waiter, and an ICMP error reaches the task that waits.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from typing import Final, Self, cast

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.errors import ClosedError
from asyncnet.opening import Opening

__all__ = ["MAX_PAYLOAD", "Endpoint", "EndpointStats", "attach", "bind", "connect", "open_socket", "resolve"]

MAX_PAYLOAD: Final = 65507
"""The largest payload of a UDP datagram over IPv4, in bytes (65 535 less the IP and UDP headers)."""


@attrs.define
class EndpointStats:
    """What an endpoint has counted since it was opened."""

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    dropped: int = 0
    """Datagrams that arrived while the receive queue was full."""
    errors: int = 0
    """Errors that the system reported for earlier sends, such as ICMP port unreachable."""


class Endpoint(asyncio.DatagramProtocol):
    """A UDP socket to await; made by `bind` and `connect`.

    ``async for data, addr in endpoint`` receives until the endpoint is closed.
    """

    def __init__(self, *, queue_size: int = 1024, queue_bytes: int = 4 << 20) -> None:
        for name, value in (("queue_size", queue_size), ("queue_bytes", queue_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.stats = EndpointStats()
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._queue_size = queue_size
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._error: OSError | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self._local_addr: Address | None = None
        self._remote_addr: Address | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._local_addr = transport.get_extra_info("sockname")
        self._remote_addr = transport.get_extra_info("peername")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if len(self._queue) >= self._queue_size or self._queued_bytes + len(data) > self._queue_bytes:
            self.stats.dropped += 1
            return
        self.stats.received += 1
        self.stats.received_bytes += len(data)
        self._queued_bytes += len(data)
        self._queue.append((data, addr))
        self._wake_one()

    def error_received(self, exc: Exception) -> None:
        self.stats.errors += 1
        if isinstance(exc, OSError):
            self._error = explain(exc, "reach", self._remote_addr)
            self._wake_one()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed.set()
        self._writable.set()
        while self._waiters:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

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

    async def recv(self) -> tuple[bytes, Address]:
        """Wait for a datagram and return it with its sender's address.

        Several tasks may wait; each datagram goes to one of them.

        Raises:
            ClosedError: the endpoint is closed, and what had arrived before is taken.
            OSError: the system reports that an earlier datagram did not arrive; receiving may go on.
        """
        while not self._queue:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._check_open()
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    self._waiters.remove(waiter)
                elif self._queue or self._error is not None:
                    self._wake_one()  # this wake-up is lost with the task: another one takes it
                raise
        data, addr = self._queue.popleft()
        self._queued_bytes -= len(data)
        return data, addr

    def recv_nowait(self) -> tuple[bytes, Address]:
        """Return a datagram that has arrived, with its sender's address.

        Raises:
            BlockingIOError: none has.
            ClosedError: the endpoint is closed, and what had arrived before is taken.
        """
        if not self._queue:
            self._check_open()
            raise BlockingIOError("no datagram has arrived")
        data, addr = self._queue.popleft()
        self._queued_bytes -= len(data)
        return data, addr

    async def send(self, data: bytes | bytearray | memoryview, addr: Address | None = None) -> None:
        """Send a datagram, waiting while the transport's buffer is full.

        Args:
            data: the payload; `MAX_PAYLOAD` bytes at most.
            addr: where to; not given on a connected endpoint.

        Raises:
            ValueError: `addr` is missing, given on a connected endpoint, or the payload is too large.
            ClosedError: the endpoint is closed.
            OSError: the system refuses the datagram.
        """
        if len(data) > MAX_PAYLOAD:
            raise ValueError(f"a datagram carries {MAX_PAYLOAD} bytes at most, not {len(data)}")
        if (addr is None) == (self._remote_addr is None):
            raise ValueError(
                "addr is missing: the endpoint has no peer" if addr is None else "addr: the endpoint has its peer"
            )
        self._check_open()
        if not self._writable.is_set():
            await self._writable.wait()
            self._check_open()
        assert self._transport is not None
        try:
            self._transport.sendto(data, addr)
        except OSError as exc:
            raise explain(exc, "send to", addr or self._remote_addr) from exc
        self.stats.sent += 1
        self.stats.sent_bytes += len(data)

    def _check_open(self) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ClosedError(f"the endpoint on {format_address(self._local_addr)} is closed")

    def close(self) -> None:
        """Close the socket; every waiting `recv` raises `ClosedError`. A second call does nothing."""
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """Close the socket and wait until it is closed."""
        self.close()
        await self._closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        try:
            return await self.recv()
        except ClosedError:
            raise StopAsyncIteration from None


def bind(
    host: str = "",
    port: int = 0,
    *,
    broadcast: bool = False,
    reuse_port: bool = False,
    queue_size: int = 1024,
    queue_bytes: int = 4 << 20,
) -> Opening[Endpoint]:
    """Open an endpoint on a local address: ``async with bind(...) as endpoint`` or ``endpoint = await bind(...)``.

    Args:
        host: an address of this host; empty for every IPv4 address, ``"::"`` for every IPv6 address.
        port: 0 takes any free one.
        broadcast: allow sending to broadcast addresses.
        reuse_port: share the port with other sockets that ask for the same (SO_REUSEPORT).
        queue_size: datagrams that may wait to be received; more are dropped and counted.
        queue_bytes: bytes that may wait to be received.

    Raises:
        ValueError: a bound of the queue is below 1.
        OSError: the address cannot be used; the message says why and what to do.
    """

    async def open_() -> Endpoint:
        sock = await open_socket(local=(host or "0.0.0.0", port), broadcast=broadcast, reuse_port=reuse_port)
        return await _endpoint(sock, queue_size, queue_bytes)

    return Opening(open_)


def connect(
    host: str,
    port: int,
    *,
    local_addr: tuple[str, int] | None = None,
    broadcast: bool = False,
    queue_size: int = 1024,
    queue_bytes: int = 4 << 20,
) -> Opening[Endpoint]:
    """Open an endpoint with one peer: it sends to no other, hears no other, and learns of ICMP errors.

    Args:
        host: the peer's name or address.
        port: the peer's port.
        local_addr: the local host and port; by default the system picks them.
        broadcast: allow a broadcast address as the peer.
        queue_size: datagrams that may wait to be received; more are dropped and counted.
        queue_bytes: bytes that may wait to be received.

    Raises:
        ValueError: a bound of the queue is below 1.
        OSError: the name does not resolve, or one of the addresses cannot be used.
    """

    async def open_() -> Endpoint:
        sock = await open_socket(local=local_addr, remote=(host, port), broadcast=broadcast)
        return await _endpoint(sock, queue_size, queue_bytes)

    return Opening(open_)


async def _endpoint(sock: socket.socket, queue_size: int, queue_bytes: int) -> Endpoint:
    try:
        endpoint = Endpoint(queue_size=queue_size, queue_bytes=queue_bytes)
    except BaseException:
        sock.close()
        raise
    await attach(endpoint, sock)
    return endpoint


async def attach(protocol: asyncio.DatagramProtocol, sock: socket.socket) -> asyncio.DatagramTransport:
    """Give `sock` to the running loop with `protocol` on it; on any error the socket is closed."""
    try:
        shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=sock)
        # libuv sets this option on every UDP socket it is given, and other programs could then take the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
    except BaseException:
        sock.close()
        raise
    return transport


async def open_socket(
    *,
    local: tuple[str, int] | None = None,
    remote: tuple[str, int] | None = None,
    broadcast: bool = False,
    reuse_port: bool = False,
    share_broadcasts: bool = False,
) -> socket.socket:
    """Return a non-blocking UDP socket, bound, connected, or both; names are resolved.

    Args:
        local: host and port to bind.
        remote: host and port to connect to.
        broadcast: allow sending to broadcast addresses.
        reuse_port: share the port; each datagram goes to one of the sockets.
        share_broadcasts: share the port; each broadcast goes to every one of the sockets.

    Raises:
        OSError: an address does not resolve or cannot be used; the message names it and the way out.
    """
    remote_info = await resolve(remote, "send UDP to") if remote else None
    local_info = await resolve(local, "bind UDP", remote_info[0] if remote_info else 0) if local else None
    family = (remote_info or local_info or (socket.AF_INET, ("", 0)))[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if broadcast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if share_broadcasts:  # BSD and macOS ask for the other option; on Linux that one would pick one socket
            by_address = sys.platform in ("linux", "win32")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if by_address else socket.SO_REUSEPORT, 1)
        if local_info:
            try:
                sock.bind(local_info[1])
            except OSError as exc:
                raise explain(exc, "bind UDP", local_info[1]) from exc
        if remote_info:
            try:
                sock.connect(remote_info[1])
            except OSError as exc:
                raise explain(exc, "send UDP to", remote_info[1]) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def resolve(address: tuple[str, int], action: str, family: int = socket.AF_UNSPEC) -> tuple[int, Address]:
    """Return the family of an address and the address with its name looked up.

    Args:
        address: host and port.
        action: what is being tried, for the message of an error.
        family: the family to look for.

    Raises:
        OSError: the name does not resolve.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(*address[:2], family=family, type=socket.SOCK_DGRAM)
    except OSError as exc:
        raise explain(exc, action, address) from exc
    return found[0][0], cast(Address, found[0][4])
