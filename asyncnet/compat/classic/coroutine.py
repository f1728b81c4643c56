"""Coroutines made of generators: functions that keep their variables and switch to another by ``yield``.

The principle is two generators that take turns. The server is the same at work: each generator yields the socket it
waits for, and the loop goes on with one whose socket is ready. It reads like threads, and is a single one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, DefaultSelector
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

__all__ = ["main"]


def count(name: str) -> Generator[None, None, None]:
    """Print the number of each turn; the variables live on while the other runs."""
    for turn in (1, 2, 3):  # Mended: it counted without an end.
        print(f"{name}: turn {turn}")
        yield


def take_turns() -> None:
    """Run two generators, a step of one, then a step of the other."""
    first, second = count("first"), count("second")
    while "the end" not in (next(first, "the end"), next(second, "the end")):
        pass


def echo(client: socket, address: object) -> Generator[tuple[socket, int], None, None]:
    """Print what a client sends, and send it back, until it closes."""
    with client:
        yield client, EVENT_READ
        while data := client.recv(1024):
            print(f"recv[{address}]:{data.decode(errors='backslashreplace')}")
            while data:  # send() may take a part only
                yield client, EVENT_WRITE
                data = data[client.send(data) :]
            yield client, EVENT_READ
        print(f"{address} is offline")


def advance(waiter: Generator[tuple[socket, int], None, None], selector: BaseSelector) -> None:
    """Run a generator to its next ``yield``, and note what it waits for."""
    try:
        selector.register(*next(waiter), waiter)
    except (StopIteration, OSError):  # it has ended; a reset ends this client, and no other
        pass


def main(host: str | None = None, port: int = 7788) -> None:
    """Let two generators take turns; with a host, echo there until Ctrl+C instead."""
    if host is None:
        take_turns()
        return
    with socket(AF_INET, SOCK_STREAM) as listener, DefaultSelector() as selector, suppress(KeyboardInterrupt):
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(10)
        listener.setblocking(False)
        selector.register(listener, EVENT_READ)
        print("listening on {}:{}".format(*listener.getsockname()), file=sys.stderr)
        while True:
            for key, _ in selector.select(1.0):  # a signal right before the wait would be slept over for ever
                if key.fileobj is not listener:
                    selector.unregister(key.fileobj)
                    advance(key.data, selector)
                    continue
                try:
                    client, address = listener.accept()
                except OSError:  # the client has left again, or descriptors have run out for a while
                    time.sleep(0.01)
                    continue
                client.setblocking(False)
                advance(echo(client, address), selector)
