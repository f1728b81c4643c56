"""The load generators over TCP: what they count, held against servers that err on purpose."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from asyncnet.lab.native import native_tool

Serve = Callable[[socket.socket, int], object]


@contextmanager
def tcp_server(serve: Serve) -> Iterator[int]:
    """Serve each connection, with its number, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    threads: list[threading.Thread] = []

    def serve_one(sock: socket.socket, number: int) -> None:
        with sock:
            try:
                serve(sock, number)
            except ConnectionError:
                pass

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve_one, args=(sock, len(threads))))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join()


def echo(sock: socket.socket, number: int) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def echo_until_asked_again(sock: socket.socket, number: int) -> None:
    sock.sendall(sock.recv(65536))


def echo_wrongly(sock: socket.socket, number: int) -> None:
    while data := sock.recv(65536):
        sock.sendall(data[:-1] + b"!")


def load(generator: list[str], *arguments: object, stdin: int = subprocess.DEVNULL) -> dict[str, Any]:
    command = [*generator, *map(str, arguments)]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True, timeout=30)
    first, last = done.stdout.splitlines()
    assert first == "measuring"
    result: dict[str, Any] = json.loads(last)
    return result


@pytest.mark.parametrize("size", [1, 9, 1000, 300_000])
def test_an_echo_is_counted(generator: list[str], size: int) -> None:
    with tcp_server(echo) as port:
        result = load(generator, "echo", "127.0.0.1", port, 3, size, 0, 0.3)
    assert result["requests"] > 10
    assert result["closed"] == result["wrong"] == 0
    assert 0 < result["p50"] <= result["p99"] <= result["p999"] < 0.3


def test_every_request_of_the_churn_is_a_connection(generator: list[str]) -> None:
    served = []

    def serve(sock: socket.socket, number: int) -> None:
        served.append(number)
        echo(sock, number)

    for end in ("close", "reset"):
        served.clear()
        with tcp_server(serve) as port:
            result = load(generator, "churn", "127.0.0.1", port, 2, 100, 0, 0.2, end)
        assert result["closed"] == result["wrong"] == 0
        assert 0 < result["all_requests"] <= len(served) <= result["all_requests"] + 2


def test_a_changed_answer_is_wrong(generator: list[str]) -> None:
    with tcp_server(echo_wrongly) as port:
        result = load(generator, "echo", "127.0.0.1", port, 3, 100, 0, 5)
    assert result["wrong"] == result["closed"] == 3
    assert result["requests"] == 0


def test_connections_that_the_server_closes_are_counted_and_end_the_load(generator: list[str]) -> None:
    with tcp_server(echo_until_asked_again) as port:
        result = load(generator, "echo", "127.0.0.1", port, 3, 100, 0, 20)
    assert result["all_requests"] == result["closed"] == 3
    assert result["seconds"] < 20


def test_connections_are_held_and_trickle(generator: list[str]) -> None:
    got = threading.Semaphore(0)

    def serve(sock: socket.socket, number: int) -> None:
        while data := sock.recv(1):
            assert data == b"x"
            got.release()

    with tcp_server(serve) as port:
        command = [*generator, "hold", "127.0.0.1", str(port), "5", "0.01", "0"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "measuring\n"
            for _ in range(20):
                assert got.acquire(timeout=10)
            result = json.loads(holder.communicate()[0])
    assert result["open"] == 5
    assert result["closed"] == result["refused"] == 0
    assert result["bytes"] >= 20


def test_a_connection_that_was_closed_comes_back(generator: list[str]) -> None:
    again = threading.Event()

    def serve(sock: socket.socket, number: int) -> None:
        if number:
            again.set()
            sock.recv(1)

    with tcp_server(serve) as port:
        command = [*generator, "hold", "127.0.0.1", str(port), "1", "0", "0.01"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert again.wait(10)
            result = json.loads(holder.communicate()[0].splitlines()[-1])
    assert result["closed"] == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_echo_server_echoes(generator: list[str]) -> None:
    server = subprocess.Popen([str(native_tool("echo")), "tcp", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        port = int(server.stderr.readline().rpartition(":")[2])
        result = load(generator, "echo", "127.0.0.1", port, 50, 100_000, 0, 0.3)
    finally:
        server.kill()
        server.communicate()
    assert result["requests"] > 20
    assert result["wrong"] == result["closed"] == 0


def test_an_open_loop_sends_what_is_offered(generator: list[str]) -> None:
    with tcp_server(echo) as port:
        for arrivals in ("constant", "poisson"):
            result = load(generator, "echo", "127.0.0.1", port, 10, 100, 0, 0.6, "rate=500", f"arrivals={arrivals}")
            assert 230 < result["requests"] + result["waiting"] < 370
            assert sum(count for _, count in result["histogram"]) == result["requests"]
            assert result["closed"] == result["wrong"] == 0


def test_latency_counts_from_the_intended_time(generator: list[str]) -> None:
    first = threading.Event()

    def serve(sock: socket.socket, number: int) -> None:
        while data := sock.recv(65536):
            if not first.is_set():
                first.set()
                threading.Event().wait(0.4)  # one connection, and nothing is answered meanwhile
            sock.sendall(data)

    with tcp_server(serve) as port:
        result = load(generator, "echo", "127.0.0.1", port, 1, 100, 0, 1, "rate=100")
    assert result["max"] > 0.35
    assert result["p90"] > 0.2
    assert result["service_p90"] < 0.1


def test_the_warm_up_ends_when_the_rate_is_steady(generator: list[str]) -> None:
    with tcp_server(echo) as port:
        result = load(generator, "echo", "127.0.0.1", port, 1, 100, 10, 0.1, "steady=0.05", "rate=1000")
    assert result["warm_up"] < 9


def test_readers_that_stall_get_everything_in_the_end(generator: list[str]) -> None:
    size = 3 << 20

    def serve(sock: socket.socket, number: int) -> None:
        assert sock.recv(10) == b"x\n"
        sock.sendall((bytes(range(251)) * (size // 251 + 1))[:size])

    with tcp_server(serve) as port:
        command = [*generator, "stall", "127.0.0.1", str(port), "3", str(size)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as staller:
            assert staller.stdout is not None
            assert staller.stdout.readline() == "measuring\n"
            result = json.loads(staller.communicate(timeout=30)[0])
    assert (result["complete"], result["closed"], result["wrong"]) == (3, 0, 0)
    assert result["bytes"] == 3 * size


def test_wrong_usage_is_told_in_a_line(generator: list[str]) -> None:
    done = subprocess.run([*generator, "echo", "127.0.0.1", "1", "1", "1", "0", "1", "rat=1"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
