"""The wire format of TFTP: RFC 1350 section 5, and RFC 2347 for options and OACK.

Decoding is lenient where real boot firmware is sloppy and nothing is ambiguous: bytes after the last complete
option pair, a missing final NUL, an ACK longer than four bytes. Everything else raises `PacketError`, and only that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import attrs

from asyncnet.errors import PacketError

__all__ = [
    "DEFAULT_BLOCK_SIZE",
    "HEADER",
    "MAX_REQUEST_SIZE",
    "Ack",
    "Data",
    "Error",
    "ErrorCode",
    "Opcode",
    "OptionAck",
    "OptionPairs",
    "Packet",
    "ReadRequest",
    "Rollover",
    "WriteRequest",
    "decode_packet",
    "encode_packet",
    "headers",
    "unwrap",
    "wrap",
]

HEADER: Final = struct.Struct("!HH")
"""Opcode and block number, or opcode and error code: the first four bytes of DATA, ACK and ERROR."""

DEFAULT_BLOCK_SIZE: Final = 512
"""Bytes of a DATA block when no option changes it (RFC 1350)."""

MAX_REQUEST_SIZE: Final = 512
"""Bytes of a request at most (RFC 2347); a longer one is encoded by nobody, and accepted if options make it so."""

_OPCODE: Final = struct.Struct("!H")

OptionPairs: TypeAlias = tuple[tuple[str, str], ...]
"""Options as they stand on the wire: name and value, in the sender's order and spelling."""

Rollover: TypeAlias = Literal[0, 1]
"""The block number on the wire that follows 65535."""


class Opcode(IntEnum):
    """The first two bytes of a packet."""

    RRQ = 1
    WRQ = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OACK = 6


class ErrorCode(IntEnum):
    """The codes of ERROR packets (RFC 1350 appendix I; 8 is RFC 2347's)."""

    UNDEFINED = 0
    FILE_NOT_FOUND = 1
    ACCESS_VIOLATION = 2
    DISK_FULL = 3
    ILLEGAL_OPERATION = 4
    UNKNOWN_TID = 5
    FILE_EXISTS = 6
    NO_SUCH_USER = 7
    OPTION_REFUSED = 8


def wrap(block: int, rollover: Rollover = 0) -> int:
    """Return the number of `block` on the wire."""
    if rollover == 0 or block == 0:
        return block & 0xFFFF
    return (block - 1) % 0xFFFF + 1


def unwrap(number: int, near: int, rollover: Rollover = 0) -> int:
    """Return the block that `number` on the wire means: the one closest to the block `near`; it may be negative."""
    modulus = 0x10000 - rollover
    delta = (number - wrap(near, rollover)) % modulus
    return near + delta - modulus if delta > modulus // 2 else near + delta


@lru_cache(maxsize=256)
def headers(block_size: int, count: int) -> struct.Struct:
    """Return the layout of `count` DATA packets one behind the other: their headers.

    Packing makes zeros of the payloads, and unpacking skips them.
    """
    return struct.Struct("!" + f"HH{block_size}x" * count)


@attrs.frozen
class ReadRequest:
    """RRQ: send me this file."""

    filename: str
    """Bytes that are no UTF-8 stand as surrogate escapes."""
    mode: str = "octet"
    """In lower case: ``octet``, ``netascii``, or what else the client asks for."""
    options: OptionPairs = ()


@attrs.frozen
class WriteRequest:
    """WRQ: take this file from me."""

    filename: str
    mode: str = "octet"
    options: OptionPairs = ()


@attrs.frozen
class Data:
    """DATA: one block of the file."""

    block: int
    payload: bytes


@attrs.frozen
class Ack:
    """ACK: the block has arrived, and with a window every block before it."""

    block: int


@attrs.frozen
class Error:
    """ERROR: the transfer is over."""

    code: int
    text: str = ""


@attrs.frozen
class OptionAck:
    """OACK: the options that the server accepts, with its values."""

    options: OptionPairs = ()


Packet: TypeAlias = ReadRequest | WriteRequest | Data | Ack | Error | OptionAck


