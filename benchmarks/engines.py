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
import textwrap
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from asyncnet import compat
from asyncnet.lab.native import native_tool
from benchmarks._harness import (
    TUNED,
    Server,
    by_name,
    median_of,
    ratio,
    rounds_of,
    run_pinned,
    save,
    server,
    with_steady_heap,
)
from benchmarks._report import Table, fill_chapters, publish

ON_ASYNCIO: Final = {"asyncio": "start_server on asyncio", "uvloop": "start_server on uvloop",
                     "asyncnet": "start_server on uvloop"}  # fmt: skip
FORMS: Final = {
    "polling by hand": "a loop over all sockets, written by hand,",
    "select by hand": "`select.select` by hand",
    "poll by hand": "`select.poll` by hand",
    "epoll by hand": "`select.epoll` by hand",
    "epoll-et by hand": "`select.epoll` and `EPOLLET` by hand",
    "thread by hand": "a thread and `recv` by hand",
    "thread-pool by hand": "`ThreadPoolExecutor`",
    "process by hand": "a fork and `recv` by hand",
    "prefork by hand": "128 processes that accept, by hand,",
    "gevent by hand": "gevent's `StreamServer`",
    "start_server on asyncio": "`asyncio.start_server` itself",
    "start_server on uvloop": "`asyncio.start_server` on uvloop",
}
"""What an engine is compared with, in words."""
CONNECTIONS: Final = 100
SIZE: Final = 1000
WARM_UP: Final = 1.0
ATTEMPTS: Final = 5
WIDTH: Final = 120
"""Columns of the documentation."""
PRICE: Final = "price"
"""The name of the table in docs/models."""


def by_hand(engine: str) -> str:
    """Return the name of what an engine is compared with."""
    return ON_ASYNCIO.get(engine, f"{engine} by hand")


def command_of(name: str) -> list[str]:
    if name.endswith(" by hand"):
        return by_name("by_hand.py", name.removesuffix(" by hand") + TUNED)
    if name.startswith("start_server"):
        return by_name("tcp_echo.py", name + TUNED)
    command = [sys.executable, "-m", "asyncnet", "tcp", "echo", "--bind", "127.0.0.1:0", "--engine", name]
    # Otherwise asyncio has two speeds, and which one is chance.
    return with_steady_heap(command)


def cpu_of_tree(pid: int) -> float:
    """Return the processor time in seconds of a process and its children, with all that have ended (proc(5)).

    Of those that run, the kernel tells nanoseconds: in ticks of 10 ms, hundreds of children that work little are lost.
    """
    own = 0.0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            own += int((task / "schedstat").read_text().split()[0]) / 1e9
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended since it was listed, and its parent has its time
        return 0.0
    ended = sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    return own + ended + sum(map(cpu_of_tree, children_of(pid)))


def children_of(pid: int) -> list[int]:
    """Return the processes that the main thread of a process has forked."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def measure(name: str, *, seconds: float) -> dict[str, Any]:
    with server(command_of(name)) as target:
        return load(target, seconds)


def load(
    target: Server, seconds: float, *, connections: int = CONNECTIONS, size: int = SIZE, warm_up: float = WARM_UP
) -> dict[str, Any]:
    """Load a server, and tell what a request cost it.

    Args:
        target: the server.
        seconds: how long to measure.
        connections: how many there are, each with one request under way.
        size: bytes of a request.
        warm_up: seconds before the measurement begins.
    """
    arguments = ["echo", target.host, target.port, connections, size, warm_up, seconds]
    for _ in range(ATTEMPTS):
        run, in_time = _load_once(target, [str(native_tool("load")), *map(str, arguments)], seconds * 0.8)
        if in_time:
            return run
    raise RuntimeError("this machine is too busy to look at a server in time")


def _load_once(target: Server, command: list[str], seconds: float) -> tuple[dict[str, Any], bool]:
    """Load a server, and count its processor time for so many seconds; also return whether the load went on so long.

    A process or a thread that ends with its connection costs something, too, or takes its account with it.
    """
    samples: list[tuple[float, float]] = []

    def sample() -> None:
        used = cpu_of_tree(target.pid)
        samples.append((time.monotonic(), used))  # after the look, which may be the one that is late

    last = threading.Timer(seconds, sample)
    over = 0.0

    def started() -> None:
        nonlocal over
        over = time.monotonic()
        sample()
        last.start()

    result = run_pinned(command, on_measuring=started)
    over += result["seconds"]
    last.join()
    (began, before), (ended, after) = samples
    rate = result["requests"] / result["seconds"]
    return result | {"rate": rate, "cpu": (after - before) / (ended - began) / rate if rate else 0.0}, ended < over


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
    fill_chapters("engine", {name: price_sentence(name, runs) for name in wanted})
    fill_chapters("claim", {PRICE: str(summary_table(wanted, runs))})
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


def price_sentence(name: str, runs: list[dict[str, Any]]) -> str:
    """Say what an engine costs beside its form by hand."""
    base = by_hand(name)
    cpu, its = median_of(runs, name, "cpu") * 1e6, median_of(runs, base, "cpu") * 1e6
    rate, p99 = median_of(runs, name, "rate"), median_of(runs, name, "p99") * 1e3
    sentence = (
        f"A request on `{name}` costs {cpu:.1f} µs of processor time; with {FORMS[base]} it is {its:.1f} µs, and the "
        f"ratio is {ratio(runs, name, base, 'cpu'):.2f}. It answers {rate:,.0f} requests/s, 99 % of them within "
        f"{p99:.1f} ms."
    )
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False)


def summary_table(engines: list[str], runs: list[dict[str, Any]]) -> Table:
    """Set the engines side by side, the cheapest first."""
    rows = [
        [
            name,
            f"{median_of(runs, name, 'cpu') * 1e6:.1f}",
            f"{ratio(runs, name, by_hand(name), 'cpu'):.2f}",
            f"{median_of(runs, name, 'rate'):,.0f}",
            f"{median_of(runs, name, 'p99') * 1e3:.1f}",
        ]
        for name in sorted(engines, key=lambda name: median_of(runs, name, "cpu"))
    ]
    title = f"Echo, {CONNECTIONS} connections, {SIZE} bytes"
    return Table(title, ["engine", "CPU µs for a request", "÷ by hand", "requests/s", "p99 ms"], rows)


if __name__ == "__main__":
    sys.exit(main())
