"""A UDP receiver: it binds a port, so that others can name it, and prints every datagram that comes.

A datagram arrives whole or not at all. What is longer than the 1024 bytes of a read is cut off.
"""

from __future__ import annotations

import sys
from socket import AF_INET, SOCK_DGRAM, socket

__all__ = ["main"]


def main(host: str = "", port: int = 8080) -> None:
    """Print what arrives at an address until Ctrl+C; an empty host means every address."""
    receiver = socket(AF_INET, SOCK_DGRAM)
    try:
        receiver.bind((host, port))
        # Mended: a signal that comes right before the wait would be slept over for ever.
        receiver.settimeout(1.0)
        print("listening on {}:{}".format(*receiver.getsockname()), file=sys.stderr)
        while True:
            try:
                data, _ = receiver.recvfrom(1024)
            except TimeoutError:
                continue
            # Mended: bytes of a stranger need not be UTF-8, and must not end the loop.
            print(data.decode(errors="backslashreplace"))
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        receiver.close()
