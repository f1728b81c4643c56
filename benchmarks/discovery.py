"""What do broadcast questions cost? Answers per processor second, and the time until everybody has answered.

Responders run on the first core, the load (in C) or the asker on the second. The load sends questions to one responder,
each when the last was answered, from 100 sockets. The processor time is the responder's own. The second table asks 50
responders on one port of the loopback network by one question: its wall time beyond the random delay that they wait is
what the package takes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import asyncnet
from asyncnet import broadcast
from asyncnet.lab.native import native_tool
from benchmarks._harness import (
    FOLDER,
    TUNED,
    by_name,
    median_of,
    pin,
    ratio,
    rounds_of,
    run_pinned,
    save,
    saved,
    server,
)
from benchmarks._report import Table, publish

BASE: Final = "asyncio protocol"
RESPONDERS: Final = ("asyncnet answer", "asyncnet answer on asyncio", "uvloop protocol", BASE, f"{BASE}{TUNED}")
COUNT: Final = 50
DELAYS: Final = (0.0, 0.1, 0.5)
_PROGRAM: Final = str(FOLDER / "servers" / "discovery.py")


def measure_responder(name: str, *, seconds: float) -> dict[str, Any]:
    """Load one responder."""
    with server(by_name("discovery.py", name)) as responder:
        load = [str(native_tool("load")), "udp", responder.host, str(responder.port), "100", "64", "0.7", str(seconds)]
        before = 0.0

        def started() -> None:
            nonlocal before
            before = responder.cpu_seconds()

        result = run_pinned(load, on_measuring=started)
        used = responder.cpu_seconds() - before
    return result | {
        "rate": result["requests"] / result["seconds"],
        "cpu": used / max(1, result["requests"]),
        "per_cpu_second": result["requests"] / used,
    }


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


def main(argv: list[str] | None = None) -> int:
    """Measure, save the runs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each measurement (default: 1.5)")
    parser.add_argument("--part", choices=tuple(TABLES), help="measure one table alone; the others stay")
    parser.add_argument("--dry", action="store_true", help="print the tables, and save nothing")
    arguments = parser.parse_args(argv)
    measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "responder": lambda: rounds_of(
            RESPONDERS, arguments.rounds, partial(measure_responder, seconds=arguments.seconds)
        ),
        "collecting": lambda: rounds_of([str(delay) for delay in DELAYS], arguments.rounds, measure_collecting),
    }
    parts = {part: measure() for part, measure in measures.items() if arguments.part in (None, part)}
    if arguments.dry:
        for part, runs in parts.items():
            print(TABLES[part](runs), "\n")
        return 0
    parts = saved("discovery") | parts if arguments.part else parts
    save("discovery", parts)
    publish("discovery", "\n\n".join(str(TABLES[part](parts[part])) for part in parts))
    return 0


def responder_table(runs: list[dict[str, Any]]) -> Table:
    names = [name for name in RESPONDERS if any(run["name"] == name for run in runs)]
    rows = [
        [
            name,
            f"{median_of(runs, name, 'rate'):,.0f}",
            f"{median_of(runs, name, 'cpu') * 1e6:.2f}",
            f"{median_of(runs, name, 'per_cpu_second'):,.0f}",
            f"{ratio(runs, name, BASE, 'per_cpu_second'):.1f}",
        ]
        for name in names
    ]
    headings = ["responder", "answers/s", "CPU µs", "answers per CPU second", "times asyncio"]
    return Table("Questions to one responder, 100 askers, 64 bytes", headings, rows)


def collecting_table(runs: list[dict[str, Any]]) -> Table:
    rows = [
        [
            f"{delay * 1000:.0f} ms",
            f"{min(run['found'] for run in runs if run['name'] == str(delay))} of {COUNT}",
            f"{median_of(runs, str(delay), 'seconds') * 1000:.1f} ms",
            f"{median_of(runs, str(delay), 'beyond') * 1000:.1f} ms",
            f"{max(run['beyond'] for run in runs if run['name'] == str(delay)) * 1000:.1f} ms",
        ]
        for delay in DELAYS
    ]
    headings = ["random delay up to", "found", "wall time", "beyond the delay", "at most"]
    return Table(f"{COUNT} responders on loopback, one question", headings, rows)


TABLES: Final = {"responder": responder_table, "collecting": collecting_table}

if __name__ == "__main__":
    sys.exit(main())
