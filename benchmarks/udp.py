"""What does a datagram cost? Echo, ping-pong, bulk and idle endpoints, ours and other people's side by side.

Servers run on the first core, the load (in C) on the second. The processor time is the server's own, by the kernel's
accounting, during the measurement only. Each round measures everything once, in a new random order.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from asyncnet.lab.native import native_tool
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, TUNED, by_name, compared, load, median_of, names_in, ratio, running, server
from benchmarks._report import Table

CEILING: Final = "C, recvmmsg and sendmmsg"
C_ONE: Final = "C, recvfrom and sendto"
TRAIN: Final = 45
"""Datagrams that udp_bulk.py sends at once."""
ECHO: Final = (
    CEILING,
    C_ONE,
    "asyncnet protocol",
    "asyncnet protocol, batches",
    "asyncnet protocol on asyncio",
    "asyncnet endpoint",
    "uvloop protocol",
    "aiofastnet protocol on uvloop",
    "asyncio-dgram on uvloop",
    "anyio on uvloop",
    "asyncio protocol",
    f"asyncio protocol{TUNED}",
    "socketserver",
    "gevent socket",
    "Twisted protocol",
    "trio socket",
    "curio socket",
)
PING_PONG: Final = ("asyncnet protocol", "asyncnet endpoint", "uvloop protocol", C_ONE, CEILING)
BULK: Final = (
    "asyncnet send_segments, GRO as trains",
    "asyncnet send_segments, GRO",
    "asyncnet send_batch",
    "asyncnet sendto",
    "uvloop sendto",
    "asyncio sendto",
)
GOALS: Final = (
    *(
        (part, f"{size} bytes: {text}", name, base, key, bound)
        for part, size in (("echo64", 64), ("echo1000", 1000))
        for text, name, base, key, bound in (
            ("CPU of a protocol ÷ uvloop's", "asyncnet protocol", "uvloop protocol", "cpu", "<= 0.75"),
            ("CPU of a protocol ÷ C's, recvmmsg", "asyncnet protocol", CEILING, "cpu", "<= 1.3"),
            ("rate of a protocol ÷ asyncio's", "asyncnet protocol", "asyncio protocol", "rate", ">= 5"),
            ("rate of an endpoint ÷ uvloop's protocol's", "asyncnet endpoint", "uvloop protocol", "rate", ">= 1"),
            ("rate of an endpoint ÷ asyncio-dgram's", "asyncnet endpoint", "asyncio-dgram on uvloop", "rate", ">= 2"),
        )
    ),
    ("pingpong", "ping-pong: p50 of a protocol ÷ uvloop's", "asyncnet protocol", "uvloop protocol", "p50", "<= 1.05"),
    *(
        ("bulk", f"bulk: MB/s {text}, send_segments ÷ uvloop's sendto", name, "uvloop sendto", key, ">= 8")
        for text, key in (("sent", "sent_rate"), ("received", "rate"))
        for name in BULK[1::-1]
    ),
)
"""What was aimed at: a table, a text, a way, what it is compared with, the figure, the bound."""


def echo_command(name: str) -> list[str]:
    if name in (CEILING, C_ONE):
        return [str(native_tool("echo")), "udp-many" if name == CEILING else "udp-one", "0"]
    return by_name("udp_echo.py", name)


def measure_echo(name: str, *, peers: int, size: int, seconds: float) -> dict[str, Any]:
    """Load one echo server."""
    with server(echo_command(name)) as echo:
        return load(echo, "udp", peers, size, 0.7, seconds)


def measure_bulk(name: str, *, size: int, seconds: float) -> dict[str, Any]:
    """Send as fast as one process can to another, and count on both sides."""
    program = str(FOLDER / "servers" / "udp_bulk.py")
    with server([sys.executable, program, "receive", name, str(size)]) as sink:
        before = sink.cpu_seconds()
        with running(
            [sys.executable, program, "send", name, str(size), str(sink.port), str(seconds)], core=1
        ) as sender:
            sent = json.loads(sender.communicate(timeout=seconds + 30)[0])
        used = sink.cpu_seconds() - before
        received = json.loads(_ask(sink.host, sink.port))
    dropped = received["kernel_dropped"] * (TRAIN if "GRO" in name else 1)  # the kernel counts a train as one
    return {
        "rate": received["bytes"] / sent["seconds"],
        "sent_rate": sent["bytes"] / sent["seconds"],
        "sent": sent["datagrams"],
        "received": received["datagrams"],
        "dropped": dropped,
        "missing": sent["datagrams"] - received["datagrams"] - dropped,
        "sender_cpu": sent["cpu_seconds"] / sent["bytes"] * 1e9,
        "receiver_cpu": used / max(1, received["bytes"]) * 1e9,
    }


def _ask(host: str, port: int) -> bytes:
    """Ask the receiver for its counts; the question may be dropped while its buffer is full."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((host, port))
        for _ in range(20):
            sock.send(b"?")
            try:
                return sock.recv(65536)
            except TimeoutError:
                continue
    raise RuntimeError("the receiver does not answer")


