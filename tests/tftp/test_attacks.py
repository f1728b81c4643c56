"""Known attacks on TFTP programs; each test names the CVE or the trick."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.errors import PacketError
from asyncnet.tftp import Client, Guard, Timing, serve
from asyncnet.tftp.packets import (
    Ack,
    Data,
    Error,
    OptionAck,
    OptionPairs,
    Packet,
    ReadRequest,
    WriteRequest,
    decode_packet,
    encode_packet,
)
from asyncnet.tftp.server import Server
from asyncnet.udp import Endpoint

CONTENT = random.Random(5).randbytes(30_000)
PATIENT = Timing(initial=30.0, floor=30.0, window_floor=30.0, cap=30.0)
"""A machine that pauses must not see a packet twice."""
QUICK = Timing(initial=0.05, floor=0.05, cap=0.05, max_retransmits=2, patience=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(CONTENT)
    return served


@pytest.fixture(params=["a port each", "single port"])
async def server(root: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    single = request.param == "single port"
    async with serve(root, "127.0.0.1", 0, write="create", single_port=single, timing=PATIENT, grace=0) as server:
        yield server


@pytest.fixture(params=["a port each", "single port"])
async def quick_server(root: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """It gives up soon."""
    single = request.param == "single port"
    async with serve(root, "127.0.0.1", 0, write="create", single_port=single, timing=QUICK, grace=0) as server:
        yield server


@pytest.fixture
async def peer(server: Server) -> AsyncIterator[Endpoint]:
    async with udp.bind("127.0.0.1", 0) as endpoint:
        yield endpoint


async def recv(endpoint: Endpoint) -> tuple[Packet, Address]:
    async with asyncio.timeout(5):
        data, addr = await endpoint.recv()
    return decode_packet(data), addr


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def still_serves(server: Server) -> None:
    async with Client(*server.address[:2]) as client:
        assert await client.read("file") == CONTENT


async def test_cve_2024_2169_a_forged_error_does_not_make_two_servers_talk_for_ever(
    server: Server, peer: Endpoint
) -> None:
    """Whatever a server says to another server's port must be the end of it."""
    said: list[Packet] = [
        Error(4, "illegal"),
        Error(0, ""),
        Ack(0),
        Ack(1),
        Data(1, b""),
        OptionAck((("blksize", "8"),)),
    ]
    for packet in said:
        await peer.send(encode_packet(packet), server.address)
    await peer.send(b"\0\x09what", server.address)
    await until(lambda: server.stats.malformed == len(said) + 1)
    await peer.send(encode_packet(ReadRequest("nothing")), server.address)
    answer, _ = await recv(peer)
    assert isinstance(answer, Error)
    assert peer.stats.received == 1


async def test_cve_2019_11365_and_2023_46566_packets_shorter_than_their_header(server: Server, peer: Endpoint) -> None:
    await peer.send(encode_packet(ReadRequest("file")), server.address)
    _, transfer = await recv(peer)
    for opcode in range(8):
        for length in range(4):
            short = bytes([0, opcode, 0, 0])[:length]
            if short[:2] not in (b"\0\1", b"\0\2"):
                await peer.send(short, transfer)
                await peer.send(short, server.address)
    await peer.send(encode_packet(Ack(1)), transfer)
    assert (await recv(peer))[0] == Data(2, CONTENT[512:1024])
    await still_serves(server)


async def test_cve_2021_41054_the_oack_is_longer_than_the_blocks(server: Server, peer: Endpoint) -> None:
    options = (("blksize", "8"), ("tsize", "0"), ("timeout", "255"), ("windowsize", "2"))
    await peer.send(encode_packet(ReadRequest("file", "octet", options)), server.address)
    answer, transfer = await recv(peer)
    assert answer == OptionAck((("blksize", "8"), ("tsize", "30000"), ("timeout", "255"), ("windowsize", "2")))
    await peer.send(encode_packet(Ack(0)), transfer)
    assert (await recv(peer))[0] == Data(1, CONTENT[:8])


async def test_cve_2019_5482_the_server_forgets_the_small_blocks_that_were_asked_for() -> None:
    async with udp.bind("127.0.0.1", 0) as forgetful:
        async with Client(*forgetful.local_addr[:2], block_size=8, timing=PATIENT) as client:
            task = asyncio.create_task(client.read("file"))
            _, addr = await recv(forgetful)
            await forgetful.send(encode_packet(OptionAck((("tsize", "600"),))), addr)
            assert await recv(forgetful) == (Ack(0), addr)
            await forgetful.send(encode_packet(Data(1, CONTENT[:512])), addr)
            assert await recv(forgetful) == (Ack(1), addr)
            await forgetful.send(encode_packet(Data(2, CONTENT[512:600])), addr)
            assert await task == CONTENT[:600]


async def test_cve_2017_1000100_a_name_that_is_too_long_is_not_sent() -> None:
    async with udp.bind("127.0.0.1", 0) as nobody, Client(*nobody.local_addr[:2]) as client:
        with pytest.raises(ValueError, match="shorten the name"):
            await client.read("x" * 600)
        assert nobody.stats.received == 0


