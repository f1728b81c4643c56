"""What the tests of the server share: handlers and clients."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from asyncnet import tcp

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Stream: TypeAlias = tuple[Reader, Writer]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that is about to happen."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def echo_lines(reader: Reader, writer: Writer) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


@asynccontextmanager
async def client(server: tcp.Server, **options: Any) -> AsyncIterator[Stream]:
    reader, writer = await tcp.connect(*server.address[:2], timeout=10, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass


async def exchange(stream: Stream, data: bytes) -> bytes:
    reader, writer = stream
    writer.write(data)
    async with asyncio.timeout(10):
        return await reader.readexactly(len(data))


async def ends(reader: Reader) -> bool:
    """Tell whether the peer ends the connection, by FIN or RST, without another byte."""
    async with asyncio.timeout(10):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


def raw_client(server: tcp.Server) -> socket.socket:
    """Return a blocking socket, for what no transport would do."""
    return socket.create_connection(server.address[:2], 10)


def assert_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
