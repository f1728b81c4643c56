"""Connections that are only there: the modes ``hold`` and ``stall`` of the load generator in Python."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

__all__ = ["CONNECT_ERRORS", "delayed_seconds", "open_connection", "run_hold", "run_stall"]

CONNECT_ERRORS: Final = (OSError,)
_ADDRESSES: Final = 200
_CONNECT_WITHIN: Final = 10.0
_TURN: Final = 0.005


def open_connection(address: tuple[str, int], *, datagrams: bool = False, number: int = 0) -> socket.socket:
    """Begin to connect, from one of 200 addresses where the server is on loopback.

    Raises:
        OSError: it is refused at once.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if not datagrams:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address[0].startswith("127.") and sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect
                sock.bind((f"127.0.0.{2 + number % _ADDRESSES}", 0))
        error = sock.connect_ex(address)
        if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


def _input_ended() -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def delayed_seconds() -> float:
    """Return how long this process was ready to run and had no core; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def run_hold(address: tuple[str, int], count: int, interval: float, retry: float) -> dict[str, Any]:
    """Keep connections open until standard input ends; each sends a byte every `interval` seconds, if that is not 0.

    One that the server closes comes back after `retry` seconds, if that is not 0.
    """
    begun = time.monotonic()
    counts = dict.fromkeys(("closed", "refused", "bytes"), 0)
    with selectors.DefaultSelector() as selector:
        due: dict[socket.socket, float] = {}
        absent: list[float] = []
        connecting = 0

        def begin(number: int) -> None:
            nonlocal connecting
            sock = open_connection(address, number=number)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, number)
            connecting += 1

        try:
            for number in range(count):
                begin(number)
            told = False
            while not _input_ended():
                for key, mask in selector.select(_TURN):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock not in due and mask & selectors.EVENT_WRITE and not _failed(sock):
                        connecting -= 1
                        due[sock] = time.monotonic() + interval * len(due) / count
                        selector.modify(sock, selectors.EVENT_READ, key.data)
                    fresh = sock not in due
                    if _is_lost(sock, mask):
                        counts["refused" if fresh else "closed"] += 1
                        connecting -= fresh
                        selector.unregister(sock)
                        due.pop(sock, None)
                        sock.close()
                        absent.append(time.monotonic() + retry)
                now = time.monotonic()
                if not told and (not connecting or now - begun > _CONNECT_WITHIN):
                    told = True
                    print("measuring", flush=True)
                if retry > 0:
                    for _ in [moment for moment in absent if moment <= now]:
                        begin(len(due))
                    absent = [moment for moment in absent if moment > now]
                if interval > 0:
                    counts["bytes"] += _trickle(due, now, interval)
            held = len(due)
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    return {"generator": "python", "open": held, **counts, "seconds": time.monotonic() - begun,
            "cpu_seconds": time.process_time()}  # fmt: skip


def _is_lost(sock: socket.socket, mask: int) -> bool:
    if not mask & selectors.EVENT_READ:
        return _failed(sock)
    try:
        return not sock.recv(65536)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _failed(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def _trickle(due: dict[socket.socket, float], now: float, interval: float) -> int:
    sent = 0
    for sock, moment in due.items():
        if moment <= now:
            due[sock] = moment + interval
            try:
                sent += sock.send(b"x")
            except OSError:
                pass  # its end is seen by the selector
    return sent


def run_stall(address: tuple[str, int], count: int, size: int) -> dict[str, Any]:
    """Ask for `size` bytes on each connection, read nothing until standard input ends, then read and compare it all."""
    begun, delayed = time.monotonic(), delayed_seconds()
    pattern = bytes(range(251)) * 300
    counts = dict.fromkeys(("complete", "closed", "wrong", "bytes"), 0)
    with selectors.DefaultSelector() as selector:
        try:
            for number in range(count):
                sock = open_connection(address, number=number)
                selector.register(sock, selectors.EVENT_WRITE, 0)
            asked: dict[socket.socket, int] = {}
            while len(asked) + counts["closed"] < count and time.monotonic() - begun < _CONNECT_WITHIN:
                for key, _ in selector.select(_TURN):
                    sock = key.fileobj  # type: ignore[assignment]
                    try:
                        sock.send(b"x\n")
                    except OSError:
                        counts["closed"] += 1
                        sock.close()
                    else:
                        asked[sock] = 0
                    selector.unregister(sock)
            for late in [key.fileobj for key in selector.get_map().values()]:
                selector.unregister(late)
                late.close()  # type: ignore[union-attr]
                counts["closed"] += 1
            print("measuring", flush=True)
            while not _input_ended():
                time.sleep(_TURN)
            for sock in asked:
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(_TURN):
                    sock = key.fileobj  # type: ignore[assignment]
                    try:
                        data = sock.recv(65536)
                    except BlockingIOError:
                        continue
                    except OSError:
                        data = b""
                    good = data == pattern[asked[sock] % 251 :][: len(data)]
                    asked[sock] += len(data)
                    counts["bytes"] += len(data)
                    if data and good and asked[sock] < size:
                        continue
                    counts["wrong" if not good else "complete" if asked[sock] == size else "closed"] += 1
                    selector.unregister(sock)
                    sock.close()
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    return {"generator": "python", **counts, "seconds": time.monotonic() - begun,
            "delayed_seconds": delayed_seconds() - delayed}  # fmt: skip
