"""Ask everybody on the network: by every interface, several times, and each answer once."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Final

import attrs

from asyncnet.addresses import Address
from asyncnet.arguments import check_count, check_port
from asyncnet.broadcast.channel import Heard, Route
from asyncnet.broadcast.limits import Recent
from asyncnet.broadcast.medium import Medium
from asyncnet.broadcast.messages import ID_SIZE, MAX_WINDOW, Answer, Fault, Question, UndecodableError, decode, encode
from asyncnet.broadcast.ways import WayReport, check_group, logger, named_ways

__all__ = ["AskStats", "Asking", "Reply", "ask"]

_MAX_REPLIES_WAITING: Final = 10_000
_MAX_REPLIES_KNOWN: Final = 100_000
_JITTER: Final = 0.2
"""Share of its time by which a repetition comes later at most: askers that were started together drift apart."""


@attrs.frozen
class Reply:
    """An answer to a question."""

    data: bytes
    addr: Address
    """Who answers."""
    interface: str | None
    """The name of the interface that it came by; None where the system does not tell."""
    instance: str | None = None
    """Of the answering program, in hexadecimal; None for plain answers."""
    own: bool = False
    """Whether it is the question itself, heard by this asker; only when asked for."""


@attrs.define
class AskStats:
    """What an asker has counted."""

    sent: int = 0
    """Datagrams that left, over all ways and repetitions."""
    send_failures: int = 0
    """Datagrams that the system refused to send by one way."""
    received: int = 0
    """Datagrams that came."""
    replies: int = 0
    """Answers that were handed out, or wait to be."""
    duplicates: int = 0
    """Answers that were there already."""
    own: int = 0
    """Packets of this asker itself."""
    oversized: int = 0
    """Answers larger than `max_size`."""
    dropped: int = 0
    """Answers for which there was no room, because too many wait to be taken."""
    strangers: int = 0
    """Packets that answer another question, or none."""
    wrong_magic: int = 0
    unknown_version: int = 0
    unknown_kind: int = 0
    malformed: int = 0


class Asking:
    """A question; ``async for reply in asking`` asks it.

    Attributes:
        stats: what was counted.
        ways: how each way to send the question has served, when it was sent.
    """

    def __init__(
        self,
        data: bytes,
        port: int,
        timeout: float,
        limit: int | None,
        to: Sequence[str] | None,
        window: float | None,
        repeat_at: Sequence[float],
        group: str | None,
        ipv6: bool,
        own: bool,
        local_port: int,
        max_size: int,
    ) -> None:
        self.stats = AskStats()
        self.ways: list[WayReport] = []
        self._data = data
        self._port = port
        self._timeout = timeout
        self._limit = limit
        self._to = to
        self._window = window
        self._repeat_at = repeat_at
        self._group = group
        self._ipv6 = ipv6
        self._own = own
        self._local_port = local_port
        self._max_size = max_size
        self._id = secrets.token_bytes(ID_SIZE)
        self._known = Recent(math.inf, _MAX_REPLIES_KNOWN)
        self._replies: asyncio.Queue[Reply] = asyncio.Queue(_MAX_REPLIES_WAITING)
        self._medium: Medium | None = None
        self._asked = False

    def __aiter__(self) -> AsyncIterator[Reply]:
        return self._run()

    async def _run(self) -> AsyncIterator[Reply]:
        if self._asked:
            raise RuntimeError("this question was asked already: call ask() again")
        self._asked = True
        loop = asyncio.get_running_loop()
        ways = await named_ways(self._to)
        medium = self._medium = Medium(self._on_batch, ipv6=self._ipv6, group=self._group, ways=ways)
        timers: list[asyncio.TimerHandle] = []
        try:
            await medium.open("", self._local_port, share=self._local_port != 0)
            begin = loop.time()
            self._send(0)
            for attempt, seconds in enumerate(self._repeat_at[1:], 1):
                at = begin + seconds * random.uniform(1, 1 + _JITTER)
                if at < begin + self._timeout:
                    timers.append(loop.call_at(at, self._repeat, attempt))
            count = 0
            while self._limit is None or count < self._limit:
                try:
                    async with asyncio.timeout_at(begin + self._timeout):
                        reply = await self._replies.get()
                except TimeoutError:
                    break
                count += 1
                yield reply
        finally:
            for timer in timers:
                timer.cancel()
            medium.close()
            self._medium = None

    # Sending.

    def _repeat(self, attempt: int) -> None:
        medium = self._medium
        if medium is None:
            return
        medium.refresh()  # an interface may have come, or have another address
        try:
            self._send(attempt)
        except OSError as exc:
            logger.info("%s", exc)

    def _send(self, attempt: int) -> None:
        medium = self._medium
        assert medium is not None
        data = self._data
        if self._window is not None:
            data = encode(Question(self._id, attempt, self._window, data))
        failures = medium.send_all(data, self._port)
        self.ways = list(medium.reports.values())
        self.stats.send_failures += len(failures)
        self.stats.sent += len(medium.ways) - len(failures)
        if not medium.ways:
            raise OSError("no interface of this host is up and able to broadcast; 'asyncnet info' lists them")
        if len(failures) == len(medium.ways):
            raise failures[0]
        for failure in failures:
            logger.info("%s", failure)

    # Receiving.

    def _on_batch(self, batch: list[Heard]) -> None:
        self.stats.received += len(batch)
        for data, addr, route in batch:
            if self._window is None:
                self._take_plain(data, addr, route)
            else:
                self._take(data, addr, route)

    def _take_plain(self, data: bytes, addr: Address, route: Route) -> None:
        if self._medium is not None and self._medium.is_own(addr):
            self._take_own(data, addr, route)
        else:
            self._add(Reply(data, addr, route.interface), (addr, data))

    def _take(self, data: bytes, addr: Address, route: Route) -> None:
        try:
            packet = decode(data)
        except UndecodableError as exc:
            count_fault(self.stats, exc.fault)
            return
        if isinstance(packet, Answer) and packet.question == self._id:
            self._add(Reply(packet.data, addr, route.interface, packet.instance.hex()), packet.instance)
        elif isinstance(packet, Question) and packet.id == self._id:
            self._take_own(packet.data, addr, route)
        else:
            self.stats.strangers += 1

    def _take_own(self, data: bytes, addr: Address, route: Route) -> None:
        self.stats.own += 1
        if self._own:
            self._add(Reply(data, addr, route.interface, own=True), ("own", route.interface, addr))

    def _add(self, reply: Reply, key: Hashable) -> None:
        if len(reply.data) > self._max_size:
            self.stats.oversized += 1
        elif self._replies.full():
            self.stats.dropped += 1
        elif self._known.seen(key, 0.0):
            self.stats.duplicates += 1
        else:
            self.stats.replies += 1
            self._replies.put_nowait(reply)


_FAULTS: Final = {
    Fault.MAGIC: "wrong_magic",
    Fault.VERSION: "unknown_version",
    Fault.KIND: "unknown_kind",
    Fault.MALFORMED: "malformed",
    Fault.UNSIGNED: "unsigned",
    Fault.SIGNATURE: "wrong_hmac",
}


def count_fault(stats: object, fault: Fault) -> None:
    """Count a fault in the field of `stats` that is for it."""
    name = _FAULTS[fault]
    setattr(stats, name, getattr(stats, name) + 1)


def ask(
    data: bytes,
    port: int,
    *,
    timeout: float = 3.0,
    limit: int | None = None,
    to: Sequence[str] | None = None,
    window: float | None = None,
    repeat_at: Sequence[float] = (0.0, 0.25, 1.0),
    group: str | None = None,
    ipv6: bool = False,
    own: bool = False,
    local_port: int = 0,
    max_size: int = 65507,
) -> Asking:
    """Send a question to everybody on the network: ``async for reply in ask(b"Hi", 7788): ...``.

    It leaves by every interface that is up, to the directed broadcast address of each of its addresses and to
    255.255.255.255, and again at each time of `repeat_at`, when the interfaces are looked up anew. An interface that
    fails beside others that work is logged, and told by `Asking.ways`.

    Args:
        data: the question.
        port: the port that the others listen on.
        timeout: seconds to wait for answers, counted from the first question.
        limit: answers after which to stop; None for no limit.
        to: addresses to send to instead, such as ``["127.255.255.255"]``; an IPv6 one may end in ``%INTERFACE``.
        window: None sends `data` as it is, which any program understands; an answer is then the same as another when
            sender and bytes are the same. With a number, the question tells that the answers shall be spread over so
            many seconds, and answers are told apart by the instance of the program; only programs with `answer` of this
            package understand it.
        repeat_at: seconds after the beginning at which the question is sent, from 0 up; each but the first comes later
            by up to a fifth.
        group: a multicast group to send to as well.
        ipv6: send to every IPv6 host on each link (``ff02::1``) as well.
        own: yield the question itself too when it comes back, which it does when `local_port` is `port`.
        local_port: the port to ask from and to hear at, shared with other programs; 0 takes a free one of its own.
        max_size: bytes of an answer; larger ones are counted and left out.

    Raises:
        TypeError: `data` is not bytes-like, or a parameter is of the wrong kind.
        ValueError: a parameter is out of range.
        OSError: while iterating: the question could not be sent at all.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data must be bytes-like, not {data!r}")
    check_port("port", port, lowest=1)
    check_port("local_port", local_port)
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout must be 0 seconds or more, and finite, not {timeout}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must not be negative: {limit}")
    if window is not None and not 0 <= window <= MAX_WINDOW:
        raise ValueError(f"window must be between 0 and {MAX_WINDOW:g} seconds, not {window}")
    if not repeat_at or list(repeat_at) != sorted(repeat_at) or repeat_at[0] != 0 or len(repeat_at) > 256:
        raise ValueError(f"repeat_at must begin with 0 and rise, with 256 times at most, not {list(repeat_at)}")
    check_count("max_size", max_size)
    check_group(group)
    return Asking(bytes(data), port, timeout, limit, to, window, repeat_at, group, ipv6, own, local_port, max_size)
