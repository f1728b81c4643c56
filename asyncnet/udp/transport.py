"""A datagram transport for any `asyncio.DatagramProtocol`, on any loop with `add_reader`, that moves batches.

It behaves as asyncio's own does, and costs less: what has arrived is received by one system call, and what the protocol
sends meanwhile leaves by one. Whether an answer waits for company is decided by what arrived: a datagram that came
alone is answered at once, and the answers to a batch leave together at its end. What is sent between two batches waits
until the next turn of the loop, and no longer. While datagrams come one by one, so they are received: a call for many
costs more than a call for one.

Everything else that differs from asyncio's is an addition: empty datagrams are sent; a protocol with a method
``datagrams_received(batch)`` gets whole batches, and one with ``trains_received(batch)`` gets trains as the kernel has
joined them, `Train`; reading can be paused; `send_batch` and `send_segments` send many.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

from asyncnet.addresses import Address, explain, format_address
from asyncnet.udp.ancillary import CONTROL_SIZE, Train, datagrams_of
from asyncnet.udp.batch import SLOT_SIZE, SLOTS
from asyncnet.udp.capabilities import Capabilities, probe
from asyncnet.udp.sending import SendingTransport, logger
from asyncnet.udp.sockets import refused_addresses

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["DatagramTransport"]

_BATCHES_PER_TURN: Final = 4
_BYTES_PER_TURN: Final = 1 << 20
_LONGEST_LOCAL: Final = 1 << 18
"""Bytes of a datagram of another kind than UDP; asyncio takes as many."""
_SO_MEMINFO: Final = 55 if sys.platform == "linux" else -1
_MEMINFO: Final = struct.Struct("=9I")
"""Linux's sock_diag.h, SK_MEMINFO_*: the last is the count of drops."""
_NONE_WAITING: Final = bytes(4)
_MOST_PATIENCE: Final = 16


