"""One measurement: a fresh server on one core, a load on the other, and what both have used."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet import compat
from asyncnet.descriptors import most_descriptors
from asyncnet.lab.generator import echo_server, loading, run_load, write_file
from asyncnet.lab.model import AGAIN, CEILING, Run, Settings, Workload
from asyncnet.lab.processes import (
    Cpu,
    ServerProcess,
    cores,
    cpu_of,
    give_way,
    kernel_tcp_bytes,
    memory_of,
    started,
    stolen_seconds,
)

__all__ = ["measure", "run_of_result", "why_invalid"]

_MOST_LAG: Final = {"c": 20e-6, "python": 1e-3}
"""Seconds that are never too late, by the generator."""
_MOST_LAG_SHARE: Final = 0.05
_MOST_DELAYED: Final = 0.02
_MOST_STOLEN: Final = 0.01
_SAMPLES_FOR: Final = {"p99": 500, "service_p99": 500, "p999": 5_000}
"""Requests from which on a percentile is told, so that at least five lie beyond it."""
_TRICKLERS: Final = 200
_OWN_DESCRIPTORS: Final = 64
"""What a process has open beside its connections."""
_ACTIVE: Final = 8
"""Connections that an idle server has room for beside those that are held."""
_SETTLE: Final = 0.3
_BLOCK_SIZE: Final = 1428
_WINDOW_SIZE: Final = 16


def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
    """Measure a workload on an engine once.

    A failure of the server or of the load is the run's error. `KeyboardInterrupt` passes, and leaves no process behind.
    """
    how: Mapping[str, Callable[[str, Workload, int, Settings], Run]] = {
        "idle": _idle, "slow": _slow, "stall": _stall, "stop": _stop,
    }  # fmt: skip
    try:
        return how.get(workload.mode, _loaded)(engine, workload, number, settings)
    except (OSError, RuntimeError, ValueError) as exc:
        return Run(engine, workload.name, number, error=" ".join(str(exc).split()))


@contextlib.contextmanager
def _server(engine: str, workload: Workload, settings: Settings) -> Iterator[tuple[ServerProcess, Path]]:
    with tempfile.TemporaryDirectory(prefix="asyncnet-lab-") as folder:
        path = write_file(Path(folder), workload.size if workload.mode == "tftp" else 0)
        name = settings.baseline if engine == AGAIN else engine
        with started(_command(name, workload, settings, folder)) as server:
            yield server, path


def _command(engine: str, workload: Workload, settings: Settings, folder: str) -> list[str]:
    if engine == CEILING:
        command = echo_server(settings.protocol)
        if command is None:
            raise RuntimeError("there is no C compiler")
        return command
    if settings.protocol == "tftp":
        serve = [sys.executable, "-m", "asyncnet", "tftp", "serve", folder, "--bind", "127.0.0.1:0"]
        return [*serve, "--engine", engine]
    return [sys.executable, "-m", "asyncnet.lab.servers", settings.protocol, engine, workload.handler]


def _most_clients(engine: str, settings: Settings) -> tuple[int, str]:
    """Return how many connections an engine takes here, and what limits it.

    Server and load raise the soft limit of descriptors themselves; the hard one they inherit.
    """
    hard = most_descriptors()
    room = max(1, hard - _OWN_DESCRIPTORS)
    found = compat.ENGINES.get(settings.baseline if engine == AGAIN else engine)
    handlers = found.max_handlers if found is not None and settings.protocol == "tcp" else None
    if found is not None and handlers is not None and handlers <= room:
        return handlers, found.limits
    return room, f"a process may have {hard} descriptors open here (ulimit -Hn)"


def _clients(engine: str, workload: Workload, settings: Settings) -> tuple[int, tuple[str, ...]]:
    """Return how many connections are made of those that are wanted, and a note when it is not all."""
    most, why = _most_clients(engine, settings)
    wanted = workload.clients
    return (wanted, ()) if wanted <= most else (most, (f"{most} connections instead of {wanted}: {why}",))


def _arguments(
    server: ServerProcess, workload: Workload, number: int, clients: int, settings: Settings, path: Path
) -> list[object]:
    options: list[object] = [f"rate={workload.rate}", "arrivals=poisson", f"seed={number}"] if workload.rate else []
    where = [server.host, server.port]
    if workload.mode == "tftp":
        return ["tftp", *where, path.name, path, clients, _BLOCK_SIZE, _WINDOW_SIZE, 30, settings.seconds, *options]
    mode = {"slow": "echo", "stop": "churn", "idle": "echo"}.get(workload.mode, workload.mode)
    end = ["close"] if mode == "churn" else []
    window = max(0.05, min(0.5, settings.warm_up / 4))
    return [
        mode,
        *where,
        clients,
        workload.size,
        settings.warm_up,
        settings.seconds,
        *end,
        f"steady={window}",
        *options,
    ]


def _loaded(
    engine: str,
    workload: Workload,
    number: int,
    settings: Settings,
    beside: Callable[[ServerProcess], Any] | None = None,
) -> Run:
    """Load a server, and tell what a request costs."""
    clients, notes = _clients(engine, workload, settings)
    taken: list[tuple[float, Cpu | None]] = []
    stolen = _stealing()
    with _server(engine, workload, settings) as (server, path):

        def take() -> None:
            begun = time.monotonic()
            used = cpu_of(server.pid)
            taken.append(((begun + time.monotonic()) / 2, used))

        with contextlib.ExitStack() as stack:
            if beside is not None:
                stack.enter_context(beside(server))
            result = run_load(
                _arguments(server, workload, number, clients, settings, path),
                warm_up=settings.warm_up, seconds=settings.seconds, python=settings.python_load,
                on_measuring=take, on_end=take,
            )  # fmt: skip
        server.stop()
        status = server.status
        invalid = _invalid(result, workload, stolen)
    (begun, before), (ended, after) = taken
    found = run_of_result(engine, workload, number, result, before, after, ended - begun)
    return attrs.evolve(found, notes=(*notes, *found.notes), invalid=invalid, error=status or found.error)


def _stealing() -> Callable[[], float]:
    """Return what tells which share of the machine the hypervisor has taken since now."""
    before, began = stolen_seconds(), time.monotonic()
    return lambda: (stolen_seconds() - before) / (time.monotonic() - began) / max(1, min(2, len(cores())))


def _invalid(result: Mapping[str, Any], workload: Workload, stolen: Callable[[], float]) -> tuple[str, ...]:
    return why_invalid(result, workload, stolen(), alone=len(cores()) > 1)


def run_of_result(
    engine: str,
    workload: Workload,
    number: int,
    result: Mapping[str, Any],
    before: Cpu | None = None,
    after: Cpu | None = None,
    between: float = 0.0,
) -> Run:
    """Turn what a generator printed, and the processor time around it, into figures.

    Args:
        engine, workload, number: of the run.
        result: what the generator printed.
        before: what the server had used shortly before the measurement; None where the system does not tell.
        after: what it had used at its end.
        between: seconds of load between the two.

    Raises:
        KeyError: the result is not that of a generator.
    """
    requests, seconds = int(result["requests"]), float(result["seconds"])
    values = {"requests_per_second": requests / seconds} if requests else {}
    if requests:
        percentiles = ("p50", "p90", "p99", "p999", "service_p99")
        values |= {name: float(result[name]) for name in percentiles if requests >= _SAMPLES_FOR.get(name, 1)}
        values["load_busy"] = result["cpu_seconds"] / seconds
        if workload.rate:
            values["lag_p99"] = float(result["lag_p99"])
        if "bytes" in result:
            values["megabytes_per_second"] = result["bytes"] / seconds / 1e6
    if before is not None and after is not None and requests:
        share = seconds / between if between > 0 else 1.0  # of that time, what the requests were counted in
        user, system = (used * share / requests for used in after.since(before))
        values |= {"cpu": user + system, "cpu_user": user, "cpu_system": system}
    failures = sum(int(result.get(key, 0)) for key in ("closed", "refused", "wrong", "lost", "failed", "unsent"))
    error = None if requests else "no request was answered"
    notes: tuple[str, ...] = ()
    if workload.rate and int(result.get("waiting", 0)) > max(20.0, 0.01 * workload.rate * seconds):
        notes = (f"{requests / seconds:.0f} answers/s of {workload.rate:g} offered: its latency grows with the run",)
    return Run(engine, workload.name, number, values, failures, requests, error=error, notes=notes, raw=dict(result))


def why_invalid(result: Mapping[str, Any], workload: Workload, stolen: float, *, alone: bool) -> tuple[str, ...]:
    """Return why a run does not count; nothing when it does.

    Args:
        result: what the generator printed.
        workload: what it was asked for.
        stolen: the share of the time that the hypervisor took.
        alone: whether the generator is meant to have a core of its own.
    """
    late = _MOST_LAG[result["generator"]]
    reasons = []
    delayed = float(result["delayed_seconds"]) / float(result["seconds"])
    if workload.rate:
        lag = float(result["lag_p99"])
        if lag > max(late, _MOST_LAG_SHARE * float(result["p99"])):
            reasons.append(f"the generator lagged: {lag * 1e6:.0f} µs at p99")
        offered = workload.rate * float(result["seconds"])
        sent = result["requests"] + result.get("waiting", 0) + result.get("unsent", 0) + result.get("lost", 0)
        if sent < 0.97 * offered - 4 * offered**0.5 - 100:
            reasons.append(f"the generator sent {sent / offered:.0%} of what it was to send")
    if alone and delayed > _MOST_DELAYED:
        reasons.append(f"the generator had no core for {delayed:.0%} of the time")
    if stolen > _MOST_STOLEN:
        reasons.append(f"the hypervisor took {stolen:.1%} of the machine")
    return tuple(reasons)


def _idle(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
    """Hold connections open: what memory each takes, and how fast one among them is answered."""
    most, why = _most_clients(engine, settings)
    most = max(1, most - _ACTIVE)
    wanted = min(workload.clients, most)
    notes = () if wanted == workload.clients else (f"{wanted} connections instead of {workload.clients}: {why}",)
    steps = [wanted // 4, wanted // 2, wanted] if wanted >= 8 else [wanted]
    points: list[tuple[float, float]] = []
    stolen = _stealing()
    with _server(engine, workload, settings) as (server, path):
        before, kernel = memory_of(server.pid), kernel_tcp_bytes()
        with contextlib.ExitStack() as stack:
            held = 0
            holds = []
            for step in steps:
                load = stack.enter_context(
                    loading(["hold", server.host, server.port, step - held, 0, 0], python=settings.python_load)
                )
                load.wait_until_measuring(30)
                holds.append(load)
                held = step
                time.sleep(_SETTLE)  # the server accepts what the kernel has queued; its memory is what is measured
                if (memory := memory_of(server.pid)) is not None:
                    points.append((held, memory))
            kernel = kernel_tcp_bytes() - kernel
            one = Workload(workload.name, "", "echo", clients=1, size=workload.size, rate=500)
            result = run_load(_arguments(server, one, number, 1, settings, path), warm_up=settings.warm_up,
                              seconds=settings.seconds, python=settings.python_load)  # fmt: skip
            ended = [load.result(30) for load in holds]
        server.stop()
        invalid = _invalid(result, one, stolen)
    found = run_of_result(engine, one, number, result)
    values = {key: value for key, value in found.values.items() if key in ("p50", "p99", "lag_p99")}
    values["held"] = sum(item["open"] for item in ended)
    values["kernel_memory"] = max(0, kernel) / held
    if before is not None:
        values["memory"] = max(0.0, _slope([(0.0, float(before)), *points]))
    missing = held - int(values["held"])
    failures = missing + found.failures
    return Run(engine, workload.name, number, values, failures, found.requests, notes=notes, invalid=invalid,
               error=server.status or found.error, raw=dict(result))  # fmt: skip


def _slope(points: list[tuple[float, float]]) -> float:
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def _slow(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
    """Ten that are in a hurry, among 200 that send a byte now and then."""
    most, why = _most_clients(engine, settings)
    slow = max(1, min(_TRICKLERS, most - workload.clients - 2))
    notes = () if slow == _TRICKLERS else (f"{slow} slow clients instead of {_TRICKLERS}: {why}",)

    @contextlib.contextmanager
    def trickle(server: ServerProcess) -> Iterator[None]:
        with loading(["hold", server.host, server.port, slow, 0.1, 0], python=settings.python_load) as load:
            load.wait_until_measuring(30)
            give_way(load.process.pid)  # on this core, the ten are those who count
            yield

    found = _loaded(engine, workload, number, settings, beside=trickle)
    return attrs.evolve(found, notes=(*found.notes, *notes))


def _stall(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
    """Readers that do not read: what the server keeps for each, and whether they get everything in the end."""
    clients, notes = _clients(engine, workload, settings)
    stolen = _stealing()
    with _server(engine, workload, settings) as (server, _):
        before = memory_of(server.pid)
        arguments = ["stall", server.host, server.port, clients, workload.size]
        with loading(arguments, python=settings.python_load) as load:
            load.wait_until_measuring(30)
            after = before
            for _ in range(20):  # until the server has written what fits
                last = after
                time.sleep(_SETTLE / 3)
                after = memory_of(server.pid)
                if after is None or (last is not None and abs(after - last) < 65536):
                    break
            result = load.result(60)
        server.stop()
        invalid = _invalid(result, workload, stolen)
    values: dict[str, float] = {"complete": float(result["complete"])}
    if before is not None and after is not None:
        values["memory"] = max(0.0, (after - before) / clients)
    failures = clients - int(result["complete"]) + int(result["wrong"])
    return Run(engine, workload.name, number, values, failures, int(result["complete"]), notes=notes, raw=result,
               invalid=invalid, error=server.status)  # fmt: skip


def _stop(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
    """SIGTERM in the middle of a load of short connections: what is cut off, and when the server is gone.

    Who is refused after the signal can ask elsewhere. Who was connected and got no whole answer has lost a request:
    that is a failure, also where the server had not accepted the connection yet that the system had made.
    """
    clients, notes = _clients(engine, workload, settings)
    stolen = _stealing()
    with _server(engine, workload, settings) as (server, path):
        arguments = _arguments(server, workload, number, clients, settings, path)
        with loading(arguments, python=settings.python_load) as load:
            load.wait_until_measuring(30)
            time.sleep(settings.seconds / 3)
            seconds = server.stop()
            result = load.result(30)
        invalid = _invalid(result, workload, stolen)
    broken = int(result["closed"]) + int(result["wrong"])
    values = {"stop_seconds": seconds, "broken": float(broken)}
    error = server.status or (None if result["requests"] else "no request was answered")
    return Run(engine, workload.name, number, values, broken, int(result["requests"]), invalid, notes, error,
               raw=result)  # fmt: skip
