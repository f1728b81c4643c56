"""What is read from a socket before it gets a transport: the header of a proxy, and not one byte more.

TLS may follow, and the event loop's transport for it starts with the socket.
"""

from __future__ import annotations

import asyncio
import socket

from asyncnet.tcp.proxy import MAX_HEADER, HeaderParser, ProxyHeader

__all__ = ["read_proxy_header"]


async def read_proxy_header(sock: socket.socket, timeout: float) -> ProxyHeader:
    """Read the header of the PROXY protocol.

    Args:
        sock: connected and non-blocking.
        timeout: seconds that the whole header may take.

    Raises:
        PacketError: what came is no header.
        EOFError: the peer ended the connection before its header was complete.
        OSError: the connection is lost.
        TimeoutError: it took too long.
    """
    parser = HeaderParser()
    async with asyncio.timeout(timeout):
        while True:
            try:
                data = sock.recv(MAX_HEADER, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                await _readable(sock)
                continue
            if not data:
                raise EOFError("the connection ended before its PROXY header was complete")
            sock.recv(parser.feed(data))
            if parser.header is not None:
                return parser.header


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    loop.add_reader(sock, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(sock)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
