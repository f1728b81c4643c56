"""The load generator where there is no C compiler: ``python -m asyncnet.lab.load MODE HOST PORT ...``.

Its arguments, and the JSON that it prints, are those at the top of ``native/load.c``. It is slower than the servers
that it measures, so the rates are its own limit: every table says "client-limited". `asyncnet.lab.holding` has the
modes ``hold`` and ``stall``, `asyncnet.lab.transfers` has ``tftp``.
"""

from __future__ import annotations

import errno
import json
import random
import selectors
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet.descriptors import allow_descriptors
from asyncnet.lab.histogram import Histogram
from asyncnet.lab.holding import CONNECT_ERRORS, delayed_seconds, open_connection, run_hold, run_stall
from asyncnet.lab.schedule import LEAD, Schedule, WarmUp
from asyncnet.lab.transfers import run_transfers

__all__ = ["EchoLoad", "Options", "main", "parse_options"]

_RESEND_NS: Final = 200_000_000
_MARK: Final = struct.Struct("<Q")
_SPIN_NS: Final = 1_000_000
MODES: Final = ("echo", "churn", "udp", "hold", "stall", "tftp")


@attrs.frozen
class Options:
    """What comes after the fixed arguments, as NAME=VALUE."""

    rate: float = 0.0
    poisson: bool = False
    steady: float = 0.0
    seed: int = 1


def parse_options(words: list[str]) -> Options:
    """Read the options.

    Raises:
        ValueError: there is no such option.
    """
    given: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "arrivals" and value in ("constant", "poisson"):
            given["poisson"] = value == "poisson"
        elif name in ("rate", "steady"):
            given[name] = float(value)
        elif name == "seed":
            given["seed"] = int(value)
        else:
            raise ValueError(f"there is no option {word!r}")
    return Options(**given)


@attrs.define(eq=False)
class _Connection:
    index: int
    sock: socket.socket | None = None
    number: int = 0
    answered: int = 0
    busy: bool = False
    connected: bool = False
    free_since: int = 0
    intended: int = 0
    started_at: int = 0
    message: bytes = b""
    unsent: memoryview = attrs.field(factory=lambda: memoryview(b""))
    got: int = 0


