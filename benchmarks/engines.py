"""What does one handler on every engine cost? Each engine beside what one writes by hand for its model.

The handler is the same everywhere: it reads, writes, and drains. By hand means no framework: `select.epoll` and a
dictionary, a thread and `recv`, gevent's `StreamServer`. The engines of asyncio stand beside `asyncio.start_server` on
the same loop, and ``asyncnet`` beside `asyncio.start_server` on uvloop.

Servers run on the first core, the load (in C) on the second. The processor time is that of the server and its children,
by the kernel's accounting, during the measurement only. Each round measures everything once, in a new random order.
"""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from asyncnet import compat
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import (
    TUNED,
    Server,
    by_name,
    compared,
    load_command,
    median_of,
    names_in,
    ratio,
    run_pinned,
    server,
    with_steady_heap,
)
from benchmarks._report import Table, fill_chapters

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
"""The name of what is measured, and of its table in docs/models."""


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


def measure(name: str, *, seconds: float) -> dict[str, Any]:
    with server(command_of(name)) as target:
        return load_tree(target, seconds)


def load_tree(
    target: Server, seconds: float, *, connections: int = CONNECTIONS, size: int = SIZE, warm_up: float = WARM_UP
) -> dict[str, Any]:
    """Load a server, and tell what a request cost it and its children.

    Args:
        target: the server.
        seconds: how long to measure.
        connections: how many there are, each with one request under way.
        size: bytes of a request.
        warm_up: seconds before the measurement begins.
    """
    command = load_command(target, "echo", connections, size, warm_up, seconds)
    for _ in range(ATTEMPTS):
        run, in_time = _load_once(target, command, seconds * 0.8)
        if in_time:
            return run
    raise RuntimeError("this machine is too busy to look at a server in time")


def _load_once(target: Server, command: list[str], seconds: float) -> tuple[dict[str, Any], bool]:
    """Load a server, and count its processor time for so many seconds; also return whether the load went on so long.

    A process or a thread that ends with its connection costs something, too, or takes its account with it.
    """
    samples: list[tuple[float, float]] = []

    def sample() -> None:
        used = target.tree_seconds()
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


def engines_in(runs: Runs) -> list[str]:
    """Return the engines that were measured."""
    return names_in(runs, compat.ENGINES)


def price_table(runs: Runs) -> Table:
    rows = []
    for name in engines_in(runs):
        base = by_hand(name)
        failed = sum(run["closed"] + run["wrong"] for run in runs if run["name"] == name)
        rows.append(
            [
                name,
                base,
                f"{median_of(runs, name, 'cpu') * 1e6:.1f}",
                f"{median_of(runs, base, 'cpu') * 1e6:.1f}",
                compared(runs, name, base, "cpu"),
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


def price_sentence(name: str, runs: Runs) -> str:
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


def summary_table(runs: Runs) -> Table:
    """Set the engines side by side, the cheapest first."""
    rows = [
        [
            name,
            f"{median_of(runs, name, 'cpu') * 1e6:.1f}",
            f"{ratio(runs, name, by_hand(name), 'cpu'):.2f}",
            f"{median_of(runs, name, 'rate'):,.0f}",
            f"{median_of(runs, name, 'p99') * 1e3:.1f}",
        ]
        for name in sorted(engines_in(runs), key=lambda name: median_of(runs, name, "cpu"))
    ]
    title = f"Echo, {CONNECTIONS} connections, {SIZE} bytes"
    return Table(title, ["engine", "CPU µs for a request", "÷ by hand", "requests/s", "p99 ms"], rows)


def fill_models(parts: Mapping[str, Runs]) -> None:
    """Put the prices into docs/models."""
    runs = parts[PRICE]
    fill_chapters("engine", {name: price_sentence(name, runs) for name in engines_in(runs)})
    fill_chapters("claim", {PRICE: str(summary_table(runs))})


BENCHMARK: Final = Benchmark(
    "engines",
    {
        PRICE: Part(
            [name for name, engine in compat.ENGINES.items() if not engine.unavailable()],
            measure,
            price_table,
            beside=by_hand,
        )
    },
    seconds=2.0,
    also_publish=fill_models,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
