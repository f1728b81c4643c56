"""Streams on one end of a connection, and the bare socket of the other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncnet.tcp.reading import StreamReader
from asyncnet.tcp.streams import StreamProtocol
from asyncnet.tcp.transport import SocketTransport
from asyncnet.tcp.writing import StreamWriter


class CountingSocket(socket.socket):
    """Remembers what each call has sent."""

    sent: list[int]

    def send(self, data: Any, flags: int = 0) -> int:
        count = super().send(data, flags)
        self.sent.append(count)
        return count


def counting(sock: socket.socket) -> CountingSocket:
    counted = CountingSocket(fileno=sock.detach())
    counted.setblocking(False)
    counted.sent = []
    return counted


@asynccontextmanager
async def pair(limit: int = 65536, **options: Any) -> AsyncIterator[tuple[StreamReader, StreamWriter, socket.socket]]:
    """Streams on one end of a connection, and the socket of the other end."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    far.setblocking(False)
    reader = StreamReader(limit, loop)
    protocol = StreamProtocol(reader, loop, "far", server_side=True)
    writer = StreamWriter(SocketTransport(loop, counting(near), protocol, "far", **options), protocol)
    with far:
        try:
            yield reader, writer, far
        finally:
            writer.transport.abort()
            try:
                await writer.wait_closed()
            except OSError:
                pass
