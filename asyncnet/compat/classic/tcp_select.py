"""A TCP server that asks select which sockets are ready, and never waits for one of them alone.

select takes the whole list with every call, so it slows with the number of clients, and it knows no descriptor from
1024 up.
"""

from __future__ import annotations

import select
import sys
import time
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]

LIMIT = 1024
"""FD_SETSIZE of the C library, which Python does not tell."""


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    addresses: dict[socket, object] = {}
    unsent: dict[socket, bytes] = {}
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(10)
        # Mended: a client may leave between select and the call, and a socket that blocks would hold up all others.
        listener.setblocking(False)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            # Mended: a client that does not read is not read either, so that what it has to get stays small.
            reading = [listener, *(client for client in addresses if client not in unsent)]
            # Mended: a signal that comes right before the wait would be slept over, hence the second.
            readable, writable, _ = select.select(reading, list(unsent), [], 1.0)
            for sock in [*readable, *writable]:
                try:
                    if sock is listener:
                        client, address = listener.accept()
                        client.setblocking(False)
                        if client.fileno() < LIMIT:
                            addresses[client] = address
                        else:  # Mended: select raises ValueError for this one, which ended the server.
                            client.close()
                        continue
                    if sock in unsent:
                        unsent[sock] = unsent[sock][sock.send(unsent[sock]) :]
                        if not unsent[sock]:
                            del unsent[sock]
                        continue
                    data = sock.recv(1024)
                except BlockingIOError:
                    continue
                except OSError:  # Mended: one client's reset, or a lack of descriptors, ended the server.
                    if sock is listener:
                        time.sleep(0.01)
                        continue
                    data = b""
                if data:
                    # Mended: bytes of a stranger need not be UTF-8.
                    print(f"recv[{addresses[sock]}]:{data.decode(errors='backslashreplace')}")
                    unsent[sock] = data  # Mended: send() may take a part only, so it waits for select, too.
                else:
                    print(f"{addresses.pop(sock)} is offline")
                    unsent.pop(sock, None)
                    sock.close()
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        for sock in [listener, *addresses]:
            sock.close()