@pytest.mark.parametrize("value", ["9" * 20, "9" * 400, "-1", "+5", "0x10", " 8", "1e3", "", "٣", "5\udcff"])
async def test_cve_2011_2199_numbers_that_are_none(server: Server, peer: Endpoint, value: str) -> None:
    names = ("timeout", "utimeout", "tsize")
    options: OptionPairs = tuple((name, value) for name in names)
    request = b"\0\1file\0octet\0" + b"".join(
        f"{name}\0{value}\0".encode("utf-8", "surrogateescape") for name, value in options
    )
    await peer.send(request, server.address)
    answer, _ = await recv(peer)
    if isinstance(answer, OptionAck):  # the size of a download may be asked for by any number
        assert answer == OptionAck((("tsize", "30000"),))
    else:
        assert answer == Data(1, CONTENT[:512])


async def test_cve_2009_2957_a_very_long_name(server: Server, peer: Endpoint) -> None:
    for name in (b"a" * 60_000, b"a/" * 30_000, b"../" * 20_000, b"\\" * 60_000 + b"file2"):
        await peer.send(b"\0\1" + name + b"\0octet\0", server.address)
        answer, _ = await recv(peer)
        assert isinstance(answer, Error)
        assert answer.text == "the file name is too long"
    await still_serves(server)


def test_a_name_that_a_rule_would_take_long_for_is_no_request() -> None:
    for name, mode in ((b"a" * 60_000, b"octet"), (b"a" * 504, b"octet"), (b"a", b"octet" * 1000)):
        with pytest.raises(PacketError, match="too long"):
            decode_packet(b"\0\1" + name + b"\0" + mode + b"\0")
    many_options = b"\0\1" + b"a" * 503 + b"\0octet\0" + b"name\0value\0" * 50
    assert isinstance(decode_packet(many_options), ReadRequest)


async def test_the_memory_for_windows_is_not_what_a_client_asks_for(server: Server, peer: Endpoint) -> None:
    huge = ReadRequest("file", "octet", (("blksize", "65464"), ("windowsize", "65535")))
    await peer.send(encode_packet(huge), server.address)
    answer, _ = await recv(peer)
    assert isinstance(answer, OptionAck)
    granted = {name: int(value) for name, value in answer.options}
    assert granted["blksize"] * granted["windowsize"] <= 4 << 20


