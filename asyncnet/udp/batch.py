"""Many datagrams per system call: recvmmsg and sendmmsg through ctypes, UDP_SEGMENT and UDP_GRO.

A datagram costs two system calls, and a system call costs more than the Python around it. The kernel moves many at
once, but the standard library has no such call, so this module lays out the kernel's structures itself. One `Arena` per
event loop holds buffers, address slots and message headers, all built once. A receive is then one call into libc, one
list of lengths, and for each datagram one slice (a `bytes`) and one look-up of its sender in a dictionary. The memory
is needed only during a call, so every socket of the loop shares it.

libc is called with the GIL held (`ctypes.PyDLL`): the calls never block, and giving it up and taking it again costs
more than they do.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Final, NamedTuple

import attrs

from asyncnet.addresses import Address

__all__ = [
    "DISABLE_VARIABLE",
    "AddressCodec",
    "Arena",
    "Capabilities",
    "Datagram",
    "arena_of",
    "datagrams_of",
    "probe",
]

DISABLE_VARIABLE: Final = "ASYNCNET_UDP_DISABLE"
"""Environment variable: names of `Capabilities`, separated by commas, that are not to be used."""

SLOTS: Final = 64
"""Datagrams of one system call at most."""
SLOT_SIZE: Final = 65536
"""Bytes of a slot: neither a datagram nor a train of them is larger."""

OUT_SIZE: Final = 1 << 20
"""Bytes of one batch to send at most."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_RXQ_OVFL: Final = 40
IP_PKTINFO: Final = 8
IPV6_PKTINFO: Final = 50
IP_TOS: Final = 1
IPV6_TCLASS: Final = 67

_MMSGHDR: Final = struct.Struct("=QI4xQQQQi4xI4x")
"""struct mmsghdr on 64-bit Linux: name, its length, iovec, count, control, its length, flags; bytes moved."""
_NAME: Final = 32  # bytes of an address slot; sockaddr_in takes 16, sockaddr_in6 28
CONTROL_SIZE: Final = 192
"""Bytes of a control slot: every kind of ancillary data that is asked for fits."""
_SIN: Final = struct.Struct("=H2s4s8x")
_SIN6: Final = struct.Struct("=H2s4s16sI")
_VECTOR: Final = 16  # bytes of a struct iovec
_CMSGHDR: Final = struct.Struct("=Qii")
_MAX_KNOWN_ADDRESSES: Final = 16384
_OFFSETS: Final = range(0, SLOTS * SLOT_SIZE, SLOT_SIZE)
_NAME_OFFSETS: Final = range(0, SLOTS * _NAME, _NAME)


@attrs.frozen
class Capabilities:
    """What this kernel and libc have, less what `DISABLE_VARIABLE` switches off.

    Each missing one falls back: without ``recvmmsg`` or ``sendmmsg`` datagrams move one by one, without ``gso`` a train
    leaves as a batch, without ``gro`` it arrives as single datagrams.
    """

    recvmmsg: bool = False
    sendmmsg: bool = False
    gso: bool = False
    """UDP_SEGMENT: one call sends a train of equal-sized datagrams."""
    gro: bool = False
    """UDP_GRO: a train arrives in one slot."""


def probe() -> Capabilities:
    """Ask this system what it has; the environment is read anew at each call."""
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    return Capabilities(**{name: name not in disabled and _has(name) for name in attrs.fields_dict(Capabilities)})


def _has(name: str) -> bool:
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return False
    if name.endswith("mmsg"):
        return hasattr(_libc(), name)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(SOL_UDP, UDP_SEGMENT if name == "gso" else UDP_GRO, 0)
    except OSError:
        return False
    return True


def _libc() -> ctypes.PyDLL:
    return ctypes.PyDLL(None, use_errno=True)


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


