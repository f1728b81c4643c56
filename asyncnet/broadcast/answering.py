"""Answer those who ask everybody."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import random
import secrets
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final, Self, TypeAlias

import attrs

from asyncnet.addresses import Address, Interface, format_address
from asyncnet.arguments import check_count, check_port, check_seconds
from asyncnet.broadcast.asking import count_fault
from asyncnet.broadcast.channel import Heard, Outgoing, Route
from asyncnet.broadcast.limits import RateLimiter, Recent
from asyncnet.broadcast.medium import Medium
from asyncnet.broadcast.messages import ID_SIZE, MAGIC, Answer, Question, UndecodableError, decode, encode
from asyncnet.broadcast.watch import InterfaceWatch
from asyncnet.broadcast.ways import check_group, logger
from asyncnet.opening import Opening

__all__ = ["AnswerHandler", "Answerer", "AnswererStats", "answer"]

AnswerHandler: TypeAlias = Callable[[bytes, Address], bytes | Awaitable[bytes | None] | None]
"""Given a question and its sender's address, returns the answer, or None for none; plain or async."""

_MAX_PAYLOAD: Final = 65507
_HEAD: Final = 24  # bytes that an answer in an envelope has more
_SAME_WITHIN: Final = 0.1
"""Seconds within which the same broadcast from the same sender is a copy, which came another way."""
_MAX_RECENT: Final = 4096
_ERRORS_PER_SECOND: Final = 5.0


@attrs.define
class AnswererStats:
    """What an answerer has counted since it was opened."""

    questions: int = 0
    answers: int = 0
    dropped: int = 0
    """Questions that came while `max_pending` handlers were at work."""
    failed: int = 0
    """Questions whose handler raised, and answers that could not be sent."""
    copies: int = 0
    """Copies of a question, which came by another way."""
    limited: int = 0
    """Questions of sources that ask too often."""
    answers_heard: int = 0
    """Packets that are answers themselves, which nobody answers."""
    oversized: int = 0
    """Answers larger than a datagram."""
    unknown_version: int = 0
    unknown_kind: int = 0
    """Also packets of this package that are no questions."""
    malformed: int = 0
    wrong_magic: int = 0


