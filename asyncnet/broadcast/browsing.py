"""Browse: who announces a service, as it changes.

A browser has two sets of sockets. One hears announcements at the port that all share. The other has a port of its own,
from which it asks who is present: answers to it reach no other program, and a flood at the shared port does not drown
them.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, Self

import attrs

from asyncnet.addresses import Address, Interface
from asyncnet.arguments import check_count, check_port, check_seconds
from asyncnet.broadcast.announcing import DISCOVERY_PORT
from asyncnet.broadcast.asking import count_fault
from asyncnet.broadcast.channel import Heard, Route
from asyncnet.broadcast.identity import check_key
from asyncnet.broadcast.medium import Medium
from asyncnet.broadcast.messages import (
    ID_SIZE,
    Goodbye,
    Present,
    UndecodableError,
    Who,
    check_name,
    decode,
    encode,
)
from asyncnet.broadcast.roster import Event, Location, Peer, Roster, RosterStats
from asyncnet.broadcast.watch import InterfaceWatch
from asyncnet.broadcast.ways import Way, WayReport, check_group, logger, named_ways
from asyncnet.opening import Opening

__all__ = ["Browser", "BrowserStats", "Browsing", "browse"]

_REPEAT_AT: Final = (0.0, 0.25, 1.0)
_JITTER: Final = 0.2
_WINDOW: Final = 0.1
"""Seconds over which the answers of those who are present spread."""
_ASK_EVERY: Final = 1.0
"""Seconds between questions at least, but for those of the beginning."""
_COARSE: Final = 0.05
_EVERYBODY: Final = "*"
_MICROSECONDS: Final = 1_000_000


@attrs.define
class BrowserStats:
    """What a browser has counted."""

    received: int = 0
    """Datagrams that came."""
    questions: int = 0
    """Rounds of questions over all ways."""
    send_failures: int = 0
    """Datagrams that the system refused."""
    other_services: int = 0
    """Announcements of services with another name."""
    others: int = 0
    """Packets of this package that announce nothing: questions and answers."""
    events_dropped: int = 0
    """Events that were not taken in time; `Browser.peers` is right nevertheless."""
    wrong_magic: int = 0
    unknown_version: int = 0
    unknown_kind: int = 0
    malformed: int = 0
    unsigned: int = 0
    wrong_hmac: int = 0


class Browser:
    """Knows who is present; made by `browse`. ``async for event in browser`` yields events until it is closed."""

    def __init__(
        self,
        name: str,
        roster: Roster,
        key: bytes | None,
        max_events: int,
        discovery_port: int,
        group: str | None,
        ipv6: bool,
        ways: list[Way] | None,
    ) -> None:
        self.name = name
        self.stats = BrowserStats()
        self._roster = roster
        self._key = key
        self._discovery_port = discovery_port
        self._wanted = None if name == _EVERYBODY else name
        self._nonce = secrets.token_bytes(ID_SIZE)
        self._loop = asyncio.get_running_loop()
        self._listener = Medium(self._on_batch, ipv6=ipv6, group=group)
        self._prober = Medium(self._on_batch, ipv6=ipv6, group=group, ways=ways)
        self._watch: InterfaceWatch | None = None
        self._known_interfaces: set[str] = set()
        self._events: deque[Event] = deque()
        self._max_events = max_events
        self._wake = asyncio.Event()
        self._timers: list[asyncio.TimerHandle] = []
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._planned = math.inf
        self._next_question = 0.0
        self._question_timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def _open(self) -> None:
        await self._listener.open("", self._discovery_port, share=True)
        await self._prober.open("", 0, share=False)
        self._watch = InterfaceWatch(self._loop, self._on_interfaces)
        self._ask_again()

    @property
    def address(self) -> Address:
        """The address that announcements are heard at."""
        return self._listener.address

    @property
    def peers(self) -> list[Peer]:
        """Everybody who is present now, in the order in which they joined."""
        return self._roster.peers

    @property
    def roster_stats(self) -> RosterStats:
        """What the table has counted."""
        return self._roster.stats

    @property
    def ways(self) -> list[WayReport]:
        """How each way to ask has served."""
        return list(self._prober.reports.values())

    # Questions.

    def _ask_again(self) -> None:
        """Ask now, and twice more soon."""
        for timer in self._timers:
            timer.cancel()
        self._timers = [
            self._loop.call_later(seconds * random.uniform(1, 1 + _JITTER), self._ask) for seconds in _REPEAT_AT
        ]

    def _ask(self) -> None:
        now = self._loop.time()
        self._next_question = now + _ASK_EVERY
        self._roster.wants_question = False
        who = Who(self._nonce, self._wanted or "", time.time_ns() // 1000, _WINDOW)
        failures = self._prober.send_all(encode(who, self._key), self._discovery_port)
        self.stats.questions += 1
        self.stats.send_failures += len(failures)
        for failure in failures:
            logger.debug("%s", failure)

    def _ask_if_wanted(self) -> None:
        if self._roster.wants_question and self._question_timer is None:
            wait = max(0.0, self._next_question - self._loop.time())
            self._question_timer = self._loop.call_later(wait, self._on_question_timer)

    def _on_question_timer(self) -> None:
        self._question_timer = None
        self._ask()

    def _on_interfaces(self, found: list[Interface]) -> None:
        self._listener.refresh(found)
        self._prober.refresh(found)
        here = {interface.name for interface in found}
        now = self._loop.time()
        for name in self._known_interfaces - here:
            self._publish(self._roster.drop_interface(name, now))
        self._known_interfaces &= here
        self._ask_again()

    # Announcements.

    def _on_batch(self, batch: list[Heard]) -> None:
        stats, key, now, wall = self.stats, self._key, self._loop.time(), time.time()
        stats.received += len(batch)
        events: list[Event] = []
        for data, addr, route in batch:
            try:
                packet = decode(data, key)
            except UndecodableError as exc:
                count_fault(stats, exc.fault)
                continue
            if not isinstance(packet, Present | Goodbye):
                stats.others += 1
                continue
            if self._wanted is not None and packet.name != self._wanted:
                stats.other_services += 1
                continue
            events += self._hear(packet, addr, route, now, wall)
        self._publish(events)
        self._plan()
        self._ask_if_wanted()

    def _hear(self, packet: Present | Goodbye, addr: Address, route: Route, now: float, wall: float) -> list[Event]:
        host, interface = addr[0], route.interface
        if len(addr) == 4 and addr[3] and interface is not None and "%" not in host:
            host = f"{host}%{interface}"
        confirmed = self._key is not None or (isinstance(packet, Present) and packet.nonce == self._nonce)
        if interface is not None and len(self._known_interfaces) < 1024:
            self._known_interfaces.add(interface)
        return self._roster.hear(packet, Location(host, interface), now, wall=wall, confirmed=confirmed)

    def _plan(self) -> None:
        """Let the timer run when somebody may be gone."""
        due = self._roster.due
        if due < self._planned:
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            self._planned = max(due, self._loop.time() + _COARSE)
            self._expiry_timer = self._loop.call_at(self._planned, self._on_expiry)

    def _on_expiry(self) -> None:
        self._expiry_timer = None
        self._planned = math.inf
        self._publish(self._roster.expire(self._loop.time()))
        self._plan()
        self._ask_if_wanted()

    # Events.

    def _publish(self, events: list[Event]) -> None:
        if not events:
            return
        self._events.extend(events)
        while len(self._events) > self._max_events:
            self._events.popleft()
            self.stats.events_dropped += 1
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event; the iteration ends when the browser is closed."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()

    # The end.

    def close(self) -> None:
        """Close at once; events that were not taken can still be."""
        self._closed = True
        for timer in (*self._timers, self._expiry_timer, self._question_timer):
            if timer is not None:
                timer.cancel()
        self._expiry_timer = self._question_timer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._listener.close()
        self._prober.close()
        self._wake.set()

    async def aclose(self) -> None:
        """Do the same as `close`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Browsing(Opening[Browser]):
    """A browser to come: enter it, await it, or iterate over its events straight away."""

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._run()

    async def _run(self) -> AsyncIterator[Event]:
        async with self as browser:
            async for event in browser:
                yield event


