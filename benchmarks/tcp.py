"""What does a TCP request cost, and a connection? Ours and other people's, echoing side by side.

Servers run on the first core, the load (in C) on the second. The processor time is the server's own, by the kernel's
accounting, during the measurement only. Each round measures everything once, in a new random order.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from asyncnet.lab.native import native_tool
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import (
    TUNED,
    Server,
    by_name,
    compared,
    load,
    load_command,
    median_of,
    names_in,
    pin,
    ratio,
    ratio_of,
    server,
)
from benchmarks._report import Table

CEILING: Final = "C, epoll"
OURS: Final = "tcp.serve on uvloop"
STREAMS: Final = "start_server on uvloop"
PROTOCOL: Final = "protocol on uvloop"
ON_ASYNCIO: Final = ("tcp.serve on asyncio", "start_server on asyncio")
BASES: Final = (PROTOCOL, STREAMS, CEILING)
OWN: Final = (
    OURS,
    "tcp.serve on asyncio",
    STREAMS,
    "start_server on asyncio",
    f"start_server on asyncio{TUNED}",
    PROTOCOL,
    "protocol on asyncio",
    f"protocol on asyncio{TUNED}",
)
OTHERS: Final = (
    "aiofastnet protocol on uvloop",
    f"aiofastnet protocol on uvloop{TUNED}",
    "aiofastnet start_server on uvloop",
    f"aiofastnet start_server on uvloop{TUNED}",
    "socketserver, threads",
    "gevent",
    "tornado",
    "tornado on uvloop",
    "Twisted",
    "trio",
    "anyio on asyncio and uvloop",
    "anyio on trio",
    "curio",
)
ALL: Final = (CEILING, *OWN, *OTHERS)
IDLE: Final = 10_000


def echo_server(name: str) -> list[str]:
    if name == CEILING:
        return [str(native_tool("echo")), "tcp", "0"]
    return by_name("tcp_echo.py", name)


@contextmanager
def held(target: Server, count: int, *, interval: float = 0, retry: float = 0) -> Iterator[dict[str, Any]]:
    """Keep connections open for as long as the context lasts; afterwards the dictionary has what became of them."""
    command = load_command(target, "hold", count, interval, retry)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        pin(holder.pid, 1)
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "measuring\n":
                raise RuntimeError(f"{' '.join(command)} failed")
            result: dict[str, Any] = {}
            yield result
        finally:
            told, _ = holder.communicate(timeout=60)
        result |= json.loads(told)


def measure_echo(name: str, *, size: int, seconds: float) -> dict[str, Any]:
    with server(echo_server(name)) as target:
        return load(target, "echo", 100, size, 0.7, seconds)


def measure_churn(name: str, *, end: str, seconds: float) -> dict[str, Any]:
    with server(echo_server(name)) as target:
        return load(target, "churn", 32, 100, 0.7, seconds, end)


def measure_idle(name: str, *, seconds: float) -> dict[str, Any]:
    """Load a server, hold many connections besides, and load it again."""
    with server(echo_server(name)) as target:
        quiet = load(target, "echo", 100, 1000, 0.7, seconds)
        before = target.memory()
        with held(target, IDLE):
            memory = (target.memory() - before) / IDLE
            crowded = load(target, "echo", 100, 1000, 0.7, seconds)
        return {"memory": memory, "quiet": quiet["rate"], "crowded": crowded["rate"]}


def cost_table(title: str, unit: str, runs: Runs) -> Table:
    names = sorted({run["name"] for run in runs}, key=lambda name: median_of(runs, name, "cpu"))
    rows = []
    for name in names:
        row = [name, f"{median_of(runs, name, 'rate'):,.0f}", f"{median_of(runs, name, 'cpu') * 1e6:.1f}"]
        row += [compared(runs, name, base, "cpu", spread=base != CEILING) for base in BASES]
        row += [f"{median_of(runs, name, key) * 1e6:.0f}" for key in ("p50", "p99")]
        rows.append([*row, str(sum(run["closed"] + run["wrong"] for run in runs if run["name"] == name))])
    heads = ["server", f"{unit}/s", "CPU µs", "÷ protocol", "÷ start_server", "÷ C", "p50 µs", "p99 µs", "failed"]
    return Table(title, heads, rows)


def idle_table(runs: Runs) -> Table:
    names = sorted({run["name"] for run in runs}, key=lambda name: median_of(runs, name, "memory"))
    rows = [
        [
            name,
            f"{median_of(runs, name, 'memory') / 1024:.2f}",
            f"{median_of(runs, name, 'quiet'):,.0f}",
            f"{median_of(runs, name, 'crowded'):,.0f}",
            f"{ratio_of(runs, name, 'crowded', 'quiet'):.2f}",
        ]
        for name in names
    ]
    title = f"{IDLE:,} idle connections, and 100 busy ones with 1000 bytes"
    return Table(title, ["server", "KiB for each idle one", "requests/s alone", "among idle ones", "ratio"], rows)


def goals_table(parts: Mapping[str, Runs]) -> Table:
    """Set what the design asks for beside what was measured, as far as it was."""
    rows: list[list[str]] = []

    def add(what: str, goal: str, figure: Callable[..., float], part: str, *arguments: str) -> None:
        names = {run["name"] for run in parts.get(part, ())}
        needed = [argument for argument in arguments if argument in ALL]
        if names.issuperset(needed):
            rows.append([what, goal, f"{figure(parts[part], *arguments):.2f}"])

    for part, size in (("echo1000", "1000"), ("echo65536", "65 536")):
        add(f"CPU, {size} bytes, ÷ {PROTOCOL}", "at most 1.15", ratio, part, OURS, PROTOCOL, "cpu")
        add(f"CPU, {size} bytes, ÷ {STREAMS}", "at most 0.87", ratio, part, OURS, STREAMS, "cpu")
        add(f"rate on asyncio, {size} bytes, ÷ start_server", "at least 2.5", ratio, part, *ON_ASYNCIO, "rate")
        add(f"rate, {size} bytes, ÷ the best of other people's streams", "at least 1", ratio_to_best, part, OURS)
    add("KiB of an idle connection", "at most 3", kibibytes_of, "idle", OURS)
    add("rate among idle ones ÷ alone", "at least 0.9", ratio_of, "idle", OURS, "crowded", "quiet")
    add(f"CPU of a short connection ÷ {STREAMS}", "at most 1", ratio, "churn", OURS, STREAMS, "cpu")
    return Table("What was to be reached, and was or was not", ["figure", "goal", "measured"], rows)


def ratio_to_best(runs: Runs, name: str) -> float:
    """Return the rate by that of the fastest of other people's streams; infinite when none was measured."""
    others = [other for other in names_in(runs, OTHERS) if "protocol" not in other]
    return min((ratio(runs, name, other, "rate") for other in others), default=float("inf"))


def kibibytes_of(runs: Runs, name: str) -> float:
    """Return the memory of one idle connection."""
    return median_of(runs, name, "memory") / 1024


BENCHMARK: Final = Benchmark(
    "tcp",
    {
        "echo1000": Part(
            ALL,
            partial(measure_echo, size=1000),
            partial(cost_table, "Echo, 100 connections, 1000 bytes", "requests"),
        ),
        "echo65536": Part(
            ALL,
            partial(measure_echo, size=65536),
            partial(cost_table, "Echo, 100 connections, 65 536 bytes", "requests"),
        ),
        "churn": Part(
            ALL,
            partial(measure_churn, end="close"),
            partial(cost_table, "Connect, 100 bytes there and back, close; 32 at a time", "connections"),
        ),
        "reset": Part(
            (CEILING, *OWN),
            partial(measure_churn, end="reset"),
            partial(cost_table, "The same, ended by a reset", "connections"),
        ),
        "idle": Part(ALL, measure_idle, idle_table),
    },
    closing=goals_table,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