class Answerer:
    """Answers questions; made by `answer`."""

    def __init__(
        self, handler: AnswerHandler, *, max_pending: int, delay: float, max_rate: float | None, medium_options: Any
    ) -> None:
        self.stats = AnswererStats()
        self._handler = handler
        self._max_pending = max_pending
        self._delay = delay
        self._limiter = None if max_rate is None else RateLimiter(max_rate, max(1.0, 2 * max_rate))
        self._complaints = RateLimiter(_ERRORS_PER_SECOND, _ERRORS_PER_SECOND)
        self._recent = Recent(_SAME_WITHIN, _MAX_RECENT)
        self._instance = secrets.token_bytes(ID_SIZE)
        self._loop = asyncio.get_running_loop()
        self._medium = Medium(self._on_batch, **medium_options)
        self._watch: InterfaceWatch | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._delayed: list[tuple[float, int, Outgoing]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._port = 0

    async def _open(self, host: str, port: int, sock: socket.socket | None, *, watch: bool) -> None:
        await self._medium.open(host, port, share=True, sock=sock)
        self._port = self.address[1]
        if watch:
            self._watch = InterfaceWatch(self._loop, self._on_interfaces)

    def _on_interfaces(self, found: list[Interface]) -> None:
        self._medium.refresh(found)

    @property
    def address(self) -> Address:
        """The address that is listened on, with the real port."""
        return self._medium.address

    # Questions.

    def _on_batch(self, batch: list[Heard]) -> None:
        now = self._loop.time()
        stats, handler, own_port = self.stats, self._handler, self._port
        allows = None if self._limiter is None else self._limiter.allows
        is_full = len(self._tasks) >= self._max_pending
        ready: list[Outgoing] = []
        questions = 0
        for data, addr, route in batch:
            if data[:4] == MAGIC:
                self._on_packet(data, addr, route, now, ready)
                is_full = len(self._tasks) >= self._max_pending
                continue
            # What comes from the port that is answered at is an answer: two answerers would talk for ever.
            if addr[1] == own_port:
                stats.answers_heard += 1
                continue
            if not route.direct and self._recent.seen((addr, data), now):
                stats.copies += 1
                continue
            questions += 1
            if allows is not None and not allows(addr[0], now):
                stats.limited += 1
                continue
            if is_full:
                stats.dropped += 1
                continue
            try:
                result = handler(data, addr)
            except Exception as exc:
                self._report(exc, addr)
                continue
            if route.direct and type(result) is bytes and len(result) <= _MAX_PAYLOAD:
                ready.append((result, addr, route))
            else:
                self._take(result, addr, route, None, 0.0 if route.direct else self._delay, ready)
                is_full = len(self._tasks) >= self._max_pending
        stats.questions += questions
        if ready:
            self._send_many(ready)

    def _on_packet(self, data: bytes, addr: Address, route: Route, now: float, ready: list[Outgoing]) -> None:
        stats = self.stats
        try:
            packet = decode(data)
        except UndecodableError as exc:
            count_fault(stats, exc.fault)
            return
        if isinstance(packet, Answer):
            stats.answers_heard += 1
            return
        if not isinstance(packet, Question):
            stats.unknown_kind += 1
            return
        if self._recent.seen((packet.id, packet.attempt), now):
            stats.copies += 1
            return
        stats.questions += 1
        if self._limiter is not None and not self._limiter.allows(addr[0], now):
            stats.limited += 1
        elif len(self._tasks) >= self._max_pending:
            stats.dropped += 1
        else:
            try:
                result = self._handler(packet.data, addr)
            except Exception as exc:
                self._report(exc, addr)
                return
            self._take(result, addr, route, packet.id, packet.window, ready)

    # Answers.

    def _take(
        self,
        result: bytes | Awaitable[bytes | None] | None,
        addr: Address,
        route: Route,
        question: bytes | None,
        window: float,
        ready: list[Outgoing],
    ) -> None:
        """Send what a handler has returned: now, after a delay, or when it is awaited."""
        if inspect.isawaitable(result):
            task = self._loop.create_task(self._answer_later(result, addr, route, question, window))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        item = self._item(result, addr, route, question)
        if item is None:
            return
        if window <= 0:
            ready.append(item)
        else:
            ready += self._delay_item(item, window)

    def _item(self, result: Any, addr: Address, route: Route, question: bytes | None) -> Outgoing | None:
        if result is None:
            return None
        if not isinstance(result, bytes | bytearray | memoryview):
            self._report(TypeError(f"a handler must return bytes or None, not {result!r}"), addr)
            return None
        data = bytes(result)
        if len(data) > _MAX_PAYLOAD - (_HEAD if question is not None else 0):
            self.stats.oversized += 1
            if self._may_complain():
                logger.warning("an answer of %d bytes to %s is too large", len(data), format_address(addr))
            return None
        if question is not None:
            data = encode(Answer(question, self._instance, data))
        return data, addr, route

    async def _answer_later(
        self,
        result: Awaitable[bytes | None],
        addr: Address,
        route: Route,
        question: bytes | None,
        window: float,
    ) -> None:
        begin = self._loop.time()
        try:
            item = self._item(await result, addr, route, question)
        except Exception as exc:
            self._report(exc, addr)
            return
        if item is None or self._closed.is_set():
            return
        left = window - (self._loop.time() - begin)
        if now := [item] if left <= 0 else self._delay_item(item, left):
            self._send_many(now)

    def _delay_item(self, item: Outgoing, window: float) -> list[Outgoing]:
        """Delay an answer; return what is to be sent now, because too many are delayed."""
        due = self._loop.time() + random.uniform(0, window)
        heapq.heappush(self._delayed, (due, next(self._numbers), item))
        early = [heapq.heappop(self._delayed)[2]] if len(self._delayed) > self._max_pending else []
        if self._delayed[0][0] == due:
            self._set_timer()
        return early

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._delayed[0][0], self._on_timer) if self._delayed else None

    def _on_timer(self) -> None:
        now = self._loop.time() + 0.001
        due: list[Outgoing] = []
        while self._delayed and self._delayed[0][0] <= now:
            due.append(heapq.heappop(self._delayed)[2])
        self._timer = None
        self._set_timer()
        if due:
            self._send_many(due)

    def _send_many(self, items: list[Outgoing]) -> None:
        total = len(items)
        failed = self._medium.send_many(items)
        self.stats.answers += total - failed
        self.stats.failed += failed

    def _may_complain(self) -> bool:
        return self._complaints.allows("", self._loop.time())

    def _report(self, exc: Exception, addr: Address) -> None:
        self.stats.failed += 1
        if self._may_complain():
            logger.error("answering %s failed", format_address(addr), exc_info=exc)

    # The end.

    async def serve_forever(self) -> None:
        """Answer until closed, or until this call is cancelled; then close."""
        try:
            await self._closed.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Answer no more; handlers that are at work are cancelled, and delayed answers are dropped."""
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.stats.dropped += len(self._delayed)
        self._delayed.clear()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._medium.close()
        self._closed.set()

    async def aclose(self) -> None:
        """Close, and wait until everything is closed."""
        self.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def answer(
    handler: AnswerHandler,
    port: int = 0,
    *,
    host: str = "",
    max_pending: int = 1000,
    delay: float = 0.1,
    max_rate: float | None = 100.0,
    group: str | None = None,
    ipv6: bool = False,
    sock: socket.socket | None = None,
) -> Opening[Answerer]:
    """Answer questions that come by broadcast: ``async with answer(handler, 7788): ...``.

    Several programs on one host may answer on one port: a broadcast reaches each of them. An answer leaves by the
    interface that the question came by. A question that came by broadcast is answered after a random delay, so that
    not everybody answers at once; a question to this host alone is answered at once.

    Args:
        handler: called as ``handler(question, address)``; returns the answer, None for none, or an awaitable of these.
            An exception is logged with the asker's address and ends nothing. A question that is repeated is a new one.
        port: 0 takes any free one.
        host: an address of this host to listen on; empty for every address, which hearing broadcasts takes on Linux.
        max_pending: handlers that may be at work at once; further questions are dropped and counted. As many answers
            may be delayed; of more, the one that is due first is sent at once, so that a flood of questions with forged
            addresses does not keep others from being answered.
        delay: seconds; the delay is a random part of it, unless the asker names its own window.
        max_rate: questions a second of one source that are answered, twice as many at once; None for no limit.
        group: a multicast group to hear as well, on every interface, also on those that come later.
        ipv6: hear IPv6 too: ``ff02::1``, and whatever is sent to an address of this host.
        sock: a bound IPv4 socket to use instead of `host` and `port`, such as one that a worker inherits.

    Raises:
        TypeError: a parameter is of the wrong kind.
        ValueError: a parameter is out of range.
        OSError: the port cannot be used; the message says why and what to do.
    """
    check_count("max_pending", max_pending)
    check_port("port", port)
    check_seconds("delay", delay, or_none=False, from_zero=True)
    if max_rate is not None and not max_rate > 0:
        raise ValueError(f"max_rate must be above 0, or None, not {max_rate}")
    check_group(group)

    async def open_() -> Answerer:
        answerer = Answerer(
            handler,
            max_pending=max_pending,
            delay=delay,
            max_rate=max_rate,
            medium_options={"ipv6": ipv6, "group": group},
        )
        try:
            await answerer._open(host, port, sock, watch=group is not None)
        except BaseException:
            answerer.close()
            raise
        return answerer

    return Opening(open_)