async def test_requests_from_many_ports_take_no_more_than_the_limits_allow(root: Path) -> None:
    guard = Guard(max_sessions=50, max_sessions_per_client=10)
    async with (
        serve(root, "127.0.0.1", 0, guard=guard, grace=0) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(40):
            endpoint = await stack.enter_async_context(udp.bind("127.0.0.1", 0))
            await endpoint.send(encode_packet(ReadRequest("file")), server.address)
        await until(lambda: server.stats.requests + server.stats.dropped == 40)
        assert server.stats.active == 10


@pytest.mark.parametrize("names", [["file"], ["file", "other"], ["file", "missing"]])
@pytest.mark.parametrize("single_port", [False, True])
async def test_requests_that_are_forged_again_and_again_are_not_all_reflected(
    root: Path, names: list[str], single_port: bool
) -> None:
    (root / "other").write_bytes(CONTENT)
    patient = Timing(initial=30.0, floor=30.0, cap=30.0)
    async with (
        serve(root, "127.0.0.1", 0, single_port=single_port, timing=patient, grace=0) as server,
        udp.bind("127.0.0.1", 0) as victim,
    ):
        blocks = 0
        for name in itertools.cycle(names):
            await victim.send(encode_packet(ReadRequest(name)), server.address)
            blocks += isinstance((await recv(victim))[0], Data)
            if blocks == 4:
                break
        for name in names * 30:
            await victim.send(encode_packet(ReadRequest(name)), server.address)
        await until(lambda: server.stats.dropped == 30 * len(names))
        for _ in range(10):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            victim.recv_nowait()


@pytest.mark.parametrize("single_port", [False, True])
async def test_a_victim_that_has_waited_may_ask_itself(
    root: Path, single_port: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tftp.server._UNHEARD_SECONDS", 0.0)
    async with (
        serve(root, "127.0.0.1", 0, single_port=single_port, timing=QUICK, grace=0) as server,
        udp.bind("127.0.0.1", 0) as victim,
    ):
        for number in range(6):
            await victim.send(encode_packet(ReadRequest("file")), server.address)
            while server.stats.failed <= number:
                await asyncio.sleep(0.001)
        assert server.stats.dropped == 0


async def test_a_victim_that_refuses_is_sent_no_more_than_one_that_is_silent(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0, grace=0) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.3", 0))  # no port of the server's
            address = gone.getsockname()
        (listener,) = server.listeners
        request = encode_packet(ReadRequest("file"))
        for number in range(4):
            listener.inject(request, address)
            while server.stats.failed <= number:
                await asyncio.sleep(0.001)
        listener.inject(request, address)
        assert (server.stats.requests, server.stats.dropped) == (4, 1)


async def test_who_answers_is_answered_as_often_as_it_asks(server: Server, peer: Endpoint) -> None:
    for _ in range(10):
        await peer.send(encode_packet(ReadRequest("file")), server.address)
        answer, transfer = await recv(peer)
        assert answer == Data(1, CONTENT[:512])
        await peer.send(encode_packet(Ack(1)), transfer)
        assert (await recv(peer))[0] == Data(2, CONTENT[512:1024])
        await peer.send(encode_packet(Error(0, "enough")), transfer)
        await until(lambda: server.stats.active == 0)
    assert server.stats.dropped == 0


@pytest.mark.parametrize("name", [
    "../secret", "a/../../secret", "..\\secret", "/../secret", "../served-private/file", "//../secret", "..", "a/..",
    "file/../../secret", "C:\\..\\secret", "\\\\host\\share", "link", "folder-link/secret", "%2e%2e/secret",
    "..%2fsecret", "..\udcff/secret", "....//secret", "./../secret", "file\n", "file\x7f", "fifo",
])  # fmt: skip
async def test_names_that_lead_outside_or_to_what_is_no_file(
    server: Server, peer: Endpoint, root: Path, name: str
) -> None:
    """CVE-2026-21620, CVE-2012-6664, and the issues of six other programs."""
    private = root.with_name("served-private")
    private.mkdir()
    for folder in (root.parent, private):
        (folder / "secret").write_bytes(b"secret")
        (folder / "file").write_bytes(b"secret")
    (root / "link").symlink_to("../secret")
    (root / "folder-link").symlink_to("..")
    os.mkfifo(root / "fifo")
    before = sorted(os.listdir(root))
    await peer.send(encode_packet(ReadRequest(name)), server.address)
    answer, _ = await recv(peer)
    assert isinstance(answer, Error)
    assert answer.code in (1, 2)
    await peer.send(encode_packet(WriteRequest(name)), server.address)
    answer, transfer = await recv(peer)
    if not isinstance(answer, Error):  # a name that is unusual, and new, and inside
        await peer.send(encode_packet(Error(0, "enough")), transfer)
        await until(lambda: server.stats.active == 0)
    assert sorted(os.listdir(root)) == before
    assert (root.parent / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_name_cannot_write_lines_into_the_log(
    root: Path, log_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncnet.tftp")
    name = b"x\n2026-01-01 forged line\x1b[2J\xff\xe2\x80\xae"
    async with serve(root, "127.0.0.1", 0, log_format=log_format) as server:  # type: ignore[arg-type]
        async with udp.bind("127.0.0.1", 0) as peer:
            await peer.send(b"\0\1" + name + b"\0octet\0", server.address)
            await recv(peer)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "asyncnet.tftp"]
    assert line.isascii() or log_format == "text"
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line)["name"] == name.decode("utf-8", "surrogateescape")


async def test_a_stranger_cannot_end_or_change_an_upload(server: Server, peer: Endpoint, root: Path) -> None:
    await peer.send(encode_packet(WriteRequest("new")), server.address)
    _, transfer = await recv(peer)
    async with udp.bind("127.0.0.1", 0) as stranger:
        for packet in (Error(0, "forged"), Data(1, b"forged"), Ack(0)):
            await stranger.send(encode_packet(packet), transfer)
    await peer.send(encode_packet(Data(1, b"genuine")), transfer)
    assert (await recv(peer))[0] == Ack(1)
    assert (root / "new").read_bytes() == b"genuine"


async def test_nothing_that_arrives_ends_the_server(quick_server: Server, root: Path) -> None:
    """Random datagrams, half of them nearly right, to the listening port and to transfers."""
    server = quick_server
    dice = random.Random(6)
    packets = [
        encode_packet(ReadRequest("file", "octet", (("blksize", "1024"), ("windowsize", "8")))),
        encode_packet(WriteRequest("new", "netascii", (("tsize", "10"),))),
        encode_packet(Ack(3)),
        encode_packet(Data(2, b"x" * 600)),
        encode_packet(OptionAck((("blksize", "9"),))),
        encode_packet(Error(3, "full")),
    ]
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(udp.bind("127.0.0.1", 0, policy="drop-oldest")) for _ in range(8)]
        for _ in range(3000):
            peer = dice.choice(peers)
            raw = bytearray(dice.choice(packets))
            for _ in range(dice.choice((0, 0, 1, 3))):
                raw[dice.randrange(len(raw))] = dice.randrange(256)
            raw = raw[: dice.choice((len(raw), len(raw), dice.randrange(len(raw) + 1)))]
            to = server.address
            with contextlib.suppress(BlockingIOError):
                if dice.random() < 0.5:
                    to = peer.recv_nowait()[1]
            with contextlib.suppress(OSError):  # a transfer that is over refuses
                await peer.send(bytes(raw), to)
            if dice.random() < 0.05:
                await asyncio.sleep(0)
    await until(lambda: server.stats.active == 0)
    await still_serves(server)
    assert not [name for name in os.listdir(root) if name.endswith(".part")]
