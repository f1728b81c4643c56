"""TCP echo servers as one writes them by hand, one for each model: ``python by_hand.py MODEL`` on a free port.

The port goes to standard error. Every server sends what has come, without delay (TCP_NODELAY), has a backlog of 1024,
and reads 64 KiB at most: what the engines of the same names do. They handle what a server must: partial sends, resets,
and clients that leave. They ignore what one leaves out by hand: running out of descriptors, fairness, a clean stop.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

READ: Final = 65536
BACKLOG: Final = 1024
WORKERS: Final = 128
READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT


def listen(*, blocking: bool = False) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(blocking)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    return listener


def accept(listener: socket.socket, *, blocking: bool = False) -> socket.socket:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(blocking)
    return sock


def polling() -> None:
    """Try everything in turn."""
    listener = listen()
    clients: dict[socket.socket, bytes] = {}
    while True:
        try:
            clients[accept(listener)] = b""
        except BlockingIOError:
            pass
        for sock, pending in list(clients.items()):
            try:
                data = pending or sock.recv(READ)
                if not data:
                    del clients[sock]
                    sock.close()
                    continue
                clients[sock] = data[sock.send(data) :]
            except BlockingIOError:
                pass
            except ConnectionError:
                del clients[sock]
                sock.close()


def by_select() -> None:
    """select.select, with the whole list each time."""
    listener = listen()
    clients: set[socket.socket] = set()
    pending: dict[socket.socket, bytes] = {}
    while True:
        readable, writable, _ = select.select([listener, *(clients - pending.keys())], list(pending), [])
        for sock in readable:
            if sock is listener:
                clients.add(accept(listener))
            elif rest := echo(sock, clients.discard):
                pending[sock] = rest
        for sock in writable:
            if not (rest := send(sock, pending.pop(sock), clients.discard)):
                continue
            pending[sock] = rest


def echo(sock: socket.socket, forget: Callable[[Any], object]) -> bytes:
    """Send back what has come, and return what the socket does not take."""
    try:
        data = sock.recv(READ)
    except BlockingIOError:
        return b""
    except ConnectionError:
        data = b""
    if not data:
        forget(sock)
        sock.close()
        return b""
    return send(sock, data, forget)


def send(sock: socket.socket, data: bytes, forget: Callable[[Any], object]) -> bytes:
    try:
        return data[sock.send(data) :]
    except BlockingIOError:
        return data
    except ConnectionError:
        forget(sock)
        sock.close()
        return b""


def by_poll() -> None:
    """select.poll, whose masks are those of epoll."""
    poller = select.poll()
    listener = listen()
    poller.register(listener, READABLE)
    turn_over(listener, poller.poll, poller.register, poller.modify, poller.unregister, 0)


def by_epoll(flags: int = 0) -> None:
    """select.epoll."""
    epoll = select.epoll()
    listener = listen()
    epoll.register(listener, READABLE)
    turn_over(listener, epoll.poll, epoll.register, epoll.modify, epoll.unregister, flags)


def turn_over(listener: socket.socket, poll: Any, register: Any, modify: Any, unregister: Any, flags: int) -> None:
    clients: dict[int, socket.socket] = {}
    pending: dict[int, bytes] = {}
    drain = bool(flags)

    def forget(sock: socket.socket) -> None:
        fd = sock.fileno()
        unregister(fd)
        del clients[fd]
        pending.pop(fd, None)

    while True:
        for fd, _ in poll():
            if fd == listener.fileno():
                sock = accept(listener)
                clients[sock.fileno()] = sock
                register(sock.fileno(), READABLE | flags)
            elif fd in pending:
                rest = send(clients[fd], pending.pop(fd), forget)
                if rest:
                    pending[fd] = rest
                elif fd in clients:
                    modify(fd, READABLE | flags)
            elif drain:
                drain_echo(clients[fd], fd, forget, pending, modify, flags)
            elif rest := echo(clients[fd], forget):
                pending[fd] = rest
                modify(fd, WRITABLE)


def drain_echo(sock: socket.socket, fd: int, forget: Any, pending: dict[int, bytes], modify: Any, flags: int) -> None:
    """Edge-triggered: read until nothing is left."""
    while True:
        try:
            data = sock.recv(READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            forget(sock)
            sock.close()
            return
        if rest := send(sock, data, forget):
            pending[fd] = rest
            modify(fd, WRITABLE | flags)
            return


def by_epoll_et() -> None:
    """select.epoll with EPOLLET."""
    by_epoll(select.EPOLLET)


def converse(sock: socket.socket) -> None:
    """Echo on a socket that blocks."""
    with sock:
        try:
            while data := sock.recv(READ):
                sock.sendall(data)
        except ConnectionError:
            pass


def thread() -> None:
    """A thread per connection."""
    listener = listen(blocking=True)
    while True:
        threading.Thread(target=converse, args=(accept(listener, blocking=True),), daemon=True).start()


def thread_pool() -> None:
    """ThreadPoolExecutor."""
    listener = listen(blocking=True)
    pool = ThreadPoolExecutor(256)
    while True:
        pool.submit(converse, accept(listener, blocking=True))


def process() -> None:
    """A fork per connection."""
    listener = listen(blocking=True)
    signal.signal(signal.SIGCHLD, reap)
    while True:
        sock = accept(listener, blocking=True)
        if os.fork() == 0:
            listener.close()
            converse(sock)
            os._exit(0)
        sock.close()


def reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def prefork() -> None:
    """Processes that accept by themselves."""
    listener = listen(blocking=True)
    for _ in range(WORKERS):
        if os.fork() == 0:
            while True:
                converse(accept(listener, blocking=True))
    signal.pause()


def by_gevent() -> None:
    """gevent's StreamServer."""
    from gevent import signal_handler
    from gevent.server import StreamServer

    def handle(sock: Any, _: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := sock.recv(READ):
                sock.sendall(data)
        except ConnectionError:
            pass

    server = StreamServer(listen(), handle)
    signal_handler(signal.SIGTERM, server.stop, 0)
    server.serve_forever()


MODELS: Final[dict[str, Callable[[], None]]] = {
    "polling": polling,
    "select": by_select,
    "poll": by_poll,
    "epoll": by_epoll,
    "epoll-et": by_epoll_et,
    "thread": thread,
    "thread-pool": thread_pool,
    "process": process,
    "prefork": prefork,
    "gevent": by_gevent,
}

if __name__ == "__main__":
    if sys.argv[1] in ("process", "prefork"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    MODELS[sys.argv[1]]()
