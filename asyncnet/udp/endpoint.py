"""An awaitable UDP endpoint: what it sends and asks, and multicast; `inbox.py` has what it receives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Final, Self, cast

from asyncnet.addresses import Address, format_address
from asyncnet.resolver import resolve
from asyncnet.udp.inbox import Inbox, Match, Request
from asyncnet.udp.sockets import join_group, leave_group, set_multicast

__all__ = ["MAX_PAYLOAD", "Endpoint"]

MAX_PAYLOAD: Final = 65507
"""The largest payload of a UDP datagram over IPv4, in bytes (65 535 less the IP and UDP headers)."""
_SENDS_PER_TURN: Final = 1024
"""Datagrams that a task may send one after the other before others run; a few milliseconds."""

Payload = bytes | bytearray | memoryview


class Endpoint(Inbox):
    """A UDP socket to await; made by `bind` and `connect`.

    ``async for data, addr in endpoint`` receives until the endpoint is closed.
    """

    _turn = _SENDS_PER_TURN  # what is left of it

    async def send(self, data: Payload, addr: Address | None = None) -> None:
        """Send a datagram, waiting while too many wait to leave.

        What the system reports at once is raised here; what it reports later, as ICMP errors, by the next call that
        sends, or, on an endpoint with a peer, that waits.

        Args:
            data: the payload; `MAX_PAYLOAD` bytes at most.
            addr: where to; not given on a connected endpoint.

        Raises:
            ValueError: `addr` is missing, given on a connected endpoint, or the payload is too large.
            ClosedError: the endpoint is closed.
            OSError: the system refuses the datagram, or reports that an earlier one did not arrive.
        """
        while self._writable is not None:
            await self._writable.wait()
        self._send(data, addr)
        self._turn -= 1
        if self._turn <= 0:
            await self._let_others_run()

    def send_nowait(self, data: Payload, addr: Address | None = None) -> None:
        """Send a datagram, or keep it until the system takes it; arguments and errors are those of `send`.

        Raises:
            BlockingIOError: too many datagrams wait to leave.
        """
        if self._writable is not None:
            raise BlockingIOError("too many datagrams wait to leave")
        self._send(data, addr)

    def _send(self, data: Payload, addr: Address | None) -> None:
        size = len(data)
        transport = self._transport
        if addr is None or self._remote_addr is not None or size > MAX_PAYLOAD or transport is None or self._is_closing:
            self._check(data, addr)
            assert transport is not None
        stats = self._stats
        earlier = self._error
        transport.sendto(data, addr)
        if self._error is earlier:
            stats.sent += 1
            stats.sent_bytes += size
        if self._error is not None:
            self._raise_error()

    async def send_batch(self, batch: Iterable[tuple[Payload, Address | None]]) -> None:
        """Send many datagrams by few system calls.

        Args:
            batch: payloads, each with its address, or with None on a connected endpoint.

        Raises:
            ValueError, ClosedError: as in `send`.
        """
        while self._writable is not None:
            await self._writable.wait()
        items = list(batch)
        self._check_open()
        for data, addr in items:
            self._check(data, addr)
        assert self._transport is not None
        errors = self._stats.errors
        self._transport.send_batch(items)
        self._count_sent(len(items), sum(len(data) for data, _ in items), self._stats.errors - errors)
        if self._turn <= 0:
            await self._let_others_run()

    async def send_segments(self, data: Payload, segment_size: int, addr: Address | None = None) -> None:
        """Send `data` as a train of datagrams to one address; on Linux by one system call for up to 64 of them.

        Args:
            data: the payloads, one behind the other.
            segment_size: bytes of each payload but the last, which may be shorter.
            addr: where to; not given on a connected endpoint.

        Raises:
            ValueError, ClosedError: as in `send`.
        """
        while self._writable is not None:
            await self._writable.wait()
        self._check(b"", addr)
        assert self._transport is not None
        errors = self._stats.errors
        self._transport.send_segments(data, segment_size, addr)
        self._count_sent(-(-len(data) // segment_size), len(data), self._stats.errors - errors)
        if self._turn <= 0:
            await self._let_others_run()

    def _count_sent(self, count: int, size: int, refused: int) -> None:
        """Count a batch; raise what the system said about a part of it."""
        self._turn -= count
        sent = max(0, count - refused)
        self._stats.sent += sent
        self._stats.sent_bytes += size * sent // max(1, count)
        if self._error is not None:
            self._raise_error()

    async def _let_others_run(self) -> None:
        """End this turn of the loop: whoever sends without a pause would let no timer fire, not even a timeout."""
        self._turn = _SENDS_PER_TURN
        await asyncio.sleep(0)

    async def request(
        self,
        data: Payload,
        addr: Address | None = None,
        *,
        match: Match | None = None,
        timeout: float = 1.0,
        retries: int = 3,
        backoff: float = 2.0,
    ) -> tuple[bytes, Address]:
        """Send a question and wait for its answer; ask again when it does not come.

        Datagrams that do not match go to `recv` as usual, so requests may run at the same time.

        Args:
            data: the question.
            addr: whom to ask, by name or number; not given on a connected endpoint.
            match: given a datagram and its sender, tells whether it is the answer; by default what `addr` sends is.
            timeout: seconds to wait before asking again.
            retries: how often to ask again.
            backoff: what the wait is multiplied by each time.

        Raises:
            TimeoutError: no answer came.
            ValueError: a number is out of range, or `addr` does not fit the endpoint.
            ClosedError: the endpoint is closed before the answer came.
            OSError: the name does not resolve, or the system reports that a datagram did not arrive.
            Exception: what `match` raises.
        """
        if timeout <= 0 or retries < 0 or backoff < 1:
            raise ValueError("timeout must be above 0, retries at least 0, backoff at least 1")
        if addr is not None:  # what answers has a number
            found = await resolve(
                addr[0], addr[1], action="send UDP to", kind=socket.SOCK_DGRAM, family=self._socket().family
            )
            addr = found[0][1]
        asked = addr if addr is not None else self._remote_addr

        def from_asked(data: bytes, sender: Address) -> bool:
            return asked is not None and sender[:2] == asked[:2]

        answer: asyncio.Future[tuple[bytes, Address]] = asyncio.get_running_loop().create_future()
        request = Request(match or from_asked, answer)
        self._requests.append(request)
        try:
            for _ in range(retries + 1):
                await self.send(data, addr)
                await asyncio.wait((answer,), timeout=timeout)
                if answer.done():
                    return answer.result()
                timeout *= backoff
        finally:
            self._requests.remove(request)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # which nobody else looks at when this task was cancelled
        raise TimeoutError(f"{format_address(asked)} does not answer: asked {retries + 1} times")

    def join(self, group: str, interface: str | int | None = None) -> None:
        """Receive what is sent to a multicast group; arguments and errors are those of `leave`."""
        join_group(self._socket(), group, interface)

    def leave(self, group: str, interface: str | int | None = None) -> None:
        """Receive no more what is sent to a multicast group.

        Args:
            group: the group's address.
            interface: name or index of the interface; None lets the system choose.

        Raises:
            ValueError: `group` is no multicast address of the endpoint's family.
            OSError: there is no such interface, or the system refuses.
            ClosedError: the endpoint is closed.
        """
        leave_group(self._socket(), group, interface)

    def set_multicast(
        self, *, ttl: int | None = None, loop: bool | None = None, interface: str | int | None = None
    ) -> None:
        """Set how multicast datagrams leave; None leaves a setting as it is.

        Args:
            ttl: routers that a datagram passes at most, 0 to 255.
            loop: whether this host's own members of the group hear it too.
            interface: name or index of the interface that it leaves by.

        Raises:
            ValueError: `ttl` is out of range.
            OSError: there is no such interface, or the system refuses.
            ClosedError: the endpoint is closed.
        """
        set_multicast(self._socket(), ttl=ttl, loop=loop, interface=interface)

    def _socket(self) -> socket.socket:
        self._check_open()
        assert self._transport is not None
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    def _check(self, data: Payload, addr: Address | None) -> None:
        if len(data) > MAX_PAYLOAD:
            raise ValueError(f"a datagram carries {MAX_PAYLOAD} bytes at most, not {len(data)}")
        if (addr is None) == (self._remote_addr is None):
            raise ValueError(
                "addr is missing: the endpoint has no peer" if addr is None else "addr: the endpoint has its peer"
            )
        self._check_open()

    def close(self) -> None:
        """Close the socket; every waiting `recv` raises `ClosedError`. A second call does nothing."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()
        self._wake_all()  # now: what waits to be sent may keep the socket open for some time

    async def aclose(self) -> None:
        """Close the socket and wait until it is closed."""
        self.close()
        if not self._is_closed:
            if self._closed is None:
                self._closed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
