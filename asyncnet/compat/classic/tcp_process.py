"""A TCP server with a process for each client, which shares nothing with the others and may even crash alone.

A process is the dearest way to wait for a client: it needs memory, a start and an end of its own. It is the one
that uses every processor.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve_client(listener: socket, client: socket, address: object) -> None:
    """Print what a client sends, and send it back, until it closes."""
    # Mended: Ctrl+C reaches every process, and each wrote a traceback; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    listener.close()  # Mended: a port stays taken as long as any process has it open.
    try:
        while data := client.recv(1024):
            # Mended: bytes of a stranger need not be UTF-8.
            print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
            client.sendall(data)  # Mended: send() may take a part only.
        print(f"{address} is offline")
    except OSError:  # Mended: a reset ended the process with a traceback.
        pass
    finally:
        client.close()


def main(host: str = "", port: int = 7788) -> None:
    """Echo until Ctrl+C; an empty host means every address."""
    # A socket goes to a child by fork, which copies the table of descriptors.
    processes = multiprocessing.get_context("fork")
    listener = socket(AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(5)
        # Mended: a signal that comes right before the wait would be slept over for ever.
        listener.settimeout(1.0)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            # Mended: a process that has ended stays in the system's table until its parent asks for it, as this does.
            multiprocessing.active_children()
            try:
                client, address = listener.accept()
            except TimeoutError:
                continue
            except OSError:  # Mended: when descriptors run out, the server waits for some and goes on.
                time.sleep(0.1)
                continue
            # Mended: a signal in the middle of a fork would leave a child that nobody knows.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                processes.Process(target=serve_client, args=(listener, client, address)).start()
            except OSError:  # Mended: when the system gives no more processes, one client is refused.
                pass
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                client.close()  # The child has its own; the connection ends when both are closed.
    except KeyboardInterrupt:  # Mended: the loop had no way out.
        pass
    finally:
        listener.close()
        # Mended: the program waits for its children, and each for its client. They have nothing to tidy up.
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
