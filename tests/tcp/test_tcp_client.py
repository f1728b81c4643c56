"""Connecting on loopback: the race of addresses, its errors, and their messages."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from asyncnet import tcp
from asyncnet.addresses import interfaces
from asyncnet.tcp import client as client_module

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def greet(reader: Reader, writer: Writer) -> None:
    writer.write(repr(writer.get_extra_info("peername")[:2]).encode())


async def closed(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


@contextmanager
def silent_listener() -> Iterator[tuple[str, int]]:
    """A listener whose backlog is full: a connection to it is neither made nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            yield address
        finally:
            for filler in fillers:
                filler.close()


@pytest.fixture
def refused() -> tuple[str, int]:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: tuple[str, int] = listener.getsockname()
        return address


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make name.test resolve to the given addresses."""

    def resolve_to(*addresses: tuple[str, int]) -> None:
        real = asyncio.get_running_loop().getaddrinfo

        async def getaddrinfo(host: str, port: int, **hints: Any) -> list[Any]:
            if host != "name.test":
                return await real(host, port, **hints)
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (*address[:2], 0, 0))
                if ":" in address[0]
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", address[:2])
                for address in addresses
            ]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    return resolve_to


async def test_a_connection_to_a_name() -> None:
    async with tcp.serve(greet, "localhost", 0) as server:
        reader, writer = await tcp.connect("localhost", server.address[1], timeout=10)
        assert await reader.read() == repr(writer.get_extra_info("sockname")[:2]).encode()
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await closed(writer)


async def test_the_local_address_is_the_one_that_was_asked_for() -> None:
    async with tcp.serve(greet, "127.0.0.1", 0) as server:
        with socket.create_server(("127.0.0.2", 0)) as free:
            port = free.getsockname()[1]
        reader, writer = await tcp.connect(*server.address[:2], local_addr=("127.0.0.2", port))
        assert await reader.read() == repr(("127.0.0.2", port)).encode()
        await closed(writer)


async def test_a_refused_connection_names_the_address_and_a_way_out(refused: tuple[str, int]) -> None:
    place = f"{refused[0]}:{refused[1]}"
    with pytest.raises(
        ConnectionRefusedError, match=f"cannot connect TCP to {place}: .*is the server running"
    ) as caught:
        await tcp.connect(*refused)
    assert caught.value.errno == errno.ECONNREFUSED
    assert "\n" not in str(caught.value)


async def test_a_connection_without_an_answer_ends_with_the_timeout() -> None:
    with silent_listener() as (host, port):
        with pytest.raises(TimeoutError, match=rf"cannot connect TCP to {host}:{port}: .* 0\.05 seconds$") as caught:
            await tcp.connect(host, port, timeout=0.05)
        assert caught.value.errno == errno.ETIMEDOUT


async def test_a_timeout_names_the_addresses_that_were_tried(
    refused: tuple[str, int], resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tcp.client.ATTEMPT_DELAY", 0.001)
    with silent_listener() as first, silent_listener() as second:
        resolve_to(first, refused, second)
        with pytest.raises(TimeoutError, match=r"cannot connect TCP to name\.test:80: ") as caught:
            await tcp.connect("name.test", 80, timeout=1.0)
        tried = ", ".join(f"{host}:{port}" for host, port in (first, refused, second))
        assert str(caught.value).endswith(f"no answer within 1 seconds (tried {tried})")
        monkeypatch.setattr("asyncnet.tcp.client.ATTEMPT_DELAY", 60.0)
        with pytest.raises(TimeoutError) as caught:
            await tcp.connect("name.test", 80, timeout=0.05)
        assert str(caught.value).endswith(f" seconds (tried {first[0]}:{first[1]})")


async def test_a_cancelled_connection_leaves_nothing() -> None:
    with silent_listener() as address:
        connecting = asyncio.create_task(tcp.connect(*address))
        for _ in range(5):
            await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    gc.collect()  # a socket that was left open warns now


@pytest.mark.parametrize("turns", range(12))
async def test_a_connection_may_be_cancelled_at_any_point(turns: int) -> None:
    async with tcp.serve(greet, "127.0.0.1", 0) as server:
        connecting = asyncio.create_task(tcp.connect(*server.address[:2]))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        try:
            _, writer = await connecting
        except asyncio.CancelledError:
            pass
        else:
            await closed(writer)
    gc.collect()


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 70 + ".example"])
async def test_a_name_that_does_not_resolve_is_named(name: str) -> None:
    with pytest.raises(socket.gaierror, match=f"cannot connect TCP to {name}:80: .*does not resolve"):
        await tcp.connect(name, 80)


async def test_the_next_address_is_tried_when_one_refuses(
    refused: tuple[str, int], resolve_to: Callable[..., None]
) -> None:
    async with tcp.serve(greet, "127.0.0.1", 0) as server:
        resolve_to(("::1", refused[1]), refused, server.address)
        reader, writer = await tcp.connect("name.test", 80)
        assert await reader.read()
        assert writer.get_extra_info("peername") == server.address
        await closed(writer)


async def test_the_next_address_is_tried_when_one_does_not_answer(resolve_to: Callable[..., None]) -> None:
    async with tcp.serve(greet, "127.0.0.1", 0) as server:
        with silent_listener() as silent:
            resolve_to(silent, server.address)
            reader, writer = await tcp.connect("name.test", 80, timeout=10)
            assert await reader.read()
            await closed(writer)
        await asyncio.sleep(0)
        gc.collect()


async def test_the_families_take_turns(
    refused: tuple[str, int], resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = refused[1]
    resolve_to(("::1", port), ("::1", port + 1), ("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError) as caught:
        await tcp.connect("name.test", 80)
    tried = [("[::1]", port), ("127.0.0.1", port), ("[::1]", port + 1), ("127.0.0.2", port)]
    listed = ", ".join(f"{host}:{port}: Connection refused" for host, port in tried)
    assert f"(tried {listed})" in str(caught.value)
    assert "cannot connect TCP to name.test:80: connection refused" in str(caught.value)
    assert caught.value.errno == errno.ECONNREFUSED


async def test_a_connection_that_wins_in_the_same_turn_as_another_one_is_kept_alone(
    resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tcp.client.ATTEMPT_DELAY", 0.0)
    async with tcp.serve(greet, "", 0) as server:
        port = server.address[1]
        resolve_to(*((host, port) for host in ("::1", "127.0.0.1", "127.0.0.2", "127.0.0.3")))
        for _ in range(20):
            reader, writer = await tcp.connect("name.test", 80)
            assert await reader.read()
            await closed(writer)
        gc.collect()


async def test_a_local_address_of_another_host_or_family_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot bind TCP 192\.0\.2\.1:0: .*no address of this host"):
        await tcp.connect("127.0.0.1", 80, local_addr=("192.0.2.1", 0))
    with pytest.raises(OSError, match=r"cannot connect TCP to \[::1\]:80 from 127\.0\.0\.1:0: one is IPv4"):
        await tcp.connect("::1", 80, local_addr=("127.0.0.1", 0))


async def test_a_link_local_address_with_its_scope() -> None:
    scoped = [
        f"{address.address}%{interface.name}"
        for interface in interfaces()
        for address in interface.addresses
        if interface.up and address.address.startswith("fe80:")
    ]
    if not scoped:
        pytest.skip("this host has no link-local IPv6 address")
    async with tcp.serve(greet, scoped[0], 0) as server:
        reader, writer = await tcp.connect(scoped[0], server.address[1], timeout=10)
        assert await reader.read()
        await closed(writer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", math.nan),
        ("timeout", math.inf),
        ("limit", 0),
        ("host", ""),
        ("server_hostname", "name.test"),
    ],
)
async def test_a_value_out_of_range_is_an_error_that_names_the_parameter(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"host": "127.0.0.1", "port": 80, name: value}
    with pytest.raises(ValueError, match=name):
        await tcp.connect(**arguments)


async def test_a_server_that_starts_late_is_tried_again(
    refused: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        waits.append((low, high))
        if len(waits) == 3:
            servers.append(asyncio.ensure_future(tcp.serve(greet, *refused)))
        return 0

    servers: list[asyncio.Future[tcp.Server]] = []
    monkeypatch.setattr("asyncnet.tcp.client.random.uniform", uniform)
    reader, writer = await tcp.connect(*refused, attempts=10, timeout=10)
    assert await reader.read()
    await closed(writer)
    assert waits[:3] == [(0, 0.2), (0, 0.4), (0, 0.8)]
    assert len(waits) <= 5
    await (await servers[0]).aclose()


async def test_the_last_attempt_tells_what_it_met(refused: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncnet.tcp.client.RETRY_DELAY", 0.001)
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect TCP to 127.0.0.1:{refused[1]}: "):
        await tcp.connect(*refused, attempts=3)


async def test_a_unix_socket_that_is_not_there_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "none")
    with pytest.raises(FileNotFoundError, match=f"cannot connect to unix socket {path}: "):
        await tcp.connect(path=path)


async def test_a_connection_that_is_reset_at_once_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = struct.pack("ii", 1, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

        def set_options(sock: socket.socket, options: tcp.SocketOptions) -> None:
            other, _ = listener.accept()
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            other.close()

        monkeypatch.setattr(client_module, "set_options", set_options)
        with pytest.raises(ConnectionResetError, match=f"127.0.0.1:{address[1]}"):
            await tcp.connect(*address)
