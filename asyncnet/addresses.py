"""Addresses as people write them, the classes of ports, this host's interfaces, and subnet arithmetic.

An address is the tuple that the `socket` module uses: ``(host, port)``, and for IPv6 also
``(host, port, flowinfo, scope_id)``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable
from enum import Enum, IntFlag
from typing import Any, TypeAlias

import attrs

from asyncnet.errors import AddressError
from asyncnet.netlink import Link, get_interfaces, read_interfaces

__all__ = [
    "Address",
    "IPNetwork",
    "Interface",
    "InterfaceAddress",
    "InterfaceFlags",
    "PortClass",
    "broadcast_address",
    "client_of",
    "explain",
    "format_address",
    "in_networks",
    "interfaces",
    "parse_address",
    "parse_network",
    "port_class",
    "same_subnet",
]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class PortClass(Enum):
    """Who may use a port."""

    RESERVED = "reserved for the system (0-1023)"
    OPEN = "free for anyone (1024-65535)"


def port_class(port: int) -> PortClass:
    """Return the class of `port`.

    Raises:
        AddressError: `port` is not between 0 and 65535.
    """
    return PortClass.RESERVED if _checked_port(port, str(port)) < 1024 else PortClass.OPEN


def parse_address(text: str, *, default_host: str | None = None, default_port: int | None = None) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` or, with a default, ``HOST`` or ``PORT`` alone.

    Args:
        text: what a person typed. ``*`` as the host means every address, and so does an empty one.
        default_host: the host of a text that is a port number alone; without it such a text is an error.
        default_port: the port of a text without one; without it such a text is an error.

    Returns:
        The host, without brackets, and the port. Names are not looked up.

    Raises:
        AddressError: the text has no such form, the port is no number, or it is above 65535.
    """
    host, port_text = _split(text.strip(), default_host)
    if port_text is None:
        if default_port is None:
            raise AddressError(f"{text!r} has no port: write HOST:PORT, or [IPV6]:PORT")
        port = default_port
    elif port_text.isascii() and port_text.isdigit():
        port = _checked_port(int(port_text), text)
    else:
        raise AddressError(f"{text!r}: the port {port_text!r} is no number")
    if host == "*":
        host = ""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise AddressError(f"{text!r}: {host!r} is no IPv6 address") from None
    elif any(c in host for c in " /[]%@\0") or len(host) > 253:
        raise AddressError(f"{text!r}: {host!r} is no host name")
    elif host.replace(".", "").isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise AddressError(f"{text!r}: {host!r} is no IPv4 address") from None
    return host, port


def _split(text: str, default_host: str | None) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise AddressError(f"{text!r} is no address: write [IPV6]:PORT")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:  # an IPv6 address without brackets has no room for a port
        return text, None
    host, colon, port = text.partition(":")
    if not colon and default_host is not None and text.isascii() and text.isdigit():
        return default_host, text
    if not text:
        raise AddressError("the address is empty: write HOST:PORT, or [IPV6]:PORT")
    return host, port if colon else None


def _checked_port(port: int, text: str) -> int:
    if not 0 <= port <= 65535:
        raise AddressError(f"{text!r}: a port is between 0 and 65535")
    return port


def parse_network(text: str) -> IPNetwork:
    """Parse a network or an address, such as ``192.168.1.0/24``.

    Raises:
        AddressError: it is neither.
    """
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise AddressError(f"{text!r} is no network: write 192.168.1.0/24, 2001:db8::/32 or an address") from None


def in_networks(host: str, networks: Iterable[IPNetwork]) -> bool:
    """Tell whether an address belongs to one of the networks; an IPv4 address mapped into IPv6 counts as IPv4."""
    address = _unmapped(host)
    return any(address in network for network in networks)


