"""What do broadcast questions cost? Answers per processor second, and the time until everybody has answered.

Responders run on the first core, the load (in C) or the asker on the second. The load sends questions to one responder,
each when the last was answered, from 100 sockets. The processor time is the responder's own. The second table asks 50
responders on one port of the loopback network by one question: its wall time beyond the random delay that they wait is
what the package takes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, Final

import asyncnet
from asyncnet import broadcast
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, TUNED, by_name, compared, load, median_of, names_in, pin, server
from benchmarks._report import Table

BASE: Final = "asyncio protocol"
RESPONDERS: Final = ("asyncnet answer", "asyncnet answer on asyncio", "uvloop protocol", BASE, f"{BASE}{TUNED}")
COUNT: Final = 50
DELAYS: Final = ("0.0", "0.1", "0.5")
"""Seconds."""
_PROGRAM: Final = str(FOLDER / "servers" / "discovery.py")


def measure_responder(name: str, *, seconds: float) -> dict[str, Any]:
    """Load one responder."""
    with server(by_name("discovery.py", name)) as responder:
        result = load(responder, "udp", 100, 64, 0.7, seconds)
    return result | {"per_cpu_second": 1 / result["cpu"]}


def measure_collecting(name: str) -> dict[str, Any]:
    """Ask 50 responders, which wait up to a delay, and take the time until all have answered."""
    delay = float(name)
    with server([sys.executable, _PROGRAM, "many", str(COUNT), name]) as responders:
        pin(os.getpid(), 1)
        try:
            return asyncnet.run(_collect(responders.port, delay))
        finally:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))


async def _collect(port: int, delay: float) -> dict[str, Any]:
    asking = broadcast.ask(
        b"who", port, to=["127.255.255.255"], window=delay, limit=COUNT, timeout=delay + 5, repeat_at=(0.0,)
    )
    begin = time.perf_counter()
    found = {reply.data async for reply in asking}
    took = time.perf_counter() - begin
    await asyncio.sleep(0)
    return {"delay": delay, "found": len(found), "seconds": took, "beyond": max(0.0, took - delay)}


def responder_table(runs: Runs) -> Table:
    names = names_in(runs, RESPONDERS)
    rows = [
        [
            name,
            f"{median_of(runs, name, 'rate'):,.0f}",
            f"{median_of(runs, name, 'cpu') * 1e6:.2f}",
            f"{median_of(runs, name, 'per_cpu_second'):,.0f}",
            compared(runs, name, BASE, "per_cpu_second", digits=1),
        ]
        for name in names
    ]
    headings = ["responder", "answers/s", "CPU µs", "answers per CPU second", "times asyncio"]
    return Table("Questions to one responder, 100 askers, 64 bytes", headings, rows)


def collecting_table(runs: Runs) -> Table:
    rows = [
        [
            f"{float(delay) * 1000:.0f} ms",
            f"{min(run['found'] for run in runs if run['name'] == delay)} of {COUNT}",
            f"{median_of(runs, delay, 'seconds') * 1000:.1f} ms",
            f"{median_of(runs, delay, 'beyond') * 1000:.1f} ms",
            f"{max(run['beyond'] for run in runs if run['name'] == delay) * 1000:.1f} ms",
        ]
        for delay in names_in(runs, DELAYS)
    ]
    headings = ["random delay up to", "found", "wall time", "beyond the delay", "at most"]
    return Table(f"{COUNT} responders on loopback, one question", headings, rows)


BENCHMARK: Final = Benchmark(
    "discovery",
    {
        "responder": Part(RESPONDERS, measure_responder, responder_table),
        "collecting": Part(DELAYS, measure_collecting, collecting_table, timed=False),
    },
    rounds=7,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
