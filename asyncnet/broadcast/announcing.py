"""Announce a service: say at once, again and again, and to each newcomer, that it is present."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Self

import attrs

from asyncnet.addresses import Address, Interface
from asyncnet.arguments import check_port, check_seconds
from asyncnet.broadcast.asking import count_fault
from asyncnet.broadcast.channel import Heard, Route
from asyncnet.broadcast.identity import check_key, named_node, node_of
from asyncnet.broadcast.limits import RateLimiter
from asyncnet.broadcast.medium import Medium
from asyncnet.broadcast.messages import (
    ID_SIZE,
    MAX_EXPIRY,
    NO_ID,
    Goodbye,
    Present,
    UndecodableError,
    Who,
    check_info,
    check_name,
    decode,
    encode,
)
from asyncnet.broadcast.watch import InterfaceWatch
from asyncnet.broadcast.ways import ALL_HOSTS, LIMITED, WayReport, check_group, named_ways
from asyncnet.opening import Opening

__all__ = ["DISCOVERY_PORT", "Announcer", "AnnouncerStats", "announce"]

DISCOVERY_PORT: Final = 17788
"""Where announcements are heard, unless another port is named."""

_REPEAT_AT: Final = (0.25, 1.0)
_JITTER: Final = 0.1
_GOODBYES: Final = 3
_BETWEEN_GOODBYES: Final = 0.02
_MAX_PENDING: Final = 1000
_ANSWERS_PER_SECOND: Final = 5.0
_MAX_ANSWERS_PER_SECOND: Final = 1000.0
"""To all who ask by broadcast: whoever asks in earnest must have a chance among many who do not."""
_MAX_DIRECT_PER_SECOND: Final = 20.0
"""To all who ask this host alone, which is how somebody from afar would have it send to others."""
_LOOPBACK_INDEX: Final = 1
_MICROSECONDS: Final = 1_000_000


@attrs.define
class AnnouncerStats:
    """What an announcer has counted."""

    announcements: int = 0
    """Rounds of announcements over all ways."""
    sent: int = 0
    """Datagrams that left."""
    send_failures: int = 0
    """Datagrams that the system refused."""
    received: int = 0
    """Datagrams that came."""
    questions: int = 0
    """Newcomers that asked for this service."""
    others: int = 0
    """Packets of this package for somebody else: announcements, and questions about other services."""
    answers: int = 0
    limited: int = 0
    """Questions that were not answered, because they are too many."""
    replayed: int = 0
    """Signed questions whose time is outside the replay window."""
    wrong_magic: int = 0
    unknown_version: int = 0
    unknown_kind: int = 0
    malformed: int = 0
    unsigned: int = 0
    wrong_hmac: int = 0


class Announcer:
    """A service that is announced; made by `announce`."""

    def __init__(
        self,
        name: str,
        port: int,
        info: Mapping[str, str],
        interval: float,
        expiry: float,
        key: bytes | None,
        replay_window: float,
        node: bytes,
        medium_options: dict[str, object],
    ) -> None:
        self.name = name
        self.port = port
        self.stats = AnnouncerStats()
        self._info = dict(info)
        self._interval = interval
        self._expiry = expiry
        self._key = key
        self._replay_window = replay_window
        self._node = node
        self._instance = secrets.token_bytes(ID_SIZE)
        self._sequence = 0
        self._epoch = 0
        self._loop = asyncio.get_running_loop()
        self._medium = Medium(self._on_batch, **medium_options)  # type: ignore[arg-type]  # made by `announce`
        self._watch: InterfaceWatch | None = None
        self._limiter = RateLimiter(_ANSWERS_PER_SECOND, 2 * _ANSWERS_PER_SECOND)
        self._limiter_of_all = RateLimiter(_MAX_ANSWERS_PER_SECOND, _MAX_ANSWERS_PER_SECOND)
        self._limiter_of_direct = RateLimiter(_MAX_DIRECT_PER_SECOND, _MAX_DIRECT_PER_SECOND)
        self._discovery_port = 0
        self._timer: asyncio.TimerHandle | None = None
        self._repeats: set[asyncio.TimerHandle] = set()
        self._answers: set[asyncio.TimerHandle] = set()
        self._closed = asyncio.Event()
        self._closing = False

    async def _open(self, discovery_port: int) -> None:
        await self._medium.open("", discovery_port, share=True)
        self._discovery_port = self._medium.address[1]
        self._watch = InterfaceWatch(self._loop, self._on_interfaces)
        self._announce_again()
        self._timer = self._loop.call_later(self._jittered(), self._on_timer)

    @property
    def address(self) -> Address:
        """The address that questions are heard at."""
        return self._medium.address

    @property
    def instance(self) -> str:
        """The eight bytes that stand for this start, in hexadecimal."""
        return self._instance.hex()

    @property
    def node(self) -> str:
        """The eight bytes that are the same after a restart, in hexadecimal."""
        return self._node.hex()

    @property
    def info(self) -> dict[str, str]:
        """What is announced with the name."""
        return dict(self._info)

    @property
    def ways(self) -> list[WayReport]:
        """How each way has served."""
        return list(self._medium.reports.values())

    def update(self, info: Mapping[str, str]) -> None:
        """Announce something else with the name, at once.

        Raises:
            TypeError: keys and values are not all texts.
            ValueError: it is more than fits.
        """
        check_info(info)
        self._info = dict(info)
        if not self._closing:
            self._announce_again()

    # Announcements.

    def _next_sequence(self) -> int:
        self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
        return self._sequence

    def _packet(self, nonce: bytes) -> bytes:
        sequence = self._next_sequence()
        present = Present(
            self._instance, self._node, nonce, sequence, self._epoch, self._expiry, self.port, self.name, self._info
        )
        return encode(present, self._key)

    def _announce(self) -> None:
        self._send_all(self._packet(NO_ID))
        self.stats.announcements += 1

    def _send_all(self, data: bytes) -> None:
        failures = self._medium.send_all(data, self._discovery_port)
        self.stats.send_failures += len(failures)
        self.stats.sent += len(self._medium.ways) - len(failures)

    def _announce_again(self) -> None:
        """Announce now, and twice more soon: something is new, and a datagram may be lost."""
        _cancel(self._repeats)
        self._announce()
        for seconds in _REPEAT_AT:
            self._later(self._repeats, seconds * random.uniform(1, 1 + _JITTER), self._announce)

    def _later(self, handles: set[asyncio.TimerHandle], seconds: float, call: Callable[[], object]) -> None:
        def run() -> None:
            handles.discard(handle)
            call()

        handle = self._loop.call_later(seconds, run)
        handles.add(handle)

    def _jittered(self) -> float:
        return self._interval * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _on_timer(self) -> None:
        self._timer = self._loop.call_later(self._jittered(), self._on_timer)
        self._announce()

    def _on_interfaces(self, found: list[Interface]) -> None:
        self._medium.refresh(found)
        self._epoch += 1
        self._announce_again()

    # Newcomers.

    def _on_batch(self, batch: list[Heard]) -> None:
        now = self._loop.time()
        self.stats.received += len(batch)
        for data, addr, route in batch:
            try:
                packet = decode(data, self._key)
            except UndecodableError as exc:
                count_fault(self.stats, exc.fault)
                continue
            if isinstance(packet, Who) and packet.name in ("", self.name):
                self._on_question(packet, addr, route, now)
            else:
                self.stats.others += 1

    def _on_question(self, packet: Who, addr: Address, route: Route, now: float) -> None:
        self.stats.questions += 1
        if self._key is not None and abs(packet.sent / _MICROSECONDS - time.time()) > self._replay_window:
            self.stats.replayed += 1
        elif (
            self._closing
            or len(self._answers) >= _MAX_PENDING
            or not self._limiter.allows(addr, now)
            or not (self._limiter_of_direct if route.direct else self._limiter_of_all).allows("", now)
        ):
            self.stats.limited += 1
        elif packet.window > 0:
            answer = partial(self._answer, packet.nonce, addr, route)
            self._later(self._answers, random.uniform(0, packet.window), answer)
        else:
            self._answer(packet.nonce, addr, route)

    def _answer(self, nonce: bytes, addr: Address, route: Route) -> None:
        try:
            self._medium.send(self._packet(nonce), _answer_to(addr, route), route)
        except OSError:
            self.stats.send_failures += 1
        else:
            self.stats.sent += 1
            self.stats.answers += 1

    # The end.

    async def serve_forever(self) -> None:
        """Announce until closed, or until this call is cancelled; then close."""
        try:
            await self._closed.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Announce no more, and say goodbye once."""
        if self._closed.is_set():
            return
        self._stop()
        self._send_goodbye()
        self._finish()

    def _stop(self) -> None:
        self._closing = True
        _cancel(self._repeats)
        _cancel(self._answers)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _send_goodbye(self) -> None:
        self._send_all(encode(Goodbye(self._instance, self._next_sequence(), self.name), self._key))

    def _finish(self) -> None:
        self._medium.close()
        self._closed.set()

    async def aclose(self) -> None:
        """Say goodbye, three times within 40 ms because datagrams get lost, and close."""
        if self._closed.is_set():
            return
        if self._closing:  # by another task
            await self._closed.wait()
            return
        self._stop()
        try:
            self._send_goodbye()
            for _ in range(_GOODBYES - 1):
                await asyncio.sleep(_BETWEEN_GOODBYES)
                self._send_goodbye()
        finally:
            self._finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _answer_to(addr: Address, route: Route) -> Address:
    """Return where the answer to a question goes.

    One that came by broadcast is answered by broadcast, to the asker's port and on its segment: a forged source is then
    nobody's trouble. For thousands of them the system would look for neighbours that are not there, and have no room
    left for those that are.
    """
    if route.direct or route.index <= _LOOPBACK_INDEX:
        return addr
    return (ALL_HOSTS, addr[1], 0, route.index) if len(addr) == 4 else (LIMITED, addr[1])