def client_of(host: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    address = _unmapped(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _unmapped(host: str) -> IPAddress:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def format_address(address: Address | tuple[Any, ...] | str | bytes | None) -> str:
    """Write an address as ``HOST:PORT`` or ``[IPV6%SCOPE]:PORT``; a Unix socket's path as it is; None as ``-``."""
    if address is None:
        return "-"
    if isinstance(address, str | bytes):
        return os.fsdecode(address) or "unix socket"
    host, port = address[0] or "*", address[1]
    if not isinstance(host, str):  # of a family that is no concern of ours, such as AF_NETLINK
        return str(address)
    if ":" not in host:
        return f"{host}:{port}"
    if len(address) == 4 and address[3] and "%" not in host:
        host = f"{host}%{_scope_name(address[3])}"
    return f"[{host}]:{port}"


def _scope_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


def explain(exc: OSError, action: str, address: Address | tuple[Any, ...] | str | None) -> OSError:
    """Return an error of the same class and errno whose message names the address and the way out.

    Args:
        exc: what the system reported.
        action: what was tried, such as ``"bind UDP"``.
        address: the address that it was tried on.
    """
    place = format_address(address)
    way_out = _way_out(exc, action, address)
    message = f"cannot {action} {place}: {way_out}"
    if isinstance(exc, socket.gaierror):
        return socket.gaierror(exc.errno, message)
    return OSError(exc.errno, message) if exc.errno is not None else type(exc)(message)


def _way_out(exc: OSError, action: str, address: Address | tuple[Any, ...] | str | None) -> str:
    host, port = (str(address[0]), int(address[1])) if isinstance(address, tuple) else ("", 0)
    if isinstance(exc, socket.gaierror):
        return f"the name {host!r} does not resolve ({exc.strerror}); check its spelling, or use a number"
    if exc.errno in (errno.EACCES, errno.EPERM):
        if action.startswith("bind") and 0 < port < 1024:
            return (
                f"port {port} is {PortClass.RESERVED.value} and this process lacks the right to it; "
                "use a port from 1024 up, or run as root or with CAP_NET_BIND_SERVICE"
            )
        return f"the system forbids it ({os.strerror(exc.errno)}); a firewall rule or a missing privilege does that"
    if exc.errno == errno.EADDRINUSE:
        return "another program uses that port; stop it, or choose another port (0 takes any free one)"
    if exc.errno == errno.EADDRNOTAVAIL and action.startswith("bind"):
        return f"{host} is no address of this host; 'asyncnet info' lists them, and 0.0.0.0 or [::] means every one"
    if exc.errno == errno.EAFNOSUPPORT:
        return "this host has no support for that kind of address (is IPv6 switched off?)"
    if exc.errno == errno.ECONNREFUSED:
        return "connection refused: no program listens there; is the server running, and on that port?"
    if exc.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return f"{os.strerror(exc.errno)}: there is no way to that host; check the address and the routes"
    if exc.errno == errno.EMSGSIZE:
        return "the datagram is too large for that path; send less at once"
    return exc.strerror or str(exc) or type(exc).__name__


def same_subnet(a: str, b: str, mask: str | int) -> bool:
    """Tell whether two addresses are in one subnet, as a host does: a bitwise AND of each with the mask.

    Args:
        a: an IPv4 or IPv6 address.
        b: another one.
        mask: the prefix length in bits, or an IPv4 mask such as ``"255.255.255.0"``.

    Raises:
        AddressError: one of the three is malformed.
    """
    try:
        first, second = ipaddress.ip_address(a), ipaddress.ip_address(b)
        bits = int(ipaddress.ip_network(f"{'::' if first.version == 6 else '0.0.0.0'}/{mask}").netmask)
    except ValueError as exc:
        raise AddressError(str(exc)) from None
    return first.version == second.version and int(first) & bits == int(second) & bits


def broadcast_address(address: str, mask: str | int) -> str:
    """Return the directed broadcast address of an IPv4 address's subnet: every bit outside the mask set.

    Args:
        address: an IPv4 address of the subnet.
        mask: the prefix length in bits, or a mask such as ``"255.255.255.0"``.

    Raises:
        AddressError: one of the two is malformed.
    """
    try:
        return str(ipaddress.IPv4Network(f"{address}/{mask}", strict=False).broadcast_address)
    except ValueError as exc:
        raise AddressError(str(exc)) from None


@attrs.frozen
class InterfaceAddress:
    """An address of an interface."""

    address: str
    """Without prefix and scope."""
    prefix: int
    """Length of the network's prefix in bits."""
    broadcast: str | None
    """The directed broadcast address by the mask; None for IPv6 and for prefixes of 31 and 32 bits."""

    @classmethod
    def of(cls, address: str, prefix: int) -> InterfaceAddress:
        """Make one, with the broadcast address computed."""
        has_broadcast = ":" not in address and prefix < 31
        return cls(address, prefix, broadcast_address(address, prefix) if has_broadcast else None)


class InterfaceFlags(IntFlag):
    """What an interface is, in the bits of Linux (netdevice(7)); it sets others too, which have no name here."""

    UP = 0x1
    """Switched on."""
    BROADCAST = 0x2
    LOOPBACK = 0x8
    POINT_TO_POINT = 0x10
    RUNNING = 0x40
    """A cable is plugged in, or the like."""
    MULTICAST = 0x1000


@attrs.frozen
class Interface:
    """A network interface of this host."""

    name: str
    index: int
    mtu: int | None
    """Bytes; None where the system does not tell."""
    flags: InterfaceFlags
    addresses: tuple[InterfaceAddress, ...]
    hardware: str | None = None
    """The address of the card, such as ``02:00:5e:10:00:01``; None where there is none or the system does not tell."""

    @property
    def up(self) -> bool:
        """Whether it is switched on."""
        return InterfaceFlags.UP in self.flags

    @property
    def running(self) -> bool:
        """Whether it is connected to something."""
        return InterfaceFlags.RUNNING in self.flags

    @property
    def loopback(self) -> bool:
        """Whether it leads to this host only."""
        return InterfaceFlags.LOOPBACK in self.flags

    @property
    def can_broadcast(self) -> bool:
        """Whether it knows broadcasts."""
        return InterfaceFlags.BROADCAST in self.flags

    @property
    def can_multicast(self) -> bool:
        """Whether it knows multicast."""
        return InterfaceFlags.MULTICAST in self.flags


def interfaces() -> list[Interface]:
    """Return this host's interfaces as they are now, in the order of their indexes.

    On Linux the kernel is asked over netlink. On macOS and the BSDs getifaddrs tells the same, less the MTU. Elsewhere
    the names come from `socket.if_nameindex`, and the addresses that the host's own name resolves to stand under the
    interface ``"*"``.

    Raises:
        OSError: the system does not answer.
    """
    if sys.platform == "linux":
        links = read_interfaces()
    elif sys.platform == "darwin" or "bsd" in sys.platform:
        links = get_interfaces()
    else:
        return _portable_interfaces()
    return [_interface(link) for link in links]


def _interface(link: Link) -> Interface:
    addresses = tuple(InterfaceAddress.of(address, prefix) for address, prefix in link.addresses)
    return Interface(link.name, link.index, link.mtu, _flags(link.flags), addresses, link.hardware)


def _flags(bits: int) -> InterfaceFlags:
    if sys.platform != "linux":  # the BSDs have the same bits, but for this one
        bits = bits & ~0x1000 | (0x1000 if bits & 0x8000 else 0)
    return InterfaceFlags(bits)


def _portable_interfaces() -> list[Interface]:
    outward = InterfaceFlags.UP | InterfaceFlags.BROADCAST
    inward = InterfaceFlags.UP | InterfaceFlags.LOOPBACK
    found = [
        Interface(name, index, None, inward if name.startswith("lo") else outward, ())
        for index, name in socket.if_nameindex()
    ]
    try:
        resolved = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:  # a host need not know its own name
        resolved = []
    own = sorted({info[4][0] for info in resolved} - {"127.0.0.1", "::1"})
    unknown = tuple(InterfaceAddress(str(a).partition("%")[0], 128 if ":" in str(a) else 32, None) for a in own)
    return [*found, Interface("*", 0, None, outward, unknown)]
