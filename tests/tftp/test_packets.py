"""The codec: what is encoded is decoded again, and any bytes either decode or raise PacketError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncnet.errors import PacketError
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

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
names = texts.filter(bool)
modes = st.sampled_from(["octet", "netascii", "mail", "strange"])
numbers = st.integers(0, 65535)


@st.composite
def option_pairs(draw: st.DrawFn) -> OptionPairs:
    pairs = draw(st.lists(st.tuples(names, texts.filter(bool)), max_size=4, unique_by=lambda pair: pair[0].lower()))
    return tuple(pairs)


packets: st.SearchStrategy[Packet] = st.one_of(
    st.builds(ReadRequest, names, modes, option_pairs()),
    st.builds(WriteRequest, names, modes, option_pairs()),
    st.builds(Data, numbers, st.binary(max_size=600)),
    st.builds(Ack, numbers),
    st.builds(Error, numbers, texts),
    st.builds(OptionAck, option_pairs()),
)


@given(packets)
def test_every_packet_survives_the_wire(packet: Packet) -> None:
    raw = encode_packet(packet)
    assert decode_packet(raw) == packet
    assert decode_packet(memoryview(raw)) == packet
    assert encode_packet(decode_packet(raw)) == raw


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_packet_error(raw: bytes) -> None:
    try:
        decode_packet(raw)
    except PacketError:
        pass


@pytest.mark.parametrize(
    ("packet", "raw"),
    [
        (ReadRequest("a.txt", "octet"), b"\0\1a.txt\0octet\0"),
        (WriteRequest("a", "netascii", (("blksize", "1428"),)), b"\0\2a\0netascii\0blksize\x001428\0"),
        (Data(258, b"xyz"), b"\0\3\1\2xyz"),
        (Data(1, b""), b"\0\3\0\1"),
        (Ack(65535), b"\0\4\xff\xff"),
        (Error(1, "File not found"), b"\0\5\0\1File not found\0"),
        (OptionAck((("tsize", "7"),)), b"\0\6tsize\x007\0"),
    ],
)
def test_the_bytes_are_those_of_the_rfc(packet: Packet, raw: bytes) -> None:
    assert encode_packet(packet) == raw
    assert decode_packet(raw) == packet


@pytest.mark.parametrize(
    ("raw", "packet"),
    [
        pytest.param(b"\0\1a\0OCTET\0", ReadRequest("a"), id="mode in capitals"),
        pytest.param(b"\0\1a\0octet\0multicast\0\0", ReadRequest("a", "octet", (("multicast", ""),)), id="iPXE tftm"),
        pytest.param(b"\0\1a\0octet\0blksize\x0099", ReadRequest("a", "octet", (("blksize", "99"),)), id="no last NUL"),
        pytest.param(b"\0\1a\0octet\0blksize\0", ReadRequest("a"), id="option without value"),
        pytest.param(b"\0\1a\0octet\0\0\0\0", ReadRequest("a"), id="padding"),
        pytest.param(
            b"\0\1a\0octet\0\0x\x001\0", ReadRequest("a"), id="PXELINUX stops at an option that starts with NUL"
        ),
        pytest.param(
            b"\0\1a\0octet\0tsize\x000\0TSIZE\x009\0", ReadRequest("a", "octet", (("tsize", "0"),)), id="first of two"
        ),
        pytest.param(b"\0\4\0\7\x10", Ack(7), id="Windows appends the next window to an ACK"),
        pytest.param(b"\0\5\0\2no NUL", Error(2, "no NUL"), id="error text without NUL"),
        pytest.param(b"\0\5\0\2", Error(2, ""), id="error without text"),
        pytest.param(b"\0\6blksize\x00512\0\0\0", OptionAck((("blksize", "512"),)), id="padded OACK"),
        pytest.param(b"\0\1\xff\xfe\0octet\0", ReadRequest("\udcff\udcfe"), id="name that is no UTF-8"),
    ],
)
def test_what_real_clients_send_is_understood(raw: bytes, packet: Packet) -> None:
    assert decode_packet(raw) == packet


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0", b"\0\3", b"\0\3\0", b"\0\4\0", b"\0\5\1", b"\0\0\0\0", b"\0\7\0\0", b"\1\1a\0octet\0",
     b"\0\1", b"\0\1a", b"\0\1a\0", b"\0\1a\0octet", b"\0\1\0octet\0"],
)  # fmt: skip
def test_what_is_no_packet_raises_packet_error(raw: bytes) -> None:
    with pytest.raises(PacketError):
        decode_packet(raw)


@pytest.mark.parametrize(
    "packet",
    [Ack(65536), Ack(-1), Data(70000, b""), ReadRequest(""), ReadRequest("a\0b"), ReadRequest("a", ""),
     ReadRequest("x" * 510), ReadRequest("a", "octet", (("", "1"),)), Error(1, "a\0b"), Error(-1)],
)  # fmt: skip
def test_what_does_not_fit_the_wire_raises_value_error(packet: Packet) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode_packet(packet)
