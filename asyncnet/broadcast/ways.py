"""The ways that lead to everybody: which datagrams a broadcast is, on this host as it is now.

255.255.255.255 alone leaves by one interface only, and some networks and programs know only one of the two kinds of
broadcast. So a broadcast is several datagrams: to the directed broadcast address of every address of every interface
that is up, to 255.255.255.255 through each of these interfaces and, when asked for, to a multicast group and to every
IPv6 host on the link.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs

from asyncnet.addresses import Address, Interface
from asyncnet.resolver import resolve

__all__ = ["ALL_HOSTS", "LIMITED", "Way", "WayReport", "check_group", "logger", "named_ways", "ways_of"]

logger: Final = logging.getLogger("asyncnet.broadcast")

LIMITED: Final = "255.255.255.255"
ALL_HOSTS: Final = "ff02::1"
"""Every IPv6 host on the link (RFC 4291, section 2.7.1)."""


@attrs.frozen
class Way:
    """A datagram to send: where to, and by which interface."""

    target: str
    interface: str | None = None
    """None lets the system choose."""
    index: int = 0
    source: str = ""
    """An address of the interface, over IPv4."""
    scope: int = 0
    """Of an IPv6 target that names one itself."""

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.target else socket.AF_INET

    def address(self, port: int) -> Address:
        """The address to send to."""
        return (self.target, port, 0, self.scope or self.index) if ":" in self.target else (self.target, port)


@attrs.define
class WayReport:
    """How a way has served."""

    way: Way
    sent: int = 0
    failed: int = 0
    error: str = ""
    """What the system said when it last failed; empty when the last datagram left."""


def check_group(group: str | None) -> None:
    """Check a multicast group.

    Raises:
        ValueError: it is none.
    """
    if group is None:
        return
    try:
        if ipaddress.ip_address(group).is_multicast:
            return
    except (ValueError, TypeError):
        pass
    raise ValueError(f"group must be a multicast address, such as 239.255.77.88 or ff02::7788, not {group!r}")


def ways_of(found: Iterable[Interface], *, ipv6: bool = False, group: str | None = None) -> list[Way]:
    """Return the ways of a host.

    Args:
        found: its interfaces. A loopback interface counts only when there is no other way.
        ipv6: send to every IPv6 host on the link too.
        group: a multicast group to send to too.
    """
    outward: list[Way] = []
    inward: list[Way] = []
    for interface in found:
        if interface.up:
            (inward if interface.loopback else outward).extend(_ways_by(interface, ipv6, group))
    if not outward and not inward and sys.platform != "linux":
        return [Way(LIMITED)]  # where the system does not tell the prefixes
    return outward or inward


def _ways_by(interface: Interface, ipv6: bool, group: str | None) -> Iterator[Way]:
    name, index = interface.name, interface.index
    own = [address for address in interface.addresses if ":" not in address.address]
    with_broadcast = [address for address in own if address.broadcast is not None]
    for address in with_broadcast:
        yield Way(address.broadcast or LIMITED, name, index, address.address)
    if with_broadcast and not interface.loopback:
        yield Way(LIMITED, name, index, with_broadcast[0].address)
    has_ipv6 = len(own) < len(interface.addresses) and (interface.can_multicast or interface.loopback)
    if group is not None and ":" not in group and own and (interface.can_multicast or interface.loopback):
        yield Way(group, name, index, own[0].address)
    if group is not None and ":" in group and has_ipv6:
        yield Way(group, name, index)
    if ipv6 and has_ipv6:
        yield Way(ALL_HOSTS, name, index)


async def named_ways(targets: Sequence[str] | None) -> list[Way] | None:
    """Return the ways to targets that somebody names, None when nobody does. One that does not resolve is logged.

    Raises:
        OSError: none of them resolves.
    """
    if targets is None:
        return None
    if isinstance(targets, str) or not targets:
        raise ValueError(f"to must be a list of addresses, not {targets!r}")
    found: list[Way] = []
    failures: list[OSError] = []
    for target in targets:
        try:
            family, address = (await resolve(target, 0, action="broadcast to", kind=socket.SOCK_DGRAM))[0]
        except OSError as exc:
            failures.append(exc)
            logger.info("%s", exc)
            continue
        host = address[0].partition("%")[0]
        scope = address[3] if family == socket.AF_INET6 and len(address) == 4 else 0
        found.append(Way(host, scope=scope))
    if not found:
        raise failures[0]
    return found
