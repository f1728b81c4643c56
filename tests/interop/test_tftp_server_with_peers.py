"""Our TFTP server, and the clients that people have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncnet import tftp
from tests.interop.peers import (
    CLIENTS,
    SIZES,
    TEXT,
    WRAP_SIZE,
    Finished,
    PeerClient,
    Transfer,
    available,
    content,
    digest,
    find_program,
    run,
)

every_client = pytest.mark.parametrize("peer", [pytest.param(client, id=name) for name, client in CLIENTS.items()])

# Of the four, tftp-hpa 5.2 asks for no options at all, and only atftp knows windowsize.
OPTIONS = [
    pytest.param(CLIENTS[name], options, id="-".join([name, *map(str, options.values())]))
    for name, options in [
        ("curl", {"block_size": 512}),
        ("curl", {"block_size": 1428}),
        ("curl", {"block_size": 65464}),
        ("atftp", {"block_size": 1428}),
        ("atftp", {"block_size": 65464}),
        ("atftp", {"block_size": 1428, "window_size": 8}),
        ("busybox", {"block_size": 1428}),
        ("busybox", {"block_size": 65464}),
    ]
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that our server serves."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def address_of(server: tftp.Server) -> tuple[str, int]:
    host, port = server.address[:2]
    return host, port


async def check_download(peer: PeerClient, root: Path, local: Path, size: int, **options: int) -> None:
    (root / "file").write_bytes(content(size))
    async with tftp.serve(root, "127.0.0.1", 0) as server:
        received = await peer.download(address_of(server), "file", local, **options)
    assert digest(received) == digest(content(size))


async def check_upload(peer: PeerClient, root: Path, local: Path, size: int, **options: int) -> None:
    local.write_bytes(content(size))
    async with tftp.serve(root, "127.0.0.1", 0, write="create") as server:
        await peer.upload(address_of(server), local, "file", **options)
        assert digest((root / "file").read_bytes()) == digest(content(size))


@every_client
@pytest.mark.parametrize("size", SIZES)
async def test_a_client_downloads_the_file(peer: PeerClient, size: int, root: Path, tmp_path: Path) -> None:
    await check_download(peer, root, tmp_path / "local", size)


@every_client
@pytest.mark.parametrize("size", SIZES)
async def test_a_file_is_whole_when_the_client_that_uploads_it_ends(
    peer: PeerClient, size: int, root: Path, tmp_path: Path
) -> None:
    await check_upload(peer, root, tmp_path / "local", size)


@pytest.mark.parametrize(("peer", "options"), OPTIONS)
async def test_a_client_downloads_with_options(
    peer: PeerClient, options: dict[str, int], root: Path, tmp_path: Path
) -> None:
    await check_download(peer, root, tmp_path / "local", 1024 * 1024, **options)


@pytest.mark.parametrize(("peer", "options"), OPTIONS)
async def test_a_client_uploads_with_options(
    peer: PeerClient, options: dict[str, int], root: Path, tmp_path: Path
) -> None:
    await check_upload(peer, root, tmp_path / "local", 1024 * 1024, **options)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.timeout(180)
async def test_block_numbers_wrap_for_every_client_at_once_in_both_directions(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(content(WRAP_SIZE))
    peers = available(CLIENTS, lambda name: (find_program(CLIENTS[name].program), CLIENTS[name])[1])
    async with tftp.serve(root, "127.0.0.1", 0, write="create") as server, asyncio.TaskGroup() as tasks:
        for name, peer in peers.items():
            tasks.create_task(peer.download(address_of(server), "file", tmp_path / name))
            tasks.create_task(peer.upload(address_of(server), root / "file", name))
    expected = {name: digest(content(WRAP_SIZE)) for name in peers}
    assert {name: digest((tmp_path / name).read_bytes()) for name in peers} == expected
    assert {name: digest((root / name).read_bytes()) for name in peers} == expected


@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
async def test_lines_of_text_survive_netascii(upload: bool, root: Path, tmp_path: Path) -> None:
    source, target = (tmp_path / "file", root / "file") if upload else (root / "file", tmp_path / "file")
    source.write_bytes(TEXT)
    async with tftp.serve(root, "127.0.0.1", 0, write="create") as server:
        host, port = address_of(server)
        names = ["put", str(source), "file"] if upload else ["get", "file", str(target)]
        finished = await run(["tftp", "-m", "netascii", host, str(port), "-c", *names])
        assert target.exists(), finished.output
        assert target.read_bytes() == TEXT


def reports(finished: Finished, expected: Finished) -> bool:
    return finished.status == expected.status and expected.output in finished.output


@every_client
async def test_a_client_hears_that_a_file_is_missing(peer: PeerClient, root: Path, tmp_path: Path) -> None:
    async with tftp.serve(root, "127.0.0.1", 0) as server:
        finished = await peer.run(Transfer(address_of(server), "missing", tmp_path / "local"))
    assert reports(finished, peer.error(1))


@every_client
@pytest.mark.parametrize(("write", "code"), [("none", 2), ("create", 6)])
async def test_a_client_hears_that_it_may_not_write(
    peer: PeerClient, write: str, code: int, root: Path, tmp_path: Path
) -> None:
    (root / "file").write_bytes(b"before")
    (tmp_path / "local").write_bytes(b"after")
    async with tftp.serve(root, "127.0.0.1", 0, write=write) as server:
        finished = await peer.run(Transfer(address_of(server), "file", tmp_path / "local", upload=True))
    assert reports(finished, peer.error(code))
    assert (root / "file").read_bytes() == b"before"


@every_client
async def test_a_client_replaces_a_file_where_that_is_allowed(peer: PeerClient, root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"before")
    (tmp_path / "local").write_bytes(b"after")
    async with tftp.serve(root, "127.0.0.1", 0, write="overwrite") as server:
        await peer.upload(address_of(server), tmp_path / "local", "file")
        assert (root / "file").read_bytes() == b"after"
