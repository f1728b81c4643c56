"""Peers that do anything, handlers that do anything: every connection ends, is counted once, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import socket
import struct
import sys
from typing import Any

import pytest

from asyncnet import tcp
from tests.tcp.clients import Reader, Writer, assert_silent

RESET = struct.pack("ii", 1, 0)
ENDS = ("completed", "failed", "disconnected", "cancelled", "handshakes_failed", "rejected")


async def handle(dice: random.Random, reader: Reader, writer: Writer) -> None:
    match dice.randrange(9):
        case 0:
            return
        case 1:
            await reader.readline()
        case 2:
            writer.transport.abort()
        case 3:
            await reader.readexactly(50)
        case 4:
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
        case 5:
            writer.close()
            await writer.wait_closed()
        case 6:
            async with asyncio.timeout(0.02):
                await reader.read()
        case 7:
            writer.write_eof()
            await reader.read()
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()


async def visit(dice: random.Random, address: tuple[str, int]) -> None:
    with contextlib.suppress(OSError), socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        for _ in range(dice.randrange(4)):
            with contextlib.suppress(BlockingIOError):
                sock.send(dice.randbytes(dice.randrange(200)))
            if dice.random() < 0.3:
                with contextlib.suppress(BlockingIOError):
                    sock.recv(100_000)
            await asyncio.sleep(dice.random() * 0.02)
        if dice.random() < 0.4:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif dice.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    "options",
    [
        {"idle_timeout": 0.02, "write_timeout": 0.05, "lifetime_timeout": 0.2},
        {"max_connections": 10, "when_full": "reject", "max_per_client": 8},
        {"max_connections": 5, "message_timeout": 0.01, "first_byte_timeout": 0.02},
    ],
    ids=["timeouts", "rejecting", "waiting"],
)
async def test_every_connection_ends_and_is_counted_once(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dice = random.Random(5)
    descriptors = len(os.listdir("/proc/self/fd"))
    serving = tcp.serve(lambda reader, writer: handle(dice, reader, writer), "127.0.0.1", 0, grace=0.05, **options)
    async with serving as server:
        for _ in range(4):
            await asyncio.gather(*(visit(dice, server.address) for _ in range(40)))
    stats = server.stats
    assert (stats.active, stats.failed) == (0, 0)
    assert stats.accepted == sum(getattr(stats, end) for end in ENDS) > 50
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the poller's own
    assert_silent(caplog)
