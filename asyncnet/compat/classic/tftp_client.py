"""A TFTP client (RFC 1350): it asks for a file and takes it block by block, acknowledging each.

The request goes to port 69, and the answers come from a new port, which is the server's end of this transfer. A packet
shorter than 516 bytes, which are 512 bytes of data, is the last. Block numbers have 16 bits: 65536 becomes 0.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from errno import ENOENT
from socket import AF_INET, SOCK_DGRAM, socket

__all__ = ["main"]

READ_REQUEST, DATA, ACK, ERROR = 1, 3, 4, 5


def main(host: str = "127.0.0.1", port: int = 69, name: str = "", path: str = "") -> None:
    """Download a file; without a name it asks for one, without a path it stores the file under its name."""
    name = name or input("the name of the file: ")
    # Mended: a name with a directory in it was written there, wherever that is on this host.
    path = path or os.path.basename(name)
    # Mended: an old file of that name was lost when the transfer failed.
    partial = f"{path}.part"
    client = socket(AF_INET, SOCK_DGRAM)
    try:
        with open(partial, "wb") as file:
            receive(client, (host, port), name.encode(), file.write)
        os.replace(partial, path)
    finally:
        client.close()
        if os.path.exists(partial):  # Mended: it is removed whatever went wrong, not only after an ERROR.
            os.remove(partial)


def receive(client: socket, server: tuple[str, int], name: bytes, write: Callable[[bytes], object]) -> None:
    """Ask for a file, and write its blocks in their order."""
    # Mended: the length that is packed is one of bytes, not of characters.
    sent = struct.pack(f"!H{len(name)}sb5sb", READ_REQUEST, name, 0, b"octet", 0)
    peer, expected, silences = server, 1, 0
    client.settimeout(1.0)
    client.sendto(sent, peer)
    while True:
        try:
            packet, address = client.recvfrom(516)
        except TimeoutError:  # Mended: a datagram that is lost is sent again, and a dead server is given up.
            silences += 1
            if silences == 5:
                raise TimeoutError("no answer in 5 tries") from None
            client.sendto(sent, peer)
            continue
        if peer == server:
            peer = address
        if address != peer or len(packet) < 4:  # Mended: anybody could send a block, or end the program.
            continue
        opcode, number = struct.unpack("!HH", packet[:4])
        if opcode == ERROR and number == 1:
            raise FileNotFoundError(ENOENT, "there is no such file on the server", name.decode())
        if opcode == ERROR:  # Mended: other errors were reported as a missing file, too.
            raise OSError(f"the server says: {packet[4:].rstrip(bytes(1)).decode(errors='backslashreplace')}")
        if opcode == DATA:
            print(number)
            acknowledgement = struct.pack("!HH", ACK, number)
            client.sendto(acknowledgement, peer)
            if number == expected:
                write(packet[4:])
                sent, silences = acknowledgement, 0
                expected = (expected + 1) % 65536  # Mended: the number is one of 16 bits.
                if len(packet) < 516:  # Mended: only a block that is written can be the last.
                    return
