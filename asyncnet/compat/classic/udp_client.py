"""A UDP client: a socket, an address, one ``sendto``, and close.

It binds no port, so the system picks a free one. Nobody says whether the datagram arrives.
"""

from __future__ import annotations

from socket import AF_INET, SOCK_DGRAM, socket

__all__ = ["main"]


def main(host: str = "127.0.0.1", port: int = 8080, text: str = "Hi") -> None:
    """Send one text to an address."""
    client = socket(AF_INET, SOCK_DGRAM)
    try:
        # Mended: a socket takes bytes, and text has none before it is encoded.
        client.sendto(text.encode(), (host, port))
    finally:  # Mended: the socket is closed also when the address is wrong.
        client.close()
