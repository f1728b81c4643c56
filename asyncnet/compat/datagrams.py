"""Datagrams on every engine: an `Endpoint` to await, and the service that starts a handler for each datagram.

A datagram is a whole request, so what a thread, a process, a greenlet or a task is started for is one datagram. A
handler that has more to say to its peer opens an endpoint of its own, as a TFTP server does, and goes on there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Coroutine
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Final, Self, TypeAlias, cast

import attrs

from asyncnet import udp
from asyncnet.addresses import Address, explain, format_address
from asyncnet.compat.elsewhere import call_elsewhere
from asyncnet.compat.serving import Job, Stats
from asyncnet.compat.tasks import Driver, bounded
from asyncnet.compat.traps import YIELD, Trap, current_driver, sleep, trap
from asyncnet.compat.writing import TURNS
from asyncnet.descriptors import EXHAUSTED
from asyncnet.errors import ClosedError
from asyncnet.resolver import resolve
from asyncnet.udp.create import attach

__all__ = [
    "BUSY_PAUSE",
    "MAX_PENDING",
    "Arrived",
    "DatagramHandler",
    "DatagramService",
    "Endpoint",
    "attend",
    "on_this_engine",
    "open_endpoint",
]

logger: Final = logging.getLogger("asyncnet.compat")

DatagramHandler: TypeAlias = Callable[[bytes, Address, Any], Coroutine[Any, Any, object]]
"""A coroutine function of a datagram, its sender, and the endpoint that it came to, whose `send` answers."""

DATAGRAMS_PER_TURN: Final = 64
"""Datagrams received before others get a turn."""
MAX_PENDING: Final = 4096
"""Handlers at work at a time; what comes meanwhile is dropped and counted."""
BUSY_PAUSE: Final = 0.001
"""Seconds until an engine that was full is asked again; datagrams wait in the socket's buffer."""
_LARGEST: Final = 65536

Buffer = bytes | bytearray | memoryview


