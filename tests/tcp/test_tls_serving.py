"""What a TLS server is asked for: new certificates, clients that prove who they are, ALPN, and STARTTLS done right."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import threading

import pytest

from asyncnet import tcp
from tests.tcp.certificates import Certificate, make_certificate
from tests.tcp.clients import Reader, Writer, assert_silent, client, echo, ends, exchange, until


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "first.test")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "second.test")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def test_a_new_certificate_is_for_new_connections_and_no_old_one_is_dropped(
    first: Certificate, second: Certificate
) -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=first.server_context()) as server:
        async with client(server, ssl=first.client_context()) as old:
            assert await exchange(old, b"before") == b"before"
            server.ssl = second.server_context()
            async with client(server, ssl=second.client_context()) as new:
                assert await exchange(new, b"new") == b"new"
            assert await exchange(old, b"after") == b"after"
            with pytest.raises(ssl.SSLCertVerificationError):
                await tcp.connect(*server.address, ssl=first.client_context(), timeout=10)


async def test_a_client_without_a_certificate_is_turned_away_where_one_is_required(
    first: Certificate, second: Certificate, log: pytest.LogCaptureFixture
) -> None:
    context = first.server_context()
    context.load_verify_locations(second.certificate)
    context.verify_mode = ssl.CERT_REQUIRED

    async def tell(reader: Reader, writer: Writer) -> None:
        certificate = writer.get_extra_info("peercert")
        writer.write(dict(pair for (pair,) in certificate["subject"])["commonName"].encode())

    async with tcp.serve(tell, "127.0.0.1", 0, ssl=context) as server:
        known = first.client_context()
        known.load_cert_chain(second.certificate, second.key)
        async with client(server, ssl=known) as (reader, _):
            assert await reader.read() == b"second.test"
        # At the handshake, or with TLS 1.3 at the first read.
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            async with client(server, ssl=first.client_context()) as (reader, _):
                await reader.readexactly(1)
        await until(lambda: server.stats.handshakes_failed == 1)
        assert server.stats.completed == 1
    assert_silent(log)


async def test_the_application_protocol_is_agreed_on(first: Certificate) -> None:
    async def tell(reader: Reader, writer: Writer) -> None:
        writer.write(str(writer.get_extra_info("ssl_object").selected_alpn_protocol()).encode())

    context = first.server_context()
    context.set_alpn_protocols(["new/2", "old/1"])
    async with tcp.serve(tell, "127.0.0.1", 0, ssl=context) as server:
        for offered, agreed in ((["old/1", "new/2"], b"new/2"), (["old/1"], b"old/1"), (["other"], b"None")):
            asking = first.client_context()
            asking.set_alpn_protocols(offered)
            async with client(server, ssl=asking) as (reader, _):
                assert await reader.read() == agreed


async def test_bytes_in_the_clear_after_starttls_end_the_connection(
    first: Certificate, log: pytest.LogCaptureFixture
) -> None:
    """Whoever sits between could have put them there, and they would count as said under TLS."""

    async def handle(reader: tcp.StreamReader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        while not reader.has_data():
            await asyncio.sleep(0)
        await writer.start_tls(first.server_context())
        raise AssertionError("TLS began")

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as (reader, writer):
        writer.write(b"STARTTLS\nMAIL FROM:<mallory>\n")
        assert await reader.readline() == b"go\n"
        assert await ends(reader)
        await until(lambda: server.stats.disconnected == 1)
    assert_silent(log)


@pytest.mark.parametrize("seed", range(8))
async def test_garbage_in_place_of_a_handshake_is_counted_and_not_logged(
    first: Certificate, seed: int, log: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(seed)
    hello = bytes.fromhex("160301020001") if seed % 2 else b""
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=first.server_context()) as server:
        async with client(server) as (reader, writer):
            writer.write(hello + dice.randbytes(2000))
            try:
                writer.write_eof()
                async with asyncio.timeout(10):
                    await reader.read()
            except OSError:
                pass
        await until(lambda: server.stats.handshakes_failed == 1)
        async with client(server, ssl=first.client_context()) as stream:
            assert await exchange(stream, b"fine") == b"fine"
    assert_silent(log)


async def test_large_data_passes_tls_both_ways(first: Certificate) -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=first.server_context()) as server:
        async with client(server, ssl=first.client_context()) as (reader, writer):

            async def send() -> None:
                for begin in range(0, len(data), 50_000):
                    writer.write(data[begin : begin + 50_000])
                    await writer.drain()

            sending = asyncio.create_task(send())
            async with asyncio.timeout(20):
                assert await reader.readexactly(len(data)) == data
            await sending


async def test_a_client_that_never_reads_is_cut_off_at_the_hard_limit_of_tls(
    first: Certificate, log: pytest.LogCaptureFixture
) -> None:
    most = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal most
        assert await reader.read(1) == b"x"
        for _ in range(1 << 12):  # 256 MiB, and nobody waits for anything
            writer.write(bytes(65536))
            if not writer.is_closing():
                most = max(most, writer.transport.get_write_buffer_size())
        await writer.drain()

    def ask(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            with first.client_context().wrap_socket(sock, server_hostname="localhost") as tls:
                tls.sendall(b"x")
                over.wait(20)

    over = threading.Event()
    async with tcp.serve(flood, "127.0.0.1", 0, ssl=first.server_context(), hard_limit=4 << 20) as server:
        asking = asyncio.create_task(asyncio.to_thread(ask, server.address[1]))
        await until(lambda: server.stats.accepted and not server.stats.active)
        over.set()
        await asking
        assert (server.stats.overflows, server.stats.aborted, server.stats.disconnected) == (1, 1, 1)
    assert 0 < most < 5 << 20
    assert_silent(log)
