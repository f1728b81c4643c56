"""How long does it take to start? Imports, `asyncnet --version`, and servers until they listen, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any, Final

from asyncnet import compat
from asyncnet.lab.processes import memory_of, started
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import compared, median_of, names_in
from benchmarks._report import Table

IMPORTS: Final = ("asyncio", "asyncnet", "uvloop", "aiofastnet", "gevent", "tornado.tcpserver",
                  "twisted.internet.reactor", "trio", "anyio", "curio", "zeroconf", "tftpy")  # fmt: skip
COMMANDS: Final = {"python -c pass": ["-c", "pass"], "asyncnet --version": ["-m", "asyncnet", "--version"],
                   "asyncnet tftp --help": ["-m", "asyncnet", "tftp", "--help"]}  # fmt: skip


def _timed(words: list[str]) -> dict[str, Any]:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - begin}


def _import(name: str) -> dict[str, Any]:
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"seconds": float(done.stdout)}


def _serve(engine: str) -> dict[str, Any]:
    begin = time.perf_counter()
    with started([sys.executable, "-m", "asyncnet.lab.servers", "tcp", engine, "echo"]) as server:
        seconds = time.perf_counter() - begin
        memory = memory_of(server.pid) or 0
    return {"seconds": seconds, "memory": memory}


def _there(name: str) -> bool:
    return find_spec(name.partition(".")[0]) is not None


def imports_table(runs: Runs) -> Table:
    rows = [
        [name, f"{median_of(runs, name, 'seconds') * 1e3:.0f}", compared(runs, name, "asyncio", "seconds")]
        for name in names_in(runs, IMPORTS)
    ]
    return Table("Time to import, in a fresh process", ["import", "ms", "asyncio = 1"], rows)


def commands_table(runs: Runs) -> Table:
    rows = [[name, f"{median_of(runs, name, 'seconds') * 1e3:.0f}"] for name in names_in(runs, COMMANDS)]
    return Table("Time of a command, start and end of Python included", ["command", "ms"], rows)


def servers_table(runs: Runs) -> Table:
    rows = [
        [name, f"{median_of(runs, name, 'seconds') * 1e3:.0f}", f"{median_of(runs, name, 'memory') / 2**20:.1f}"]
        for name in names_in(runs, compat.ENGINES)
    ]
    return Table("Time until an echo server listens, and its memory then", ["engine", "ms", "MiB (PSS)"], rows)


BENCHMARK: Final = Benchmark(
    "startup",
    {
        "imports": Part([name for name in IMPORTS if _there(name)], _import, imports_table),
        "commands": Part(list(COMMANDS), lambda name: _timed(COMMANDS[name]), commands_table),
        "servers": Part(
            [name for name, engine in compat.ENGINES.items() if not engine.unavailable()], _serve, servers_table
        ),
    },
    rounds=10,
    seconds=None,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
