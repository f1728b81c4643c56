"""A datagram transport for any `asyncio.DatagramProtocol`, on any loop with `add_reader`, that moves batches.

It behaves as asyncio's own does, and costs less: what has arrived is received by one system call, and what the protocol
sends meanwhile leaves by one. Whether an answer waits for company is decided by what arrived: a datagram that came
alone is answered at once, and the answers to a batch leave together at its end. What is sent between two batches waits
until the next turn of the loop, and no longer.

Everything else that differs from asyncio's is an addition: empty datagrams are sent; a protocol with a method
``datagrams_received(batch)`` gets whole batches; reading can be paused; `send_batch` and `send_segments` send many.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
import warnings
from asyncio import trsock
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from asyncnet.addresses import Address, explain, format_address
from asyncnet.udp.batch import (
    CONTROL_SIZE,
    SLOT_SIZE,
    SLOTS,
    SOL_UDP,
    UDP_SEGMENT,
    Capabilities,
    arena_of,
    datagrams_of,
    probe,
)

__all__ = ["DatagramTransport"]

logger: Final = logging.getLogger("asyncnet.udp")

_BATCHES_PER_TURN: Final = 4
_BYTES_PER_TURN: Final = 1 << 20
_MAX_TRAIN: Final = 65000
"""Bytes of a train: with its headers it must stay below the 65 535 of an IP packet."""
_MAX_SEGMENTS: Final = 64
_SEGMENT_SIZE: Final = struct.Struct("=H")
_HIGH_WATER: Final = 64 * 1024
_SO_MEMINFO: Final = 55 if sys.platform == "linux" else -1
_MEMINFO: Final = struct.Struct("=9I")
"""Linux's sock_diag.h, SK_MEMINFO_*: the last is the count of drops."""
_SILENT_LOSSES: Final = 5  # sends after the end that go unmentioned, as in asyncio


