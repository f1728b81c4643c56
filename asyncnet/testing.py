"""A bad network for tests: a UDP relay that loses, doubles and reorders datagrams, the same ones in every run.

Put it between a client and a server on one host::

    async with testing.udp_relay(server.address, loss=0.1, seed=7) as relay:
        async with tftp.Client(*relay.address) as client: ...
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
    refused: int = 0
    """Datagrams that the system would not send, or of clients beyond the bound."""


class UdpRelay:
    """A running relay; made by `udp_relay`."""

    def __init__(
        self,
        sock: socket.socket,
        target: Address,
        *,
        seed: int,
        loss: float,
        duplicate: float,
        reorder: float,
        delay: float,
    ) -> None:
        self.stats = RelayStats()
        self._sock = sock
        self._target = target
        self._random = random.Random(seed)
        self._loss = loss
        self._duplicate = duplicate
        self._reorder = reorder
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._upstreams: dict[Address, socket.socket] = {}
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
            upstream = self._upstream(client)
            if upstream is None:
                self.stats.refused += 1
                continue
            to = self._answered_from.get(client, self._target)
            self._forward(partial(upstream.sendto, data, to))

    def _on_server(self, upstream: socket.socket, client: Address) -> None:
        for data, server in _read(upstream):
            # A TFTP server answers from a new port, and what the client sends next is meant for that one.
            self._answered_from[client] = server
            self._forward(partial(self._sock.sendto, data, client))

    def _upstream(self, client: Address) -> socket.socket | None:
        if client not in self._upstreams:
            if len(self._upstreams) >= _MAX_CLIENTS:
                return None
            upstream = socket.socket(self._sock.family, socket.SOCK_DGRAM)
            upstream.setblocking(False)
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self._upstreams[client] = upstream
            self._loop.add_reader(upstream, self._on_server, upstream, client)
        return self._upstreams[client]

    def _forward(self, send: Callable[[], object]) -> None:
        self.stats.arrived += 1
        if self._random.random() < self._loss:
            self.stats.lost += 1
            return
        copies = 1
        if self._random.random() < self._duplicate:
            self.stats.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay = self._delay
            if self._random.random() < self._reorder:
                self.stats.reordered += 1
                delay += self._random.uniform(0.001, 0.005)
            if delay:
                self._later(delay, send)
            else:
                self._send(send)

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
        for sock in (self._sock, *self._upstreams.values()):
            self._loop.remove_reader(sock)
            sock.close()
        self._upstreams.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


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
    delay: float = 0.0,
) -> Opening[UdpRelay]:
    """Open a relay on a free port of 127.0.0.1 in front of `target`.

    Args:
        target: where to send what clients send; answers go back to the client.
        seed: decides which datagrams meet which fate.
        loss: the share of datagrams that are lost, 0 to 1.
        duplicate: the share that arrives twice.
        reorder: the share that is overtaken, by a delay of 1 to 5 ms.
        delay: seconds that every datagram takes.

    Raises:
        ValueError: a share is not between 0 and 1, or the delay is negative.
    """
    for name, share in (("loss", loss), ("duplicate", duplicate), ("reorder", reorder)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {share}")
    if delay < 0:
        raise ValueError(f"delay must not be negative: {delay}")

    async def open_() -> UdpRelay:
        sock = await open_socket(local=("::1" if ":" in target[0] else "127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return UdpRelay(sock, target, seed=seed, loss=loss, duplicate=duplicate, reorder=reorder, delay=delay)

    return Opening(open_)
