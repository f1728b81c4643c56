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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import attrs

from asyncnet.lab.environment import environment
from asyncnet.lab.processes import STEADY_HEAP
from asyncnet.lab.schedule import LEAD

__all__ = [
    "FOLDER",
    "TUNED",
    "Server",
    "by_name",
    "median_of",
    "pin",
    "ratio",
    "ratio_of",
    "rounds_of",
    "run_pinned",
    "running",
    "save",
    "saved",
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


def median_of(runs: Sequence[dict[str, Any]], name: str, key: str) -> float:
    """Return the median of one figure over the rounds."""
    return float(statistics.median(run[key] for run in runs if run["name"] == name))


def ratio(runs: Sequence[dict[str, Any]], name: str, base: str, key: str) -> float:
    """Return the median of the ratios of one figure to that of `base` in the same round."""
    per_round = {(run["name"], run["round"]): run[key] for run in runs}
    return float(
        statistics.median(
            value / per_round[base, number] for (found, number), value in per_round.items() if found == name
        )
    )


def ratio_of(runs: Sequence[dict[str, Any]], name: str, key: str, base: str) -> float:
    """Return the median of the ratios of one figure to another of the same run."""
    return float(statistics.median(run[key] / run[base] for run in runs if run["name"] == name))


def saved(name: str) -> dict[str, Any]:
    """Return the tables that were saved last under a name; none when there are no results."""
    path = FOLDER / "results" / f"{name}.json"
    tables: dict[str, Any] = json.loads(path.read_text())["tables"] if path.exists() else {}
    return tables


def _peers() -> dict[str, str]:
    """Return the versions of what the package is held against, as far as it is from Python."""
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    return {name: version(name) for line in lines for name in [line.partition("==")[0]] if not line.startswith("#")}


def save(name: str, tables: dict[str, Any]) -> None:
    """Write the runs with the machine they ran on to ``results/NAME.json``."""
    (FOLDER / "results").mkdir(exist_ok=True)
    where = json.dumps(environment() | {"peers": _peers()}, indent=1)
    runs = {title: ",\n".join(map(json.dumps, found)) for title, found in tables.items()}  # a line for each
    listed = ",\n".join(f"{json.dumps(title)}: [\n{lines}\n]" for title, lines in runs.items())
    text = f'{{"environment": {where},\n"saved": {time.time()},\n"tables": {{\n{listed}\n}}}}\n'
    (FOLDER / "results" / f"{name}.json").write_text(text)
