"""What real servers send, and what our client makes of it; each test is named after the server it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.errors import LocalError, RemoteError
from asyncnet.tftp import Client, Report, Timing
from asyncnet.tftp.packets import (
    Ack,
    Data,
    Error,
    OptionAck,
    Packet,
    ReadRequest,
    WriteRequest,
    decode_packet,
    encode_packet,
)
from asyncnet.udp import Endpoint

PATIENT = Timing(initial=30.0, floor=30.0, window_floor=30.0, cap=30.0)
"""A machine that pauses must not see a packet twice."""
QUICK = Timing(initial=0.05, floor=0.05, cap=0.1, max_retransmits=6, patience=0)


@attrs.define
class Peer:
    """A server written by hand."""

    endpoint: Endpoint
    client: Client
    to: Address = ("", 0)

    async def send(self, packet: bytes | Packet) -> None:
        await self.endpoint.send(packet if isinstance(packet, bytes) else encode_packet(packet), self.to)

    async def recv(self) -> Packet:
        async with asyncio.timeout(5):
            data, self.to = await self.endpoint.recv()
        return decode_packet(data)


@asynccontextmanager
async def peer(**options: Any) -> AsyncIterator[Peer]:
    options.setdefault("timing", PATIENT)
    async with udp.bind("127.0.0.1", 0) as endpoint:
        async with Client(*endpoint.local_addr[:2], block_size=1428, **options) as client:
            yield Peer(endpoint, client)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_tftpy_adds_a_block_size_that_nobody_asked_for() -> None:
    async with (
        udp.bind("127.0.0.1", 0) as endpoint,
        Client(*endpoint.local_addr[:2], block_size=512, timing=PATIENT) as client,
    ):
        server = Peer(endpoint, client)
        async with running(client.read("file")) as task:
            request = await server.recv()
            assert isinstance(request, ReadRequest)
            assert "blksize" not in dict(request.options)
            await server.send(OptionAck((("tsize", "5"), ("blksize", "512"))))
            assert await server.recv() == Ack(0)
            await server.send(Data(1, b"hello"))
            assert await task == b"hello"


async def test_tftpy_answers_an_upload_with_a_size_of_zero() -> None:
    async with peer() as server, running(server.client.write("file", b"hello")) as task:
        request = await server.recv()
        assert isinstance(request, WriteRequest)
        assert dict(request.options)["tsize"] == "5"
        await server.send(OptionAck((("tsize", "0"), ("blksize", "1428"))))
        assert await server.recv() == Data(1, b"hello")
        await server.send(Ack(1))
        assert (await task).confirmed


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\0garbage", b"tsize"])
async def test_ibm_tivoli_and_uftpd_append_garbage_to_the_oack(tail: bytes) -> None:
    async with peer() as server, running(server.client.read("file")) as task:
        await server.recv()
        await server.send(b"\0\6blksize\x001428\0" + tail)
        assert await server.recv() == Ack(0)
        await server.send(Data(1, b"hello"))
        assert await task == b"hello"


async def test_rfc_1350_servers_ignore_options() -> None:
    async with peer() as server:
        async with running(server.client.read("file")) as task:
            await server.recv()
            await server.send(Data(1, b"x" * 512))
            assert await server.recv() == Ack(1)
            await server.send(Data(2, b"end"))
            assert await task == b"x" * 512 + b"end"
        async with running(server.client.write("file", b"y" * 600)) as task:
            await server.recv()
            while not isinstance(await server.recv(), WriteRequest):
                pass  # the ACK of the download's last block
            await server.send(Ack(0))
            assert await server.recv() == Data(1, b"y" * 512)
            await server.send(Ack(1))
            assert await server.recv() == Data(2, b"y" * 88)
            await server.send(Ack(2))
            assert (await task).confirmed


@pytest.mark.parametrize("code", [4, 8])
async def test_tftp_hpa_refuses_options_and_gets_a_request_without(code: int) -> None:
    async with peer() as server, running(server.client.read("file")) as task:
        await server.recv()
        await server.send(Error(code, "no options"))
        assert await server.recv() == ReadRequest("file")
        await server.send(Data(1, b"plain"))
        assert await task == b"plain"


async def test_some_servers_are_silent_when_they_see_options() -> None:
    async with peer(timing=QUICK) as server, running(server.client.read("file")) as task:
        packet = await server.recv()
        while packet != ReadRequest("file"):
            packet = await server.recv()
        await server.send(Data(1, b"plain"))
        assert await task == b"plain"


async def test_a_server_that_says_what_is_wrong_is_not_asked_again() -> None:
    async with peer() as server, running(server.client.read("file")) as task:
        await server.recv()
        await server.send(Error(1, "no such file"))
        with pytest.raises(RemoteError):
            await task
        with pytest.raises(BlockingIOError):
            server.endpoint.recv_nowait()


async def test_atftpd_begins_twice_when_the_request_is_repeated() -> None:
    """The second transfer comes from a port of its own, and is told that it is not wanted."""
    async with peer() as server, running(server.client.read("file")) as task, udp.bind("127.0.0.1", 0) as second:
        await server.recv()
        await server.send(OptionAck((("blksize", "1428"),)))
        assert await server.recv() == Ack(0)
        await second.send(encode_packet(OptionAck((("blksize", "1428"),))), server.to)
        answer = decode_packet((await second.recv())[0])
        assert isinstance(answer, Error)
        assert answer.code == 5
        await server.send(Data(1, b"hello"))
        assert await task == b"hello"


async def test_dnsmasq_repeats_its_oack_when_the_ack_was_lost() -> None:
    async with peer() as server, running(server.client.read("file")) as task:
        await server.recv()
        for _ in range(3):
            await server.send(OptionAck((("blksize", "1428"),)))
            assert await server.recv() == Ack(0)
        await server.send(Data(1, b"hello"))
        assert await task == b"hello"


async def test_dnsmasq_lowers_what_was_asked() -> None:
    async with peer(window_size=64) as server, running(server.client.read("file")) as task:
        await server.recv()
        await server.send(OptionAck((("blksize", "1024"), ("windowsize", "2"))))
        assert await server.recv() == Ack(0)
        await server.send(Data(1, b"x" * 1024))
        await server.send(Data(2, b"y" * 1024))
        assert await server.recv() == Ack(2)
        await server.send(Data(3, b""))
        assert await task == b"x" * 1024 + b"y" * 1024


async def test_a_size_that_does_not_come_true_is_an_error_and_no_file() -> None:
    async with peer() as server, running(server.client.read("file")) as task:
        await server.recv()
        await server.send(OptionAck((("blksize", "1428"), ("tsize", "99"))))
        await server.recv()
        await server.send(Data(1, b"too short"))
        answer = await server.recv()
        assert isinstance(answer, Error)
        with pytest.raises(LocalError, match="announced 99 bytes and sent 9"):
            await task


@pytest.mark.parametrize("rollover", [0, 1])
async def test_servers_that_wrap_to_1(rollover: int) -> None:
    content = bytes(range(256)) * 2
    async with (
        peer(use_options=False, timing=PATIENT) as server,
        running(server.client.read("file")) as task,
    ):
        assert await server.recv() == ReadRequest("file")
        for block in range(1, 0x10002):
            number = block & 0xFFFF if not rollover else (block - 1) % 0xFFFF + 1
            await server.send(Data(number, content if block < 0x10001 else b""))
            assert await server.recv() == Ack(number)
        assert len(await task) == 0x10000 * 512


async def test_uploads_wrap_to_what_the_server_expects() -> None:
    async with peer(use_options=False, rollover=1, timing=PATIENT) as server:
        async with running(server.client.write("file", bytes(0x10000 * 512))) as task:
            assert await server.recv() == WriteRequest("file")
            await server.send(Ack(0))
            for block in range(1, 0x10002):
                packet = await server.recv()
                assert isinstance(packet, Data)
                assert packet.block == (block - 1) % 0xFFFF + 1
                await server.send(Ack(packet.block))
            report: Report = await task
            assert report.confirmed
