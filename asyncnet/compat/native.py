"""Engines that run on an event loop of asyncio.

``asyncio`` and ``uvloop`` are `asyncio.start_server` and `loop.create_datagram_endpoint` on either loop, as people use
them, so that a comparison measures what they run. ``asyncnet`` is `asyncnet.tcp.serve` and `asyncnet.udp`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from asyncnet import tcp
from asyncnet.addresses import Address
from asyncnet.compat import connections, datagrams
from asyncnet.compat.connections import StreamService
from asyncnet.compat.datagrams import BUSY_PAUSE, MAX_PENDING, DatagramService
from asyncnet.compat.serving import STOP, Server, Stats
from asyncnet.compat.writing import FLUSH_STALL
from asyncnet.loops import new_event_loop
from asyncnet.udp.create import create_datagram_endpoint

__all__ = ["AsyncioDatagramServer", "AsyncioServer", "AsyncnetDatagramServer", "AsyncnetServer", "run_on_loop"]

logger: Final = logging.getLogger("asyncnet.compat")

T = TypeVar("T")


def run_on_loop(name: str, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new loop, and return its result.

    Args:
        name: ``"asyncio"`` or ``"uvloop"``, each as it comes, or ``"asyncnet"``.
        main: what to run.

    Raises:
        RuntimeError: an event loop runs in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        main.close()
        raise RuntimeError("this blocks, and an event loop runs in this thread: call it in a thread of its own")
    with asyncio.Runner(loop_factory=lambda: _plain_loop(name)) as runner:
        return runner.run(main)


def _plain_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncnet":
        return new_event_loop()
    if name == "uvloop":
        import uvloop

        return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
    return asyncio.new_event_loop()


async def _stopped(wake: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while STOP not in await loop.sock_recv(wake, 4096):
        pass


class _LoopServer(Server):
    """A server on a loop of asyncio.

    Args:
        loop: ``"asyncio"``, ``"uvloop"`` or ``"asyncnet"``.
        service: what is served.
        grace: see `Server`.
    """

    def __init__(self, loop: str, service: Any, *, grace: float) -> None:
        super().__init__(service, grace=grace)
        self._loop = loop

    def _serve(self) -> None:
        run_on_loop(self._loop, self._main())

    @abstractmethod
    async def _main(self) -> None:
        """Serve until told to stop; tasks that are left are cancelled by whatever runs this."""

    async def _finish(self) -> None:
        """Give every task its grace, the handlers and what they have spawned, unless told to stop again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        again = loop.create_task(_stopped(self._wake))
        while tasks := asyncio.all_tasks() - {asyncio.current_task(), again}:
            left = deadline - loop.time()
            if left <= 0 or again.done():
                break
            await asyncio.wait({*tasks, again}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()


class AsyncioServer(_LoopServer):
    """`asyncio.start_server`, with a way to stop."""

    _service: StreamService

    async def _main(self) -> None:
        service = self._service
        server = await asyncio.start_server(self._converse, sock=service.socket, backlog=service.backlog)
        await _stopped(self._wake)
        server.close()
        await self._finish()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def wait_closed() -> None:
            async with asyncio.timeout(FLUSH_STALL):
                await writer.wait_closed()

        abort = writer.transport.abort
        try:
            await connections.attend(self._service.handler, reader, writer, self._stats, wait_closed, abort)
        except asyncio.CancelledError:  # counted; asyncio would log it
            pass


class AsyncnetServer(_LoopServer):
    """`asyncnet.tcp.serve` on `asyncnet.new_event_loop`."""

    _service: StreamService
    _server: tcp.Server | None = None

    async def _main(self) -> None:
        service = self._service
        self._server = server = await tcp.serve(
            service.handler, sockets=[service.socket], backlog=service.backlog, grace=self._grace
        )
        await _stopped(self._wake)
        closing = asyncio.create_task(server.aclose())
        again = asyncio.create_task(_stopped(self._wake))
        await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
        server.hurry()
        again.cancel()
        await asyncio.wait({closing, again})
        await self._finish()

    @property
    def stats(self) -> Stats:
        """What the server has counted so far."""
        if self._server is None:
            return self._stats
        counted = self._server.stats
        return Stats(
            accepted=counted.accepted,
            active=counted.active,
            failed=counted.failed,
            disconnected=counted.disconnected,
            cancelled=counted.cancelled,
            pauses=counted.accept_errors,
        )


class _Answering:
    """What a handler answers by: the transport of the server, and its socket for what the transport does not send."""

    def __init__(self, transport: asyncio.DatagramTransport, sock: socket.socket) -> None:
        self._transport = transport
        self._sock = sock

    @property
    def local_addr(self) -> Address:
        """The address that the server is bound to."""
        return cast(Address, self._transport.get_extra_info("sockname"))

    async def send(self, data: bytes | bytearray | memoryview, addr: Address) -> None:
        """Send a datagram."""
        if len(data):
            self._transport.sendto(data, addr)
        else:  # uvloop's transport drops an empty one without a word, and so does asyncio's before Python 3.13
            await self._send_empty(addr)

    async def _send_empty(self, addr: Address) -> None:
        while True:
            try:
                self._sock.sendto(b"", addr)
            except BlockingIOError:
                await asyncio.sleep(BUSY_PAUSE)
            except OSError as exc:  # as the protocol hears of it for others
                logger.debug("an answer did not arrive: %s", exc)
                return
            else:
                return


class _Protocol(asyncio.DatagramProtocol):
    """Starts a handler for each datagram."""

    def __init__(self, start: Callable[[Coroutine[Any, Any, None]], object], service: DatagramService, stats: Stats):
        self._start, self._handler, self._stats = start, service.handler, stats
        self._sock = service.socket
        self._endpoint: _Answering | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._endpoint = _Answering(cast(asyncio.DatagramTransport, transport), self._sock)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if self._stats.active >= MAX_PENDING:
            self._stats.count(dropped=1)
            return
        self._start(datagrams.attend(self._handler, data, addr, self._endpoint, self._stats))

    def error_received(self, exc: Exception) -> None:
        logger.debug("an answer did not arrive: %s", exc)


class AsyncioDatagramServer(_LoopServer):
    """The loop's own transport, and a task for each datagram."""

    _service: DatagramService

    def __init__(self, loop: str, service: Any, *, grace: float) -> None:
        super().__init__(loop, service, grace=grace)
        self._tasks: set[asyncio.Task[None]] = set()

    async def _main(self) -> None:
        transport = await self._open(_Protocol(self._start, self._service, self._stats))
        await _stopped(self._wake)
        transport.close()
        await self._finish()

    async def _open(self, protocol: _Protocol) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, sock=self._service.socket)
        return transport

    def _start(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class AsyncnetDatagramServer(AsyncioDatagramServer):
    """The transport of `asyncnet.udp`; since Python 3.12, a handler that need not wait is over before it is a task."""

    async def _open(self, protocol: _Protocol) -> asyncio.DatagramTransport:
        transport, _ = await create_datagram_endpoint(lambda: protocol, sock=self._service.socket)
        return transport

    if sys.version_info >= (3, 12):

        def _start(self, coro: Coroutine[Any, Any, None]) -> None:
            task = asyncio.Task(coro, loop=asyncio.get_running_loop(), eager_start=True)
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
