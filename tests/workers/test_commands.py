"""Workers from the command line: the flags of each server, what is refused, and looking after a running master."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncnet import cli
from tests.workers.masters import ROOT, children, is_alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, spreads UDP by SO_REUSEPORT")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def asyncnet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asyncnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT)


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Run a server until the block ends; yield it with its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        host, _, port = line.removeprefix("listening on ").strip().rpartition(":")
        yield process, (host, int(port))
        known = children(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()
        assert not any(map(is_alive, known))
    finally:
        process.kill()
        process.communicate()


def test_status_reload_and_stop_of_an_echo_server(tmp_path: Path) -> None:
    pid_file = tmp_path / "echo.pid"
    with serving("tcp", "echo", "--bind", "127.0.0.1:0", "--workers", 2, "--pid-file", pid_file) as (process, address):
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
        status = asyncnet("workers", "status", "--pid-file", pid_file)
        assert status.returncode == 0
        lines = status.stdout.splitlines()
        assert lines[0] == f"master {process.pid}: ok, 2 of 2 workers serve"
        assert lines[1] == f"listens on {address[0]}:{address[1]}"
        assert sum("ready" in line for line in lines) == 2
        before = children(process.pid)
        done = asyncnet("workers", "reload", "--pid-file", pid_file)
        assert (done.returncode, done.stderr) == (0, "generation 2: 2 workers serve\n")
        wait_for(lambda: len(children(process.pid)) == 2 and not set(before) & set(children(process.pid)))
        report = json.loads(asyncnet("workers", "status", "--json", "--pid-file", pid_file).stdout)
        assert (report["pid"], report["reloads"], report["totals"]["accepted"]) == (process.pid, 1, 1)
        assert asyncnet("workers", "stop", "--pid-file", pid_file).returncode == 0
        assert process.wait(5) == 0
    gone = asyncnet("workers", "status", "--pid-file", pid_file)
    assert gone.returncode == 1
    assert gone.stderr == f"asyncnet: {pid_file}: No such file or directory\n"


def reported(generation: int, settled: int, failed: int) -> dict[str, object]:
    return {"generation": generation, "settled": settled, "failed_reloads": failed, "serving": 2, "last_error": "why"}


@pytest.mark.parametrize(
    ("reports", "outcome"),
    [([(1, 1, 0), (2, 1, 0), (2, 2, 0)], "generation 2: 2 workers serve\n"),
     ([(1, 1, 0), None, (2, 1, 0), None, (2, 2, 0)], "generation 2: 2 workers serve\n"),
     ([(1, 1, 0), None, None], "broken off"),
     ([(1, 1, 0), (2, 1, 0), (1, 1, 1)], "given up"),
     ([(2, 1, 0), (2, 1, 0), (3, 2, 0), (3, 3, 0)], "generation 3: 2 workers serve\n"),
     ([(2, 1, 0), (3, 2, 0), (2, 2, 1)], "given up"),
     ([(2, 1, 0), (3, 1, 1), (3, 3, 1)], "generation 3: 2 workers serve\n"),
     ([(2, 1, 0), (3, 1, 1), (1, 1, 2)], "given up")],
)  # fmt: skip
def test_a_reload_tells_its_own_outcome_and_not_that_of_one_before(
    reports: list[tuple[int, int, int] | None],
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = iter([None if each is None else reported(*each) for each in reports])

    def ask(path: str) -> dict[str, object]:
        answer = next(answers)
        if answer is None:
            raise OSError("the master has broken off its answer")
        return answer

    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("asyncnet.cli.workers.read_pid", lambda path: os.getpid())
    monkeypatch.setattr("asyncnet.cli.workers._ask", ask)
    monkeypatch.setattr("os.kill", lambda pid, number: None)
    status = cli.main(["workers", "reload", "--pid-file", "x"])
    assert next(answers, None) is None
    assert status == (0 if outcome.startswith("generation") else 1)
    assert outcome in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_an_answer_that_is_broken_off_is_one_line(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("asyncnet.cli.workers.read_pid", lambda path: os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "pid.sock"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert cli.main(["workers", "status", "--pid-file", str(tmp_path / "pid")]) == 1
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert "has broken off its answer" in line


def test_a_pid_file_that_was_left_behind_signals_nobody(tmp_path: Path) -> None:
    pid_file = tmp_path / "old.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    done = asyncnet("workers", "stop", "--pid-file", pid_file)
    assert done.returncode == 1
    assert "no master runs" in done.stderr


def test_a_stop_that_takes_too_long_says_what_to_do(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with serving("tcp", "echo", "--bind", "127.0.0.1:0", "--workers", 1, "--pid-file", pid_file) as (process, address):
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            done = asyncnet("workers", "stop", "--pid-file", pid_file, "--timeout", "0.3")
            assert done.returncode == 1
            assert f"'kill {process.pid}' once more hurries it" in done.stderr
        process.wait(10)


def test_ctrl_c_of_a_terminal_reaches_all_processes_and_ends_them_in_order(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncnet", "tcp", "echo", "--bind", "127.0.0.1:0", "--workers", "2"],
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("listening on ")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_udp_echo_and_broadcast_answers_by_workers() -> None:
    with serving("udp", "echo", "--bind", "127.0.0.1:0", "--workers", 2) as (_, address):
        for _ in range(8):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.sendto(b"hello", address)
                assert sock.recv(100) == b"hello"
    with serving("broadcast", "answer", "0", "me", "--workers", 3) as (_, address):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.settimeout(5)
            for number in range(5):  # each question has one answer
                sock.sendto(b"who %d" % number, ("127.255.255.255", address[1]))
                assert sock.recv(100) == b"me", number
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(100)


@pytest.mark.parametrize("mode", [pytest.param([], marks=pytest.mark.long), ["--single-port"]])
def test_tftp_by_workers_under_another_user(tmp_path: Path, mode: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.joinpath("file").write_bytes(b"content" * 1000)
    for folder in (root, *list(root.parents)[:-2]):
        if os.getuid() == 0:
            folder.chmod(0o755)
    user = ["--user", "nobody"] if os.getuid() == 0 else []
    arguments = ["tftp", "serve", root, "--bind", "127.0.0.1:0", "--workers", 2, "--quiet", *mode, *user]
    with serving(*map(str, arguments)) as (process, address):
        for number in range(2):
            got = asyncnet("tftp", "get", f"tftp://{address[0]}:{address[1]}/file", tmp_path / f"got{number}")
            assert got.returncode == 0, got.stderr
            assert tmp_path.joinpath(f"got{number}").read_bytes() == b"content" * 1000
            process.send_signal(signal.SIGHUP)
            time.sleep(0)
        known = children(process.pid)
    assert not any(map(is_alive, known))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tcp", "echo", "--bind", "127.0.0.1:0", "--pid-file", "x"], "--pid-file is for several processes"),
     (["tcp", "echo", "--bind", "127.0.0.1:0", "--reuse-port"], "--reuse-port is for several processes"),
     (["udp", "echo", "--bind", "127.0.0.1:0", "--recycle-age", "3"], "--recycle-age is for several processes"),
     (["tcp", "echo", "--bind", "127.0.0.1:0", "--workers", "2", "--engine", "epoll"], "leave --engine out"),
     (["tcp", "echo", "--bind", "127.0.0.1:0", "--workers", "0"], "no whole number from 1 up"),
     (["tcp", "echo", "--bind", "unix:x"], "argument --bind"),
     (["udp", "echo", "--bind", "unix:x", "--workers", "2"], "a Unix socket carries no UDP"),
     (["tftp", "serve", ".", "--workers", "2", "--reuse-port"], "share ports by themselves"),
     (["tftp", "serve", ".", "--workers", "2", "--metrics", ":1", "--admin", ":2"], "give one of them"),
     (["broadcast", "answer", "0", "x", "--workers", "2", "--recycle-memory", "much"], "'much' is no size"),
     (["workers", "status"], "--pid-file")],
)  # fmt: skip
def test_wrong_usage_exits_with_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tcp", "echo", "--bind", "192.0.2.1:80", "--workers", "2"], "192.0.2.1 is no address of this host"),
     (["tcp", "echo", "--bind", "fd:77", "--workers", "2"], "descriptor 77 is no socket"),
     (["tcp", "echo", "--bind", "systemd", "--workers", "2"], "LISTEN_FDS hands no socket"),
     (["tcp", "echo", "--bind", "127.0.0.1:0", "--workers", "999"], "workers must be at most 256"),
     (["tcp", "echo", "--bind", "127.0.0.1:0", "--workers", "2", "--pid-file", "/no/such/x"], "No such file")],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asyncnet: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tftp", "serve", "/no/such", "--bind", "127.0.0.1:0", "--workers", "2"], "a worker cannot start"),
     (["tftp", "serve", ".", "--bind", "127.0.0.1:0", "--workers", "2", "--user", "nosuch"], "no user 'nosuch'")],
)  # fmt: skip
def test_what_a_worker_cannot_do_is_one_line_of_the_master(arguments: list[str], message: str) -> None:
    done = asyncnet(*arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("asyncnet: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_not_shared_in_silence() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        done = asyncnet("udp", "echo", "--bind", f"127.0.0.1:{other.getsockname()[1]}", "--workers", "2")
        assert done.returncode == 1
        assert "another program uses that port" in done.stderr
