"""Are the claims about concurrency models true? Each is a table: what is said to be dear or cheap, beside the others.

clients: processes do not carry hundreds of clients. Requests, processor time and memory with 10, 100 and 250.
idle: select slows with the number of connections, and the cost of epoll follows the active ones only.
limit: select knows descriptors up to 1023. What becomes of connection 1100.
switch: a switch between threads costs more than one between coroutines.
work: coroutines pay for work that waits, and do nothing for work that computes.

Servers run on the first core, the load (in C) on the second; only in ``work`` may a server use both, since that is what
processes are for. Memory is the proportional share (PSS) of the server and its children: what they share counts once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from asyncnet.lab.processes import memory_of, tree_of
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, compared, median_of, names_in, pin, ratio_of, server
from benchmarks._report import Table, fill_chapters
from benchmarks.engines import SIZE, command_of, load_tree
from benchmarks.tcp import held

CLIENTS: Final = (10, 100, 250)
ON_CLIENTS: Final = ("process", "prefork", "thread", "epoll")
FORKERS: Final = ("process", "prefork")
FORKING: Final = 4.0
"""Seconds until a prefork server has made a child for each of many connections."""
IDLE: Final = (0, 200, 900)
BUSY: Final = 20
ON_IDLE: Final = ("polling", "select", "poll", "epoll")
TOO_MANY: Final = 1100
SETTLING: Final = 1.0
"""Seconds until a server has looked at every connection that the system has accepted for it."""
ON_LIMIT: Final = ("select", "poll", "epoll")
SWITCHES: Final = (
    "threads, a lock",
    "threads, threading.Event",
    "generators, send",
    "greenlets, switch",
    "greenlets, gevent.sleep(0)",
    "coroutines of the kernel",
    "coroutines of the kernel, 100 of them",
    "tasks of asyncio",
    "tasks of asyncio, 100 of them",
    "tasks of asyncio on uvloop",
)
THREADS: Final = "threads, a lock"
WORKERS: Final = 8
WORKS: Final = ("wait", "compute")
ON_WORK: Final = ("epoll", "thread", "process", "prefork", "asyncnet")


def handlers(engine: str, work: str) -> list[str]:
    return [sys.executable, str(FOLDER / "servers" / "handlers.py"), engine, work]


def children_of(pid: int) -> int:
    """Return how many processes descend from one."""
    return len(tree_of(pid)) - 1


def wait_for_children(pid: int, enough: Callable[[int], bool]) -> None:
    """Wait until a server has as many children as it should, but not for ever: the table tells how many there were."""
    give_up = time.monotonic() + 2 * FORKING
    while not enough(children_of(pid)) and time.monotonic() < give_up:
        time.sleep(0.1)


def measure_clients(name: str, *, seconds: float) -> dict[str, Any]:
    """Load a server, and weigh it while it has as many connections that do nothing."""
    engine, count = name.split()
    with server(command_of(engine)) as target:
        run = load_tree(target, seconds, connections=int(count), warm_up=FORKING)
        if engine == "process":
            wait_for_children(target.pid, lambda number: number == 0)
        with held(target, int(count)):
            if engine in FORKERS:
                wait_for_children(target.pid, lambda number: number >= int(count))
            time.sleep(SETTLING)
            weight, children = memory_of(target.pid) or 0, children_of(target.pid)
    return run | {"memory": weight / (1 << 20), "children": children}


def measure_idle(name: str, *, seconds: float) -> dict[str, Any]:
    """Load a server, and again beside connections that do nothing."""
    figures: dict[str, Any] = {}
    with server(command_of(name)) as target:
        for count in IDLE:
            busy = partial(load_tree, target, seconds, connections=BUSY, warm_up=0.5)
            if count:
                with held(target, count) as fate:
                    run = busy()
                closed = fate["closed"] + fate["refused"]
            else:
                run, closed = busy(), 0
            figures |= {f"cpu{count}": run["cpu"], f"rate{count}": run["rate"], f"p99{count}": run["p99"]}
            figures[f"failed{count}"] = run["closed"] + run["wrong"] + closed
    return figures


def measure_limit(name: str, *, seconds: float) -> dict[str, Any]:
    """Offer a server more connections than select can watch, and load it when most of them have left."""
    with server(handlers(name, "echo")) as target:
        with held(target, TOO_MANY) as fate:
            time.sleep(SETTLING)
        after = load_tree(target, seconds, connections=BUSY, warm_up=0.5)
    counted = json.loads(next(line for line in target.log if line.startswith("stats ")).removeprefix("stats "))
    lines = sum("refused so far" in line for line in target.log)
    result: dict[str, Any] = fate | {
        "counted": counted["refused"],
        "lines": lines,
        "failed_after": after["closed"] + after["wrong"],
        "rate": after["rate"],
    }
    return result


def measure_switch(name: str, *, seconds: float) -> dict[str, Any]:
    command = [sys.executable, str(FOLDER / "servers" / "switching.py"), name, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent) as process:
        pin(process.pid, 0)  # on two cores, threads would wait for each other's core to wake, too
        told, _ = process.communicate(timeout=60 + seconds)
    run: dict[str, Any] = json.loads(told)
    return run | {"ns": run["seconds"] / run["switches"] * 1e9}


def measure_work(name: str, *, seconds: float) -> dict[str, Any]:
    engine, work = name.split()
    with server(handlers(engine, work), core=None) as target:
        return load_tree(target, seconds, connections=WORKERS, size=100, warm_up=1.0)


def clients_table(runs: Runs) -> Table:
    rows = []
    for name in names_in(runs, _pairs(ON_CLIENTS, CLIENTS)):
        engine, count = name.split()
        failed = sum(run["closed"] + run["wrong"] for run in runs if run["name"] == name)
        rows.append(
            [
                engine,
                count,
                f"{median_of(runs, name, 'rate'):,.0f}",
                f"{median_of(runs, name, 'cpu') * 1e6:.1f}",
                compared(runs, name, f"epoll {count}", "cpu"),
                f"{median_of(runs, name, 'p99') * 1e3:.1f}",
                f"{median_of(runs, name, 'memory'):,.0f}",
                f"{median_of(runs, name, 'children'):.0f}",
                str(failed),
            ]
        )
    heads = ["engine", "connections", "requests/s", "CPU µs", "÷ epoll", "p99 ms", "MiB", "processes", "failed"]
    return Table(f"The number of clients: echo, {SIZE} bytes", heads, rows)


def idle_table(runs: Runs) -> Table:
    rows = []
    for name in names_in(runs, ON_IDLE):
        row = [name, *(f"{median_of(runs, name, f'cpu{count}') * 1e6:.1f}" for count in IDLE)]
        row += [f"{ratio_of(runs, name, f'cpu{count}', 'cpu0'):.2f}" for count in IDLE[1:]]
        row += [f"{median_of(runs, name, f'rate{count}'):,.0f}" for count in (IDLE[0], IDLE[-1])]
        failed = sum(run[f"failed{count}"] for count in IDLE for run in runs if run["name"] == name)
        rows.append([*row, str(failed)])
    heads = ["engine", "CPU µs alone", *(f"beside {count} idle" for count in IDLE[1:])]
    heads += [f"{count} ÷ alone" for count in IDLE[1:]]
    heads += ["requests/s alone", f"beside {IDLE[-1]}", "failed"]
    return Table(f"{BUSY} busy connections beside idle ones: echo, {SIZE} bytes", heads, rows)


def limit_table(runs: Runs) -> Table:
    keys = ("open", "closed", "counted", "lines", "failed_after")
    rows = [[name, *(f"{median_of(runs, name, key):,.0f}" for key in keys)] for name in names_in(runs, ON_LIMIT)]
    heads = ["engine", "stay open", "closed at once", "counted as refused", "lines in the log", "failed afterwards"]
    return Table(f"{TOO_MANY:,} connections at a time", heads, rows)


def switch_table(runs: Runs) -> Table:
    rows = [
        [name, f"{median_of(runs, name, 'ns'):,.0f}", compared(runs, name, THREADS, "ns", digits=3)]
        for name in sorted(names_in(runs, SWITCHES), key=lambda name: median_of(runs, name, "ns"), reverse=True)
    ]
    return Table("Two that take turns, on one core", ["way", "ns for a switch", f"÷ {THREADS}"], rows)


def work_table(runs: Runs) -> Table:
    rows = []
    for engine in ON_WORK:
        row = [engine]
        for name in names_in(runs, _pairs([engine], WORKS)):
            row += [f"{median_of(runs, name, 'rate'):,.0f}", f"{median_of(runs, name, 'p99') * 1e3:.1f}"]
        if len(row) == 1 + 2 * len(WORKS):  # otherwise a look at some alone
            rows.append(row)
    heads = ["engine", "5 ms of waiting, requests/s", "p99 ms", "5 ms of computing, requests/s", "p99 ms"]
    return Table(f"What a handler does: {WORKERS} clients, a server on two cores", heads, rows)


def _pairs(first: Sequence[str], second: Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{one} {other}" for one in first for other in second)


PARTS: Final = {
    "clients": Part(_pairs(ON_CLIENTS, CLIENTS), measure_clients, clients_table),
    "idle": Part(ON_IDLE, measure_idle, idle_table),
    "limit": Part(ON_LIMIT, measure_limit, limit_table),
    "switch": Part(SWITCHES, measure_switch, switch_table),
    "work": Part(_pairs(ON_WORK, WORKS), measure_work, work_table),
}
"""The claims."""


def fill_models(parts: Mapping[str, Runs]) -> None:
    """Put the tables into docs/models."""
    fill_chapters("claim", {part: str(PARTS[part].table(runs)) for part, runs in parts.items()})


BENCHMARK: Final = Benchmark("models", PARTS, also_publish=fill_models)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
