"""What a caller can pass wrong: a ValueError or TypeError that names the parameter, before anything is opened."""

from __future__ import annotations

import asyncio
import atexit
import math
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asyncnet import tcp
from tests.tcp.clients import client, echo, exchange
from tests.tcp.pairs import pair

TIMEOUTS = ("first_byte_timeout", "message_timeout", "idle_timeout", "write_timeout", "lifetime_timeout")
SECONDS = (*TIMEOUTS, "keepalive", "user_timeout", "handshake_timeout")
NUMBERS = ("max_connections", "max_per_client", "backlog", "limit", "hard_limit")
BAD_SECONDS = (0, -1.0, math.nan, math.inf, "5", True, b"5")
BAD_NUMBERS = (0, -1, 1.5, "5", True)

CLOSED = socket.socket()
CLOSED.close()
BOUND = socket.socket()  # and does not listen
BOUND.bind(("127.0.0.1", 0))
atexit.register(BOUND.close)

SERVE: list[tuple[str, Any]] = [
    *((name, value) for name in SECONDS for value in BAD_SECONDS),
    *((name, value) for name in NUMBERS for value in BAD_NUMBERS),
    ("backlog", 1 << 31),
    ("keepalive", 40_000),
    ("user_timeout", 3_000_000),
    *(("grace", value) for value in (-1, math.nan, math.inf, "5", None)),
    *(("port", value) for value in (-1, 65536, "80", 1.0, True)),
    *(("host", value) for value in (5, [5], b"127.0.0.1", ["127.0.0.1", None], [])),
    *(("when_full", value) for value in ("refuse", None, 1)),
    *(("ssl", value) for value in (True, "certificate.pem", ssl.SSLContext)),
    *(("proxy_from", value) for value in (["10.0.0"], ["nowhere"], [5], "10.0.0.0/8", 5)),
    *(("path", value) for value in ("", 5, b"socket", "a\0b")),
    *(("fd", value) for value in (-1, "inetd", 1.5, True, 1 << 31)),
    *(("sockets", value) for value in ([5], 5, ["127.0.0.1"], [BOUND], [CLOSED])),
    *(("addresses", value) for value in ([5], 5, ["127.0.0.1"], [("127.0.0.1",)], [("127.0.0.1", "80")], [(5, 80)])),
    *(("nodelay", value) for value in ("yes", None)),
    *(("reuse_port", value) for value in ("yes", None)),
    *(("handler", value) for value in (None, 5, "echo")),
]


@pytest.mark.parametrize(("name", "value"), SERVE, ids=lambda value: str(value)[:24])
async def test_a_wrong_argument_of_serve_is_named(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"handler": echo, "host": "127.0.0.1", "port": 0, name: value}
    with pytest.raises((ValueError, TypeError), match=name):
        tcp.serve(**arguments)


async def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="nothing to listen on"):
        tcp.serve(echo)
    with pytest.raises(ValueError, match="port is missing"):
        tcp.serve(echo, "127.0.0.1", path="socket")


CONNECT: list[tuple[str, Any]] = [
    *((name, value) for name in ("timeout", "read_timeout") for value in BAD_SECONDS),
    *((name, value) for name in ("limit", "attempts") for value in BAD_NUMBERS),
    *(("port", value) for value in (0, -1, 65536, "80", None, 80.0, True)),
    *(("host", value) for value in ("", None, 5, b"127.0.0.1")),
    *(("local_addr", value) for value in (5, "127.0.0.1", ("127.0.0.1",), ("127.0.0.1", "80"), ("127.0.0.1", 65536))),
    *(("ssl", value) for value in (5, "certificate.pem", ssl.SSLContext)),
    *(("server_hostname", value) for value in ("name.test", 5)),
    *(("options", value) for value in (None, {"nodelay": True}, tcp.SocketOptions(reuse_port=True))),
    *(("path", value) for value in ("", 5, "socket")),
]


@pytest.mark.parametrize(("name", "value"), CONNECT, ids=lambda value: str(value)[:24])
async def test_a_wrong_argument_of_connect_is_named(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"host": "127.0.0.1", "port": 80, name: value}
    with pytest.raises((ValueError, TypeError), match=name):
        await tcp.connect(**arguments)


