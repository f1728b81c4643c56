"""A bad network for tests: a UDP relay that loses, doubles, reorders, delays and damages datagrams.

Put it between a client and a server on one host::

    async with testing.udp_relay(server.address, loss=0.1, seed=7) as relay:
        async with tftp.Client(*relay.address) as client: ...

What happens to a datagram is decided by the seed, the client's number in the order of appearance, the direction, and
the datagram's number in that direction, and by nothing else: a program that sends the same datagrams again meets
the same network again, however the two directions interleave.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from functools import partial
from typing import Final, Self

import attrs

from asyncnet.addresses import Address
from asyncnet.opening import Opening
from asyncnet.udp.sockets import open_socket

__all__ = ["RelayStats", "UdpRelay", "udp_relay"]

_MAX_CLIENTS: Final = 1000
_MAX_DELAYED: Final = 100_000
_READS_PER_TURN: Final = 64


@attrs.define
class RelayStats:
    """What a relay has done with datagrams, both directions together."""

    arrived: int = 0
    forwarded: int = 0
    """Datagrams that left, copies included."""
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    overflowed: int = 0
    """Datagrams dropped because too many bytes waited for the rate to let them pass."""
    refused: int = 0
    """Datagrams that the system would not send, or of clients beyond the bound."""


@attrs.frozen
class _Impairment:
    """How bad the network is; `udp_relay` explains it."""

    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    rate: float | None = None
    queue: int = 1 << 16

    def __attrs_post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {share}")
        if self.delay < 0:
            raise ValueError(f"delay must not be negative: {self.delay}")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate must be above 0, not {self.rate}")
        if self.queue < 1:
            raise ValueError(f"queue must be at least 1, not {self.queue}")


@attrs.frozen
class _Fate:
    """What happens to one datagram."""

    is_lost: bool
    copies: int
    late: tuple[float, ...]
    """Seconds by which each copy is held back."""
    flipped: float | None
    """Where a bit is flipped, as a share of the datagram's length."""


class _Direction:
    """One client's datagrams one way."""

    def __init__(self, impairment: _Impairment, client: int, name: str) -> None:
        self._impairment = impairment
        self._random = random.Random(f"{impairment.seed}/{client}/{name}")
        self._free_at = 0.0  # when the link has sent what waits

    def fate(self) -> _Fate:
        """Decide about the next datagram; every datagram takes the same number of dice."""
        bad, dice = self._impairment, [self._random.random() for _ in range(7)]
        copies = 2 if dice[1] < bad.duplicate else 1
        late = tuple(
            0.001 + 0.004 * dice[3 + 2 * copy] if dice[2 + 2 * copy] < bad.reorder else 0.0 for copy in range(copies)
        )
        # One die decides and places: below the share it is evenly spread.
        flipped = dice[6] / bad.corrupt if dice[6] < bad.corrupt else None
        return _Fate(dice[0] < bad.loss, copies, late, flipped)

    def wait_for_link(self, size: int, now: float) -> float | None:
        """Return the seconds until the link has sent a datagram of `size` bytes, None when it drops it."""
        rate = self._impairment.rate
        if rate is None:
            return 0.0
        backlog = max(0.0, self._free_at - now)
        if backlog * rate > self._impairment.queue:
            return None
        self._free_at = now + backlog + size / rate
        return self._free_at - now


