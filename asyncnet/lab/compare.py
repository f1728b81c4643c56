"""The same echo handler on every engine, measured side by side.

Every server runs in a fresh process, the load in another, each on a core of its own where there are two. The rounds are
interleaved: round 1 of every engine, then round 2, so that a machine that becomes slower does so for all. What counts
is the median of the rounds; the spread beside it says how far the rounds are apart.
"""

from __future__ import annotations

import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet.addresses import parse_address

__all__ = ["Comparison", "Measure", "Run", "Settings", "Summary", "compare", "environment"]

_START_WITHIN: Final = 15.0
_STOP_WITHIN: Final = 10.0


@attrs.frozen
class Settings:
    """What is compared, and how."""

    engines: tuple[str, ...]
    clients: int = 100
    """Connections at once."""
    size: int = 1000
    """Bytes of a message."""
    seconds: float = 3.0
    """Length of one measurement."""
    rounds: int = 5
    warm_up: float = 0.5
    """Seconds of load before each measurement."""


@attrs.frozen
class Run:
    """One engine in one round."""

    engine: str
    round: int
    requests_per_second: float = 0.0
    p50: float = 0.0
    """Seconds."""
    p99: float = 0.0
    """Seconds."""
    cpu_per_request: float | None = None
    """Processor seconds of the server and its children; None where the system does not tell."""
    requests: int = 0
    failures: int = 0
    load_busy: float = 0.0
    """Share of its core that the load generator used: near 1, it is the generator that limits the rate."""
    error: str | None = None
    """Why there is no measurement."""


@attrs.frozen
class Measure:
    """The median of the rounds, with the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Measure:
        """Summarise one value per round."""
        return cls(statistics.median(values), min(values), max(values))


@attrs.frozen
class Summary:
    """One engine over all rounds."""

    engine: str
    requests_per_second: Measure | None
    p50: Measure | None
    p99: Measure | None
    cpu_per_request: Measure | None
    requests: int
    failures: int
    load_busy: float
    errors: tuple[str, ...]


@attrs.frozen
class Comparison:
    """Everything that was measured."""

    settings: Settings
    environment: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def ok(self) -> bool:
        """Whether every request of every engine was answered."""
        return all(run.error is None and run.failures == 0 and run.requests > 0 for run in self.runs)

    def summaries(self) -> list[Summary]:
        """Return a summary per engine, in the order that they were asked for."""
        return [self._summary(engine) for engine in self.settings.engines]

    def _summary(self, engine: str) -> Summary:
        runs = [run for run in self.runs if run.engine == engine]
        good = [run for run in runs if run.error is None]

        def measure(value: Callable[[Run], float | None]) -> Measure | None:
            values = [found for run in good if (found := value(run)) is not None]
            return Measure.of(values) if values else None

        return Summary(
            engine=engine,
            requests_per_second=measure(lambda run: run.requests_per_second),
            p50=measure(lambda run: run.p50),
            p99=measure(lambda run: run.p99),
            cpu_per_request=measure(lambda run: run.cpu_per_request),
            requests=sum(run.requests for run in runs),
            failures=sum(run.failures for run in runs),
            load_busy=max((run.load_busy for run in good), default=0.0),
            errors=tuple(run.error for run in runs if run.error is not None),
        )

    def to_json(self) -> str:
        """Return settings, environment, every run and the summaries as JSON; times in seconds."""
        whole = attrs.asdict(self) | {"summaries": [attrs.asdict(summary) for summary in self.summaries()]}
        return json.dumps(whole, indent=2)


def compare(settings: Settings, *, progress: Callable[[int, int, str], object] | None = None) -> Comparison:
    """Measure every engine, round by round.

    Args:
        settings: what to measure.
        progress: called before each run with its number from 0, the number of runs, and what runs.
    """
    total = settings.rounds * len(settings.engines)
    runs: list[Run] = []
    for number in range(settings.rounds):
        for engine in settings.engines:
            if progress is not None:
                progress(len(runs), total, f"round {number + 1} of {settings.rounds}: {engine}")
            runs.append(_measure(engine, number + 1, settings))
    return Comparison(settings, environment(), tuple(runs))


def environment() -> dict[str, Any]:
    """Return what a reader needs to know about this machine."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(_cores()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_generator": "python",
    }


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _measure(engine: str, number: int, settings: Settings) -> Run:
    command = [sys.executable, "-m", "asyncnet", "tcp", "echo", "--bind", "127.0.0.1:0", "--engine", engine]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        _pin(server.pid, 0)
        host, port = _wait_until_listening(server)
        before = _cpu_seconds(server.pid)
        result = _load(host, port, settings)
        after = _cpu_seconds(server.pid)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as exc:
        return Run(engine, number, error=" ".join(str(exc).split()))
    finally:
        error = _stop(server)
    if error:
        return Run(engine, number, error=error)
    used = None if before is None or after is None or not result["all_requests"] else after - before
    return Run(
        engine=engine,
        round=number,
        requests_per_second=result["requests"] / result["seconds"],
        p50=result["p50"],
        p99=result["p99"],
        cpu_per_request=None if used is None else used / result["all_requests"],
        requests=result["requests"],
        failures=result["failures"],
        load_busy=result["cpu_seconds"] / result["seconds"],
    )


def _load(host: str, port: int, settings: Settings) -> dict[str, Any]:
    command = [sys.executable, "-m", "asyncnet.lab.load", host, str(port), "--clients", str(settings.clients)]
    command += ["--size", str(settings.size), "--seconds", str(settings.seconds), "--warm-up", str(settings.warm_up)]
    load = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        _pin(load.pid, 1)
        output, _ = load.communicate(timeout=settings.seconds + settings.warm_up + 60)
    finally:
        load.kill()
        load.wait()
    if load.returncode:
        raise RuntimeError("the load generator failed")
    result: dict[str, Any] = json.loads(output)
    return result


def _pin(pid: int, place: int) -> None:
    """Give the server the first core and the load the second, where there are two."""
    cores = _cores()
    if len(cores) >= 2 and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(pid, {cores[place]})
        except OSError:
            pass  # the process has ended, which is reported where its output is read


def _wait_until_listening(server: subprocess.Popen[bytes]) -> tuple[str, int]:
    assert server.stderr is not None
    deadline = time.monotonic() + _START_WITHIN
    output = b""
    os.set_blocking(server.stderr.fileno(), False)
    while (left := deadline - time.monotonic()) > 0:
        select.select([server.stderr], [], [], left)
        piece = server.stderr.read()
        output += piece or b""
        for line in output.decode(errors="replace").splitlines():
            if line.startswith("listening on "):
                return parse_address(line.removeprefix("listening on "))
        if piece == b"":
            raise RuntimeError(output.decode(errors="replace").strip().removeprefix("asyncnet: ") or "the server ended")
    raise RuntimeError(f"the server was not ready within {_START_WITHIN:g} s")


def _stop(server: subprocess.Popen[bytes]) -> str | None:
    """Stop a server as its user would; return what went wrong."""
    server.terminate()
    try:
        server.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        return f"the server did not stop within {_STOP_WITHIN:g} s of SIGTERM"
    finally:
        if server.stderr is not None:
            server.stderr.close()
    return f"the server exited with status {server.returncode}" if server.returncode else None


def _cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process and of its children that have ended; None where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): utime, stime, cutime and cstime are fields 14 to 17; the state, field 3, comes first here.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
