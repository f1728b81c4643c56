"""What does a supervisor cost, and what does it give? Requests by hand and by workers, cores, starts, deaths, reloads.

For the cost, the server runs on the first core and the load on the second. All other parts run on all cores, with the
load among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet.workers.pidfile import control_path
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, Server, compared, load, load_command, median_of, names_in, run_pinned, server
from benchmarks._report import Table

BY_HAND: Final = "one process by hand"
AGAIN: Final = "one process by hand, again"
MASTER: Final = "one worker under a master"
INHERITED: Final = "one listener"
REUSE_PORT: Final = "SO_REUSEPORT"
CONNECTIONS: Final = 50
SIZE: Final = 1000
KILLS: Final = 20
RELOADS: Final = 20


@attrs.frozen
class Fleet(Server):
    """A master with its workers."""

    pid_file: str = ""

    @property
    def workers(self) -> list[int]:
        """The processes of its workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def cpu_seconds(self) -> float:
        """Processor time of the master and of its workers."""
        return sum(self.cpu_of(pid) for pid in (self.pid, *self.workers))

    @staticmethod
    def cpu_of(pid: int) -> float:
        """Processor time of one process."""
        return sum(int((t / "schedstat").read_text().split()[0]) for t in Path(f"/proc/{pid}/task").iterdir()) / 1e9

    def report(self) -> dict[str, Any]:
        """Return the master's report."""
        answer = b""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(control_path(self.pid_file))
            sock.sendall(b"GET /status HTTP/1.1\r\n\r\n")
            while data := sock.recv(65536):
                answer += data
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the report is as it should be."""
        give_up = time.monotonic() + 20
        while not condition(self.report()):
            if time.monotonic() > give_up:
                raise RuntimeError("the workers do not get there")
            time.sleep(0.002)


@contextlib.contextmanager
def fleet(number: int, *more: str) -> Iterator[Fleet]:
    """Run a master with so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        pid_file = f"{folder}/pid"
        command = ["env", f"PID_FILE={pid_file}", sys.executable, str(FOLDER / "servers" / "workers_echo.py")]
        with server([*command, str(number), *more]) as found:
            yield Fleet(found.pid, found.host, found.port, found.log, pid_file)


def spread_over_all_cores(target: Fleet, cores: set[int]) -> None:
    """Let a master and its workers run anywhere."""
    for pid in (target.pid, *target.workers):
        os.sched_setaffinity(pid, cores)


def loaded(target: Server, mode: str, seconds: float, *more: str) -> dict[str, Any]:
    return load(target, mode, CONNECTIONS, SIZE, 0.5, seconds, *more)


def measure_cost(name: str) -> dict[str, Any]:
    """Load one process, or one worker and its master."""
    if name == MASTER:
        with fleet(1) as target:
            return loaded(target, "echo", 3)
    with server([sys.executable, str(FOLDER / "servers" / "workers_echo.py"), "alone"]) as alone:
        return loaded(alone, "echo", 3)


def measure_cores(name: str) -> dict[str, Any]:
    """New connections for as many workers as there are cores: what each of them does."""
    cores = os.sched_getaffinity(0)
    with fleet(len(cores), *(["reuse_port"] if name == REUSE_PORT else [])) as target:
        spread_over_all_cores(target, cores)
        before = {pid: target.cpu_of(pid) for pid in target.workers}
        begin = time.monotonic()
        result = loaded(target, "churn", 3, "close")
        seconds = time.monotonic() - begin
        used = [(target.cpu_of(pid) - cpu) / seconds for pid, cpu in before.items()]
        time.sleep(0.5)  # the table in shared memory is written every quarter of a second
        accepted = [each["counters"]["accepted"] for each in target.report()["workers"]]
    return {"rate": result["rate"], "used": used, "accepted": accepted, "skew": max(accepted) / max(1, min(accepted))}


def measure_start(name: str) -> dict[str, Any]:
    """Start four workers."""
    begin = time.monotonic()
    with fleet(4):
        return {"seconds": time.monotonic() - begin}


def measure_deaths(name: str) -> dict[str, Any]:
    """Kill workers, one after the other, and wait until another one serves."""
    seconds = []
    with fleet(2) as target:
        for number in range(KILLS):
            time.sleep(2.1)  # a worker that dies young is replaced later
            victim = target.workers[number % 2]
            begin = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            target.wait_for(lambda report: report["crashes"] == number + 1 and report["serving"] == 2)  # noqa: B023
            seconds.append(time.monotonic() - begin)
    return {"median": statistics.median(seconds), "longest": max(seconds)}


