"""Our TFTP client, and the servers that people have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncnet import tftp
from asyncnet.errors import RemoteError
from tests.interop.peers import SERVERS, SIZES, TEXT, WRAP_SIZE, PeerServer, available, content, digest, start_server

WRITABLE = [name for name in SERVERS if name != "dnsmasq"]  # which only reads

every_server = pytest.mark.parametrize("server", SERVERS, indirect=True)
every_writable_server = pytest.mark.parametrize("server", WRITABLE, indirect=True)

# tftpd-hpa 5.2 and dnsmasq before 2.92 know no windowsize: they leave it out of their answer.
every_option = pytest.mark.parametrize(
    "options",
    [{"block_size": 1428}, {"block_size": 65464, "window_size": 1}, {"window_size": 16}, {"timeout": 5}],
    ids=["block size 1428", "block size 65464", "window size 16", "timeout 5"],
)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[PeerServer]:
    with start_server(request.param) as started:
        yield started


def client_of(server: PeerServer, **options: Any) -> tftp.Client:
    """A client that asks for nothing but what `options` say."""
    return tftp.Client(*server.address, **({"block_size": 512, "window_size": 1} | options))


async def check_download(server: PeerServer, local: Path, size: int, **options: Any) -> None:
    server.offer("file", content(size))
    async with client_of(server, **options) as client:
        await client.download("file", local)
    assert digest(local.read_bytes()) == digest(content(size))


async def check_upload(server: PeerServer, local: Path, size: int, remote: str, **options: Any) -> None:
    local.write_bytes(content(size))
    async with client_of(server, **options) as client:
        await client.upload(local, remote)
    assert digest(await server.wait_uploaded(remote, size)) == digest(content(size))


@every_server
@pytest.mark.parametrize("size", SIZES)
async def test_a_file_comes_from_the_server(server: PeerServer, size: int, tmp_path: Path) -> None:
    await check_download(server, tmp_path / "local", size)


@every_writable_server
@pytest.mark.parametrize("size", SIZES)
async def test_a_file_goes_to_the_server(server: PeerServer, size: int, tmp_path: Path) -> None:
    await check_upload(server, tmp_path / "local", size, tmp_path.name)


@every_server
@every_option
async def test_a_file_comes_with_options(server: PeerServer, options: dict[str, int], tmp_path: Path) -> None:
    await check_download(server, tmp_path / "local", 1024 * 1024, **options)


@every_writable_server
@every_option
async def test_a_file_goes_with_options(server: PeerServer, options: dict[str, int], tmp_path: Path) -> None:
    await check_upload(server, tmp_path / "local", 1024 * 1024, tmp_path.name, **options)


@every_writable_server
async def test_bytes_go_to_the_server_and_come_back(server: PeerServer, tmp_path: Path) -> None:
    async with tftp.Client(*server.address) as client:
        await client.write(tmp_path.name, content(100_000))
        await server.wait_uploaded(tmp_path.name, 100_000)
        assert digest(await client.read(tmp_path.name)) == digest(content(100_000))


@every_server
async def test_lines_of_text_come_by_netascii(server: PeerServer) -> None:
    server.offer("text", TEXT)
    async with client_of(server, mode="netascii") as client:
        assert await client.read("text") == TEXT


@every_writable_server
async def test_lines_of_text_go_by_netascii(server: PeerServer, tmp_path: Path) -> None:
    async with client_of(server, mode="netascii") as client:
        await client.write(tmp_path.name, TEXT)
    assert await server.wait_uploaded(tmp_path.name, len(TEXT)) == TEXT


@every_server
async def test_a_missing_file_is_a_remote_error_and_leaves_no_file(server: PeerServer, tmp_path: Path) -> None:
    async with tftp.Client(*server.address) as client:
        with pytest.raises(RemoteError) as caught:
            await client.download("missing", tmp_path / "local")
    assert caught.value.code == 1
    assert "not found" in caught.value.text.lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", ["dnsmasq"], indirect=True)
async def test_an_upload_to_a_server_that_only_reads_is_a_remote_error(server: PeerServer) -> None:
    async with tftp.Client(*server.address) as client:
        with pytest.raises(RemoteError):
            await client.write("file", b"data")


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.timeout(180)
async def test_block_numbers_wrap_with_every_server_at_once_in_both_directions(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = available(SERVERS, lambda name: stack.enter_context(start_server(name)))
        async with asyncio.TaskGroup() as tasks:
            for name, server in servers.items():
                tasks.create_task(check_download(server, tmp_path / name, WRAP_SIZE))
                if name in WRITABLE:
                    tasks.create_task(check_upload(server, tmp_path / f"to {name}", WRAP_SIZE, "uploaded"))
