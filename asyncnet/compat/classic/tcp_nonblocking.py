"""A TCP server in one process and one thread, whose sockets do not block: it tries accept and recv in turn.

A call that would have to wait raises BlockingIOError instead, and the loop goes on to the next client. Each turn costs
calls for all clients, also for those that have nothing to say. Every read is answered with "hahaha".
"""

from __future__ import annotations

import sys
import time
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]

IDLE = 0.001
"""Seconds between turns in which nothing happens."""


def main(host: str = "", port: int = 8899) -> None:
    """Answer "hahaha" to everything until Ctrl+C; an empty host means every address."""
    clients: list[tuple[socket, object]] = []
    unsent: dict[socket, bytes] = {}
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        # Mended: right after a stop, the port was refused.
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
        listener.listen(100)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            idle = True
            try:
                client, address = listener.accept()
            except OSError:  # Nobody waits. Mended: or descriptors have run out, which was the end of the server.
                pass
            else:
                client.setblocking(False)
                clients.append((client, address))
                unsent[client] = b""
                idle = False
            # Mended: a list that loses items while it is walked skips their neighbours, so this walks a copy.
            for client, address in clients[:]:
                try:
                    if unsent[client]:  # Mended: send() may take a part only; the rest goes before the next read.
                        unsent[client] = unsent[client][client.send(unsent[client]) :]
                        idle = False
                        continue
                    data = client.recv(1024)
                except BlockingIOError:
                    continue
                except OSError:  # Mended: one client's reset ended the server.
                    data = b""
                idle = False
                if data:
                    # Mended: bytes of a stranger need not be UTF-8.
                    print(f"{address}:{data.decode(errors='backslashreplace')}")
                    unsent[client] = b"hahaha"
                else:
                    print(f"{address} is offline")
                    client.close()
                    clients.remove((client, address))
                    del unsent[client]
            if idle:  # Mended: a server with nothing to do took a whole processor.
                time.sleep(IDLE)
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        for client, _ in clients:
            client.close()
        listener.close()
