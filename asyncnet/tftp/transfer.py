"""The two halves of a TFTP transfer, without sockets, files or clocks.

`Sender` and `Receiver` count blocks: they are told which block numbers and acknowledgements arrive and when (`now`, in
seconds on any steady clock), and they answer with the blocks to send, the block to store and the block to
acknowledge. Blocks are counted from 1 without wrapping; only `wrap` and `unwrap` know that the wire has 16 bits.

Block 0 is the packet that opens the transfer: a client's request, or a server's OACK or ACK 0. It is sent again like
any block, so a lost request and a lost OACK need no code of their own.

Loss is repaired without waiting for a timeout wherever the peer gives a hint, and never by answering a hint twice:

- With a window, an ACK below the window's end says "send again from here" (RFC 7440 section 4). The ACK of the previous
  window's end says so too, when the first block of this window was lost. Such a repeated ACK counts only if it can be
  an answer to the present flight, half of the shortest round trip after it left: a duplicate made by the network comes
  earlier, and would double every window from there on. After blocks were sent again, it counts only when all of them
  have been dealt with: EDK2 answers each block that it has already so, and would be sent window upon window.
- In lock-step (a window of one) a repeated ACK never causes a block to be sent: that is the Sorcerer's Apprentice
  (RFC 1123 section 4.2.3.1).
- The receiver acknowledges a gap once, and again only after progress or two round trips; it keeps blocks that arrive
  beyond the gap, so the repaired block completes the window.
- A window that comes again is acknowledged again only when the answer to its ACK is overdue: then the ACK was lost.
  Otherwise the window was sent twice by mistake, and one more ACK would have the next one sent twice as well.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from asyncnet.tftp.packets import Rollover, unwrap, wrap
from asyncnet.tftp.retransmit import DEFAULT_TIMING, RetransmitTimer, Timing

__all__ = ["Receiver", "Sender", "State"]

_NOTHING: Final = range(0)

_MEASURE_EVERY: Final = 0.02
"""Seconds between two measurements of the round trip; one for each block would cost more than it tells."""

_LOSSES_IN_A_ROW: Final = 4
"""Windows that are believed to be lost one after the other, before their answers are believed to be late."""


class State(Enum):
    """Where a transfer stands."""

    ACTIVE = "active"
    DALLYING = "dallying"
    """Receiver: everything has arrived; the last ACK is repeated for a peer that missed it."""
    DONE = "done"
    UNCONFIRMED = "sent, unconfirmed"
    """Sender: everything was sent and only the last window's ACK never came; some clients never send it."""
    TIMED_OUT = "timed out"