def _cancel(handles: set[asyncio.TimerHandle]) -> None:
    for handle in handles:
        handle.cancel()
    handles.clear()


def announce(
    name: str,
    port: int,
    info: Mapping[str, str] | None = None,
    *,
    interval: float = 1.0,
    expiry: float | None = None,
    key: bytes | None = None,
    replay_window: float = 30.0,
    node: str | None = None,
    discovery_port: int = DISCOVERY_PORT,
    to: Sequence[str] | None = None,
    group: str | None = None,
    ipv6: bool = False,
) -> Opening[Announcer]:
    """Let everybody on the network know of a service: ``async with announce("printer", 631, {"room": "12"}): ...``.

    Args:
        name: of the service, such as ``"printer"``; many may have the same.
        port: of the service.
        info: texts that go with it, 1024 bytes in all.
        interval: seconds between announcements; each varies by a tenth.
        expiry: seconds without an announcement after which others take it for gone; by default five intervals, so
            that a few lost datagrams do no harm.
        key: a secret of 8 bytes or more, shared with those who browse: packets are signed, and others are not heard.
        replay_window: seconds by which the time of a signed packet may differ from this host's.
        node: what tells this service from others after a restart; by default made of host, card, name and port.
        discovery_port: where it is announced.
        to: addresses to announce to, instead of everywhere; such as ``["127.255.255.255"]`` for this host alone.
        group: a multicast group to announce to, and hear, as well.
        ipv6: announce to every IPv6 host on each link (``ff02::1``) as well.

    Raises:
        TypeError: a parameter is of the wrong kind.
        ValueError: a parameter is out of range.
        OSError: the port cannot be used; the message says why and what to do.
    """
    info = {} if info is None else info
    check_name(name)
    check_port("port", port, lowest=1)
    check_info(info)
    check_seconds("interval", interval, or_none=False)
    check_seconds("expiry", expiry)
    whole_expiry = min(5 * interval, MAX_EXPIRY) if expiry is None else expiry
    if not interval < whole_expiry <= MAX_EXPIRY:
        raise ValueError(f"expiry must be above the interval and at most {MAX_EXPIRY:g} seconds, not {whole_expiry}")
    check_key(key)
    check_seconds("replay_window", replay_window, or_none=False)
    check_port("discovery_port", discovery_port, lowest=1)
    check_group(group)

    async def open_() -> Announcer:
        place = node_of(name, port) if node is None else named_node(node)
        options: dict[str, object] = {"ipv6": ipv6, "group": group, "ways": await named_ways(to)}
        announcer = Announcer(name, port, info, interval, whole_expiry, key, replay_window, place, options)
        try:
            await announcer._open(discovery_port)
        except BaseException:
            announcer._stop()
            announcer._finish()
            raise
        return announcer

    return Opening(open_)
