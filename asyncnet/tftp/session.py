"""One transfer on one socket: the shell around `transfer.Sender` and `transfer.Receiver`.

A session is the socket's protocol. It decodes headers, tells the machine, moves bytes between datagram and file, sends
what the machine says, and keeps one timer. Client and server share it; what only a client does, fixing the server's
TID by its first answer and reading its OACK, depends on `server` and `negotiate`. The two directions are in `sending`
and `receiving`.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, cast

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.errors import LocalError, PacketError, RemoteError
from asyncnet.tftp.options import Options
from asyncnet.tftp.packets import (
    HEADER,
    Error,
    ErrorCode,
    Opcode,
    OptionAck,
    OptionPairs,
    decode_packet,
    encode_packet,
)
from asyncnet.tftp.storage import error_packet_fields
from asyncnet.tftp.transfer import Receiver, Sender, State

__all__ = ["Progress", "Report", "Session", "Wire", "prepare_socket", "printable"]

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the bytes transferred so far and, where it is known, their number in all."""

_MAX_TID_ERRORS: Final = 8
"""Foreign packets that one transfer answers with ERROR 5; the rest are only counted."""

_ERROR: Final = b"\0\5"
"""How an ERROR begins."""

_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
_PMTUDISC_DONT: Final = 0


@attrs.define
class Report:
    """How a transfer went."""

    bytes: int = 0
    """Of the file, as sent on the wire."""
    seconds: float = 0.0
    block_size: int = 512
    window_size: int = 1
    retransmitted: int = 0
    """Packets sent again."""
    duplicates: int = 0
    """Blocks that arrived again, or ACKs that asked for nothing."""
    rejected: int = 0
    """Datagrams that were no packet of this transfer."""
    confirmed: bool = True
    """False when only the last acknowledgement is missing."""


class Wire(Protocol):
    """What a session sends by: the transport of a socket, or a share of one."""

    def sendto(self, data: bytes | memoryview, addr: Address | None = None) -> None: ...

    def send_segments(self, data: memoryview, segment_size: int, addr: Address | None = None) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...

    def close(self) -> None: ...


class Cancellable(Protocol):
    """A timer that was set."""

    def cancel(self) -> None: ...


CallLater: TypeAlias = Callable[[float, Callable[[], None]], Cancellable]

CallBlocking: TypeAlias = Callable[[Callable[[], None], Callable[[BaseException | None], None]], object]
"""Called with what may block, and with what is to be called after it, in this thread, with what it has raised."""