class AddressCodec(dict[bytes, Address]):
    """The kernel's addresses of one family as tuples and back; one that was seen before is a look-up.

    Args:
        family: AF_INET or AF_INET6.
    """

    def __init__(self, family: int) -> None:
        super().__init__()
        self.family = family
        self.size = _SIN.size if family == socket.AF_INET else _SIN6.size
        self._raw: dict[Address, bytes] = {}

    def __missing__(self, raw: bytes) -> Address:
        address: Address
        if self.family == socket.AF_INET:
            _, port, host = _SIN.unpack(raw)
            address = (socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big"))
        else:
            _, port, flow, host, scope = _SIN6.unpack(raw)
            name = socket.inet_ntop(socket.AF_INET6, host)
            address = (name, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope)
        self._remember(raw, address)
        return address

    def encode(self, address: Address) -> bytes | None:
        """Return the bytes of `address`, padded to a slot, or None for a name or an address of another family."""
        known = self._raw.get(address)
        if known is not None:
            return known
        try:
            port = address[1].to_bytes(2, "big")
            host = socket.inet_pton(self.family, address[0])
            if self.family == socket.AF_INET:
                raw = _SIN.pack(self.family, port, host)
            else:
                flow, scope = (address[2], address[3]) if len(address) == 4 else (0, 0)
                raw = _SIN6.pack(self.family, port, flow.to_bytes(4, "big"), host, scope)
        except (OSError, OverflowError, struct.error):
            return None
        self._remember(raw, address)
        return self._raw[address]

    def encode_all(self, addresses: Sequence[Address | None], default: Address | None) -> list[bytes] | None:
        """Return the bytes of many addresses, `default` for None; or None when one of them cannot be encoded."""
        names: list[bytes | None] = [self._raw.get(address) for address in addresses]  # type: ignore[arg-type]
        if None in names:
            names = [self.encode(address or default) for address in addresses]  # type: ignore[arg-type]
            if None in names:
                return None
        return names  # type: ignore[return-value]  # None was looked for

    def _remember(self, raw: bytes, address: Address) -> None:
        if len(self._raw) >= _MAX_KNOWN_ADDRESSES:
            self.clear()
            self._raw.clear()
        self[raw] = address
        self._raw[address] = raw.ljust(_NAME, b"\0")


class _Memory:
    """Zeroed memory that is touched late, with its address."""

    def __init__(self, size: int) -> None:
        self.mmap = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.mmap))


class _Headers:
    """Message headers for one kind of call.

    Args:
        names: address slots.
        vectors: one iovec for each message.
        control: control slots; None for messages without ancillary data.
        name_size: bytes of an address; 0 on connected sockets.
    """

    def __init__(self, names: _Memory, vectors: _Memory, control: _Memory | None, name_size: int) -> None:
        memory = _Memory(SLOTS * _MMSGHDR.size)
        for i in range(SLOTS):
            name = names.address + i * _NAME if name_size else 0
            place, size = (control.address + i * CONTROL_SIZE, CONTROL_SIZE) if control is not None else (0, 0)
            vector = vectors.address + i * _VECTOR
            _MMSGHDR.pack_into(memory.mmap, i * _MMSGHDR.size, name, name_size, vector, 1, place, size, 0, 0)
        self.mmap = memory.mmap
        self.address = memory.address
        self.template = memory.mmap[:]
        words = memoryview(memory.mmap).cast("I")
        stride = _MMSGHDR.size // 4
        self.lengths = words[14::stride]
        self.flags = words[12::stride]
        self.control_lengths = words[10::stride]