class DatagramTransport(asyncio.DatagramTransport):
    """A socket with a protocol on it; made by `create_datagram_endpoint`.

    Args:
        loop: the loop that it runs on.
        sock: a non-blocking datagram socket; the transport owns it.
        protocol: what is called.
        address: where datagrams go that name no address; None when each must name one.
        waiter: resolved when the protocol knows the transport.
        messages: whether the kernel adds notes to what it delivers; what is received is then `Datagram`.
        capabilities: what may be used; by default what this system has.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        *,
        address: Address | None = None,
        waiter: asyncio.Future[None] | None = None,
        messages: bool = False,
        capabilities: Capabilities | None = None,
    ) -> None:
        self._peer = _address_of(sock.getpeername)
        super().__init__(
            {"socket": trsock.TransportSocket(sock), "sockname": _address_of(sock.getsockname), "peername": self._peer}
        )
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._address = address or self._peer
        self._messages = messages
        self._closing = False
        self._losses = 0  # above 0: the connection is lost, or about to be
        self._reading = False
        self._paused = False
        self._undelivered: deque[Any] = deque()  # received before reading was paused
        self._buffer: deque[tuple[bytes, Address | None, int]] = deque()  # with the size of a train's segments, or 0
        self._buffer_size = 0
        self._cork: list[bytes] = []  # what waits for company, and where it goes
        self._cork_addresses: list[Address | None] = []
        self._batching = False
        self._delivering = False
        self._flush_due = False
        self._writing_paused = False
        self.set_write_buffer_limits()
        self.set_protocol(protocol)
        have = capabilities or probe()
        internet = sock.family in (socket.AF_INET, socket.AF_INET6)
        self._receives_many = internet and have.recvmmsg
        self._sends_many = internet and have.sendmmsg
        self._longest_segment = 65535 if internet and have.gso else 0
        if self._receives_many or self._sends_many:
            self._arena = arena_of(loop)
            self._codec = self._arena.codec(sock.family)
        loop.call_soon(self._begin, waiter)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._protocol.connection_made(self)
        finally:
            self._update_reading()
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} {format_address(self.get_extra_info('sockname'))}>"

    @property
    def kernel_dropped(self) -> int:
        """Datagrams that the kernel dropped because the receive buffer was full; 0 where it does not tell."""
        try:
            memory = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        except OSError:
            return 0
        return int(_MEMINFO.unpack(memory)[8]) if len(memory) == _MEMINFO.size else 0

    # Receiving.

    def _update_reading(self) -> None:
        wanted = not self._closing and not self._paused
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._on_readable)
            else:
                self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        taken = 0
        for _ in range(_BATCHES_PER_TURN):
            try:
                batch = self._receive()
            except OSError as exc:
                self._batching = False
                self._receive_failed(exc)
                return
            count = len(batch)
            self._batching = count > 1
            if not count:
                break
            self._deliver(batch)
            taken += self._received_bytes
            if count < SLOTS or taken >= _BYTES_PER_TURN or not self._reading:
                break

    def _receive_failed(self, exc: OSError) -> None:
        if exc.errno in (errno.EBADF, errno.ENOTSOCK):
            self._fatal_error(exc, "the socket of a datagram transport was closed behind its back")
        else:
            self._report_error(explain(exc, "reach", self._address))

    def _receive(self) -> list[Any]:
        peer = self._peer
        if not self._receives_many:
            return self._receive_one_by_one()
        arena = self._arena
        batch: list[Any]
        if self._messages:
            batch = arena.receive_messages(self._fd, self._codec, peer)
        else:
            batch = arena.receive(self._fd, self._codec, peer)
        self._received_bytes = arena.received_bytes
        return batch

    def _receive_one_by_one(self) -> list[Any]:
        batch: list[Any] = []
        self._received_bytes = 0
        while len(batch) < SLOTS and self._received_bytes < _BYTES_PER_TURN:
            try:
                if self._messages:
                    data, notes, flags, addr = self._sock.recvmsg(SLOT_SIZE, CONTROL_SIZE)
                    batch.extend(datagrams_of(data, addr, notes, flags))
                else:
                    data, addr = self._sock.recvfrom(SLOT_SIZE)
                    batch.append((data, addr))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if batch:  # the system reports it again, or it concerned one datagram that was sent
                    break
                raise
            self._received_bytes += len(data)
        return batch

    def _deliver(self, batch: list[Any]) -> None:
        self._delivering = True
        try:
            if self._deliver_batch is not None:
                self._call(self._deliver_batch, batch)
                return
            received = self._deliver_one
            rest = iter(batch if not self._messages else [item[:2] for item in batch])
            while True:
                try:
                    for data, addr in rest:
                        received(data, addr)
                        if not self._reading:
                            if not self._closing:
                                self._undelivered.extend(rest)
                            return
                    return
                except Exception as exc:
                    self._report_exception(exc)
                    if self._closing:
                        return
        finally:
            self._delivering = False
            if self._cork:
                self._flush()

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception as exc:
            self._report_exception(exc)

    def _report_exception(self, exc: Exception) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"a callback of {type(self._protocol).__name__} failed",
                "exception": exc,
                "protocol": self._protocol,
                "transport": self,
            }
        )

    def pause_reading(self) -> None:
        """Deliver nothing more until `resume_reading`; datagrams wait in the socket's receive buffer."""
        self._paused = True
        self._update_reading()

    def resume_reading(self) -> None:
        """Deliver what was received before the pause, then what arrives."""
        if not self._paused:
            return
        self._paused = False
        self._update_reading()
        if self._undelivered:
            self._loop.call_soon(self._deliver_rest)

    def _deliver_rest(self) -> None:
        if self._reading and self._undelivered:
            rest, self._undelivered = list(self._undelivered), deque()
            self._deliver(rest)

    def is_reading(self) -> bool:
        """Tell whether datagrams are delivered as they arrive."""
        return self._reading

    # Sending.

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send a datagram, or keep it until the system takes it.

        Args:
            data: the payload.
            addr: where to; None on a transport that has its peer.

        Raises:
            TypeError: `data` is not bytes-like.
            ValueError: the transport has another peer.
        """
        if type(data) is not bytes or self._address is not None or self._losses:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
            if not self._may_send(addr):
                return
        if self._batching:
            self._cork.append(data if type(data) is bytes else bytes(data))
            self._cork_addresses.append(addr)
            if len(self._cork) >= SLOTS:
                self._flush()
            elif not self._delivering and not self._flush_due:
                self._flush_due = True
                self._loop.call_soon(self._flush)
            return
        if self._cork:
            self._flush()
        if self._buffer:
            self._keep(bytes(data), addr)
        else:
            self._send_one(data, addr)

    def _may_send(self, addr: Any) -> bool:
        if self._address is not None and addr is not None and addr != self._address:
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

    def _report_error(self, exc: OSError) -> None:
        self._call(self._protocol.error_received, exc)

    def _keep(self, data: bytes, addr: Address | None, segment_size: int = 0) -> None:
        """Keep a datagram, or a train of them, until the socket is writable."""
        if not self._buffer:
            self._loop.add_writer(self._fd, self._on_writable)
        self._buffer.append((data, addr, segment_size))
        self._buffer_size += len(data)
        if self._buffer_size > self._high and not self._writing_paused:
            self._writing_paused = True
            self._call(self._protocol.pause_writing)

    def _flush(self) -> None:
        self._flush_due = False
        payloads, addresses = self._cork, self._cork_addresses
        if payloads:
            self._cork, self._cork_addresses = [], []
            if not self._losses:
                self._send_many(payloads, addresses)

    def _send_many(self, payloads: list[bytes], addresses: list[Address | None]) -> None:
        count = len(payloads)
        names: list[bytes] | None = None
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
                    self._keep(payloads[i], addresses[i])
                return
            except OSError as exc:
                self._send_failed(exc, addresses[start])
                start += 1

    def _send_one_by_one(self, payloads: list[bytes], addresses: list[Address | None]) -> None:
        for data, addr in zip(payloads, addresses, strict=True):
            if self._losses:
                return
            if self._buffer:
                self._keep(data, addr)
            else:
                self._send_one(data, addr)

    def send_batch(self, batch: Iterable[tuple[bytes | bytearray | memoryview, Any]]) -> None:
        """Send many datagrams, by few system calls.

        Args:
            batch: payloads, each with its address, or with None on a transport that has its peer.

        Raises:
            TypeError: a payload is not bytes-like.
            ValueError: the transport has another peer.
        """
        payloads, addresses = [], []
        for data, addr in batch:
            payloads.append(data if type(data) is bytes else bytes(data))
            addresses.append(addr)
        if (self._address is None and not self._losses) or all(map(self._may_send, addresses)):
            self._flush()
            self._send_many(payloads, addresses)

    def send_segments(self, data: bytes | bytearray | memoryview, segment_size: int, addr: Any = None) -> None:
        """Send `data` as a train of datagrams to one address; on Linux by one system call for up to 64 of them.

        Args:
            data: the payloads, one behind the other.
            segment_size: bytes of each payload but the last, which may be shorter.
            addr: where to; None on a transport that has its peer.

        Raises:
            ValueError: `segment_size` is not between 1 and 65507, or the transport has another peer.
        """
        if not 1 <= segment_size <= 65507:
            raise ValueError(f"segment_size must be between 1 and 65507, not {segment_size}")
        if not self._may_send(addr):
            return
        self._flush()
        view = memoryview(data)
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
                if exc.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT):
                    self._send_failed(exc, addr)
                    return
                # Without checksum offload no train leaves at all; otherwise the segment is larger than the path's MTU.
                too_long = exc.errno in (errno.EINVAL, errno.EMSGSIZE) and segment_size > 1000
                self._longest_segment = segment_size - 1 if too_long else 0
            else:
                return
        payloads = [bytes(train[i : i + segment_size]) for i in range(0, len(train), segment_size)]
        self._send_many(payloads, [addr] * len(payloads))

    def _on_writable(self) -> None:
        buffer = self._buffer
        self._loop.remove_writer(self._fd)
        waiting, self._buffer, self._buffer_size = buffer, deque(), 0
        while waiting and not self._buffer and not self._losses:
            data, addr, segment_size = waiting.popleft()
            if segment_size:
                self._send_train(memoryview(data), segment_size, addr)
            else:
                payloads, addresses = [data], [addr]
                while waiting and not waiting[0][2] and len(payloads) < SLOTS:
                    data, addr, _ = waiting.popleft()
                    payloads.append(data)
                    addresses.append(addr)
                self._send_many(payloads, addresses)
        self._buffer.extend(waiting)
        self._buffer_size += sum(len(item[0]) for item in waiting)
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

    # The protocol, and the end.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let `protocol` be called from now on."""
        self._protocol: Any = protocol
        self._deliver_one: Callable[..., object] = getattr(protocol, "datagram_received")  # noqa: B009
        self._deliver_batch: Callable[..., object] | None = getattr(protocol, "datagrams_received", None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol that is called."""
        return self._protocol  # type: ignore[no-any-return]  # it has methods that its base class has not

    def is_closing(self) -> bool:
        """Tell whether the transport is closed or being closed."""
        return self._closing

    def close(self) -> None:
        """Receive nothing more, send what waits, then close."""
        if self._closing:
            return
        self._flush()
        self._closing = True
        self._update_reading()
        self._undelivered.clear()
        if not self._buffer and not self._losses:
            self._losses = 1
            self._loop.call_soon(self._connection_lost, None)

    def abort(self) -> None:
        """Close at once; what waits to be sent is lost."""
        self._force_close(None)

    def _fatal_error(self, exc: Exception, message: str) -> None:
        logger.debug("%s: %r", message, exc)
        self._force_close(exc)

    def _force_close(self, exc: Exception | None) -> None:
        if self._buffer:
            self._buffer.clear()
            self._buffer_size = 0
            self._loop.remove_writer(self._fd)
        self._cork, self._cork_addresses = [], []
        self._undelivered.clear()
        self._closing = True
        self._update_reading()
        if not self._losses:
            self._losses = 1
            self._loop.call_soon(self._connection_lost, exc)

    def _connection_lost(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._sock.close()

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if self._sock.fileno() >= 0:
            warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._sock.close()


def _address_of(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:
        return None
