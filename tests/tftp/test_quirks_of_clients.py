"""What real clients send, and what they must get; each test is named after the client it comes from.

The requests are written as bytes, as they stand on the wire.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.tftp import Timing, serve
from asyncnet.tftp.packets import Ack, Data, Error, OptionAck, Packet, decode_packet, encode_packet
from asyncnet.tftp.server import Server
from asyncnet.udp import Endpoint

CONTENT = random.Random(3).randbytes(20_000)
PATIENT = Timing(initial=5.0, floor=5.0, window_floor=5.0)
"""Nothing is sent again because of a timeout."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "file").write_bytes(CONTENT)
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "text").write_bytes(b"one\ntwo\n")
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


@pytest.fixture(params=["a port each", "single port"])
async def server(root: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    single = request.param == "single port"
    async with serve(root, "127.0.0.1", 0, write="create", single_port=single, timing=PATIENT, grace=0) as server:
        yield server


@attrs.define
class Peer:
    """A client written by hand."""

    endpoint: Endpoint
    to: Address

    async def send(self, packet: bytes | Packet) -> None:
        await self.endpoint.send(packet if isinstance(packet, bytes) else encode_packet(packet), self.to)

    async def recv(self) -> Packet:
        """Receive from the server, whose port is the one to send to from then on."""
        async with asyncio.timeout(5):
            data, self.to = await self.endpoint.recv()
        return decode_packet(data)

    async def recv_blocks(self, *numbers: int) -> None:
        for number in numbers:
            packet = await self.recv()
            assert isinstance(packet, Data)
            assert packet.block == number

    async def has_nothing(self) -> None:
        """Assert that nothing came; what the server is to answer must have been answered."""
        with pytest.raises(BlockingIOError):
            self.endpoint.recv_nowait()


@pytest.fixture
async def peer(server: Server) -> AsyncIterator[Peer]:
    async with udp.bind("127.0.0.1", 0) as endpoint:
        yield Peer(endpoint, server.address)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_ipxe_asks_for_the_size_and_aborts(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1boot/file\0octet\0blksize\x001432\0tsize\x000\0")
    assert await peer.recv() == OptionAck((("blksize", "1432"), ("tsize", "20000")))
    await peer.send(Error(0, "TFTP Aborted"))
    await until(lambda: server.stats.probes == 1)
    assert server.stats.failed == 0


async def test_ipxe_asks_for_multicast_with_an_empty_value(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0multicast\0\0blksize\x001432\0")
    assert await peer.recv() == OptionAck((("blksize", "1432"),))
    await peer.send(Ack(0))
    await peer.recv_blocks(1)


async def test_u_boot_gets_its_timeout_and_sizes_as_it_asked(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0timeout\x005\0tsize\x000\0blksize\x001468\0windowsize\x004\0")
    wanted = (("timeout", "5"), ("tsize", "20000"), ("blksize", "1468"), ("windowsize", "4"))
    assert await peer.recv() == OptionAck(wanted)


async def test_u_boot_stops_only_at_errors_1_and_2(peer: Peer, server: Server) -> None:
    """Any other code makes it begin again for ever."""
    for name, code in (("nothing", 1), ("boot", 1), ("../secret", 2)):
        peer.to = server.address
        await peer.send(b"\0\1" + name.encode() + b"\0octet\0timeout\x005\0")
        answer = await peer.recv()
        assert isinstance(answer, Error)
        assert answer.code == code


async def test_u_boot_sends_one_ack_for_a_lost_first_block(peer: Peer, server: Server) -> None:
    """It is the ACK of the window before, and then it waits for five seconds."""
    await peer.send(b"\0\1file\0octet\0blksize\x001468\0windowsize\x004\0")
    await peer.recv()
    await peer.send(Ack(0))
    await peer.recv_blocks(1, 2, 3, 4)
    await peer.send(Ack(4))
    await peer.recv_blocks(5, 6, 7, 8)
    await asyncio.sleep(0.2)  # the answer to a flight comes a round trip later, and a round trip takes its time here
    await peer.send(Ack(4))
    await peer.recv_blocks(5, 6, 7, 8)


async def test_u_boot_takes_the_port_of_its_last_file_for_the_next(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1text\0octet\0")
    assert await peer.recv() == Data(1, b"one\ntwo\n")
    await peer.send(Ack(1))
    await until(lambda: server.stats.completed == 1)
    peer.to = server.address
    await peer.send(b"\0\1file\0octet\0")
    assert await peer.recv() == Data(1, CONTENT[:512])


async def test_old_u_boot_reads_option_names_as_it_wrote_them(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0TIMEOUT\x005\0BlkSize\x001468\0")
    assert await peer.recv() == OptionAck((("TIMEOUT", "5"), ("BlkSize", "1468")))


async def test_grub_needs_an_oack_and_closes_in_the_middle(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1/file\0octet\0blksize\x001024\0tsize\x000\0")
    assert await peer.recv() == OptionAck((("blksize", "1024"), ("tsize", "20000")))
    await peer.send(Ack(0))
    await peer.recv_blocks(1)
    await peer.send(Error(0, "closed"))
    await until(lambda: server.stats.active == 0)
    await peer.has_nothing()


async def test_pxelinux_repeats_request_and_ack(peer: Peer, server: Server) -> None:
    request = b"\0\1file\0octet\0tsize\x000\0blksize\x001408\0"
    for _ in range(3):
        peer.to = server.address
        await peer.send(request)
        assert await peer.recv() == OptionAck((("tsize", "20000"), ("blksize", "1408")))
    assert server.stats.requests == 1
    for _ in range(3):
        await peer.send(Ack(0))
    await peer.recv_blocks(1)
    for _ in range(3):
        await peer.send(Ack(1))
    await peer.recv_blocks(2)
    await peer.send(Error(0, "No error, file close"))
    await until(lambda: server.stats.active == 0)
    await peer.has_nothing()


async def test_edk2_asks_for_the_size_first_and_aborts_with_error_8(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1file\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0")
    assert isinstance(await peer.recv(), OptionAck)
    await peer.send(Error(8, "User aborted the transfer"))
    await until(lambda: server.stats.probes == 1)
    assert server.stats.failed == 0
    peer.to = server.address
    await peer.send(b"\0\1file\0octet\0blksize\x001468\0windowsize\x004\0")
    assert await peer.recv() == OptionAck((("blksize", "1468"), ("windowsize", "4")))


async def test_edk2_acks_every_block_behind_a_gap(peer: Peer, server: Server) -> None:
    """One of these ACKs is worth an answer; an answer to each would be a storm."""
    await peer.send(b"\0\1file\0octet\0blksize\x001468\0windowsize\x008\0")
    await peer.recv()
    await asyncio.sleep(0.3)  # the network's round trip: the ACKs come together, measured by it, even if all pauses
    await peer.send(Ack(0))
    await peer.recv_blocks(*range(1, 9))
    for _ in range(6):  # block 3 was lost, and 4 to 8 have come
        await peer.send(Ack(2))
    await peer.recv_blocks(*range(3, 11))
    await peer.send(Ack(10))
    await peer.recv_blocks(*range(11, 15))


async def test_windows_bootmgr_hears_nothing_of_its_own_option(peer: Peer) -> None:
    await peer.send(b"\0\1\\boot\\file\0octet\0blksize\x001456\0windowsize\x004\0msftwindow\x0031416\0")
    assert await peer.recv() == OptionAck((("blksize", "1456"), ("windowsize", "4")))
    await peer.send(Ack(0))
    await peer.recv_blocks(1, 2, 3, 4)
    await peer.send(encode_packet(Ack(4)) + b"\x04")  # it may append the next window to an ACK
    await peer.recv_blocks(5, 6, 7, 8)


async def test_raspberry_pi_takes_a_duplicate_for_the_next_block(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1file\0octet\0tsize\x000\0blksize\x001024\0")
    await peer.recv()
    for number in range(10):
        for _ in range(2):
            await peer.send(Ack(number))
        await peer.recv_blocks(number + 1)
    await peer.send(Error(0, "Early terminate"))
    await until(lambda: server.stats.active == 0)
    await peer.has_nothing()


async def test_raspberry_pi_looks_for_many_files_that_do_not_exist(peer: Peer, server: Server) -> None:
    for number in range(60):
        peer.to = server.address
        await peer.send(b"\0\x01deadbeef/file%d\0octet\0tsize\x000\0" % number)
        answer = await peer.recv()
        assert isinstance(answer, Error)
        assert answer.code == 1


async def test_bios_roms_append_ff_to_the_name(peer: Peer) -> None:
    await peer.send(b"\0\1file\xff\0octet\0tsize\x000\0")
    assert await peer.recv() == OptionAck((("tsize", "20000"),))


async def test_curl_refuses_a_size_of_zero(peer: Peer, server: Server) -> None:
    await peer.send(b"\0\1empty\0octet\0tsize\x000\0blksize\x00512\0timeout\x006\0")
    assert await peer.recv() == OptionAck((("blksize", "512"), ("timeout", "6")))
    await peer.send(Ack(0))
    assert await peer.recv() == Data(1, b"")
    await peer.send(Ack(1))
    await until(lambda: server.stats.completed == 1)


async def test_curl_names_absolute_files_with_two_slashes(peer: Peer) -> None:
    await peer.send(b"\0\1//boot//file\0octet\0tsize\x000\0")
    assert await peer.recv() == OptionAck((("tsize", "20000"),))


async def test_tftp_hpa_asks_for_the_size_of_a_text(peer: Peer) -> None:
    """The size on the wire is not known beforehand: it is left out, and is no reason for an ERROR."""
    await peer.send(b"\0\1text\0netascii\0tsize\x000\0blksize\x00512\0")
    assert await peer.recv() == OptionAck((("blksize", "512"),))
    await peer.send(Ack(0))
    assert await peer.recv() == Data(1, b"one\r\ntwo\r\n")


async def test_tftp_hpa_asks_for_its_own_options(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0blksize2\x001024\0utimeout\x00100000\0blksize\x001024\0")
    assert await peer.recv() == OptionAck((("blksize", "1024"),))


async def test_atftp_sends_options_of_its_own(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0password\x00secret\0multicast\0\0windowsize\x004\0")
    assert await peer.recv() == OptionAck((("windowsize", "4"),))


async def test_litex_acknowledges_the_oack_of_its_upload(peer: Peer, server: Server, root: Path) -> None:
    await peer.send(b"\0\2new\0octet\0blksize\x00512\0")
    assert await peer.recv() == OptionAck((("blksize", "512"),))
    await peer.send(Ack(0))
    await peer.send(Data(1, b"hello"))
    assert await peer.recv() == Ack(1)
    assert (root / "new").read_bytes() == b"hello"


async def test_cisco_repeats_its_upload_request(peer: Peer, server: Server, root: Path) -> None:
    """The file that the first request has begun is no reason to say that it exists."""
    for _ in range(3):
        peer.to = server.address
        await peer.send(b"\0\2startup-config\0octet\0")
        assert await peer.recv() == Ack(0)
    await peer.send(Data(1, b"hostname x"))
    assert await peer.recv() == Ack(1)
    assert (root / "startup-config").read_bytes() == b"hostname x"


async def test_procurve_uploads_text(peer: Peer, root: Path) -> None:
    await peer.send(b"\0\2config\0NetASCII\0")
    assert await peer.recv() == Ack(0)
    await peer.send(Data(1, b"one\r\ntwo\r\n"))
    assert await peer.recv() == Ack(1)
    assert (root / "config").read_bytes() == os.linesep.join(["one", "two", ""]).encode()


async def test_moba_xterm_pads_its_request(peer: Peer) -> None:
    await peer.send(b"\0\1file\0octet\0blksize\x001024\0" + bytes(400))
    assert await peer.recv() == OptionAck((("blksize", "1024"),))


async def test_a_request_without_an_end_gets_error_4(peer: Peer, server: Server) -> None:
    for malformed in (b"\0\1file", b"\0\1file\0octet", b"\0\2\0octet\0"):
        peer.to = server.address
        await peer.send(malformed)
        answer = await peer.recv()
        assert isinstance(answer, Error)
        assert answer.code == 4
    assert server.stats.malformed == 3