class Arena:
    """Memory for receiving and sending many datagrams at once; one for all sockets of an event loop."""

    def __init__(self) -> None:
        libc = _libc()
        arguments: list[Any] = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        self._recvmmsg, self._sendmmsg = libc.recvmmsg, libc.sendmmsg
        self._recvmmsg.argtypes, self._sendmmsg.argtypes = arguments, arguments[:4]
        self._in = _Memory(SLOTS * SLOT_SIZE)
        self._in_names = _Memory(SLOTS * _NAME)
        self._in_vectors = _Memory(SLOTS * _VECTOR)
        self._control = _Memory(SLOTS * CONTROL_SIZE)
        memoryview(self._in_vectors.mmap).cast("Q")[: 2 * SLOTS] = array(
            "Q", chain.from_iterable((self._in.address + i * SLOT_SIZE, SLOT_SIZE) for i in range(SLOTS))
        )
        self._out = _Memory(OUT_SIZE)
        self._out_names = _Memory(SLOTS * _NAME)
        self._out_vectors = _Memory(SLOTS * _VECTOR)
        self._out_lengths: list[int] = []  # what the vectors are laid out for
        self._out_places = memoryview(self._out_vectors.mmap).cast("Q")
        self.received_bytes = 0
        """Bytes of the last batch that was received."""
        self._codecs: dict[int, AddressCodec] = {}
        self._in_headers: dict[tuple[int, bool], _Headers] = {}
        self._out_headers: dict[int, _Headers] = {}

    def codec(self, family: int) -> AddressCodec:
        """Return the codec that the sockets of a family share."""
        return self._codecs.setdefault(family, AddressCodec(family))

    def receive(self, fd: int, codec: AddressCodec, peer: Address | None = None) -> list[tuple[bytes, Address]]:
        """Receive what has arrived, `SLOTS` datagrams at most; an empty list when nothing has.

        Args:
            fd: a UDP socket.
            codec: of the socket's family.
            peer: the address that a connected socket has as its peer.

        Raises:
            OSError: what the system reports instead of a datagram.
        """
        headers = self._headers_in(0 if peer is not None else codec.size, control=False)
        count = self._recvmmsg(fd, headers.address, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            return _nothing()
        data = self._in.mmap
        lengths = headers.lengths[:count].tolist()
        self.received_bytes = sum(lengths)
        if peer is not None:
            return [(data[o : o + n], peer) for o, n in zip(_OFFSETS, lengths, strict=False)]
        names, size = self._in_names.mmap[: count * _NAME], codec.size
        return [
            (data[o : o + n], codec[names[a : a + size]])
            for o, n, a in zip(_OFFSETS, lengths, _NAME_OFFSETS, strict=False)
        ]

    def receive_messages(self, fd: int, codec: AddressCodec, peer: Address | None = None) -> list[Datagram]:
        """Receive with ancillary data; trains (UDP_GRO) are split into their datagrams.

        Arguments and errors are those of `receive`.
        """
        headers = self._headers_in(0 if peer is not None else codec.size, control=True)
        headers.mmap[:] = headers.template  # the kernel wrote the lengths of the last call into it
        count = self._recvmmsg(fd, headers.address, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            return _nothing()
        found: list[Datagram] = []
        names, size = self._in_names.mmap[: count * _NAME], codec.size
        flags = headers.flags[:count].tolist()
        lengths = headers.lengths[:count].tolist()
        for i, control in enumerate(headers.control_lengths[:count].tolist()):
            addr = peer if peer is not None else codec[names[i * _NAME : i * _NAME + size]]
            data = self._in.mmap[i * SLOT_SIZE : i * SLOT_SIZE + lengths[i]]
            place = i * CONTROL_SIZE
            notes = _control_messages(self._control.mmap[place : place + control]) if control else ()
            found += datagrams_of(data, addr, notes, flags[i])
        self.received_bytes = sum(lengths)
        return found

    def send(
        self, fd: int, payloads: Sequence[bytes], names: Sequence[bytes] | None, name_size: int, start: int = 0
    ) -> int:
        """Send many datagrams, `SLOTS` and `OUT_SIZE` bytes at most.

        Args:
            fd: a UDP socket.
            payloads: one for each datagram.
            names: addresses as `AddressCodec.encode` returns them; None on a connected socket.
            name_size: bytes of an address, `AddressCodec.size`.
            start: the first of them to send.

        Returns:
            How many have left; fewer than there are when the system takes no more now or refuses the next one.

        Raises:
            OSError: the system refuses the first one; `BlockingIOError` when it takes none now.
        """
        if start or len(payloads) > SLOTS:
            payloads = payloads[start : start + SLOTS]
            names = None if names is None else names[start : start + SLOTS]
        lengths = list(map(len, payloads))
        if sum(lengths) > OUT_SIZE:
            fitting = sum(end <= OUT_SIZE for end in accumulate(lengths))
            payloads, lengths = payloads[:fitting], lengths[:fitting]
            names = None if names is None else names[:fitting]
        count = len(lengths)
        blob = b"".join(payloads)
        self._out.mmap[: len(blob)] = blob
        if lengths != self._out_lengths:
            ends = accumulate(lengths, initial=self._out.address)
            self._out_places[: 2 * count] = array("Q", chain.from_iterable(zip(ends, lengths, strict=False)))
            self._out_lengths = lengths
        if names is None:
            name_size = 0
        else:
            self._out_names.mmap[: count * _NAME] = b"".join(names)
        headers = self._out_headers.get(name_size)
        if headers is None:
            headers = _Headers(self._out_names, self._out_vectors, None, name_size)
            self._out_headers[name_size] = headers
        sent: int = self._sendmmsg(fd, headers.address, count, socket.MSG_DONTWAIT)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return sent

    def _headers_in(self, name_size: int, *, control: bool) -> _Headers:
        headers = self._in_headers.get((name_size, control))
        if headers is None:
            headers = _Headers(self._in_names, self._in_vectors, self._control if control else None, name_size)
            self._in_headers[name_size, control] = headers
        return headers


def _nothing() -> list[Any]:
    number = ctypes.get_errno()
    if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR):
        return []
    raise OSError(number, os.strerror(number))


def _control_messages(control: bytes) -> Iterator[tuple[int, int, bytes]]:
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
    interface = tos = segment_size = dropped = 0
    for level, kind, value in notes:
        if level == SOL_UDP and kind == UDP_GRO:
            segment_size = _integer(value[:4])
        elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            interface, local_addr = _integer(value[:4]), socket.inet_ntop(socket.AF_INET, value[8:12])
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            interface, local_addr = _integer(value[16:20]), socket.inet_ntop(socket.AF_INET6, value[:16])
        elif level == socket.IPPROTO_IP and kind == IP_TOS:
            tos = value[0]
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_TCLASS:
            tos = _integer(value[:4])
        elif level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
            dropped = _integer(value[:4])
    truncated = bool(flags & socket.MSG_TRUNC)
    step = segment_size or len(data) or 1
    return [
        Datagram(data[start : start + step], addr, local_addr, interface, tos, dropped, truncated)
        for start in range(0, len(data) or 1, step)
    ]


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)


_arenas: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Arena] = weakref.WeakKeyDictionary()


def arena_of(loop: asyncio.AbstractEventLoop) -> Arena:
    """Return the arena that the sockets of `loop` share."""
    arena = _arenas.get(loop)
    if arena is None:
        arena = _arenas[loop] = Arena()
    return arena