def encode_packet(packet: Packet) -> bytes:
    """Return the bytes of `packet`.

    Raises:
        ValueError: a field does not fit the wire: a NUL inside a text, an empty file name, mode or option name, a
            number outside 0 to 65535, or a request longer than `MAX_REQUEST_SIZE`.
    """
    match packet:
        case Data(block, payload):
            return _header(Opcode.DATA, block) + payload
        case Ack(block):
            return _header(Opcode.ACK, block)
        case Error(code, text):
            return _header(Opcode.ERROR, code) + _text(text, may_be_empty=True)
        case OptionAck(options):
            return _OPCODE.pack(Opcode.OACK) + _pairs(options)
    opcode = Opcode.RRQ if isinstance(packet, ReadRequest) else Opcode.WRQ
    request = _OPCODE.pack(opcode) + _text(packet.filename) + _text(packet.mode) + _pairs(packet.options)
    if len(request) > MAX_REQUEST_SIZE:
        raise ValueError(f"the request takes {len(request)} bytes, {MAX_REQUEST_SIZE} is the most: shorten the name")
    return request


def _header(opcode: Opcode, number: int) -> bytes:
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{opcode.name} carries a number from 0 to 65535, not {number}")
    return HEADER.pack(opcode, number)


def _text(text: str, *, may_be_empty: bool = False) -> bytes:
    if "\0" in text:
        raise ValueError(f"{text!r} contains NUL, which ends a text on the wire")
    if not text and not may_be_empty:
        raise ValueError("a file name, a mode and the name of an option cannot be empty")
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _pairs(options: OptionPairs) -> bytes:
    return b"".join(_text(name) + _text(value, may_be_empty=True) for name, value in options)


def decode_packet(data: bytes | bytearray | memoryview) -> Packet:
    """Return the packet in `data`.

    Raises:
        PacketError: the bytes are no TFTP packet.
    """
    data = bytes(data)
    if len(data) < 2:
        raise PacketError(f"a packet of {len(data)} bytes has no opcode")
    (opcode,) = _OPCODE.unpack_from(data)
    if opcode in (Opcode.DATA, Opcode.ACK, Opcode.ERROR):
        if len(data) < 4:
            raise PacketError(f"a {Opcode(opcode).name} of {len(data)} bytes is shorter than its header")
        _, number = HEADER.unpack_from(data)
        if opcode == Opcode.DATA:
            return Data(number, data[4:])
        if opcode == Opcode.ACK:
            return Ack(number)
        return Error(number, data[4:].partition(b"\0")[0].decode("utf-8", "replace"))
    if opcode == Opcode.OACK:
        return OptionAck(_decode_options(data, 2))
    if opcode in (Opcode.RRQ, Opcode.WRQ):
        name_end = data.find(b"\0", 2)
        mode_end = data.find(b"\0", name_end + 1)
        if name_end < 0 or mode_end < 0:
            raise PacketError("a request whose file name or mode has no end")
        if name_end == 2:
            raise PacketError("a request without a file name")
        if mode_end >= MAX_REQUEST_SIZE:  # rules are matched against it, and lines of the log hold it
            raise PacketError("the file name is too long")
        kind = ReadRequest if opcode == Opcode.RRQ else WriteRequest
        mode = _decode(data[name_end + 1 : mode_end]).lower()
        return kind(_decode(data[2:name_end]), mode, _decode_options(data, mode_end + 1))
    raise PacketError(f"unknown opcode {opcode}")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _decode_options(data: bytes, start: int) -> OptionPairs:
    found: dict[str, tuple[str, str]] = {}
    for name, value in _option_fields(data, start):
        found.setdefault(name.lower(), (name, value))  # of two with one name the first counts
    return tuple(found.values())


def _option_fields(data: bytes, start: int) -> Iterator[tuple[str, str]]:
    while start < len(data):
        name_end = data.find(b"\0", start)
        if name_end <= start or name_end + 1 >= len(data):  # padding, or a name without a value
            return
        value_end = data.find(b"\0", name_end + 1)
        if value_end < 0:
            value_end = len(data)
        yield _decode(data[start:name_end]), _decode(data[name_end + 1 : value_end])
        start = value_end + 1
