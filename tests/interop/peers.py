"""TFTP programs that others wrote: clients as argument lists, servers as processes.

The servers drop privileges to nobody, so each serves a directory of its own that anyone may read and write, instead of
pytest's ``tmp_path``, which only its owner may enter. They take no port 0: a free one is looked for first. dnsmasq
always serves TFTP on port 69, so it gets a loopback address for itself instead.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import pytest

from asyncnet.addresses import format_address

__all__ = [
    "CLIENTS",
    "SERVERS",
    "SIZES",
    "TEXT",
    "WRAP_SIZE",
    "Finished",
    "PeerClient",
    "PeerServer",
    "Transfer",
    "available",
    "content",
    "digest",
    "find_program",
    "run",
    "start_server",
]

T = TypeVar("T")

SIZES: Final = (0, 1, 511, 512, 513, 1024 * 1024)
"""Around one block of 512 bytes, and many blocks."""

WRAP_SIZE: Final = 40 * 1024 * 1024
"""81920 blocks of 512 bytes and an empty one: the block number passes 65535."""

TEXT: Final = b"a line\nthe next\r\n\n\rthe last without an end" * 50
"""Line feeds and carriage returns in every order, some of them across the border of two blocks."""

_CACHE: Final = Path(__file__).parents[2] / ".cache" / "peers"
_PLACES: Final = os.pathsep.join(
    (str(_CACHE), os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
)


@functools.cache
def content(size: int) -> bytes:
    """Return `size` bytes that are random and always the same."""
    return random.Random(size).randbytes(size)


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data`: unlike the data, it can be read in a failed assertion."""
    return hashlib.sha256(data).hexdigest()


def find_program(name: str) -> str:
    """Return the path of the program `name`, or skip the test."""
    path = shutil.which(name, path=_PLACES)
    if path is None:
        pytest.skip(f"{name} is not installed: 'make test' as root on Debian installs it")
    return path


def available(names: Iterable[str], use: Callable[[str], T]) -> dict[str, T]:
    """Return what `use` returns for each of `names`, without those that skip; skip when none is left."""
    found: dict[str, T] = {}
    missing = ""
    for name in names:
        try:
            found[name] = use(name)
        except pytest.skip.Exception as exc:
            missing = str(exc)
    if not found:
        pytest.skip(missing)
    return found


@attrs.frozen
class Finished:
    """How a program ended."""

    status: int
    output: str
    """Standard output and standard error."""


async def run(arguments: list[str]) -> Finished:
    """Run a program to its end; it is killed when the test ends first."""
    process = await asyncio.create_subprocess_exec(
        find_program(arguments[0]),
        *arguments[1:],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, output.decode(errors="replace"))


@attrs.frozen
class Transfer:
    """What a client is asked to do."""

    address: tuple[str, int]
    remote: str
    local: Path
    upload: bool = False
    block_size: int | None = None
    """None leaves out the option."""
    window_size: int | None = None


@attrs.frozen
class PeerClient:
    """A client program."""

    program: str
    arguments: Callable[[Transfer], list[str]]
    error: Callable[[int], Finished]
    """For an error code that the server sends: the exit status, and a part of the output."""

    async def run(self, transfer: Transfer) -> Finished:
        """Do `transfer`, whatever comes of it."""
        return await run([self.program, *self.arguments(transfer)])

    async def download(self, address: tuple[str, int], remote: str, local: Path, **options: Any) -> bytes:
        """Download a file and return it."""
        finished = await self.run(Transfer(address, remote, local, **options))
        assert finished.status == 0, finished.output
        assert local.exists(), finished.output  # tftp-hpa exits with 0 whatever happens
        return local.read_bytes()

    async def upload(self, address: tuple[str, int], local: Path, remote: str, **options: Any) -> None:
        """Upload a file."""
        finished = await self.run(Transfer(address, remote, local, upload=True, **options))
        assert finished.status == 0, finished.output


def _curl(transfer: Transfer) -> list[str]:
    host, port = transfer.address
    block_size = ["--tftp-blksize", str(transfer.block_size)] if transfer.block_size else []
    file = ["-T" if transfer.upload else "-o", str(transfer.local)]
    return ["--silent", "--show-error", *block_size, *file, f"tftp://{format_address((host, port))}/{transfer.remote}"]


def _tftp_hpa(transfer: Transfer) -> list[str]:
    host, port = transfer.address
    names = ["put", str(transfer.local), transfer.remote] if transfer.upload else []
    names = names or ["get", transfer.remote, str(transfer.local)]
    family = ["-6"] if ":" in host else []
    return [*family, "-m", "binary", host, str(port), "-c", *names]


def _atftp(transfer: Transfer) -> list[str]:
    host, port = transfer.address
    options = {"blksize": transfer.block_size, "windowsize": transfer.window_size}
    asked = [word for name, value in options.items() if value for word in ("--option", f"{name} {value}")]
    direction = "--put" if transfer.upload else "--get"
    files = ["--remote-file", transfer.remote, "--local-file", str(transfer.local)]
    return [*asked, direction, *files, host, str(port)]


