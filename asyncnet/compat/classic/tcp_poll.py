"""A TCP server that registers its sockets with poll, which names the descriptors that are ready.

It is select without the limit of 1024 descriptors. The system still looks at all of them with every call.
"""

from __future__ import annotations

import select
import sys
import time
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    clients: dict[int, tuple[socket, object]] = {}
    unsent: dict[int, bytes] = {}
    poller = select.poll()
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(10)
        # Mended: a client may leave between poll and the call, and a socket that blocks would hold up all others.
        listener.setblocking(False)
        poller.register(listener.fileno(), select.POLLIN)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            # Mended: a signal that comes right before the wait would be slept over, hence the 1000 ms.
            for descriptor, _ in poller.poll(1000):
                if descriptor == listener.fileno():
                    try:
                        client, address = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError:  # Mended: when descriptors run out, the server waits for some and goes on.
                        time.sleep(0.01)
                        continue
                    client.setblocking(False)
                    clients[client.fileno()] = (client, address)
                    poller.register(client.fileno(), select.POLLIN)
                    continue
                client, address = clients[descriptor]
                try:
                    if descriptor in unsent:  # Mended: send() may take a part only, and the rest was lost.
                        unsent[descriptor] = unsent[descriptor][client.send(unsent[descriptor]) :]
                        if not unsent[descriptor]:
                            del unsent[descriptor]
                            poller.modify(descriptor, select.POLLIN)
                        continue
                    data = client.recv(1024)
                except BlockingIOError:
                    continue
                except OSError:  # Mended: one client's reset ended the server.
                    data = b""
                if data:
                    # Mended: bytes of a stranger need not be UTF-8.
                    print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
                    unsent[descriptor] = data
                    poller.modify(descriptor, select.POLLOUT)  # it is read again when it has got its answer
                else:
                    print(f"{address} is offline")
                    poller.unregister(descriptor)  # Mended: the next client may get the same number.
                    del clients[descriptor]
                    unsent.pop(descriptor, None)
                    client.close()
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        for client, _ in clients.values():
            client.close()
        listener.close()
