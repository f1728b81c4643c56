"""A TCP server with a thread for each client, which may block as it likes: the others run on.

Its code is the plainest of all. Each thread has a stack, and the system switches between them, which costs more than
to call the next coroutine.
"""

from __future__ import annotations

import sys
import time
from socket import AF_INET, SHUT_RDWR, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from threading import Thread

__all__ = ["main"]

clients: set[socket] = set()


def serve_client(client: socket, address: object) -> None:
    """Print what a client sends, and send it back, until it closes."""
    try:
        while data := client.recv(1024):
            # Mended: bytes of a stranger need not be UTF-8.
            print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
            client.sendall(data)  # Mended: send() may take a part only.
        print(f"{address} is offline")
    except OSError:  # Mended: a reset ended the thread with a traceback.
        pass
    finally:
        clients.discard(client)
        client.close()


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(5)
        # Mended: a signal that comes right before the wait would be slept over for ever.
        listener.settimeout(1.0)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            try:
                client, address = listener.accept()
            except TimeoutError:
                continue
            except OSError:  # Mended: when descriptors run out, the server waits for some and goes on.
                time.sleep(0.1)
                continue
            clients.add(client)
            try:
                Thread(target=serve_client, args=(client, address)).start()
            except RuntimeError:  # Mended: when the system gives no more threads, one client is refused.
                clients.discard(client)
                client.close()
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        listener.close()
        # Mended: the program waits for its threads, and each for its client; now their reads come to an end.
        for client in clients.copy():
            try:
                client.shutdown(SHUT_RDWR)
            except OSError:  # this one is gone already
                pass
