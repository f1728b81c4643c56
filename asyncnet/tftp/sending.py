"""A session that sends a file: the server's side of an RRQ, the client's side of a WRQ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from time import monotonic
from typing import Final

import attrs

from asyncnet.addresses import Address
from asyncnet.errors import LocalError
from asyncnet.tftp.files import Source
from asyncnet.tftp.options import Options
from asyncnet.tftp.packets import HEADER, ErrorCode, Opcode, OptionPairs, headers
from asyncnet.tftp.session import Progress, Session, Wire
from asyncnet.tftp.transfer import Sender, State

__all__ = ["Outbox", "SendSession"]

_DATA: Final = int(Opcode.DATA)
_ACK: Final = int(Opcode.ACK)
_ACK_SIZE: Final = HEADER.size
_ACK_0: Final = HEADER.pack(Opcode.ACK, 0)
_ACK_65535: Final = HEADER.pack(Opcode.ACK, 0xFFFF)
_OACK: Final = Opcode.OACK.to_bytes(2)
_READ_AHEAD: Final = 1 << 14
"""Bytes that are read at once in lock-step."""
_MOST_AHEAD: Final = 8 << 20
"""Bytes of a window and the next one at most; beyond it there is only the window."""


class Outbox:
    """Lets what many sessions send in one turn of the loop leave at its end, one after the other.

    A peer on this host then wakes once and stays awake. Waking it costs more than sending, and it falls asleep again
    between two datagrams that are sent as their turn comes.
    """

    def __init__(self) -> None:
        self.is_open = False
        """Whether to use it: alone, a session sends at once."""
        self._waiting: list[tuple[Wire, memoryview]] = []

    def put(self, transport: Wire, data: memoryview) -> None:
        """Send a datagram at the end of this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append((transport, data))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            transport.sendto(data)


