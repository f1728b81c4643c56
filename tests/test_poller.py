"""The poller, and what it mends: a socket that goes deaf."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.perloop import PerLoop
from asyncnet.poller import poller_of


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


Pair = tuple[socket.socket, socket.socket]


async def test_both_directions_of_a_socket_are_watched_apart(pair: Pair) -> None:
    near, far = pair
    poller = poller_of(asyncio.get_running_loop())
    events: list[str] = []

    def read() -> None:
        events.append(near.recv(100).decode())

    def write() -> None:
        events.append("room")
        poller.remove_writer(near.fileno())

    poller.add_reader(near.fileno(), read)
    poller.add_writer(near.fileno(), write)
    await until(lambda: events == ["room"])
    far.send(b"one")
    await until(lambda: events == ["room", "one"])
    poller.add_writer(near.fileno(), write)
    poller.remove_reader(near.fileno())
    far.send(b"two")
    await until(lambda: events == ["room", "one", "room"])
    poller.add_reader(near.fileno(), read)
    await until(lambda: events == ["room", "one", "room", "two"])
    poller.remove_reader(near.fileno())
    poller.remove_reader(near.fileno())  # not watched any more: nothing happens
    poller.remove_writer(near.fileno())


async def test_a_callback_that_raises_is_reported_and_the_others_go_on(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    reported: list[str] = []
    loop.set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    poller = poller_of(loop)

    def read() -> None:
        data = near.recv(100)
        raise LookupError(data.decode())

    poller.add_reader(near.fileno(), read)
    far.send(b"one")
    await until(lambda: reported == ["one"])
    far.send(b"two")
    await until(lambda: reported == ["one", "two"])
    poller.remove_reader(near.fileno())


async def test_a_callback_may_take_out_a_descriptor_that_is_ready_too() -> None:
    poller = poller_of(asyncio.get_running_loop())
    pairs = [socket.socketpair() for _ in range(2)]
    ready = [near for near, _ in pairs]
    served: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        served.append(sock)
        for each in ready:
            poller.remove_reader(each.fileno())

    for near, far in pairs:
        poller.add_reader(near.fileno(), lambda sock=near: serve(sock))  # type: ignore[misc]
        far.send(b"x")
    await until(lambda: served)
    await asyncio.sleep(0)
    assert len(served) == 1
    for near, far in pairs:
        near.close()
        far.close()


@pytest.mark.skipif(sys.platform != "linux", reason="another system reports ICMP errors in another way")
async def test_a_socket_hears_after_data_and_an_error_came_together() -> None:
    """The `add_reader` of uvloop watches no more after such an event."""
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(("127.0.0.1", 0))
    port = far.getsockname()[1]
    async with udp.connect("127.0.0.1", port) as endpoint, asyncio.timeout(10):
        await endpoint.send(b"hello")
        _, address = far.recvfrom(100)
        far.sendto(b"before", address)
        far.close()
        endpoint.send_nowait(b"to nobody")  # the answer is an ICMP error, which waits beside the data
        told: list[object] = []
        for _ in range(2):
            try:
                told.append((await endpoint.recv())[0])
            except ConnectionRefusedError as exc:
                told.append(type(exc))
        assert sorted(map(str, told)) == sorted(map(str, [b"before", ConnectionRefusedError]))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", port))
            again.sendto(b"after", address)
            assert (await endpoint.recv())[0] == b"after"


def test_what_a_loop_shares_does_not_keep_it_alive() -> None:
    class Shared:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop

    shared_by = PerLoop(Shared)
    loop = asyncio.SelectorEventLoop()
    shared = shared_by(loop)
    assert shared_by(loop) is shared
    gone = weakref.ref(loop)
    loop.close()
    del loop, shared
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
async def test_many_busy_sockets_share_a_turn_that_stays_short() -> None:
    """Timers fire though 100 sockets have more to do than fits one turn, and every socket has its turn."""
    poller = poller_of(asyncio.get_running_loop())
    calls: Counter[int] = Counter()

    def work(fd: int) -> None:
        calls[fd] += 1
        end = time.monotonic() + 0.0005
        while time.monotonic() < end:
            pass

    with contextlib.ExitStack() as stack:
        for _ in range(100):
            near, far = (stack.enter_context(sock) for sock in socket.socketpair())
            far.send(b"x")  # which is never read
            poller.add_reader(near.fileno(), partial(work, near.fileno()))
            stack.callback(poller.remove_reader, near.fileno())
        turns: list[int] = []
        async with asyncio.timeout(10):
            while len(calls) < 100 or len(turns) < 20:
                before = calls.total()
                await asyncio.sleep(0)
                turns.append(calls.total() - before)
    turns = [turn for turn in turns if turn]
    assert max(turns[1:]) <= 60  # the first has shown how long they take
    assert max(calls.values()) - min(calls.values()) <= 5


class Told(asyncio.DatagramProtocol):
    """Writes down what arrives, and how it ended."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def open_told() -> tuple[udp.DatagramTransport, Told]:
    return await udp.create_datagram_endpoint(Told, local_addr=("127.0.0.1", 0))


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
async def test_a_copy_of_a_socket_that_was_closed_behind_its_back_does_not_make_the_loop_spin() -> None:
    """epoll goes on reporting it, and cannot be told to forget a descriptor that is closed."""
    loop = asyncio.get_running_loop()
    poller: Any = poller_of(loop)
    bystander, told = await open_told()
    transport, protocol = await open_told()
    address = transport.get_extra_info("sockname")
    with transport.get_extra_info("socket").dup(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        transport._sock.close()
        peer.sendto(b"x", address)
        async with asyncio.timeout(5):
            assert isinstance(await protocol.lost, OSError)
        await until(lambda: not poller._epoll.poll(0))
        peer.sendto(b"still here", bystander.get_extra_info("sockname"))
        await until(lambda: told.received == [b"still here"])
    bystander.close()
    await told.lost


async def test_the_number_of_a_socket_that_was_closed_behind_its_back_can_be_used_again() -> None:
    transport, protocol = await open_told()
    number = transport._sock.fileno()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        transport._sock.close()
        os.dup2(other.fileno(), number)
    again, told = await udp.create_datagram_endpoint(Told, sock=socket.socket(fileno=number))
    async with asyncio.timeout(5):
        assert isinstance(await protocol.lost, OSError)
    transport.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", again.get_extra_info("sockname"))
        await until(lambda: told.received)
    again.close()
    await told.lost


async def test_what_is_closed_already_can_be_let_go(pair: Pair) -> None:
    near, _ = pair
    poller = poller_of(asyncio.get_running_loop())
    number = near.fileno()
    poller.add_reader(number, lambda: None)
    poller.add_writer(number, lambda: None)
    near.close()
    poller.remove_writer(number)
    poller.remove_reader(number)
