"""The transport against asyncio's own: the same tests for both, which is the specification."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import sys
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.udp.capabilities import DISABLE_VARIABLE
from tests.udp.recorders import (
    Create,
    Echo,
    Recorder,
    closed,
    full_transport,
    plain_socket,
    receive_all,
    until,
)


async def test_an_echo(create: Create) -> None:
    transport, protocol = await create(Echo, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        peer.sendto(b"hello", transport.get_extra_info("sockname"))
        assert await receive_all(peer, 1) == [b"hello"]
        assert protocol.received == [(b"hello", peer.getsockname())]
    await closed(transport, protocol)
    assert protocol.events == ["made", "lost"]
    assert protocol.lost.result() is None


async def test_a_connected_transport_has_its_peer(create: Create) -> None:
    with plain_socket() as peer, plain_socket() as stranger:
        transport, protocol = await create(Recorder, remote_addr=peer.getsockname())
        assert transport.get_extra_info("peername") == peer.getsockname()
        transport.sendto(b"one")
        transport.sendto(b"two", peer.getsockname())
        with pytest.raises(ValueError, match="must be None or"):
            transport.sendto(b"three", stranger.getsockname())
        assert await receive_all(peer, 2) == [b"one", b"two"]
        stranger.sendto(b"forged", transport.get_extra_info("sockname"))
        peer.sendto(b"answer", transport.get_extra_info("sockname"))
        await until(lambda: protocol.received)
        assert protocol.received == [(b"answer", peer.getsockname())]
        await closed(transport, protocol)


async def test_extra_info(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    sock = transport.get_extra_info("socket")
    assert sock.getsockname() == transport.get_extra_info("sockname")
    assert sock.family == socket.AF_INET
    assert transport.get_extra_info("peername") is None
    assert transport.get_extra_info("nothing", 7) == 7
    assert transport.get_protocol() is protocol
    await closed(transport, protocol)


async def test_an_icmp_error_reaches_the_protocol(create: Create) -> None:
    with plain_socket() as unused:
        address = unused.getsockname()
    transport, protocol = await create(Recorder, remote_addr=address)
    transport.sendto(b"anyone?")
    await until(lambda: protocol.errors)
    assert isinstance(protocol.errors[0], ConnectionRefusedError)
    assert not transport.is_closing()
    await closed(transport, protocol)


@pytest.mark.parametrize("data", [bytes(65507), bytearray(b"abc"), memoryview(b"abc")])
async def test_anything_bytes_like_can_be_sent(create: Create, data: Any) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        transport.sendto(data, peer.getsockname())
        assert await receive_all(peer, 1) == [bytes(data)]
    with pytest.raises(TypeError, match="bytes-like"):
        transport.sendto("text", ("127.0.0.1", 9))
    await closed(transport, protocol)


async def test_a_datagram_that_is_too_large_is_an_error_of_the_protocol(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    transport.sendto(bytes(65508), ("127.0.0.1", 9))
    await until(lambda: protocol.errors)
    assert protocol.errors[0].errno == errno.EMSGSIZE
    await closed(transport, protocol)


async def test_a_callback_that_raises_is_reported_and_the_transport_lives_on(create: Create) -> None:
    class Failing(Recorder):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            if data == b"bad":
                raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    transport, protocol = await create(Failing, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for data in (b"one", b"bad", b"two", b"bad", b"three"):
            peer.sendto(data, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 5)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError] * 2
    await closed(transport, protocol)


async def test_closing_inside_a_callback_ends_delivery(create: Create) -> None:
    class Closing(Recorder):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    transport, protocol = await create(Closing, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for _ in range(5):
            peer.sendto(b"x", transport.get_extra_info("sockname"))
        async with asyncio.timeout(5):
            await protocol.lost
    assert len(protocol.received) == 1
    transport.close()


async def test_after_close_nothing_is_sent_and_nothing_is_raised(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    await closed(transport, protocol)
    assert transport.is_closing()
    with plain_socket() as peer:
        connected, other = await create(Recorder, remote_addr=peer.getsockname())
        await closed(connected, other)
        for _ in range(7):
            connected.sendto(b"x")
        connected.abort()


async def test_abort_ends_the_connection(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    transport.abort()
    assert transport.is_closing()
    async with asyncio.timeout(5):
        assert await protocol.lost is None


async def test_what_cannot_leave_waits_and_pauses_the_protocol(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(create, partial) and sys.version_info[:3] == (3, 13, 0):
        pytest.skip("asyncio of 3.13.0 miscounts what waits, and never resumes (cpython issue 135444)")
    monkeypatch.setenv(DISABLE_VARIABLE, "sendmmsg")
    transport, protocol, sock = await full_transport(create)
    transport.set_write_buffer_limits(high=100, low=20)
    assert transport.get_write_buffer_limits() == (20, 100)
    with plain_socket() as peer:
        for number in range(5):
            transport.sendto(b"%d" % number * 30, peer.getsockname())
        assert protocol.events == ["made", "pause"]
        assert transport.get_write_buffer_size() >= 150
        sock.full = False
        assert [data[:1] for data in await receive_all(peer, 5)] == [b"0", b"1", b"2", b"3", b"4"]
        await until(lambda: protocol.events == ["made", "pause", "resume"])
        assert transport.get_write_buffer_size() == 0
    await closed(transport, protocol)


async def test_close_sends_what_waits_and_abort_does_not(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "sendmmsg")
    with plain_socket() as peer:
        transport, protocol, sock = await full_transport(create)
        transport.sendto(b"aborted", peer.getsockname())
        transport.abort()
        await protocol.lost
        transport, protocol, sock = await full_transport(create)
        transport.sendto(b"waited", peer.getsockname())
        transport.close()
        await asyncio.sleep(0)
        assert not protocol.lost.done()
        sock.full = False
        async with asyncio.timeout(5):
            await protocol.lost
        assert await receive_all(peer, 1) == [b"waited"]


async def test_the_limits_must_make_sense(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    with pytest.raises(ValueError, match="high"):
        transport.set_write_buffer_limits(high=1, low=2)
    transport.set_write_buffer_limits(low=10)
    assert transport.get_write_buffer_limits() == (10, 40)
    transport.set_write_buffer_limits()
    assert transport.get_write_buffer_limits() == (16384, 65536)
    await closed(transport, protocol)


async def test_wrong_arguments_raise(create: Create) -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({}, ValueError),
        ({"local_addr": "127.0.0.1"}, TypeError),
        ({"local_addr": ("127.0.0.1", 0, 0)}, TypeError),
        ({"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 9)}, ValueError),
        ({"local_addr": ("203.0.113.7", 0)}, OSError),
        ({"remote_addr": ("no-such-host.invalid", 9)}, socket.gaierror),
        ({"family": getattr(socket, "AF_UNIX", None), "local_addr": ("127.0.0.1", 0)}, TypeError),
    ]
    for arguments, error in cases:
        with pytest.raises(error):
            await create(Recorder, **arguments)
    with plain_socket() as sock, pytest.raises(ValueError, match="local_addr"):
        await create(Recorder, sock=sock, local_addr=("127.0.0.1", 0))
    with socket.socket() as stream, pytest.raises(ValueError, match=r"UDP Socket|datagram socket"):
        await create(Recorder, sock=stream)


async def test_a_family_alone_makes_a_socket(create: Create) -> None:
    transport, protocol = await create(Recorder, family=socket.AF_INET)
    with plain_socket() as peer:
        transport.sendto(b"x", peer.getsockname())
        assert await receive_all(peer, 1) == [b"x"]
    await closed(transport, protocol)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
async def test_unix_datagram_sockets(create: Create, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    for _ in range(2):  # the second time a stale socket is in the way
        transport, protocol = await create(Recorder, local_addr=path, family=socket.AF_UNIX)
        peer, other = await create(Recorder, remote_addr=path, family=socket.AF_UNIX)
        peer.sendto(b"hello")
        await until(lambda p=protocol: p.received)  # type: ignore[misc]
        assert protocol.received[0][0] == b"hello"
        await closed(peer, other)
        await closed(transport, protocol)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
async def test_a_port_can_be_shared(create: Create) -> None:
    first, protocol = await create(Recorder, local_addr=("127.0.0.1", 0), reuse_port=True)
    name = first.get_extra_info("sockname")
    second, other = await create(Recorder, local_addr=name, reuse_port=True)
    assert second.get_extra_info("sockname") == name
    await closed(first, protocol)
    await closed(second, other)


async def test_a_broadcast_transport_is_not_connected(create: Create) -> None:
    with plain_socket() as peer:
        transport, protocol = await create(Recorder, remote_addr=peer.getsockname(), allow_broadcast=True)
        transport.sendto(b"hello")
        data, address = await asyncio.to_thread(peer.recvfrom, 100)
        assert data == b"hello"
        assert transport.get_extra_info("peername") is None
        with plain_socket() as other:
            other.sendto(b"answer", ("127.0.0.1", address[1]))
            await until(lambda: protocol.received)
        await closed(transport, protocol)


@pytest.mark.skipif(not socket.has_ipv6, reason="this host has no IPv6")
async def test_ipv6_addresses_have_four_parts(create: Create) -> None:
    transport, protocol = await create(Echo, local_addr=("::1", 0))
    with plain_socket(family=socket.AF_INET6) as peer:
        for _ in range(3):
            peer.sendto(b"six", transport.get_extra_info("sockname"))
        assert await receive_all(peer, 3) == [b"six"] * 3
        assert protocol.received[0] == (b"six", peer.getsockname())
        assert len(protocol.received[0][1]) == 4
    await closed(transport, protocol)


async def test_lower_limits_pause_the_protocol_at_once(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "sendmmsg")
    transport, protocol, _ = await full_transport(create)
    transport.sendto(bytes(100), ("127.0.0.1", 9))
    assert protocol.events == ["made"]
    transport.set_write_buffer_limits(high=50)
    assert protocol.events == ["made", "pause"]
    transport.abort()
    await protocol.lost


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EMSGSIZE, errno.EPERM, errno.ENETUNREACH])
async def test_what_the_system_refuses_is_told_and_the_transport_lives_on(create: Create, number: int) -> None:
    transport, protocol, sock = await full_transport(create)
    sock.refusal = OSError(number, "refused")
    with plain_socket() as peer:
        transport.sendto(b"x", peer.getsockname())
        assert [exc.errno for exc in protocol.errors] == [number]
        sock.refusal, sock.full = None, False
        transport.sendto(b"y", peer.getsockname())
        assert await receive_all(peer, 1) == [b"y"]
    await closed(transport, protocol)


async def test_a_method_that_is_replaced_later_is_called(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    seen: list[bytes] = []
    protocol.datagram_received = lambda data, addr: seen.append(data)
    with plain_socket() as peer:
        for data in (b"one", b"two"):
            peer.sendto(data, transport.get_extra_info("sockname"))
            await until(lambda d=data: d in seen)  # type: ignore[misc]
    assert protocol.received == []
    await closed(transport, protocol)


async def test_a_protocol_that_only_sends_needs_no_method_to_receive(create: Create) -> None:
    class Mute(asyncio.BaseProtocol):
        pass

    with plain_socket() as peer:
        transport, _ = await create(Mute, remote_addr=peer.getsockname())
        transport.sendto(b"x")
        assert await receive_all(peer, 1) == [b"x"]
        transport.close()


async def test_empty_datagrams_arrive(create: Create) -> None:
    transport, protocol = await create(Recorder, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for data in (b"", b"", b"end"):
            peer.sendto(data, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 3)
        assert protocol.received == [(data, peer.getsockname()) for data in (b"", b"", b"end")]
    await closed(transport, protocol)


async def test_closing_when_the_connection_is_made(create: Create) -> None:
    class Leaving(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.close()

    _, protocol = await create(Leaving, local_addr=("127.0.0.1", 0))
    async with asyncio.timeout(5):
        assert await protocol.lost is None
    assert protocol.events == ["made", "lost"]


async def test_a_protocol_that_fails_when_the_connection_is_made_is_reported(create: Create) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    transport, protocol = await create(Failing, local_addr=("127.0.0.1", 0))
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]
    with plain_socket() as peer:
        peer.sendto(b"x", transport.get_extra_info("sockname"))
        await until(lambda: protocol.received)
    await closed(transport, protocol)


def test_the_arguments_are_those_of_the_loops_method() -> None:
    own = inspect.signature(udp.create_datagram_endpoint).parameters
    stock = inspect.signature(asyncio.BaseEventLoop.create_datagram_endpoint).parameters
    for name in list(stock)[1:]:  # without self
        assert own[name].replace(annotation=inspect.Parameter.empty) == stock[name]
    assert list(own)[: len(stock) - 1] == list(stock)[1:]


async def test_an_error_of_opening_names_the_address(create: Create) -> None:
    with plain_socket() as taken:
        host, port = taken.getsockname()
        with pytest.raises(OSError, match="in use" if isinstance(create, partial) else f"{host}:{port}") as caught:
            await create(Recorder, local_addr=(host, port))
    assert caught.value.errno == errno.EADDRINUSE


async def test_callbacks_run_in_the_context_of_the_one_who_opened(create: Create) -> None:
    opened_by: ContextVar[str] = ContextVar("opened_by", default="nobody")
    seen: list[str] = []

    class Looking(Recorder):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            seen.append(opened_by.get())

    opened_by.set("first")
    first, protocol = await create(Looking, local_addr=("127.0.0.1", 0))
    opened_by.set("second")
    second, other = await create(Looking, local_addr=("127.0.0.1", 0))
    opened_by.set("later")
    with plain_socket() as peer:
        for transport, told in ((first, protocol), (second, other)):
            peer.sendto(b"x", transport.get_extra_info("sockname"))
            await until(lambda t=told: t.received)  # type: ignore[misc]
    assert seen == ["first", "second"]
    await closed(first, protocol)
    await closed(second, other)