class Session(asyncio.DatagramProtocol, ABC):
    """What sending and receiving share.

    Args:
        machine: decides what is sent and when.
        opening: the packet that stands for block 0.
        server: a client's session: the address that the request goes to. None on a connected socket.
        negotiate: a client's session: turns the OACK's options into what the transfer runs with.
        progress: told how far the transfer is, once a window.
    """

    def __init__(
        self,
        machine: Sender | Receiver,
        *,
        opening: bytes,
        server: Address | None = None,
        negotiate: Callable[[OptionPairs], Options] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.report = Report()
        self.error: BaseException | None = None
        """Why the transfer ended early."""
        self.over = False
        self.on_over: Callable[[Session], None] | None = None
        """Called once when the transfer is over, while a receiver may still dally."""
        self.refused: Callable[[], list[Address]] | None = None
        """Takes from the system where the datagrams went that were refused; a peer's refusal alone ends a transfer."""
        self.options = Options()
        self._machine = machine
        self._opening = opening
        self._server = server
        self._peer: Address | None = None  # the server's TID, once it has answered
        self._negotiate = negotiate
        self._progress = progress
        self._tid_errors = 0
        self._transport: Wire | None = None
        self._call_later: CallLater | None = None
        self._call_blocking: CallBlocking | None = None
        self._committing = False  # all has arrived and the disk has the word: nothing else ends the transfer now
        self._started = 0.0
        self._timer: Cancellable | None = None
        self._timer_at = 0.0
        self._closed = asyncio.Event()

    # Not the loop's time: uvloop's stands still for a turn and has the resolution of a millisecond, too coarse for
    # round trips in a LAN.
    _clock = staticmethod(time.monotonic)

    # What the transport calls.

    def connection_made(self, transport: Any) -> None:
        self.begin(transport, asyncio.get_running_loop().call_later, _call_in_thread)

    def begin(self, wire: Wire, call_later: CallLater, call_blocking: CallBlocking | None = None) -> None:
        """Begin the transfer.

        Args:
            wire: what packets leave by.
            call_later: sets a timer, as the method of an event loop does; there is one at most at a time.
            call_blocking: waits for the disk without holding anybody else up; None to wait in place.
        """
        self._transport = wire
        self._call_later = call_later
        self._call_blocking = call_blocking
        self._started = self._clock()
        if self.over:  # aborted while the socket was being opened
            wire.close()
            return
        try:
            self._start(self._started)
            self._rearm()
        except Exception as exc:
            self.fail(exc)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if self._server is not None and not self._is_from_server(addr, data):
            return
        try:
            self._take(data)
            self._rearm()
        except Exception as exc:
            self.fail(exc)

    def answer(self, data: bytes) -> memoryview | None:
        """Take a datagram in the plainest case, and return what to send to the peer for it."""
        return None

    def error_received(self, exc: Exception) -> None:
        places = [] if self.refused is None else self.refused()  # always: what stays there wakes the loop for ever
        # Only a refusal is final; a route that is missing for a moment is what retransmission is for.
        if not isinstance(exc, ConnectionRefusedError):
            return
        peer = self._peer or self._server
        if self._may_end and (peer is None or not places or any(place[:2] == peer[:2] for place in places)):
            self._refused(exc)

    def _refused(self, exc: OSError) -> None:
        self._end(explain(exc, "reach", self._address), tell_peer=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed.set()
        self._cancel_timer()
        if self._may_end:
            self._end(exc or ConnectionAbortedError("the socket was closed during the transfer"), tell_peer=False)

    # What the owner calls.

    @property
    def _may_end(self) -> bool:
        return not self.over and not self._committing

    @property
    def has_begun(self) -> bool:
        """Whether it has a socket that is open."""
        return self._transport is not None

    @property
    def is_new(self) -> bool:
        """Whether no block has been transferred."""
        return self._is_opening()

    @property
    def was_answered(self) -> bool:
        """Whether anything has come from the server; of a client's session."""
        return self._peer is not None

    def repeats(self) -> bool:
        """Take the request that began this transfer once more; False when it is to begin another one.

        While no block has been transferred, the opening packet is sent again. Later, it is a copy that was under way
        for long if the peer still answers; if not, the peer has begun anew.
        """
        if self.over:
            return False
        if not self._is_opening():
            return not self._machine.timer.retransmits
        if self._transport is not None:
            self.report.duplicates += 1
            self._machine.repeat_opening()
            self._send_opening()
        return True

    def abandon(self, exc: BaseException) -> None:
        """End the transfer early, and say nothing to the peer."""
        if self._may_end:
            self._end(exc, tell_peer=False)

    def fail(self, exc: BaseException) -> None:
        """End the transfer early and tell the peer why."""
        if self._may_end:
            self._end(exc, tell_peer=not isinstance(exc, RemoteError | TimeoutError))

    def close(self) -> None:
        """Close the socket, also while dallying."""
        self.fail(LocalError(ErrorCode.UNDEFINED, "the transfer was cancelled"))
        if self._transport is not None:
            self._transport.close()

    @property
    def dallies(self) -> bool:
        """Whether the transfer is over and only its last ACK may have to be repeated."""
        return self.over and self.error is None and self._machine.state is State.DALLYING

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed; `close` must have been called, or the transfer must be over."""
        if self._transport is not None:
            await self._closed.wait()

    # What the two directions fill in.

    @abstractmethod
    def _start(self, now: float) -> None:
        """Send the first packet."""

    @abstractmethod
    def _is_opening(self) -> bool:
        """Tell whether no block has been transferred."""

    def _receive_block(self, number: int, data: bytes, now: float) -> None:
        """Handle DATA; a sender has no use for it."""
        self.report.rejected += 1

    def _receive_ack(self, number: int, now: float) -> None:
        """Handle ACK; a receiver has no use for it."""
        self.report.rejected += 1

    @abstractmethod
    def _receive_options(self, options: Options, now: float) -> None:
        """Take what the server's OACK has settled."""

    @abstractmethod
    def _handle_timer(self, now: float) -> None:
        """Send again what is overdue, or end."""

    @abstractmethod
    def _release(self, *, success: bool) -> None:
        """Let go of the file."""

    @property
    def _address(self) -> Address | None:
        """The peer's address for messages."""
        if self._transport is not None and self._server is None:
            return cast("Address | None", self._transport.get_extra_info("peername"))
        return self._peer or self._server

    # Packets.

    def _is_from_server(self, addr: Address, data: bytes | memoryview) -> bool:
        if addr == self._peer:
            return True
        assert self._server is not None
        if self._peer is None and addr[0] == self._server[0]:
            self._peer = addr
            return True
        self.report.rejected += 1
        if data[:2] == _ERROR:  # whatever it is about, nothing is ever sent in answer to it
            return False
        if self._peer is not None and self._tid_errors < _MAX_TID_ERRORS and self._transport is not None:
            self._tid_errors += 1  # RFC 1350 section 4: tell the stranger, and go on
            self._transport.sendto(encode_packet(Error(ErrorCode.UNKNOWN_TID, "unknown transfer ID")), addr)
        return False

    def _take(self, data: bytes) -> None:
        """Handle a datagram of the peer."""
        try:
            self._dispatch(data)
        except PacketError:
            self.report.rejected += 1

    def _dispatch(self, data: bytes) -> None:
        now = self._clock()
        if len(data) >= HEADER.size:
            opcode, number = HEADER.unpack_from(data)
            if opcode == Opcode.DATA:
                return self._receive_block(number, data, now)
            if opcode == Opcode.ACK:
                return self._receive_ack(number, now)
        packet = decode_packet(data)
        if isinstance(packet, Error):
            if self._may_end:
                self._end(RemoteError(packet.code, printable(packet.text)), tell_peer=False)
        elif isinstance(packet, OptionAck) and self._negotiate is not None:
            if self._is_opening() and not self.over:
                self._receive_options(self._negotiate(packet.options), now)
        else:
            self.report.rejected += 1
        return None

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            if self._server is None:
                self._transport.sendto(data)
            else:
                self._transport.sendto(data, self._peer or self._server)

    def _send_train(self, train: memoryview, size: int) -> None:
        """Send datagrams of `size` bytes, the last one perhaps shorter, by few system calls."""
        if self._transport is not None:
            to = None if self._server is None else self._peer or self._server
            if len(train) <= size:
                self._transport.sendto(train, to)
            else:
                self._transport.send_segments(train, size, to)

    def _send_opening(self) -> None:
        self._send(self._opening)

    def _use(self, options: Options) -> None:
        self.options = options
        self.report.block_size = options.block_size
        self.report.window_size = options.window_size

    def _tell_progress(self, done: int) -> None:
        self.report.bytes = done
        if self._progress is not None:
            self._progress(done, self.options.transfer_size)

    # The timer, and the end.

    def _rearm(self) -> None:
        deadline = self._machine.deadline
        if deadline is None or self._call_later is None or self._transport is None:
            self._cancel_timer()
        elif self._timer is None or self._timer_at > deadline:
            self._cancel_timer()
            self._timer_at = deadline
            self._timer = self._call_later(max(0.0, deadline - self._clock()), self._on_timer)
        # A timer that is due earlier stays: it looks at the deadline when it fires.

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._handle_timer(self._clock())
            self._rearm()
        except Exception as exc:
            self.fail(exc)
        if self.over and self._machine.state is not State.DALLYING and self._transport is not None:
            self._transport.close()

    def _timed_out(self) -> TimeoutError:
        tries = self._machine.timer.retransmits - 1
        return TimeoutError(f"{format_address(self._address)} does not answer: {tries} retransmissions were in vain")

    def _end(self, error: BaseException | None = None, *, tell_peer: bool = True) -> None:
        self.over = True
        self.error = error
        if self._call_later is not None:
            self.report.seconds = self._clock() - self._started
        self.report.retransmitted = self._machine.retransmitted
        if error is not None and tell_peer:
            code, text = error_packet_fields(error)
            self._send(encode_packet(Error(code, printable(text))))
        try:
            self._release(success=error is None)
        finally:
            if self._machine.state is not State.DALLYING or error is not None:
                self._cancel_timer()
                if self._transport is not None:
                    self._transport.close()
            if self.on_over is not None:
                self.on_over(self)


def _call_in_thread(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    def ended(future: asyncio.Future[None]) -> None:
        if future.cancelled():  # the executor was shut down before it began
            done(LocalError(ErrorCode.UNDEFINED, "the transfer was cancelled"))
        else:
            done(future.exception())

    asyncio.get_running_loop().run_in_executor(None, work).add_done_callback(ended)


def printable(text: str) -> str:
    """Return at most 200 printable characters and 400 bytes: the text ends up in packets, logs and on terminals."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:200])
    return shown.encode(errors="replace")[:400].decode(errors="ignore")


def prepare_socket(sock: socket.socket, *, receive_buffer: int = 1 << 20) -> None:
    """Set what a transfer needs of its socket: room for two windows, and no path MTU discovery.

    A block larger than the path's MTU then travels in fragments; with discovery it would be lost (RFC 2348 leaves the
    choice of the size to the client).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if sys.platform == "linux":
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
