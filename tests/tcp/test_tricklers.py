"""Honest clients among many that send a byte now and then and never end their line."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from asyncnet import tcp
from tests.tcp.clients import Stream, client, echo_lines, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_NOFILE")

TRICKLERS = 2000
HONEST = 10
TRIES = 6


@contextmanager
def descriptors_for(count: int) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def tricklers(server: tcp.Server) -> AsyncIterator[None]:
    """Connections that send a byte a second each, and never the end of a line."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(TRICKLERS)]
        for sock in socks:
            sock.setblocking(False)
            await loop.sock_connect(sock, server.address)

        async def trickle() -> None:
            while True:
                for number, sock in enumerate(socks):
                    sock.send(b".")
                    if number % 10 == 0:
                        await asyncio.sleep(0.005)

        trickling = asyncio.create_task(trickle())
        try:
            yield
        finally:
            trickling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trickling


async def p99_of(streams: list[Stream]) -> float:
    """Return the 99th percentile of the seconds that a request takes, all clients at once."""
    waits: list[float] = []

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(300):
            line, begin = b"%d\n" % number, time.perf_counter()
            writer.write(line)
            assert await reader.readline() == line
            waits.append(time.perf_counter() - begin)

    async with asyncio.timeout(30):
        await asyncio.gather(*(ask(*stream) for stream in streams))
    waits.sort()
    return waits[int(len(waits) * 0.99)]


@pytest.mark.alone
async def test_thousands_of_tricklers_hardly_slow_honest_clients_down() -> None:
    """Whatever else the machine does comes and goes, so that one good try of several counts."""
    with descriptors_for(2 * TRICKLERS + 200):
        async with (
            tcp.serve(echo_lines, "127.0.0.1", 0, message_timeout=60, grace=0) as server,
            contextlib.AsyncExitStack() as stack,
        ):
            streams = [await stack.enter_async_context(client(server)) for _ in range(HONEST)]
            quiet = max([await p99_of(streams) for _ in range(2)])
            async with tricklers(server):
                await until(lambda: server.stats.active == HONEST + TRICKLERS)
                crowded: list[float] = []
                while len(crowded) < TRIES and (not crowded or min(crowded) >= 3 * quiet):
                    crowded.append(await p99_of(streams))
                assert server.stats.active == HONEST + TRICKLERS
        assert min(crowded) < 3 * quiet
