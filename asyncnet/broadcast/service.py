"""Ask everybody on the network, and answer those who ask.

A datagram to 255.255.255.255 leaves by one interface only, so `ask` sends to the directed broadcast address of every
interface, from a socket of its own on each: the answers to a socket have come by its interface.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Self, TypeAlias, cast

import attrs

from asyncnet.addresses import Address, explain, format_address, interfaces, same_subnet
from asyncnet.opening import Opening
from asyncnet.resolver import resolve
from asyncnet.udp.create import attach
from asyncnet.udp.sockets import open_socket

__all__ = ["AnswerHandler", "Answerer", "AnswererStats", "Reply", "answer", "ask"]

logger: Final = logging.getLogger("asyncnet.broadcast")

AnswerHandler: TypeAlias = Callable[[bytes, Address], bytes | Awaitable[bytes | None] | None]
"""Given a question and its sender's address, returns the answer, or None for none; plain or async."""

_MAX_REPLIES_WAITING: Final = 10_000


@attrs.frozen
class Reply:
    """An answer to a question."""

    data: bytes
    addr: Address
    """Who answers."""
    interface: str | None
    """The name of the interface that it came by; None when no interface has an address in the sender's subnet."""


@attrs.frozen
class _Way:
    """Where to send a question from and to."""

    source: str
    target: str
    interface: str | None


class _Collector(asyncio.DatagramProtocol):
    def __init__(self, way: _Way, replies: asyncio.Queue[Reply]) -> None:
        self._way = way
        self._replies = replies

    def datagram_received(self, data: bytes, addr: Address) -> None:
        try:
            self._replies.put_nowait(Reply(data, addr, self._way.interface or _interface_towards(addr[0])))
        except asyncio.QueueFull:
            logger.warning("an answer from %s is dropped: too many wait to be taken", format_address(addr))


async def ask(
    data: bytes, port: int, *, timeout: float = 3.0, limit: int | None = None, to: Sequence[str] | None = None
) -> AsyncIterator[Reply]:
    """Send a question to everybody on the network and yield the answers as they come.

    Args:
        data: the question.
        port: the port that the others listen on.
        timeout: seconds to wait for answers.
        limit: answers after which to stop; None for no limit.
        to: broadcast addresses to send to; by default the directed broadcast address of every interface that is up,
            of the loopback interface only when there is no other.

    Raises:
        ValueError: the timeout or the limit is negative.
        OSError: the question could not be sent at all. An interface that fails beside others that work is logged.
    """
    if timeout < 0:
        raise ValueError(f"timeout must not be negative: {timeout}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must not be negative: {limit}")
    loop = asyncio.get_running_loop()
    replies: asyncio.Queue[Reply] = asyncio.Queue(_MAX_REPLIES_WAITING)
    transports: list[asyncio.DatagramTransport] = []
    try:
        await _send_question(data, port, _ways(to), replies, transports)
        deadline = loop.time() + timeout
        count = 0
        while limit is None or count < limit:
            try:
                async with asyncio.timeout_at(deadline):
                    reply = await replies.get()
            except TimeoutError:
                break
            count += 1
            yield reply
    finally:
        for transport in transports:
            transport.close()


async def _send_question(
    data: bytes,
    port: int,
    ways: list[_Way],
    replies: asyncio.Queue[Reply],
    transports: list[asyncio.DatagramTransport],
) -> None:
    failure: OSError | None = None
    for way in ways:
        try:
            transports.append(await _send_one_way(data, port, way, replies))
        except OSError as exc:
            failure = exc
            logger.info("%s", exc)
    if not transports:
        raise failure or OSError("no interface of this host is up and able to broadcast")


async def _send_one_way(data: bytes, port: int, way: _Way, replies: asyncio.Queue[Reply]) -> asyncio.DatagramTransport:
    found = await resolve(way.target, port, action="broadcast to", kind=socket.SOCK_DGRAM, family=socket.AF_INET)
    target = found[0][1]
    sock = await open_socket(local=(way.source, 0), broadcast=True)
    try:
        sock.sendto(data, target)
    except OSError as exc:
        sock.close()
        raise explain(exc, "broadcast to", target) from exc
    return await attach(_Collector(way, replies), sock)


