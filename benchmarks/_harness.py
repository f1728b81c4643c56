"""What the benchmarks share: servers in processes of their own, rounds in random order, medians and paired ratios."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import attrs

from asyncnet.lab.native import native_tool
from asyncnet.lab.processes import STEADY_HEAP, cpu_of
from asyncnet.lab.schedule import LEAD

__all__ = [
    "FOLDER",
    "TUNED",
    "Server",
    "by_name",
    "compared",
    "load",
    "load_command",
    "median_of",
    "names_in",
    "pin",
    "ratio",
    "ratio_of",
    "rounds_of",
    "run_pinned",
    "running",
    "server",
    "with_steady_heap",
]

FOLDER: Final = Path(__file__).parent
TUNED: Final = ", tuned heap"
"""Ends the name of a server that runs with fixed thresholds of the allocator."""
_START_WITHIN: Final = 20.0
_MOST_STOLEN: Final = 0.02
_ATTEMPTS: Final = 4
_CORES: Final = sorted(os.sched_getaffinity(0))  # before a benchmark gives itself one of them


@attrs.frozen
class Server:
    """A server that runs.

    Attributes:
        log: what it says on standard error after it is ready, line by line.
    """

    pid: int
    host: str
    port: int
    log: list[str] = attrs.field(factory=list, repr=False)

    def memory(self, key: str = "VmRSS") -> int:
        """Return bytes of resident memory; with ``VmHWM`` the most there has been (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{key}:")[2].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far, the ended ones included; the kernel counts it in nanoseconds."""
        return time.clock_gettime((~self.pid << 3) | 2)  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3)

    def tree_seconds(self) -> float:
        """Processor time of the server and its children, with all that have ended."""
        found = cpu_of(self.pid)
        return found.total if found else 0.0


def pin(pid: int, core: int) -> None:
    """Give a process one of the cores that we have, counted from 0."""
    os.sched_setaffinity(pid, {_CORES[core % len(_CORES)]})


def by_name(program: str, name: str) -> list[str]:
    """Return the command of a program in ``servers`` that takes the name of a way, which may end in ``TUNED``."""
    command = [sys.executable, str(FOLDER / "servers" / program), name.removesuffix(TUNED)]
    return with_steady_heap(command) if name.endswith(TUNED) else command


