"""Files that the kernel sends: in order, without a gap, and never to nobody."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncnet import tcp
from tests.tcp.certificates import make_certificate
from tests.tcp.clients import Reader, client, until
from tests.tcp.pairs import CountingSocket, pair

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs sendfile")


async def test_a_file_leaves_between_what_is_written_before_and_after(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(5_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    async with pair() as (_, writer, far):
        got = bytearray()

        async def receive() -> None:
            loop = asyncio.get_running_loop()
            while chunk := await loop.sock_recv(far, 1 << 20):
                got.extend(chunk)

        receiver = asyncio.create_task(receive())
        writer.write(b"<")
        with path.open("rb") as file:
            assert await writer.send_file(file) == len(data)
            assert file.tell() == 0
            writer.write(b"|")
            assert await writer.send_file(file, 4_999_990, 100) == 10
            assert await writer.send_file(file, 6_000_000) == 0
            with pytest.raises(ValueError, match="offset"):
                await writer.send_file(file, -1)
            with pytest.raises(ValueError, match="count"):
                await writer.send_file(file, 0, -1)
        writer.write(b">")
        writer.close()
        async with asyncio.timeout(10):
            await receiver
        assert got == b"<" + data + b"|" + data[-10:] + b">"


async def test_the_kernel_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes leave by sendfile alone, and never come into this process."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    real, sent, written = os.sendfile, 0, []

    def sendfile(*arguments: Any) -> int:
        nonlocal sent
        count = real(*arguments)
        sent += count
        return count

    def send(self: CountingSocket, data: bytes) -> int:
        written.append(bytes(data))
        return socket.socket.send(self, data)

    monkeypatch.setattr("asyncnet.tcp.sendqueue.os.sendfile", sendfile)
    monkeypatch.setattr(CountingSocket, "send", send)
    async with pair() as (_, writer, far):
        with path.open("rb") as file:
            sending = asyncio.create_task(writer.send_file(file))
            writer.write(b"head")
            got, loop = 0, asyncio.get_running_loop()
            async with asyncio.timeout(10):
                while got < 3_000_004:
                    got += len(await loop.sock_recv(far, 1 << 20))
                assert await sending == 3_000_000
    assert sent == 3_000_000
    assert written == [b"head"]


async def test_a_file_over_tls_is_whole_and_refused_after_the_end(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    data = random.Random(3).randbytes(2_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    done: list[int] = []

    async def send(reader: Reader, writer: tcp.StreamWriter) -> None:
        with path.open("rb") as file:
            writer.write(b"<")
            done.append(await writer.send_file(file))
            done.append(await writer.send_file(file, 1_999_990, 100))
            writer.write(b">")
            writer.close()
            for _ in range(2):
                with pytest.raises(ConnectionResetError, match="closed"):
                    await writer.send_file(file)
            done.append(0)

    async with tcp.serve(send, "127.0.0.1", 0, ssl=certificate.server_context()) as server:
        async with client(server, ssl=certificate.client_context()) as (reader, _):
            async with asyncio.timeout(10):
                assert await reader.read() == b"<" + data + data[-10:] + b">"
        await until(lambda: server.stats.active == 0)
        assert server.stats.completed == 1
    assert done == [2_000_000, 10, 0]


async def test_a_cancelled_file_leaves_no_gap(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    async with pair() as (_, writer, far):
        with path.open("rb") as file:
            sending = asyncio.create_task(writer.send_file(file))
            await asyncio.sleep(0)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        writer.write(b"end")
        writer.close()
        got, loop = bytearray(), asyncio.get_running_loop()
        while chunk := await loop.sock_recv(far, 1 << 20):
            got += chunk
        assert got == data + b"end"


async def test_a_file_for_a_peer_that_leaves_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20_000_000))
    async with pair() as (_, writer, far):
        with path.open("rb") as file:
            sending = asyncio.create_task(writer.send_file(file))
            await asyncio.sleep(0.01)
            far.close()
            with pytest.raises(OSError, match=r"reset|pipe"):
                await sending


@pytest.mark.parametrize("end", ["abort", "close", "write_eof"])
async def test_a_file_is_refused_when_nothing_can_be_written_any_more(end: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    async with pair() as (_, writer, _):
        getattr(writer.transport, end)()
        descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        with path.open("rb") as file:
            async with asyncio.timeout(5):
                with pytest.raises(RuntimeError if end == "write_eof" else OSError, match=r"write_eof|closed"):
                    await writer.send_file(file)
        if sys.platform == "linux":
            assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_a_file_without_a_descriptor_left_is_an_error_and_the_connection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    async with pair() as (_, writer, far):
        with path.open("rb") as file, monkeypatch.context() as patch:
            patch.setattr(os, "dup", dup)
            writer.write(b"before")
            with pytest.raises(OSError, match="Too many open files"):
                await writer.send_file(file)
        writer.write(b" and after")
        writer.close()
        await writer.wait_closed()
        assert far.recv(100) == b"before and after"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("offset", {"offset": -1}),
        ("offset", {"offset": "0"}),
        ("count", {"count": -1}),
        ("count", {"count": 1.5}),
        ("file", {"file": None}),
        ("file", {"file": io.BytesIO(b"data")}),
    ],
)
async def test_a_wrong_argument_is_named_and_the_connection_goes_on(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    async with pair() as (_, writer, far):
        with path.open("rb") as file:
            with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
                await writer.send_file(**{"file": file, **arguments})
            assert await writer.send_file(file) == 4
        assert far.recv(100) == b"data"


async def test_what_is_no_regular_file_is_refused() -> None:
    receiving, sending = os.pipe()
    async with pair() as (_, writer, _):
        with os.fdopen(receiving, "rb") as file, os.fdopen(sending, "wb"):
            with pytest.raises(ValueError, match="file must be a regular file"):
                await writer.send_file(file)