def measure_idle(name: str) -> dict[str, Any]:
    """Open many endpoints in one process, and divide its memory."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "servers" / "udp_idle.py"), "10000"],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def echo_table(title: str, runs: Runs) -> Table:
    names = names_in(runs, ECHO)
    rows = []
    for name in sorted(names, key=lambda name: median_of(runs, name, "cpu")):
        row = [name, f"{median_of(runs, name, 'rate'):,.0f}", f"{median_of(runs, name, 'cpu') * 1e6:.2f}"]
        row += [compared(runs, name, "uvloop protocol", "cpu"), compared(runs, name, CEILING, "cpu", spread=False)]
        row += [f"{median_of(runs, name, key) * 1e6:.0f}" for key in ("p50", "p99")]
        lost = sum(run["lost"] + run["wrong"] + run["refused"] for run in runs if run["name"] == name)
        rows.append([*row, str(lost)])
    headings = ["server", "datagrams/s", "CPU µs", "÷ uvloop", "÷ C", "p50 µs", "p99 µs", "lost"]
    return Table(title, headings, rows)


def bulk_table(runs: Runs) -> Table:
    rows = [
        [
            name,
            f"{median_of(runs, name, 'rate') / 1e6:,.0f}",
            compared(runs, name, "uvloop sendto", "rate", digits=1),
            f"{median_of(runs, name, 'sent_rate') / 1e6:,.0f}",
            compared(runs, name, "uvloop sendto", "sent_rate", digits=1),
            f"{median_of(runs, name, 'sender_cpu'):.2f}",
            f"{median_of(runs, name, 'receiver_cpu'):.2f}",
            f"{median_of(runs, name, 'dropped'):,.0f}",
            str(sum(run["missing"] for run in runs if run["name"] == name)),
        ]
        for name in names_in(runs, BULK)
    ]
    headings = ["way", "MB/s received", "÷ uvloop", "MB/s sent", "÷ uvloop", "s/GB sending", "s/GB receiving"]
    return Table("Bulk, 1432-byte datagrams to one destination", [*headings, "dropped by the kernel", "missing"], rows)


def idle_table(runs: Runs) -> Table:
    rows = [[f"{run['count']:,}", f"{run['python'] / 1024:.2f}", f"{run['resident'] / 1024:.2f}"] for run in runs]
    headings = ["endpoints", "KiB of Python memory each", "KiB of resident memory each"]
    return Table("Idle endpoints in one process", headings, rows)


def goals_table(parts: Mapping[str, Runs]) -> Table:
    """Return what was aimed at beside what was measured, as far as it was."""
    rows = []
    for part, text, name, base, key, bound in GOALS:
        runs = parts.get(part, [])
        if {name, base} <= {run["name"] for run in runs}:
            rows.append([f"{text} ({name.rpartition(', ')[2]})" if part == "bulk" else text, bound])
            rows[-1] += _judged(ratio(runs, name, base, key), bound)
    for name in BULK[1::-1]:
        if runs := [run for run in parts.get("bulk", []) if run["name"] == name]:
            missing = sum(run["missing"] for run in runs)
            rows.append([f"bulk: lost and not counted ({name.rpartition(', ')[2]})", "<= 0", *_judged(missing, "<= 0")])
    for run in parts.get("idle", []):
        text = f"KiB of Python memory of each of {run['count']:,} idle endpoints"
        rows.append([text, "<= 6", *_judged(run["python"] / 1024, "<= 6")])
    return Table("Goals", ["figure", "goal", "measured", "reached"], rows)


def _judged(value: float, bound: str) -> list[str]:
    sign, _, limit = bound.partition(" ")
    reached = value <= float(limit) if sign == "<=" else value >= float(limit)
    return [f"{value:.3g}", "yes" if reached else "no"]


BENCHMARK: Final = Benchmark(
    "udp",
    {
        "echo64": Part(
            ECHO, partial(measure_echo, peers=100, size=64), partial(echo_table, "Echo, 100 peers, 64 bytes")
        ),
        "echo1000": Part(
            ECHO, partial(measure_echo, peers=100, size=1000), partial(echo_table, "Echo, 100 peers, 1000 bytes")
        ),
        "pingpong": Part(
            PING_PONG, partial(measure_echo, peers=1, size=64), partial(echo_table, "Ping-pong, one peer, 64 bytes")
        ),
        "bulk": Part(BULK, partial(measure_bulk, size=1432), bulk_table),
        "idle": Part(("10,000 endpoints",), measure_idle, idle_table, timed=False, most_rounds=1),
    },
    rounds=7,
    closing=goals_table,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