def with_steady_heap(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one with fixed thresholds of the allocator."""
    return ["env", *map("=".join, STEADY_HEAP.items()), *command]


@contextlib.contextmanager
def running(command: Sequence[str], *, core: int | None = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a program on one core, or on all for None, with its output as pipes; at the end it gets SIGTERM."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=FOLDER.parent)
    if core is not None:
        pin(process.pid, core)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def server(command: Sequence[str], *, core: int | None = 0) -> Iterator[Server]:
    """Run a server as `running` does; it says ``listening on HOST:PORT`` on standard error when it is ready."""
    with running(command, core=core) as process:
        assert process.stderr is not None
        lines = []
        while select.select([process.stderr], [], [], _START_WITHIN)[0]:
            line = process.stderr.readline()
            lines.append(line)
            if line.startswith("listening on "):
                host, _, port = line.removeprefix("listening on ").strip().rpartition(":")
                ready = Server(process.pid, host, int(port))
                reader = threading.Thread(target=_collect, args=(process.stderr, ready.log))
                reader.start()
                try:
                    yield ready
                finally:
                    process.terminate()
                    reader.join(10)
                return
            if not line:
                break
        raise RuntimeError(f"{' '.join(command)} did not start: {''.join(lines)}")


def _collect(lines: IO[str], log: list[str]) -> None:
    log.extend(lines)


def run_pinned(command: Sequence[str], *, on_measuring: Callable[[], None], core: int = 1) -> dict[str, Any]:
    """Run a load generator on one core, and return what it prints as JSON.

    Args:
        command: prints the line ``measuring`` when its warm-up is over.
        on_measuring: called at that moment.
        core: where it runs, counted from 0.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        pin(process.pid, core)
        assert process.stdout is not None
        if process.stdout.readline() != "measuring\n":
            raise RuntimeError(f"{' '.join(command)} failed")
        time.sleep(LEAD)
        on_measuring()
        result: dict[str, Any] = json.loads(process.stdout.readline())
        return result
    finally:
        process.kill()
        process.communicate()


def load_command(target: Server, mode: str, *arguments: object) -> list[str]:
    """Return the command of the generator in C.

    Args:
        target: a server that listens.
        mode: of load.c, which also says what the arguments are.
        arguments: those after host and port.
    """
    return [str(native_tool("load")), mode, target.host, str(target.port), *map(str, arguments)]


def load(target: Server, mode: str, *arguments: object) -> dict[str, Any]:
    """Load a server as `load_command` does, and tell what a request cost it."""
    command = load_command(target, mode, *arguments)
    before: list[float] = []
    result = run_pinned(command, on_measuring=lambda: before.append(target.cpu_seconds()))
    used = target.cpu_seconds() - before[0]
    return result | {
        "rate": result["requests"] / result["seconds"],
        "cpu": used / max(1, result["requests"]),
        "load_busy": result["cpu_seconds"] / result["seconds"],
    }


def rounds_of(names: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure everything once a round, in a new random order each time.

    A measurement during which the hypervisor gave more than 2 % of this machine to others is made again, at most three
    times; of its attempts the one that was disturbed least counts.
    """
    order = random.Random(1)
    runs = []
    for number in range(1, rounds + 1):
        for name in order.sample(names, len(names)):
            print(f"\r\x1b[Kround {number} of {rounds}: {name}", end="", file=sys.stderr, flush=True)
            runs.append({"name": name, "round": number} | _undisturbed(partial(measure, name)))
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return runs


def _undisturbed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    best: dict[str, Any] | None = None
    for _ in range(_ATTEMPTS):
        stolen, begin = _stolen_seconds(), time.monotonic()
        run = measure()
        share = (_stolen_seconds() - stolen) / (time.monotonic() - begin) / (os.cpu_count() or 1)
        if best is None or share < best["stolen"]:
            best = run | {"stolen": share}
        if share <= _MOST_STOLEN:
            break
    assert best is not None
    return best


def _stolen_seconds() -> float:
    """Return the processor time that the hypervisor has given to others, on all cores (proc(5))."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def names_in(runs: Sequence[dict[str, Any]], order: Iterable[str]) -> list[str]:
    """Return the names that were measured, in an order."""
    found = {run["name"] for run in runs}
    return [name for name in order if name in found]


def median_of(runs: Sequence[dict[str, Any]], name: str, key: str) -> float:
    """Return the median of one figure over the rounds."""
    return float(statistics.median(run[key] for run in runs if run["name"] == name))


def ratio(runs: Sequence[dict[str, Any]], name: str, base: str, key: str) -> float:
    """Return the median of the ratios of one figure to that of `base` in the same round."""
    return float(statistics.median(_ratios(runs, name, base, key)))


def compared(
    runs: Sequence[dict[str, Any]], name: str, base: str, key: str, *, digits: int = 2, spread: bool = True
) -> str:
    """Return `ratio`, and what it was in the rounds, from the least to the most; ``"-"`` without runs of `base`."""
    if not (found := _ratios(runs, name, base, key)):
        return "-"
    text = f"{statistics.median(found):.{digits}f}"
    return f"{text} ({min(found):.{digits}f}-{max(found):.{digits}f})" if spread and name != base else text


def _ratios(runs: Sequence[dict[str, Any]], name: str, base: str, key: str) -> list[float]:
    per_round = {(run["name"], run["round"]): run[key] for run in runs}
    return [
        value / per_round[base, number]
        for (found, number), value in per_round.items()
        if found == name and (base, number) in per_round
    ]


def ratio_of(runs: Sequence[dict[str, Any]], name: str, key: str, base: str) -> float:
    """Return the median of the ratios of one figure to another of the same run."""
    return float(statistics.median(run[key] / run[base] for run in runs if run["name"] == name))
