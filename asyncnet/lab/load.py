"""A load generator in a process of its own: ``python -m asyncnet.lab.load HOST PORT ...``.

Closed loop: every connection sends a message, waits for its echo, checks it byte by byte, and sends the next one. All
connections are driven by one selector. The result is one line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from typing import Final

import attrs

__all__ = ["LoadResult", "main", "percentile", "run_load"]

_GIVE_UP_AFTER: Final = 5.0
"""Seconds without any answer after which the rest of the connections count as failed."""


@attrs.frozen
class LoadResult:
    """What a run of load has measured."""

    requests: int
    """Answered during the measurement."""
    seconds: float
    """Length of the measurement."""
    all_requests: int
    """Answered in all, those of the warm-up included."""
    failures: int
    """Connections that were refused, closed, answered wrongly, or not answered."""
    p50: float
    """Half of the requests were answered within this many seconds."""
    p99: float
    cpu_seconds: float
    """Processor time of the generator itself during the measurement."""


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` of the ordered values lie (nearest rank), 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class _Connection:
    """One client: a message out, its echo in."""

    def __init__(self, sock: socket.socket, size: int, number: int) -> None:
        self.sock = sock
        self._size = size
        self._number = number
        self._turn = 0
        self._message = b""
        self._unsent = memoryview(b"")
        self._received = 0
        self._sent_at = 0.0

    def next_message(self) -> bool:
        """Send the next message; tell whether all of it has left."""
        self._turn += 1
        stamp = self._number.to_bytes(4, "big") + self._turn.to_bytes(4, "big")
        self._message = (stamp * (self._size // 8 + 1))[: self._size]
        self._unsent = memoryview(self._message)
        self._received = 0
        self._sent_at = time.perf_counter()
        return self.send()

    def send(self) -> bool:
        while self._unsent:
            try:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def receive(self) -> float | None:
        """Read; return the latency in seconds when the echo is complete.

        Raises:
            OSError: the connection is gone, or the echo is wrong.
        """
        data = self.sock.recv(262_144)
        if not data:
            raise ConnectionResetError("closed by the server")
        if data != self._message[self._received : self._received + len(data)]:
            raise OSError("the echo differs from what was sent")
        self._received += len(data)
        return time.perf_counter() - self._sent_at if self._received == self._size else None


def run_load(host: str, port: int, *, clients: int, size: int, seconds: float, warm_up: float) -> LoadResult:
    """Load an echo server and measure it.

    Args:
        host, port: the server's address.
        clients: connections at once.
        size: bytes of a message.
        seconds: length of the measurement.
        warm_up: seconds of load before it.
    """
    selector = selectors.DefaultSelector()
    failures = 0
    for number in range(clients):
        try:
            sock = socket.create_connection((host, port), timeout=5)
        except OSError:
            failures += 1
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, _Connection(sock, size, number))

    def watch(connection: _Connection, sent: bool) -> None:
        events = selectors.EVENT_READ if sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        if selector.get_key(connection.sock).events != events:
            selector.modify(connection.sock, events, connection)

    def drop(connection: _Connection) -> None:
        nonlocal failures
        failures += 1
        selector.unregister(connection.sock)
        connection.sock.close()

    latencies: list[float] = []
    warm = 0
    begin = time.perf_counter()
    measure_from, end = begin + warm_up, begin + warm_up + seconds
    measuring = False
    cpu = 0.0
    for key in list(selector.get_map().values()):
        try:
            watch(key.data, key.data.next_message())
        except OSError:
            drop(key.data)
    last_answer = begin
    while selector.get_map():
        now = time.perf_counter()
        if now >= end:
            break
        if now - last_answer > _GIVE_UP_AFTER:
            failures += len(selector.get_map())
            break
        if not measuring and now >= measure_from:
            measuring, warm, latencies = True, len(latencies), []
            measure_from, end, cpu = now, now + seconds, time.process_time()
        for key, events in selector.select(0.05):
            connection: _Connection = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    watch(connection, connection.send())
                if events & selectors.EVENT_READ:
                    latency = connection.receive()
                    if latency is not None:
                        latencies.append(latency)
                        last_answer = time.perf_counter()
                        watch(connection, connection.next_message())
            except OSError:
                drop(connection)
    elapsed = time.perf_counter() - measure_from
    cpu = time.process_time() - cpu
    for key in list(selector.get_map().values()):
        key.data.sock.close()
    selector.close()
    latencies.sort()
    return LoadResult(
        requests=len(latencies) if measuring else 0,
        seconds=elapsed,
        all_requests=warm + len(latencies),
        failures=failures,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        cpu_seconds=cpu,
    )


def main() -> None:
    """Run from the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    result = run_load(**vars(parser.parse_args()))
    json.dump(attrs.asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
