"""What goes wrong under a transport: refusals, sockets taken away, odd kinds of sockets, floods."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.udp import Datagram, Endpoint, probe
from asyncnet.udp.batch import Arena
from asyncnet.udp.capabilities import DISABLE_VARIABLE
from asyncnet.udp.create import attach
from tests.udp.recorders import (
    Batches,
    Echo,
    Recorder,
    closed,
    full_transport,
    plain_socket,
    receive_all,
    until,
)

REFUSALS = [errno.ENOBUFS, errno.EMSGSIZE, errno.EPERM, errno.ENETUNREACH]


class RefusingSocket(socket.socket):
    """The system refuses whatever is sent to port 9."""

    number = 0

    def _check(self, address: Any) -> None:
        if address[1] == 9:
            raise OSError(self.number, "refused")

    def sendto(self, *args: Any) -> int:
        self._check(args[-1])
        return super().sendto(*args)

    def sendmsg(self, *args: Any) -> int:
        self._check(args[-1])
        return super().sendmsg(*args)


def refusing_socket(number: int, monkeypatch: pytest.MonkeyPatch) -> RefusingSocket:
    sock = RefusingSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.number = number
    sock.bind(("127.0.0.1", 0))
    send = Arena.send

    def refusing(self: Arena, fd: int, payloads: Any, names: Any, size: int, start: int = 0) -> int:
        """As sendmmsg does: it fails when the first is refused, and stops before any other."""
        ports = [int.from_bytes(names[i + 2 : i + 4], "big") for i in range(start * 32, len(names), 32)]
        if ports[0] == 9:
            raise OSError(number, "refused")
        fitting = ports.index(9) if 9 in ports else len(ports)
        return send(self, fd, payloads[: start + fitting], names, size, start)

    monkeypatch.setattr(Arena, "send", refusing)
    return sock


@pytest.mark.parametrize("number", REFUSALS)
async def test_a_refusal_names_the_address_however_it_is_sent(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, protocol = await udp.create_datagram_endpoint(Recorder, sock=refusing_socket(number, monkeypatch))
    with plain_socket() as peer:
        good, bad = peer.getsockname(), ("127.0.0.1", 9)
        transport.sendto(b"x", bad)
        transport.send_batch([(b"1", good), (b"x", bad), (b"2", good), (b"x", bad)])
        transport.send_segments(b"x", 1, bad)
        assert await receive_all(peer, 2) == [b"1", b"2"]
    assert [exc.errno for exc in protocol.errors] == [number] * 4  # type: ignore[attr-defined]
    assert all("cannot send UDP to 127.0.0.1:9" in str(exc) for exc in protocol.errors)
    await closed(transport, protocol)


@pytest.mark.parametrize("number", REFUSALS)
async def test_a_refusal_is_raised_by_the_endpoint(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    await attach(endpoint, refusing_socket(number, monkeypatch))
    bad = ("127.0.0.1", 9)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as caught:
        await endpoint.send(b"x", bad)
    assert caught.value.errno == number
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        endpoint.send_nowait(b"x", bad)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        await endpoint.send_batch([(b"1", endpoint.local_addr), (b"x", bad)])
    assert (await endpoint.recv())[0] == b"1"
    assert (endpoint.stats.sent, endpoint.stats.sent_bytes, endpoint.stats.errors) == (1, 1, 3)
    await endpoint.aclose()


async def test_a_factory_that_fails_leaves_no_socket_behind() -> None:
    def fail() -> asyncio.DatagramProtocol:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await udp.create_datagram_endpoint(fail, local_addr=("127.0.0.1", 0))


# Sockets that are taken away


async def test_a_socket_closed_behind_its_back_ends_the_connection() -> None:
    transport, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    sock = transport._sock
    asyncio.get_running_loop().remove_reader(sock.fileno())
    sock.close()
    transport.sendto(b"x", ("127.0.0.1", 9))
    async with asyncio.timeout(5):
        assert isinstance(await protocol.lost, OSError)


@pytest.mark.parametrize("disabled", ["", "recvmmsg"])
@pytest.mark.parametrize("kind", [Recorder, Batches])
async def test_a_socket_that_is_shut_down_ends_the_connection(
    kind: type[Recorder], disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is readable for ever, and there is nothing to read."""
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    with plain_socket() as peer:
        transport, protocol = await udp.create_datagram_endpoint(kind, remote_addr=peer.getsockname())
        transport._sock.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(5):
            assert isinstance(await protocol.lost, BrokenPipeError)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has error queues")
async def test_an_error_queue_that_nobody_empties_neither_ends_the_connection_nor_wakes_it_for_ever() -> None:
    sock = plain_socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    recorder = Recorder()
    transport = await attach(recorder, sock)
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    for _ in range(3):
        recorder.errors.clear()
        with plain_socket() as gone:
            address = gone.getsockname()
        transport.sendto(b"x", address)
        await until(lambda: bool(recorder.errors) and not waiting.poll(0))
    with plain_socket() as peer:
        peer.sendto(b"still here", transport.get_extra_info("sockname"))
        await until(lambda: bool(recorder.received))
    assert not recorder.lost.done()
    await closed(transport, recorder)


