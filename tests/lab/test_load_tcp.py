"""The load generators over TCP: what they count, held against servers that err on purpose."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncnet.lab.generator import generator_command, write_file
from asyncnet.lab.native import native_tool
from asyncnet.lab.processes import started
from tests.attempts import first_good

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
        result = load(generator, "echo", "127.0.0.1", port, 3, size, 0, 0.6)
    assert result["requests"] > 10
    assert result["closed"] == result["wrong"] == 0
    assert 0 < result["p50"] <= result["p99"] <= result["p999"] < 1.0


def test_every_request_of_the_churn_is_a_connection(generator: list[str]) -> None:
    served = []

    def serve(sock: socket.socket, number: int) -> None:
        served.append(number)
        echo(sock, number)

    for end in ("close", "reset"):
        served.clear()
        with tcp_server(serve) as port:
            result = load(generator, "churn", "127.0.0.1", port, 2, 100, 0, 0.6, end)
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
        result = load(generator, "echo", "127.0.0.1", port, 50, 100_000, 0, 0.6)
    finally:
        server.kill()
        server.communicate()
    assert result["requests"] > 20
    assert result["wrong"] == result["closed"] == 0


def test_an_open_loop_sends_what_is_offered(generator: list[str]) -> None:
    with tcp_server(echo) as port:
        for arrivals in ("constant", "poisson"):
            words = ("echo", "127.0.0.1", port, 10, 100, 0, 0.6, "rate=500", f"arrivals={arrivals}")
            result = first_good(
                partial(load, generator, *words), lambda found: found["requests"] + found["waiting"] > 230
            )
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


def test_a_low_soft_limit_of_descriptors_is_raised(generator: list[str]) -> None:
    few = ["sh", "-c", 'ulimit -S -n 64 && exec "$@"', "sh"]
    with started([*few, sys.executable, "-m", "asyncnet.lab.servers", "tcp", "asyncio", "echo"]) as server:
        command = [*few, *generator, "hold", server.host, str(server.port), "200", "0", "0"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "measuring\n"
            # The server has accepted them all when it answers one more.
            result = load([*few, *generator], "echo", server.host, server.port, 1, 64, 0, 0.6)
            held = json.loads(holder.communicate()[0])
    assert result["requests"] > 0
    assert held["open"] == 200
    assert held["closed"] == held["refused"] == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_both_generators_print_the_same(tmp_path: Path) -> None:
    file = write_file(tmp_path, 1000)

    def keys(*words: object) -> list[list[str]]:
        commands = [[*generator_command(python), *map(str, words)] for python in (True, False)]
        run = partial(subprocess.run, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=30)
        with ThreadPoolExecutor() as pool:
            return [sorted(json.loads(done.stdout.splitlines()[-1])) for done in pool.map(run, commands)]

    def bulk(sock: socket.socket, number: int) -> None:
        sock.sendall(bytes(range(len(sock.recv(10)))))  # as many as are asked for below

    tftp = [sys.executable, "-m", "asyncnet", "tftp", "serve", str(tmp_path), "--bind", "127.0.0.1:0"]
    datagrams = [str(native_tool("echo")), "udp-one", "0"]
    with tcp_server(echo) as tcp, tcp_server(bulk) as bulky, started(datagrams) as udp, started(tftp) as files:
        for words in (
            ("echo", "127.0.0.1", tcp, 2, 64, 0, 0.05, "rate=200", "arrivals=poisson"),
            ("churn", "127.0.0.1", tcp, 2, 64, 0, 0.05, "close"),
            ("udp", udp.host, udp.port, 2, 64, 0, 0.05),
            ("hold", "127.0.0.1", tcp, 2, 0, 0),
            ("stall", "127.0.0.1", bulky, 1, 2),
            ("tftp", files.host, files.port, file.name, file, 1, 0, 1, 5),
        ):
            python, native = keys(*words)
            assert python == native, words[0]


def test_wrong_usage_is_told_in_a_line(generator: list[str]) -> None:
    done = subprocess.run([*generator, "echo", "127.0.0.1", "1", "1", "1", "0", "1", "rat=1"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