class EchoLoad:
    """Connections that send and compare what comes back: closed loop, or open loop with a rate.

    Args:
        mode: ``echo``, ``churn`` or ``udp``.
        address: the server's.
        count: connections.
        size: bytes of a message.
        resets: whether the connections of the churn end by a reset.
        options: rate, arrivals, warm-up, seed.
    """

    def __init__(
        self, mode: str, address: tuple[str, int], count: int, size: int, resets: bool, options: Options
    ) -> None:
        self.mode, self.address, self.size, self.resets, self.options = mode, address, size, resets, options
        self.selector = selectors.DefaultSelector()
        self.connections = [_Connection(index) for index in range(count)]
        self.idle: deque[_Connection] = deque()
        self.open = count
        self.latency, self.service, self.lag = Histogram(), Histogram(), Histogram()
        self.counts = dict.fromkeys(("closed", "refused", "wrong", "lost", "late", "doubled"), 0)
        self.answers = self.all_answers = 0
        begun = time.perf_counter_ns()
        self.schedule = Schedule(options.rate, options.poisson, begun, random.Random(options.seed))
        self.begun = begun
        body = bytes((i * 31 + (i >> 8)) & 255 for i in range(size))
        self._body = body if mode == "udp" else body[:-1] + b"\n"

    def run(self, warm_up: float, seconds: float) -> dict[str, Any]:
        """Load the server, and return what a generator prints."""
        warm = WarmUp(self.begun, warm_up, self.options.steady)
        end = measured_from = announced = 0
        cpu = warmed = delayed = 0.0
        for connection in self.connections:
            if self.mode != "churn" and not self._open(connection):
                raise OSError(f"cannot connect to {self.address[0]}:{self.address[1]}")
            if self.options.rate > 0:
                self.idle.append(connection)
            else:
                self._start(connection, time.perf_counter_ns())
        next_scan = 0
        while self.open:
            events = self.selector.select(self._timeout())
            now = time.perf_counter_ns()
            if not announced and warm.is_over(now, self.all_answers):
                print("measuring", flush=True)
                announced = now
            if announced and not end and now >= announced + (LEAD * 1e9 if warm_up else 0):
                self.latency, self.service, self.lag = Histogram(), Histogram(), Histogram()
                self.counts = dict.fromkeys(self.counts, 0)
                self.answers = self.schedule.unsent = 0
                cpu, delayed, measured_from = time.process_time(), delayed_seconds(), time.perf_counter_ns()
                warmed, end = (measured_from - self.begun) / 1e9, measured_from + int(seconds * 1e9)
            if end and now >= end:
                break
            self.schedule.take_due(now)
            self._start_waiting()
            for key, mask in events:
                self._handle(key.data, mask)
            self._start_waiting()
            if self.mode == "udp" and now >= next_scan:
                next_scan = now + _RESEND_NS // 4
                self._find_lost(now)
        if not end:
            raise OSError("every connection is lost")
        elapsed = (time.perf_counter_ns() - measured_from) / 1e9
        return self._result(elapsed, warmed, time.process_time() - cpu, delayed_seconds() - delayed)

    def close(self) -> None:
        """Close every socket."""
        for connection in self.connections:
            if connection.sock is not None:
                connection.sock.close()
        self.selector.close()

    def _timeout(self) -> float:
        if self.options.rate <= 0:
            return 0.02
        return max(0.0, min(0.02, (self.schedule.next_due - time.perf_counter_ns() - _SPIN_NS) / 1e9))

    def _result(self, elapsed: float, warmed: float, cpu: float, delayed: float) -> dict[str, Any]:
        return {
            "generator": "python", "requests": self.answers, "all_requests": self.all_answers, "seconds": elapsed,
            "warm_up": warmed, "offered": self.options.rate, "unsent": self.schedule.unsent,
            "waiting": len(self.schedule.waiting), "cpu_seconds": cpu, "delayed_seconds": delayed,
            **self.latency.percentiles(), **self.service.percentiles("service_"), **self.lag.percentiles("lag_"),
            **self.counts, "histogram": self.latency.pairs(),
        }  # fmt: skip

    def _open(self, connection: _Connection) -> bool:
        connection.connected = self.mode == "udp"
        try:
            connection.sock = open_connection(self.address, datagrams=self.mode == "udp", number=connection.number)
        except CONNECT_ERRORS:
            return False
        events = selectors.EVENT_READ if self.mode == "udp" else selectors.EVENT_READ | selectors.EVENT_WRITE
        self.selector.register(connection.sock, events, connection)
        return True

    def _end(self, connection: _Connection) -> None:
        if connection.sock is None:
            return
        self.selector.unregister(connection.sock)
        if self.resets:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sock.close()
        connection.sock = None

    def _start(self, connection: _Connection, intended: int) -> bool:
        connection.number += 1
        connection.busy, connection.intended, connection.started_at = True, intended, time.perf_counter_ns()
        mark = _MARK.pack(connection.index << 40 | connection.number & 0xFFFFFFFFFF)
        room = min(8, self.size if self.mode == "udp" else self.size - 1)
        connection.message = mark[:room] + self._body[room:]
        connection.unsent, connection.got = memoryview(connection.message), 0
        if self.mode == "churn":
            return self._open(connection)
        return not connection.connected or self._send(connection)

    def _send(self, connection: _Connection) -> bool:
        assert connection.sock is not None
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            if self.mode != "udp":
                return False
            self.counts["refused"] += 1
        if self.mode != "udp":
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
            if self.selector.get_key(connection.sock).events != events:
                self.selector.modify(connection.sock, events, connection)
        return True

    def _start_waiting(self) -> None:
        while self.idle and self.schedule.waiting:
            connection, intended = self.idle.popleft(), self.schedule.waiting.popleft()
            if intended >= connection.free_since:
                self.lag.record(time.perf_counter_ns() - intended)
            if not self._start(connection, intended):
                self._lose(connection)

    def _handle(self, connection: _Connection, mask: int) -> None:
        if connection.sock is None:
            return
        good = True
        if mask & selectors.EVENT_WRITE:
            error = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            connection.connected = error in (0, errno.ECONNRESET)  # who is reset was connected
            good = not error and self._send(connection)
        if good and mask & selectors.EVENT_READ:
            good = self._take(connection)
        if not good:
            self._lose(connection)

    def _take(self, connection: _Connection) -> bool:
        assert connection.sock is not None
        try:
            data = connection.sock.recv(262_144)
        except BlockingIOError:
            return True
        except OSError:
            self.counts["refused"] += self.mode == "udp"
            return self.mode == "udp"
        if self.mode == "udp":
            return self._take_datagram(connection, data)
        expected = connection.message[connection.got : connection.got + len(data)]
        if not data or not connection.busy or data != expected:
            self.counts["wrong"] += bool(data)
            return False
        connection.got += len(data)
        return self._finish(connection) if connection.got == self.size else True

    def _take_datagram(self, connection: _Connection, data: bytes) -> bool:
        if connection.busy and data == connection.message:
            connection.answered = connection.number
            return self._finish(connection)
        mark = _MARK.unpack_from(data)[0] if len(data) == self.size >= 8 else -1
        number = mark & 0xFFFFFFFFFF
        if mark < 0 or mark >> 40 != connection.index or number > connection.number:
            self.counts["wrong"] += 1
        elif number == connection.answered:
            self.counts["doubled"] += 1
        else:
            self.counts["wrong" if connection.busy and number == connection.number else "late"] += 1
        return True

    def _finish(self, connection: _Connection) -> bool:
        now = time.perf_counter_ns()
        self.latency.record(now - connection.intended)
        self.service.record(now - connection.started_at)
        self.answers += 1
        self.all_answers += 1
        if self.mode == "churn":
            self._end(connection)
        return self._go_on(connection, now)

    def _go_on(self, connection: _Connection, now: int) -> bool:
        connection.busy, connection.free_since = False, now
        if self.options.rate > 0:
            self.idle.append(connection)
            return True
        return self._start(connection, now)

    def _lose(self, connection: _Connection) -> None:
        had = connection.connected or self.mode != "churn"
        self.counts["closed" if had else "refused"] += 1
        self._end(connection)
        if self.mode == "churn" and had and self._go_on(connection, time.perf_counter_ns()):
            return  # one connection broke, the server may go on
        self.open -= 1

    def _find_lost(self, now: int) -> None:
        for connection in self.connections:
            if connection.busy and now >= connection.started_at + _RESEND_NS:
                self.counts["lost"] += 1
                self._go_on(connection, now)


