"""What the tests of UDP share: protocols that write down what they are told, sockets, waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from asyncnet.addresses import Address

Create: TypeAlias = Callable[..., Awaitable[tuple[Any, Any]]]

WAYS = ["", "recvmmsg", "sendmmsg", "recvmmsg,sendmmsg", "gso", "gro", "recvmmsg,sendmmsg,gso,gro"]

with_every_way = pytest.mark.parametrize("disabled", WAYS, ids=lambda names: f"without {names or 'nothing'}")


class Recorder(asyncio.DatagramProtocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received: list[tuple[bytes, Address]] = []
        self.errors: list[Exception] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


class Echo(Recorder):
    def datagram_received(self, data: bytes, addr: Address) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


class Batches(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Any]] = []

    def datagrams_received(self, batch: list[Any]) -> None:
        self.batches.append(batch)
        self.received.extend((item[0], item[1]) for item in batch)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def plain_socket(**options: Any) -> socket.socket:
    sock = socket.socket(options.pop("family", socket.AF_INET), socket.SOCK_DGRAM)
    sock.bind(("::1" if sock.family == socket.AF_INET6 else "127.0.0.1", 0))
    sock.settimeout(5)
    return sock


async def receive_all(sock: socket.socket, count: int) -> list[bytes]:
    return await asyncio.to_thread(lambda: [sock.recv(65536) for _ in range(count)])


async def closed(transport: Any, protocol: Any) -> None:
    transport.close()
    async with asyncio.timeout(5):
        await protocol.lost


class FullSocket(socket.socket):
    """A socket whose send buffer is full until told otherwise."""

    full = True
    refusal: OSError | None = None

    def sendto(self, *args: Any) -> int:
        if self.refusal is not None:
            raise self.refusal
        if self.full:
            raise BlockingIOError
        return super().sendto(*args)


async def full_transport(create: Create, kind: Callable[[], Any] = Recorder) -> tuple[Any, Any, FullSocket]:
    sock = FullSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    transport, protocol = await create(kind, sock=sock)
    return transport, protocol, sock
