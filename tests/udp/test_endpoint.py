"""Endpoints on real sockets: what is sent arrives, nothing is lost silently, everything that waits is woken."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.errors import ClosedError
from asyncnet.udp import Endpoint


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_echo_with_a_connected_endpoint() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        assert client.remote_addr == server.local_addr
        await client.send(b"hello")
        data, addr = await server.recv()
        assert (data, addr) == (b"hello", client.local_addr)
        await server.send(data.upper(), addr)
        assert await client.recv() == (b"HELLO", server.local_addr)
        assert (client.stats.sent, client.stats.sent_bytes) == (1, 5)
        assert (client.stats.received, client.stats.received_bytes) == (1, 5)


async def test_opening_by_await() -> None:
    endpoint = await udp.bind("127.0.0.1", 0)
    assert endpoint.local_addr[1] > 0
    await endpoint.aclose()
    await endpoint.aclose()


async def test_async_for_ends_when_the_endpoint_is_closed() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        for text in (b"one", b"two", b"three"):
            await client.send(text)
        seen = []
        async with asyncio.timeout(5):
            async for data, _ in server:
                seen.append(data)
                if data == b"three":
                    server.close()
    assert seen == [b"one", b"two", b"three"]


async def test_closing_wakes_every_waiter() -> None:
    endpoint = await udp.bind("127.0.0.1", 0)
    waiters = [asyncio.create_task(endpoint.recv()) for _ in range(3)]
    await asyncio.sleep(0)
    await endpoint.aclose()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert all(isinstance(result, ClosedError) for result in results)


async def test_what_had_arrived_is_received_after_close() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        await client.send(b"last")
        await until(lambda: server.stats.received)
        server.close()
        assert (await server.recv())[0] == b"last"
        with pytest.raises(ClosedError, match=r"127\.0\.0\.1"):
            await server.recv()
        with pytest.raises(ClosedError):
            await server.send(b"x", client.local_addr)
        with pytest.raises(ClosedError):
            server.recv_nowait()


async def test_recv_nowait() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        with pytest.raises(BlockingIOError):
            server.recv_nowait()
        await client.send(b"x")
        await until(lambda: server.stats.received)
        assert server.recv_nowait() == (b"x", client.local_addr)


def arrived(endpoint: Endpoint, count: int) -> bool:
    return endpoint.stats.received >= count


async def test_cancelling_a_recv_loses_nothing() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        received: list[int] = []

        async def take() -> None:
            received.append(int((await server.recv())[0]))

        for number in range(300):
            tasks = [asyncio.create_task(take()) for _ in range(2)]
            await asyncio.sleep(0)
            await client.send(str(number).encode())
            if number % 3:
                await until(partial(arrived, server, number + 1))
            for task in tasks:  # in some turns the wake-up and the cancellation meet
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: server.stats.received == 300)
        while len(received) < 300:
            received.append(int(server.recv_nowait()[0]))
        assert sorted(received) == list(range(300))


async def test_a_wake_up_whose_task_is_cancelled_goes_to_another() -> None:
    endpoint = Endpoint()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: endpoint, local_addr=("127.0.0.1", 0))
    first, second = (asyncio.create_task(endpoint.recv()) for _ in range(2))
    await asyncio.sleep(0)
    endpoint.datagram_received(b"x", ("127.0.0.1", 1))  # wakes the first
    first.cancel()
    async with asyncio.timeout(5):
        assert (await second)[0] == b"x"
    with pytest.raises(asyncio.CancelledError):
        await first
    transport.close()


@pytest.mark.parametrize("bound", [{"queue_size": 2}, {"queue_bytes": 7}])
async def test_a_full_queue_drops_and_counts(bound: dict[str, int]) -> None:
    async with udp.bind("127.0.0.1", 0, **bound) as server, udp.connect(*server.local_addr[:2]) as client:  # type: ignore[arg-type]
        for text in (b"one", b"two", b"six", b"ten"):
            await client.send(text)
        await until(lambda: server.stats.received + server.stats.dropped == 4)
        assert server.stats.dropped == 2
        assert [server.recv_nowait()[0] for _ in range(2)] == [b"one", b"two"]
        await client.send(b"new")
        assert (await server.recv())[0] == b"new"


async def test_a_pending_recv_learns_that_nobody_listens() -> None:
    async with udp.bind("127.0.0.1", 0) as unused:
        address = unused.local_addr
    async with udp.connect(*address[:2]) as client:
        waiting = asyncio.create_task(client.recv())
        await asyncio.sleep(0)
        await client.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{address[1]}"):
            async with asyncio.timeout(5):
                await waiting
        assert client.stats.errors == 1


async def test_the_address_of_a_send_must_fit_the_endpoint() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        with pytest.raises(ValueError, match="addr is missing"):
            await server.send(b"x")
        with pytest.raises(ValueError, match="has its peer"):
            await client.send(b"x", server.local_addr)
        with pytest.raises(ValueError, match="65507"):
            await client.send(bytes(65508))
        await client.send(bytes(65507))
        assert len((await server.recv())[0]) == 65507


@pytest.mark.parametrize("name", ["queue_size", "queue_bytes"])
async def test_a_queue_has_room_for_something(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        await udp.bind("127.0.0.1", 0, **{name: 0})  # type: ignore[arg-type]


async def test_a_port_in_use_names_the_address_and_the_way_out() -> None:
    async with udp.bind("127.0.0.1", 0) as server:
        with pytest.raises(OSError, match="choose another port") as caught:
            await udp.bind(*server.local_addr[:2])
    assert caught.value.errno == errno.EADDRINUSE
    assert f"127.0.0.1:{server.local_addr[1]}" in str(caught.value)


async def test_an_address_of_another_host_names_the_way_out() -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.7 is no address of this host"):
        await udp.bind("203.0.113.7", 0)


async def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(socket.gaierror, match=r"no-such-host\.invalid"):
        await udp.connect("no-such-host.invalid", 9)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
async def test_a_port_can_be_shared() -> None:
    async with (
        udp.bind("127.0.0.1", 0, reuse_port=True) as first,
        udp.bind(*first.local_addr[:2], reuse_port=True) as second,
    ):
        assert first.local_addr == second.local_addr


@pytest.mark.skipif(not socket.has_ipv6, reason="this host has no IPv6")
async def test_ipv6() -> None:
    async with udp.bind("::1", 0) as server, udp.connect("::1", server.local_addr[1]) as client:
        await client.send(b"six")
        data, addr = await server.recv()
        assert data == b"six"
        assert addr == client.local_addr


async def test_many_tasks_share_one_endpoint() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        received = [asyncio.create_task(server.recv()) for _ in range(50)]
        for number in range(50):
            await client.send(str(number).encode())
        async with asyncio.timeout(5):
            results = await asyncio.gather(*received)
        assert sorted(int(data) for data, _ in results) == list(range(50))


async def test_both_directions_at_once() -> None:
    """A network is full duplex: two endpoints send and receive at the same time."""

    async def talk(endpoint: Endpoint, peer: Address) -> int:
        async def listen() -> int:
            return sum([len((await endpoint.recv())[0]) for _ in range(100)])

        listener = asyncio.create_task(listen())
        for _ in range(100):
            await endpoint.send(b"x" * 10, peer)
            await asyncio.sleep(0)
        return await listener

    async with udp.bind("127.0.0.1", 0) as left, udp.bind("127.0.0.1", 0) as right, asyncio.timeout(5):
        received = await asyncio.gather(talk(left, right.local_addr), talk(right, left.local_addr))
    assert list(received) == [1000, 1000]
