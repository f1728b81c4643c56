"""TFTP and questions by broadcast on every engine, as a user starts them: both ends of each transfer run on it."""

from __future__ import annotations

import errno
import hashlib
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

from asyncnet import compat, tftp
from asyncnet.compat.questions import ask
from asyncnet.compat.transfers import Client, TftpService
from asyncnet.errors import LocalError, RemoteError
from asyncnet.tftp.packets import ErrorCode
from asyncnet.tftp.storage import Request
from tests.compat.test_engines import NAMES, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers are stopped by SIGTERM")


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@attrs.define
class Running:
    process: subprocess.Popen[str]
    port: int
    log: Path


@contextmanager
def runner(directory: Path, *arguments: object) -> Iterator[Running]:
    """Run a server of the command line until the block ends."""
    log = directory / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-m", "asyncnet", *map(str, arguments)], stderr=errors, text=True)
    try:
        with log.open() as lines:
            line = ""
            while not line.startswith("listening on "):
                line = lines.readline()
                assert process.poll() is None, log.read_text()
        yield Running(process, int(line.rpartition(":")[2]), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert "ResourceWarning" not in log.read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    (path / "image").write_bytes(os.urandom(1_000_003))
    (path / "text").write_bytes(b"one\ntwo\r\n")
    (path / "empty").touch()
    return path


@pytest.fixture(scope="module")
def server(engine: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ("--write", "create", "--engine", engine, "--bind", "127.0.0.1:0")
    with runner(tmp_path_factory.mktemp("log"), "tftp", "serve", root, *options) as running:
        yield running


def asyncnet(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncnet", *map(str, arguments)], capture_output=True, text=True, timeout=20
    )


async def transfers(port: int, folder: Path, tag: str) -> list[str]:
    """Get and put files of all sizes that matter, and say what came of each."""
    seen = []
    async with Client("127.0.0.1", port) as client:
        for name, size in (("image", None), ("empty", 0)):
            report = await client.download(name, folder / name)
            assert size is None or report.bytes == size
            seen.append(hashlib.sha256((folder / name).read_bytes()).hexdigest())
        report = await client.upload(folder / "image", f"{tag}-up")
        seen.append(f"{report.bytes} {report.confirmed}")
        for name in ("nothing-here", "../text"):
            try:
                await client.read(name)
            except RemoteError as exc:
                seen.append(str(int(exc.code)))
    async with Client("127.0.0.1", port, block_size=512, window_size=1, mode="netascii") as client:
        seen.append((await client.read("text")).decode())
    return seen


def test_files_travel_both_ways_on_every_engine(engine: str, server: Running, root: Path, tmp_path: Path) -> None:
    digest, empty, upload, *codes, text = compat.run(transfers(server.port, tmp_path, engine), engine=engine)
    assert digest == hashlib.sha256((root / "image").read_bytes()).hexdigest()
    assert empty == hashlib.sha256(b"").hexdigest()
    assert upload == "1000003 True"
    assert (root / f"{engine}-up").read_bytes() == (root / "image").read_bytes()
    assert codes == ["1", "2"]
    assert text == "one\ntwo\r\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_a_file_from_every_engine(server: Running, root: Path) -> None:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", f"tftp://127.0.0.1:{server.port}/image"], capture_output=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (root / "image").read_bytes()


def test_the_command_line_gets_on_every_engine(engine: str, server: Running, root: Path, tmp_path: Path) -> None:
    url = f"tftp://127.0.0.1:{server.port}/"
    done = asyncnet("tftp", "get", f"{url}image", tmp_path / "copy", "--engine", engine)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy").read_bytes() == (root / "image").read_bytes()
    assert "image: 976.6 KiB" in done.stderr
    missing = asyncnet("tftp", "get", f"{url}nothing", tmp_path / "other", "--engine", engine)
    assert (missing.returncode, missing.stderr) == (1, "asyncnet: No such file or directory (TFTP error 1)\n")
    assert not (tmp_path / "other").exists()
    assert "read 'image': 1000003 bytes" in server.log.read_text()


def test_a_request_that_is_repeated_begins_no_second_transfer(engine: str, server: Running) -> None:
    if engine in ("process", "prefork"):
        pytest.skip("processes do not know of each other")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        request = b"\0\1image\0octet\0"
        sock.sendto(request, ("127.0.0.1", server.port))
        block, addr = sock.recvfrom(1000)
        sock.sendto(request, ("127.0.0.1", server.port))
        sock.sendto(b"\0\4\0\1", addr)
        while block[:4] != b"\0\3\0\2":
            block, source = sock.recvfrom(1000)
            assert source == addr
        sock.sendto(b"\0\5\0\0enough\0", addr)


def test_what_is_no_request_gets_no_answer(server: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        for junk in (b"", b"\0", b"\0\3\0\1data", b"\0\5\0\1no\0", b"\xff" * 100):
            sock.sendto(junk, ("127.0.0.1", server.port))
        sock.sendto(b"\0\1no end", ("127.0.0.1", server.port))
        assert sock.recv(1000)[:4] == b"\0\5\0\4"
        sock.sendto(b"\0\1nothing\0octet\0", ("127.0.0.1", server.port))
        assert sock.recv(1000)[:4] == b"\0\5\0\1"


def test_options_of_another_engine_are_refused(root: Path) -> None:
    for option in (["--single-port"], ["--ports", "4000-4010"], ["--max-sessions", "3"], ["--bind", "127.0.0.1:0"]):
        done = asyncnet("tftp", "serve", root, "--engine", "epoll", "--bind", "127.0.0.1:0", *option)
        assert done.returncode == 2
        assert f"{option[0]} " in done.stderr.splitlines()[-1]
        assert done.stderr.endswith("for --engine asyncnet alone\n")


def test_an_unknown_engine_is_refused_with_the_list(root: Path) -> None:
    done = asyncnet("tftp", "serve", root, "--engine", "steam")
    assert done.returncode == 2
    assert "there is no engine 'steam'; the engines are polling, select," in done.stderr


# In this process.


@contextmanager
def serving(service: TftpService, engine: str = "epoll", grace: float = 5.0) -> Iterator[int]:
    server = compat.create_datagram_server(service.handle, ("127.0.0.1", 0), engine=engine, grace=grace)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address[1]
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


class Lossy:
    """A storage whose reads are awaited, and whose content is made."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def open_read(self, request: Request) -> bytes:
        await compat.sleep(0.001)
        if request.name == "broken":
            raise ZeroDivisionError("on purpose")
        return self.content

    def open_write(self, request: Request) -> Any:
        raise LocalError(ErrorCode.ACCESS_VIOLATION, "read-only")


def test_content_that_is_made_may_be_awaited(caplog: pytest.LogCaptureFixture) -> None:
    content = os.urandom(100_000)

    async def get(port: int) -> tuple[bytes, list[str]]:
        seen = []
        async with Client("127.0.0.1", port) as client:
            data = await client.read("made")
            for action in (client.read("broken"), client.write("made", b"x")):
                try:
                    await action
                except RemoteError as exc:
                    seen.append(f"{exc.code} {exc.text}")
        return data, seen

    with serving(TftpService(Lossy(content))) as port:
        data, seen = compat.run(get(port), engine="epoll")
    assert data == content
    assert seen == ["0 internal error", "2 read-only"]
    assert "the storage failed" in caplog.text


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    timing = tftp.Timing(initial=0.01, floor=0.01, cap=0.02, max_retransmits=2, patience=0)

    async def get(port: int) -> None:
        async with Client("127.0.0.1", port, timing=timing) as client:
            await client.download("x", tmp_path / "x")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        for engine in ("select", "thread", "asyncio"):
            with pytest.raises(TimeoutError, match="does not answer"):
                compat.run(get(silent.getsockname()[1]), engine=engine)
    for engine in ("select", "thread", "asyncio"):
        with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.1"):
            compat.run(get(silent_port()), engine=engine)
    assert not list(tmp_path.iterdir())


def silent_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


ONE_THREAD = [name for name in NAMES if name not in ("thread", "thread-pool", "process", "prefork")]
"""The engines whose handlers share a thread."""


@pytest.mark.parametrize("name", ONE_THREAD)
def test_an_upload_that_waits_for_the_disk_holds_up_nobody(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ready = threading.Event(), threading.Event()

    def fsync(fd: int) -> None:
        asked.set()
        assert ready.wait(20)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "other").write_bytes(b"other")
    content = os.urandom(20_000)
    quick = tftp.Timing(initial=0.05, floor=0.05, cap=0.1, max_retransmits=100, patience=0)
    reports: list[Any] = []

    async def put(port: int) -> None:
        async with Client("127.0.0.1", port, timing=quick) as client:
            reports.append(await client.write("new", content))

    async def get(port: int) -> bytes:
        async with Client("127.0.0.1", port) as client:
            return await client.read("other")

    service = TftpService(tftp.Directory(tmp_path, write=tftp.WritePolicy.OVERWRITE), timing=quick)
    with serving(service, name) as port:
        uploading = threading.Thread(target=lambda: compat.run(put(port), engine="thread"))
        uploading.start()
        try:
            assert asked.wait(10)
            assert compat.run(get(port), engine="thread") == b"other"
            assert not reports
            assert not (tmp_path / "new").exists()
        finally:
            ready.set()
            uploading.join(10)
    assert reports[0].confirmed
    assert (tmp_path / "new").read_bytes() == content


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("epoll", "gevent")])
def test_a_server_that_stops_does_not_wait_for_ever_for_a_disk_that_has_the_whole_upload(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ready = threading.Event(), threading.Event()

    def fsync(fd: int) -> None:
        asked.set()
        assert ready.wait(20)

    monkeypatch.setattr(os, "fsync", fsync)
    service = TftpService(tftp.Directory(tmp_path, write=tftp.WritePolicy.CREATE))
    try:
        with serving(service, name, grace=0.01) as port:  # and its end is bounded
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.sendto(b"\0\2new\0octet\0", ("127.0.0.1", port))
                _, addr = sock.recvfrom(100)
                sock.sendto(b"\0\3\0\1all", addr)
                assert asked.wait(10)
    finally:
        ready.set()
    wait_until((tmp_path / "new").exists, "the file appears")
    assert (tmp_path / "new").read_bytes() == b"all"
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1, "nothing else is left")


@pytest.mark.parametrize("name", ["epoll", "gevent", "asyncio"])
def test_a_disk_that_fails_at_the_end_fails_the_upload(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in NAMES:
        pytest.skip("that engine cannot run here")

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def put(port: int) -> None:
        async with Client("127.0.0.1", port) as client:
            await client.write("new", b"x")

    monkeypatch.setattr(os, "fsync", fsync)
    with serving(TftpService(tftp.Directory(tmp_path, write=tftp.WritePolicy.CREATE)), name) as port:
        with pytest.raises(RemoteError, match="No space left"):
            compat.run(put(port), engine="thread")
    assert not list(tmp_path.iterdir())


def test_who_is_not_admitted_gets_no_answer() -> None:
    service = TftpService(Lossy(b"x"), admits=tftp.Guard(deny=["127.0.0.1"]).admits)
    timing = tftp.Timing(initial=0.01, floor=0.01, cap=0.02, max_retransmits=1, patience=0)

    async def get(port: int) -> bytes:
        async with Client("127.0.0.1", port, timing=timing) as client:
            return await client.read("x")

    with serving(service) as port, pytest.raises(TimeoutError):
        compat.run(get(port), engine="epoll")


# Questions.


@pytest.fixture
def answering() -> Iterator[int]:
    """Answer every question that comes by broadcast, twice."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))

        def answer() -> None:
            while (got := sock.recvfrom(2048))[0] != b"end":
                for n in (b"1 ", b"2 "):
                    sock.sendto(n + got[0].upper(), got[1])

        thread = threading.Thread(target=answer)
        thread.start()
        port = sock.getsockname()[1]
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", ("127.0.0.1", port))
            thread.join(10)


def test_everybody_is_asked_on_every_engine(engine: str, answering: int) -> None:
    async def collect() -> list[bytes]:
        return [data async for data, _ in ask(b"hi", answering, seconds=10, limit=2, to=["127.255.255.255"])]

    assert compat.run(collect(), engine=engine) == [b"1 HI", b"2 HI"]


def test_the_command_line_asks_on_every_engine(engine: str, answering: int) -> None:
    done = asyncnet("broadcast", "ask", answering, "hi", "--to", "127.255.255.255", "--limit", 2, "--engine", engine)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == ["1 HI", "2 HI"]


def test_asking_ends_at_its_time() -> None:
    async def collect() -> list[bytes]:
        return [data async for data, _ in ask(b"hi", silent_port(), seconds=0.02, to=["127.255.255.255"])]

    for name in ("epoll", "thread", "asyncio"):
        assert compat.run(collect(), engine=name) == []


def test_datagrams_are_echoed_by_the_command_line_on_every_engine(engine: str, tmp_path: Path) -> None:
    with runner(tmp_path, "udp", "echo", "--bind", "127.0.0.1:0", "--engine", engine) as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            for n in range(10):
                sock.sendto(b"%d" % n, ("127.0.0.1", running.port))
                assert sock.recv(100) == b"%d" % n
