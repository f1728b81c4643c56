"""A question to everybody on the network: one datagram to the broadcast address, then every answer that comes.

The system sends to a broadcast address only for a socket that says so by ``SO_BROADCAST``. A host takes an address for
its own network when the bitwise AND with its mask gives the same as for its own address.
"""

from __future__ import annotations

from socket import AF_INET, SO_BROADCAST, SOCK_DGRAM, SOL_SOCKET, socket

__all__ = ["main"]


def main(host: str = "<broadcast>", port: int = 7788, text: str = "Hi") -> None:
    """Send a text to everybody and print the answers until Ctrl+C."""
    asker = socket(AF_INET, SOCK_DGRAM)
    try:
        asker.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
        # Mended: a socket takes bytes, not text.
        asker.sendto(text.encode(), (host, port))
        # Mended: a signal that comes right before the wait would be slept over for ever.
        asker.settimeout(1.0)
        while True:
            try:
                data, address = asker.recvfrom(2048)
            except TimeoutError:
                continue
            # Mended: it printed bytes; they are text for a person, and need not be UTF-8.
            print(f"Received from {address}: {data.decode(errors='backslashreplace')}")
    except KeyboardInterrupt:  # Mended: Ctrl+C ended it with a traceback.
        pass
    finally:
        asker.close()
