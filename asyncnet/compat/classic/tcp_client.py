"""A TCP client: it connects, sends, and prints the response.

TCP carries a stream of bytes and knows no messages: what was sent in one piece may arrive in many. This client says
that it has sent everything by closing its half of the connection, and reads until the server closes the other.
"""

from __future__ import annotations

from socket import AF_INET, SHUT_WR, SOCK_STREAM, socket

__all__ = ["main"]


def main(host: str = "127.0.0.1", port: int = 8899, text: str = "haha") -> None:
    """Send a text to a server and print its response."""
    client = socket(AF_INET, SOCK_STREAM)
    try:
        client.settimeout(10.0)  # Mended: a server that never answers held it for ever.
        client.connect((host, port))
        # Mended: send() may take a part only, and text has to be encoded.
        client.sendall(text.encode())
        client.shutdown(SHUT_WR)
        # Mended: one recv() may bring a part of the response only.
        response = b""
        while data := client.recv(1024):
            response += data
        print(response.decode(errors="backslashreplace"))
    finally:  # Mended: the socket is closed also when there is no server.
        client.close()
