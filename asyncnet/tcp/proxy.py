"""The PROXY protocol, versions 1 and 2, as its receiver: who really is at the other end. Without I/O.

The specification is https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. A receiver must know that a header
comes and must not guess; so either one is there or the connection is refused.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from functools import cache
from typing import Final

import attrs

from asyncnet.addresses import Address
from asyncnet.errors import PacketError

__all__ = ["MAX_HEADER", "HeaderParser", "ProxyHeader"]

_LONGEST_V1: Final = 107
_LONGEST_TAIL: Final = 4096
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PREFIX: Final = b"PROXY "
_FIXED: Final = struct.Struct("!12sBBH")
_INET: Final = struct.Struct("!4s4sHH")
_INET6: Final = struct.Struct("!16s16sHH")
_UNIX: Final = struct.Struct("!108s108s")
_TLV: Final = struct.Struct("!BH")
_CRC32C: Final = 0x03
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,4}", re.ASCII)

MAX_HEADER: Final = _FIXED.size + _LONGEST_TAIL
"""Bytes of the longest header that is accepted."""


@attrs.frozen
class ProxyHeader:
    """What a proxy tells of a connection that it passes on."""

    version: int
    """1 or 2."""
    source: Address | str | None
    """The client; None when the proxy speaks for itself, or does not know. A string is the path of a Unix socket."""
    destination: Address | str | None
    """What the client has connected to."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Further fields of version 2, type and value, in their order."""


class HeaderParser:
    """Takes the header from the beginning of a connection, however it is cut.

    Attributes:
        header: what it says, once it is complete.
    """

    def __init__(self) -> None:
        self.header: ProxyHeader | None = None
        self._data = b""

    def feed(self, data: bytes) -> int:
        """Take what belongs to the header.

        Args:
            data: what comes next; bytes after the header may follow.

        Returns:
            How many of the bytes were taken: all, until the header is complete.

        Raises:
            PacketError: this is no header.
        """
        before = len(self._data)
        self._data += data
        end = _end(self._data)
        if end is None:
            return len(data)
        whole = self._data[:end]
        self.header = _version2(whole) if whole.startswith(_SIGNATURE) else _version1(whole)
        return end - before


def _end(data: bytes) -> int | None:
    """Return the header's length; None when it is not complete."""
    if _SIGNATURE.startswith(data[:12]):
        if len(data) > 12 and data[12] not in (0x20, 0x21):
            raise PacketError(f"PROXY protocol: version and command 0x{data[12]:02x} are unknown")
        if len(data) < _FIXED.size:
            return None
        length = int.from_bytes(data[14:16], "big")
        if length > _LONGEST_TAIL:
            raise PacketError(f"PROXY protocol: a header of {length} bytes is too long")
        return _FIXED.size + length if len(data) >= _FIXED.size + length else None
    if not _PREFIX.startswith(data[: len(_PREFIX)]):
        raise PacketError(f"PROXY protocol: the connection begins with {data[:12]!r}, which is no header")
    line = data[:_LONGEST_V1]
    feed = line.find(b"\n")
    returned = line.find(b"\r")
    if (0 <= returned < len(line) - 1 and feed != returned + 1) or feed >= 0 > returned:
        raise PacketError("PROXY protocol: a carriage return and a line feed must come together")
    if feed < 0 and len(data) >= _LONGEST_V1:
        raise PacketError(f"PROXY protocol: the line is longer than {_LONGEST_V1} bytes")
    return feed + 1 if feed >= 0 else None


def _version1(line: bytes) -> ProxyHeader:
    fields = line[:-2].split(b" ")
    if fields[1] == b"UNKNOWN":
        return ProxyHeader(1, None, None)
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise PacketError(f"PROXY protocol: {line!r} is malformed")
    try:
        family = ipaddress.IPv4Address if fields[1] == b"TCP4" else ipaddress.IPv6Address
        if b"%" in line:
            raise ValueError("a scope means nothing on another host")
        hosts = [family(field.decode("ascii")) for field in fields[2:4]]
    except ValueError as exc:
        raise PacketError(f"PROXY protocol: {line!r} has a bad address: {exc}") from exc
    if not all(_NUMBER.fullmatch(field) and int(field) <= 65535 for field in fields[4:]):
        raise PacketError(f"PROXY protocol: {line!r} has a bad port")
    source, destination = (_address(host, int(port)) for host, port in zip(hosts, fields[4:], strict=True))
    return ProxyHeader(1, source, destination)


def _address(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    return (str(host), port) if host.version == 4 else (str(host), port, 0, 0)


def _version2(data: bytes) -> ProxyHeader:
    _, command, family, _ = _FIXED.unpack_from(data)
    if family not in (0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32):
        raise PacketError(f"PROXY protocol: address family and protocol 0x{family:02x} are unknown")
    layout = {0: struct.Struct(""), 1: _INET, 2: _INET6, 3: _UNIX}[family >> 4]
    if len(data) < _FIXED.size + layout.size:
        raise PacketError("PROXY protocol: the header is too short for its addresses")
    source: Address | str | None = None
    destination: Address | str | None = None
    fields = layout.unpack_from(data, _FIXED.size)
    if layout is _UNIX:
        source, destination = (field.partition(b"\0")[0].decode("utf-8", "surrogateescape") for field in fields)
    elif fields:
        source = _address(ipaddress.ip_address(fields[0]), fields[2])
        destination = _address(ipaddress.ip_address(fields[1]), fields[3])
    if command == 0x20:  # LOCAL: the proxy speaks for itself, and addresses mean nothing
        source = destination = None
    return ProxyHeader(2, source, destination, _tlvs(data, _FIXED.size + layout.size))


def _tlvs(data: bytes, offset: int) -> tuple[tuple[int, bytes], ...]:
    found = []
    while offset < len(data):
        if len(data) - offset < _TLV.size:
            raise PacketError("PROXY protocol: the last field is cut")
        kind, length = _TLV.unpack_from(data, offset)
        offset += _TLV.size
        value = data[offset : offset + length]
        if len(value) < length:
            raise PacketError("PROXY protocol: the last field is cut")
        if kind == _CRC32C and value != _crc32c(data[:offset] + bytes(length) + data[offset + length :]):
            raise PacketError("PROXY protocol: the checksum is wrong")
        found.append((kind, value))
        offset += length
    return tuple(found)


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _crc32c(data: bytes) -> bytes:
    """Return the Castagnoli checksum of RFC 4960 appendix B, in the order of the network."""
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return (value ^ 0xFFFFFFFF).to_bytes(4, "big")