async def test_abort_with_something_waiting_after_the_socket_was_closed() -> None:
    transport, protocol, sock = await full_transport(udp.create_datagram_endpoint)
    transport.sendto(b"x", ("127.0.0.1", 9))
    sock.close()
    transport.abort()
    async with asyncio.timeout(5):
        assert await protocol.lost is None


# What arrives together with trouble


@pytest.mark.skipif(not probe().recvmmsg, reason="this system has no recvmmsg")
@pytest.mark.parametrize("kind", [Recorder, Batches])
async def test_an_error_behind_a_datagram_does_not_take_it_away(
    kind: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, failures = Arena.receive, [OSError(errno.EHOSTUNREACH, "no way")]

    def failing(self: Arena, *args: Any) -> Any:
        if failures:
            raise failures.pop()
        return receive(self, *args)

    monkeypatch.setattr(Arena, "receive", failing)
    transport, protocol = await udp.create_datagram_endpoint(kind, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for data in (b"1", b"2", b"3"):
            peer.sendto(data, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 3)
    assert [data for data, _ in protocol.received] == [b"1", b"2", b"3"]
    assert [exc.errno for exc in protocol.errors] == [errno.EHOSTUNREACH]  # type: ignore[attr-defined]
    await closed(transport, protocol)


@pytest.mark.skipif(not probe().recvmmsg, reason="only asked with recvmmsg")
@pytest.mark.parametrize("kind", [Recorder, Batches])
async def test_a_socket_that_cannot_be_asked_what_waits(kind: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for ping (IPPROTO_ICMP) cannot, and need a privilege that tests may lack."""

    def refuse(*args: Any) -> bytes:
        raise OSError(errno.ENOTTY, "no such ioctl")

    transport, protocol = await udp.create_datagram_endpoint(kind, local_addr=("127.0.0.1", 0))
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with plain_socket() as peer:
        for number in range(5):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 5)
    assert not protocol.errors
    await closed(transport, protocol)


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="this system has no netlink")
async def test_a_socket_of_another_family_can_be_named() -> None:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, 0))
    transport, protocol = await udp.create_datagram_endpoint(Recorder, sock=sock)
    assert str(sock.getsockname()) in repr(transport)
    await closed(transport, protocol)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
async def test_a_local_datagram_that_is_too_long_is_flagged_when_notes_are_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    endpoint = Endpoint()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        await attach(endpoint, sock.dup(), notes=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        try:
            peer.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # SO_SNDBUFFORCE, which root may
        except PermissionError:
            pytest.skip("a datagram of this size needs root")
        peer.sendto(bytes(300_000), path)
        peer.sendto(b"whole", path)
    found: list[Any] = []
    while len(found) < 2:
        found += await endpoint.recv_batch()
    assert [(type(item), len(item.data), item.truncated) for item in found] == [
        (Datagram, 1 << 18, True),
        (Datagram, 5, False),
    ]
    assert endpoint.stats.truncated == 1
    await endpoint.aclose()


# Floods

FLOOD = """
import socket, sys
senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64)]
while True:
    for sender in senders:
        try:
            sender.sendto(b"x" * 100, ("127.0.0.1", int(sys.argv[1])))
        except ConnectionError:
            pass
"""


async def echo(endpoint: Endpoint) -> None:
    async for data, addr in endpoint:
        await endpoint.send(data, addr)


@pytest.mark.alone
@pytest.mark.parametrize("disabled", ["", "recvmmsg,sendmmsg,gso,gro"])
@pytest.mark.parametrize("kind", [Echo, Batches, Endpoint])
async def test_a_timer_fires_under_a_flood(kind: Any, disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 senders without a pause; a timer of 10 ms fires within 50 ms."""
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(kind, local_addr=("127.0.0.1", 0))
    task = asyncio.create_task(echo(protocol)) if kind is Endpoint else None
    _, port = transport.get_extra_info("sockname")
    process = subprocess.Popen([sys.executable, "-c", FLOOD, str(port)])
    try:
        await until(lambda: transport.kernel_dropped)  # it comes faster than it is taken
        took = []
        for _ in range(15):
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            took.append(time.monotonic() - begun)
        assert sorted(took)[len(took) * 8 // 10] < 0.05  # the machine itself may pause now and then
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        transport.close()
        if task is not None:
            await task
        else:
            await protocol.lost


async def send_for_ever(send: Callable[[], Awaitable[None]]) -> None:
    while True:
        await send()


async def test_who_sends_without_a_pause_lets_others_run() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        ways: list[Callable[[], Awaitable[None]]] = [
            lambda: client.send(b"x"),
            lambda: client.send_batch([(b"x", None)] * 10),
            lambda: client.send_segments(bytes(1000), 100),
        ]
        for send in ways:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send_for_ever(send), 0.02)
