"""Who is present: announcements in, events out. No I/O; `now` is an argument.

**What an announcement is worth.** Each instance numbers its packets by its clock. A packet that is not newer than the
newest one changes nothing, so copies that came by several cards, late ones and repeated ones do no harm. What was
heard of an instance is remembered beyond its end, so that an old packet does not bring it back.

**Floods.** Anybody on the network can send announcements, from addresses that are not theirs. An instance that has
answered a question with the question's number, or signed, is confirmed: whoever sends blindly cannot do that. Half of
the table is for confirmed ones, and when it is full they take the places of others. When there is no room for a
stranger, the roster wants a question to be asked (`wants_question`), which real instances answer.

**Restarts.** A new instance on the node of an old one takes its place, which is one event. Should the old one be heard
again, later than the new one began, both live and both are listed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from asyncnet.broadcast.messages import Goodbye, Present

__all__ = ["Event", "EventKind", "Location", "Peer", "Roster", "RosterStats"]

_RECENT: Final = 16
_MAX_LOCATIONS: Final = 16
_MAX_DEPARTED: Final = 4096
_QUESTION_AFTER: Final = 0.5
"""Share of its expiry after which an instance that was not heard is asked for."""
_UNCONFIRMED_EXPIRY: Final = 60.0
"""Seconds at most for which an instance is believed that nobody has asked."""
_AHEAD: Final = 1.0
_MICROSECONDS: Final = 1_000_000


class EventKind(StrEnum):
    """What has happened to a peer."""

    JOINED = "joined"
    CHANGED = "changed"
    LEFT = "left"


@attrs.frozen
class Location:
    """Where a peer was heard."""

    host: str
    """The address that it sends from; a link-local one ends in ``%INTERFACE``."""
    interface: str | None
    """The name of this host's interface that it was heard by."""


@attrs.frozen
class Peer:
    """A program that is present."""

    name: str
    """Of the service."""
    port: int
    info: Mapping[str, str]
    instance: str
    """Eight bytes in hexadecimal; another one after a restart."""
    node: str
    """Eight bytes in hexadecimal; the same after a restart."""
    locations: tuple[Location, ...]
    """Where it was heard, the place that was heard first at the front."""

    @property
    def host(self) -> str:
        """The address of the first location."""
        return self.locations[0].host

    @property
    def addr(self) -> tuple[str, int]:
        """Host and port to reach the service at."""
        return self.host, self.port

    @property
    def interface(self) -> str | None:
        """The interface of the first location."""
        return self.locations[0].interface


@attrs.frozen
class Event:
    """Something has changed in the roster."""

    kind: EventKind
    peer: Peer
    """As it is now; for `LEFT`, as it was last."""
    reason: str = ""
    """Of `LEFT`: ``goodbye``, ``expired`` or ``evicted``; of `CHANGED`: ``restarted``, ``info`` or ``addresses``."""
    previous: Peer | None = None
    """Of `CHANGED`: as it was before."""


@attrs.define
class RosterStats:
    """What a roster has counted."""

    announcements: int = 0
    """Packets that were newer than what was known."""
    goodbyes: int = 0
    """Instances that said that they leave."""
    duplicates: int = 0
    """Copies of packets that were heard already, by other interfaces or repeated."""
    stale: int = 0
    """Packets older than what is known: late, or repeated by somebody."""
    replayed: int = 0
    """Signed packets whose time is outside the replay window."""
    refused: int = 0
    """Instances for which there was no room."""
    evicted: int = 0
    """Instances that were never confirmed and gave way to one that was."""


@attrs.define(eq=False)
class _Entry:
    peer: Peer
    sequence: int
    epoch: int
    expiry: float
    heard: float
    confirmed: bool
    recent: deque[int]
    locations: dict[Location, float]  # and until when each holds
    twin: bool = False  # its node is that of another living instance too

    @property
    def expires(self) -> float:
        return self.heard + self.expiry


