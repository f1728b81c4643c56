"""What travels between programs of this package: questions, answers, and who is present. Bytes in, packets out.

Every packet begins with the same 16 bytes: the magic, the version, the kind, flags, the attempt, and eight bytes that
name what the packet belongs to. The last 16 bytes of a signed packet are an HMAC-SHA-256 of everything before, cut in
half. A stranger's datagram is told from a damaged one by the magic, and each way to be wrong has its `Fault`, so that
it can be counted by kind.

A version may only add kinds and flags. What changes a layout needs a new version, which old programs count and ignore.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias

import attrs

from asyncnet.errors import PacketError

__all__ = [
    "ID_SIZE",
    "MAGIC",
    "MAX_EXPIRY",
    "MAX_INFO_BYTES",
    "MAX_NAME_BYTES",
    "MAX_WINDOW",
    "NO_ID",
    "VERSION",
    "Answer",
    "Fault",
    "Goodbye",
    "Packet",
    "Present",
    "Question",
    "UndecodableError",
    "Who",
    "check_info",
    "check_name",
    "decode",
    "encode",
]

MAGIC: Final = b"\xa5Net"
"""No text begins so: the first byte is no beginning of a character in UTF-8."""
VERSION: Final = 1
ID_SIZE: Final = 8
NO_ID: Final = bytes(ID_SIZE)
MAX_NAME_BYTES: Final = 63
MAX_INFO_BYTES: Final = 1024
"""Of all keys and values, so that an announcement fits into a datagram that no network divides."""
MAX_EXPIRY: Final = 3600.0
MAX_WINDOW: Final = 60.0

_HEADER: Final = struct.Struct("!4sBBBB8s")  # magic, version, kind, flags, attempt, id
_WINDOW: Final = struct.Struct("!H")  # milliseconds
_WHO: Final = struct.Struct("!QHB")  # when it was sent, window in milliseconds, bytes of the name
_PRESENT: Final = struct.Struct("!8s8sQIIHBB")  # node, nonce, sequence, epoch, expiry in ms, port, name, pairs of info
_GOODBYE: Final = struct.Struct("!QB")  # sequence, bytes of the name
_PAIR: Final = struct.Struct("!BH")  # bytes of a key and of its value
_SIGNED: Final = 0x01
_SIGNATURE_SIZE: Final = 16


class Fault(Enum):
    """Why bytes from the network are no packet."""

    MAGIC = "wrong magic"
    VERSION = "unknown version"
    KIND = "unknown kind"
    MALFORMED = "malformed"
    UNSIGNED = "not signed"
    SIGNATURE = "wrong HMAC"


class UndecodableError(PacketError):
    """Bytes that are no packet.

    Attributes:
        fault: in which way.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class _Kind(Enum):
    QUESTION = 1
    ANSWER = 2
    WHO = 3
    PRESENT = 4
    GOODBYE = 5


@attrs.frozen
class Question:
    """A question to everybody."""

    id: bytes
    attempt: int
    """Counts the repetitions of one question from 0."""
    window: float
    """Seconds over which the answers are to spread."""
    data: bytes


@attrs.frozen
class Answer:
    """An answer to a question."""

    question: bytes
    instance: bytes
    """Of the program that answers."""
    data: bytes


@attrs.frozen
class Who:
    """A newcomer asks who is present."""

    nonce: bytes
    name: str
    """Of the service; empty for every one."""
    sent: int
    """Microseconds since 1970."""
    window: float
    """Seconds over which the answers are to spread."""


@attrs.frozen
class Present:
    """A program says that it is present."""

    instance: bytes
    """Made up at each start."""
    node: bytes
    """The same after a restart."""
    nonce: bytes
    """Of the `Who` that is answered; `NO_ID` when nobody has asked."""
    sequence: int
    """Microseconds since 1970, growing with every packet of the instance."""
    epoch: int
    """Grows when the addresses of the program's host change."""
    expiry: float
    """Seconds for which this holds."""
    port: int
    name: str
    info: Mapping[str, str]


@attrs.frozen
class Goodbye:
    """A program leaves."""

    instance: bytes
    sequence: int
    name: str


Packet: TypeAlias = Question | Answer | Who | Present | Goodbye


