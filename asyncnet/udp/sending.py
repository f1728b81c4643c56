"""The sending half of the datagram transport: what waits for company, what waits for room, and trains."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from abc import abstractmethod
from asyncio import trsock
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Final

from asyncnet.addresses import Address, explain
from asyncnet.poller import poller_of
from asyncnet.udp.batch import SLOTS, arena_of
from asyncnet.udp.capabilities import SOL_UDP, UDP_SEGMENT, Capabilities

__all__ = ["SendingTransport"]

logger: Final = logging.getLogger("asyncnet.udp")

_MAX_TRAIN: Final = 65000
"""Bytes of a train: with its headers it must stay below the 65 535 of an IP packet."""
_MAX_SEGMENTS: Final = 64
_SEGMENT_SIZE: Final = struct.Struct("=H")
_HIGH_WATER: Final = 64 * 1024
_SILENT_LOSSES: Final = 5  # sends after the end that go unmentioned, as in asyncio

_DATA: Final = itemgetter(0)
_ADDRESS: Final = itemgetter(1)
_SHAPE: Final = attrgetter("itemsize", "c_contiguous")
_TRAIN_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT)


class SendingTransport(asyncio.DatagramTransport):
    """Everything of the transport that sends; the arguments are those of `DatagramTransport`."""

    _protocol: Any

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Address | None,
        have: Capabilities,
    ) -> None:
        self._peer = _address_of(sock.getpeername)
        super().__init__(
            {"socket": trsock.TransportSocket(sock), "sockname": _address_of(sock.getsockname), "peername": self._peer}
        )
        self._loop = loop
        self._poller = poller_of(loop)
        self._context = copy_context()
        self._sock = sock
        self._fd = sock.fileno()
        self._address = address or self._peer
        self._closing = False
        self._losses = 0  # above 0: the connection is lost, or about to be
        self._buffer: list[tuple[bytes, Address | None, int]] = []  # with the size of a train's segments, or 0
        self._buffer_size = 0
        self._cork: list[bytes] = []  # what waits for company, and where it goes
        self._cork_addresses: list[Address | None] = []
        self._batching = False  # what arrived last came in company
        self._delivering = False
        self._corking = False  # what names its address goes into the cork, and a flush is sure to come
        self._flush_due = False
        self._writing_paused = False
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self.set_protocol(protocol)
        internet = sock.family in (socket.AF_INET, socket.AF_INET6)
        self._receives_many = internet and have.recvmmsg
        self._sends_many = internet and have.sendmmsg
        self._longest_segment = 65535 if internet and have.gso else 0
        if self._receives_many or self._sends_many:
            self._arena = arena_of(loop)
            self._codec = self._arena.codec(sock.family)

    # What the rest of the transport does.

    @abstractmethod
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let `protocol` be called from now on."""

    @abstractmethod
    def _call(self, callback: Callable[..., object], *arguments: object) -> None: ...

    @abstractmethod
    def _report_exception(self, exc: Exception) -> None: ...

    @abstractmethod
    def _report_error(self, exc: OSError) -> None: ...

    @abstractmethod
    def _fatal_error(self, exc: Exception, message: str) -> None: ...

    @abstractmethod
    def _connection_lost(self, exc: Exception | None) -> None: ...

    def _in_context(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Return what calls the protocol in the context of the one who opened the endpoint, as the loops do."""
        return partial(self._context.run, callback)

    # Single datagrams.

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send a datagram, or keep it until the system takes it.

        Args:
            data: the payload.
            addr: where to; None on a transport that has its peer.

        Raises:
            TypeError: `data` is not bytes-like, or `addr` is missing or malformed.
            ValueError: the transport has another peer.
        """
        if self._corking and type(data) is bytes and type(addr) is tuple:
            self._cork.append(data)
            self._cork_addresses.append(addr)
            if len(self._cork) >= SLOTS:
                self._flush()
            return
        if self._peer is not None and addr is None and not (self._batching or self._buffer or self._losses):
            try:
                self._sock.send(data)  # what it refuses to take is a TypeError too
            except (BlockingIOError, InterruptedError):
                self._keep(bytes(data), None)
            except OSError as exc:
                self._send_failed(exc, None)
            return
        if type(data) is not bytes and not isinstance(data, bytearray | memoryview):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        if (self._address is not None or addr is None or self._losses) and not self._may_send(addr):
            return
        if self._batching and self._sends_many:
            self._cork.append(bytes(data))
            self._cork_addresses.append(addr)
            if len(self._cork) >= SLOTS:
                self._flush()
            elif not self._delivering and not self._flush_due:
                self._flush_due = True
                self._corking = self._address is None
                self._loop.call_soon(self._flush_turn)
            return
        if self._cork:
            self._flush()
        if self._buffer:
            self._keep(bytes(data), addr)
        else:
            self._send_one(data, addr)

    def _may_send(self, addr: Any) -> bool:
        if self._address is None:
            if addr is None:
                raise TypeError("addr is missing: the transport has no peer")
        elif addr is not None and addr != self._address:
            raise ValueError(f"addr must be None or {self._address}, not {addr}")
        if self._losses:
            if self._losses >= _SILENT_LOSSES:
                logger.warning("a datagram is sent on a transport that is closed")
            self._losses += 1
            return False
        return True

    def _send_one(self, data: bytes | bytearray | memoryview, addr: Address | None) -> None:
        try:
            if self._peer is not None:
                self._sock.send(data)
            else:
                self._sock.sendto(data, addr or self._address)
        except (BlockingIOError, InterruptedError):
            self._keep(bytes(data), addr)
        except OSError as exc:
            self._send_failed(exc, addr)

    def _send_failed(self, exc: OSError, addr: Address | None) -> None:
        if exc.errno in (errno.EBADF, errno.ENOTSOCK):
            self._fatal_error(exc, "the socket of a datagram transport was closed behind its back")
        else:
            self._report_error(explain(exc, "send UDP to", addr or self._address))

    def _keep(self, data: bytes, addr: Address | None, segment_size: int = 0) -> None:
        """Keep a datagram, or a train of them, until the socket is writable."""
        if not self._buffer:
            self._poller.add_writer(self._fd, self._in_context(self._on_writable))
        self._buffer.append((data, addr, segment_size))
        self._buffer_size += len(data)
        self._pause_if_too_much()

    def _pause_if_too_much(self) -> None:
        if self._buffer_size > self._high and not self._writing_paused:
            self._writing_paused = True
            self._call(self._protocol.pause_writing)

    # Batches.

    def _flush_turn(self) -> None:
        self._flush_due = False
        if not self._delivering:
            self._corking = False
        self._flush()

    def _flush(self) -> None:
        payloads, addresses = self._cork, self._cork_addresses
        if payloads:
            self._cork, self._cork_addresses = [], []
            if not self._losses:
                self._send_many(payloads, addresses)

    def _send_many(self, payloads: Sequence[bytes | memoryview], addresses: list[Address | None]) -> None:
        count = len(payloads)
        names: bytes | None = None
        if count == 1 or not self._sends_many or self._buffer:
            self._send_one_by_one(payloads, addresses)
            return
        if self._peer is None:
            names = self._codec.encode_all(addresses, self._address)
            if names is None:  # a host name, which the system looks up
                self._send_one_by_one(payloads, addresses)
                return
        start = 0
        while start < count and not self._losses:
            try:
                start += self._arena.send(self._fd, payloads, names, self._codec.size, start)
            except (BlockingIOError, InterruptedError):
                for i in range(start, count):
                    self._keep(bytes(payloads[i]), addresses[i])
                return
            except OSError as exc:
                self._send_failed(exc, addresses[start])
                start += 1

    def _send_one_by_one(self, payloads: Sequence[bytes | memoryview], addresses: list[Address | None]) -> None:
        for data, addr in zip(payloads, addresses, strict=True):
            if self._losses:
                return
            if self._buffer:
                self._keep(bytes(data), addr)
                continue
            try:
                self._send_one(data, addr)
            except (TypeError, ValueError, OverflowError) as exc:  # whoever gave this address is not waiting here
                self._report_exception(exc)

    def send_batch(self, batch: Iterable[tuple[bytes | bytearray | memoryview, Any]]) -> None:
        """Send many datagrams, by few system calls.

        Args:
            batch: payloads, each with its address, or with None on a transport that has its peer.

        Raises:
            TypeError: a payload is not bytes-like, or an address is missing.
            ValueError: the transport has another peer.
        """
        items = batch if isinstance(batch, list) else list(batch)
        payloads: list[Any] = list(map(_DATA, items))
        addresses = list(map(_ADDRESS, items))
        kinds = set(map(type, payloads))
        if kinds != {bytes} and not (kinds == {memoryview} and set(map(_SHAPE, payloads)) == {(1, True)}):
            payloads = [bytes(memoryview(data)) for data in payloads]
        unchecked = self._address is None and not self._losses and None not in addresses
        if unchecked or all(map(self._may_send, addresses)):
            self._flush()
            if payloads:
                self._send_many(payloads, addresses)

    # Trains.

    def send_segments(self, data: bytes | bytearray | memoryview, segment_size: int, addr: Any = None) -> None:
        """Send `data` as a train of datagrams to one address; on Linux by one system call for up to 64 of them.

        Args:
            data: the payloads, one behind the other.
            segment_size: bytes of each payload but the last, which may be shorter.
            addr: where to; None on a transport that has its peer.

        Raises:
            TypeError: `addr` is missing.
            ValueError: `segment_size` is not between 1 and 65507, or the transport has another peer.
        """
        if not 1 <= segment_size <= 65507:
            raise ValueError(f"segment_size must be between 1 and 65507, not {segment_size}")
        if not self._may_send(addr):
            return
        self._flush()
        view = memoryview(data).cast("B")
        step = max(1, min(_MAX_SEGMENTS, _MAX_TRAIN // segment_size)) * segment_size
        for start in range(0, len(view), step):
            train = view[start : start + step]
            if self._buffer:
                self._keep(bytes(train), addr, segment_size)
            elif not self._losses:
                self._send_train(train, segment_size, addr)

    def _send_train(self, train: memoryview, segment_size: int, addr: Address | None) -> None:
        """Send what fits one system call, or keep it."""
        if len(train) > segment_size and segment_size <= self._longest_segment:
            to = () if self._peer is not None else (addr or self._address,)
            try:
                self._sock.sendmsg([train], [(SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size))], 0, *to)
            except (BlockingIOError, InterruptedError):
                self._keep(bytes(train), addr, segment_size)
                return
            except OSError as exc:
                if exc.errno not in _TRAIN_REFUSED:
                    self._send_failed(exc, addr)
                    return
                # Without checksum offload no train leaves at all; otherwise the segment is larger than the path's MTU.
                too_long = exc.errno in (errno.EINVAL, errno.EMSGSIZE) and segment_size > 1000
                self._longest_segment = segment_size - 1 if too_long else 0
            else:
                return
        payloads = [bytes(train[i : i + segment_size]) for i in range(0, len(train), segment_size)]
        self._send_many(payloads, [addr] * len(payloads))

    # What waits for room.

    def _on_writable(self) -> None:
        self._poller.remove_writer(self._fd)
        waiting, self._buffer, self._buffer_size = self._buffer, [], 0
        done = 0
        while done < len(waiting) and not self._buffer and not self._losses:
            data, addr, segment_size = waiting[done]
            done += 1
            if segment_size:
                self._send_train(memoryview(data), segment_size, addr)
            else:
                payloads, addresses = [data], [addr]
                while done < len(waiting) and not waiting[done][2] and len(payloads) < SLOTS:
                    data, addr, _ = waiting[done]
                    done += 1
                    payloads.append(data)
                    addresses.append(addr)
                self._send_many(payloads, addresses)
        if not self._losses:
            self._buffer += waiting[done:]
        self._buffer_size = sum(len(item[0]) for item in self._buffer)
        if self._writing_paused and self._buffer_size <= self._low:
            self._writing_paused = False
            self._call(self._protocol.resume_writing)
        if self._closing and not self._buffer and not self._losses:
            self._losses = 1
            self._connection_lost(None)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait to be sent."""
        return self._buffer_size + sum(map(len, self._cork))

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the bytes waiting above which the protocol is paused, and those at which it is resumed.

        Args:
            high: by default 64 KiB, or four times `low`.
            low: by default a quarter of `high`.

        Raises:
            ValueError: not high >= low >= 0.
        """
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and low at least 0")
        self._high, self._low = high, low
        self._pause_if_too_much()


def _address_of(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:
        return None