class Roster:
    """The table of peers.

    Args:
        max_peers: instances in the table.
        max_per_host: instances that one address may have in the table.
        replay_window: seconds by which the time of a signed packet may differ from ours; None to accept any.
    """

    def __init__(self, *, max_peers: int = 4096, max_per_host: int = 256, replay_window: float | None = None) -> None:
        self.stats = RosterStats()
        self.wants_question = False
        """Set when somebody should ask who is present; whoever asks clears it."""
        self._max_peers = max_peers
        self._max_per_host = max_per_host
        self._replay_window = replay_window
        self._entries: dict[bytes, _Entry] = {}
        self._unconfirmed: dict[bytes, None] = {}
        self._nodes: dict[tuple[str, bytes], bytes] = {}
        self._per_host: dict[str, int] = {}
        self._departed: dict[bytes, int] = {}
        self._due = math.inf

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def peers(self) -> list[Peer]:
        """Everybody who is present, in the order in which they joined."""
        return [entry.peer for entry in self._entries.values()]

    @property
    def due(self) -> float:
        """When `expire` is to be called next; infinity when nobody is present."""
        return self._due

    def hear(
        self, packet: Present | Goodbye, location: Location, now: float, *, wall: float = 0.0, confirmed: bool = False
    ) -> list[Event]:
        """Take note of a packet.

        Args:
            packet: what was received.
            location: where it came from.
            now: seconds on any steady clock.
            wall: seconds since 1970; compared with a packet's time where there is a replay window.
            confirmed: whether the packet answers our question, or is signed.
        """
        window = self._replay_window
        if window is not None and abs(packet.sequence / _MICROSECONDS - wall) > window:
            self.stats.replayed += 1
            return []
        entry = self._entries.get(packet.instance)
        if isinstance(packet, Goodbye):
            return self._take_leave(packet, entry)
        if entry is None:
            return self._join(packet, location, now, confirmed)
        if confirmed:
            entry.confirmed = True
            self._unconfirmed.pop(packet.instance, None)
        known = packet.sequence in entry.recent
        self.stats.duplicates += known
        if packet.sequence < entry.sequence:  # also a copy of one that came before the newest changes nothing
            self.stats.stale += not known
            return []
        self.stats.announcements += not known
        return self._update(entry, packet, location, now)

    def _take_leave(self, packet: Goodbye, entry: _Entry | None) -> list[Event]:
        if entry is None or packet.sequence <= entry.sequence:
            self.stats.stale += 1
            return []
        entry.sequence = packet.sequence
        self.stats.goodbyes += 1
        return [self._remove(packet.instance, "goodbye")]

    def _join(self, packet: Present, location: Location, now: float, confirmed: bool) -> list[Event]:
        if packet.sequence <= self._departed.get(packet.instance, -1):
            self.stats.stale += 1
            return []
        place = (packet.name, packet.node)
        old = self._entries.get(self._nodes.get(place, b""))
        returned = packet.instance in self._departed  # a twin, if its place is taken
        if old is not None and not old.twin and not returned:
            return self._restart(old, packet, location, now, confirmed)
        events: list[Event] = []
        if not self._make_room(location.host, confirmed, events):
            self.stats.refused += 1
            self.wants_question = True
            return events
        if old is not None:
            old.twin = True
        self.stats.announcements += 1
        entry = self._add(packet, location, now, confirmed)
        entry.twin = old is not None
        return [*events, Event(EventKind.JOINED, entry.peer)]

    def _restart(self, old: _Entry, packet: Present, location: Location, now: float, confirmed: bool) -> list[Event]:
        previous = old.peer
        instance = bytes.fromhex(previous.instance)
        old.sequence = max(old.sequence, packet.sequence)  # what the old one has sent since then, it sent alive
        self._remove(instance, "restarted")
        self.wants_question = self.wants_question or (old.confirmed and not confirmed)
        self.stats.announcements += 1
        entry = self._add(packet, location, now, confirmed)
        return [Event(EventKind.CHANGED, entry.peer, "restarted", previous)]

    def _make_room(self, host: str, confirmed: bool, events: list[Event]) -> bool:
        if self._per_host.get(host, 0) >= self._max_per_host:
            return False
        if not confirmed:
            return len(self._entries) < self._max_peers and len(self._unconfirmed) < max(1, self._max_peers // 2)
        if len(self._entries) < self._max_peers:
            return True
        if not self._unconfirmed:
            return False
        self.stats.evicted += 1
        events.append(self._remove(next(iter(self._unconfirmed)), "evicted"))
        return True

    def _add(self, packet: Present, location: Location, now: float, confirmed: bool) -> _Entry:
        peer = Peer(
            packet.name, packet.port, packet.info, packet.instance.hex(), packet.node.hex(), locations=(location,)
        )
        expiry = packet.expiry if confirmed else min(packet.expiry, _UNCONFIRMED_EXPIRY)
        recent = deque([packet.sequence], _RECENT)
        entry = _Entry(peer, packet.sequence, packet.epoch, expiry, now, confirmed, recent, {location: now + expiry})
        self._entries[packet.instance] = entry
        self._nodes[packet.name, packet.node] = packet.instance
        self._per_host[location.host] = self._per_host.get(location.host, 0) + 1
        if not confirmed:
            self._unconfirmed[packet.instance] = None
        self._plan(entry, now)
        return entry

    def _update(self, entry: _Entry, packet: Present, location: Location, now: float) -> list[Event]:
        before = entry.peer
        if packet.sequence > entry.sequence:
            if packet.epoch != entry.epoch:
                entry.epoch = packet.epoch
                entry.locations.clear()  # its addresses have changed: those that hold are heard now
            entry.sequence = packet.sequence
            entry.expiry = packet.expiry if entry.confirmed else min(packet.expiry, _UNCONFIRMED_EXPIRY)
            entry.heard = now
            self._plan(entry, now)
        if packet.sequence not in entry.recent:
            entry.recent.append(packet.sequence)
        if location in entry.locations or len(entry.locations) < _MAX_LOCATIONS:
            entry.locations[location] = now + entry.expiry
        changed = packet.port != before.port or packet.info != before.info
        if not changed and tuple(entry.locations) == before.locations:
            return []
        self._move(before.host, next(iter(entry.locations)).host)
        entry.peer = attrs.evolve(before, port=packet.port, info=packet.info, locations=tuple(entry.locations))
        return [Event(EventKind.CHANGED, entry.peer, "info" if changed else "addresses", before)]

    def _move(self, old: str, new: str) -> None:
        if old != new:
            self._forget_host(old)
            self._per_host[new] = self._per_host.get(new, 0) + 1

    def _forget_host(self, host: str) -> None:
        left = self._per_host[host] - 1
        if left:
            self._per_host[host] = left
        else:
            del self._per_host[host]

    def _plan(self, entry: _Entry, now: float) -> None:
        self._due = min(self._due, now + entry.expiry * _QUESTION_AFTER)

    def _remove(self, instance: bytes, reason: str) -> Event:
        entry = self._entries.pop(instance)
        self._unconfirmed.pop(instance, None)
        self._forget_host(entry.peer.host)
        place = (entry.peer.name, bytes.fromhex(entry.peer.node))
        if self._nodes.get(place) == instance:
            del self._nodes[place]
        self._departed.pop(instance, None)
        self._departed[instance] = entry.sequence
        if len(self._departed) > _MAX_DEPARTED:
            del self._departed[next(iter(self._departed))]
        return Event(EventKind.LEFT, entry.peer, reason)

    def drop_interface(self, interface: str, now: float) -> list[Event]:
        """Forget what was heard by an interface that is gone; who was heard by no other has left."""
        events: list[Event] = []
        for instance, entry in list(self._entries.items()):
            gone = [location for location in entry.locations if location.interface == interface]
            if gone:
                events += self._drop_locations(instance, entry, gone)
        return events

    def _drop_locations(self, instance: bytes, entry: _Entry, gone: list[Location]) -> list[Event]:
        before = entry.peer
        for location in gone:
            del entry.locations[location]
        if not entry.locations:
            return [self._remove(instance, "expired")]
        self._move(before.host, next(iter(entry.locations)).host)
        entry.peer = attrs.evolve(before, locations=tuple(entry.locations))
        return [Event(EventKind.CHANGED, entry.peer, "addresses", before)]

    def expire(self, now: float) -> list[Event]:
        """Remove who was not heard within the expiry; set `wants_question` when somebody should have been heard."""
        if now < self._due:
            return []
        events: list[Event] = []
        self._due = math.inf
        for instance, entry in list(self._entries.items()):
            if now >= entry.expires:
                events.append(self._remove(instance, "expired"))
                continue
            gone = [location for location, until in entry.locations.items() if now >= until]
            if gone and len(gone) < len(entry.locations):
                events += self._drop_locations(instance, entry, gone)
            half = entry.heard + entry.expiry * _QUESTION_AFTER
            if now >= half:
                self.wants_question = True
                half = min(now + _AHEAD, entry.expires)
            self._due = min(self._due, half, entry.expires, *entry.locations.values())
        return events
