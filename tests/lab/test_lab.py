"""The laboratory: what the load generator counts, and what a comparison says of it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest

from asyncnet.lab import Comparison, Measure, Run, Settings, compare, format_table
from asyncnet.lab.load import percentile, run_load

Answer = Callable[[bytes], bytes | None]


@contextlib.contextmanager
def answering_server(answer: Answer) -> Iterator[int]:
    """Serve connections in threads, answering each piece that arrives; None closes the connection."""

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                reply = answer(data)
                if reply is None:
                    return
                sock.sendall(reply)

    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(sock,)))
                threads[-1].start()

    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def test_an_echo_is_counted_and_timed() -> None:
    with answering_server(lambda data: data) as port:
        result = run_load("127.0.0.1", port, clients=3, size=100, seconds=0.2, warm_up=0.05)
    assert result.failures == 0
    assert 0 < result.requests < result.all_requests
    assert 0 < result.p50 <= result.p99 < 0.2
    assert result.seconds == pytest.approx(0.2, rel=0.5)


def test_messages_larger_than_the_buffers_arrive() -> None:
    with answering_server(lambda data: data) as port:
        result = run_load("127.0.0.1", port, clients=2, size=3_000_000, seconds=0.3, warm_up=0.0)
    assert result.failures == 0
    assert result.requests > 0


@pytest.mark.parametrize("answer", [lambda data: data[::-1], lambda data: b"x" * len(data), lambda data: None])
def test_a_wrong_answer_and_a_closed_connection_are_failures(answer: Answer) -> None:
    with answering_server(answer) as port:
        result = run_load("127.0.0.1", port, clients=4, size=100, seconds=0.2, warm_up=0.0)
    assert result.failures == 4
    assert result.requests == 0


def test_refused_connections_are_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    result = run_load("127.0.0.1", port, clients=2, size=10, seconds=0.1, warm_up=0.0)
    assert (result.failures, result.requests) == (2, 0)


def test_percentiles() -> None:
    values = [float(i) for i in range(100)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([], 0.5) == 0.0


def test_a_comparison_runs_round_by_round_and_fails_no_request() -> None:
    settings = Settings(engines=("asyncio", "uvloop"), clients=5, size=100, seconds=0.1, rounds=2, warm_up=0.05)
    steps: list[str] = []
    result = compare(settings, progress=lambda done, total, what: steps.append(f"{done}/{total} {what}"))
    assert [(run.engine, run.round) for run in result.runs] == [
        ("asyncio", 1), ("uvloop", 1), ("asyncio", 2), ("uvloop", 2)
    ]  # fmt: skip
    assert steps[0] == "0/4 round 1 of 2: asyncio"
    assert result.ok
    assert all(run.requests_per_second > 0 and run.p99 >= run.p50 > 0 for run in result.runs)
    data = json.loads(result.to_json())
    assert len(data["runs"]) == 4
    assert data["summaries"][0]["engine"] == "asyncio"
    assert data["environment"]["python"]
    table = format_table(result)
    assert all(len(line) <= 100 for line in table.splitlines()[:5])
    assert [line.split()[0] for line in table.splitlines()[3:5]] == ["asyncio", "uvloop"]


def test_an_engine_that_cannot_run_is_an_error_in_its_row() -> None:
    settings = Settings(engines=("no-such-engine",), clients=1, size=10, seconds=0.1, rounds=1)
    result = compare(settings)
    assert not result.ok
    assert "no-such-engine" in (result.runs[0].error or "")
    assert "no-such-engine" in format_table(result)


def test_the_median_counts_and_the_spread_is_shown() -> None:
    settings = Settings(engines=("a",), rounds=3)
    runs = tuple(
        Run("a", number, requests_per_second=rate, p50=0.001, p99=0.002, cpu_per_request=1e-5, requests=10)
        for number, rate in enumerate((100.0, 1000.0, 120.0), 1)
    )
    result = Comparison(settings, {}, runs)
    assert result.summaries()[0].requests_per_second == Measure(120.0, 100.0, 1000.0)
    row = format_table(result).splitlines()[3].split()
    assert row == ["a", "120", "±375", "%", "1.00", "2.00", "10.0", "±0", "%", "0"]
    failed = Comparison(settings, {}, (attrs.evolve(runs[0], failures=1), *runs[1:]))
    assert result.ok
    assert not failed.ok


def test_a_busy_generator_is_said() -> None:
    settings = Settings(engines=("a",), rounds=1)
    run = Run("a", 1, requests_per_second=1.0, requests=1, load_busy=0.95)
    assert "client-limited" in format_table(Comparison(settings, {}, (run,)))
    calm = attrs.evolve(run, load_busy=0.5)
    assert "client-limited" not in format_table(Comparison(settings, {}, (calm,)))