def measure_reloads(name: str) -> dict[str, Any]:
    """Reload again and again under as many new connections as there can be."""
    with fleet(2, *(["reuse_port"] if name == REUSE_PORT else [])) as target:
        spans: list[float] = []

        def reload_all() -> None:
            for number in range(RELOADS):
                begin = time.monotonic()
                os.kill(target.pid, signal.SIGHUP)
                target.wait_for(lambda report: report["reloads"] == number + 1)  # noqa: B023
                spans.append(time.monotonic() - begin)
                target.wait_for(lambda report: len(report["workers"]) == 2)

        reloading = threading.Thread(target=reload_all)
        command = load_command(target, "churn", 20, 100, 0.5, 12, "close")
        result = run_pinned(command, on_measuring=reloading.start)
        reloading.join()
    return {
        "requests": result["all_requests"],
        "failed": result["closed"] + result["wrong"],
        "median": statistics.median(spans),
    }


def cost_table(runs: Runs) -> Table:
    rows = [
        [
            name,
            f"{median_of(runs, name, 'rate'):,.0f}",
            f"{median_of(runs, name, 'cpu') * 1e6:.2f}",
            compared(runs, name, BY_HAND, "cpu", digits=3),
            f"{median_of(runs, name, 'p99') * 1e6:,.0f}",
        ]
        for name in names_in(runs, (BY_HAND, AGAIN, MASTER))
    ]
    title = f"What the master costs: echo, {CONNECTIONS} connections, {SIZE} bytes"
    return Table(title, ["server", "requests/s", "CPU µs", "÷ by hand", "p99 µs"], rows)


def cores_table(runs: Runs) -> Table:
    rows = []
    for name in names_in(runs, (INHERITED, REUSE_PORT)):
        last = [run for run in runs if run["name"] == name][-1]
        used = " + ".join(f"{share * 100:.0f} %" for share in last["used"])
        accepted = " + ".join(f"{count:,}" for count in last["accepted"])
        rows.append(
            [name, f"{median_of(runs, name, 'rate'):,.0f}", used, accepted, f"{median_of(runs, name, 'skew'):.2f}"]
        )
    title = "A worker on each core, which the load shares: new connections"
    return Table(title, ["workers share", "connections/s", "CPU of each", "accepted by each", "most ÷ least"], rows)


def start_table(runs: Runs) -> Table:
    name = runs[0]["name"]
    worst = max(run["seconds"] for run in runs)
    row = [name, f"{median_of(runs, name, 'seconds') * 1e3:,.0f}", f"{worst * 1e3:,.0f}"]
    return Table("From the command to the last worker that serves", ["start of", "ms", "longest"], [row])


def deaths_table(runs: Runs) -> Table:
    name = runs[0]["name"]
    worst = max(run["longest"] for run in runs)
    row = [name, f"{median_of(runs, name, 'median') * 1e3:,.0f}", f"{worst * 1e3:,.0f}"]
    return Table(
        f"kill -9 of a worker, {KILLS} times, until another one serves", ["workers", "median ms", "longest"], [row]
    )


def reloads_table(runs: Runs) -> Table:
    rows = []
    for name in names_in(runs, (INHERITED, REUSE_PORT)):
        mine = [run for run in runs if run["name"] == name]
        requests, failed = sum(run["requests"] for run in mine), sum(run["failed"] for run in mine)
        rows.append([name, f"{requests:,}", str(failed), f"{median_of(runs, name, 'median') * 1e3:,.0f}"])
    title = f"{RELOADS} reloads while 20 clients connect, ask and leave as fast as they can"
    return Table(title, ["workers share", "connections", "failed", "ms until the new ones serve"], rows)


BENCHMARK: Final = Benchmark(
    "workers",
    {
        "cost": Part((BY_HAND, AGAIN, MASTER), measure_cost, cost_table),
        "cores": Part((INHERITED, REUSE_PORT), measure_cores, cores_table, most_rounds=2),
        "start": Part(("4 workers",), measure_start, start_table),
        "deaths": Part(("2 workers",), measure_deaths, deaths_table, most_rounds=2),
        "reloads": Part((INHERITED, REUSE_PORT), measure_reloads, reloads_table, most_rounds=2),
    },
    seconds=None,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))
