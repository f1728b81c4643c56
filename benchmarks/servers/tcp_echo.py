"""TCP echo servers, one for each way: ``python tcp_echo.py WAY`` on a free port, which goes to standard error.

Every server sends what has come, without delay (TCP_NODELAY), has a backlog of 1024, and reads 64 KiB at most where one
can say so. It may open as many files as the system lets it. Each imports only what its way needs: what else lies on the
heap decides how fast plain asyncio is.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

HOST: Final = "127.0.0.1"
READ: Final = 65536
BACKLOG: Final = 1024


def announce(address: Any) -> None:
    print(f"listening on {address[0]}:{address[1]}", file=sys.stderr, flush=True)


def listener() -> socket.socket:
    sock = socket.create_server((HOST, 0), backlog=BACKLOG)
    announce(sock.getsockname())
    return sock


def set_nodelay(sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# One handler, on two servers.


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(READ):
            writer.write(data)
            await writer.drain()
    except ConnectionResetError:
        pass
    writer.close()


async def until_told() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


async def serve(**options: Any) -> None:
    from asyncnet import tcp

    async with tcp.serve(handle, HOST, 0, backlog=BACKLOG, grace=0, **options) as server:
        announce(server.address)
        await until_told()


async def start_server() -> None:
    server = await asyncio.start_server(handle, HOST, 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname())
    await until_told()
    server.close()


# What anybody would write with callbacks.


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def protocol() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, HOST, 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname())
    await until_told()
    server.close()


# The others.


def socketserver_server() -> None:
    import socketserver

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            set_nodelay(self.request)
            try:
                while data := self.request.recv(READ):
                    self.request.sendall(data)
            except ConnectionError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = BACKLOG
        daemon_threads = True

    with Server((HOST, 0), Handler) as server:
        announce(server.server_address)
        _until_terminated(server.serve_forever)


def gevent_server() -> None:
    from gevent import signal_handler
    from gevent.server import StreamServer

    def handle(sock: Any, _: Any) -> None:
        set_nodelay(sock)
        try:
            while data := sock.recv(READ):
                sock.sendall(data)
        except ConnectionResetError:
            pass

    sock = listener()
    sock.setblocking(False)
    server = StreamServer(sock, handle)
    signal_handler(signal.SIGTERM, server.stop, 0)
    server.serve_forever()


async def tornado_server() -> None:
    from tornado.iostream import StreamClosedError
    from tornado.tcpserver import TCPServer

    class Server(TCPServer):
        async def handle_stream(self, stream: Any, address: Any) -> None:
            stream.set_nodelay(True)
            try:
                while True:
                    await stream.write(await stream.read_bytes(READ, partial=True))
            except StreamClosedError:
                pass

    server = Server()
    sock = listener()
    sock.setblocking(False)
    server.add_sockets([sock])
    await until_told()
    server.stop()


def twisted_server() -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import protocol, reactor

    class TwistedEcho(protocol.Protocol):
        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    factory = protocol.Factory.forProtocol(TwistedEcho)
    factory.noisy = False
    port: Any = reactor.listenTCP(0, factory, backlog=BACKLOG, interface=HOST)
    announce(port.socket.getsockname())
    reactor.run()


def trio_server() -> None:
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host=HOST, backlog=BACKLOG)
        announce(listeners[0].socket.getsockname())
        await trio.serve_listeners(handle, listeners)

    _until_terminated(lambda: trio.run(main))


def anyio_server(backend: str, **options: Any) -> None:
    import anyio

    async def handle(stream: Any) -> None:
        async with stream:
            set_nodelay(stream.extra(anyio.abc.SocketAttribute.raw_socket))
            try:
                while True:
                    await stream.send(await stream.receive(READ))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0, backlog=BACKLOG)
        announce((HOST, listener.extra(anyio.abc.SocketAttribute.local_port)))
        await listener.serve(handle)

    _until_terminated(lambda: anyio.run(main, backend=backend, backend_options=options))


def curio_server() -> None:
    import curio
    from curio import network
    from curio import socket as curio_socket

    async def handle(client: Any, address: Any) -> None:
        set_nodelay(client)
        try:
            while data := await client.recv(READ):
                await client.sendall(data)
        except ConnectionResetError:
            pass

    async def main() -> None:
        sock = curio_socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        sock.listen(BACKLOG)
        announce(sock.getsockname())
        await network.run_server(sock, handle)

    _until_terminated(lambda: curio.run(main))


def _until_terminated(run: Callable[[], object]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    run()


# Loops.


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def fastnet_loop() -> asyncio.AbstractEventLoop:
    import aiofastnet

    return aiofastnet.loop_factory(uvloop_loop)()  # type: ignore[no-any-return]


def asyncnet_loop(kind: str = "auto") -> asyncio.AbstractEventLoop:
    import asyncnet

    return asyncnet.new_event_loop(kind)


def on_loop(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


asyncio_loop = asyncio.SelectorEventLoop
WAYS: dict[str, Callable[[], None]] = {
    "tcp.serve on uvloop": partial(on_loop, asyncnet_loop, serve),
    "tcp.serve on asyncio": partial(on_loop, partial(asyncnet_loop, "asyncio"), serve),
    "start_server on uvloop": partial(on_loop, uvloop_loop, start_server),
    "start_server on asyncio": partial(on_loop, asyncio_loop, start_server),
    "protocol on uvloop": partial(on_loop, uvloop_loop, protocol),
    "protocol on asyncio": partial(on_loop, asyncio_loop, protocol),
    "aiofastnet protocol on uvloop": partial(on_loop, fastnet_loop, protocol),
    "aiofastnet start_server on uvloop": partial(on_loop, fastnet_loop, start_server),
    "socketserver, threads": socketserver_server,
    "gevent": gevent_server,
    "tornado": partial(on_loop, asyncio_loop, tornado_server),
    "tornado on uvloop": partial(on_loop, uvloop_loop, tornado_server),
    "Twisted": twisted_server,
    "trio": trio_server,
    "anyio on asyncio and uvloop": partial(anyio_server, "asyncio", use_uvloop=True),
    "anyio on trio": partial(anyio_server, "trio"),
    "curio": curio_server,
}

if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    WAYS[sys.argv[1]]()
