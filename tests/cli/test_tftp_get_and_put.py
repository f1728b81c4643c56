"""``asyncnet tftp get`` and ``put`` as a person types them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncnet.cli.common import progress_bars
from asyncnet.tftp import Request, Server, serve

FILES = {f"file{number}": random.Random(number).randbytes(50_000 * number) for number in range(1, 7)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    for name, content in FILES.items():
        (served / name).write_bytes(content)
    return served


@pytest.fixture
async def server(root: Path) -> AsyncIterator[Server]:
    async with serve(root, "127.0.0.1", 0, write="create") as server:
        yield server


def url(server: Server, name: str) -> str:
    return f"tftp://127.0.0.1:{server.address[1]}/{name}"


async def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "asyncnet", "tftp", *map(str, words)]

    def call() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)

    done = await asyncio.to_thread(call)
    assert b"Traceback" not in done.stderr
    return done


async def test_several_files_at_once_into_a_directory(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    done = await run("get", *(url(server, name) for name in FILES), folder)
    assert done.returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert len(re.findall(r", \d+ retransmitted$", done.stderr.decode(), re.MULTILINE)) == len(FILES)


async def test_as_many_files_at_once_as_are_asked_for(tmp_path: Path) -> None:
    """Nothing is answered before two requests are there, and a third comes when one of them has ended."""

    class Together:
        def __init__(self) -> None:
            self.asked = 0
            self.most = 0
            self.both = asyncio.Event()

        async def open_read(self, request: Request) -> bytes:
            self.asked += 1
            self.most = max(self.most, self.asked)
            if self.asked == 2:
                self.both.set()
            await self.both.wait()
            self.asked -= 1
            return b"content"

        open_write: Any = None

    storage = Together()
    async with serve(storage, "127.0.0.1", 0) as server:
        done = await run("get", "--parallel", "2", *(url(server, name) for name in "abcd"), tmp_path)
    assert done.returncode == 0
    assert storage.most == 2


async def test_an_error_of_one_file_does_not_stop_the_others(server: Server, tmp_path: Path) -> None:
    done = await run("get", url(server, "nothing"), url(server, "file1"), cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "file1").read_bytes() == FILES["file1"]
    assert b"asyncnet: nothing: " in done.stderr


async def test_a_file_goes_to_standard_output(server: Server) -> None:
    done = await run("get", url(server, "file3"), "-")
    assert (done.returncode, done.stdout) == (0, FILES["file3"])


async def test_nothing_of_a_file_with_the_wrong_digest_comes_out(server: Server, tmp_path: Path) -> None:
    right = hashlib.sha256(FILES["file3"]).hexdigest()
    done = await run("get", url(server, "file3"), "-", "--sha256", right)
    assert done.stdout == FILES["file3"]
    done = await run("get", url(server, "file3"), "-", "--sha256", "0" * 64)
    assert (done.returncode, done.stdout) == (1, b"")
    assert right.encode() in done.stderr
    done = await run("get", url(server, "file3"), tmp_path / "got", "--sha256", "abc")
    assert done.returncode == 1
    assert b"64 hexadecimal digits" in done.stderr
    assert not (tmp_path / "got").exists()


async def test_standard_input_is_sent(server: Server, root: Path) -> None:
    done = await run("put", "-", url(server, "new"), input=b"from a pipe" * 1000)
    assert done.returncode == 0
    assert (root / "new").read_bytes() == b"from a pipe" * 1000


async def test_several_files_are_sent_under_their_names(server: Server, root: Path, tmp_path: Path) -> None:
    (root / "up").mkdir()
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    done = await run("put", *(tmp_path / name for name in "abc"), url(server, "up/"), "--parallel", "2")
    assert done.returncode == 0
    assert {path.name: path.read_bytes() for path in (root / "up").iterdir()} == {"a": b"a", "b": b"b", "c": b"c"}


async def test_text_and_plain_rfc_1350(server: Server, root: Path, tmp_path: Path) -> None:
    (root / "text").write_bytes(b"one\ntwo\n")
    done = await run("get", url(server, "text"), "-", "--mode", "netascii", "--no-options", "--bind", "127.0.0.5")
    assert done.stdout == os.linesep.join(["one", "two", ""]).encode()
    done = await run("get", url(server, "file6"), "-", "--no-options")
    assert done.stdout == FILES["file6"]


async def test_a_terminal_sees_a_bar(server: Server, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-m", "asyncnet", "tftp", "get", url(server, "file6"), str(tmp_path / "got")]
        process = await asyncio.create_subprocess_exec(*command, stderr=follower)
        assert await process.wait() == 0
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "file6" in shown
    assert "300.0/300.0 kB" in shown or "100 %" in shown


def test_without_rich_a_line_tells_share_rate_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, follower = pty.openpty()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: leader, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    try:
        with progress_bars() as begin_bar:
            show = begin_bar("file6")
            assert show is not None
            show(1 << 20, 4 << 20)
    finally:
        os.close(leader)
        os.close(follower)
    assert re.search(r"file6 1.0 MiB  25 %, \S+ \w+/s, \d+ s left", capsys.readouterr().err)


@pytest.mark.parametrize(("words", "text"), [
    (["get", "tftp://127.0.0.1/a", "tftp://127.0.0.1/b", "/no/such"], "is no directory"),
    (["get", "tftp://127.0.0.1/a", "tftp://127.0.0.1/b", "--sha256", "0" * 64], "about one file"),
    (["put", "a", "b", "tftp://127.0.0.1/c"], "ends with a slash"),
    (["put", "-", "tftp://127.0.0.1/c/"], "standard input has no name"),
    (["get", "tftp://127.0.0.1/a", "--mode", "mail"], "invalid choice"),
    (["get"], "required"),
])  # fmt: skip
async def test_what_is_wrong_is_said_in_one_line(words: list[str], text: str) -> None:
    done = await run(*words)
    assert done.returncode == 2
    assert text in done.stderr.decode().splitlines()[-1]
