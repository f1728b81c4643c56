"""A session that sends a file: the server's side of an RRQ, the client's side of a WRQ."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from asyncnet.addresses import Address
from asyncnet.errors import LocalError
from asyncnet.tftp.files import Source
from asyncnet.tftp.options import Options
from asyncnet.tftp.packets import HEADER, ErrorCode, Opcode, OptionPairs
from asyncnet.tftp.session import Progress, Session
from asyncnet.tftp.transfer import Sender, State

__all__ = ["SendSession"]


class SendSession(Session):
    """Sends a source's bytes.

    The window stays in one buffer in wire layout: block n has the place ``(n - 1) % window_size``, header in front. A
    place is filled again only when its block was acknowledged, so what is sent again are the same bytes.
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
    ) -> None:
        super().__init__(machine, opening=opening, server=server, negotiate=negotiate, progress=progress)
        self._source = source
        self._loaded = 0
        self._last: int | None = None
        self._last_length = 0
        self._window = memoryview(b"")
        self._prepare(options or Options(transfer_size=source.size))

    def _prepare(self, options: Options) -> None:
        self._use(options)
        self._machine.configure(window_size=options.window_size)
        self._stride = HEADER.size + options.block_size
        self._window = memoryview(bytearray(self._stride * options.window_size))
        size = self._source.size
        if size is not None:
            self._last, self._last_length = size // options.block_size + 1, size % options.block_size
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

    def _receive_ack(self, number: int, now: float) -> None:
        if self.over:
            return
        ignored = self._machine.ignored
        blocks = self._machine.receive_ack(number, now)
        self.report.duplicates += self._machine.ignored - ignored
        if self._machine.ignored == ignored:
            self._tell_progress(self._bytes_acknowledged())
        if self._machine.state is State.DONE:
            self._end()
        else:
            self._send_blocks(blocks)

    def _bytes_acknowledged(self) -> int:
        done = max(0, self._machine.acknowledged)
        if done == self._last:
            return (done - 1) * self.options.block_size + self._last_length
        return done * self.options.block_size

    def _refused(self, exc: OSError) -> None:
        if self._machine.lacks_only_confirmation:  # the peer has closed its socket: its last ACK was lost
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
        if self._machine.state is State.UNCONFIRMED:
            self._end_unconfirmed()
        elif self._machine.state is State.TIMED_OUT:
            self._end(self._timed_out(), tell_peer=False)

    def _send_blocks(self, blocks: range) -> None:
        if not blocks:
            return
        if blocks.start == 0:
            self._send_opening()
            return
        self._load(blocks.stop)
        block, stop = blocks.start, blocks.stop if self._last is None else min(blocks.stop, self._last + 1)
        window_size = self.options.window_size
        while block < stop:  # once, or twice where the window's end is reached
            place = (block - 1) % window_size
            count = min(stop - block, window_size - place)
            end = (place + count) * self._stride
            block += count
            if block - 1 == self._last:
                end += self._last_length - self.options.block_size
            self._send_train(self._window[place * self._stride : end], self._stride)

    def _load(self, stop: int) -> None:
        """Fill the places of the blocks below `stop` that were not loaded yet."""
        if self._last is not None:
            stop = min(stop, self._last + 1)
        blocks = range(self._loaded + 1, stop)
        if not blocks:
            return
        size = self.options.block_size
        gaps = []
        for block in blocks:
            place = (block - 1) % self.options.window_size * self._stride
            HEADER.pack_into(self._window, place, Opcode.DATA, self._machine.wire_number(block))
            gaps.append(self._window[place + HEADER.size : place + self._stride])
        if blocks[-1] == self._last:
            gaps[-1] = gaps[-1][: self._last_length]
        wanted = sum(map(len, gaps))
        count = self._source.fill(gaps, self._loaded * size)
        if self._last is None and count < wanted:
            self._last, self._last_length = self._loaded + count // size + 1, count % size
            self._machine.end(self._last)
        elif count < wanted:
            raise LocalError(ErrorCode.UNDEFINED, "the file became shorter while it was sent")
        self._loaded = blocks[-1]

    def _release(self, *, success: bool) -> None:
        self._source.close()