class SendSession(Session):
    """Sends a source's bytes.

    The window stays in one buffer in wire layout: block n has the place ``(n - 1) % places``, header in front. A place
    is filled again only when its block was acknowledged, so what is sent again are the same bytes.
    """

    _machine: Sender

    def __init__(
        self,
        source: Source,
        machine: Sender,
        *,
        opening: bytes = b"",
        options: Options | None = None,
        server: Address | None = None,
        negotiate: Callable[[OptionPairs], Options] | None = None,
        progress: Progress | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(machine, opening=opening, server=server, negotiate=negotiate, progress=progress)
        self._source = source
        self._outbox = outbox
        self._loaded = 0
        self._last: int | None = None
        self._last_length = 0
        self._oack_size = 0
        self._window = memoryview(b"")
        self._prepare(options or Options(transfer_size=source.size))

    def _prepare(self, options: Options) -> None:
        self._use(options)
        self._machine.configure(window_size=options.window_size)
        self._stride = HEADER.size + options.block_size
        # Twice the window, so that the next one is read while this one travels; in lock-step some blocks ahead.
        ahead = max(1, _READ_AHEAD // self._stride) if options.window_size == 1 else 2 * options.window_size
        # In lock-step with nobody watching, an ACK means one block, and that is all (`Sender.confirm`).
        self._plain = options.window_size == 1 and self._server is None and self._progress is None
        self._places = min(ahead, max(options.window_size, _MOST_AHEAD // self._stride))
        self._window = memoryview(b"")  # made when the first block is sent: a probe needs none
        self._blocks: list[memoryview] = []  # the places of the window
        self._gaps: list[memoryview] = []  # their payloads
        size = self._source.size
        if size is not None:
            self._last, self._last_length = size // options.block_size + 1, size % options.block_size
            self._places = min(self._places, self._last)
            self._machine.end(self._last)

    def _start(self, now: float) -> None:
        self._send_blocks(self._machine.start(now))

    def _is_opening(self) -> bool:
        return self._machine.acknowledged < 0 or (self._machine.acknowledged == 0 and not self._opening)

    def _send_opening(self) -> None:
        if self._opening:
            self._send(self._opening)
        else:
            self._send_blocks(range(1, 2))

    def _receive_options(self, options: Options, now: float) -> None:
        self._prepare(attrs.evolve(options, transfer_size=self._source.size))
        self._receive_ack(0, now)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        block = self.answer(data)
        if block is not None and self._transport is not None:
            outbox = self._outbox
            if outbox is not None and outbox.is_open:
                outbox.put(self._transport, block)
            else:
                self._transport.sendto(block)
        elif (
            len(data) == _ACK_SIZE and data[1] == _ACK and not data[0] and (self._server is None or addr == self._peer)
        ):
            try:
                self._receive_ack(data[2] << 8 | data[3], monotonic())
                if self._timer is None or self._timer_at > (self._machine.deadline or 0.0):
                    self._rearm()
            except Exception as exc:
                self.fail(exc)
        else:
            super().datagram_received(data, addr)

    def _take(self, data: bytes) -> None:
        if data[:2] == _OACK:
            self._oack_size = len(data)
        elif len(data) == self._oack_size and data[:_ACK_SIZE] == _ACK_65535:
            # Old tftp-hpa takes the block that wraps to 0 for the request and sends the buffer of its OACK again, where
            # the last ACK is the beginning by now. An ACK 65535 that says that the block is missing is shorter.
            data = _ACK_0
        super()._take(data)

    def answer(self, data: bytes) -> memoryview | None:
        """Take an ACK in lock-step, if it is the plain case, which it nearly always is.

        Returns:
            The block to send to the client now; None when `datagram_received` is to look at the datagram.
        """
        if not self._plain or len(data) != _ACK_SIZE or data[1] != _ACK or data[0]:
            return None
        machine = self._machine
        block = machine.confirm(data[2] << 8 | data[3], monotonic())
        if not block:
            return None
        if block > self._loaded:
            try:
                self._load(block + self._places)
            except Exception as exc:
                self.fail(exc)
                return None
        if self._timer_at > machine.deadline:  # type: ignore[operator]  # it was set just now
            self._rearm()
        place = self._blocks[(block - 1) % self._places]
        # Where the source ends may have been found out only just now, by reading this block.
        return place[: HEADER.size + self._last_length] if block == self._last else place

    def _receive_ack(self, number: int, now: float) -> None:
        if self.over:
            return
        machine = self._machine
        ignored = machine.ignored
        blocks = machine.receive_ack(number, now)
        if machine.ignored != ignored:
            self.report.duplicates += 1
        elif self._progress is not None:
            self._progress(self._bytes_acknowledged(), self.options.transfer_size)
        if blocks:
            self._send_blocks(blocks)
        elif machine.state is State.DONE:
            self._end()

    def _bytes_acknowledged(self) -> int:
        done = max(0, self._machine.acknowledged)
        if done == self._last:
            return (done - 1) * self.options.block_size + self._last_length
        return done * self.options.block_size

    def _refused(self, exc: OSError) -> None:
        # A client that has closed its socket has all, and its last ACK was lost. A server may have died as well.
        if self._server is None and self._machine.lacks_only_confirmation:
            self._end_unconfirmed()
        else:
            super()._refused(exc)

    def _end_unconfirmed(self) -> None:
        assert self._last is not None
        self.report.bytes = (self._last - 1) * self.options.block_size + self._last_length
        self.report.confirmed = False
        self._end()

    def _handle_timer(self, now: float) -> None:
        self._send_blocks(self._machine.handle_timer(now))
        state = self._machine.state
        # Some clients never send the last ACK. A server that has acknowledged no block at all has perhaps got none.
        if state is State.UNCONFIRMED and (self._server is None or self._machine.acknowledged > 0):
            self._end_unconfirmed()
        elif state in (State.UNCONFIRMED, State.TIMED_OUT):
            self._end(self._timed_out(), tell_peer=False)

    def _send_blocks(self, blocks: range) -> None:
        if not blocks:
            return
        if blocks.start == 0:
            self._send_opening()
            return
        block, stop = blocks.start, blocks.stop
        windowed, free = self.options.window_size > 1, max(0, self._machine.acknowledged) + self._places + 1
        if self._loaded + 1 < stop:
            self._load(stop if windowed else free)
        last, stride, places = self._last, self._stride, self._places
        if last is not None and stop > last:
            stop = last + 1
        while block < stop:  # once, or twice where the buffer's end is reached
            place = (block - 1) % places
            count = min(stop - block, places - place)
            end = (place + count) * stride
            block += count
            if block - 1 == last:
                end += self._last_length - self.options.block_size
            self._send_train(self._window[place * stride : end], stride)
        if windowed:
            self._load(free)  # the next window, while this one travels

    def _load(self, stop: int) -> None:
        """Fill the places of the blocks below `stop`, which are free."""
        first = self._loaded + 1
        if self._last is not None and stop > self._last:
            stop = self._last + 1
        if first >= stop:
            return
        size, stride, places = self.options.block_size, self._stride, self._places
        if not self._window:
            self._window = window = memoryview(bytearray(stride * places))
            self._blocks = [window[place : place + stride] for place in range(0, places * stride, stride)]
            self._gaps = [block[HEADER.size :] for block in self._blocks]
        gaps: list[memoryview] = []
        block = first
        while block < stop:  # once, or twice where the buffer's end is reached
            place = (block - 1) % places
            count = min(stop - block, places - place)
            number = self._machine.wire_number(block)
            numbers: Iterable[int] = range(number, number + count)
            if number + count > 0x10000:
                numbers = map(self._machine.wire_number, range(block, block + count))
            fields = chain.from_iterable(zip(repeat(_DATA), numbers))
            headers(size, count).pack_into(self._window, place * stride, *fields)
            gaps += self._gaps[place : place + count]
            block += count
        if stop - 1 == self._last:
            gaps[-1] = gaps[-1][: self._last_length]
        wanted = (len(gaps) - 1) * size + len(gaps[-1])
        count = self._source.fill(gaps, self._loaded * size)
        if self._last is None and count < wanted:
            self._last, self._last_length = self._loaded + count // size + 1, count % size
            self._machine.end(self._last)
        elif count < wanted:
            raise LocalError(ErrorCode.UNDEFINED, "the file became shorter while it was sent")
        self._loaded = stop - 1

    def _release(self, *, success: bool) -> None:
        self._plain = False
        if self.report.confirmed:
            self.report.bytes = self._bytes_acknowledged()
        self._source.close()
