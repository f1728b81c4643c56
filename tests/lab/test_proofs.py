"""Proof that the laboratory is right: it is held against servers whose figures are known."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from asyncnet import compat
from asyncnet.compat.threads import POOL_SIZE
from asyncnet.lab import Settings, Verdict, Workload, compare, measuring
from asyncnet.lab.figures import noise_floor, paired_ratio
from asyncnet.lab.generator import run_load
from asyncnet.lab.measuring import measure
from asyncnet.lab.processes import cpu_of, give_way, memory_of, started, tree_of
from asyncnet.lab.report import format_table
from tests.attempts import first_good

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

SHORT = Settings(engines=("asyncio",), clients=4, size=64, seconds=0.5, warm_up=0.1, rounds=1)


def lab_server(engine: str, handler: str = "echo", protocol: str = "tcp") -> list[str]:
    return [sys.executable, "-m", "asyncnet.lab.servers", protocol, engine, handler]


@pytest.mark.parametrize("engine", ["asyncio", "epoll"])
def test_a_handler_that_sleeps_for_1_ms_shows_1_ms(engine: str) -> None:
    workload = Workload("sleep", "", handler="sleep", clients=1, size=64)
    run = first_good(lambda: measure(engine, workload, 1, SHORT), lambda run: run.values.get("p50", 0.0) < 0.002)
    assert run.error is None
    assert run.failures == 0
    assert 0.001 <= run.values["p50"] < 0.002


@contextmanager
def frozen_at_intervals(pid: int, seconds: float) -> Iterator[None]:
    """Stop a process for 200 ms every second."""
    over = threading.Event()

    def freeze() -> None:
        while not over.wait(seconds - 0.2):
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.2)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_server_that_freezes_shows_it_in_the_open_loop_and_hides_it_in_the_closed_one() -> None:
    def loads() -> list[dict[str, Any]]:
        with started(lab_server("asyncio")) as server, frozen_at_intervals(server.pid, 1.0):
            where = [server.host, server.port, 10, 64, 0, 2]
            return [run_load(["echo", *where, *rate], warm_up=0, seconds=2) for rate in (["rate=500"], [])]

    open_loop, closed_loop = first_good(loads, lambda found: found[0]["p99"] < 0.4)
    # A fifth of the time is frozen: so many requests should have been sent then, and waited up to 200 ms.
    assert 0.1 < open_loop["p99"] < 0.4
    # Closed: ten connections wait out each freeze once, and thousands of quick requests hide them.
    assert closed_loop["p99"] < 0.05
    assert closed_loop["max"] > 0.1


def test_work_and_memory_are_counted_with_those_of_children() -> None:
    # A process for each connection does all the work.
    workload = Workload("burn", "", handler="burn", clients=4, size=64)
    run = measure("process", workload, 1, SHORT)
    assert run.error is None
    assert run.values["cpu"] > 10e-6  # 1 % of the requests burn 1 ms
    assert run.values["cpu"] == pytest.approx(run.values["cpu_user"] + run.values["cpu_system"])
    burning = bytes(5) + b"\1"  # as `asyncnet.lab.servers` chooses them
    with started(lab_server("process", "burn")) as server:
        before = cpu_of(server.pid)
        with socket.create_connection((server.host, server.port), 10) as client:
            for _ in range(30):
                client.sendall(burning)
                assert client.recv(100) == burning
            (child,) = tree_of(server.pid)[1:]
            used, memory = cpu_of(server.pid), memory_of(server.pid)
            alone = [pss_of(pid) for pid in (server.pid, child)]
        assert before is not None
        assert used is not None
        assert used.total - before.total > 0.03
        assert memory == pytest.approx(sum(alone), rel=0.05)
        assert min(alone) > 100_000


def pss_of(pid: int) -> int:
    """Return the memory of one process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) * 1024


def idle_and_stop(mode: str, **more: Any) -> Any:
    return measure("asyncnet", Workload(mode, "", mode, **more), 1, SHORT)


