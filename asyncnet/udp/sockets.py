"""UDP sockets: opened with errors that name the address, and set up for multicast."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from typing import Final

from asyncnet.addresses import Address, explain
from asyncnet.resolver import resolve
from asyncnet.udp.ancillary import ask_for_destinations

__all__ = ["join_group", "leave_group", "open_socket", "refused_addresses", "route_mtu", "set_multicast"]

_MREQN: Final = struct.Struct("=4s4si")  # struct ip_mreqn: group, address, interface
# Without them, Linux delivers the groups that any socket of the host has joined (ip(7), IP_MULTICAST_ALL).
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
_IP_MTU: Final = 14  # linux/in.h
_IPV6_MTU: Final = 24  # linux/in6.h
_ERRNO: Final = struct.Struct("=I")  # the beginning of struct sock_extended_err
_MAX_ERRORS: Final = 64
_MREQ6: Final = struct.Struct("=16si")  # struct ipv6_mreq: group, interface


async def open_socket(
    *,
    local: tuple[str, int] | None = None,
    remote: tuple[str, int] | None = None,
    broadcast: bool = False,
    reuse_port: bool = False,
    share_broadcasts: bool = False,
    destinations: bool = False,
) -> socket.socket:
    """Return a non-blocking UDP socket, bound, connected, or both; names are resolved.

    Args:
        local: host and port to bind.
        remote: host and port to connect to.
        broadcast: allow sending to broadcast addresses.
        reuse_port: share the port; each datagram goes to one of the sockets.
        share_broadcasts: share the port; each broadcast goes to every one of the sockets.
        destinations: have the kernel tell where each datagram was sent to, from the first one on.

    Raises:
        OSError: an address does not resolve or cannot be used; the message names it and the way out.
    """
    remote_info = await _first(remote, "send UDP to") if remote else None
    local_info = await _first(local, "bind UDP", remote_info[0] if remote_info else 0) if local else None
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
        if destinations:
            ask_for_destinations(sock)
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


def refused_addresses(sock: socket.socket) -> list[Address]:
    """Take from the error queue of a socket (IP_RECVERR, ip(7)) where those datagrams went that were refused."""
    found: list[Address] = []
    if sys.platform != "linux" or sock.fileno() < 0:
        return found
    timeout = sock.gettimeout()
    sock.settimeout(0)  # the queue never lets anybody wait, but a socket of gevent does when it is empty
    try:
        for _ in range(_MAX_ERRORS):
            _, notes, _, address = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            if any(len(value) >= 4 and _ERRNO.unpack_from(value)[0] == errno.ECONNREFUSED for _, _, value in notes):
                found.append(address)
    except OSError:  # it is empty
        pass
    finally:
        sock.settimeout(timeout)
    return found


def route_mtu(address: Address) -> int | None:
    """Return the MTU of the route to an address in bytes, None where the system does not tell."""
    if sys.platform != "linux":
        return None
    is_ipv6 = ":" in address[0]
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
            return probe.getsockopt(*((socket.IPPROTO_IPV6, _IPV6_MTU) if is_ipv6 else (socket.IPPROTO_IP, _IP_MTU)))
        except OSError:
            return None


async def _first(address: tuple[str, int], action: str, family: int = socket.AF_UNSPEC) -> tuple[int, Address]:
    return (await resolve(*address[:2], action=action, kind=socket.SOCK_DGRAM, family=family))[0]


def join_group(sock: socket.socket, group: str, interface: str | int | None) -> None:
    """Receive what is sent to a multicast group, and to no group that only other sockets have joined.

    Args:
        sock: a bound UDP socket of the group's family.
        group: the group's address.
        interface: name or index of the interface to listen on; None lets the system choose.

    Raises:
        ValueError: `group` is no multicast address of the socket's family.
        OSError: there is no such interface, or the system refuses.
    """
    _change_membership(sock, group, interface, join=True)


def leave_group(sock: socket.socket, group: str, interface: str | int | None) -> None:
    """Undo `join_group`; the arguments are the same."""
    _change_membership(sock, group, interface, join=False)


def _change_membership(sock: socket.socket, group: str, interface: str | int | None, *, join: bool) -> None:
    address = ipaddress.ip_address(group)
    if not address.is_multicast or (address.version == 6) != (sock.family == socket.AF_INET6):
        raise ValueError(f"group: {group} is no multicast address of the socket's family")
    index = _interface_index(interface)
    try:
        if address.version == 6:
            option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
            if sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, option, _MREQ6.pack(address.packed, index))
        else:
            if sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            option = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
            sock.setsockopt(socket.IPPROTO_IP, option, _MREQN.pack(address.packed, bytes(4), index))
    except OSError as exc:
        raise explain(exc, "join" if join else "leave", (group, sock.getsockname()[1])) from exc


def set_multicast(
    sock: socket.socket, *, ttl: int | None = None, loop: bool | None = None, interface: str | int | None = None
) -> None:
    """Set how multicast datagrams leave a socket; None leaves a setting as it is.

    Args:
        sock: a UDP socket.
        ttl: routers that a datagram passes at most, 0 to 255; 1 stays in the subnet, 0 on the host.
        loop: whether this host's own members of the group hear it too.
        interface: name or index of the interface that it leaves by.

    Raises:
        ValueError: `ttl` is out of range.
        OSError: there is no such interface, or the system refuses.
    """
    if ttl is not None and not 0 <= ttl <= 255:
        raise ValueError(f"ttl must be between 0 and 255, not {ttl}")
    six = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    if ttl is not None:
        sock.setsockopt(level, socket.IPV6_MULTICAST_HOPS if six else socket.IP_MULTICAST_TTL, ttl)
    if loop is not None:
        sock.setsockopt(level, socket.IPV6_MULTICAST_LOOP if six else socket.IP_MULTICAST_LOOP, loop)
    if interface is not None:
        index = _interface_index(interface)
        if six:
            sock.setsockopt(level, socket.IPV6_MULTICAST_IF, index)
        else:
            sock.setsockopt(level, socket.IP_MULTICAST_IF, _MREQN.pack(bytes(4), bytes(4), index))


def _interface_index(interface: str | int | None) -> int:
    if interface is None:
        return 0
    if isinstance(interface, int):
        return interface
    try:
        return socket.if_nametoindex(interface)
    except OSError as exc:
        raise OSError(exc.errno, f"this host has no interface {interface!r}; 'asyncnet info' lists them") from exc
