"""What do bad clients, a full table of files and a stop do to a TCP server? Ours and asyncio's own, with one handler.

Servers run on the first core, the clients on the second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import statistics
import sys
import threading
import time
from typing import Any, Final

from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, Server, load, median_of, names_in, pin, ratio_of, server
from benchmarks._report import Table
from benchmarks.tcp import held

WAYS: Final = ("tcp.serve on uvloop", "tcp.serve on asyncio", "start_server on uvloop", "start_server on asyncio")
PATIENT: Final = "tcp.serve on uvloop, message_timeout 2 s"
TRICKLERS: Final = 2000
FILES: Final = 200
TOO_MANY: Final = 1000
PROBES: Final = 10
FLOOD: Final = 1 << 30


def command(way: str, kind: str, *arguments: object) -> list[str]:
    return [sys.executable, str(FOLDER / "servers" / "tcp_faults.py"), way, kind, *map(str, arguments)]


def measure_trickle(name: str) -> dict[str, Any]:
    """Ten honest clients alone, and then among many that send a byte a second and never end their line."""
    way, kind = (WAYS[0], "patient") if name == PATIENT else (name, "lines")
    with server(command(way, kind)) as target:
        quiet = load(target, "echo", 10, 100, 0.7, 3)
        with held(target, TRICKLERS, interval=1, retry=1) as tricklers:
            crowded = load(target, "echo", 10, 100, 1, 3)
    return {
        "quiet": quiet["p99"],
        "crowded": crowded["p99"],
        "quiet_rate": quiet["rate"],
        "crowded_rate": crowded["rate"],
        "cut": tricklers["closed"],
    }


def measure_descriptors(name: str) -> dict[str, Any]:
    """Open far more connections than the server has descriptors for, and watch those that it has."""
    with server(command(name, "lines", FILES)) as target:
        probes = [socket.create_connection((target.host, target.port), 10) for _ in range(PROBES)]
        for probe in probes:
            _echo(probe)
        with held(target, TOO_MANY, retry=1):
            cpu, begin, logged, waits = target.cpu_seconds(), time.monotonic(), len(target.log), []
            failed = 0
            while time.monotonic() - begin < 5:
                for probe in probes:
                    sent = time.monotonic()
                    failed += not _echo(probe)
                    waits.append(time.monotonic() - sent)
                time.sleep(0.01)
            share = (target.cpu_seconds() - cpu) / (time.monotonic() - begin)
            lines = len(target.log) - logged
        over = time.monotonic()
        while True:  # until somebody new is served
            with socket.create_connection((target.host, target.port), 10) as sock:
                if _echo(sock):
                    break
            if time.monotonic() - over > 30:
                raise RuntimeError(f"{name} does not recover")
        recovered = time.monotonic() - over
        for probe in probes:
            probe.close()
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)]
    return {"share": share, "lines": lines, "p99": p99, "failed": failed, "recovered": recovered}


def _echo(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"probe\n")
        return sock.recv(100) == b"probe\n"
    except OSError:
        return False


def measure_flood(name: str) -> dict[str, Any]:
    """Ask for 1 GiB and read nothing."""
    with server(command(name, "flood")) as target:
        with socket.create_connection((target.host, target.port), 10) as sock:
            before = target.memory()
            sock.sendall(b"x")
            poller = select.poll()
            poller.register(sock, 0)  # errors and hang-ups alone
            cut = False
            busy = target.cpu_seconds()
            for _ in range(100):
                if poller.poll(300):
                    cut = True
                    break
                busy, last = target.cpu_seconds(), busy
                if busy - last < 0.003:
                    break  # everything is written
            grown = target.memory("VmHWM") - before
        return {"grown": grown, "cut": cut}


def measure_stop(name: str) -> dict[str, Any]:
    """Tell a server to stop while 100 clients are at work."""
    with server(command(name, "work")) as target:
        told: list[float] = []

        def stop() -> None:
            told.append(time.monotonic())
            os.kill(target.pid, signal.SIGTERM)

        timer = threading.Timer(1.5, stop)
        timer.start()
        result = load(target, "echo", 100, 1000, 0.5, 20)
        ended = time.monotonic() - told[0]
        begun = _begun(target)
    return {"begun": begun, "answered": result["all_requests"], "seconds": ended}


def _begun(target: Server) -> int:
    """Return how many requests the server says to have begun, once it has ended."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        for line in target.log:
            if line.startswith("{"):
                return int(json.loads(line)["begun"])
        time.sleep(0.01)
    raise RuntimeError("the server did not tell what it began")


