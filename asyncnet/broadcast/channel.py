"""A socket that tells by which interface a datagram came, and sends by the interface that it is told.

Both are ancillary data of the kernel's (IP_PKTINFO, ip(7); IPV6_PKTINFO, ipv6(7)). A host's datagrams have come by few
interfaces to few addresses, so what the kernel tells is looked up as it stands, and taken apart only once. Where there
is no such thing, a socket is bound to an address of its interface, and everything that it hears has come that way.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final, TypeAlias

import attrs

from asyncnet.addresses import Address
from asyncnet.poller import poller_of
from asyncnet.udp.ancillary import CONTROL_SIZE, ask_for_destinations, control_messages
from asyncnet.udp.batch import SLOT_SIZE, SLOTS, arena_of
from asyncnet.udp.capabilities import probe

__all__ = ["HAVE_ROUTES", "Channel", "Heard", "Outgoing", "Route", "route_by"]

HAVE_ROUTES: Final = sys.platform == "linux" and struct.calcsize("P") == 8
"""Whether the system tells interfaces, and is told."""

_BATCHES_PER_TURN: Final = 4
_MAX_ROUTES: Final = 1024
_IP_PKTINFO: Final = 8
_IPV6_PKTINFO: Final = 50
_INFO: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, address to answer from, address it was sent to
_INFO6: Final = struct.Struct("=16si")  # struct in6_pktinfo: address, interface
_CMSGHDR: Final = struct.Struct("=Qii")
_LOOPBACK_INDEX: Final = 1
_RECEIVE_BUFFER: Final = 1 << 20


@attrs.frozen
class Route:
    """How a datagram came, which is how its answer goes."""

    index: int = 0
    """Of the interface; 0 when the system does not tell."""
    interface: str | None = None
    """Its name."""
    direct: bool = True
    """Whether it was sent to an address of this host, not to everybody."""
    ancillary: tuple[tuple[int, int, bytes], ...] = ()
    """What makes an answer go the same way."""
    control: bytes = b""
    """The same as the kernel wants it."""


Heard: TypeAlias = tuple[bytes, Address, Route]
Outgoing: TypeAlias = tuple[bytes, Address, Route]

NO_ROUTE: Final = Route()


def route_by(index: int, source: str, family: int, *, interface: str | None = None, direct: bool = True) -> Route:
    """Return the route by an interface, from a source address, or from any when that is empty."""
    if not HAVE_ROUTES:
        return Route(index, interface, direct)
    if family == socket.AF_INET6:
        packed = socket.inet_pton(socket.AF_INET6, source or "::")
        item = (int(socket.IPPROTO_IPV6), _IPV6_PKTINFO, _INFO6.pack(packed, index))
    else:
        packed = socket.inet_pton(socket.AF_INET, source or "0.0.0.0")
        item = (int(socket.IPPROTO_IP), _IP_PKTINFO, _INFO.pack(index, packed, bytes(4)))
    data = item[2]
    control = _CMSGHDR.pack(_CMSGHDR.size + len(data), item[0], item[1]) + data
    return Route(index, interface, direct, (item,), control.ljust((len(control) + 7) & ~7, b"\0"))


class _Routes(dict[bytes, Route]):
    """Routes by what the kernel tells."""

    def __missing__(self, control: bytes) -> Route:
        route = NO_ROUTE
        for level, kind, value in control_messages(control):
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                index, local, target = _INFO.unpack_from(value)
                # For a broadcast the kernel proposes the source that its routes prefer, of whatever interface; left
                # open, it is chosen for the interface that the answer is sent by.
                direct = local == target
                route = self._make(index, socket.AF_INET, local if direct else bytes(4), direct)
            elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                target, index = _INFO6.unpack_from(value)
                direct = target[0] != 0xFF
                route = self._make(index, socket.AF_INET6, target if direct else bytes(16), direct)
        if len(self) >= _MAX_ROUTES:
            self.clear()
        self[control] = route
        return route

    def _make(self, index: int, family: int, source: bytes, direct: bool) -> Route:
        try:
            name = socket.if_indextoname(index)
        except OSError:
            name = None
        # To an address of this host the way leads by the loopback interface, whatever interface the address is of.
        by = 0 if index == _LOOPBACK_INDEX else index
        route = route_by(by, socket.inet_ntop(family, source), family, interface=name, direct=direct)
        return attrs.evolve(route, index=index)


class Channel:
    """A UDP socket with routes.

    Args:
        loop: the event loop.
        sock: a bound socket, which the channel owns from now on.
        on_batch: called with what has arrived.
        fixed: the route of everything that it hears, where the system does not tell.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_batch: Callable[[list[Heard]], object],
        fixed: Route | None = None,
    ) -> None:
        self.family = sock.family
        self.address: Address = sock.getsockname()
        self.errors = 0
        """What the system reported instead of a datagram."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_batch = on_batch
        self._fixed = fixed
        self._routes = _Routes()
        have = probe()
        self._receives_many = have.recvmmsg and HAVE_ROUTES and fixed is None
        self._sends_many = have.sendmmsg and HAVE_ROUTES and fixed is None
        self._arena = arena_of(loop) if self._receives_many or self._sends_many else None
        self._poller = poller_of(loop)
        sock.setblocking(False)
        if HAVE_ROUTES and fixed is None:
            ask_for_destinations(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        except OSError:
            pass  # the system's own size will do
        self._poller.add_reader(self._fd, self._on_readable)

    @property
    def socket(self) -> socket.socket:
        """The socket, for setting options."""
        return self._sock

    def forget_routes(self) -> None:
        """Ask the system for the names of interfaces anew."""
        self._routes.clear()

    def close(self) -> None:
        """Close at once."""
        if self._sock.fileno() >= 0:
            self._poller.remove_reader(self._fd)
            self._sock.close()

    # Receiving.

    def _on_readable(self) -> None:
        for _ in range(_BATCHES_PER_TURN):
            if self._sock.fileno() < 0:
                return
            try:
                batch = self._receive()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self.errors += 1
                if exc.errno in (errno.EBADF, errno.ENOTSOCK):
                    return
                continue
            if batch:
                try:
                    self._on_batch(batch)
                except Exception as exc:
                    self._loop.call_exception_handler({"message": "taking a batch failed", "exception": exc})
            if len(batch) < SLOTS:
                return

    def _receive(self) -> list[Heard]:
        if self._receives_many and self._arena is not None:
            routes = self._routes
            batch = self._arena.receive_with_control(self._fd, self._arena.codec(self.family))
            return [(data, addr, routes[control]) for data, addr, control in batch]
        return self._receive_singly()

    def _receive_singly(self) -> list[Heard]:
        batch: list[Heard] = []
        told = HAVE_ROUTES and self._fixed is None
        while len(batch) < SLOTS:
            try:
                if told:
                    data, notes, _, addr = self._sock.recvmsg(SLOT_SIZE, CONTROL_SIZE)
                    batch.append((data, addr, self._route_of(notes)))
                else:
                    data, addr = self._sock.recvfrom(SLOT_SIZE)
                    batch.append((data, addr, self._fixed or NO_ROUTE))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if batch:
                    break
                raise
        return batch

    def _route_of(self, notes: Sequence[tuple[int, int, bytes]]) -> Route:
        packed = [
            _CMSGHDR.pack(_CMSGHDR.size + len(v), lv, k) + v.ljust((len(v) + 7) & ~7, b"\0") for lv, k, v in notes
        ]
        return self._routes[b"".join(packed)]

    # Sending.

    def send(self, data: bytes, addr: Address, route: Route = NO_ROUTE) -> None:
        """Send one datagram at once.

        Raises:
            OSError: the system refuses it, or has no room for it now.
        """
        if route.ancillary and self._fixed is None:
            self._sock.sendmsg([data], route.ancillary, 0, addr)
        else:
            self._sock.sendto(data, addr)

    def send_many(self, items: list[Outgoing]) -> int:
        """Send datagrams, each its way, by few system calls. Return how many the system refused."""
        routes = [item[2] for item in items]
        if routes.count(routes[0]) == len(routes):
            return self._send_group(items, routes[0])
        items.sort(key=lambda item: item[2].control)
        return sum(self._send_group(list(group), group_route) for group_route, group in groupby(items, lambda i: i[2]))

    def _send_group(self, items: list[Outgoing], route: Route) -> int:
        arena = self._arena
        names = None
        if self._sends_many and arena is not None and len(items) > 1:
            codec = arena.codec(self.family)
            names = codec.encode_all([item[1] for item in items], None)
        if names is None or arena is None:
            return sum(not self._sent(item) for item in items)
        payloads = [item[0] for item in items]
        count, start, failed = len(items), 0, 0
        while start < count:
            try:
                start += arena.send(self._fd, payloads, names, codec.size, start, route.control)
            except (BlockingIOError, InterruptedError):
                return failed + count - start
            except OSError:
                failed += 1
                start += 1
        return failed

    def _sent(self, item: Outgoing) -> bool:
        try:
            self.send(*item)
        except OSError:
            return False
        return True
