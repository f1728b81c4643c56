"""Runs the deadlines of connections: one timer for each event loop, one `PeerClock` for each connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from asyncnet.perloop import PerLoop
from asyncnet.tcp.deadlines import Deadline, DeadlineQueue, Timeouts, Watch
from asyncnet.tcp.transport import SocketTransport

__all__ = ["PeerClock"]

_PER_TURN: Final = 4
"""Peers that are told that they took too long before the event loop turns to others."""


class _Alarm:
    """The timer of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue = DeadlineQueue()
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, watch: Watch) -> None:
        if self._queue.schedule(watch):
            self._set()

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._queue.next
        if when is not None:
            self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for watch, deadline in islice(self._queue.expired(now), _PER_TURN):
                if watch.on_missed is not None:
                    watch.on_missed(deadline, now)
        finally:
            self._set()


_alarm_of: Final = PerLoop(_Alarm)


class _HasData(Protocol):
    def has_data(self) -> bool: ...


class PeerClock:
    """Holds the peer of one connection to its deadlines.

    Args:
        loop: the loop of the connection.
        timeouts: how long the peer may take.
        reader: tells whether there are bytes that nobody has read.
        missed: called with the deadline that has passed, and the seconds that it allowed.
    """

    __slots__ = ("_alarm", "_closing", "_loop", "_missed", "_reader", "_transport", "_unsent", "_watch")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        reader: _HasData,
        missed: Callable[[Deadline, float], object],
    ) -> None:
        self._alarm = _alarm_of(loop)
        self._loop = loop
        self._reader = reader
        self._missed = missed
        self._transport: asyncio.WriteTransport | None = None
        self._unsent = -1
        self._closing = False
        self._watch = Watch(timeouts, loop.time(), self._on_missed)

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Watch what this transport sends."""
        self._transport = transport
        if isinstance(transport, SocketTransport):
            transport.on_wait = self.stalled
        self._schedule()

    def close_within(self, seconds: float) -> None:
        """The connection is being closed: its peer may take nothing for so long, and nothing else counts."""
        self._watch.timeouts = Timeouts(write=seconds)
        self._closing = True
        self._look_at_unsent(self._loop.time())
        self._schedule()

    def stop(self) -> None:
        """The connection is over."""
        self._watch.end()
        self._transport = None

    def _schedule(self) -> None:
        self._alarm.schedule(self._watch)

    # What happens on the connection.

    def wait_begins(self) -> None:
        """A read waits for the peer."""
        now = self._loop.time()
        self._watch.wait(now)
        self._look_at_unsent(now)
        self._schedule()

    def wait_ends(self) -> None:
        """The read has ended."""
        self._watch.waited(self._loop.time())

    def received(self) -> None:
        """Bytes have arrived."""
        self._watch.receive(self._loop.time())

    def answered(self) -> None:
        """Something was written."""
        self._watch.answer(self._loop.time(), more=self._reader.has_data())

    def stalled(self) -> None:
        """The peer does not take what is written."""
        self._look_at_unsent(self._loop.time())
        self._schedule()

    def _look_at_unsent(self, now: float) -> None:
        if self._watch.timeouts.write is None or self._transport is None:
            return
        if isinstance(self._transport, SocketTransport):
            self._watch.stall(self._transport.stalled_since())
            return
        unsent = _unsent(self._transport)
        if not unsent and not self._closing:  # TLS waits for the peer's end even after the last byte
            self._watch.stall(None)
        elif unsent != self._unsent:
            self._watch.stall(now)
        self._unsent = unsent

    def _on_missed(self, deadline: Deadline, now: float) -> None:
        if deadline is Deadline.WRITE:
            self._look_at_unsent(now)
            due = self._watch.due()
            if due is None or due[0] > now:  # it has taken some meanwhile
                self._schedule()
                return
        elif deadline is Deadline.IDLE:
            self._watch.forgive(now)
        seconds: float = getattr(self._watch.timeouts, deadline.value)
        self._missed(deadline, seconds)


def _unsent(transport: asyncio.WriteTransport) -> int:
    try:
        return transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport forgets its connection at a second close()
        return 0
