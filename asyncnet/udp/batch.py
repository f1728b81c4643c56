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
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat
from typing import Any, Final

from asyncnet.addresses import Address
from asyncnet.udp.ancillary import CONTROL_SIZE, GRO_PLACE, Datagram, Train, control_messages, datagrams_of
from asyncnet.udp.capabilities import libc

__all__ = ["OUT_SIZE", "SLOTS", "SLOT_SIZE", "AddressCodec", "Arena", "arena_of"]

SLOTS: Final = 64
"""Datagrams of one system call at most."""
SLOT_SIZE: Final = 65536
"""Bytes of a slot: neither a datagram nor a train of them is larger."""
_LARGEST_BATCH: Final = SLOTS * SLOT_SIZE
"""Bytes of a batch. glibc gives freed memory back to the system above a threshold, 128 KiB at first, and a page fault
for each page of the next batch costs more than receiving it. The threshold follows the largest block that was freed."""
_STRIDE: Final = SLOT_SIZE + 192
"""From slot to slot; at a power of two all of them would fall into the same few lines of the processor's caches."""

OUT_SIZE: Final = 1 << 20
"""Bytes of one batch to send at most."""

_MMSGHDR: Final = struct.Struct("=QI4xQQQQi4xI4x")
"""struct mmsghdr on 64-bit Linux: name, its length, iovec, count, control, its length, flags; bytes moved."""
_NAME: Final = 32  # bytes of an address slot; sockaddr_in takes 16, sockaddr_in6 28
_SIN: Final = struct.Struct("=H2s4s8x")
_SIN6: Final = struct.Struct("=H2s4s16sI")
_VECTOR: Final = 16  # bytes of a struct iovec
_MAX_KNOWN_ADDRESSES: Final = 16384
_OFFSETS: Final = range(0, SLOTS * _STRIDE, _STRIDE)


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
        """Return the bytes of `address`, padded to a slot, or None for a name and for what is no address here."""
        try:
            known = self._raw.get(address)
            if known is not None:
                return known
            port = address[1].to_bytes(2, "big")
            host = socket.inet_pton(self.family, address[0])
            if self.family == socket.AF_INET:
                raw = _SIN.pack(self.family, port, host)
            else:
                flow, scope = (address[2], address[3]) if len(address) == 4 else (0, 0)
                raw = _SIN6.pack(self.family, port, flow.to_bytes(4, "big"), host, scope)
        except (OSError, OverflowError, struct.error, AttributeError, TypeError, IndexError):  # whatever people pass
            return None
        self._remember(raw, address)
        return self._raw[address]

    def encode_all(self, addresses: Iterable[Address | None], default: Address | None) -> bytes | None:
        """Return the bytes of many addresses, `default` for None; or None when one of them cannot be encoded."""
        try:
            return b"".join(map(self._raw.__getitem__, addresses))  # type: ignore[arg-type]  # None is not found
        except (KeyError, TypeError):
            names = [self.encode(address or default) for address in addresses]  # type: ignore[arg-type]
            return None if None in names else b"".join(names)  # type: ignore[arg-type]  # None was looked for

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
        shared: bytes of ancillary data that all messages have in common; 0 when each has a slot of its own.
    """

    def __init__(
        self, names: _Memory, vectors: _Memory, control: _Memory | None, name_size: int, shared: int = 0
    ) -> None:
        memory = _Memory(SLOTS * _MMSGHDR.size)
        size = (shared or CONTROL_SIZE) if control is not None else 0
        for i in range(SLOTS):
            name = names.address + i * _NAME if name_size else 0
            place = control.address + (0 if shared else i * CONTROL_SIZE) if control is not None else 0
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
        library = libc()
        arguments: list[Any] = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        self._recvmmsg, self._sendmmsg = library.recvmmsg, library.sendmmsg
        self._recvmmsg.argtypes, self._sendmmsg.argtypes = arguments, arguments[:4]
        self._in = _Memory(SLOTS * _STRIDE)
        whole = memoryview(self._in.mmap)
        self._slots = [whole[offset : offset + SLOT_SIZE] for offset in _OFFSETS]
        self._in_names = _Memory(SLOTS * _NAME)
        self._in_vectors = _Memory(SLOTS * _VECTOR)
        self._control = _Memory(SLOTS * CONTROL_SIZE)
        memoryview(self._in_vectors.mmap).cast("Q")[: 2 * SLOTS] = array(
            "Q", chain.from_iterable((self._in.address + offset, SLOT_SIZE) for offset in _OFFSETS)
        )
        self._out = _Memory(OUT_SIZE)
        self._out_names = _Memory(SLOTS * _NAME)
        self._out_control = _Memory(CONTROL_SIZE)
        self._out_vectors = _Memory(SLOTS * _VECTOR)
        self._out_lengths: list[int] = []  # what the vectors are laid out for
        self._out_places = memoryview(self._out_vectors.mmap).cast("Q")
        bytes(_LARGEST_BATCH)  # freeing it once teaches glibc to keep as much, see above
        self.received_bytes = 0
        """Bytes of the last batch that was received."""
        self._codecs: dict[int, AddressCodec] = {}
        self._in_headers: dict[tuple[int, bool], _Headers] = {}
        self._out_headers: dict[tuple[int, int], _Headers] = {}

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
        return list(zip(self._payloads(headers, count), self._senders(codec, peer, count), strict=False))

    def receive_with_control(self, fd: int, codec: AddressCodec) -> list[tuple[bytes, Address, bytes]]:
        """Receive as `receive` does, with the ancillary data of each datagram as the kernel wrote it."""
        headers, count = self._receive_with_control(fd, codec, None)
        if count < 0:
            return _nothing()
        sizes = headers.control_lengths[:count].tolist()
        control = self._control.mmap
        controls: Iterable[bytes]
        if sizes.count(sizes[0]) == count:
            controls = _cutter(sizes[0], CONTROL_SIZE, count)(control)
        else:
            controls = [control[i * CONTROL_SIZE : i * CONTROL_SIZE + size] for i, size in enumerate(sizes)]
        return list(zip(self._payloads(headers, count), self._senders(codec, None, count), controls, strict=False))

    def _payloads(self, headers: _Headers, count: int) -> Iterable[bytes]:
        data = self._in.mmap
        lengths = headers.lengths[:count].tolist()
        self.received_bytes = sum(lengths)
        length = lengths[0]
        if count > 1 and lengths.count(length) == count:
            return _cutter(length, _STRIDE, count)(data)
        return [data[o : o + n] for o, n in zip(_OFFSETS, lengths, strict=False)]

    def receive_trains(self, fd: int, codec: AddressCodec, peer: Address | None = None) -> list[Train]:
        """Receive where the kernel joins datagrams (UDP_GRO); what came alone is a train of one.

        Arguments and errors are those of `receive`. The trains are valid until the next call.
        """
        headers, count = self._receive_with_control(fd, codec, peer)
        if count < 0:
            return _nothing()
        lengths = headers.lengths[:count].tolist()
        controls = headers.control_lengths[:count].tolist()
        self.received_bytes = sum(lengths)
        trains = []
        for i, sender in enumerate(self._senders(codec, peer, count)):
            if i == count:
                break
            place = i * CONTROL_SIZE + GRO_PLACE
            segment = lengths[i]
            if controls[i]:
                segment = int.from_bytes(self._control.mmap[place : place + 4], sys.byteorder)
            trains.append(Train(self._slots[i][: lengths[i]], segment, sender))
        return trains

    def receive_split_trains(
        self, fd: int, codec: AddressCodec, peer: Address | None = None
    ) -> list[tuple[bytes, Address]]:
        """Receive as `receive_trains` does, and split each train into its datagrams."""
        found: list[tuple[bytes, Address]] = []
        for data, segment, sender in self.receive_trains(fd, codec, peer):
            length = len(data)
            if length <= segment:
                found.append((bytes(data), sender))
                continue
            whole = length // segment
            found += zip(_cutter(segment, segment, whole)(data), repeat(sender))
            if rest := length % segment:
                found.append((bytes(data[length - rest :]), sender))
        return found

    def receive_messages(self, fd: int, codec: AddressCodec, peer: Address | None = None) -> list[Datagram]:
        """Receive with ancillary data; a train (UDP_GRO) is split into its datagrams.

        Arguments and errors are those of `receive`.
        """
        headers, count = self._receive_with_control(fd, codec, peer)
        if count < 0:
            return _nothing()
        found: list[Datagram] = []
        flags = headers.flags[:count].tolist()
        lengths = headers.lengths[:count].tolist()
        controls = headers.control_lengths[:count].tolist()
        for i, sender in zip(range(count), self._senders(codec, peer, count), strict=False):
            data = self._in.mmap[_OFFSETS[i] : _OFFSETS[i] + lengths[i]]
            place = i * CONTROL_SIZE
            notes = control_messages(self._control.mmap[place : place + controls[i]]) if controls[i] else ()
            found += datagrams_of(data, sender, notes, flags[i])
        self.received_bytes = sum(lengths)
        return found

    def _receive_with_control(self, fd: int, codec: AddressCodec, peer: Address | None) -> tuple[_Headers, int]:
        headers = self._headers_in(0 if peer is not None else codec.size, control=True)
        headers.mmap[:] = headers.template  # the kernel wrote the lengths of the last call into it
        return headers, self._recvmmsg(fd, headers.address, SLOTS, socket.MSG_DONTWAIT, None)

    def _senders(self, codec: AddressCodec, peer: Address | None, count: int) -> Iterable[Address]:
        if peer is not None:
            return repeat(peer)
        return map(codec.__getitem__, _cutter(codec.size, _NAME, count)(self._in_names.mmap))

    def send(
        self,
        fd: int,
        payloads: Sequence[bytes | memoryview],
        names: bytes | None,
        name_size: int,
        start: int = 0,
        control: bytes = b"",
    ) -> int:
        """Send many datagrams, `SLOTS` and `OUT_SIZE` bytes at most.

        Args:
            fd: a UDP socket.
            payloads: one for each datagram.
            names: addresses as `AddressCodec.encode_all` returns them; None on a connected socket.
            name_size: bytes of an address, `AddressCodec.size`.
            start: the first of them to send.
            control: ancillary data that goes with each of them, `CONTROL_SIZE` bytes at most.

        Returns:
            How many have left; fewer than there are when the system takes no more now or refuses the next one.

        Raises:
            OSError: the system refuses the first one; `BlockingIOError` when it takes none now.
        """
        if start or len(payloads) > SLOTS:
            payloads = payloads[start : start + SLOTS]
        lengths = list(map(len, payloads))
        if sum(lengths) > OUT_SIZE:
            fitting = sum(end <= OUT_SIZE for end in accumulate(lengths))
            payloads, lengths = payloads[:fitting], lengths[:fitting]
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
            self._out_names.mmap[: count * _NAME] = names[start * _NAME : (start + count) * _NAME]
        shared = len(control)
        headers = self._out_headers.get((name_size, shared))
        if headers is None:
            memory = self._out_control if shared else None
            headers = _Headers(self._out_names, self._out_vectors, memory, name_size, shared)
            self._out_headers[name_size, shared] = headers
        if shared:
            self._out_control.mmap[:shared] = control
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


@lru_cache(maxsize=512)
def _cutter(size: int, stride: int, count: int) -> Callable[..., tuple[bytes, ...]]:
    """Return a function of a buffer and an offset that cuts `count` pieces of `size` bytes, `stride` apart."""
    return struct.Struct(f"{size}s{stride - size}x" * count).unpack_from


def _nothing() -> list[Any]:
    number = ctypes.get_errno()
    if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR):
        return []
    raise OSError(number, os.strerror(number))


_arenas: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Arena] = weakref.WeakKeyDictionary()


def arena_of(loop: asyncio.AbstractEventLoop) -> Arena:
    """Return the arena that the sockets of `loop` share."""
    arena = _arenas.get(loop)
    if arena is None:
        arena = _arenas[loop] = Arena()
    return arena