def trickle_table(runs: Runs) -> Table:
    rows = [
        [
            name,
            f"{median_of(runs, name, 'quiet') * 1e6:,.0f}",
            f"{median_of(runs, name, 'crowded') * 1e6:,.0f}",
            f"{ratio_of(runs, name, 'crowded', 'quiet'):.2f}",
            f"{median_of(runs, name, 'quiet_rate'):,.0f}",
            f"{median_of(runs, name, 'crowded_rate'):,.0f}",
            f"{median_of(runs, name, 'cut'):,.0f}",
        ]
        for name in names_in(runs, (PATIENT, *WAYS))
    ]
    heads = ["server", "p99 µs alone", "among tricklers", "ratio", "requests/s alone", "among tricklers", "cut off"]
    return Table(f"Ten clients with lines of 100 bytes, among {TRICKLERS:,} that send a byte a second", heads, rows)


def descriptors_table(runs: Runs) -> Table:
    rows = [
        [
            name,
            f"{median_of(runs, name, 'share') * 100:.1f}",
            f"{median_of(runs, name, 'lines'):,.0f}",
            f"{median_of(runs, name, 'p99') * 1e3:.2f}",
            str(sum(run["failed"] for run in runs if run["name"] == name)),
            f"{median_of(runs, name, 'recovered'):.2f}",
        ]
        for name in names_in(runs, (PATIENT, *WAYS))
    ]
    title = f"{TOO_MANY:,} connections for a server with {FILES} descriptors, for five seconds"
    heads = ["server", "CPU %", "lines in the log", "p99 ms of ten served before", "failed", "s to recover"]
    return Table(title, heads, rows)


def flood_table(runs: Runs) -> Table:
    rows = [
        [
            name,
            f"{median_of(runs, name, 'grown') / (1 << 20):,.0f}",
            "cut off" if all(run["cut"] for run in runs if run["name"] == name) else "waits",
        ]
        for name in names_in(runs, (PATIENT, *WAYS))
    ]
    return Table("A handler writes 1 GiB, and its client reads nothing", ["server", "MiB of memory", "client"], rows)


def stop_table(runs: Runs) -> Table:
    rows = []
    for name in names_in(runs, (PATIENT, *WAYS)):
        mine = [run for run in runs if run["name"] == name]
        begun, answered = (sum(run[key] for run in mine) for key in ("begun", "answered"))
        seconds = statistics.median(run["seconds"] for run in mine)
        rows.append([name, f"{begun:,}", f"{answered:,}", f"{begun - answered:,}", f"{seconds * 1e3:,.0f}"])
    title = "SIGTERM while 100 clients are at work, 5 ms for a request"
    return Table(title, ["server", "requests begun", "answered", "lost", "ms to the end"], rows)


BENCHMARK: Final = Benchmark(
    "tcp_faults",
    {
        "trickle": Part((PATIENT, *WAYS), measure_trickle, trickle_table),
        "descriptors": Part(WAYS, measure_descriptors, descriptors_table),
        "flood": Part(WAYS, measure_flood, flood_table),
        "stop": Part(WAYS, measure_stop, stop_table),
    },
    rounds=3,
    seconds=None,
)

if __name__ == "__main__":
    pin(0, 1)
    sys.exit(BENCHMARK.main(__doc__))
