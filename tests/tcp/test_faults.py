"""What bad peers and cancelled handlers must not do to a server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncnet import tcp
from asyncnet.poller import poller_of
from tests.tcp.clients import Reader, Writer, assert_silent, client, echo, echo_lines, ends, exchange, raw_client, until

MIB = 1 << 20
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_client_that_never_reads_cannot_take_more_memory_than_the_cap(log: pytest.LogCaptureFixture) -> None:
    written = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal written
        for number in range(1 << 14):  # 1 GiB, and nobody waits for anything
            writer.write(b"x" * 65536)
            written += 65536
            if number % 256 == 0:
                await asyncio.sleep(0)

    gc.collect()
    before = resident()
    async with tcp.serve(flood, "127.0.0.1", 0, hard_limit=16 * MIB) as server:
        with raw_client(server):
            most = before
            while not server.stats.overflows:
                most = max(most, resident())
                await asyncio.sleep(0)
            await until(lambda: server.stats.active == 0)
    assert most - before < 40 * MIB
    assert server.stats.aborted == 1
    assert written == 1 << 30  # what is written to nobody does no harm
    assert_silent(log)


async def test_a_handler_that_drains_waits_for_a_client_that_never_reads() -> None:
    written = 0

    async def send(reader: Reader, writer: Writer) -> None:
        nonlocal written
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            written += 65536

    async with tcp.serve(send, "127.0.0.1", 0, grace=0) as server:
        with raw_client(server):
            before = -1
            while written != before:  # the socket buffers fill up, and it stops
                before = written
                for _ in range(50):
                    await asyncio.sleep(0.001)
            assert 0 < written < 64 * MIB
            assert server.stats.overflows == 0
            async with client(server) as (reader, _):  # others are served meanwhile
                assert await reader.readexactly(MIB)


@pytest.mark.parametrize("seed", range(5))
async def test_garbage_ends_only_its_own_connection(seed: int, log: pytest.LogCaptureFixture) -> None:
    dice = random.Random(seed)

    async def read_messages(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b":")
            writer.write(await reader.readexactly(int(head[:-1])))

    async with tcp.serve(read_messages, "127.0.0.1", 0, limit=1000) as server:
        async with client(server) as good:
            for _ in range(20):
                with contextlib.suppress(OSError), raw_client(server) as bad:
                    bad.sendall(dice.randbytes(dice.randrange(1, 5000)))
                    if dice.random() < 0.5:
                        bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                good[1].write(b"5:")
                assert await exchange(good, b"hello") == b"hello"
        await until(lambda: server.stats.active == 0)
        stats = server.stats
        assert stats.accepted == 21
        assert stats.completed + stats.failed + stats.disconnected == 21
    # A message that is no message is for the handler to notice: what it raises is its own, and is in the log.
    assert len([record for record in log.records if record.levelno > logging.DEBUG]) == stats.failed


async def _read_sections(reader: Reader, writer: Writer) -> None:
    await reader.readuntil(b"--")


async def _read_the_lines_of_another_host(reader: Reader, writer: Writer) -> None:
    other = tcp.StreamReader(limit=10)
    other.feed_data(bytes(1000))
    await other.readline()


@pytest.mark.parametrize("handler", [echo_lines, _read_sections])
async def test_a_line_without_an_end_ends_its_connection_alone(
    handler: Callable[[Reader, Writer], Any], log: pytest.LogCaptureFixture
) -> None:
    async with tcp.serve(handler, "127.0.0.1", 0, limit=1000) as server:
        async with client(server) as (reader, writer):
            writer.write(bytes(100_000))
            assert await ends(reader)
        await until(lambda: server.stats.active == 0)
        assert (server.stats.disconnected, server.stats.overruns) == (1, 1)
    assert_silent(log)


async def test_a_line_of_another_host_is_not_the_fault_of_the_peer() -> None:
    async with tcp.serve(_read_the_lines_of_another_host, "127.0.0.1", 0) as server:
        async with client(server) as (reader, _):
            assert await ends(reader)
        await until(lambda: server.stats.failed == 1)
        assert server.stats.overruns == 0


async def test_a_connection_that_the_system_cannot_watch_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_reader(fd: int, callback: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        with raw_client(server) as bad:
            await until(lambda: server.stats.active == 1)
            with monkeypatch.context() as patch, raw_client(server) as worse:
                patch.setattr(poller_of(asyncio.get_running_loop()), "add_reader", add_reader)
                await until(lambda: server.stats.failed == 1)
                assert worse.recv(1) == b""
            bad.sendall(b"x")
            bad.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(bad, 1) == b"x"
        await until(lambda: server.stats.active == 0)
        assert (server.stats.accepted, server.stats.completed) == (2, 1)


@pytest.mark.parametrize("point", ["connected", "half a request", "while it is handled", "while it is answered"])
async def test_a_reset_at_any_point_is_no_failure(point: str, log: pytest.LogCaptureFixture) -> None:
    handled = asyncio.Event()
    go_on = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            await reader.readexactly(4)
            handled.set()
            await go_on.wait()
            writer.write(bytes(10 * MIB))
            await writer.drain()

    async with tcp.serve(handle, "127.0.0.1", 0) as server:
        sock = raw_client(server)
        await until(lambda: server.stats.active == 1)
        if point == "half a request":
            sock.sendall(b"ha")
        elif point != "connected":
            sock.sendall(b"half")
            await handled.wait()
        if point == "while it is answered":
            go_on.set()
            sock.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(sock, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        go_on.set()
        await until(lambda: server.stats.active == 0)
        assert server.stats.disconnected == 1
    assert_silent(log)


# Cancellation at every await point.

Step = Callable[[Reader, Writer], Awaitable[object]]


async def _exchange(reader: Reader, writer: Writer, log: list[bytes], cancelled: list[int]) -> None:
    """Do everything that a handler may wait for; a step that is cancelled is made again."""

    async def again(step: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await step()
            except asyncio.CancelledError:
                cancelled.append(1)

    log.append(await again(lambda: reader.readexactly(5)))
    log.append(await again(lambda: reader.readline()))
    log.append(await again(lambda: reader.readuntil(b"!")))
    for number in range(40):
        writer.write(bytes([number]) * 65536)
        await again(writer.drain)
    log.append(await again(lambda: reader.read(3)))
    await again(lambda: asyncio.sleep(0))
    log.append(await again(lambda: reader.read()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("at", range(12))
async def test_a_cancellation_at_any_await_point_loses_no_byte_and_leaks_nothing(at: int) -> None:
    """The handler is cancelled in the at-th turn of the loop in which it waits, and in every third one after that."""
    log: list[bytes] = []
    cancelled: list[int] = []
    tasks: list[asyncio.Task[Any]] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await _exchange(reader, writer, log, cancelled)
        while task.uncancel():
            pass

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    async with tcp.serve(handle, "127.0.0.1", 0, idle_timeout=60) as server:
        sent = b"12345line\nuntil!three and the rest"
        got = bytearray()
        with raw_client(server) as sock:
            sock.setblocking(False)
            turn = position = 0
            while position < len(sent) or len(got) < 40 * 65536:
                turn += 1
                if turn % 4 == 0 and position < len(sent):
                    sock.send(sent[position : position + 1])
                    position += 1
                with contextlib.suppress(BlockingIOError):
                    got += sock.recv(300_000)
                await asyncio.sleep(0)
                if tasks and not tasks[0].done() and turn >= at and (turn - at) % 3 == 0:
                    tasks[0].cancel()
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: server.stats.completed == 1)
    assert log[:3] == [b"12345", b"line\n", b"until!"]
    assert b"".join(log) == sent
    assert got == b"".join(bytes([number]) * 65536 for number in range(40))
    assert cancelled
    await asyncio.sleep(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the poller's own


async def test_a_handler_that_is_cancelled_by_somebody_ends_its_connection() -> None:
    running: list[asyncio.Task[Any]] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        await echo(reader, writer)

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        running[0].cancel()
        assert await ends(stream[0])
        await until(lambda: server.stats.cancelled == 1)


async def test_every_count_is_a_metric() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    async with tcp.serve(echo, "127.0.0.1", 0) as server, client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        registry = prometheus.CollectorRegistry()
        registry.register(tcp.MetricsCollector(server))
        text = prometheus.generate_latest(registry).decode()
        assert "asyncnet_tcp_active 1.0" in text
        assert "asyncnet_tcp_accepted_total 1.0" in text
        for name in ("completed", "failed", "shed", "rejected", "overflows", "idle_timeouts", "lifetime_timeouts"):
            assert f"asyncnet_tcp_{name}_total 0.0" in text
