"""What does one handler on every engine cost? Each engine beside what one writes by hand for its model.

The handler is the same everywhere: it reads, writes, and drains. By hand means no framework: `select.epoll` and a
dictionary, a thread and `recv`, gevent's `StreamServer`. The engines of asyncio stand beside `asyncio.start_server` on
the same loop, and ``asyncnet`` beside `asyncio.start_server` on uvloop.

Servers run on the first core, the load (in C) on the second. The processor time is that of the server and its children,
by the kernel's accounting, during the measurement only. Each round measures everything once, in a new random order.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from asyncnet import compat
from asyncnet.lab.native import native_tool
from benchmarks._harness import FOLDER, Server, median_of, ratio, rounds_of, run_pinned, save, server
from benchmarks._report import Table, publish

ON_ASYNCIO: Final = {"asyncio": "start_server on asyncio", "uvloop": "start_server on uvloop",
                     "asyncnet": "start_server on uvloop"}  # fmt: skip
CONNECTIONS: Final = 100
SIZE: Final = 1000


def by_hand(engine: str) -> str:
    """Return the name of what an engine is compared with."""
    return ON_ASYNCIO.get(engine, f"{engine} by hand")


def command_of(name: str) -> list[str]:
    if name.endswith(" by hand"):
        return [sys.executable, str(FOLDER / "servers" / "by_hand.py"), name.removesuffix(" by hand")]
    if name.startswith("start_server"):
        return [sys.executable, str(FOLDER / "servers" / "tcp_echo.py"), name]
    return [sys.executable, "-m", "asyncnet", "tcp", "echo", "--bind", "127.0.0.1:0", "--engine", name]


def cpu_of_tree(pid: int) -> float:
    """Return the processor time in seconds of a process and its children, with all that have ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(cpu_of_tree, children_of(pid)))


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def measure(name: str, *, seconds: float) -> dict[str, Any]:
    with server(command_of(name)) as target:
        return load(target, seconds)


def load(target: Server, seconds: float) -> dict[str, Any]:
    arguments = ["echo", target.host, target.port, CONNECTIONS, SIZE, 1.0, seconds]
    samples: list[tuple[float, float]] = []

    def sample() -> None:
        samples.append((time.monotonic(), cpu_of_tree(target.pid)))

    # The last one while all connections are there: a process that ends with its connection costs something, too.
    last = threading.Timer(seconds * 0.95, sample)

    def started() -> None:
        sample()
        last.start()

    result = run_pinned([str(native_tool("tcp_load")), *map(str, arguments)], on_measuring=started)
    last.join()
    (began, before), (ended, after) = samples
    rate = result["requests"] / result["seconds"]
    return result | {"rate": rate, "cpu": (after - before) / (ended - began) / rate}


def main(argv: list[str] | None = None) -> int:
    """Measure, save the runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (default: 2)")
    parser.add_argument("--only", help="engines, with commas between them; prints, and saves nothing")
    arguments = parser.parse_args(argv)
    here = [name for name, engine in compat.ENGINES.items() if engine.unavailable() is None]
    wanted = [name for name in here if not arguments.only or name in arguments.only.split(",")]
    names = list(dict.fromkeys(name for engine in wanted for name in (engine, by_hand(engine))))
    runs = rounds_of(names, arguments.rounds, partial(measure, seconds=arguments.seconds))
    table = price_table(wanted, runs)
    if arguments.only:
        print(table)
        return 0
    save("engines", {"price": runs})
    publish("engines", str(table))
    return 0


def price_table(engines: list[str], runs: list[dict[str, Any]]) -> Table:
    rows = []
    for name in engines:
        base = by_hand(name)
        failed = sum(run["closed"] + run["wrong"] for run in runs if run["name"] == name)
        rows.append(
            [
                name,
                base,
                f"{median_of(runs, name, 'cpu') * 1e6:.1f}",
                f"{median_of(runs, base, 'cpu') * 1e6:.1f}",
                f"{ratio(runs, name, base, 'cpu'):.2f}",
                f"{median_of(runs, name, 'rate'):,.0f}",
                f"{median_of(runs, base, 'rate'):,.0f}",
                f"{median_of(runs, name, 'p99') * 1e6:.0f}",
                f"{median_of(runs, base, 'p99') * 1e6:.0f}",
                str(failed),
            ]
        )
    title = f"One handler on every engine: echo, {CONNECTIONS} connections, {SIZE} bytes"
    heads = ["engine", "compared with", "CPU µs", "its", "ratio", "requests/s", "its", "p99 µs", "its", "failed"]
    return Table(title, heads, rows)


if __name__ == "__main__":
    sys.exit(main())
