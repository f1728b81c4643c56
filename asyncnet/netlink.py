"""The system's own list of interfaces and addresses: over rtnetlink on Linux (rtnetlink(7)), by getifaddrs elsewhere.

On Linux it is two dumps, links and addresses, on one unprivileged socket: no process is started, no file is parsed, and
every address of an interface is there, which the older SIOCGIF* requests do not give. The same kind of socket tells
when something changes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

import attrs

__all__ = ["Link", "get_interfaces", "open_monitor", "read_interfaces"]

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length, type

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLM_F_REQUEST_DUMP: Final = 0x1 | 0x300
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_CHANGES: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


@attrs.define
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    flags: int
    mtu: int | None
    addresses: list[tuple[str, int]] = attrs.field(factory=list)
    """Each address with its prefix length in bits."""
    hardware: str | None = None
    """The address of the card."""


def read_interfaces() -> list[Link]:
    """Return every interface with its addresses, in the order of their indexes.

    Raises:
        OSError: the kernel refuses, or does not answer within a second.
    """
    links: dict[int, Link] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1)
        sock.bind((0, 0))
        for body in _dump(sock, _RTM_GETLINK, _RTM_NEWLINK):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            attributes = dict(_attributes(body[_LINK.size :]))
            name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0")
            mtu = attributes.get(_IFLA_MTU)
            card = attributes.get(_IFLA_ADDRESS, b"")
            hardware = card.hex(":") if any(card) else None
            mtu_bytes = struct.unpack("=I", mtu)[0] if mtu else None
            links[index] = Link(index, os.fsdecode(name), flags, mtu_bytes, hardware=hardware)
        for body in _dump(sock, _RTM_GETADDR, _RTM_NEWADDR):
            family, prefix, _, _, index = _ADDRESS.unpack_from(body)
            attributes = dict(_attributes(body[_ADDRESS.size :]))
            # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL this host's.
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if raw and index in links and family in (socket.AF_INET, socket.AF_INET6):
                links[index].addresses.append((socket.inet_ntop(family, raw), prefix))
    return [links[index] for index in sorted(links)]


def _dump(sock: socket.socket, request: int, answer: int) -> Iterator[bytes]:
    sock.send(_HEADER.pack(_HEADER.size + 4, request, _NLM_F_REQUEST_DUMP, request, 0) + bytes(4))
    while True:
        data = sock.recv(65536)
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"cannot list the interfaces: {os.strerror(number)}")
            if kind == answer:
                yield body
            data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def open_monitor() -> socket.socket:
    """Return a non-blocking socket that becomes readable when an interface or an address comes, goes or changes.

    Raises:
        OSError: this is not Linux, or the kernel refuses.
    """
    if sys.platform != "linux":
        raise OSError("only Linux tells when interfaces change")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, _CHANGES))
    except BaseException:
        sock.close()
        raise
    return sock


class _IfAddrs(ctypes.Structure):
    """struct ifaddrs (getifaddrs(3)), as far as Linux and the BSDs agree."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
]


def get_interfaces() -> list[Link]:
    """Return every interface with its addresses, in the order of their indexes, by getifaddrs(3); no MTU.

    Raises:
        OSError: the system refuses.
    """
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    library.freeifaddrs.argtypes = [ctypes.c_void_p]
    first = ctypes.POINTER(_IfAddrs)()
    if library.getifaddrs(ctypes.byref(first)):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot list the interfaces: {os.strerror(number)}")
    links: dict[str, Link] = {}
    try:
        each = first
        while bool(each):  # a null pointer is false
            item = each.contents
            name = os.fsdecode(item.name)
            if name not in links:
                links[name] = Link(socket.if_nametoindex(name), name, item.flags, None)
            address = _socket_address(item.address)
            mask = _socket_address(item.netmask)
            if address is not None and mask is not None:
                prefix = int.from_bytes(mask[1], "big").bit_count()
                links[name].addresses.append((socket.inet_ntop(*address), prefix))
            each = item.next
    finally:
        library.freeifaddrs(first)
    return sorted(links.values(), key=lambda link: link.index)


def _socket_address(place: int | None) -> tuple[int, bytes] | None:
    """Return family and address in a struct sockaddr; None when it is of another kind."""
    if not place:
        return None
    head = ctypes.string_at(place, 2)
    # The BSDs have a byte for the length before that for the family.
    family = int.from_bytes(head, sys.byteorder) if sys.platform in ("linux", "win32") else head[1]
    if family == socket.AF_INET:
        return family, ctypes.string_at(place + 4, 4)
    if family == socket.AF_INET6:
        return family, ctypes.string_at(place + 8, 16)
    return None