class DatagramTransport(SendingTransport):
    """A socket with a protocol on it; made by `create_datagram_endpoint`.

    Args:
        loop: the loop that it runs on.
        sock: a non-blocking datagram socket; the transport owns it.
        protocol: what is called.
        address: where datagrams go that name no address; None when each must name one.
        waiter: resolved when the protocol knows the transport.
        trains: whether the kernel joins datagrams of one sender.
        notes: whether the kernel adds notes to what it delivers; what is received is then `Datagram`.
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
        trains: bool = False,
        notes: bool = False,
        capabilities: Capabilities | None = None,
    ) -> None:
        self._trains = trains and not notes
        self._notes = notes
        super().__init__(loop, sock, protocol, address, capabilities or probe())
        self._singly = self._receives_many and not trains and not notes
        self._reading = False
        self._paused = False
        self._undelivered: list[Any] = []  # received before reading was paused
        self._received_bytes = 0  # by the last batch
        self._patience = self._unasked = 1  # single datagrams before the next look for more
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
        """What the kernel dropped because the receive buffer was full; 0 where it does not tell.

        A train that it would have delivered joined (``trains``) counts as one.
        """
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
                self._poller.add_reader(self._fd, self._in_context(self._on_readable))
            else:
                self._poller.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            if self._batching or not self._singly:
                self._receive_batches(self._receive())
            elif self._deliver_batch is None:
                if self._peer is not None:
                    data, addr = self._sock.recv(SLOT_SIZE), self._peer
                else:
                    data, addr = self._sock.recvfrom(SLOT_SIZE)
                try:
                    self._protocol.datagram_received(data, addr)
                except Exception as exc:
                    self._report_exception(exc)
                self._unasked -= 1
                if not self._unasked and self._reading and self._more_waits():
                    self._receive_batches(self._receive())
            else:
                batch = [self._sock.recvfrom(SLOT_SIZE)]
                try:
                    if self._more_waits():
                        batch += self._receive()
                finally:  # an error that came behind it does not take the datagram away
                    self._receive_batches(batch)
        except BlockingIOError:
            self._nothing_came()
        except OSError as exc:
            self._batching = False
            if exc.errno in (errno.EBADF, errno.ENOTSOCK):
                self._fatal_error(exc, "the socket of a datagram transport was closed behind its back")
            else:
                self._report_error(explain(exc, "reach", self._address))

    def _more_waits(self) -> bool:
        """Ask whether another datagram has come already; the longer none has, the less often this is asked."""
        try:
            waiting = fcntl.ioctl(self._fd, termios.FIONREAD, _NONE_WAITING)
        except OSError:  # a kind of socket that cannot be asked, as those for ping; epoll tells of what waits
            return False
        if waiting != _NONE_WAITING:
            self._patience = self._unasked = 1
            return True
        self._patience = self._unasked = min(2 * self._patience, _MOST_PATIENCE)
        return False

    def _nothing_came(self) -> None:
        """See why: a wake-up in vain is rare, but two things bring one after the other.

        One is a socket that was shut down. The other is its error queue (IP_RECVERR, ip(7)) with something in it, which
        the protocol could have taken when it was told of the error.
        """
        if sys.platform == "linux":
            poll = select.poll()
            poll.register(self._fd, select.POLLRDHUP)
            events = sum(events for _, events in poll.poll(0))
            if events & (select.POLLRDHUP | select.POLLHUP):
                exc = OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
                self._fatal_error(exc, "the socket of a datagram transport was shut down behind its back")
            elif events & select.POLLERR:
                refused_addresses(self._sock)

    def _receive_batches(self, batch: list[Any]) -> None:
        """Deliver a batch and, while they are full, some more."""
        taken, batches = 0, 1
        while True:
            self._batching = len(batch) > 1
            if not batch:
                if batches == 1:
                    self._nothing_came()
                return
            self._deliver(batch)
            taken += self._received_bytes
            full = len(batch) >= SLOTS and taken < _BYTES_PER_TURN and batches < _BATCHES_PER_TURN
            if not full or not self._reading:
                return
            batch = self._receive()
            batches += 1

    def _receive(self) -> list[Any]:
        if not self._receives_many:
            return self._receive_one_by_one()
        arena = self._arena
        batch: list[Any]
        if self._notes:
            batch = arena.receive_messages(self._fd, self._codec, self._peer)
        elif self._trains:
            receive = arena.receive_trains if self._takes_trains else arena.receive_split_trains
            batch = receive(self._fd, self._codec, self._peer)
        else:
            batch = arena.receive(self._fd, self._codec, self._peer)
        self._received_bytes = arena.received_bytes
        return batch

    def _receive_one_by_one(self) -> list[Any]:
        batch: list[Any] = []
        self._received_bytes = 0
        size = _LONGEST_LOCAL if self._sock.family not in (socket.AF_INET, socket.AF_INET6) else SLOT_SIZE
        while len(batch) < SLOTS and self._received_bytes < _BYTES_PER_TURN:
            try:
                data, notes, flags, addr = self._sock.recvmsg(size, CONTROL_SIZE if self._notes or self._trains else 0)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if batch:  # the system reports it again, or it concerned one datagram that was sent
                    break
                raise
            self._received_bytes += len(data)
            if self._notes:
                batch += datagrams_of(data, addr, notes, flags)
            elif flags & socket.MSG_TRUNC:
                cut = OSError(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: a datagram of more than {size} bytes")
                self._report_error(cut)
            elif notes:
                batch += [item[:2] for item in datagrams_of(data, addr, notes, flags)]
            else:
                batch.append((data, addr))
        if self._takes_trains:
            return [Train(memoryview(data), len(data), addr) for data, addr in batch]
        return batch

    def _deliver(self, batch: list[Any]) -> None:
        self._delivering = True
        self._corking = self._batching and self._sends_many and self._address is None and not self._losses
        try:
            if self._deliver_batch is not None:
                self._call(self._deliver_batch, batch)
                return
            received = self._protocol.datagram_received
            rest = iter(batch if not self._notes else [item[:2] for item in batch])
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
            self._delivering = self._corking = False
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

    def _report_error(self, exc: OSError) -> None:
        self._call(self._protocol.error_received, exc)

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
            rest, self._undelivered = self._undelivered, []
            self._deliver(rest)

    def is_reading(self) -> bool:
        """Tell whether datagrams are delivered as they arrive."""
        return self._reading

    # The protocol, and the end.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let `protocol` be called from now on."""
        self._protocol: Any = protocol
        self._deliver_batch: Callable[..., object] | None = getattr(protocol, "datagrams_received", None)
        self._takes_trains = self._trains and hasattr(protocol, "trains_received")
        if self._takes_trains:
            self._deliver_batch = getattr(protocol, "trains_received")  # noqa: B009

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
        self._corking = False
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
            self._poller.remove_writer(self._fd)
        self._cork, self._cork_addresses = [], []
        self._undelivered.clear()
        self._closing = True
        self._corking = False
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
        if not self._closing:
            warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._sock.close()
