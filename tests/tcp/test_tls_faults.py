"""What goes wrong on a TLS connection after its handshake ends that connection, and is not in the log."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import struct

import pytest

from asyncnet import tcp
from tests.tcp.certificates import Certificate, make_certificate
from tests.tcp.clients import Reader, Writer, assert_silent, client, echo, exchange, until

RESET = struct.pack("ii", 1, 0)
FORGED = b"\x17\x03\x03\x00\x40" + bytes(64)
"""A record of application data that no key has made."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def _misbehave(port: int, context: ssl.SSLContext, last: bytes) -> None:
    """Exchange some bytes by TLS; then send others beneath it and wait, or send none and reset the connection."""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="localhost") as tls:
        tls.sendall(b"fine")
        assert tls.recv(4) == b"fine"
        with socket.socket(fileno=tls.detach()) as beneath:
            beneath.settimeout(10)
            if last:
                beneath.sendall(last)
                try:
                    while beneath.recv(1000):
                        pass
                except ConnectionError:
                    pass
            else:
                beneath.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@pytest.mark.parametrize("last", [FORGED, b"GET / HTTP/1.0\r\n\r\n", b""], ids=["forged", "in the clear", "reset"])
async def test_a_tls_connection_that_breaks_ends_alone(
    certificate: Certificate, last: bytes, log: pytest.LogCaptureFixture
) -> None:
    seen: list[BaseException] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        try:
            await echo(reader, writer)
        except OSError as exc:
            seen.append(exc)
            raise

    async with tcp.serve(handle, "127.0.0.1", 0, ssl=certificate.server_context()) as server:
        async with client(server, ssl=certificate.client_context()) as other:
            await asyncio.to_thread(_misbehave, server.address[1], certificate.client_context(), last)
            await until(lambda: server.stats.active == 1)
            assert server.stats.disconnected == 1
            assert isinstance(seen[0], ssl.SSLError if last else ConnectionResetError)
            assert await exchange(other, b"served on") == b"served on"
        await until(lambda: server.stats.completed == 1)
    assert_silent(log)


async def test_cancelled_reads_of_tls_lose_no_byte(certificate: Certificate) -> None:
    got = bytearray()
    cancelled = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal cancelled
        dice = random.Random(1)
        while not reader.at_eof():
            count = dice.randrange(1, 5000)
            reading = asyncio.ensure_future(reader.readexactly(count) if count % 2 else reader.read(count))
            for _ in range(dice.randrange(1, 5)):  # it begins to wait in the first turn
                await asyncio.sleep(0)
            reading.cancel()
            try:
                got.extend(await reading)
            except asyncio.CancelledError:
                cancelled += 1
            except asyncio.IncompleteReadError as exc:
                got.extend(exc.partial)

    dice = random.Random(2)
    data = dice.randbytes(200_000)
    async with tcp.serve(handle, "127.0.0.1", 0, ssl=certificate.server_context()) as server:
        async with client(server, ssl=certificate.client_context()) as (_, writer):
            begin = 0
            while begin < len(data):
                end = begin + dice.randrange(1, 2000)  # less than many a read asks for
                writer.write(data[begin:end])
                begin = end
                async with asyncio.timeout(10):
                    while len(got) < begin - 4999:
                        await asyncio.sleep(0)
                for _ in range(dice.randrange(5)):
                    await asyncio.sleep(0)
        await until(lambda: server.stats.active == 0)
        assert server.stats.completed == 1
    assert got == data
    assert cancelled > 20
