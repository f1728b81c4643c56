"""The load generators over UDP: they count what is echoed, lost, late, doubled and wrong; the tools in C compile."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncnet.lab.native import native_tool
from tests.attempts import first_good

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@contextlib.contextmanager
def udp_server(answer: Callable[[int, bytes], bytes | None]) -> Iterator[int]:
    """Answer the datagrams, of which the function is given the number, in a thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            number = 0
            while True:
                data, addr = sock.recvfrom(65536)
                if data == b"stop":
                    return
                if (reply := answer(number, data)) is not None:
                    sock.sendto(reply, addr)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
                stopper.sendto(b"stop", sock.getsockname())
            thread.join()


def load(
    generator: list[str], port: int, *options: str, peers: int = 3, size: int = 100, seconds: float = 0.3
) -> dict[str, Any]:
    command = [*generator, "udp", "127.0.0.1", str(port), str(peers), str(size), "0", str(seconds), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    first, last = done.stdout.splitlines()
    assert first == "measuring"
    result: dict[str, Any] = json.loads(last)
    return result


@pytest.mark.parametrize("size", [1, 8, 1000])
def test_an_echo_is_counted(generator: list[str], size: int) -> None:
    with udp_server(lambda number, data: data) as port:
        result = first_good(
            lambda: load(generator, port, size=size),
            lambda found: found["requests"] > 10 and not found["lost"] and found["p999"] < 0.3,
        )
    assert result["requests"] > 10
    assert result["lost"] == result["wrong"] == result["refused"] == 0
    assert 0 < result["p50"] <= result["p99"] <= result["p999"] < 0.3


def test_what_is_not_answered_is_lost(generator: list[str]) -> None:
    with udp_server(lambda number, data: None) as port:
        result = load(generator, port, seconds=1.0)
    assert result["requests"] == 0
    assert 3 <= result["lost"] <= 15  # three peers, each with a datagram every 0.2 s, the first before it is measured


def test_a_changed_answer_is_wrong(generator: list[str]) -> None:
    with udp_server(lambda number, data: data[:-1] + b"\0" if number == 5 else data) as port:
        result = load(generator, port, seconds=1.0)
    assert result["wrong"] == 1


def test_a_refusal_is_counted(generator: list[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert load(generator, port)["refused"] > 0


@needs_compiler
@pytest.mark.parametrize("way", ["udp-one", "udp-many"])
def test_the_echo_servers_echo(generator: list[str], way: str) -> None:
    server = subprocess.Popen([str(native_tool("echo")), way, "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        port = int(server.stderr.readline().rpartition(":")[2])
        result = load(generator, port, peers=100)
    finally:
        server.kill()
        server.communicate()
    assert result["requests"] > 20
    assert result["wrong"] == 0


@needs_compiler
def test_a_tool_is_compiled_once_and_again_when_the_compiler_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native_tool("load")
    before = first.stat().st_mtime_ns
    assert native_tool("load") == first
    assert first.stat().st_mtime_ns == before
    other = tmp_path / "othercc"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo other || exec cc "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CC", str(other))
    assert native_tool("load") != first
    assert [path.name for path in (tmp_path / "asyncnet").iterdir() if path.is_dir()] == []


def test_no_compiler_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match="apt-get install gcc"):
        native_tool("load")


def load_answered_twice(generator: list[str]) -> dict[str, Any]:
    """Load a server that answers fifty datagrams, each of them twice, and no more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(2)

        def serve() -> None:
            with contextlib.suppress(TimeoutError):
                for _ in range(50):
                    data, addr = sock.recvfrom(65536)
                    sock.sendto(data, addr)
                    sock.sendto(data, addr)

        thread = threading.Thread(target=serve)
        thread.start()
        result = load(generator, sock.getsockname()[1], peers=1, seconds=1.0)
        thread.join()
    return result


def test_an_answer_that_comes_twice_is_doubled(generator: list[str]) -> None:
    result = first_good(
        lambda: load_answered_twice(generator), lambda found: found["requests"] == 50 and not found["late"]
    )
    assert result["doubled"] == result["requests"] == 50
    assert result["wrong"] == result["late"] == 0


def test_a_known_loss_is_reported(generator: list[str]) -> None:
    def share(found: dict[str, Any]) -> float:
        return float(found["lost"] / (found["requests"] + found["lost"]))

    with udp_server(lambda number, data: None if number % 10 == 9 else data) as port:
        result = first_good(
            lambda: load(generator, port, "rate=200", "arrivals=constant", peers=30, seconds=1.0),
            lambda found: 0.06 < share(found) < 0.11,
        )
    assert 0.06 < share(result) < 0.11  # those of the last 0.2 s are not lost yet
    assert result["wrong"] == 0


def test_poisson_arrivals_come_in_crowds(generator: list[str]) -> None:
    moments: list[float] = []

    def answer(number: int, data: bytes) -> bytes:
        moments.append(time.monotonic())
        return data

    with udp_server(answer) as port:
        load(generator, port, "rate=200", "arrivals=poisson", peers=30, seconds=0.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    # 39 % of the gaps are shorter than half the mean; none would be, if they were all alike.
    assert sum(gap < 0.5 / 200 for gap in gaps) > 0.25 * len(gaps)
