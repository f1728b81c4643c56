"""How long does it take to start? Imports, `asyncnet --version`, and servers until they listen, in fresh processes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

from asyncnet import compat
from asyncnet.lab.processes import memory_of, started
from benchmarks._harness import median_of, ratio, rounds_of, save
from benchmarks._report import Table, publish

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


def main() -> None:
    """Measure, print the tables and put them into README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true", help="print only: neither README.md nor results/ change")
    chosen = parser.parse_args()
    imports = [name for name in IMPORTS if _there(name)]
    engines = [name for name, engine in compat.ENGINES.items() if not engine.unavailable()]
    commands: Callable[[str], dict[str, Any]] = lambda name: _timed(COMMANDS[name])  # noqa: E731
    runs = {
        "imports": rounds_of(imports, chosen.rounds, _import),
        "commands": rounds_of(list(COMMANDS), chosen.rounds, commands),
        "servers": rounds_of(engines, chosen.rounds, _serve),
    }
    tables = [
        Table("Time to import, in a fresh process", ["import", "ms", "asyncio = 1"], [
            [name, f"{median_of(runs['imports'], name, 'seconds') * 1e3:.0f}",
             f"{ratio(runs['imports'], name, 'asyncio', 'seconds'):.2f}"] for name in imports]),
        Table("Time of a command, start and end of Python included", ["command", "ms"], [
            [name, f"{median_of(runs['commands'], name, 'seconds') * 1e3:.0f}"] for name in COMMANDS]),
        Table("Time until an echo server listens, and its memory then", ["engine", "ms", "MiB (PSS)"], [
            [name, f"{median_of(runs['servers'], name, 'seconds') * 1e3:.0f}",
             f"{median_of(runs['servers'], name, 'memory') / 2**20:.1f}"] for name in engines]),
    ]  # fmt: skip
    text = "\n\n".join(map(str, tables))
    if chosen.dry_run:
        print(text)
        return
    save("startup", runs)
    publish("startup", text)


if __name__ == "__main__":
    main()
