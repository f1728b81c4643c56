"""When a worker has served long enough: by its age, its connections or its memory, each with jitter."""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs

from asyncnet.arguments import check_count, check_seconds
from asyncnet.workers.board import Board
from asyncnet.workers.fleet import Fleet, Member
from asyncnet.workers.report import resident_bytes

__all__ = ["Recycle", "Recycler"]

_INTERVAL = 1.0


def _seconds(_: object, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    check_seconds(attribute.name, value)


def _count(_: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    check_count(attribute.name, value, or_none=True)


def _share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    check_seconds(attribute.name, value, or_none=False, from_zero=True)
    if value > 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value}")


@attrs.frozen
class Recycle:
    """After how much a worker is replaced by a fresh one, which is ready before the old one drains; None is never.

    Raises:
        TypeError, ValueError: a limit is of a wrong type, or out of range.
    """

    age: float | None = attrs.field(default=None, validator=_seconds)
    """Seconds."""
    connections: int | None = attrs.field(default=None, validator=_count)
    """Of the first of the counters that `run` was given: connections of TCP, requests of TFTP."""
    memory: int | None = attrs.field(default=None, validator=_count)
    """Bytes."""
    jitter: float = attrs.field(default=0.1, validator=_share)
    """Each worker's limits are larger by a random share up to this, so that not all are due at once."""


class Recycler:
    """Looks which workers are due; one is replaced at a time.

    Args:
        limits: of every worker, before jitter.
        chance: the source of the jitter.
    """

    def __init__(self, limits: Recycle, chance: random.Random) -> None:
        self._limits = limits
        self._chance = chance
        self._factors: dict[int, float] = {}
        self._look_at = 0.0
        self._is_on = (limits.age, limits.connections, limits.memory) != (None, None, None)

    def started(self, member: Member) -> None:
        """Draw the jitter of a worker."""
        if self._is_on:
            self._factors[member.pid] = 1.0 + self._chance.random() * self._limits.jitter

    def ended(self, pid: int) -> None:
        """Forget a worker."""
        self._factors.pop(pid, None)

    def due(self, fleet: Fleet, board: Board, now: float) -> Iterator[tuple[int, str]]:
        """Yield the workers that are due, each with the reason; it looks once in a second."""
        if not self._is_on or now < self._look_at:
            return
        self._look_at = now + _INTERVAL
        for member in list(fleet.members.values()):
            if member.is_serving and not member.replaced:
                reason = self._reason(member, board, now)
                if reason is not None:
                    yield member.pid, reason

    def _reason(self, member: Member, board: Board, now: float) -> str | None:
        limits, factor = self._limits, self._factors.get(member.pid, 1.0)
        if limits.age is not None and now - member.started >= limits.age * factor:
            return f"it is {now - member.started:.0f} s old"
        row = board.row_of(member.pid)
        if limits.connections is not None and row is not None:
            name = board.counters[0]
            count = row.counters().get(name, 0)
            if count >= limits.connections * factor:
                return f"{count} {name}"
        if limits.memory is not None and (memory := resident_bytes(member.pid)) >= limits.memory * factor:
            return f"{memory >> 20} MiB of memory"
        return None
