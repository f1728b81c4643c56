"""UDP echo servers, one for each way: ``python udp_echo.py WAY`` on a free port, which goes to standard error.

Each imports only what its way needs: what else lies on the heap decides how fast plain asyncio is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

HOST = "127.0.0.1"


class Echo(asyncio.DatagramProtocol):
    """What anybody would write."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class EchoBatches(Echo):
    """The addition of this package: whole batches."""

    def datagrams_received(self, batch: Any) -> None:
        self.transport.send_batch(batch)


def announce(address: Any) -> None:
    print(f"listening on {address[0]}:{address[1]}", file=sys.stderr, flush=True)


async def until_told() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


async def protocol(kind: type[Echo] = Echo) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(kind, (HOST, 0))
    announce(transport.get_extra_info("sockname"))
    await until_told()
    transport.close()


async def batches() -> None:
    await protocol(EchoBatches)


async def endpoint() -> None:
    from asyncnet import udp

    async with udp.bind(HOST) as endpoint:
        announce(endpoint.local_addr)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, endpoint.close)
        async for data, addr in endpoint:
            await endpoint.send(data, addr)


async def dgram() -> None:
    import asyncio_dgram

    stream = await asyncio_dgram.bind((HOST, 0))
    announce(stream.sockname)

    async def serve() -> None:
        while True:
            data, addr = await stream.recv()
            await stream.send(data, addr)

    await _with(serve())


async def anyio_udp() -> None:
    import anyio

    async with await anyio.create_udp_socket(local_host=HOST) as sock:
        announce((HOST, sock.extra(anyio.abc.SocketAttribute.local_port)))

        async def serve() -> None:
            async for data, (host, port) in sock:
                await sock.sendto(data, host, port)

        await _with(serve())


async def _with(serving: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(serving)
    await until_told()
    task.cancel()
    await asyncio.wait([task])


async def fastnet() -> None:
    import aiofastnet

    transport, _ = await aiofastnet.create_datagram_endpoint(asyncio.get_running_loop(), Echo, local_addr=(HOST, 0))
    announce(transport.get_extra_info("sockname"))
    await until_told()
    transport.close()


def socketserver_server() -> None:
    import socketserver

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    class Server(socketserver.UDPServer):
        max_packet_size = 65536

    with Server((HOST, 0), Handler) as server:
        announce(server.server_address)
        _until_terminated(server.serve_forever)


def gevent_server() -> None:
    """One greenlet for all: `DatagramServer` with a greenlet for each datagram costs more."""
    from gevent import socket

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    announce(sock.getsockname())

    def serve() -> None:
        while True:
            sock.sendto(*sock.recvfrom(65536))

    _until_terminated(serve)


def twisted_server() -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import protocol, reactor

    class TwistedEcho(protocol.DatagramProtocol):
        noisy = False

        def datagramReceived(self, datagram: bytes, addr: Any) -> None:
            self.transport.write(datagram, addr)

    port: Any = reactor.listenUDP(0, TwistedEcho(), interface=HOST, maxPacketSize=65536)
    announce(port.socket.getsockname())
    reactor.run()


def trio_server() -> None:
    import trio

    async def main() -> None:
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await sock.bind((HOST, 0))
        announce(sock.getsockname())
        while True:
            await sock.sendto(*await sock.recvfrom(65536))

    _until_terminated(lambda: trio.run(main))


def curio_server() -> None:
    import curio
    from curio import socket

    async def main() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        announce(sock.getsockname())
        while True:
            await sock.sendto(*await sock.recvfrom(65536))

    _until_terminated(lambda: curio.run(main))


def _until_terminated(run: Callable[[], object]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    run()


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def asyncnet_loop(kind: str = "auto") -> asyncio.AbstractEventLoop:
    import asyncnet

    return asyncnet.new_event_loop(kind)


Loop = Callable[[], asyncio.AbstractEventLoop]
WAYS: dict[str, tuple[Loop, Callable[[], Coroutine[Any, Any, None]]]] = {
    "asyncio protocol": (asyncio.SelectorEventLoop, protocol),
    "uvloop protocol": (uvloop_loop, protocol),
    "aiofastnet protocol on uvloop": (uvloop_loop, fastnet),
    "asyncio-dgram on uvloop": (uvloop_loop, dgram),
    "anyio on uvloop": (uvloop_loop, anyio_udp),
    "asyncnet protocol": (asyncnet_loop, protocol),
    "asyncnet protocol, batches": (asyncnet_loop, batches),
    "asyncnet protocol on asyncio": (partial(asyncnet_loop, "asyncio"), protocol),
    "asyncnet endpoint": (asyncnet_loop, endpoint),
}
WITHOUT_ASYNCIO: dict[str, Callable[[], None]] = {
    "socketserver": socketserver_server,
    "gevent socket": gevent_server,
    "Twisted protocol": twisted_server,
    "trio socket": trio_server,
    "curio socket": curio_server,
}

if __name__ == "__main__":
    if sys.argv[1] in WITHOUT_ASYNCIO:
        WITHOUT_ASYNCIO[sys.argv[1]]()
    else:
        factory, main = WAYS[sys.argv[1]]
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