@pytest.fixture
def stolen(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if the hypervisor had taken another second whenever it is asked; a part of the reason that is to be told."""
    seconds = itertools.count()
    monkeypatch.setattr(measuring, "stolen_seconds", lambda: float(next(seconds)))
    return "the hypervisor took"


def test_idle_connections_show_what_memory_each_takes(stolen: str) -> None:
    run = idle_and_stop("idle", clients=200, size=64)
    assert stolen in str(run.invalid)
    assert run.error is None
    assert run.values["held"] == 200
    assert 500 < run.values["memory"] < 200_000
    assert run.failures == 0


def test_readers_that_stall_cost_a_bounded_amount_and_lose_nothing(stolen: str) -> None:
    run = idle_and_stop("stall", handler="bulk", clients=3, size=8 << 20)
    assert stolen in str(run.invalid)
    assert run.error is None
    assert run.values["complete"] == 3
    assert run.values["memory"] < 4 << 20


@pytest.mark.parametrize(
    ("engine", "clients"),
    [("asyncnet", 5), *((name, 20) for name in ("epoll", "gevent", "thread", "thread-pool", "process", "prefork"))],
)
def test_sigterm_under_load_cuts_nothing_off(stolen: str, engine: str, clients: int) -> None:
    if why := compat.ENGINES[engine].unavailable():
        pytest.skip(why)
    # Who connects between the last accept and the close is reset; which takes a few microseconds.
    run = first_good(
        lambda: measure(engine, Workload("stop", "", "stop", clients=clients, size=64), 1, SHORT),
        lambda run: run.failures == 0,
    )
    assert stolen in str(run.invalid)
    assert run.error is None
    assert run.requests > 0
    assert run.values["stop_seconds"] < 8
    assert run.values["broken"] == run.failures == 0


def test_what_sigterm_cuts_off_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """if True:
        import socket, sys
        listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        print("listening on 127.0.0.1:%d" % listener.getsockname()[1], file=sys.stderr, flush=True)
        taken = []
        while True:  # five get their answer, the others wait for it
            sock, _ = listener.accept()
            taken.append(sock)
            if len(taken) <= 5:
                sock.sendall(sock.recv(100))
    """
    monkeypatch.setattr(measuring, "_command", lambda *_: [sys.executable, "-c", code])
    workload, settings = Workload("stop", "", "stop", clients=4, size=64), attrs.evolve(SHORT, warm_up=0.0, seconds=2.0)
    run = measure("asyncio", workload, 1, settings)
    assert run.error is None
    assert run.requests == 5
    assert run.values["broken"] >= 4
    assert run.failures == run.values["broken"]


def test_fewer_connections_where_the_hard_limit_of_descriptors_is_low() -> None:
    code = """if True:
        import json, attrs, sys
        from asyncnet.lab.measuring import measure
        from asyncnet.lab import Settings, Workload
        settings = Settings(engines=("epoll",), seconds=0.6, warm_up=0.0)
        run = measure("epoll", Workload("idle", "", "idle", clients=200, size=64), 1, settings)
        print(json.dumps(attrs.asdict(run)))
    """
    command = ["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", sys.executable, "-c", code]
    run = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert run["error"] is None
    assert run["failures"] == 0
    assert 40 < run["values"]["held"] < 128
    assert run["notes"] == ["56 connections instead of 200: a process may have 128 descriptors open here (ulimit -Hn)"]


def test_slow_clients_give_way_to_those_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = []

    def watched(pid: int) -> None:
        give_way(pid)
        policies.append(os.sched_getscheduler(pid))

    monkeypatch.setattr(measuring, "give_way", watched)
    run = measure("asyncnet", Workload("slow", "", "slow", clients=3, size=64, rate=200), 1, SHORT)
    assert run.error is None
    assert run.failures == 0
    assert run.requests > 20
    assert policies == [os.SCHED_IDLE]


def test_an_engine_with_a_limit_gets_as_many_connections_as_it_takes() -> None:
    run = measure("thread-pool", Workload("echo", "", clients=POOL_SIZE + 20, size=64), 1, SHORT)
    assert run.error is None
    assert run.failures == 0
    assert run.notes == (f"{POOL_SIZE} connections instead of {POOL_SIZE + 20}: {POOL_SIZE} threads",)


@pytest.mark.parametrize(("engine", "handler"), [("asyncio", "burn"), ("C", "echo")])
def test_datagrams_are_measured(engine: str, handler: str) -> None:
    settings = attrs.evolve(SHORT, protocol="udp", seconds=0.6)
    workload = Workload("echo", "", "udp", handler, clients=4, size=64)
    run = first_good(lambda: measure(engine, workload, 1, settings), lambda run: not run.raw.get("lost"))
    assert run.error is None
    assert run.failures == 0
    assert run.requests > 20
    assert run.values["cpu"] > (10e-6 if handler == "burn" else 0)  # 1 % of the requests burn 1 ms


def test_transfers_are_measured() -> None:
    settings = attrs.evolve(SHORT, protocol="tftp", seconds=0.6)
    for workload in (
        Workload("transfer", "", "tftp", clients=2, size=100_000),
        Workload("rate", "", "tftp", clients=5, size=10_000, rate=100),
    ):
        run = measure("asyncnet", workload, 1, settings)
        assert run.error is None
        assert run.failures == 0
        assert run.requests > 1
        assert run.raw["bytes"] >= run.requests * workload.size
        assert run.values["megabytes_per_second"] > 0


def test_an_engine_that_cannot_run_is_an_error_in_its_row() -> None:
    settings = Settings(engines=("no-such-engine",), seconds=0.1, rounds=1, warm_up=0.0, workloads=("churn",),
                        attempts=1)  # fmt: skip
    result = compare(settings)
    assert not result.ok
    assert any("no-such-engine" in run.error for run in result.runs if run.error is not None)
    assert "there is no engine 'no-such-engine'" in format_table(result)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_real_a_against_a_finds_no_difference_in_19_of_20() -> None:
    workload = Workload("echo", "", clients=20, size=64)
    settings = Settings(engines=("asyncio",), clients=20, size=64, seconds=0.4, warm_up=0.2)
    rates = [
        [measure("asyncio", workload, number, settings).values["requests_per_second"] for _ in range(3)]
        for number in range(100)
    ]
    verdicts = []
    for block in range(20):
        base, again, same = (
            {number: rates[number][column] for number in range(block * 5, block * 5 + 5)} for column in range(3)
        )
        found = paired_ratio(same, base, noise_floor(again, base))
        assert found is not None
        verdicts.append(found.verdict)
    assert verdicts.count(Verdict.NO_DIFFERENCE) >= 19
