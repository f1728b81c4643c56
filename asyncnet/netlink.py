"""The kernel's own list of interfaces and addresses, over rtnetlink (Linux; rtnetlink(7)).

Two dumps, links and addresses, on one unprivileged socket: no process is started, no file is parsed, and every address
of an interface is there, which the older SIOCGIF* requests do not give.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

import attrs

__all__ = ["Link", "read_interfaces"]

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
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


@attrs.define
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    flags: int
    mtu: int | None
    addresses: list[tuple[str, int]] = attrs.field(factory=list)
    """Each address with its prefix length in bits."""


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
            links[index] = Link(index, os.fsdecode(name), flags, struct.unpack("=I", mtu)[0] if mtu else None)
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