def main(words: list[str] | None = None) -> int:
    """Run from the command line and print the result as JSON; return the exit status."""
    given = sys.argv[1:] if words is None else words
    allow_descriptors()
    try:
        result = _run(given)
    except (OSError, ValueError, IndexError) as exc:
        print(f"load: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(result), flush=True)
    return 0


def _run(words: list[str]) -> dict[str, Any]:
    mode, address, rest = words[0], (words[1], int(words[2])), words[3:]
    if mode not in MODES:
        raise ValueError(f"there is no load {mode!r}; the loads are {', '.join(MODES)}")
    if mode == "hold":
        return run_hold(address, int(rest[0]), float(rest[1]), float(rest[2]))
    if mode == "stall":
        return run_stall(address, int(rest[0]), int(rest[1]))
    if mode == "tftp":
        options = parse_options(rest[7:])
        schedule = Schedule(options.rate, options.poisson, time.perf_counter_ns(), random.Random(options.seed))
        seconds = float(rest[6]) if len(rest) > 6 else 0.0
        return run_transfers(address, rest[0], Path(rest[1]), int(rest[2]), int(rest[3]), int(rest[4]),
                             float(rest[5]), seconds, schedule)  # fmt: skip
    fixed = 5 if mode == "churn" else 4
    load = EchoLoad(mode, address, int(rest[0]), int(rest[1]), mode == "churn" and rest[4] == "reset",
                    parse_options(rest[fixed:]))  # fmt: skip
    try:
        return load.run(float(rest[2]), float(rest[3]))
    finally:
        load.close()


if __name__ == "__main__":
    sys.exit(main())
