"""The sockets of one program on every interface: what all four of ask, answer, announce and browse stand on."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

from asyncnet.addresses import Address, Interface, explain, interfaces
from asyncnet.broadcast.channel import HAVE_ROUTES, Channel, Heard, Outgoing, Route, route_by
from asyncnet.broadcast.ways import Way, WayReport, logger, ways_of
from asyncnet.udp.ancillary import ask_for_destinations
from asyncnet.udp.sockets import join_group, open_socket

__all__ = ["Medium"]

_MAX_REPORTS: Final = 1024


class Medium:
    """Sockets on a port, and the ways that lead from them to everybody.

    Args:
        on_batch: called with what has arrived.
        ipv6: send to and hear IPv6 too.
        group: a multicast group to send to and to hear.
        ways: where to send to, instead of everywhere.
    """

    def __init__(
        self,
        on_batch: Callable[[list[Heard]], object],
        *,
        ipv6: bool = False,
        group: str | None = None,
        ways: Sequence[Way] | None = None,
    ) -> None:
        self.reports: dict[Way, WayReport] = {}
        self._on_batch = on_batch
        self._all_hosts = ipv6
        self._ipv6 = ipv6 or (group is not None and ":" in group)
        self._group = group
        self._given = list(ways) if ways is not None else None
        if ways is not None and any(":" in way.target for way in ways):
            self._ipv6 = True
        self._ways: list[Way] = list(ways or ())
        self._channels: dict[int, Channel] = {}
        self._bound: dict[str, Channel] = {}  # by source, where the system has no routes
        self._joined: set[int] = set()
        self._hears = False
        self._own: set[str] = set()

    @property
    def address(self) -> Address:
        """The address of the first socket."""
        return next(iter(self._channels.values())).address

    async def open(self, host: str, port: int, *, share: bool, sock: socket.socket | None = None) -> None:
        """Open the sockets.

        Args:
            host: the local address; empty for every one.
            port: the local port; 0 for any free one.
            share: let other programs use the same port; each broadcast then goes to every one of them.
            sock: a bound IPv4 socket to use instead of one on `host` and `port`.

        Raises:
            OSError: the port cannot be used; the message says why and what to do.
        """
        loop = asyncio.get_running_loop()
        self._hears = share
        try:
            if sock is not None:
                self._channels[socket.AF_INET] = Channel(loop, sock, self._on_batch)
                port = sock.getsockname()[1]
            elif ":" not in host:
                sock = await open_socket(
                    local=(host or "0.0.0.0", port),
                    broadcast=True,
                    share_broadcasts=share,
                    destinations=HAVE_ROUTES,
                )
                self._channels[socket.AF_INET] = Channel(loop, sock, self._on_batch)
                port = sock.getsockname()[1]
            if self._ipv6 or ":" in host:
                try:
                    six = _open_ipv6(host if ":" in host else "::", port, share=share)
                except OSError:
                    if not self._channels or socket.has_ipv6:
                        raise
                else:
                    self._channels[socket.AF_INET6] = Channel(loop, six, self._on_batch)
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self, found: list[Interface] | None = None) -> None:
        """Look for the ways anew, because interfaces or addresses may have changed."""
        try:
            found = interfaces() if found is None else found
        except OSError as exc:
            logger.warning("%s", exc)
            return
        self._own = {address.address for interface in found for address in interface.addresses}
        for channel in self._channels.values():
            channel.forget_routes()
        if self._given is None:
            self._ways = ways_of(found, ipv6=self._all_hosts, group=self._group)
        if self._group is not None and self._hears:
            self._join(found)
        for source in self._bound.keys() - self._own:
            self._bound.pop(source).close()

    def _join(self, found: list[Interface]) -> None:
        assert self._group is not None
        channel = self._channels.get(socket.AF_INET6 if ":" in self._group else socket.AF_INET)
        usable = {i.index for i in found if i.up and i.addresses and (i.can_multicast or i.loopback)}
        for index in usable - self._joined if channel is not None else ():
            try:
                join_group(channel.socket, self._group, index)  # type: ignore[union-attr]
            except OSError as exc:
                logger.info("%s", exc)
            else:
                self._joined.add(index)
        self._joined &= {i.index for i in found}

    def is_own(self, addr: Address) -> bool:
        """Tell whether a datagram was sent by this program's own socket."""
        ports = {channel.address[1] for channel in (*self._channels.values(), *self._bound.values())}
        return addr[1] in ports and addr[0].partition("%")[0] in self._own

    # Sending.

    def send_all(self, data: bytes, port: int) -> list[OSError]:
        """Send to everybody, whatever way fails; return the errors of those that failed."""
        failures: list[OSError] = []
        if len(self.reports) > _MAX_REPORTS:
            self.reports.clear()
        for way in self._ways:
            report = self.reports.get(way)
            if report is None:
                report = self.reports[way] = WayReport(way)
            try:
                self._send_by(way, data, port)
            except OSError as exc:
                explained = explain(exc, "broadcast to", way.address(port))
                failures.append(explained)
                report.failed += 1
                report.error = str(explained)
                logger.debug("%s (%s)", explained, way.interface)
            else:
                report.sent += 1
                report.error = ""
        return failures

    @property
    def ways(self) -> list[Way]:
        """Where a broadcast goes to now."""
        return self._ways

    def _send_by(self, way: Way, data: bytes, port: int) -> None:
        channel = self._channels.get(way.family)
        if channel is None:
            raise OSError("there is no socket for that kind of address")
        addr = way.address(port)
        if not way.index:
            channel.send(data, addr)
        elif HAVE_ROUTES:
            channel.send(data, addr, route_by(way.index, way.source, way.family))
        elif way.source:
            self._bound_to(way, channel).send(data, addr)
        else:
            channel.send(data, addr)  # over IPv6 the scope of the address does it

    def _bound_to(self, way: Way, channel: Channel) -> Channel:
        """Return the socket that is bound to the source of a way."""
        bound = self._bound.get(way.source)
        if bound is None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.bind((way.source, 0))
                route = Route(way.index, way.interface)
                bound = Channel(asyncio.get_running_loop(), sock, self._on_batch, fixed=route)
            except BaseException:
                sock.close()
                raise
            self._bound[way.source] = bound
        return bound

    def send(self, data: bytes, addr: Address, route: Route) -> None:
        """Send to one, the way that something has come.

        Raises:
            OSError: the system refuses.
        """
        self._channel_for(addr).send(data, addr, route)

    def send_many(self, items: list[Outgoing]) -> int:
        """Send to many, each the way that something has come; return how many were refused."""
        if len(self._channels) == 1:
            return next(iter(self._channels.values())).send_many(items)
        failed = 0
        for family, channel in self._channels.items():
            own = [item for item in items if (len(item[1]) == 4) == (family == socket.AF_INET6)]
            failed += channel.send_many(own) if own else 0
        return failed

    def _channel_for(self, addr: Address) -> Channel:
        return self._channels[socket.AF_INET6 if len(addr) == 4 else socket.AF_INET]

    @property
    def errors(self) -> int:
        """What the system reported instead of datagrams."""
        return sum(channel.errors for channel in (*self._channels.values(), *self._bound.values()))

    def close(self) -> None:
        """Close every socket at once."""
        for channel in (*self._channels.values(), *self._bound.values()):
            channel.close()


def _open_ipv6(host: str, port: int, *, share: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if HAVE_ROUTES:
            ask_for_destinations(sock)
        if share:
            by_address = sys.platform in ("linux", "win32")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if by_address else socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise explain(exc, "bind UDP", (host, port)) from exc
    return sock
