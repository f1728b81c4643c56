"""The PROXY protocol: headers of both versions, cut anywhere and damaged anywhere."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncnet import tcp
from asyncnet.errors import PacketError
from asyncnet.tcp import proxy
from asyncnet.tcp.proxy import HeaderParser, ProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"


def version2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def addresses(source: str, destination: str, *ports: int) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return b"".join(socket.inet_pton(family, host) for host in (source, destination)) + struct.pack("!HH", *ports)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V2 = version2(0x21, 0x11, addresses("192.0.2.7", "198.51.100.1", 56324, 443) + tlv(2, b"example.com") + tlv(4, b"\0\0"))
V2_IPV6 = version2(0x21, 0x21, addresses("2001:db8::7", "2001:db8::1", 1, 65535))
V2_UNIX = version2(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"))
HEADERS = [V1, V2, V2_IPV6, V2_UNIX, b"PROXY UNKNOWN\r\n", version2(0x20, 0, b""), version2(0x21, 0, tlv(5, b"id"))]


def parse(data: bytes, step: int = 1 << 16) -> tuple[ProxyHeader | None, bytes]:
    """Return the header, and what follows it."""
    parser = HeaderParser()
    while data and parser.header is None:
        piece = data[:step]
        data = data[parser.feed(piece) :]
    return parser.header, data


def test_version_1() -> None:
    expected = ProxyHeader(1, ("192.0.2.7", 56324), ("198.51.100.1", 443))
    assert parse(V1 + b"GET /") == (expected, b"GET /")
    header, _ = parse(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n")
    assert header is not None
    assert header.source == ("2001:db8::7", 1, 0, 0)
    assert parse(b"PROXY UNKNOWN ffff:f...f 1 2\r\nrest") == (ProxyHeader(1, None, None), b"rest")


def test_version_2() -> None:
    tlvs = ((2, b"example.com"), (4, b"\0\0"))
    assert parse(V2 + b"GET /") == (ProxyHeader(2, ("192.0.2.7", 56324), ("198.51.100.1", 443), tlvs), b"GET /")
    assert parse(V2_IPV6)[0] == ProxyHeader(2, ("2001:db8::7", 1, 0, 0), ("2001:db8::1", 65535, 0, 0))
    assert parse(V2_UNIX)[0] == ProxyHeader(2, "/run/a", "/run/b")


def test_a_proxy_that_speaks_for_itself_names_nobody() -> None:
    header, _ = parse(version2(0x20, 0x11, addresses("192.0.2.7", "198.51.100.1", 1, 2)))
    assert header == ProxyHeader(2, None, None)


def test_a_checksum_is_compared() -> None:
    body = addresses("192.0.2.7", "198.51.100.1", 1, 2)
    whole = version2(0x21, 0x11, body + tlv(3, bytes(4)))
    right = proxy._crc32c(whole)
    assert proxy._crc32c(b"123456789").hex() == "e3069283"  # the check value of RFC 3720
    assert parse(version2(0x21, 0x11, body + tlv(3, right)))[0] is not None
    with pytest.raises(PacketError, match="checksum"):
        parse(version2(0x21, 0x11, body + tlv(3, bytes(4))))


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_is_the_same_however_it_is_cut(header: bytes) -> None:
    whole = parse(header + b"rest")
    assert whole[1] == b"rest"
    for step in range(1, len(header) + 5):
        assert parse(header + b"rest", step) == whole
    for end in range(len(header)):
        assert parse(header[:end])[0] is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 0443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n",
        b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
        b"PROXY TCP4 192.0.2.7\r198.51.100.1 1 2\r\n",
        b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
        b"PROXY " + b"x" * 200,
        SIGNATURE + b"\x31",
        SIGNATURE + b"\x22",
        version2(0x21, 0x41, bytes(12)),
        version2(0x21, 0x11, bytes(11)),
        version2(0x21, 0x11, bytes(12) + b"\x02\x00\x05abc"),
        version2(0x21, 0x11, bytes(12) + b"\x02\x00"),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_header_is_refused_at_once(data: bytes) -> None:
    for step in (1, 5, 1 << 16):
        with pytest.raises(PacketError, match="PROXY protocol"):
            parse(data, step)


@settings(max_examples=500, deadline=None)
@example(header=V2, place=0, byte=0, step=1)
@given(st.sampled_from(HEADERS), st.integers(0, 300), st.integers(0, 255), st.integers(1, 40))
def test_a_damaged_header_is_refused_or_understood_alike(header: bytes, place: int, byte: int, step: int) -> None:
    place %= len(header)
    data = header[:place] + bytes([byte]) + header[place + 1 :] + b"rest"
    try:
        whole = parse(data)
    except PacketError:
        with pytest.raises(PacketError):
            parse(data, step)
        return
    assert parse(data, step) == whole


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes_are_a_header_or_a_packet_error(data: bytes, prefix: bytes) -> None:
    try:
        parse(prefix + data, 7)
    except PacketError:
        pass


# The server.


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    header = writer.get_extra_info("proxy")
    peer = writer.get_extra_info("peername")
    writer.write(f"{peer[0]} {writer.get_extra_info('proxy_peername')[0]} {header.version} ".encode())
    writer.write(await reader.readline())


async def ask(server: tcp.Server, *pieces: bytes) -> bytes:
    reader, writer = await tcp.connect(*server.address[:2], timeout=10)
    try:
        for piece in pieces:
            writer.write(piece)
            for _ in range(3):  # the turn of the loop in which it leaves, and the one in which it is read
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_a_trusted_proxy_names_the_client(header: bytes) -> None:
    async with tcp.serve(tell, "127.0.0.1", 0, proxy_from=["127.0.0.0/8"]) as server:
        expected = f"192.0.2.7 127.0.0.1 {1 if header is V1 else 2} hello\n".encode()
        assert await ask(server, header + b"hello\n") == expected
        assert await ask(server, *(bytes([byte]) for byte in header), b"hello\n") == expected


async def test_a_connection_from_elsewhere_has_no_header() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert writer.get_extra_info("proxy") is None
        writer.write(await reader.readline())

    async with tcp.serve(echo, "127.0.0.1", 0, proxy_from=["192.0.2.0/24"]) as server:
        assert await ask(server, V1) == V1


async def test_a_trusted_proxy_must_send_a_header_in_time() -> None:
    async with tcp.serve(tell, "127.0.0.1", 0, proxy_from=["127.0.0.1"], handshake_timeout=0.05) as server:
        assert await ask(server, b"hello\n") == b""
        assert await ask(server, V1[:20]) == b""
        assert server.stats.handshakes_failed == 2
        assert server.stats.active == 0


async def test_a_limit_for_each_client_counts_whom_the_proxy_names() -> None:
    async with tcp.serve(tell, "127.0.0.1", 0, proxy_from=["127.0.0.1"], max_per_client=1) as server:
        _, first = await tcp.connect(*server.address[:2])
        first.write(V1)
        async with asyncio.timeout(10):
            while not server.stats.active:
                await asyncio.sleep(0.001)
            assert await ask(server, V1 + b"hello\n") == b""
            assert server.stats.rejected == 1
            other = b"PROXY TCP4 192.0.2.8 198.51.100.1 56324 443\r\n"
            assert await ask(server, other + b"hello\n") == b"192.0.2.8 127.0.0.1 1 hello\n"
        first.close()


async def test_a_malformed_network_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0' is no network"):
        tcp.serve(tell, "127.0.0.1", 0, proxy_from=["10.0.0"])
