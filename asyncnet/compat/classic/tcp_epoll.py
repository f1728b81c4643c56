"""A TCP server over epoll, edge-triggered: the system tells of a descriptor once, when something happens to it.

Its cost follows the clients that are active, not all of them. Who is told once must go on until the system says that
there is no more, which is BlockingIOError (EAGAIN), because nothing is told about bytes that are left lying.
"""

from __future__ import annotations

import select
import sys
import time
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]

BOUND = 16
"""Calls in a row for one descriptor; then the others have their turn."""


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    clients: dict[int, tuple[socket, object]] = {}
    unsent: dict[int, bytes] = {}
    active: set[int] = set()  # those that have not said BlockingIOError since their event
    epoll = select.epoll()
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(10)
        listener.setblocking(False)  # Mended: the call that finds nothing more would hold up everybody.
        epoll.register(listener.fileno(), select.EPOLLIN | select.EPOLLET)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:  # Mended: the listing stops after registering; this is its loop.
            # A signal that comes right before the wait would be slept over, hence the second.
            for descriptor, _ in epoll.poll(0 if active else 1.0):
                active.add(descriptor)
            for descriptor in list(active):
                for _ in range(BOUND):
                    try:
                        if descriptor == listener.fileno():
                            client, address = listener.accept()
                            client.setblocking(False)
                            clients[client.fileno()] = (client, address)
                            epoll.register(client.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                            continue
                        client, address = clients[descriptor]
                        if rest := unsent.get(descriptor):  # Mended: send() may take a part only.
                            unsent[descriptor] = rest[client.send(rest) :]
                            continue
                        data = client.recv(1024)
                    except BlockingIOError:
                        active.discard(descriptor)  # the next event brings it back
                        break
                    except OSError:
                        if descriptor == listener.fileno():  # descriptors have run out: it stays active
                            time.sleep(0.01)
                            break
                        data = b""
                    if data:
                        print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
                        unsent[descriptor] = data
                    else:
                        print(f"{address} is offline")
                        active.discard(descriptor)
                        epoll.unregister(descriptor)  # Mended: the next client may get the same number.
                        del clients[descriptor]
                        unsent.pop(descriptor, None)
                        client.close()
                        break
    except KeyboardInterrupt:  # Mended: Ctrl+C ended it with a traceback.
        pass
    finally:
        for client, _ in clients.values():
            client.close()
        listener.close()
        epoll.close()
