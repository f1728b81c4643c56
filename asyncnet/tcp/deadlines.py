"""When a peer has taken too long: five deadlines of a connection, without I/O; time is an argument.

A deadline on what a peer sends counts only while somebody waits for it: a handler at work is not the peer's fault. So
the first byte, a message and an idle connection end in the read that waits for them.

- ``first_byte``: from the beginning of the connection.
- ``message``: from the first byte that arrives after the last answer until the next answer. It is absolute: a peer that
  sends one byte now and then cannot stretch it.
- ``idle``: time spent waiting without a byte in either direction.
- ``write``: unsent bytes of which the peer takes none.
- ``lifetime``: from the beginning of the connection, whatever happens on it.

Nothing is scheduled per read: a connection has one entry in a heap, and when its time comes it is looked at again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

import attrs

from asyncnet.arguments import check_seconds

__all__ = ["Deadline", "DeadlineQueue", "Timeouts", "Watch"]

_COMPACT_FROM: Final = 64


class Deadline(Enum):
    """What a peer took too long for; the value is the name of its timeout."""

    FIRST_BYTE = "first_byte"
    MESSAGE = "message"
    IDLE = "idle"
    WRITE = "write"
    LIFETIME = "lifetime"


def _positive(timeouts: Timeouts, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    check_seconds(f"{attribute.name}_timeout", value)


@attrs.frozen
class Timeouts:
    """Seconds; None means no limit. The module's docstring says what each one measures.

    Raises:
        TypeError, ValueError: a value is neither None nor a positive, finite number.
    """

    first_byte: float | None = attrs.field(default=None, validator=_positive)
    message: float | None = attrs.field(default=None, validator=_positive)
    idle: float | None = attrs.field(default=None, validator=_positive)
    write: float | None = attrs.field(default=None, validator=_positive)
    lifetime: float | None = attrs.field(default=None, validator=_positive)

    def __bool__(self) -> bool:
        return any(value is not None for value in attrs.astuple(self))


@attrs.define(eq=False)
class Watch:
    """The clock of one connection.

    Args:
        timeouts: what it may take.
        opened: when it began.
        on_missed: called by the one who runs the clock with the deadline that has passed, and the time.
    """

    timeouts: Timeouts
    opened: float
    on_missed: Callable[[Deadline, float], object] | None = None
    scheduled: float = attrs.field(default=math.inf, init=False)
    """When its turn in the queue comes; infinity when it has no entry."""
    _received: bool = attrs.field(default=False, init=False)
    _message_since: float | None = attrs.field(default=None, init=False)
    _waiting_since: float | None = attrs.field(default=None, init=False)
    _quiet: float = attrs.field(default=0.0, init=False)
    _stalled_since: float | None = attrs.field(default=None, init=False)
    _ended: bool = attrs.field(default=False, init=False)

    def wait(self, now: float) -> None:
        """Somebody begins to wait for bytes."""
        self._waiting_since = now

    def waited(self, now: float) -> None:
        """The wait is over, with bytes or without."""
        if self._waiting_since is not None:
            self._quiet += now - self._waiting_since
            self._waiting_since = None

    def receive(self, now: float) -> None:
        """Bytes have arrived."""
        self._received = True
        self._quiet = 0.0
        if self._waiting_since is not None:
            self._waiting_since = now
        if self._message_since is None:
            self._message_since = now

    def answer(self, now: float, *, more: bool) -> None:
        """Something was written; `more` tells that bytes of the next message are here already."""
        self._message_since = now if more else None
        self._quiet = 0.0
        if self._waiting_since is not None:
            self._waiting_since = now

    def stall(self, since: float | None) -> None:
        """Unsent bytes have waited for the peer since then; None: there are none."""
        self._stalled_since = since

    def end(self) -> None:
        """The connection is over."""
        self._ended = True
        self.on_missed = None

    def due(self) -> tuple[float, Deadline] | None:
        """Return the deadline that passes first if nothing happens until then, and when."""
        if self._ended:
            return None
        limits = self.timeouts
        first: tuple[float, Deadline] | None = None
        if limits.lifetime is not None:
            first = (self.opened + limits.lifetime, Deadline.LIFETIME)
        if limits.write is not None and self._stalled_since is not None:
            first = _earlier(first, self._stalled_since + limits.write, Deadline.WRITE)
        since = self._waiting_since
        if since is None:
            return first
        if limits.first_byte is not None and not self._received:
            first = _earlier(first, self.opened + limits.first_byte, Deadline.FIRST_BYTE)
        if limits.message is not None and self._message_since is not None:
            first = _earlier(first, self._message_since + limits.message, Deadline.MESSAGE)
        if limits.idle is not None:
            first = _earlier(first, since + limits.idle - self._quiet, Deadline.IDLE)
        return first

    def forgive(self, now: float) -> None:
        """The connection was idle for too long; it gets another period if its handler goes on."""
        self._quiet = 0.0
        if self._waiting_since is not None:
            self._waiting_since = now


def _earlier(first: tuple[float, Deadline] | None, when: float, deadline: Deadline) -> tuple[float, Deadline]:
    return (when, deadline) if first is None or when < first[0] else first


class DeadlineQueue:
    """The watches of many connections, by the time at which each has to be looked at."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Watch]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float | None:
        """When `expired` has to be called."""
        return self._heap[0][0] if self._heap else None

    def schedule(self, watch: Watch) -> bool:
        """Make sure that a watch is looked at in time; call it when a deadline may have come closer.

        Returns:
            Whether `next` is earlier now.
        """
        due = watch.due()
        if due is None or due[0] >= watch.scheduled:
            return False
        watch.scheduled = due[0]
        self._number += 1
        if len(self._heap) >= _COMPACT_FROM and len(self._heap) & (len(self._heap) - 1) == 0:
            self._compact()
        heapq.heappush(self._heap, (due[0], self._number, watch))
        return self._heap[0][2] is watch

    def expired(self, now: float) -> Iterator[tuple[Watch, Deadline]]:
        """Take out what is due, and yield the deadlines that have passed.

        What is yielded is scheduled again only by `schedule`.
        """
        while self._heap and self._heap[0][0] <= now:
            when, _, watch = heapq.heappop(self._heap)
            if when != watch.scheduled:
                continue  # it was scheduled again, for an earlier time
            watch.scheduled = math.inf
            due = watch.due()
            if due is None:
                continue
            if due[0] <= now:
                yield watch, due[1]
            else:
                self.schedule(watch)

    def _compact(self) -> None:
        """Drop the entries of connections that are over, which would stay for the rest of their time."""
        kept = []
        for entry in self._heap:
            when, _, watch = entry
            if when != watch.scheduled:
                continue
            if watch.due() is None:
                watch.scheduled = math.inf
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._heap = kept
