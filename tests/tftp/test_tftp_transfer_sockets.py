"""Client and server on real sockets, on both loops, also over a bad network and with hostile peers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncnet import testing, udp
from asyncnet.addresses import Address
from asyncnet.errors import AddressError, LocalError, RemoteError
from asyncnet.tftp import Client, Timing, get, parse_url, put, serve
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
from asyncnet.tftp.server import Server
from asyncnet.udp import Endpoint

CONTENT = random.Random(1).randbytes(200_000)
PATIENT = Timing(initial=30.0, floor=30.0, cap=30.0)
QUICK = Timing(initial=0.05, floor=0.05, cap=0.1, max_retransmits=3, patience=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(CONTENT)
    return served


@pytest.fixture(params=["a port each", "single port"])
async def server(root: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    single_port = request.param == "single port"
    async with serve(
        root, "127.0.0.1", 0, write="overwrite", timing=QUICK, grace=0.5, single_port=single_port
    ) as server:
        yield server


@pytest.fixture(params=["a port each", "single port"])
async def patient_server(root: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """It sends nothing again by itself, however long the machine pauses."""
    single = request.param == "single port"
    async with serve(root, "127.0.0.1", 0, write="overwrite", timing=PATIENT, grace=0, single_port=single) as server:
        yield server


def left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1428, 1428 * 16, 100_000])
@pytest.mark.parametrize(("block_size", "window_size"), [(512, 1), (1428, 16), (8, 64), (65464, 4)])
async def test_files_arrive_as_they_are_in_both_directions(
    server: Server, root: Path, tmp_path: Path, size: int, block_size: int, window_size: int
) -> None:
    content = CONTENT[:size] if block_size > 8 else CONTENT[: size // 50]
    (root / "down").write_bytes(content)
    async with Client(*server.address[:2], block_size=block_size, window_size=window_size) as client:
        report = await client.download("down", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
        assert (report.bytes, report.block_size, report.window_size) == (len(content), block_size, window_size)
        report = await client.upload(tmp_path / "got", "up")
        assert (root / "up").read_bytes() == content
        assert report.bytes == len(content)
        assert report.confirmed
    assert server.stats.completed == 2
    assert not left_behind(root)
    assert not left_behind(tmp_path)


async def test_read_and_write_take_bytes(server: Server, root: Path) -> None:
    async with Client(*server.address[:2]) as client:
        assert await client.read("file") == CONTENT
        await client.write("new", b"hello")
        assert (root / "new").read_bytes() == b"hello"


async def test_text_mode_converts_line_ends(server: Server, root: Path) -> None:
    text = b"one\ntwo\rthree\n" * 500
    (root / "text").write_bytes(text)
    async with Client(*server.address[:2], mode="netascii") as client:
        assert await client.read("text") == text
        await client.write("back", text)
    assert (root / "back").read_bytes() == text
    async with Client(*server.address[:2], mode="octet") as client:
        assert await client.read("text") == text


async def test_many_transfers_run_at_once(server: Server) -> None:
    async with Client(*server.address[:2]) as client:
        copies = await asyncio.gather(*(client.read("file") for _ in range(30)))
    assert all(copy == CONTENT for copy in copies)


async def test_progress_is_told_up_to_the_whole(server: Server, root: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    async with Client(*server.address[:2]) as client:
        await client.download("file", tmp_path / "got", progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (len(CONTENT), len(CONTENT))
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        steps.clear()
        await client.upload(root / "file", "up", progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (len(CONTENT), len(CONTENT))


async def test_a_missing_file_is_a_remote_error_and_the_target_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    async with Client(*server.address[:2]) as client:
        with pytest.raises(RemoteError) as caught:
            await client.download("nowhere", tmp_path / "target")
    assert caught.value.code == 1
    assert caught.value.text
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not left_behind(tmp_path)
    assert server.stats.refused == 1


async def test_a_server_is_read_only_unless_told_otherwise(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0) as server, Client(*server.address[:2]) as client:
        with pytest.raises(RemoteError) as caught:
            await client.write("new", b"x")
    assert caught.value.code == 2
    assert os.listdir(root) == ["file"]


async def test_names_that_lead_outside_are_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    async with Client(*server.address[:2]) as client:
        for name in ("../secret", "..\\secret", "x/../../secret"):
            with pytest.raises(RemoteError) as caught:
                await client.read(name)
            assert caught.value.code == 2


async def test_a_refused_port_fails_at_once(tmp_path: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as unused:
        port = unused.local_addr[1]
    async with Client("127.0.0.1", port) as client:
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
            await client.download("file", tmp_path / "got")
    assert not list(tmp_path.iterdir())


async def test_a_silent_server_is_given_up_with_its_address(tmp_path: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as silent, Client(*silent.local_addr[:2], timing=QUICK) as client:
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{silent.local_addr[1]}"):
            await client.download("file", tmp_path / "got")
        assert silent.stats.received == 4
    assert not list(tmp_path.iterdir())


async def test_a_cancelled_download_leaves_nothing_and_tells_the_server(tmp_path: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as peer, Client(*peer.local_addr[:2], timing=PATIENT) as client:
        task = asyncio.create_task(client.download("file", tmp_path / "got"))
        _, address = await peer.recv()
        await peer.send(encode_packet(OptionAck((("blksize", "1428"),))), address)
        assert decode_packet((await peer.recv())[0]) == Ack(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(decode_packet((await peer.recv())[0]), Error)
    assert not list(tmp_path.iterdir())


async def test_a_failing_progress_callback_ends_the_download_with_its_error(server: Server, tmp_path: Path) -> None:
    def fail(done: int, total: int | None) -> None:
        raise ZeroDivisionError

    async with Client(*server.address[:2]) as client:
        with pytest.raises(ZeroDivisionError):
            await client.download("file", tmp_path / "got", progress=fail)
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("window_size", [1, 16])
async def test_a_transfer_over_a_bad_network_arrives_whole(root: Path, tmp_path: Path, window_size: int) -> None:
    """10 % of the datagrams are lost, some arrive twice, some out of order."""
    quick = Timing(initial=0.05, floor=0.005, window_floor=0.005, max_retransmits=12, patience=0)
    size = 3_000_000 if window_size > 1 else 200_000
    block_size = None if window_size > 1 else 1428  # few blocks are no network: any count of theirs may be 0
    content = random.Random(2).randbytes(size)
    (root / "big").write_bytes(content)
    async with (
        serve(root, "127.0.0.1", 0, write="overwrite", timing=quick) as server,
        testing.udp_relay(server.address, seed=5, loss=0.1, duplicate=0.03, reorder=0.03) as relay,
        Client(*relay.address[:2], block_size=block_size, window_size=window_size, timing=quick) as client,
    ):
        report = await client.download("big", tmp_path / "got")
        assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(content).digest()
        assert report.bytes == size
        await client.upload(tmp_path / "got", "back")
        assert hashlib.sha256((root / "back").read_bytes()).digest() == hashlib.sha256(content).digest()
        assert relay.stats.lost > 0.05 * relay.stats.arrived
        assert relay.stats.duplicated
        assert relay.stats.reordered


# A server written by hand, to play the client false


@asynccontextmanager
async def scripted_server() -> AsyncIterator[Endpoint]:
    async with udp.bind("127.0.0.1", 0) as endpoint:
        yield endpoint


async def send(endpoint: Endpoint, packet: Packet, address: Address) -> None:
    await endpoint.send(encode_packet(packet), address)


async def recv(endpoint: Endpoint) -> Packet:
    async with asyncio.timeout(5):
        return decode_packet((await endpoint.recv())[0])


async def test_a_stranger_gets_error_5_and_changes_nothing() -> None:
    async with scripted_server() as peer, udp.bind("127.0.0.1", 0) as stranger, Client(*peer.local_addr[:2]) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        await send(peer, Data(1, b"x" * 512), address)
        assert await recv(peer) == Ack(1)
        await send(stranger, Data(2, b"forged"), address)
        answer = await recv(stranger)
        assert isinstance(answer, Error)
        assert answer.code == 5
        await send(stranger, Error(0, "forged"), address)
        await send(peer, Data(2, b"end"), address)
        assert await task == b"x" * 512 + b"end"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which address refused")
async def test_a_stranger_who_is_gone_when_it_is_answered_changes_nothing() -> None:
    """ERROR 5 comes back as refused: by the stranger, not by the server."""
    async with scripted_server() as peer, Client(*peer.local_addr[:2]) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        await send(peer, Data(1, b"x" * 512), address)
        assert await recv(peer) == Ack(1)
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(encode_packet(Data(2, b"forged")), address)
        for _ in range(5):  # the client answers, and hears that nobody is there
            await asyncio.sleep(0.01)
        await send(peer, Data(2, b"end"), address)
        assert await task == b"x" * 512 + b"end"


async def test_a_server_without_options_gets_plain_rfc_1350() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2], block_size=1428) as client:
        task = asyncio.create_task(client.read("file"))
        raw, address = await peer.recv()
        request = decode_packet(raw)
        assert isinstance(request, ReadRequest)
        assert dict(request.options) == {"blksize": "1428", "windowsize": "16", "tsize": "0"}
        await send(peer, Error(8, "no options here"), address)
        raw, address = await peer.recv()
        assert decode_packet(raw) == ReadRequest("file")
        await send(peer, Data(1, b"plain"), address)
        assert await task == b"plain"


async def test_an_oack_beyond_what_was_asked_is_refused_with_error_8() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2], block_size=1428) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        await send(peer, OptionAck((("blksize", "9000"),)), address)
        answer = await recv(peer)
        assert isinstance(answer, Error)
        assert answer.code == 8
        with pytest.raises(LocalError):
            await task


async def test_a_block_longer_than_agreed_ends_the_transfer() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2]) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        await send(peer, Data(1, b"x" * 513), address)
        answer = await recv(peer)
        assert isinstance(answer, Error)
        assert answer.code == 4
        with pytest.raises(LocalError):
            await task


async def test_garbage_from_the_server_is_dropped_and_the_transfer_goes_on() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2]) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        for garbage in (b"", b"\0", b"\0\3", b"\xff" * 100, b"\0\1a\0octet\0", encode_packet(Ack(9))):
            await peer.send(garbage, address)
        await send(peer, Data(1, b"fine"), address)
        assert await task == b"fine"


async def test_an_error_text_cannot_write_to_the_terminal() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2]) as client:
        task = asyncio.create_task(client.read("file"))
        _, address = await peer.recv()
        await send(peer, Error(2, "no\x1b[2J\nway"), address)
        with pytest.raises(RemoteError) as caught:
            await task
        assert caught.value.text == "no?[2J?way"


async def test_an_upload_whose_last_ack_is_missing_is_sent_unconfirmed() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2], timing=QUICK) as client:
        task = asyncio.create_task(client.write("file", b"x" * 600))
        raw, address = await peer.recv()
        assert isinstance(decode_packet(raw), WriteRequest)
        await send(peer, Ack(0), address)
        packet = await recv(peer)
        while isinstance(packet, WriteRequest):  # again, if the machine has paused
            packet = await recv(peer)
        assert packet == Data(1, b"x" * 512)
        await send(peer, Ack(1), address)
        report = await task
        assert report.bytes == 600
        assert not report.confirmed


@pytest.mark.parametrize("window_size", [1, 16])
async def test_an_upload_of_which_nothing_is_acknowledged_is_no_success(window_size: int) -> None:
    async with (
        scripted_server() as peer,
        Client(*peer.local_addr[:2], timing=QUICK, block_size=512, window_size=window_size) as client,
    ):
        task = asyncio.create_task(client.write("file", b"x" * 100))
        _, address = await peer.recv()
        await send(peer, Ack(0) if window_size == 1 else OptionAck((("windowsize", "16"),)), address)
        assert await recv(peer) == Data(1, b"x" * 100)
        with pytest.raises(TimeoutError, match="does not answer"):
            await task


@pytest.mark.skipif(sys.platform != "linux", reason="a socket that is not connected hears of refusals on Linux")
async def test_an_upload_whose_server_is_gone_at_the_end_fails() -> None:
    async with scripted_server() as peer, Client(*peer.local_addr[:2], timing=QUICK, block_size=512) as client:
        task = asyncio.create_task(client.write("file", b"x" * 600))
        _, address = await peer.recv()
        await send(peer, Ack(0), address)
        assert await recv(peer) == Data(1, b"x" * 512)
        await send(peer, Ack(1), address)
        assert await recv(peer) == Data(2, b"x" * 88)
        await peer.aclose()
        with pytest.raises(ConnectionRefusedError):
            await task


# A client written by hand, to play the server false


async def recv_from(endpoint: Endpoint) -> tuple[Packet, Address]:
    async with asyncio.timeout(5):
        data, address = await endpoint.recv()
    return decode_packet(data), address


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_listening_socket_answers_nothing_but_requests(server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        for packet in (Error(0, "loop"), Ack(1), Data(1, b"x"), OptionAck((("tsize", "1"),))):
            await send(peer, packet, server.address)
        for garbage in (b"\0", b"\0\7\0\0", b"\1\1file\0octet\0"):
            await peer.send(garbage, server.address)
        await send(peer, ReadRequest("file"), server.address)
        first, address = await recv_from(peer)
        assert first == Data(1, CONTENT[:512])
        assert server.stats.malformed == 7
        await send(peer, Error(0, "enough"), address)
        await until(lambda: server.stats.active == 0)


async def test_the_oack_has_the_clients_spelling_and_order(server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        asked = (("tSize", "0"), ("multicast", ""), ("BlkSize", "1024"))
        await send(peer, ReadRequest("file", "octet", asked), server.address)
        answer, address = await recv_from(peer)
        assert answer == OptionAck((("tSize", str(len(CONTENT))), ("BlkSize", "1024")))
        await send(peer, Error(8, "User aborted the transfer"), address)
        await until(lambda: server.stats.active == 0)
    assert server.stats.probes == 1
    assert server.stats.failed == 0


async def test_a_repeated_request_does_not_begin_a_second_transfer(server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        for _ in range(3):
            await send(peer, ReadRequest("file"), server.address)
        first, address = await recv_from(peer)
        assert first == Data(1, CONTENT[:512])
        await until(lambda: server.stats.duplicates == 2)
        assert server.stats.requests == 1
        await send(peer, Error(0, "enough"), address)
        await until(lambda: server.stats.active == 0)


@pytest.mark.parametrize("single_port", [False, True])
async def test_a_new_request_from_the_same_port_replaces_the_old_transfer(root: Path, single_port: bool) -> None:
    """And silently: the client would take an ERROR for the answer to its new request."""
    (root / "other").write_bytes(b"other")
    async with (
        serve(root, "127.0.0.1", 0, single_port=single_port, timing=PATIENT, grace=0) as server,
        udp.bind("127.0.0.1", 0) as peer,
    ):
        await send(peer, ReadRequest("file"), server.address)
        first, _ = await recv_from(peer)
        assert first == Data(1, CONTENT[:512])
        await send(peer, ReadRequest("other"), server.address)
        answer, new = await recv_from(peer)
        assert answer == Data(1, b"other")
        await send(peer, Ack(1), new)
        await until(lambda: server.stats.completed == 1)
        assert server.stats.failed == 1
        assert peer.stats.received == 2


@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize("request_", [ReadRequest("file"), WriteRequest("new")])
async def test_a_copy_of_the_request_that_comes_late_changes_nothing(
    root: Path, single_port: bool, request_: ReadRequest | WriteRequest
) -> None:
    async with (
        serve(root, "127.0.0.1", 0, write="create", single_port=single_port, timing=PATIENT, grace=0) as server,
        udp.bind("127.0.0.1", 0) as peer,
    ):
        await send(peer, request_, server.address)
        _, address = await recv_from(peer)
        reads = isinstance(request_, ReadRequest)
        await send(peer, Ack(1) if reads else Data(1, bytes(512)), address)
        await recv_from(peer)
        await send(peer, request_, server.address)
        await until(lambda: server.stats.duplicates == 1)
        await send(peer, Ack(2) if reads else Data(2, b"end"), address)
        answer, same = await recv_from(peer)
        assert (answer, same) == (Data(3, CONTENT[1024:1536]) if reads else Ack(2), address)
        assert server.stats.requests == 1


async def test_a_client_that_begins_anew_is_served_when_it_answers_no_more(server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, ReadRequest("file"), server.address)
        _, address = await recv_from(peer)
        await send(peer, Ack(1), address)
        packet, _ = await recv_from(peer)
        while packet == Data(1, CONTENT[:512]):  # again, if the machine has paused
            packet, _ = await recv_from(peer)
        assert packet == Data(2, CONTENT[512:1024])
        assert (await recv_from(peer))[0] == Data(2, CONTENT[512:1024])  # it has been silent
        await send(peer, ReadRequest("file"), server.address)
        packet, address = await recv_from(peer)
        while packet != Data(1, CONTENT[:512]):
            packet, address = await recv_from(peer)
        assert server.stats.requests == 2
        await send(peer, Error(0, "enough"), address)
        await until(lambda: server.stats.active == 0)


async def test_nothing_is_sent_in_answer_to_an_error(patient_server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, ReadRequest("file"), patient_server.address)
        _, address = await recv_from(peer)
        await send(peer, Error(0, "enough"), address)
        await until(lambda: patient_server.stats.active == 0)
        with pytest.raises(BlockingIOError):
            peer.recv_nowait()


async def test_before_the_first_ack_little_is_sent(server: Server) -> None:
    """A forged request makes the server send one datagram and a few repetitions, then nothing."""
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, ReadRequest("file"), server.address)
        await until(lambda: server.stats.failed == 1)
        assert peer.stats.received == 1 + QUICK.max_retransmits


async def test_a_client_that_never_sends_the_last_ack_got_its_file(server: Server, root: Path) -> None:
    (root / "two").write_bytes(b"x" * 600)
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, ReadRequest("two"), server.address)
        _, address = await recv_from(peer)
        await send(peer, Ack(1), address)
        await until(lambda: server.stats.completed == 1)
    assert server.stats.unconfirmed == 1
    assert server.stats.failed == 0


async def test_the_last_ack_of_an_upload_is_repeated(patient_server: Server, root: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, WriteRequest("new"), patient_server.address)
        packet, address = await recv_from(peer)
        assert packet == Ack(0)
        for _ in range(2):
            await send(peer, Data(1, b"hello"), address)
            assert (await recv_from(peer))[0] == Ack(1)
            assert (root / "new").read_bytes() == b"hello"
    assert patient_server.stats.completed == 1


async def test_a_failed_upload_leaves_the_old_file(patient_server: Server, root: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, WriteRequest("file"), patient_server.address)
        _, address = await recv_from(peer)
        await send(peer, Data(1, b"x" * 512), address)
        assert (await recv_from(peer))[0] == Ack(1)
        await send(peer, Error(3, "gave up"), address)
        await until(lambda: patient_server.stats.failed == 1)
    assert (root / "file").read_bytes() == CONTENT
    assert not left_behind(root)


async def test_an_unknown_mode_is_refused(server: Server) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        await send(peer, ReadRequest("file", "mail"), server.address)
        answer, _ = await recv_from(peer)
        assert isinstance(answer, Error)
        assert answer.code == 4


async def test_beyond_the_limit_of_transfers_requests_get_no_answer(root: Path) -> None:
    async with (
        serve(root, "127.0.0.1", 0, max_sessions=1, grace=0.0) as server,
        udp.bind("127.0.0.1", 0) as first,
        udp.bind("127.0.0.1", 0) as second,
    ):
        await send(first, ReadRequest("file"), server.address)
        await recv(first)
        await send(second, ReadRequest("file"), server.address)
        await until(lambda: server.stats.dropped == 1)
        assert second.stats.received == 0


async def test_closing_waits_for_running_transfers(root: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        server = await serve(root, "127.0.0.1", 0, grace=5.0)
        (root / "two").write_bytes(b"x" * 600)
        await send(peer, ReadRequest("two"), server.address)
        _, address = await recv_from(peer)
        closing = asyncio.create_task(server.aclose())
        await send(peer, Ack(1), address)
        assert (await recv_from(peer))[0] == Data(2, b"x" * 88)
        assert not closing.done()
        await send(peer, Ack(2), address)
        await closing
        assert server.stats.completed == 1
        await server.aclose()


async def test_closing_ends_transfers_that_take_too_long(root: Path) -> None:
    async with udp.bind("127.0.0.1", 0) as peer:
        server = await serve(root, "127.0.0.1", 0)
        await send(peer, ReadRequest("file"), server.address)
        await recv(peer)
        await server.aclose(grace=0.0)
        assert isinstance(await recv(peer), Error)
        assert server.stats.failed == 1


async def test_serving_ends_when_cancelled(root: Path) -> None:
    server = await serve(root, "127.0.0.1", 0)
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with udp.bind(*server.address[:2]):
        pass


async def test_a_port_in_use_is_one_line_with_the_way_out(server: Server, root: Path) -> None:
    with pytest.raises(OSError, match="another program uses that port") as caught:
        await serve(root, *server.address[:2])
    assert f"127.0.0.1:{server.address[1]}" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_root_that_is_no_directory_is_refused(root: Path) -> None:
    with pytest.raises(OSError, match="file"):
        await serve(root / "file", "127.0.0.1", 0)


def test_wrong_parameters_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="sometimes"):
        serve(root, write="sometimes")
    with pytest.raises(ValueError, match="max_sessions"):
        serve(root, max_sessions=0)
    with pytest.raises(ValueError, match="mode"):
        Client("127.0.0.1", mode="mail")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block_size"):
        Client("127.0.0.1", block_size=4)


@pytest.mark.skipif(not socket.has_ipv6, reason="this host has no IPv6")
async def test_ipv6(root: Path, tmp_path: Path) -> None:
    async with serve(root, "::1", 0) as server, Client("::1", server.address[1]) as client:
        assert await client.read("file") == CONTENT


# URLs


async def test_get_and_put_by_url(server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = f"tftp://127.0.0.1:{server.address[1]}"
    await get(f"{base}/file", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == CONTENT
    (root / "sub").mkdir()
    await put(tmp_path / "got", f"{base}/sub/")
    assert (root / "sub" / "got").read_bytes() == CONTENT
    monkeypatch.chdir(tmp_path)
    await get(f"{base}/sub/got;mode=octet")
    with pytest.raises(RemoteError):
        await get(f"{base}/nowhere")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("tftp://host/name", ("host", 69, "name", "octet")),
        ("tftp://host:6969/a/b;mode=netascii", ("host", 6969, "a/b", "netascii")),
        ("tftp://host//etc/x", ("host", 69, "/etc/x", "octet")),
        ("tftp://[::1]:70/a%20b", ("::1", 70, "a b", "octet")),
        ("tftp://host/sharp#1", ("host", 69, "sharp#1", "octet")),
    ],
)
def test_urls(url: str, parts: tuple[str, int, str, str]) -> None:
    where = parse_url(url)
    assert (where.host, where.port, where.file, where.mode) == parts


@pytest.mark.parametrize("url", ["host/name", "http://host/name", "tftp://host", "tftp://host/", "tftp:///a",
                             "tftp://host:x/a", "tftp://host:99999/a", "tftp://host/a;mode=mail",
                             "tftp://host/a;octet", "tftp://host/a;x=octet"])  # fmt: skip
def test_what_is_no_tftp_url_says_how_one_looks(url: str) -> None:
    with pytest.raises(AddressError, match="URL"):
        parse_url(url)