class Sender:
    """Sends blocks 1 to `last`, after the opening packet if there is one.

    Each call that may lead to sending returns the range of blocks to send now, never beyond the window or the last
    block; block 0 is the opening packet. `end` may be called at any time up to the sending of that block.

    Args:
        window_size: blocks that may be unacknowledged.
        last: number of the last block, when it is known.
        opening: whether block 0 is to be sent and acknowledged first.
        rollover: the number that follows 65535.
        timing: the bounds of the retransmit timeout.
        unheard_retransmits: retransmissions to a peer that has not answered at all; by default as many as to others.
    """

    def __init__(
        self,
        *,
        window_size: int = 1,
        last: int | None = None,
        opening: bool = True,
        rollover: Rollover = 0,
        timing: Timing = DEFAULT_TIMING,
        unheard_retransmits: int | None = None,
    ) -> None:
        self.state = State.ACTIVE
        self.deadline: float | None = None
        """When `handle_timer` is due; None when nothing is awaited."""
        self.retransmitted = 0
        """Blocks sent again."""
        self.ignored = 0
        """ACKs that asked for nothing."""
        self.timer = RetransmitTimer(timing, limit=unheard_retransmits)
        self._rollover: Rollover = rollover
        self._last = last
        self._base = 0 if opening else 1  # the first block not acknowledged
        self._next = self._base  # the next block to send
        self._highest = self._base  # the first block never sent
        self._heard = False  # whether the peer acknowledged anything
        self._flight_at = 0.0  # when the first block of the window left
        self._superseded = 0  # the end of the flight before, if it was sent again; its ACK may come late
        self._doubtful_until = 0.0  # until then a repeated ACK may be an answer to blocks that were sent before
        self._timed: tuple[int, float] | None = None  # the block being timed, and when it left
        self._late = 0  # windows that were acknowledged only after a timeout, since a round trip was measured
        self._measure_at = 0.0  # no round trip is timed before
        self.configure(window_size=window_size)

    def configure(self, *, window_size: int) -> None:
        """Set the window that was negotiated; valid while block 0 is unacknowledged."""
        self.window_size = window_size
        self.timer.floor = self.timer.timing.window_floor if window_size > 1 else self.timer.timing.floor

    def end(self, last: int) -> None:
        """Say that `last` is the number of the last block."""
        self._last = last

    def wire_number(self, block: int) -> int:
        """Return the number that `block` has on the wire."""
        return wrap(block, self._rollover)

    @property
    def acknowledged(self) -> int:
        """The highest block that the peer has, -1 before it has the opening packet."""
        return self._base - 1

    def start(self, now: float) -> range:
        """Return the first blocks to send."""
        return self._flight(now)

    def repeat_opening(self) -> None:
        """Say that the peer is sent block 0 again, as it has asked: the round trip tells nothing more."""
        self._timed = None
        self.retransmitted += 1

    def receive_ack(self, number: int, now: float) -> range:
        """Take an ACK's block number as it stands on the wire; return the blocks to send."""
        if first := self.confirm(number, now):
            return range(first, self._next)
        block = unwrap(number, self._base, self._rollover)
        if self.state is not State.ACTIVE or not self._base - 1 <= block < self._highest:
            self.ignored += 1
            return _NOTHING
        if block >= self._base:
            return self._advance(block, now)
        if self.window_size == 1 or self._base == 0 or now < self._doubtful_until or self._is_early(now):
            self.ignored += 1
            return _NOTHING
        return self._rewind(now)

    def confirm(self, number: int, now: float) -> int:
        """Take an ACK if it is the plain case: it acknowledges all that was sent, and a whole window is to follow.

        This is what `receive_ack` does then, without its questions: in lock-step it happens for every block.

        Returns:
            The first block to send, a window of them; 0 when it is another case.
        """
        base = self._next
        if number != (base - 1) & 0xFFFF or self._highest != base or base <= self._base or not self._heard:
            return 0
        end, last = base + self.window_size, self._last
        if (last is not None and end > last) or self._rollover:
            return 0
        timer, timed = self.timer, self._timed
        if timed is not None:
            timer.measured(now - timed[1])
            self._timed = None
            self._late = 0
            self._measure_at = now + _MEASURE_EVERY
        else:
            if timer.retransmits:
                self._answered_late(now)
            if now >= self._measure_at:
                self._timed = end - 1, now
        timer.retransmits = 0
        self._base = base
        self._next = self._highest = end
        self._flight_at = now
        self.deadline = now + timer.unhurried
        return base

    def handle_timer(self, now: float) -> range:
        """Return the blocks to send again, if the deadline has passed."""
        if self.deadline is None or now < self.deadline:
            return _NOTHING
        if self.timer.timed_out():
            self._finish(State.UNCONFIRMED if self.lacks_only_confirmation else State.TIMED_OUT)
            return _NOTHING
        return self._rewind(now)

    @property
    def lacks_only_confirmation(self) -> bool:
        """Whether all was sent, and all before the last window was acknowledged."""
        if not self._heard or self._last is None:
            return False
        return self._highest > self._last and self._base + self.window_size > self._last

    def _advance(self, block: int, now: float) -> range:
        if self._timed is not None and block >= self._timed[0]:
            self.timer.measured(now - self._timed[1])
            self._timed = None
            self._late = 0
        elif self._base:
            if self._heard and self.timer.retransmits and block + 1 >= self._next:
                self._answered_late(now)
            self.timer.took(now - self._flight_at)
        self.timer.progressed()
        self._heard = True
        self._base = block + 1
        if self._last is not None and self._base > self._last:
            self._finish(State.DONE)
            return _NOTHING
        if self._base >= self._next:
            self._next = self._base
        elif self._base != self._superseded and not (now < self._doubtful_until and self._is_early(now)):
            return self._rewind(now)  # an ACK inside the window: what follows it was lost
        return self._flight(now)

    def _answered_late(self, now: float) -> None:
        # A round trip after the last copy, the answer is to it, and the one before was lost. At another time, or time
        # after time, the answer is to an earlier copy: the peer has become slower.
        self._late += 1
        if self._late > _LOSSES_IN_A_ROW or not self.timer.is_usual(now - self._flight_at):
            self._late = 0
            self.timer.keep_backoff()

    def _is_early(self, now: float) -> bool:  # for an answer to the present flight
        return now - self._flight_at < self.timer.fastest / 2

    def _rewind(self, now: float) -> range:
        self._timed = None
        self._superseded = self._next
        self._next = self._base
        return self._flight(now)

    def _flight(self, now: float) -> range:
        end = self._base + self.window_size if self._base else 1
        if self._last is not None:
            end = min(end, self._last + 1)
        blocks = range(self._next, end)
        if blocks:
            if (again := min(self._highest, end) - self._next) > 0:
                self.retransmitted += again
                self._doubtful_until = now + 2 * (self.timer.slowest or self.timer.timing.window_floor)
            if again < len(blocks) and self._timed is None:
                self._timed = (end - 1, now)
            if self._next == self._base:
                self._flight_at = now
            self._next = end
            self._highest = max(self._highest, end)
        self.deadline = now + self.timer.timeout
        return blocks

    def _finish(self, state: State) -> None:
        self.state = state
        self.deadline = None


