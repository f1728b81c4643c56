"""``asyncnet tcp connect``, when one of its ends goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys

import pytest

from asyncnet import tcp
from tests.tcp.clients import Reader, Writer, echo, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes as on Unix")


async def connect(port: int, output: int = subprocess.PIPE) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncnet", "tcp", "connect", f"127.0.0.1:{port}",
        stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE,
    )  # fmt: skip


async def test_nobody_reads_the_output_any_more() -> None:
    """As in ``yes | asyncnet tcp connect HOST:PORT | head -1``."""
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        receiving, sending = os.pipe()
        process = await connect(server.address[1], sending)
        os.close(sending)
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"yes\n")
        assert await asyncio.to_thread(os.read, receiving, 100) == b"yes\n"
        os.close(receiving)
        with contextlib.suppress(OSError):  # it is gone
            async with asyncio.timeout(20):
                while True:
                    process.stdin.write(b"yes\n" * 1000)
                    await process.stdin.drain()
        assert await process.stderr.read() == b""
        await process.wait()
        await until(lambda: server.stats.active == 0)


async def test_a_reset_names_the_address() -> None:
    async def reset(reader: Reader, writer: Writer) -> None:
        await reader.readline()
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with tcp.serve(reset, "127.0.0.1", 0) as server:
        process = await connect(server.address[1])
        async with asyncio.timeout(20):
            _, told = await process.communicate(b"line\n")
        assert process.returncode == 1
        address = f"127.0.0.1:{server.address[1]}"
        assert told.decode().startswith(f"asyncnet: cannot read from {address}: ")
        assert told.count(b"\n") == 1