class Endpoint:
    """A UDP socket to await; made by `open_endpoint`, and what a handler answers by.

    ``async for data, addr in endpoint`` receives until it is closed. Where sockets block, so does a `recv`, within the
    open `asyncnet.compat.timeout`.
    """

    def __init__(self, sock: Any, driver: Driver, *, shared: bool = False) -> None:
        self._sock = sock
        self._driver = driver
        self._shared = shared  # the server's: closing it is not for a handler
        self._turns = 0
        self._peer = _peer_of(sock)
        self._readable = Trap(EVENT_READ, sock, drained=True)
        self._writable = Trap(EVENT_WRITE, sock, drained=True)

    @property
    def local_addr(self) -> Address:
        """The address that it is bound to."""
        address: Address = self._sock.getsockname()
        return address

    @property
    def remote_addr(self) -> Address | None:
        """The only peer; None when there is none."""
        return self._peer

    async def recv(self) -> tuple[bytes, Address]:
        """Wait for a datagram; return it and its sender.

        Raises:
            ClosedError: the endpoint is closed.
            OSError: an error that the system reports for what was sent before, such as a refusal.
        """
        sock = self._sock
        await self._take_turns()
        while True:
            if sock.fileno() < 0:
                raise ClosedError("the endpoint is closed")
            try:
                got: tuple[bytes, Address] = (
                    bounded(sock, sock.recvfrom, _LARGEST) if self._driver.blocking else sock.recvfrom(_LARGEST)
                )
                return got
            except BlockingIOError:
                self._turns = 0
                await trap(self._readable)
            except OSError:
                if sock.fileno() >= 0:
                    raise

    async def send(self, data: Buffer, addr: Address | None = None) -> None:
        """Send a datagram to `addr`, or to the peer that the endpoint was opened for.

        Raises:
            ClosedError: the endpoint is closed.
            ValueError: it is too large for a datagram.
            OSError: the system does not send it; the message names the address.
        """
        await self._take_turns()
        while True:
            if self._sock.fileno() < 0:
                raise ClosedError("the endpoint is closed")
            try:
                self.send_nowait(data, addr)
                return
            except BlockingIOError:
                self._turns = 0
                if self._shared:  # many may wait for room in it, and only one for the socket
                    await sleep(BUSY_PAUSE)
                else:
                    await trap(self._writable)

    async def _take_turns(self) -> None:
        """Let others run after many operations that did not have to wait."""
        self._turns += 1
        if self._turns > TURNS:
            self._turns = 0
            await trap(YIELD)

    def send_nowait(self, data: Buffer, addr: Address | None = None) -> None:
        """Send a datagram at once.

        Raises:
            BlockingIOError: there is no room for it now.
            ValueError, OSError: as `send`.
        """
        if len(data) > udp.MAX_PAYLOAD:
            raise ValueError(f"a datagram carries {udp.MAX_PAYLOAD} bytes at most, not {len(data)}")
        try:
            if addr is None:
                self._sock.send(data)
            else:
                self._sock.sendto(data, addr)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise explain(exc, "send to", addr or self._peer) from exc

    def close(self) -> None:
        """Close the socket."""
        if self._sock.fileno() >= 0 and not self._shared:
            self._driver.forget(self._sock)
            self._sock.close()

    async def aclose(self) -> None:
        """Close the socket."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        try:
            return await self.recv()
        except ClosedError:
            raise StopAsyncIteration from None


async def open_endpoint(
    local_addr: tuple[str, int] | None = None,
    remote_addr: tuple[str, int] | None = None,
    *,
    broadcast: bool = False,
) -> Endpoint | udp.Endpoint:
    """Open a UDP endpoint on whatever engine the caller runs; on a loop of asyncio it is one of `asyncnet.udp`.

    Args:
        local_addr: host and port to bind to; by default the system picks them.
        remote_addr: the only peer; by default there is none.
        broadcast: allow sending to broadcast addresses.

    Raises:
        OSError: an address cannot be used; the message says why and what to do.
    """
    driver = current_driver()
    if driver is None:
        if remote_addr is not None:
            return await udp.connect(*remote_addr, local_addr=local_addr, broadcast=broadcast)
        return await udp.bind(*(local_addr or ("", 0)), broadcast=broadcast)
    family: int = socket.AF_UNSPEC
    local: Address | None = None
    remote: Address | None = None
    if remote_addr is not None:
        family, remote = await _resolve("connect UDP to", remote_addr)
    if remote is None or local_addr is not None:
        family, local = await _resolve("bind UDP", local_addr or ("", 0), family)
    return await on_this_engine(_open_socket(family, local, remote, broadcast=broadcast))


async def on_this_engine(sock: socket.socket) -> Endpoint | udp.Endpoint:
    """Return an endpoint for a UDP socket, which it owns, on whatever engine the caller runs."""
    driver = current_driver()
    if driver is None:
        endpoint = udp.Endpoint()
        sock.setblocking(False)
        await attach(endpoint, sock)
        return endpoint
    try:
        sock = driver.adopt(sock)
        return Endpoint(sock, driver)
    except BaseException:
        sock.close()
        raise


def _peer_of(sock: Any) -> Address | None:
    try:
        peer: Address = sock.getpeername()
    except OSError:  # not connected
        return None
    return peer


async def _resolve(action: str, addr: tuple[str, int], family: int = socket.AF_UNSPEC) -> tuple[int, Address]:
    """Return the family of an address, which may be a name, and the address itself."""
    host = addr[0] or ("::" if family == socket.AF_INET6 else "0.0.0.0")
    found = await resolve(host, addr[1], action=action, kind=socket.SOCK_DGRAM, family=family, call=call_elsewhere)
    return found[0]


def _open_socket(family: int, local: Address | None, remote: Address | None, *, broadcast: bool) -> socket.socket:
    """Open a socket on addresses that are resolved already."""
    action, where = "open UDP for", local or remote
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if local is not None:
                action, where = "bind UDP", local
                sock.bind(local)
            if remote is not None:
                action, where = "connect UDP to", remote
                sock.connect(remote)
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise explain(exc, action, where) from exc
    return sock


@attrs.frozen(eq=False)
class Arrived:
    """A datagram that has arrived; a `Job`."""

    handler: DatagramHandler
    socket: socket.socket
    data: bytes
    addr: Address

    @property
    def sock(self) -> None:
        """None: it has no socket of its own."""
        return None

    def run(self, driver: Driver, stats: Stats, *, drains: bool = False) -> Coroutine[Any, Any, None]:
        """See `Job`."""
        return attend(self.handler, self.data, self.addr, Endpoint(self.socket, driver, shared=True), stats)

    def close(self) -> None:
        """See `Job`."""


class DatagramService:
    """A UDP socket, and the handler of its datagrams; a `Service`.

    Args:
        handler: called with each datagram.
        address: where to listen.

    Raises:
        OSError: the address cannot be used; the message says why and what to do.
    """

    def __init__(self, handler: DatagramHandler, address: Address) -> None:
        self.handler = handler
        try:
            infos = socket.getaddrinfo(address[0] or "0.0.0.0", address[1], type=socket.SOCK_DGRAM)
        except OSError as exc:
            raise explain(exc, "bind UDP", address) from exc
        family, _, _, _, place = infos[0]
        self.socket = _open_socket(family, cast(Address, place), None, broadcast=False)
        self.socket.setblocking(False)
        self.address: Address = self.socket.getsockname()

    async def front(
        self, admit: Callable[[Job], object], stats: Stats, *, room: Callable[[], int] = lambda: sys.maxsize
    ) -> None:
        """Receive until cancelled; see `Service`."""
        sock, handler = self.socket, self.handler
        readable = Trap(EVENT_READ, sock, drained=True)
        try:
            while True:
                for _ in range(DATAGRAMS_PER_TURN):
                    if room() <= 0:
                        await sleep(BUSY_PAUSE)
                        continue
                    try:
                        data, addr = sock.recvfrom(_LARGEST)
                    except BlockingIOError:
                        await trap(readable)
                        continue
                    except OSError as exc:  # what became of an answer
                        if sock.fileno() < 0:
                            return
                        logger.debug("%s: %s", format_address(self.address), exc)
                        continue
                    if stats.active >= MAX_PENDING:
                        stats.count(dropped=1)
                        continue
                    try:
                        admit(Arrived(handler, sock, data, addr))
                    except (OSError, RuntimeError, MemoryError) as exc:
                        stats.count(dropped=1)
                        logger.debug("a datagram of %s is dropped: %s", format_address(addr), exc)
                await sleep(0)
        finally:
            sock.close()

    def accept_last(self, room: int) -> None:
        """Nothing: who sends a datagram is prepared for its loss; see `Service`."""

    def admit_waiting(self, admit: Callable[[Job], object], stats: Stats) -> None:
        """Nothing, since nothing waits; see `Service`."""

    def close(self) -> None:
        """See `Service`."""
        self.socket.close()


async def attend(handler: DatagramHandler, data: bytes, addr: Address, endpoint: Any, stats: Stats) -> None:
    """Serve one datagram: count it, and keep what the handler raises from everybody else.

    Args:
        handler: called with `data`, `addr` and `endpoint`.
        data: the datagram.
        addr: its sender.
        endpoint: what answers leave by.
        stats: counts what becomes of it.
    """
    stats.count(accepted=1, active=1)
    try:
        await handler(data, addr, endpoint)
    except asyncio.CancelledError:
        stats.count(cancelled=1)
        raise
    except ConnectionError as exc:
        stats.count(disconnected=1)
        logger.debug("%s cannot be answered: %r", format_address(addr), exc)
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno in EXHAUSTED:
            logger.warning("a datagram of %s is not served: %s", format_address(addr), exc)
            stats.count(refused=1)
        else:
            logger.error("the handler of a datagram of %s failed: %s", format_address(addr), exc, exc_info=exc)
            stats.count(failed=1)
    finally:
        stats.count(active=-1)