def _ways(to: Sequence[str] | None) -> list[_Way]:
    if to is not None:
        return [_Way("0.0.0.0", target, None) for target in to]
    found = [
        (interface.loopback, _Way(address.address, address.broadcast, interface.name))
        for interface in interfaces()
        if interface.up
        for address in interface.addresses
        if address.broadcast is not None
    ]
    outward = [way for loopback, way in found if not loopback]
    return outward or [way for _, way in found]


def _interface_towards(host: str) -> str | None:
    for interface in interfaces():
        for address in interface.addresses:
            if ":" not in address.address and same_subnet(host, address.address, address.prefix):
                return interface.name
    return None


@attrs.define
class AnswererStats:
    """What an answerer has counted since it was opened."""

    questions: int = 0
    answers: int = 0
    dropped: int = 0
    """Questions that came while `max_pending` handlers were at work."""
    failed: int = 0
    """Questions whose handler raised, and answers that could not be sent."""


class Answerer(asyncio.DatagramProtocol):
    """Answers questions; made by `answer`."""

    def __init__(self, handler: AnswerHandler, *, max_pending: int) -> None:
        self.stats = AnswererStats()
        self._handler = handler
        self._max_pending = max_pending
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._address: Address = ("", 0)
        self._closed = asyncio.Event()

    @property
    def address(self) -> Address:
        """The address that is listened on, with the real port."""
        return self._address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._address = transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.stats.questions += 1
        if len(self._tasks) >= self._max_pending:
            self.stats.dropped += 1
            return
        try:
            result = self._handler(data, addr)
        except Exception as exc:
            self._report(exc, addr)
            return
        if inspect.isawaitable(result):
            task = asyncio.get_running_loop().create_task(self._answer_later(result, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._send(result, addr)

    def error_received(self, exc: Exception) -> None:
        self.stats.failed += 1
        logger.debug("an answer did not arrive: %s", exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed.set()

    async def _answer_later(self, result: Awaitable[bytes | None], addr: Address) -> None:
        try:
            self._send(await result, addr)
        except Exception as exc:
            self._report(exc, addr)

    def _send(self, data: bytes | None, addr: Address) -> None:
        if data is None or self._transport is None:
            return
        try:
            self._transport.sendto(data, addr)
        except (OSError, TypeError, ValueError) as exc:
            self._report(exc, addr)
        else:
            self.stats.answers += 1

    def _report(self, exc: Exception, addr: Address) -> None:
        self.stats.failed += 1
        logger.error("answering %s failed", format_address(addr), exc_info=exc)

    async def serve_forever(self) -> None:
        """Answer until closed, or until this call is cancelled; then close."""
        try:
            await self._closed.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Answer no more; handlers that are at work are cancelled."""
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """Close, and wait until everything is closed."""
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closed.wait()

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
    sock: socket.socket | None = None,
) -> Opening[Answerer]:
    """Answer questions that come by broadcast: ``async with answer(handler, 7788): ...``.

    Several programs on one host may answer on one port: a broadcast reaches each of them.

    Args:
        handler: called as ``handler(question, address)``; returns the answer, None for none, or an awaitable of these.
            An exception is logged with the asker's address and ends nothing.
        port: 0 takes any free one.
        host: an address of this host to listen on; empty for every address, which hearing broadcasts takes on Linux.
        max_pending: awaitables that may be pending; further questions are dropped and counted.
        sock: a bound UDP socket to use instead of `host` and `port`, such as one that a worker inherits.

    Raises:
        ValueError: `max_pending` is below 1.
        OSError: the port cannot be used; the message says why and what to do.
    """
    if max_pending < 1:
        raise ValueError(f"max_pending must be at least 1, not {max_pending}")

    async def open_() -> Answerer:
        answerer = Answerer(handler, max_pending=max_pending)
        opened = sock or await open_socket(local=(host or "0.0.0.0", port), broadcast=True, share_broadcasts=True)
        await attach(answerer, opened)
        return answerer

    return Opening(open_)
