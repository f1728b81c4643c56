"""A client's session on a wire that writes down what is sent, without sockets."""

from __future__ import annotations

import errno
from typing import Any

from asyncnet.addresses import Address
from asyncnet.tftp.files import BytesSink
from asyncnet.tftp.packets import Data, Error, ReadRequest, encode_packet
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.session import Session
from asyncnet.tftp.transfer import Receiver
from asyncnet.udp.ancillary import Train

SERVER: Address = ("192.0.2.1", 69)
TID: Address = ("192.0.2.1", 5000)


class Timer:
    def cancel(self) -> None: ...


class Wire:
    """Writes down what is sent; its timer never fires."""

    def __init__(self, session: Session) -> None:
        self.sent: list[tuple[bytes, Address | None]] = []
        self.closed = False
        session.begin(self, lambda delay, callback: Timer())

    def sendto(self, data: bytes | memoryview, addr: Address | None = None) -> None:
        self.sent.append((bytes(data), addr))

    def send_segments(self, data: memoryview, segment_size: int, addr: Address | None = None) -> None:
        for start in range(0, len(data), segment_size):
            self.sendto(data[start : start + segment_size], addr)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def close(self) -> None:
        self.closed = True


def download() -> tuple[ReceiveSession, Wire]:
    session = ReceiveSession(BytesSink(), Receiver(), opening=encode_packet(ReadRequest("file")), server=SERVER)
    return session, Wire(session)


def test_the_error_of_a_stranger_gets_no_answer() -> None:
    session, wire = download()
    session.datagram_received(encode_packet(Data(1, bytes(512))), TID)
    sent = len(wire.sent)
    stranger = "192.0.2.1", 7000
    for packet in (Error(5, "unknown"), Error(0)):
        session.datagram_received(encode_packet(packet), stranger)
        session.trains_received([Train(memoryview(encode_packet(packet)), 100, stranger)])
    assert len(wire.sent) == sent
    session.datagram_received(encode_packet(Data(2, b"")), stranger)
    assert wire.sent[-1] == (encode_packet(Error(5, "unknown transfer ID")), stranger)
    assert not session.over


def test_what_the_error_queue_holds_is_taken_for_every_error() -> None:
    """Whatever stays in it wakes the loop for ever; and only a refusal ends the transfer."""
    session, _ = download()
    queue: list[Address] = []
    taken = 0

    def refused() -> list[Address]:
        nonlocal taken
        taken += 1
        return queue

    session.refused = refused
    for number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTUNREACH):
        session.error_received(OSError(number, "no way"))
    assert taken == 3
    assert not session.over
    queue.append(SERVER)
    session.error_received(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert taken == 4
    assert isinstance(session.error, ConnectionRefusedError)