def check_name(name: str) -> None:
    """Check the name of a service.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty or too long, or has characters that cannot be printed.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, not {name!r}")
    if not name.isprintable() or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"name must be 1 to {MAX_NAME_BYTES} bytes of printable text, not {name!r}")


def check_info(info: Mapping[str, str]) -> None:
    """Check what goes with a name.

    Raises:
        TypeError: keys and values are not all texts.
        ValueError: it is more than fits.
    """
    if not all(isinstance(text, str) for pair in info.items() for text in pair):
        raise TypeError(f"info must map texts to texts, not {dict(info)!r}")
    if len(info) > 255 or any(not 1 <= len(key.encode()) <= 255 for key in info):
        raise ValueError("info: at most 255 keys, each of 1 to 255 bytes")
    size = sum(len(text.encode()) for pair in info.items() for text in pair)
    if size > MAX_INFO_BYTES:
        raise ValueError(f"info: keys and values may have {MAX_INFO_BYTES} bytes together, not {size}")


def encode(packet: Packet, key: bytes | None = None) -> bytes:
    """Return the bytes of a packet, signed when there is a key."""
    flags = _SIGNED if key is not None else 0
    match packet:
        case Question():
            head = (_Kind.QUESTION.value, flags, min(packet.attempt, 255), packet.id)
            body = _WINDOW.pack(_milliseconds(packet.window, 16)) + packet.data
        case Answer():
            head = (_Kind.ANSWER.value, flags, 0, packet.question)
            body = packet.instance + packet.data
        case Who():
            head = (_Kind.WHO.value, flags, 0, packet.nonce)
            name = packet.name.encode()
            body = _WHO.pack(packet.sent, _milliseconds(packet.window, 16), len(name)) + name
        case Present():
            head = (_Kind.PRESENT.value, flags, 0, packet.instance)
            body = _encode_present(packet)
        case Goodbye():
            head = (_Kind.GOODBYE.value, flags, 0, packet.instance)
            name = packet.name.encode()
            body = _GOODBYE.pack(packet.sequence, len(name)) + name
    whole = _HEADER.pack(MAGIC, VERSION, *head) + body
    return whole if key is None else whole + _signature(whole, key)


def _encode_present(packet: Present) -> bytes:
    name = packet.name.encode()
    parts = [
        _PRESENT.pack(
            packet.node,
            packet.nonce,
            packet.sequence,
            packet.epoch & 0xFFFFFFFF,
            _milliseconds(packet.expiry, 32),
            packet.port,
            len(name),
            len(packet.info),
        ),
        name,
    ]
    for key, value in packet.info.items():
        raw_key, raw_value = key.encode(), value.encode()
        parts += (_PAIR.pack(len(raw_key), len(raw_value)), raw_key, raw_value)
    return b"".join(parts)


def _milliseconds(seconds: float, bits: int) -> int:
    return min(round(seconds * 1000), (1 << bits) - 1)


def _signature(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)[:_SIGNATURE_SIZE]


def decode(data: bytes, key: bytes | None = None) -> Packet:
    """Return the packet in a datagram.

    Args:
        data: the datagram.
        key: when there is one, only what is signed with it is a packet; without one, signatures are not looked at.

    Raises:
        UndecodableError: there is none in it.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise UndecodableError(Fault.MAGIC)
    _, version, kind_number, flags, attempt, ident = _HEADER.unpack_from(data)
    if version != VERSION:
        raise UndecodableError(Fault.VERSION)
    body = data[_HEADER.size :]
    if flags & _SIGNED:
        if len(body) < _SIGNATURE_SIZE:
            raise UndecodableError(Fault.MALFORMED)
        if key is not None and not hmac.compare_digest(
            _signature(data[:-_SIGNATURE_SIZE], key), data[-_SIGNATURE_SIZE:]
        ):
            raise UndecodableError(Fault.SIGNATURE)
        body = body[:-_SIGNATURE_SIZE]
    elif key is not None:
        raise UndecodableError(Fault.UNSIGNED)
    try:
        kind = _Kind(kind_number)
    except ValueError:
        raise UndecodableError(Fault.KIND) from None
    try:
        return _decode_body(kind, attempt, ident, body)
    except (struct.error, UnicodeDecodeError, IndexError):
        raise UndecodableError(Fault.MALFORMED) from None


def _decode_body(kind: _Kind, attempt: int, ident: bytes, body: bytes) -> Packet:
    match kind:
        case _Kind.QUESTION:
            (window,) = _WINDOW.unpack_from(body)
            return Question(ident, attempt, min(window / 1000, MAX_WINDOW), body[_WINDOW.size :])
        case _Kind.ANSWER:
            if len(body) < ID_SIZE:
                raise UndecodableError(Fault.MALFORMED)
            return Answer(ident, body[:ID_SIZE], body[ID_SIZE:])
        case _Kind.WHO:
            sent, window, size = _WHO.unpack_from(body)
            name = _name(body[_WHO.size :], size, or_empty=True)
            return Who(ident, name, sent, min(window / 1000, MAX_WINDOW))
        case _Kind.GOODBYE:
            sequence, size = _GOODBYE.unpack_from(body)
            return Goodbye(ident, sequence, _name(body[_GOODBYE.size :], size))
        case _Kind.PRESENT:
            return _decode_present(ident, body)


def _decode_present(ident: bytes, body: bytes) -> Present:
    node, nonce, sequence, epoch, expiry, port, size, pairs = _PRESENT.unpack_from(body)
    place = _PRESENT.size + size
    name = _name(body[_PRESENT.size : place], size)
    info: dict[str, str] = {}
    for _ in range(pairs):
        key_size, value_size = _PAIR.unpack_from(body, place)
        middle = place + _PAIR.size + key_size
        key, value = body[place + _PAIR.size : middle], body[middle : middle + value_size]
        if not key or len(key) < key_size or len(value) < value_size:
            raise UndecodableError(Fault.MALFORMED)
        info[key.decode()] = value.decode()
        place = middle + value_size
    if place != len(body) or len(info) != pairs or not port or not 0 < expiry <= MAX_EXPIRY * 1000:
        raise UndecodableError(Fault.MALFORMED)
    return Present(ident, node, nonce, sequence, epoch, expiry / 1000, port, name, info)


def _name(raw: bytes, size: int, *, or_empty: bool = False) -> str:
    if len(raw) != size or size > MAX_NAME_BYTES or not (size or or_empty):
        raise UndecodableError(Fault.MALFORMED)
    name = raw.decode()
    if not name.isprintable():
        raise UndecodableError(Fault.MALFORMED)
    return name
