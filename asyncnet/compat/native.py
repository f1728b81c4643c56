"""Engines that run on an event loop of asyncio.

``asyncio`` and ``uvloop`` are `asyncio.start_server` on either loop, as people use it, so that a comparison measures
what they run. ``asyncnet`` is `asyncnet.tcp.serve`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from asyncnet import tcp
from asyncnet.addresses import Address
from asyncnet.compat.serving import STOP, Handler, Server, Stats, attend
from asyncnet.compat.streams import FLUSH_STALL
from asyncnet.loops import new_event_loop, run

__all__ = ["AsyncioServer", "AsyncnetServer"]


async def _stopped(wake: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while STOP not in await loop.sock_recv(wake, 4096):
        pass


class AsyncioServer(Server):
    """`asyncio.start_server`, with a way to stop.

    Args:
        loop: ``"asyncio"`` or ``"uvloop"``.
    """

    def __init__(self, loop: str, handler: Handler, address: Address, *, backlog: int, grace: float) -> None:
        super().__init__(handler, address, backlog=backlog, grace=grace)
        self._loop = loop
        self._backlog = backlog
        self._tasks: set[asyncio.Task[Any]] = set()

    def _serve(self) -> None:
        run(self._main(), loop=self._loop)

    async def _main(self) -> None:
        server = await asyncio.start_server(self._converse, sock=self._listener, backlog=self._backlog)
        await _stopped(self._wake)
        server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace)
        # Those that are left are cancelled by whatever runs this.

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def wait_closed() -> None:
            async with asyncio.timeout(FLUSH_STALL):
                await writer.wait_closed()

        await attend(self._handler, reader, writer, self._stats, wait_closed, writer.transport.abort)


class AsyncnetServer(Server):
    """`asyncnet.tcp.serve` on `asyncnet.new_event_loop`."""

    def _open(self, address: Address, backlog: int) -> Address:
        self._loop = new_event_loop()
        try:
            opening = tcp.serve(self._handler, address[0], address[1], backlog=backlog, grace=self._grace)
            self._server = self._loop.run_until_complete(self._listen(opening))
        except BaseException:
            self._loop.close()
            raise
        where: Address = self._server.address
        return where

    async def _listen(self, opening: Any) -> tcp.Server:
        server: tcp.Server = await opening
        return server

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        await _stopped(self._wake)
        closing = asyncio.create_task(self._server.aclose())
        again = asyncio.create_task(_stopped(self._wake))
        await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
        self._server.hurry()
        again.cancel()
        await asyncio.wait({closing, again})

    @property
    def stats(self) -> Stats:
        """What the server has counted so far."""
        counted = self._server.stats
        return Stats(
            accepted=counted.accepted,
            active=counted.active,
            failed=counted.failed,
            disconnected=counted.disconnected,
            cancelled=counted.cancelled,
            pauses=counted.accept_errors,
        )

    def close(self) -> None:
        """Release the sockets and the loop of a server that does not run; `run` does so itself when it ends."""
        if not self._loop.is_closed():
            self._server.close()
            self._loop.close()
        self._bell.close()
        self._wake.close()
