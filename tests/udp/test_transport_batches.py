"""What only our transport does, on every way that datagrams can move."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from pathlib import Path
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.udp import Datagram, DatagramTransport, Train, probe
from asyncnet.udp.capabilities import DISABLE_VARIABLE
from tests.udp.recorders import (
    Batches,
    Echo,
    Recorder,
    closed,
    plain_socket,
    receive_all,
    until,
    with_every_way,
)


@with_every_way
async def test_a_burst_is_echoed_in_order(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    with plain_socket() as peer, plain_socket() as other:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sent = [b"%d" % number * (number % 40) for number in range(200)]  # some are empty
        for data in sent:
            peer.sendto(data, transport.get_extra_info("sockname"))
        other.sendto(b"other", transport.get_extra_info("sockname"))
        assert await receive_all(peer, 200) == sent
        assert await receive_all(other, 1) == [b"other"]
    assert [data for data, _ in protocol.received] == [*sent, b"other"]
    await closed(transport, protocol)


@with_every_way
async def test_many_are_sent_and_received_in_order(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    receiver, batches = await udp.create_datagram_endpoint(Batches, local_addr=("127.0.0.1", 0), trains=True)
    receiver.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    name = receiver.get_extra_info("sockname")
    sender, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    sender.send_batch([(b"%d" % number, name) for number in range(150)])
    await until(lambda: len(batches.received) == 150)
    assert [int(data) for data, _ in batches.received] == list(range(150))
    assert all(addr == sender.get_extra_info("sockname") for _, addr in batches.received)
    batches.received.clear()
    whole = b"".join(b"%04d" % number * 250 for number in range(200)) + b"tail"
    sender.send_segments(whole, 1000, name)
    await until(lambda: len(batches.received) == 201)
    assert b"".join(data for data, _ in batches.received) == whole
    assert {len(data) for data, _ in batches.received} == {1000, 4}
    await closed(sender, protocol)
    await closed(receiver, batches)


@with_every_way
async def test_connected_batches_and_trains(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    with plain_socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        transport, protocol = await udp.create_datagram_endpoint(Batches, remote_addr=peer.getsockname())
        transport.send_batch([(b"%d" % number, None) for number in range(70)])
        assert [int(data) for data in await receive_all(peer, 70)] == list(range(70))
        transport.send_segments(b"x" * 2500, 1000)
        assert [len(data) for data in await receive_all(peer, 3)] == [1000, 1000, 500]
        for number in range(70):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 70)
        assert protocol.received == [(b"%d" % number, peer.getsockname()) for number in range(70)]
        await closed(transport, protocol)


@with_every_way
async def test_a_refusal_in_the_middle_of_a_batch_is_reported_and_the_rest_leaves(
    disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        name = peer.getsockname()
        transport.send_batch([(b"1", name), (bytes(65508), name), (b"2", name), (b"3", ("localhost", name[1]))])
        assert await receive_all(peer, 3) == [b"1", b"2", b"3"]
    assert [exc.errno for exc in protocol.errors] == [errno.EMSGSIZE]  # type: ignore[attr-defined]
    assert f"127.0.0.1:{name[1]}" in str(protocol.errors[0])
    await closed(transport, protocol)


@with_every_way
@pytest.mark.parametrize("kind", [Echo, Batches])
async def test_more_than_one_turn_of_the_loop_takes_loses_nothing(
    kind: type[Recorder], disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(kind, local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    transport.pause_reading()
    with plain_socket() as peer:
        for number in range(450):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        held = 450 - transport.kernel_dropped
        transport.resume_reading()
        await until(lambda: len(protocol.received) >= held)
    assert held > 4 * 64  # beyond what one turn delivers
    assert [int(data) for data, _ in protocol.received] == list(range(held))
    await closed(transport, protocol)


async def most_in_a_turn(protocol: Recorder, count: int) -> int:
    """Return how many datagrams came in one turn of the loop at most, until all have come."""
    most = 0
    async with asyncio.timeout(5):
        while (before := len(protocol.received)) < count:
            await asyncio.sleep(0)
            most = max(most, len(protocol.received) - before)
    return most


@with_every_way
async def test_a_turn_of_the_loop_takes_so_many_and_no_more(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    if not receive_buffer(transport, 4 << 20):
        transport.abort()
        pytest.skip("a receive buffer for all of it needs root")
    for size, count, bound in ((1, 1000, 257), (30_000, 100, 65)):  # 257: one that comes singly, then four batches
        transport.pause_reading()
        protocol.received.clear()
        with plain_socket() as peer:
            for _ in range(count):
                peer.sendto(bytes(size), transport.get_extra_info("sockname"))
        transport.resume_reading()
        assert await most_in_a_turn(protocol, count) <= bound
    await closed(transport, protocol)


def receive_buffer(transport: Any, size: int) -> bool:
    """Give it a larger buffer than the system allows; root may (SO_RCVBUFFORCE)."""
    try:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, 33, size)
    except OSError:
        return False
    return True


@with_every_way
async def test_answers_to_a_batch_leave_though_it_ends_in_close(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)

    class Leaving(Echo):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            if data == b"last":
                self.transport.close()

    transport, protocol = await udp.create_datagram_endpoint(Leaving, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for data in (b"1", b"2", b"last", b"late"):
            peer.sendto(data, transport.get_extra_info("sockname"))
        assert await receive_all(peer, 3) == [b"1", b"2", b"last"]
        async with asyncio.timeout(5):
            assert await protocol.lost is None


async def test_an_address_that_is_no_address_costs_one_datagram() -> None:
    class Sloppy(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            wrong = {b"3": ("127.0.0.1", "http"), b"4": ("127.0.0.1", ["http"]), b"5": [1]}
            self.transport.sendto(data, wrong.get(data, addr))

    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    transport, protocol = await udp.create_datagram_endpoint(Sloppy, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for number in range(8):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        assert await receive_all(peer, 5) == [b"0", b"1", b"2", b"6", b"7"]
    assert [type(problem) for problem in problems] == [TypeError] * 3
    with pytest.raises(TypeError, match="addr is missing"):
        transport.sendto(b"x")
    with pytest.raises(TypeError, match="addr is missing"):
        transport.send_batch([(b"x", None)])
    transport.send_batch([])
    await closed(transport, protocol)


@with_every_way
async def test_trains_come_as_pairs_and_with_notes_as_datagrams(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    for notes, kind in ((False, tuple), (True, Datagram)):
        receiver, batches = await udp.create_datagram_endpoint(
            Batches, local_addr=("127.0.0.1", 0), trains=True, notes=notes
        )
        sender, protocol = await udp.create_datagram_endpoint(Recorder, remote_addr=receiver.get_extra_info("sockname"))
        sender.send_segments(b"".join(b"%03d" % number for number in range(50)) + b"!", 3)
        await until(lambda b=batches: len(b.received) == 51)  # type: ignore[misc]
        assert [data for data, _ in batches.received] == [b"%03d" % number for number in range(50)] + [b"!"]
        assert {type(item) for batch in batches.batches for item in batch} == {kind}
        await closed(sender, protocol)
        await closed(receiver, batches)


class Trains(Recorder):
    """Takes trains as the kernel has joined them."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def trains_received(self, batch: list[Train]) -> None:
        for data, size, addr in batch:
            self.longest = max(self.longest, len(data) // max(1, size))
            pieces = [bytes(data[start : start + size]) for start in range(0, len(data), size)] if size else [b""]
            self.received += [(piece, addr) for piece in pieces]


@with_every_way
async def test_trains_come_whole_to_who_takes_them(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    receiver, trains = await udp.create_datagram_endpoint(Trains, local_addr=("127.0.0.1", 0), trains=True)
    sender, protocol = await udp.create_datagram_endpoint(Recorder, remote_addr=receiver.get_extra_info("sockname"))
    sender.send_segments(b"".join(b"%03d" % number for number in range(50)) + b"!", 3)
    sender.sendto(b"")
    await until(lambda: len(trains.received) == 52)
    assert [data for data, _ in trains.received] == [b"%03d" % number for number in range(50)] + [b"!", b""]
    assert {addr for _, addr in trains.received} == {sender.get_extra_info("sockname")}
    if probe().gso and probe().gro and probe().recvmmsg:
        assert trains.longest == 50
    await closed(sender, protocol)
    await closed(receiver, trains)


async def test_a_local_datagram_that_is_too_long_is_an_error_and_never_cut(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    transport, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=path, family=socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        try:
            peer.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # SO_SNDBUFFORCE, which root may
        except PermissionError:
            pytest.skip("a datagram of this size needs root")
        peer.sendto(bytes(300_000), path)
        peer.sendto(bytes(200_000), path)
    await until(lambda: protocol.received)
    assert [len(data) for data, _ in protocol.received] == [200_000]
    assert [exc.errno for exc in protocol.errors] == [errno.EMSGSIZE]  # type: ignore[attr-defined]
    await closed(transport, protocol)


@pytest.mark.skipif(not probe().recvmmsg, reason="this system has no recvmmsg")
async def test_what_arrived_together_is_delivered_together() -> None:
    transport, protocol = await udp.create_datagram_endpoint(Batches, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for number in range(20):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.received) == 20)
    assert len(protocol.batches) == 1
    await closed(transport, protocol)


@pytest.mark.skipif(not probe().recvmmsg, reason="the kernel's notes need Linux")
@pytest.mark.parametrize("disabled", ["", "recvmmsg"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_kernels_notes(disabled: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    anywhere = "::" if ":" in host else "0.0.0.0"
    transport, protocol = await udp.create_datagram_endpoint(Batches, local_addr=(anywhere, 0), notes=True)
    port = transport.get_extra_info("sockname")[1]
    with plain_socket(family=socket.AF_INET6 if ":" in host else socket.AF_INET) as peer:
        if ":" in host:
            peer.setsockopt(socket.IPPROTO_IPV6, 67, 0x02)
        else:
            peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x02)
        peer.sendto(b"x", (host, port))
        await until(lambda: protocol.received)
    item = protocol.batches[0][0]
    assert type(item) is Datagram
    assert (item.data, item.local_addr, item.tos, item.truncated) == (b"x", host, 0x02, False)
    assert item.interface == socket.if_nametoindex("lo")
    await closed(transport, protocol)


@pytest.mark.skipif(not probe().recvmmsg, reason="the kernel tells of drops on Linux")
@pytest.mark.parametrize("disabled", ["", "recvmmsg"])
async def test_what_the_kernel_drops_is_counted(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    transport, protocol = await udp.create_datagram_endpoint(Batches, local_addr=("127.0.0.1", 0), notes=True)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    transport.pause_reading()
    with plain_socket() as peer:
        for _ in range(50):
            peer.sendto(bytes(500), transport.get_extra_info("sockname"))
        dropped = transport.kernel_dropped
        assert 0 < dropped < 50
        transport.resume_reading()
        await until(lambda: len(protocol.received) == 50 - dropped)
        peer.sendto(b"next", transport.get_extra_info("sockname"))
        await until(lambda: protocol.received[-1][0] == b"next")
    assert protocol.batches[-1][-1].dropped == dropped
    await closed(transport, protocol)


@with_every_way
async def test_pausing_in_a_callback_keeps_the_rest_of_the_batch(
    disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)

    class Pausing(Recorder):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    transport, protocol = await udp.create_datagram_endpoint(Pausing, local_addr=("127.0.0.1", 0))
    with plain_socket() as peer:
        for number in range(6):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        for count in range(1, 7):
            await until(lambda c=count: len(protocol.received) == c)  # type: ignore[misc]
            assert not transport.is_reading()
            await asyncio.sleep(0)
            assert len(protocol.received) == count
            transport.resume_reading()
            transport.resume_reading()
    assert [data for data, _ in protocol.received] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    await closed(transport, protocol)


async def test_trains_fall_back_when_the_system_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with plain_socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock = RefusingSocket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        transport, protocol = await udp.create_datagram_endpoint(Recorder, sock=sock)
        for _ in range(2):
            transport.send_segments(b"x" * 250, 100, peer.getsockname())
            assert [len(data) for data in await receive_all(peer, 3)] == [100, 100, 50]
        assert sock.refused == (1 if probe().gso else 0)
        assert not protocol.errors
        with pytest.raises(ValueError, match="segment_size"):
            transport.send_segments(b"x", 0, peer.getsockname())
        await closed(transport, protocol)


class RefusingSocket(socket.socket):
    refused = 0

    def sendmsg(self, *args: Any) -> int:
        self.refused += 1
        raise OSError(errno.EIO, "no trains on this device")


async def test_a_train_that_does_not_fit_now_waits() -> None:
    with plain_socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        transport, protocol = await udp.create_datagram_endpoint(Recorder, remote_addr=peer.getsockname())
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        whole = b"".join(b"%06d" % number * 200 for number in range(300))
        transport.send_segments(whole, 1200)
        assert b"".join(await receive_all(peer, 300)) == whole
        await closed(transport, protocol)


async def test_the_loop_of_the_package_has_the_transport() -> None:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Recorder, local_addr=("127.0.0.1", 0)
    )
    assert isinstance(transport, DatagramTransport)
    await closed(transport, protocol)


def test_a_transport_that_is_never_closed_warns() -> None:
    async def main() -> None:
        await udp.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()  # which lets go of the transport
    with pytest.warns(ResourceWarning) as caught:
        gc.collect()
    assert any("unclosed transport" in str(warning.message) for warning in caught)
