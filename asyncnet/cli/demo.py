"""``asyncnet demo``: a tour on loopback, every component once."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs

from asyncnet import broadcast, tcp, tftp, udp
from asyncnet.cli.common import Subparsers, describe, human_bytes, progress_bars
from asyncnet.cli.compare import QUICK, available_engines, terminal_progress
from asyncnet.cli.tcp import echo
from asyncnet.lab import compare, format_table
from asyncnet.loops import run

__all__ = ["add_parser"]

_FILE_SIZE: Final = 64 << 20


@attrs.define
class Tour:
    """What was shown, and how it went."""

    steps: list[tuple[str, bool, str]] = attrs.field(factory=list)

    def note(self, name: str, good: bool, text: str) -> None:
        """Print the outcome of a step and keep it for the summary."""
        self.steps.append((name, good, text))
        print(f"  {'ok    ' if good else 'FAILED'}  {text}", flush=True)

    async def step(self, name: str, action: Callable[[], Awaitable[str]]) -> None:
        """Run a step; an exception is its failure, and the tour goes on."""
        try:
            text = await action()
        except Exception as exc:
            self.note(name, False, f"{name}: {describe(exc)}")
        else:
            self.note(name, True, text)


def add_parser(subparsers: Subparsers) -> None:
    """Add the runner to the command line."""
    parser = subparsers.add_parser("demo", help="a tour on loopback: every component once, then a short comparison")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    tour = Tour()
    run(_components(tour))
    _title("One handler on every engine")
    engines, missing = available_engines()
    result = compare(attrs.evolve(QUICK, engines=engines), progress=terminal_progress())
    print(format_table(result))
    print(*missing, sep="\n")
    requests = sum(summary.requests for summary in result.summaries())
    failures = sum(summary.failures for summary in result.summaries())
    tour.note("compare", result.ok, f"compare: {len(engines)} engines, {requests} requests, {failures} failed")

    _title("Summary")
    for name, good, _ in tour.steps:
        print(f"  {'ok    ' if good else 'FAILED'}  {name}")
    bad = sum(not good for _, good, _ in tour.steps)
    verdict = "everything is right" if not bad else f"{bad} of {len(tour.steps)} steps FAILED"
    print(f"\n{verdict}; {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _title(text: str) -> None:
    print(f"\n{text}\n", flush=True)


async def _components(tour: Tour) -> None:
    with tempfile.TemporaryDirectory(prefix="asyncnet-demo-") as folder:
        await _tftp(tour, Path(folder))
    _title("UDP")
    await tour.step("UDP exchange", _udp)
    _title("Broadcast")
    await tour.step("broadcast question", _broadcast)
    _title("TCP")
    await tour.step("TCP exchange", _tcp)


async def _tftp(tour: Tour, folder: Path) -> None:
    _title(f"TFTP: a file of {human_bytes(_FILE_SIZE)}")
    root = folder / "served"
    root.mkdir()
    wanted = await asyncio.to_thread(_make_file, root / "boot.img")
    async with tftp.serve(root, "127.0.0.1", 0, write="create") as server:
        host, port = server.address[:2]
        url = f"tftp://{host}:{port}/boot.img"

        async def download() -> str:
            with progress_bars() as begin_bar:
                report = await tftp.get(url, folder / "copy", progress=begin_bar("download"))
            return await _verdict("download", folder / "copy", wanted, report)

        async def upload() -> str:
            target = f"tftp://{host}:{port}/uploaded.img"
            with progress_bars() as begin_bar:
                report = await tftp.put(root / "boot.img", target, progress=begin_bar("upload"))
            return await _verdict("upload", root / "uploaded.img", wanted, report)

        async def by_curl() -> str:
            began = time.monotonic()
            await _run("curl", "--silent", "--show-error", "--tftp-blksize", "1428", "--output", folder / "curl", url)
            report = tftp.Report(bytes=_FILE_SIZE, seconds=time.monotonic() - began, block_size=1428)
            return await _verdict("curl's download", folder / "curl", wanted, report)

        await tour.step("TFTP download", download)
        await tour.step("TFTP upload", upload)
        if await asyncio.to_thread(_curl_has_tftp):
            await tour.step("TFTP download by curl", by_curl)
        else:
            print("  -       curl with TFTP is not installed; it would fetch the same file")


def _make_file(path: Path) -> str:
    path.write_bytes(os.urandom(_FILE_SIZE))
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _verdict(what: str, path: Path, wanted: str, report: tftp.Report) -> str:
    found = await asyncio.to_thread(_digest, path)
    if found != wanted:
        raise ValueError(f"the SHA-256 differs: {found[:16]}... instead of {wanted[:16]}...")
    rate = report.bytes / report.seconds / 1e6
    return (
        f"{what}: {human_bytes(report.bytes)} in {report.seconds:.2f} s, {rate:.0f} MB/s, "
        f"block size {report.block_size}, window {report.window_size}, SHA-256 {found[:16]}... is right"
    )


def _curl_has_tftp() -> bool:
    if shutil.which("curl") is None:
        return False
    done = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=False)
    return "tftp" in done.stdout.split()


async def _run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise OSError(f"{command[0]} exited with status {process.returncode}: {errors.decode().strip()}")


async def _udp() -> str:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client, asyncio.timeout(5):
        await client.send(b"hello")
        question, addr = await server.recv()
        await server.send(question[::-1], addr)
        answer, _ = await client.recv()
    if answer != b"olleh":
        raise ValueError(f"the answer is {answer!r}")
    return f"sent {question.decode()!r}, received {answer.decode()!r}"


async def _broadcast() -> str:
    # On Linux the loopback network has a broadcast address; elsewhere one responder at 127.0.0.1 hears the question.
    everybody = sys.platform == "linux"
    to, wanted = ("127.255.255.255", {b"printer", b"scanner"}) if everybody else ("127.0.0.1", {b"printer"})
    async with _responders(wanted) as port:
        replies = [reply async for reply in broadcast.ask(b"Hi", port, to=[to], limit=len(wanted), timeout=5)]
    if {reply.data for reply in replies} != wanted:
        raise ValueError(f"{len(replies)} of {len(wanted)} answered")
    names = " and ".join(sorted(reply.data.decode() for reply in replies))
    return f"asked {to}, answered by {names}"


@asynccontextmanager
async def _responders(names: set[bytes]) -> AsyncIterator[int]:
    first, *rest = sorted(names)
    async with broadcast.answer(lambda data, addr: first, 0) as answerer:
        port = answerer.address[1]
        if not rest:
            yield port
            return
        async with broadcast.answer(lambda data, addr: rest[0], port):
            yield port


async def _tcp() -> str:
    async with tcp.serve(echo, "127.0.0.1", 0) as server, asyncio.timeout(5):
        reader, writer = await tcp.connect(*server.address[:2], timeout=5)
        message = os.urandom(1 << 20)
        try:
            sending = asyncio.create_task(_send(writer, message))
            received = await reader.readexactly(len(message))
            await sending
        finally:
            writer.close()
            await writer.wait_closed()
    if received != message:
        raise ValueError("the echo differs")
    return f"{human_bytes(len(message))} to an echo server and back, unchanged"


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
