"""What a client can be told: sizes, digests, addresses, modes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.errors import AddressError, LocalError, RemoteError
from asyncnet.tftp import Client, Request, Timing, get, put, serve
from asyncnet.tftp.files import BytesSink
from asyncnet.tftp.packets import Error, ReadRequest, decode_packet, encode_packet
from asyncnet.tftp.server import Server
from asyncnet.udp.sockets import route_mtu

CONTENT = random.Random(4).randbytes(100_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(CONTENT)
    return served


@pytest.fixture
async def server(root: Path) -> AsyncIterator[Server]:
    async with serve(root, "127.0.0.1", 0, write="create") as server:
        yield server


async def asked_by(host: str = "127.0.0.1", **options: Any) -> ReadRequest:
    """Return the request that a client makes."""
    async with udp.bind(host, 0) as peer, Client(*peer.local_addr[:2], **options) as client:
        task = asyncio.create_task(client.read("file"))
        data, address = await peer.recv()
        await peer.send(encode_packet(Error(1, "enough")), address)
        with pytest.raises(RemoteError):
            await task
        request = decode_packet(data)
        assert isinstance(request, ReadRequest)
        return request


@pytest.mark.parametrize(("host", "mtu", "block_size"), [
    ("127.0.0.1", 1500, 1468), ("::1", 1500, 1448), ("127.0.0.1", 1280, 1248), ("127.0.0.1", None, 1428),
    ("127.0.0.1", 300, 512),
])  # fmt: skip
async def test_a_block_fills_the_packets_of_the_route(
    monkeypatch: pytest.MonkeyPatch, host: str, mtu: int | None, block_size: int
) -> None:
    monkeypatch.setattr("asyncnet.tftp.client.route_mtu", lambda address: mtu)
    options = dict((await asked_by(host)).options)
    assert options.get("blksize", "512") == str(block_size)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the MTU of a route")
def test_the_mtu_of_a_route() -> None:
    mtu = int(Path("/sys/class/net/lo/mtu").read_text())
    assert route_mtu(("127.0.0.1", 69)) == min(mtu, 65535)
    assert route_mtu(("::1", 69)) == mtu
    assert route_mtu(("255.255.255.255", 69)) is None


async def test_a_window_of_large_blocks_fits_the_receive_buffer(root: Path, tmp_path: Path) -> None:
    (root / "large").write_bytes(CONTENT * 50)
    patient = Timing(initial=5.0, floor=5.0, window_floor=5.0)  # only what was lost is sent again
    async with (
        serve(root, "127.0.0.1", 0, timing=patient) as server,
        Client(*server.address, window_size=64, timing=patient) as client,
    ):
        report = await client.download("large", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == CONTENT * 50
    assert report.retransmitted == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a socket that is not connected hears of refusals on Linux")
async def test_the_next_address_of_a_name_is_tried_when_one_refuses(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.address[1]
    addresses = [
        (socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, server.address)
    ]  # fmt: skip

    async def resolve(host: str, port: int, **_: Any) -> Any:
        return addresses

    monkeypatch.setattr("asyncnet.tftp.client.resolve", resolve)
    async with Client("server.example", port) as client:
        await client.download("file", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == CONTENT
        await client.upload(tmp_path / "got", "up")
        assert (root / "up").read_bytes() == CONTENT
        addresses.pop()
        with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.2"):
            await client.read("file")


async def test_no_option_is_asked_for() -> None:
    assert await asked_by(use_options=False, timeout=5) == ReadRequest("file")


async def test_a_digest_is_compared_before_the_file_appears(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "got"
    target.write_bytes(b"old")
    async with Client(*server.address[:2]) as client:
        with pytest.raises(LocalError, match=f"digest is {hashlib.sha256(CONTENT).hexdigest()}, not 0000"):
            await client.download("file", target, sha256="0" * 64)
        assert target.read_bytes() == b"old"
        assert os.listdir(tmp_path) in (["served", "got"], ["got", "served"])
        async with asyncio.timeout(5):
            while not server.stats.failed:
                await asyncio.sleep(0.001)
        await client.download("file", target, sha256=hashlib.sha256(CONTENT).hexdigest().upper())
        assert target.read_bytes() == CONTENT


async def test_a_digest_is_that_of_the_text_as_it_is_stored(root: Path, tmp_path: Path) -> None:
    (root / "text").write_bytes(b"one\ntwo\n" * 1000)
    digest = hashlib.sha256(b"one\ntwo\n" * 1000).hexdigest()
    async with serve(root, "127.0.0.1", 0) as server, Client(*server.address, mode="netascii") as client:
        await client.download("text", tmp_path / "got", sha256=digest)


@pytest.mark.parametrize("wrong", ["", "abc", "0" * 63, "x" * 64, "0" * 128])
async def test_what_is_no_digest_is_named(server: Server, tmp_path: Path, wrong: str) -> None:
    async with Client(*server.address[:2]) as client:
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            await client.download("file", tmp_path / "got", sha256=wrong)


class Witness:
    """A storage that remembers who asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def open_read(self, request: Request) -> bytes:
        self.requests.append(request)
        return b"content"

    def open_write(self, request: Request) -> BytesSink:
        self.requests.append(request)
        return BytesSink()


async def test_requests_leave_from_the_address_that_was_named() -> None:
    witness = Witness()
    async with serve(witness, "127.0.0.1", 0) as server:
        async with Client(*server.address, local_addr=("127.0.0.7", 0)) as client:
            assert await client.read("file") == b"content"
            await client.write("file", b"x")
        assert [request.peer[0] for request in witness.requests] == ["127.0.0.7"] * 2
        with pytest.raises(OSError, match=r"192\.0\.2\.1"):
            await Client(*server.address, local_addr=("192.0.2.1", 0)).read("file")


async def test_options_of_get_and_put_count_more_than_the_url(tmp_path: Path) -> None:
    witness = Witness()
    async with serve(witness, "127.0.0.1", 0) as server:
        url = f"tftp://127.0.0.1:{server.address[1]}/file;mode=netascii"
        await get(url, tmp_path / "got")
        await get(url, tmp_path / "got", mode="octet", block_size=1000)
        await put(tmp_path / "got", url, window_size=2)
    assert [request.mode for request in witness.requests] == ["netascii", "octet", "netascii"]
    assert ("blksize", "1000") in witness.requests[1].options
    assert ("windowsize", "2") in witness.requests[2].options


async def test_a_directory_is_no_file_to_get() -> None:
    with pytest.raises(AddressError, match="ends with a slash"):
        await get("tftp://127.0.0.1/directory/")


async def test_two_sets_of_requests_are_all_that_a_silent_server_gets(tmp_path: Path) -> None:
    """Half of the attempts ask for options and half do not; together they are as many as the timing says."""
    quick = Timing(initial=0.02, floor=0.02, cap=0.02, max_retransmits=6, patience=0)
    async with udp.bind("127.0.0.1", 0) as silent, Client(*silent.local_addr[:2], timing=quick) as client:
        with pytest.raises(TimeoutError):
            await client.download("file", tmp_path / "got")
        requests = [decode_packet(item[0]) for item in await silent.recv_batch(100)]
    assert len(requests) == 7
    assert [bool(request.options) for request in requests] == [True] * 4 + [False] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", [
    {"mode": "mail"}, {"rollover": 2}, {"block_size": 7}, {"block_size": 65465}, {"window_size": 0}, {"timeout": 256},
])  # fmt: skip
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Client("127.0.0.1", **wrong)
