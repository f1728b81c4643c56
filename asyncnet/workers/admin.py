"""Answers people and monitoring while the master runs: ``/health``, ``/metrics`` and ``/status`` by HTTP.

The master has no event loop, so this is a state machine of a few lines on its selector. It answers one request for
each connection, of 8 KiB at most, within 5 seconds, on 32 connections at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

import attrs

from asyncnet.descriptors import EXHAUSTED
from asyncnet.tcp.listeners import SocketOptions, open_listeners, open_unix
from asyncnet.workers.report import Report

__all__ = ["Admin"]

MAX_CONNECTIONS: Final = 32
_LONGEST_REQUEST: Final = 8192
_PATIENCE: Final = 5.0
_REST: Final = 1.0
"""Seconds without visitors when the system has no descriptor for one: the listener would be readable all the time."""


@attrs.define(eq=False)
class _Visit:
    sock: socket.socket
    deadline: float
    request: bytes = b""
    answer: bytes = b""


class Admin:
    """The places where a master answers.

    Args:
        address: of a TCP listener; None for none.
        path: of a Unix socket that only its owner reaches; None for none.
        listeners: those that a program before this one has opened at these places.

    Raises:
        OSError: a place cannot be used.
    """

    def __init__(
        self, address: tuple[str, int] | None, path: str | None, listeners: list[socket.socket] | None = None
    ) -> None:
        self.listeners: list[socket.socket] = []
        self.report: Callable[[bool], Report] | None = None
        """Returns the state, with the memory of each worker or without."""
        self.address = address
        self._path = path
        self._visits: dict[socket.socket, _Visit] = {}
        self._selector: selectors.BaseSelector | None = None
        self._rests_until: float | None = None
        if listeners is not None:
            self.listeners = listeners
            return
        try:
            if address is not None:
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                host = address[0] or "127.0.0.1"
                self.listeners += open_listeners([(family, (host, address[1]))], 64, SocketOptions())
            if path is not None:
                before = os.umask(0o177)
                try:
                    self.listeners.append(open_unix(path, 64))
                finally:
                    os.umask(before)
        except BaseException:
            self.close()
            raise

    def open(self, selector: selectors.BaseSelector) -> None:
        """Begin to answer."""
        self._selector = selector
        self._listen(selector)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        self._rests_until = None
        for listener in self.listeners:
            selector.register(listener, selectors.EVENT_READ, lambda mask, listener=listener: self._accept(listener))

    def leave(self) -> None:
        """Close everything in a child."""
        for sock in [*self.listeners, *self._visits]:
            sock.close()

    def close(self) -> None:
        """Answer no more."""
        self.leave()
        if self._path is not None and self.listeners:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.listeners = []
        self._visits = {}

    def wake_at(self, now: float) -> float:
        """Return when the next visitor has taken too long."""
        times = [visit.deadline for visit in self._visits.values()]
        if self._rests_until is not None:
            times.append(self._rests_until)
        return min(times, default=now + 60.0)

    def expire(self, now: float) -> None:
        """Close the connections of those who take too long, and end a rest."""
        if self._rests_until is not None and now >= self._rests_until:
            assert self._selector is not None
            self._listen(self._selector)
        for visit in list(self._visits.values()):
            if now >= visit.deadline:
                self._end(visit)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as exc:  # the visitor is gone, or there is no descriptor: it may try again
            if exc.errno in EXHAUSTED and self._rests_until is None:
                self._rests_until = time.monotonic() + _REST
                assert self._selector is not None
                for each in self.listeners:
                    self._selector.unregister(each)
            return
        if len(self._visits) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        self._visits[sock] = visit = _Visit(sock, time.monotonic() + _PATIENCE)
        assert self._selector is not None
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._serve(visit))

    def _serve(self, visit: _Visit) -> None:
        try:
            if not visit.answer:
                data = visit.sock.recv(4096)
                visit.request += data
                if not data or len(visit.request) > _LONGEST_REQUEST:
                    self._end(visit)
                    return
                if b"\r\n\r\n" not in visit.request and b"\n\n" not in visit.request:
                    return
                visit.answer = self._answer(visit.request)
                assert self._selector is not None
                self._selector.modify(visit.sock, selectors.EVENT_WRITE, lambda mask: self._serve(visit))
            visit.answer = visit.answer[visit.sock.send(visit.answer) :]
            if not visit.answer:
                self._end(visit)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end(visit)

    def _end(self, visit: _Visit) -> None:
        if self._visits.pop(visit.sock, None) is not None:
            assert self._selector is not None
            self._selector.unregister(visit.sock)
            with contextlib.suppress(OSError):
                visit.sock.shutdown(socket.SHUT_WR)
            visit.sock.close()

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        assert self.report is not None
        report = self.report(path != b"/health")
        status, kind, body = "200 OK", "application/json", ""
        if method not in (b"GET", b"HEAD"):
            status = "405 Method Not Allowed"
        elif path == b"/health":
            status = status if report.is_healthy else "503 Service Unavailable"
            body = json.dumps(report.health()) + "\n"
        elif path == b"/metrics":
            kind, body = "text/plain; version=0.0.4", report.metrics()
        elif path == b"/status":
            body = json.dumps(report.as_dict()) + "\n"
        else:
            status, kind, body = "404 Not Found", "text/plain", "/health, /metrics or /status\n"
        payload = body.encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else payload)