class Receiver:
    """Receives blocks until one that is shorter than the block size.

    `receive_data` tells where a block belongs; when a batch of datagrams is through, `take_ack` tells which block to
    acknowledge, if any, so that a train of datagrams is acknowledged once. When `complete`, the caller makes sure that
    the data is safe and calls `finish`, which makes the last ACK due.

    Args:
        window_size: blocks that the peer sends before it awaits an ACK.
        block_size: bytes of every block but the last.
        rollover: the number that follows 65535; None learns it from the peer in lock-step and is 0 with a window.
        keep_beyond_gap: whether blocks may be stored out of order.
        timing: the bounds of the retransmit timeout.
        unheard_retransmits: retransmissions to a peer that has not answered at all; by default as many as to others.
        dally: seconds for which the last ACK is repeated at least; two timeouts are enough for a peer with ours.
    """

    def __init__(
        self,
        *,
        window_size: int = 1,
        block_size: int = 512,
        rollover: Rollover | None = None,
        keep_beyond_gap: bool = True,
        timing: Timing = DEFAULT_TIMING,
        unheard_retransmits: int | None = None,
        dally: float = 0.0,
    ) -> None:
        self.state = State.ACTIVE
        self.deadline: float | None = None
        """When `handle_timer` is due; None when nothing is awaited."""
        self.duplicates = 0
        """Blocks that had arrived before."""
        self.retransmitted = 0
        """ACKs and opening packets that were due again after a silence."""
        self.may_lack_block = False
        """Whether the peer may have left out the block that wraps to 0: only the size of the file can tell.

        Some senders (curl) take an ACK 65535 that is due again for the ACK of that block. If it was lost, what comes
        next looks like the number of one that wraps to 1.
        """
        self.timer = RetransmitTimer(timing, limit=unheard_retransmits)
        self._rollover = rollover
        self._keep = keep_beyond_gap
        self._dally = dally
        self._kept: set[int] = set()  # blocks beyond the gap; less than a window of them
        self._opened = False  # whether an OACK has come
        self._repeats_ack = False  # whether the last ACK was due again
        self._expected = 1
        self._last: int | None = None
        self._acknowledged = 0  # the block of the last ACK: the window begins behind it
        self._ack: int | None = None
        self._acknowledged_at = 0.0  # when that ACK was due
        self._is_timed = False  # whether the answer to that ACK is to be measured
        self._quiet_until = 0.0  # no second hint at a gap before
        self._stall_hinted = False  # a window that stays incomplete was acknowledged already
        self.configure(window_size=window_size, block_size=block_size)

    def configure(self, *, window_size: int, block_size: int) -> None:
        """Set what was negotiated; valid before the first block arrives."""
        self.window_size = window_size
        self.block_size = block_size
        self.timer.floor = self.timer.timing.window_floor if window_size > 1 else self.timer.timing.floor

    def wire_number(self, block: int) -> int:
        """Return the number that `block` has on the wire."""
        return wrap(block, self._rollover or 0)

    @property
    def received(self) -> int:
        """The last block of those that arrived without a gap."""
        return self._expected - 1

    @property
    def complete(self) -> bool:
        """Whether every block has arrived."""
        return self._last is not None and self._expected > self._last

    def start(self, now: float) -> None:
        """Make the opening packet due: `take_ack` then returns 0."""
        self._acknowledge(now, timed=True)

    def repeat_opening(self) -> None:
        """Say that the peer is sent the opening packet again, as it has asked."""
        self._is_timed = False
        self.retransmitted += 1

    def receive_oack(self, now: float) -> None:
        """Take the server's OACK, the first or a repeated one: ACK 0 is due while no block has arrived."""
        if self._expected == 1 and self.state is State.ACTIVE:
            first = not self._opened
            self._opened = True
            self._measure(now)
            self.timer.progressed()
            self._acknowledge(now, timed=first)

    def receive_data(self, number: int, length: int, now: float) -> int | None:
        """Take a block's number as it stands on the wire, and the bytes it carries.

        Returns:
            The block to store, counted from 1 without wrapping, or None when it is not wanted.
        """
        block = self._unwrap(number)
        if self.state is not State.ACTIVE:
            if block == self._last:
                self._ack = block
            return None
        if block < self._expected or block in self._kept:
            self._repeated(block, now)
            return None
        if block > self._expected:
            self._hint(now)
            if not self._keep or block > self._expected + self.window_size - 1:
                return None
            self._kept.add(block)
        if length < self.block_size:
            self._last = block
        if block == self._expected:
            self._progress(now)
        return block

    def receive_run(self, number: int, count: int, length: int, now: float) -> int | None:
        """Take `count` blocks with consecutive numbers from `number` on, all of them full but perhaps the last.

        Args:
            number, count: of the first block, as it stands on the wire, and how many they are.
            length, now: bytes of the last, and when they arrived.

        Returns:
            The first block to store, or None when they are not just what comes next: then each is to be taken alone.
        """
        first = self._unwrap(number)
        last = first + count - 1
        if self.state is not State.ACTIVE or first != self._expected or self._kept:
            return None
        if last > self._acknowledged + self.window_size:
            return None
        self._expected = last
        if length < self.block_size:
            self._last = last
        self._progress(now)
        return first

    def take_ack(self) -> int | None:
        """Return the block to acknowledge now, 0 for the opening packet, and None for nothing."""
        ack, self._ack = self._ack, None
        return ack

    def finish(self, now: float) -> None:
        """Say that everything is stored: the last ACK is due, and for a while again when the peer missed it."""
        self.state = State.DALLYING
        self._ack = self._last
        self.deadline = now + max(2 * max(self.timer.timeout, self.timer.timing.floor), self._dally)

    def handle_timer(self, now: float) -> None:
        """Make the last ACK due again, if the deadline has passed."""
        if self.deadline is None or now < self.deadline:
            return
        if self.state is State.DALLYING:
            self.state, self.deadline = State.DONE, None
            return
        if self._stall_is_short():
            self._stall_hinted = True
        elif self.timer.timed_out():
            self.state, self.deadline = State.TIMED_OUT, None
            return
        self.retransmitted += 1
        self._repeats_ack = True
        self._acknowledge(now)

    def _unwrap(self, number: int) -> int:
        if self._rollover is None and self._expected == 0x10000 and number in (0, 1):
            # With a window, a 1 may as well mean that the block before it was lost.
            self._rollover = 1 if number == 1 and self.window_size == 1 else 0
            self.may_lack_block = self._rollover == 1 and self._repeats_ack
        return unwrap(number, self._expected, self._rollover or 0)

    def _progress(self, now: float) -> None:
        self._measure(now)
        self.timer.progressed()
        self._quiet_until = 0.0
        self._stall_hinted = self._repeats_ack = False
        self._expected += 1
        while self._expected in self._kept:
            self._kept.remove(self._expected)
            self._expected += 1
        if self.complete:
            self.deadline = None
        elif self._expected > self._acknowledged + self.window_size:
            self._acknowledge(now, timed=True)
        else:
            self.deadline = now + self._patience()

    def _repeated(self, block: int, now: float) -> None:
        self.duplicates += 1
        if self.window_size == 1:
            if block == self._expected - 1:
                self._ack = block
                self._repeats_ack = True
        elif self._acknowledged == self._expected - 1 and now - self._acknowledged_at > self.timer.round_trip:
            self._acknowledge(now)

    def _hint(self, now: float) -> None:
        """Acknowledge what has arrived, so that the peer sends again from there."""
        if self.window_size > 1 and now >= self._quiet_until:
            self._quiet_until = now + 2 * self.timer.round_trip
            self._acknowledge(now)

    def _acknowledge(self, now: float, *, timed: bool = False) -> None:
        self._ack = self._acknowledged = self._expected - 1
        self._acknowledged_at = now
        self._is_timed = timed
        self.deadline = now + self._patience()

    def _measure(self, now: float) -> None:
        if self._is_timed:
            self.timer.measured(now - self._acknowledged_at)
            self._is_timed = False

    def _patience(self) -> float:
        """Seconds of silence after which the last ACK is due again."""
        if self._stall_is_short():
            return max(4 * self.timer.round_trip, self.timer.timing.window_floor / 4)
        return self.timer.timeout

    def _stall_is_short(self) -> bool:
        return self.window_size > 1 and self.timer.smoothed is not None and not self._stall_hinted
