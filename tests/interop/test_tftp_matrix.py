"""Block sizes, windows, sizes of files, directions and address families: all that a peer has, each with each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from asyncnet import tftp
from tests.interop.peers import CLIENTS, SERVERS, PeerClient, content, digest, find_program, start_server

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(180)]

BLOCK_SIZES: Final = (8, 512, 1428, 8192, 65464)
WINDOW_SIZES: Final = (1, 4, 64)
HOSTS: Final = ("127.0.0.1", "::1")

# What the clients can ask for: tftp-hpa 5.2 nothing; busybox a block that has room for its request.
ASKED: Final[dict[str, list[dict[str, int]]]] = {
    "tftp-hpa": [{}],
    "curl": [{"block_size": block} for block in BLOCK_SIZES],
    "busybox": [{"block_size": max(block, 64)} for block in BLOCK_SIZES],
    "atftp": [{"block_size": block, "window_size": window} for block in BLOCK_SIZES for window in WINDOW_SIZES],
}

TWO_WRAPS: Final = 8 * 2 * 65536 + 100
"""Bytes: block numbers pass 65535 twice with blocks of 8 bytes."""


def sizes_for(block: int, window: int) -> list[int]:
    """Nothing, whole blocks, whole windows and a byte more."""
    return [0, block, 2 * block * window, 2 * block * window + 1]


@pytest.mark.parametrize("single_port", [False, True], ids=["a port each", "single port"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_every_size_with_every_client(name: str, host: str, single_port: bool, tmp_path: Path) -> None:
    peer: PeerClient = CLIENTS[name]
    root = tmp_path / "root"
    root.mkdir()
    async with tftp.serve(root, host, 0, write="overwrite", single_port=single_port) as server:
        address = (host, server.address[1])
        for options in ASKED[name]:
            for size in sizes_for(options.get("block_size", 512), options.get("window_size", 1)):
                case = f"{options} {size} bytes"
                (root / "file").write_bytes(content(size))
                received = await peer.download(address, "file", tmp_path / "local", **options)
                assert digest(received) == digest(content(size)), case
                await peer.upload(address, tmp_path / "local", "up", **options)
                assert digest((root / "up").read_bytes()) == digest(content(size)), case
        assert server.stats.failed == 0
        assert server.stats.completed == 2 * sum(len(sizes_for(1, 1)) for _ in ASKED[name])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", SERVERS)
async def test_every_size_with_every_server(name: str, host: str, tmp_path: Path) -> None:
    with start_server(name, host) as server:
        for block in BLOCK_SIZES:
            for window in WINDOW_SIZES:
                for size in sizes_for(block, window):
                    case = f"block {block}, window {window}, {size} bytes"
                    server.offer("file", content(size))
                    async with tftp.Client(*server.address, block_size=block, window_size=window) as client:
                        assert digest(await client.read("file")) == digest(content(size)), case
                        if name != "dnsmasq":  # which only reads
                            remote = f"up-{block}-{window}-{size}"
                            await client.write(remote, content(size))
                            assert digest(await server.wait_uploaded(remote, size)) == digest(content(size)), case


async def test_two_wraps_with_atftp(tmp_path: Path) -> None:
    find_program("atftp")  # first: in a task, its skip would be an error of the group
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(content(TWO_WRAPS))
    options = {"block_size": 8, "window_size": 64}
    async with tftp.serve(root, "127.0.0.1", 0, write="create") as server, asyncio.TaskGroup() as tasks:
        host, port = server.address[:2]
        peer = CLIENTS["atftp"]
        down = tasks.create_task(peer.download((host, port), "file", tmp_path / "local", **options))
        tasks.create_task(peer.upload((host, port), root / "file", "up", **options))
    assert digest(down.result()) == digest(content(TWO_WRAPS))
    assert digest((root / "up").read_bytes()) == digest(content(TWO_WRAPS))


@pytest.mark.parametrize("name", ["tftpd-hpa", "atftpd"])
async def test_two_wraps_with_servers(name: str) -> None:
    with start_server(name) as server:
        server.offer("file", content(TWO_WRAPS))
        async with tftp.Client(*server.address, block_size=8, window_size=64) as client:
            down, _ = await asyncio.gather(client.read("file"), client.write("up", content(TWO_WRAPS)))
        assert digest(down) == digest(content(TWO_WRAPS))
        assert digest(await server.wait_uploaded("up", TWO_WRAPS)) == digest(content(TWO_WRAPS))