@pytest.mark.parametrize("value", ["a\0b", "a..b", "x" * 64 + ".test", ".test"])
async def test_a_name_that_no_certificate_has_is_named(value: str) -> None:
    with pytest.raises(ValueError, match="server_hostname is malformed"):
        await tcp.connect("127.0.0.1", 80, ssl=True, server_hostname=value)


@pytest.mark.parametrize("value", [5, "SIGTERM", ["SIGTERM"], [True], [0], [999], [signal.SIGKILL]])
async def test_a_wrong_signal_is_named(value: Any) -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        with pytest.raises((ValueError, TypeError), match="signals"):
            await server.serve_forever(value)
        assert not server.closing.is_set()


async def test_a_wrong_argument_of_start_tls_is_named_and_the_connection_goes_on() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server, client(server) as stream:
        writer: Any = stream[1]
        context = ssl.create_default_context()
        with pytest.raises(TypeError, match="sslcontext"):
            await writer.start_tls(True)
        with pytest.raises(ValueError, match="server_hostname"):
            await writer.start_tls(context, server_hostname="a..b")
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            with pytest.raises(ValueError, match=name):
                await writer.start_tls(context, server_hostname="localhost", **{name: 0})
        assert await exchange(stream, b"in the clear") == b"in the clear"


READS: list[tuple[str, Callable[[Any], Coroutine[Any, Any, object]]]] = [
    ("n", lambda reader: reader.read("5")),
    ("n", lambda reader: reader.read(5.5)),
    ("n", lambda reader: reader.read(None)),
    ("n", lambda reader: reader.readexactly("5")),
    ("n", lambda reader: reader.readexactly(1.5)),
    ("separator", lambda reader: reader.readuntil(5)),
    ("separator", lambda reader: reader.readuntil("\n")),
    ("separator", lambda reader: reader.readuntil((b"\n", "\n"))),
    ("separator", lambda reader: reader.readuntil(None)),
]


@pytest.mark.parametrize("arrived", [b"", b"line\n"])
@pytest.mark.parametrize(("name", "read"), READS)
async def test_a_wrong_argument_of_a_read_is_named_and_nothing_is_lost(
    name: str, read: Callable[[Any], Coroutine[Any, Any, object]], arrived: bytes
) -> None:
    reader = tcp.StreamReader()
    reader.feed_data(arrived)
    async with asyncio.timeout(5):  # it does not wait for data before it looks
        with pytest.raises(TypeError, match=f"^{name} must be"):
            await read(reader)
    if not arrived:
        reader.feed_data(b"line\n")
    assert await reader.readline() == b"line\n"


@pytest.mark.parametrize("value", ["5", 1.5, None])
async def test_a_wrong_limit_of_a_reader_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^limit must be"):
        tcp.StreamReader(limit=value)


@pytest.mark.parametrize("value", [5, None, [1], "text", ["text"]])
async def test_a_wrong_argument_of_writelines_is_named_and_nothing_is_sent(value: Any) -> None:
    async with pair() as (_, writer, far):
        with pytest.raises(TypeError, match=r"^data must be"):
            writer.writelines(value)
        with pytest.raises(TypeError, match=r"^data: "):
            writer.write(5)  # type: ignore[arg-type]
        writer.writelines([b"o", bytearray(b"k")])
        await asyncio.sleep(0)
        assert far.recv(100) == b"ok"


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "5", True])
@pytest.mark.parametrize("name", ["keepalive", "user_timeout"])
def test_a_wrong_option_is_named(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        tcp.SocketOptions(**{name: value})


async def test_a_server_takes_a_context_alone_for_a_new_certificate() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        with pytest.raises(TypeError, match="ssl must be"):
            server.ssl = "certificate.pem"  # type: ignore[assignment]
        with pytest.raises(ValueError, match="ssl was not given"):
            server.ssl = ssl.create_default_context()
        with pytest.raises(ValueError, match="grace"):
            await server.aclose(grace=-1)
