"""``asyncnet tftp serve`` as an operator uses it: a process, its options, its log, its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest

from asyncnet.tftp import Client

CONTENT = b"content " * 1000


@attrs.define
class Served:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    lines: list[str] = attrs.field(factory=list)
    partial: bytes = b""

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return [int(line.rpartition(":")[2]) for line in self.lines if line.startswith("listening on ")]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read its standard error until a line matches."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + 15
        while True:
            for line in self.lines:
                if found := re.search(pattern, line):
                    return found
            readable, _, _ = select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no line {pattern!r} in {self.lines}"
            chunk = os.read(self.process.stderr.fileno(), 65536)
            assert chunk, f"the server ended: {self.lines}"
            *lines, self.partial = (self.partial + chunk).split(b"\n")
            self.lines += [line.decode() for line in lines]


@contextlib.contextmanager
def serving(*arguments: str | Path, **options: object) -> Iterator[Served]:
    """Run a server; SIGTERM must end it with status 0 and without a traceback."""
    command = [sys.executable, "-m", "asyncnet", "tftp", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    served = Served(process)
    try:
        served.wait_for("^listening on ")
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert "Traceback" not in "".join(served.lines) + (served.partial + process.stderr.read()).decode()
    finally:
        process.kill()
        process.communicate()


def fails(*arguments: str | Path, **options: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "asyncnet", "tftp", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload]
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr + done.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    tmp_path.chmod(0o755)
    (served / "file").write_bytes(CONTENT)
    return served


async def read(port: int, name: str = "file", host: str = "127.0.0.1") -> bytes:
    async with Client(host, port) as client:
        return await client.read(name)


async def test_several_addresses_one_port_for_all_and_a_line_for_each_transfer(root: Path) -> None:
    with serving(root, "--bind", "127.0.0.1:0", "--bind", "[::1]:0", "--single-port") as served:
        served.wait_for(r"^listening on \[::1\]:")
        for host, port in zip(("127.0.0.1", "::1"), served.ports, strict=True):
            assert await read(port, host=host) == CONTENT
        served.wait_for(r"\[::1\]:\d+ read 'file': 8000 bytes in .* complete")


async def test_names_are_rewritten_roots_follow_the_client_and_json_says_so(root: Path, tmp_path: Path) -> None:
    special = tmp_path / "special"
    special.mkdir()
    (special / "file").write_bytes(b"special")
    roots = ["--root", f"127.0.0.0/8={special}", "--remap", "^old/(.*)=\\1", "--remap", "^secret="]
    with serving(root, "--bind", "127.0.0.1:0", "--log", "json", *roots) as served:
        assert await read(served.ports[0], "old/file") == b"special"
        line = served.wait_for(r'^\{.*"outcome"').string
    record = json.loads(line)
    assert (record["name"], record["bytes"], record["outcome"]) == ("old/file", 7, "complete")


def test_the_rules_can_be_tried(root: Path) -> None:
    rule = ["--remap", "^old/=new/", "--remap-test"]
    assert fails(root, *rule, "old/file") == (0, "old/file: becomes new/file (rule ^old/=new/)\n")
    assert fails(root, *rule, "file") == (0, "file: no rule matches\n")


async def test_metrics_are_served(root: Path) -> None:
    pytest.importorskip("prometheus_client")
    with serving(root, "--bind", "127.0.0.1:0", "--metrics", "127.0.0.1:0") as served:
        assert await read(served.ports[0]) == CONTENT
        url = served.wait_for(r"metrics on (http://\S+)")[1]
        served.wait_for(r"read 'file': .* complete")  # the server may learn of it after the client
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    assert "asyncnet_tftp_completed_total 1.0" in text
    assert "asyncnet_tftp_sent_bytes_total 8000.0" in text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
async def test_it_becomes_another_user_once_the_port_is_open() -> None:
    with tempfile.TemporaryDirectory() as directory:
        await becomes_another_user(Path(directory))


async def becomes_another_user(root: Path) -> None:
    root.chmod(0o755)
    (root / "file").write_bytes(CONTENT)
    (root / "private").write_bytes(b"x")
    (root / "private").chmod(0o600)
    with serving(root, "--bind", "127.0.0.1:0", "--user", "nobody") as served:
        assert await read(served.ports[0]) == CONTENT
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        assert re.search(r"^Uid:\t[1-9]\d*\t", status, re.MULTILINE)
        with pytest.raises(Exception, match="Permission denied"):
            await read(served.ports[0], "private")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows hands no descriptors over")
async def test_a_socket_of_systemd_is_used(root: Path) -> None:
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.executable, [sys.executable, '-m', 'asyncnet', 'tftp', 'serve', sys.argv[2]])"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(sock.fileno()), str(root)],
            stderr=subprocess.PIPE,
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[sock.fileno()],
        )
        served = Served(process)
        try:
            served.wait_for("^listening on ")
            assert served.ports == [sock.getsockname()[1]]
            assert await read(served.ports[0]) == CONTENT
            process.terminate()
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.communicate()


async def test_who_is_denied_gets_no_answer(root: Path) -> None:
    with serving(root, "--bind", "127.0.0.1:0", "--deny", "127.0.0.1") as served:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as denied:
            denied.bind(("127.0.0.1", 0))
            denied.sendto(b"\0\1file\0octet\0", ("127.0.0.1", served.ports[0]))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as admitted:
                admitted.settimeout(10)
                admitted.bind(("127.0.0.2", 0))
                admitted.sendto(b"\0\1nothing\0octet\0", ("127.0.0.1", served.ports[0]))
                assert admitted.recv(600)[:4] == b"\0\5\0\1"
            denied.setblocking(False)
            with pytest.raises(BlockingIOError):
                denied.recv(600)


@pytest.mark.parametrize(("arguments", "status", "text"), [
    (["--allow", "10.0.0.0/33"], 1, "'10.0.0.0/33' is no network: write 192.168.1.0/24"),
    (["--user", "no-such-user"], 1, "no user 'no-such-user'"),
    (["--remap", "(=x"], 2, "is malformed"),
    (["--root", "10.0.0.0/8=/no/such/directory"], 2, "the directory must exist"),
    (["--ports", "5-1"], 2, "write 40000-40999"),
    (["--max-block-size", "7"], 1, "block_size must be between 8 and 65464, not 7"),
    (["--max-file-size", "big"], 2, "write 500000, 64K, 500M or 2G"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_with_the_way_out(root: Path, arguments: list[str], status: int, text: str) -> None:
    got, said = fails(root, "--bind", "127.0.0.1:0", *arguments)
    assert got == status
    assert text in said.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_there_are_descriptors_for_as_many_transfers_as_are_allowed(root: Path) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, hard))
    with serving(root, "--bind", "127.0.0.1:0", "--max-sessions", "300", preexec_fn=few) as served:
        limits = Path(f"/proc/{served.process.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+)", limits)
    assert found
    assert int(found[1]) >= 600


async def test_sigterm_lets_a_running_transfer_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with serving(tmp_path, "--bind", "127.0.0.1:0") as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"\0\1file\0octet\0", ("127.0.0.1", served.ports[0]))
        data, peer = sock.recvfrom(1000)
        served.process.send_signal(signal.SIGTERM)
        content = b""
        while True:
            content += data[4:]
            sock.sendto(b"\0\4" + data[2:4], peer)
            if len(data) < 516:
                break
            last = data
            while data == last:
                data = sock.recv(1000)
        assert content == CONTENT
        assert served.process.wait(15) == 0


def test_a_second_signal_ends_the_grace(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with serving(tmp_path, "--bind", "127.0.0.1:0") as served:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"\0\1file\0octet\0", ("127.0.0.1", served.ports[0]))
            assert sock.recv(1000)[:4] == b"\0\3\0\1"  # a transfer runs, and nobody acknowledges
            served.process.send_signal(signal.SIGTERM)
            served.process.send_signal(signal.SIGINT)
            assert served.process.wait(4) == 0  # the grace is five seconds