def browse(
    name: str,
    *,
    key: bytes | None = None,
    replay_window: float = 30.0,
    max_peers: int = 4096,
    max_per_host: int = 256,
    max_events: int = 10_000,
    discovery_port: int = DISCOVERY_PORT,
    to: Sequence[str] | None = None,
    group: str | None = None,
    ipv6: bool = False,
) -> Browsing:
    """Find those who announce a service: ``async for event in browse("printer"): event.kind, event.peer``.

    ``async with browse("printer") as browser`` gives the browser, whose ``peers`` are those present now.

    Args:
        name: of the service; ``"*"`` for every one.
        key: the secret of those who announce: what is not signed with it is counted and left out.
        replay_window: seconds by which the time of a signed packet may differ from this host's.
        max_peers: instances in the table; see `asyncnet.broadcast.roster` for who gives way when there are more.
        max_per_host: instances of one address in the table.
        max_events: events that may wait to be taken; beyond it the oldest are dropped and counted.
        discovery_port: where it is announced.
        to: addresses to ask at, instead of everywhere; such as ``["127.255.255.255"]`` for this host alone.
        group: a multicast group to hear, and ask in, as well.
        ipv6: use IPv6 too.

    Raises:
        TypeError: a parameter is of the wrong kind.
        ValueError: a parameter is out of range.
        OSError: the port cannot be used; the message says why and what to do.
    """
    if name != _EVERYBODY:
        check_name(name)
    check_key(key)
    check_seconds("replay_window", replay_window, or_none=False)
    for parameter, value in (("max_peers", max_peers), ("max_per_host", max_per_host), ("max_events", max_events)):
        check_count(parameter, value)
    check_port("discovery_port", discovery_port, lowest=1)
    check_group(group)

    async def open_() -> Browser:
        window = replay_window if key is not None else None
        roster = Roster(max_peers=max_peers, max_per_host=max_per_host, replay_window=window)
        browser = Browser(name, roster, key, max_events, discovery_port, group, ipv6, await named_ways(to))
        try:
            await browser._open()
        except BaseException:
            browser.close()
            raise
        return browser

    return Browsing(open_)
