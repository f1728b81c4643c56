"""A TCP server on gevent: a greenlet for each client, and a switch to another whenever one would wait.

It reads like the server with a thread for each client, and costs no threads: the greenlets share one, and gevent's loop
wakes those whose sockets are ready.
"""

from __future__ import annotations

import signal
import sys

import gevent
from gevent import socket  # Mended: patching the standard library changes it for the whole program.
from gevent.pool import Group

__all__ = ["main"]


def serve_client(client: socket.socket, address: object) -> None:
    """Print what a client sends, and send it back, until it closes."""
    try:
        while data := client.recv(1024):
            # Mended: bytes of a stranger need not be UTF-8.
            print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
            client.sendall(data)  # Mended: send() may take a part only.
        print(f"{address} is offline")
    except OSError:  # Mended: a reset ended the greenlet with a traceback.
        pass
    finally:
        client.close()


def accept_clients(listener: socket.socket, greenlets: Group) -> None:
    """Start a greenlet for each client."""
    print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
    while True:
        try:
            client, address = listener.accept()
        except OSError:  # Mended: when descriptors run out, the server waits for some and goes on.
            gevent.sleep(0.1)
            continue
        greenlets.spawn(serve_client, client, address)


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    greenlets = Group()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(5)
        accepting = gevent.spawn(accept_clients, listener, greenlets)
        # Mended: Ctrl+C was raised in any greenlet that happened to run, and the loop had no other way out.
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, accepting.kill, block=False)
        accepting.join()
    finally:
        greenlets.kill()
        listener.close()
