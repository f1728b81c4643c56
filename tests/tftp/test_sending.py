"""The session that sends, without sockets: what leaves is what the source has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asyncnet.addresses import Address
from asyncnet.tftp.files import BytesSource, NetasciiSource
from asyncnet.tftp.options import Options
from asyncnet.tftp.packets import Ack, Data, OptionAck, decode_packet, encode_packet
from asyncnet.tftp.sending import SendSession
from asyncnet.tftp.transfer import Sender


class RecordingWire:
    """Keeps what a session sends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, data: bytes | memoryview, addr: Address | None = None) -> None:
        self.sent.append(bytes(data))

    def send_segments(self, data: memoryview, segment_size: int, addr: Address | None = None) -> None:
        for start in range(0, len(data), segment_size):
            self.sendto(data[start : start + segment_size])

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def close(self) -> None:
        pass


class NoTimer:
    def cancel(self) -> None:
        pass


def no_timer(seconds: float, callback: Callable[[], None]) -> NoTimer:
    return NoTimer()


class SourceOfUnknownSize:
    """What is made while it is sent."""

    size = None

    def __init__(self, data: bytes) -> None:
        source = BytesSource(data)
        self.fill = source.fill
        self.close = source.close


def download(source: Any, block_size: int) -> bytes:
    """Fetch a source in lock-step, as a client that acknowledges each block at once."""
    wire = RecordingWire()
    session = SendSession(source, Sender(opening=False), options=Options(block_size=block_size))
    session.begin(wire, no_timer)
    payloads = []
    while wire.sent:
        packet = decode_packet(wire.sent.pop())
        assert isinstance(packet, Data)
        payloads.append(packet.payload)
        session.datagram_received(encode_packet(Ack(packet.block)), ("192.0.2.1", 1069))
    assert session.over
    assert session.error is None
    assert [len(payload) for payload in payloads[:-1]] == [block_size] * (len(payloads) - 1)
    return b"".join(payloads)


@pytest.mark.parametrize("rest", [0, 1, -1])
@pytest.mark.parametrize("blocks", [1, 2, 3, 30, 31, 32, 62, 63])
@pytest.mark.parametrize("block_size", [512, 8192, 16384])
def test_a_source_of_unknown_size_ends_where_it_ends(block_size: int, blocks: int, rest: int) -> None:
    """Also where the sender finds the end by reading the very block that is to leave."""
    content = bytes(index * index % 251 for index in range(block_size * blocks + rest))
    assert download(SourceOfUnknownSize(content), block_size) == content


@pytest.mark.parametrize("lines", [0, 1, 3967, 3968, 3969])
def test_a_text_ends_where_it_ends(lines: int) -> None:
    assert download(NetasciiSource(BytesSource(b"a\n\n" * lines)), 512) == b"a\r\n\r\n" * lines


@pytest.mark.parametrize("lost", [False, True])
def test_old_tftp_hpa_acknowledges_the_wrap_to_0_as_65535(lost: bool) -> None:
    """It sends the ACK of the block before, followed by the rest of its OACK; without that rest the block was lost."""
    server, wire = ("192.0.2.1", 1069), RecordingWire()
    content = bytes(8 * 0x10000 + 3)
    oack = encode_packet(OptionAck((("blksize", "8"), ("tsize", str(len(content))))))
    session = SendSession(
        BytesSource(content),
        Sender(),
        opening=b"the request",
        server=server,
        negotiate=lambda options: Options(block_size=8),
    )
    session.begin(wire, no_timer)
    session.datagram_received(oack, server)
    ack = b""
    for block in range(1, 0x10000):
        assert wire.sent[-1][:4] == encode_packet(Data(block, b""))
        ack = encode_packet(Ack(block))
        session.datagram_received(ack, server)
    assert wire.sent[-1] == encode_packet(Data(0, bytes(8)))
    session.datagram_received(ack if lost else ack + oack[4:], server)
    assert wire.sent[-1] == encode_packet(Data(0, bytes(8)) if lost else Data(1, bytes(3)))
