"""Endpoints on real sockets: what is sent arrives, nothing is lost silently, everything that waits is woken."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from functools import partial
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.broadcast.channel import Channel, Heard
from asyncnet.errors import ClosedError
from asyncnet.udp import Datagram, Endpoint, probe
from asyncnet.udp.batch import Arena
from asyncnet.udp.sockets import open_socket
from tests.udp.recorders import full_transport, until


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
@pytest.mark.parametrize(("policy", "kept"), [("drop-newest", [b"one", b"two"]), ("drop-oldest", [b"six", b"ten"])])
async def test_a_full_queue_drops_and_counts(bound: dict[str, Any], policy: str, kept: list[bytes]) -> None:
    async with (
        udp.bind("127.0.0.1", 0, policy=policy, **bound) as server,
        udp.connect(*server.local_addr[:2]) as client,
    ):
        for text in (b"one", b"two", b"six", b"ten"):
            await client.send(text)
        await until(lambda: server.stats.received == 4)
        assert server.stats.dropped == 2
        assert [server.recv_nowait()[0] for _ in range(2)] == kept
        await client.send(b"new")
        assert (await server.recv())[0] == b"new"


async def test_a_full_queue_stops_reading_and_loses_nothing() -> None:
    async with (
        udp.bind("127.0.0.1", 0, queue_size=10, receive_buffer=1 << 20) as server,
        udp.connect(*server.local_addr[:2]) as client,
    ):
        for number in range(500):
            await client.send(b"%d" % number)
            await asyncio.sleep(0)
        await until(lambda: server.stats.received >= 10)
        assert server.stats.received <= 10 + 64
        received = [int((await server.recv())[0]) for _ in range(500)]
        assert received == list(range(500))
        assert (server.stats.dropped, server.stats.kernel_dropped) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of drops on Linux")
async def test_what_the_kernel_drops_meanwhile_is_counted() -> None:
    async with (
        udp.bind("127.0.0.1", 0, queue_size=1, receive_buffer=4096) as server,
        udp.connect(*server.local_addr[:2]) as client,
    ):
        for _ in range(100):
            await client.send(bytes(500))
            await asyncio.sleep(0)
        await until(lambda: server.stats.kernel_dropped)
        for _ in range(100 - server.stats.kernel_dropped):
            await server.recv()
        with pytest.raises(BlockingIOError):
            server.recv_nowait()
    assert server.stats.received + server.stats.kernel_dropped == 100


async def test_batches() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        await client.send_batch([(b"%d" % number, None) for number in range(20)])
        await until(lambda: server.stats.received == 20)
        first = await server.recv_batch(limit=5)
        rest = await server.recv_batch()
        assert [int(item[0]) for item in [*first, *rest]] == list(range(20))
        assert len(first) == 5
        await server.send_batch((data, addr) for data, addr in [*first, *rest])
        assert [int((await client.recv())[0]) for _ in range(20)] == list(range(20))
        assert (client.stats.sent, client.stats.received) == (20, 20)
        await client.send_segments(b"x" * 2500, 1000)
        assert [len((await server.recv())[0]) for _ in range(3)] == [1000, 1000, 500]
        assert client.stats.sent == 23
        with pytest.raises(ValueError, match="limit"):
            await server.recv_batch(limit=0)


async def test_the_kernels_notes_come_in_batches() -> None:
    async with udp.bind("127.0.0.1", 0, notes=True) as server, udp.connect(*server.local_addr[:2]) as client:
        await client.send(b"x")
        (item,) = await server.recv_batch()
        assert isinstance(item, Datagram)
        if sys.platform == "linux":
            assert item.local_addr == "127.0.0.1"
            assert item.interface == socket.if_nametoindex("lo")
        await client.send(b"y")
        assert await server.recv() == (b"y", client.local_addr)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells destinations on Linux")
async def test_the_first_datagram_has_its_notes_though_it_came_before_anybody_read() -> None:
    loop = asyncio.get_running_loop()
    for host in ("127.0.0.1", "::1"):
        sock = await open_socket(local=(host, 0), destinations=True)
        with socket.socket(sock.family, socket.SOCK_DGRAM) as early:
            early.sendto(b"early", sock.getsockname())
        async with udp.bind(sock=sock, notes=True) as endpoint:
            (datagram,) = await endpoint.recv_batch()
        assert isinstance(datagram, Datagram)
        assert (datagram.local_addr, datagram.interface) == (host, socket.if_nametoindex("lo"))
        heard: list[Heard] = []
        sock = await open_socket(local=(host, 0), destinations=True)
        with socket.socket(sock.family, socket.SOCK_DGRAM) as early:
            early.sendto(b"early", sock.getsockname())
        channel = Channel(loop, sock, heard.extend)
        await until(partial(len, heard))
        channel.close()
        assert heard[0][2].interface == "lo"


async def test_empty_datagrams_arrive() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        await client.send(b"")
        assert await server.recv() == (b"", client.local_addr)


async def test_send_nowait_says_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        client.send_nowait(b"x")
        assert (await server.recv())[0] == b"x"
        client.pause_writing()
        with pytest.raises(BlockingIOError):
            client.send_nowait(b"x")
        waiting = asyncio.create_task(client.send(b"later"))
        await asyncio.sleep(0)
        assert not waiting.done()
        client.resume_writing()
        await waiting
        assert (await server.recv())[0] == b"later"


async def test_an_answer_that_cannot_leave_does_not_end_receiving() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.bind("127.0.0.1", 0) as client:
        client.error_received(OSError(errno.EPERM, "refused"))  # a datagram of an earlier batch
        for number in range(3):
            await server.send(b"%d" % number, client.local_addr)
        received = []
        async for data, _ in client:
            received.append(data)
            if len(received) == 3:
                break
        assert received == [b"0", b"1", b"2"]
        with pytest.raises(OSError, match="refused"):
            await client.send(b"x", server.local_addr)
        await client.send(b"y", server.local_addr)
        assert client.stats.errors == 1


async def test_answers_of_a_waiting_task_leave_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    if not probe().sendmmsg:
        pytest.skip("this system has no sendmmsg")
    send = Arena.send

    def counting(self: Arena, fd: int, payloads: list[bytes], *rest: Any) -> int:
        sizes.append(len(payloads))
        return send(self, fd, payloads, *rest)

    monkeypatch.setattr(Arena, "send", counting)
    async with udp.bind("127.0.0.1", 0) as server:

        async def echo() -> None:
            async for data, addr in server:
                await server.send(data, addr)

        task = asyncio.create_task(echo())
        await asyncio.sleep(0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(5)
            for number in range(20):
                peer.sendto(b"%d" % number, server.local_addr)
            answers = await asyncio.to_thread(lambda: [int(peer.recv(100)) for _ in range(20)])
        assert answers == list(range(20))
        assert max(sizes) > 10
        server.close()
        await task


@pytest.mark.parametrize("policy", ["stop-reading", "drop-oldest", "drop-newest"])
async def test_the_bytes_of_the_queue_are_bounded_while_it_is_emptied(policy: str) -> None:
    """What was taken does not count for ever."""
    async with (
        udp.bind("127.0.0.1", 0, queue_bytes=5000, policy=policy) as server,
        udp.connect(*server.local_addr[:2]) as client,
    ):
        for _ in range(20):
            for _ in range(2):
                await client.send(bytes(1000))
            assert len((await server.recv())[0]) == 1000
            assert len((await server.recv())[0]) == 1000
        assert server.stats.dropped == 0
        assert server.stats.received == 40


async def test_closing_wakes_who_waits_though_something_waits_to_be_sent() -> None:
    transport, endpoint, sock = await full_transport(udp.create_datagram_endpoint, Endpoint)
    address = endpoint.local_addr
    await endpoint.send(b"stuck", address)
    endpoint.pause_writing()
    waiting: list[asyncio.Task[Any]] = [
        asyncio.create_task(endpoint.recv()),
        asyncio.create_task(endpoint.recv_batch()),
        asyncio.create_task(endpoint.send(b"x", address)),
        asyncio.create_task(endpoint.request(b"?", address, timeout=5)),
    ]
    await until(lambda: all(task.get_coro().cr_await is not None for task in waiting))  # type: ignore[union-attr]
    endpoint.close()
    async with asyncio.timeout(5):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ClosedError] * 4
    sock.full = False
    await endpoint.aclose()
    assert transport.is_closing()


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


async def test_what_the_system_refuses_is_raised_with_the_address() -> None:
    async with udp.bind("127.0.0.1", 0) as endpoint:
        with pytest.raises(PermissionError, match=r"cannot send UDP to 127\.255\.255\.255:9"):
            await endpoint.send(b"x", ("127.255.255.255", 9))
        assert (endpoint.stats.sent, endpoint.stats.errors) == (0, 1)
        await endpoint.send(b"x", endpoint.local_addr)
        assert (await endpoint.recv())[0] == b"x"


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