def _busybox(transfer: Transfer) -> list[str]:
    host, port = transfer.address
    block_size = ["-b", str(transfer.block_size)] if transfer.block_size else []
    direction = "-p" if transfer.upload else "-g"
    return [
        "busybox",
        "tftp",
        direction,
        "-r",
        transfer.remote,
        "-l",
        str(transfer.local),
        *block_size,
        host,
        str(port),
    ]


# From curl/curl.h: CURLE_TFTP_NOTFOUND, CURLE_TFTP_PERM and CURLE_REMOTE_FILE_EXISTS.
_CURL_STATUS: Final = {1: 68, 2: 69, 6: 73}

CLIENTS: Final = {
    "curl": PeerClient("curl", _curl, lambda code: Finished(_CURL_STATUS[code], "")),
    "tftp-hpa": PeerClient("tftp", _tftp_hpa, lambda code: Finished(0, f"Error code {code}:")),
    "atftp": PeerClient("atftp", _atftp, lambda code: Finished(255, "error received from server")),
    "busybox": PeerClient("busybox", _busybox, lambda code: Finished(1, f"server error: ({code})")),
}


@attrs.frozen
class PeerServer:
    """A server program that runs."""

    address: tuple[str, int]
    root: Path

    def offer(self, name: str, data: bytes) -> None:
        """Put a file into the directory that is served.

        It is a new one each time: dnsmasq goes on with the old file, and its size, until it has seen the last ACK.
        """
        new = self.root / f".{name}.new"
        new.write_bytes(data)
        new.chmod(0o644)
        new.replace(self.root / name)

    async def wait_uploaded(self, name: str, size: int, timeout: float = 10) -> bytes:
        """Return the file `name` once it has `size` bytes: atftpd acknowledges the last block before it is written."""
        path = self.root / name
        deadline = time.monotonic() + timeout
        while (not path.exists() or path.stat().st_size < size) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return path.read_bytes()


def _free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _need_root(name: str, why: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"{name} {why}: run 'make test' as root")


def _tftpd_hpa(root: Path, host: str = "127.0.0.1") -> tuple[tuple[str, int], list[str]]:
    _need_root("in.tftpd", "changes its root directory")
    address = (host, _free_port(host))
    listen = ["--foreground", "--address", format_address(address)]
    return address, ["in.tftpd", *listen, "--secure", "--create", "--permissive", "--user", "nobody", str(root)]


def _atftpd(root: Path, host: str = "127.0.0.1") -> tuple[tuple[str, int], list[str]]:
    if ":" in host:
        pytest.skip("atftpd 0.8 hears IPv4 alone")
    address = (host, _free_port(host))
    listen = ["--daemon", "--no-fork", "--bind-address", address[0], "--port", str(address[1])]
    return address, ["atftpd", *listen, "--logfile", "-", str(root)]


def _dnsmasq(root: Path, host: str = "127.0.0.1") -> tuple[tuple[str, int], list[str]]:
    _need_root("dnsmasq", "listens on port 69")
    if sys.platform != "linux":
        pytest.skip("dnsmasq listens on port 69 of an address for itself, and only Linux has all of 127.0.0.0/8")
    if host != "127.0.0.1":
        pytest.skip("dnsmasq listens on port 69, and IPv6 has one loopback address")
    process = os.getpid()
    address = (f"127.{69 + (process >> 16) % 128}.{process >> 8 & 255}.{process & 255}", 69)
    files = ["--conf-file=/dev/null", "--pid-file=", "--log-facility=-"]
    tftp = ["--port=0", "--enable-tftp", f"--tftp-root={root}", f"--listen-address={address[0]}", "--bind-interfaces"]
    return address, ["dnsmasq", "--keep-in-foreground", *files, *tftp]


SERVERS: Final = {"tftpd-hpa": _tftpd_hpa, "atftpd": _atftpd, "dnsmasq": _dnsmasq}
"""Functions that take a directory and a host, and return where the server will listen, and its command."""


@contextmanager
def start_server(name: str, host: str = "127.0.0.1", timeout: float = 10) -> Iterator[PeerServer]:
    """Start a server on a directory of its own, wait until it answers, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="asyncnet-peer-") as folder, tempfile.TemporaryFile() as log:
        root = Path(folder)
        root.chmod(0o777)
        address, arguments = SERVERS[name](root, host)
        server = PeerServer(address, root)
        server.offer("ready", b"ready")
        program = find_program(arguments[0])
        # In a session of its own: in.tftpd forks for each transfer, and its children end with it.
        process = subprocess.Popen(
            [program, *arguments[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + timeout
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"{name} does not answer on {address}: {log.read().decode(errors='replace')}")
            yield server
        finally:
            _stop(process)


def _answers(address: tuple[str, int]) -> bool:
    with socket.socket(_family(address[0]), socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.sendto(struct.pack("!H", 1) + b"ready\0octet\0", address)
        try:
            packet, tid = client.recvfrom(516)
        except TimeoutError:
            return False
        client.sendto(struct.pack("!HH", 4, 1), tid)
        return packet == struct.pack("!HH", 3, 1) + b"ready"


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue
