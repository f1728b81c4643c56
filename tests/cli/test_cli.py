"""The command line as a user meets it: processes, standard streams, exit statuses, signals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from asyncnet import cli, compat, udp
from asyncnet.cli import demo
from asyncnet.lab import Settings
from asyncnet.udp.capabilities import DISABLE_VARIABLE

AVAILABLE = [name for name, engine in compat.ENGINES.items() if not engine.unavailable()]


def asyncnet(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asyncnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


@contextlib.contextmanager
def running(*arguments: str | Path, stop: int = signal.SIGTERM) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a server until the block ends; yield it with its port. It must then stop by itself with status 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        readable, _, _ = select.select([process.stderr], [], [], 15)
        assert readable, "the server does not say that it listens"
        line = process.stderr.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        yield process, int(line.rpartition(":")[2])
        process.send_signal(stop)
        assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 10)
    assert readable
    return process.stdout.readline()


def test_the_version() -> None:
    assert asyncnet("--version").stdout.startswith("asyncnet 0.")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["udp"], ["udp", "send", "host", "text"],
     ["udp", "send", "127.0.0.1:0", "text"], ["udp", "send", "127.0.0.1:9", "text", "--wait", "0"],
     ["tcp", "echo"], ["tcp", "echo", "--bind", "x:y"],
     ["tcp", "echo", "--bind", "127.0.0.1:0", "--engine", "steam"], ["compare", "--clients", "0"],
     ["compare", "--seconds", "nan"], ["tftp", "serve"], ["tftp", "serve", ".", "--write", "sometimes"],
     ["broadcast", "ask", "0", "Hi"]],
)  # fmt: skip
def test_usage_errors_exit_with_2_and_say_what_is_wrong(arguments: list[str]) -> None:
    done = asyncnet(*arguments)
    assert done.returncode == 2
    assert "usage: asyncnet" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_that_a_user_can_mend_are_one_line_and_exit_with_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with busy:
            busy.bind(("127.0.0.1", 0))
            udp_port = busy.getsockname()[1]
            cases: list[tuple[list[str | Path], str]] = [
                (["tcp", "echo", "--bind", f"127.0.0.1:{port}"], f"127.0.0.1:{port}"),
                (["tcp", "echo", "--bind", f"127.0.0.1:{port}", "--engine", "epoll"], f"127.0.0.1:{port}"),
                (["udp", "echo", "--bind", f"127.0.0.1:{udp_port}"], "another program uses that port"),
                (["udp", "recv", "--bind", "203.0.113.9:0"], "203.0.113.9 is no address of this host"),
                (["tftp", "serve", tmp_path / "nowhere", "--bind", "127.0.0.1:0"], "nowhere"),
                (["tftp", "serve", tmp_path, "--bind", f"127.0.0.1:{udp_port}"], f"127.0.0.1:{udp_port}"),
                (["tftp", "get", "http://x/y"], "tftp://HOST"),
                (["tftp", "put", tmp_path / "nowhere", "tftp://127.0.0.1:1/x"], "nowhere"),
                (["tftp", "get", "tftp://127.0.0.1:1/x", tmp_path / "x"], "connection refused"),
                (["tftp", "get", "tftp://127.0.0.1:1/x", "--block-size", "3"], "block_size"),
                (["udp", "send", "no-such-host.invalid:1", "x"], "does not resolve"),
                (["tcp", "connect", "127.0.0.1:1"], "127.0.0.1:1"),
                (["compare", "--engines", "epoll,steam"], "'steam'; the engines are polling,"),
                (["compare", "--json", tmp_path / "no" / "file"], "No such file"),
            ]
            for arguments, text in cases:
                done = asyncnet(*arguments, input="")
                assert done.returncode == 1, (arguments, done)
                assert text in done.stderr, arguments
                assert done.stderr.count("\n") == 1, done.stderr
                assert done.stderr.startswith("asyncnet: ")


def test_info_lists_interfaces_engines_limits_and_versions() -> None:
    done = asyncnet("info")
    assert done.returncode == 0
    for word in ("127.0.0.1/8", "127.255.255.255", "epoll", "gevent", "open descriptors", "uvloop", "default loop"):
        assert word in done.stdout


def test_info_tells_how_datagrams_move_and_what_is_switched_off() -> None:
    have = attrs.asdict(udp.probe())
    lines = asyncnet("info").stdout.splitlines()
    for name, there in have.items():
        assert [line.split() for line in lines if line.split()[:1] == [name]] == [[name, "yes" if there else "no"]]
    environment = os.environ | {DISABLE_VARIABLE: "gro,recvmsg"}
    lines = asyncnet("info", env=environment).stdout.splitlines()
    assert ["gro", "no"] in [line.split() for line in lines]
    assert any("recvmsg" in line and "no such" in line for line in lines)


def test_output_into_a_pipe_that_closes_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(15) == 0


# UDP and broadcast


def test_udp_send_reaches_udp_recv() -> None:
    with running("udp", "recv", "--bind", "127.0.0.1:0") as (server, port):
        assert asyncnet("udp", "send", f"127.0.0.1:{port}", "grüß dich").returncode == 0
        assert read_line(server).partition(": ")[2] == "grüß dich\n"


def test_udp_recv_prints_one_harmless_line_for_each_datagram() -> None:
    with running("udp", "recv", "--bind", "127.0.0.1:0") as (server, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for data in (b"\x1b[2J\n127.0.0.1:1: forged", b"", b"\xff\x00", b"end"):
                peer.sendto(data, ("127.0.0.1", port))
        assert server.stdout is not None
        lines = [server.stdout.readline().partition(": ")[2] for _ in range(4)]
        assert lines == ["\\x1b[2J\\n127.0.0.1:1: forged\n", "\n", "\\xff\\x00\n", "end\n"]


def test_udp_echo_does_not_fill_the_log_with_answers_that_cannot_leave() -> None:
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("datagrams from port 0, which nobody can answer, need root")
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", "udp", "echo", "--bind", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    port = int(process.stderr.readline().rpartition(":")[2])
    with raw:
        for _ in range(100):
            raw.sendto(struct.pack("!4H", 0, port, 9, 0) + b"x", ("127.0.0.1", 0))
    assert asyncnet("udp", "send", f"127.0.0.1:{port}", "hello", "--wait", "5").stdout == "hello\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=15)
    lines = said.splitlines()
    assert process.returncode == 0
    assert "cannot send UDP to 127.0.0.1:0" in lines[0]
    assert lines[-1] == "asyncnet: 100 datagrams could not be sent back"
    assert len(lines) < 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_udp_recv_ends_when_its_output_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncnet", "udp", "recv", "--bind", "127.0.0.1:0"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        port = int(process.stderr.readline().rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"x", ("127.0.0.1", port))
        _, said = process.communicate(timeout=15)
    assert (process.returncode, said) == (1, "asyncnet: No space left on device\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of drops on Linux")
def test_udp_recv_tells_what_the_system_dropped() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", "udp", "recv", "--bind", "127.0.0.1:0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    port = int(process.stderr.readline().rpartition(":")[2])
    process.send_signal(signal.SIGSTOP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for _ in range(2000):
            peer.sendto(bytes(1000), ("127.0.0.1", port))
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "datagrams that came faster" in said


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_udp_echo_answers(stop: int) -> None:
    with running("udp", "echo", "--bind", "127.0.0.1:0", stop=stop) as (_, port):
        done = asyncnet("udp", "send", f"127.0.0.1:{port}", "hello", "--wait", "5")
        assert (done.returncode, done.stdout) == (0, "hello\n")


def test_udp_send_that_waits_in_vain_says_so() -> None:
    with running("udp", "recv", "--bind", "127.0.0.1:0") as (_, port):
        done = asyncnet("udp", "send", f"127.0.0.1:{port}", "hello", "--wait", "0.1")
        assert (done.returncode, done.stderr) == (1, "asyncnet: no answer within 0.1 s\n")


@pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")
def test_broadcast_ask_and_answer() -> None:
    with running("broadcast", "answer", "0", "here") as (server, port):
        done = asyncnet("broadcast", "ask", str(port), "Hi", "--to", "127.255.255.255", "--limit", "1")
        assert done.returncode == 0
        assert done.stdout == f"Received from 127.0.0.1:{port} (lo): here\n"
        assert read_line(server).endswith("asks: Hi\n")
    done = asyncnet("broadcast", "ask", str(port), "Hi", "--to", "127.255.255.255", "--timeout", "0.1")
    assert (done.returncode, done.stderr) == (1, "asyncnet: nobody answered within 0.1 s\n")


# TCP


def test_a_second_signal_ends_the_grace_of_a_tcp_server() -> None:
    with running("tcp", "echo", "--bind", "127.0.0.1:0") as (server, port):
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            server.send_signal(signal.SIGTERM)
            wait_until_refused(port)
            sock.sendall(b"y")  # whoever is there is still served
            assert sock.recv(1) == b"y"
            server.send_signal(signal.SIGTERM)
            sock.settimeout(4)  # the grace is five seconds
            assert sock.recv(1) == b""
            assert server.wait(15) == 0


def wait_until_refused(port: int) -> None:
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # the system alone had connected it, just before the listener was closed
    raise AssertionError("the server still accepts")


@pytest.mark.parametrize("engine", AVAILABLE)
def test_tcp_echo_on_every_engine(engine: str) -> None:
    with running("tcp", "echo", "--bind", "127.0.0.1:0", "--engine", engine) as (_, port):
        done = asyncnet("tcp", "connect", f"127.0.0.1:{port}", input="one\ntwo\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "")


def test_tcp_echo_defaults_to_the_own_engine() -> None:
    assert "default: asyncnet" in " ".join(asyncnet("tcp", "echo", "--help").stdout.split())


# TFTP


def test_tftp_serve_get_and_put(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    content = random.Random(4).randbytes(300_000)
    (root / "file").write_bytes(content)
    with running("tftp", "serve", root, "--bind", "127.0.0.1:0", "--write", "create") as (_, port):
        url = f"tftp://127.0.0.1:{port}"
        done = asyncnet("tftp", "get", f"{url}/file", tmp_path / "copy", "--block-size", "512", "--window-size", "4")
        assert done.returncode == 0
        assert done.stderr.startswith("file: 293.0 KiB in ")
        assert (tmp_path / "copy").read_bytes() == content
        done = asyncnet("tftp", "put", tmp_path / "copy", f"{url}/new")
        assert done.returncode == 0
        assert (root / "new").read_bytes() == content
        done = asyncnet("tftp", "get", f"{url}/nowhere", tmp_path / "copy")
        assert done.returncode == 1
        assert done.stderr == "asyncnet: No such file or directory (TFTP error 1)\n"
        assert (tmp_path / "copy").read_bytes() == content
        done = asyncnet("tftp", "get", f"{url}/file", cwd=str(tmp_path))
        assert (tmp_path / "file").read_bytes() == content


def test_tftp_serve_is_read_only_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with running("tftp", "serve", tmp_path, "--bind", "127.0.0.1:0") as (_, port):
        done = asyncnet("tftp", "put", tmp_path / "file", f"tftp://127.0.0.1:{port}/new")
        assert done.returncode == 1
        assert "read-only" in done.stderr
    assert os.listdir(tmp_path) == ["file"]


# compare and demo


@pytest.mark.alone
def test_compare_prints_a_row_per_engine_and_writes_json(tmp_path: Path) -> None:
    command = ["compare", "--engines", "asyncio,epoll", "--clients", "4", "--size", "64", "--seconds", "0.1"]
    done = asyncnet(
        *command, "--rounds", "1", "--workloads", "echo", "--attempts", "1", "--json", tmp_path / "out.json"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[4:6]] == ["asyncio", "epoll"]
    assert all(row[-1] in ("0", "INVALID") for row in rows[4:6])  # INVALID: this machine does other work too
    data = json.loads((tmp_path / "out.json").read_text())
    assert {"asyncio", "epoll"} <= {run["engine"] for run in data["runs"]}
    assert all(run["failures"] == 0 and run["requests"] > 0 for run in data["runs"])
    assert data["settings"]["clients"] == 4


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_the_demo_shows_every_component(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        demo,
        "QUICK",
        Settings(engines=(), clients=4, seconds=0.1, rounds=1, warm_up=0.05, workloads=("echo",), attempts=1),
    )
    monkeypatch.setattr(demo, "_FILE_SIZE", 1 << 20)
    began = time.monotonic()
    status = cli.main(["demo"])
    output = capsys.readouterr().out
    assert status == 0, output
    assert time.monotonic() - began < 120
    for step in ("TFTP download", "TFTP upload", "UDP exchange", "broadcast question", "TCP exchange", "compare"):
        assert f"  ok      {step}\n" in output
    for engine in AVAILABLE:
        assert f"\n{engine} " in output
    assert "everything is right" in output


def test_a_step_that_fails_makes_the_demo_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        demo,
        "QUICK",
        Settings(engines=(), clients=1, seconds=0.05, rounds=1, warm_up=0.0, workloads=("echo",), attempts=1),
    )
    monkeypatch.setattr(demo, "available_engines", lambda: (("asyncio",), []))
    monkeypatch.setattr(demo, "_FILE_SIZE", 1000)
    monkeypatch.setattr(demo, "_digest", lambda path: path.name)
    assert cli.main(["demo"]) == 1
    output = capsys.readouterr().out
    assert "FAILED  TFTP download\n" in output
    assert "ok      UDP exchange" in output
    assert "steps FAILED" in output