class UdpRelay:
    """A running relay; made by `udp_relay`."""

    def __init__(self, sock: socket.socket, target: Address, impairment: _Impairment) -> None:
        self.stats = RelayStats()
        self._sock = sock
        self._target = target
        self._impairment = impairment
        self._loop = asyncio.get_running_loop()
        self._upstreams: dict[Address, tuple[socket.socket, _Direction]] = {}
        self._answered_from: dict[Address, Address] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._loop.add_reader(sock, self._on_client)

    @property
    def address(self) -> Address:
        """The address that clients send to."""
        address: Address = self._sock.getsockname()
        return address

    def _on_client(self) -> None:
        for data, client in _read(self._sock):
            found = self._upstream(client)
            if found is None:
                self.stats.refused += 1
                continue
            upstream, direction = found
            to = self._answered_from.get(client, self._target)
            self._forward(direction, data, partial(_send_to, upstream, to))

    def _on_server(self, upstream: socket.socket, direction: _Direction, client: Address) -> None:
        for data, server in _read(upstream):
            self._forward(direction, data, partial(self._answer, client, server))

    def _answer(self, client: Address, server: Address, data: bytes) -> None:
        # A TFTP server answers from a new port, and what a client sends is meant for that one once it has heard of it.
        self._answered_from[client] = server
        self._sock.sendto(data, client)

    def _upstream(self, client: Address) -> tuple[socket.socket, _Direction] | None:
        if client not in self._upstreams:
            number = len(self._upstreams)
            if number >= _MAX_CLIENTS:
                return None
            upstream = socket.socket(self._sock.family, socket.SOCK_DGRAM)
            upstream.setblocking(False)
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self._upstreams[client] = upstream, _Direction(self._impairment, number, "up")
            down = _Direction(self._impairment, number, "down")
            self._loop.add_reader(upstream, self._on_server, upstream, down, client)
        return self._upstreams[client]

    def _forward(self, direction: _Direction, data: bytes, send: Callable[[bytes], object]) -> None:
        stats = self.stats
        stats.arrived += 1
        fate = direction.fate()
        if fate.is_lost:
            stats.lost += 1
            return
        if fate.flipped is not None and data:
            stats.corrupted += 1
            bit = int(fate.flipped * len(data) * 8)
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            data = bytes(damaged)
        stats.duplicated += fate.copies - 1
        for late in fate.late:
            wait = direction.wait_for_link(len(data), self._loop.time())
            if wait is None or len(self._timers) >= _MAX_DELAYED:
                stats.overflowed += 1
                continue
            stats.reordered += late > 0
            wait += late + self._impairment.delay
            if wait:
                self._later(wait, partial(send, data))
            else:
                self._send(partial(send, data))

    def _later(self, delay: float, send: Callable[[], object]) -> None:
        def fire() -> None:
            self._timers.discard(handle)
            self._send(send)

        handle = self._loop.call_later(delay, fire)
        self._timers.add(handle)

    def _send(self, send: Callable[[], object]) -> None:
        try:
            send()
        except OSError:
            self.stats.refused += 1
        else:
            self.stats.forwarded += 1

    async def aclose(self) -> None:
        """Close every socket; datagrams under way are lost."""
        for handle in self._timers:
            handle.cancel()
        self._timers.clear()
        for sock in (self._sock, *(upstream for upstream, _ in self._upstreams.values())):
            self._loop.remove_reader(sock)
            sock.close()
        self._upstreams.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _send_to(sock: socket.socket, address: Address, data: bytes) -> int:
    return sock.sendto(data, address)


def _read(sock: socket.socket) -> list[tuple[bytes, Address]]:
    found: list[tuple[bytes, Address]] = []
    try:
        while len(found) < _READS_PER_TURN:
            found.append(sock.recvfrom(65536))
    except OSError:  # nothing more to read, or an ICMP error for an earlier datagram
        pass
    return found


def udp_relay(
    target: Address,
    *,
    seed: int = 0,
    loss: float = 0.0,
    duplicate: float = 0.0,
    reorder: float = 0.0,
    corrupt: float = 0.0,
    delay: float = 0.0,
    rate: float | None = None,
    queue: int = 1 << 16,
) -> Opening[UdpRelay]:
    """Open a relay on a free port of this host in front of `target`.

    Args:
        target: where to send what clients send; answers go back to the client.
        seed: decides which datagrams meet which fate.
        loss: the share of datagrams that are lost, 0 to 1.
        duplicate: the share that arrives twice.
        reorder: the share that is overtaken, by a delay of 1 to 5 ms.
        corrupt: the share that has one bit flipped.
        delay: seconds that every datagram takes.
        rate: bytes a second that pass in each direction of each client; None for no limit.
        queue: bytes that may wait for the rate; what comes on top is dropped.

    Raises:
        ValueError: a share is not between 0 and 1, the delay is negative, or the rate or the queue is not above 0.
    """
    impairment = _Impairment(seed, loss, duplicate, reorder, corrupt, delay, rate, queue)

    async def open_() -> UdpRelay:
        sock = await open_socket(local=("::1" if ":" in target[0] else "127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return UdpRelay(sock, target, impairment)

    return Opening(open_)
