"""TFTP downloads: the mode ``tftp`` of the load generator in Python."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet.errors import PacketError
from asyncnet.lab.histogram import Histogram
from asyncnet.lab.holding import delayed_seconds
from asyncnet.lab.schedule import LEAD, Schedule
from asyncnet.tftp.packets import Ack, Data, Error, OptionAck, ReadRequest, decode_packet, encode_packet

__all__ = ["run_transfers"]

_RESEND: Final = 1.0
_PER_EVENT: Final = 64


@attrs.define(eq=False)
class _Download:
    server: tuple[str, int]
    request: bytes
    original: bytes
    intended: int
    started_at: int
    sock: socket.socket
    peer: tuple[str, int] | None = None
    block_size: int = 512
    window_size: int = 1
    next: int = 1
    received: int = 0
    in_window: int = 0
    last: bytes = b""
    sent_at: int = 0
    wrong: int = 0
    failed: bool = False

    def send(self, packet: bytes, now: int) -> None:
        self.last, self.sent_at = packet, now
        try:
            self.sock.sendto(packet, self.peer or self.server)
        except BlockingIOError:
            pass  # it is sent again after a second

    def take(self, now: int) -> bool:
        """Read what has come; return whether the transfer is over."""
        for _ in range(_PER_EVENT):
            try:
                data, addr = self.sock.recvfrom(65536)
                packet = decode_packet(data)
            except (BlockingIOError, PacketError):
                return False
            except OSError:
                self.failed = True
                return True
            self.peer = self.peer or addr
            if addr == self.peer and self._take_packet(packet, now):
                return True
        return False

    def _take_packet(self, packet: object, now: int) -> bool:
        match packet:
            case Error():
                self.failed = True
                return True
            case OptionAck(options=options) if not self.received and self.next == 1:
                answers = {name.lower(): value for name, value in dict(options).items()}
                self.block_size = int(answers.get("blksize", 512))
                self.window_size = int(answers.get("windowsize", 1))
                self.send(encode_packet(Ack(0)), now)
            case Data(block=block, payload=data) if block == self.next & 0xFFFF:
                self.wrong += data != self.original[self.received : self.received + len(data)]
                self.received += len(data)
                self.in_window += 1
                over = len(data) < self.block_size
                if over or self.in_window >= self.window_size:
                    self.in_window = 0
                    self.send(encode_packet(Ack(block)), now)
                self.next += 1
                self.failed = over and self.received != len(self.original)
                return over
            case Data():
                self.in_window = 0
                self.send(encode_packet(Ack((self.next - 1) & 0xFFFF)), now)
            case _:
                pass
        return False


def run_transfers(
    address: tuple[str, int], name: str, path: Path, count: int, block_size: int, window_size: int, limit: float,
    seconds: float, schedule: Schedule,
) -> dict[str, Any]:  # fmt: skip
    """Download a file with `count` clients, once, or again and again for some seconds, and compare it.

    Args:
        address: the server's.
        name: what it is called there.
        path: the same file here.
        count: clients.
        block_size, window_size: what they ask for; 0 and 1 for no option.
        limit: seconds after which what has not come is given up, when each client downloads once.
        seconds: how long they go on; 0 for once each.
        schedule: of an open loop.
    """
    options = {"blksize": str(block_size)} if block_size else {}
    options |= {"windowsize": str(window_size)} if window_size > 1 else {}
    request = encode_packet(ReadRequest(name, "octet", tuple(options.items())))
    original = path.read_bytes()
    latency, service, lag = Histogram(), Histogram(), Histogram()
    counts = dict.fromkeys(("bytes", "done", "failed", "wrong", "resent"), 0)
    free: deque[int] = deque([0] * count if schedule.rate > 0 else [])
    print("measuring", flush=True)
    time.sleep(LEAD)
    schedule.next_due = time.perf_counter_ns()
    begun, cpu, delayed = time.perf_counter_ns(), time.process_time(), delayed_seconds()
    end = begun + int((seconds or limit) * 1e9)
    with selectors.DefaultSelector() as selector:

        def begin(intended: int) -> None:
            now = time.perf_counter_ns()
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            download = _Download(address, request, original, intended, now, sock)
            selector.register(sock, selectors.EVENT_READ, download)
            download.send(request, now)

        try:
            for _ in range(0 if schedule.rate > 0 else count):
                begin(time.perf_counter_ns())
            while (now := time.perf_counter_ns()) < end and (selector.get_map() or schedule.rate > 0):
                schedule.take_due(now)
                while free and schedule.waiting:
                    intended, since = schedule.waiting.popleft(), free.popleft()
                    if intended >= since:
                        lag.record(time.perf_counter_ns() - intended)
                    begin(intended)
                for key, _ in selector.select(0.001 if schedule.rate > 0 else 0.05):
                    download: _Download = key.data
                    if not download.take(now):
                        continue
                    selector.unregister(download.sock)
                    download.sock.close()
                    finished = time.perf_counter_ns()
                    counts["bytes"] += download.received
                    counts["wrong"] += download.wrong
                    counts["failed" if download.failed else "done"] += 1
                    if not download.failed:
                        latency.record(finished - download.intended)
                        service.record(finished - download.started_at)
                    if schedule.rate > 0:
                        free.append(finished)
                    elif seconds:
                        begin(finished)
                for key in selector.get_map().values():
                    if now - key.data.sent_at > _RESEND * 1e9:
                        counts["resent"] += 1
                        key.data.send(key.data.last, now)
        finally:
            for key in list(selector.get_map().values()):
                key.data.sock.close()
    if not seconds:
        counts["failed"] = count - counts["done"]
    return {
        "generator": "python", "requests": counts["done"], "all_requests": counts["done"] + counts["failed"],
        "seconds": (time.perf_counter_ns() - begun) / 1e9, "warm_up": 0.0, "offered": schedule.rate,
        "unsent": schedule.unsent, "waiting": len(schedule.waiting), "cpu_seconds": time.process_time() - cpu,
        "delayed_seconds": delayed_seconds() - delayed, "gaps": 0, **counts,
        **latency.percentiles(), **service.percentiles("service_"), **lag.percentiles("lag_"),
        "histogram": latency.pairs(),
    }  # fmt: skip
