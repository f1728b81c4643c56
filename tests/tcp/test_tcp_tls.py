"""TLS on loopback, with a certificate made for the test."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from collections.abc import Callable

import attrs
import pytest

from asyncnet import tcp
from tests.tcp.certificates import make_certificate

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@attrs.frozen
class Contexts:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    return Contexts(certificate.server_context(), certificate.client_context())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def closed(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


async def check_echo(server: tcp.Server, contexts: Contexts, data: bytes = b"x") -> None:
    reader, writer = await tcp.connect(*server.address[:2], ssl=contexts.client, timeout=10)
    writer.write(data)
    async with asyncio.timeout(10):
        assert await reader.readexactly(len(data)) == data
    await closed(writer)


@pytest.mark.parametrize("server_hostname", [None, "localhost"])
async def test_a_round_trip(contexts: Contexts, server_hostname: str | None) -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server) as server:
        await check_echo(server, contexts, bytes(range(256)) * 2000)
        _, writer = await tcp.connect(
            *server.address[:2], ssl=contexts.client, server_hostname=server_hostname, timeout=10
        )
        assert writer.get_extra_info("ssl_object") is not None
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await closed(writer)
        await until(lambda: server.stats.completed == 2)


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_certificate_that_does_not_fit_is_an_error_that_names_the_address(
    contexts: Contexts, trusted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncnet.tcp")
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server) as server:
        host, port = server.address[:2]
        with pytest.raises(ssl.SSLCertVerificationError, match=f"cannot connect TLS to {host}:{port}: ") as caught:
            await tcp.connect(
                host, port, ssl=contexts.client if trusted else True, server_hostname="other.test", timeout=10
            )
        assert caught.value.verify_code
        assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"
        assert "\n" not in str(caught.value)
        await until(lambda: server.stats.accepted == 1 and server.stats.active == 0)
        await check_echo(server, contexts)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.parametrize("first", [b"GET / HTTP/1.0\r\n\r\n", b""])
async def test_a_failed_handshake_ends_just_its_connection(
    contexts: Contexts, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncnet.tcp")
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server, max_connections=1) as server:
        reader, writer = await tcp.connect(*server.address[:2])
        writer.write(first)
        if not first:
            writer.close()
        try:
            await reader.read()
        except ConnectionError:
            pass
        await until(lambda: server.stats.handshakes_failed == 1)
        writer.close()
        await check_echo(server, contexts)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert "no connection" in caplog.text


async def test_stopping_ends_a_handshake_that_hangs(contexts: Contexts) -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server)
    with socket.create_connection(server.address[:2]) as sock:
        await until(lambda: server.stats.accepted == 1)
        assert await server.aclose(grace=0.01) == tcp.StopReport(finished=0, cancelled=1, aborted=0)
        await asyncio.sleep(0)
        sock.settimeout(5)
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
    gc.collect()


@pytest.mark.parametrize("turns", range(16))
async def test_stopping_while_a_client_connects_leaves_nothing_open(contexts: Contexts, turns: int) -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server)
    connecting = asyncio.create_task(tcp.connect(*server.address[:2], ssl=contexts.client))
    for _ in range(turns):
        await asyncio.sleep(0)
    await server.aclose(grace=0)
    try:
        _, writer = await connecting
    except OSError:
        pass
    else:
        try:
            await closed(writer)
        except OSError:
            pass
    assert server.stats.active == 0
    gc.collect()


async def test_an_empty_name_goes_with_a_context_that_checks_none(contexts: Contexts) -> None:
    with pytest.raises(ValueError, match="server_hostname is empty"):
        await tcp.connect("127.0.0.1", 80, ssl=contexts.client, server_hostname="")
    careless = ssl.create_default_context()
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=contexts.server) as server:
        _, writer = await tcp.connect(*server.address[:2], ssl=careless, server_hostname="", timeout=10)
        await closed(writer)


async def test_a_peer_that_speaks_no_tls_is_named(contexts: Contexts) -> None:
    async def hang_up(reader: Reader, writer: Writer) -> None:
        await reader.read(1)

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 mail.test\r\n")
        await reader.read()

    for handler in (hang_up, talk):
        async with tcp.serve(handler, "127.0.0.1", 0, grace=0) as server:
            host, port = server.address[:2]
            with pytest.raises(OSError, match=f"cannot connect TLS to {host}:{port}: ") as caught:
                await tcp.connect(host, port, ssl=contexts.client, timeout=10)
            assert isinstance(caught.value, ssl.SSLError if handler is talk else ConnectionResetError)


async def test_a_handshake_without_an_answer_ends_with_the_timeout(contexts: Contexts) -> None:
    async def be_silent(reader: Reader, writer: Writer) -> None:
        await server.closing.wait()

    async with tcp.serve(be_silent, "127.0.0.1", 0, grace=0) as server:
        with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
            await tcp.connect(*server.address[:2], ssl=contexts.client, timeout=0.05)


async def test_a_handler_may_close_more_than_once(contexts: Contexts, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"bye")
        for _ in range(3):
            writer.close()

    async with tcp.serve(handle, "127.0.0.1", 0, ssl=contexts.server) as server:
        reader, writer = await tcp.connect(*server.address[:2], ssl=contexts.client, timeout=10)
        assert await reader.read() == b"bye"
        await closed(writer)
        await until(lambda: server.stats.completed == 1)
    assert caplog.records == []


async def test_a_peer_that_does_not_end_the_tls_session_is_cut_off(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tcp.server.FLUSH_STALL", 0.05)

    async def handle(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(1)
        writer.close()
        kept.append(writer)

    kept: list[Writer] = []

    async with tcp.serve(handle, "127.0.0.1", 0, ssl=contexts.server) as server:
        _, writer = await tcp.connect(*server.address[:2], ssl=contexts.client, timeout=10)
        writer.transport.pause_reading()
        writer.write(b"x")
        await until(lambda: server.stats.aborted == 1 and server.stats.active == 0)
        async with asyncio.timeout(5):  # the event loop alone would wait longer for the peer
            try:
                await kept[0].wait_closed()
            except OSError:
                pass
        writer.transport.abort()


async def test_a_handler_may_start_tls_itself(contexts: Contexts) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(contexts.server)
        await echo(reader, writer)

    async with tcp.serve(handle, "127.0.0.1", 0) as server:
        reader, writer = await tcp.connect(*server.address[:2], timeout=10)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(contexts.client, server_hostname="localhost")
        writer.write(b"secret")
        assert await reader.readexactly(6) == b"secret"
        await closed(writer)
        await until(lambda: server.stats.completed == 1)
        assert server.stats.aborted == 0
