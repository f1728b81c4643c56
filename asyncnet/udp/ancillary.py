"""What the kernel tells beside a datagram: where it was sent to, its TOS byte, drops, how a train divides."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from asyncnet.addresses import Address
from asyncnet.udp.capabilities import SOL_UDP, UDP_GRO, probe

__all__ = [
    "CONTROL_SIZE",
    "GRO_PLACE",
    "Datagram",
    "Train",
    "ask_for",
    "ask_for_destinations",
    "control_messages",
    "datagrams_of",
]

CONTROL_SIZE: Final = 192
"""Bytes for ancillary data: every kind that is asked for fits."""
GRO_PLACE: Final = 16
"""Where the size of a train's segments stands when it is the only thing that was asked for: behind the header."""

_CMSGHDR: Final = struct.Struct("=Qii")
_IP_TOS: Final = 1
_IP_PKTINFO: Final = 8
_IP_RECVTOS: Final = 13
_SO_RXQ_OVFL: Final = 40
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
_IPV6_RECVTCLASS: Final = 66
_IPV6_TCLASS: Final = 67


class Datagram(NamedTuple):
    """A datagram with what the kernel tells of it."""

    data: bytes
    addr: Address
    local_addr: str | None = None
    """The address that it was sent to."""
    interface: int = 0
    """Index of the interface that it came by; 0 when not asked for."""
    tos: int = 0
    """The TOS byte or traffic class; the lowest two bits are ECN."""
    dropped: int = 0
    """Datagrams that the kernel had dropped before this one, for want of room in the receive buffer."""
    truncated: bool = False
    """Whether it was larger than the buffer for it."""
    reply_addr: str | None = None
    """The address of this host to answer from: for a broadcast not `local_addr`, for multicast over IPv6 None."""


class Train(NamedTuple):
    """Datagrams of one sender that the kernel has joined (UDP_GRO)."""

    data: memoryview
    """Their payloads, one behind the other; valid until the callback that gets it returns."""
    segment_size: int
    """Bytes of each payload but the last, which may be shorter."""
    addr: Address


def ask_for(sock: socket.socket, *, trains: bool, notes: bool) -> None:
    """Switch ancillary data on, as far as this system and this kind of socket have it."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    six = sock.family == socket.AF_INET6
    if trains and probe().gro:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    if notes and sys.platform == "linux":
        ask_for_destinations(sock)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)


def ask_for_destinations(sock: socket.socket) -> None:
    """Have the kernel tell where each datagram was sent to, and by which interface it came, on Linux.

    It notes the interface as a datagram arrives: before the socket is bound is the time to ask.
    """
    if sys.platform != "linux":
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    elif sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def control_messages(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Take a control buffer apart: a header of length, level and type, then the data, aligned to 8 bytes."""
    place = 0
    while place + _CMSGHDR.size <= len(control):
        length, level, kind = _CMSGHDR.unpack_from(control, place)
        yield level, kind, control[place + _CMSGHDR.size : place + length]
        place += max(_CMSGHDR.size, (length + 7) & ~7)


def datagrams_of(data: bytes, addr: Address, notes: Iterable[tuple[int, int, bytes]], flags: int) -> list[Datagram]:
    """Return the datagrams in one slot.

    Args:
        data: one datagram, or a train of them (UDP_GRO).
        addr: the sender.
        notes: ancillary data, as `socket.recvmsg` returns it.
        flags: of the message.
    """
    local_addr: str | None = None
    reply_addr: str | None = None
    interface = tos = segment_size = dropped = 0
    for level, kind, value in notes:
        if level == SOL_UDP and kind == UDP_GRO:
            segment_size = _integer(value[:4])
        elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            interface, local_addr = _integer(value[:4]), socket.inet_ntop(socket.AF_INET, value[8:12])
            reply_addr = socket.inet_ntop(socket.AF_INET, value[4:8])
        elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            interface, local_addr = _integer(value[16:20]), socket.inet_ntop(socket.AF_INET6, value[:16])
            reply_addr = None if value[0] == 0xFF else local_addr
        elif level == socket.IPPROTO_IP and kind == _IP_TOS:
            tos = value[0]
        elif level == socket.IPPROTO_IPV6 and kind == _IPV6_TCLASS:
            tos = _integer(value[:4])
        elif level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
            dropped = _integer(value[:4])
    truncated = bool(flags & socket.MSG_TRUNC)
    step = segment_size or len(data) or 1
    return [
        Datagram(data[start : start + step], addr, local_addr, interface, tos, dropped, truncated, reply_addr)
        for start in range(0, len(data) or 1, step)
    ]


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)
