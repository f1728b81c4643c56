"""How long a transfer waits for its peer."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["DEFAULT_TIMING", "RetransmitTimer", "Timing"]


@attrs.frozen
class Timing:
    """How long to wait for the peer; all in seconds."""

    initial: float = 1.0
    """The retransmit timeout before a round trip was measured."""
    floor: float = 0.25
    """The shortest in lock-step: boot ROMs take a duplicate for the next block."""
    window_floor: float = 0.02
    """The shortest with a window above 1."""
    cap: float = 8.0
    """The longest, after backing off."""
    max_retransmits: int = 6
    """Retransmissions in a row without an answer before the transfer is given up."""
    patience: float = 30.0
    """Seconds without an answer after which a peer that has answered before is given up, at the earliest: some write
    what they have to flash memory, and say nothing meanwhile."""
    dally: float = 10.0
    """For how long a server repeats the last ACK of an upload, at least. If it was lost, a client sends the last block
    again when its own timeout is over, which is after 5 or 6 seconds for most."""

    def capped_by(self, seconds: float | None) -> Timing:
        """Return these times for a peer that named its retransmission interval (RFC 2349): it is the longest wait.

        It makes no wait longer than the cap that holds without it: neither a forged request nor a peer that falls
        silent is to keep its place for long.
        """
        if seconds is None:
            return self
        initial = min(seconds, max(self.initial, self.cap))
        return attrs.evolve(self, initial=initial, cap=max(min(seconds, self.cap), self.floor))


DEFAULT_TIMING: Final = Timing()


class RetransmitTimer:
    """The retransmit timeout: RFC 6298 with the bounds of a `Timing`, doubled at each timeout.

    Only a packet that was sent once is measured (Karn's rule): the caller sees to that. Until there is progress,
    `limit` counts instead of what the `Timing` says.
    """

    def __init__(self, timing: Timing = DEFAULT_TIMING, *, limit: int | None = None) -> None:
        self.timing = timing
        self.floor = timing.floor
        self.smoothed: float | None = None
        """The smoothed round-trip time in seconds; None before the first measurement."""
        self.retransmits = 0
        """Timeouts since the last progress."""
        self.limit = timing.max_retransmits if limit is None else limit
        """Retransmissions in a row before the peer is given up."""
        self.unhurried = timing.initial
        """Seconds to wait for a peer that has answered in time so far."""
        self.fastest = timing.window_floor
        """The shortest round trip in seconds; while none was measured, the shortest timeout with a window."""
        self.slowest = 0.0
        """The longest round trip of late in seconds; it falls slowly when they become shorter."""
        self._variance = 0.0
        self._waited = 0.0  # since the last progress
        self._patience = 0.0

    @property
    def timeout(self) -> float:
        """Seconds to wait for an answer now."""
        return min(self.unhurried * 2.0**self.retransmits, max(self.timing.cap, self.unhurried))

    @property
    def round_trip(self) -> float:
        """The smoothed round-trip time in seconds; while none was measured, the shortest timeout with a window."""
        return self.timing.window_floor if self.smoothed is None else self.smoothed

    def is_usual(self, seconds: float) -> bool:
        """Tell whether a round trip may have taken so long, by those that were measured."""
        return self.smoothed is not None and self.fastest / 2 <= seconds <= self.smoothed + 4 * self._variance

    def measured(self, seconds: float) -> None:
        """Take a round trip into account."""
        if self.smoothed is None:
            self.smoothed, self._variance, self.fastest = seconds, seconds / 2, seconds
        else:
            if seconds < self.fastest:
                self.fastest = seconds
            self._variance += (abs(self.smoothed - seconds) - self._variance) / 4
            self.smoothed += (seconds - self.smoothed) / 8
        self.slowest = max(seconds, self.slowest - (self.slowest - seconds) / 8)
        self.unhurried = min(max(self.smoothed + 4 * self._variance, self.floor), self.timing.cap)

    def took(self, seconds: float) -> None:
        """Take into account that a packet that was sent more than once, lately so long ago, was answered.

        Which of its copies the answer belongs to is not known. That is no measure of the round trip (Karn's rule), but
        it takes at least so long until all that was sent has been dealt with.
        """
        self.slowest = max(self.slowest, seconds)
        self.unhurried = max(self.unhurried, min(2 * seconds, self.timing.cap))

    def keep_backoff(self) -> None:
        """Wait from now on as long as now, until a round trip is measured.

        A peer that has become slower answers each packet when it was sent again, so nothing is ever measured unless the
        longer wait stays for the next packet: the second half of Karn's rule.
        """
        self.unhurried = self.timeout

    def progressed(self) -> None:
        """Forget the backoff: the peer answers."""
        self.retransmits = 0
        self.limit = self.timing.max_retransmits
        self._patience = self.timing.patience

    def timed_out(self) -> bool:
        """Count a timeout; tell whether there were too many in a row, for long enough."""
        self._waited = self.timeout + (self._waited if self.retransmits else 0.0)
        self.retransmits += 1
        return self.retransmits > self.limit and self._waited >= self._patience
