"""A session that receives a file: the client's side of an RRQ, the server's side of a WRQ."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from asyncnet.addresses import Address
from asyncnet.errors import LocalError
from asyncnet.tftp.files import Sink
from asyncnet.tftp.options import Options
from asyncnet.tftp.packets import HEADER, Ack, ErrorCode, Opcode, OptionPairs, encode_packet, headers
from asyncnet.tftp.session import Progress, Session
from asyncnet.tftp.transfer import Receiver, State
from asyncnet.udp.ancillary import Train

__all__ = ["ReceiveSession"]


class ReceiveSession(Session):
    """Stores what arrives in a sink; the last ACK leaves when the sink has committed."""

    _machine: Receiver

    def __init__(
        self,
        sink: Sink,
        machine: Receiver,
        *,
        opening: bytes,
        options: Options | None = None,
        server: Address | None = None,
        negotiate: Callable[[OptionPairs], Options] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(machine, opening=opening, server=server, negotiate=negotiate, progress=progress)
        self._sink = sink
        self._bytes = 0
        self._close_later = False
        self._prepare(options or Options())

    def _prepare(self, options: Options) -> None:
        self._use(options)
        self._machine.configure(window_size=options.window_size, block_size=options.block_size)

    def _start(self, now: float) -> None:
        self._machine.start(now)
        self._send_ack()

    def _is_opening(self) -> bool:
        return self._machine.received == 0

    def _receive_options(self, options: Options, now: float) -> None:
        if self._negotiate is not None and self._opening[1] != Opcode.ACK:
            self._prepare(options)
            self._opening = encode_packet(Ack(0))
        self._machine.receive_oack(now)
        self._send_ack()

    def _receive_block(self, number: int, data: bytes, now: float) -> None:
        payload = memoryview(data)[HEADER.size :]
        if self._committing:
            return
        if self.over:
            if self._machine.state is State.DALLYING:
                self._machine.receive_data(number, len(payload), now)
                self._send_ack()
            return
        if len(payload) > self.options.block_size:
            raise LocalError(ErrorCode.ILLEGAL_OPERATION, "a block is longer than what was agreed")
        block = self._machine.receive_data(number, len(payload), now)
        if block is not None:
            self._sink.store([payload], (block - 1) * self.options.block_size)
            self._bytes += len(payload)
        self._answer(now)

    def _receive_train(self, train: memoryview, now: float) -> bool:
        """Acknowledge a train of blocks once and store it at once, if it is just what comes next."""
        size = HEADER.size + self.options.block_size
        whole, rest = divmod(len(train), size)
        fields = headers(self.options.block_size, whole).unpack_from(train)
        if rest:
            if rest < HEADER.size:
                return False
            fields += HEADER.unpack_from(train, whole * size)
        length = rest - HEADER.size if rest else self.options.block_size
        payloads = [train[start + HEADER.size : start + size] for start in range(0, len(train), size)]
        return self._receive_run(fields, payloads, length, now)

    def _receive_singles(self, blocks: list[memoryview], now: float) -> None:
        """Do the same with whole blocks that came one by one, as a sender without UDP_SEGMENT sends its window."""
        if len(blocks) > 1:
            fields = tuple(chain.from_iterable(map(HEADER.unpack_from, blocks)))
            payloads = [block[HEADER.size :] for block in blocks]
            if self._receive_run(fields, payloads, self.options.block_size, now):
                return
        for block in blocks:
            self._take(bytes(block))

    def _receive_run(self, fields: tuple[int, ...], payloads: list[memoryview], length: int, now: float) -> bool:
        first, count = fields[1], len(payloads)
        if fields[1::2] != tuple(range(first, first + count)) or fields[::2] != (Opcode.DATA,) * count:
            return False
        block = None if self.over or self._committing else self._machine.receive_run(first, count, length, now)
        if block is None:
            return False
        self._bytes += (count - 1) * self.options.block_size + length
        complete = self._machine.complete
        if not complete:
            self._send_ack()  # the sender reads its next window while this one is stored
        self._sink.store(payloads, (block - 1) * self.options.block_size)
        if complete:
            self._answer(now)
        return True

    def _answer(self, now: float) -> None:
        if not self._machine.complete:
            self._send_ack()
            return
        self._check_size()
        if self._call_blocking is not None and getattr(self._sink, "commit_blocks", False):
            self._call_blocking(self._sink.commit, self._on_committed)
            self._committing = True
        else:
            self._sink.commit()
            self._finish(now)

    def _on_committed(self, error: BaseException | None) -> None:
        self._committing = False
        try:
            if error is not None:
                raise error
            self._finish(self._clock())
            self._rearm()
        except Exception as exc:
            self.fail(exc)
        if self._close_later:
            self.close()

    def _finish(self, now: float) -> None:
        self._machine.finish(now)
        self._send_ack()
        self._tell_progress(self._bytes)
        self.report.duplicates = self._machine.duplicates
        self._end()

    def close(self) -> None:
        """Close the socket, also while dallying; while the disk is waited for, as soon as it has answered."""
        if self._committing:
            self._close_later = True
        else:
            super().close()

    def _check_size(self) -> None:
        """Compare with what the server has announced; a client's announcement is only a wish for room.

        Where a block may be missing, nothing but the right size shows that there is none.
        """
        announced = self.options.transfer_size
        if self._machine.may_lack_block and announced != self._bytes:
            raise LocalError(
                ErrorCode.UNDEFINED, "a block was lost where the numbers wrap, and perhaps left out: try again"
            )
        if self._server is not None and announced and announced != self._bytes:
            raise LocalError(
                ErrorCode.UNDEFINED, f"the server announced {announced} bytes and sent {self._bytes}: try again"
            )

    def trains_received(self, batch: list[Train]) -> None:
        """Store what arrived together at once, and acknowledge it once."""
        now = self._clock()
        whole = HEADER.size + self.options.block_size
        singles: list[memoryview] = []
        try:
            for data, size, addr in batch:
                if self._server is not None and not self._is_from_server(addr, data):
                    continue
                if len(data) == whole <= (size or whole):
                    singles.append(data)
                    continue
                if singles:
                    run, singles = singles, []
                    self._receive_singles(run, now)
                if len(data) > size == whole and self._receive_train(data, now):
                    continue
                for start in range(0, len(data), size or 1):
                    self._take(bytes(data[start : start + size]))
            if singles:
                self._receive_singles(singles, now)
        except Exception as exc:
            self.fail(exc)
        self._rearm()

    def _send_ack(self) -> None:
        block = self._machine.take_ack()
        if block == 0:
            self._send_opening()
        elif block is not None:
            self._send(HEADER.pack(Opcode.ACK, self._machine.wire_number(block)))
            if not self.over:
                self._tell_progress(self._bytes)

    def _handle_timer(self, now: float) -> None:
        self._machine.handle_timer(now)
        if self._machine.state is State.TIMED_OUT:
            self._end(self._timed_out(), tell_peer=False)
        else:
            self._send_ack()

    def _release(self, *, success: bool) -> None:
        if not success:
            self._sink.abort()
